//! FUSE requests, one by one: translate, call the volume, reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use nasd_volume::{Attr, Caller, FileId, FsError, OpenFile, SetAttr, Volume};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use tracing::{debug, info, warn};

use crate::convert::{self, errno, id};
use crate::directory::Snapshot;
use crate::handles::Handles;
use crate::special::{self, Special};

/// How long the kernel may use attributes and names without asking, on a primary. Nobody but the
/// kernel changes them there, so this only bounds what a missed invalidation could cost. On a
/// secondary transactions are applied underneath, and the kernel asks each time.
const TTL: Duration = Duration::from_secs(1);

/// File ids are never used again, so one generation is enough for an exported file handle to mean
/// one file for good.
pub(crate) const GENERATION: Generation = Generation(0);

/// The largest request, in either direction.
pub(crate) const MAX_TRANSFER: u32 = 1 << 20;

/// Readahead and asynchronous reads in flight: some megabytes' worth, where the default of 16 stops
/// two sequential readers.
const MAX_BACKGROUND: u16 = 64;

/// What a COPY_FILE_RANGE may promise: the reply has 32 bits, and a whole number of pages lets the
/// caller go on aligned.
const MAX_COPY: u64 = (u32::MAX as u64) & !0xfff;

/// What poll(2) says of a file that is always ready.
pub(crate) const READY: PollEvents =
    PollEvents::POLLIN.union(PollEvents::POLLOUT).union(PollEvents::POLLRDNORM).union(PollEvents::POLLWRNORM);

/// Asked for one at a time, since asking for several fails when one is missing.
///
/// Not `FUSE_ATOMIC_O_TRUNC`: it saves an open with `O_TRUNC` one request, and with it the kernel lets a program that is
/// being executed be truncated, where open(2) says ETXTBSY.
const CAPABILITIES: [(InitFlags, &str); 8] = [
    (InitFlags::FUSE_ASYNC_READ, "parallel reads of one file"),
    (InitFlags::FUSE_BIG_WRITES, "writes of more than a page"),
    (InitFlags::FUSE_MAX_PAGES, "requests of 1 MiB"),
    (InitFlags::FUSE_DONT_MASK, "default ACLs instead of the umask"),
    (InitFlags::FUSE_PARALLEL_DIROPS, "parallel lookups in a directory"),
    // Without it the kernel asks for security.capability before each write.
    (InitFlags::FUSE_HANDLE_KILLPRIV_V2, "writes without a look at set-user-id"),
    // Nobody but nasd changes files below the kernel, and it says which. The kernel's own guess,
    // AUTO_INVAL_DATA, would drop the page cache at each new mtime and ask for it at each read.
    (InitFlags::FUSE_EXPLICIT_INVAL_DATA, "a page cache that lasts"),
    (InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP, "shared mmap on a secondary"),
];

/// Missing ones change what a program sees, so they are worth an operator's attention.
const WANTED: [(InitFlags, &str); 2] = [
    (
        InitFlags::FUSE_EXPORT_SUPPORT,
        "file handles that survive the kernel's caches: do not export this mount",
    ),
    (InitFlags::FUSE_POSIX_ACL, "POSIX ACLs: only modes are enforced"),
];

