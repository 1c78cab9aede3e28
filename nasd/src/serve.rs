//! The dialled side: answers peers, and takes transactions from the primary.

use crate::decide;
use crate::events::Kind;
use crate::link::{Link, LinkError};
use crate::node::{Node, RoleError, Steps};
use crate::progress::Work;
use crate::protocol::{self, Ack, Incoming, Message, ProtocolError};
use crate::txn_stream::Unpacker;
use nasd_config::OnPeerLoss;
use nasd_volume::log::LogError;
use nasd_volume::state::Led;
use nasd_volume::txn::Txn;
use nasd_volume::volume::StoreError;
use nasd_volume::{Access, Position, Role, Volume, VolumeId};
use parking_lot::Mutex;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Transactions that are made durable together, at most.
const TOGETHER: usize = 64;
/// The same in bytes, beyond which one more is not added.
const TOGETHER_BYTES: usize = 4 << 20;

/// Connections that are being answered, at most: a peer needs two or three.
const CONNECTIONS: usize = 64;

#[derive(Debug)]
struct Current {
    link: Arc<Link>,
    name: String,
    epoch: u64,
    /// The way from the primary, the last one included.
    chain: Vec<String>,
    ack_received: bool,
    ack_applied: bool,
    last_ack: Instant,
}

/// The primary that this node follows. Its lock is held while a transaction is taken, so that a promotion or another
/// primary has all of it or nothing of it.
#[derive(Debug, Default)]
pub struct Upstream {
    current: Mutex<Option<Current>>,
    trouble: Mutex<Option<String>>,
    pub received: AtomicU64,
    durable: AtomicU64,
    fsync_us: AtomicU64,
}

impl Upstream {
    fn ack(&self, volume: &Volume) -> Ack {
        Ack {
            received: self.received.load(Ordering::SeqCst),
            durable: self.durable.load(Ordering::SeqCst),
            applied: volume.applied().seq,
            fsync_us: self.fsync_us.load(Ordering::Relaxed) as u32,
        }
    }

    /// Whom this node follows now.
    pub fn name(&self) -> Option<String> {
        self.current.lock().as_ref().map(|c| c.name.clone())
    }

    /// The way from the primary to this node, and which epoch it is of. The link tells one way from a later one.
    pub fn chain(&self) -> Option<(Vec<String>, u64, Arc<Link>)> {
        self.current.lock().as_ref().map(|c| (c.chain.clone(), c.epoch, Arc::clone(&c.link)))
    }

    /// Why this node can't follow, if it can't.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    pub fn set_trouble(&self, why: Option<String>) {
        *self.trouble.lock() = why;
    }

    /// Takes no more from whoever is followed.
    pub fn dismiss(&self) {
        if let Some(c) = self.current.lock().take() {
            // Its transactions are refused from here on. Telling it takes a moment where the network is cut.
            std::thread::spawn(move || c.link.shutdown());
        }
    }

    /// Tells the primary why and ends the link: it comes back.
    pub fn hang_up(&self, why: &str) {
        let current = self.current.lock().take();
        if let Some(c) = current {
            // The link may be what is broken.
            let _ = protocol::say(&c.link, &Message::Refuse(why.to_owned()));
            c.link.shutdown();
        }
    }

    /// A transaction was applied: the primary is told if it waits for that, or now and then, or when all is applied.
    pub fn applied(&self, volume: &Volume) {
        let ack = self.ack(volume);
        let link = {
            let mut current = self.current.lock();
            let Some(c) = &mut *current else { return };
            let rested = ack.applied >= ack.durable && c.last_ack.elapsed() > Duration::from_millis(20);
            if !c.ack_applied && !rested {
                return;
            }
            c.last_ack = Instant::now();
            Arc::clone(&c.link)
        };
        if let Err(e) = protocol::ack(&link, ack) {
            tracing::debug!("acknowledging: {e}");
        }
    }
}

