//! One node: its volume, its role, its peers, its mount.
//!
//! Roles change one at a time, under `transition`. A change writes the state file before it acts on it.

use crate::database::Database;
use crate::demand::Demands;
use crate::events::{Events, Kind};
use crate::failover::Failover;
use crate::failover::floating::Floating;
use crate::hook::Hook;
use crate::link::{Link, TlsContext};
use crate::peers::{Peers, SessionError};
use crate::progress::Progress;
use crate::protocol::{self, Hello, Incoming, Message, ProtocolError};
use crate::relay::Relay;
use crate::serve::Upstream;
use crate::special::Info;
use crate::supervision;
use nasd_config::{Config, FailoverMode};
use nasd_fusefs::{MountError, MountedVolume};
use nasd_volume::state::{StateError, StateFile};
use nasd_volume::volume::{OpenError, RewindError};
use nasd_volume::{FsError, Position, Role, Volume, VolumeId};
use nasd_watcher::postgresql::Stop;
use nasd_watcher::{Notifier, Watcher};
use parking_lot::{Condvar, Mutex, RwLock};
use sd_notify::NotifyState;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a node is doing, beyond its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Reading the log, redoing.
    Starting,
    /// Was primary, and asks its peers whether it still is.
    Asking(Vec<String>),
    /// Primary, comparing with a peer before it serves.
    Comparing,
    /// In its role.
    Running,
    /// Handing over.
    Switching,
    /// Going down.
    Stopping,
}

