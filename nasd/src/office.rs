//! Becoming primary, and ceasing to be.

use crate::database::Database;
use crate::decide;
use crate::events::Kind;
use crate::node::{Node, Phase, RoleError, Steps};
use crate::peers::Peers;
use crate::protocol::Hello;
use nasd_volume::commit::Alone;
use nasd_volume::{Access, Role, Volume};
use nasd_watcher::postgresql::Stop;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Node {
    /// Becomes primary. Says each step with its time.
    pub fn promote(self: &Arc<Self>, force: bool) -> Result<Steps, RoleError> {
        if let Phase::Asking(_) = *self.phase.lock() {
            if force {
                self.forced.store(true, Ordering::SeqCst);
                self.phase_changed.notify_all();
                return Ok(vec![("going on without an answer from the peers".to_owned(), Duration::ZERO)]);
            }
            return Err(RoleError::Refused(
                "this node was primary and waits for its peers to say that none of them was promoted. If none can have \
                 been: `nasd promote --force`"
                    .to_owned(),
            ));
        }
        let Some(volume) = self.volume() else {
            return Err(RoleError::Refused(
                "this node has no volume yet: it waits for its first copy".to_owned(),
            ));
        };
        let state = volume.state.get();
        if state.role == Role::Primary {
            return Err(RoleError::Refused("this node is primary already".to_owned()));
        }
        let start = Instant::now();
        let hellos: Vec<Hello> =
            (0..self.config.peers.len()).filter_map(|i| Some(self.dial(i).ok()?.1)).collect();
        let live = hellos.iter().find(|h| h.role == Role::Primary && h.volume == Some(volume.id()));
        let hindrance = self.database.as_ref().and_then(Database::must_clone).map(|why| {
            format!("PostgreSQL here can't take over: {why}; clone it first (`nasd pg clone`). With --force the volume is promoted alone")
        });
        let hindrance = hindrance.or(decide::promotion_hindrance(
            state.in_sync,
            state.needs_copy,
            live.map(|h| h.name.as_str()),
        ));
        if let Some(why) = &hindrance {
            if !force {
                return Err(RoleError::Refused(why.clone()));
            }
            self.events.emit(Kind::Role, format!("promotion forced although {why}"));
        }
        let highest = hellos.iter().map(|h| h.epoch).max().unwrap_or(0).max(state.epoch);
        let mut steps = vec![("asked the peers".to_owned(), start.elapsed())];
        // Whoever was primary is presumed dead: nobody waits for it.
        self.take_office(&volume, highest + 1, Duration::ZERO, &mut steps)?;
        if let Some(did) = self.database.as_ref().and_then(Database::become_primary) {
            steps.push(did);
        }
        Ok(steps)
    }

    /// Becomes primary of `epoch`, whoever asked for it.
    pub fn take_office(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        epoch: u64,
        grace: Duration,
        steps: &mut Steps,
    ) -> Result<(), RoleError> {
        let _one = self.transition.lock();
        if epoch <= volume.state.get().epoch {
            return Err(RoleError::Refused(format!(
                "this node knows epoch {} already",
                volume.state.get().epoch
            )));
        }
        let mut step = |what: &str, start: Instant| steps.push((what.to_owned(), start.elapsed()));
        let start = Instant::now();
        // From here on no transaction of an older epoch is taken.
        self.upstream.dismiss();
        let led = self.leads();
        volume.state.update(|s| {
            s.role = Role::Primary;
            s.epoch = epoch;
            s.led = led;
            s.clean = false;
            s.in_sync = false;
            s.needs_copy = false;
            s.out_of_set = self.config.peers.iter().map(|p| p.name.clone()).collect();
        })?;
        step("wrote down the new epoch", start);
        let start = Instant::now();
        let mut n = 0;
        while volume.apply_next(false)?.is_some() {
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
        volume.set_replicator(Arc::new(Alone));
        volume.start_epoch(epoch, &self.config.node.name)?;
        let peers = Peers::new(self, grace);
        self.serve_as_primary(volume, &peers, false)?;
        step("mount is writable", start);
        self.events.emit(Kind::Role, format!("primary in epoch {epoch}"));
        Ok(())
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
        // Writers first: after this nothing new gets into data/.
        volume.set_access(Access::Closed);
        if let Some(peers) = self.peers.write().take() {
            peers.end();
        }
        if let Some(database) = &self.database {
            database.halt(Stop::Immediate);
        }
        // Before this node served in this run, data/ is as the last run left it.
        let running = matches!(*self.phase.lock(), Phase::Running | Phase::Switching);
        let unlogged = if running { volume.pending_bytes() > 0 } else { !volume.state.get().clean };
        volume.state.update(|s| {
            s.role = Role::Secondary;
            s.epoch = s.epoch.max(epoch);
            s.in_sync = false;
            s.clean = false;
            s.needs_copy |= unlogged;
        })?;
        self.events.emit(Kind::Role, format!("secondary: {because}"));
        volume.invalidate_all();
        self.settle_secondary(&volume)
    }
}
