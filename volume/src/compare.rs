//! What a replica has that the primary has not, and the reverse: block checksums, and operations that make it equal.
//!
//! One comparison serves the first full copy, the way back after a rewind or behind a pruned log, the bytes that an
//! unclean stop left in `data/` without a transaction, and the scrub that an operator asks for. The primary may go
//! on writing meanwhile when the result is followed by a redo of everything logged since the comparison began.

use crate::data::{At, Attr};
use crate::ids::{FileId, Time};
use crate::op::{Kind, Op};
use crate::volume::Volume;
use rayon::prelude::*;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, VecDeque};

/// Content is compared in blocks of this many bytes.
pub const BLOCK: u64 = 64 << 10;
/// Operations are handed on in batches of about this many bytes.
const BATCH: usize = 4 << 20;
/// Files compared side by side before their differences are handed on: bounds the memory for checksums.
const CHUNK: usize = 64;

/// How a comparison gets on, in bytes of this node's files.
#[derive(Debug, Clone, Copy)]
pub enum Gone {
    /// So many more were read.
    Read(u64),
    /// So many more are equal, or are handed on.
    Settled(u64),
}

type Sum = [u8; 16];
const ZERO_BLOCK: Sum = [0; 16];

/// What a node has under one id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The file.
    pub id: FileId,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number as `stat(2)` has it.
    pub rdev: u32,
    /// Bytes, of a regular file.
    pub size: u64,
    /// Last access.
    pub atime: Time,
    /// Last modification.
    pub mtime: Time,
    /// Where a symbolic link points.
    pub target: Vec<u8>,
    /// Its names.
    pub links: Vec<(FileId, Vec<u8>)>,
    /// Its extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A checksum for each block; zeros for a block of zeros.
    pub sums: Vec<Sum>,
}

impl Item {
    /// Whether operations on `their` file can make it this one: what it is stays as it was made.
    fn can_become(&self, their: &Item) -> bool {
        let device = matches!(self.kind, Kind::Char | Kind::Block);
        self.kind == their.kind && self.target == their.target && (!device || self.rdev == their.rdev)
    }
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// Files compared.
    pub files: u64,
    /// Bytes compared.
    pub bytes: u64,
    /// Files that differ, are missing or too many.
    pub different: u64,
    /// Bytes of content sent.
    pub sent: u64,
}

