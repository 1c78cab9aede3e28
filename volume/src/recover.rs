//! Reading `data/` at start: which ids stand where.

use crate::data::DataDir;
use crate::ids::FileId;
use crate::op::Kind;
use crate::tree::Tree;
use rayon::prelude::*;
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `data/` can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; check the disk below the state directory")]
pub struct LoadError {
    /// Where.
    pub path: PathBuf,
    /// What the system said.
    pub source: Errno,
}

#[derive(Clone, Copy)]
enum Parent {
    Top(FileId),
    /// The index of a directory that was found.
    At(usize),
}

/// Walks `data/`, `limbo/` and `held/` and builds the tree. A file without an id (a crash came between its creation and its
/// identity) and one with somebody else's (a copy made behind nasd's back) get a new one from `next_id`, which is moved
/// behind all that are there: an earlier start may have given some of the same epoch.
///
/// It goes down level by level through [`DataDir`], since paths may be longer than the kernel takes at once.
pub fn load(state_dir: &Path, data: &DataDir, next_id: &mut u64) -> Result<Tree, LoadError> {
    let failed = |path: &[u8], source| LoadError { path: state_dir.join(OsStr::from_bytes(path)), source };
    // Parents before children.
    let mut all: Vec<(Parent, Found)> = Vec::new();
    for (top, name) in [(FileId::ROOT, "data"), (FileId::LIMBO, "limbo"), (FileId::HELD, "held")] {
        let mut dirs = vec![(Parent::Top(top), name.as_bytes().to_vec())];
        while !dirs.is_empty() {
            // Reading an attribute is a system call a file.
            let level: Vec<Vec<Found>> =
                dirs.par_iter().map(|(_, path)| found(data, path, &failed)).collect::<Result<_, _>>()?;
            let mut below = Vec::new();
            for ((parent, _), entries) in dirs.into_iter().zip(level) {
                for entry in entries {
                    if entry.id.is_none() && matches!(parent, Parent::Top(FileId::LIMBO)) {
                        // An applier was killed between making a file and giving it its identity. It is empty, has
                        // never had a name in the volume, and is in the way of the redo, which makes it again under
                        // this name.
                        let dir = entry.kind == Kind::Dir;
                        data.remove(&entry.path, dir).map_err(|e| failed(&entry.path, e))?;
                        continue;
                    }
                    if entry.kind == Kind::Dir {
                        below.push((Parent::At(all.len()), entry.path.clone()));
                    }
                    all.push((parent, entry));
                }
            }
            dirs = below;
        }
    }
    // What a comparison has replaced has no id of any epoch.
    let highest = all.iter().filter_map(|(_, e)| e.id).map(|id| id.0).filter(|&id| id < FileId::LOCAL).max();
    *next_id = (*next_id).max(highest.unwrap_or(0) + 1);
    // In the upper half of the epoch's numbers, where no primary counts to: another node may be its primary.
    let random = u64::from_le_bytes(*uuid::Uuid::new_v4().as_bytes().first_chunk().unwrap_or(&[0; 8]));
    let half = 1 << (FileId::COUNTER_BITS - 1);
    let mut stray = *next_id + half + random % (half / 2);
    let mut tree = Tree::default();
    let mut inode_of: HashMap<FileId, u64> = HashMap::new();
    let mut id_of: HashMap<u64, FileId> = HashMap::new();
    let mut ids: Vec<FileId> = Vec::with_capacity(all.len());
    for (parent, entry) in &all {
        let ino = entry.ino;
        let usable = entry.id.filter(|id| {
            id.0 > FileId::LIMBO.0
                && inode_of.get(id).is_none_or(|&other| other == ino)
                && (inode_of.contains_key(id) || tree.node(*id).is_none())
        });
        let known = usable.or_else(|| id_of.get(&ino).copied().filter(|_| entry.kind != Kind::Dir));
        let id = known.unwrap_or(FileId(stray));
        if known.is_none() {
            stray += 1;
            *next_id = stray;
            data.set_id(&entry.path, id).map_err(|e| failed(&entry.path, e))?;
        }
        inode_of.insert(id, ino);
        id_of.insert(ino, id);
        tree.add_node(id, entry.kind);
        let parent = match *parent {
            Parent::Top(id) => id,
            Parent::At(i) => ids[i],
        };
        tree.link(parent, &entry.name, id);
        ids.push(id);
    }
    crate::held::load(data, &mut tree).map_err(|(path, e)| failed(&path, e))?;
    Ok(tree)
}

struct Found {
    name: Vec<u8>,
    path: Vec<u8>,
    ino: u64,
    kind: Kind,
    id: Option<FileId>,
}