thread_local! {
    /// READ's buffer: zeroing a fresh megabyte each time would cost more than the copy.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An open file as this mount sees it.
struct Handle {
    file: Arc<OpenFile>,
    /// The program opened it with `O_DSYNC`, or with `O_SYNC`, which includes that bit.
    synchronous: bool,
    /// [`Volume::terms_lost`] when it was opened.
    term: u64,
}

/// An open directory.
struct Directory {
    /// Its listing as of the last rewind.
    listing: Mutex<Option<Arc<Snapshot>>>,
    /// [`Volume::terms_lost`] when it was opened.
    term: u64,
    /// The kernel itself looks for the name of a directory that it was given a handle of.
    for_kernel: bool,
}

/// The file system that `fuser` serves.
pub(crate) struct Shim {
    volume: Arc<Volume>,
    files: Handles<Handle>,
    directories: Handles<Directory>,
    special: Option<Arc<Special>>,
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

fn empty(reply: ReplyEmpty, result: Result<(), FsError>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// GETXATTR and LISTXATTR ask for the size first, with a buffer of none.
fn xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, FsError>) {
    match result {
        Err(error) => reply.error(errno(error)),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

/// Replies to a READ with what `read` puts into a buffer of the size that was asked for.
pub(crate) fn reply_with(
    reply: ReplyData,
    size: usize,
    read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) {
    READ_BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let buffer = &mut buffer[..size];
        match read(buffer) {
            Ok(count) => reply.data(&buffer[..count]),
            Err(error) => reply.error(error),
        }
    });
}

impl Shim {
    pub(crate) fn new(volume: Arc<Volume>, special: Option<Arc<Special>>) -> Self {
        Self { volume, files: Handles::new(), directories: Handles::new(), special }
    }

    /// The special files, if this is the id of one.
    fn special(&self, ino: INodeNo) -> Option<&Special> {
        if special::is_special(ino) { self.special.as_deref() } else { None }
    }

    /// The special files, if this name is one's: nobody gives, takes or changes it.
    fn special_at(&self, parent: INodeNo, name: &OsStr) -> Option<&Special> {
        if special::is_special(parent) || special::is_reserved(parent, name.as_bytes()) {
            self.special.as_deref()
        } else {
            None
        }
    }

    fn ttl(&self) -> Duration {
        if self.volume.writable() { TTL } else { Duration::ZERO }
    }

    fn entry(&self, reply: ReplyEntry, result: Result<Attr, FsError>) {
        match result {
            Ok(attr) => reply.entry(&self.ttl(), &convert::attr(&attr), GENERATION),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn attr(&self, reply: ReplyAttr, result: Result<Attr, FsError>) {
        match result {
            Ok(attr) => reply.attr(&self.ttl(), &convert::attr(&attr)),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// On a primary the page cache serves reads and mappings. A reader on a secondary goes around
    /// it, and so sees an applied transaction at once and whole, even while its pages are being
    /// invalidated. The choice is the open's and lasts: after a change of role both kinds are right,
    /// through the volume's invalidations, if not equally fast.
    ///
    /// Whoever may write goes through the cache in any case. A write around it drops the cached pages
    /// before but not after it, so a reader in between would leave a stale page, with nobody to
    /// invalidate it.
    fn open_flags(&self, flags: i32) -> FopenFlags {
        let flags = OFlags::from_bits_retain(flags as u32);
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR) || self.volume.writable() {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::FOPEN_DIRECT_IO
        }
    }

    fn opened(&self, file: Arc<OpenFile>, flags: i32) -> (FileHandle, FopenFlags) {
        let handle = self.files.insert(Handle {
            file,
            synchronous: OFlags::from_bits_retain(flags as u32).intersects(OFlags::DSYNC),
            term: self.volume.terms_lost(),
        });
        (handle, self.open_flags(flags))
    }

    /// Replies once the volume has committed, from whichever thread that ends on: no FUSE thread
    /// waits for a disk or a peer.
    fn commit(&self, reply: ReplyEmpty) {
        self.volume.commit(Box::new(move |result| empty(reply, result)));
    }

    /// Commits for an open file or directory, unless it was opened in a term that this node has lost since: what was done
    /// through it then may be gone, and must not seem durable because something else is.
    fn sync(&self, opened_in: Option<u64>, reply: ReplyEmpty) {
        if opened_in.is_some_and(|term| term != self.volume.terms_lost()) {
            return reply.error(Errno::EIO);
        }
        self.commit(reply);
    }

    fn written(&self, reply: ReplyWrite, result: Result<usize, FsError>, commit: bool) {
        match result {
            Ok(count) if commit => self.volume.commit(Box::new(move |result| match result {
                Ok(()) => reply.written(count as u32),
                Err(error) => reply.error(errno(error)),
            })),
            Ok(count) => reply.written(count as u32),
            Err(error) => reply.error(errno(error)),
        }
    }
}

impl Filesystem for Shim {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for (capability, what) in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                info!("this kernel's FUSE lacks {capability:?}: no {what}");
            }
        }
        for (capability, what) in WANTED {
            if config.add_capabilities(capability).is_err() {
                warn!("this kernel's FUSE lacks {capability:?}: no {what}");
            }
        }
        // Both calls fail with the nearest value that the kernel allows.
        if let Err(nearest) = config.set_max_write(MAX_TRANSFER) {
            config.set_max_write(nearest).ok();
        }
        if let Err(nearest) = config.set_max_readahead(MAX_TRANSFER) {
            debug!("the kernel offers {nearest} bytes of readahead before the mount");
            config.set_max_readahead(nearest).ok();
        }
        config.set_max_background(MAX_BACKGROUND).ok();
        // The default already, but the volume's times depend on it.
        config.set_time_granularity(Duration::from_nanos(1)).ok();
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(special) = &self.special {
            special.close();
        }
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if let Some(special) = self.special_at(parent, name) {
            return match special.lookup(parent, name) {
                Ok((attr, generation)) => reply.entry(&Duration::ZERO, &attr, generation),
                Err(error) => reply.error(error),
            };
        }
        self.entry(reply, self.volume.lookup(id(parent), name.as_bytes()));
    }

    /// The volume keeps nothing per looked-up file.
    fn forget(&self, _request: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, _request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        if let Some(special) = self.special(ino) {
            return match special.getattr(ino) {
                Ok(attr) => reply.attr(&Duration::ZERO, &attr),
                Err(error) => reply.error(error),
            };
        }
        let handle = fh.and_then(|fh| self.files.get(fh));
        let open = handle.as_ref().map(|handle| &*handle.file);
        self.attr(reply, self.volume.getattr(id(ino), open));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if self.special(ino).is_some() {
            return reply.error(Errno::EPERM);
        }
        let handle = fh.and_then(|fh| self.files.get(fh));
        let open = handle.as_ref().map(|handle| &*handle.file);
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let result = self.volume.setattr(caller(request), id(ino), &set, open);
        self.attr(reply, result);
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.volume.readlink(id(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        if self.special_at(parent, name).is_some() {
            return reply.error(Errno::EPERM);
        }
        let (caller, name) = (caller(request), name.as_bytes());
        let result = self.volume.mknod(caller, id(parent), name, mode, umask, rdev);
        self.entry(reply, result);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        if self.special_at(parent, name).is_some() {
            return reply.error(Errno::EPERM);
        }
        let (caller, name) = (caller(request), name.as_bytes());
        let result = self.volume.mkdir(caller, id(parent), name, mode, umask);
        self.entry(reply, result);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.special_at(parent, name).is_some() {
            return reply.error(Errno::EPERM);
        }
        empty(reply, self.volume.unlink(id(parent), name.as_bytes()));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.special_at(parent, name).is_some() {
            return reply.error(Errno::EPERM);
        }
        empty(reply, self.volume.rmdir(id(parent), name.as_bytes()));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        if self.special_at(parent, link_name).is_some() {
            return reply.error(Errno::EPERM);
        }
        let (name, target) = (link_name.as_bytes(), target.as_os_str().as_bytes());
        let result = self.volume.symlink(caller(request), id(parent), name, target);
        self.entry(reply, result);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if self.special_at(parent, name).or(self.special_at(newparent, newname)).is_some() {
            return reply.error(Errno::EPERM);
        }
        let result =
            self.volume.rename(id(parent), name.as_bytes(), id(newparent), newname.as_bytes(), flags.bits());
        empty(reply, result);
    }

    fn link(&self, _request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        if self.special(ino).or(self.special_at(newparent, newname)).is_some() {
            return reply.error(Errno::EPERM);
        }
        let result = self.volume.link(id(ino), id(newparent), newname.as_bytes());
        self.entry(reply, result);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if let Some(special) = self.special(ino) {
            return match special.open(ino, flags) {
                Ok((fh, open_flags)) => reply.opened(fh, open_flags),
                Err(error) => reply.error(error),
            };
        }
        match self.volume.open(caller(request), id(ino), flags.0) {
            Ok(file) => {
                let (fh, open_flags) = self.opened(file, flags.0);
                reply.opened(fh, open_flags);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        if self.special_at(parent, name).is_some() {
            return reply.error(Errno::EPERM);
        }
        let (caller, name) = (caller(request), name.as_bytes());
        match self.volume.create(caller, id(parent), name, mode, umask, flags) {
            Ok((attr, file)) => {
                let (fh, open_flags) = self.opened(file, flags);
                let attr = convert::attr(&attr);
                reply.created(&self.ttl(), &attr, GENERATION, fh, open_flags);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(special) = self.special(ino) {
            return special.read(request, fh, offset, size, flags, reply);
        }
        let Some(handle) = self.files.get(fh) else {
            return reply.error(Errno::EBADF);
        };
        reply_with(reply, size as usize, |buffer| {
            self.volume.read(&handle.file, offset, buffer).map_err(errno)
        });
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(handle) = self.files.get(fh) else {
            return reply.error(Errno::EBADF);
        };
        let kill_suid = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let result = self.volume.write(&handle.file, offset, data, kill_suid);
        // For O_SYNC, O_DSYNC and RWF_DSYNC the kernel sends an FSYNC of its own after a write through
        // the page cache (tests/mount.rs), and no handle that can write goes around it.
        self.written(reply, result, false);
    }

    /// Called at each close, where there is nothing to do. ENOSYS means that for good, and saves
    /// every later close a round trip; the kernel writes back dirty mappings all the same.
    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(special) = self.special(ino) {
            special.release(fh);
        } else if let Some(handle) = self.files.remove(fh) {
            self.volume.release(Arc::clone(&handle.file));
        }
        reply.ok();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        if self.special(ino).is_some() {
            return reply.ok();
        }
        self.sync(self.files.get(fh).map(|h| h.term), reply);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // A program's open has one of these: the C library's opendir the first, a 64-bit system call the other.
        let program = OFlags::DIRECTORY | OFlags::LARGEFILE;
        let directory = Directory {
            listing: Mutex::new(None),
            term: self.volume.terms_lost(),
            for_kernel: !OFlags::from_bits_retain(flags.0 as u32).intersects(program),
        };
        let fh = self.directories.insert(directory);
        reply.opened(fh, FopenFlags::empty());
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if let Some(special) = self.special(ino) {
            return special.readdir(ino, offset, reply);
        }
        let Some(directory) = self.directories.get(fh) else {
            return reply.error(Errno::EBADF);
        };
        // Offset 0 is the first read or a rewinddir, which must see what is there now.
        let kept = directory.listing.lock().clone().filter(|_| offset != 0);
        let snapshot = match kept {
            Some(snapshot) => snapshot,
            None => match self.volume.readdir(id(ino)) {
                Ok(mut entries) => {
                    entries.retain(|entry| self.special_at(ino, OsStr::from_bytes(&entry.name)).is_none());
                    if directory.for_kernel && id(ino) == FileId::ROOT && self.special.is_some() {
                        entries.push(special::listed());
                    }
                    let snapshot = Arc::new(Snapshot::new(entries));
                    *directory.listing.lock() = Some(Arc::clone(&snapshot));
                    snapshot
                }
                Err(error) => return reply.error(errno(error)),
            },
        };
        for (cookie, entry) in snapshot.after(offset) {
            let name = OsStr::from_bytes(&entry.name);
            if reply.add(convert::ino(entry.id), *cookie, convert::kind(entry.kind), name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.directories.remove(fh);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync(self.directories.get(fh).map(|d| d.term), reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.volume.statfs() {
            Ok(fs) => reply
                .statfs(fs.blocks, fs.bfree, fs.bavail, fs.files, fs.ffree, fs.bsize, fs.namelen, fs.frsize),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if self.special(ino).is_some() {
            return reply.error(Errno::EPERM);
        }
        let (caller, name) = (caller(request), name.as_bytes());
        let result = self.volume.setxattr(caller, id(ino), name, value, flags);
        empty(reply, result);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.special(ino).is_some() {
            return reply.error(Errno::ENODATA);
        }
        xattr(reply, size, self.volume.getxattr(id(ino), name.as_bytes()));
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.special(ino).is_some() {
            return xattr(reply, size, Ok(Vec::new()));
        }
        xattr(reply, size, self.volume.listxattr(id(ino)));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.special(ino).is_some() {
            return reply.error(Errno::EPERM);
        }
        empty(reply, self.volume.removexattr(id(ino), name.as_bytes()));
    }

    /// The mount has `default_permissions`: the kernel answers access(2) itself.
    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// Locks are not advertised, so the kernel keeps them, and this is never called.
    fn getlk(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::ENOSYS);
    }

    /// See [`Self::getlk`].
    fn setlk(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _request: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// Not ENOSYS for the volume's files, which are always ready: the kernel would ask for no other file either.
    fn poll(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        notifier: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let waits = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        let special = self.special(ino);
        reply.poll(special.map_or(READY, |special| special.poll(fh, waits.then_some(notifier))));
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(handle) = self.files.get(fh) else {
            return reply.error(Errno::EBADF);
        };
        let result = self.volume.fallocate(caller(request), &handle.file, mode as u32, offset, length);
        match result {
            // No FSYNC follows from the kernel here, cached or not.
            Ok(()) if handle.synchronous => self.commit(reply),
            result => empty(reply, result),
        }
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // Only for holes, of which special files have none to tell of.
        if self.special(ino).is_some() {
            return reply.error(Errno::EINVAL);
        }
        let Some(handle) = self.files.get(fh) else {
            return reply.error(Errno::EBADF);
        };
        match self.volume.lseek(&handle.file, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then copies by reading.
        if self.special(ino_in).is_some() {
            return reply.error(Errno::EXDEV);
        }
        let (Some(source), Some(target)) = (self.files.get(fh_in), self.files.get(fh_out)) else {
            return reply.error(Errno::EBADF);
        };
        let result = self.volume.copy_file_range(
            caller(request),
            &source.file,
            offset_in,
            &target.file,
            offset_out,
            len.min(MAX_COPY),
        );
        // As for fallocate.
        self.written(reply, result, target.synchronous);
    }
}
