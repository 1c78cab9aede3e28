//! Becoming primary and ceasing to be, as in the product's `office.rs` and `switchover.rs`, in their order.

use super::network::Link;
use super::node::{Access, N, NAMES, Phase, Replicator, Want, hear, index_of, say};
use super::peers::{PeerState, Peers};
use super::settings::Bug;
use super::world::{MS, Notify, SECOND, Time};
use nasd::decide;
use nasd::protocol::Message;
use nasd::vote::record::Record;
use nasd_volume::{Position, Role};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

type Told = Result<(), String>;

impl N {
    pub fn voted(&self) -> bool {
        self.w.set.mode == nasd_config::FailoverMode::Etcd
    }

    fn other_names(&self) -> impl Iterator<Item = String> + '_ {
        self.others.iter().map(|&o| NAMES[o].to_owned())
    }

    /// As `succeed`: becomes primary in place of one that is dead.
    pub async fn take_over(self: &Rc<Self>, epoch: u64, record: Option<(i64, &Record)>) -> Told {
        let _one = self.transition().await;
        self.may_begin(epoch).await?;
        if !self.w.set.has(Bug::TakeAfterSwap) {
            self.dismiss().await;
        }
        if let Some(ahead) = self.gather(epoch, record.is_some()).await? {
            self.take_over_from(ahead).await?;
        }
        if let Some((base, record)) = record {
            self.write_vote(base, record).await?;
        }
        self.w.checks.count(|c| &c.promotions);
        self.assume(epoch, 0).await;
        Ok(())
    }

    async fn may_begin(&self, epoch: u64) -> Told {
        let state = self.state().await;
        if epoch <= state.epoch {
            return Err(format!("this node knows epoch {} already", state.epoch));
        }
        if state.role == Role::Primary {
            return Err("this node is primary already".to_owned());
        }
        if self.stopping.get() {
            return Err("this node is stopping".to_owned());
        }
        Ok(())
    }

    async fn gather(self: &Rc<Self>, epoch: u64, voted: bool) -> Result<Option<usize>, String> {
        if self.w.set.has(Bug::SkipGather) {
            return Ok(None);
        }
        let before = self.seen.borrow().as_ref().ok().and_then(|s| s.record.clone()).filter(|_| voted);
        let me = NAMES[self.me];
        let counts = |name: &str| {
            before.as_ref().is_none_or(|r| r.in_sync.contains(name) && r.primary != name && name != me)
        };
        let others = match &before {
            Some(r) => r.in_sync.iter().filter(|n| counts(n)).count(),
            None => self.others.len().saturating_sub(1),
        };
        if others == 0 {
            return Ok(None);
        }
        let required = before.as_ref().map_or(self.w.set.required, |r| r.required);
        // All are asked at the same time.
        let answers: Rc<(RefCell<Vec<(usize, Option<Position>)>>, Notify)> = Rc::default();
        for &to in &self.others {
            let (n, answers) = (Rc::clone(self), Rc::clone(&answers));
            self.w.spawn(Some(self.me), async move {
                let tail = n.ask_promise(to, epoch).await.ok();
                answers.0.borrow_mut().push((to, tail));
                n.w.ring(&answers.1);
            });
        }
        let all = || (answers.0.borrow().len() == self.others.len()).then_some(());
        self.w.wait(&answers.1, super::world::NEVER, all).await;
        let promised: Vec<(usize, Position)> =
            answers.0.borrow().iter().filter_map(|(n, p)| p.map(|p| (*n, p))).collect();
        let counted = promised.iter().filter(|(n, _)| counts(NAMES[*n])).count();
        if !decide::enough_promised(others, counted, required) {
            return Err("a committed transaction may be on one of those that do not answer".to_owned());
        }
        let tail = self.tail();
        let best = promised.iter().max_by_key(|(_, p)| (p.epoch, p.seq));
        Ok(best.filter(|(_, p)| (p.epoch, p.seq) > (tail.epoch, tail.seq)).map(|(n, _)| *n))
    }

    async fn ask_promise(self: &Rc<Self>, to: usize, epoch: u64) -> Result<Position, String> {
        let patience = self.w.set.peer_timeout.min(self.w.set.timeout / 2);
        let (link, _) = self.dial(to, patience).await?;
        let link = Closing(self, link);
        say(self, &link.1, Message::Prepare { epoch })?;
        match hear(self, &link.1).await? {
            Message::Prepared(tail) => Ok(tail),
            m => Err(format!("{m:?} for a promise")),
        }
    }

    /// The old primary asks this node to take over: it has stopped, and this node has everything.
    pub async fn take_office(self: &Rc<Self>, epoch: u64, from: &str) -> Told {
        let _one = self.transition().await;
        self.may_begin(epoch).await?;
        self.dismiss().await;
        if self.voted() {
            let (base, seen) = self.read_vote().await?;
            let seen = seen.ok_or("etcd has no record of this volume")?;
            let next = seen.promoted(NAMES[self.me], epoch).map_err(|e| e.to_string())?;
            self.write_vote(base, &next).await?;
        }
        self.say(|| format!("takes office from {from}"));
        self.assume(epoch, self.w.set.peer_timeout).await;
        Ok(())
    }

    async fn assume(self: &Rc<Self>, epoch: u64, grace: Time) {
        let others = self.other_names().collect();
        self.settled.set(true);
        self.update(|s| {
            s.role = Role::Primary;
            s.epoch = epoch;
            s.clean = false;
            s.in_sync = false;
            s.needs_copy = false;
            s.out_of_set = others;
        })
        .await;
        *self.replicator.borrow_mut() = Replicator::Alone;
        self.start_epoch(epoch).await;
        let peers = Peers::new(self, grace);
        self.serve_as_primary(&peers, false).await;
    }

    pub async fn serve_as_primary(self: &Rc<Self>, peers: &Rc<Peers>, first_the_peer: bool) {
        *self.replicator.borrow_mut() = Replicator::Peers(Rc::clone(peers));
        *self.peers.borrow_mut() = Some(Rc::clone(peers));
        peers.start(self);
        while first_the_peer && !self.stopping.get() {
            // Not the state: where there is a third vote a peer is in sync by an act of the state machine, and that does
            // not act before this node serves.
            let vote_first = self.w.set.has(Bug::ServeAfterVote);
            let has = |r: &super::peers::Row| r.state == PeerState::InSync || r.caught_up && !vote_first;
            let in_sync = |rows: &[super::peers::Row]| rows.iter().any(has);
            if peers.wait_rows(self.w.set.peer_timeout * 2, in_sync).await || self.w.set.degrade {
                break;
            }
        }
        self.set_access(Access::ReadWrite);
        self.phase.set(Phase::Running);
        self.say(|| format!("serves epoch {}", self.epoch.get()));
    }

    /// Stops serving and follows. `transition` is held.
    pub async fn leave_office(self: &Rc<Self>, epoch: u64, because: &str) {
        if self.w.set.has(Bug::StayInOffice) {
            return;
        }
        if self.state().await.role == Role::Secondary {
            self.update(|s| s.epoch = s.epoch.max(epoch)).await;
            return;
        }
        self.w.checks.count(|c| &c.left_office);
        // Before this node served in this run, data/ is as the last run left it.
        let served = matches!(self.access(), Access::ReadWrite | Access::Paused);
        self.set_access(Access::Closed);
        let peers = self.peers.borrow_mut().take();
        if let Some(peers) = peers {
            peers.end();
        }
        let late = self.w.set.has(Bug::CommitOutlivesTerm);
        *self.replicator.borrow_mut() = if late { Replicator::Alone } else { Replicator::Over };
        self.commit(Want::Seal).await;
        if !self.w.set.has(Bug::SealedIsCommitted) {
            self.forsake();
        }
        let by_phase = matches!(self.phase.get(), Phase::Running | Phase::Switching);
        let running = if self.w.set.has(Bug::StoppingIsUnclean) { by_phase } else { served };
        let clean = self.state().await.clean;
        let unlogged = if running { self.pending() } else { !clean };
        self.update(|s| {
            s.role = Role::Secondary;
            s.epoch = s.epoch.max(epoch);
            s.in_sync = false;
            s.clean = false;
            s.needs_copy |= unlogged;
        })
        .await;
        self.say(|| format!("secondary: {because}"));
        self.settle_secondary().await;
    }

    /// Hands over to a peer, in order.
    pub async fn switchover(self: &Rc<Self>, to: Option<usize>) -> Told {
        let before = self.peers.borrow().clone();
        let Some(before) = before else { return Err("this node is secondary".to_owned()) };
        let _one = self.transition().await;
        // Another change of role may have been first.
        let now = self.peers.borrow().clone();
        let peers =
            if self.w.set.has(Bug::SwitchoverOfOldTerm) { before } else { now.ok_or("no primary by now")? };
        let rows = peers.rows();
        let fits =
            |i: &usize| rows[*i].state == PeerState::InSync && to.is_none_or(|t| peers.others[*i] == t);
        let Some(i) = (0..rows.len()).find(fits) else { return Err("no peer is in sync".to_owned()) };
        self.phase.set(Phase::Switching);
        self.set_access(Access::Paused);
        let undo = |why: &str| {
            self.set_access(Access::ReadWrite);
            self.phase.set(Phase::Running);
            self.say(|| format!("no switchover: {why}"));
            Err(why.to_owned())
        };
        let drained: Rc<(Cell<Option<bool>>, Notify)> = Rc::default();
        let (n, told) = (Rc::clone(self), Rc::clone(&drained));
        self.w.spawn(Some(self.me), async move {
            let done = n.commit(Want::Sync).await;
            told.0.set(Some(done));
            n.w.ring(&told.1);
        });
        if self.w.wait(&drained.1, self.w.now() + 10 * SECOND, || drained.0.get()).await != Some(true) {
            return undo("not committed in 10 s");
        }
        let tail = self.tail();
        if !peers.wait_applied(self, i, tail.seq, 10 * SECOND).await {
            return undo("not applied in 10 s");
        }
        let epoch = self.state().await.epoch + 1;
        self.update(|s| s.role = Role::Secondary).await;
        *self.takeover.borrow_mut() = None;
        if peers.ask_promote(self, i, epoch).is_err() {
            self.update(|s| s.role = Role::Primary).await;
            return undo("it can't be asked");
        }
        let patience = (10 * SECOND).max(self.w.set.peer_timeout * 2);
        peers.wait_rows(patience, |_| self.takeover.borrow().is_some()).await;
        let answer = self.takeover.borrow_mut().take();
        if let Some(Err(why)) = answer {
            self.update(|s| s.role = Role::Primary).await;
            return undo(&why);
        }
        let done = answer.is_some();
        if done {
            self.w.checks.count(|c| &c.switchovers);
        }
        self.set_access(Access::ReadOnly);
        let ended = self.peers.borrow_mut().take();
        if let Some(peers) = ended {
            peers.end();
        }
        self.update(|s| {
            s.epoch = s.epoch.max(epoch);
            s.in_sync = false;
            s.clean = false;
        })
        .await;
        self.say(|| format!("secondary: handed over to {}: {done}", NAMES[peers.others[i]]));
        self.settle_secondary().await;
        Ok(())
    }

    pub fn takeover_answered(&self, answer: Told) {
        *self.takeover.borrow_mut() = Some(answer);
    }

    /// On a secondary: the primary is asked to hand over to this node.
    pub async fn ask_primary_to_switch(self: &Rc<Self>) -> Told {
        for &to in &self.others {
            let Ok((link, hello)) = self.dial(to, self.w.set.peer_timeout).await else { continue };
            let link = Closing(self, link);
            if hello.role == Role::Primary && hello.serving {
                say(self, &link.1, Message::AskSwitchover)?;
                return hear(self, &link.1).await.map(|_| ());
            }
        }
        Err("no primary answers".to_owned())
    }

    /// Stops in order.
    pub async fn stop(self: &Rc<Self>) {
        if self.stopping.replace(true) {
            return;
        }
        self.phase.set(Phase::Stopping);
        let _one = self.transition().await;
        self.dismiss().await;
        let closed: Rc<(Cell<bool>, Notify)> = Rc::default();
        let (n, told) = (Rc::clone(self), Rc::clone(&closed));
        self.w.spawn(Some(self.me), async move {
            let committed = n.state().await.role != Role::Primary || n.commit(Want::Sync).await;
            if committed {
                let whole = !n.pending();
                n.update(|s| s.clean = whole && !s.needs_copy).await;
            }
            told.0.set(true);
            n.w.ring(&told.1);
        });
        self.w.wait(&closed.1, self.w.now() + 5 * SECOND, || closed.0.get().then_some(())).await;
        let peers = self.peers.borrow_mut().take();
        if let Some(peers) = peers {
            peers.end();
        }
        self.w.sleep(MS).await;
    }

    pub fn peer_of(&self, name: &str) -> Option<usize> {
        index_of(name).filter(|i| self.others.contains(i))
    }
}

/// A link of a question: closed when it is answered.
pub struct Closing<'a>(pub &'a N, pub Link);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.1.shutdown(&self.0.w);
    }
}
