//! The operator's programs that go with a change of role: `fence_exec` and `on_role_change`.
#![allow(clippy::unwrap_used)]

use nasd_tests::{Node, Pair, Setup, eventually, put};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

fn base(node: &Node) -> PathBuf {
    node.mount.parent().unwrap().to_owned()
}

/// A program beside the node, which appends to a file beside it.
fn script(node: &Node, name: &str, body: &str) {
    let path = base(node).join(name);
    let text = format!("#!/bin/sh\ncd {}\n{body}\n", base(node).display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn lines(node: &Node, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(base(node).join(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn who_can_not_fence_does_not_take_over_and_tries_again() {
    let mut pair = Pair::new(&Setup {
        replication: "peer_timeout = \"500ms\"".into(),
        more: "[failover]\nmode = \"heartbeat\"\ntimeout = \"1s\"\nfence_exec = \"{base}/fence\"\n".into(),
        ..Setup::default()
    });
    for node in [&pair.a, &pair.b] {
        script(
            node,
            "fence",
            "echo \"$NASD_NODE fences $NASD_FENCE\" >> fenced\nread code < code\nexit $code",
        );
        std::fs::write(base(node).join("code"), "1\n").unwrap();
    }
    pair.b.start();
    pair.a.start();
    pair.in_sync_and_equal();
    put(pair.a.path("x"), "x");
    pair.a.kill();
    let tried = || lines(&pair.b, "fenced");
    eventually("it is tried, and again", || (tried().len() >= 2).then_some(()));
    assert!(tried().iter().all(|l| l == "b fences a"), "{:?}", tried());
    let b = pair.b.wait_status("it says why not", |s| {
        s["failover"]["hindrance"].as_str().is_some_and(|h| h.contains("could not be fenced off"))
    });
    assert_eq!(b["role"], "secondary", "{b:#}");
    std::fs::write(base(&pair.b).join("code"), "0\n").unwrap();
    pair.b.wait_for("primary", "degraded");
    assert_eq!(std::fs::read(pair.b.path("x")).unwrap(), b"x");
    assert!(pair.b.log_text().contains("the old primary is fenced off"), "{}", pair.b.log_text());
}

#[test]
fn each_change_of_role_is_told_in_order() {
    let mut pair = Pair::new(&Setup {
        replication: "peer_timeout = \"1s\"".into(),
        more: "[failover]\non_role_change = \"{base}/changed\"\n".into(),
        ..Setup::default()
    });
    for node in [&pair.a, &pair.b] {
        script(
            node,
            "changed",
            "echo \"$NASD_NODE $NASD_OLD_ROLE $NASD_NEW_ROLE $NASD_EPOCH $NASD_REASON\" >> changes",
        );
    }
    pair.b.start();
    pair.a.start();
    pair.in_sync_and_equal();
    let epoch = |node: &Node| node.status()["epoch"].as_u64().unwrap();
    // What each was told before does not matter here: a's start, for example.
    let (before_a, before_b) = (lines(&pair.a, "changes").len(), lines(&pair.b, "changes").len());
    let told = |node: &Node, before: usize, n: usize| {
        eventually(&format!("{} is told {n} changes", node.name), || {
            let all = lines(node, "changes").split_off(before);
            (all.len() >= n).then_some(all)
        })
    };
    // A switchover.
    pair.a.cli(&["switchover"]);
    let first = epoch(&pair.b);
    pair.b.wait_for("primary", "in-sync");
    pair.a.wait_for("secondary", "in-sync");
    assert_eq!(told(&pair.a, before_a, 1), [format!("a primary secondary {first} handed over to b")]);
    assert_eq!(told(&pair.b, before_b, 1), [format!("b secondary primary {first} handed over by a")]);
    // A promotion while the primary does not answer, and the primary steps down when it wakes up.
    pair.b.freeze();
    pair.a.cli(&["promote"]);
    let second = epoch(&pair.a);
    assert!(second > first);
    pair.b.thaw();
    pair.b.wait_for("secondary", "in-sync");
    let a = told(&pair.a, before_a, 2);
    assert_eq!(a[1], format!("a secondary primary {second} promoted"), "{a:?}");
    let b = told(&pair.b, before_b, 2);
    assert!(b[1].starts_with(&format!("b primary secondary {second} ")), "{b:?}");
    assert_eq!((a.len(), b.len()), (2, 2), "each change once: {a:?} {b:?}");
}
