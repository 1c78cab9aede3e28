//! The operations that a transaction holds, and their bytes.
//!
//! Each operation names files by [`FileId`], never by path, so that applying one again finds the same
//! file whatever has been renamed since. All integers are little-endian. An operation is a tag byte and
//! its fields in the order of the table; a name or value is its length (`u16` for names, `u32` for data)
//! and its bytes.
//!
//! | tag | operation | fields |
//! | --- | --- | --- |
//! | 1 | create | parent u64, id u64, kind u8, mode u32, uid u32, gid u32, rdev u64, name, target |
//! | 2 | link | parent u64, id u64, name |
//! | 3 | remove | parent u64, id u64, name |
//! | 4 | rename | parent u64, new parent u64, id u64, name, new name |
//! | 5 | exchange | parent u64, id u64, other parent u64, other id u64, name, other name |
//! | 6 | write | id u64, offset u64, data |
//! | 7 | truncate | id u64, size u64 |
//! | 8 | allocate | id u64, mode u32, offset u64, length u64 |
//! | 9 | mode | id u64, mode u32 |
//! | 10 | owner | id u64, uid u32, gid u32 |
//! | 11 | times | id u64, atime (i64 s, u32 ns), mtime (i64 s, u32 ns) |
//! | 12 | set xattr | id u64, name, data |
//! | 13 | remove xattr | id u64, name |
//! | 14 | epoch start | node name |

use crate::ids::{FileId, Time};
use serde::{Deserialize, Serialize};

/// What kind of file an id stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Dir = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A FIFO.
    Fifo = 4,
    /// A socket's name.
    Socket = 5,
    /// A character device.
    Char = 6,
    /// A block device.
    Block = 7,
}

impl Kind {
    fn from_u8(n: u8) -> Option<Kind> {
        Some(match n {
            1 => Kind::File,
            2 => Kind::Dir,
            3 => Kind::Symlink,
            4 => Kind::Fifo,
            5 => Kind::Socket,
            6 => Kind::Char,
            7 => Kind::Block,
            _ => return None,
        })
    }
}

/// One change to the volume. Borrowed from the buffer that it is encoded in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op<'a> {
    /// A new file `id` at `parent`/`name`.
    Create {
        /// The directory.
        parent: FileId,
        /// The new file.
        id: FileId,
        /// What it is.
        kind: Kind,
        /// Permission bits, 07777.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Device number of a device node, else 0.
        rdev: u64,
        /// Its name.
        name: &'a [u8],
        /// Where a symbolic link points, else empty.
        target: &'a [u8],
    },
    /// One more name for `id`.
    Link {
        /// The directory.
        parent: FileId,
        /// The file.
        id: FileId,
        /// Its further name.
        name: &'a [u8],
    },
    /// `parent`/`name`, which is `id`, is removed.
    Remove {
        /// The directory.
        parent: FileId,
        /// The file, for finding that it is still the one.
        id: FileId,
        /// The name.
        name: &'a [u8],
    },
    /// `id` moves to a free name: what stood there is removed by an operation before this one.
    Rename {
        /// The old directory.
        parent: FileId,
        /// The new directory.
        new_parent: FileId,
        /// The file.
        id: FileId,
        /// The old name.
        name: &'a [u8],
        /// The new name.
        new_name: &'a [u8],
    },
    /// Two names swap what they stand for.
    Exchange {
        /// The first directory.
        parent: FileId,
        /// What stood there before.
        id: FileId,
        /// The second directory.
        other_parent: FileId,
        /// What stood there before.
        other_id: FileId,
        /// The first name.
        name: &'a [u8],
        /// The second name.
        other_name: &'a [u8],
    },
    /// Bytes at an offset.
    Write {
        /// The file.
        id: FileId,
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: &'a [u8],
    },
    /// The file's new size.
    Truncate {
        /// The file.
        id: FileId,
        /// In bytes.
        size: u64,
    },
    /// `fallocate(2)` with its mode bits.
    Allocate {
        /// The file.
        id: FileId,
        /// `FALLOC_FL_*`.
        mode: u32,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// New permission bits.
    Mode {
        /// The file.
        id: FileId,
        /// 07777.
        mode: u32,
    },
    /// New owner and group.
    Owner {
        /// The file.
        id: FileId,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The times that the file had when the transaction was sealed.
    Times {
        /// The file.
        id: FileId,
        /// Last access.
        atime: Time,
        /// Last modification.
        mtime: Time,
    },
    /// An extended attribute (an ACL is one).
    SetXattr {
        /// The file.
        id: FileId,
        /// The attribute's full name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// An extended attribute goes.
    RemoveXattr {
        /// The file.
        id: FileId,
        /// The attribute's full name.
        name: &'a [u8],
    },
    /// A node became primary: the first operation of an epoch.
    EpochStart {
        /// The node's name.
        node: &'a [u8],
    },
}

/// The payload of a transaction is not a sequence of operations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operation at byte {at} of the payload is malformed: {what}")]
pub struct OpError {
    /// Offset in the payload.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

struct Out<'b>(&'b mut Vec<u8>);

impl Out<'_> {
    fn u8(&mut self, n: u8) -> &mut Self {
        self.0.push(n);
        self
    }
    fn u32(&mut self, n: u32) -> &mut Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }
    fn u64(&mut self, n: u64) -> &mut Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }
    fn id(&mut self, id: FileId) -> &mut Self {
        self.u64(id.0)
    }
    /// Names, symbolic link targets and attribute names: the kernel bounds them below 64 KiB.
    fn name(&mut self, b: &[u8]) -> &mut Self {
        debug_assert!(u16::try_from(b.len()).is_ok());
        self.0.extend_from_slice(&(b.len() as u16).to_le_bytes());
        self.0.extend_from_slice(b);
        self
    }
    fn data(&mut self, b: &[u8]) -> &mut Self {
        self.u32(b.len() as u32);
        self.0.extend_from_slice(b);
        self
    }
    fn time(&mut self, t: Time) -> &mut Self {
        self.u64(t.secs as u64).u32(t.nanos)
    }
}

