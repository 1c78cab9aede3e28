//! What the primary removes and somebody on this node needs is still there, and nothing else differs.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Action, World, actions, cases, copy_tree, data_of, difference, follow, reopen_holding};
use nasd_volume::compare::Item;
use nasd_volume::{Access, Caller, FileId, Hold, Position, SetAttr, SetTime, Volume};
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

const FAILED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/held.txt");
const ROOT: Caller = Caller { uid: 0, gid: 0 };

/// Needs all names that begin so.
struct Needs(&'static [u8]);

impl Hold for Needs {
    fn needs(&self, path: &[u8]) -> bool {
        path.rsplit(|&b| b == b'/').next().is_some_and(|name| name.starts_with(self.0))
    }
}

fn hold(prefix: &'static [u8]) -> Arc<dyn Hold> {
    Arc::new(Needs(prefix))
}

fn pair(prefix: &'static [u8]) -> (tempfile::TempDir, Arc<Volume>, Arc<Volume>) {
    let dir = tempfile::tempdir().unwrap();
    let a = Volume::create_at(&dir.path().join("a")).unwrap();
    let b = common::secondary_holding(&dir.path().join("b"), a.id(), Some(hold(prefix)));
    // The two roots were made at different times.
    let set = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
    a.setattr(ROOT, FileId::ROOT, &set, None).unwrap();
    (dir, a, b)
}

fn equal(a: &Volume, b: &Volume) {
    let diff = difference(&data_of(a), &data_of(b));
    assert!(diff.is_empty(), "{diff}");
    assert_eq!(std::fs::read_dir(b.state_dir().join("limbo")).unwrap().count(), 0, "limbo is empty");
}

fn sync(a: &Volume, b: &Volume) {
    a.commit_and_wait().unwrap();
    follow(a, b);
    equal(a, b);
}

fn put(v: &Volume, name: &[u8], content: &[u8]) -> FileId {
    let (attr, open) = v.create(ROOT, FileId::ROOT, name, 0o640, 0, 0).unwrap();
    v.write(&open, 0, content, false).unwrap();
    v.release(open);
    attr.id
}

fn read(v: &Volume, name: &[u8]) -> Option<Vec<u8>> {
    let attr = v.lookup(FileId::ROOT, name).ok()?;
    let open = v.open(ROOT, attr.id, 0).unwrap();
    let mut buf = vec![0; attr.size as usize + 1];
    let n = v.read(&open, 0, &mut buf).unwrap();
    v.release(open);
    buf.truncate(n);
    Some(buf)
}

fn listed(v: &Volume) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = v.readdir(FileId::ROOT).unwrap().into_iter().map(|e| e.name).collect();
    names.retain(|n| n != b"." && n != b"..");
    names.sort();
    names
}

fn held(v: &Volume) -> Vec<Option<Vec<u8>>> {
    v.held().into_iter().map(|h| h.path).collect()
}

#[test]
fn what_is_removed_stays_until_it_is_let_go() {
    let (_dir, a, b) = pair(b"seg");
    put(&a, b"seg1", b"one");
    put(&a, b"other", b"two");
    sync(&a, &b);
    a.unlink(FileId::ROOT, b"seg1").unwrap();
    a.unlink(FileId::ROOT, b"other").unwrap();
    sync(&a, &b);
    assert_eq!(read(&b, b"seg1").as_deref(), Some(&b"one"[..]));
    assert_eq!(read(&b, b"other"), None);
    assert_eq!(listed(&b), [b"seg1"]);
    let all = b.held();
    assert_eq!(all.len(), 1);
    assert!(all[0].bytes >= 3);
    b.let_go(&all[0]).unwrap();
    b.let_go(&all[0]).unwrap();
    assert_eq!((read(&b, b"seg1"), listed(&b).len(), b.held().len()), (None, 0, 0));
    assert_eq!(std::fs::read_dir(b.state_dir().join("held")).unwrap().count(), 0);
}

