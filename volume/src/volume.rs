//! The volume of one node: its files, its names, its log, its state.

use crate::apply::{Applier, ApplyError, Changed, Names, Rule};
use crate::commit::{Alone, Bell, CommitTimes, Group, GroupLock, Pending, Replicator};
use crate::data::DataDir;
use crate::errors::FsError;
use crate::fatal;
use crate::fs::OpenFile;
use crate::held::Hold;
use crate::ids::{FileId, Position, VolumeId};
use crate::log::{Log, LogError, Recovered, Retention};
use crate::op::{Kind, Op, Ops};
use crate::recover::{self, LoadError};
use crate::slot::Slot;
use crate::state::{Role, State, StateError, StateFile};
use crate::tree::Tree;
use crate::txn::Txn;
use parking_lot::{Condvar, Mutex, RwLock};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The kernel's caches of the volume. Never called while the operation lock or the tree is held: dropping a page can
/// wait for a request on the same page, and that request needs them.
pub trait KernelCache: Send + Sync {
    /// Drops cached pages and attributes of a file.
    fn invalidate_inode(&self, id: FileId);
    /// Drops a cached directory entry.
    fn invalidate_entry(&self, parent: FileId, name: &[u8]);
}

/// What requests on the mount may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: the files are between two states.
    Closed,
    /// Read: this node follows.
    ReadOnly,
    /// Read, while writers wait: a switchover is under way.
    Paused,
    /// Everything: this node is primary.
    ReadWrite,
}

/// A volume can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody has it open.
    #[error(
        "{0}: another nasd uses this state directory; stop it first, or give this one a directory of its own"
    )]
    Busy(PathBuf),
    /// The state directory itself.
    #[error("{0}: {1}; nasd needs a directory that it may write")]
    Dir(PathBuf, #[source] Errno),
    /// The filesystem below can't hold ids.
    #[error(
        "{0}: no trusted extended attributes here ({1}); run nasd as root and put the state directory on ext4, XFS or btrfs"
    )]
    NoXattr(PathBuf, #[source] Errno),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The log directory.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The files.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The redo.
    #[error("redo from the checkpoint: {0}")]
    Redo(#[from] ApplyError),
}

/// Why a received transaction was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The log refuses it, or has no space.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It is not a transaction.
    #[error(transparent)]
    Txn(#[from] crate::txn::TxnError),
}

/// What applying transactions brought to the replica: one per whole transaction.
#[derive(Debug, Default)]
pub struct Applied {
    /// The position of its last part.
    pub position: Option<Position>,
    /// Its timestamp, nanoseconds since 1970 UTC.
    pub timestamp: i64,
    /// Changed paths, as a user of the mount sees them.
    pub paths: Vec<Vec<u8>>,
}

/// The volume of one node. Shared by the mount, the watcher and the daemon.
#[allow(clippy::struct_field_names)] // `volume_id` is what it is called everywhere.
pub struct Volume {
    pub(crate) data: DataDir,
    /// Readers of the secondary hold it shared while they look, the applier exclusively from the first operation of a
    /// transaction to the last: nobody sees a transaction by halves.
    pub(crate) tree: RwLock<Tree>,
    /// The log directory.
    pub log: Arc<Log>,
    /// The state file.
    pub state: Arc<StateFile>,
    pub(crate) volume_id: VolumeId,
    pub(crate) ops: Mutex<Pending>,
    pub(crate) group: GroupLock,
    pub(crate) bell: Bell,
    pub(crate) opens: Mutex<HashMap<FileId, Vec<Arc<OpenFile>>>>,
    access: Mutex<Access>,
    access_changed: Condvar,
    replicator: RwLock<Arc<dyn Replicator>>,
    kernel: RwLock<Option<Arc<dyn KernelCache>>>,
    hold: Option<Arc<dyn Hold>>,
    next_id: AtomicU64,
    epoch: AtomicU64,
    /// The last transaction that `data/` shows whole.
    applied: Mutex<Position>,
    /// As primary: the last transaction that is acknowledged.
    acknowledged: AtomicU64,
    /// Called when either has grown by a commit.
    on_commit: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// One at a time applies, checkpoints, or changes what the log ends with.
    apply_lock: Mutex<()>,
    /// Files that changed since the checkpoint.
    dirty: Mutex<BTreeSet<FileId>>,
    /// Transactions state what is, for a peer that may differ.
    converge: AtomicBool,
    pub(crate) times: CommitTimes,
    pub(crate) seals: AtomicU64,
    /// Something that was written here was given up: until this node is primary again, no fsync succeeds.
    pub(crate) forsaken: AtomicBool,
    pub(crate) terms_lost: AtomicU64,
    /// At the start `data/` had more than the log, not less: this process was killed, and nothing else.
    whole_here: bool,
    state_dir: PathBuf,
    _lock: OwnedFd,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("dir", &self.state_dir).finish_non_exhaustive()
    }
}

