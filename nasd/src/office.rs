//! Becoming primary, and ceasing to be.

use crate::database::Database;
use crate::decide::{self, Quorum};
use crate::events::Kind;
use crate::failover::votes::{Seen, VotesError};
use crate::hook::Change;
use crate::node::{Node, Phase, RoleError, Steps};
use crate::peers::Peers;
use crate::protocol::{self, Hello, Incoming, Message, ProtocolError};
use crate::vote::record::Record;
use nasd_volume::commit::{Alone, Nobody};
use nasd_volume::state::State;
use nasd_volume::{Access, Position, Role, Volume};
use nasd_watcher::postgresql::Stop;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What a promotion would do, and what there is against it.
pub struct Prospect {
    pub epoch: u64,
    pub record: Option<(Record, Seen)>,
    /// Why only by force.
    pub hindrance: Option<String>,
    /// Each peer's hello, or why there is none.
    pub answers: Vec<(String, Result<Hello, String>)>,
}

impl Node {
    /// Becomes primary. Says each step with its time.
    pub fn promote(self: &Arc<Self>, force: bool) -> Result<Steps, RoleError> {
        if force && matches!(*self.phase.lock(), Phase::Asking(_)) {
            self.forced.store(true, Ordering::SeqCst);
            self.phase_changed.notify_all();
            return Ok(vec![("going on without an answer from the peers".to_owned(), Duration::ZERO)]);
        }
        let volume = self.promotable()?;
        let start = Instant::now();
        let Prospect { epoch, record, hindrance, .. } = self.prospect(&volume);
        if let Some(why) = &hindrance {
            if !force {
                return Err(RoleError::Refused(why.clone()));
            }
            self.events.emit(Kind::Role, format!("promotion forced although {why}"));
        }
        let mut steps = vec![("asked the peers".to_owned(), start.elapsed())];
        let why = if force { "promoted by force" } else { "promoted" };
        // Whoever was primary is presumed dead: nobody waits for it.
        let record = record.as_ref().map(|(r, seen)| (r, seen));
        self.succeed(&volume, epoch, record, force, why, &mut steps)?;
        if let Some(did) = self.database.as_ref().and_then(Database::become_primary) {
            steps.push(did);
        }
        Ok(steps)
    }

    /// The volume of a node that can be promoted at all, whatever it would cost.
    pub fn promotable(&self) -> Result<Arc<Volume>, RoleError> {
        let refused = |why: &str| Err(RoleError::Refused(why.to_owned()));
        if let Phase::Asking(_) = *self.phase.lock() {
            return refused(
                "this node was primary and waits for its peers to say that none of them was promoted. If none can have \
                 been: `nasd promote --force`",
            );
        }
        let Some(volume) = self.volume() else {
            return refused("this node has no volume yet: it waits for its first copy");
        };
        if volume.state.get().role == Role::Primary {
            return refused("this node is primary already");
        }
        Ok(volume)
    }

    /// Asks everybody what a promotion depends on; changes nothing.
    pub fn prospect(&self, volume: &Volume) -> Prospect {
        let state = volume.state.get();
        let asked = self.config.peers.iter().enumerate();
        let answers: Vec<_> = asked
            .map(|(i, p)| (p.name.clone(), self.dial(i).map(|(_, h)| h).map_err(|e| e.to_string())))
            .collect();
        let hellos = || answers.iter().filter_map(|(_, a)| a.as_ref().ok());
        let live = hellos().find(|h| h.role == Role::Primary && h.volume == Some(volume.id()));
        let highest = hellos().map(|h| h.epoch).max().unwrap_or(0).max(state.epoch);
        let (epoch, record, may) = self.ask_for_office(&state, highest + 1);
        let hindrance = self.database.as_ref().and_then(Database::must_clone).map(|why| {
            format!("PostgreSQL here can't take over: {why}; clone it first (`nasd pg clone`). With --force the volume is promoted alone")
        });
        let hindrance = hindrance.or(may.or(decide::promotion_hindrance(
            state.in_sync || record.is_some(),
            state.needs_copy,
            live.map(|h| h.name.as_str()),
        )));
        Prospect { epoch, record, hindrance, answers }
    }

