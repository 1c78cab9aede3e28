//! The log directory: one file per transaction, chained; aged files are kept as spares and overwritten.
//!
//! What is durable when:
//! * [`Slot::write_synced`] returns when header, payload and padding are durable. A slot is a file in `spare/`
//!   whose blocks are allocated; those of a spare that this process has made or written were durable before.
//! * [`Log::publish`] renames it into `log/` under its name. The rename is not synced: a file says in its header
//!   what it is, and [`Log::open`] finds it wherever it lies and under whatever name. A file that is new instead
//!   of recycled gets its directory entry into the filesystem's journal before its contents are synced.
//!
//! The chain decides what belongs to the log: from the checkpoint on, each file's `prev` is its predecessor's
//! hash. Anything that does not continue the chain is never applied.

use crate::crashsafe;
use crate::fatal;
use crate::ids::{Hash, Position, VolumeId};
use crate::slot::InPlace;
pub use crate::slot::Slot;
use crate::txn::{self, HEADER_LEN, Header, Txn, TxnError};
use parking_lot::Mutex;
use rustix::fs::{self, FallocateFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Spares kept for each length, at most.
const SPARES_PER_LEN: usize = 1024;
/// Files longer than this are not recycled.
const RECYCLE_UP_TO: u64 = 1 << 20;
/// Bytes of the newest transactions kept in memory, for peers that are a little behind.
const RECENT_BYTES: usize = 16 << 20;

/// The log directory failed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// I/O on a file of the log.
    #[error("{path}: {source}; check the disk below the state directory")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: Errno,
    },
    /// No room for the next transaction.
    #[error("no space for the transaction log in {0}; free some, the volume goes on by itself")]
    NoSpace(PathBuf),
    /// A transaction that the chain names is gone or damaged.
    #[error("transaction {seq} in {path}: {why}")]
    Unreadable {
        /// Its sequence number.
        seq: u64,
        /// The log directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A transaction that does not continue this log.
    #[error("transaction {got} does not follow {tail}; the histories differ")]
    NotNext {
        /// The end of this log.
        tail: Position,
        /// What came.
        got: Position,
    },
}

/// What the index knows of a transaction without reading it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its position.
    pub position: Position,
    /// Its predecessor's hash.
    pub prev: Hash,
    /// Nanoseconds since 1970 UTC.
    pub timestamp: i64,
    /// Length of the file.
    pub file_len: u64,
    /// Bytes on the wire.
    pub wire_len: u64,
    /// More parts follow.
    pub continues: bool,
    /// This process has made all its blocks durable, so they can be overwritten in place. After a start that is not known.
    pub(crate) settled: bool,
}

impl Entry {
    /// The file's name in the log directory.
    pub fn file_name(&self) -> String {
        txn::file_name(self.timestamp, self.position.seq)
    }
}

impl From<&Header> for Entry {
    fn from(h: &Header) -> Entry {
        Entry {
            position: h.position,
            prev: h.prev,
            timestamp: h.timestamp,
            file_len: h.file_len,
            wire_len: HEADER_LEN as u64 + h.payload_len,
            continues: h.continues,
            settled: false,
        }
    }
}

/// Figures for `status`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogStats {
    /// Transaction files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Timestamp of the oldest, nanoseconds since 1970 UTC.
    pub oldest: Option<i64>,
    /// Spare files.
    pub spare_files: u64,
}

/// When a transaction may go: when one of the limits is passed.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Age in nanoseconds; transactions that a peer lacks are kept beyond it.
    pub age: i64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
}

/// What [`Log::open`] found besides a whole chain.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Files that were set aside under `diverged/`: damaged, or not part of the chain.
    pub set_aside: Vec<String>,
}

#[derive(Debug)]
struct Inner {
    entries: VecDeque<Entry>,
    bytes: u64,
    tail: Position,
    tail_timestamp: i64,
    /// The newest transactions, in order, ending with the tail.
    recent: VecDeque<Arc<Txn>>,
    recent_bytes: usize,
}

#[derive(Debug)]
struct Spare {
    name: String,
    /// See [`Entry::settled`].
    settled: bool,
}

