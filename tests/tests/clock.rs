//! A clock that jumps: names never go backwards, order is not the clock's.
#![allow(clippy::unwrap_used)]

use nasd_tests::{Node, Pair, Setup, eventually, put};
use std::path::{Path, PathBuf};

fn library() -> Option<PathBuf> {
    let arch = std::env::consts::ARCH;
    ["libfaketimeMT.so.1", "libfaketime.so.1"].iter().find_map(|name| {
        [format!("/usr/lib/{arch}-linux-gnu/faketime/{name}"), format!("/usr/lib/faketime/{name}")]
            .into_iter()
            .map(PathBuf::from)
            .find(|p| p.exists())
    })
}

/// Starts a node whose clock is that of the machine plus what `offset` says, read anew at each look.
fn start(node: &mut Node, library: &Path, offset: &Path) {
    node.start_with_env(&[
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ]);
}

/// The part of the names that tells the time.
fn times(node: &Node) -> Vec<String> {
    node.log_names().iter().map(|n| n.rsplit_once('-').unwrap().0.to_owned()).collect()
}

#[test]
fn a_clock_that_jumps_back_and_forth() {
    let Some(library) = library() else {
        println!("not tried: libfaketime is not installed (Debian package faketime)");
        return;
    };
    let mut pair = Pair::new(&Setup { replication: "peer_timeout = \"2s\"".to_owned(), ..Setup::default() });
    let [clock_a, clock_b] = ["a", "b"].map(|n| pair.dir.path().join(format!("clock-{n}")));
    let set = |clock: &Path, offset: &str| {
        std::fs::write(clock.with_extension("new"), offset).unwrap();
        std::fs::rename(clock.with_extension("new"), clock).unwrap();
    };
    set(&clock_a, "+0s");
    // Certificates are valid from a day before they were made; links that stand outlive any jump.
    set(&clock_b, "-20h");
    start(&mut pair.b, &library, &clock_b);
    start(&mut pair.a, &library, &clock_a);
    pair.a.wait_for("primary", "in-sync");
    let first = times(&pair.a).first().unwrap()[..4].to_owned();
    for (n, offset) in ["+0s", "-3d", "+400d", "-400d", "+1s", "-1h"].iter().enumerate() {
        set(&clock_a, offset);
        for k in 0..5 {
            put(pair.a.path(&format!("f{n}-{k}")), offset);
        }
    }
    let names = times(&pair.a);
    assert!(names.is_sorted(), "names never go backwards: {names:#?}");
    let last = &names.last().unwrap()[..4];
    if *last == *first {
        println!("not tried: libfaketime does not change the time of nasd here");
        return;
    }
    pair.in_sync_and_equal();
    // The other node's clock is far behind: what it adds as primary comes later all the same.
    pair.a.cli(&["switchover"]);
    pair.b.wait_for("primary", "in-sync");
    put(pair.b.path("after"), "after");
    assert!(times(&pair.b).is_sorted(), "{:#?}", times(&pair.b));
    // And a restart whose clock is behind its own log.
    set(&clock_a, "-10h");
    pair.b.kill();
    pair.a.cli(&["promote"]);
    put(pair.a.path("later"), "later");
    start(&mut pair.b, &library, &clock_b);
    pair.in_sync_and_equal();
    for node in [&pair.a, &pair.b] {
        let names = times(node);
        assert!(names.is_sorted(), "{}: {names:#?}", node.name);
    }
    // Commits go on at their pace although an hour passed and did not.
    eventually("in step", || (pair.a.status()["state"] == "in-sync").then_some(()));
    println!("times from {} to {}", times(&pair.a)[0], times(&pair.a).last().unwrap());
}

#[test]
fn what_is_set_aside_may_come_from_a_clock_that_was_ahead() {
    let Some(library) = library() else {
        println!("not tried: libfaketime is not installed (Debian package faketime)");
        return;
    };
    let mut pair = Pair::new(&Setup { replication: "peer_timeout = \"1s\"".to_owned(), ..Setup::default() });
    let clock = pair.dir.path().join("clock");
    std::fs::write(&clock, "+0s").unwrap();
    pair.b.start();
    start(&mut pair.a, &library, &clock);
    pair.a.wait_for("primary", "in-sync");
    put(pair.a.path("x"), "x");
    pair.b.kill();
    std::fs::write(&clock, "+400d").unwrap();
    put(pair.a.path("alone"), "a year ahead");
    pair.a.kill();
    pair.b.start();
    pair.b.wait_for("secondary", "outdated");
    pair.b.cli(&["promote", "--force"]);
    put(pair.b.path("y"), "y");
    std::fs::write(&clock, "+0s").unwrap();
    start(&mut pair.a, &library, &clock);
    pair.a.wait_for("secondary", "in-sync");
    pair.b.wait_for("primary", "in-sync");
    assert!(!pair.a.path("alone").exists());
    assert_eq!(std::fs::read(pair.a.path("y")).unwrap(), b"y");
}
