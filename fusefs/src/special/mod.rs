//! `.nasd/`: files of no volume, in which a node says how it is and what happens.
//!
//! ```text
//! .nasd/         0755  found by its name, listed nowhere, as a snapshot directory: no backup and no `cp -r` meets it
//! .nasd/notify   0444  one line for each event; a read waits for the next
//! .nasd/status   0444  the node's status
//! .nasd/log/     0700  the transactions that the volume shows
//! .nasd/log/…    0400  one file each, as it is in the log directory
//! ```
//!
//! All are root's and read-only; the name is not to be had for a file. They are on a primary and on a secondary, with the
//! same ids on both ([`FileId::SPECIAL`]).

mod caller;
mod lines;
mod notify;
mod txn;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, OpenFlags, PollEvents,
    PollNotifier, ReplyData, ReplyDirectory, Request,
};
use nasd_volume::log::Entry;
use nasd_volume::{DirEntry, FileId, Kind, Volume};
use rustix::fs::OFlags;

use self::notify::{Nothing, Notify, Reader, Waiting};
use self::txn::TxnFile;
use crate::convert::{self, id};
use crate::handles::Handles;
use crate::shim::{GENERATION, READY, reply_with};

/// The directory's name in the root of the mount.
const NAME: &[u8] = b".nasd";

/// The ids, but for the transactions'.
const DIR: u64 = FileId::SPECIAL.start;
const NOTIFY: u64 = DIR + 1;
const STATUS: u64 = DIR + 2;
const LOG: u64 = DIR + 3;

/// From here on a transaction's id is its number, or the last bits of it: as many as fit. Its generation tells it from
/// another of that number.
const TXN: u64 = FileId::SPECIAL.end / 2;
const TXN_MASK: u64 = TXN - 1;

const ROOT: u64 = FileId::ROOT.0;

/// Transactions that are looked up at a time for a listing.
const BATCH: usize = 128;

/// What `.nasd/` shows of the node whose mount it is in.
pub trait NodeInfo: Send + Sync {
    /// What `.nasd/status` says, now. Must not wait for anything that waits for the mount.
    fn status(&self) -> Vec<u8>;
    /// Everything that happens from now on.
    fn subscribe(&self) -> Box<dyn Subscription>;
    /// Has `wake` called each time that a subscription may have got something new, after it has, until what is returned is
    /// dropped. `wake` does not wait for anything.
    fn on_news(&self, wake: Box<dyn Fn() + Send + Sync>) -> Box<dyn Send + Sync>;
}

/// What happens, for one reader of `.nasd/notify`.
pub trait Subscription: Send {
    /// The next lines, each whole and with its newline; empty when there is nothing new. Does not wait.
    fn next(&mut self) -> Vec<u8>;
}

/// Whether an id is a special file's, and no file of a volume.
pub(crate) fn is_special(ino: INodeNo) -> bool {
    FileId::SPECIAL.contains(&ino.0)
}

/// Whether this is the name of the directory.
pub(crate) fn is_reserved(parent: INodeNo, name: &[u8]) -> bool {
    id(parent) == FileId::ROOT && name == NAME
}

/// The directory, as the root would list it. Only the kernel itself must be told: a handle of the directory, as an NFS
/// server keeps it, leads to nothing unless its name can be found again.
pub(crate) fn listed() -> DirEntry {
    DirEntry { name: NAME.to_vec(), id: FileId(DIR), kind: Kind::Dir }
}

/// Whether the volume has a file of that name, from before the name was taken.
pub(crate) fn hides_a_file(volume: &Volume) -> bool {
    volume.lookup(FileId::ROOT, NAME).is_ok()
}

enum Handle {
    Notify(Arc<Reader>),
    /// As it was when the file was opened.
    Status(Vec<u8>),
    Txn(TxnFile),
}

/// `.nasd/` of one mount.
pub(crate) struct Special {
    volume: Arc<Volume>,
    node: Arc<dyn NodeInfo>,
    notify: Notify,
    handles: Handles<Handle>,
    since: SystemTime,
}

