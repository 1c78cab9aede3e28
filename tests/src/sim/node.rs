//! A node: what is on its disk, what is in its memory, and its commits.

use super::failover::Seen;
use super::network::{self, Frame, Link};
use super::peers::Peers;
use super::settings::Bug;
use super::world::{Held, Lock, MS, NEVER, Notify, SECOND, Time, World};
use nasd::failover::machine::Machine;
use nasd::protocol::{Ack, Hello, Message, VERSION};
use nasd_volume::{Hash, Position, Role, VolumeId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

pub const NAMES: [&str; 3] = ["a", "b", "c"];
pub const VOLUME: VolumeId = VolumeId([1; 16]);
pub const GENESIS: Position = Position { epoch: 0, seq: 0, hash: Hash([0; 32]) };

pub fn index_of(name: &str) -> Option<usize> {
    NAMES.iter().position(|n| *n == name)
}

/// A transaction.
#[derive(Debug, Clone)]
pub struct Entry {
    pub at: Position,
    pub prev: Hash,
    /// Parts of clients' writes.
    pub writes: Rc<[u32]>,
}

/// What the state file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub role: Role,
    pub epoch: u64,
    pub clean: bool,
    pub in_sync: bool,
    pub needs_copy: bool,
    pub uncompared_epoch: u64,
    pub out_of_set: BTreeSet<String>,
}

/// What survives the process.
#[derive(Debug)]
pub struct Disk {
    pub state: State,
    /// A state file that is being replaced.
    next_state: Option<State>,
    pub log: Vec<Entry>,
    /// Being written, not synced yet.
    writing: Vec<Entry>,
    pub diverged: Vec<Entry>,
    /// How many transactions the log ever got.
    pub got: usize,
}

impl Disk {
    pub fn new(node: usize) -> Disk {
        let state = State {
            role: if node == 0 { Role::Primary } else { Role::Secondary },
            epoch: 0,
            clean: node == 0,
            in_sync: false,
            needs_copy: node != 0,
            uncompared_epoch: 0,
            out_of_set: BTreeSet::new(),
        };
        Disk { state, next_state: None, log: Vec::new(), writing: Vec::new(), diverged: Vec::new(), got: 0 }
    }

    pub fn tail(&self) -> Position {
        self.log.last().map_or(GENESIS, |e| e.at)
    }

    pub fn position(&self, seq: u64) -> Option<Position> {
        if seq == 0 { Some(GENESIS) } else { self.log.get(seq as usize - 1).map(|e| e.at) }
    }

    pub fn holds(&self, at: Position) -> bool {
        self.position(at.seq).is_some_and(|p| p.hash == at.hash)
    }

    fn positions(&self) -> Vec<(u64, Hash)> {
        std::iter::once(GENESIS).chain(self.log.iter().map(|e| e.at)).map(|p| (p.seq, p.hash)).collect()
    }

    fn append(&mut self, e: Entry) {
        self.got += 1;
        self.log.push(e);
    }

