//! Nodes that fail over by themselves, on hosts of their own whose cables are cut; clients that write all the time, to the
//! virtual address and to each node: nothing that they were answered is lost, so there are never two writers.
#![allow(clippy::unwrap_used)]

use nasd_tests::cluster::{Cluster, ClusterSetup, VIRTUAL};
use nasd_tests::etcd::{Etcd, EtcdSetup};
use nasd_tests::journal::{Client, Journal};
use nasd_tests::lab::Lab;
use nasd_tests::snapshot::assert_equal;
use nasd_tests::{Node, eventually, eventually_within, long, put, seed};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A lab with nodes, an etcd, and clients at work.
struct World {
    clients: Vec<Client>,
    journals: Vec<Journal>,
    cluster: Cluster,
    etcd: Etcd,
    lab: Arc<Lab>,
}

const NODES: [&str; 3] = ["a", "b", "c"];

impl World {
    /// `None` where there are no namespaces.
    fn new(test: &str, nodes: usize, more: &str) -> Option<World> {
        World::with(test, nodes, "peer_timeout = \"500ms\"", more)
    }

    fn with(test: &str, nodes: usize, replication: &str, more: &str) -> Option<World> {
        let names = &NODES[..nodes];
        let lab = Arc::new(Lab::new(test, &[names, &["e", "client"]].concat())?);
        let etcd = Etcd::with(EtcdSetup {
            ip: Some(lab.ip("e")),
            netns: Some(lab.netns("e")),
            ..EtcdSetup::default()
        });
        let setup = ClusterSetup {
            replication: replication.to_owned(),
            failover: format!(
                "mode = \"etcd\"\ntimeout = \"1s\"\n{more}\n[failover.etcd]\nendpoints = [\"{}\"]\n",
                etcd.endpoint()
            ),
            ..ClusterSetup::default()
        };
        let mut cluster = Cluster::new(&lab, names, &setup);
        cluster.start();
        let journals = cluster.nodes.iter().map(Journal::start).collect();
        let mut world = World { clients: Vec::new(), journals, cluster, etcd, lab };
        world.client("virtual", &[VIRTUAL.to_owned()]);
        for name in names {
            world.client(&format!("to-{name}"), &[world.lab.ip(name)]);
        }
        world.clients[0].wait_more(20);
        Some(world)
    }

    fn client(&mut self, name: &str, to: &[String]) {
        self.clients.push(Client::start(&self.lab, "client", name, to));
    }

    /// The client of the virtual address goes on.
    fn goes_on(&self) {
        self.clients[0].wait_more(20);
    }

    fn kill(&mut self, i: usize) {
        self.cluster.nodes[i].kill();
    }

    fn role(&self, i: usize) -> Option<String> {
        self.cluster.nodes[i].try_status().and_then(|s| Some(s["role"].as_str()?.to_owned()))
    }

    fn wait_role(&self, i: usize, role: &str) {
        eventually(&format!("{} is {role}", NODES[i]), || (self.role(i)? == role).then_some(()));
    }

    /// Everything is mended: all come together, nothing is lost, nobody differs.
    fn check(mut self) -> usize {
        self.lab.heal();
        let primary = self.cluster.whole();
        self.goes_on();
        for client in self.clients.drain(..) {
            let acked = client.finish();
            println!("{} acknowledged, the longest pause {:?}", acked.numbers.len(), acked.longest);
            acked.check(&self.cluster.nodes[primary].mount);
        }
        self.journals.clear();
        let primary = self.cluster.whole();
        let nodes = &self.cluster.nodes;
        std::fs::File::open(&nodes[primary].mount).unwrap().sync_all().unwrap();
        let seq = nodes[primary].status()["seq"].as_u64().unwrap().to_string();
        for node in nodes {
            node.cli(&["wait", "--seq", &seq, "--timeout", "20s"]);
            assert_equal("replica", &nodes[primary].data(), &node.data());
        }
        primary
    }
}