    /// Which epoch and which record a promotion leads to, where there is a third vote, and what it has against it. Without
    /// one: the epoch that was asked for.
    fn ask_for_office(&self, state: &State, epoch: u64) -> (u64, Option<(Record, Seen)>, Option<String>) {
        let Some(votes) = self.failover.votes() else { return (epoch, None, None) };
        let me = &self.config.node.name;
        let first = |epoch| Record::first(me, epoch, self.config.replication.required);
        let seen = match votes.read(self) {
            Ok(seen) => seen,
            Err(e) => {
                let why = format!(
                    "{e}; without etcd nobody knows whether another node was promoted (--force if none can have been)"
                );
                return (epoch, None, Some(why));
            }
        };
        let Some(record) = &seen.record else {
            // Nothing says who may and who may not.
            let why = (!state.in_sync).then(|| "etcd has no record of this volume".to_owned());
            return (epoch, Some((first(epoch), seen)), why);
        };
        let epoch = epoch.max(record.epoch + 1);
        match record.promoted(me, epoch) {
            Ok(next) => (epoch, Some((next, seen)), None),
            Err(e) => (epoch, Some((first(epoch), seen)), Some(e.to_string())),
        }
    }

    /// The primary is dead, as the state machine sees it.
    pub fn take_over(
        self: &Arc<Self>,
        epoch: u64,
        record: Option<(&Record, &Seen)>,
        why: &str,
    ) -> Result<(), RoleError> {
        let Some(volume) = self.volume() else { return Ok(()) };
        let start = Instant::now();
        let mut steps = Steps::new();
        self.succeed(&volume, epoch, record, false, why, &mut steps)?;
        steps.extend(self.database.as_ref().and_then(Database::become_primary));
        let told: Vec<String> =
            steps.iter().map(|(what, took)| format!("{what} ({:.0} ms)", took.as_secs_f64() * 1e3)).collect();
        let took = start.elapsed().as_secs_f64() * 1e3;
        self.events.emit(Kind::Role, format!("took over in {took:.0} ms: {}", told.join(", ")));
        Ok(())
    }

    /// Becomes primary of `epoch` in place of one that is dead.
    fn succeed(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        epoch: u64,
        record: Option<(&Record, &Seen)>,
        force: bool,
        why: &str,
        steps: &mut Steps,
    ) -> Result<(), RoleError> {
        let _one = self.transition.lock();
        self.may_begin(volume, epoch)?;
        // From here on no transaction of an older epoch is taken: what the record and the others say now is the end of it.
        self.upstream.dismiss();
        let start = Instant::now();
        if let Some(ahead) = self.gather(volume, epoch, record, force)? {
            self.take_over_from(volume, &ahead)?;
        }
        self.write_record(record)?;
        if record.is_some() {
            steps.push(("wrote the record".to_owned(), start.elapsed()));
        }
        self.assume(volume, epoch, Duration::ZERO, why, steps)
    }

    fn may_begin(&self, volume: &Volume, epoch: u64) -> Result<(), RoleError> {
        let state = volume.state.get();
        if epoch <= state.epoch {
            return Err(RoleError::Refused(format!("this node knows epoch {} already", state.epoch)));
        }
        if state.role == Role::Primary {
            return Err(RoleError::Refused("this node is primary already".to_owned()));
        }
        if self.stopping() {
            return Err(RoleError::Refused("this node is stopping".to_owned()));
        }
        Ok(())
    }

    /// Writes the record in the place of the one that it was decided by; without a third vote there is nothing to do.
    pub fn write_record(&self, record: Option<(&Record, &Seen)>) -> Result<(), RoleError> {
        match (self.failover.votes(), record) {
            (Some(votes), Some((record, seen))) => votes.write(self, seen, record).map_err(|e| match e {
                VotesError::Unsure(_) => RoleError::Unsure(e.to_string()),
                e => RoleError::Refused(e.to_string()),
            }),
            _ => Ok(()),
        }
    }

