//! Two volumes that differ arbitrarily are made equal by what a comparison finds, in a copy and in a transaction.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Action, World, actions, cases, data_of, difference, follow, receive, reopen, secondary};
use nasd_volume::compare::{CompareError, Differences, Item};
use nasd_volume::{Access, Caller, FileId, FsError, SetAttr, SetTime, Volume};
use proptest::prelude::*;
use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

const FAILED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/compare.txt");
const ROOT: Caller = Caller { uid: 0, gid: 0 };

fn manifest(v: &Volume) -> HashMap<FileId, Item> {
    let mut all = HashMap::new();
    v.manifest(
        |_| (),
        |items| {
            all.extend(items.into_iter().map(|i| (i.id, i)));
            Ok::<(), Infallible>(())
        },
    )
    .unwrap();
    all
}

/// What a comparison of `b` with `a` finds; nothing is done about it.
fn compare(a: &Volume, b: &Volume) -> Differences {
    a.differences(manifest(b), |_| (), |_, _| Ok::<(), Infallible>(())).unwrap()
}

fn equal(a: &Volume, b: &Volume) {
    let diff = difference(&data_of(a), &data_of(b));
    assert!(diff.is_empty(), "{diff}");
    assert_eq!(std::fs::read_dir(b.state_dir().join("limbo")).unwrap().count(), 0, "limbo is empty");
    assert_eq!(compare(a, b).different, 0, "a second comparison finds nothing");
}

/// Changes behind nasd's back: files without an id, with somebody else's, and contents.
fn tamper(data: &Path, seed: u32) {
    let mut paths: Vec<_> = walkdir::WalkDir::new(data)
        .min_depth(1)
        .sort_by_file_name()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    if paths.is_empty() {
        return;
    }
    let victim = paths.swap_remove(seed as usize % paths.len());
    let path = victim.path();
    match seed / 256 % 5 {
        0 if victim.file_type().is_file() => std::fs::write(path, b"not what it was").unwrap(),
        1 if victim.file_type().is_file() => {
            // A copy with everything: the id too.
            let to = path.with_file_name("copy");
            common::copy_tree(path, &to);
        }
        2 => {
            // An id that is taken by another kind of file.
            let id = {
                let mut id = vec![0; 8];
                rustix::fs::lgetxattr(path, "trusted.nasd.id", &mut id[..]).unwrap();
                id
            };
            if victim.file_type().is_dir() {
                std::fs::remove_dir_all(path).unwrap();
                std::fs::write(path, b"once a directory").unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
                std::fs::create_dir(path).unwrap();
                std::fs::write(path.join("below"), b"x").unwrap();
            }
            rustix::fs::lsetxattr(path, "trusted.nasd.id", &id, rustix::fs::XattrFlags::empty()).unwrap();
        }
        3 if victim.file_type().is_dir() => std::fs::remove_dir_all(path).unwrap(),
        _ => std::fs::create_dir_all(data.join("tampered/deep")).unwrap(),
    }
}

/// A common history, then two that differ. `b` has ids of its own or, as nothing should do, the same as `a`.
fn diverged(
    common: &[Action],
    ours: &[Action],
    theirs: &[Action],
    same_ids: bool,
    tampered: Option<u32>,
) -> (tempfile::TempDir, Arc<Volume>, Arc<Volume>) {
    let dir = tempfile::tempdir().unwrap();
    let a = Volume::create_at(&dir.path().join("a")).unwrap();
    let b = secondary(&dir.path().join("b"), a.id());
    let mut world = World::new(Arc::clone(&a));
    for action in common {
        world.run(action);
    }
    a.commit_and_wait().unwrap();
    follow(&a, &b);
    for action in ours {
        world.run(action);
    }
    drop(world);
    a.commit_and_wait().unwrap();
    drop(b);
    // It counts on from the highest that it finds, as the primary does.
    let b = reopen(&dir.path().join("b")).volume;
    if !same_ids {
        b.begin_epoch(7);
    }
    b.set_access(Access::ReadWrite);
    let mut world = World::new(Arc::clone(&b));
    for action in theirs.iter().filter(|a| !matches!(a, Action::Commit)) {
        world.run(action);
    }
    drop(world);
    b.set_access(Access::Closed);
    // The operations are lost; what they did is not.
    b.state.update(|s| s.needs_copy = true).unwrap();
    if let Some(seed) = tampered {
        drop(b);
        tamper(&dir.path().join("b/data"), seed);
        let b = reopen(&dir.path().join("b")).volume;
        return (dir, a, b);
    }
    (dir, a, b)
}

/// A full copy, as the daemon does it, with writers on the primary meanwhile.
fn copy(a: &Volume, b: &Volume, meanwhile: impl FnOnce()) {
    a.commit_and_wait().unwrap();
    b.copy_begin(a.log.tail(), a.log.tail_timestamp()).unwrap();
    let theirs = manifest(b);
    let mut meanwhile = Some(meanwhile);
    a.differences(
        theirs,
        |_| (),
        |ops, _| {
            b.copy_ops(ops).unwrap();
            if let Some(f) = meanwhile.take() {
                f();
            }
            Ok::<(), Infallible>(())
        },
    )
    .unwrap();
    if let Some(f) = meanwhile.take() {
        f();
    }
    a.commit_and_wait().unwrap();
    receive(a, b);
    b.copy_end(a.log.tail()).unwrap();
    b.set_access(Access::ReadOnly);
}