/// Changed files beyond this many are made durable by syncing the whole filesystem.
const DIRTY_MAX: usize = 2048;

/// What [`Volume::open_at`] found.
#[derive(Debug)]
pub struct Opened {
    /// The volume, closed to requests until a role is taken.
    pub volume: Arc<Volume>,
    /// What the log had to set aside.
    pub recovered: Recovered,
    /// How many transactions were redone.
    pub redone: u64,
}

/// Takes the lock of a state directory, creating the directory when it is missing.
pub fn lock_state_dir(state_dir: &Path) -> Result<OwnedFd, OpenError> {
    use rustix::fs::{Mode, OFlags};
    let io = |e: Errno| OpenError::Dir(state_dir.to_owned(), e);
    std::fs::create_dir_all(state_dir).map_err(|e| io(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::open(state_dir.join("lock"), flags, Mode::from(0o600)).map_err(io)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN) => return Err(OpenError::Busy(state_dir.to_owned())),
        Err(e) => return Err(io(e)),
    }
    // Looked at on the lock, before anything else is put here that would be in the way on a better disk.
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&file, "trusted.nasd.lock", b"", flags)
        .map_err(|e| OpenError::NoXattr(state_dir.to_owned(), e))?;
    Ok(file)
}

impl Volume {
    /// Opens the volume below `state_dir`, whose lock the caller has taken: reads the log, reads the names, and
    /// redoes what follows the checkpoint. A primary redoes everything that is durable in its log; a secondary leaves
    /// a transaction whose last part is missing alone.
    pub fn open_at(
        state_dir: &Path,
        lock: OwnedFd,
        state: StateFile,
        volume_id: VolumeId,
    ) -> Result<Opened, OpenError> {
        Volume::open_holding(state_dir, lock, state, volume_id, None)
    }

    /// [`Volume::open_at`] with somebody who may need files that the primary removes.
    pub fn open_holding(
        state_dir: &Path,
        lock: OwnedFd,
        state: StateFile,
        volume_id: VolumeId,
        hold: Option<Arc<dyn Hold>>,
    ) -> Result<Opened, OpenError> {
        let now = state.get();
        let dir = |e| OpenError::Dir(state_dir.to_owned(), e);
        let data = DataDir::open(state_dir).map_err(dir)?;
        data.set_id(b"data", FileId::ROOT).map_err(|e| OpenError::NoXattr(state_dir.to_owned(), e))?;
        let (log, recovered) = Log::open(state_dir, volume_id, now.checkpoint)?;
        let mut next_id = FileId::first_of_epoch(now.epoch + 1);
        let mut tree = recover::load(state_dir, &data, &mut next_id)?;
        let tail = log.tail();
        let whole = last_whole(&log, now.checkpoint, tail);
        let upto = if now.role == Role::Primary { tail } else { whole };
        let mut redone = 0;
        let mut dirty = BTreeSet::new();
        let whole_here = now.role == Role::Primary
            && now.whole_in.is_some()
            && now.whole_in == crate::state::mount_of(state_dir);
        if whole_here {
            // All of it is there, and nothing says which files: the next checkpoint need not know.
            data.sync_all().map_err(dir)?;
        } else if !now.needs_copy {
            let mut applier = Applier::new(&mut tree, &data, Rule::Redo).holding(hold.clone());
            restate::<OpenError>(&mut applier, &log, now.checkpoint.seq + 1..=upto.seq)?;
            redone = upto.seq.saturating_sub(now.checkpoint.seq);
            dirty = std::mem::take(&mut applier.changed.ids);
        }
        let volume = Volume {
            data,
            tree: RwLock::new(tree),
            log: Arc::new(log),
            state: Arc::new(state),
            volume_id,
            ops: Mutex::new(Pending::default()),
            group: GroupLock::new(Group::default()),
            bell: Bell::default(),
            opens: Mutex::new(HashMap::new()),
            access: Mutex::new(Access::Closed),
            access_changed: Condvar::new(),
            replicator: RwLock::new(Arc::new(Alone)),
            kernel: RwLock::new(None),
            hold,
            next_id: AtomicU64::new(next_id),
            epoch: AtomicU64::new(now.epoch),
            applied: Mutex::new(whole),
            acknowledged: AtomicU64::new(0),
            on_commit: OnceLock::new(),
            apply_lock: Mutex::new(()),
            dirty: Mutex::new(dirty),
            converge: AtomicBool::new(false),
            times: CommitTimes::default(),
            seals: AtomicU64::new(0),
            forsaken: AtomicBool::new(false),
            terms_lost: AtomicU64::new(0),
            whole_here,
            state_dir: state_dir.to_owned(),
            _lock: lock,
        };
        Ok(Opened { volume: Arc::new(volume), recovered, redone })
    }