    /// Has the other secondaries promise to take nothing more from the old primary. Who of them has more than this node?
    ///
    /// With two nodes there are none. With more of them an acknowledged transaction may be on any `required` of those in
    /// sync.
    fn gather(
        &self,
        volume: &Volume,
        epoch: u64,
        record: Option<(&Record, &Seen)>,
        force: bool,
    ) -> Result<Option<String>, RoleError> {
        let quorum = self.quorum(record.and_then(|(_, seen)| seen.record.as_ref()));
        if quorum.others() == 0 {
            return Ok(None);
        }
        let answers: Vec<(String, Result<Position, ProtocolError>)> = std::thread::scope(|s| {
            let ask = |i: usize| move || (self.config.peers[i].name.clone(), self.ask_promise(i, epoch));
            let asked: Vec<_> = (0..self.config.peers.len()).map(|i| s.spawn(ask(i))).collect();
            asked.into_iter().filter_map(|t| t.join().ok()).collect()
        });
        let promised: Vec<(&String, Position)> =
            answers.iter().filter_map(|(n, r)| r.as_ref().ok().map(|p| (n, *p))).collect();
        let silent: Vec<(&str, String)> = answers
            .iter()
            .filter_map(|(n, r)| r.as_ref().err().map(|e| (n.as_str(), e.to_string())))
            .collect();
        if let Some(why) = quorum.hindrance(promised.iter().map(|(n, _)| n.as_str()), &silent) {
            if !force {
                return Err(RoleError::Refused(why));
            }
            self.events.emit(Kind::Role, format!("promotion forced although {why}"));
        }
        let tail = volume.log.tail();
        let best = promised.iter().max_by_key(|(_, p)| (p.epoch, p.seq));
        Ok(best.filter(|(_, p)| (p.epoch, p.seq) > (tail.epoch, tail.seq)).map(|(n, _)| (*n).clone()))
    }

    /// Who has to take part in this node's promotion; `before` is what the record says, if there is one.
    pub fn quorum<'a>(&'a self, before: Option<&'a Record>) -> Quorum<'a> {
        Quorum {
            me: &self.config.node.name,
            before,
            peers: self.config.peers.len(),
            required: self.config.replication.required,
        }
    }

    fn ask_promise(&self, i: usize, epoch: u64) -> Result<Position, ProtocolError> {
        let patience = self.config.replication.peer_timeout.min(self.config.failover.timeout / 2);
        let (link, _) = self.dial_at(i, &self.config.peers[i].address, patience)?;
        protocol::say(&link, &Message::Prepare { epoch })?;
        match protocol::hear(&link, "a promise")? {
            Message::Prepared(tail) => Ok(tail),
            m => Err(protocol::unexpected(&link, Incoming::Message(Box::new(m)), "a promise")),
        }
    }

    /// Becomes primary of `epoch` because the old primary asks for it: it has stopped, and this node has everything.
    pub fn take_office(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        epoch: u64,
        from: &str,
        steps: &mut Steps,
    ) -> Result<(), RoleError> {
        let _one = self.transition.lock();
        self.may_begin(volume, epoch)?;
        self.upstream.dismiss();
        if let Some(votes) = self.failover.votes() {
            let refused = |why: String| RoleError::Refused(why);
            let seen = votes.read(self).map_err(|e| refused(e.to_string()))?;
            let next =
                decide::handed_over(seen.record.as_ref(), &self.config.node.name, epoch).map_err(refused)?;
            self.write_record(Some((&next, &seen)))?;
        }
        let grace = self.config.replication.peer_timeout;
        self.assume(volume, epoch, grace, &format!("handed over by {from}"), steps)
    }

    /// Everything that makes a primary, once it is decided. `transition` is held.
    fn assume(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        epoch: u64,
        grace: Duration,
        why: &str,
        steps: &mut Steps,
    ) -> Result<(), RoleError> {
        // As primary this node feeds them in another way.
        self.relay.end();
        self.settled.store(true, Ordering::SeqCst);
        let mut step = |what: &str, start: Instant| steps.push((what.to_owned(), start.elapsed()));
        let start = Instant::now();
        volume.state.update(|s| {
            self.begin_term(s, epoch);
            s.needs_copy = false;
        })?;
        step("wrote down the new epoch", start);
        let start = Instant::now();
        let mut n = 0;
        let mut since = volume.applied().seq;
        while let Some(applied) = volume.apply_next(false)? {
            self.events.applied(since, &applied);
            since = volume.applied().seq;
            n += 1;
        }
        let dropped = volume.drop_unfinished()?;
        if dropped > 0 {
            self.events.emit(
                Kind::Sync,
                format!("{dropped} parts of a transaction that was never committed: set aside"),
            );
        }
        step(&format!("applied {n} transactions"), start);
        let start = Instant::now();
        self.events.feed.begin_term(volume.applied().seq);
        volume.set_replicator(Arc::new(Alone));
        volume.start_epoch(epoch, &self.config.node.name)?;
        let peers = Peers::new(self, grace);
        self.serve_as_primary(volume, &peers, false)?;
        step("mount is writable", start);
        self.in_office(epoch, why);
        Ok(())
    }

