//! When a node acts by itself: takes over, goes on without a peer, or stops. Without I/O, clocks or threads, so that a
//! simulation can drive it.
//!
//! What makes it safe is not the time: a primary acknowledges what every peer that may be promoted has, or what it has
//! alone after the record (see [`crate::vote::record`]) says that nobody else may be promoted; and a secondary is
//! promoted by moving that same record. The time only says when it is worth trying.

use crate::decide;
use crate::vote::record::Record;
use nasd_config::FailoverMode;
use std::time::Duration;

/// What does not change while the node runs.
#[derive(Debug, Clone)]
pub struct Rules {
    pub me: String,
    pub mode: FailoverMode,
    /// A primary that is silent for so long is dead.
    pub timeout: Duration,
    /// How often [`Machine::step`] is called.
    pub interval: Duration,
    /// A primary goes on without a lost peer.
    pub degrade: bool,
    /// How many of the peers in sync have a transaction before it is committed.
    pub required: usize,
    /// This node takes the role back when it can.
    pub fail_back: bool,
}

/// What a node sees at a step.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Since the last step, by a clock that only goes forward.
    pub elapsed: Duration,
    pub office: Office,
    pub vote: Vote<'a>,
}

/// What the node is.
#[derive(Debug, Clone)]
pub enum Office {
    /// Neither: it starts, hands over, or goes down.
    Busy,
    Primary {
        epoch: u64,
        peers: Vec<PeerView>,
    },
    Secondary {
        epoch: u64,
        /// How long ago something came from a primary, on whatever path, if anything did since the last step.
        heard: Option<Duration>,
        /// The primary has said that nothing is acknowledged without this node.
        in_sync: bool,
        /// Why it can't take over whatever the votes say.
        unfit: Option<String>,
    },
}

/// A peer, as its primary sees it.
#[derive(Debug, Clone)]
pub struct PeerView {
    pub name: String,
    /// Commits wait for it.
    pub counted: bool,
    /// Commits wait for it, it had everything that was acknowledged when they began to, and it has written down that they
    /// do. With `required` others a commit may have gone on without it since.
    pub caught_up: bool,
    /// It has everything that was acknowledged.
    pub has_all: bool,
    /// It was in touch and is not any more, or it can't follow.
    pub lost: bool,
}

/// What the third vote says.
#[derive(Debug, Clone, Copy)]
pub enum Vote<'a> {
    /// There is none in this mode.
    None,
    /// It does not answer.
    Silent,
    /// The record as it is, if there is one.
    Read(Option<&'a Record>),
}

/// What the node does next. A [`Record`] is written first, by compare-and-swap against what was seen; if somebody else
/// was faster nothing is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Become primary of this epoch.
    TakeOver { epoch: u64, record: Option<Record> },
    /// Ask the primary to hand over.
    FailBack,
    /// Commits do not wait for this peer any more.
    Exclude { peer: String, record: Record },
    /// The same for one that may not be promoted and never was to be, while the third vote is silent: no record to write.
    Drop(String),
    /// This peer may be promoted from now on.
    Include { peer: String, record: Record },
    /// The record does not say what is.
    Claim(Record),
    /// Another one is primary.
    StepDown { epoch: u64, why: String },
    /// Stop serving: somebody else may be promoted, and this node could not know.
    Isolate(String),
}

/// The state between steps.
#[derive(Debug, Clone)]
pub struct Machine {
    rules: Rules,
    /// How long a secondary has heard nothing.
    silence: Duration,
    /// How long a primary has had neither the third vote nor a peer that may be promoted.
    cut_off: Duration,
    /// How long a secondary has been in sync with a primary that it hears.
    steady: Duration,
    /// Who may be promoted, as far as this primary knows.
    promotable: Vec<String>,
    /// Whom this primary tried to include, and has not excluded since: whatever it saw after that, a request of that time may
    /// take effect as long as nothing else is written.
    tried: Vec<String>,
    hindrance: Option<String>,
}

impl Machine {
    pub fn new(rules: Rules) -> Machine {
        Machine {
            rules,
            silence: Duration::ZERO,
            cut_off: Duration::ZERO,
            steady: Duration::ZERO,
            promotable: Vec::new(),
            tried: Vec::new(),
            hindrance: None,
        }
    }

    /// How long nothing was heard of a primary.
    pub fn silence(&self) -> Duration {
        self.silence
    }

