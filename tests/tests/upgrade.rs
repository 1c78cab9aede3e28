//! Two nodes of which one speaks the version before: as long as an upgrade, one node after the other, takes.
#![allow(clippy::unwrap_used)]

use nasd_tests::writer::Writer;
use nasd_tests::{Node, Pair, Setup, put};

const OLD: [(&str, &str); 1] = [("NASD_PROTOCOL", "1")];

/// What only the newer version of the protocol has is not said to the older one.
fn not_told(primary: &Node) {
    let out = primary.try_cli(&["notify"]);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success() && said.contains("older nasd"), "{said}");
}

#[test]
fn one_node_after_the_other_under_a_writer() {
    let setup = Setup { replication: "peer_timeout = \"1s\"".to_owned(), ..Setup::default() };
    let mut pair = Pair::new(&setup);
    pair.a.start_with_env(&OLD);
    pair.b.start_with_env(&OLD);
    pair.a.wait_for("primary", "in-sync");
    put(pair.a.path("old"), "by two old ones");
    pair.in_sync_and_equal();

    let writer = Writer::start(&[&pair.a, &pair.b]);
    writer.wait_more(10);
    pair.b.stop();
    pair.b.start();
    pair.b.wait_for("secondary", "in-sync");
    writer.wait_more(10);
    not_told(&pair.a);

    // Both ways: the newer one is primary, too.
    pair.b.cli(&["switchover"]);
    pair.b.wait_for("primary", "in-sync");
    writer.wait_more(10);
    not_told(&pair.b);
    // What the old one lacks for good is copied by the new one.
    pair.a.kill();
    writer.wait_more(10);
    std::fs::remove_dir_all(&pair.a.state_dir).unwrap();
    pair.a.edit_config("initial_role = \"primary\"", "initial_role = \"secondary\"");
    pair.a.start_with_env(&OLD);
    pair.a.wait_for("secondary", "in-sync");

    pair.a.stop();
    pair.a.start();
    pair.a.wait_for("secondary", "in-sync");
    pair.b.cli(&["notify"]);
    writer.wait_more(10);
    writer.finish().check(&pair.b.mount);
}
