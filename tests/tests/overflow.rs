//! How the secondary learns of new files: a queue that overflows, polling, and whom it tells.
#![allow(clippy::unwrap_used)]

use nasd_tests::{Pair, Setup, eventually, put, seq};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const QUEUE: &str = "/proc/sys/fs/inotify/max_queued_events";

/// The kernel's limit, as it was when dropped.
struct Limit(String);

impl Limit {
    fn set(n: u32) -> std::io::Result<Limit> {
        let before = fs::read_to_string(QUEUE)?;
        fs::write(QUEUE, n.to_string())?;
        Ok(Limit(before.trim().to_owned()))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = fs::write(QUEUE, &self.0);
    }
}

#[test]
fn a_queue_that_overflows() {
    let replication = "commit = \"async\"\npeer_timeout = \"20s\"".to_owned();
    let mut pair = Pair::new(&Setup { replication, ..Setup::default() });
    pair.a.start();
    pair.a.wait_for("primary", "degraded");
    // The limit counts when a queue is made.
    let limit = match Limit::set(2) {
        Ok(limit) => limit,
        Err(e) => return println!("not tried: {QUEUE} can't be set: {e}"),
    };
    pair.b.start();
    pair.a.wait_for("primary", "in-sync");
    drop(limit);
    let overflows = |pair: &Pair| pair.b.status()["watcher"]["overflows"].as_u64().unwrap();
    for round in 0..20 {
        // While it stands still much arrives at its socket; then it has a large one to apply, and small ones come.
        pair.b.freeze();
        for n in 0..2000 {
            fs::write(pair.a.path(&format!("many{n}")), format!("{round}")).unwrap();
        }
        for n in 0..60 {
            put(pair.a.path(&format!("f{}", n % 7)), format!("{round} {n}"));
        }
        pair.b.thaw();
        pair.settle();
        if overflows(&pair) > 0 {
            break;
        }
    }
    println!("{} overflows, {} events", overflows(&pair), pair.b.status()["watcher"]["events"]);
    assert!(overflows(&pair) > 0, "the queue never overflowed");
    put(pair.a.path("last"), "last");
    pair.in_sync_and_equal();
}

#[test]
fn polling() {
    let more = "[watcher]\nmode = \"poll\"\npoll_interval = \"20ms\"".to_owned();
    let pair = Pair::start_with(&Setup { more, ..Setup::default() });
    for n in 0..20u8 {
        put(pair.a.path("x"), [n]);
        pair.settle();
        assert_eq!(fs::read(pair.b.path("x")).unwrap(), [n]);
    }
    assert_eq!(pair.b.status()["watcher"]["events"], 0, "nothing came from inotify");
    pair.in_sync_and_equal();
}

#[test]
fn a_consumer_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (script, told) = (dir.path().join("on-new-log"), dir.path().join("told"));
    let text = format!(
        "#!/bin/sh\n{{ echo \"$NASD_SEQ $NASD_EPOCH $NASD_TIMESTAMP\" $(cat); }} >> {}\n",
        told.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let more =
        format!("[[notify]]\npaths = [\"pg_wal/**\"]\nevery = \"0s\"\nexec = \"{}\"", script.display());
    let mut pair = Pair::start_with(&Setup { more, ..Setup::default() });
    fs::create_dir(pair.a.path("pg_wal")).unwrap();
    put(pair.a.path("elsewhere"), "nobody wants to know");
    let mut seqs = Vec::new();
    for n in 0..3 {
        put(pair.a.path(&format!("pg_wal/00{n}")), "wal");
        seqs.push(seq(&pair.a.status()));
        // The next one only when it was told of this one: otherwise they are told together.
        eventually("told", || {
            let lines = fs::read_to_string(&told).ok()?;
            lines.lines().any(|l| l.contains(&format!("pg_wal/00{n}"))).then_some(())
        });
    }
    let lines = fs::read_to_string(&told).unwrap();
    for (n, seq) in seqs.iter().enumerate() {
        let line = lines.lines().find(|l| l.contains(&format!("pg_wal/00{n}"))).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..2], [seq.to_string().as_str(), "1"], "{lines}");
        assert!(words[2].starts_with("20") && words[2].ends_with('Z'), "{lines}");
    }
    assert!(!lines.contains("elsewhere"), "{lines}");
    // A consumer that fails or hangs is none of replication's business.
    fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    put(pair.a.path("pg_wal/hangs"), "wal");
    put(pair.a.path("pg_wal/next"), "wal");
    pair.in_sync_and_equal();
    pair.b.stop();
}
