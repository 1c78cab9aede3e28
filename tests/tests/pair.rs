//! The walking pair.
#![allow(clippy::unwrap_used)]

use nasd_tests::snapshot::assert_equal;
use nasd_tests::{Pair, eventually};
use std::fs;
use std::io::Write;

#[test]
fn what_is_synced_is_in_both_logs_and_then_shown() {
    let pair = Pair::start();
    let before = pair.a.status()["seq"].as_u64().unwrap();
    let mut f = fs::File::create(pair.a.path("x")).unwrap();
    f.write_all(b"hello").unwrap();
    f.sync_all().unwrap();
    let seq = pair.a.status()["seq"].as_u64().unwrap();
    assert!(seq > before, "an fsync is a transaction");
    assert!(pair.b.status()["durable_seq"].as_u64().unwrap() >= seq, "the peer had it before fsync returned");
    pair.settle();
    assert_eq!(fs::read(pair.b.path("x")).unwrap(), b"hello");
    assert_eq!(fs::File::create(pair.b.path("y")).unwrap_err().raw_os_error(), Some(30), "read-only");
    assert_equal("replica", &pair.a.data(), &pair.b.data());
}

#[test]
fn the_secondary_takes_over_and_the_old_primary_comes_back() {
    let mut pair = Pair::start();
    fs::write(pair.a.path("x"), b"one").unwrap();
    fs::File::open(pair.a.path("x")).unwrap().sync_all().unwrap();
    pair.a.kill();
    pair.b.cli(&["promote"]);
    assert_eq!(fs::read(pair.b.path("x")).unwrap(), b"one");
    fs::write(pair.b.path("x"), b"two").unwrap();
    fs::File::open(pair.b.path("x")).unwrap().sync_all().unwrap();
    pair.a.start();
    pair.a.wait_for("secondary", "in-sync");
    pair.b.wait_for("primary", "in-sync");
    eventually("the old primary shows the new one's", || {
        (fs::read(pair.a.path("x")).ok()? == b"two").then_some(())
    });
    pair.b.cli(&["switchover"]);
    pair.a.wait_for("primary", "in-sync");
    pair.b.wait_for("secondary", "in-sync");
    fs::write(pair.a.path("x"), b"three").unwrap();
    fs::File::open(pair.a.path("x")).unwrap().sync_all().unwrap();
    pair.settle();
    assert_eq!(fs::read(pair.b.path("x")).unwrap(), b"three");
    assert_equal("replica", &pair.a.data(), &pair.b.data());
}
