//! The names of the volume in memory: which id stands where.
//!
//! About 200 bytes a file; it bounds the memory that a volume of many files needs. It mirrors `data/`:
//! whoever changes a name there, under the operation lock, changes it here.

use crate::ids::FileId;
use crate::op::Kind;
use std::collections::{BTreeMap, HashMap};

/// One file.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Its names: one for a directory (none for the root), any number for others; none while it is
    /// unlinked but open, or set aside during a redo.
    pub links: Vec<(FileId, Box<[u8]>)>,
}

/// The names.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<FileId, Node>,
    /// The entries of each directory. A `BTreeMap` so that listings have a stable order.
    dirs: HashMap<FileId, BTreeMap<Box<[u8]>, FileId>>,
    /// Entries that are shown and are in no transaction: see `held`. An entry of the volume itself goes before.
    held: BTreeMap<(FileId, Box<[u8]>), FileId>,
    /// Files in limbo that are held, under this name, unless they get another one.
    to_hold: HashMap<FileId, (FileId, Box<[u8]>)>,
}

impl Default for Tree {
    fn default() -> Tree {
        let top = || Node { kind: Kind::Dir, links: Vec::new() };
        let tops = [FileId::ROOT, FileId::LIMBO, FileId::HELD];
        Tree {
            nodes: tops.map(|id| (id, top())).into(),
            dirs: tops.map(|id| (id, BTreeMap::new())).into(),
            held: BTreeMap::new(),
            to_hold: HashMap::new(),
        }
    }
}

impl Tree {
    /// The file `id`.
    pub fn node(&self, id: FileId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// What stands at `parent`/`name`.
    pub fn child(&self, parent: FileId, name: &[u8]) -> Option<FileId> {
        self.dirs.get(&parent)?.get(name).copied()
    }

    /// The entries of a directory.
    pub fn children(&self, dir: FileId) -> Option<&BTreeMap<Box<[u8]>, FileId>> {
        self.dirs.get(&dir)
    }

    /// The path of `id` as a user of the mount sees it, without a leading slash.
    pub fn user_path(&self, id: FileId) -> Option<Vec<u8>> {
        let path = self.path(id)?;
        path.strip_prefix(b"data").map(|rest| rest.strip_prefix(b"/").unwrap_or(rest).to_vec())
    }

    /// The directory that holds `dir`; the root holds itself.
    pub fn parent(&self, dir: FileId) -> Option<FileId> {
        if matches!(dir, FileId::ROOT | FileId::LIMBO | FileId::HELD) {
            return Some(dir);
        }
        Some(self.node(dir)?.links.first()?.0)
    }

    /// All ids, in no order, without limbo and the place of what is held.
    pub fn ids(&self) -> impl Iterator<Item = FileId> + '_ {
        self.nodes.keys().copied().filter(|&id| id != FileId::LIMBO && id != FileId::HELD)
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 3
    }

    /// A file without a name yet.
    pub fn add_node(&mut self, id: FileId, kind: Kind) {
        self.nodes.entry(id).or_insert(Node { kind, links: Vec::new() });
        if kind == Kind::Dir {
            self.dirs.entry(id).or_default();
        }
    }

    /// Forgets a file that has no name left.
    pub fn drop_node(&mut self, id: FileId) {
        self.nodes.remove(&id);
        self.dirs.remove(&id);
    }

    /// The file `old` has the id `new` from now on, which must be free.
    pub fn renumber(&mut self, old: FileId, new: FileId) {
        let Some(node) = self.nodes.remove(&old) else { return };
        for (parent, name) in &node.links {
            if let Some(dir) = self.dirs.get_mut(parent) {
                dir.insert(name.clone(), new);
            }
        }
        self.nodes.insert(new, node);
        let Some(dir) = self.dirs.remove(&old) else { return };
        for child in dir.values() {
            let links = self.nodes.get_mut(child).map(|n| &mut n.links);
            links.into_iter().flatten().filter(|l| l.0 == old).for_each(|l| l.0 = new);
        }
        self.dirs.insert(new, dir);
    }

