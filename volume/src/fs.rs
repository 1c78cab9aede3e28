//! The volume as a filesystem: POSIX requests in, changes of `data/` and operations out.
//!
//! Every change goes the same way: take the operation lock, change `data/`, record the operation. What POSIX leaves to
//! the filesystem is decided here; permissions are checked by the kernel (`default_permissions`) before we are asked.

use crate::commit::{BACKGROUND_BYTES, PENDING_BYTES, Pending};
use crate::data::{At, Attr, rdev_from_fuse};
use crate::diff;
use crate::errors::FsError;
use crate::ids::{FileId, Time};
use crate::op::{Kind, Op, is_entry_name};
use crate::tree::Tree;
use crate::volume::Volume;
use parking_lot::MutexGuard;
use rustix::fs::{self, FallocateFlags, RenameFlags, SeekFrom, XattrFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Result<T> = std::result::Result<T, FsError>;

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o010;
const O_TRUNC: i32 = 0o1000;
const O_ACCMODE: i32 = 0o3;
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A time to set.
#[derive(Debug, Clone, Copy)]
pub enum SetTime {
    /// The server's clock.
    Now,
    /// This.
    At(Time),
}

/// What to change of a file's attributes.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// The file.
    pub id: FileId,
    /// What it is.
    pub kind: Kind,
}

/// An open regular file.
#[derive(Debug)]
pub struct OpenFile {
    /// Which one.
    pub id: FileId,
    pub(crate) file: OwnedFd,
    /// Something was written through it.
    written: AtomicBool,
}

/// Figures of the filesystem.
#[derive(Debug, Clone, Copy)]
pub struct StatFs {
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Blocks free for users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred block size.
    pub bsize: u32,
    /// Longest name.
    pub namelen: u32,
    /// Block size that the figures count in.
    pub frsize: u32,
}

fn name_ok(name: &[u8]) -> Result<()> {
    if name.len() > 255 {
        return Err(Errno::NAMETOOLONG.into());
    }
    if is_entry_name(name) { Ok(()) } else { Err(Errno::INVAL.into()) }
}

/// What is held can be read and removed, and nothing else: it is in no transaction.
fn not_held(id: FileId) -> Result<()> {
    if id.is_local() { Err(FsError::ReadOnly) } else { Ok(()) }
}

