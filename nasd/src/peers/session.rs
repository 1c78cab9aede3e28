//! A peer's thread: it reaches the peer, finds out what that lacks, sends it, and takes the acknowledgements.

use super::{PeerState, Peers};
use crate::copy;
use crate::decide::{self, Own, Plan};
use crate::link::Link;
use crate::node::Node;
use crate::protocol::{self, Incoming, Message, ProtocolError};
use nasd_config::CommitMode;
use nasd_volume::{FsError, Volume};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two attempts to reach a peer.
const RETRY: Duration = Duration::from_millis(250);
/// The same after the peer said that it can't: what is wrong there takes somebody a while.
const RETRY_REFUSED: Duration = Duration::from_secs(1);

/// A session with a peer ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Link(#[from] crate::link::LinkError),
    #[error("it belongs to volume {theirs}, this node to {ours}; give one of them an empty state directory")]
    Volume { theirs: String, ours: String },
    #[error("it can't follow: {0}")]
    Trouble(String),
    #[error("nothing heard from it for {0:?}")]
    Silent(Duration),
    #[error("this node has no volume yet")]
    NoVolume,
    /// On a secondary: somebody else feeds it, or it needs nobody.
    #[error("{0}")]
    NotNeeded(&'static str),
    #[error(transparent)]
    Log(#[from] nasd_volume::log::LogError),
    #[error(transparent)]
    State(#[from] nasd_volume::state::StateError),
    #[error("sealing: {0}")]
    Seal(#[from] FsError),
    #[error("comparing: {0}")]
    Compare(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joining {
    No,
    Until(u64),
    Told,
}

impl Peers {
    pub(super) fn run(self: &Arc<Self>, i: usize, node: &Arc<Node>) {
        let mut reached = false;
        while !self.stopped() {
            let result = self.session(i, node, &mut reached);
            if let Some(link) = self.sending[i].lock().link.take() {
                link.shutdown();
            }
            if self.stopped() {
                return;
            }
            self.row(i, |r| r.caught_up = false);
            if let Err(SessionError::NotNeeded(_)) = result {
                self.row(i, |r| r.state = PeerState::Connecting);
                let mut t = self.table.lock();
                if !t.over {
                    self.changed.wait_for(&mut t, RETRY_REFUSED);
                }
                continue;
            }
            let refused = matches!(result, Err(SessionError::Protocol(ProtocolError::Refused { .. })));
            let reason = match result {
                Ok(()) => "the link ended".to_owned(),
                Err(e) => e.to_string(),
            };
            let state = if reached { PeerState::Lost } else { PeerState::Connecting };
            self.set_state(i, state, &reason);
            let mut t = self.table.lock();
            if !t.over {
                self.changed.wait_for(&mut t, if refused { RETRY_REFUSED } else { RETRY });
            }
        }
    }

    fn session(self: &Arc<Self>, i: usize, node: &Arc<Node>, reached: &mut bool) -> Result<(), SessionError> {
        let timeout = node.config.replication.peer_timeout;
        let (link, hello) = node.dial(i)?;
        let link = Arc::new(link);
        let volume = node.volume().ok_or(SessionError::NoVolume)?;
        // What a secondary has is of the epoch that it follows.
        let epoch = volume.state.get().epoch;
        if self.via.is_some() {
            decide::may_feed(&hello, epoch, &node.config.node.name).map_err(SessionError::NotNeeded)?;
        }
        *reached = true;
        self.row(i, |r| r.version = hello.version.min(protocol::spoken()));
        let state = volume.state.get();
        let own = Own {
            volume: volume.id(),
            epoch,
            tail: volume.log.tail(),
            uncompared_epoch: state.uncompared_epoch,
        };
        let known = |seq| volume.log.position(seq).map(|p| p.hash);
        let plan = decide::plan(&own, &hello, known);
        let compare = plan == Plan::Copy;
        let fork = match plan {
            Plan::WrongVolume => {
                let theirs = hello.volume.map(|v| v.to_string()).unwrap_or_default();
                return Err(SessionError::Volume { theirs, ours: own.volume.to_string() });
            }
            Plan::StepDown { epoch } => {
                node.step_down(epoch, &format!("{} is in epoch {epoch}", hello.name));
                return Ok(());
            }
            Plan::Wait(why) => return Err(SessionError::Trouble(why)),
            Plan::Continue => volume.log.position(hello.tail.seq),
            Plan::Copy if hello.volume.is_none() => None,
            Plan::Copy if known(hello.tail.seq) == Some(hello.tail.hash) => {
                volume.log.position(hello.tail.seq)
            }
            // Only what lies behind the fork is set aside there, whether its files are compared or not.
            Plan::Copy | Plan::FindFork => {
                protocol::say(&link, &Message::AskPositions)?;
                match protocol::hear(&link, "positions")? {
                    Message::Positions(p) => {
                        decide::fork(&p, known).and_then(|(seq, _)| volume.log.position(seq))
                    }
                    m => {
                        return Err(
                            protocol::unexpected(&link, Incoming::Message(Box::new(m)), "positions").into()
                        );
                    }
                }
            }
        };
        let follow = Message::Follow {
            epoch: own.epoch,
            fork,
            ack_received: self.mode == CommitMode::Receive,
            ack_applied: self.mode == CommitMode::Apply,
            via: self.via.clone().unwrap_or_default(),
        };
        protocol::say(&link, &follow)?;
        let (tail, needs_copy) = match protocol::hear(&link, "following")? {
            Message::Following { tail, needs_copy } => (tail, needs_copy || compare || fork.is_none()),
            m => {
                return Err(protocol::unexpected(&link, Incoming::Message(Box::new(m)), "following").into());
            }
        };
        if !self.row(i, |r| r.in_set) {
            protocol::say(&link, &Message::InSync(false))?;
        }
        if needs_copy {
            if self.via.is_none() && !self.exclude(&volume, i) {
                // What it needs is a copy: it must not be promotable meanwhile.
                self.wait_rows(timeout, |rows| !rows[i].in_set);
                if self.row(i, |r| r.in_set) {
                    return Err(SessionError::Trouble(
                        "etcd does not say yet that it is out of the set".to_owned(),
                    ));
                }
            }
            let state = if hello.volume.is_none() { PeerState::FullCopy } else { PeerState::Resync };
            self.set_state(i, state, "");
            copy::run(self, i, node, &volume, &link, fork)?;
        } else {
            self.start_sending(i, &link, tail.seq + 1);
        }
        self.set_state(i, PeerState::CatchUp, "");
        self.stream(i, node, &volume, &link)
    }

    /// Sends transactions as they come and takes acknowledgements, until the link ends.
    fn stream(
        &self,
        i: usize,
        node: &Node,
        volume: &Arc<Volume>,
        link: &Arc<Link>,
    ) -> Result<(), SessionError> {
        let timeout = node.config.replication.peer_timeout;
        let beat = node.beat();
        self.row(i, |r| r.leaving = false);
        let mut pinged = Instant::now();
        let mut joining = if self.row(i, |r| r.in_set) { Joining::Told } else { Joining::No };
        if joining == Joining::Told {
            protocol::say(link, &Message::InSync(true))?;
        }
        if self.via.is_some() {
            // Nothing is ever acknowledged because of it.
            joining = Joining::Told;
        }
        loop {
            if self.stopped() {
                return Ok(());
            }
            if joining != Joining::No && self.via.is_none() && !self.row(i, |r| r.in_set) {
                // From the beginning: what it was told of the set is not so any more.
                return Err(SessionError::Trouble("it was taken out of the set".to_owned()));
            }
            let all_sent = self.pump(i, volume)?;
            let durable = self.row(i, |r| r.ack.durable);
            if joining == Joining::No && all_sent {
                // First the table: whatever is acknowledged from now on, the peer has.
                {
                    let _one = self.membership.lock();
                    self.row(i, |r| r.in_set = true);
                }
                joining = Joining::Until(volume.log.tail().seq);
            }
            if let Joining::Until(seq) = joining
                && durable >= seq
            {
                protocol::say(link, &Message::InSync(true))?;
                joining = Joining::Told;
            }
            if pinged.elapsed() >= beat {
                protocol::say(link, &Message::Ping(node.micros()))?;
                pinged = Instant::now();
            }
            let mut sleep = beat.saturating_sub(pinged.elapsed());
            let pause = self.pause(i);
            if !pause.is_zero() {
                sleep = sleep.min(pause);
            }
            if let Some(frame) = link.recv_timeout(sleep)? {
                match protocol::understand(link, frame)? {
                    Incoming::Ack(a) => self.note_ack(i, a),
                    Incoming::Message(m) => match *m {
                        Message::Pong(at) => self.row(i, |r| {
                            r.round_trip_us = node.micros().saturating_sub(at);
                            r.heard = Some(Instant::now());
                        }),
                        Message::InSyncNoted(true) => self.noted(i, volume)?,
                        Message::InSyncNoted(false) => {}
                        Message::Notified { id } => self.row(i, |r| r.notified = r.notified.max(id)),
                        Message::Promoted => node.takeover_answered(Ok(())),
                        Message::Refuse(why) => {
                            node.takeover_answered(Err(why.clone()));
                            return Err(SessionError::Trouble(why));
                        }
                        m => {
                            return Err(protocol::unexpected(
                                link,
                                Incoming::Message(Box::new(m)),
                                "an acknowledgement",
                            )
                            .into());
                        }
                    },
                    other => {
                        return Err(protocol::unexpected(link, other, "an acknowledgement").into());
                    }
                }
            }
            if self.row(i, |r| r.heard.is_some_and(|h| h.elapsed() > timeout)) {
                return Err(SessionError::Silent(timeout));
            }
        }
    }

    /// The peer has written down that commits wait for it.
    fn noted(&self, i: usize, volume: &Volume) -> Result<(), SessionError> {
        // Thrown out again meanwhile: the state file says so and is right.
        let known = self.row(i, |r| {
            r.caught_up = r.in_set;
            !r.in_set || r.state == PeerState::InSync
        });
        match &self.voted {
            _ if known => Ok(()),
            Some(bell) => {
                bell.ring();
                Ok(())
            }
            None => self.joined(i, volume),
        }
    }
}
