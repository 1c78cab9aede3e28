//! What a node does by itself: it collects what the state machine of [`machine`] has to know, and does what that says.

pub mod floating;
pub mod heartbeat;
pub mod machine;
pub mod votes;

use crate::bell::Bell;
use crate::database::Database;
use crate::events::Kind;
use crate::hook;
use crate::node::{Node, Phase, RoleError};
use crate::peers::{PeerState, Peers};
use machine::{Act, Machine, Office, Rules, View, Vote};
use nasd_config::{Config, FailoverMode, OnPeerLoss, Role as InitialRole};
use nasd_volume::{Role, Volume};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use utoipa::ToSchema;
use votes::{Seen, Votes};

/// The part of a node that acts by itself.
pub struct Failover {
    mode: FailoverMode,
    bell: Bell,
    votes: Option<Votes>,
    /// When the last came from a primary, if anything did since the last step.
    heard: Mutex<Option<Instant>>,
    machine: Mutex<Machine>,
}

/// What `nasd status` says of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct FailoverStatus {
    /// `manual`, `heartbeat` or `etcd`.
    pub mode: String,
    /// A primary that is silent for so long is dead.
    pub timeout_seconds: f64,
    /// On a secondary: for how long nothing was heard of a primary.
    pub silent_seconds: f64,
    /// Why this node does not take over although the primary is silent.
    pub hindrance: Option<String>,
    /// What the mode does not protect against.
    pub warning: Option<String>,
    /// What etcd says.
    pub record: Option<RecordStatus>,
    /// Why it says nothing.
    pub etcd_error: Option<String>,
    /// The address that goes with the role, and whether this node has it.
    pub virtual_address: Option<String>,
    pub holds_address: bool,
}

/// The record of who is primary.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RecordStatus {
    pub epoch: u64,
    pub primary: String,
    /// Who may be promoted, the primary included.
    pub in_sync: Vec<String>,
}

impl Failover {
    pub fn new(config: &Config) -> Failover {
        let f = &config.failover;
        let rules = Rules {
            me: config.node.name.clone(),
            mode: f.mode,
            timeout: f.timeout,
            interval: f.interval,
            degrade: config.replication.on_peer_loss == OnPeerLoss::Degrade,
            required: config.replication.required,
            fail_back: f.auto_failback && config.node.initial_role == InitialRole::Primary,
        };
        Failover {
            mode: f.mode,
            bell: Bell::default(),
            votes: f.etcd.clone().map(|etcd| Votes::new(etcd, f.timeout)),
            heard: Mutex::default(),
            machine: Mutex::new(Machine::new(rules)),
        }
    }

    pub fn mode(&self) -> FailoverMode {
        self.mode
    }

    /// The third vote, if there is one.
    pub fn votes(&self) -> Option<&Votes> {
        self.votes.as_ref()
    }

    /// Wakes the state machine.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Something came from a primary, on whatever path.
    pub fn heard(&self) {
        *self.heard.lock() = Some(Instant::now());
    }

    /// For how long a secondary has heard nothing of a primary.
    pub fn silence(&self) -> Duration {
        self.machine.lock().silence()
    }

    /// What it says of itself.
    pub fn status(&self, node: &Node) -> FailoverStatus {
        let config = &node.config.failover;
        let (record, etcd_error) = match self.votes.as_ref().map(Votes::seen) {
            None => (None, None),
            Some(Ok(seen)) => (seen.record, None),
            Some(Err(why)) => (None, Some(why)),
        };
        let machine = self.machine.lock();
        let warning = (self.mode == FailoverMode::Heartbeat).then(|| {
            let fence = match &config.fence_exec {
                Some(exec) => format!("unless {} has stopped the other one first", exec.display()),
                None => "and there is no fence_exec that stops the other one first".to_owned(),
            };
            format!("two nodes that are cut from each other both become primary, {fence}")
        });
        FailoverStatus {
            mode: self.mode.to_string(),
            timeout_seconds: config.timeout.as_secs_f64(),
            silent_seconds: machine.silence().as_secs_f64(),
            hindrance: machine.hindrance().map(str::to_owned),
            warning,
            record: record.map(|r| RecordStatus {
                epoch: r.epoch,
                primary: r.primary,
                in_sync: r.in_sync.into_iter().collect(),
            }),
            etcd_error,
            virtual_address: config.virtual_address.as_ref().map(ToString::to_string),
            holds_address: node.address.holds(),
        }
    }
}

fn office(node: &Node) -> Office {
    let Some(volume) = node.volume().filter(|_| *node.phase.lock() == Phase::Running) else {
        return Office::Busy;
    };
    let state = volume.state.get();
    if state.role == Role::Primary {
        return match node.peers() {
            Some(peers) => Office::Primary { epoch: state.epoch, peers: peers.views() },
            None => Office::Busy,
        };
    }
    let unfit = if state.needs_copy {
        Some("its files are between two states".to_owned())
    } else {
        node.upstream.trouble().or_else(|| node.database.as_ref().and_then(Database::must_clone))
    };
    Office::Secondary {
        epoch: state.epoch,
        heard: node.failover.heard.lock().take().map(|at| at.elapsed()),
        in_sync: state.in_sync,
        unfit,
    }
}