#[derive(Debug, Default)]
struct Spares {
    free: BTreeMap<u64, Vec<Spare>>,
    /// How many slots of a length were asked for since the last top-up.
    asked: HashMap<u64, usize>,
}

/// The log directory.
#[derive(Debug)]
#[allow(clippy::struct_field_names)] // `log_dir` stands beside its siblings.
pub struct Log {
    path: PathBuf,
    log_dir: OwnedFd,
    spare_dir: OwnedFd,
    diverged_dir: OwnedFd,
    volume: VolumeId,
    inner: Mutex<Inner>,
    /// Never held together with `inner`.
    spares: Mutex<Spares>,
    next_spare: AtomicU64,
    /// Found out with the first stock of spares.
    in_place: OnceLock<Arc<InPlace>>,
}

impl Log {
    /// Opens the log of `state_dir` and finds the chain that `checkpoint` is in and that goes on behind it.
    pub fn open(
        state_dir: &Path,
        volume: VolumeId,
        checkpoint: Position,
    ) -> Result<(Log, Recovered), LogError> {
        let path = state_dir.join("log");
        let dir = |name: &str| {
            let path = state_dir.join(name);
            let made = match fs::mkdir(&path, Mode::from(0o700)) {
                Err(Errno::EXIST) => Ok(()),
                r => r,
            };
            made.and_then(|()| crashsafe::open_dir(&path)).map_err(|source| LogError::Io { path, source })
        };
        let spare_dir = dir("spare")?;
        let log = Log {
            log_dir: dir("log")?,
            spare_dir,
            in_place: OnceLock::new(),
            diverged_dir: dir("diverged")?,
            path,
            volume,
            inner: Mutex::new(Inner {
                entries: VecDeque::new(),
                bytes: 0,
                tail: checkpoint,
                tail_timestamp: 0,
                recent: VecDeque::new(),
                recent_bytes: 0,
            }),
            spares: Mutex::new(Spares::default()),
            next_spare: AtomicU64::new(0),
        };
        let recovered = log.recover(checkpoint)?;
        Ok((log, recovered))
    }

