//! Reading `data/` at start: which ids stand where.

use crate::data::DataDir;
use crate::ids::FileId;
use crate::op::Kind;
use crate::tree::Tree;
use rayon::prelude::*;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use walkdir::DirEntryExt;

/// `data/` can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; check the disk below the state directory")]
pub struct LoadError {
    /// Where.
    pub path: PathBuf,
    /// What the system said.
    pub source: Errno,
}

fn kind(t: std::fs::FileType) -> Kind {
    if t.is_dir() {
        Kind::Dir
    } else if t.is_symlink() {
        Kind::Symlink
    } else if t.is_fifo() {
        Kind::Fifo
    } else if t.is_socket() {
        Kind::Socket
    } else if t.is_char_device() {
        Kind::Char
    } else if t.is_block_device() {
        Kind::Block
    } else {
        Kind::File
    }
}

/// Walks `data/` and `limbo/` and builds the tree. A file without an id (a crash came between its creation and its
/// identity) and one with somebody else's (a copy made behind nasd's back) get a new one from `next_id`, which is moved
/// behind all that are there: an earlier start may have given some of the same epoch.
pub fn load(state_dir: &Path, data: &DataDir, next_id: &mut u64) -> Result<Tree, LoadError> {
    let mut tree = Tree::default();
    let mut inode_of: HashMap<FileId, u64> = HashMap::new();
    let mut id_of: HashMap<u64, FileId> = HashMap::new();
    // In the upper half of the epoch's numbers, where no primary counts to: another node may be its primary.
    let random = u64::from_le_bytes(*uuid::Uuid::new_v4().as_bytes().first_chunk().unwrap_or(&[0; 8]));
    let half = 1 << (FileId::COUNTER_BITS - 1);
    let mut stray = *next_id + half + random % (half / 2);
    let mut walks = Vec::new();
    for (top, name) in [(FileId::ROOT, "data"), (FileId::LIMBO, "limbo")] {
        let entries: Vec<walkdir::DirEntry> = walkdir::WalkDir::new(state_dir.join(name))
            .min_depth(1)
            .sort_by_file_name()
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|e| LoadError {
                path: e.path().unwrap_or(state_dir).to_owned(),
                source: e.io_error().and_then(Errno::from_io_error).unwrap_or(Errno::IO),
            })?;
        // Reading an attribute is a system call a file: the walk is in order, these need not be.
        let ids: Vec<Option<FileId>> = entries
            .par_iter()
            .map(|e| {
                let rel = e.path().strip_prefix(state_dir).unwrap_or(e.path());
                data.id(rel.as_os_str().as_bytes())
                    .map_err(|source| LoadError { path: e.path().to_owned(), source })
            })
            .collect::<Result<_, _>>()?;
        // What a comparison has replaced has no id of any epoch.
        let highest = ids.iter().flatten().map(|id| id.0).filter(|&id| id < 1 << 63).max();
        *next_id = (*next_id).max(highest.unwrap_or(0) + 1);
        stray = stray.max(*next_id);
        walks.push((top, entries, ids));
    }
    for (top, entries, ids) in walks {
        let mut dirs: Vec<FileId> = vec![top];
        for (e, id) in entries.iter().zip(ids) {
            let kind = kind(e.file_type());
            let usable = id.filter(|id| {
                id.0 > FileId::LIMBO.0
                    && inode_of.get(id).is_none_or(|&ino| ino == e.ino())
                    && (inode_of.contains_key(id) || tree.node(*id).is_none())
            });
            let known = usable.or_else(|| id_of.get(&e.ino()).copied().filter(|_| kind != Kind::Dir));
            let id = known.unwrap_or(FileId(stray));
            if known.is_none() {
                stray += 1;
                *next_id = stray;
                let rel = e.path().strip_prefix(state_dir).unwrap_or(e.path());
                data.set_id(rel.as_os_str().as_bytes(), id)
                    .map_err(|source| LoadError { path: e.path().to_owned(), source })?;
            }
            inode_of.insert(id, e.ino());
            id_of.insert(e.ino(), id);
            dirs.truncate(e.depth());
            let parent = dirs.last().copied().unwrap_or(top);
            tree.add_node(id, kind);
            tree.link(parent, e.file_name().as_bytes(), id);
            if kind == Kind::Dir {
                dirs.push(id);
            }
        }
    }
    Ok(tree)
}
