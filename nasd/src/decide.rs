//! What a node does next: pure functions of what it knows, without I/O, time or threads.

use crate::protocol::Hello;
use crate::vote::record::Record;
use nasd_volume::state::Led;
use nasd_volume::{Hash, Position, Role, VolumeId};

/// What this node is, for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    pub volume: VolumeId,
    pub epoch: u64,
    pub tail: Position,
    /// The highest epoch before which `data/` may hold changes that no transaction holds; 0: none.
    pub uncompared_epoch: u64,
}

/// What a primary does with a peer that said hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It has another volume: nothing.
    WrongVolume,
    /// It knows a higher epoch: this node is primary no more.
    StepDown { epoch: u64 },
    /// It can't follow at the moment.
    Wait(String),
    /// Its log ends where ours has been: it goes on from there.
    Continue,
    /// Its log ends in what ours does not know: find the last position that both have.
    FindFork,
    /// Its files have to be compared.
    Copy,
}

/// What a primary does with a peer. `known` says which hash this node's log has under a number, if it has it.
pub fn plan(own: &Own, peer: &Hello, known: impl Fn(u64) -> Option<Hash>) -> Plan {
    if peer.volume.is_some_and(|v| v != own.volume) {
        return Plan::WrongVolume;
    }
    if peer.epoch > own.epoch {
        return Plan::StepDown { epoch: peer.epoch };
    }
    if let Some(why) = &peer.trouble {
        return Plan::Wait(why.clone());
    }
    if peer.volume.is_none() || peer.needs_copy || peer.tail.epoch < own.uncompared_epoch {
        return Plan::Copy;
    }
    if peer.tail.epoch == own.epoch && peer.tail.seq > own.tail.seq {
        // Only this node seals in its epoch: it has sent that itself and is still writing it to its own disk. Were it
        // taken for another history, what the peer has acknowledged would be given up there.
        return Plan::Wait("it has what this node's own disk does not have yet".to_owned());
    }
    if known(peer.tail.seq) == Some(peer.tail.hash) { Plan::Continue } else { Plan::FindFork }
}

/// Whether a secondary feeds this one. Not if it hears from somebody already, or knows better.
pub fn may_feed(peer: &Hello, epoch: u64, me: &str) -> Result<(), &'static str> {
    if peer.role == Role::Primary {
        return Err("it is primary");
    }
    if peer.following.as_deref().is_some_and(|name| name != me) {
        return Err("it follows another one");
    }
    if peer.epoch > epoch {
        return Err("it knows a newer epoch");
    }
    Ok(())
}

/// The last position that two logs share: `theirs` holds numbers and hashes, oldest first.
pub fn fork(theirs: &[(u64, Hash)], known: impl Fn(u64) -> Option<Hash>) -> Option<(u64, Hash)> {
    theirs.iter().rev().copied().find(|(seq, hash)| known(*seq) == Some(*hash))
}

/// How a node that was primary starts again, given what its peers answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restart {
    /// Not enough of them have answered.
    Wait(Vec<String>),
    /// Another one is primary, or was promoted.
    Secondary { because: String, epoch: u64 },
    /// Take over what the named peer has and this node lacks, then serve in this epoch.
    Primary { ahead: Option<String>, epoch: u64 },
}

/// What a peer answered at a restart: its hello, and whether its log holds this node's tail.
#[derive(Debug, Clone)]
pub struct Answer {
    pub hello: Hello,
    pub has_our_tail: bool,
}