    fn io(&self, name: &str) -> impl FnOnce(Errno) -> LogError + '_ {
        let path = self.path.join(name);
        move |source| match source {
            Errno::NOSPC | Errno::DQUOT => LogError::NoSpace(path),
            source => LogError::Io { path, source },
        }
    }

    /// Sorts what lies in `log/` and `spare/` into the chain, spares, and what is set aside.
    fn recover(&self, checkpoint: Position) -> Result<Recovered, LogError> {
        struct Found {
            in_log: bool,
            name: String,
            header: Option<Header>,
            len: u64,
        }
        let mut found = Vec::new();
        let mut spares_named = 0;
        for (in_log, dir) in [(true, &self.log_dir), (false, &self.spare_dir)] {
            for name in list(dir).map_err(self.io("."))? {
                let file = fs::openat(dir, name.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(self.io(&name))?;
                if let Some(n) = spare_number(&name) {
                    spares_named = spares_named.max(n.saturating_add(1));
                }
                let mut head = [0; HEADER_LEN];
                let n = crashsafe::read_full_at(&file, &mut head, 0).map_err(self.io(&name))?;
                let len = fs::fstat(&file).map_err(self.io(&name))?.st_size as u64;
                let header =
                    Header::parse(&head[..n]).ok().filter(|h| h.volume == self.volume && h.file_len == len);
                found.push(Found { in_log, name, header, len });
            }
        }
        // The process id is no help: in a container it is always the same.
        self.next_spare.store(spares_named, Ordering::Relaxed);
        // Forward from the checkpoint: each candidate is read and verified whole.
        let mut by_prev: HashMap<Hash, Vec<usize>> = HashMap::new();
        let mut by_hash: HashMap<Hash, usize> = HashMap::new();
        for (i, f) in found.iter().enumerate() {
            if let Some(h) = &f.header {
                by_prev.entry(h.prev).or_default().push(i);
                by_hash.entry(h.position.hash).or_insert(i);
            }
        }
        let mut chain = VecDeque::new();
        let mut tail = checkpoint;
        loop {
            let candidates = by_prev.get(&tail.hash).map_or(&[][..], |v| v);
            let next = candidates.iter().copied().find(|&i| {
                let f = &found[i];
                let dir = if f.in_log { &self.log_dir } else { &self.spare_dir };
                f.header.is_some_and(|h| h.position.seq == tail.seq + 1 && h.position.epoch >= tail.epoch)
                    && crashsafe::read_file(dir, &f.name).is_ok_and(|b| Txn::from_file(b).is_ok())
            });
            let Some(i) = next else { break };
            let Some(h) = found[i].header else { break };
            tail = h.position;
            chain.push_back(i);
        }
        // Backwards, for peers that are behind the checkpoint: the headers are enough, contents are verified when read.
        // But not their numbers taken on trust: the index counts on from the first.
        let (mut want, mut seq) = (checkpoint.hash, checkpoint.seq);
        while let Some(&i) = by_hash.get(&want) {
            let Some(h) = found[i].header.filter(|h| h.position.seq == seq && seq > 0) else { break };
            chain.push_front(i);
            (want, seq) = (h.prev, seq - 1);
        }
        let mut recovered = Recovered::default();
        let mut part_of = vec![false; found.len()];
        {
            let mut inner = self.inner.lock();
            for i in chain {
                let f = &found[i];
                let Some(h) = &f.header else { continue };
                part_of[i] = true;
                let name = h.file_name();
                if !f.in_log {
                    fs::renameat(&self.spare_dir, f.name.as_str(), &self.log_dir, name.as_str())
                        .map_err(self.io(&name))?;
                } else if f.name != name {
                    fs::renameat(&self.log_dir, f.name.as_str(), &self.log_dir, name.as_str())
                        .map_err(self.io(&name))?;
                }
                inner.bytes += h.file_len;
                inner.tail_timestamp = inner.tail_timestamp.max(h.timestamp);
                inner.entries.push_back(Entry::from(h));
            }
            inner.tail = tail;
        }
        for (i, f) in found.iter().enumerate().filter(|(i, _)| !part_of[*i]) {
            debug_assert!(!part_of[i]);
            // A file of the log that is behind the checkpoint and out of the chain was about to be recycled.
            let named = txn::seq_of_name(f.name.as_bytes());
            let aged = !f.in_log || named.is_some_and(|seq| seq <= checkpoint.seq);
            if aged && f.len % 4096 == 0 && f.len > 0 && f.len <= RECYCLE_UP_TO {
                let dir = if f.in_log { &self.log_dir } else { &self.spare_dir };
                self.keep_spare(dir, &f.name, f.len, false)?;
            } else if aged {
                let dir = if f.in_log { &self.log_dir } else { &self.spare_dir };
                fs::unlinkat(dir, f.name.as_str(), fs::AtFlags::empty()).map_err(self.io(&f.name))?;
            } else {
                self.divert(&f.name)?;
                recovered.set_aside.push(f.name.clone());
            }
        }
        for dir in [&self.log_dir, &self.spare_dir, &self.diverged_dir] {
            crashsafe::sync_dir(dir).map_err(self.io("."))?;
        }
        Ok(recovered)
    }

    /// Moves a file of the log to `diverged/`, beside any other of its name.
    fn divert(&self, name: &str) -> Result<(), LogError> {
        let mut to = name.to_owned();
        for n in 1.. {
            let moved = fs::renameat_with(
                &self.log_dir,
                name,
                &self.diverged_dir,
                to.as_str(),
                RenameFlags::NOREPLACE,
            );
            match moved {
                Err(Errno::EXIST) => to = format!("{name}.{n}"),
                r => return r.map_err(self.io(name)),
            }
        }
        Ok(())
    }

    /// The end of the log.
    pub fn tail(&self) -> Position {
        self.inner.lock().tail
    }

    /// The timestamp of the end of the log, nanoseconds since 1970 UTC; 0 when it is empty.
    pub fn tail_timestamp(&self) -> i64 {
        self.inner.lock().tail_timestamp
    }

    /// The index entry of `seq`.
    pub fn entry(&self, seq: u64) -> Option<Entry> {
        let inner = self.inner.lock();
        let first = inner.entries.front()?.position.seq;
        inner.entries.get(seq.checked_sub(first)? as usize).copied()
    }

    /// The index entries of `seqs`, in order, at most `most`; those that the log does not hold are left out.
    pub fn entries(&self, seqs: RangeInclusive<u64>, most: usize) -> Vec<Entry> {
        let inner = self.inner.lock();
        let first = inner.entries.front().map_or(0, |e| e.position.seq);
        let from = seqs.start().saturating_sub(first) as usize;
        let behind = inner.entries.iter().skip(from);
        behind.take_while(|e| e.position.seq <= *seqs.end()).take(most).copied().collect()
    }

    /// The number of the oldest transaction that is there.
    pub fn oldest(&self) -> Option<u64> {
        self.inner.lock().entries.front().map(|e| e.position.seq)
    }

    /// The position with number `seq`, also the one just before the oldest file (its epoch is then not known: 0).
    pub fn position(&self, seq: u64) -> Option<Position> {
        if let Some(e) = self.entry(seq) {
            return Some(e.position);
        }
        let inner = self.inner.lock();
        if inner.tail.seq == seq {
            return Some(inner.tail);
        }
        let first = inner.entries.front()?;
        (first.position.seq == seq + 1).then_some(Position { epoch: 0, seq, hash: first.prev })
    }

    /// All positions that the log holds, oldest first, with the one before the oldest.
    pub fn positions(&self) -> Vec<(u64, Hash)> {
        let inner = self.inner.lock();
        let Some(first) = inner.entries.front() else {
            return vec![(inner.tail.seq, inner.tail.hash)];
        };
        let before = (first.position.seq - 1, first.prev);
        std::iter::once(before)
            .chain(inner.entries.iter().map(|e| (e.position.seq, e.position.hash)))
            .collect()
    }

    /// Bytes on the wire of everything behind `seq`, and the timestamp of the first of it.
    pub fn behind(&self, seq: u64) -> (u64, Option<i64>) {
        let inner = self.inner.lock();
        if seq >= inner.tail.seq {
            return (0, None);
        }
        let n = (inner.tail.seq - seq) as usize;
        let from = inner.entries.len().saturating_sub(n);
        let missing = inner.entries.range(from..);
        (missing.clone().map(|e| e.wire_len).sum(), missing.clone().next().map(|e| e.timestamp))
    }

    /// Reads transaction `seq` and verifies it.
    pub fn read(&self, seq: u64) -> Result<Arc<Txn>, LogError> {
        let why = |why: &str| LogError::Unreadable { seq, path: self.path.clone(), why: why.to_owned() };
        let entry = {
            let inner = self.inner.lock();
            if let Some(first) = inner.recent.front()
                && let Some(i) = seq.checked_sub(first.header.position.seq)
                && let Some(txn) = inner.recent.get(i as usize)
            {
                return Ok(Arc::clone(txn));
            }
            drop(inner);
            self.entry(seq).ok_or_else(|| why("it is not in the log any more"))?
        };
        let name = entry.file_name();
        let bytes = crashsafe::read_file(&self.log_dir, &name).map_err(self.io(&name))?;
        let txn = Txn::from_file(bytes).map_err(|e| why(&e.to_string()))?;
        if txn.header.position != entry.position {
            return Err(why("its file holds another transaction"));
        }
        Ok(Arc::new(txn))
    }

    /// The path of transaction `seq`.
    pub fn path_of(&self, seq: u64) -> Option<PathBuf> {
        Some(self.path.join(self.entry(seq)?.file_name()))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.path
    }

    /// A file of `len` bytes for the next transaction, its blocks allocated, so that writing it can't run out of space.
    ///
    /// # Errors
    /// [`LogError::NoSpace`]: nothing has happened, try again later. When the disk itself fails this process ends: a
    /// node that can't log any more but is still there keeps its peers from taking over.
    pub fn slot(&self, len: u64) -> Result<Slot, LogError> {
        let slot = self.find_slot(len);
        if let Err(e @ LogError::Io { source, .. }) = &slot
            && is_disk_failure(*source)
        {
            fatal::stop(&e.to_string());
        }
        slot
    }

    fn find_slot(&self, len: u64) -> Result<Slot, LogError> {
        let spare = {
            let mut s = self.spares.lock();
            if len <= RECYCLE_UP_TO {
                *s.asked.entry(len).or_default() += 1;
            }
            s.free.get_mut(&len).and_then(Vec::pop)
        };
        if let Some(Spare { name, settled }) = spare {
            let in_place = self.in_place.get().cloned().filter(|_| settled);
            let mut flags = OFlags::WRONLY | OFlags::CLOEXEC;
            flags.set(OFlags::DIRECT, in_place.is_some());
            let file =
                fs::openat(&self.spare_dir, name.as_str(), flags, Mode::empty()).map_err(self.io(&name))?;
            return Ok(Slot { file, name, len, in_place });
        }
        self.new_file(len, false)
    }

    fn new_file(&self, len: u64, zeroed: bool) -> Result<Slot, LogError> {
        let n = self.next_spare.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{n}.{}", len, std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file =
            fs::openat(&self.spare_dir, name.as_str(), flags, Mode::from(0o600)).map_err(self.io(&name))?;
        let filled = if zeroed {
            crashsafe::write_all_at(&file, &vec![0; len as usize], 0)
        } else {
            fs::fallocate(&file, FallocateFlags::empty(), 0, len)
        };
        if let Err(e) = filled {
            // The error that counts is the first; a left-over file is cleared away at the next start.
            let _ = fs::unlinkat(&self.spare_dir, name.as_str(), fs::AtFlags::empty());
            return Err(self.io(&name)(e));
        }
        Ok(Slot { file, name, len, in_place: None })
    }

    /// Renames the file of a durable transaction into `log/` and takes it into the index as the new tail.
    pub fn publish(&self, slot: Slot, txn: Arc<Txn>) -> Result<(), LogError> {
        let name = txn.header.file_name();
        {
            // The index first: whoever sees the name finds it there.
            let mut inner = self.inner.lock();
            inner.tail = txn.header.position;
            inner.tail_timestamp = txn.header.timestamp;
            inner.bytes += txn.header.file_len;
            inner.entries.push_back(Entry { settled: true, ..Entry::from(&txn.header) });
            inner.recent_bytes += txn.bytes().len();
            inner.recent.push_back(txn);
            while inner.recent_bytes > RECENT_BYTES && inner.recent.len() > 1 {
                if let Some(old) = inner.recent.pop_front() {
                    inner.recent_bytes -= old.bytes().len();
                }
            }
        }
        fs::renameat(&self.spare_dir, slot.name.as_str(), &self.log_dir, name.as_str())
            .map_err(self.io(&name))
    }

    /// Whether the transaction continues this log.
    pub fn check_next(&self, h: &Header) -> Result<(), LogError> {
        let (tail, timestamp) = {
            let inner = self.inner.lock();
            (inner.tail, inner.tail_timestamp)
        };
        self.check_follows(tail, timestamp, h)
    }

    /// Whether the transaction continues a log of this volume that ends at `tail`.
    pub(crate) fn check_follows(&self, tail: Position, timestamp: i64, h: &Header) -> Result<(), LogError> {
        let next = h.position.seq == tail.seq + 1
            && h.prev == tail.hash
            && h.position.epoch >= tail.epoch
            && h.timestamp >= timestamp
            && h.volume == self.volume;
        if next { Ok(()) } else { Err(LogError::NotNext { tail, got: h.position }) }
    }

    /// Moves every transaction behind `seq` to `diverged/`; durable when it returns. Returns how many.
    pub fn set_aside_after(&self, seq: u64) -> Result<u64, LogError> {
        let (gone, tail) = {
            let mut inner = self.inner.lock();
            let mut gone = Vec::new();
            while let Some(e) = inner.entries.back().copied().filter(|e| e.position.seq > seq) {
                inner.entries.pop_back();
                inner.bytes -= e.file_len;
                gone.push(e);
            }
            inner.recent.clear();
            inner.recent_bytes = 0;
            let before = gone.last().map(|e| (e.position.seq - 1, e.prev));
            if let Some(last) = inner.entries.back().copied() {
                inner.tail = last.position;
                inner.tail_timestamp = last.timestamp;
            } else if let Some((seq, hash)) = before {
                // The timestamp stays: names never go backwards.
                inner.tail = Position { epoch: 0, seq, hash };
            }
            (gone, inner.tail)
        };
        for e in &gone {
            let name = e.file_name();
            self.divert(&name)?;
        }
        if !gone.is_empty() {
            crashsafe::sync_dir(&self.diverged_dir).map_err(self.io("../diverged"))?;
            crashsafe::sync_dir(&self.log_dir).map_err(self.io("."))?;
            tracing::warn!(count = gone.len(), %tail, "transactions set aside under diverged/");
        }
        Ok(gone.len() as u64)
    }

    /// Empties the log and lets it start behind `base`: what a full copy does with a history that it replaces.
    /// What it held goes to `diverged/`; returns how many files.
    pub fn restart_at(&self, base: Position, timestamp: i64) -> Result<u64, LogError> {
        let gone = self.set_aside_after(0)?;
        self.restart_at_tail(base, timestamp);
        Ok(gone)
    }

    /// After a set-aside to a position whose epoch the index no longer knew: the tail is exactly `base`. So is its
    /// time: what was set aside may have come from a clock that was ahead, and another history goes on from here.
    pub fn restart_at_tail(&self, base: Position, timestamp: i64) {
        let mut inner = self.inner.lock();
        inner.tail = base;
        inner.tail_timestamp = timestamp;
    }

    /// Drops every transaction up to `seq` from the log (kept as spares): the peer's history before a copy.
    pub fn forget_up_to(&self, seq: u64) -> Result<(), LogError> {
        while let Some(e) = self.pop_oldest(|e, _| e.position.seq <= seq) {
            self.retire(&e)?;
        }
        Ok(())
    }

    fn pop_oldest(&self, may: impl FnOnce(&Entry, &Inner) -> bool) -> Option<Entry> {
        let mut inner = self.inner.lock();
        let e = *inner.entries.front()?;
        if !may(&e, &inner) {
            return None;
        }
        inner.entries.pop_front();
        inner.bytes -= e.file_len;
        if inner.recent.front().is_some_and(|t| t.header.position.seq == e.position.seq)
            && let Some(t) = inner.recent.pop_front()
        {
            inner.recent_bytes -= t.bytes().len();
        }
        Some(e)
    }

    /// Prunes what is past the limits: never what a redo needs (behind `checkpoint`), by age never what a peer
    /// lacks (`needed_from`: the lowest number that some configured peer does not have). At most `most` at a time.
    /// Returns how many files went.
    pub fn prune(
        &self,
        limits: &Retention,
        now: i64,
        checkpoint: u64,
        needed_from: u64,
        most: u64,
    ) -> Result<u64, LogError> {
        let mut gone = 0;
        while gone < most {
            let oldest = self.pop_oldest(|e, inner| {
                let aged = now - e.timestamp > limits.age && e.position.seq < needed_from;
                let over = inner.bytes > limits.bytes || inner.entries.len() as u64 > limits.files;
                e.position.seq <= checkpoint && (aged || over)
            });
            let Some(e) = oldest else { return Ok(gone) };
            self.retire(&e)?;
            gone += 1;
        }
        Ok(gone)
    }

    fn retire(&self, e: &Entry) -> Result<(), LogError> {
        let name = e.file_name();
        let room = {
            let s = self.spares.lock();
            s.free.get(&e.file_len).map_or(0, Vec::len) < SPARES_PER_LEN
        };
        if room && e.file_len <= RECYCLE_UP_TO {
            self.keep_spare(&self.log_dir, &name, e.file_len, e.settled)
        } else {
            fs::unlinkat(&self.log_dir, name.as_str(), fs::AtFlags::empty()).map_err(self.io(&name))
        }
    }

    fn keep_spare(&self, from: &OwnedFd, name: &str, len: u64, settled: bool) -> Result<(), LogError> {
        let n = self.next_spare.fetch_add(1, Ordering::Relaxed);
        let spare = Spare { name: format!("{len}-{n}.{}", std::process::id()), settled };
        fs::renameat(from, name, &self.spare_dir, spare.name.as_str()).map_err(self.io(name))?;
        self.spares.lock().free.entry(len).or_default().push(spare);
        Ok(())
    }

    /// Makes the spares that a node starts with: of each of the lengths that small commits have.
    pub fn stock(&self) -> Result<usize, LogError> {
        match InPlace::probe(&self.path.join("..")) {
            Ok(Some(disk)) => {
                // Already set: stocked before.
                let _ = self.in_place.set(Arc::new(disk));
            }
            Ok(None) => {}
            // A full disk, for example. It is only slower.
            Err(e) => tracing::info!("the log is written without direct I/O: {e}"),
        }
        {
            let mut s = self.spares.lock();
            for len in [4096, 8192, 12288, 16384] {
                s.asked.insert(len, 64);
            }
        }
        self.top_up()
    }

    /// Makes spares ahead of need, so that a commit seldom has to create a file: for each length that was asked
    /// for since the last call, as many as were asked for, within bounds. Returns how many it made.
    pub fn top_up(&self) -> Result<usize, LogError> {
        let wanted: Vec<(u64, usize)> = {
            let mut s = self.spares.lock();
            let asked = std::mem::take(&mut s.asked);
            asked
                .into_iter()
                .map(|(len, n)| {
                    // At most 4 MiB ahead for a length.
                    let target = (2 * n).clamp(16, SPARES_PER_LEN).min((4 << 20) / len as usize).max(2);
                    (len, target.saturating_sub(s.free.get(&len).map_or(0, Vec::len)))
                })
                .collect()
        };
        let mut made = 0;
        for (len, n) in wanted {
            let mut fresh = Vec::new();
            for _ in 0..n {
                fresh.push(self.new_file(len, true)?);
            }
            // The first sync commits the creation of all of them; the others find little left to write.
            for slot in fresh {
                fs::fdatasync(&slot.file).map_err(self.io(&slot.name))?;
                let spare = Spare { name: slot.name, settled: true };
                self.spares.lock().free.entry(len).or_default().push(spare);
                made += 1;
            }
        }
        Ok(made)
    }

    /// Figures for `status`.
    pub fn stats(&self) -> LogStats {
        let (files, bytes, oldest) = {
            let inner = self.inner.lock();
            (inner.entries.len() as u64, inner.bytes, inner.entries.front().map(|e| e.timestamp))
        };
        let spare_files = self.spares.lock().free.values().map(|v| v.len() as u64).sum();
        LogStats { files, bytes, oldest, spare_files }
    }
}