impl<'a> Op<'a> {
    /// The files that it is about, but for the directories of [`entries`](Self::entries).
    pub fn files(&self) -> impl Iterator<Item = FileId> + use<> {
        let both = match *self {
            Op::Create { id, .. }
            | Op::Link { id, .. }
            | Op::Remove { id, .. }
            | Op::Rename { id, .. }
            | Op::Write { id, .. }
            | Op::Truncate { id, .. }
            | Op::Allocate { id, .. }
            | Op::Mode { id, .. }
            | Op::Owner { id, .. }
            | Op::Times { id, .. }
            | Op::SetXattr { id, .. }
            | Op::RemoveXattr { id, .. } => [Some(id), None],
            Op::Exchange { id, other_id, .. } => [Some(id), Some(other_id)],
            Op::EpochStart { .. } => [None, None],
        };
        both.into_iter().flatten()
    }

    /// The entries that it changes: directory and name.
    pub fn entries(&self) -> impl Iterator<Item = (FileId, &'a [u8])> + use<'a> {
        let both = match *self {
            Op::Create { parent, name, .. }
            | Op::Link { parent, name, .. }
            | Op::Remove { parent, name, .. } => [Some((parent, name)), None],
            Op::Rename { parent, new_parent, name, new_name, .. } => {
                [Some((parent, name)), Some((new_parent, new_name))]
            }
            Op::Exchange { parent, other_parent, name, other_name, .. } => {
                [Some((parent, name)), Some((other_parent, other_name))]
            }
            Op::Write { .. }
            | Op::Truncate { .. }
            | Op::Allocate { .. }
            | Op::Mode { .. }
            | Op::Owner { .. }
            | Op::Times { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::EpochStart { .. } => [None, None],
        };
        both.into_iter().flatten()
    }

    /// Appends the operation's bytes to `buf`.
    pub fn encode(&self, buf: &mut Vec<u8>) {
        let mut o = Out(buf);
        match *self {
            Op::Create { parent, id, kind, mode, uid, gid, rdev, name, target } => {
                o.u8(1).id(parent).id(id).u8(kind as u8).u32(mode).u32(uid).u32(gid);
                o.u64(rdev).name(name).name(target);
            }
            Op::Link { parent, id, name } => {
                o.u8(2).id(parent).id(id).name(name);
            }
            Op::Remove { parent, id, name } => {
                o.u8(3).id(parent).id(id).name(name);
            }
            Op::Rename { parent, new_parent, id, name, new_name } => {
                o.u8(4).id(parent).id(new_parent).id(id).name(name).name(new_name);
            }
            Op::Exchange { parent, id, other_parent, other_id, name, other_name } => {
                o.u8(5).id(parent).id(id).id(other_parent).id(other_id);
                o.name(name).name(other_name);
            }
            Op::Write { id, offset, data } => {
                o.u8(6).id(id).u64(offset).data(data);
            }
            Op::Truncate { id, size } => {
                o.u8(7).id(id).u64(size);
            }
            Op::Allocate { id, mode, offset, len } => {
                o.u8(8).id(id).u32(mode).u64(offset).u64(len);
            }
            Op::Mode { id, mode } => {
                o.u8(9).id(id).u32(mode);
            }
            Op::Owner { id, uid, gid } => {
                o.u8(10).id(id).u32(uid).u32(gid);
            }
            Op::Times { id, atime, mtime } => {
                o.u8(11).id(id).time(atime).time(mtime);
            }
            Op::SetXattr { id, name, value } => {
                o.u8(12).id(id).name(name).data(value);
            }
            Op::RemoveXattr { id, name } => {
                o.u8(13).id(id).name(name);
            }
            Op::EpochStart { node } => {
                o.u8(14).name(node);
            }
        }
    }
}

/// Decodes a payload, operation by operation; stops at the first error.
#[derive(Debug)]
pub struct Ops<'a> {
    all: &'a [u8],
    at: usize,
    failed: bool,
}

impl<'a> Ops<'a> {
    /// The operations in `payload`.
    pub fn new(payload: &'a [u8]) -> Ops<'a> {
        Ops { all: payload, at: 0, failed: false }
    }

    fn err(&self, what: &'static str) -> OpError {
        OpError { at: self.at, what }
    }
    fn take(&mut self, n: usize) -> Result<&'a [u8], OpError> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.all.len());
        let end = end.ok_or_else(|| self.err("it ends too early"))?;
        let s = &self.all[self.at..end];
        self.at = end;
        Ok(s)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], OpError> {
        let s = self.take(N)?;
        s.try_into().map_err(|_| self.err("it ends too early"))
    }
    fn u8(&mut self) -> Result<u8, OpError> {
        Ok(self.array::<1>()?[0])
    }
    fn u32(&mut self) -> Result<u32, OpError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, OpError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn id(&mut self) -> Result<FileId, OpError> {
        match self.u64()? {
            // 0 is nobody; 2 and 3 are limbo and what is held, which no operation can name.
            0 | 2 | 3 => Err(self.err("not a file id")),
            n => Ok(FileId(n)),
        }
    }
    fn bytes16(&mut self) -> Result<&'a [u8], OpError> {
        let n = u16::from_le_bytes(self.array()?);
        self.take(n as usize)
    }
    /// A directory entry's name: never empty, `.`, `..`, nor with a slash or NUL, whatever a peer sends,
    /// so that no operation can reach outside the data directory.
    fn entry(&mut self) -> Result<&'a [u8], OpError> {
        let n = self.bytes16()?;
        if is_entry_name(n) { Ok(n) } else { Err(self.err("not a file name")) }
    }
    /// An attribute's name: without NUL.
    fn attr(&mut self) -> Result<&'a [u8], OpError> {
        let n = self.bytes16()?;
        if n.is_empty() || n.contains(&0) || n == crate::data::ID_XATTR_BYTES {
            return Err(self.err("not an attribute name"));
        }
        Ok(n)
    }
    fn data(&mut self) -> Result<&'a [u8], OpError> {
        let n = self.u32()?;
        self.take(n as usize)
    }
    fn time(&mut self) -> Result<Time, OpError> {
        let secs = self.u64()? as i64;
        match self.u32()? {
            nanos @ 0..1_000_000_000 => Ok(Time { secs, nanos }),
            _ => Err(self.err("nanoseconds of a second or more")),
        }
    }

    fn op(&mut self) -> Result<Op<'a>, OpError> {
        Ok(match self.u8()? {
            1 => {
                let (parent, id) = (self.id()?, self.id()?);
                let kind = self.u8()?;
                let kind = Kind::from_u8(kind).ok_or_else(|| self.err("unknown kind of file"))?;
                let (mode, uid, gid, rdev) = (self.u32()?, self.u32()?, self.u32()?, self.u64()?);
                let (name, target) = (self.entry()?, self.bytes16()?);
                if target.contains(&0) || (kind == Kind::Symlink) == target.is_empty() {
                    return Err(self.err("not a symbolic link's target"));
                }
                Op::Create { parent, id, kind, mode, uid, gid, rdev, name, target }
            }
            2 => Op::Link { parent: self.id()?, id: self.id()?, name: self.entry()? },
            3 => Op::Remove { parent: self.id()?, id: self.id()?, name: self.entry()? },
            4 => Op::Rename {
                parent: self.id()?,
                new_parent: self.id()?,
                id: self.id()?,
                name: self.entry()?,
                new_name: self.entry()?,
            },
            5 => Op::Exchange {
                parent: self.id()?,
                id: self.id()?,
                other_parent: self.id()?,
                other_id: self.id()?,
                name: self.entry()?,
                other_name: self.entry()?,
            },
            6 => Op::Write { id: self.id()?, offset: self.u64()?, data: self.data()? },
            7 => Op::Truncate { id: self.id()?, size: self.u64()? },
            8 => Op::Allocate { id: self.id()?, mode: self.u32()?, offset: self.u64()?, len: self.u64()? },
            9 => Op::Mode { id: self.id()?, mode: self.u32()? },
            10 => Op::Owner { id: self.id()?, uid: self.u32()?, gid: self.u32()? },
            11 => Op::Times { id: self.id()?, atime: self.time()?, mtime: self.time()? },
            12 => Op::SetXattr { id: self.id()?, name: self.attr()?, value: self.data()? },
            13 => Op::RemoveXattr { id: self.id()?, name: self.attr()? },
            14 => Op::EpochStart { node: self.bytes16()? },
            _ => return Err(self.err("unknown operation")),
        })
    }
}

/// Whether `n` can be the name of a directory entry.
pub fn is_entry_name(n: &[u8]) -> bool {
    !n.is_empty() && n.len() <= 255 && n != b"." && n != b".." && !n.iter().any(|&b| b == b'/' || b == 0)
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<Op<'a>, OpError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.at == self.all.len() {
            return None;
        }
        let r = self.op();
        self.failed = r.is_err();
        Some(r)
    }
}
