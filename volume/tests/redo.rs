//! The redo: whatever a crash left of the transactions behind the checkpoint, the state behind the last one comes out.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{
    Action, Snapshot, World, action, actions, cases, copy_tree, data_of, difference, reopen, snapshot,
};
use nasd_volume::op::{Op, Ops};
use nasd_volume::{Caller, FileId, SetAttr, Volume};
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FAILED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/redo.txt");
const ROOT: Caller = Caller { uid: 0, gid: 0 };

/// A history, with what is needed to be at any point of it again.
struct History {
    dir: tempfile::TempDir,
    v: Option<Arc<Volume>>,
    /// `data/` behind the checkpoint and behind each later commit.
    points: Vec<PathBuf>,
    end: Snapshot,
}

impl History {
    /// Runs `before`, a checkpoint, `after`.
    fn new(before: &[Action], after: &[Action]) -> History {
        let dir = tempfile::tempdir().unwrap();
        let v = Volume::create_at(&dir.path().join("v")).unwrap();
        let mut h = History { dir, v: Some(Arc::clone(&v)), points: Vec::new(), end: Snapshot::new() };
        let mut world = World::new(Arc::clone(&v));
        for action in before {
            world.run(action);
        }
        h.checkpoint();
        for action in after {
            if world.run(action) {
                h.point();
            }
        }
        drop(world);
        drop(v);
        h.close();
        h
    }

    fn by_hand(before: impl FnOnce(&Volume), after: impl FnOnce(&Volume)) -> History {
        let dir = tempfile::tempdir().unwrap();
        let v = Volume::create_at(&dir.path().join("v")).unwrap();
        let mut h = History { dir, v: Some(Arc::clone(&v)), points: Vec::new(), end: Snapshot::new() };
        before(&v);
        h.checkpoint();
        after(&v);
        drop(v);
        h.close();
        h
    }

    fn checkpoint(&mut self) {
        let v = self.v.as_ref().unwrap();
        v.commit_and_wait().unwrap();
        v.checkpoint().unwrap();
        self.point();
    }

    fn point(&mut self) {
        let to = self.dir.path().join(format!("point{}", self.points.len()));
        copy_tree(&self.dir.path().join("v/data"), &to);
        self.points.push(to);
    }

    fn close(&mut self) {
        let v = self.v.take().unwrap();
        v.commit_and_wait().unwrap();
        self.end = data_of(&v);
        drop(v);
        self.point();
    }

    /// A state directory with the whole log, the checkpoint, and `data/` as at one of the points.
    fn crashed(&self, point: usize) -> PathBuf {
        let to = self.dir.path().join("crashed");
        std::fs::remove_dir_all(&to).or_else(|e| if to.exists() { Err(e) } else { Ok(()) }).unwrap();
        std::fs::create_dir(&to).unwrap();
        for name in ["log", "state"] {
            copy_tree(&self.dir.path().join("v").join(name), &to.join(name));
        }
        copy_tree(&self.points[point], &to.join("data"));
        std::fs::create_dir(to.join("limbo")).unwrap();
        to
    }

    /// Redoes it, twice: the second time there is nothing left to do.
    fn check(&self, dir: &Path, what: &str) {
        for again in ["", " again"] {
            drop(reopen(dir));
            let diff = difference(&self.end, &snapshot(&dir.join("data")));
            assert!(diff.is_empty(), "{what}{again}:\n{diff}");
            assert_eq!(std::fs::read_dir(dir.join("limbo")).unwrap().count(), 0, "limbo is empty");
        }
    }

    /// The same from every point.
    fn check_all(&self) {
        for point in 0..self.points.len() {
            self.check(&self.crashed(point), &format!("from point {point} of {}", self.points.len() - 1));
        }
    }

