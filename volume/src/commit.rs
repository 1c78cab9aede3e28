//! Group commit: one transaction at a time gathers every pending operation of every process.
//!
//! Whoever calls `fsync` while none is under way leads: it seals, writes, waits for the peers and answers, on its own
//! thread. Whoever comes meanwhile leaves its answer behind and its thread is free; the leader takes the next round
//! for them.

use crate::errors::FsError;
use crate::fatal;
use crate::histogram::Histogram;
use crate::ids::FileId;
use crate::log::{LogError, Slot};
use crate::op::Op;
use crate::txn::{Seal, Txn};
use crate::volume::Volume;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Called once with what became of a commit; on the thread that asked or on the leader's.
pub type CommitDone = Box<dyn FnOnce(Result<(), FsError>) + Send>;

/// The peers, as a commit sees them.
pub trait Replicator: Send + Sync {
    /// Sends a transaction on its way while this node writes it to its own disk. Must not block for long.
    fn ship(&self, txn: &Arc<Txn>);
    /// `seq` is in the log now. Sends it if it was shipped too early to be the next one.
    fn logged(&self, volume: &Volume, seq: u64);
    /// Returns when everything up to `seq`, durable here, may be acknowledged under the commit mode. While it waits it
    /// may have [`Volume::seal_local`] seal more: it is on the leader's thread.
    ///
    /// # Errors
    /// When this node may not acknowledge any more.
    fn wait(&self, volume: &Volume, seq: u64) -> Result<(), FsError>;
}

/// Stand-alone: durable here is enough.
#[derive(Debug)]
pub struct Alone;

impl Replicator for Alone {
    fn ship(&self, _: &Arc<Txn>) {}
    fn logged(&self, _: &Volume, _: u64) {}
    fn wait(&self, _: &Volume, _: u64) -> Result<(), FsError> {
        Ok(())
    }
}

/// A primary that has ceased to be one: what it still seals goes into its log, and nobody is told that it is committed.
#[derive(Debug)]
pub struct Nobody;

impl Replicator for Nobody {
    fn ship(&self, _: &Arc<Txn>) {}
    fn logged(&self, _: &Volume, _: u64) {}
    fn wait(&self, _: &Volume, _: u64) -> Result<(), FsError> {
        Err(FsError::Stopped)
    }
}

/// A transaction's payload grows to this many bytes before it is cut into parts. A single operation is at most a write
/// of 1 MiB or a large attribute.
pub const PART_BYTES: usize = 8 << 20;
/// From so many bytes of operations on they go to the log's disk without waiting for a commit or the interval.
pub const BACKGROUND_BYTES: usize = 64 << 20;
/// Operations that no transaction holds take at most about this much memory: then a writer waits for the log's disk.
pub const PENDING_BYTES: usize = 192 << 20;

/// Operations, encoded.
#[derive(Debug, Default)]
struct Chunk {
    buf: Vec<u8>,
    count: u32,
}

/// Operations that no transaction holds yet. Its lock is *the* operation lock: held from before `data/` is changed until
/// the operation is recorded, so that the log has every operation in the order in which `data/` saw it. Lock order:
/// group, then this, then the tree.
#[derive(Debug, Default)]
pub struct Pending {
    /// Whole parts, oldest first.
    full: VecDeque<Chunk>,
    last: Chunk,
    /// Files whose times go into the next transaction.
    pub(crate) touched: BTreeSet<FileId>,
    /// Parts of a transaction have been sealed and its last has not.
    open_group: bool,
    pub(crate) scratch: Vec<u8>,
}

impl Pending {
    pub(crate) fn push(&mut self, op: &Op<'_>) {
        op.encode(&mut self.last.buf);
        self.last.count += 1;
        self.cut();
    }

    /// Takes operations that are encoded already.
    pub(crate) fn extend(&mut self, payload: &[u8], ops: u32) {
        self.last.buf.extend_from_slice(payload);
        self.last.count += ops;
        self.cut();
    }