#[test]
fn by_heartbeats_a_killed_primary_is_replaced_and_follows_when_it_is_back() {
    let Some(lab) = Lab::new("failover", &["a", "b", "client"]) else { return };
    let lab = Arc::new(lab);
    let setup = ClusterSetup {
        replication: "peer_timeout = \"500ms\"".into(),
        failover: "mode = \"heartbeat\"\ntimeout = \"1s\"\n".into(),
        ..ClusterSetup::default()
    };
    let mut cluster = Cluster::new(&lab, &["a", "b"], &setup);
    cluster.start();
    let _journals = [Journal::start(&cluster.nodes[0]), Journal::start(&cluster.nodes[1])];
    let client = Client::start(&lab, "client", "x", &[VIRTUAL.to_owned()]);
    client.wait_more(50);
    cluster.nodes[0].kill();
    assert_eq!(cluster.successor(0, Duration::from_secs(10)), 1);
    client.wait_more(50);
    cluster.nodes[0].start();
    assert_eq!(cluster.whole(), 1, "the old primary follows, and is not primary again by itself");
    let warning = cluster.nodes[1].status()["failover"]["warning"].as_str().unwrap().to_owned();
    assert!(warning.contains("both become primary"), "{warning}");
    let acked = client.finish();
    println!("{} acknowledged, the longest pause was {:?}", acked.numbers.len(), acked.longest);
    for node in &cluster.nodes {
        acked.check(&node.mount);
    }
}

/// The link of the two is cut and they still hear each other: nobody is dead.
#[test]
fn a_second_network_carries_heartbeats() {
    let Some(lab) = Lab::new("networks", &["a", "b"]) else { return };
    let setup = ClusterSetup {
        replication: "peer_timeout = \"500ms\"".into(),
        failover: "mode = \"heartbeat\"\ntimeout = \"1s\"\n".into(),
        two_networks: true,
        no_address: true,
        ..ClusterSetup::default()
    };
    let mut cluster: Cluster = Cluster::new(&lab, &["a", "b"], &setup);
    cluster.start();
    lab.cut_first_network();
    cluster.nodes[0].wait_status("it goes on alone", |s| s["state"] == "degraded");
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        let b = cluster.nodes[1].status();
        assert_eq!(b["role"], "secondary", "{b:#}");
        assert!(b["failover"]["silent_seconds"].as_f64().unwrap() < 1.0, "{b:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
    lab.heal();
    assert_eq!(cluster.whole(), 0);
    lab.power("a", false);
    assert_eq!(cluster.successor(0, Duration::from_secs(5)), 1, "silent on every way");
}

/// The modes are changed by restarts, one node after the other, and the data stays.
#[test]
fn from_manual_to_etcd_and_back_by_restarts() {
    let Some(lab) = Lab::new("modes", &["a", "b", "e"]) else { return };
    let lab = Arc::new(lab);
    let etcd =
        Etcd::with(EtcdSetup { ip: Some(lab.ip("e")), netns: Some(lab.netns("e")), ..EtcdSetup::default() });
    let (manual, by_etcd) = (
        "mode = \"manual\"\ntimeout = \"1s\"\n".to_owned(),
        format!(
            "mode = \"etcd\"\ntimeout = \"1s\"\n[failover.etcd]\nendpoints = [\"{}\"]\n",
            etcd.endpoint()
        ),
    );
    let setup = ClusterSetup {
        replication: "peer_timeout = \"500ms\"".into(),
        failover: manual.clone(),
        ..ClusterSetup::default()
    };
    let mut cluster: Cluster = Cluster::new(&lab, &["a", "b"], &setup);
    cluster.start();
    put(cluster.nodes[0].path("by-hand"), "1");
    switch_over(&mut cluster, 0, &manual, &by_etcd);
    let record = &cluster.nodes[0].status()["failover"]["record"];
    assert_eq!((&record["primary"], &record["in_sync"]), (&"a".into(), &serde_json::json!(["a", "b"])));
    put(cluster.nodes[0].path("by-record"), "2");
    cluster.nodes[0].kill();
    assert_eq!(cluster.successor(0, Duration::from_secs(5)), 1, "by itself, now that there is a record");
    cluster.nodes[0].start();
    assert_eq!(cluster.whole(), 1);
    switch_over(&mut cluster, 1, &by_etcd, &manual);
    put(cluster.nodes[1].path("by-hand-again"), "3");
    cluster.nodes[1].kill();
    cluster.nodes[0].wait_status("it says what is to be done", |s| {
        s["failover"]["hindrance"].as_str().is_some_and(|h| h.contains("nasd promote"))
    });
    cluster.nodes[0].cli(&["promote"]);
    for (name, content) in [("by-hand", "1"), ("by-record", "2"), ("by-hand-again", "3")] {
        assert_eq!(std::fs::read_to_string(cluster.nodes[0].path(name)).unwrap(), content);
    }
}

/// Changes the configuration of both, restarts the secondary and then the primary, which stays primary.
fn switch_over(cluster: &mut Cluster, primary: usize, from: &str, to: &str) {
    for i in [1 - primary, primary] {
        cluster.nodes[i].edit_config(from, to);
        cluster.nodes[i].stop();
        cluster.nodes[i].start();
    }
    assert_eq!(cluster.whole(), primary);
}

#[test]
fn a_primary_that_is_killed() {
    let Some(mut w) = World::new("killed", 2, "") else { return };
    for round in 0..2 {
        let old = w.cluster.whole();
        assert_eq!(old, round % 2);
        w.kill(old);
        assert_eq!(w.cluster.successor(old, Duration::from_secs(5)), 1 - old);
        w.goes_on();
        w.cluster.nodes[old].start();
    }
    w.check();
}

#[test]
fn with_auto_failback_the_role_goes_back() {
    let Some(mut w) = World::new("failback", 2, "auto_failback = true") else { return };
    w.kill(0);
    assert_eq!(w.cluster.successor(0, Duration::from_secs(5)), 1);
    w.goes_on();
    let epoch = w.cluster.nodes[1].status()["epoch"].as_u64().unwrap();
    w.cluster.nodes[0].start();
    // It starts as the primary that it was, and asks: only one with its peer in sync has taken the role back.
    w.cluster.nodes[0].wait_for("primary", "in-sync");
    assert_eq!(w.cluster.whole(), 0);
    w.goes_on();
    // In order, once, and it stays so.
    let a = w.cluster.nodes[0].status();
    assert_eq!((a["epoch"].as_u64().unwrap(), &a["diverged_files"]), (epoch + 1, &0.into()), "{a:#}");
    let text = w.cluster.nodes[0].log_text();
    assert!(text.contains("auto_failback") && text.contains("handed over by b"), "{text}");
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        w.goes_on();
    }
    assert_eq!(w.check(), 0);
}

