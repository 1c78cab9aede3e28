//! `data/` on the filesystem below: the calls that read and change it, by path or by open file.
//!
//! Nothing here is durable until a checkpoint: `data/` is a cache of the log. Nothing here decides anything.

use crate::crashsafe;
use crate::ids::{FileId, Time};
use crate::op::Kind;
use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, RawMode, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The attribute that holds a file's id, big-endian. `trusted.` because symbolic links and special files
/// can have no `user.` one, and because only root sees it.
pub const ID_XATTR: &str = "trusted.nasd.id";
/// [`ID_XATTR`] as bytes.
pub const ID_XATTR_BYTES: &[u8] = ID_XATTR.as_bytes();

/// The attribute of a held file: the id of the directory that it is shown in, big-endian, and its name there.
pub const HELD_XATTR_BYTES: &[u8] = b"trusted.nasd.held";

type Result<T> = std::result::Result<T, Errno>;

/// A file's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Its id.
    pub id: FileId,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// Preferred size of I/O in bytes.
    pub blksize: u32,
    /// Permission bits, 07777.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Device number of a device node, as FUSE encodes it (12-bit major, 20-bit minor).
    pub rdev: u32,
    /// Last access, as set; reading does not change it.
    pub atime: Time,
    /// Last modification.
    pub mtime: Time,
    /// Last change of attributes, on this node.
    pub ctime: Time,
}

/// Where a file is reached: by its path below the state directory, or, when it has no name left, open.
#[derive(Debug)]
pub enum At<'a> {
    /// `data/…`, `limbo/…` or `held/…`.
    Path(Vec<u8>),
    /// An open file.
    Fd(&'a OwnedFd),
}

/// Paths up to this many bytes are given to the kernel as they are.
const ONE_CALL: usize = 4000;

/// What a path goes on from.
enum Start<'a> {
    Base(&'a OwnedFd),
    Below(OwnedFd),
}

impl AsFd for Start<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Start::Base(fd) => fd.as_fd(),
            Start::Below(fd) => fd.as_fd(),
        }
    }
}

/// The directory below the mount.
#[derive(Debug)]
pub struct DataDir {
    /// The state directory: paths are relative to it.
    base: OwnedFd,
    base_path: PathBuf,
}