    /// Calls `f` with every operation behind the checkpoint.
    fn ops(&self, mut f: impl FnMut(&Op<'_>)) {
        let v = reopen(&self.crashed(self.points.len() - 1)).volume;
        let (from, to) = (v.state.get().checkpoint.seq, v.log.tail().seq);
        for seq in from + 1..=to {
            let txn = v.log.read(seq).unwrap();
            for op in Ops::new(&txn.payload().unwrap()) {
                f(&op.unwrap());
            }
        }
    }
}

/// Which paths below `data` have which id.
fn ids(data: &Path) -> HashMap<FileId, Vec<PathBuf>> {
    let mut ids: HashMap<FileId, Vec<PathBuf>> = HashMap::new();
    for (path, seen) in snapshot(data) {
        let id = seen.xattrs["trusted.nasd.id"].as_slice().try_into().unwrap();
        ids.entry(FileId(u64::from_be_bytes(id))).or_default().push(data.join(path));
    }
    ids
}

/// What a power cut does to contents: bytes that were not written back are zeros, old or anything; a file that grew
/// may be as short as it was.
fn damage(h: &History, dir: &Path, mut dice: impl FnMut() -> u32) {
    let data = dir.join("data");
    let paths = ids(&data);
    let old = ids(&h.points[0]);
    let mut shrunk: BTreeSet<FileId> = BTreeSet::new();
    h.ops(|op| {
        let (id, offset, len) = match *op {
            Op::Write { id, offset, data } => (id, offset, data.len() as u64),
            Op::Truncate { id, size } => {
                // Behind a shorter size the old bytes may come to light: what was cut at the checkpoint's end is
                // written out in order, so only files that never shrank are made short.
                shrunk.insert(id);
                (id, size, 0)
            }
            _ => return,
        };
        let Some(path) = paths.get(&id).map(|p| &p[0]) else { return };
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let end = (offset + len).min(size);
        let at = offset + u64::from(dice()) % len.max(1);
        let n = end.saturating_sub(at).min(u64::from(dice()) % 10_000);
        if n > 0 {
            file.write_all_at(&vec![if dice().is_multiple_of(2) { 0 } else { 0xee }; n as usize], at)
                .unwrap();
        }
    });
    h.ops(|op| {
        let Op::Write { id, .. } = *op else { return };
        let Some(path) = paths.get(&id).map(|p| &p[0]) else { return };
        let was = old.get(&id).map_or(0, |p| std::fs::metadata(&p[0]).unwrap().len());
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        if !shrunk.contains(&id) && file.metadata().unwrap().len() > was && dice().is_multiple_of(3) {
            file.set_len(was).unwrap();
        }
    });
}

/// What a crash in the middle of a redo leaves: files whose entries the log touches wait in limbo.
fn half_redone(h: &History, dir: &Path, mut dice: impl FnMut() -> u32) {
    let mut touched: BTreeSet<(FileId, Vec<u8>, FileId)> = BTreeSet::new();
    h.ops(|op| {
        let mut touch = |parent: FileId, name: &[u8], id: FileId| {
            touched.insert((parent, name.to_vec(), id));
        };
        match *op {
            Op::Create { parent, id, name, .. }
            | Op::Link { parent, id, name }
            | Op::Remove { parent, id, name } => {
                touch(parent, name, id);
            }
            Op::Rename { parent, new_parent, id, name, new_name } => {
                touch(parent, name, id);
                touch(new_parent, new_name, id);
            }
            Op::Exchange { parent, id, other_parent, other_id, name, other_name } => {
                touch(parent, name, id);
                touch(parent, name, other_id);
                touch(other_parent, other_name, id);
                touch(other_parent, other_name, other_id);
            }
            _ => {}
        }
    });
    for (parent, name, id) in touched {
        use std::os::unix::ffi::OsStrExt;
        if dice().is_multiple_of(2) {
            continue;
        }
        let mut now = ids(&dir.join("data"));
        now.extend(ids_in_limbo(&dir.join("limbo")));
        let Some(parent) = now.get(&parent).map(|p| &p[0]) else { continue };
        let path = parent.join(std::ffi::OsStr::from_bytes(&name));
        let limbo = dir.join("limbo").join(format!("{:016x}", id.0));
        if now.get(&id).is_some_and(|p| p.contains(&path)) && !limbo.exists() {
            std::fs::rename(path, limbo).unwrap();
        }
    }
}

fn ids_in_limbo(limbo: &Path) -> HashMap<FileId, Vec<PathBuf>> {
    let mut all = HashMap::new();
    for e in std::fs::read_dir(limbo).unwrap() {
        for (id, paths) in ids(&e.unwrap().path()) {
            all.insert(id, paths.into_iter().map(|p| p.components().collect()).collect());
        }
    }
    all
}

fn dice(seed: u32) -> impl FnMut() -> u32 {
    let mut state = u64::from(seed) * 2 + 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    }
}