#[test]
fn without_auto_failback_the_role_stays() {
    let Some(mut w) = World::new("no-failback", 2, "") else { return };
    w.kill(0);
    assert_eq!(w.cluster.successor(0, Duration::from_secs(5)), 1);
    w.cluster.nodes[0].start();
    assert_eq!(w.cluster.whole(), 1);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        w.goes_on();
    }
    assert_eq!(w.check(), 1);
}

#[test]
fn a_primary_that_loses_its_power_or_its_network() {
    let Some(w) = World::new("power", 2, "") else { return };
    w.lab.power("a", false);
    assert_eq!(w.cluster.successor(0, Duration::from_secs(5)), 1);
    w.goes_on();
    // It can reach nobody: it has stopped by itself, before anybody told it.
    w.wait_role(0, "secondary");
    let a = w.cluster.nodes[0].status();
    assert_eq!(a["failover"]["holds_address"], false, "{a:#}");
    assert!(std::fs::write(w.cluster.nodes[0].path("x"), "x").is_err(), "its mount is read-only");
    w.lab.power("a", true);
    assert_eq!(w.check(), 1);
}

#[test]
fn the_link_between_the_two_is_cut() {
    let Some(w) = World::new("link", 2, "") else { return };
    w.lab.cut("a", "b");
    // The primary has the record say that the peer is out before the peer would take over.
    w.cluster.nodes[0].wait_status("it goes on alone", |s| s["state"] == "degraded");
    w.goes_on();
    let b = w.cluster.nodes[1].wait_status("b says why it does not take over", |s| {
        s["failover"]["hindrance"].as_str().is_some_and(|h| h.contains("may lack"))
    });
    assert_eq!(b["role"], "secondary");
    assert_eq!(w.check(), 0);
}

