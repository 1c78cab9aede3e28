//! A pair that fails over by itself, on hosts of its own.
#![allow(clippy::unwrap_used)]

use nasd_tests::cluster::{Cluster, ClusterSetup, VIRTUAL};
use nasd_tests::journal::{Client, Journal};
use nasd_tests::lab::Lab;
use nasd_tests::snapshot::assert_equal;
use std::sync::Arc;
use std::time::Duration;

fn heartbeat(timeout: &str) -> ClusterSetup {
    ClusterSetup {
        replication: "peer_timeout = \"500ms\"".into(),
        failover: format!("mode = \"heartbeat\"\ntimeout = \"{timeout}\"\n"),
        no_address: false,
    }
}

#[test]
fn a_killed_primary_is_replaced_and_follows_when_it_is_back() {
    let Some(lab) = Lab::new("failover", &["a", "b", "client"]) else { return };
    let lab = Arc::new(lab);
    let mut cluster = Cluster::new(&lab, &["a", "b"], &heartbeat("1s"));
    cluster.start();
    let _journals = [Journal::start(&cluster.nodes[0]), Journal::start(&cluster.nodes[1])];
    let client = Client::start(&lab, "client", "x", &[VIRTUAL.to_owned()]);
    client.wait_more(50);
    cluster.nodes[0].kill();
    assert_eq!(cluster.successor(0, Duration::from_secs(10)), 1);
    client.wait_more(50);
    cluster.nodes[0].start();
    assert_eq!(cluster.whole(), 1, "the old primary follows, and is not primary again by itself");
    let acked = client.finish();
    println!("{} acknowledged, the longest pause was {:?}", acked.numbers.len(), acked.longest);
    for node in &cluster.nodes {
        acked.check(&node.mount);
    }
    assert_equal("replica", &cluster.nodes[1].data(), &cluster.nodes[0].data());
}
