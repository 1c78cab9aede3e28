//! Whoever is connected while a node's history changes is told of that, and goes on; on a primary he is told of its own commits.
#![allow(clippy::unwrap_used)]

use nasd_tests::events::Stream;
use nasd_tests::{Node, Pair, Setup, eventually, put, seq};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Who listens at a node: a stream of server-sent events, and a read of `.nasd/notify`.
fn listen(node: &Node) -> [(&'static str, Receiver<Value>); 2] {
    let mut stream = Stream::open(&node.mount.with_file_name("nasd.sock"), "", None);
    // A process of its own: a file that is open here would be closed by each child, which waits for a node that stands still.
    let mut cat = Command::new("cat");
    let mut cat = cat.arg(node.path(".nasd/notify")).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(cat.stdout.take().unwrap()).lines();
    eventually("it waits in a read", || {
        let waits = fs::read_to_string(format!("/proc/{}/wchan", cat.id())).unwrap_or_default();
        waits.contains("request_wait_answer").then_some(())
    });
    let ((to_one, one), (to_other, other)) = (channel(), channel());
    // Each ends with the node, or with who hears it.
    std::thread::spawn(move || {
        while let Some(event) = stream.try_event() {
            if to_one.send(event).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if to_other.send(serde_json::from_str(&line).unwrap()).is_err() {
                break;
            }
        }
        // It has ended with its node, or is let go.
        let _ = cat.kill();
        let _ = cat.wait();
    });
    [("a stream", one), (".nasd/notify", other)]
}

/// Everything that is told up to an event for which `last` holds.
fn until(told: &Receiver<Value>, what: &str, last: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let event = told.recv_timeout(Duration::from_secs(30));
        let event = event.unwrap_or_else(|e| panic!("{what}: {e} after {all:#?}"));
        assert_ne!(event["kind"], "gap", "{what}: {event}");
        all.push(event);
        if all.last().is_some_and(&last) {
            return all;
        }
    }
}

fn changes(event: &Value, path: &str) -> bool {
    event["paths"].as_array().is_some_and(|paths| paths.iter().any(|p| p == path))
}

fn file_names(n: u64, from: &str) -> Vec<String> {
    (0..n).map(|i| format!("{from}-{i}")).collect()
}