#[test]
fn the_link_is_cut_and_the_peer_is_faster() {
    // The peer asks etcd long before the primary gives the peer up.
    let Some(w) = World::with("faster", 2, "peer_timeout = \"20s\"", "") else { return };
    w.lab.cut("a", "b");
    assert_eq!(w.cluster.successor(0, Duration::from_secs(5)), 1);
    w.wait_role(0, "secondary");
    w.goes_on();
    assert_eq!(w.check(), 1);
}

#[test]
fn etcd_may_be_away_while_the_pair_is_whole() {
    let Some(mut w) = World::new("etcd", 2, "") else { return };
    w.lab.cut("a", "e");
    w.goes_on();
    w.etcd.kill();
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        w.goes_on();
    }
    assert_eq!(w.role(0).unwrap(), "primary");
    // Now the peer goes as well. Nobody knows what it does: nothing is acknowledged any more, and the primary stops.
    w.lab.heal();
    w.kill(1);
    w.wait_role(0, "secondary");
    w.etcd.start();
    // Two of three again: it was primary, and the record says so.
    w.wait_role(0, "primary");
    w.goes_on();
    w.cluster.nodes[1].start();
    assert_eq!(w.check(), 0);
}

#[test]
fn a_primary_cut_from_both() {
    let Some(w) = World::new("both", 2, "") else { return };
    w.lab.cut("a", "b");
    w.lab.cut("a", "e");
    assert_eq!(w.cluster.successor(0, Duration::from_secs(5)), 1);
    w.wait_role(0, "secondary");
    w.goes_on();
    assert_eq!(w.check(), 1);
}

#[test]
fn cuts_of_one_way() {
    let Some(w) = World::new("one-way", 2, "") else { return };
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "e"), ("e", "a"), ("b", "e"), ("e", "b")] {
        w.lab.cut_one_way(from, to);
        w.goes_on();
        // Long enough for everybody to have noticed.
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            w.goes_on();
        }
        w.lab.heal();
        w.cluster.whole();
    }
    w.check();
}

#[test]
fn a_third_of_all_packets_is_lost() {
    let Some(w) = World::new("loss", 2, "") else { return };
    w.lab.lose(30);
    let until = Instant::now() + Duration::from_secs(if long() { 60 } else { 8 });
    let before = w.clients[0].count();
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("{} acknowledged meanwhile", w.clients[0].count() - before);
    w.check();
}

#[test]
fn a_frozen_primary_wakes_up_after_the_other_took_over() {
    let Some(w) = World::new("frozen", 2, "") else { return };
    w.cluster.nodes[0].freeze();
    assert_eq!(w.cluster.successor(0, Duration::from_secs(5)), 1);
    w.goes_on();
    w.cluster.nodes[0].thaw();
    w.wait_role(0, "secondary");
    assert_eq!(w.check(), 1);
}

#[test]
fn three_nodes_two_of_which_die_one_after_the_other() {
    let Some(mut w) = World::new("three", 3, "") else { return };
    w.kill(0);
    let second = w.cluster.successor(0, Duration::from_secs(6));
    w.goes_on();
    let third = 3 - second;
    w.cluster.nodes[third].wait_status("the other one follows the new primary", |s| s["state"] == "in-sync");
    w.kill(second);
    eventually_within(Duration::from_secs(6), "the last one is primary", || {
        (w.role(third)? == "primary").then_some(())
    });
    w.goes_on();
    w.cluster.nodes[0].start();
    w.cluster.nodes[second].start();
    assert_eq!(w.check(), third);
}

#[test]
fn a_planned_switchover_is_a_pause() {
    let Some(w) = World::new("switchover", 2, "") else { return };
    for round in 0..4 {
        let old = w.cluster.whole();
        assert_eq!(old, round % 2);
        w.cluster.nodes[old].cli(&["switchover"]);
        w.goes_on();
    }
    w.check();
}