/// PostgreSQL recycles a segment by a rename (since 15) or a link and a removal (before), and overwrites it then.
#[test]
fn what_lives_on_under_another_name_is_copied() {
    for linked in [false, true] {
        let (_dir, a, b) = pair(b"seg");
        let id = put(&a, b"seg1", &[7; 10_000]);
        sync(&a, &b);
        if linked {
            a.link(id, FileId::ROOT, b"seg9").unwrap();
            a.unlink(FileId::ROOT, b"seg1").unwrap();
        } else {
            a.rename(FileId::ROOT, b"seg1", FileId::ROOT, b"seg9", 0).unwrap();
        }
        let open = a.open(ROOT, id, 2).unwrap();
        a.write(&open, 0, b"new", false).unwrap();
        a.release(open);
        sync(&a, &b);
        assert_eq!(read(&b, b"seg1").unwrap(), vec![7; 10_000], "linked: {linked}");
        assert_eq!(&read(&b, b"seg9").unwrap()[..4], b"new\x07");
        assert_eq!(listed(&b), [b"seg1", b"seg9"]);
        let attr = b.lookup(FileId::ROOT, b"seg1").unwrap();
        assert_eq!((attr.perm, attr.nlink), (0o640, 1));
    }
}

#[test]
fn a_held_file_can_be_read_and_removed_and_nothing_else() {
    let (_dir, a, b) = pair(b"seg");
    let ids: Vec<FileId> = (b'1'..=b'4').map(|n| put(&a, &[b's', b'e', b'g', n], b"x")).collect();
    assert_eq!(ids.len(), 4);
    sync(&a, &b);
    for n in b'1'..=b'4' {
        a.unlink(FileId::ROOT, &[b's', b'e', b'g', n]).unwrap();
    }
    sync(&a, &b);
    // On a secondary, by the database that has no use for it any more.
    b.unlink(FileId::ROOT, b"seg1").unwrap();
    assert_eq!(listed(&b).len(), 3);
    // The same as primary.
    b.state.update(|s| s.epoch = 2).unwrap();
    b.start_epoch(2, "b").unwrap();
    b.set_access(Access::ReadWrite);
    let seq = b.log.tail().seq;
    let id = b.lookup(FileId::ROOT, b"seg2").unwrap().id;
    assert!(b.rename(FileId::ROOT, b"seg2", FileId::ROOT, b"seg9", 0).is_err());
    assert!(b.link(id, FileId::ROOT, b"seg9").is_err());
    assert!(b.setattr(ROOT, id, &SetAttr { mode: Some(0o777), ..SetAttr::default() }, None).is_err());
    assert!(b.setxattr(ROOT, id, b"user.x", b"y", 0).is_err());
    assert!(b.create(ROOT, FileId::ROOT, b"seg2", 0o600, 0, 0o200).is_err());
    let open = b.open(ROOT, id, 2).unwrap();
    assert!(b.write(&open, 0, b"y", false).is_err());
    assert!(b.fallocate(ROOT, &open, 0, 0, 100).is_err());
    b.release(open);
    b.unlink(FileId::ROOT, b"seg2").unwrap();
    assert!(b.unlink(FileId::ROOT, b"seg2").is_err());
    b.commit_and_wait().unwrap();
    assert_eq!(b.log.tail().seq, seq, "nothing of it is in the log");
    // Another file takes the place: that one counts, and the held one is shown nowhere.
    put(&b, b"new", b"new");
    b.rename(FileId::ROOT, b"new", FileId::ROOT, b"seg3", 0).unwrap();
    assert_eq!(read(&b, b"seg3").as_deref(), Some(&b"new"[..]));
    assert_eq!(held(&b), [None, Some(b"seg4".to_vec())]);
    b.unlink(FileId::ROOT, b"seg3").unwrap();
    assert_eq!(read(&b, b"seg3").as_deref(), Some(&b"x"[..]));
}

