//! Nodes that fail over by themselves with a PostgreSQL behind the virtual address: every row that a client was told of is
//! there afterwards, on both.
#![allow(clippy::unwrap_used)]

use nasd_tests::caller::{Caller, Session};
use nasd_tests::cluster::{Cluster, ClusterSetup, VIRTUAL};
use nasd_tests::etcd::{Etcd, EtcdSetup};
use nasd_tests::lab::Lab;
use nasd_tests::pgcluster::{self, Inserts, with_databases};
use nasd_tests::postgres::{PgNode, available};
use std::sync::Arc;
use std::time::Duration;

/// Two hosts with a node and its PostgreSQL each, an etcd, a client at work.
struct World {
    client: Caller,
    cluster: Cluster<PgNode>,
    _etcd: Etcd,
    lab: Arc<Lab>,
}

impl World {
    /// `None`, with a line that says why, where there is no PostgreSQL or there are no namespaces.
    fn new(test: &str) -> Option<World> {
        if !available(test) {
            return None;
        }
        let lab = Arc::new(Lab::new(test, &["a", "b", "e", "client"])?);
        let etcd = Etcd::with(EtcdSetup {
            ip: Some(lab.ip("e")),
            netns: Some(lab.netns("e")),
            ..EtcdSetup::default()
        });
        let setup = ClusterSetup {
            replication: "peer_timeout = \"500ms\"".into(),
            failover: format!(
                "mode = \"etcd\"\ntimeout = \"1s\"\n[failover.etcd]\nendpoints = [\"{}\"]\n{}",
                etcd.endpoint(),
                pgcluster::SECTION
            ),
            no_address: false,
            ..ClusterSetup::default()
        };
        let cluster = with_databases(Cluster::new(&lab, &["a", "b"], &setup));
        let client = Caller::start(&lab, "client", "virtual", Inserts::dial);
        client.wait_more(50);
        Some(World { client, cluster, _etcd: etcd, lab })
    }

    /// The second one becomes primary, and its database.
    fn taken_over(&self) {
        assert_eq!(self.cluster.successor(0, Duration::from_secs(10)), 1);
        self.cluster.nodes[1].wait_database("primary");
        self.client.wait_more(50);
        assert!(self.lab.has_address("b", VIRTUAL));
    }

    /// The first one has stopped: nasd, its database, its address.
    fn gave_up(&self) {
        let old = &self.cluster.nodes[0];
        old.node.wait_status("it stopped by itself", |s| {
            s["role"] == "secondary" && s["failover"]["holds_address"] == false
        });
        assert!(!self.lab.has_address("a", VIRTUAL));
        assert!(old.node.log_text().contains("PostgreSQL is stopped"), "{}", old.node.log_text());
        // Whoever calls it by its own name finds nobody, or somebody who only reads.
        let (lab, ip) = (Arc::clone(&self.lab), self.lab.ip("a"));
        let write = move || {
            lab.move_to("client");
            Inserts::dial_at(&ip).is_some_and(|mut session| session.write(u64::MAX >> 1))
        };
        assert!(!std::thread::spawn(write).join().unwrap());
    }

    /// All is mended, and the first one follows: nothing is lost, nobody differs.
    fn check(self) {
        self.lab.heal();
        let [old, new] = &self.cluster.nodes[..] else { unreachable!("there are two") };
        assert_eq!(self.cluster.whole(), 1);
        old.wait_database("standby");
        self.client.wait_more(20);
        let acked = self.client.finish();
        let longest = nasd_tests::caller::longest_pause(&acked);
        println!("{} acknowledged, the longest pause {longest:?}", acked.len());
        pgcluster::check(new, &acked);
        pgcluster::assert_equal(new, old);
        assert!(!old.node.log_text().contains("must be cloned"), "{}", old.node.log_text());
    }
}

#[test]
fn a_primary_that_is_killed_with_its_database() {
    let Some(mut w) = World::new("pg-killed") else { return };
    w.cluster.nodes[0].kill();
    w.taken_over();
    pgcluster::check(&w.cluster.nodes[1], &w.client.answers());
    w.cluster.nodes[0].node.start();
    w.check();
}

#[test]
fn a_primary_that_is_cut_from_both() {
    let Some(w) = World::new("pg-cut") else { return };
    w.lab.cut("a", "b");
    w.lab.cut("a", "e");
    w.taken_over();
    w.gave_up();
    pgcluster::check(&w.cluster.nodes[1], &w.client.answers());
    w.check();
}

#[test]
fn a_primary_that_stood_still_while_the_other_took_over() {
    let Some(w) = World::new("pg-frozen") else { return };
    w.cluster.nodes[0].node.freeze();
    w.taken_over();
    pgcluster::check(&w.cluster.nodes[1], &w.client.answers());
    w.cluster.nodes[0].node.thaw();
    w.gave_up();
    w.check();
}