    /// Creates a new stand-alone volume, for tests and tools.
    pub fn create_at(state_dir: &Path) -> Result<Arc<Volume>, OpenError> {
        let lock = lock_state_dir(state_dir)?;
        let id = VolumeId::random();
        let state = StateFile::create(state_dir, new_state(Some(id), Role::Primary))?;
        let v = Volume::open_at(state_dir, lock, state, id)?.volume;
        v.state.update(|s| s.epoch = 1)?;
        v.start_epoch(1, "alone").map_err(|e| OpenError::Dir(state_dir.to_owned(), e.errno()))?;
        v.set_access(Access::ReadWrite);
        Ok(v)
    }

    /// The volume's identity.
    pub fn id(&self) -> VolumeId {
        self.volume_id
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The epoch that new transactions are sealed in.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// What `data/` shows.
    pub fn applied(&self) -> Position {
        *self.applied.lock()
    }

    /// On a primary: the last transaction that is acknowledged under the commit mode.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub(crate) fn set_acknowledged(&self, seq: u64) {
        self.acknowledged.store(seq, Ordering::SeqCst);
        self.tell_commit();
    }

    /// Has `f` called, once set, when a transaction was sealed or acknowledged, on the thread that commits: it must not
    /// block.
    pub fn on_commit(&self, f: impl Fn() + Send + Sync + 'static) {
        // A volume has one owner, who sets it once.
        let _ = self.on_commit.set(Box::new(f));
    }

    fn tell_commit(&self) {
        if let Some(f) = self.on_commit.get() {
            f();
        }
    }

    /// Where commits spend their time.
    pub fn commit_times(&self) -> &crate::commit::CommitTimes {
        &self.times
    }

    pub(crate) fn replicator(&self) -> Arc<dyn Replicator> {
        Arc::clone(&self.replicator.read())
    }

    /// Says who carries transactions to the peers.
    pub fn set_replicator(&self, r: Arc<dyn Replicator>) {
        *self.replicator.write() = r;
    }

    /// Says whose caches to keep true; `None` while there is no mount.
    pub fn set_kernel_cache(&self, cache: Option<Arc<dyn KernelCache>>) {
        *self.kernel.write() = cache;
    }

    pub(crate) fn converge(&self) -> bool {
        self.converge.load(Ordering::SeqCst)
    }