/// Only what changes names, so that shrunk cases are small and cycles frequent.
fn name_action() -> impl Strategy<Value = Action> {
    action().prop_filter("names", |a| {
        use Action::{Commit, Create, Exchange, Link, Mkdir, Remove, Rename, RenameOver};
        matches!(
            a,
            Create { .. }
                | Mkdir { .. }
                | Rename { .. }
                | RenameOver { .. }
                | Exchange { .. }
                | Link { .. }
                | Remove { .. }
                | Commit
        )
    })
}

proptest! {
    #![proptest_config(cases(40, FAILED))]

    #[test]
    fn from_any_point_the_end_comes_out(before in actions(60), after in actions(60), k in any::<prop::sample::Index>()) {
        let h = History::new(&before, &after);
        h.check(&h.crashed(h.points.len() - 1), "from the end");
        h.check(&h.crashed(0), "from the checkpoint");
        let k = k.index(h.points.len());
        h.check(&h.crashed(k), "from between");
    }

    #[test]
    fn names_from_every_point(
        before in proptest::collection::vec(name_action(), 0..40),
        after in proptest::collection::vec(name_action(), 0..40),
    ) {
        History::new(&before, &after).check_all();
    }

    #[test]
    fn after_a_power_cut(
        before in actions(40), after in actions(60), k in any::<prop::sample::Index>(), seed in any::<u32>(),
    ) {
        let h = History::new(&before, &after);
        let point = k.index(h.points.len());
        // `damage` builds in the same place: elsewhere first.
        let dir = h.crashed(point);
        let kept = h.dir.path().join("kept");
        std::fs::rename(&dir, &kept).unwrap();
        damage(&h, &kept, dice(seed));
        h.check(&kept, "damaged");
    }

    #[test]
    fn after_a_crash_in_a_redo(
        before in proptest::collection::vec(name_action(), 0..40),
        after in proptest::collection::vec(name_action(), 0..40),
        k in any::<prop::sample::Index>(), seed in any::<u32>(),
    ) {
        let h = History::new(&before, &after);
        let point = k.index(h.points.len());
        let dir = h.crashed(point);
        let kept = h.dir.path().join("kept");
        std::fs::rename(&dir, &kept).unwrap();
        half_redone(&h, &kept, dice(seed));
        h.check(&kept, "half redone");
    }
}

// ---- cases by hand ------------------------------------------------------------------------------------------

fn file(v: &Volume, parent: FileId, name: &[u8], content: &[u8]) -> FileId {
    let (attr, open) = v.create(ROOT, parent, name, 0o644, 0, 0o200).unwrap();
    v.write(&open, 0, content, false).unwrap();
    v.release(open);
    attr.id
}

fn dir(v: &Volume, parent: FileId, name: &[u8]) -> FileId {
    v.mkdir(ROOT, parent, name, 0o755, 0).unwrap().id
}

fn mv(v: &Volume, from: (FileId, &[u8]), to: (FileId, &[u8])) {
    v.rename(from.0, from.1, to.0, to.1, 0).unwrap();
    v.commit_and_wait().unwrap();
}

const R: FileId = FileId::ROOT;