/// A comparison stopped.
#[derive(Debug, thiserror::Error)]
pub enum CompareError<E> {
    /// `data/` can't be read.
    #[error("reading data/ for a comparison: {0}; check the disk")]
    Io(#[from] Errno),
    /// Whoever takes the operations.
    #[error("{0}")]
    Sink(E),
}

fn sum(block: &[u8]) -> Sum {
    if block.iter().all(|&b| b == 0) {
        return ZERO_BLOCK;
    }
    let mut s = Sum::default();
    s.copy_from_slice(&blake3::hash(block).as_bytes()[..16]);
    s
}

impl Volume {
    /// What this node has under `id`; `None` when it is gone. `read` is told how many bytes were.
    fn item(&self, id: FileId, read: &(impl Fn(u64) + Sync)) -> Result<Option<Item>, Errno> {
        let gone = |e| {
            if e == Errno::NOENT || e == Errno::STALE { Ok(None) } else { Err(e) }
        };
        let (mut item, file) = {
            let tree = self.tree.read();
            let Some(node) = tree.node(id) else {
                return Ok(None);
            };
            if node.links.iter().any(|l| l.0 == FileId::LIMBO) {
                return Ok(None);
            }
            let links = node.links.iter().map(|(p, n)| (*p, n.to_vec())).collect();
            let Some(path) = tree.path(id) else {
                return Ok(None);
            };
            let at = At::Path(path);
            let a: Attr = match self.data.attr(id, &at) {
                Ok(a) => a,
                Err(e) => return gone(e),
            };
            let names = match self.data.xattr_names(&at) {
                Ok(n) => n,
                Err(e) => return gone(e),
            };
            let mut xattrs = Vec::new();
            for name in names.split(|&b| b == 0).filter(|n| !n.is_empty()) {
                // What the system below keeps for itself is not the volume's.
                if name == b"security.selinux" {
                    continue;
                }
                xattrs.push((name.to_vec(), self.data.xattr(&at, name)?));
            }
            xattrs.sort();
            let At::Path(path) = at else { return Ok(None) };
            let target = if a.kind == Kind::Symlink { self.data.read_link(&path)? } else { Vec::new() };
            let file = if a.kind == Kind::File { Some(self.data.open_file(&path, false)?) } else { None };
            let size = if a.kind == Kind::File { a.size } else { 0 };
            let mode = if a.kind == Kind::Symlink { 0o777 } else { a.perm.into() };
            let item = Item {
                id,
                kind: a.kind,
                mode,
                uid: a.uid,
                gid: a.gid,
                rdev: a.rdev,
                size,
                atime: a.atime,
                mtime: a.mtime,
                target,
                links,
                xattrs,
                sums: Vec::new(),
            };
            (item, file)
        };
        item.links.sort();
        if let Some(file) = file {
            let mut buf = vec![0; BLOCK as usize];
            let mut at = 0;
            while at < item.size {
                let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                    Ok(to) => to.min(item.size),
                    Err(Errno::NXIO) => item.size,
                    Err(e) => return Err(e),
                };
                let hole = at;
                while at + BLOCK <= data {
                    item.sums.push(ZERO_BLOCK);
                    at += BLOCK;
                }
                read(at - hole);
                if at < item.size {
                    let want = BLOCK.min(item.size - at) as usize;
                    let n = crate::crashsafe::read_full_at(&file, &mut buf[..want], at)?;
                    item.sums.push(sum(&buf[..n]));
                    at += BLOCK;
                    read(want as u64);
                }
            }
        }
        Ok(Some(item))
    }

    /// All ids, directories before what they hold.
    fn ids_top_down(&self) -> Vec<FileId> {
        let tree = self.tree.read();
        let mut seen = BTreeSet::from([FileId::ROOT]);
        let mut queue = VecDeque::from([FileId::ROOT]);
        let mut ids = Vec::new();
        while let Some(id) = queue.pop_front() {
            ids.push(id);
            for &child in tree.children(id).into_iter().flat_map(|c| c.values()) {
                if seen.insert(child) {
                    queue.push_back(child);
                }
            }
        }
        ids
    }

    /// Bytes of all files, as they are now: what a comparison goes through.
    pub fn content_bytes(&self) -> u64 {
        let size = |&id: &FileId| {
            let path = self.tree.read().path(id)?;
            let attr = self.data.attr(id, &At::Path(path)).ok()?;
            (attr.kind == Kind::File).then_some(attr.size)
        };
        self.ids_top_down().par_iter().filter_map(size).sum()
    }

    /// What this node has, handed on in pieces, directories first. `read` is told how
    /// many bytes of the files were.
    pub fn manifest<E>(
        &self,
        read: impl Fn(u64) + Sync,
        mut sink: impl FnMut(Vec<Item>) -> Result<(), E>,
    ) -> Result<(), CompareError<E>> {
        for ids in self.ids_top_down().chunks(CHUNK) {
            let items: Vec<Option<Item>> =
                ids.par_iter().map(|&id| self.item(id, &read)).collect::<Result<_, _>>()?;
            sink(items.into_iter().flatten().collect()).map_err(CompareError::Sink)?;
        }
        Ok(())
    }