    pub(crate) fn new_id(&self) -> FileId {
        FileId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    // ---- what requests may do -------------------------------------------------------------------------------

    /// What requests may do now.
    pub fn access(&self) -> Access {
        *self.access.lock()
    }

    /// Whether this node is primary and serves writers.
    pub fn writable(&self) -> bool {
        self.access() == Access::ReadWrite
    }

    /// Changes what requests may do. When it returns, no request that the new access forbids is under way.
    pub fn set_access(&self, access: Access) {
        // The operation lock: a writer that saw the old access has finished when we have it.
        let _ops = self.ops.lock();
        *self.access.lock() = access;
        self.access_changed.notify_all();
    }

    /// Waits while writers are paused; then says whether writing is allowed. Called before the operation lock is
    /// taken, and checked again under it by [`Volume::check_writable`].
    pub(crate) fn wait_writable(&self) -> Result<(), FsError> {
        let mut access = self.access.lock();
        while *access == Access::Paused {
            self.access_changed.wait(&mut access);
        }
        match *access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly | Access::Paused => Err(FsError::ReadOnly),
            Access::Closed => Err(FsError::NotReady),
        }
    }

    pub(crate) fn check_readable(&self) -> Result<(), FsError> {
        if *self.access.lock() == Access::Closed { Err(FsError::NotReady) } else { Ok(()) }
    }

    // ---- the primary's side ---------------------------------------------------------------------------------

    /// Starts `epoch` with a transaction that says whose it is. From now on new ids and transactions are the epoch's.
    /// The state file already says so.
    pub fn start_epoch(&self, epoch: u64, node: &str) -> Result<(), FsError> {
        self.begin_epoch(epoch);
        self.ops.lock().push(&Op::EpochStart { node: node.as_bytes() });
        self.commit_and_wait()
    }

