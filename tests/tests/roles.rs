//! Who is primary, who may become it, and what a node does when it starts.
#![allow(clippy::unwrap_used)]

use nasd_tests::snapshot::assert_equal;
use nasd_tests::writer::Writer;
use nasd_tests::{Pair, Setup, put, seq};
use std::fs;

fn quick() -> Setup {
    Setup { replication: "peer_timeout = \"1s\"".to_owned(), ..Setup::default() }
}

fn epoch(node: &nasd_tests::Node) -> u64 {
    node.status()["epoch"].as_u64().unwrap()
}

#[test]
fn promote_is_refused_while_a_primary_answers_and_on_a_primary() {
    let mut pair = Pair::start_with(&quick());
    let before = epoch(&pair.a);
    let why = pair.b.refused(&["promote"]);
    assert!(why.contains("a is primary and answers") && why.contains("switchover"), "{why}");
    let why = pair.a.refused(&["promote"]);
    assert!(why.contains("primary already"), "{why}");
    assert_eq!((epoch(&pair.a), epoch(&pair.b)), (before, before), "a refusal changes nothing");
    put(pair.a.path("x"), "one");
    pair.a.kill();
    pair.b.cli(&["promote"]);
    assert!(epoch(&pair.b) > before, "each promotion is a new epoch");
    assert_eq!(fs::read(pair.b.path("x")).unwrap(), b"one");
}

#[test]
fn a_secondary_without_which_the_primary_went_on_is_not_promoted() {
    let mut pair = Pair::start_with(&quick());
    pair.b.kill();
    put(pair.a.path("alone"), "acknowledged by a alone");
    pair.a.kill();
    pair.b.start();
    pair.b.wait_for("secondary", "outdated");
    let why = pair.b.refused(&["promote"]);
    assert!(why.contains("not known to be in sync") && why.contains("--force"), "{why}");
    pair.b.cli(&["promote", "--force"]);
    put(pair.b.path("forced"), "x");
    assert!(!pair.b.path("alone").exists());
    // The old primary gives up what nobody else has, and keeps it where the operator finds it.
    pair.a.start();
    let a = pair.a.wait_for("secondary", "in-sync");
    assert!(a["diverged_files"].as_u64().unwrap() > 0, "{a:#}");
    assert!(pair.a.cli(&["status"]).contains("set aside in diverged/"));
    assert!(pair.a.log_text().contains("set aside in diverged/"), "{}", pair.a.log_text());
    let kept = fs::read_dir(pair.a.state_dir.join("diverged")).unwrap();
    let shown: String = kept
        .map(|f| {
            let out = nasd_tests::nasd(&["log", "show", f.unwrap().path().to_str().unwrap()]);
            String::from_utf8_lossy(&out.stdout).into_owned()
        })
        .collect();
    assert!(shown.contains("alone"), "what was set aside can be read: {shown}");
    pair.b.wait_for("primary", "in-sync");
    let seq = seq(&pair.b.status()).to_string();
    pair.a.cli(&["wait", "--seq", &seq, "--timeout", "20s"]);
    assert!(!pair.a.path("alone").exists());
    assert_equal("rewound", &pair.a.data(), &pair.b.data());
}

#[test]
fn a_secondary_that_slept_while_the_primary_went_on_is_not_promoted() {
    let mut pair = Pair::start_with(&quick());
    pair.b.freeze();
    put(pair.a.path("alone"), "acknowledged by a alone");
    // Dead before b can ask or be told anything new.
    pair.a.kill();
    pair.b.thaw();
    pair.b.wait_status("told that a went on", |s| s["following"].is_null());
    let why = pair.b.refused(&["promote"]);
    assert!(why.contains("not known to be in sync"), "{why}");
}

#[test]
fn a_replica_between_two_states_is_not_promoted() {
    let mut pair = Pair::start_with(&quick());
    put(pair.a.path("x"), "x");
    pair.b.kill();
    put(pair.a.path("y"), "acknowledged by a alone");
    pair.b.start();
    pair.in_sync_and_equal();
    // b takes over and goes on alone; a comes back, rewinds what it never had synced, and b dies in the middle.
    let state = pair.b.state_dir.join("state");
    pair.a.kill();
    pair.b.stop();
    let text = fs::read_to_string(&state).unwrap();
    let (_, body) = text.split_once('\n').unwrap();
    let body = body.replace("\"needs_copy\": false", "\"needs_copy\": true");
    let sum = blake3::hash(body.as_bytes()).to_hex();
    fs::write(&state, format!("nasd-state 1 {sum}\n{body}")).unwrap();
    pair.b.start();
    pair.b.wait_for("secondary", "copying");
    let why = pair.b.refused(&["promote"]);
    assert!(why.contains("between two states"), "{why}");
    pair.b.cli(&["promote", "--force"]);
    pair.b.wait_for("primary", "degraded");
    assert_eq!(fs::read(pair.b.path("y")).unwrap(), b"acknowledged by a alone");
}

