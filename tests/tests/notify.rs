//! Whoever wants to know is told, in order and at least once, and never before it can be read.
#![allow(clippy::unwrap_used)]

use nasd_tests::events::{Stream, Webhook};
use nasd_tests::{Node, Pair, Setup, eventually, put};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

fn setup(more: &str) -> Setup {
    Setup { more: more.to_owned(), ..Setup::default() }
}

/// Writes a program. A child does: were it open for writing here, another test's fork could keep it so.
fn program(path: &Path, body: &str) {
    let new = path.with_extension("new");
    fs::write(&new, format!("#!/bin/sh\ncd {}\n{body}\n", path.parent().unwrap().display())).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Command::new("mv").args([&new, path]).status().unwrap().success());
}

/// The numbers of the whole transactions in a node's log, oldest first.
fn logged(node: &Node) -> BTreeSet<u64> {
    node.log_names().iter().filter_map(|n| n.rsplit('-').next()?.strip_suffix(".txn")?.parse().ok()).collect()
}

fn seq_of(node: &Node) -> u64 {
    node.status()["seq"].as_u64().unwrap()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// `nasd events --follow` as a process, and what it prints.
struct Follow(Child, Receiver<Value>);

impl Follow {
    fn start(node: &Node, args: &[&str]) -> Follow {
        Follow::start_with(node, args, Stdio::null())
    }

    fn start_with(node: &Node, args: &[&str], stderr: Stdio) -> Follow {
        let mut child = Command::new(nasd_tests::node::binary())
            .args(["events", "--follow", "--json", "--config"])
            .arg(&node.config)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tx, rx) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = tx.send(serde_json::from_str(&line).unwrap());
            }
        });
        Follow(child, rx)
    }

    fn next(&self) -> Value {
        self.1.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_command_a_signal_and_a_webhook_are_told_on_the_secondary() {
    let hook = Webhook::start(|_| 200);
    let mut pair = Pair::new(&setup(&format!(
        r#"[[notify]]
paths = ["wal/**"]
exec = "{{base}}/on-new-log"
[[notify]]
paths = ["wal/**"]
signal = "USR1"
pid_file = "{{base}}/pid"
[[notify]]
paths = ["**"]
states = ["role", "sync"]
webhook = "{}"
token_file = "{{base}}/token"
"#,
        hook.url
    )));
    for node in [&pair.a, &pair.b] {
        let base = node.mount.parent().unwrap();
        program(&base.join("on-new-log"), "{ echo \"$NASD_KIND $NASD_SEQ\"; cat; } >> told");
        fs::write(base.join("token"), "s3cret\n").unwrap();
    }
    let base = pair.b.mount.parent().unwrap().to_owned();
    program(
        &base.join("server"),
        "trap 'echo told >> signals' USR1; echo $$ > pid; while :; do sleep 0.01; done",
    );
    let mut server = Command::new(base.join("server")).spawn().unwrap();
    eventually("the server runs", || (!text(&base.join("pid")).is_empty()).then_some(()));
    pair.b.start();
    pair.a.start();
    pair.b.wait_for("secondary", "in-sync");
    fs::create_dir(pair.a.path("wal")).unwrap();
    put(pair.a.path("wal/1"), b"one");
    put(pair.a.path("other"), b"two");
    let seq = seq_of(&pair.a);
    eventually("the command is told", || text(&base.join("told")).contains("wal/1").then_some(()));
    eventually("the process is signalled", || text(&base.join("signals")).contains("told").then_some(()));
    let mut told = Vec::new();
    eventually("the webhook is told", || {
        told.extend(hook.events());
        told.iter().any(|e: &Value| e["kind"] == "data" && e["seq"] == seq).then_some(())
    });
    assert!(told.iter().any(|e| e["kind"] == "sync"), "{told:?}");
    assert!(hook.headers().iter().all(|h| h.to_lowercase().contains("authorization: bearer s3cret")));
    assert!(!text(&base.join("told")).contains("other"));
    // What is told of is of the secondary: the primary's programs hear nothing of what it commits itself.
    assert_eq!(text(&pair.a.mount.parent().unwrap().join("told")), "");
    let notify = pair.b.status()["notify"].clone();
    assert!(notify[0]["sent"].as_u64().unwrap() > 0 && notify[2]["sent"].as_u64().unwrap() > 0, "{notify}");
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_webhook_that_fails_or_hangs_gets_everything_later_and_delays_nobody() {
    let failing = Webhook::start(|n| if n < 2 { 500 } else { 200 });
    let hanging = Webhook::start(|n| {
        if n == 0 {
            std::thread::sleep(Duration::from_secs(12));
            200
        } else {
            200
        }
    });
    let rule = |url: &str| format!("[[notify]]\npaths = [\"**\"]\nwebhook = \"{url}\"\n");
    let pair = Pair::start_with(&setup(&(rule(&failing.url) + &rule(&hanging.url))));
    let before = seq_of(&pair.a);
    let mut longest = Duration::ZERO;
    for n in 0..50 {
        longest = longest.max(put(pair.a.path("x"), format!("{n}")));
    }
    println!("the longest of 50 commits: {longest:?}");
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    let after = seq_of(&pair.a);
    let wanted: BTreeSet<u64> = (before + 1..=after).collect();
    for hook in [&failing, &hanging] {
        let mut told = BTreeSet::new();
        eventually("everything is told", || {
            told.extend(
                hook.events().iter().filter(|e| e["kind"] == "data").map(|e| e["seq"].as_u64().unwrap()),
            );
            told.is_superset(&wanted).then_some(())
        });
    }
    let out = pair.b.cli(&["events", "test-webhook"]);
    assert_eq!(out.lines().count(), 2, "{out}");
    drop(failing);
    let out = pair.b.try_cli(&["events", "test-webhook"]);
    assert_eq!(out.status.code(), Some(1), "one of them is gone");
}

#[test]
fn a_stream_gives_each_transaction_once_it_can_be_read_and_goes_on_where_it_was() {
    let pair = Pair::start();
    let follow = Follow::start(&pair.b, &["--path", "x", "--since", &seq_of(&pair.a).to_string()]);
    let mut last = Value::Null;
    for n in 1..=200_u64 {
        put(pair.a.path("x"), format!("{n:06}"));
        put(pair.a.path("y"), b"nobody asked");
        loop {
            let event = follow.next();
            assert_eq!(event["kind"], "data", "{event}");
            assert_eq!(event["paths"], serde_json::json!(["x"]), "{event}");
            let found: u64 = fs::read_to_string(pair.b.path("x")).unwrap().parse().unwrap_or(0);
            last = event;
            // Creating, truncating and writing may be transactions of their own.
            if found == n {
                break;
            }
        }
    }
    drop(follow);
    let at = last["id"].as_str().unwrap();
    put(pair.a.path("x"), b"later");
    pair.settle();
    let list = pair.b.cli(&["events", "--json", "--since", at, "--path", "x"]);
    assert!(list.lines().count() >= 1 && list.lines().all(|l| l.contains("\"paths\":[\"x\"]")), "{list}");
    let list = pair.b.cli(&["events", "--state", "sync", "--state", "link"]);
    assert!(list.lines().any(|l| l.contains("in sync with a")), "{list}");
    assert!(pair.b.refused(&["events", "--since", "yesterday"]).contains("no id of an event"));
    assert!(pair.b.refused(&["events", "--state", "weather"]).contains("no kind of state"));
}

#[test]
fn waiting_ends_when_the_transaction_is_there_and_not_before() {
    let pair = Pair::start();
    for node in [&pair.a, &pair.b] {
        let after = seq_of(&pair.a);
        let late = node.refused(&["wait", "--after", &after.to_string(), "--timeout", "100ms"]);
        assert_eq!(late, "", "it says so on standard output");
        let waiting = std::thread::scope(|s| {
            let waiting = s.spawn(|| {
                let out = node.try_cli(&["wait", "--after", &after.to_string(), "--timeout", "20s"]);
                (out.status.success(), Instant::now())
            });
            std::thread::sleep(Duration::from_millis(200));
            let start = Instant::now();
            put(pair.a.path("x"), b"x");
            let (reached, at) = waiting.join().unwrap();
            assert!(reached && at > start);
            at - start
        });
        println!("{}: {waiting:?} after the write began", node.name);
    }
}

#[test]
fn on_demand_tells_everything_that_was_committed_before() {
    let mut pair = Pair::new(&setup(
        "[[notify]]\npaths = [\"**\"]\nevery = \"on-demand\"\nexec = \"{base}/on-demand\"\n",
    ));
    let base = pair.b.mount.parent().unwrap().to_owned();
    for node in [&pair.a, &pair.b] {
        let program_at = node.mount.parent().unwrap().join("on-demand");
        program(&program_at, "{ echo \"= $NASD_KIND $NASD_SEQ $NASD_REASON\"; cat; echo end; } >> told");
    }
    pair.b.start();
    pair.a.start();
    pair.b.wait_for("secondary", "in-sync");
    pair.a.wait_for("primary", "in-sync");
    for round in 1..=3 {
        for n in 0..20 {
            put(pair.a.path(&format!("{round}-{n}")), b"x");
        }
        // Nobody syncs this.
        fs::write(pair.a.path(&format!("unsynced-{round}")), b"x").unwrap();
        let out = pair.a.cli(&["notify", "--reason", &format!("round {round} & more")]);
        assert_eq!(out, "b: told\n");
        let seq = seq_of(&pair.a);
        let told = eventually("the consumer is told", || {
            let told = text(&base.join("told"));
            let last = told.rsplit("= ").next()?.to_owned();
            (last.contains(&format!("round {round} & more\n")) && last.ends_with("\nend\n")).then_some(last)
        });
        let (head, paths) = told.split_once('\n').unwrap();
        let shown: u64 = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(head.starts_with("demand ") && shown <= seq, "{head}");
        let paths: BTreeSet<&str> = paths.lines().collect();
        for name in (0..20).map(|n| format!("{round}-{n}")).chain([format!("unsynced-{round}")]) {
            assert!(paths.contains(name.as_str()), "{name} is not in {paths:?}");
        }
    }
    assert!(pair.b.refused(&["notify"]).contains("only the primary"));
    pair.b.kill();
    let out = pair.a.try_cli(&["notify"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stdout).starts_with("b: not told: "), "{out:?}");
}

#[test]
fn no_transaction_is_missed_when_either_node_is_killed() {
    let mut pair = Pair::start();
    let first = seq_of(&pair.a);
    let follow = Follow::start(&pair.b, &["--since", &first.to_string()]);
    for round in 0..3 {
        for n in 0..100 {
            put(pair.a.path("x"), format!("{round} {n}"));
        }
        if round == 1 {
            pair.a.kill();
            pair.a.start();
        } else {
            pair.b.kill();
            pair.b.start();
        }
        pair.a.wait_for("primary", "in-sync");
        pair.b.wait_for("secondary", "in-sync");
    }
    pair.sync_and_settle();
    let last = seq_of(&pair.b);
    let (mut told, mut numbers) = (BTreeSet::new(), Vec::new());
    while !told.contains(&last) {
        let event = follow.next();
        match event["kind"].as_str().unwrap() {
            "data" => drop(told.insert(event["seq"].as_u64().unwrap())),
            "gap" => panic!("{event}"),
            _ => {
                numbers.push(event["id"].as_str().unwrap().split_once('.').unwrap().1.parse::<u64>().unwrap())
            }
        }
    }
    let wanted: BTreeSet<u64> = logged(&pair.b).into_iter().filter(|seq| *seq > first).collect();
    assert!(wanted.len() > 300);
    assert_eq!(wanted.difference(&told).collect::<Vec<_>>(), Vec::<&u64>::new());
    numbers.dedup();
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "state events have no gaps: {numbers:?}");
}

#[test]
fn who_follows_waits_for_a_node_that_is_away() {
    let mut pair = Pair::start();
    let said = pair.b.mount.parent().unwrap().join("said");
    let follow = Follow::start_with(&pair.b, &[], File::create(&said).unwrap().into());
    // Until it follows.
    let told = eventually("an event", || {
        put(pair.a.path("x"), "x");
        follow.1.try_recv().ok()
    });
    assert_eq!(told["kind"], "data", "{told}");
    pair.b.kill();
    // Nobody listens on the socket, again and again.
    eventually("it tries again", || (text(&said).matches("trying again").count() >= 3).then_some(()));
    put(pair.a.path("meanwhile"), "x");
    pair.b.start();
    pair.b.wait_for("secondary", "in-sync");
    while !follow.next()["paths"].as_array().is_some_and(|paths| paths.iter().any(|path| path == "meanwhile"))
    {
    }
}

#[test]
fn a_thousand_streams_and_one_that_never_reads_slow_no_commit_down() {
    let pair = Pair::start();
    let put_all = |n: u64| {
        let mut times: Vec<Duration> = (0..n).map(|i| put(pair.a.path("x"), i.to_string())).collect();
        times.sort();
        times[times.len() / 2]
    };
    let alone = put_all(200);
    let socket = pair.b.mount.parent().unwrap().join("nasd.sock");
    let since = seq_of(&pair.a);
    let mut deaf = Stream::open(&socket, &format!("since={since}"), None);
    let mut streams: Vec<Stream> =
        (0..1000).map(|_| Stream::open(&socket, &format!("since={since}"), None)).collect();
    let crowded = put_all(200);
    pair.settle();
    let last = seq_of(&pair.b);
    for stream in &mut streams {
        let told = stream.read_until(last);
        assert!(told.len() as u64 >= 200, "{}", told.len());
    }
    println!("a commit: {alone:?} alone, {crowded:?} with 1,000 streams");
    assert!(crowded < alone * 20 + Duration::from_millis(20), "{alone:?} {crowded:?}");
    drop(streams);
    let memory = |node: &Node| {
        let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = memory(&pair.b);
    put_all(3000);
    pair.settle();
    let grown = memory(&pair.b).saturating_sub(before);
    println!("3,000 transactions that one stream does not read: {grown} KiB more");
    assert!(grown < 100 << 10, "{grown} KiB");
    let last = seq_of(&pair.b);
    let told = deaf.read_until(last);
    let wanted: BTreeSet<u64> = logged(&pair.b).into_iter().filter(|seq| *seq > since).collect();
    assert!(told.is_superset(&wanted), "it gets the rest later");
}

#[test]
fn a_stream_goes_on_behind_the_last_event_id() {
    let mut pair = Pair::start();
    let socket = pair.b.mount.parent().unwrap().join("nasd.sock");
    let mut stream = Stream::open(&socket, "", None);
    put(pair.a.path("x"), b"1");
    pair.settle();
    stream.read_until(seq_of(&pair.b));
    let id = stream.last_id();
    drop(stream);
    put(pair.a.path("x"), b"2");
    pair.settle();
    pair.b.kill();
    put(pair.a.path("x"), b"3");
    pair.b.start();
    pair.b.wait_for("secondary", "in-sync");
    pair.sync_and_settle();
    let last = seq_of(&pair.b);
    let mut stream = Stream::open(&socket, "", Some(&id));
    let told = stream.read_until(last);
    let from: u64 = id.split_once('.').unwrap().0.parse().unwrap();
    assert!(told.iter().all(|seq| *seq > from), "{told:?} behind {id}");
    assert!(told.len() >= 2, "{told:?}");
}