    /// Why the node does not act although the primary seems dead.
    pub fn hindrance(&self) -> Option<&str> {
        self.hindrance.as_deref()
    }

    /// What was tried failed: not at once again.
    pub fn failed(&mut self, why: String) {
        self.silence = Duration::ZERO;
        self.steady = Duration::ZERO;
        self.hindrance = Some(why);
    }

    /// What to do now.
    pub fn step(&mut self, view: &View<'_>) -> Option<Act> {
        // A process that stood still has not heard anything because it did not listen: that proves nothing. What counts is
        // how often it looked and found nothing.
        let elapsed = view.elapsed.min(self.rules.interval * 2);
        match &view.office {
            Office::Busy => {
                self.reset();
                None
            }
            Office::Primary { epoch, peers } => {
                self.silence = Duration::ZERO;
                self.steady = Duration::ZERO;
                self.hindrance = None;
                self.primary(elapsed, *epoch, peers, view.vote)
            }
            Office::Secondary { epoch, heard, in_sync, unfit } => {
                self.cut_off = Duration::ZERO;
                self.promotable.clear();
                self.tried.clear();
                self.secondary(elapsed, *epoch, *heard, *in_sync, unfit.as_ref(), view.vote)
            }
        }
    }

    fn reset(&mut self) {
        self.silence = Duration::ZERO;
        self.cut_off = Duration::ZERO;
        self.steady = Duration::ZERO;
        self.promotable.clear();
        self.hindrance = None;
    }

    fn secondary(
        &mut self,
        elapsed: Duration,
        epoch: u64,
        heard: Option<Duration>,
        in_sync: bool,
        unfit: Option<&String>,
        vote: Vote<'_>,
    ) -> Option<Act> {
        if let Some(ago) = heard {
            self.silence = ago.min(elapsed);
            self.hindrance = None;
            self.steady = if in_sync { self.steady + elapsed } else { Duration::ZERO };
            if self.rules.fail_back && self.steady >= self.rules.timeout {
                self.steady = Duration::ZERO;
                return Some(Act::FailBack);
            }
            return None;
        }
        self.silence += elapsed;
        if self.silence < self.rules.timeout + self.stagger(vote) {
            return None;
        }
        self.steady = Duration::ZERO;
        let may = match (self.rules.mode, vote) {
            (FailoverMode::Manual, _) => Err("the mode is manual: `nasd promote` if it is dead".to_owned()),
            _ if unfit.is_some() => Err(unfit.cloned().unwrap_or_default()),
            (FailoverMode::Heartbeat, _) if !in_sync => {
                Err("this node is not known to be in sync: the primary may have gone on without it"
                    .to_owned())
            }
            (FailoverMode::Heartbeat, _) => Ok(Act::TakeOver { epoch: epoch + 1, record: None }),
            (FailoverMode::Etcd, Vote::Read(Some(record))) => {
                let next = record.epoch.max(epoch) + 1;
                match record.promoted(&self.rules.me, next) {
                    Ok(record) => Ok(Act::TakeOver { epoch: next, record: Some(record) }),
                    Err(e) => Err(e.to_string()),
                }
            }
            (FailoverMode::Etcd, Vote::Read(None)) => Err("etcd has no record of this volume".to_owned()),
            (FailoverMode::Etcd, _) => Err("etcd does not answer either".to_owned()),
        };
        match may {
            Ok(act) => Some(act),
            Err(why) => {
                self.hindrance = Some(why);
                None
            }
        }
    }

    /// Several that may be promoted do not try at the same moment: each would wait for the others' promises.
    fn stagger(&self, vote: Vote<'_>) -> Duration {
        let Vote::Read(Some(record)) = vote else { return Duration::ZERO };
        let before = record.in_sync.iter().filter(|n| **n != record.primary && **n < self.rules.me).count();
        (self.rules.timeout / 4) * u32::try_from(before).unwrap_or(u32::MAX)
    }