/// Turns a device number of `stat(2)` into the 32 bits that FUSE carries.
fn rdev32(dev: u64) -> u32 {
    let (major, minor) = (fs::major(dev), fs::minor(dev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse of what FUSE sends.
pub fn rdev_from_fuse(dev: u32) -> u64 {
    let major = (dev & 0x000f_ff00) >> 8;
    let minor = (dev & 0xff) | ((dev >> 12) & 0x000f_ff00);
    fs::makedev(major, minor)
}

fn kind_of(mode: RawMode) -> Kind {
    match FileType::from_raw_mode(mode) {
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        _ => Kind::File,
    }
}

fn os(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path)
}

impl DataDir {
    /// Opens, and creates where missing, `data/`, `limbo/` and `held/` in `state_dir`.
    pub fn open(state_dir: &Path) -> Result<DataDir> {
        let base = crashsafe::open_dir(state_dir)?;
        for (name, mode) in [("data", 0o755), ("limbo", 0o700), ("held", 0o700)] {
            match fs::mkdirat(&base, name, Mode::from(mode)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(DataDir { base, base_path: state_dir.to_owned() })
    }

    /// A directory and what is left of `path` below it, short enough for the kernel: it takes paths of less than 4096
    /// bytes, and a volume can be deeper than that, if only because its mount point's path is shorter than `data/`'s.
    fn reach<'p>(&self, path: &'p [u8]) -> Result<(Start<'_>, &'p OsStr)> {
        let (mut dir, mut rest) = (Start::Base(&self.base), path);
        while rest.len() > ONE_CALL {
            // No name is longer than 255 bytes.
            let cut = rest[..ONE_CALL].iter().rposition(|&b| b == b'/').ok_or(Errno::NAMETOOLONG)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            dir = Start::Below(fs::openat(&dir, os(&rest[..cut]), flags, Mode::empty())?);
            rest = &rest[cut + 1..];
        }
        Ok((dir, os(rest)))
    }

    /// [`DataDir::reach`] for the calls that take no directory: those on extended attributes.
    fn named<T>(&self, path: &[u8], call: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        if self.base_path.as_os_str().len() + path.len() < ONE_CALL {
            return call(&self.base_path.join(os(path)));
        }
        let (dir, rest) = self.reach(path)?;
        call(&Path::new("/proc/self/fd").join(dir.as_fd().as_raw_fd().to_string()).join(rest))
    }

    /// `stat(2)`, with `id` filled in.
    pub fn attr(&self, id: FileId, at: &At) -> Result<Attr> {
        let st = match at {
            At::Path(p) => {
                let (dir, p) = self.reach(p)?;
                fs::statat(dir, p, AtFlags::SYMLINK_NOFOLLOW)?
            }
            At::Fd(fd) => fs::fstat(fd)?,
        };
        let time = |secs: i64, nanos: u64| Time { secs, nanos: nanos as u32 };
        Ok(Attr {
            id,
            kind: kind_of(st.st_mode),
            size: st.st_size as u64,
            blocks: st.st_blocks as u64,
            blksize: st.st_blksize as u32,
            perm: (st.st_mode & 0o7777) as u16,
            uid: st.st_uid,
            gid: st.st_gid,
            nlink: st.st_nlink as u32,
            rdev: rdev32(st.st_rdev),
            atime: time(st.st_atime, st.st_atime_nsec),
            mtime: time(st.st_mtime, st.st_mtime_nsec),
            ctime: time(st.st_ctime, st.st_ctime_nsec),
        })
    }

    /// What is at `path`, and its inode's number: equal for two names of one file.
    pub fn kind_and_inode(&self, path: &[u8]) -> Result<(Kind, u64)> {
        let (dir, p) = self.reach(path)?;
        let st = fs::statat(dir, p, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((kind_of(st.st_mode), st.st_ino))
    }

    /// The names in a directory, in no order, without `.` and `..`.
    pub fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in fs::Dir::new(self.open_file(path, false)?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// Opens a regular file or directory for reading, or a regular file for reading and writing.
    pub fn open_file(&self, path: &[u8], write: bool) -> Result<OwnedFd> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
        let (dir, p) = self.reach(path)?;
        fs::openat(dir, p, flags, Mode::empty())
    }

    /// Makes a file of `kind` that does not exist yet. The mode is subject to a default ACL of the directory.
    pub fn make(&self, path: &[u8], kind: Kind, mode: u32, rdev: u64, target: &[u8]) -> Result<()> {
        let bits = Mode::from_raw_mode(mode & 0o7777);
        let (dir, p) = self.reach(path)?;
        let node = |t, dev| fs::mknodat(&dir, p, t, bits, dev);
        match kind {
            Kind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                fs::openat(&dir, p, flags, bits).map(drop)
            }
            Kind::Dir => fs::mkdirat(&dir, p, bits),
            Kind::Symlink => fs::symlinkat(os(target), &dir, p),
            Kind::Fifo => node(FileType::Fifo, 0),
            Kind::Socket => node(FileType::Socket, 0),
            Kind::Char => node(FileType::CharacterDevice, rdev),
            Kind::Block => node(FileType::BlockDevice, rdev),
        }
    }

    /// Where a symbolic link points.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        let (dir, p) = self.reach(path)?;
        Ok(fs::readlinkat(dir, p, Vec::new())?.into_bytes())
    }

    /// Removes a name.
    pub fn remove(&self, path: &[u8], dir: bool) -> Result<()> {
        let flags = if dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let (dir, p) = self.reach(path)?;
        fs::unlinkat(dir, p, flags)
    }

    /// `rename(2)` with its flags.
    pub fn rename(&self, from: &[u8], to: &[u8], flags: fs::RenameFlags) -> Result<()> {
        let ((from_dir, from), (to_dir, to)) = (self.reach(from)?, self.reach(to)?);
        fs::renameat_with(from_dir, from, to_dir, to, flags)
    }

    /// One more name.
    pub fn link(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let ((from_dir, from), (to_dir, to)) = (self.reach(from)?, self.reach(to)?);
        fs::linkat(from_dir, from, to_dir, to, AtFlags::empty())
    }

    /// Permission bits; never called for symbolic links.
    pub fn set_mode(&self, at: &At, mode: u32) -> Result<()> {
        let bits = Mode::from_raw_mode(mode & 0o7777);
        match at {
            At::Path(p) => {
                let (dir, p) = self.reach(p)?;
                fs::chmodat(dir, p, bits, AtFlags::empty())
            }
            At::Fd(fd) => fs::fchmod(fd, bits),
        }
    }

    /// Owner and group; `None` leaves one as it is.
    pub fn set_owner(&self, at: &At, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match at {
            At::Path(p) => {
                let (dir, p) = self.reach(p)?;
                fs::chownat(dir, p, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
            At::Fd(fd) => fs::fchown(fd, uid, gid),
        }
    }

    /// Times; `None` leaves one as it is.
    pub fn set_times(&self, at: &At, atime: Option<Time>, mtime: Option<Time>) -> Result<()> {
        let spec = |t: Option<Time>| match t {
            Some(t) => Timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() },
            None => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
        };
        let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
        match at {
            At::Path(p) => {
                let (dir, p) = self.reach(p)?;
                fs::utimensat(dir, p, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            At::Fd(fd) => fs::futimens(fd, &times),
        }
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, at: &At, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        match at {
            At::Path(p) => self.named(p, |p| fs::lsetxattr(p, os(name), value, flags)),
            At::Fd(fd) => fs::fsetxattr(fd, os(name), value, flags),
        }
    }

    /// An extended attribute's value.
    pub fn xattr(&self, at: &At, name: &[u8]) -> Result<Vec<u8>> {
        grow(|buf| match at {
            At::Path(p) => self.named(p, |p| fs::lgetxattr(p, os(name), &mut *buf)),
            At::Fd(fd) => fs::fgetxattr(fd, os(name), buf),
        })
    }

    /// The names of the extended attributes that belong to the volume, each with a NUL behind it.
    pub fn xattr_names(&self, at: &At) -> Result<Vec<u8>> {
        let all = grow(|buf| match at {
            At::Path(p) => self.named(p, |p| fs::llistxattr(p, &mut *buf)),
            At::Fd(fd) => fs::flistxattr(fd, buf),
        })?;
        let mut ours = Vec::with_capacity(all.len());
        for name in all.split_inclusive(|&b| b == 0) {
            if ![Some(ID_XATTR_BYTES), Some(HELD_XATTR_BYTES)].contains(&name.strip_suffix(&[0])) {
                ours.extend_from_slice(name);
            }
        }
        Ok(ours)
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, at: &At, name: &[u8]) -> Result<()> {
        match at {
            At::Path(p) => self.named(p, |p| fs::lremovexattr(p, os(name))),
            At::Fd(fd) => fs::fremovexattr(fd, os(name)),
        }
    }

    /// The id that a file carries.
    pub fn id(&self, path: &[u8]) -> Result<Option<FileId>> {
        match self.xattr(&At::Path(path.to_vec()), ID_XATTR_BYTES) {
            Ok(v) => Ok(v.try_into().ok().map(|b| FileId(u64::from_be_bytes(b)))),
            Err(Errno::NODATA) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Gives a file its id.
    pub fn set_id(&self, path: &[u8], id: FileId) -> Result<()> {
        let at = At::Path(path.to_vec());
        self.set_xattr(&at, ID_XATTR_BYTES, &id.0.to_be_bytes(), XattrFlags::empty())
    }

    /// Makes the whole filesystem below durable.
    pub fn sync_all(&self) -> Result<()> {
        fs::syncfs(&self.base)
    }

    /// The filesystem's figures.
    pub fn statvfs(&self) -> Result<fs::StatVfs> {
        fs::fstatvfs(&self.base)
    }

    /// The state directory.
    pub fn base(&self) -> impl AsFd + '_ {
        &self.base
    }

    /// The path of `data/` itself, for walks.
    pub fn path(&self) -> PathBuf {
        self.base_path.join("data")
    }
}

/// Calls `get` with a buffer that grows until the value fits.
fn grow(get: impl Fn(&mut Vec<u8>) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match get(&mut buf) {
            Ok(n) => {
                buf.truncate(n);
                return Ok(buf);
            }
            Err(Errno::RANGE) if buf.len() < 1 << 20 => buf.resize(buf.len() * 16, 0),
            Err(e) => return Err(e),
        }
    }
}
