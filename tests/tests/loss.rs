//! A peer that is away: killed, frozen, for long, for ever.
#![allow(clippy::unwrap_used)]

use nasd_tests::writer::Writer;
use nasd_tests::{Pair, Setup, eventually, put, seq};
use std::fs;
use std::time::{Duration, Instant};

fn setup(more: &str) -> Setup {
    Setup { replication: format!("peer_timeout = \"1s\"\n{more}"), ..Setup::default() }
}

/// What the primary's state file says of who is out.
fn out_of_set(pair: &Pair) -> bool {
    let text = fs::read_to_string(pair.a.state_dir.join("state")).unwrap();
    let state: serde_json::Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    state["out_of_set"] == serde_json::json!(["b"])
}

#[test]
fn degrade_goes_on_without_a_killed_peer() {
    let mut pair = Pair::start_with(&setup(""));
    assert!(!out_of_set(&pair));
    pair.b.kill();
    let took = put(pair.a.path("x"), "x");
    println!("first fsync after the peer was killed: {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(out_of_set(&pair), "written down before it was acknowledged");
    let a = pair.a.wait_for("primary", "degraded");
    assert_eq!(a["peers"][0]["state"], "lost", "{a:#}");
    assert_eq!(a["commit_mode_now"], "alone", "{a:#}");
    assert!(a["exposure"]["transactions"].as_u64().unwrap() >= 1, "{a:#}");
    assert_eq!(a["out_of_set"], serde_json::json!(["b"]));
    pair.b.start();
    pair.in_sync_and_equal();
    assert!(!out_of_set(&pair));
    assert_eq!(pair.a.status()["commit_mode_now"], "durable");
    assert_eq!(pair.a.status()["exposure"]["transactions"], 0);
}

#[test]
fn degrade_goes_on_without_a_frozen_peer() {
    let pair = Pair::start_with(&setup(""));
    pair.b.freeze();
    let took = put(pair.a.path("x"), "x");
    println!("first fsync after the peer froze, peer_timeout 1s: {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    let next = put(pair.a.path("y"), "y");
    assert!(next < Duration::from_secs(1), "the next one does not wait: {next:?}");
    assert!(out_of_set(&pair));
    pair.a.wait_for("primary", "degraded");
    pair.b.thaw();
    pair.in_sync_and_equal();
    assert!(!out_of_set(&pair));
}

#[test]
fn suspend_waits_and_never_fails() {
    let mut pair = Pair::start_with(&setup("on_peer_loss = \"suspend\""));
    for frozen in [false, true] {
        if frozen {
            pair.b.freeze();
        } else {
            pair.b.kill();
        }
        let path = pair.a.path(if frozen { "frozen" } else { "killed" });
        let writer = std::thread::spawn(move || put(path, "waits"));
        pair.a.wait_for("primary", "suspended");
        // Longer than peer_timeout: a wait that a time-out ends would have ended.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!writer.is_finished(), "nothing is acknowledged without the peer");
        let others = Instant::now();
        assert!(fs::read_dir(&pair.a.mount).unwrap().count() > 0);
        assert!(others.elapsed() < Duration::from_secs(1), "readers go on");
        if frozen {
            pair.b.thaw();
        } else {
            pair.b.start();
        }
        println!("suspended fsync took {:?}", writer.join().unwrap());
        pair.in_sync_and_equal();
        assert!(!out_of_set(&pair));
    }
}

#[test]
fn a_peer_that_is_away_past_retention_is_resynced() {
    let mut pair = Pair::start_with(&Setup { log: "retain_files = 16".to_owned(), ..setup("") });
    for n in 0..8u8 {
        put(pair.a.path(&format!("early{n}")), vec![n; 200_000]);
    }
    pair.settle();
    pair.b.kill();
    for n in 0..100u8 {
        put(pair.a.path(&format!("away{}", n % 10)), vec![n; 5000]);
    }
    fs::rename(pair.a.path("early1"), pair.a.path("renamed")).unwrap();
    fs::remove_file(pair.a.path("early2")).unwrap();
    fs::hard_link(pair.a.path("early3"), pair.a.path("linked")).unwrap();
    put(pair.a.path("last"), "last");
    eventually("the log is pruned", || (pair.a.log_names().len() <= 20).then_some(()));
    pair.b.start();
    pair.in_sync_and_equal();
    assert!(pair.a.log_text().contains("peer b: resync"), "{}", pair.a.log_text());
    let copied = pair.a.peer("copied_bytes").as_u64().unwrap();
    println!("resync sent {copied} bytes");
    assert!(copied < 600_000, "what is equal is not sent: {copied}");
}

#[test]
fn a_full_copy_while_a_writer_goes_on() {
    let mut pair = Pair::new(&setup(""));
    pair.a.start();
    pair.a.wait_for("primary", "degraded");
    for n in 0..40u32 {
        let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i.wrapping_mul(n + 7) >> 9) as u8).collect();
        fs::write(pair.a.path(&format!("big{n}")), bytes).unwrap();
    }
    put(pair.a.path("first"), "first");
    let writer = Writer::start(&[&pair.a]);
    let mount = pair.a.mount.clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    // Renames, overwrites, truncations and removals below what the copy reads.
    let churn = std::thread::spawn(move || {
        let mut bytes = 0;
        let mut n = 0u32;
        let at = |k: u32| mount.join(format!("big{}", k % 40));
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            n += 1;
            let f = fs::File::options().write(true).create(true).truncate(false).open(at(n * 7)).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&f, &vec![n as u8; 150_000], u64::from(n % 9) * 77_777)
                .unwrap();
            bytes += 150_000;
            match n % 6 {
                0 => fs::rename(at(n), at(n + 3)).unwrap_or(()),
                1 => f.set_len(u64::from(n % 1000) * 900).unwrap(),
                2 => {
                    fs::create_dir_all(mount.join(format!("d{}", n % 5))).unwrap();
                    fs::rename(at(n * 3), mount.join(format!("d{}/m{}", n % 5, n % 17))).unwrap_or(());
                }
                3 => fs::remove_file(at(n * 5)).unwrap_or(()),
                4 => f.sync_data().unwrap(),
                _ => {
                    fs::rename(mount.join(format!("d{}", n % 5)), mount.join(format!("e{n}"))).unwrap_or(());
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bytes
    });
    writer.wait_more(20);
    let start = Instant::now();
    pair.b.start();
    pair.a.wait_for("primary", "in-sync");
    let took = start.elapsed();
    writer.wait_more(20);
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let churned = churn.join().unwrap();
    let written = writer.finish();
    put(pair.a.path("end"), "end");
    pair.in_sync_and_equal();
    written.check(&pair.b.mount);
    println!(
        "full copy of 40 MB in {took:?}, {churned} bytes and {} files written meanwhile",
        written.acknowledged.len()
    );
}

#[test]
fn a_peer_that_comes_and_goes_under_a_writer() {
    let mut pair = Pair::start_with(&setup(""));
    let writer = Writer::start(&[&pair.a]);
    for round in 0..if nasd_tests::long() { 50 } else { 5 } {
        writer.wait_more(15);
        if round % 2 == 0 {
            pair.b.kill();
            writer.wait_more(5);
            pair.b.start();
        } else {
            pair.b.freeze();
            writer.wait_more(2);
            pair.b.thaw();
        }
        pair.a.wait_for("primary", "in-sync");
    }
    let written = writer.finish();
    assert_eq!(written.errors, Vec::<i32>::new());
    pair.in_sync_and_equal();
    written.check(&pair.b.mount);
}

fn mode(name: &str) -> Pair {
    // A long time-out: what waits for the peer would be seen to wait.
    let replication = format!("peer_timeout = \"4s\"\ncommit = \"{name}\"");
    Pair::start_with(&Setup { replication, ..Setup::default() })
}

#[test]
fn mode_async_waits_for_nobody() {
    let pair = mode("async");
    pair.b.freeze();
    let took = put(pair.a.path("x"), "x");
    println!("async, frozen peer: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    pair.b.thaw();
    pair.in_sync_and_equal();
}

/// It goes in batches. None of them may be left behind until something else wakes the sender: that would take the second
/// between two signs of life.
#[test]
fn mode_async_leaves_nothing_behind() {
    let pair = mode("async");
    for burst in 0..60u64 {
        for n in 0..=burst % 7 {
            put(pair.a.path("x"), format!("{burst} {n}"));
            std::thread::sleep(Duration::from_micros(burst * 120));
        }
        let committed = Instant::now();
        let last = format!("{burst} {}", burst % 7);
        while fs::read_to_string(pair.b.path("x")).ok().as_ref() != Some(&last) {
            assert!(committed.elapsed() < Duration::from_millis(700), "burst {burst} was left behind");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    pair.in_sync_and_equal();
}

#[test]
fn mode_receive_and_durable_wait_for_the_peer() {
    for name in ["receive", "durable"] {
        let pair = mode(name);
        put(pair.a.path("x"), "x");
        let a = pair.a.status();
        let key = if name == "receive" { "received_seq" } else { "durable_seq" };
        assert!(a["peers"][0][key].as_u64().unwrap() >= seq(&a), "{name}: {a:#}");
        pair.b.freeze();
        let start = Instant::now();
        let path = pair.a.path("y");
        let writer = std::thread::spawn(move || put(path, "y"));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!writer.is_finished(), "{name} waits for the peer");
        pair.b.thaw();
        writer.join().unwrap();
        println!("{name}, peer frozen for 0.5 s: {:?}", start.elapsed());
        pair.in_sync_and_equal();
    }
}

#[test]
fn mode_apply_shows_it_there_when_fsync_returns() {
    let pair = mode("apply");
    for n in 0..50u32 {
        put(pair.a.path("x"), n.to_string());
        assert_eq!(fs::read_to_string(pair.b.path("x")).unwrap(), n.to_string());
    }
    pair.in_sync_and_equal();
}