    /// New ids and transactions are `epoch`'s.
    pub fn begin_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::SeqCst);
        self.forsaken.store(false, Ordering::SeqCst);
        self.next_id.fetch_max(FileId::first_of_epoch(epoch), Ordering::SeqCst);
    }

    /// Puts operations that describe what `data/` already is into one transaction (a large one in parts), so that a
    /// replica that may differ becomes equal: `fill` is given what takes them, in batches, with their number. Nobody
    /// writes meanwhile: the volume is closed.
    pub fn log_state<E: From<FsError>>(
        &self,
        fill: impl FnOnce(&mut dyn FnMut(&[u8], u32) -> Result<(), E>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.converge.store(true, Ordering::SeqCst);
        let filled = fill(&mut |payload, ops| {
            let full = {
                let mut p = self.ops.lock();
                p.extend(payload, ops);
                p.bytes() >= crate::commit::PENDING_BYTES
            };
            if full { self.make_room().map_err(E::from) } else { Ok(()) }
        });
        let committed = self.commit_and_wait();
        self.converge.store(false, Ordering::SeqCst);
        filled?;
        committed.map_err(E::from)
    }

    /// Book-keeping of a transaction that is durable here and whose changes `data/` has had from the start.
    pub(crate) fn committed(&self, txn: &Txn, touched: &BTreeSet<FileId>) {
        // In this order: a checkpoint reads the position first and the files after it.
        self.dirty.lock().extend(touched);
        if !txn.header.continues {
            *self.applied.lock() = txn.header.position;
            self.tell_commit();
        }
    }

    // ---- the secondary's side -------------------------------------------------------------------------------

    /// Makes a received transaction durable. The returned value must be [`Stored::publish`]ed; in between the caller
    /// can acknowledge.
    ///
    /// # Errors
    /// When it does not continue the log, is damaged, or there is no space. A failed fsync ends the process.
    pub fn store(&self, txn: Txn) -> Result<Stored<'_>, StoreError> {
        let stored = self.write_next(None, txn)?;
        self.sync_stored(std::slice::from_ref(&stored));
        Ok(stored)
    }

    /// [`Volume::store`] for several that arrived together, in order: the disk is flushed once for all of them. Stops at
    /// the first that can't be taken; those before it are durable, and must be published in their order.
    pub fn store_all(&self, txns: Vec<Txn>) -> (Vec<Stored<'_>>, Option<StoreError>) {
        let mut stored = Vec::with_capacity(txns.len());
        let mut failed = None;
        for txn in txns {
            match self.write_next(stored.last(), txn) {
                Ok(one) => stored.push(one),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        self.sync_stored(&stored);
        (stored, failed)
    }

    /// Writes the transaction behind `last`, or behind the end of the log. It is not durable yet.
    fn write_next(&self, last: Option<&Stored<'_>>, txn: Txn) -> Result<Stored<'_>, StoreError> {
        match last.map(|s| &s.txn.header) {
            Some(h) => self.log.check_follows(h.position, h.timestamp, &txn.header)?,
            None => self.log.check_next(&txn.header)?,
        }
        let slot = self.log.slot(txn.header.file_len)?;
        slot.write(&txn).unwrap_or_else(|e| self.lost_disk(&txn, e));
        Ok(Stored { volume: self, slot, txn: Arc::new(txn) })
    }

    fn sync_stored(&self, stored: &[Stored<'_>]) {
        if let Some(last) = stored.last() {
            Slot::sync(stored.iter().map(|s| &s.slot)).unwrap_or_else(|e| self.lost_disk(&last.txn, e));
        }
    }

    fn lost_disk(&self, txn: &Txn, e: Errno) -> ! {
        let seq = txn.header.position.seq;
        let dir = self.log.dir().display();
        fatal::stop(&format!(
            "writing transaction {seq} to {dir} failed: {e}; check the disk and start nasd again"
        ))
    }

    /// The end of the last transaction in the log of which every part is there.
    pub fn whole_tail(&self) -> Position {
        last_whole(&self.log, self.applied(), self.log.tail())
    }

    /// Holds applying, checkpoints and rewinds off for as long as the guard lives.
    pub fn hold_still(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.apply_lock.lock()
    }

    /// A primary that starts again has taken over, from its peers, transactions that it had sent to them itself:
    /// `data/` has them, or gets them here.
    pub fn apply_taken_over(&self) -> Result<(), ApplyError> {
        if !self.whole_here {
            while self.apply_next(true)?.is_some() {}
            return Ok(());
        }
        let _one = self.apply_lock.lock();
        let mut applied = self.applied.lock();
        *applied = last_whole(&self.log, *applied, self.log.tail());
        Ok(())
    }

    /// From now on `data/` has every change before the log has it: this node serves as primary.
    pub fn serves_as_primary(&self) -> Result<(), StateError> {
        let whole_in = crate::state::mount_of(&self.state_dir);
        self.state.update(|s| s.whole_in = whole_in)
    }

    /// The next transaction to apply, and whether the log has it whole.
    fn next_group(&self, from: u64) -> Option<Vec<u64>> {
        let mut seqs = Vec::new();
        for seq in from + 1.. {
            let e = self.log.entry(seq)?;
            seqs.push(seq);
            if !e.continues {
                return Some(seqs);
            }
        }
        None
    }

    /// The number that applying goes on with.
    pub fn wanted(&self) -> u64 {
        self.applied.lock().seq + 1
    }

    /// Applies the next whole transaction that the log holds, if there is one. Each was
    /// verified when it arrived, and is again when it has to be read back from the disk.
    ///
    /// `lenient`: as in a redo, because `data/` may hold some of it already.
    pub fn apply_next(&self, lenient: bool) -> Result<Option<Applied>, ApplyError> {
        let _one = self.apply_lock.lock();
        let from = *self.applied.lock();
        let Some(seqs) = self.next_group(from.seq) else {
            return Ok(None);
        };
        // Verified first and then read again: a transaction in many parts is not held in memory.
        let unread = |e: LogError| {
            tracing::error!("applying: {e}");
            ApplyError::Txn(crate::txn::TxnError::Damaged("it can't be read back from the log"))
        };
        let mut last = None;
        let mut rule = if lenient { Rule::Redo } else { Rule::Step };
        for &seq in &seqs {
            let txn = self.log.read(seq).map_err(unread)?;
            txn.check_ops()?;
            if txn.header.converge {
                rule = Rule::State;
            }
            last = Some(txn.header);
        }
        let changed = {
            let mut tree = self.tree.write();
            let mut applier = Applier::new(&mut tree, &self.data, rule).holding(self.hold.clone());
            if rule == Rule::Step {
                for &seq in &seqs {
                    each_op(&*self.log.read(seq).map_err(unread)?, |op| applier.apply(op))?;
                }
                applier.finish()?;
            } else if let Some(h) = last {
                restate(&mut applier, &self.log, from.seq + 1..=h.position.seq).map_err(|e| match e {
                    RestateError::Log(e) => unread(e),
                    RestateError::Apply(e) => e,
                })?;
            }
            std::mem::take(&mut applier.changed)
        };
        let paths = self.paths_of(&changed);
        self.invalidate(&changed);
        self.dirty.lock().extend(&changed.ids);
        let mut applied = Applied { paths, ..Applied::default() };
        if let Some(h) = last {
            *self.applied.lock() = h.position;
            applied.position = Some(h.position);
            applied.timestamp = h.timestamp;
        }
        Ok(Some(applied))
    }

    fn paths_of(&self, changed: &Changed) -> Vec<Vec<u8>> {
        let tree = self.tree.read();
        let mut paths: BTreeSet<Vec<u8>> = changed.gone.iter().cloned().collect();
        paths.extend(changed.ids.iter().filter_map(|&id| tree.user_path(id)).filter(|p| !p.is_empty()));
        paths.into_iter().collect()
    }

    pub(crate) fn invalidate(&self, changed: &Changed) {
        let Some(kernel) = self.kernel.read().clone() else {
            return;
        };
        for &id in &changed.ids {
            kernel.invalidate_inode(id);
        }
        for (parent, name) in &changed.entries {
            kernel.invalidate_entry(*parent, name);
        }
    }

    /// Drops what the kernel caches of an entry, which was changed by nobody's request.
    pub(crate) fn forget_entry(&self, parent: FileId, name: &[u8]) {
        self.invalidate(&Changed { entries: vec![(parent, name.to_vec())], ..Changed::default() });
    }

    /// Drops everything that the kernel caches of the volume: when a primary becomes a secondary.
    pub fn invalidate_all(&self) {
        let changed = {
            let tree = self.tree.read();
            let ids: BTreeSet<FileId> = tree.ids().collect();
            let entries = ids
                .iter()
                .filter_map(|&id| Some((id, tree.children(id)?)))
                .flat_map(|(id, c)| c.keys().map(move |n| (id, n.to_vec())))
                .collect();
            Changed { ids, entries, gone: Vec::new() }
        };
        self.invalidate(&changed);
    }

    // ---- history --------------------------------------------------------------------------------------------

    /// Gives up every transaction behind `fork`, because another history goes on from there, and everything pending.
    /// If anything of it may be in `data/`, the state file says that a comparison is needed before this returns.
    pub fn rewind_to(&self, fork: Position) -> Result<u64, RewindError> {
        let _one = self.apply_lock.lock();
        if self.applied.lock().seq > fork.seq || self.log.tail().seq > fork.seq {
            self.state.update(|s| s.needs_copy = true)?;
        }
        self.drop_pending();
        let n = self.log.set_aside_after(fork.seq)?;
        let mut applied = self.applied.lock();
        if applied.seq > fork.seq {
            *applied = fork;
        }
        Ok(n)
    }

    /// Gives up the parts of a transaction whose last part never came.
    pub fn drop_unfinished(&self) -> Result<u64, RewindError> {
        let _one = self.apply_lock.lock();
        let whole = last_whole(&self.log, *self.applied.lock(), self.log.tail());
        Ok(self.log.set_aside_after(whole.seq)?)
    }

    /// Starts a copy: what the log holds is set aside or dropped, and it goes on behind `base`, a position of the
    /// primary. Returns how many transactions were set aside.
    pub fn copy_begin(&self, base: Position, timestamp: i64) -> Result<u64, RewindError> {
        let _one = self.apply_lock.lock();
        self.state.update(|s| {
            s.needs_copy = true;
            s.in_sync = false;
        })?;
        self.drop_pending();
        let mut aside = 0;
        if self.log.tail() != base {
            // What the base's history contains is not diverged, only in the way.
            match self.log.position(base.seq) {
                Some(p) if p.hash == base.hash => {
                    aside = self.log.set_aside_after(base.seq)?;
                }
                _ => aside = self.log.restart_at(base, timestamp)?,
            }
        }
        self.log.restart_at_tail(base, timestamp);
        *self.applied.lock() = base;
        // What an earlier attempt left aside is in no manifest: it would get its name back with stale contents.
        let mut tree = self.tree.write();
        Applier::new(&mut tree, &self.data, Rule::State).holding(self.hold.clone()).finish()?;
        Ok(aside)
    }

    /// Applies operations of a copy: they state what the primary has, whatever is here.
    pub fn copy_ops(&self, payload: &[u8]) -> Result<(), ApplyError> {
        let _one = self.apply_lock.lock();
        let mut tree = self.tree.write();
        let mut applier = Applier::new(&mut tree, &self.data, Rule::State).holding(self.hold.clone());
        let mut names = Names::default();
        for op in Ops::new(payload) {
            names.note(&op.map_err(crate::txn::TxnError::from)?);
        }
        applier.settle(&names)?;
        for op in Ops::new(payload) {
            applier.restate(&op.map_err(crate::txn::TxnError::from)?)?;
        }
        Ok(())
    }

    /// Ends a copy: everything that was logged from the base on is redone, up to `end`, which the log must have; then
    /// the replica is a state that the primary had, and this is made durable.
    pub fn copy_end(&self, end: Position) -> Result<(), CopyError> {
        {
            let _one = self.apply_lock.lock();
            let mut tree = self.tree.write();
            let from = self.applied.lock().seq;
            let mut applier = Applier::new(&mut tree, &self.data, Rule::State).holding(self.hold.clone());
            restate::<CopyError>(&mut applier, &self.log, from + 1..=end.seq)?;
            if self.log.position(end.seq).is_none_or(|p| p.hash != end.hash) {
                return Err(CopyError::Base(end));
            }
            *self.applied.lock() = end;
        }
        self.data.sync_all().map_err(|e| CopyError::Sync(self.state_dir.clone(), e))?;
        self.dirty.lock().clear();
        self.state.update(|s| {
            s.checkpoint = end;
            s.needs_copy = false;
            s.clean = false;
        })?;
        self.invalidate_all();
        Ok(())
    }

    // ---- checkpoint and retention ---------------------------------------------------------------------------

    /// Makes `data/` durable up to the last whole transaction, so that older ones are not needed for a redo.
    pub fn checkpoint(&self) -> Result<Position, StateError> {
        let _one = self.apply_lock.lock();
        if self.state.get().needs_copy {
            return Ok(self.state.get().checkpoint);
        }
        // Taken before the dirty set: a file that changes in between is synced now and again next time.
        let position = *self.applied.lock();
        let dirty = std::mem::take(&mut *self.dirty.lock());
        // A failed fsync may have dropped the pages that it could not write, and a second one would succeed: the log
        // still has them, and the restart redoes it.
        let failed = |e: Errno| -> ! {
            fatal::stop(&format!(
                "checkpoint of {}: {e}; check the disk and start nasd again",
                self.data.path().display()
            ))
        };
        let mut everything = dirty.len() > DIRTY_MAX;
        let mut gone = false;
        for &id in &dirty {
            if everything {
                break;
            }
            // Found and opened in one: by a path alone it could be renamed in between, and its bytes missed.
            let file = {
                let tree = self.tree.read();
                match (tree.node(id).map(|n| n.kind), tree.path(id)) {
                    (Some(Kind::File | Kind::Dir), Some(path)) => Some(self.data.open_file(&path, false)),
                    // What can't be opened can't be synced alone: its directory's sync need not cover its attributes.
                    (Some(_), _) => {
                        everything = true;
                        None
                    }
                    (None, _) => {
                        gone = true;
                        None
                    }
                }
            };
            if let Some(Err(e)) = file.map(|f| f.and_then(rustix::fs::fsync)) {
                failed(e);
            }
        }
        // What was removed could not be synced. As long as its removal is not in the log it need not be on the disk
        // either, and after a crash the file would be back without its bytes: the removal is synced with all else.
        if (everything || gone && self.unsealed())
            && let Err(e) = self.data.sync_all()
        {
            failed(e);
        }
        self.state.update(|s| s.checkpoint = position)?;
        Ok(position)
    }

    /// Whether `data/` may hold changes that are not durable in the log.
    fn unsealed(&self) -> bool {
        // In this order, and the first held: a leader may have operations that are neither pending nor durable.
        let group = self.group.lock();
        group.leading || !self.ops.lock().is_empty()
    }

    /// Seals what is pending, checkpoints, and says in the state file that nothing is left to compare.
    pub fn close_clean(&self) -> Result<(), StateError> {
        let role = self.state.get().role;
        if role == Role::Primary && self.commit_and_wait().is_err() {
            return Ok(());
        }
        self.checkpoint()?;
        let whole = self.applied().seq == self.log.tail().seq && self.pending_bytes() == 0;
        self.state.update(|s| s.clean = whole && !s.needs_copy)?;
        Ok(())
    }

    /// Prunes the log; see [`Log::prune`].
    pub fn prune(&self, limits: &Retention, needed_from: u64, most: u64) -> Result<u64, LogError> {
        let s = self.state.get();
        if s.needs_copy {
            return Ok(0);
        }
        self.log.prune(limits, crate::commit::now_ns(), s.checkpoint.seq, needed_from, most)
    }

    /// The path of a file as a user of the mount sees it.
    pub fn user_path(&self, id: FileId) -> Option<Vec<u8>> {
        self.tree.read().user_path(id)
    }

    /// How many files the volume has.
    pub fn file_count(&self) -> usize {
        self.tree.read().len()
    }
}

/// The position of the last transaction in `from..=to` whose parts are all there.
fn last_whole(log: &Log, from: Position, to: Position) -> Position {
    (from.seq + 1..=to.seq)
        .rev()
        .filter_map(|seq| log.entry(seq))
        .find(|e| !e.continues)
        .map_or(from, |e| e.position)
}

fn each_op(txn: &Txn, mut f: impl FnMut(&Op<'_>) -> Result<(), ApplyError>) -> Result<(), ApplyError> {
    let payload = txn.payload()?;
    for op in Ops::new(&payload) {
        f(&op.map_err(crate::txn::TxnError::from)?)?;
    }
    Ok(())
}

enum RestateError {
    Log(LogError),
    Apply(ApplyError),
}

impl From<LogError> for RestateError {
    fn from(e: LogError) -> RestateError {
        RestateError::Log(e)
    }
}

impl From<ApplyError> for RestateError {
    fn from(e: ApplyError) -> RestateError {
        RestateError::Apply(e)
    }
}

/// Makes the files what they are behind the transactions, of which they may hold some already: see `apply`.
fn restate<E: From<LogError> + From<ApplyError>>(
    applier: &mut Applier<'_>,
    log: &Log,
    seqs: std::ops::RangeInclusive<u64>,
) -> Result<(), E> {
    let mut names = Names::default();
    for seq in seqs.clone() {
        each_op(&*log.read(seq)?, |op| {
            names.note(op);
            Ok(())
        })?;
    }
    applier.settle(&names)?;
    for seq in seqs {
        each_op(&*log.read(seq)?, |op| applier.restate(op))?;
    }
    Ok(applier.finish()?)
}

/// The state of a node that has never run.
pub fn new_state(volume: Option<VolumeId>, role: Role) -> State {
    let id = volume.unwrap_or(VolumeId([0; 16]));
    State {
        volume,
        role,
        epoch: 0,
        checkpoint: Position::genesis(id),
        clean: role == Role::Primary,
        in_sync: false,
        needs_copy: role == Role::Secondary,
        uncompared_epoch: 0,
        whole_in: None,
        led: crate::state::Led::No,
        out_of_set: BTreeSet::new(),
    }
}

/// A transaction that is durable in this node's log but not yet under its name.
#[must_use = "publish it: the watcher waits for its name"]
pub struct Stored<'a> {
    volume: &'a Volume,
    slot: Slot,
    txn: Arc<Txn>,
}

impl Stored<'_> {
    /// Its number.
    pub fn seq(&self) -> u64 {
        self.txn.header.position.seq
    }

    /// Gives the file its name in the log directory: the watcher sees it.
    pub fn publish(self) {
        if let Err(e) = self.volume.log.publish(self.slot, self.txn) {
            fatal::stop(&format!("naming a received transaction failed: {e}"));
        }
    }
}

/// A rewind failed.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The files.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// The end of a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The log does not lead to the end that the primary named.
    #[error("the copy ends at {0}, which this log does not hold; it starts anew")]
    Base(Position),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An operation.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The filesystem below.
    #[error("{0}: syncing the copy: {1}; check the disk")]
    Sync(PathBuf, #[source] Errno),
}