/// Steps until the node stops.
pub fn run(node: &Arc<Node>) {
    let failover = &node.failover;
    heartbeat::start(node);
    if failover.votes.is_some() {
        let other = Arc::clone(node);
        let poll = move || votes::poll(&other);
        if let Err(e) = std::thread::Builder::new().name("vote".into()).spawn(poll) {
            nasd_volume::fatal::stop(&format!(
                "no thread for the third vote: {e}; raise the limit on processes"
            ));
        }
    }
    let mut last = Instant::now();
    let mut told = None;
    while !node.stopping() {
        // Not an interval later than the timeout.
        let left = node.config.failover.timeout.saturating_sub(failover.silence());
        let rest = if left.is_zero() {
            node.config.failover.interval
        } else {
            node.config.failover.interval.min(left)
        };
        failover.bell.wait(rest);
        let office = office(node);
        let seen = failover.votes.as_ref().map(Votes::seen);
        let vote = match &seen {
            None => Vote::None,
            Some(Ok(seen)) => Vote::Read(seen.record.as_ref()),
            Some(Err(_)) => Vote::Silent,
        };
        let elapsed = last.elapsed();
        last = Instant::now();
        let (act, hindrance) = {
            let mut machine = failover.machine.lock();
            let act = machine.step(&View { elapsed, office, vote });
            (act, machine.hindrance().map(str::to_owned))
        };
        if hindrance.is_some() && hindrance != told && failover.mode != FailoverMode::Manual {
            let why = hindrance.clone().unwrap_or_default();
            node.events
                .emit(Kind::Role, format!("no primary is heard, and this node does not take over: {why}"));
        }
        told = hindrance;
        if let (Vote::Read(Some(record)), Some(peers), Some(volume)) = (vote, node.peers(), node.volume()) {
            settle(&peers, &volume, record);
        }
        if let Some(act) = act
            && let Err(e) = act_on(node, act, seen.as_ref().and_then(|s| s.as_ref().ok()))
        {
            tracing::debug!("failover: {e}");
            failover.machine.lock().failed(e.to_string());
        }
    }
}

/// Peers that the record has already, and that have caught up again.
fn settle(peers: &Peers, volume: &Volume, record: &crate::vote::record::Record) {
    if record.epoch != volume.epoch() {
        return;
    }
    for (i, row) in peers.rows().iter().enumerate() {
        if row.caught_up
            && row.state != PeerState::InSync
            && record.in_sync.contains(&row.name)
            && let Err(e) = peers.joined(i, volume)
        {
            tracing::warn!("{}: {e}", row.name);
        }
    }
}

/// `seen` is what the machine was shown: a record is written in its place or not at all.
fn act_on(node: &Arc<Node>, act: Act, seen: Option<&Seen>) -> Result<(), RoleError> {
    let write = |record| node.write_record(seen.map(|seen| (record, seen)));
    let at = |name: &str| {
        let peers = node.peers()?;
        let i = peers.index(name)?;
        Some((peers, i, node.volume()?))
    };
    match act {
        Act::TakeOver { epoch, record } => {
            let silent = node.failover.silence();
            if let Some(exec) = &node.config.failover.fence_exec {
                let start = Instant::now();
                hook::fence(node, exec)?;
                node.events.emit(
                    Kind::Role,
                    format!(
                        "{} ended with 0 after {:.1} s: the old primary is fenced off",
                        exec.display(),
                        start.elapsed().as_secs_f64()
                    ),
                );
            }
            let why = format!("nothing heard of a primary for {:.1} s", silent.as_secs_f64());
            let record = record.as_ref().zip(seen);
            node.take_over(epoch, record, &why)
        }
        Act::FailBack => {
            node.events.emit(Kind::Role, "taking the role back (auto_failback)");
            node.switchover(None).map(|_| ())
        }
        Act::Exclude { peer, record } => {
            let Some((peers, i, volume)) = at(&peer) else { return write(&record) };
            if !peers.begin_to_exclude(i, &record) {
                return Err(RoleError::Refused(format!("{peer} has what was acknowledged and others lack")));
            }
            write(&record)?;
            peers.exclude_now(&volume, i);
            Ok(())
        }
        Act::Drop(peer) => {
            if let Some((peers, i, volume)) = at(&peer) {
                peers.exclude_now(&volume, i);
            }
            Ok(())
        }
        Act::Include { peer, record } => {
            write(&record)?;
            if let Some((peers, i, volume)) = at(&peer) {
                peers.joined(i, &volume)?;
            }
            Ok(())
        }
        Act::Claim(record) => write(&record),
        Act::StepDown { epoch, why } => {
            let _one = node.transition();
            node.leave_office(epoch, &why)
        }
        Act::Isolate(why) => {
            let _one = node.transition();
            let epoch = node.volume().map_or(0, |v| v.epoch());
            node.leave_office(epoch, &why)
        }
    }
}