/// How a node that was primary starts again. Every peer without which nothing was acknowledged has to answer, and at
/// least one of all: somebody else may have been promoted meanwhile. `force` is the operator's word that it was not so.
///
/// The `record` of a third vote, where there is one, knows better: who is not in it follows; for who is nobody else needs to
/// answer, since the record is moved before this node serves. One that does not serve has then only promised
/// its higher epoch to somebody who did not get the record: were that enough, the only node that may be promoted might stand back for ever.
pub fn restart(
    own: &Own,
    me: &str,
    peers: &[(String, bool, Option<Answer>)],
    record: Option<&Record>,
    force: bool,
) -> Restart {
    if let Some(r) = record {
        if r.primary != me && r.epoch > own.epoch {
            return Restart::Secondary {
                because: format!("{} is in epoch {}", r.primary, r.epoch),
                epoch: r.epoch,
            };
        }
        if !r.in_sync.contains(me) && !force {
            return Restart::Secondary {
                because: format!("{} went on without this node", r.primary),
                epoch: r.epoch,
            };
        }
    }
    let force = force || record.is_some();
    let answers = || peers.iter().filter_map(|(n, _, a)| a.as_ref().map(|a| (n, a)));
    let promised = answers().map(|(_, a)| a.hello.epoch).max().unwrap_or(0);
    let highest = record.map_or(0, |r| r.epoch.max(promised)).max(own.epoch);
    for (name, a) in answers() {
        let h = &a.hello;
        if h.volume.is_some_and(|v| v != own.volume) {
            continue;
        }
        if (h.epoch > own.epoch && (record.is_none() || h.serving))
            || (h.role == Role::Primary && h.epoch == own.epoch && own.epoch > 0 && h.serving)
        {
            return Restart::Secondary { because: format!("{name} is in epoch {}", h.epoch), epoch: h.epoch };
        }
    }
    let silent: Vec<String> = peers
        .iter()
        .filter(|(_, out_of_set, a)| a.is_none() && !out_of_set)
        .map(|(n, ..)| n.clone())
        .collect();
    let nobody = !peers.is_empty() && answers().next().is_none();
    if !force && (nobody || !silent.is_empty()) {
        let all = peers.iter().filter(|p| p.2.is_none()).map(|p| p.0.clone()).collect();
        return Restart::Wait(if silent.is_empty() { all } else { silent });
    }
    let ahead = answers()
        .filter(|(_, a)| a.has_our_tail && a.hello.tail.seq > own.tail.seq && !a.hello.needs_copy)
        .max_by_key(|(_, a)| a.hello.tail.seq)
        .map(|(n, _)| n.clone());
    Restart::Primary { ahead, epoch: highest + 1 }
}

/// Transactions of this node are given up for another history: whether somebody here may have been told that they are
/// committed, or have seen them, and have acted on it. A database then holds what the others never had.
///
/// `alone`: as primary this node acknowledged without the node whose history goes on. `applied`: some of them were
/// applied here.
pub fn acted_on(led: Led, alone: bool, applied: bool) -> bool {
    match led {
        Led::No => applied,
        Led::Durably => alone,
        Led::Weakly => true,
    }
}

/// How a peer stands to a transaction that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Commits wait for it.
    pub in_set: bool,
    /// It may be promoted: it counts as one of those `required`. One that may not yet is waited for, and that is all:
    /// what it has is not asked for when another one is promoted.
    pub counts: bool,
    /// It has the transaction, as the commit mode means it.
    pub has: bool,
    /// It is not in touch.
    pub lost: bool,
    /// It is not in the set and may be in a moment.
    pub may_join: bool,
}

/// Whether a transaction may be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Acknowledge,
    Wait,
    /// This peer must leave the set first.
    Leave(usize),
}

/// Whether what is durable here may be acknowledged: when `required` of the peers in the set have it; with fewer of them in
/// the set, when all of those have it, unless `suspend`. Within `grace` those that may join are waited for.
///
/// Everything acknowledged is on at least `required` peers of the set or, with fewer, on all of it.
pub fn verdict(peers: &[Standing], required: usize, suspend: bool, grace: bool) -> Verdict {
    let have = peers.iter().filter(|p| p.in_set && p.counts && p.has).count();
    if have >= required || peers.is_empty() {
        return Verdict::Acknowledge;
    }
    if peers.iter().any(|p| p.in_set && !p.has && !p.lost) {
        return Verdict::Wait;
    }
    if let Some(i) = peers.iter().position(|p| p.in_set && !p.has) {
        return if suspend { Verdict::Wait } else { Verdict::Leave(i) };
    }
    if suspend || grace && peers.iter().any(|p| !p.in_set && p.may_join) {
        return Verdict::Wait;
    }
    Verdict::Acknowledge
}