    fn cut(&mut self) {
        let buf = &mut self.last.buf;
        if buf.len() > PART_BYTES / 8 && buf.capacity() < PART_BYTES {
            // A large one is coming: growing it by doubling would copy it again and again.
            buf.reserve_exact(PART_BYTES + (2 << 20) - buf.len());
        }
        if self.last.buf.len() >= PART_BYTES {
            self.full.push_back(std::mem::take(&mut self.last));
        }
    }

    /// Bytes of all operations.
    pub(crate) fn bytes(&self) -> usize {
        self.full.len() * PART_BYTES + self.last.buf.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.full.is_empty() && self.last.count == 0 && self.touched.is_empty()
    }
}

/// What somebody wants of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Want {
    /// Room for more operations: whole parts go to the disk.
    Room,
    /// A transaction, on its way: nobody waits for the peers.
    Seal,
    /// An acknowledgement under the commit mode.
    Sync,
}

struct Waiter {
    done: CommitDone,
    want: Want,
    asked: Instant,
}

impl Waiter {
    fn new(done: CommitDone, want: Want) -> Waiter {
        Waiter { done, want, asked: Instant::now() }
    }
}

/// Who waits for a commit.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) leading: bool,
    waiters: Vec<Waiter>,
}

/// Says to the thread that seals what nobody synced that there is something.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        let mut rung = self.rung.lock();
        if !*rung {
            *rung = true;
            self.changed.notify_one();
        }
    }

    fn wait(&self, at_most: Duration) {
        let mut rung = self.rung.lock();
        if !*rung {
            self.changed.wait_for(&mut rung, at_most);
        }
        *rung = false;
    }
}

/// Where the time of a commit goes.
#[derive(Debug, Default)]
pub struct CommitTimes {
    fuse: Histogram,
    seal: Histogram,
    slot: Histogram,
    ship: Histogram,
    local: Histogram,
    wait: Histogram,
    total: Histogram,
}

impl CommitTimes {
    /// By name, of each transaction: `seal` (collecting, compressing, hashing), `slot` (finding a file), `ship` (handing it
    /// to the network), `local` (writing it and `fdatasync`), `wait` (from durable here until the peers have it), `total`.
    /// And of each request, so of each `fsync`: `fuse`, from the request until its commit begins and from its end until the
    /// answer is with the kernel.
    pub fn stages(&self) -> [(&'static str, &Histogram); 7] {
        [
            ("fuse", &self.fuse),
            ("seal", &self.seal),
            ("slot", &self.slot),
            ("ship", &self.ship),
            ("local", &self.local),
            ("wait", &self.wait),
            ("total", &self.total),
        ]
    }
}

pub(crate) fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

impl Volume {
    /// Makes everything that was written before the call durable, under the commit mode, and then calls `done`.
    pub fn commit(&self, done: CommitDone) {
        self.enqueue(Waiter::new(done, Want::Sync));
    }

    /// [`Volume::commit`], waiting for it.
    pub fn commit_and_wait(&self) -> Result<(), FsError> {
        self.enqueue_and_wait(Want::Sync)
    }

    /// Seals everything that was written before the call, durable here and on its way to the peers.
    pub fn seal(&self) -> Result<(), FsError> {
        self.enqueue_and_wait(Want::Seal)
    }

    /// Makes room for more operations.
    pub(crate) fn make_room(&self) -> Result<(), FsError> {
        self.enqueue_and_wait(Want::Room)
    }

    /// Seals what nobody synced: whole parts at once, the rest when a written file was closed or `interval` is over.
    pub fn seal_unsynced(&self, interval: Duration) -> Result<(), FsError> {
        self.bell.wait(interval);
        let (parts, rest) = {
            let p = self.ops.lock();
            (!p.full.is_empty(), !p.is_empty() || p.open_group)
        };
        if !rest {
            return Ok(());
        }
        if parts { self.make_room() } else { self.seal() }
    }