    fn primary(&mut self, elapsed: Duration, epoch: u64, peers: &[PeerView], vote: Vote<'_>) -> Option<Act> {
        let me = &self.rules.me;
        self.tried.retain(|name| peers.iter().any(|p| p.name == *name && p.counted));
        let record = match vote {
            Vote::None => return None,
            Vote::Silent => {
                // Whoever may be promoted and is not in touch may have been: by now, or at any time.
                let lost = self
                    .promotable
                    .iter()
                    .chain(&self.tried)
                    .find(|name| *name != me && !peers.iter().any(|p| p.name == **name && !p.lost));
                let Some(name) = lost else {
                    self.cut_off = Duration::ZERO;
                    return self.useless(peers);
                };
                self.cut_off += elapsed;
                return (self.cut_off >= self.rules.timeout).then(|| {
                    Act::Isolate(format!("neither etcd nor {name} answers: {name} may have been promoted"))
                });
            }
            Vote::Read(record) => record,
        };
        self.cut_off = Duration::ZERO;
        let Some(record) = record else {
            return Some(Act::Claim(Record::first(me, epoch, self.rules.required)));
        };
        if record.epoch > epoch || record.epoch == epoch && record.primary != *me {
            let why = format!("{} is primary of epoch {}", record.primary, record.epoch);
            return Some(Act::StepDown { epoch: record.epoch, why });
        }
        if record.epoch < epoch {
            // Promoted by force while there was no vote.
            return Some(Act::Claim(Record::first(me, epoch, self.rules.required)));
        }
        self.promotable = record.in_sync.iter().cloned().collect();
        let view = |name: &str| peers.iter().find(|p| p.name == name);
        let others = || record.in_sync.iter().filter(|name| *name != me);
        // One that is not in the record, as it was seen, too: then the same record is written again, and nothing that is
        // still on its way to etcd can bring it in.
        let gone = others()
            .filter(|name| view(name).is_none_or(|p| p.lost))
            .chain(peers.iter().filter(|p| p.lost && p.counted).map(|p| &p.name))
            .find(|gone| {
                let rest =
                    others().filter(|name| name != gone).map(|name| view(name).is_some_and(|p| p.has_all));
                decide::may_leave(&rest.collect::<Vec<_>>(), self.rules.required)
            });
        if let (Some(name), true) = (gone, self.rules.degrade)
            && let Ok(next) = record.without(me, epoch, name)
        {
            return Some(Act::Exclude { peer: name.clone(), record: next });
        }
        // Who has everything now keeps having it: while others of the record make up `required`, those are asked when it is
        // promoted; and without them commits wait for it.
        let ready = |p: &&PeerView| p.caught_up && p.has_all && !p.lost;
        let joins = peers.iter().filter(ready).find(|p| !record.in_sync.contains(&p.name))?;
        let record = record.with(me, epoch, &joins.name).ok()?;
        // From here on it may be promotable, whatever becomes of the attempt.
        self.tried.push(joins.name.clone());
        Some(Act::Include { peer: joins.name.clone(), record })
    }

