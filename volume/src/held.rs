//! Files that the primary removed and a consumer on this node still needs.
//!
//! A database that follows from the replica may lag behind the primary's own clean-up of its log. So an entry that a
//! [`Hold`] asks for does not go with the operation that removes it: the file moves to `held/` and is shown under its
//! old name until it is [let go](Volume::let_go), or removed through the mount. Nothing of this is in a transaction, in
//! a comparison or on a peer: `data/` is what the log says, and what is held is this node's own.
//!
//! A held file can be read and removed, and nothing else. Its content is durable before the operation that removed it
//! counts as applied: the redo after a crash finds it where it is, or removes, and so holds, it once more.

use crate::apply::{Applier, ApplyError};
use crate::crashsafe;
use crate::data::{At, DataDir, HELD_XATTR_BYTES};
use crate::errors::FsError;
use crate::ids::FileId;
use crate::op::Kind;
use crate::tree::Tree;
use crate::volume::Volume;
use rustix::fs::{self, RenameFlags, XattrFlags};
use rustix::io::Errno;

/// Who needs what of the names that the primary gives up.
pub trait Hold: Send + Sync {
    /// Whether the file at `path` (as a user of the mount sees it) is still needed here. Asked while nobody can read the
    /// volume: it must neither use the mount nor take long.
    fn needs(&self, path: &[u8]) -> bool;
}

/// A held file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldFile {
    /// Where it is shown, as a user of the mount sees it; `None` when its directory is gone or another file stands there.
    pub path: Option<Vec<u8>>,
    /// How much of the disk it takes.
    pub bytes: u64,
    parent: FileId,
    name: Box<[u8]>,
}

fn on_disk(id: FileId) -> Vec<u8> {
    format!("held/{:016x}", id.0).into_bytes()
}

fn free_local(tree: &Tree, id: FileId) -> FileId {
    let mut local = FileId(id.0 | FileId::LOCAL);
    while tree.node(local).is_some() {
        local.0 += 1;
    }
    local
}

/// The label that brings a held file back after a restart.
fn label(parent: FileId, name: &[u8]) -> Vec<u8> {
    [&parent.0.to_be_bytes()[..], name].concat()
}

/// Shows what `held/` holds. A file without its label is one that was never finished.
pub(crate) fn load(data: &DataDir, tree: &mut Tree) -> Result<(), (Vec<u8>, Errno)> {
    let all: Vec<(Vec<u8>, FileId)> =
        tree.children(FileId::HELD).into_iter().flatten().map(|(n, id)| (n.to_vec(), *id)).collect();
    for (file, mut id) in all {
        let path = [b"held/", &file[..]].concat();
        let failed = |e| (path.clone(), e);
        let at = At::Path(path.clone());
        let label = match data.xattr(&at, HELD_XATTR_BYTES) {
            Ok(label) => Some(label),
            Err(Errno::NODATA) => None,
            Err(e) => return Err(failed(e)),
        };
        let Some((parent, name)) = label.as_deref().and_then(|l| l.split_first_chunk::<8>()) else {
            let dir = tree.node(id).is_some_and(|n| n.kind == Kind::Dir);
            data.remove(&path, dir).map_err(failed)?;
            tree.unlink(FileId::HELD, &file);
            tree.drop_node(id);
            continue;
        };
        if !id.is_local() {
            // A crash came before it lost the identity that it had in the volume.
            let local = free_local(tree, id);
            data.set_id(&path, local).map_err(failed)?;
            tree.renumber(id, local);
            id = local;
        }
        tree.hold(FileId(u64::from_be_bytes(*parent)), name, id);
    }
    Ok(())
}

