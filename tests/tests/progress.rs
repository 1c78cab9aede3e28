//! Long work says how far it is.
#![allow(clippy::unwrap_used)]

use nasd_tests::proxy::Proxy;
use nasd_tests::writer::noise;
use nasd_tests::{Pair, Setup, eventually_within, put};
use serde_json::Value;
use std::time::Duration;

const FILE: usize = 1 << 20;
/// More than the sockets and the proxy take at once.
const FILES: u64 = 40;
/// Bytes a second over the slow link.
const RATE: u64 = 4_000_000;

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
}
