//! Applying operations to `data/`: on the secondary as transactions arrive, and in a redo after a crash.
//!
//! One code for both, because both must end in the same state. A live replica is *strict*: an operation that does
//! not fit says that the replica is damaged. A redo is *lenient*: `data/` is then somewhere between the checkpoint
//! and the crash, later operations may already be there, and each operation sets what it says whatever it finds.
//! Replaying all of them in order converges on the state behind the last one:
//!
//! * a directory entry that the log touched ends as the last operation on it says;
//! * a file whose name is taken by a later file waits in limbo until its own later name comes, and is dropped at
//!   the end if none does;
//! * a byte that the log touched ends as the last write says; all others are as they were at the checkpoint.

use crate::crashsafe;
use crate::data::{At, DataDir};
use crate::ids::FileId;
use crate::op::{Kind, Op};
use crate::tree::Tree;
use rustix::fs::{self, FallocateFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// An operation could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The filesystem below refused.
    #[error("{what} of file {id} in data/: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Which file.
        id: FileId,
        /// What the system said.
        source: Errno,
    },
    /// The replica is not in the state that the transaction starts from.
    #[error(
        "{what} of file {id}: the replica is not what the primary had; it is compared with the primary again"
    )]
    Mismatch {
        /// The operation.
        what: &'static str,
        /// The file.
        id: FileId,
    },
    /// The transaction itself can't be read.
    #[error(transparent)]
    Txn(#[from] crate::txn::TxnError),
}

type Result<T> = std::result::Result<T, ApplyError>;

/// What an application changed, for caches and consumers.
#[derive(Debug, Default)]
pub struct Changed {
    /// Files whose content or attributes changed.
    pub ids: BTreeSet<FileId>,
    /// Directory entries that changed.
    pub entries: Vec<(FileId, Vec<u8>)>,
    /// Paths, as a user of the mount sees them, that were removed or renamed away.
    pub gone: Vec<Vec<u8>>,
}

/// A few files kept open for writing: a database's log goes to the same one for a long time.
#[derive(Debug, Default)]
pub struct FileCache(VecDeque<(FileId, Rc<OwnedFd>)>);

impl FileCache {
    const KEEP: usize = 32;

    fn get(&mut self, id: FileId, open: impl FnOnce() -> Result<OwnedFd>) -> Result<Rc<OwnedFd>> {
        if let Some(i) = self.0.iter().position(|(k, _)| *k == id) {
            if i > 0
                && let Some(hit) = self.0.remove(i)
            {
                self.0.push_front(hit);
            }
        } else {
            self.0.push_front((id, Rc::new(open()?)));
            self.0.truncate(Self::KEEP);
        }
        Ok(Rc::clone(&self.0[0].1))
    }

    fn forget(&mut self, id: FileId) {
        self.0.retain(|(k, _)| *k != id);
    }
}

/// Applies operations to `data/` and the tree. The caller holds the tree for as long as the state is between two
/// transactions.
pub struct Applier<'a> {
    /// The names.
    pub tree: &'a mut Tree,
    /// The files.
    pub data: &'a DataDir,
    /// Files kept open.
    pub files: FileCache,
    /// Whether operations set a state instead of stepping from one to the next.
    pub lenient: bool,
    /// What was changed.
    pub changed: Changed,
}

fn limbo_name(id: FileId) -> Vec<u8> {
    format!("{:016x}", id.0).into_bytes()
}

