//! Every part of a node that changes says what it was and what it is.
#![allow(clippy::unwrap_used)]

use nasd_tests::etcd::Etcd;
use nasd_tests::events::{Change, changes};
use nasd_tests::postgres::{PgPair, PgSetup, available};
use nasd_tests::{Node, Setup, eventually, put};

fn told(node: &Node, (kind, old, new): (&str, &str, &str)) {
    let wanted = Change { kind: kind.to_owned(), old: old.to_owned(), new: new.to_owned() };
    eventually(&format!("{} tells {wanted:?}", node.name), || changes(node).contains(&wanted).then_some(()));
}

#[test]
fn every_kind_says_what_was_and_what_is() {
    if !available("every_kind_says_what_was_and_what_is") {
        return;
    }
    let mut etcd = Etcd::new();
    let more = format!(
        "[failover]\nmode = \"etcd\"\ntimeout = \"30s\"\ninterval = \"200ms\"\n[failover.etcd]\nendpoints = [\"{}\"]\n",
        etcd.endpoint()
    );
    let setup = Setup { more, ..Setup::default() };
    let mut pair = PgPair::start_with(&PgSetup { setup, ..PgSetup::default() });
    for event in [("mount", "unmounted", "mounted"), ("etcd", "unknown", "answering")] {
        told(&pair.a.node, event);
        told(&pair.b.node, event);
    }
    told(&pair.a.node, ("role", "secondary", "primary"));
    told(&pair.a.node, ("sync", "catch-up", "in-sync"));
    told(&pair.a.node, ("database", "unknown", "primary"));
    told(&pair.b.node, ("link", "lost", "following"));
    told(&pair.b.node, ("sync", "not in sync", "in sync"));
    told(&pair.b.node, ("database", "unknown", "standby"));
    etcd.kill();
    told(&pair.a.node, ("etcd", "answering", "failing"));
    etcd.start();
    told(&pair.a.node, ("etcd", "failing", "answering"));
    pair.a.node.cli(&["switchover"]);
    told(&pair.a.node, ("role", "primary", "secondary"));
    told(&pair.a.node, ("link", "lost", "following"));
    told(&pair.a.node, ("database", "primary", "stopped"));
    told(&pair.b.node, ("database", "standby", "primary"));
    told(&pair.a.node, ("database", "stopped", "standby"));
    // More than its last checkpoint has.
    pair.a.node.wait_for("secondary", "in-sync");
    put(pair.b.node.path("x"), "x");
    let seq = pair.b.node.status()["seq"].to_string();
    pair.a.node.cli(&["wait", "--seq", &seq, "--timeout", "20s"]);
    pair.a.kill();
    pair.a.node.start();
    told(&pair.a.node, ("disk", "behind", "ok"));
    pair.a.wait_database("standby");
    pair.a.node.stop();
    pair.a.node.start();
    told(&pair.a.node, ("database", "standby", "stopped"));
    told(&pair.a.node, ("mount", "mounted", "unmounted"));
    told(&pair.a.node, ("role", "secondary", "stopped"));
}