/// A program that keeps what it was told of states.
fn program(path: &Path) {
    fs::write(
        path,
        format!("#!/bin/sh\necho \"$NASD_KIND $NASD_SEQ $NASD_REASON\" >> {}.told\n", path.display()),
    )
    .unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn who_was_told_of_what_is_taken_back_is_told_so() {
    let rule = "[[notify]]\nstates = [\"sync\"]\nexec = \"{base}/program\"\n".to_owned();
    let mut pair = Pair::new(&Setup { more: rule, ..Setup::default() });
    for node in [&pair.a, &pair.b] {
        program(&node.mount.with_file_name("program"));
    }
    pair.b.start();
    pair.a.start();
    pair.a.wait_for("primary", "in-sync");
    pair.b.wait_for("secondary", "in-sync");
    put(pair.a.path("both"), b"x");
    pair.settle();
    let listeners = listen(&pair.a);
    let both_have = seq(&pair.b.status());
    pair.b.kill();
    pair.a.wait_for("primary", "degraded");
    for name in file_names(5, "alone") {
        put(pair.a.path(&name), b"x");
    }
    File::open(&pair.a.mount).unwrap().sync_all().unwrap();
    let lost = seq(&pair.a.status());
    // The other one takes over while this one stands still.
    pair.a.freeze();
    pair.b.start();
    pair.b.wait_for("secondary", "outdated");
    pair.b.cli(&["promote", "--force"]);
    for name in file_names(10, "instead") {
        put(pair.b.path(&name), b"x");
    }
    pair.a.thaw();
    pair.b.wait_for("primary", "in-sync");
    pair.a.wait_for("secondary", "in-sync");
    put(pair.b.path("later"), b"y");
    for (name, told) in &listeners {
        let told = until(told, name, |e| changes(e, "later"));
        let back = told.iter().position(|e| e["taken_back"].is_u64());
        let back = back.unwrap_or_else(|| panic!("{name}: nothing is taken back: {told:#?}"));
        let (event, before, after) = (&told[back], &told[..back], &told[back + 1..]);
        assert_eq!(event["kind"], "sync", "{name}: {event}");
        assert!(seq(event) >= both_have && event["taken_back"].as_u64().unwrap() >= lost, "{name}: {event}");
        for path in file_names(5, "alone") {
            assert!(before.iter().any(|e| changes(e, &path)), "{name}: {path} was not told: {before:#?}");
            assert!(!after.iter().any(|e| changes(e, &path)), "{name}: {path} is no more: {after:#?}");
        }
        // Each by itself, or all at once by a copy.
        let anything = after.iter().any(|e| e["kind"] == "data" && e["more"] == true);
        for path in file_names(10, "instead") {
            assert!(anything || after.iter().any(|e| changes(e, &path)), "{name}: {path}: {after:#?}");
        }
        let numbers: Vec<u64> = after.iter().filter(|e| e["kind"] == "data").map(seq).collect();
        assert!(numbers.is_sorted() && numbers[0] > seq(event), "{name}: {numbers:?} behind {event}");
        assert!(told.iter().any(|e| e["kind"] == "role" && e["new"] == "secondary"), "{name}: {told:#?}");
    }
    assert_eq!(fs::read(pair.a.path("later")).unwrap(), b"y");
    let said = pair.a.mount.with_file_name("program.told");
    eventually("the program is told of it", || {
        fs::read_to_string(&said).ok().filter(|text| text.contains("does not have were set aside"))
    });
}

#[test]
fn who_listens_during_a_full_copy_is_told_that_anything_may_have_changed() {
    let setup = Setup {
        replication: "peer_timeout = \"1s\"".to_owned(),
        log: "retain_files = 16".to_owned(),
        ..Setup::default()
    };
    let pair = Pair::start_with(&setup);
    put(pair.a.path("before"), b"x");
    pair.settle();
    let listeners = listen(&pair.b);
    pair.b.freeze();
    // What it lacks is pruned meanwhile.
    for n in 0..60 {
        put(pair.a.path(&format!("away-{}", n % 7)), n.to_string());
    }
    let lacks = seq(&pair.a.status()) - 30;
    eventually("the log is pruned", || {
        let oldest =
            pair.a.log_names().first()?.rsplit('-').next()?.strip_suffix(".txn")?.parse::<u64>().ok()?;
        (oldest > lacks - 20).then_some(())
    });
    pair.b.thaw();
    pair.b.wait_for("secondary", "in-sync");
    pair.a.wait_for("primary", "in-sync");
    assert!(pair.a.log_text().contains("peer b: resync"), "{}", pair.a.log_text());
    put(pair.a.path("later"), b"y");
    for (name, told) in &listeners {
        let told = until(told, name, |e| changes(e, "later"));
        let copied = told.iter().position(|e| e["kind"] == "data" && e["more"] == true);
        let copied = copied.unwrap_or_else(|| panic!("{name}: {told:#?}"));
        assert!(told[copied]["paths"].as_array().is_none_or(Vec::is_empty), "{name}: {}", told[copied]);
        assert!(told[..copied].iter().any(|e| e["kind"] == "sync"), "{name}: {told:#?}");
        let numbers: Vec<u64> = told.iter().filter(|e| e["kind"] == "data").map(seq).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{name}: {numbers:?}");
        assert!(seq(&told[copied]) > lacks, "{name}: {}", told[copied]);
    }
    for n in 53..60 {
        assert_eq!(fs::read_to_string(pair.b.path(&format!("away-{}", n % 7))).unwrap(), n.to_string());
    }
}

#[test]
fn a_primary_tells_its_own_commits_once_they_are_acknowledged() {
    let replication = "peer_timeout = \"5s\"\non_peer_loss = \"suspend\"".to_owned();
    let pair = Pair::start_with(&Setup { replication, ..Setup::default() });
    let from = seq(&pair.a.status()).to_string();
    let listeners = listen(&pair.a);
    let names = file_names(5, "own");
    for name in &names {
        put(pair.a.path(name), b"x");
    }
    let list = pair.a.cli(&["events", "--json", "--since", &from]);
    let list: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for name in &names {
        assert!(list.iter().any(|e| e["kind"] == "data" && changes(e, name)), "{name}: {list:#?}");
    }
    for (name, told) in &listeners {
        until(told, name, |e| changes(e, "own-4"));
    }
    // As long as the other node does not have it, nobody is told.
    pair.b.freeze();
    std::thread::scope(|s| {
        // Also when this panics: the writer is waited for.
        let thaw = Thaw(&pair.b);
        let writer = s.spawn(|| put(pair.a.path("held"), b"x"));
        eventually("it is in the log", || (seq(&pair.a.status()) > list.last().map_or(0, seq)).then_some(()));
        for (name, told) in &listeners {
            let early = std::iter::from_fn(|| told.recv_timeout(Duration::from_millis(200)).ok());
            let early: Vec<Value> = early.filter(|e| changes(e, "held")).collect();
            assert!(early.is_empty(), "{name}: told before it is acknowledged: {early:?}");
        }
        assert!(!writer.is_finished());
        drop(thaw);
    });
    for (name, told) in &listeners {
        until(told, name, |e| changes(e, "held"));
    }
}

struct Thaw<'a>(&'a Node);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}