#[test]
fn a_second_name_outside_the_log_stays() {
    // The log renames one of two names and removes it; the other is not in the log.
    let h = History::by_hand(
        |v| {
            let x = file(v, R, b"a", b"content");
            v.link(x, R, b"e").unwrap();
        },
        |v| {
            mv(v, (R, b"a"), (R, b"b"));
            v.unlink(R, b"b").unwrap();
        },
    );
    assert!(h.end.contains_key(Path::new("e")));
    h.check_all();
}

#[test]
fn a_directory_that_never_moved_stays_when_others_swap_places_around_it() {
    // id/x is untouched by the log, and at the end lies between the two that once were the other way round.
    let h = History::by_hand(
        |v| {
            let id = dir(v, R, b"id");
            let x = dir(v, id, b"x");
            file(v, x, b"f", b"content");
            dir(v, R, b"y");
        },
        |v| {
            let id = v.lookup(R, b"id").unwrap().id;
            let x = v.lookup(id, b"x").unwrap().id;
            let y = v.lookup(R, b"y").unwrap().id;
            mv(v, (R, b"id"), (y, b"id"));
            mv(v, (y, b"id"), (R, b"id"));
            mv(v, (R, b"y"), (x, b"y"));
        },
    );
    assert!(h.end.contains_key(Path::new("id/x/y")) && h.end.contains_key(Path::new("id/x/f")));
    h.check_all();
}

#[test]
fn a_file_that_was_replaced_by_one_that_is_gone_too_does_not_come_back() {
    let h = History::by_hand(
        |v| {
            file(v, R, b"a", b"old");
        },
        |v| {
            file(v, R, b"b", b"new");
            v.commit_and_wait().unwrap();
            mv(v, (R, b"a"), (R, b"b"));
            v.unlink(R, b"b").unwrap();
        },
    );
    assert_eq!(h.end.len(), 1, "only the root");
    h.check_all();
}

#[test]
fn two_directories_that_change_places() {
    let h = History::by_hand(
        |v| {
            let a = dir(v, R, b"a");
            dir(v, a, b"b");
        },
        |v| {
            let a = v.lookup(R, b"a").unwrap().id;
            let b = v.lookup(a, b"b").unwrap().id;
            mv(v, (a, b"b"), (R, b"b"));
            mv(v, (R, b"a"), (b, b"a"));
            v.rename(R, b"b", R, b"c", 0).unwrap();
            dir(v, R, b"b");
            v.rename(R, b"b", R, b"c", 2).unwrap();
        },
    );
    h.check_all();
}

#[test]
fn a_crash_between_a_creation_and_its_identity() {
    let h = History::by_hand(
        |_| {},
        |v| {
            file(v, R, b"f", b"content");
            dir(v, R, b"d");
        },
    );
    let mut new = Vec::new();
    h.ops(|op| {
        if let Op::Create { id, .. } = op {
            new.push(*id);
        }
    });
    let crashed = h.crashed(0);
    for id in new {
        std::fs::write(crashed.join(format!("limbo/{:016x}", id.0)), b"torn").unwrap();
    }
    h.check(&crashed, "limbo holds files without identity");
}

/// Changes that no transaction holds, behind all that are logged: nasd was killed and the page cache lives on. The
/// redo must not take anything away that was there at the checkpoint.
fn unlogged(
    before: impl FnOnce(&Volume),
    logged: impl FnOnce(&Volume),
    change: impl FnOnce(&Path),
) -> Snapshot {
    let h = History::by_hand(before, logged);
    let crashed = h.crashed(h.points.len() - 1);
    change(&crashed.join("data"));
    drop(reopen(&crashed));
    let mut once = snapshot(&crashed.join("data"));
    drop(reopen(&crashed));
    let mut twice = snapshot(&crashed.join("data"));
    for seen in once.values_mut().chain(twice.values_mut()) {
        // Of a directory that changed without the log the time is anything.
        seen.mtime = (0, 0);
    }
    let diff = difference(&once, &twice);
    assert!(diff.is_empty(), "a second redo changes nothing:\n{diff}");
    once
}