/// What a directory holds, in a stable order.
fn found(
    data: &DataDir,
    dir: &[u8],
    failed: &(impl Fn(&[u8], Errno) -> LoadError + Sync),
) -> Result<Vec<Found>, LoadError> {
    let mut names = data.list(dir).map_err(|e| failed(dir, e))?;
    names.sort_unstable();
    let entry = |name: Vec<u8>| {
        let path = [dir, b"/", &name].concat();
        let (kind, ino) = data.kind_and_inode(&path).map_err(|e| failed(&path, e))?;
        let id = data.id(&path).map_err(|e| failed(&path, e))?;
        Ok(Found { name, path, ino, kind, id })
    };
    names.into_par_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use crate::fs::{Caller, SetAttr};
    use crate::ids::FileId;
    use crate::state::StateFile;
    use crate::volume::{Volume, lock_state_dir};

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    /// Two records and a third that nobody synced, in a file that was emptied before each of the last two without a
    /// sync. Behind a checkpoint in the middle a redo would put the second behind a piece of the third.
    #[test]
    fn a_killed_primary_has_what_its_files_were_and_no_mixture() -> Outcome {
        let dir = tempfile::tempdir()?;
        let caller = Caller { uid: 0, gid: 0 };
        let v = Volume::create_at(dir.path())?;
        let (file, open) = v.create(caller, FileId::ROOT, b"file", 0o600, 0, 0)?;
        v.write(&open, 0, b"first", false)?;
        v.commit_and_wait()?;
        v.checkpoint()?;
        v.write(&open, 5, b"second", false)?;
        v.commit_and_wait()?;
        v.setattr(caller, file.id, &SetAttr { size: Some(0), ..SetAttr::default() }, Some(&open))?;
        v.write(&open, 0, b"3", false)?;
        v.serves_as_primary()?;
        let id = v.id();
        drop((open, v));

        let state = StateFile::open(dir.path())?.ok_or("no state")?;
        let Some(_) = state.get().whole_in else { return Ok(()) };
        let opened = Volume::open_at(dir.path(), lock_state_dir(dir.path())?, state, id)?;
        assert_eq!(opened.redone, 0);
        assert_eq!(std::fs::read(dir.path().join("data/file"))?, b"3");
        drop(opened);

        // In another mount, or after another boot, bytes of the checkpoint's time may be missing.
        let state = StateFile::open(dir.path())?.ok_or("no state")?;
        state.update(|s| s.whole_in = Some("elsewhere".to_owned()))?;
        let opened = Volume::open_at(dir.path(), lock_state_dir(dir.path())?, state, id)?;
        assert!(opened.redone > 0);
        Ok(())
    }

    #[test]
    fn what_an_applier_left_without_an_identity_is_not_in_the_way() -> Outcome {
        let dir = tempfile::tempdir()?;
        let v = Volume::create_at(dir.path())?;
        let id = v.id();
        drop(v);
        std::fs::write(dir.path().join("limbo/000000000000abcd"), b"")?;
        std::fs::create_dir(dir.path().join("limbo/000000000000abce"))?;
        let state = StateFile::open(dir.path())?.ok_or("no state")?;
        Volume::open_at(dir.path(), lock_state_dir(dir.path())?, state, id)?;
        assert_eq!(std::fs::read_dir(dir.path().join("limbo"))?.count(), 0);
        Ok(())
    }

    #[test]
    fn a_tree_deeper_than_a_path_may_be_long_works_and_is_found_again() -> Outcome {
        let dir = tempfile::tempdir()?;
        let caller = Caller { uid: 0, gid: 0 };
        let (name, depth) = ([b'd'; 200], 50);
        let v = Volume::create_at(dir.path())?;
        let mut parent = FileId::ROOT;
        for _ in 0..depth {
            parent = v.mkdir(caller, parent, &name, 0o755, 0)?.id;
        }
        let (file, open) = v.create(caller, parent, b"file", 0o600, 0, 0)?;
        v.write(&open, 0, b"content", false)?;
        v.setxattr(caller, file.id, b"user.x", b"y", 0)?;
        v.rename(parent, b"file", parent, b"other", 0)?;
        v.commit_and_wait()?;
        let id = v.id();
        drop((open, v));

        let state = StateFile::open(dir.path())?.ok_or("no state")?;
        let v = Volume::open_at(dir.path(), lock_state_dir(dir.path())?, state, id)?.volume;
        v.set_access(crate::Access::ReadOnly);
        let mut at = FileId::ROOT;
        for _ in 0..depth {
            at = v.lookup(at, &name)?.id;
        }
        assert_eq!(at, parent);
        assert_eq!(v.lookup(at, b"other")?.id, file.id);
        assert_eq!(v.getxattr(file.id, b"user.x")?, b"y");
        Ok(())
    }
}