/// Whether a peer may leave those that may be promoted: what was acknowledged must be on `required` of the `rest`, or on all
/// of it, without it. Each of the rest: whether it has everything that was acknowledged. One that lags must leave first, or
/// catch up: what was acknowledged may be on the leaving one alone.
pub fn may_leave(rest: &[bool], required: usize) -> bool {
    rest.iter().filter(|has| **has).count() >= required.min(rest.len())
}

/// Whether enough of those that have what was acknowledged take part in a promotion: of `others` (besides the one that is
/// promoted) that may have something that it has not, these many have promised to take nothing more from the old
/// primary. Every acknowledged transaction is on `required` of all of them, so on one that takes part.
pub fn enough_promised(others: usize, promised: usize, required: usize) -> bool {
    others - promised.min(others) < required
}

/// Who has to take part in a promotion: with more than two nodes an acknowledged transaction may be on any `required` of
/// those in sync.
#[derive(Debug, Clone, Copy)]
pub struct Quorum<'a> {
    pub me: &'a str,
    /// What the record says, if there is one.
    pub before: Option<&'a Record>,
    /// How many peers this node has.
    pub peers: usize,
    /// As configured; the record knows better.
    pub required: usize,
}

impl Quorum<'_> {
    fn counts(&self, name: &str) -> bool {
        self.before.is_none_or(|r| r.in_sync.contains(name) && r.primary != name && name != self.me)
    }

    /// How many besides this node may have what was acknowledged. With two nodes there are none: one of them is dead.
    pub fn others(&self) -> usize {
        match self.before {
            // Whatever was acknowledged in its epoch was on its own disk first.
            Some(r) if r.primary == self.me => 0,
            Some(r) => r.in_sync.iter().filter(|n| self.counts(n)).count(),
            None => self.peers.saturating_sub(1),
        }
    }

    /// Why those that `promised` to take nothing more from the old primary are too few. `silent`: who did not, and why.
    pub fn hindrance<'n>(
        &self,
        promised: impl Iterator<Item = &'n str>,
        silent: &[(&str, String)],
    ) -> Option<String> {
        let counted = promised.filter(|n| self.counts(n)).count();
        let required = self.before.map_or(self.required, |r| r.required);
        if enough_promised(self.others(), counted, required) {
            return None;
        }
        let silent: Vec<String> =
            silent.iter().filter(|(n, _)| self.counts(n)).map(|(n, why)| format!("{n} ({why})")).collect();
        Some(format!(
            "a committed transaction may be on one of those that do not answer: {}; with --force it is lost",
            silent.join(", ")
        ))
    }
}

/// The record after `me` was handed the role.
pub fn handed_over(record: Option<&Record>, me: &str, epoch: u64) -> Result<Record, String> {
    let record = record.ok_or("etcd has no record of this volume")?;
    record.promoted(me, epoch).map_err(|e| e.to_string())
}

/// To whom a primary hands over: the first of its peers (name, in sync) that is in sync, or the one that asks for it.
pub fn heir(peers: &[(String, bool)], to: Option<&str>) -> Result<usize, String> {
    let fits = |(name, in_sync): &(String, bool)| *in_sync && to.is_none_or(|t| t == name);
    peers.iter().position(fits).ok_or_else(|| {
        let names: Vec<&str> = peers.iter().map(|(n, _)| n.as_str()).collect();
        format!(
            "no peer is in sync to hand over to (of: {}); wait until `nasd status` says in-sync",
            names.join(", ")
        )
    })
}

