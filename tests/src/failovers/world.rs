//! Two nodes, an etcd, a client at work, each on a host of its own.

use super::story::Story;
use super::{Parts, SETTLED};
use crate::caller::Caller;
use crate::cluster::{Cluster, ClusterSetup, VIRTUAL};
use crate::etcd::{Etcd, EtcdSetup};
use crate::journal::{Conversation, Journal};
use crate::lab::Lab;
use crate::pgcluster::{self, Inserts};
use crate::postgres::PgNode;
use crate::{Node, eventually};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// What writes to the volume.
enum Service {
    Journal { cluster: Cluster, _journals: Vec<Journal> },
    Database(Cluster<PgNode>),
}

/// All of it; the clients are gone first and the hosts last.
pub struct World {
    caller: Caller,
    service: Service,
    primary: usize,
    _etcd: Etcd,
    _lab: Arc<Lab>,
}

/// A client that is answered by nobody, since the address went to another host, gives up so soon and connects again.
const PATIENCE: Duration = Duration::from_millis(100);
const NODES: [&str; 2] = ["a", "b"];

impl World {
    /// `None` where there are no namespaces.
    pub fn new(timeout: &str, database: bool) -> Option<World> {
        let lab = Arc::new(Lab::new("failover", &["a", "b", "e", "client"])?);
        let etcd = Etcd::with(EtcdSetup {
            ip: Some(lab.ip("e")),
            netns: Some(lab.netns("e")),
            ..EtcdSetup::default()
        });
        let section = if database { pgcluster::SECTION } else { "" };
        let setup = ClusterSetup {
            failover: format!(
                "mode = \"etcd\"\ntimeout = \"{timeout}\"\n[failover.etcd]\nendpoints = [\"{}\"]\n{section}",
                etcd.endpoint()
            ),
            ..ClusterSetup::default()
        };
        let mut cluster = Cluster::new(&lab, &NODES, &setup);
        let service = if database {
            Service::Database(pgcluster::with_databases(cluster))
        } else {
            cluster.start();
            let journals = cluster.nodes.iter().map(Journal::start).collect();
            Service::Journal { cluster, _journals: journals }
        };
        let caller = if database {
            Caller::start(&lab, "client", "virtual", Inserts::dial)
        } else {
            let to = Conversation::address(VIRTUAL);
            Caller::start(&lab, "client", "virtual", move || {
                Conversation::begin(&to, "virtual", PATIENCE).ok()
            })
        };
        caller.wait_more(100);
        Some(World { caller, service, primary: 0, _etcd: etcd, _lab: lab })
    }

    fn node(&mut self, i: usize) -> &mut Node {
        match &mut self.service {
            Service::Journal { cluster, .. } => &mut cluster.nodes[i],
            Service::Database(cluster) => &mut cluster.nodes[i].node,
        }
    }

    /// Kills the primary, with its database, and waits for the other one; what it says of it.
    pub fn kill(&mut self) -> (Parts, String) {
        let old = self.primary;
        self.primary = 1 - old;
        let (at, by_clock) = (Instant::now(), SystemTime::now());
        match &mut self.service {
            Service::Journal { cluster, .. } => cluster.nodes[old].kill(),
            Service::Database(cluster) => cluster.nodes[old].kill(),
        }
        let first = self.caller.first_since(at);
        let new = self.node(1 - old);
        let story = eventually("the new primary says how", || Story::last(new, by_clock));
        let done = story.done.duration_since(by_clock).unwrap_or_default();
        let parts = Parts {
            total: (first.at - at).as_secs_f64(),
            detection: done.saturating_sub(story.took).as_secs_f64(),
            takeover: story.took.as_secs_f64(),
        };
        (parts, story.steps)
    }

    /// The killed one comes back and follows.
    pub fn mend(&mut self) {
        let back = 1 - self.primary;
        self.node(back).start();
        match &self.service {
            Service::Journal { cluster, .. } => assert_eq!(cluster.whole(), self.primary),
            Service::Database(cluster) => {
                assert_eq!(cluster.whole(), self.primary);
                cluster.nodes[back].wait_database("standby");
                cluster.nodes[back].wait_replayed(&cluster.nodes[self.primary]);
            }
        }
        self.settle();
    }

    /// `nasd switchover`; how long the client was not answered.
    pub fn switch_over(&mut self) -> Duration {
        let begin = Instant::now();
        let old = self.primary;
        self.node(old).cli(&["switchover"]);
        self.primary = 1 - old;
        self.caller.first_since(begin);
        self.settle();
        let Service::Journal { cluster, .. } = &self.service else { unreachable!("of the volume alone") };
        assert_eq!(cluster.whole(), self.primary);
        self.caller.longest_pause_since(begin)
    }

    /// The client is at work, and what follows a change of role is over.
    fn settle(&self) {
        std::thread::sleep(SETTLED);
        self.caller.wait_more(20);
    }
}
