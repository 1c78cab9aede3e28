//! After each commit the replica is what the primary is: random histories, and the cases that they were shrunk to.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Action, World, actions, cases, data_of, difference, follow, mode_of, secondary};
use nasd_volume::commit::PART_BYTES;
use nasd_volume::{Caller, FileId, SetAttr, SetTime, Time, Volume};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const FAILED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/replica.txt");
const ROOT: Caller = Caller { uid: 0, gid: 0 };

fn pair() -> (tempfile::TempDir, Arc<Volume>, Arc<Volume>) {
    let dir = tempfile::tempdir().unwrap();
    let a = Volume::create_at(&dir.path().join("a")).unwrap();
    let b = secondary(&dir.path().join("b"), a.id());
    // The two roots were made at different times.
    let set = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
    a.setattr(ROOT, FileId::ROOT, &set, None).unwrap();
    (dir, a, b)
}

fn check(a: &Volume, b: &Volume) {
    follow(a, b);
    assert_eq!(b.applied(), a.log.tail());
    let diff = difference(&data_of(a), &data_of(b));
    assert!(diff.is_empty(), "{diff}");
    assert_eq!(std::fs::read_dir(b.state_dir().join("limbo")).unwrap().count(), 0, "limbo is empty");
}

fn replicate(actions: &[Action]) {
    let (_dir, a, b) = pair();
    let mut world = World::new(Arc::clone(&a));
    for action in actions {
        if world.run(action) {
            check(&a, &b);
        }
    }
    a.commit_and_wait().unwrap();
    check(&a, &b);
}

proptest! {
    #![proptest_config(cases(60, FAILED))]

    #[test]
    fn the_replica_is_equal_after_each_commit(actions in actions(120)) {
        replicate(&actions);
    }
}

#[test]
fn a_transaction_in_parts_is_applied_whole_or_not_at_all() {
    let (_dir, a, b) = pair();
    let mut bytes = vec![0; 1 << 20];
    let (attr, open) = a.create(ROOT, FileId::ROOT, b"big", 0o600, 0, 0).unwrap();
    let parts =
        |from: u64| (from + 1..=a.log.tail().seq).filter(|&s| a.log.entry(s).unwrap().continues).count();
    let start = a.log.tail().seq;
    // A rename between the parts, so that a half would be seen.
    for i in 0..(PART_BYTES >> 20) as u64 + 4 {
        let mut hash = blake3::Hasher::new();
        hash.update(&i.to_le_bytes()).finalize_xof().fill(&mut bytes);
        a.write(&open, i << 20, &bytes, false).unwrap();
    }
    a.rename(FileId::ROOT, b"big", FileId::ROOT, b"large", 0).unwrap();
    a.seal_unsynced(Duration::ZERO).unwrap();
    assert_eq!(parts(start), 1, "a part was sealed to make room");
    follow(&a, &b);
    assert!(b.lookup(FileId::ROOT, b"big").is_err(), "nothing of it is applied");
    a.commit_and_wait().unwrap();
    a.release(open);
    check(&a, &b);
    assert_eq!(b.lookup(FileId::ROOT, b"large").unwrap().id, attr.id);
}

#[test]
fn the_umask_of_this_process_does_not_matter() {
    let (_dir, a, b) = pair();
    let (_, open) = a.create(ROOT, FileId::ROOT, b"f", 0o666, 0, 0).unwrap();
    a.release(open);
    a.mkdir(ROOT, FileId::ROOT, b"d", 0o777, 0o007).unwrap();
    a.mknod(ROOT, FileId::ROOT, b"p", 0o010_662, 0, 0).unwrap();
    a.commit_and_wait().unwrap();
    check(&a, &b);
    for v in [a, b] {
        let mode = |name: &str| mode_of(&v.state_dir().join("data").join(name));
        assert_eq!((mode("f"), mode("d"), mode("p")), (0o666, 0o770, 0o662));
    }
}

#[test]
fn what_this_process_does_with_times_is_not_what_files_have() {
    let (_dir, a, b) = pair();
    let (attr, open) = a.create(ROOT, FileId::ROOT, b"f", 0o666, 0, 0).unwrap();
    a.write(&open, 0, b"x", false).unwrap();
    let (atime, mtime) = (Time { secs: -5, nanos: 1 }, Time { secs: 5, nanos: 999_999_999 });
    let set =
        SetAttr { atime: Some(SetTime::At(atime)), mtime: Some(SetTime::At(mtime)), ..SetAttr::default() };
    a.setattr(ROOT, attr.id, &set, None).unwrap();
    a.release(open);
    a.commit_and_wait().unwrap();
    follow(&a, &b);
    let got = b.getattr(attr.id, None).unwrap();
    assert_eq!((got.atime, got.mtime), (atime, mtime));
}
