//! Group commit: one transaction at a time gathers every pending operation of every process.
//!
//! Whoever calls `fsync` while none is under way leads: it seals, writes, waits for the peers and answers, on its own
//! thread. Whoever comes meanwhile leaves its answer behind and its thread is free; the leader takes the next round
//! for them.

use crate::errors::FsError;
use crate::fatal;
use crate::histogram::{Histogram, Summary};
use crate::ids::{FileId, Position};
use crate::log::{LogError, Slot};
use crate::op::Op;
use crate::txn::{Seal, Txn};
use crate::volume::Volume;
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeSet;
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
    /// Returns when `txn`, durable here, may be acknowledged under the commit mode. While it waits it may have
    /// [`Volume::seal_local`] seal more: it is on the leader's thread.
    ///
    /// # Errors
    /// When this node may not acknowledge any more.
    fn wait(&self, volume: &Volume, txn: &Txn) -> Result<(), FsError>;
}

/// Stand-alone: durable here is enough.
#[derive(Debug)]
pub struct Alone;

impl Replicator for Alone {
    fn ship(&self, _: &Arc<Txn>) {}
    fn wait(&self, _: &Volume, _: &Txn) -> Result<(), FsError> {
        Ok(())
    }
}

/// A transaction's payload grows to this many bytes before it is cut into parts: the bound on memory that pending
/// operations take. A single operation is at most a write of 1 MiB or a large attribute.
pub const PART_BYTES: usize = 16 << 20;

/// Operations that no transaction holds yet, and whether writing is allowed. Its lock is *the* operation lock: held
/// from before `data/` is changed until the operation is recorded, so that the log has every operation in the order
/// in which `data/` saw it. Lock order: group, then this, then the tree.
#[derive(Debug, Default)]
pub struct Pending {
    pub(crate) buf: Vec<u8>,
    pub(crate) count: u32,
    /// Files whose times go into the next transaction.
    pub(crate) touched: BTreeSet<FileId>,
    /// Parts of a transaction have been sealed and its last has not.
    pub(crate) open_group: bool,
    pub(crate) scratch: Vec<u8>,
}

impl Pending {
    pub(crate) fn push(&mut self, op: &Op<'_>) {
        op.encode(&mut self.buf);
        self.count += 1;
    }
}

struct Waiter {
    done: CommitDone,
    /// A writer that wants room, not durability: a part is enough.
    part: bool,
}

/// Who waits for a commit.
#[derive(Default)]
pub(crate) struct Group {
    leading: bool,
    waiters: Vec<Waiter>,
}

/// Where the time of a commit goes.
#[derive(Debug, Default)]
pub struct CommitTimes {
    seal: Histogram,
    slot: Histogram,
    ship: Histogram,
    local: Histogram,
    wait: Histogram,
    total: Histogram,
}

/// [`CommitTimes`] in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CommitSummary {
    /// Collecting, compressing, hashing.
    pub seal: Summary,
    /// Finding a file.
    pub slot: Summary,
    /// Handing it to the network.
    pub ship: Summary,
    /// Writing it and `fdatasync`.
    pub local: Summary,
    /// From durable here until the peers have it.
    pub wait: Summary,
    /// All of it.
    pub total: Summary,
}

impl CommitTimes {
    /// The figures so far.
    pub fn summary(&self) -> CommitSummary {
        CommitSummary {
            seal: self.seal.summary(),
            slot: self.slot.summary(),
            ship: self.ship.summary(),
            local: self.local.summary(),
            wait: self.wait.summary(),
            total: self.total.summary(),
        }
    }
}

pub(crate) fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

impl Volume {
    /// Makes everything that was written before the call durable, under the commit mode, and then calls `done`.
    pub fn commit(&self, done: CommitDone) {
        self.enqueue(Waiter { done, part: false });
    }

    /// [`Volume::commit`], waiting for it.
    pub fn commit_and_wait(&self) -> Result<(), FsError> {
        self.enqueue_and_wait(false)
    }

    /// Makes room for more operations: seals what is pending as a part of a transaction.
    pub(crate) fn make_room(&self) -> Result<(), FsError> {
        self.enqueue_and_wait(true)
    }