#[test]
fn anything_at_any_time() {
    let seed = seed("anything_at_any_time");
    let mut rng = StdRng::seed_from_u64(seed);
    let nodes = rng.random_range(2..=3);
    let Some(mut w) = World::new("anything", nodes, "") else { return };
    let mut dead = Vec::new();
    let mut frozen: Vec<usize> = Vec::new();
    for round in 0..if long() { 150 } else { 12 } {
        let i = rng.random_range(0..nodes);
        let hosts = [&NODES[..nodes], &["e"]].concat();
        let pair: Vec<&&str> = hosts.choose_multiple(&mut rng, 2).collect();
        let what = rng.random_range(0..10);
        println!("{round}: {what} {} {}", NODES[i], pair[0]);
        match what {
            0 if !dead.contains(&i) && !frozen.contains(&i) => {
                w.kill(i);
                dead.push(i);
            }
            1 | 2 => dead.drain(..).for_each(|i| w.cluster.nodes[i].start()),
            3 if !dead.contains(&i) && !frozen.contains(&i) => {
                w.cluster.nodes[i].freeze();
                frozen.push(i);
            }
            4 => frozen.drain(..).for_each(|i| w.cluster.nodes[i].thaw()),
            5 => w.lab.cut(pair[0], pair[1]),
            6 => w.lab.cut_one_way(pair[0], pair[1]),
            7 => w.lab.lose(20),
            8 if !dead.contains(&i) && !frozen.contains(&i) => {
                w.cluster.nodes[i].try_cli(&["switchover"]);
            }
            _ => w.lab.heal(),
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..2500)));
    }
    frozen.drain(..).for_each(|i| w.cluster.nodes[i].thaw());
    dead.drain(..).for_each(|i| w.cluster.nodes[i].start());
    w.check();
}

/// a feeds b, b feeds c; a does not know c.
#[test]
fn a_secondary_that_feeds_another_one() {
    let Some(lab) = Lab::new("cascade", &["a", "b", "c"]) else { return };
    let setup = ClusterSetup {
        replication: "peer_timeout = \"500ms\"".into(),
        no_address: true,
        peers: vec![("a", "b"), ("b", "c")],
        ..ClusterSetup::default()
    };
    let mut cluster = Cluster::new(&lab, &["a", "b", "c"], &setup);
    let [a, b, c] = &mut cluster.nodes[..] else { unreachable!() };
    b.start();
    a.start();
    a.wait_for("primary", "in-sync");
    put(a.path("before"), "c was not there yet");
    // It needs a copy, and gets it from a secondary.
    c.start();
    let equal = |one: &Node, other: &Node, what: &str| {
        let seq = one.status()["seq"].as_u64().unwrap().to_string();
        eventually(what, || {
            other.try_cli(&["wait", "--seq", &seq, "--timeout", "1s"]).status.success().then_some(())
        });
        assert_equal(what, &one.data(), &other.data());
    };
    for n in 0..200 {
        put(a.path("x"), n.to_string());
    }
    equal(a, c, "c has what a committed");
    assert_eq!(c.status()["following"], "b");
    // What passes through takes no longer than it must.
    let start = Instant::now();
    put(a.path("x"), "fast");
    eventually("c shows it", || (std::fs::read(c.path("x")).ok()? == b"fast").then_some(()));
    println!("from a to c in {:?}", start.elapsed());
    assert!(c.refused(&["promote"]).contains("not known to be in sync"));
    // It is away for a while, and goes on from where it was.
    c.kill();
    put(a.path("y"), "c was away");
    c.start();
    equal(a, c, "c caught up");
    // Whoever it was fed by becomes primary: the same, at first hand.
    a.kill();
    b.cli(&["promote"]);
    c.wait_for("secondary", "in-sync");
    put(b.path("z"), "of the new primary");
    equal(b, c, "c follows the new primary");
    a.start();
    a.wait_for("secondary", "in-sync");
    equal(b, a, "the old primary follows as well");
    // And the other way round: a is fed by b, which is fed by nobody.
    b.cli(&["switchover"]);
    eventually("one of them is primary", || {
        [&*a, &*c].into_iter().any(|n| n.try_status().is_some_and(|s| s["role"] == "primary")).then_some(())
    });
    b.wait_for("secondary", "in-sync");
}