impl<'a> Applier<'a> {
    /// An applier on `tree` and `data`.
    pub fn new(tree: &'a mut Tree, data: &'a DataDir, lenient: bool) -> Applier<'a> {
        Applier { tree, data, files: FileCache::default(), lenient, changed: Changed::default() }
    }

    fn io(what: &'static str, id: FileId) -> impl FnOnce(Errno) -> ApplyError {
        move |source| ApplyError::Io { what, id, source }
    }

    /// In a redo a misfit is passed over; on a live replica it is damage.
    fn misfit(&self, what: &'static str, id: FileId) -> Result<()> {
        if self.lenient { Ok(()) } else { Err(ApplyError::Mismatch { what, id }) }
    }

    fn path(&self, id: FileId) -> Result<Vec<u8>> {
        self.tree.path(id).ok_or(ApplyError::Mismatch { what: "finding", id })
    }

    fn path_of(&self, parent: FileId, name: &[u8]) -> Result<Vec<u8>> {
        self.tree.path_of(parent, name).ok_or(ApplyError::Mismatch { what: "finding", id: parent })
    }

    fn file(&mut self, id: FileId) -> Result<Rc<OwnedFd>> {
        let (tree, data) = (&*self.tree, self.data);
        self.files.get(id, || {
            let path = tree.path(id).ok_or(ApplyError::Mismatch { what: "finding", id })?;
            data.open_file(&path, true).map_err(Self::io("opening", id))
        })
    }

    fn entry_changed(&mut self, parent: FileId, name: &[u8]) {
        if parent != FileId::LIMBO {
            self.changed.ids.insert(parent);
            self.changed.entries.push((parent, name.to_vec()));
        }
    }

    /// Applies one operation.
    pub fn apply(&mut self, op: &Op<'_>) -> Result<()> {
        match *op {
            Op::Create { parent, id, kind, mode, uid, gid, rdev, name, target } => {
                if id == FileId::ROOT || id == FileId::LIMBO {
                    return Err(ApplyError::Mismatch { what: "creation", id });
                }
                if self.tree.node(id).is_some_and(|n| n.kind == kind) {
                    self.misfit("creation", id)?;
                    self.own(id, kind, mode, uid, gid)?;
                    return self.set_entry(parent, name, id, false);
                }
                if self.tree.node(id).is_some() {
                    return Err(ApplyError::Mismatch { what: "creation", id });
                }
                self.create_in_limbo(id, kind, mode, rdev, target)?;
                self.own(id, kind, mode, uid, gid)?;
                self.set_entry(parent, name, id, false)
            }
            Op::Link { parent, id, name } => match self.tree.node(id) {
                None => self.misfit("link", id),
                Some(_) => self.set_entry(parent, name, id, true),
            },
            Op::Remove { parent, id, name } => {
                if self.tree.child(parent, name) != Some(id) {
                    return self.misfit("removal", id);
                }
                self.displace(parent, name, id)
            }
            Op::Rename { parent, new_parent, id, name, new_name } => {
                if self.tree.node(id).is_none() {
                    return self.misfit("rename", id);
                }
                self.rename(parent, name, new_parent, new_name, id)
            }
            Op::Exchange { parent, id, other_parent, other_id, name, other_name } => {
                self.exchange((parent, name, id), (other_parent, other_name, other_id))
            }
            Op::EpochStart { .. } => Ok(()),
            Op::Write { id, .. }
            | Op::Truncate { id, .. }
            | Op::Allocate { id, .. }
            | Op::Mode { id, .. }
            | Op::Owner { id, .. }
            | Op::Times { id, .. }
            | Op::SetXattr { id, .. }
            | Op::RemoveXattr { id, .. } => {
                let Some(node) = self.tree.node(id) else {
                    return self.misfit("change", id);
                };
                let kind = node.kind;
                self.changed.ids.insert(id);
                self.change(id, kind, op)
            }
        }
    }

    fn change(&mut self, id: FileId, kind: Kind, op: &Op<'_>) -> Result<()> {
        let content = matches!(op, Op::Write { .. } | Op::Truncate { .. } | Op::Allocate { .. });
        if (content && kind != Kind::File) || (matches!(op, Op::Mode { .. }) && kind == Kind::Symlink) {
            return Err(ApplyError::Mismatch { what: "change", id });
        }
        match *op {
            Op::Write { offset, data, .. } => {
                let file = self.file(id)?;
                crashsafe::write_all_at(&*file, data, offset).map_err(Self::io("writing", id))
            }
            Op::Truncate { size, .. } => {
                let file = self.file(id)?;
                fs::ftruncate(&*file, size).map_err(Self::io("truncation", id))
            }
            Op::Allocate { mode, offset, len, .. } => {
                let file = self.file(id)?;
                let mode = FallocateFlags::from_bits_retain(mode);
                match fs::fallocate(&*file, mode, offset, len) {
                    // A filesystem below that can't: what counts is what is read back.
                    Err(Errno::OPNOTSUPP) if !mode.contains(FallocateFlags::PUNCH_HOLE) => Ok(()),
                    r => r.map_err(Self::io("allocation", id)),
                }
            }
            Op::Mode { mode, .. } => {
                self.data.set_mode(&At::Path(self.path(id)?), mode).map_err(Self::io("mode", id))
            }
            Op::Owner { uid, gid, .. } => {
                let at = At::Path(self.path(id)?);
                self.data.set_owner(&at, Some(uid), Some(gid)).map_err(Self::io("owner", id))
            }
            Op::Times { atime, mtime, .. } => {
                let at = At::Path(self.path(id)?);
                self.data.set_times(&at, Some(atime), Some(mtime)).map_err(Self::io("times", id))
            }
            Op::SetXattr { name, value, .. } => {
                let at = At::Path(self.path(id)?);
                self.data.set_xattr(&at, name, value, XattrFlags::empty()).map_err(Self::io("attribute", id))
            }
            Op::RemoveXattr { name, .. } => {
                let at = At::Path(self.path(id)?);
                match self.data.remove_xattr(&at, name) {
                    Err(Errno::NODATA) => self.misfit("attribute removal", id),
                    r => r.map_err(Self::io("attribute", id)),
                }
            }
            _ => Ok(()),
        }
    }

    /// A new file gets its id, owner and mode before it gets a name in the volume, so that no crash leaves a
    /// nameless identity or an identity-less name there; and no default ACL of its directory touches it.
    fn create_in_limbo(&mut self, id: FileId, kind: Kind, mode: u32, rdev: u64, target: &[u8]) -> Result<()> {
        let name = limbo_name(id);
        let path = self.path_of(FileId::LIMBO, &name)?;
        let io = Self::io("creation", id);
        self.data
            .make(&path, kind, mode, rdev, target)
            .and_then(|()| self.data.set_id(&path, id))
            .map_err(io)?;
        self.tree.add_node(id, kind);
        self.tree.link(FileId::LIMBO, &name, id);
        self.changed.ids.insert(id);
        Ok(())
    }

    fn own(&mut self, id: FileId, kind: Kind, mode: u32, uid: u32, gid: u32) -> Result<()> {
        let at = At::Path(self.path(id)?);
        self.data.set_owner(&at, Some(uid), Some(gid)).map_err(Self::io("owner", id))?;
        if kind != Kind::Symlink {
            // After the owner: a change of owner clears set-id bits.
            self.data.set_mode(&at, mode).map_err(Self::io("mode", id))?;
        }
        Ok(())
    }

    /// Makes `parent`/`name` stand for `id`: by one more name (`add`) or by moving it here from its only one.
    fn set_entry(&mut self, parent: FileId, name: &[u8], id: FileId, add: bool) -> Result<()> {
        if self.tree.child(parent, name) == Some(id) {
            return Ok(());
        }
        if id == FileId::ROOT || id == FileId::LIMBO {
            return Err(ApplyError::Mismatch { what: "naming", id });
        }
        if self.tree.children(parent).is_none() {
            return self.misfit("naming", id);
        }
        if let Some(other) = self.tree.child(parent, name) {
            self.misfit("naming", other)?;
            self.displace(parent, name, other)?;
        }
        self.break_cycle(parent, id)?;
        let Some(node) = self.tree.node(id) else {
            return self.misfit("naming", id);
        };
        let first = node.links.first().cloned();
        let (several, in_limbo) =
            (node.links.len() > 1, first.as_ref().is_some_and(|f| f.0 == FileId::LIMBO));
        let one_more = node.kind != Kind::Dir && !in_limbo && (add || several);
        let to = self.path_of(parent, name)?;
        let from = self.path(id)?;
        if one_more {
            self.data.link(&from, &to).map_err(Self::io("link", id))?;
        } else {
            self.data.rename(&from, &to, RenameFlags::NOREPLACE).map_err(Self::io("rename", id))?;
            if let Some((p, n)) = first {
                self.tree.unlink(p, &n);
                self.entry_changed(p, &n);
            }
        }
        self.tree.link(parent, name, id);
        self.changed.ids.insert(id);
        self.entry_changed(parent, name);
        Ok(())
    }

    /// In a redo a directory may still lie inside the one that it will later hold: the outermost of them that is in
    /// the way waits in limbo.
    fn break_cycle(&mut self, parent: FileId, id: FileId) -> Result<()> {
        if id == parent || !self.tree.is_below(parent, id) {
            return if id == parent { Err(ApplyError::Mismatch { what: "naming", id }) } else { Ok(()) };
        }
        self.misfit("naming", id)?;
        let mut at = parent;
        while let Some(p) = self.tree.parent(at) {
            if p == id {
                break;
            }
            at = p;
        }
        let place = self.tree.node(at).and_then(|n| n.links.first().cloned());
        match place {
            Some((p, n)) => self.to_limbo(p, &n, at),
            None => Err(ApplyError::Mismatch { what: "naming", id }),
        }
    }

    /// Takes the name `parent`/`name` away from `id`; if it was the last one the file waits in limbo for a later one
    /// or for [`Applier::finish`].
    fn displace(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        let last = self.tree.node(id).is_none_or(|n| n.links.len() <= 1);
        if last {
            return self.to_limbo(parent, name, id);
        }
        let path = self.path_of(parent, name)?;
        self.data.remove(&path, false).map_err(Self::io("removal", id))?;
        self.note_gone(&path);
        self.tree.unlink(parent, name);
        self.changed.ids.insert(id);
        self.entry_changed(parent, name);
        Ok(())
    }

    fn to_limbo(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        let limbo = limbo_name(id);
        let from = self.path_of(parent, name)?;
        let to = self.path_of(FileId::LIMBO, &limbo)?;
        self.data.rename(&from, &to, RenameFlags::NOREPLACE).map_err(Self::io("removal", id))?;
        self.note_gone(&from);
        self.tree.unlink(parent, name);
        self.tree.link(FileId::LIMBO, &limbo, id);
        self.entry_changed(parent, name);
        Ok(())
    }

    fn note_gone(&mut self, path: &[u8]) {
        if let Some(user) = path.strip_prefix(b"data/") {
            self.changed.gone.push(user.to_vec());
        }
    }

    fn rename(
        &mut self,
        parent: FileId,
        name: &[u8],
        new_parent: FileId,
        new_name: &[u8],
        id: FileId,
    ) -> Result<()> {
        let here = self.tree.child(parent, name) == Some(id);
        if self.tree.child(new_parent, new_name) == Some(id) {
            self.misfit("rename", id)?;
            if here && (parent, name) != (new_parent, new_name) {
                // Both names stand: the rename(2) that the primary did left only the second.
                self.displace(parent, name, id)?;
            }
            return Ok(());
        }
        if !here {
            self.misfit("rename", id)?;
            return self.set_entry(new_parent, new_name, id, false);
        }
        if self.tree.children(new_parent).is_none() {
            return self.misfit("rename", id);
        }
        if let Some(other) = self.tree.child(new_parent, new_name) {
            self.displace(new_parent, new_name, other)?;
        }
        self.break_cycle(new_parent, id)?;
        let (from, to) = (self.path_of(parent, name)?, self.path_of(new_parent, new_name)?);
        self.data.rename(&from, &to, RenameFlags::NOREPLACE).map_err(Self::io("rename", id))?;
        self.note_gone(&from);
        self.tree.unlink(parent, name);
        self.tree.link(new_parent, new_name, id);
        self.changed.ids.insert(id);
        self.entry_changed(parent, name);
        self.entry_changed(new_parent, new_name);
        Ok(())
    }

    fn exchange(&mut self, a: (FileId, &[u8], FileId), b: (FileId, &[u8], FileId)) -> Result<()> {
        let (at_a, at_b) = (self.tree.child(a.0, a.1), self.tree.child(b.0, b.1));
        if at_a == Some(b.2) && at_b == Some(a.2) {
            return self.misfit("exchange", a.2);
        }
        if at_a != Some(a.2) || at_b != Some(b.2) {
            self.misfit("exchange", a.2)?;
        }
        for (parent, name, _) in [a, b] {
            if let Some(id) = self.tree.child(parent, name) {
                self.displace(parent, name, id)?;
            }
        }
        for (parent, name, id) in [(b.0, b.1, a.2), (a.0, a.1, b.2)] {
            if self.tree.node(id).is_some() {
                self.set_entry(parent, name, id, true)?;
            }
        }
        Ok(())
    }

    /// Drops what is left in limbo: files that have no name behind the last operation.
    pub fn finish(&mut self) -> Result<()> {
        let left: Vec<(Vec<u8>, FileId)> = match self.tree.children(FileId::LIMBO) {
            Some(c) => c.iter().map(|(n, id)| (n.to_vec(), *id)).collect(),
            None => Vec::new(),
        };
        for (name, id) in left {
            self.drop_below(FileId::LIMBO, &name, id)?;
        }
        Ok(())
    }

    fn drop_below(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        let below: Vec<(Vec<u8>, FileId)> = match self.tree.children(id) {
            Some(c) => c.iter().map(|(n, id)| (n.to_vec(), *id)).collect(),
            None => Vec::new(),
        };
        let dir = self.tree.node(id).is_some_and(|n| n.kind == Kind::Dir);
        for (n, child) in below {
            self.drop_below(id, &n, child)?;
        }
        let path = self.path_of(parent, name)?;
        self.data.remove(&path, dir).map_err(Self::io("removal", id))?;
        self.tree.unlink(parent, name);
        if self.tree.node(id).is_some_and(|n| n.links.is_empty()) {
            self.tree.drop_node(id);
            self.files.forget(id);
        }
        self.changed.ids.insert(id);
        Ok(())
    }
}