    /// Hands on operations (encoded, with their number) that make a replica with `theirs` equal to this node. With
    /// nothing to do nothing is handed on. The operations are for a lenient application. `gone` is told how
    /// it gets on.
    pub fn differences<E>(
        &self,
        mut theirs: HashMap<FileId, Item>,
        gone: impl Fn(Gone) + Sync,
        sink: impl FnMut(&[u8], u32) -> Result<(), E>,
    ) -> Result<Differences, CompareError<E>> {
        let mut out = Batch { buf: Vec::new(), count: 0, sink };
        let read = |n| gone(Gone::Read(n));
        let settled = |n| gone(Gone::Settled(n));
        let mut found = Differences::default();
        let mut extra: Vec<(FileId, Vec<u8>, FileId)> = Vec::new();
        // Times last: every other operation changes them.
        let mut times: Vec<(FileId, Time, Time)> = Vec::new();
        let mut dirs_touched: BTreeSet<FileId> = BTreeSet::new();
        let mut dir_times: HashMap<FileId, (Time, Time)> = HashMap::new();
        for ids in self.ids_top_down().chunks(CHUNK) {
            let ours: Vec<Option<Item>> =
                ids.par_iter().map(|&id| self.item(id, &read)).collect::<Result<_, _>>()?;
            for item in ours.into_iter().flatten() {
                found.files += 1;
                found.bytes += item.size;
                let mut their = theirs.remove(&item.id);
                if let Some(t) = their.take_if(|t| !item.can_become(t)) {
                    extra.extend(
                        t.links.into_iter().filter(|l| !item.links.contains(l)).map(|(p, n)| (p, n, item.id)),
                    );
                }
                if let Some(t) = &mut their {
                    // Reading sets it, a comparison too: it does not make files different.
                    t.atime = item.atime;
                }
                if item.kind == Kind::Dir {
                    dir_times.insert(item.id, (item.atime, item.mtime));
                }
                if their.as_ref() == Some(&item) {
                    settled(item.size);
                    continue;
                }
                found.different += 1;
                times.push((item.id, item.atime, item.mtime));
                make_names(&item, their.as_ref(), &mut out, &mut extra, &mut dirs_touched)?;
                if item.kind == Kind::File {
                    let sent = self.make_content(&item, their.as_ref(), settled, &mut out)?;
                    found.sent += sent;
                    settled(item.size - sent);
                }
                // Behind the content: a write takes privileges away.
                make_attributes(&item, their.as_ref(), &mut out)?;
            }
        }
        for item in theirs.into_values() {
            found.different += 1;
            extra.extend(item.links.iter().map(|(p, n)| (*p, n.clone(), item.id)));
        }
        for (parent, name, id) in &extra {
            dirs_touched.insert(*parent);
            out.push(&Op::Remove { parent: *parent, id: *id, name })?;
        }
        for id in dirs_touched {
            if let Some(&(atime, mtime)) = dir_times.get(&id) {
                times.push((id, atime, mtime));
            }
        }
        for (id, atime, mtime) in times {
            out.push(&Op::Times { id, atime, mtime })?;
        }
        out.flush()?;
        Ok(found)
    }

    fn make_content<E, F: FnMut(&[u8], u32) -> Result<(), E>>(
        &self,
        item: &Item,
        their: Option<&Item>,
        settled: impl Fn(u64),
        out: &mut Batch<F>,
    ) -> Result<u64, CompareError<E>> {
        let id = item.id;
        let (their_size, their_sums) = their.map_or((0, &[][..]), |t| (t.size, &t.sums[..]));
        if item.size != their_size {
            out.push(&Op::Truncate { id, size: item.size })?;
        }
        let changed = |(i, sum): (usize, &Sum)| match their_sums.get(i) {
            // A last block that was cut or has grown is another block, whatever its checksum says.
            Some(t) => {
                t != sum || (i as u64 + 1) * BLOCK > item.size.min(their_size) && item.size != their_size
            }
            None => *sum != ZERO_BLOCK,
        };
        let blocks: Vec<u64> =
            item.sums.iter().enumerate().filter(|&x| changed(x)).map(|(i, _)| i as u64 * BLOCK).collect();
        if blocks.is_empty() {
            return Ok(0);
        }
        let path = self.tree.read().path(id);
        let Some(path) = path else { return Ok(0) };
        let file = match self.data.open_file(&path, false) {
            Ok(f) => f,
            Err(Errno::NOENT) => return Ok(0),
            Err(e) => return Err(e.into()),
        };
        let mut buf = vec![0; BLOCK as usize];
        let mut sent = 0;
        for offset in blocks {
            let want = BLOCK.min(item.size - offset) as usize;
            let n = crate::crashsafe::read_full_at(&file, &mut buf[..want], offset)?;
            out.push(&Op::Write { id, offset, data: &buf[..n] })?;
            sent += n as u64;
            settled(n as u64);
        }
        Ok(sent)
    }
}