    /// The process ends here: what was not synced may be there or not.
    pub fn crash(&mut self, w: &World) {
        if let Some(next) = self.next_state.take().filter(|_| w.once_in(2)) {
            self.state = next;
        }
        let keep = w.below(self.writing.len() as u64 + 1) as usize;
        for e in std::mem::take(&mut self.writing).into_iter().take(keep) {
            if e.prev == self.tail().hash && e.at.seq == self.tail().seq + 1 {
                self.append(e);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    Paused,
    ReadOnly,
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Asking,
    Comparing,
    Running,
    Switching,
    Stopping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    Seal,
    Sync,
}

/// Who has to have what is committed.
#[derive(Clone)]
pub enum Replicator {
    /// Nobody else.
    Alone,
    /// Nobody ever: the term is over.
    Over,
    Peers(Rc<Peers>),
}

impl Replicator {
    fn peers(&self) -> Option<&Rc<Peers>> {
        match self {
            Replicator::Peers(peers) => Some(peers),
            _ => None,
        }
    }
}

struct Waiter {
    want: Want,
    result: Cell<Option<bool>>,
    done: Notify,
}

pub struct Current {
    pub link: Link,
    pub name: usize,
    pub epoch: u64,
}

/// One process of a node.
pub struct N {
    pub w: Rc<World>,
    pub me: usize,
    pub others: Vec<usize>,
    pub transition: Lock,
    state_file: Lock,
    pub phase: Cell<Phase>,
    pub stopping: Cell<bool>,
    /// What it does after its start is settled.
    pub settled: Cell<bool>,
    access: Cell<Access>,
    access_changed: Notify,
    /// New transactions are of this epoch.
    pub epoch: Cell<u64>,
    pending: RefCell<Vec<u32>>,
    forsaken: Cell<bool>,
    /// How many terms ended with something that was not acknowledged: what was opened before is not to be trusted.
    pub given_up: Cell<u64>,
    leading: Cell<bool>,
    waiters: RefCell<Vec<Rc<Waiter>>>,
    pub seals: Cell<u64>,
    /// Everything up to here was acknowledged, or could have been.
    committed: Cell<u64>,
    pub replicator: RefCell<Replicator>,
    pub peers: RefCell<Option<Rc<Peers>>>,
    /// Whom this node follows; the lock is held while a transaction is taken.
    pub upstream: Lock,
    pub current: RefCell<Option<Current>>,
    pub received: Cell<u64>,
    pub durable: Cell<u64>,
    pub heard: Cell<Option<Time>>,
    pub machine: RefCell<Machine>,
    pub bell: Notify,
    pub seen: RefCell<Result<Seen, String>>,
    pub takeover: RefCell<Option<Result<(), String>>>,
    pub disk_lock: Lock,
}

impl N {
    pub fn new(w: &Rc<World>, me: usize) -> Rc<N> {
        let epoch = w.disks[me].borrow().state.epoch;
        Rc::new(N {
            w: Rc::clone(w),
            me,
            others: (0..w.set.nodes).filter(|i| *i != me).collect(),
            transition: Lock::default(),
            state_file: Lock::default(),
            phase: Cell::new(Phase::Starting),
            stopping: Cell::new(false),
            settled: Cell::new(false),
            access: Cell::new(Access::Closed),
            access_changed: Notify::default(),
            epoch: Cell::new(epoch),
            pending: RefCell::default(),
            forsaken: Cell::new(false),
            given_up: Cell::new(0),
            leading: Cell::new(false),
            waiters: RefCell::default(),
            seals: Cell::new(0),
            committed: Cell::new(0),
            replicator: RefCell::new(Replicator::Alone),
            peers: RefCell::default(),
            upstream: Lock::default(),
            current: RefCell::default(),
            received: Cell::new(0),
            durable: Cell::new(0),
            heard: Cell::new(None),
            machine: RefCell::new(super::failover::machine(&w.set, NAMES[me])),
            bell: Notify::default(),
            seen: RefCell::new(Err("etcd was not asked yet".to_owned())),
            takeover: RefCell::default(),
            disk_lock: Lock::default(),
        })
    }

    pub fn say(&self, text: impl FnOnce() -> String) {
        self.w.trace(|| format!("{}: {}", NAMES[self.me], text()));
    }

    // ---- the disk ---------------------------------------------------------------------------------------------

    async fn disk_time(&self) {
        self.w.sleep(self.w.between(60, 600)).await;
        while self.w.stalled[self.me].get() > self.w.now() {
            self.w.sleep(self.w.stalled[self.me].get() - self.w.now()).await;
        }
    }

    pub async fn state(&self) -> State {
        let _file = self.state_file.lock(&self.w).await;
        self.w.disks[self.me].borrow().state.clone()
    }

    pub async fn update(&self, change: impl FnOnce(&mut State)) {
        let _file = self.state_file.lock(&self.w).await;
        let mut next = self.w.disks[self.me].borrow().state.clone();
        let before = next.clone();
        change(&mut next);
        if next.epoch < before.epoch {
            self.w.checks.broken(&self.w, 2, || {
                format!("{} promised epoch {} and goes back to {}", NAMES[self.me], before.epoch, next.epoch)
            });
        }
        if next == before {
            return;
        }
        self.w.disks[self.me].borrow_mut().next_state = Some(next);
        self.disk_time().await;
        let mut disk = self.w.disks[self.me].borrow_mut();
        if let Some(next) = disk.next_state.take() {
            disk.state = next;
        }
    }

    pub fn tail(&self) -> Position {
        self.w.disks[self.me].borrow().tail()
    }

    pub fn position(&self, seq: u64) -> Option<Position> {
        self.w.disks[self.me].borrow().position(seq)
    }

    pub fn positions(&self) -> Vec<(u64, Hash)> {
        self.w.disks[self.me].borrow().positions()
    }

    pub fn read(&self, seq: u64) -> Option<Entry> {
        self.w.disks[self.me].borrow().log.get((seq as usize).checked_sub(1)?).cloned()
    }

    /// Makes transactions durable behind the end of the log. False: they do not continue it (those before are taken).
    pub async fn store(&self, entries: Vec<Entry>) -> (u64, bool) {
        let _disk = self.disk_lock.lock(&self.w).await;
        let (mut tail, mut fit) = (self.tail(), Vec::new());
        let n = entries.len();
        for e in entries {
            if e.at.seq != tail.seq + 1 || e.prev != tail.hash || e.at.epoch < tail.epoch {
                break;
            }
            tail = e.at;
            fit.push(e);
        }
        let all = fit.len() == n;
        if !fit.is_empty() {
            self.w.disks[self.me].borrow_mut().writing.clone_from(&fit);
            self.disk_time().await;
            let mut disk = self.w.disks[self.me].borrow_mut();
            disk.writing.clear();
            for e in fit {
                self.w.checks.logged(self.me, &e);
                disk.append(e);
            }
        }
        (tail.seq, all)
    }

    /// Gives up what lies behind `seq`; returns how many.
    pub async fn rewind(&self, seq: u64) -> usize {
        if self.tail().seq > seq {
            self.update(|s| s.needs_copy = true).await;
        }
        self.drop_pending();
        let _disk = self.disk_lock.lock(&self.w).await;
        let gone = {
            let mut disk = self.w.disks[self.me].borrow_mut();
            if disk.log.len() as u64 <= seq { Vec::new() } else { disk.log.split_off(seq as usize) }
        };
        if gone.is_empty() {
            return 0;
        }
        self.w.checks.count(|c| &c.set_aside);
        self.say(|| format!("sets {} aside behind {seq}", gone.len()));
        let n = gone.len();
        if !self.w.set.has(Bug::ForgetDiverged) {
            self.w.disks[self.me].borrow_mut().diverged.extend(gone);
        }
        self.disk_time().await;
        n
    }

    // ---- commits ----------------------------------------------------------------------------------------------

    pub fn access(&self) -> Access {
        self.access.get()
    }

    pub fn writable(&self) -> bool {
        self.access.get() == Access::ReadWrite
    }

    pub fn set_access(&self, access: Access) {
        if access == Access::ReadWrite {
            self.w.checks.serves(&self.w, self.me, self.epoch.get());
        }
        self.access.set(access);
        self.w.ring(&self.access_changed);
    }

    /// A client's write; false: not here.
    pub async fn write(&self, id: u32) -> bool {
        self.w
            .wait(&self.access_changed, NEVER, || (self.access.get() != Access::Paused).then_some(()))
            .await;
        if self.writable() {
            self.pending.borrow_mut().push(id);
        }
        self.writable()
    }

    pub fn drop_pending(&self) {
        if !std::mem::take(&mut *self.pending.borrow_mut()).is_empty() {
            self.forsaken.set(true);
        }
    }

    pub fn pending(&self) -> bool {
        !self.pending.borrow().is_empty()
    }

    /// What a thread does that wants a commit: it leads, or leaves it to who does.
    pub async fn commit(self: &Rc<Self>, want: Want) -> bool {
        let waiter = Rc::new(Waiter { want, result: Cell::new(None), done: Notify::default() });
        self.waiters.borrow_mut().push(Rc::clone(&waiter));
        if !self.leading.replace(true) {
            loop {
                let batch = std::mem::take(&mut *self.waiters.borrow_mut());
                let Some(want) = batch.iter().map(|w| w.want).max() else { break };
                let result = self.commit_once(want).await;
                for one in batch {
                    one.result.set(Some(result));
                    self.w.ring(&one.done);
                }
            }
            self.leading.set(false);
        }
        self.w.wait(&waiter.done, NEVER, || waiter.result.get()).await.unwrap_or(false)
    }

    async fn commit_once(&self, want: Want) -> bool {
        let Some(_) = self.seal_local().await else { return false };
        if want != Want::Sync {
            return true;
        }
        let seq = self.tail().seq;
        let replicator = self.replicator.borrow().clone();
        let result = match replicator {
            Replicator::Peers(peers) => peers.wait_for(self, seq).await,
            Replicator::Alone => true,
            Replicator::Over => false,
        };
        if result {
            self.committed.set(self.committed.get().max(seq));
        } else {
            self.forsaken.set(true);
        }
        if self.w.once_in(10) {
            self.w.sleep(self.w.below(3 * MS)).await;
        }
        result
    }

    /// Seals what is pending; says whether there was anything. Only for the leader.
    pub async fn seal_local(&self) -> Option<bool> {
        let writes = std::mem::take(&mut *self.pending.borrow_mut());
        let any = !writes.is_empty();
        if any {
            let tail = self.tail();
            let (epoch, seq) = (self.epoch.get(), tail.seq + 1);
            let at = Position { epoch, seq, hash: hash(tail.hash, epoch, &writes) };
            let e = Entry { at, prev: tail.hash, writes: writes.into() };
            let replicator = self.replicator.borrow().clone();
            if let Some(peers) = replicator.peers() {
                peers.ship(&self.w, &e);
            }
            let (_, stored) = self.store(vec![e]).await;
            if !stored {
                self.w
                    .checks
                    .broken(&self.w, 3, || format!("{}: own transaction does not fit", NAMES[self.me]));
                return None;
            }
            let replicator = self.replicator.borrow().clone();
            if let Some(peers) = replicator.peers() {
                peers.logged(self, seq);
            }
        }
        self.seals.set(self.seals.get() + 1);
        if !any && self.forsaken.get() && !self.writable() {
            return None;
        }
        Some(any)
    }

    /// The first transaction of an epoch says whose it is.
    pub async fn start_epoch(self: &Rc<Self>, epoch: u64) -> bool {
        self.epoch.set(epoch);
        self.forsaken.set(false);
        self.pending.borrow_mut().push(u32::MAX - epoch as u32);
        self.commit(Want::Sync).await
    }

    /// What nobody synced is sealed now and then.
    pub async fn seal_unsynced(self: Rc<Self>) {
        while !self.stopping.get() {
            self.w.sleep(300 * MS).await;
            if self.writable() && self.pending() {
                self.commit(Want::Seal).await;
            }
        }
    }

    // ---- others -----------------------------------------------------------------------------------------------

    pub async fn transition(&self) -> Held<'_> {
        self.transition.lock(&self.w).await
    }

    pub fn beat(&self) -> Time {
        (self.w.set.peer_timeout / 4).clamp(25 * MS, SECOND).min(self.w.set.interval)
    }

    pub async fn hello(&self) -> Hello {
        let s = self.state().await;
        Hello {
            version: VERSION,
            name: NAMES[self.me].to_owned(),
            volume: Some(VOLUME),
            role: s.role,
            serving: self.writable(),
            epoch: s.epoch,
            tail: self.tail(),
            applied: self.tail().seq,
            needs_copy: s.needs_copy,
            in_sync: s.in_sync,
            trouble: None,
            following: None,
        }
    }

    pub fn ack(&self) -> Ack {
        let (received, durable) = (self.received.get(), self.durable.get());
        Ack { received, durable, applied: durable.min(self.tail().seq), fsync_us: 0 }
    }

    /// Connects to another node and exchanges hellos.
    pub async fn dial(self: &Rc<Self>, to: usize, timeout: Time) -> Result<(Link, Hello), String> {
        let link = network::connect(self, to, timeout).await?;
        let hello = self.hello().await;
        say(self, &link, Message::Hello(hello))?;
        match hear(self, &link).await? {
            Message::Hello(h) => Ok((link, h)),
            m => Err(format!("{m:?} for a hello")),
        }
    }

    /// Takes no more from whoever is followed.
    pub async fn dismiss(&self) {
        let _up = self.upstream.lock(&self.w).await;
        if let Some(c) = self.current.borrow_mut().take() {
            c.link.shutdown(&self.w);
        }
    }
}

pub fn say(n: &N, link: &Link, m: Message) -> Result<(), String> {
    link.say(&n.w, m).map_err(|_| "the link is closed".to_owned())
}

/// Waits for a message, passing over acknowledgements.
pub async fn hear(n: &N, link: &Link) -> Result<Message, String> {
    loop {
        match link.recv(&n.w, 30 * SECOND).await {
            Ok(Some(Frame::Say(m))) => match *m {
                Message::Pong(_) => {}
                Message::Refuse(why) => return Err(format!("refused: {why}")),
                m => return Ok(m),
            },
            Ok(Some(Frame::Ack(_))) => {}
            Ok(Some(f)) => return Err(format!("unexpected {f:?}")),
            Ok(None) => return Err("nothing for 30 s".to_owned()),
            Err(_) => return Err("the link is closed".to_owned()),
        }
    }
}

/// The chain hash: equal exactly when all that came before is equal, and who wrote it is, too.
fn hash(prev: Hash, epoch: u64, writes: &[u32]) -> Hash {
    let mut x =
        u64::from_le_bytes(prev.0[..8].try_into().unwrap_or_default()) ^ epoch.wrapping_mul(0x9e37_79b9);
    for w in writes {
        x = (x ^ u64::from(*w)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x ^= x >> 32;
    }
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53) ^ (x >> 29) ^ writes.len() as u64;
    let mut h = [0; 32];
    h[..8].copy_from_slice(&x.to_le_bytes());
    h[31] = 1;
    Hash(h)
}

impl N {
    /// The term is over: what was not acknowledged in it never is, and a later `fsync` must not say so.
    pub fn forsake(&self) {
        if self.pending() || self.tail().seq > self.committed.get() {
            self.forsaken.set(true);
            self.given_up.set(self.given_up.get() + 1);
        }
    }

    /// What a comparison found goes into the log.
    pub fn log_difference(&self) {
        self.pending.borrow_mut().push(0);
    }

    /// The process ends; somebody starts it again.
    pub fn die(self: &Rc<Self>) {
        let (w, me) = (Rc::clone(&self.w), self.me);
        self.w.spawn(None, async move {
            super::faults::kill(&w, me, true);
            w.sleep(SECOND).await;
            super::faults::start(&w, me);
        });
    }
}