    /// A lost peer that commits wait for although it can't be promoted.
    fn useless(&self, peers: &[PeerView]) -> Option<Act> {
        let may_be = |name: &String| self.promotable.contains(name) || self.tried.contains(name);
        let peer = peers.iter().find(|p| p.lost && p.counted && !may_be(&p.name))?;
        self.rules.degrade.then(|| Act::Drop(peer.name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    fn machine(mode: FailoverMode) -> Machine {
        Machine::new(Rules {
            me: "b".into(),
            mode,
            timeout: Duration::from_secs(1),
            interval: TICK,
            degrade: true,
            required: 1,
            fail_back: false,
        })
    }

    fn record(epoch: u64, primary: &str, in_sync: &[&str]) -> Record {
        let mut r = Record::first(primary, epoch, 1);
        r.in_sync = in_sync.iter().map(|s| (*s).to_owned()).collect();
        r
    }

    fn secondary(heard: bool, in_sync: bool) -> Office {
        let heard = heard.then_some(Duration::ZERO);
        Office::Secondary { epoch: 3, heard, in_sync, unfit: None }
    }

    fn peer(lost: bool, caught_up: bool) -> Vec<PeerView> {
        vec![PeerView { name: "a".into(), counted: caught_up, caught_up, has_all: caught_up, lost }]
    }

    fn run(m: &mut Machine, office: &Office, vote: Vote<'_>, steps: usize) -> Option<Act> {
        (0..steps).find_map(|_| m.step(&View { elapsed: TICK, office: office.clone(), vote }))
    }

    #[test]
    fn a_silent_primary_is_dead_after_the_timeout_and_not_before() {
        let mut m = machine(FailoverMode::Heartbeat);
        assert_eq!(run(&mut m, &secondary(false, true), Vote::None, 9), None);
        assert_eq!(run(&mut m, &secondary(true, true), Vote::None, 1), None);
        assert_eq!(run(&mut m, &secondary(false, true), Vote::None, 9), None);
        let act = run(&mut m, &secondary(false, true), Vote::None, 1);
        assert_eq!(act, Some(Act::TakeOver { epoch: 4, record: None }));
    }

    #[test]
    fn a_process_that_stood_still_does_not_take_its_own_sleep_for_silence() {
        let mut m = machine(FailoverMode::Heartbeat);
        let asleep =
            View { elapsed: Duration::from_secs(3600), office: secondary(false, true), vote: Vote::None };
        assert_eq!(m.step(&asleep), None);
        assert!(m.silence() <= TICK * 2);
        // Nor what came before it slept: it may have been the last that it took from a full buffer.
        let office = Office::Secondary {
            epoch: 3,
            heard: Some(Duration::from_secs(3600)),
            in_sync: true,
            unfit: None,
        };
        let awake = View { elapsed: Duration::from_secs(3600), office, vote: Vote::None };
        assert_eq!(m.step(&awake), None);
        assert!(m.silence() <= TICK * 2);
    }

    #[test]
    fn silence_begins_when_the_last_was_heard_and_not_at_the_next_look() {
        let mut m = machine(FailoverMode::Heartbeat);
        let office = Office::Secondary { epoch: 3, heard: Some(TICK / 2), in_sync: true, unfit: None };
        assert_eq!(m.step(&View { elapsed: TICK, office, vote: Vote::None }), None);
        assert_eq!(m.silence(), TICK / 2);
    }

    #[test]
    fn by_hand_nothing_happens_by_itself() {
        let mut m = machine(FailoverMode::Manual);
        assert_eq!(run(&mut m, &secondary(false, true), Vote::None, 100), None);
        assert!(m.hindrance().is_some_and(|h| h.contains("nasd promote")));
    }

    #[test]
    fn who_is_not_in_the_record_does_not_take_over() {
        let mut m = machine(FailoverMode::Etcd);
        let without = record(3, "a", &["a"]);
        assert_eq!(run(&mut m, &secondary(false, true), Vote::Read(Some(&without)), 50), None);
        assert!(m.hindrance().is_some());
        assert_eq!(run(&mut m, &secondary(false, true), Vote::Silent, 50), None);
        assert_eq!(run(&mut m, &secondary(false, true), Vote::Read(None), 50), None);
        let with = record(3, "a", &["a", "b"]);
        let act = run(&mut m, &secondary(false, false), Vote::Read(Some(&with)), 1);
        assert_eq!(act, Some(Act::TakeOver { epoch: 4, record: Some(record(4, "b", &["b"])) }));
    }

    #[test]
    fn several_that_may_be_promoted_try_one_after_the_other() {
        let all = record(3, "p", &["a", "b", "p"]);
        let mut m = machine(FailoverMode::Etcd);
        assert_eq!(run(&mut m, &secondary(false, true), Vote::Read(Some(&all)), 12), None);
        assert!(run(&mut m, &secondary(false, true), Vote::Read(Some(&all)), 1).is_some());
    }

    #[test]
    fn a_primary_goes_on_alone_only_through_the_record() {
        let mut m = machine(FailoverMode::Etcd);
        let both = record(3, "b", &["a", "b"]);
        let office = |lost| Office::Primary { epoch: 3, peers: peer(lost, true) };
        assert_eq!(run(&mut m, &office(false), Vote::Read(Some(&both)), 10), None);
        // etcd may be away for as long as it likes while the pair is whole.
        assert_eq!(run(&mut m, &office(false), Vote::Silent, 1000), None);
        let act = run(&mut m, &office(true), Vote::Read(Some(&both)), 1);
        let alone = record(3, "b", &["b"]);
        assert_eq!(act, Some(Act::Exclude { peer: "a".into(), record: alone.clone() }));
        // Alone by the record: written once more, since something else may be on its way there.
        let act = run(&mut m, &office(true), Vote::Read(Some(&alone)), 1);
        assert_eq!(act, Some(Act::Exclude { peer: "a".into(), record: alone.clone() }));
        // Unless it was never to be included: then etcd or not.
        assert_eq!(run(&mut m, &office(true), Vote::Silent, 1), Some(Act::Drop("a".into())));
        let gone = Office::Primary { epoch: 3, peers: peer(true, false) };
        assert_eq!(run(&mut m, &gone, Vote::Silent, 1000), None);
    }

    #[test]
    fn a_primary_without_peer_and_vote_stops_after_the_timeout() {
        let mut m = machine(FailoverMode::Etcd);
        let both = record(3, "b", &["a", "b"]);
        let office = |lost| Office::Primary { epoch: 3, peers: peer(lost, true) };
        assert_eq!(run(&mut m, &office(false), Vote::Read(Some(&both)), 1), None);
        assert_eq!(run(&mut m, &office(true), Vote::Silent, 9), None);
        assert!(matches!(run(&mut m, &office(true), Vote::Silent, 1), Some(Act::Isolate(_))));
    }

    /// With `required = 1` a commit is acknowledged because one of two has it; when that one then dies, the other one may not
    /// take its place in the record before it has it, too.
    #[test]
    fn who_stood_still_while_another_one_was_enough_is_not_included() {
        let mut m = machine(FailoverMode::Etcd);
        let alone = record(3, "b", &["b"]);
        let frozen = |has_all| {
            let c = PeerView { name: "c".into(), counted: true, caught_up: true, has_all, lost: false };
            Office::Primary { epoch: 3, peers: vec![peer(true, false).remove(0), c] }
        };
        assert_eq!(run(&mut m, &frozen(false), Vote::Read(Some(&alone)), 50), None);
        let act = run(&mut m, &frozen(true), Vote::Read(Some(&alone)), 1);
        assert_eq!(act, Some(Act::Include { peer: "c".into(), record: record(3, "b", &["b", "c"]) }));
    }

    #[test]
    fn whom_it_tried_to_include_may_be_promotable_until_something_else_is_written() {
        let mut m = machine(FailoverMode::Etcd);
        let alone = record(3, "b", &["b"]);
        let office = |lost| Office::Primary { epoch: 3, peers: peer(lost, true) };
        assert!(matches!(
            run(&mut m, &office(false), Vote::Read(Some(&alone)), 1),
            Some(Act::Include { .. })
        ));
        m.failed("etcd does not answer".into());
        assert!(matches!(run(&mut m, &office(true), Vote::Read(Some(&alone)), 1), Some(Act::Exclude { .. })));
        m.failed("etcd does not answer".into());
        assert!(matches!(run(&mut m, &office(true), Vote::Silent, 10), Some(Act::Isolate(_))));
    }

    #[test]
    fn who_lags_leaves_before_who_has_what_it_lacks() {
        let mut m = machine(FailoverMode::Etcd);
        let all = record(3, "b", &["a", "b", "c"]);
        let view = |name: &str, has_all, lost| PeerView {
            name: name.into(),
            counted: true,
            caught_up: true,
            has_all,
            lost,
        };
        let office = |a, c| Office::Primary { epoch: 3, peers: vec![a, c] };
        // What was acknowledged is on c; a has not been given up yet.
        let waits = office(view("a", false, false), view("c", true, true));
        assert_eq!(run(&mut m, &waits, Vote::Read(Some(&all)), 10), None);
        let both = office(view("a", false, true), view("c", true, true));
        let act = run(&mut m, &both, Vote::Read(Some(&all)), 1);
        assert_eq!(act, Some(Act::Exclude { peer: "a".into(), record: record(3, "b", &["b", "c"]) }));
    }

    #[test]
    fn a_primary_steps_down_before_a_higher_epoch() {
        let mut m = machine(FailoverMode::Etcd);
        let newer = record(4, "a", &["a"]);
        let office = Office::Primary { epoch: 3, peers: peer(true, false) };
        assert!(matches!(
            run(&mut m, &office, Vote::Read(Some(&newer)), 1),
            Some(Act::StepDown { epoch: 4, .. })
        ));
    }

    #[test]
    fn a_peer_that_caught_up_enters_the_record() {
        let mut m = machine(FailoverMode::Etcd);
        let alone = record(3, "b", &["b"]);
        let act =
            run(&mut m, &Office::Primary { epoch: 3, peers: peer(false, true) }, Vote::Read(Some(&alone)), 1);
        assert_eq!(act, Some(Act::Include { peer: "a".into(), record: record(3, "b", &["a", "b"]) }));
    }
}