/// Why a secondary may not be promoted as it is.
pub fn promotion_hindrance(in_sync: bool, needs_copy: bool, live_primary: Option<&str>) -> Option<String> {
    if let Some(name) = live_primary {
        return Some(format!(
            "{name} is primary and answers: use `nasd switchover`, which loses nothing. With --force there are two \
             histories, and what {name} commits from now on is set aside"
        ));
    }
    if needs_copy {
        return Some(
            "this replica is between two states (a copy has not finished): with --force files may be torn"
                .to_owned(),
        );
    }
    if !in_sync {
        return Some(
            "this node is not known to be in sync: the primary may have acknowledged transactions that are not here; \
             with --force they are lost"
                .to_owned(),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(in_set: bool, has: bool, lost: bool) -> Standing {
        Standing { in_set, counts: in_set, has, lost, may_join: !in_set && !lost }
    }

    #[test]
    fn a_commit_waits_for_as_many_peers_as_are_required() {
        use Verdict::{Acknowledge, Leave, Wait};
        let (has, lacks, gone) = (peer(true, true, false), peer(true, false, false), peer(true, false, true));
        let new = Standing { counts: false, ..has };
        let (out, away) = (peer(false, false, false), peer(false, false, true));
        for (peers, required, suspend, grace, want) in [
            (vec![], 1, true, false, Acknowledge),
            (vec![has], 1, false, false, Acknowledge),
            (vec![lacks], 1, false, false, Wait),
            (vec![gone], 1, false, false, Leave(0)),
            (vec![gone], 1, true, false, Wait),
            (vec![away], 1, false, false, Acknowledge),
            (vec![away], 1, true, false, Wait),
            (vec![out], 1, false, true, Wait),
            (vec![out], 1, false, false, Acknowledge),
            // One of two is enough, whatever became of the other.
            (vec![lacks, has], 1, false, false, Acknowledge),
            // But not when that one may not be promoted while the other one may.
            (vec![lacks, new], 1, false, false, Wait),
            (vec![new], 1, false, false, Acknowledge),
            (vec![gone, has], 1, true, false, Acknowledge),
            (vec![gone, has], 2, false, false, Leave(0)),
            (vec![gone, lacks], 2, false, false, Wait),
            (vec![away, has], 2, false, false, Acknowledge),
            (vec![away, has], 2, true, false, Wait),
        ] {
            assert_eq!(
                verdict(&peers, required, suspend, grace),
                want,
                "{peers:?} {required} {suspend} {grace}"
            );
        }
    }

    #[test]
    fn who_has_something_alone_does_not_leave_before_who_lacks_it() {
        assert!(may_leave(&[], 1));
        assert!(may_leave(&[true], 1));
        assert!(!may_leave(&[false], 1));
        assert!(may_leave(&[false, true], 1));
        assert!(!may_leave(&[false, true], 2));
        assert!(may_leave(&[true], 2));
    }

    #[test]
    fn a_promotion_needs_whoever_may_have_something_alone() {
        // A pair: the other one was the primary.
        assert!(enough_promised(0, 0, 1));
        // Three nodes, one peer required: the other secondary may have what this one lacks.
        assert!(!enough_promised(1, 0, 1));
        assert!(enough_promised(1, 1, 1));
        // Both required: whatever was acknowledged is here.
        assert!(enough_promised(1, 0, 2));
        assert!(!enough_promised(3, 1, 2));
        assert!(enough_promised(3, 2, 2));
    }

    fn pos(epoch: u64, seq: u64, h: u8) -> Position {
        Position { epoch, seq, hash: Hash([h; 32]) }
    }
    fn own() -> Own {
        Own { volume: VolumeId([1; 16]), epoch: 5, tail: pos(5, 10, 10), uncompared_epoch: 0 }
    }
    fn hello() -> Hello {
        Hello {
            version: 1,
            name: "b".into(),
            volume: Some(VolumeId([1; 16])),
            role: Role::Secondary,
            serving: false,
            epoch: 5,
            tail: pos(5, 8, 8),
            applied: 8,
            needs_copy: false,
            in_sync: true,
            trouble: None,
            following: None,
        }
    }
    fn known(seq: u64) -> Option<Hash> {
        (4..=10).contains(&seq).then_some(Hash([seq as u8; 32]))
    }

    #[test]
    fn a_peer_behind_continues_and_one_ahead_or_elsewhere_forks() {
        assert_eq!(plan(&own(), &hello(), known), Plan::Continue);
        assert_eq!(plan(&own(), &Hello { tail: pos(5, 8, 99), ..hello() }, known), Plan::FindFork);
        assert_eq!(plan(&own(), &Hello { tail: pos(4, 11, 11), ..hello() }, known), Plan::FindFork);
        let in_flight = Hello { tail: pos(5, 11, 11), ..hello() };
        assert!(matches!(plan(&own(), &in_flight, known), Plan::Wait(_)));
        assert_eq!(
            fork(&[(3, Hash([3; 32])), (7, Hash([7; 32])), (8, Hash([99; 32]))], known),
            Some((7, Hash([7; 32])))
        );
        assert_eq!(fork(&[(3, Hash([3; 32]))], known), None);
    }

    #[test]
    fn foreign_newer_and_fresh_peers() {
        assert_eq!(
            plan(&own(), &Hello { volume: Some(VolumeId([2; 16])), ..hello() }, known),
            Plan::WrongVolume
        );
        assert_eq!(plan(&own(), &Hello { epoch: 6, ..hello() }, known), Plan::StepDown { epoch: 6 });
        assert_eq!(plan(&own(), &Hello { volume: None, ..hello() }, known), Plan::Copy);
        assert_eq!(plan(&own(), &Hello { needs_copy: true, ..hello() }, known), Plan::Copy);
        let own = Own { uncompared_epoch: 6, ..own() };
        assert_eq!(plan(&own, &hello(), known), Plan::Copy);
    }

    #[test]
    fn a_restart_waits_for_who_may_have_been_promoted() {
        let answer = |h: Hello, has| Some(Answer { hello: h, has_our_tail: has });
        let b = |out, a| vec![("b".to_owned(), out, a)];
        assert_eq!(restart(&own(), "a", &b(false, None), None, false), Restart::Wait(vec!["b".into()]));
        assert_eq!(restart(&own(), "a", &b(true, None), None, false), Restart::Wait(vec!["b".into()]));
        assert_eq!(
            restart(&own(), "a", &b(false, None), None, true),
            Restart::Primary { ahead: None, epoch: 6 }
        );
        assert_eq!(restart(&own(), "a", &[], None, false), Restart::Primary { ahead: None, epoch: 6 });
        let same = answer(hello(), false);
        assert_eq!(
            restart(&own(), "a", &b(false, same), None, false),
            Restart::Primary { ahead: None, epoch: 6 }
        );
        let ahead = answer(Hello { tail: pos(5, 11, 11), ..hello() }, true);
        assert_eq!(
            restart(&own(), "a", &b(false, ahead), None, false),
            Restart::Primary { ahead: Some("b".into()), epoch: 6 }
        );
        let promoted = answer(Hello { epoch: 6, role: Role::Primary, ..hello() }, true);
        assert!(matches!(
            restart(&own(), "a", &b(false, promoted), None, true),
            Restart::Secondary { epoch: 6, .. }
        ));
    }

    #[test]
    fn a_promise_does_not_outrank_the_record() {
        let promised = Some(Answer { hello: Hello { epoch: 7, ..hello() }, has_our_tail: true });
        let peers = vec![("b".to_owned(), false, promised)];
        let record = Record::first("a", 5, 1);
        assert_eq!(
            restart(&own(), "a", &peers, Some(&record), false),
            Restart::Primary { ahead: None, epoch: 8 }
        );
        assert!(matches!(restart(&own(), "a", &peers, None, false), Restart::Secondary { epoch: 7, .. }));
    }

    #[test]
    fn what_only_a_durable_primary_with_its_peer_gives_up_was_told_to_nobody() {
        for applied in [false, true] {
            assert!(!acted_on(Led::Durably, false, applied));
            assert!(acted_on(Led::Durably, true, applied));
            assert!(acted_on(Led::Weakly, false, applied));
            assert_eq!(acted_on(Led::No, false, applied), applied);
        }
    }

    #[test]
    fn promotion_wants_a_replica_that_is_in_sync() {
        assert_eq!(promotion_hindrance(true, false, None), None);
        assert!(promotion_hindrance(false, false, None).is_some());
        assert!(promotion_hindrance(true, true, None).is_some());
        assert!(promotion_hindrance(true, false, Some("a")).is_some());
    }
}
