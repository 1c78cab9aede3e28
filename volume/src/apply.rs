//! Applying operations to `data/`: on the secondary as transactions arrive, and in a redo after a crash.
//!
//! One code for both, because both must end in the same state. A live replica *steps* from one state of the primary
//! to the next: an operation that does not fit says that the replica is damaged. A redo *states*: `data/` is then
//! somewhere between the checkpoint and the crash, later operations may already be there, and replaying names one by
//! one would have to undo later ones to make room, without knowing which of them come back. So it takes two passes:
//!
//! * the first reads all operations and notes what each directory entry that they touch ends as ([`Names`]), and
//!   [`Applier::settle`] makes it so: what has to leave an entry waits in limbo, what is missing is created there, and
//!   from there everything goes to its place. No entry that the operations don't touch is changed, so a crash in the
//!   middle of a redo takes nothing away that the next one does not put back;
//! * the second, [`Applier::restate`], sets contents and attributes in order: a byte that the log touched ends as the
//!   last write says; all others are as they were at the checkpoint.

use crate::crashsafe;
use crate::data::{At, DataDir};
use crate::held::Hold;
use crate::ids::FileId;
use crate::op::{Kind, Op};
use crate::tree::Tree;
use rustix::fs::{self, FallocateFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

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

/// How much the files may differ from what the operations start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Not at all: each operation is a step from the state before it.
    Step,
    /// They hold some of the operations already, and perhaps changes that came after all of them and that no
    /// transaction holds: those stay (a comparison with the peer decides about them).
    Redo,
    /// At will: the operations state what the primary has.
    State,
}

/// What an entry of a directory ends as.
#[derive(Debug, Default)]
struct Place {
    /// Who stands there behind the last operation.
    end: Option<FileId>,
    /// Who stood there at any time, as the operations tell. Anybody else came later.
    known: Vec<FileId>,
}

#[derive(Debug)]
struct Creation {
    kind: Kind,
    mode: u32,
    rdev: u64,
    target: Box<[u8]>,
}

/// What a sequence of operations says of names.
#[derive(Debug, Default)]
pub struct Names {
    places: BTreeMap<(FileId, Box<[u8]>), Place>,
    created: HashMap<FileId, Creation>,
    linked: HashSet<FileId>,
}

impl Names {
    /// Takes the next operation.
    pub fn note(&mut self, op: &Op<'_>) {
        match *op {
            Op::Create { parent, id, kind, mode, rdev, name, target, .. } => {
                self.created.insert(id, Creation { kind, mode, rdev, target: target.into() });
                self.comes(parent, name, id);
            }
            Op::Link { parent, id, name } => {
                self.linked.insert(id);
                self.comes(parent, name, id);
            }
            Op::Remove { parent, id, name } => self.goes(parent, name, id),
            Op::Rename { parent, new_parent, id, name, new_name } => {
                self.goes(parent, name, id);
                self.comes(new_parent, new_name, id);
            }
            Op::Exchange { parent, id, other_parent, other_id, name, other_name } => {
                self.goes(parent, name, id);
                self.goes(other_parent, other_name, other_id);
                self.comes(parent, name, other_id);
                self.comes(other_parent, other_name, id);
            }
            _ => {}
        }
    }

    fn place(&mut self, parent: FileId, name: &[u8], id: FileId) -> &mut Place {
        let place = self.places.entry((parent, name.into())).or_default();
        if !place.known.contains(&id) {
            place.known.push(id);
        }
        place
    }

    fn comes(&mut self, parent: FileId, name: &[u8], id: FileId) {
        self.place(parent, name, id).end = Some(id);
    }

    fn goes(&mut self, parent: FileId, name: &[u8], id: FileId) {
        let place = self.place(parent, name, id);
        // In a statement of differences the old owner's removal comes behind the new one's arrival.
        place.end = place.end.filter(|&end| end != id);
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
    /// How much may differ.
    pub rule: Rule,
    /// What was changed.
    pub changed: Changed,
    /// Who needs files that the operations remove.
    pub hold: Option<Arc<dyn Hold>>,
}

fn limbo_name(id: FileId) -> Vec<u8> {
    format!("{:016x}", id.0).into_bytes()
}

impl<'a> Applier<'a> {
    /// An applier on `tree` and `data`.
    pub fn new(tree: &'a mut Tree, data: &'a DataDir, rule: Rule) -> Applier<'a> {
        Applier { tree, data, files: FileCache::default(), rule, changed: Changed::default(), hold: None }
    }

