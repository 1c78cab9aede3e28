//! A planned change of primary: nothing is lost, and it is undone if the other side can't take over.

use crate::decide;
use crate::events::Kind;
use crate::hook::Change;
use crate::node::{Node, Phase, RoleError, Steps};
use crate::peers::{PeerState, Row};
use crate::protocol::{self, Incoming, Message};
use nasd_volume::{Access, Role};
use nasd_watcher::postgresql::Stop;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a switchover is refused.
pub const NO_VOLUME: &str = "this node has no volume yet";
/// The same.
pub const NO_PRIMARY: &str = "this node is secondary and no primary answers; if it is dead: `nasd promote`";

/// Which peers are in sync.
pub fn standing(rows: &[Row]) -> Vec<(String, bool)> {
    rows.iter().map(|r| (r.name.clone(), r.state == PeerState::InSync)).collect()
}

impl Node {
    /// Hands over to a peer, in order: nothing is lost.
    pub fn switchover(self: &Arc<Self>, to: Option<&str>) -> Result<Steps, RoleError> {
        let volume = self.volume().ok_or_else(|| RoleError::Refused(NO_VOLUME.to_owned()))?;
        if self.peers().is_none() {
            return self.ask_primary_to_switch();
        }
        let _one = self.transition.lock();
        // Under the lock: another change of role may have been under way.
        let Some(peers) = self.peers() else {
            return Err(RoleError::Refused("this node is primary no more".to_owned()));
        };
        let rows = peers.rows();
        let i = decide::heir(&standing(&rows), to).map_err(RoleError::Refused)?;
        let name = rows[i].name.clone();
        let mut steps = Steps::new();
        self.set_phase(Phase::Switching);
        self.address.give_up();
        if let Some(database) = &self.database {
            let start = Instant::now();
            database.halt(Stop::Fast);
            steps.push(("the database is stopped, if it is nasd's to stop".to_owned(), start.elapsed()));
        }
        let start = Instant::now();
        volume.set_access(Access::Paused);
        let undo = |why: String| {
            volume.set_access(Access::ReadWrite);
            self.set_phase(Phase::Running);
            self.address.take();
            Err(RoleError::Refused(format!("{why}; nothing was changed")))
        };
        // Interest in how far the peer is does not end with the commit: the mode may be weaker than applied.
        let drained = {
            let (tx, rx) = std::sync::mpsc::channel();
            let v = Arc::clone(&volume);
            std::thread::spawn(move || tx.send(v.commit_and_wait()));
            rx.recv_timeout(Duration::from_secs(10))
        };
        if !matches!(drained, Ok(Ok(()))) {
            return undo(format!("what is written could not be committed with {name} in 10 s"));
        }
        let tail = volume.log.tail();
        if !peers.wait_applied(self, i, tail.seq, Duration::from_secs(10)) {
            return undo(format!("{name} did not apply everything in 10 s"));
        }
        steps.push(("drained".to_owned(), start.elapsed()));
        let start = Instant::now();
        let epoch = volume.state.get().epoch + 1;
        // The promise first: should this node die now, it does not come back as primary of the old epoch unasked.
        volume.state.update(|s| s.role = Role::Secondary)?;
        *self.takeover.lock() = None;
        if let Err(e) = peers.ask_promote(i, epoch) {
            volume.state.update(|s| s.role = Role::Primary)?;
            return undo(format!("{name}: {e}"));
        }
        let end = Instant::now() + Duration::from_secs(10).max(self.config.replication.peer_timeout * 2);
        peers.wait_rows(end - Instant::now(), |_| self.takeover.lock().is_some());
        let answer = self.takeover.lock().take();
        if let Some(Err(why)) = answer {
            volume.state.update(|s| s.role = Role::Primary)?;
            return undo(format!("{name} does not take over: {why}"));
        }
        let done = answer.is_some();
        steps.push((format!("{name} took over"), start.elapsed()));
        let because = if done {
            format!("handed over to {name}")
        } else {
            format!("{name} was told to take over and did not answer; if it did not, promote one of them")
        };
        // Nothing here is unsealed or unacknowledged, so nothing needs a comparison.
        volume.set_access(Access::ReadOnly);
        if let Some(p) = self.peers.write().take() {
            p.end();
        }
        volume.state.update(|s| {
            s.epoch = s.epoch.max(epoch);
            s.in_sync = false;
            s.clean = false;
        })?;
        self.events.feed.end_term(volume.applied().seq);
        self.events.emit_change(Kind::Role, "primary", "secondary", format!("secondary: {because}"));
        let why = because.clone();
        self.hook.tell(Change { old: "primary", new: "secondary", epoch, why });
        volume.invalidate_all();
        self.settle_secondary(&volume)?;
        if done { Ok(steps) } else { Err(RoleError::Refused(because)) }
    }

    /// On a secondary: the primary is asked to hand over to this node.
    fn ask_primary_to_switch(self: &Arc<Self>) -> Result<Steps, RoleError> {
        let start = Instant::now();
        for i in 0..self.config.peers.len() {
            let Ok((link, hello)) = self.dial(i) else {
                continue;
            };
            if hello.role == Role::Primary && hello.serving {
                protocol::say(&link, &Message::AskSwitchover)?;
                return match protocol::hear(&link, "the end of the switchover")? {
                    Message::SwitchoverDone => {
                        Ok(vec![(format!("{} handed over", hello.name), start.elapsed())])
                    }
                    m => Err(protocol::unexpected(
                        &link,
                        Incoming::Message(Box::new(m)),
                        "the end of the switchover",
                    )
                    .into()),
                };
            }
        }
        Err(RoleError::Refused(NO_PRIMARY.to_owned()))
    }

    /// The peer that was asked to take over has done so, or says why not.
    pub fn takeover_answered(&self, answer: Result<(), String>) {
        *self.takeover.lock() = Some(answer);
    }
}