    fn enqueue_and_wait(&self, want: Want) -> Result<(), FsError> {
        let (tx, rx) = mpsc::sync_channel(1);
        let done: CommitDone = Box::new(move |r| {
            // The receiver is on this stack frame or below it: it can't be gone.
            let _ = tx.send(r);
        });
        self.enqueue(Waiter::new(done, want));
        rx.recv().unwrap_or(Err(FsError::Stopped))
    }

    fn enqueue(&self, waiter: Waiter) {
        let mut group = self.group.lock();
        group.waiters.push(waiter);
        if group.leading {
            return;
        }
        group.leading = true;
        loop {
            let batch = std::mem::take(&mut group.waiters);
            let Some(want) = batch.iter().map(|w| w.want).max() else {
                group.leading = false;
                return;
            };
            drop(group);
            let begun = Instant::now();
            let result = self.commit_once(want);
            let ended = Instant::now();
            for w in batch {
                (w.done)(result);
                if w.want == Want::Sync {
                    self.times.fuse.record((begun - w.asked) + ended.elapsed());
                }
            }
            group = self.group.lock();
        }
    }

    /// Seals, writes and ships one transaction, and waits for the peers. Only the leader is here.
    fn commit_once(&self, want: Want) -> Result<(), FsError> {
        let start = Instant::now();
        let sealed = self.seal_local(want == Want::Room)?;
        if want != Want::Sync {
            return Ok(());
        }
        let local = Instant::now();
        // Also when nothing was pending: what was sealed before may not have arrived yet.
        let seq = self.log.tail().seq;
        let result = self.replicator().wait(self, seq);
        match result {
            Ok(()) => self.set_acknowledged(seq),
            Err(_) => self.forsaken.store(true, Ordering::SeqCst),
        }
        if sealed {
            self.times.wait.record(local.elapsed());
            self.times.total.record(start.elapsed());
        }
        result
    }

    /// Seals what is pending (only whole parts, or all), ships it and makes it durable here; says whether there was
    /// anything. Only for the leader of a commit.
    pub fn seal_local(&self, only_parts: bool) -> Result<bool, FsError> {
        let mut any = false;
        loop {
            let start = Instant::now();
            let Some(sealed) = self.take_pending(only_parts) else { break };
            any = true;
            let last = !sealed.continues;
            self.write_and_ship(sealed, start)?;
            if last {
                break;
            }
        }
        self.seals.fetch_add(1, Ordering::SeqCst);
        // A second fsync must not succeed where the first one failed.
        if !any && self.forsaken.load(Ordering::SeqCst) && !self.writable() {
            return Err(FsError::Stopped);
        }
        Ok(any)
    }

    fn write_and_ship(&self, sealed: Sealed, start: Instant) -> Result<(), FsError> {
        let seal = Seal {
            volume: self.volume_id,
            prev: self.log.tail(),
            epoch: self.epoch(),
            timestamp: now_ns().max(self.log.tail_timestamp() + 1),
            continues: sealed.continues,
            converge: self.converge(),
            ops: sealed.chunk.count,
        };
        let txn = Arc::new(Txn::seal(&seal, &sealed.chunk.buf));
        let t_seal = Instant::now();
        let slot = match self.log.slot(txn.header.file_len) {
            Ok(slot) => slot,
            Err(e) => {
                self.put_back(sealed);
                tracing::warn!("commit: {e}");
                return Err(match e {
                    LogError::NoSpace(_) => FsError::Os(Errno::NOSPC),
                    _ => FsError::Os(Errno::IO),
                });
            }
        };
        let t_slot = Instant::now();
        self.replicator().ship(&txn);
        let t_ship = Instant::now();
        self.write_durable(slot, &txn);
        let t_local = Instant::now();
        self.committed(&txn, &sealed.touched);
        self.replicator().logged(self, txn.header.position.seq);
        let t = &self.times;
        t.seal.record(t_seal - start);
        t.slot.record(t_slot - t_seal);
        t.ship.record(t_ship - t_slot);
        t.local.record(t_local - t_ship);
        Ok(())
    }

