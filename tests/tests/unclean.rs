//! After an unclean stop: bytes that no transaction holds, and logs that end at different places.
#![allow(clippy::unwrap_used)]

use nasd_tests::snapshot::{assert_equal, snapshot};
use nasd_tests::{Pair, Setup, put, seq};
use std::fs;
use std::os::unix::fs::FileExt;

/// Nobody seals but who syncs.
fn lazy() -> Setup {
    Setup { replication: "peer_timeout = \"2s\"\ncommit_interval = \"1h\"".to_owned(), ..Setup::default() }
}

#[test]
fn bytes_in_no_transaction_are_on_the_secondary_before_anybody_reads_them() {
    let mut pair = Pair::start_with(&lazy());
    for n in 0..20u8 {
        put(pair.a.path(&format!("f{n}")), vec![n; 100_000]);
    }
    fs::create_dir(pair.a.path("d")).unwrap();
    put(pair.a.path("d/moved"), "moved");
    pair.settle();
    let before = seq(&pair.a.status());
    // Written, not synced: overwritten, grown, cut, made, renamed, removed, and attributes.
    let f = fs::File::options().write(true).open(pair.a.path("f3")).unwrap();
    f.write_all_at(b"unlogged", 70_000).unwrap();
    f.write_all_at(b"behind the end", 300_000).unwrap();
    fs::File::options().write(true).open(pair.a.path("f4")).unwrap().set_len(77).unwrap();
    fs::write(pair.a.path("new"), vec![9; 200_000]).unwrap();
    fs::rename(pair.a.path("d/moved"), pair.a.path("here")).unwrap();
    fs::remove_file(pair.a.path("f5")).unwrap();
    fs::rename(pair.a.path("f6"), pair.a.path("f7")).unwrap();
    fs::hard_link(pair.a.path("f8"), pair.a.path("d/f8")).unwrap();
    std::os::unix::fs::symlink("f9", pair.a.path("s")).unwrap();
    fs::set_permissions(pair.a.path("f9"), std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    rustix::fs::setxattr(pair.a.path("f9"), "user.x", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(seq(&pair.a.status()), before, "no transaction holds any of it");
    pair.a.kill();
    pair.a.start();
    let a = pair.a.wait_status("serves", |s| s["role"] == "primary" && s["peers"][0].is_object());
    // It serves, and the peer has on its disk what was found.
    pair.a.wait_for("primary", "in-sync");
    assert!(pair.a.log_text().contains("after the unclean stop"), "{}", pair.a.log_text());
    assert!(pair.b.status()["durable_seq"].as_u64() >= a["seq"].as_u64());
    pair.settle();
    assert_equal("after the comparison", &pair.a.data(), &pair.b.data());
    // A redo may have written over some of it, which nobody was promised; the rest is now as good as synced.
    let data = snapshot(&pair.a.data());
    for root in [&pair.a.mount, &pair.b.mount] {
        assert_eq!(&fs::read(root.join("f3")).unwrap()[300_000..], b"behind the end");
        assert_eq!(fs::read(root.join("new")).unwrap(), vec![9; 200_000]);
    }
    // And a promotion shows just that.
    pair.a.kill();
    pair.b.cli(&["promote"]);
    assert_eq!(snapshot(&pair.b.data()), data);
}

#[test]
fn with_no_peer_to_compare_with_the_peer_is_compared_when_it_comes() {
    let mut pair = Pair::start_with(&lazy());
    put(pair.a.path("x"), vec![1; 100_000]);
    pair.settle();
    pair.b.kill();
    let f = fs::File::options().write(true).open(pair.a.path("x")).unwrap();
    // Where no redo writes.
    f.write_all_at(b"unlogged", 200_000).unwrap();
    pair.a.kill();
    pair.a.start();
    pair.a.wait_for("primary", "waiting");
    pair.a.cli(&["promote", "--force"]);
    pair.a.wait_for("primary", "degraded");
    pair.b.start();
    pair.in_sync_and_equal();
    assert_eq!(&fs::read(pair.b.path("x")).unwrap()[200_000..], b"unlogged");
}

/// Both killed; the newest `n` transactions are gone from one node's disk.
fn lose_tail(pair: &mut Pair, on_a: bool, n: usize) {
    pair.settle();
    pair.a.kill();
    pair.b.kill();
    let node = if on_a { &pair.a } else { &pair.b };
    let names = node.log_names();
    for name in &names[names.len() - n..] {
        fs::remove_file(node.state_dir.join("log").join(name)).unwrap();
    }
}

#[test]
fn the_primary_takes_over_what_only_its_peer_has() {
    let mut pair = Pair::start_with(&lazy());
    for n in 0..10u8 {
        put(pair.a.path(&format!("f{n}")), vec![n; 9000]);
    }
    let last = seq(&pair.a.status());
    lose_tail(&mut pair, true, 3);
    // The power went as well: what the lost transactions had written is not in data/ either. It must not look as if
    // only the process had been killed.
    let state = nasd_volume::state::StateFile::open(&pair.a.state_dir).unwrap().unwrap();
    state.update(|s| s.whole_in = None).unwrap();
    for n in 7..10 {
        fs::remove_file(pair.a.data().join(format!("f{n}"))).unwrap();
    }
    pair.b.start();
    pair.a.start();
    pair.in_sync_and_equal();
    assert!(pair.a.log_text().contains("took over 3 transactions from b"), "{}", pair.a.log_text());
    assert!(seq(&pair.a.status()) > last);
    for n in 0..10u8 {
        assert_eq!(fs::read(pair.a.path(&format!("f{n}"))).unwrap(), vec![n; 9000], "f{n} was acknowledged");
    }
    assert_eq!(pair.b.status()["diverged_files"], 0);
}

#[test]
fn the_primary_gives_what_only_it_has() {
    let mut pair = Pair::start_with(&lazy());
    for n in 0..10u8 {
        put(pair.a.path(&format!("f{n}")), vec![n; 9000]);
    }
    lose_tail(&mut pair, false, 3);
    for n in 7..10 {
        fs::remove_file(pair.b.data().join(format!("f{n}"))).unwrap();
    }
    pair.b.start();
    pair.a.start();
    pair.in_sync_and_equal();
    for n in 0..10u8 {
        assert_eq!(fs::read(pair.b.path(&format!("f{n}"))).unwrap(), vec![n; 9000], "f{n} was acknowledged");
    }
    assert_eq!(pair.a.status()["diverged_files"], 0);
}

#[test]
fn a_torn_last_transaction_is_found_and_replaced() {
    let mut pair = Pair::start_with(&lazy());
    for n in 0..10u8 {
        put(pair.a.path(&format!("f{n}")), vec![n; 9000]);
    }
    pair.settle();
    pair.a.kill();
    pair.b.kill();
    let names = pair.a.log_names();
    let path = pair.a.state_dir.join("log").join(names.last().unwrap());
    let len = fs::metadata(&path).unwrap().len();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[0xff; 64], len.min(600) - 64)
        .unwrap();
    pair.b.start();
    pair.a.start();
    pair.in_sync_and_equal();
    assert!(pair.a.log_text().contains("was damaged"), "{}", pair.a.log_text());
    assert_eq!(fs::read(pair.a.path("f9")).unwrap(), vec![9; 9000]);
}
