//! `--plan` says what the change of role would do, and does nothing.
#![allow(clippy::unwrap_used)]

use nasd_tests::{Node, Pair, Setup, put};

/// What it prints and its exit code, which must leave roles and epochs as they are.
fn plan(node: &Node, args: &[&str]) -> (i32, String) {
    let before = node.status();
    let out = node.try_cli(args);
    let after = node.status();
    for key in ["role", "epoch", "in_sync"] {
        assert_eq!(before[key], after[key], "{args:?} changes nothing: {key}");
    }
    let text = String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap();
    (out.status.code().unwrap(), text)
}

#[test]
fn what_a_promotion_would_do() {
    let mut pair =
        Pair::start_with(&Setup { replication: "peer_timeout = \"1s\"".into(), ..Setup::default() });
    put(pair.a.path("x"), "x");
    let (code, text) = plan(&pair.a, &["promote", "--plan"]);
    assert!(code == 1 && text.contains("refused  this node is primary already"), "{text}");
    let (code, text) = plan(&pair.b, &["promote", "--plan"]);
    assert!(code == 1 && text.contains("a is primary and answers"), "{text}");
    let (code, text) = plan(&pair.b, &["promote", "--plan", "--force"]);
    assert!(code == 0 && text.contains("forced although a is primary"), "{text}");
    pair.settle();
    pair.a.kill();
    pair.b.wait_for("secondary", "disconnected");
    let (code, text) = plan(&pair.b, &["promote", "--plan"]);
    assert!(code == 0 && text.contains("a does not answer") && !text.contains("lost  "), "{text}");
    assert!(text.contains("nothing acknowledged until then would be lost"), "{text}");
    let next = pair.b.status()["epoch"].as_u64().unwrap() + 1;
    assert!(text.contains(&format!("primary of epoch {next}")), "{text}");
    pair.b.cli(&["promote"]);
    assert_eq!(pair.b.status()["epoch"], next, "as planned");
}

#[test]
fn a_promotion_that_would_lose_something() {
    let mut pair =
        Pair::start_with(&Setup { replication: "peer_timeout = \"1s\"".into(), ..Setup::default() });
    pair.b.kill();
    put(pair.a.path("alone"), "acknowledged by a alone");
    pair.a.kill();
    pair.b.start();
    pair.b.wait_for("secondary", "outdated");
    let (code, text) = plan(&pair.b, &["promote", "--plan"]);
    assert!(code == 1 && text.contains("refused  this node is not known to be in sync"), "{text}");
    assert!(text.contains("lost  not known to be in sync since") && text.contains("diverged/"), "{text}");
    // The real one gives the same reason.
    assert!(pair.b.refused(&["promote"]).contains("this node is not known to be in sync"));
}

#[test]
fn what_a_switchover_would_do() {
    let mut pair =
        Pair::start_with(&Setup { replication: "peer_timeout = \"1s\"".into(), ..Setup::default() });
    put(pair.a.path("x"), "x");
    let epoch = pair.a.status()["epoch"].as_u64().unwrap();
    for node in [&pair.a, &pair.b] {
        let (code, text) = plan(node, &["switchover", "--plan"]);
        let expected = format!("a hands over to b, which becomes primary of epoch {}", epoch + 1);
        assert!(code == 0 && text.contains(&expected) && text.contains("nothing would be lost"), "{text}");
        assert!(text.contains("to drain: "), "{text}");
    }
    pair.b.kill();
    pair.a.wait_for("primary", "degraded");
    let (code, text) = plan(&pair.a, &["switchover", "--plan"]);
    assert!(code == 1 && text.contains("no peer is in sync to hand over to (of: b)"), "{text}");
    assert!(pair.a.refused(&["switchover"]).contains("no peer is in sync to hand over to (of: b)"));
    pair.b.start();
    pair.in_sync_and_equal();
    pair.a.kill();
    pair.b.wait_for("secondary", "disconnected");
    let (code, text) = plan(&pair.b, &["switchover", "--plan"]);
    assert!(code == 1 && text.contains("no primary answers"), "{text}");
}
