//! Consumers as real processes.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::wait_until;
use nasd_watcher::notify::TIME_LIMIT;
use nasd_watcher::{Cursor, Event, Every, Feed, Filter, Kind, Notifier, NotifyRule, NotifyStats, Way};
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

/// Consumers and the feed that they read.
struct Bench {
    feed: Arc<Feed>,
    notifier: Notifier,
}

impl Bench {
    fn new(rules: Vec<NotifyRule>) -> Bench {
        Bench::with_time_limit(rules, TIME_LIMIT)
    }

    fn with_time_limit(rules: Vec<NotifyRule>, limit: Duration) -> Bench {
        let feed = Arc::new(Feed::default());
        let notifier = Notifier::with_time_limit(&feed, rules, None, limit).unwrap();
        Bench { feed, notifier }
    }

    fn applied(&self, event: &Event) {
        self.feed.push(event.clone());
    }

    fn stats(&self) -> Vec<NotifyStats> {
        self.notifier.stats()
    }

    fn stop(self) {
        self.notifier.stop();
    }
}

fn rule_of(way: Way, paths: &[&str], states: &[Kind], every: Every) -> NotifyRule {
    let filter = Filter::new(paths, states).unwrap();
    NotifyRule { name: way.to_string(), filter, every, way }
}

fn rule(exec: &Path, paths: &[&str], every: Duration) -> NotifyRule {
    rule_of(Way::Command(exec.to_path_buf()), paths, &[], Every::Spell(every))
}

fn notifier(exec: &Path, paths: &[&str]) -> Bench {
    Bench::new(vec![rule(exec, paths, Duration::ZERO)])
}

fn event(id: Cursor, kind: Kind) -> Event {
    Event::new(kind, id, 7, format!("20261123T045757.{:09}Z", id.seq))
}

fn applied(seq: u64, paths: &[&[u8]]) -> Event {
    let paths = paths.iter().map(|path| path.to_vec()).collect();
    Event { paths, ..event(Cursor { seq, n: 0 }, Kind::Data) }
}

fn state(seq: u64, n: u64, kind: Kind, reason: &str) -> Event {
    Event { reason: reason.to_owned(), ..event(Cursor { seq, n }, kind) }
}

#[track_caller]
fn wait_done(notifier: &Bench, runs: u64) -> NotifyStats {
    wait_until(&format!("{runs} runs"), || {
        let stats = &notifier.stats()[0];
        stats.sent + stats.failed >= runs
    });
    notifier.stats().remove(0)
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
    let notifier = Bench::new(vec![
        rule(&slow.script(wait), &["**"], Duration::ZERO),
        rule(&quick.script(RECORD), &["**"], Duration::ZERO),
    ]);
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
    let notifier = Bench::new(vec![rule(&script, &["**"], EVERY)]);
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
    let notifier = Bench::new(vec![rule(&bed.script(RECORD), &["**"], every)]);
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
    let notifier = Bench::with_time_limit(vec![rule(&script, &["**"], Duration::ZERO)], limit);
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
    let notifier = Bench::with_time_limit(vec![rule(&script, &["**"], Duration::ZERO)], limit);
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
        notifier.applied(&Event { seq: run, ..many.clone() });
        let stats = wait_done(&notifier, run);
        assert_eq!((stats.sent, stats.failed), (run, 0));
    }
}

#[test]
fn a_wrong_glob_is_an_error_with_a_remedy() {
    let wrong = Filter::new(&["ok/**", "pg_wal/[a"], &[]).unwrap_err().to_string();
    assert!(wrong.contains("pg_wal/[a") && wrong.contains("write for example"), "{wrong}");
}

#[test]
fn a_state_event_is_told_alone_and_says_what_it_is() {
    let bed = Bed::new();
    let script = bed.script("{ echo \"$NASD_KIND $NASD_ID $NASD_OLD>$NASD_NEW $NASD_REASON\"; cat; } >> out");
    let rule = rule_of(Way::Command(script), &["**"], &[Kind::Role], Every::Spell(Duration::ZERO));
    let bench = Bench::new(vec![rule]);
    let (old, new) = (Some("secondary".to_owned()), Some("primary".to_owned()));
    bench.applied(&applied(1, &[b"a"]));
    wait_done(&bench, 1);
    bench.applied(&Event { old, new, ..state(1, 1, Kind::Role, "took over") });
    bench.applied(&state(1, 2, Kind::Link, "nobody asked for this"));
    wait_done(&bench, 2);
    bench.applied(&applied(2, &[b"b"]));
    let stats = wait_done(&bench, 3);
    assert_eq!((stats.sent, stats.failed), (3, 0));
    let expected = "data 1.0 > \na\nrole 1.1 secondary>primary took over\ndata 2.2 > \nb\n";
    assert_eq!(bed.text("out"), expected);
}

