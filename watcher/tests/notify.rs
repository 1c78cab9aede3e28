//! Consumers as real processes.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::wait_until;
use nasd_watcher::{Applied, Notifier, NotifyError, NotifyRule, NotifyStats};
use tempfile::TempDir;

/// Every run of this appends one block to `out`: a line of the environment, and the paths.
const RECORD: &str = r#"{ echo "= $NASD_SEQ $NASD_EPOCH $NASD_TIMESTAMP"; cat; } >> out"#;

struct Bed {
    dir: TempDir,
}

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        Bed { dir }
    }

    /// Writes a script that runs in the bed's directory. A child writes it: had this process the
    /// file open for writing, another test's fork could keep it open, and running it would fail.
    fn script(&self, body: &str) -> PathBuf {
        let path = self.dir.path().join("script");
        let mut child = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let text = format!("#!/bin/sh\ncd '{}' || exit 9\n{body}\n", self.dir.path().display());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success());
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_default()
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }
}

fn rule(exec: &Path, paths: &[&str], every: Duration) -> NotifyRule {
    NotifyRule { paths: paths.iter().map(ToString::to_string).collect(), every, exec: exec.to_path_buf() }
}

fn notifier(exec: &Path, paths: &[&str]) -> Notifier {
    Notifier::new(vec![rule(exec, paths, Duration::ZERO)]).unwrap()
}

fn applied(seq: u64, paths: &[&[u8]]) -> Applied {
    Applied {
        seq,
        epoch: 7,
        timestamp: format!("20261123T045757.{seq:09}Z"),
        paths: paths.iter().map(|path| path.to_vec()).collect(),
    }
}

#[track_caller]
fn wait_done(notifier: &Notifier, runs: u64) -> NotifyStats {
    wait_until(&format!("{runs} runs"), || {
        let stats = notifier.stats()[0];
        stats.sent + stats.failed >= runs
    });
    notifier.stats()[0]
}

#[test]
fn a_consumer_hears_of_its_paths_only() {
    let bed = Bed::new();
    let notifier = notifier(&bed.script(RECORD), &["pg_wal/**", "*.conf"]);
    notifier.applied(&applied(1, &[b"base/1", b"sub/a.conf", b"pg_wal2/x"]));
    notifier.applied(&applied(2, &[b"pg_wal/b/c", b"base/1", b"pg_wal/a", b"x.conf"]));
    let stats = wait_done(&notifier, 1);
    notifier.stop();
    assert_eq!((stats.sent, stats.failed, stats.left_out), (1, 0, 0));
    let expected = "= 2 7 20261123T045757.000000002Z\npg_wal/a\npg_wal/b/c\nx.conf\n";
    assert_eq!(bed.text("out"), expected);
}

#[test]
fn each_rule_has_its_own_worker() {
    let (slow, quick) = (Bed::new(), Bed::new());
    let wait = "touch started; until [ -e go ]; do sleep 0.01; done";
    let notifier = Notifier::new(vec![
        rule(&slow.script(wait), &["**"], Duration::ZERO),
        rule(&quick.script(RECORD), &["**"], Duration::ZERO),
    ])
    .unwrap();
    for seq in 1..=2 {
        notifier.applied(&applied(seq, &[b"a"]));
        wait_until("the quick one is told", || {
            notifier.stats()[1].sent == seq && slow.path("started").exists()
        });
    }
    assert_eq!(notifier.stats()[0].sent, 0);
    fs::write(slow.path("go"), "").unwrap();
    wait_until("the slow one is told", || notifier.stats()[0].sent == 2);
}

#[test]
fn what_comes_during_a_slow_command_is_told_together() {
    let bed = Bed::new();
    let script = bed.script(&format!("{RECORD}\nuntil [ -e go ]; do sleep 0.01; done"));
    let notifier = notifier(&script, &["**"]);
    notifier.applied(&applied(1, &[b"first"]));
    wait_until("the first", || bed.text("out").contains("first"));
    let start = Instant::now();
    for seq in 2..=1000 {
        let path = format!("path{}", seq % 3);
        notifier.applied(&applied(seq, &[path.as_bytes()]));
    }
    println!("applied() of one path: {:?} each", start.elapsed() / 999);
    fs::write(bed.path("go"), "").unwrap();
    let stats = wait_done(&notifier, 2);
    notifier.stop();
    assert_eq!(stats.sent, 2);
    assert_eq!(
        bed.text("out"),
        "= 1 7 20261123T045757.000000001Z\nfirst\n\
         = 1000 7 20261123T045757.000001000Z\npath0\npath1\npath2\n"
    );
}

#[test]
fn every_spaces_the_runs_and_loses_nothing() {
    const EVERY: Duration = Duration::from_millis(300);
    let bed = Bed::new();
    let script = bed.script(&format!("{RECORD}\ndate +%s%N >> times"));
    let notifier = Notifier::new(vec![rule(&script, &["**"], EVERY)]).unwrap();
    let start = Instant::now();
    notifier.applied(&applied(1, &[b"a"]));
    wait_done(&notifier, 1);
    let first = start.elapsed();
    let mut seq = 1;
    while start.elapsed() < EVERY * 4 {
        seq += 1;
        notifier.applied(&applied(seq, &[b"b"]));
        std::thread::sleep(Duration::from_millis(1));
    }
    let last = format!("= {seq} ");
    wait_until("the last one", || bed.text("out").contains(&last));
    let runs = bed.text("out").matches('=').count();
    let span = start.elapsed();
    println!("{seq} transactions, {runs} runs in {span:?}, the first after {first:?}");
    // Runs begin at least EVERY apart, so that many fit in.
    let most = span.as_millis() / EVERY.as_millis() + 1;
    assert!(runs as u128 <= most && runs >= 3, "{runs} runs in {span:?}");
}