    /// Gives `id` the name `parent`/`name`, which must be free.
    pub fn link(&mut self, parent: FileId, name: &[u8], id: FileId) {
        debug_assert!(self.child(parent, name).is_none());
        if let (Some(dir), Some(node)) = (self.dirs.get_mut(&parent), self.nodes.get_mut(&id)) {
            dir.insert(name.into(), id);
            node.links.push((parent, name.into()));
        }
    }

    /// Takes the name `parent`/`name` away; returns whose it was. The file itself stays.
    pub fn unlink(&mut self, parent: FileId, name: &[u8]) -> Option<FileId> {
        let id = self.dirs.get_mut(&parent)?.remove(name)?;
        if let Some(node) = self.nodes.get_mut(&id)
            && let Some(i) = node.links.iter().position(|(p, n)| *p == parent && **n == *name)
        {
            node.links.swap_remove(i);
        }
        Some(id)
    }

    /// Whether `dir` is `inside` or lies below it.
    pub fn is_below(&self, dir: FileId, inside: FileId) -> bool {
        let mut at = dir;
        loop {
            if at == inside {
                return true;
            }
            match self.parent(at) {
                Some(p) if p != at => at = p,
                _ => return false,
            }
        }
    }

    /// The path of `id` below the state directory by its first name: `data/…`, `limbo/…` for what is set aside, or
    /// `held/…`; none for a file without a name.
    pub fn path(&self, id: FileId) -> Option<Vec<u8>> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = id;
        loop {
            match at {
                FileId::ROOT => parts.push(b"data"),
                FileId::LIMBO => parts.push(b"limbo"),
                FileId::HELD => parts.push(b"held"),
                _ => {}
            }
            if matches!(at, FileId::ROOT | FileId::LIMBO | FileId::HELD) {
                break;
            }
            let (parent, name) = self.node(at)?.links.first()?;
            parts.push(name);
            at = *parent;
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    /// The path of `parent`/`name`.
    pub fn path_of(&self, parent: FileId, name: &[u8]) -> Option<Vec<u8>> {
        let mut path = self.path(parent)?;
        path.push(b'/');
        path.extend_from_slice(name);
        Some(path)
    }

    // ---- held entries ---------------------------------------------------------------------------------------

    /// The held file that is shown at `parent`/`name`, if the volume itself has nothing there.
    pub fn held(&self, parent: FileId, name: &[u8]) -> Option<FileId> {
        if self.child(parent, name).is_some() {
            return None;
        }
        self.held.get(&(parent, name.into())).copied()
    }

    /// What is held, shown or not.
    pub fn all_held(&self) -> impl Iterator<Item = (&(FileId, Box<[u8]>), FileId)> + '_ {
        self.held.iter().map(|(at, &id)| (at, id))
    }

    /// The held entries of a directory, shown or not.
    pub fn held_in(&self, dir: FileId) -> impl Iterator<Item = (&[u8], FileId)> + '_ {
        let from = (dir, Box::from(&[][..]));
        self.held.range(from..).take_while(move |((d, _), _)| *d == dir).map(|((_, n), &id)| (&**n, id))
    }

    /// `id`, a file in the place of what is held, is shown at `parent`/`name`; returns who was there before.
    pub fn hold(&mut self, parent: FileId, name: &[u8], id: FileId) -> Option<FileId> {
        self.held.insert((parent, name.into()), id)
    }

    /// Nothing is held at `parent`/`name` any more.
    pub fn unhold(&mut self, parent: FileId, name: &[u8]) -> Option<FileId> {
        self.held.remove(&(parent, name.into()))
    }

    /// `id`, which waits in limbo, is to be held under this name if it stays without one. Of several files that stood
    /// there in one transaction it is the last.
    pub fn want_held(&mut self, id: FileId, parent: FileId, name: &[u8]) {
        self.to_hold.retain(|_, at| (at.0, &*at.1) != (parent, name));
        self.to_hold.insert(id, (parent, name.into()));
    }

    /// Whether, and where, `id` is to be held; asked once.
    pub fn take_wanted(&mut self, id: FileId) -> Option<(FileId, Box<[u8]>)> {
        self.to_hold.remove(&id)
    }
}