/// A change of role failed or was refused.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    #[error("{0}")]
    Refused(String),
    /// It may have come to pass, or may yet.
    #[error("{0}")]
    Unsure(String),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Rewind(#[from] RewindError),
    #[error("applying what the log holds: {0}")]
    Apply(#[from] nasd_volume::apply::ApplyError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// One step of a change of role, and how long it took.
pub type Steps = Vec<(String, Duration)>;

/// One node.
pub struct Node {
    pub config: Config,
    pub events: Arc<Events>,
    pub progress: Progress,
    tls: Option<TlsContext>,
    volume: RwLock<Option<Arc<Volume>>>,
    /// Until the volume is known: the lock of the state directory and the state.
    waiting: Mutex<Option<(OwnedFd, StateFile)>>,
    pub phase: Mutex<Phase>,
    pub phase_changed: Condvar,
    pub transition: Mutex<()>,
    pub peers: RwLock<Option<Arc<Peers>>>,
    pub upstream: Upstream,
    /// On a secondary: those that it feeds.
    pub relay: Relay,
    /// What the primary wants told, and waits for what was committed before.
    pub demands: Demands,
    mount: Mutex<Option<MountedVolume>>,
    watcher: Mutex<Option<Watcher>>,
    pub notifier: Notifier,
    pub database: Option<Database>,
    pub failover: Failover,
    pub hook: Hook,
    pub address: Floating,
    /// This node has taken up a role since its start: a start that is still under way has nothing to decide any more.
    pub settled: AtomicBool,
    /// The operator's word that no peer was promoted while this node was down.
    pub forced: AtomicBool,
    /// What the peer that was asked to take over answered.
    pub takeover: Mutex<Option<Result<(), String>>>,
    stopping: AtomicBool,
    started: Instant,
    /// How often the loops of housekeeping went round.
    pub seal_turns: AtomicU64,
    pub tidy_turns: AtomicU64,
}

impl Node {
    /// A node on a state directory whose lock is held. Without a volume it waits for its first copy.
    pub fn new(
        config: Config,
        tls: Option<TlsContext>,
        lock: OwnedFd,
        state: StateFile,
        notifier: Notifier,
        events: Arc<Events>,
        database: Option<Database>,
    ) -> Result<Arc<Node>, RoleError> {
        let failover = Failover::new(&config);
        let address = Floating::new(config.failover.virtual_address.as_ref(), Arc::clone(&events));
        let node = Arc::new(Node {
            config,
            events,
            progress: Progress::default(),
            failover,
            hook: Hook::default(),
            address,
            tls,
            volume: RwLock::new(None),
            waiting: Mutex::new(None),
            phase: Mutex::new(Phase::Starting),
            phase_changed: Condvar::new(),
            transition: Mutex::new(()),
            peers: RwLock::new(None),
            upstream: Upstream::default(),
            relay: Relay::default(),
            demands: Demands::default(),
            mount: Mutex::new(None),
            watcher: Mutex::new(None),
            notifier,
            database,
            settled: AtomicBool::new(false),
            forced: AtomicBool::new(false),
            takeover: Mutex::new(None),
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            seal_turns: AtomicU64::new(0),
            tidy_turns: AtomicU64::new(0),
        });
        match state.get().volume {
            Some(id) => node.open(lock, state, id)?,
            None => *node.waiting.lock() = Some((lock, state)),
        }
        Ok(node)
    }

    fn open(self: &Arc<Self>, lock: OwnedFd, state: StateFile, id: VolumeId) -> Result<(), RoleError> {
        let hold = self.database.as_ref().map(Database::hold);
        let opened = Volume::open_holding(&self.config.node.state_dir, lock, state, id, hold)?;
        for name in &opened.recovered.set_aside {
            self.events.emit_change(
                Kind::Disk,
                "damaged",
                "ok",
                format!("{name} was damaged or does not belong to the log: set aside in diverged/"),
            );
        }
        if opened.redone > 0 {
            let text = format!("redid {} transactions behind the checkpoint", opened.redone);
            self.events.emit_change(Kind::Disk, "behind", "ok", text);
        }
        self.events.opened(&opened.volume);
        let watcher =
            crate::apply::watch(self, &opened.volume).map_err(|e| RoleError::Refused(e.to_string()))?;
        let state = &opened.volume.state;
        // While this node was down the primary may have gone on without it. Before anybody can say otherwise.
        if self.config.replication.on_peer_loss == nasd_config::OnPeerLoss::Degrade
            && state.get().role == Role::Secondary
            && state.get().in_sync
        {
            state.update(|s| s.in_sync = false)?;
        }
        *self.volume.write() = Some(opened.volume);
        *self.watcher.lock() = Some(watcher);
        Ok(())
    }

    /// The volume becomes known with the first copy.
    pub fn adopt(self: &Arc<Self>, id: VolumeId) -> Result<Arc<Volume>, RoleError> {
        if let Some((lock, state)) = self.waiting.lock().take() {
            state.update(|s| {
                s.volume = Some(id);
                s.checkpoint = Position::genesis(id);
            })?;
            self.open(lock, state, id)?;
        }
        match self.volume() {
            Some(v) if v.id() == id => Ok(v),
            Some(v) => Err(RoleError::Refused(format!("this node holds volume {}, not {id}", v.id()))),
            None => Err(RoleError::Refused("this node could not open its volume; see its log".to_owned())),
        }
    }

    /// The volume, once it is known.
    pub fn volume(&self) -> Option<Arc<Volume>> {
        self.volume.read().clone()
    }

    /// The peers, while this node is primary.
    pub fn peers(&self) -> Option<Arc<Peers>> {
        self.peers.read().clone()
    }

    /// Microseconds since the start of this process.
    pub fn micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    pub fn set_phase(&self, phase: Phase) {
        *self.phase.lock() = phase;
        self.phase_changed.notify_all();
    }

    pub fn poke_watcher(&self) {
        if let Some(w) = &*self.watcher.lock() {
            w.poke();
        }
    }

    pub fn watch_stats(&self) -> Option<nasd_watcher::WatchStats> {
        self.watcher.lock().as_ref().map(Watcher::stats)
    }

    /// Who this node is and where it stands.
    pub fn hello(&self) -> Hello {
        let name = self.config.node.name.clone();
        let version = protocol::spoken();
        match self.volume() {
            Some(v) => {
                let s = v.state.get();
                Hello {
                    version,
                    name,
                    volume: s.volume,
                    role: s.role,
                    serving: v.writable(),
                    epoch: s.epoch,
                    tail: v.log.tail(),
                    applied: v.applied().seq,
                    needs_copy: s.needs_copy,
                    in_sync: s.in_sync,
                    trouble: self.upstream.trouble(),
                    following: self.upstream.name(),
                }
            }
            None => Hello {
                version,
                name,
                volume: None,
                role: Role::Secondary,
                serving: false,
                epoch: 0,
                tail: Position::genesis(VolumeId([0; 16])),
                applied: 0,
                needs_copy: true,
                in_sync: false,
                trouble: None,
                following: self.upstream.name(),
            },
        }
    }

    /// Connects to peer `i` and exchanges hellos.
    pub fn dial(&self, i: usize) -> Result<(Link, Hello), ProtocolError> {
        self.dial_at(i, &self.config.peers[i].address, self.config.replication.peer_timeout)
    }

    /// The same, at another of its addresses.
    pub fn dial_at(
        &self,
        i: usize,
        address: &str,
        timeout: Duration,
    ) -> Result<(Link, Hello), ProtocolError> {
        let peer = &self.config.peers[i];
        let malformed = |what| ProtocolError::Malformed { peer: peer.name.clone(), what };
        let tls = self.tls.as_ref().ok_or(malformed("nothing: this node has no [tls]"))?;
        let link = tls.connect(address, &peer.name, timeout)?;
        protocol::say(&link, &Message::Hello(self.hello()))?;
        match protocol::hear(&link, "a hello")? {
            Message::Hello(h) if h.name == link.peer_name() => Ok((link, h)),
            m => Err(protocol::unexpected(&link, Incoming::Message(Box::new(m)), "a hello")),
        }
    }

    /// How often this node says over a link that it is there.
    pub fn beat(&self) -> Duration {
        let beat = crate::peers::beat(self.config.replication.peer_timeout);
        match self.failover.mode() {
            FailoverMode::Manual => beat,
            _ => beat.min(self.config.failover.interval),
        }
    }

    /// Whether writers are served here.
    pub fn serving(&self) -> bool {
        self.volume().is_some_and(|v| v.writable())
    }

    pub fn tls(&self) -> Option<&TlsContext> {
        self.tls.as_ref()
    }

    // ---- mount ----------------------------------------------------------------------------------------------

    /// Whether the volume is mounted.
    pub fn mounted(&self) -> bool {
        self.mount.lock().is_some()
    }

    /// Mounts the volume, if it is not.
    pub fn ensure_mount(self: &Arc<Self>) -> Result<(), RoleError> {
        let mut mount = self.mount.lock();
        if mount.is_none()
            && let Some(volume) = self.volume()
        {
            // More than processors: writers that a switchover or a lost peer holds up must not stop the readers.
            let threads = std::thread::available_parallelism().map_or(16, |n| n.get().clamp(16, 64));
            let (path, info) = (&self.config.volume.mount, Arc::new(Info::of(self)));
            *mount = Some(nasd_fusefs::mount_with_special(volume, path, threads, info)?);
            self.events.emit_state(Kind::Mount, "mounted", format!("mounted on {}", path.display()));
        }
        Ok(())
    }

    /// The lock that changes of role are made under.
    pub fn try_transition(&self) -> Option<parking_lot::MutexGuard<'_, ()>> {
        self.transition.try_lock()
    }

    /// [`Node::try_transition`], waiting for it.
    pub fn transition(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.transition.lock()
    }

    // ---- the scrub ------------------------------------------------------------------------------------------

    /// Compares this node's files with each connected peer's. What was changed during the comparison is left out.
    pub fn verify(self: &Arc<Self>) -> Result<Vec<crate::verify::Verified>, RoleError> {
        crate::verify::run(self)
    }

    // ---- the end --------------------------------------------------------------------------------------------

    /// Stops in order: no more requests, everything sealed and checkpointed.
    pub fn stop(self: &Arc<Self>) {
        if self.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        self.set_phase(Phase::Stopping);
        supervision::tell(NotifyState::Stopping);
        // Clients first: they go elsewhere.
        self.address.give_up();
        let _one = self.transition.lock();
        if let Some(database) = &self.database {
            database.halt(Stop::Fast);
        }
        // The mount first: then nobody writes any more.
        if let Some(mount) = self.mount.lock().take() {
            match mount.unmount() {
                Ok(()) => self.events.emit_state(Kind::Mount, "unmounted", "this node stops"),
                Err(e) => tracing::warn!("unmounting: {e}"),
            }
        }
        self.upstream.dismiss();
        if let Some(volume) = self.volume() {
            let (tx, rx) = std::sync::mpsc::channel();
            let v = Arc::clone(&volume);
            std::thread::spawn(move || tx.send(v.close_clean()));
            // Under `suspend` with a lost peer it would wait for ever: then the stop is not clean, and the next start
            // compares.
            match rx.recv_timeout(Duration::from_secs(5)) {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::warn!("the stop is not clean: {e}"),
                Err(_) => tracing::warn!("the stop is not clean: a commit still waits for a peer"),
            }
        }
        if let Some(peers) = self.peers.write().take() {
            peers.end();
        }
        let primary = self.volume().is_some_and(|v| v.state.get().role == Role::Primary);
        let role = if primary { "primary" } else { "secondary" };
        self.events.emit_change(Kind::Role, role, "stopped", "stopped");
        self.events.flush();
    }
}