fn content<'a>(s: &'a Snapshot, path: &str) -> Option<&'a [u8]> {
    s.get(Path::new(path)).map(|s| s.content.as_slice())
}

#[test]
fn an_unlogged_rename_of_an_old_file_to_a_name_of_the_log() {
    // A database recycles a log file: to a name that the log created and removed.
    let s = unlogged(
        |v| {
            file(v, R, b"old", b"durable");
        },
        |v| {
            file(v, R, b"new", b"x");
            v.commit_and_wait().unwrap();
            v.unlink(R, b"new").unwrap();
        },
        |data| std::fs::rename(data.join("old"), data.join("new")).unwrap(),
    );
    assert!(content(&s, "old").or(content(&s, "new")) == Some(b"durable"), "{s:?}");
    // The same, to a name where the log's file stands.
    let s = unlogged(
        |v| {
            file(v, R, b"old", b"durable");
        },
        |v| {
            file(v, R, b"new", b"logged");
        },
        |data| std::fs::rename(data.join("old"), data.join("new")).unwrap(),
    );
    assert!(content(&s, "old").or(content(&s, "new")) == Some(b"durable"), "{s:?}");
}

#[test]
fn an_unlogged_rename_of_a_file_of_the_log_leaves_one_name() {
    let s = unlogged(
        |_| {},
        |v| {
            file(v, R, b"1", b"segment");
        },
        |data| std::fs::rename(data.join("1"), data.join("5")).unwrap(),
    );
    let files: Vec<_> = s.values().filter(|s| s.kind == '-').collect();
    assert_eq!(files.len(), 1, "never two names of one file: {s:?}");
    assert_eq!(files[0].content, b"segment");
}

#[test]
fn an_unlogged_move_into_a_directory_that_the_log_does_not_know() {
    let s = unlogged(
        |v| {
            let p = dir(v, R, b"p");
            file(v, p, b"f", b"durable");
        },
        |v| {
            dir(v, R, b"tmp");
            v.commit_and_wait().unwrap();
            v.rmdir(R, b"tmp").unwrap();
        },
        |data| {
            std::fs::create_dir(data.join("tmp")).unwrap();
            std::fs::rename(data.join("p"), data.join("tmp/p")).unwrap();
        },
    );
    assert!(s.values().any(|s| s.content == b"durable"), "{s:?}");
}

#[test]
fn unlogged_changes_of_everything_lose_no_old_directory() {
    // Two directories that the log moved, moved back and into each other behind it.
    let s = unlogged(
        |v| {
            let a = dir(v, R, b"a");
            file(v, a, b"f", b"one");
            let b = dir(v, R, b"b");
            file(v, b, b"g", b"two");
        },
        |v| {
            let b = v.lookup(R, b"b").unwrap().id;
            mv(v, (R, b"a"), (b, b"a"));
        },
        |data| {
            std::fs::rename(data.join("b/a"), data.join("a")).unwrap();
            std::fs::rename(data.join("b"), data.join("a/b")).unwrap();
        },
    );
    for want in [b"one", b"two"] {
        assert!(s.values().any(|s| s.content == want), "{s:?}");
    }
}

#[test]
fn a_size_set_and_a_hole_punched_are_redone() {
    let h = History::by_hand(
        |v| {
            file(v, R, b"f", &vec![7; 20_000]);
        },
        |v| {
            let id = v.lookup(R, b"f").unwrap().id;
            let open = v.open(ROOT, id, 2).unwrap();
            v.fallocate(ROOT, &open, 3, 100, 10_000).unwrap();
            v.commit_and_wait().unwrap();
            let set = SetAttr { size: Some(50), ..SetAttr::default() };
            v.setattr(ROOT, id, &set, Some(&open)).unwrap();
            v.commit_and_wait().unwrap();
            v.write(&open, 30_000, &[9; 10], false).unwrap();
            v.release(open);
        },
    );
    h.check_all();
}