    fn enqueue_and_wait(&self, part: bool) -> Result<(), FsError> {
        let (tx, rx) = mpsc::sync_channel(1);
        let done: CommitDone = Box::new(move |r| {
            // The receiver is on this stack frame or below it: it can't be gone.
            let _ = tx.send(r);
        });
        self.enqueue(Waiter { done, part });
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
            if batch.is_empty() {
                group.leading = false;
                return;
            }
            drop(group);
            let part = batch.iter().all(|w| w.part);
            let result = self.commit_once(part);
            for w in batch {
                (w.done)(result);
            }
            group = self.group.lock();
        }
    }

    /// Seals, writes and ships one transaction, and waits for the peers. Only the leader is here.
    fn commit_once(&self, part: bool) -> Result<(), FsError> {
        let start = Instant::now();
        let Some(txn) = self.seal_local(part)? else {
            return Ok(());
        };
        let local = Instant::now();
        let result = self.replicator().wait(self, &txn);
        if result.is_err() {
            self.forsaken.store(true, Ordering::SeqCst);
        }
        self.times.wait.record(local.elapsed());
        self.times.total.record(start.elapsed());
        result
    }

    /// Seals what is pending, ships it and makes it durable here. Only for the leader of a commit.
    pub fn seal_local(&self, part: bool) -> Result<Option<Arc<Txn>>, FsError> {
        let start = Instant::now();
        let Some(sealed) = self.take_pending(part) else {
            self.seals.fetch_add(1, Ordering::SeqCst);
            // A second fsync must not succeed where the first one failed.
            let forsaken = self.forsaken.load(Ordering::SeqCst) && !self.writable();
            return if forsaken {
                Err(FsError::Stopped)
            } else {
                Ok(None)
            };
        };
        let prev = self.log.tail();
        let seal = Seal {
            volume: self.volume_id,
            prev,
            epoch: self.epoch(),
            timestamp: now_ns().max(self.log.tail_timestamp() + 1),
            continues: part,
            converge: sealed.converge,
            ops: sealed.count,
        };
        let txn = Arc::new(Txn::seal(&seal, &sealed.buf));
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
        let t = &self.times;
        t.seal.record(t_seal - start);
        t.slot.record(t_slot - t_seal);
        t.ship.record(t_ship - t_slot);
        t.local.record(t_local - t_ship);
        self.seals.fetch_add(1, Ordering::SeqCst);
        Ok(Some(txn))
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
            fatal::stop(&format!(
                "naming transaction {} failed: {e}",
                txn.header.position.seq
            ));
        }
    }

    /// Takes what is pending, with the times that the touched files have now. `None` when there is nothing.
    fn take_pending(&self, part: bool) -> Option<Sealed> {
        let mut p = self.ops.lock();
        if p.buf.is_empty() && p.touched.is_empty() && (part || !p.open_group) {
            return None;
        }
        let touched = std::mem::take(&mut p.touched);
        {
            let tree = self.tree.read();
            for &id in &touched {
                let Some(path) = tree.path(id) else { continue };
                if let Ok(a) = self.data.attr(id, &crate::data::At::Path(path)) {
                    p.push(&Op::Times {
                        id,
                        atime: a.atime,
                        mtime: a.mtime,
                    });
                }
            }
        }
        let buf = std::mem::take(&mut p.buf);
        let sealed = Sealed {
            buf,
            count: std::mem::take(&mut p.count),
            touched,
            was_open: p.open_group,
            converge: self.converge(),
        };
        p.open_group = part;
        Some(sealed)
    }

    fn put_back(&self, sealed: Sealed) {
        let mut p = self.ops.lock();
        let mut buf = sealed.buf;
        buf.extend_from_slice(&p.buf);
        p.buf = buf;
        p.count += sealed.count;
        p.touched.extend(sealed.touched);
        p.open_group = sealed.was_open;
    }

    /// Everything pending is dropped: another node's history goes on without it.
    pub(crate) fn drop_pending(&self) {
        let mut p = self.ops.lock();
        if !p.buf.is_empty() {
            self.forsaken.store(true, Ordering::SeqCst);
        }
        *p = Pending::default();
    }

    /// Whether something waits to be sealed.
    pub fn has_pending(&self) -> bool {
        let p = self.ops.lock();
        p.open_group || !p.buf.is_empty() || !p.touched.is_empty()
    }

    /// Bytes of operations that no transaction holds yet.
    pub fn pending_bytes(&self) -> usize {
        self.ops.lock().buf.len()
    }
}

struct Sealed {
    buf: Vec<u8>,
    count: u32,
    touched: BTreeSet<FileId>,
    was_open: bool,
    converge: bool,
}

/// Where the local side of the volume stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The end of the log.
    pub tail: Position,
    /// What `data/` shows.
    pub applied: u64,
    /// The checkpoint.
    pub checkpoint: u64,
}

/// How long until the next commit is due, for the thread that seals what nobody synced.
pub fn interval_left(last: Instant, interval: Duration) -> Duration {
    interval.saturating_sub(last.elapsed())
}

pub(crate) type GroupLock = Mutex<Group>;