impl Applier<'_> {
    /// Whether somebody here needs `parent`/`name`, which is `id`, although the primary gives it up.
    pub(crate) fn is_needed(&self, parent: FileId, name: &[u8], id: FileId) -> bool {
        let Some(hold) = &self.hold else { return false };
        self.tree.node(id).is_some_and(|n| n.kind == Kind::File)
            && self
                .tree
                .path_of(parent, name)
                .and_then(|p| p.strip_prefix(b"data/").map(|p| hold.needs(p)))
                .unwrap_or(false)
    }

    /// Keeps `id`, which waits in limbo without another name, under the name that it had; true when it did.
    pub(crate) fn hold_instead_of_dropping(&mut self, limbo: &[u8], id: FileId) -> Result<bool, ApplyError> {
        let Some((parent, name)) = self.tree.take_wanted(id) else { return Ok(false) };
        // It came back under another name, or its place is taken.
        if self.tree.node(id).is_none_or(|n| n.links.len() > 1)
            || self.tree.children(parent).is_none()
            || self.tree.child(parent, &name).is_some()
        {
            return Ok(false);
        }
        let local = free_local(self.tree, id);
        let (from, to) = ([b"limbo/", limbo].concat(), on_disk(local));
        let keep = || {
            // The log needs no checkpoint of a file that it has removed, so this is the last chance.
            fs::fsync(self.data.open_file(&from, false)?)?;
            let at = At::Path(from.clone());
            self.data.set_xattr(&at, HELD_XATTR_BYTES, &label(parent, &name), XattrFlags::empty())?;
            self.data.rename(&from, &to, RenameFlags::NOREPLACE)?;
            self.data.set_id(&to, local)?;
            fs::fsync(self.data.open_file(b"held", false)?)
        };
        keep().map_err(|source| ApplyError::Io { what: "holding", id, source })?;
        self.tree.unlink(FileId::LIMBO, limbo);
        self.tree.link(FileId::HELD, &to[b"held/".len()..], id);
        self.tree.renumber(id, local);
        self.files_forget(id);
        self.show(parent, &name, local)?;
        Ok(true)
    }

    /// Keeps a copy of `id` under the name that it loses while it lives on under another one, where its content may be
    /// overwritten.
    pub(crate) fn hold_copy(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<(), ApplyError> {
        let local = free_local(self.tree, id);
        let to = on_disk(local);
        let from = self.tree.path(id).ok_or(ApplyError::Mismatch { what: "holding", id })?;
        let copy = || {
            let attr = self.data.attr(id, &At::Path(from.clone()))?;
            match self.data.make(&to, Kind::File, 0o600, 0, b"") {
                // Left by an attempt that found the disk full.
                Err(Errno::EXIST) => {
                    self.data.remove(&to, false)?;
                    self.data.make(&to, Kind::File, 0o600, 0, b"")?;
                }
                made => made?,
            }
            let (source, file) = (self.data.open_file(&from, false)?, self.data.open_file(&to, true)?);
            if fs::ioctl_ficlone(&file, &source).is_err() {
                crashsafe::copy_all(&source, &file)?;
            }
            let at = At::Fd(&file);
            self.data.set_owner(&at, Some(attr.uid), Some(attr.gid))?;
            self.data.set_mode(&at, attr.perm.into())?;
            self.data.set_times(&at, Some(attr.atime), Some(attr.mtime))?;
            self.data.set_id(&to, local)?;
            // The label last: with it the file is whole.
            fs::fsync(&file)?;
            self.data.set_xattr(&at, HELD_XATTR_BYTES, &label(parent, name), XattrFlags::empty())?;
            fs::fsync(&file)?;
            fs::fsync(self.data.open_file(b"held", false)?)
        };
        copy().map_err(|source| ApplyError::Io { what: "holding", id, source })?;
        self.tree.add_node(local, Kind::File);
        self.tree.link(FileId::HELD, &to[b"held/".len()..], local);
        self.show(parent, name, local)
    }

    /// An entry is shown for one file: what was held there before goes.
    fn show(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<(), ApplyError> {
        if let Some(before) = self.tree.hold(parent, name, id) {
            drop_file(self.tree, self.data, before).map_err(|source| ApplyError::Io {
                what: "letting go",
                id: before,
                source,
            })?;
        }
        Ok(())
    }
}

fn drop_file(tree: &mut Tree, data: &DataDir, id: FileId) -> Result<(), Errno> {
    if let Some(path) = tree.path(id) {
        data.remove(&path, false)?;
        tree.unlink(FileId::HELD, &path[b"held/".len()..]);
    }
    tree.drop_node(id);
    Ok(())
}

impl Volume {
    /// What is held here, in the order of directories and names.
    pub fn held(&self) -> Vec<HeldFile> {
        let tree = self.tree.read();
        let file = |((parent, name), id): (&(FileId, Box<[u8]>), FileId)| {
            let shown = tree.held(*parent, name).is_some();
            let path = shown.then(|| tree.user_path(*parent)).flatten().map(|mut dir| {
                if !dir.is_empty() {
                    dir.push(b'/');
                }
                dir.extend_from_slice(name);
                dir
            });
            let attr = tree.path(id).and_then(|p| self.data.attr(id, &At::Path(p)).ok());
            let bytes = attr.map_or(0, |a| a.blocks * 512);
            HeldFile { path, bytes, parent: *parent, name: name.clone() }
        };
        tree.all_held().map(file).collect()
    }

    /// Removes a held file. One that is gone already is no error.
    pub fn let_go(&self, held: &HeldFile) -> Result<(), FsError> {
        self.drop_held(held.parent, &held.name)?;
        self.forget_entry(held.parent, &held.name);
        Ok(())
    }

    /// Removes the held file at this entry; false when there is none.
    pub(crate) fn drop_held(&self, parent: FileId, name: &[u8]) -> Result<bool, FsError> {
        let mut tree = self.tree.write();
        let Some(id) = tree.unhold(parent, name) else { return Ok(false) };
        drop_file(&mut tree, &self.data, id)?;
        Ok(true)
    }
}