/// What a name or an id leads to.
type Found = (FileAttr, Generation);

impl Special {
    pub(crate) fn new(volume: Arc<Volume>, node: Arc<dyn NodeInfo>) -> io::Result<Self> {
        let notify = Notify::new(Arc::clone(&node))?;
        Ok(Self { volume, node, notify, handles: Handles::new(), since: SystemTime::now() })
    }

    /// Lets everybody go who waits, for the mount to be taken down.
    pub(crate) fn close(&self) {
        self.notify.close();
    }

    pub(crate) fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<Found, Errno> {
        match (parent.0, name.as_bytes()) {
            // Asked for by whoever has a file handle from before, as an NFS server.
            (_, b".") => self.find(parent),
            (DIR, b"..") => match self.volume.lookup(FileId::ROOT, b".") {
                Ok(attr) => Ok((convert::attr(&attr), GENERATION)),
                Err(e) => Err(convert::errno(e)),
            },
            (ROOT, NAME) | (LOG, b"..") => self.find(INodeNo(DIR)),
            (DIR, b"notify") => self.find(INodeNo(NOTIFY)),
            (DIR, b"status") => self.find(INodeNo(STATUS)),
            (DIR, b"log") => self.find(INodeNo(LOG)),
            (LOG, name) => txn::named(&self.volume, name).map(|entry| self.txn(&entry)).ok_or(Errno::ENOENT),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn getattr(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        self.find(ino).map(|(attr, _)| attr)
    }

    fn find(&self, ino: INodeNo) -> Result<Found, Errno> {
        let attr = self.attr(ino);
        match ino.0 {
            DIR => Ok((FileAttr { kind: FileType::Directory, perm: 0o755, nlink: 3, ..attr }, GENERATION)),
            LOG => Ok((FileAttr { kind: FileType::Directory, perm: 0o700, nlink: 2, ..attr }, GENERATION)),
            NOTIFY | STATUS => Ok((attr, GENERATION)),
            _ => self.entry(ino).map(|entry| self.txn(&entry)).ok_or(Errno::ESTALE),
        }
    }

    /// As of a file that everybody may read and that is made when it is read, like those in `/proc`.
    fn attr(&self, ino: INodeNo) -> FileAttr {
        FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: FileType::RegularFile,
            perm: 0o444,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn txn(&self, entry: &Entry) -> Found {
        let time = convert::from_nanos(entry.timestamp);
        let attr = FileAttr {
            size: entry.file_len,
            blocks: entry.file_len.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            perm: 0o400,
            ..self.attr(txn_ino(entry))
        };
        // What the kernel has cached of another one of this number is that one's alone.
        let mut generation = [0; 8];
        generation.copy_from_slice(&entry.position.hash.0[..8]);
        (attr, Generation(u64::from_le_bytes(generation)))
    }

    /// The transaction that an id is of, if it is shown: the newest of those whose numbers end in these bits.
    fn entry(&self, ino: INodeNo) -> Option<Entry> {
        let newest = *txn::shown(&self.volume).end();
        let seq = newest.checked_sub(newest.wrapping_sub(ino.0) & TXN_MASK)?;
        txn::numbered(&self.volume, seq).filter(|entry| txn_ino(entry) == ino)
    }

    pub(crate) fn readdir(&self, ino: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        let fixed: &[(u64, u64, FileType, &str)] = match ino.0 {
            DIR => &[
                (1, DIR, FileType::Directory, "."),
                (2, ROOT, FileType::Directory, ".."),
                (3, NOTIFY, FileType::RegularFile, "notify"),
                (4, STATUS, FileType::RegularFile, "status"),
                (5, LOG, FileType::Directory, "log"),
            ],
            LOG => &[(1, LOG, FileType::Directory, "."), (2, DIR, FileType::Directory, "..")],
            _ => return reply.error(Errno::ENOTDIR),
        };
        for &(cookie, ino, kind, name) in fixed.iter().filter(|(cookie, ..)| *cookie > offset) {
            if reply.add(INodeNo(ino), cookie, kind, name) {
                return reply.ok();
            }
        }
        if ino.0 == LOG {
            self.list_log(offset, &mut reply);
        }
        reply.ok();
    }

    /// A transaction's cookie follows from its number: a listing goes on behind it, whatever was pruned meanwhile, and
    /// has every transaction once that was there all the time.
    fn list_log(&self, offset: u64, reply: &mut ReplyDirectory) {
        const DOTS: u64 = 2;
        let shown = txn::shown(&self.volume);
        let mut next = offset.saturating_sub(DOTS) + 1;
        loop {
            let batch = self.volume.log.entries(next..=*shown.end(), BATCH);
            let Some(last) = batch.last() else { return };
            next = last.position.seq + 1;
            for entry in &batch {
                let cookie = entry.position.seq + DOTS;
                if reply.add(txn_ino(entry), cookie, FileType::RegularFile, entry.file_name()) {
                    return;
                }
            }
        }
    }

    pub(crate) fn open(&self, ino: INodeNo, flags: OpenFlags) -> Result<(FileHandle, FopenFlags), Errno> {
        if OFlags::from_bits_retain(flags.0 as u32).intersects(OFlags::WRONLY | OFlags::RDWR) {
            return Err(Errno::EPERM);
        }
        // The kernel caches nothing of them, and asks whatever size they have.
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        let (handle, flags) = match ino.0 {
            // A stream has no position: without the lock on it one thread's read does not hold up another's.
            NOTIFY => {
                let stream = FopenFlags::FOPEN_STREAM | FopenFlags::FOPEN_NONSEEKABLE;
                (Handle::Notify(self.notify.open()), direct | stream)
            }
            STATUS => (Handle::Status(self.node.status()), direct),
            _ => {
                let entry = self.entry(ino).ok_or(Errno::ESTALE)?;
                (Handle::Txn(TxnFile::open(&self.volume.log, entry)?), direct)
            }
        };
        Ok((self.handles.insert(handle), flags))
    }

    pub(crate) fn release(&self, fh: FileHandle) {
        if let Some(handle) = self.handles.remove(fh)
            && let Handle::Notify(reader) = &*handle
        {
            self.notify.release(reader);
        }
    }

    pub(crate) fn read(
        &self,
        request: &Request,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        reply: ReplyData,
    ) {
        let size = size as usize;
        match self.handles.get(fh).as_deref() {
            None => reply.error(Errno::EBADF),
            Some(Handle::Status(text)) => {
                let rest = text.get(offset as usize..).unwrap_or_default();
                reply.data(&rest[..size.min(rest.len())]);
            }
            Some(Handle::Txn(file)) => {
                reply_with(reply, size, |buffer| file.read(&self.volume.log, offset, buffer));
            }
            Some(Handle::Notify(reader)) => {
                let nothing = if offset > 0 {
                    Nothing::End
                } else if OFlags::from_bits_retain(flags.0 as u32).contains(OFlags::NONBLOCK) {
                    Nothing::Again
                } else {
                    Nothing::Wait
                };
                let waiting = Waiting {
                    reply,
                    size,
                    pid: request.pid(),
                    unique: request.unique().into(),
                    since: Instant::now(),
                };
                self.notify.read(reader, waiting, nothing);
            }
        }
    }

    /// `wake` is to be told when there is something, if anybody waits for it.
    pub(crate) fn poll(&self, fh: FileHandle, wake: Option<PollNotifier>) -> PollEvents {
        match self.handles.get(fh).as_deref() {
            Some(Handle::Notify(reader)) => reader.poll(wake),
            _ => READY,
        }
    }
}

fn txn_ino(entry: &Entry) -> INodeNo {
    INodeNo(TXN | entry.position.seq & TXN_MASK)
}
