//! A bad network: slow, far, cut in the middle of a transaction, or swallowing everything.
#![allow(clippy::unwrap_used)]

use nasd_tests::proxy::Proxy;
use nasd_tests::writer::{Writer, noise};
use nasd_tests::{Pair, Setup, put};
use std::time::{Duration, Instant};

/// A pair whose first node reaches the second through a proxy, and the reverse.
fn pair(replication: &str) -> (Pair, Proxy, Proxy) {
    let (to_b, to_a) = (Proxy::start(), Proxy::start());
    let peer_addresses = Some([to_b.address.clone(), to_a.address.clone()]);
    let mut pair =
        Pair::new(&Setup { peer_addresses, replication: replication.to_owned(), ..Setup::default() });
    to_b.lead_to(&pair.b.listen);
    to_a.lead_to(&pair.a.listen);
    pair.b.start();
    pair.a.start();
    pair.a.wait_for("primary", "in-sync");
    (pair, to_b, to_a)
}

#[test]
fn a_slow_link() {
    let (pair, to_b, _) = pair("peer_timeout = \"2s\"");
    let (rate, mib) = if nasd_tests::long() { (200_000, 8) } else { (1_000_000, 4) };
    to_b.throttle(rate);
    let start = Instant::now();
    for n in 0..mib {
        put(pair.a.path(&format!("f{n}")), noise(n, 1 << 20));
    }
    pair.in_sync_and_equal();
    println!("{mib} MiB over {rate} bytes/s: equal after {:?}", start.elapsed());
    // A link that moves is a link, however slow.
    assert!(!pair.a.log_text().contains("peer b: lost"), "{}", pair.a.log_text());
}

#[test]
fn a_far_peer() {
    let (pair, to_b, _) = pair("peer_timeout = \"2s\"");
    to_b.delay(30);
    let times: Vec<Duration> = (0..10).map(|n| put(pair.a.path(&format!("f{n}")), noise(n, 9000))).collect();
    println!("fsync over a link of 60 ms: {:?}", times.iter().min().unwrap());
    assert!(times.iter().all(|t| *t >= Duration::from_millis(60)), "not one returned early: {times:?}");
    let round_trip =
        pair.a.wait_status("measured", |s| s["peers"][0]["round_trip_us"].as_u64() > Some(59_000));
    assert!(round_trip["peers"][0]["round_trip_us"].as_u64().unwrap() < 2_000_000);
    pair.in_sync_and_equal();
}

#[test]
fn cut_in_the_middle() {
    let (pair, to_b, _) = pair("peer_timeout = \"1s\"");
    let writer = Writer::start(&[&pair.a]);
    let cuts: Vec<i64> = if nasd_tests::long() {
        (0..200).map(|n| n * 97 % 30_000).collect()
    } else {
        vec![0, 1, 700, 5000, 20_000, 33, 12_345]
    };
    for after in &cuts {
        let before = to_b.cuts();
        to_b.cut_after(*after);
        nasd_tests::eventually("cut", || (to_b.cuts() > before).then_some(()));
        pair.a.wait_status("back", |s| s["state"] == "in-sync");
        writer.wait_more(3);
    }
    let written = writer.finish();
    assert_eq!(written.errors, Vec::<i32>::new(), "a cut link is no I/O error");
    println!(
        "{} cuts: {} files, longest pause {:?}",
        cuts.len(),
        written.acknowledged.len(),
        written.longest_pause
    );
    // A large transaction, cut in its own middle.
    to_b.cut_after(3_000_000);
    put(pair.a.path("large"), noise(1, 8 << 20));
    pair.in_sync_and_equal();
    written.check(&pair.b.mount);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_primary_dies_behind_a_cut() {
    let (mut pair, to_b, _) = pair("peer_timeout = \"1s\"\non_peer_loss = \"suspend\"");
    let writer = Writer::start(&[&pair.a]);
    writer.wait_more(10);
    to_b.swallow(true);
    pair.a.wait_for("primary", "suspended");
    pair.a.kill();
    let written = writer.finish();
    // Cut off from a, as b is, nobody can tell b that a is dead; the operator knows, and b was in sync.
    pair.b.cli(&["promote"]);
    written.check(&pair.b.mount);
    to_b.swallow(false);
    pair.a.start();
    pair.a.wait_for("secondary", "in-sync");
    pair.b.wait_for("primary", "in-sync");
    let seq = nasd_tests::seq(&pair.b.status()).to_string();
    pair.a.cli(&["wait", "--seq", &seq, "--timeout", "20s"]);
    nasd_tests::snapshot::assert_equal("both", &pair.a.data(), &pair.b.data());
}

#[test]
fn swallowed() {
    let (pair, to_b, _) = pair("peer_timeout = \"1s\"");
    let writer = Writer::start(&[&pair.a]);
    for _ in 0..2 {
        writer.wait_more(10);
        to_b.swallow(true);
        pair.a.wait_for("primary", "degraded");
        writer.wait_more(10);
        to_b.swallow(false);
        pair.a.wait_for("primary", "in-sync");
    }
    let written = writer.finish();
    assert_eq!(written.errors, Vec::<i32>::new());
    println!("swallowed: longest pause {:?}", written.longest_pause);
    pair.in_sync_and_equal();
    written.check(&pair.b.mount);
}