fn make_names<E, F: FnMut(&[u8], u32) -> Result<(), E>>(
    item: &Item,
    their: Option<&Item>,
    out: &mut Batch<F>,
    extra: &mut Vec<(FileId, Vec<u8>, FileId)>,
    dirs: &mut BTreeSet<FileId>,
) -> Result<(), CompareError<E>> {
    let id = item.id;
    let mut missing: Vec<&(FileId, Vec<u8>)> = item.links.iter().collect();
    if let Some(t) = their {
        missing.retain(|l| !t.links.contains(l));
        extra.extend(t.links.iter().filter(|l| !item.links.contains(l)).map(|(p, n)| (*p, n.clone(), id)));
    }
    // A creation of what is there already moves a directory to its place; files get one more name.
    let create = their.is_none() || item.kind == Kind::Dir;
    for (i, (parent, name)) in missing.into_iter().enumerate() {
        dirs.insert(*parent);
        if create && i == 0 {
            let rdev = crate::data::rdev_from_fuse(item.rdev);
            let rdev = if matches!(item.kind, Kind::Char | Kind::Block) { rdev } else { 0 };
            out.push(&Op::Create {
                parent: *parent,
                id,
                kind: item.kind,
                mode: item.mode,
                uid: item.uid,
                gid: item.gid,
                rdev,
                name,
                target: &item.target,
            })?;
        } else {
            out.push(&Op::Link { parent: *parent, id, name })?;
        }
    }
    Ok(())
}

fn make_attributes<E, F: FnMut(&[u8], u32) -> Result<(), E>>(
    item: &Item,
    their: Option<&Item>,
    out: &mut Batch<F>,
) -> Result<(), CompareError<E>> {
    let id = item.id;
    // The root is never created, and what is there already need not have its owner yet.
    if their.is_some_and(|t| (t.uid, t.gid) != (item.uid, item.gid)) {
        out.push(&Op::Owner { id, uid: item.uid, gid: item.gid })?;
    }
    let none = Vec::new();
    let their_xattrs = their.map_or(&none, |t| &t.xattrs);
    for (name, _) in their_xattrs {
        if !item.xattrs.iter().any(|(n, _)| n == name) {
            out.push(&Op::RemoveXattr { id, name })?;
        }
    }
    for (name, value) in &item.xattrs {
        // A change of the owner or the content takes this one away.
        if name == b"security.capability" || !their_xattrs.iter().any(|(n, v)| n == name && v == value) {
            out.push(&Op::SetXattr { id, name, value })?;
        }
    }
    if item.kind != Kind::Symlink {
        out.push(&Op::Mode { id, mode: item.mode })?;
    }
    Ok(())
}

struct Batch<F> {
    buf: Vec<u8>,
    count: u32,
    sink: F,
}

impl<F> Batch<F> {
    fn push<E>(&mut self, op: &Op<'_>) -> Result<(), CompareError<E>>
    where
        F: FnMut(&[u8], u32) -> Result<(), E>,
    {
        op.encode(&mut self.buf);
        self.count += 1;
        if self.buf.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush<E>(&mut self) -> Result<(), CompareError<E>>
    where
        F: FnMut(&[u8], u32) -> Result<(), E>,
    {
        if self.count > 0 {
            (self.sink)(&self.buf, self.count).map_err(CompareError::Sink)?;
            self.buf.clear();
            self.count = 0;
        }
        Ok(())
    }
}