impl Volume {
    /// The operation lock, with writing allowed and room for one more operation.
    fn begin(&self) -> Result<MutexGuard<'_, Pending>> {
        loop {
            self.wait_writable()?;
            let pending = self.ops.lock();
            let bytes = pending.bytes();
            if bytes >= PENDING_BYTES {
                drop(pending);
                self.make_room()?;
                continue;
            }
            if bytes >= BACKGROUND_BYTES {
                self.bell.ring();
            }
            if self.writable() {
                return Ok(pending);
            }
        }
    }

    fn find_open(&self, id: FileId) -> Option<Arc<OpenFile>> {
        self.opens.lock().get(&id).and_then(|v| v.first().cloned())
    }

    /// Calls `f` with where `id` is reached. `named` says whether it is in the volume still, so that a change of it
    /// belongs into the log.
    fn at<T>(&self, id: FileId, tree: &Tree, f: impl FnOnce(&At, bool) -> Result<T>) -> Result<T> {
        if let Some(path) = tree.path(id) {
            return f(&At::Path(path), true);
        }
        match self.find_open(id) {
            Some(open) => f(&At::Fd(&open.file), false),
            None => Err(Errno::STALE.into()),
        }
    }

    /// The file at `parent`/`name`; also `.` and `..`, for a share's handles to files that the kernel forgot.
    pub fn lookup(&self, parent: FileId, name: &[u8]) -> Result<Attr> {
        self.check_readable()?;
        let tree = self.tree.read();
        let id = match name {
            b"." => Some(parent),
            b".." => tree.parent(parent),
            _ if name.len() > 255 => return Err(Errno::NAMETOOLONG.into()),
            _ => tree.child(parent, name).or_else(|| tree.held(parent, name)),
        };
        let id = id.ok_or(Errno::NOENT)?;
        if tree.node(id).is_none() {
            return Err(Errno::STALE.into());
        }
        self.at(id, &tree, |at, _| Ok(self.data.attr(id, at)?))
    }

    /// A file's attributes.
    pub fn getattr(&self, id: FileId, open: Option<&OpenFile>) -> Result<Attr> {
        self.check_readable()?;
        let tree = self.tree.read();
        match open {
            Some(o) => Ok(self.data.attr(id, &At::Fd(&o.file))?),
            None => self.at(id, &tree, |at, _| Ok(self.data.attr(id, at)?)),
        }
    }

    /// Changes attributes.
    pub fn setattr(
        &self,
        caller: Caller,
        id: FileId,
        set: &SetAttr,
        open: Option<&OpenFile>,
    ) -> Result<Attr> {
        not_held(id)?;
        let mut p = self.begin()?;
        let tree = self.tree.read();
        self.at(id, &tree, |at, named| {
            let before = self.data.attr(id, at)?;
            let mut log = Recorder { p: &mut p, id, named };
            if let Some(size) = set.size {
                if before.kind != Kind::File {
                    return Err(if before.kind == Kind::Dir { Errno::ISDIR } else { Errno::INVAL }.into());
                }
                match (open, at) {
                    (Some(o), _) => fs::ftruncate(&o.file, size)?,
                    (None, At::Fd(fd)) => fs::ftruncate(fd, size)?,
                    (None, At::Path(path)) => fs::ftruncate(self.data.open_file(path, true)?, size)?,
                }
                log.push(&Op::Truncate { id, size });
                if caller.uid != 0 {
                    self.kill_suid(at, &before, &mut log)?;
                }
            }
            // chown(2) to nobody is not nothing: it clears set-id bits, even for root, and it is all that the kernel sends
            // without saying what to change.
            let nothing =
                set.mode.is_none() && set.size.is_none() && set.atime.is_none() && set.mtime.is_none();
            if set.uid.is_some() || set.gid.is_some() || nothing {
                self.data.set_owner(at, set.uid, set.gid)?;
                let a = self.data.attr(id, at)?;
                log.push(&Op::Owner { id, uid: a.uid, gid: a.gid });
                if a.kind != Kind::Symlink {
                    // The filesystem below clears set-id bits with the owner.
                    log.push(&Op::Mode { id, mode: a.perm.into() });
                }
            }
            if let Some(mode) = set.mode {
                if before.kind == Kind::Symlink {
                    return Err(Errno::OPNOTSUPP.into());
                }
                self.data.set_mode(at, mode)?;
                log.push(&Op::Mode { id, mode: mode & 0o7777 });
            }
            if set.atime.is_some() || set.mtime.is_some() {
                let time = |t: Option<SetTime>| {
                    t.map(|t| match t {
                        SetTime::At(t) => t,
                        SetTime::Now => now(),
                    })
                };
                self.data.set_times(at, time(set.atime), time(set.mtime))?;
                log.touch();
            }
            Ok(self.data.attr(id, at)?)
        })
    }

    fn kill_suid(&self, at: &At, a: &Attr, log: &mut Recorder) -> Result<()> {
        let mode = u32::from(a.perm);
        let mut drop_bits = mode & S_ISUID;
        if mode & S_IXGRP != 0 {
            drop_bits |= mode & S_ISGID;
        }
        if drop_bits != 0 && a.kind == Kind::File {
            let mode = mode & !drop_bits;
            self.data.set_mode(at, mode)?;
            log.push(&Op::Mode { id: a.id, mode });
        }
        Ok(())
    }

    /// Where a symbolic link points.
    pub fn readlink(&self, id: FileId) -> Result<Vec<u8>> {
        self.check_readable()?;
        let tree = self.tree.read();
        let path = tree.path(id).ok_or(Errno::STALE)?;
        Ok(self.data.read_link(&path)?)
    }

    #[allow(clippy::too_many_arguments)]
    fn make(
        &self,
        caller: Caller,
        parent: FileId,
        name: &[u8],
        kind: Kind,
        mode: u32,
        umask: u32,
        rdev: u64,
        target: &[u8],
    ) -> Result<(Attr, Option<Arc<OpenFile>>)> {
        name_ok(name)?;
        let mut p = self.begin()?;
        let mut tree = self.tree.write();
        let dir = At::Path(tree.path(parent).ok_or(Errno::NOENT)?);
        if tree.children(parent).is_none() {
            return Err(Errno::NOTDIR.into());
        }
        if tree.child(parent, name).or_else(|| tree.held(parent, name)).is_some() {
            return Err(Errno::EXIST.into());
        }
        let path = tree.path_of(parent, name).ok_or(Errno::NOENT)?;
        let dir_attr = self.data.attr(parent, &dir)?;
        let inherits = kind != Kind::Symlink && self.data.xattr(&dir, ACL_DEFAULT).is_ok();
        let mut mode = if inherits { mode } else { mode & !umask } & 0o7777;
        let group_from_dir = u32::from(dir_attr.perm) & S_ISGID != 0;
        if group_from_dir && kind == Kind::Dir {
            mode |= S_ISGID;
        }
        let gid = if group_from_dir { dir_attr.gid } else { caller.gid };
        let id = self.new_id();
        self.data.make(&path, kind, mode, rdev, target)?;
        let at = At::Path(path);
        let At::Path(path) = &at else {
            return Err(Errno::INVAL.into());
        };
        let finish = || -> std::result::Result<(Attr, Option<OwnedFd>), Errno> {
            self.data.set_id(path, id)?;
            let made = self.data.attr(id, &at)?;
            if made.uid != caller.uid || made.gid != gid {
                self.data.set_owner(&at, Some(caller.uid), Some(gid))?;
            }
            // Without a default ACL the caller's umask is what counts, never that of this process.
            let wanted = if inherits { u32::from(made.perm) | (mode & 0o7000) } else { mode };
            if kind != Kind::Symlink && (mode & 0o7000 != 0 || wanted != u32::from(made.perm)) {
                self.data.set_mode(&at, wanted)?;
            }
            let file = if kind == Kind::File { Some(self.data.open_file(path, true)?) } else { None };
            Ok((self.data.attr(id, &at)?, file))
        };
        let (attr, file) = match finish() {
            Ok(done) => done,
            Err(e) => {
                // Nothing was recorded: it must not stay.
                let _ = self.data.remove(path, kind == Kind::Dir);
                return Err(e.into());
            }
        };
        tree.add_node(id, kind);
        tree.link(parent, name, id);
        let perm = if kind == Kind::Symlink { 0o777 } else { attr.perm.into() };
        p.push(&Op::Create {
            parent,
            id,
            kind,
            mode: perm,
            uid: attr.uid,
            gid: attr.gid,
            rdev,
            name,
            target,
        });
        p.touched.extend([parent, id]);
        if inherits {
            for acl in [ACL_ACCESS, ACL_DEFAULT] {
                if let Ok(value) = self.data.xattr(&at, acl) {
                    p.push(&Op::SetXattr { id, name: acl, value: &value });
                }
            }
        }
        let open = file.map(|file| Arc::new(OpenFile { id, file, written: AtomicBool::new(false) }));
        Ok((attr, open))
    }

    /// A regular file, FIFO, socket or device node.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: FileId,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Result<Attr> {
        let (kind, rdev) = match mode & 0o170_000 {
            0 | 0o100_000 => (Kind::File, 0),
            0o010_000 => (Kind::Fifo, 0),
            0o140_000 => (Kind::Socket, 0),
            0o020_000 => (Kind::Char, rdev_from_fuse(rdev)),
            0o060_000 => (Kind::Block, rdev_from_fuse(rdev)),
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(self.make(caller, parent, name, kind, mode, umask, rdev, b"")?.0)
    }

    /// A directory.
    pub fn mkdir(&self, caller: Caller, parent: FileId, name: &[u8], mode: u32, umask: u32) -> Result<Attr> {
        Ok(self.make(caller, parent, name, Kind::Dir, mode, umask, 0, b"")?.0)
    }

    /// A symbolic link.
    pub fn symlink(&self, caller: Caller, parent: FileId, name: &[u8], target: &[u8]) -> Result<Attr> {
        if target.is_empty() || target.contains(&0) {
            return Err(Errno::INVAL.into());
        }
        Ok(self.make(caller, parent, name, Kind::Symlink, 0o777, 0, 0, target)?.0)
    }

    /// A new regular file, open.
    pub fn create(
        &self,
        caller: Caller,
        parent: FileId,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> Result<(Attr, Arc<OpenFile>)> {
        match self.make(caller, parent, name, Kind::File, mode, umask, 0, b"") {
            Ok((attr, Some(open))) => {
                self.opens.lock().entry(attr.id).or_default().push(Arc::clone(&open));
                Ok((attr, open))
            }
            Ok((_, None)) => Err(Errno::IO.into()),
            // Somebody was faster, and nobody asked for it to be new: O_CREAT without O_EXCL.
            Err(FsError::Os(Errno::EXIST)) if flags & 0o200 == 0 => {
                let attr = self.lookup(parent, name)?;
                let open = self.open(caller, attr.id, flags)?;
                Ok((self.getattr(attr.id, Some(&open))?, open))
            }
            Err(e) => Err(e),
        }
    }

    /// Removes a name. A held file goes at the word of whoever uses this node's mount, on a secondary too.
    pub fn unlink(&self, parent: FileId, name: &[u8]) -> Result<()> {
        self.check_readable()?;
        if self.tree.read().held(parent, name).is_some() && self.drop_held(parent, name)? {
            return Ok(());
        }
        self.remove(parent, name, false)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: FileId, name: &[u8]) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: FileId, name: &[u8], dir: bool) -> Result<()> {
        let mut p = self.begin()?;
        let mut tree = self.tree.write();
        let id = tree.child(parent, name).ok_or(Errno::NOENT)?;
        let path = tree.path_of(parent, name).ok_or(Errno::NOENT)?;
        self.data.remove(&path, dir)?;
        tree.unlink(parent, name);
        forget_if_nameless(&mut tree, id);
        p.push(&Op::Remove { parent, id, name });
        p.touched.insert(parent);
        Ok(())
    }

    /// One more name.
    pub fn link(&self, id: FileId, parent: FileId, name: &[u8]) -> Result<Attr> {
        name_ok(name)?;
        not_held(id)?;
        let mut p = self.begin()?;
        let mut tree = self.tree.write();
        if tree.held(parent, name).is_some() {
            return Err(Errno::EXIST.into());
        }
        let from = tree.path(id).ok_or(Errno::NOENT)?;
        let to = tree.path_of(parent, name).ok_or(Errno::NOENT)?;
        self.data.link(&from, &to)?;
        tree.link(parent, name, id);
        p.push(&Op::Link { parent, id, name });
        p.touched.extend([parent, id]);
        Ok(self.data.attr(id, &At::Path(to))?)
    }

    /// `renameat2(2)`; `RENAME_WHITEOUT` is refused.
    pub fn rename(
        &self,
        parent: FileId,
        name: &[u8],
        new_parent: FileId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        name_ok(new_name)?;
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 {
            return Err(Errno::INVAL.into());
        }
        let mut p = self.begin()?;
        let mut tree = self.tree.write();
        if tree.held(parent, name).is_some() {
            return Err(FsError::ReadOnly);
        }
        let id = tree.child(parent, name).ok_or(Errno::NOENT)?;
        if tree.held(new_parent, new_name).is_some() {
            if flags & RENAME_EXCHANGE != 0 {
                return Err(FsError::ReadOnly);
            }
            if flags & RENAME_NOREPLACE != 0 {
                return Err(Errno::EXIST.into());
            }
        }
        let from = tree.path_of(parent, name).ok_or(Errno::NOENT)?;
        let to = tree.path_of(new_parent, new_name).ok_or(Errno::NOENT)?;
        self.data.rename(&from, &to, RenameFlags::from_bits_retain(flags))?;
        let other = tree.child(new_parent, new_name);
        if other == Some(id) {
            // Two names of one file, or the same name: rename(2) does nothing.
            return Ok(());
        }
        if flags & RENAME_EXCHANGE != 0 {
            let other_id = other.ok_or(Errno::NOENT)?;
            tree.unlink(parent, name);
            tree.unlink(new_parent, new_name);
            tree.link(parent, name, other_id);
            tree.link(new_parent, new_name, id);
            p.push(&Op::Exchange {
                parent,
                id,
                other_parent: new_parent,
                other_id,
                name,
                other_name: new_name,
            });
        } else {
            if let Some(other) = other {
                // A redo must know everybody whom the log took a name from.
                p.push(&Op::Remove { parent: new_parent, id: other, name: new_name });
                tree.unlink(new_parent, new_name);
                forget_if_nameless(&mut tree, other);
            }
            tree.unlink(parent, name);
            tree.link(new_parent, new_name, id);
            p.push(&Op::Rename { parent, new_parent, id, name, new_name });
        }
        p.touched.extend([parent, new_parent]);
        Ok(())
    }

    /// Opens a regular file.
    pub fn open(&self, caller: Caller, id: FileId, flags: i32) -> Result<Arc<OpenFile>> {
        self.check_readable()?;
        if flags & O_ACCMODE != 0 && !self.writable() {
            self.wait_writable()?;
        }
        let open = {
            let tree = self.tree.read();
            let open = if let Some(path) = tree.path(id) {
                // For reading and writing: a handle opened on a secondary serves a writer after a promotion.
                let file = self.data.open_file(&path, tree.node(id).is_some_and(|n| n.kind == Kind::File))?;
                Arc::new(OpenFile { id, file, written: AtomicBool::new(false) })
            } else {
                self.find_open(id).ok_or(Errno::STALE)?
            };
            self.opens.lock().entry(id).or_default().push(Arc::clone(&open));
            open
        };
        if flags & O_TRUNC != 0 {
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            if let Err(e) = self.setattr(caller, id, &set, Some(&open)) {
                self.release(open);
                return Err(e);
            }
        }
        Ok(open)
    }

    /// Ends the use of an open file. One that was written is sealed soon, not only after the interval: who closes a file
    /// is done with it, and others may look for it on the secondary.
    pub fn release(&self, open: Arc<OpenFile>) {
        if open.written.swap(false, Ordering::Relaxed) {
            self.bell.ring();
        }
        let mut opens = self.opens.lock();
        if let Some(list) = opens.get_mut(&open.id) {
            if let Some(i) = list.iter().position(|o| Arc::ptr_eq(o, &open)) {
                list.swap_remove(i);
            }
            if list.is_empty() {
                opens.remove(&open.id);
            }
        }
    }

    /// Reads; fewer bytes than asked for only at the end of the file.
    pub fn read(&self, open: &OpenFile, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.check_readable()?;
        // On a secondary this keeps an applier out: nobody reads half a transaction.
        let _tree = (!self.writable()).then(|| self.tree.read());
        Ok(crate::crashsafe::read_full_at(&open.file, buf, offset)?)
    }

    /// Writes. What the page cache already holds is compared, and only the difference is logged.
    pub fn write(&self, open: &OpenFile, offset: u64, data: &[u8], kill_suid: bool) -> Result<usize> {
        let id = open.id;
        not_held(id)?;
        let mut p = self.begin()?;
        let named = self.tree.read().node(id).is_some();
        let mut old = std::mem::take(&mut p.scratch);
        let cached = if named { read_cached(&open.file, &mut old, data.len(), offset) } else { 0 };
        let mut done = 0;
        let mut failed = None;
        while done < data.len() {
            match rustix::io::pwrite(&open.file, &data[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        if named {
            diff::changed(&old[..cached.min(done)], &data[..done], |r| {
                p.push(&Op::Write { id, offset: offset + r.start as u64, data: &data[r] });
            });
            // Also when nothing was written: the filesystem below sets the time before it finds that it is full.
            p.touched.insert(id);
            open.written.store(true, Ordering::Relaxed);
        }
        p.scratch = old;
        if kill_suid && done > 0 {
            let at = At::Fd(&open.file);
            let a = self.data.attr(id, &at)?;
            self.kill_suid(&at, &a, &mut Recorder { p: &mut p, id, named })?;
        }
        match failed {
            Some(e) if done == 0 => Err(e.into()),
            _ => Ok(done),
        }
    }

    /// The entries of a directory, with `.` and `..`, as they are now.
    pub fn readdir(&self, id: FileId) -> Result<Vec<DirEntry>> {
        self.check_readable()?;
        let tree = self.tree.read();
        let children = tree.children(id).ok_or(Errno::NOENT)?;
        let mut entries = Vec::with_capacity(children.len() + 2);
        entries.push(DirEntry { name: b".".to_vec(), id, kind: Kind::Dir });
        let parent = tree.parent(id).unwrap_or(id);
        entries.push(DirEntry { name: b"..".to_vec(), id: parent, kind: Kind::Dir });
        for (name, &id) in children {
            let kind = tree.node(id).map_or(Kind::File, |n| n.kind);
            entries.push(DirEntry { name: name.to_vec(), id, kind });
        }
        for (name, id) in tree.held_in(id).filter(|(name, _)| !children.contains_key(*name)) {
            entries.push(DirEntry { name: name.to_vec(), id, kind: Kind::File });
        }
        Ok(entries)
    }

    /// Figures of the filesystem below.
    pub fn statfs(&self) -> Result<StatFs> {
        let s = self.data.statvfs()?;
        Ok(StatFs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: s.f_bsize as u32,
            namelen: 255,
            frsize: s.f_frsize as u32,
        })
    }

    /// Sets an extended attribute; ACLs are attributes.
    pub fn setxattr(&self, caller: Caller, id: FileId, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        if name == crate::data::ID_XATTR_BYTES {
            return Err(Errno::PERM.into());
        }
        not_held(id)?;
        let mut p = self.begin()?;
        let tree = self.tree.read();
        self.at(id, &tree, |at, named| {
            let before = self.data.attr(id, at)?;
            self.data.set_xattr(at, name, value, XattrFlags::from_bits_retain(flags as u32))?;
            let mut log = Recorder { p: &mut p, id, named };
            log.push(&Op::SetXattr { id, name, value });
            if name == ACL_ACCESS {
                // An access ACL and the permission bits are two views of one thing.
                let mut mode = u32::from(self.data.attr(id, at)?.perm);
                if caller.uid != 0 && caller.gid != before.gid {
                    mode &= !S_ISGID;
                    self.data.set_mode(at, mode)?;
                }
                log.push(&Op::Mode { id, mode });
            }
            Ok(())
        })
    }

    /// An extended attribute's value.
    pub fn getxattr(&self, id: FileId, name: &[u8]) -> Result<Vec<u8>> {
        self.check_readable()?;
        if name == crate::data::ID_XATTR_BYTES {
            return Err(Errno::NODATA.into());
        }
        let tree = self.tree.read();
        self.at(id, &tree, |at, _| Ok(self.data.xattr(at, name)?))
    }

    /// The names of a file's extended attributes, each with a NUL behind it.
    pub fn listxattr(&self, id: FileId) -> Result<Vec<u8>> {
        self.check_readable()?;
        let tree = self.tree.read();
        self.at(id, &tree, |at, _| Ok(self.data.xattr_names(at)?))
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, id: FileId, name: &[u8]) -> Result<()> {
        if name == crate::data::ID_XATTR_BYTES {
            return Err(Errno::PERM.into());
        }
        not_held(id)?;
        let mut p = self.begin()?;
        let tree = self.tree.read();
        self.at(id, &tree, |at, named| {
            self.data.remove_xattr(at, name)?;
            Recorder { p: &mut p, id, named }.push(&Op::RemoveXattr { id, name });
            Ok(())
        })
    }

    /// `fallocate(2)`; anybody but root takes set-id bits away with it, as with a write.
    pub fn fallocate(&self, caller: Caller, open: &OpenFile, mode: u32, offset: u64, len: u64) -> Result<()> {
        // A collapsed or inserted range can't be redone: a second time it moves other bytes.
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if mode & !known.bits() != 0 {
            return Err(Errno::OPNOTSUPP.into());
        }
        not_held(open.id)?;
        let mut p = self.begin()?;
        let named = self.tree.read().node(open.id).is_some();
        fs::fallocate(&open.file, FallocateFlags::from_bits_retain(mode), offset, len)?;
        let mut log = Recorder { p: &mut p, id: open.id, named };
        log.push(&Op::Allocate { id: open.id, mode, offset, len });
        if caller.uid != 0 {
            let at = At::Fd(&open.file);
            let a = self.data.attr(open.id, &at)?;
            self.kill_suid(&at, &a, &mut log)?;
        }
        Ok(())
    }

    /// `SEEK_DATA` (3) and `SEEK_HOLE` (4); the kernel does the others.
    pub fn lseek(&self, open: &OpenFile, offset: i64, whence: i32) -> Result<i64> {
        self.check_readable()?;
        let at = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let to = match whence {
            3 => SeekFrom::Data(at),
            4 => SeekFrom::Hole(at),
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(fs::seek(&open.file, to)? as i64)
    }

    /// Copies within the volume; the copy is logged as a write.
    pub fn copy_file_range(
        &self,
        caller: Caller,
        src: &OpenFile,
        src_off: u64,
        dst: &OpenFile,
        dst_off: u64,
        len: u64,
    ) -> Result<usize> {
        let mut buf = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(buf.len() as u64) as usize;
            let n = self.read(src, src_off + done, &mut buf[..n])?;
            if n == 0 {
                break;
            }
            let written = self.write(dst, dst_off + done, &buf[..n], caller.uid != 0)?;
            done += written as u64;
            if written < n {
                break;
            }
        }
        Ok(done as usize)
    }
}

/// Records changes of one file; of a file that has no name any more nothing is recorded: after a crash it is gone.
struct Recorder<'a, 'b> {
    p: &'a mut MutexGuard<'b, Pending>,
    id: FileId,
    named: bool,
}

impl Recorder<'_, '_> {
    fn push(&mut self, op: &Op<'_>) {
        if self.named {
            self.p.push(op);
            self.p.touched.insert(self.id);
        }
    }

    fn touch(&mut self) {
        if self.named {
            self.p.touched.insert(self.id);
        }
    }
}

fn forget_if_nameless(tree: &mut Tree, id: FileId) {
    if tree.node(id).is_some_and(|n| n.links.is_empty()) {
        tree.drop_node(id);
    }
}

fn now() -> Time {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Time { secs: t.tv_sec, nanos: t.tv_nsec as u32 }
}

/// What the page cache holds of `len` bytes at `offset`, without waiting for the disk. Returns how much.
fn read_cached(file: &OwnedFd, buf: &mut Vec<u8>, len: usize, offset: u64) -> usize {
    buf.resize(len.max(buf.len()), 0);
    let iov = std::io::IoSliceMut::new(&mut buf[..len]);
    rustix::io::preadv2(file, &mut [iov], offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
}