    /// What is written and not acknowledged yet never will be: whoever still asks for it is told so, until this node begins
    /// an epoch of its own.
    pub fn forsake(&self) {
        self.forsaken.store(true, Ordering::SeqCst);
        self.terms_lost.fetch_add(1, Ordering::SeqCst);
    }

    /// How many times this node has ceased to be primary with something that may never be acknowledged. A file that was
    /// opened before the last time can't be made durable any more: what was written through it may be gone.
    pub fn terms_lost(&self) -> u64 {
        self.terms_lost.load(Ordering::SeqCst)
    }

    /// How many times what was pending has been sealed and made durable here.
    pub fn seals(&self) -> u64 {
        self.seals.load(Ordering::SeqCst)
    }

    /// From here on there is no way back: the peer may already have the transaction.
    fn write_durable(&self, slot: Slot, txn: &Arc<Txn>) {
        if let Err(e) = slot.write_synced(txn) {
            fatal::stop(&format!(
                "writing transaction {} failed: {e}. Nothing was acknowledged; check the disk below {} and start nasd again",
                txn.header.position.seq,
                self.log.dir().display()
            ));
        }
        if let Err(e) = self.log.publish(slot, Arc::clone(txn)) {
            fatal::stop(&format!("naming transaction {} failed: {e}", txn.header.position.seq));
        }
    }

    /// Takes the next part of what is pending; the last one with the times that the touched files have now. `None` when
    /// there is nothing.
    fn take_pending(&self, only_parts: bool) -> Option<Sealed> {
        let mut p = self.ops.lock();
        let was_open = p.open_group;
        if let Some(chunk) = p.full.pop_front() {
            p.open_group = true;
            return Some(Sealed { chunk, touched: BTreeSet::new(), was_open, continues: true });
        }
        if only_parts || (p.is_empty() && !was_open) {
            return None;
        }
        let touched = std::mem::take(&mut p.touched);
        {
            let tree = self.tree.read();
            for &id in &touched {
                let Some(path) = tree.path(id) else { continue };
                if let Ok(a) = self.data.attr(id, &crate::data::At::Path(path)) {
                    // Not through `push`: times never begin a new part.
                    Op::Times { id, atime: a.atime, mtime: a.mtime }.encode(&mut p.last.buf);
                    p.last.count += 1;
                }
            }
        }
        p.open_group = false;
        let room = p.last.buf.len().min(64 << 10);
        let fresh = Chunk { buf: Vec::with_capacity(room), count: 0 };
        let chunk = std::mem::replace(&mut p.last, fresh);
        Some(Sealed { chunk, touched, was_open, continues: false })
    }

    /// Puts back what could not be written: it is the oldest.
    fn put_back(&self, sealed: Sealed) {
        let mut p = self.ops.lock();
        p.touched.extend(sealed.touched);
        p.open_group = sealed.was_open;
        let mut chunk = sealed.chunk;
        if p.full.is_empty() && !sealed.continues {
            let newer = std::mem::take(&mut p.last);
            chunk.buf.extend_from_slice(&newer.buf);
            chunk.count += newer.count;
            p.last = chunk;
        } else {
            p.full.push_front(chunk);
        }
    }

    /// Everything pending is dropped: another node's history goes on without it.
    pub(crate) fn drop_pending(&self) {
        let mut p = self.ops.lock();
        if !p.is_empty() {
            self.forsaken.store(true, Ordering::SeqCst);
        }
        *p = Pending::default();
    }

    /// Bytes of operations that no transaction holds yet.
    pub fn pending_bytes(&self) -> usize {
        self.ops.lock().bytes()
    }
}

struct Sealed {
    chunk: Chunk,
    touched: BTreeSet<FileId>,
    was_open: bool,
    continues: bool,
}

pub(crate) type GroupLock = Mutex<Group>;