#[test]
fn a_primary_whose_peer_is_silent_waits_until_it_is_told_to_go_on() {
    let mut pair = Pair::start_with(&quick());
    put(pair.a.path("x"), "x");
    let before = epoch(&pair.a);
    pair.a.kill();
    pair.b.kill();
    pair.a.start();
    let a = pair.a.wait_for("primary", "waiting");
    assert!(a["detail"].as_str().unwrap().contains('b'), "{a:#}");
    assert!(!pair.a.path("x").exists(), "nobody reads here before it is safe");
    let why = pair.a.refused(&["promote"]);
    assert!(why.contains("--force"), "{why}");
    pair.a.cli(&["promote", "--force"]);
    pair.a.wait_for("primary", "degraded");
    assert!(epoch(&pair.a) > before);
    put(pair.a.path("y"), "y");
    pair.b.start();
    pair.in_sync_and_equal();
}

#[test]
fn restarts_in_order_and_out_of_it() {
    let mut pair = Pair::start_with(&quick());
    put(pair.a.path("x"), "x");
    let before = epoch(&pair.a);
    pair.a.stop();
    assert_eq!(fs::read(pair.b.path("x")).unwrap(), b"x", "the secondary stays readable");
    pair.a.start();
    pair.in_sync_and_equal();
    assert!(epoch(&pair.a) > before, "a restart is a new epoch");
    assert!(!pair.a.log_text().contains("unclean"), "a clean stop needs no comparison");
    // Both killed under a writer.
    for round in 0..3 {
        let writer = Writer::start(&[&pair.a]);
        writer.wait_more(20);
        if round % 2 == 0 {
            pair.a.kill();
            pair.b.kill();
        } else {
            pair.b.kill();
            pair.a.kill();
        }
        let written = writer.finish();
        pair.b.start();
        pair.a.start();
        pair.in_sync_and_equal();
        written.check(&pair.a.mount);
        written.check(&pair.b.mount);
        for e in fs::read_dir(&pair.a.mount).unwrap() {
            let path = e.unwrap().path();
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            }
        }
    }
    // The secondary stops and starts in order.
    pair.b.stop();
    put(pair.a.path("z"), "z");
    pair.b.start();
    pair.in_sync_and_equal();
}

#[test]
fn switchover_from_either_node_and_not_without_a_peer() {
    let mut pair = Pair::start_with(&quick());
    put(pair.a.path("x"), "1");
    pair.a.cli(&["switchover"]);
    pair.b.wait_for("primary", "in-sync");
    pair.a.wait_for("secondary", "in-sync");
    put(pair.b.path("x"), "2");
    // Asked of the secondary this time.
    pair.a.cli(&["switchover"]);
    pair.in_sync_and_equal();
    assert_eq!(fs::read(pair.a.path("x")).unwrap(), b"2");
    pair.b.kill();
    put(pair.a.path("x"), "3");
    let why = pair.a.refused(&["switchover"]);
    assert!(why.contains("no peer is in sync"), "{why}");
    put(pair.a.path("x"), "4");
    pair.b.start();
    pair.in_sync_and_equal();
    pair.a.kill();
    let why = pair.b.refused(&["switchover"]);
    assert!(why.contains("no primary answers"), "{why}");
}

#[test]
fn switchovers_under_a_writer_lose_nothing() {
    let pair = Pair::start_with(&quick());
    let writer = Writer::start(&[&pair.a, &pair.b]);
    let rounds = if nasd_tests::long() { 40 } else { 4 };
    for round in 0..rounds {
        writer.wait_more(20);
        let (from, to) = if round % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        from.cli(&["switchover"]);
        to.wait_for("primary", "in-sync");
        from.wait_for("secondary", "in-sync");
    }
    writer.wait_more(20);
    let written = writer.finish();
    println!(
        "{rounds} switchovers, {} files: longest pause {:?}, errors {:?}",
        written.acknowledged.len(),
        written.longest_pause,
        written.errors
    );
    assert!(written.errors.iter().all(|&e| e == 30), "EROFS and nothing else: {:?}", written.errors);
    pair.in_sync_and_equal();
    written.check(&pair.a.mount);
    written.check(&pair.b.mount);
}

#[test]
fn wait_and_verify() {
    let pair = Pair::start_with(&quick());
    for n in 0..50u8 {
        put(pair.a.path(&format!("f{n}")), vec![n; 70_000]);
    }
    let seq = seq(&pair.a.status());
    pair.b.cli(&["wait", "--seq", &seq.to_string()]);
    let out = pair.b.try_cli(&["wait", "--seq", &(seq + 100).to_string(), "--timeout", "100ms"]);
    assert_eq!(out.status.code(), Some(1));
    let said = pair.a.cli(&["verify"]);
    assert!(said.contains("0 differ"), "{said}");
    // A disk that forgets: one byte, behind nasd's back, with the time as it was.
    let file = pair.b.data().join("f7");
    let mtime = fs::metadata(&file).unwrap().modified().unwrap();
    let f = fs::File::options().write(true).open(&file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&f, b"X", 66_000).unwrap();
    f.set_modified(mtime).unwrap();
    let out = pair.a.try_cli(&["verify"]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("1 differ") && said.lines().any(|l| l.trim() == "f7"), "{said}");
    let why = pair.b.refused(&["verify"]);
    assert!(why.contains("primary"), "{why}");
}