#[test]
fn after_a_quiet_spell_it_is_told_at_once() {
    let bed = Bed::new();
    let every = Duration::from_secs(3600);
    let notifier = Notifier::new(vec![rule(&bed.script(RECORD), &["**"], every)]).unwrap();
    notifier.applied(&applied(1, &[b"a"]));
    assert_eq!(wait_done(&notifier, 1).sent, 1);
    // The next would come in an hour; a stop tells it now.
    notifier.applied(&applied(2, &[b"b"]));
    notifier.stop();
    assert!(bed.text("out").ends_with("= 2 7 20261123T045757.000000002Z\nb\n"));
}

#[test]
fn a_command_that_hangs_is_killed_with_its_children() {
    let bed = Bed::new();
    let script = bed.script("sleep 1000 & echo $! > child; sleep 1000");
    let limit = Duration::from_millis(500);
    let notifier = Notifier::with_time_limit(vec![rule(&script, &["**"], Duration::ZERO)], limit).unwrap();
    let start = Instant::now();
    notifier.applied(&applied(1, &[b"a"]));
    let stats = wait_done(&notifier, 1);
    assert_eq!((stats.sent, stats.failed), (0, 1));
    assert!(start.elapsed() >= limit);
    let child = bed.text("child");
    // An orphan that was killed may stay a zombie where nobody reaps it.
    wait_until("its child is dead", || {
        fs::read_to_string(format!("/proc/{}/stat", child.trim())).map_or(true, |stat| stat.contains(") Z "))
    });
}

#[test]
fn stop_waits_no_longer_than_the_time_limit() {
    let bed = Bed::new();
    let script = bed.script("touch started; sleep 1000");
    let limit = Duration::from_secs(1);
    let notifier = Notifier::with_time_limit(vec![rule(&script, &["**"], Duration::ZERO)], limit).unwrap();
    notifier.applied(&applied(1, &[b"a"]));
    wait_until("it runs", || bed.path("started").exists());
    notifier.applied(&applied(2, &[b"b"]));
    let start = Instant::now();
    notifier.stop();
    // Twice the limit would be one limit for each of the two.
    assert!(start.elapsed() < limit * 19 / 10, "{:?}", start.elapsed());
}

#[test]
fn failures_are_counted_and_the_next_is_told() {
    let bed = Bed::new();
    let script = bed.script(&format!("{RECORD}\n[ $NASD_SEQ = 2 ] || exit 3"));
    let notifier = notifier(&script, &["**"]);
    notifier.applied(&applied(1, &[b"a"]));
    wait_done(&notifier, 1);
    notifier.applied(&applied(2, &[b"b"]));
    let stats = wait_done(&notifier, 2);
    assert_eq!((stats.sent, stats.failed), (1, 1));
    notifier.stop();

    let missing = self::notifier(&bed.path("missing"), &["**"]);
    missing.applied(&applied(1, &[b"a"]));
    assert_eq!(wait_done(&missing, 1).failed, 1);
}

#[test]
fn a_path_need_not_be_utf8() {
    let bed = Bed::new();
    let notifier = notifier(&bed.script("cat > out"), &["pg_wal/*.x"]);
    notifier.applied(&applied(1, &[b"pg_wal/\xff\xfe caf\xe9.x", b"\xff"]));
    wait_done(&notifier, 1);
    assert_eq!(bed.read("out"), b"pg_wal/\xff\xfe caf\xe9.x\n");
}

#[test]
fn fifty_thousand_paths_are_bounded() {
    let bed = Bed::new();
    let notifier = notifier(&bed.script("cat > out"), &["**"]);
    let mut many = applied(1, &[]);
    many.paths = (0..50_000).map(|n| format!("pg_wal/{n:06}").into_bytes()).collect();
    let start = Instant::now();
    notifier.applied(&many);
    println!("applied() of 50,000 paths: {:?}", start.elapsed());
    let stats = wait_done(&notifier, 1);
    assert_eq!((stats.sent, stats.left_out), (1, 40_000));
    let told = bed.text("out");
    assert_eq!(told.lines().count(), 10_001);
    assert_eq!(told.lines().last(), Some("..."));
}

#[test]
fn a_command_that_does_not_read_is_no_trouble() {
    let bed = Bed::new();
    let notifier = notifier(&bed.script("exit 0"), &["**"]);
    let mut many = applied(1, &[]);
    many.paths = (0..10_000).map(|n| format!("{n:0200}").into_bytes()).collect();
    for run in 1..=3 {
        notifier.applied(&many);
        let stats = wait_done(&notifier, run);
        assert_eq!((stats.sent, stats.failed), (run, 0));
    }
}

#[test]
fn wrong_rules_are_errors_with_a_remedy() {
    let error = |paths: &[&str]| {
        let exec = Path::new("/usr/local/bin/on-new-log");
        match Notifier::new(vec![rule(exec, paths, Duration::ZERO)]) {
            Ok(_) => panic!("{paths:?} is no rule"),
            Err(e) => e,
        }
    };
    let none = error(&[]);
    assert!(matches!(none, NotifyError::NoPaths { .. }), "{none}");
    let wrong = error(&["ok/**", "pg_wal/[a"]);
    assert!(matches!(wrong, NotifyError::Pattern { .. }), "{wrong}");
    assert!(wrong.to_string().contains("pg_wal/[a"), "{wrong}");
}