#[test]
fn on_demand_tells_what_is_pending_and_nothing_that_came_later() {
    let bed = Bed::new();
    let script = bed.script(&format!("{RECORD}\necho \"$NASD_KIND $NASD_REASON\" >> out"));
    let bench = Bench::new(vec![rule_of(Way::Command(script), &["**"], &[], Every::OnDemand)]);
    for seq in 1..=200 {
        bench.applied(&applied(seq, &[format!("path{}", seq % 3).as_bytes()]));
    }
    bench.applied(&state(200, 1, Kind::Demand, "now"));
    wait_done(&bench, 1);
    bench.applied(&applied(201, &[b"later"]));
    bench.applied(&state(201, 2, Kind::Demand, "again"));
    wait_done(&bench, 2);
    bench.stop();
    let expected = "= 200 7 20261123T045757.000000200Z\npath0\npath1\npath2\ndemand now\n\
                    = 201 7 20261123T045757.000000201Z\nlater\ndemand again\n";
    assert_eq!(bed.text("out"), expected);
}

#[test]
fn what_was_not_told_is_told_by_the_next_notifier() {
    let bed = Bed::new();
    let feed = Arc::new(Feed::default());
    let memory = bed.path("notify");
    let start = |script: &Path| {
        let rules = vec![rule(script, &["**"], Duration::ZERO)];
        Bench { feed: feed.clone(), notifier: Notifier::start(&feed, rules, Some(&memory)).unwrap() }
    };
    let script = bed.script(RECORD);
    feed.push(applied(1, &[b"before its time"]));
    let bench = start(&script);
    feed.push(applied(2, &[b"a"]));
    wait_done(&bench, 1);
    bench.stop();
    feed.push(applied(3, &[b"b"]));
    let bench = start(&script);
    wait_done(&bench, 1);
    // The program is away: what happens meanwhile is kept for it.
    fs::remove_file(&script).unwrap();
    feed.push(applied(4, &[b"c"]));
    wait_until("it could not be run", || bench.stats()[0].failed > 0);
    bench.stop();
    bed.script(RECORD);
    let bench = start(&script);
    wait_done(&bench, 1);
    bench.stop();
    let told: Vec<String> =
        bed.text("out").lines().filter(|l| !l.starts_with('=')).map(str::to_owned).collect();
    assert_eq!(told, ["a", "b", "c"]);
}

#[test]
fn a_process_is_signalled_as_long_as_it_is_the_one_of_the_file() {
    let bed = Bed::new();
    let body =
        "trap 'echo told >> out' USR1; echo $$ > pid.new; mv pid.new pid; while :; do sleep 0.01; done";
    let script = bed.script(body);
    let mut child = Command::new(&script).spawn().unwrap();
    wait_until("it runs", || !bed.text("pid").is_empty());
    let way = Way::Signal { signal: rustix::process::Signal::USR1, pid_file: bed.path("pid") };
    let bench = Bench::new(vec![rule_of(way, &["**"], &[], Every::Spell(Duration::ZERO))]);
    bench.applied(&applied(1, &[b"a"]));
    wait_until("it was told", || bed.text("out") == "told\n");
    assert_eq!(bench.stats()[0].sent, 1);
    child.kill().unwrap();
    child.wait().unwrap();
    bench.applied(&applied(2, &[b"b"]));
    wait_until("nobody is there", || bench.stats()[0].failed > 0);
    // Another takes its place, and is told what the first was not.
    fs::remove_file(bed.path("pid")).unwrap();
    let mut child = Command::new(&script).spawn().unwrap();
    wait_until("it runs", || !bed.text("pid").is_empty());
    bench.applied(&applied(3, &[b"c"]));
    wait_until("the other was told", || bed.text("out") == "told\ntold\n");
    child.kill().unwrap();
    child.wait().unwrap();
}