/// The number in a spare's name.
fn spare_number(name: &str) -> Option<u64> {
    name.split_once('-')?.1.split_once('.')?.0.parse().ok()
}

/// Whether the disk or the filesystem below is gone for good, in contrast to what passes, as too many open files.
fn is_disk_failure(e: Errno) -> bool {
    // Also what ext4, XFS and btrfs answer once they have shut down or remounted themselves read-only.
    matches!(e, Errno::IO | Errno::ROFS | Errno::UCLEAN | Errno::SHUTDOWN | Errno::NODEV | Errno::NXIO)
}

/// The names of the files in a directory; names that are not UTF-8, directories and the like are none of ours.
fn list(dir: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let file = match entry.file_type() {
            FileType::Unknown => {
                let st = fs::statat(dir, entry.file_name(), fs::AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(st.st_mode) == FileType::RegularFile
            }
            t => t == FileType::RegularFile,
        };
        if file && let Ok(name) = entry.file_name().to_str() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Reads one transaction file wherever it lies, for the offline tools.
pub fn read_txn_file(path: &Path) -> Result<Txn, LogError> {
    let io = |source| LogError::Io { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(|e| io(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    Txn::from_file(bytes).map_err(|e: TxnError| LogError::Unreadable {
        seq: txn::seq_of_name(path.file_name().map_or(&[][..], |n| n.as_encoded_bytes())).unwrap_or(0),
        path: path.to_owned(),
        why: e.to_string(),
    })
}
