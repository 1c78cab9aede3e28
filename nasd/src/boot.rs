//! How a node takes up its role at a start.

use crate::copy;
use crate::decide::{self, Answer, Own, Restart};
use crate::events::Kind;
use crate::failover::votes::Seen;
use crate::node::{Node, Phase, RoleError};
use crate::peers::{PeerState, Peers, SessionError};
use crate::protocol::{self, Incoming, Message, ProtocolError};
use crate::vote::record::Record;
use nasd_volume::commit::Alone;
use nasd_volume::compare::{CompareError, Gone};
use nasd_volume::state::Led;
use nasd_volume::txn::Txn;
use nasd_volume::{Access, Position, Role, Volume};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Node {
    /// Takes up the role that the state file says, once that is safe.
    pub fn boot(self: &Arc<Self>) -> Result<(), RoleError> {
        // What a killed nasd left behind.
        self.address.give_up();
        let Some(volume) = self.volume() else {
            self.events.emit(Kind::Role, "secondary without a volume: waiting for a primary to copy from");
            self.set_phase(Phase::Running);
            return Ok(());
        };
        let state = volume.state.get();
        match state.role {
            Role::Secondary => {
                let _one = self.transition.lock();
                if self.settled.load(Ordering::SeqCst) { Ok(()) } else { self.settle_secondary(&volume) }
            }
            Role::Primary => self.boot_primary(&volume, state.clean),
        }
    }

    pub fn settle_secondary(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), RoleError> {
        self.settled.store(true, Ordering::SeqCst);
        volume.state.update(|s| {
            s.clean = false;
            s.whole_in = None;
        })?;
        let ready = !volume.state.get().needs_copy;
        volume.set_replicator(Arc::new(Alone));
        volume.set_access(if ready { Access::ReadOnly } else { Access::Closed });
        // Whoever hears that it runs looks at the mount.
        if ready {
            self.ensure_mount()?;
        }
        self.set_phase(Phase::Running);
        self.poke_watcher();
        Ok(())
    }

    fn boot_primary(self: &Arc<Self>, volume: &Arc<Volume>, clean: bool) -> Result<(), RoleError> {
        // An unfinished transaction at the end is this node's own and in data/: it stays, and the first transaction of
        // the new epoch ends it.
        let fresh = volume.state.get().epoch == 0;
        let (epoch, _one) = loop {
            if self.stopping() {
                return Ok(());
            }
            let state = volume.state.get();
            if state.role == Role::Secondary || self.settled.load(Ordering::SeqCst) {
                // A new primary called meanwhile, and this node follows it.
                return Ok(());
            }
            let seen = match self.third_vote() {
                Ok(seen) => seen,
                Err(why) => {
                    self.wait_for_answers(vec![why]);
                    continue;
                }
            };
            let own =
                Own { volume: volume.id(), epoch: state.epoch, tail: volume.log.tail(), uncompared_epoch: 0 };
            let answers: Vec<_> = (0..self.config.peers.len())
                .map(|i| {
                    let name = self.config.peers[i].name.clone();
                    let out = state.out_of_set.contains(&name);
                    (name, out, self.ask(i, own.tail))
                })
                .collect();
            // A node that never was primary has nothing to fear from peers that never heard of it.
            let force = self.forced.load(Ordering::SeqCst) || fresh;
            let me = &self.config.node.name;
            match decide::restart(&own, me, &answers, seen.as_ref().and_then(|s| s.record.as_ref()), force) {
                Restart::Wait(names) => self.wait_for_answers(names),
                Restart::Secondary { because, epoch } => {
                    let _one = self.transition.lock();
                    if self.settled.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    return self.leave_office(epoch, &because);
                }
                Restart::Primary { ahead, epoch } => {
                    let one = self.transition.lock();
                    // Somebody may have been promised something, or been followed, since that was decided.
                    let now = volume.state.get();
                    if (now.role, now.epoch) != (state.role, state.epoch) || volume.log.tail() != own.tail {
                        continue;
                    }
                    if let Some(name) = ahead {
                        self.take_over_from(volume, &name)?;
                    }
                    // Nothing is served before the record says so: whoever was promoted meanwhile was faster.
                    let first = Record::first(me, epoch, self.config.replication.required);
                    if let Err(e) = self.write_record(seen.as_ref().map(|seen| (&first, seen))) {
                        tracing::warn!("{e}");
                        drop(one);
                        self.wait_for_answers(vec![e.to_string()]);
                        continue;
                    }
                    break (epoch, one);
                }
            }
        };
        self.settled.store(true, Ordering::SeqCst);
        volume.state.update(|s| self.begin_term(s, epoch))?;
        let peers = Peers::new(self, self.config.replication.peer_timeout);
        let compare = !clean && !self.config.peers.is_empty();
        if compare {
            self.set_phase(Phase::Comparing);
        }
        volume.set_replicator(Arc::new(Alone));
        self.events.feed.begin_term(0);
        volume.start_epoch(epoch, &self.config.node.name)?;
        let mut compared = false;
        if compare {
            compared = self.compare_at_start(volume);
            if !compared {
                volume.state.update(|s| s.uncompared_epoch = epoch)?;
                self.events.emit(
                    Kind::Sync,
                    "no peer to compare with after the unclean stop: each is compared when it comes back",
                );
            }
        }
        self.serve_as_primary(volume, &peers, compared)?;
        self.in_office(epoch, "started");
        Ok(())
    }

    /// The record, where there is a third vote. An error says who does not answer.
    fn third_vote(&self) -> Result<Option<Seen>, String> {
        match self.failover.votes() {
            Some(votes) if !self.forced.load(Ordering::SeqCst) => {
                votes.read(self).map(Some).map_err(|e| format!("etcd ({e})"))
            }
            _ => Ok(None),
        }
    }

    fn wait_for_answers(&self, names: Vec<String>) {
        let one = self.transition.lock();
        if self.settled.load(Ordering::SeqCst) {
            return;
        }
        if *self.phase.lock() != Phase::Asking(names.clone()) {
            self.events.emit(
                Kind::Role,
                format!(
                    "was primary; waiting for {} to say that nobody was promoted meanwhile (`nasd promote --force` if \
                     nobody can have been)",
                    names.join(", ")
                ),
            );
            self.set_phase(Phase::Asking(names));
        }
        drop(one);
        let mut phase = self.phase.lock();
        self.phase_changed.wait_for(&mut phase, Duration::from_millis(200));
    }

    /// `first_the_peer`: nobody reads here before a peer has what the comparison found.
    pub fn serve_as_primary(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        peers: &Arc<Peers>,
        first_the_peer: bool,
    ) -> Result<(), RoleError> {
        volume.set_replicator(Arc::clone(peers) as Arc<dyn nasd_volume::Replicator>);
        *self.peers.write() = Some(Arc::clone(peers));
        peers.start(self);
        let suspend = self.config.replication.on_peer_loss == nasd_config::OnPeerLoss::Suspend;
        while first_the_peer && !self.stopping() {
            let joined = peers.wait_rows(self.config.replication.peer_timeout * 2, |rows| {
                rows.iter().any(|r| r.state == PeerState::InSync || r.caught_up)
            });
            if joined || !suspend {
                break;
            }
        }
        volume.serves_as_primary()?;
        volume.set_access(Access::ReadWrite);
        // Whoever hears that it serves writes: not below the mount.
        self.ensure_mount()?;
        self.set_phase(Phase::Running);
        Ok(())
    }

    /// What a peer says of itself, and whether it knows the end of our log.
    pub fn ask(&self, i: usize, tail: Position) -> Option<Answer> {
        let result = self.dial(i).and_then(|(link, hello)| {
            protocol::say(&link, &Message::AskPositions)?;
            match protocol::hear(&link, "positions")? {
                Message::Positions(p) => {
                    let has_our_tail = p.iter().any(|&(seq, hash)| (seq, hash) == (tail.seq, tail.hash));
                    Ok(Answer { hello, has_our_tail })
                }
                m => Err(protocol::unexpected(&link, Incoming::Message(Box::new(m)), "positions")),
            }
        });
        result.map_err(|e| tracing::debug!("asking {}: {e}", self.config.peers[i].name)).ok()
    }

    /// Fetches from a peer what it has behind our tail: transactions that this node had sent and then lost in a crash.
    pub fn take_over_from(&self, volume: &Arc<Volume>, name: &str) -> Result<(), RoleError> {
        let Some(i) = self.config.peers.iter().position(|p| p.name == name) else {
            return Ok(());
        };
        let (link, _) = self.dial(i)?;
        let from = volume.log.tail().seq + 1;
        protocol::say(&link, &Message::Fetch(from))?;
        loop {
            let frame = link.recv_timeout(Duration::from_secs(30)).map_err(ProtocolError::from)?;
            let frame = frame
                .ok_or_else(|| RoleError::Refused(format!("{name} stopped answering; trying again helps")))?;
            match protocol::understand(&link, frame)? {
                Incoming::Txn(bytes) => {
                    let txn =
                        Txn::from_wire(bytes).map_err(|e| RoleError::Refused(format!("{name} sent: {e}")))?;
                    volume.store(txn).map_err(|e| RoleError::Refused(format!("{name} sent: {e}")))?.publish();
                }
                Incoming::Message(m) if *m == Message::FetchEnd => break,
                other => return Err(protocol::unexpected(&link, other, "a transaction").into()),
            }
        }
        volume.apply_taken_over()?;
        let n = volume.log.tail().seq + 1 - from;
        self.events
            .emit(Kind::Sync, format!("took over {n} transactions from {name} that were not on this disk"));
        Ok(())
    }

    /// After an unclean stop: finds what `data/` holds and no transaction does, by comparing with a peer, and logs it.
    /// Returns whether a peer was there to compare with. The volume is closed meanwhile.
    fn compare_at_start(self: &Arc<Self>, volume: &Arc<Volume>) -> bool {
        for i in 0..self.config.peers.len() {
            let name = &self.config.peers[i].name;
            match self.compare_with(volume, i) {
                Ok(Some(found)) => {
                    self.events.emit(
                        Kind::Sync,
                        format!(
                            "compared {} files, {} bytes with {name} after the unclean stop: {} differed",
                            found.files, found.bytes, found.different
                        ),
                    );
                    return true;
                }
                Ok(None) => {}
                Err(e) => tracing::warn!("comparing with {name}: {e}"),
            }
        }
        false
    }

    /// Brings peer `i` to our tail, so that it applies all of it, and logs what then differs.
    fn compare_with(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        i: usize,
    ) -> Result<Option<nasd_volume::compare::Differences>, RoleError> {
        let (link, hello) = self.dial(i)?;
        let known = volume.log.position(hello.tail.seq).filter(|p| p.hash == hello.tail.hash);
        let (Some(fork), false) =
            (known, hello.needs_copy || hello.volume.is_none() || hello.trouble.is_some())
        else {
            return Ok(None);
        };
        let follow = Message::Follow {
            epoch: volume.epoch(),
            fork: Some(fork),
            ack_received: false,
            ack_applied: true,
            via: Vec::new(),
        };
        protocol::say(&link, &follow)?;
        match protocol::hear(&link, "following")? {
            Message::Following { needs_copy: false, .. } => {}
            _ => return Ok(None),
        }
        let tail = volume.log.tail().seq;
        for seq in fork.seq + 1..=tail {
            let txn = volume.log.read(seq).map_err(SessionError::from)?;
            link.send(protocol::kind::TXN, &[txn.bytes()]).map_err(ProtocolError::from)?;
        }
        protocol::say(&link, &Message::AskManifest(tail))?;
        let (theirs, _) = copy::hear_manifest(self, &link)?;
        let what = format!("comparison with {}", hello.name);
        let work = self.progress.begin(what, Some(volume.content_bytes()));
        let gone = |gone| {
            if let Gone::Read(n) = gone {
                work.step(n);
            }
        };
        let mut found = nasd_volume::compare::Differences::default();
        volume.log_state::<RoleError>(|sink| {
            match volume.differences(theirs, gone, sink) {
                Ok(f) => found = f,
                Err(CompareError::Sink(e)) => return Err(e),
                Err(CompareError::Io(e)) => {
                    return Err(RoleError::Session(SessionError::Compare(e.to_string())));
                }
            }
            Ok(())
        })?;
        Ok(Some(found))
    }

    /// What this node's acknowledgements say while it is primary.
    pub fn leads(&self) -> Led {
        if self.config.replication.commit >= nasd_config::CommitMode::Durable {
            Led::Durably
        } else {
            Led::Weakly
        }
    }
}