    /// With somebody who may need what the operations remove.
    #[must_use]
    pub fn holding(mut self, hold: Option<Arc<dyn Hold>>) -> Applier<'a> {
        self.hold = hold;
        self
    }

    pub(crate) fn files_forget(&mut self, id: FileId) {
        self.files.forget(id);
    }

    fn io(what: &'static str, id: FileId) -> impl FnOnce(Errno) -> ApplyError {
        move |source| ApplyError::Io { what, id, source }
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

    /// Applies one operation as a step ([`Rule::Step`]).
    pub fn apply(&mut self, op: &Op<'_>) -> Result<()> {
        match *op {
            Op::Create { parent, id, kind, mode, uid, gid, rdev, name, target } => {
                if self.tree.node(id).is_some() {
                    return Err(ApplyError::Mismatch { what: "creation", id });
                }
                self.create_in_limbo(id, kind, mode, rdev, target)?;
                self.own(id, kind, mode, uid, gid)?;
                self.enter(parent, name, id)
            }
            Op::Link { parent, id, name } => self.enter(parent, name, id),
            Op::Remove { parent, id, name } => {
                if self.tree.child(parent, name) != Some(id) {
                    return Err(ApplyError::Mismatch { what: "removal", id });
                }
                self.displace(parent, name, id)
            }
            Op::Rename { parent, new_parent, id, name, new_name } => {
                if self.tree.child(parent, name) != Some(id) {
                    return Err(ApplyError::Mismatch { what: "rename", id });
                }
                match self.tree.child(new_parent, new_name) {
                    Some(other) if other == id => return Err(ApplyError::Mismatch { what: "rename", id }),
                    Some(other) => self.displace(new_parent, new_name, other)?,
                    None => {}
                }
                if self.is_needed(parent, name, id) {
                    self.hold_copy(parent, name, id)?;
                }
                self.move_to((parent, name), (new_parent, new_name), id)
            }
            Op::Exchange { parent, id, other_parent, other_id, name, other_name } => {
                let (a, b) = ((parent, name), (other_parent, other_name));
                let there = (self.tree.child(a.0, a.1), self.tree.child(b.0, b.1));
                if there != (Some(id), Some(other_id)) {
                    return Err(ApplyError::Mismatch { what: "exchange", id });
                }
                // A directory may hold neither itself nor its own way to the root.
                if self.tree.is_below(a.0, other_id) || self.tree.is_below(b.0, id) {
                    return Err(ApplyError::Mismatch { what: "exchange", id });
                }
                for ((parent, name), id) in [(a, id), (b, other_id)] {
                    if self.is_needed(parent, name, id) {
                        self.hold_copy(parent, name, id)?;
                    }
                }
                self.park(a.0, a.1, id)?;
                self.move_to(b, a, other_id)?;
                self.move_to((FileId::LIMBO, &limbo_name(id)), b, id)
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
                    return Err(ApplyError::Mismatch { what: "change", id });
                };
                let kind = node.kind;
                self.changed.ids.insert(id);
                self.change(id, kind, op)
            }
        }
    }

    /// Sets contents and attributes as the operation says; names are settled already. A file that is not there, or is
    /// of another kind, is replaced or removed by a later operation.
    pub fn restate(&mut self, op: &Op<'_>) -> Result<()> {
        let (id, fits): (FileId, fn(Kind) -> bool) = match *op {
            Op::Create { id, kind, mode, uid, gid, .. } => {
                if self.tree.node(id).is_some_and(|n| n.kind == kind) {
                    self.changed.ids.insert(id);
                    self.own(id, kind, mode, uid, gid)?;
                }
                return Ok(());
            }
            Op::Link { .. }
            | Op::Remove { .. }
            | Op::Rename { .. }
            | Op::Exchange { .. }
            | Op::EpochStart { .. } => {
                return Ok(());
            }
            Op::Write { id, .. } | Op::Truncate { id, .. } | Op::Allocate { id, .. } => {
                (id, |k| k == Kind::File)
            }
            Op::Mode { id, .. } => (id, |k| k != Kind::Symlink),
            Op::Owner { id, .. }
            | Op::Times { id, .. }
            | Op::SetXattr { id, .. }
            | Op::RemoveXattr { id, .. } => (id, |_| true),
        };
        match self.tree.node(id).map(|n| n.kind) {
            Some(kind) if fits(kind) => {
                self.changed.ids.insert(id);
                self.change(id, kind, op)
            }
            _ => Ok(()),
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
                    // The filesystem below can't: what counts is what is read back.
                    Err(Errno::OPNOTSUPP) => Self::allocate_by_hand(&file, mode, offset, len),
                    r => r,
                }
                .map_err(Self::io("allocation", id))
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
                    Err(Errno::NODATA) if self.rule != Rule::Step => Ok(()),
                    r => r.map_err(Self::io("attribute", id)),
                }
            }
            _ => Ok(()),
        }
    }

    fn allocate_by_hand(
        file: &OwnedFd,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> std::result::Result<(), Errno> {
        let size = fs::fstat(file)?.st_size as u64;
        let end = offset.saturating_add(len);
        if mode.intersects(FallocateFlags::ZERO_RANGE | FallocateFlags::PUNCH_HOLE) {
            let zeros = vec![0; 64 << 10];
            let mut at = offset;
            while at < end.min(size) {
                let n = (end.min(size) - at).min(zeros.len() as u64);
                crashsafe::write_all_at(file, &zeros[..n as usize], at)?;
                at += n;
            }
        }
        if !mode.contains(FallocateFlags::KEEP_SIZE) && end > size {
            fs::ftruncate(file, end)?;
        }
        Ok(())
    }

    /// A new file gets its id, owner and mode before it gets a name in the volume, so that no crash leaves a
    /// nameless identity or an identity-less name there; and no default ACL of its directory touches it.
    fn create_in_limbo(&mut self, id: FileId, kind: Kind, mode: u32, rdev: u64, target: &[u8]) -> Result<()> {
        let name = limbo_name(id);
        if let Some(other) = self.tree.child(FileId::LIMBO, &name) {
            // A crash came between its creation and its identity.
            self.drop_below(FileId::LIMBO, &name, other)?;
        }
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

    /// Gives `id` the free name `parent`/`name`: out of limbo if it waits there, else as one more.
    fn enter(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        let misfit = || Err(ApplyError::Mismatch { what: "naming", id });
        let Some(node) = self.tree.node(id) else { return misfit() };
        if let Some((p, n)) = node.links.iter().find(|l| l.0 == FileId::LIMBO).cloned() {
            return self.move_to((p, &n), (parent, name), id);
        }
        if node.kind == Kind::Dir
            || self.tree.children(parent).is_none()
            || self.tree.child(parent, name).is_some()
        {
            return misfit();
        }
        self.one_more(parent, name, id)
    }

    fn one_more(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        let (from, to) = (self.path(id)?, self.path_of(parent, name)?);
        self.data.link(&from, &to).map_err(Self::io("link", id))?;
        self.tree.link(parent, name, id);
        self.changed.ids.insert(id);
        self.entry_changed(parent, name);
        Ok(())
    }

    /// Moves `id` from one name to a free one.
    fn move_to(&mut self, from: (FileId, &[u8]), to: (FileId, &[u8]), id: FileId) -> Result<()> {
        let free = self.tree.children(to.0).is_some() && self.tree.child(to.0, to.1).is_none();
        if !free || self.tree.is_below(to.0, id) {
            return Err(ApplyError::Mismatch { what: "naming", id });
        }
        let (old, new) = (self.path_of(from.0, from.1)?, self.path_of(to.0, to.1)?);
        self.data.rename(&old, &new, RenameFlags::NOREPLACE).map_err(Self::io("rename", id))?;
        self.note_gone(&old);
        self.tree.unlink(from.0, from.1);
        self.tree.link(to.0, to.1, id);
        if from.0 == FileId::LIMBO {
            self.tree.take_wanted(id);
        }
        self.changed.ids.insert(id);
        self.entry_changed(from.0, from.1);
        self.entry_changed(to.0, to.1);
        Ok(())
    }

    /// Takes the name `parent`/`name` away from `id`; if it was the last one the file waits in limbo for a later one
    /// or for [`Applier::finish`].
    fn displace(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        let last = self.tree.node(id).is_none_or(|n| n.links.len() <= 1);
        if last {
            return self.park(parent, name, id);
        }
        if self.is_needed(parent, name, id) {
            self.hold_copy(parent, name, id)?;
        }
        let path = self.path_of(parent, name)?;
        self.data.remove(&path, false).map_err(Self::io("removal", id))?;
        self.note_gone(&path);
        self.tree.unlink(parent, name);
        self.changed.ids.insert(id);
        self.entry_changed(parent, name);
        Ok(())
    }

    fn park(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        if id == FileId::ROOT || id == FileId::LIMBO {
            return Err(ApplyError::Mismatch { what: "removal", id });
        }
        if self.is_needed(parent, name, id) {
            self.tree.want_held(id, parent, name);
        }
        self.move_to((parent, name), (FileId::LIMBO, &limbo_name(id)), id)
    }

    fn note_gone(&mut self, path: &[u8]) {
        if let Some(user) = path.strip_prefix(b"data/") {
            self.changed.gone.push(user.to_vec());
        }
    }

    /// Makes every entry that `names` tells of what it ends as. See [`Rule`] for what else may be there.
    pub fn settle(&mut self, names: &Names) -> Result<()> {
        for (&id, creation) in &names.created {
            self.replace_unlike(id, creation)?;
        }
        let ends: HashSet<FileId> = names.places.values().filter_map(|p| p.end).collect();
        // Who does not stay leaves, and directories that go elsewhere too, so that none is in another's way.
        for ((parent, name), place) in &names.places {
            if let Some(id) = self.tree.child(*parent, name)
                && place.end != Some(id)
                && (place.known.contains(&id) || (self.rule == Rule::State && place.end.is_some()))
            {
                if ends.contains(&id) && self.is_needed(*parent, name, id) {
                    self.hold_copy(*parent, name, id)?;
                }
                self.set_aside(*parent, name, id)?;
            }
            // A crash came when it had left already.
            for &id in place.known.iter().filter(|&&id| place.end != Some(id)) {
                if self.tree.child(FileId::LIMBO, &limbo_name(id)) == Some(id)
                    && self.is_needed(*parent, name, id)
                {
                    self.tree.want_held(id, *parent, name);
                }
            }
            if let Some(id) = place.end
                && self.rule == Rule::State
                && self.tree.child(*parent, name) != Some(id)
                && self.tree.node(id).is_some_and(|n| n.kind == Kind::Dir)
                && let Some((p, n)) = self.tree.node(id).and_then(|n| n.links.first().cloned())
                && p != FileId::LIMBO
            {
                self.park(p, &n, id)?;
            }
        }
        for place in names.places.values() {
            if let Some(id) = place.end
                && self.tree.node(id).is_none()
                && let Some(c) = names.created.get(&id)
            {
                self.create_in_limbo(id, c.kind, c.mode, c.rdev, &c.target)?;
            }
        }
        for ((parent, name), place) in &names.places {
            if let Some(id) = place.end {
                self.put(names, *parent, name, id)?;
            }
        }
        Ok(())
    }

    /// The last step of a settlement: `id` comes to `parent`/`name`, if nothing newer speaks against it.
    fn put(&mut self, names: &Names, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        let Some(node) = self.tree.node(id) else { return Ok(()) };
        if self.tree.child(parent, name).is_some() || self.tree.children(parent).is_none() {
            return Ok(());
        }
        let dir = node.kind == Kind::Dir;
        if node.links.iter().any(|l| l.0 == FileId::LIMBO) {
            return match dir {
                true if self.rule == Rule::Redo && self.tree.is_below(parent, id) => Ok(()),
                true => self.enter(parent, name, id),
                // It stays in limbo too, until all its names are there: a crash in between must not forget one.
                false => self.one_more(parent, name, id),
            };
        }
        // What is elsewhere, and not because the log says so, was moved there later.
        if !dir && (self.rule == Rule::State || names.linked.contains(&id)) {
            return self.one_more(parent, name, id);
        }
        Ok(())
    }

    /// Takes a name away from `id`, which keeps one in limbo, whatever other names it has.
    fn set_aside(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        if self.tree.child(FileId::LIMBO, &limbo_name(id)) == Some(id) {
            return self.displace(parent, name, id);
        }
        self.park(parent, name, id)
    }

    /// What has the id of a file that is created, but can't be made into it (another kind, target or device), becomes
    /// a nobody in limbo.
    fn replace_unlike(&mut self, id: FileId, c: &Creation) -> Result<()> {
        let Some(node) = self.tree.node(id) else { return Ok(()) };
        if id == FileId::ROOT || id == FileId::LIMBO {
            return Err(ApplyError::Mismatch { what: "creation", id });
        }
        let path = self.path(id)?;
        let like = node.kind == c.kind
            && match c.kind {
                Kind::Symlink => self.data.read_link(&path).map_err(Self::io("reading", id))? == *c.target,
                Kind::Char | Kind::Block => {
                    let a = self.data.attr(id, &At::Path(path.clone())).map_err(Self::io("reading", id))?;
                    crate::data::rdev_from_fuse(a.rdev) == c.rdev
                }
                _ => true,
            };
        if like {
            return Ok(());
        }
        // No epoch ever has this bit.
        let mut nobody = FileId(id.0 | FileId::LOCAL);
        while self.tree.node(nobody).is_some() {
            nobody.0 += 1;
        }
        self.data.set_id(&path, nobody).map_err(Self::io("identity", id))?;
        self.tree.renumber(id, nobody);
        self.files.forget(id);
        let links = self.tree.node(nobody).map(|n| n.links.clone()).unwrap_or_default();
        for (parent, name) in &links {
            self.set_aside(*parent, name, nobody)?;
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
            if self.hold_instead_of_dropping(&name, id)? {
                continue;
            }
            if self.rule == Rule::Redo && self.tree.children(id).is_some_and(|c| !c.is_empty()) {
                // The log emptied it before it removed it: what it holds was moved here later.
                let found = format!(".nasd-found-{id}").into_bytes();
                tracing::warn!(
                    "redo: {id} was removed, but holds files: it is kept as {}",
                    String::from_utf8_lossy(&found)
                );
                self.move_to((FileId::LIMBO, &name), (FileId::ROOT, &found), id)?;
                continue;
            }
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