/// Takes connections until the node stops.
pub fn listen(node: Arc<Node>, listener: TcpListener) {
    let open = Arc::new(AtomicU64::new(0));
    for socket in listener.incoming() {
        if node.stopping() {
            return;
        }
        let socket = match socket {
            Ok(s) => s,
            Err(e) => {
                tracing::warn!("accepting a connection: {e}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if open.load(Ordering::SeqCst) >= CONNECTIONS as u64 {
            tracing::warn!("too many connections: one is turned away");
            continue;
        }
        open.fetch_add(1, Ordering::SeqCst);
        let (node, open) = (Arc::clone(&node), Arc::clone(&open));
        std::thread::spawn(move || {
            if let Err(e) = answer(&node, socket) {
                tracing::warn!("{e}");
            }
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn answer(node: &Arc<Node>, socket: std::net::TcpStream) -> Result<(), ServeError> {
    let Some(tls) = node.tls() else { return Ok(()) };
    let link = Arc::new(tls.accept(socket, node.config.replication.peer_timeout)?);
    let refuse = |why: String| {
        let told = protocol::say(&link, &Message::Refuse(why.clone()));
        told?;
        Err(ServeError::Refused { peer: link.peer_name().to_owned(), why })
    };
    let hello = match link.recv_timeout(node.config.replication.peer_timeout) {
        Ok(Some(frame)) => match protocol::understand(&link, frame) {
            Ok(Incoming::Message(m)) => match *m {
                Message::Hello(h) => h,
                m => {
                    return Err(protocol::unexpected(&link, Incoming::Message(Box::new(m)), "a hello").into());
                }
            },
            Ok(other) => return Err(protocol::unexpected(&link, other, "a hello").into()),
            Err(e @ ProtocolError::Version { .. }) => return refuse(e.to_string()),
            Err(e) => return Err(e.into()),
        },
        // `nasd doctor` of the peer looks whether we are here and leaves.
        Ok(None) | Err(LinkError::Closed { .. }) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    if hello.name != link.peer_name() {
        return refuse(format!(
            "it calls itself {} and its certificate says {}",
            hello.name,
            link.peer_name()
        ));
    }
    if !node.config.peers.is_empty() && !node.config.peers.iter().any(|p| p.name == hello.name) {
        return refuse(format!("{} is not a [[peer]] in this node's configuration", hello.name));
    }
    if let (Some(ours), Some(theirs)) = (node.volume().map(|v| v.id()), hello.volume)
        && ours != theirs
    {
        return refuse(format!(
            "it holds volume {theirs}, this node {ours}; to pair them give one an empty state directory"
        ));
    }
    let ours = node.hello();
    let said = ours.tail;
    protocol::say(&link, &Message::Hello(ours))?;
    let mut session = Session {
        node,
        link: &link,
        name: hello.name.clone(),
        volume: node.volume(),
        follows: false,
        said,
        woke: None,
        unpacker: Unpacker::default(),
        copy: None,
    };
    let result = session.run();
    if session.follows {
        let mut current = node.upstream.current.lock();
        if current.as_ref().is_some_and(|c| Arc::ptr_eq(&c.link, &link)) {
            // A later session knows better.
            session.doubt_after_sleep()?;
            *current = None;
            drop(current);
            let why = result.as_ref().err().map_or_else(|| "it left".to_owned(), ToString::to_string);
            if !matches!(result, Ok(()) | Err(ServeError::Link(_))) {
                // What is wrong here (a full disk, for example) is for the operator of both nodes to read. The link may
                // be gone as well.
                let _ = protocol::say(&link, &Message::Refuse(why.clone()));
                link.shutdown();
            }
            let text = format!("lost the primary {}: {why}", hello.name);
            node.events.emit_change(Kind::Link, "following", "lost", text);
            return Ok(());
        }
    }
    match result {
        Err(
            ServeError::Link(LinkError::Closed { .. })
            | ServeError::Protocol(ProtocolError::Link(LinkError::Closed { .. })),
        ) => Ok(()),
        r => r,
    }
}

struct Session<'a> {
    node: &'a Arc<Node>,
    link: &'a Arc<Link>,
    name: String,
    volume: Option<Arc<Volume>>,
    follows: bool,
    /// Where this node's log ended when it said hello: the primary decides by that.
    said: Position,
    /// When this node last said something after it had been silent for so long that the primary may have given it up.
    woke: Option<Instant>,
    unpacker: Unpacker,
    /// The copy that this node gets.
    copy: Option<Work<'a>>,
}

impl Session<'_> {
    fn run(&mut self) -> Result<(), ServeError> {
        let timeout = self.node.config.replication.peer_timeout;
        let beat = self.node.beat();
        let mut heard = Instant::now();
        let mut turn = Instant::now();
        loop {
            if turn.elapsed() > timeout {
                self.woke = Some(Instant::now());
            }
            turn = Instant::now();
            let Some(frame) = self.link.recv_timeout(beat)? else {
                if self.node.stopping() {
                    return Ok(());
                }
                if self.follows {
                    self.keep_alive()?;
                } else if heard.elapsed() > Duration::from_secs(60) {
                    return Ok(());
                }
                continue;
            };
            heard = Instant::now();
            if self.follows {
                self.node.failover.heard();
            }
            match protocol::understand(self.link, frame)? {
                Incoming::Txn(bytes) => {
                    let txn = Txn::from_wire(bytes)?;
                    self.take(txn)?;
                }
                Incoming::Stream(body) => {
                    let txn = self.unpacker.unpack(&body)?;
                    self.take(txn)?;
                }
                Incoming::CopyOps(_, ops) => {
                    let volume = self.volume()?;
                    if !self.follows || !volume.state.get().needs_copy {
                        return Err(ServeError::OutOfTurn("operations of a copy"));
                    }
                    volume.copy_ops(&ops).map_err(RoleError::from)?;
                    if let Some(work) = &self.copy {
                        work.step(ops.len() as u64);
                    }
                }
                Incoming::Ack(_) => return Err(ServeError::OutOfTurn("an acknowledgement")),
                Incoming::Message(m) => self.message(*m)?,
            }
        }
    }

    /// The link ended just after this node had been stopped or had waited for its disk for longer than a primary waits
    /// for it: then the primary may have ended it and gone on alone, and this node is not known to be in sync.
    fn doubt_after_sleep(&self) -> Result<(), ServeError> {
        let config = &self.node.config.replication;
        let Some(volume) = &self.volume else { return Ok(()) };
        if config.on_peer_loss == OnPeerLoss::Suspend
            || self.woke.is_none_or(|at| at.elapsed() > config.peer_timeout * 2)
            || !volume.state.get().in_sync
        {
            return Ok(());
        }
        volume.state.update(|s| s.in_sync = false).map_err(RoleError::from)?;
        let text =
            format!("not known to be in sync: {} may have gone on while this node stood still", self.name);
        self.node.events.emit_change(Kind::Sync, "in sync", "not in sync", text);
        Ok(())
    }

    fn volume(&self) -> Result<Arc<Volume>, ServeError> {
        self.volume.clone().ok_or(ServeError::OutOfTurn("something for a volume that is not known here yet"))
    }

    fn keep_alive(&self) -> Result<(), ServeError> {
        if let Some(v) = &self.volume {
            protocol::ack(self.link, self.node.upstream.ack(v))?;
        } else {
            protocol::ack(self.link, Ack::default())?;
        }
        Ok(())
    }

    /// Runs something long while the primary hears that this node is there.
    fn while_alive<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let every = self.node.beat();
        let (tx, rx) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|s| {
            s.spawn(move || {
                while rx.recv_timeout(every) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    if self.keep_alive().is_err() {
                        return;
                    }
                }
            });
            let result = work();
            drop(tx);
            result
        })
    }

    /// Takes a transaction, and those that arrived with it: all of them are made durable together.
    fn take(&mut self, first: Txn) -> Result<(), ServeError> {
        let up = &self.node.upstream;
        let volume = self.volume()?;
        let mut bytes = first.bytes().len();
        let mut txns = vec![first];
        let mut damaged = None;
        while txns.len() < TOGETHER && bytes < TOGETHER_BYTES {
            let Some(frame) = self.link.recv_ready(protocol::kind::STREAM) else { break };
            match self.unpacker.unpack(&frame.body) {
                Ok(txn) => {
                    bytes += txn.bytes().len();
                    txns.push(txn);
                }
                Err(e) => {
                    damaged = Some(e);
                    break;
                }
            }
        }
        let mut current = up.current.lock();
        let Some(c) = current.as_mut().filter(|c| Arc::ptr_eq(&c.link, self.link)) else {
            return Err(ServeError::OutOfTurn("a transaction from a node that is not followed"));
        };
        if txns.iter().any(|t| t.header.position.epoch > c.epoch) {
            return Err(ServeError::OutOfTurn("a transaction of an epoch that it did not announce"));
        }
        if let Some(last) = txns.last() {
            up.received.store(last.header.position.seq, Ordering::SeqCst);
        }
        if c.ack_received {
            protocol::ack(self.link, up.ack(&volume))?;
        }
        let start = Instant::now();
        let (stored, failed) = volume.store_all(txns);
        let mut sent = Ok(());
        if let Some(last) = stored.last() {
            let us = start.elapsed().as_micros();
            up.fsync_us.store(u64::try_from(us).unwrap_or(u64::MAX), Ordering::Relaxed);
            up.durable.store(last.seq(), Ordering::SeqCst);
            // The acknowledgement first: the names are for the watcher.
            sent = protocol::ack(self.link, up.ack(&volume));
        }
        for one in stored {
            let seq = one.seq();
            one.publish();
            self.node.relay.logged(&volume, seq);
        }
        let events = &self.node.events;
        if let Some(e) = failed {
            if let StoreError::Log(LogError::NoSpace(_)) = e {
                drop(current);
                // The primary tries again, and it is told once.
                if events.word(Kind::Disk) != "full" {
                    events.emit_state(Kind::Disk, "full", e.to_string());
                }
                up.hang_up(&e.to_string());
            }
            return Err(e.into());
        }
        match damaged {
            Some(e) => Err(e.into()),
            None => Ok(sent?),
        }
    }

    fn message(&mut self, m: Message) -> Result<(), ServeError> {
        match m {
            Message::Ping(at) => {
                self.keep_alive()?;
                self.say(&Message::Pong(at))
            }
            Message::AskPositions => {
                let p = self.volume.as_ref().map(|v| v.log.positions()).unwrap_or_default();
                self.say(&Message::Positions(p))
            }
            Message::Fetch(from) => {
                let volume = self.volume()?;
                for seq in from..=volume.log.tail().seq {
                    let txn = volume.log.read(seq)?;
                    self.link.send(protocol::kind::TXN, &[txn.bytes()])?;
                }
                self.say(&Message::FetchEnd)
            }
            Message::Follow { epoch, fork, ack_received, ack_applied, via } => {
                match self.follow(epoch, fork, ack_received, ack_applied, via) {
                    Ok((tail, needs_copy)) => self.say(&Message::Following { tail, needs_copy }),
                    Err(e) => {
                        self.say(&Message::Refuse(e.to_string()))?;
                        Err(e.into())
                    }
                }
            }
            Message::InSync(yes) => {
                if let Some(v) = &self.volume
                    && self.follows
                {
                    let noted = yes && !v.state.get().needs_copy;
                    let was = v.state.get().in_sync;
                    v.state.update(|s| s.in_sync = noted).map_err(RoleError::from)?;
                    let events = &self.node.events;
                    // Only now: while it catches up a little space comes and goes. What could not be applied still is to be.
                    let trouble = self.node.upstream.trouble();
                    if noted && events.word(Kind::Disk) == "full" && trouble.is_none() {
                        events.emit_state(Kind::Disk, "ok", "there is space for transactions again");
                    }
                    if was != noted {
                        let word = |yes| if yes { "in sync" } else { "not in sync" };
                        let text = format!("{} with {}", word(noted), self.name);
                        events.emit_change(Kind::Sync, word(was), word(noted), text);
                    }
                    self.say(&Message::InSyncNoted(noted))?;
                }
                Ok(())
            }
            Message::CopyBegin { volume: id, base, timestamp } => self.copy_begin(id, base, timestamp),
            Message::CopyEnd(end) => {
                let volume = self.volume()?;
                self.copy = None;
                self.while_alive(|| volume.copy_end(end)).map_err(|e| ServeError::Copy(e.to_string()))?;
                self.node.poke_watcher();
                // Before it says that it shows its files.
                self.node.ensure_mount()?;
                volume.set_access(Access::ReadOnly);
                self.node.events.copied(end, &self.name);
                let text = format!("equal to {} as of {end}", self.name);
                if self.node.events.word(Kind::Disk) == "damaged" {
                    self.node.events.emit_state(Kind::Disk, "ok", text.clone());
                }
                self.node.events.emit_change(Kind::Sync, "copying", "equal", text);
                self.node.upstream.applied(&volume);
                self.say(&Message::CopyDone)
            }
            Message::AskManifest(applied) => {
                let volume = self.volume()?;
                self.while_alive(|| self.manifest(&volume, applied))
            }
            Message::Promote { epoch } => {
                let volume = self.volume()?;
                let state = volume.state.get();
                if !self.follows || !state.in_sync || state.needs_copy {
                    return self
                        .say(&Message::Refuse("this node is not in sync: it does not take over".to_owned()));
                }
                let mut steps = Steps::new();
                // Answered over this link, which a promotion otherwise ends.
                self.node.upstream.current.lock().take();
                self.follows = false;
                match self.node.take_office(&volume, epoch, &self.name, &mut steps) {
                    Ok(()) => {
                        self.say(&Message::Promoted)?;
                        // Behind the answer: its first commit waits for the old primary, which waits for the answer.
                        if let Some(database) = &self.node.database {
                            database.become_primary();
                        }
                        Ok(())
                    }
                    // The old primary must not take this for a no, and go on.
                    Err(e @ RoleError::Unsure(_)) => Err(e.into()),
                    Err(e) => {
                        self.say(&Message::Refuse(e.to_string()))?;
                        Err(e.into())
                    }
                }
            }
            Message::Notify { id, seq, text } => {
                if self.follows {
                    self.node.demanded(self.link, id, seq, text);
                }
                Ok(())
            }
            Message::Heartbeat { epoch } => {
                if self.volume.as_ref().is_some_and(|v| epoch >= v.state.get().epoch) {
                    self.node.failover.heard();
                }
                Ok(())
            }
            Message::Prepare { epoch } => match self.prepare(epoch) {
                Ok(tail) => self.say(&Message::Prepared(tail)),
                Err(e) => {
                    self.say(&Message::Refuse(e.to_string()))?;
                    Err(e.into())
                }
            },
            Message::AskSwitchover => match self.node.switchover(Some(&self.name)) {
                Ok(_) => self.say(&Message::SwitchoverDone),
                Err(e) => self.say(&Message::Refuse(e.to_string())),
            },
            _ => Err(ServeError::OutOfTurn("an answer that nobody asked for")),
        }
    }

    fn say(&self, m: &Message) -> Result<(), ServeError> {
        Ok(protocol::say(self.link, m)?)
    }

    fn follow(
        &mut self,
        epoch: u64,
        fork: Option<Position>,
        ack_received: bool,
        ack_applied: bool,
        via: Vec<String>,
    ) -> Result<(Position, bool), RoleError> {
        let refused = |why: String| Err(RoleError::Refused(why));
        let _one = self.node.transition();
        if !via.is_empty() {
            // The primary itself is better than somebody who follows it, and nobody follows itself.
            if let Some(name) = self.node.upstream.name() {
                return refused(format!("this node follows {name}"));
            }
            if via.contains(&self.node.config.node.name) {
                return refused(format!("{} follows this node", self.name));
            }
        }
        let chain = [via, vec![self.name.clone()]].concat();
        self.volume = self.node.volume();
        let Some(volume) = self.volume.clone() else {
            self.become_current(epoch, chain, ack_received, ack_applied);
            let text = format!("following {} in epoch {epoch}, with no volume yet", self.name);
            self.node.events.emit_change(Kind::Link, "lost", "following", text);
            return Ok((Position::genesis(VolumeId([0; 16])), true));
        };
        let state = volume.state.get();
        if epoch < state.epoch {
            return refused(format!("this node is in epoch {}, {} only in {epoch}", state.epoch, self.name));
        }
        if let Some(why) = self.node.upstream.trouble() {
            return refused(why);
        }
        if state.role == Role::Primary {
            if epoch == state.epoch {
                return refused(format!("this node is primary of epoch {epoch} itself"));
            }
            self.node.leave_office(epoch, &format!("{} is primary of epoch {epoch}", self.name))?;
        }
        // Nobody else's transactions from here on, neither in nor on.
        self.node.upstream.dismiss();
        self.node.relay.end();
        if fork.is_some() && volume.log.tail() != self.said {
            // Something came over an older link meanwhile: what it asks to give up may be what both have.
            return refused("this log has grown since the hello: once more".to_owned());
        }
        volume.state.update(|s| s.epoch = epoch)?;
        if let Some(fork) = fork {
            match volume.log.position(fork.seq) {
                Some(p) if p.hash == fork.hash => {}
                _ => {
                    return refused(format!("this log does not hold {fork}; it has to be compared"));
                }
            }
            let applied = volume.applied().seq;
            let n = volume.rewind_to(fork)?;
            if n > 0 {
                self.lost_history(&volume, n, applied > fork.seq);
                self.node.events.take_back(
                    applied,
                    fork.seq,
                    format!("{n} transactions that {} does not have were set aside in diverged/", self.name),
                );
            }
        }
        let needs_copy = volume.state.get().needs_copy;
        if fork.is_some() {
            volume.state.update(|s| s.led = Led::No)?;
        }
        if needs_copy {
            volume.set_access(Access::Closed);
        }
        self.become_current(epoch, chain, ack_received, ack_applied);
        let up = &self.node.upstream;
        let tail = volume.log.tail();
        up.received.store(tail.seq, Ordering::SeqCst);
        up.durable.store(tail.seq, Ordering::SeqCst);
        self.node.poke_watcher();
        let text = format!("following {} in epoch {epoch} from {tail}", self.name);
        self.node.events.emit_change(Kind::Link, "lost", "following", text);
        Ok((tail, needs_copy))
    }

    /// Somebody is about to become primary: promises to take nothing of an older epoch. Not while this node hears a primary
    /// itself: then it is not dead, and whoever asks is cut off from it.
    fn prepare(&self, epoch: u64) -> Result<Position, RoleError> {
        let node = self.node;
        // Two that want the same of each other must not wait for each other.
        let busy = || RoleError::Refused("this node is changing its role itself".to_owned());
        let _one = node.try_transition().ok_or_else(busy)?;
        let volume = node.volume().ok_or(RoleError::Refused("this node has no volume yet".to_owned()))?;
        let state = volume.state.get();
        if epoch <= state.epoch {
            return Err(RoleError::Refused(format!("this node knows epoch {} already", state.epoch)));
        }
        if state.role == Role::Primary && volume.writable() {
            return Err(RoleError::Refused(format!("this node is primary of epoch {}", state.epoch)));
        }
        let automatic = node.failover.mode() != nasd_config::FailoverMode::Manual;
        if automatic
            && node.upstream.name().is_some()
            && node.failover.silence() < node.config.failover.timeout / 2
        {
            return Err(RoleError::Refused("this node hears a primary".to_owned()));
        }
        // In this order: after the promise nothing of an older epoch is in the log that was not before.
        node.upstream.dismiss();
        volume.state.update(|s| s.epoch = epoch)?;
        Ok(volume.log.tail())
    }

    fn become_current(&mut self, epoch: u64, chain: Vec<String>, ack_received: bool, ack_applied: bool) {
        let current = Current {
            link: Arc::clone(self.link),
            name: self.name.clone(),
            epoch,
            chain,
            ack_received,
            ack_applied,
            last_ack: Instant::now(),
        };
        *self.node.upstream.current.lock() = Some(current);
        self.follows = true;
    }

    fn copy_begin(&mut self, id: VolumeId, base: Position, timestamp: i64) -> Result<(), ServeError> {
        if !self.follows {
            return Err(ServeError::OutOfTurn("a copy"));
        }
        let volume = self.node.adopt(id)?;
        self.volume = Some(Arc::clone(&volume));
        let epoch = self.node.upstream.current.lock().as_ref().map_or(0, |c| c.epoch);
        volume.state.update(|s| s.epoch = s.epoch.max(epoch)).map_err(RoleError::from)?;
        volume.set_access(Access::Closed);
        let applied = volume.applied().seq;
        let aside = volume.copy_begin(base, timestamp).map_err(RoleError::from)?;
        if aside > 0 {
            self.lost_history(&volume, aside, false);
            self.node.events.take_back(
                applied,
                base.seq,
                format!("{aside} transactions of the history before this copy were set aside in diverged/"),
            );
        }
        volume.state.update(|s| s.led = Led::No).map_err(RoleError::from)?;
        let up = &self.node.upstream;
        up.received.store(base.seq, Ordering::SeqCst);
        up.durable.store(base.seq, Ordering::SeqCst);
        let text = format!("being copied to from {}", self.name);
        self.node.events.emit_change(Kind::Sync, "outdated", "copying", text);
        self.while_alive(|| self.send_items(&volume))?;
        // How much will come only the primary knows.
        self.copy = Some(self.node.progress.begin(format!("copy from {}", self.name), None));
        self.say(&Message::ManifestEnd(0))
    }

    /// `n` transactions were given up for the history of the node that is followed.
    fn lost_history(&self, volume: &Volume, n: u64, applied: bool) {
        let state = volume.state.get();
        let degrades = self.node.config.replication.on_peer_loss == OnPeerLoss::Degrade;
        let alone = degrades && state.out_of_set.contains(&self.name);
        if let Some(database) = &self.node.database
            && decide::acted_on(state.led, alone, applied)
        {
            database.lost_history(&format!(
                "{n} transactions that {} does not have were acknowledged or shown here",
                self.name
            ));
        }
    }

    fn send_items(&self, volume: &Volume) -> Result<(), ServeError> {
        let what = format!("comparison with {}", self.name);
        let work = self.node.progress.begin(what, Some(volume.content_bytes()));
        volume
            .manifest(|n| work.step(n), |items| self.say(&Message::Manifest(items)))
            .map_err(|e| ServeError::Copy(e.to_string()))
    }

    /// What this node has at or behind `applied`; nothing is applied meanwhile.
    fn manifest(&self, volume: &Volume, applied: u64) -> Result<(), ServeError> {
        let end = Instant::now() + Duration::from_secs(30);
        let still = loop {
            let guard = volume.hold_still();
            if volume.applied().seq >= applied {
                break guard;
            }
            drop(guard);
            if Instant::now() > end {
                return self.say(&Message::Refuse(format!("transaction {applied} is not applied here")));
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let as_of = volume.applied().seq;
        self.send_items(volume)?;
        drop(still);
        self.say(&Message::ManifestEnd(as_of))
    }
}

/// A conversation with a peer ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("refused {peer}: {why}")]
    Refused { peer: String, why: String },
    #[error(transparent)]
    Role(#[from] RoleError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a received transaction: {0}")]
    Txn(#[from] nasd_volume::txn::TxnError),
    #[error("a peer sent {0}: the link is ended")]
    OutOfTurn(&'static str),
    #[error("copying: {0}")]
    Copy(String),
}