    /// What the state file says from the beginning of a term on: nobody is in the set yet.
    pub fn begin_term(&self, s: &mut State, epoch: u64) {
        s.role = Role::Primary;
        s.epoch = epoch;
        s.led = self.leads();
        s.clean = false;
        s.in_sync = false;
        s.out_of_set = self.config.peers.iter().map(|p| p.name.clone()).collect();
    }

    /// This node serves as primary now: what goes with it.
    pub fn in_office(&self, epoch: u64, why: &str) {
        self.address.take();
        self.events.emit_change(
            Kind::Role,
            "secondary",
            "primary",
            format!("primary in epoch {epoch}: {why}"),
        );
        self.hook.tell(Change { old: "secondary", new: "primary", epoch, why: why.to_owned() });
    }

    /// A peer knows a higher epoch: this node is primary no more. Called from a thread that may not wait for its own
    /// end, so the work is done on another.
    pub fn step_down(self: &Arc<Self>, epoch: u64, because: &str) {
        let (node, because) = (Arc::clone(self), because.to_owned());
        std::thread::spawn(move || {
            let _one = node.transition.lock();
            if let Err(e) = node.leave_office(epoch, &because) {
                nasd_volume::fatal::stop(&format!("stepping down: {e}"));
            }
        });
    }

    /// Stops serving and follows. What was not sealed, and what the peers do not have, is set aside when the new
    /// primary calls. `transition` is held.
    pub fn leave_office(self: &Arc<Self>, epoch: u64, because: &str) -> Result<(), RoleError> {
        let Some(volume) = self.volume() else {
            return Ok(());
        };
        if volume.state.get().role == Role::Secondary {
            // A primary called while this node was still asking.
            volume.state.update(|s| s.epoch = s.epoch.max(epoch))?;
            return Ok(());
        }
        // Before anything else: clients go where the new primary is.
        self.address.give_up();
        let served = matches!(volume.access(), Access::ReadWrite | Access::Paused);
        // Writers: after this nothing new gets into data/.
        volume.set_access(Access::Closed);
        if let Some(peers) = self.peers.write().take() {
            peers.end();
        }
        if let Some(database) = &self.database {
            database.halt(Stop::Immediate);
        }
        // What was written and not committed goes into the log, though nobody else may ever have it: then the log says what
        // data/ holds, and the history that goes on can be told from it.
        // Nobody is told that it is committed: not who waits, nor who asks only now, on a thread that was held up meanwhile.
        volume.set_replicator(Arc::new(Nobody));
        volume.forsake();
        if volume.pending_bytes() > 0
            && let Err(e) = volume.seal()
        {
            tracing::warn!("sealing what was written: {e}");
        }
        // Before this node served in this run, data/ is as the last run left it.
        let unlogged = if served { volume.pending_bytes() > 0 } else { !volume.state.get().clean };
        volume.state.update(|s| {
            s.role = Role::Secondary;
            s.epoch = s.epoch.max(epoch);
            s.in_sync = false;
            s.clean = false;
            s.needs_copy |= unlogged;
        })?;
        let now = volume.state.get().epoch;
        self.events.feed.end_term(volume.applied().seq);
        self.events.emit_change(Kind::Role, "primary", "secondary", format!("secondary: {because}"));
        self.hook.tell(Change { old: "primary", new: "secondary", epoch: now, why: because.to_owned() });
        volume.invalidate_all();
        self.settle_secondary(&volume)
    }
}
