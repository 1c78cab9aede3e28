//! The least that FUSE costs: a mount that does nothing but pass calls on to the directory below. `make bench` measures it
//! beside the volume, so that the tables tell the way through FUSE from what the volume does.

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

const TTL: Duration = Duration::from_secs(1);

/// Serves these files of a directory, open for as long as it is mounted: number `n` is inode `n + 2`.
struct Bare {
    names: &'static [&'static str],
    files: Vec<File>,
}

/// Mounts the files `names`, made in `below`, at `mount`; unmounted when it is dropped.
///
/// # Errors
/// Of the directory below and of the mount.
pub fn mount(below: &Path, mount: &Path, names: &'static [&'static str]) -> io::Result<BackgroundSession> {
    let open = |name: &&str| {
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(below.join(name))
    };
    let files = names.iter().map(open).collect::<io::Result<Vec<File>>>()?;
    let mut config = Config::default();
    config.n_threads = Some(16);
    config.clone_fd = true;
    fuser::spawn_mount(Bare { names, files }, mount, &config)
}

impl Bare {
    fn file(&self, ino: INodeNo) -> Option<&File> {
        self.files.get(usize::try_from(ino.0).ok()?.checked_sub(2)?)
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let size = match self.file(ino) {
            Some(f) => f.metadata().ok()?.size(),
            None if ino == INodeNo::ROOT => 4096,
            None => return None,
        };
        let now = SystemTime::UNIX_EPOCH;
        let kind = if ino == INodeNo::ROOT { FileType::Directory } else { FileType::RegularFile };
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: 0o777,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_i32(e.raw_os_error().unwrap_or(5))
}

impl Filesystem for Bare {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel lacks it does without: then this is slower, and so is the volume.
        let _ = config.add_capabilities(InitFlags::FUSE_BIG_WRITES | InitFlags::FUSE_MAX_PAGES);
        let _ = config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV_V2);
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.names.iter().position(|n| OsStr::new(n) == name);
        match found.and_then(|i| self.attr(INodeNo(i as u64 + 2))) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = match (self.file(ino), size) {
            (Some(f), Some(size)) => f.set_len(size),
            _ => Ok(()),
        };
        match (set, self.attr(ino)) {
            (Ok(()), Some(attr)) => reply.attr(&TTL, &attr),
            (Err(e), _) => reply.error(errno(&e)),
            (Ok(()), None) => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.file(ino) else { return reply.error(Errno::ENOENT) };
        let mut buf = vec![0; size as usize];
        match file.read_at(&mut buf, offset) {
            Ok(n) => reply.data(&buf[..n]),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(file) = self.file(ino) else { return reply.error(Errno::ENOENT) };
        match file.write_all_at(data, offset) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.file(ino).map(File::sync_data) {
            Some(Ok(())) => reply.ok(),
            Some(Err(e)) => reply.error(errno(&e)),
            None => reply.error(Errno::ENOENT),
        }
    }
}