#[test]
fn a_restart_and_a_crash_keep_what_is_held() {
    let (dir, a, b) = pair(b"seg");
    put(&a, b"seg1", b"one");
    put(&a, b"seg2", b"two");
    put(&a, b"seg3", b"three");
    sync(&a, &b);
    b.checkpoint().unwrap();
    let before = dir.path().join("before");
    copy_tree(&dir.path().join("b/data"), &before);
    a.unlink(FileId::ROOT, b"seg1").unwrap();
    a.rename(FileId::ROOT, b"seg2", FileId::ROOT, b"seg9", 0).unwrap();
    put(&a, b"more", b"more");
    a.rename(FileId::ROOT, b"more", FileId::ROOT, b"seg3", 0).unwrap();
    sync(&a, &b);
    let names: [&[u8]; 4] = [b"seg1", b"seg2", b"seg3", b"seg9"];
    let check = |b: &Volume| {
        equal(&a, b);
        assert_eq!(listed(b), names);
        assert_eq!(read(b, b"seg1").as_deref(), Some(&b"one"[..]));
        assert_eq!(read(b, b"seg2").as_deref(), Some(&b"two"[..]));
        assert_eq!(read(b, b"seg3").as_deref(), Some(&b"more"[..]));
    };
    check(&b);
    drop(b);
    let path = dir.path().join("b");
    let b = reopen_holding(&path, Some(hold(b"seg"))).volume;
    b.set_access(Access::ReadOnly);
    check(&b);
    drop(b);
    // Nothing of the removals had reached the disk.
    std::fs::remove_dir_all(path.join("data")).unwrap();
    std::fs::remove_dir_all(path.join("held")).unwrap();
    std::fs::rename(before, path.join("data")).unwrap();
    let b = reopen_holding(&path, Some(hold(b"seg"))).volume;
    b.set_access(Access::ReadOnly);
    check(&b);
    drop(b);
    // A crash came between the file's way into held/ and its new identity, and one in the middle of a copy.
    let one = std::fs::read_dir(path.join("held"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| std::fs::read(p).unwrap() == b"one");
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(one.as_ref().unwrap(), name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("trusted.nasd.id", &((1_u64 << 40) + 12345).to_be_bytes());
    std::fs::write(path.join("held/half"), b"ha").unwrap();
    let b = reopen_holding(&path, Some(hold(b"seg"))).volume;
    b.set_access(Access::ReadOnly);
    check(&b);
    assert!(b.held().len() == 2 && b.lookup(FileId::ROOT, b"seg1").unwrap().id.is_local());
}

/// Makes `b`, whose log goes on from `base`, equal to what `a` is now.
fn copy_from(a: &Volume, b: &Volume, base: Position) {
    b.copy_begin(base, a.log.entry(base.seq).unwrap().timestamp).unwrap();
    let mut theirs: HashMap<FileId, Item> = HashMap::new();
    b.manifest::<()>(
        |_| (),
        |items| {
            theirs.extend(items.into_iter().map(|i| (i.id, i)));
            Ok(())
        },
    )
    .unwrap();
    assert!(theirs.keys().all(|id| !id.is_local()));
    a.differences::<()>(
        theirs,
        |_| (),
        |ops, _| {
            b.copy_ops(ops).unwrap();
            Ok(())
        },
    )
    .unwrap();
}

/// The way back of an old primary: the new one has removed what the database here needs for its restart.
#[test]
fn a_comparison_neither_takes_nor_sees_what_is_held() {
    let (dir, a, b) = pair(b"seg");
    put(&a, b"seg1", b"one");
    put(&a, b"seg2", b"two");
    sync(&a, &b);
    a.unlink(FileId::ROOT, b"seg1").unwrap();
    sync(&a, &b);
    a.unlink(FileId::ROOT, b"seg2").unwrap();
    a.commit_and_wait().unwrap();
    let base = a.log.tail();
    copy_from(&a, &b, base);
    b.copy_end(base).unwrap();
    b.set_access(Access::ReadOnly);
    equal(&a, &b);
    assert_eq!(read(&b, b"seg1").as_deref(), Some(&b"one"[..]));
    assert_eq!(read(&b, b"seg2").as_deref(), Some(&b"two"[..]));
    drop(b);
    let b = reopen_holding(&dir.path().join("b"), Some(hold(b"seg"))).volume;
    assert_eq!(held(&b), [Some(b"seg1".to_vec()), Some(b"seg2".to_vec())]);
}

/// What came and went while this node was away, and what went on growing before it went, is held whole when it comes
/// back by a comparison or a redo.
#[test]
fn what_came_and_went_meanwhile_is_held() {
    for compare in [false, true] {
        let (dir, a, b) = pair(b"seg");
        let id = put(&a, b"seg1", b"one");
        sync(&a, &b);
        b.checkpoint().unwrap();
        let base = a.log.tail();
        let open = a.open(ROOT, id, 2).unwrap();
        a.write(&open, 3, b" and more", false).unwrap();
        a.release(open);
        a.commit_and_wait().unwrap();
        put(&a, b"tmp", b"two");
        a.rename(FileId::ROOT, b"tmp", FileId::ROOT, b"seg2", 0).unwrap();
        a.commit_and_wait().unwrap();
        put(&a, b"seg3", b"three");
        a.unlink(FileId::ROOT, b"seg1").unwrap();
        a.unlink(FileId::ROOT, b"seg2").unwrap();
        put(&a, b"seg4", b"four");
        a.commit_and_wait().unwrap();
        a.unlink(FileId::ROOT, b"seg3").unwrap();
        a.commit_and_wait().unwrap();
        let end = a.log.tail();
        let b = if compare {
            copy_from(&a, &b, base);
            common::receive(&a, &b);
            b.copy_end(end).unwrap();
            b
        } else {
            common::receive(&a, &b);
            drop(b);
            reopen_holding(&dir.path().join("b"), Some(hold(b"seg"))).volume
        };
        b.set_access(Access::ReadOnly);
        equal(&a, &b);
        for (name, content) in
            [("seg1", "one and more"), ("seg2", "two"), ("seg3", "three"), ("seg4", "four")]
        {
            let found = read(&b, name.as_bytes());
            assert_eq!(found.as_deref(), Some(content.as_bytes()), "compare: {compare}, {name}");
        }
        assert_eq!(b.held().len(), 3);
    }
}

/// Regular files by path, with the id of their directory.
fn files(v: &Volume, dir: FileId, out: &mut BTreeSet<(FileId, Vec<u8>)>) {
    for e in v.readdir(dir).unwrap() {
        match e.kind {
            _ if e.name == b"." || e.name == b".." => {}
            nasd_volume::Kind::Dir => {
                out.remove(&(dir, e.name));
                files(v, e.id, out);
            }
            nasd_volume::Kind::File => {
                out.insert((dir, e.name));
            }
            // It took the place: what stood there before need not be seen again.
            _ => {
                out.remove(&(dir, e.name));
            }
        }
    }
}

fn is_dir(v: &Volume, id: FileId) -> bool {
    v.getattr(id, None).is_ok_and(|a| a.kind == nasd_volume::Kind::Dir)
}

/// With everything needed, whatever stood in a directory at a commit is seen there as long as the directory lives, and
/// the replica's own files are what they are without it, after a restart too.
fn hold_everything(actions: &[Action]) {
    let (dir, a, b) = pair(b"");
    let mut world = World::new(Arc::clone(&a));
    let mut stood: BTreeSet<(FileId, Vec<u8>)> = BTreeSet::new();
    let check = |b: &Volume, stood: &BTreeSet<(FileId, Vec<u8>)>| {
        equal(&a, b);
        for (dir, name) in stood.iter().filter(|(dir, _)| is_dir(b, *dir)) {
            let found = b.lookup(*dir, name);
            assert!(found.is_ok(), "{dir}/{}: {found:?}", String::from_utf8_lossy(name));
            assert!(b.readdir(*dir).unwrap().iter().any(|e| e.name == *name));
        }
    };
    for action in actions {
        if world.run(action) {
            follow(&a, &b);
            files(&a, FileId::ROOT, &mut stood);
            check(&b, &stood);
        }
    }
    a.commit_and_wait().unwrap();
    follow(&a, &b);
    check(&b, &stood);
    drop(b);
    let b = reopen_holding(&dir.path().join("b"), Some(hold(b""))).volume;
    b.set_access(Access::ReadOnly);
    check(&b, &stood);
}

proptest! {
    #![proptest_config(cases(40, FAILED))]

    #[test]
    fn holding_changes_nothing_but_what_is_shown(actions in actions(100)) {
        hold_everything(&actions);
    }
}
