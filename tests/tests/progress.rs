//! Long work says how far it is.
#![allow(clippy::unwrap_used)]

use nasd_tests::node::binary;
use nasd_tests::postgres::{PgPair, PgSetup, available};
use nasd_tests::proxy::Proxy;
use nasd_tests::writer::noise;
use nasd_tests::{Node, Pair, Setup, eventually_within, put};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;

const FILE: usize = 1 << 20;
/// More than the sockets and the proxy take at once.
const FILES: u64 = 40;
/// Bytes a second over the slow link.
const RATE: u64 = 4_000_000;
/// So many that a list of checksums takes a second or two.
const SLOW: u64 = 15_000;
/// What takes a line back from a terminal.
const ERASE: &str = "\r\u{1b}[K";

/// The work of this name in a status.
fn work(status: &Value, what: &str) -> Option<Value> {
    let all = status["progress"].as_array().expect("a list");
    all.iter().find(|w| w["what"] == what).cloned()
}

#[test]
fn a_slow_copy_and_a_verification() {
    let (to_b, to_a) = (Proxy::start(), Proxy::start());
    let peer_addresses = Some([to_b.address.clone(), to_a.address.clone()]);
    let mut pair = Pair::new(&Setup { peer_addresses, ..Setup::default() });
    to_b.lead_to(&pair.b.listen);
    to_a.lead_to(&pair.a.listen);
    pair.a.start();
    pair.a.wait_for("primary", "degraded");
    for n in 0..FILES {
        put(pair.a.path(&format!("f{n}")), noise(n, FILE));
    }
    to_b.throttle(RATE);
    pair.b.start();

    let total = FILES * FILE as u64;
    let mut seen: Vec<Value> = Vec::new();
    let mut received = 0;
    let mut line = None;
    eventually_within(Duration::from_secs(60), "the copy is done", || {
        let status = pair.a.status();
        seen.extend(work(&status, "full copy to b"));
        if let Some(copy) = pair.b.try_status().and_then(|s| work(&s, "copy from a")) {
            assert_eq!(copy["total"], Value::Null, "only the primary knows how much will come");
            assert_eq!(copy["seconds_left"], Value::Null);
            received = copy["done"].as_u64().unwrap();
        }
        if !seen.is_empty() && line.is_none() {
            let text = pair.a.cli(&["status"]);
            line = text.lines().find(|l| l.starts_with("progress")).map(str::to_owned);
        }
        (status["state"] == "in-sync").then_some(())
    });
    let line = line.expect("the same for people");
    assert!(line.contains("full copy to b: ") && line.contains(" of 40.0 MiB ("), "{line}");
    assert!(seen.len() >= 3, "{seen:?}");
    for w in &seen {
        assert_eq!(w["total"].as_u64(), Some(total), "{w}");
        assert_eq!(w["unit"], "bytes");
        assert!(w["done"].as_u64().unwrap() <= total, "{w}");
    }
    let done: Vec<u64> = seen.iter().map(|w| w["done"].as_u64().unwrap()).collect();
    assert!(done.is_sorted() && done[0] < done[done.len() - 1], "{done:?}");
    let rate = seen[seen.len() - 1]["bytes_per_second"].as_u64().unwrap();
    assert!((RATE / 3..RATE * 3).contains(&rate), "{rate}");
    let left = seen.iter().filter_map(|w| w["seconds_left"].as_f64()).next_back().unwrap();
    assert!(left < total as f64 / RATE as f64 * 3.0, "{left}");
    assert!(received > total / 4, "b saw it, too: {received}");
    to_b.throttle(0);
    pair.in_sync_and_equal();

    // Nothing is under way any more, and a verification is nothing that stays.
    for node in [&pair.a, &pair.b] {
        node.wait_status("at rest", |s| s["progress"].as_array().is_some_and(Vec::is_empty));
    }
    assert!(pair.a.cli(&["verify"]).contains(&format!("{total} bytes compared")), "all were compared");

    // Who waits for it at a terminal sees how far it is, on one line that is gone in the end.
    to_b.throttle(SLOW);
    let seen = at_a_terminal(&pair.a, "verify");
    let lines: Vec<&str> = seen.split(ERASE).filter(|l| l.contains("/s")).collect();
    println!("{lines:?}");
    assert!(lines.iter().any(|l| l.starts_with("b reads its files: ")), "{seen:?}");
    assert!(seen.contains(&format!("{total} bytes compared")), "{seen:?}");
    assert!(!pair.a.cli(&["verify"]).contains(ERASE), "none without a terminal");
}

#[test]
fn a_clone_at_a_terminal() {
    if !available("progress") {
        return;
    }
    let pair = PgPair::adopted(&PgSetup::default());
    let from = format!("pg clone --from 'host={} user=postgres'", pair.a.socket_dir().display());
    let seen = at_a_terminal(&pair.b.node, &from);
    let lines: Vec<&str> = seen.split(ERASE).filter(|l| l.starts_with("base backup: ")).collect();
    println!("{lines:?}");
    assert!(lines.iter().any(|l| l.contains(" MiB (100 %), ") && l.contains("/s")), "{seen:?}");
    pair.b.wait_database("standby");
}

/// What a command of a node writes to a terminal.
fn at_a_terminal(node: &Node, command: &str) -> String {
    let typed = format!("{} {command} --config {}", binary().display(), node.config.display());
    let out = Command::new("script")
        .args(["--quiet", "--return", "--command", &typed, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let seen = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{typed}: {seen}");
    seen
}