proptest! {
    #![proptest_config(cases(40, FAILED))]

    #[test]
    fn a_copy_makes_equal(
        common in actions(60), ours in actions(40), theirs in actions(40), meanwhile in actions(20),
        same_ids in any::<bool>(), tampered in any::<Option<u32>>(),
    ) {
        let (_dir, a, b) = diverged(&common, &ours, &theirs, same_ids, tampered);
        copy(&a, &b, || {
            let mut world = World::new(Arc::clone(&a));
            // Ids that both give at the same time are beyond what epochs allow.
            for action in meanwhile.iter().filter(|_| !same_ids) {
                world.run(action);
            }
        });
        equal(&a, &b);
        // And it is a replica from here on.
        let mut world = World::new(Arc::clone(&a));
        for action in &ours {
            world.run(action);
        }
        a.commit_and_wait().unwrap();
        follow(&a, &b);
        equal(&a, &b);
    }

    #[test]
    fn a_transaction_that_states_makes_equal(
        common in actions(60), theirs in actions(40), same_ids in any::<bool>(), after in actions(20),
    ) {
        let (dir, a, b) = diverged(&common, &[], &theirs, same_ids, None);
        b.state.update(|s| s.needs_copy = false).unwrap();
        drop(b);
        // Its tail is the primary's; its files are not.
        let b = reopen(&dir.path().join("b")).volume;
        let theirs = manifest(&b);
        a.log_state(|sink| a.differences(theirs, |_| (), sink).map(drop).map_err(|e| match e {
            CompareError::Sink(e) => e,
            CompareError::Io(e) => FsError::Os(e),
        })).unwrap();
        follow(&a, &b);
        equal(&a, &b);
        // The statement is redone like any other transaction.
        let mut world = World::new(Arc::clone(&a));
        for action in &after {
            world.run(action);
        }
        drop(world);
        a.commit_and_wait().unwrap();
        follow(&a, &b);
        let want = data_of(&a);
        drop((a, b));
        for node in ["a", "b"] {
            drop(reopen(&dir.path().join(node)));
            let diff = difference(&want, &common::snapshot(&dir.path().join(node).join("data")));
            prop_assert!(diff.is_empty(), "redone on {}:\n{}", node, diff);
        }
    }
}

fn pair() -> (tempfile::TempDir, Arc<Volume>, Arc<Volume>) {
    diverged(&[], &[], &[], false, None)
}

fn write(v: &Volume, name: &[u8], offset: u64, bytes: &[u8]) {
    let (_, open) = v.create(ROOT, FileId::ROOT, name, 0o644, 0, 0).unwrap();
    v.write(&open, offset, bytes, false).unwrap();
    v.release(open);
}

#[test]
fn reading_for_a_comparison_does_not_differ() {
    let (_dir, a, b) = pair();
    a.symlink(ROOT, FileId::ROOT, b"l", b"target").unwrap();
    a.mkdir(ROOT, FileId::ROOT, b"d", 0o755, 0).unwrap();
    write(&a, b"f", 0, b"x");
    copy(&a, &b, || {});
    for _ in 0..3 {
        // Both are read by others, too; the filesystem below notes the time of that.
        for v in [&a, &b] {
            std::fs::read_link(v.state_dir().join("data/l")).unwrap();
            std::fs::read(v.state_dir().join("data/f")).unwrap();
            std::fs::read_dir(v.state_dir().join("data/d")).unwrap().for_each(drop);
        }
        equal(&a, &b);
    }
}

#[test]
fn what_is_sent_is_what_differs() {
    let (_dir, a, b) = pair();
    write(&a, b"sparse", 100 << 20, b"end");
    write(&a, b"same", 0, &vec![7; 1 << 20]);
    copy(&a, &b, || {});
    write(&a, b"same", 70_000, &[8; 10]);
    a.commit_and_wait().unwrap();
    let found = compare(&a, &b);
    assert_eq!((found.different, found.sent), (1, 64 << 10), "one block");
    copy(&a, &b, || {});
    equal(&a, &b);
    assert!(b.lookup(FileId::ROOT, b"sparse").unwrap().blocks * 512 < 1 << 20, "it is sparse still");
}

#[test]
fn what_a_broken_copy_left_aside_does_not_come_back_with_old_bytes() {
    let (dir, a, b) = pair();
    write(&a, b"f", 0, &vec![1; 100_000]);
    copy(&a, &b, || {});
    let id = a.lookup(FileId::ROOT, b"f").unwrap().id;
    let limbo = b.state_dir().join("limbo").join(format!("{:016x}", id.0));
    b.state.update(|s| s.needs_copy = true).unwrap();
    drop(b);
    std::fs::rename(dir.path().join("b/data/f"), limbo).unwrap();
    let b = reopen(&dir.path().join("b")).volume;
    // Zeros where the old bytes were: a comparison with nothing sends none of them.
    let open = a.open(ROOT, id, 2).unwrap();
    a.fallocate(ROOT, &open, 3, 0, 70_000).unwrap();
    a.release(open);
    copy(&a, &b, || {});
    equal(&a, &b);
}

#[test]
fn targets_and_devices_are_replaced() {
    let (_dir, a, b) = diverged(&[], &[], &[], true, None);
    b.set_access(Access::ReadWrite);
    for (v, target, dev) in [(&a, b"one", 0x0103), (&b, b"two", 0x0105)] {
        let set = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
        v.setattr(ROOT, FileId::ROOT, &set, None).unwrap();
        v.symlink(ROOT, FileId::ROOT, b"l", target).unwrap();
        v.mknod(ROOT, FileId::ROOT, b"c", 0o020_600, 0, dev).unwrap();
    }
    assert_eq!(a.lookup(FileId::ROOT, b"l").unwrap().id, b.lookup(FileId::ROOT, b"l").unwrap().id);
    copy(&a, &b, || {});
    equal(&a, &b);
}
