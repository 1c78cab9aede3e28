//! One node: its volume, its role, its peers, its mount.
//!
//! Roles change one at a time, under `transition`. A change writes the state file before it acts on it.

use crate::copy;
use crate::database::Database;
use crate::decide::{self, Answer, Own, Restart};
use crate::events::{Events, Kind};
use crate::link::{Link, TlsContext};
use crate::peers::{PeerState, Peers, SessionError};
use crate::protocol::{self, Hello, Incoming, Message, ProtocolError};
use crate::serve::Upstream;
use nasd_config::Config;
use nasd_fusefs::{MountError, MountedVolume};
use nasd_volume::commit::Alone;
use nasd_volume::compare::CompareError;
use nasd_volume::state::{Led, StateError, StateFile};
use nasd_volume::txn::Txn;
use nasd_volume::volume::{OpenError, RewindError};
use nasd_volume::{Access, FsError, Position, Role, Volume, VolumeId};
use nasd_watcher::postgresql::Stop;
use nasd_watcher::{Notifier, Watcher};
use parking_lot::{Condvar, Mutex, RwLock};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    tls: Option<TlsContext>,
    volume: RwLock<Option<Arc<Volume>>>,
    /// Until the volume is known: the lock of the state directory and the state.
    waiting: Mutex<Option<(OwnedFd, StateFile)>>,
    pub phase: Mutex<Phase>,
    phase_changed: Condvar,
    transition: Mutex<()>,
    peers: RwLock<Option<Arc<Peers>>>,
    pub upstream: Upstream,
    mount: Mutex<Option<MountedVolume>>,
    watcher: Mutex<Option<Watcher>>,
    pub notifier: Notifier,
    pub database: Option<Database>,
    /// The operator's word that no peer was promoted while this node was down.
    forced: AtomicBool,
    /// What the peer that was asked to take over answered.
    takeover: Mutex<Option<Result<(), String>>>,
    stopping: AtomicBool,
    started: Instant,
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
        let node = Arc::new(Node {
            config,
            events,
            tls,
            volume: RwLock::new(None),
            waiting: Mutex::new(None),
            phase: Mutex::new(Phase::Starting),
            phase_changed: Condvar::new(),
            transition: Mutex::new(()),
            peers: RwLock::new(None),
            upstream: Upstream::default(),
            mount: Mutex::new(None),
            watcher: Mutex::new(None),
            notifier,
            database,
            forced: AtomicBool::new(false),
            takeover: Mutex::new(None),
            stopping: AtomicBool::new(false),
            started: Instant::now(),
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
            self.events.emit(
                Kind::Disk,
                format!("{name} was damaged or does not belong to the log: set aside in diverged/"),
            );
        }
        if opened.redone > 0 {
            self.events
                .emit(Kind::Disk, format!("redid {} transactions behind the checkpoint", opened.redone));
        }
        let watcher =
            crate::apply::watch(self, &opened.volume).map_err(|e| RoleError::Refused(e.to_string()))?;
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
        let version = protocol::VERSION;
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
            },
        }
    }

    /// Connects to peer `i` and exchanges hellos.
    pub fn dial(&self, i: usize) -> Result<(Link, Hello), ProtocolError> {
        let peer = &self.config.peers[i];
        let malformed = |what| ProtocolError::Malformed { peer: peer.name.clone(), what };
        let tls = self.tls.as_ref().ok_or(malformed("nothing: this node has no [tls]"))?;
        let link = tls.connect(&peer.address, &peer.name, self.config.replication.peer_timeout)?;
        protocol::say(&link, &Message::Hello(self.hello()))?;
        match protocol::hear(&link, "a hello")? {
            Message::Hello(h) if h.name == link.peer_name() => Ok((link, h)),
            m => Err(protocol::unexpected(&link, Incoming::Message(Box::new(m)), "a hello")),
        }
    }

    pub fn tls(&self) -> Option<&TlsContext> {
        self.tls.as_ref()
    }

    // ---- boot -----------------------------------------------------------------------------------------------

    /// Takes up the role that the state file says, once that is safe.
    pub fn boot(self: &Arc<Self>) -> Result<(), RoleError> {
        let Some(volume) = self.volume() else {
            self.events.emit(Kind::Role, "secondary without a volume: waiting for a primary to copy from");
            self.set_phase(Phase::Running);
            return Ok(());
        };
        let state = volume.state.get();
        match state.role {
            Role::Secondary => {
                // While this node was down the primary may have gone on without it.
                if self.config.replication.on_peer_loss == nasd_config::OnPeerLoss::Degrade {
                    volume.state.update(|s| s.in_sync = false)?;
                }
                self.settle_secondary(&volume)
            }
            Role::Primary => self.boot_primary(&volume, state.clean),
        }
    }

    fn settle_secondary(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), RoleError> {
        volume.state.update(|s| {
            s.clean = false;
            s.whole_in = None;
        })?;
        let ready = !volume.state.get().needs_copy;
        volume.set_replicator(Arc::new(Alone));
        volume.set_access(if ready { Access::ReadOnly } else { Access::Closed });
        self.set_phase(Phase::Running);
        self.poke_watcher();
        if ready {
            self.ensure_mount()?;
        }
        Ok(())
    }

    fn boot_primary(self: &Arc<Self>, volume: &Arc<Volume>, clean: bool) -> Result<(), RoleError> {
        // An unfinished transaction at the end is this node's own and in data/: it stays, and the first transaction of
        // the new epoch ends it.
        let fresh = volume.state.get().epoch == 0;
        let (epoch, ahead) = loop {
            if self.stopping() {
                return Ok(());
            }
            let state = volume.state.get();
            if state.role == Role::Secondary {
                // A new primary called meanwhile, and this node follows it.
                return Ok(());
            }
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
            match decide::restart(&own, &answers, force) {
                Restart::Wait(names) => {
                    if *self.phase.lock() != Phase::Asking(names.clone()) {
                        self.events.emit(
                            Kind::Role,
                            format!(
                                "was primary; waiting for {} to say that it was not promoted meanwhile (`nasd promote \
                                 --force` if it can't have been)",
                                names.join(", ")
                            ),
                        );
                        self.set_phase(Phase::Asking(names));
                    }
                    let mut phase = self.phase.lock();
                    self.phase_changed.wait_for(&mut phase, Duration::from_millis(200));
                }
                Restart::Secondary { because, epoch } => {
                    let _one = self.transition.lock();
                    return self.leave_office(epoch, &because);
                }
                Restart::Primary { ahead, epoch } => break (epoch, ahead),
            }
        };
        let _one = self.transition.lock();
        if volume.state.get().role == Role::Secondary {
            return Ok(());
        }
        if let Some(name) = ahead {
            self.take_over_from(volume, &name)?;
        }
        let led = self.leads();
        volume.state.update(|s| {
            s.role = Role::Primary;
            s.epoch = epoch;
            s.led = led;
            s.clean = false;
            s.in_sync = false;
            s.out_of_set = self.config.peers.iter().map(|p| p.name.clone()).collect();
        })?;
        let peers = Peers::new(self, self.config.replication.peer_timeout);
        let mut compared = false;
        if !clean && !self.config.peers.is_empty() {
            self.set_phase(Phase::Comparing);
            volume.set_replicator(Arc::new(Alone));
            volume.start_epoch(epoch, &self.config.node.name)?;
            compared = self.compare_at_start(volume);
            if !compared {
                volume.state.update(|s| s.uncompared_epoch = epoch)?;
                self.events.emit(
                    Kind::Sync,
                    "no peer to compare with after the unclean stop: each is compared when it comes back",
                );
            }
        } else {
            volume.set_replicator(Arc::new(Alone));
            volume.start_epoch(epoch, &self.config.node.name)?;
        }
        self.serve_as_primary(volume, &peers, compared)?;
        self.events.emit(Kind::Role, format!("primary in epoch {epoch}"));
        Ok(())
    }

    /// `first_the_peer`: nobody reads here before a peer has what the comparison found.
    fn serve_as_primary(
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
                rows.iter().any(|r| r.state == PeerState::InSync)
            });
            if joined || !suspend {
                break;
            }
        }
        volume.serves_as_primary()?;
        volume.set_access(Access::ReadWrite);
        self.set_phase(Phase::Running);
        self.ensure_mount()
    }

    /// What a peer says of itself, and whether it knows the end of our log.
    fn ask(&self, i: usize, tail: Position) -> Option<Answer> {
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
    fn take_over_from(&self, volume: &Arc<Volume>, name: &str) -> Result<(), RoleError> {
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
        let (theirs, _) = copy::hear_manifest(&link, self.config.replication.peer_timeout)?;
        let mut found = nasd_volume::compare::Differences::default();
        volume.log_state::<RoleError>(|sink| {
            match volume.differences(theirs, sink) {
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
    fn leads(&self) -> Led {
        if self.config.replication.commit >= nasd_config::CommitMode::Durable {
            Led::Durably
        } else {
            Led::Weakly
        }
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
            *mount = Some(nasd_fusefs::mount(volume, &self.config.volume.mount, threads)?);
            self.events.emit(Kind::Mount, format!("mounted on {}", self.config.volume.mount.display()));
        }
        Ok(())
    }

    // ---- changes of role ------------------------------------------------------------------------------------

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

    /// Hands over to a peer, in order: nothing is lost.
    pub fn switchover(self: &Arc<Self>, to: Option<&str>) -> Result<Steps, RoleError> {
        let Some(volume) = self.volume() else {
            return Err(RoleError::Refused("this node has no volume yet".to_owned()));
        };
        let Some(peers) = self.peers() else {
            return self.ask_primary_to_switch();
        };
        let _one = self.transition.lock();
        let rows = peers.rows();
        let target = rows.iter().position(|r| r.state == PeerState::InSync && to.is_none_or(|t| t == r.name));
        let Some(i) = target else {
            let names: Vec<String> = rows.iter().map(|r| r.name.clone()).collect();
            return Err(RoleError::Refused(format!(
                "no peer is in sync to hand over to (of: {}); wait until `nasd status` says in-sync",
                names.join(", ")
            )));
        };
        let name = rows[i].name.clone();
        let mut steps = Steps::new();
        self.set_phase(Phase::Switching);
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
        self.events.emit(Kind::Role, format!("secondary: {because}"));
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
        Err(RoleError::Refused(
            "this node is secondary and no primary answers; if it is dead: `nasd promote`".to_owned(),
        ))
    }

    /// The peer that was asked to take over has done so, or says why not.
    pub fn takeover_answered(&self, answer: Result<(), String>) {
        *self.takeover.lock() = Some(answer);
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
        let _one = self.transition.lock();
        if let Some(database) = &self.database {
            database.halt(Stop::Fast);
        }
        // The mount first: then nobody writes any more.
        if let Some(mount) = self.mount.lock().take()
            && let Err(e) = mount.unmount()
        {
            tracing::warn!("unmounting: {e}");
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
        self.events.emit(Kind::Role, "stopped");
    }
}
