//! Nodes on hosts of their own with a PostgreSQL each, which clients reach by the virtual address.

use crate::caller::{Answer, Session};
use crate::cluster::{Cluster, VIRTUAL};
use crate::postgres::{PgNode, initdb, make_room, open_to_all};
use postgres::NoTls;
use std::collections::BTreeSet;
use std::time::Duration;

/// The section that [`with_databases`] needs in the nodes' configurations.
pub const SECTION: &str = "[postgresql]\ndata_dir = \"{base}/db/pg\"\n";

const CONF: &str = "listen_addresses = '*'\n";
/// A client that hears nothing asks whether its server is still there.
const ALIVE: Duration = Duration::from_secs(1);

/// Starts the nodes, and a PostgreSQL on each: made and adopted on the first, cloned on the others.
pub fn with_databases(cluster: Cluster) -> Cluster<PgNode> {
    let Cluster { nodes, dir } = cluster;
    open_to_all(dir.path());
    let beside = |node: crate::Node| {
        let data = dir.path().join(&node.name).join("db/pg");
        open_to_all(&dir.path().join(&node.name));
        make_room(&data);
        PgNode { node, data }
    };
    let nodes: Vec<PgNode> = nodes.into_iter().map(beside).collect();
    initdb(&nodes[0].data, CONF, 16);
    let hba = nodes[0].data.join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap() + "host all all 10.77.0.0/24 trust\n";
    std::fs::write(hba, rules).unwrap();
    let mut cluster = Cluster { nodes, dir };
    cluster.start();
    let (primary, standbys) = cluster.nodes.split_first().unwrap();
    primary.node.cli(&["pg", "adopt"]);
    primary.wait_database("primary");
    primary.connect().batch_execute("CREATE TABLE numbered (n bigint PRIMARY KEY)").unwrap();
    for standby in standbys {
        standby.clone_from(primary);
        standby.wait_database("standby");
        standby.wait_replayed(primary);
    }
    cluster
}

/// A connection to whoever has this address, which inserts one row at a time.
pub struct Inserts(postgres::Client);

impl Inserts {
    /// Over the virtual address.
    pub fn dial() -> Option<Inserts> {
        Inserts::dial_at(VIRTUAL)
    }

    /// Over this one.
    pub fn dial_at(ip: &str) -> Option<Inserts> {
        let mut config = postgres::Config::new();
        config.host(ip).user("postgres").dbname("postgres").connect_timeout(Duration::from_millis(100));
        // A server that was cut off, or whose address went away, ends no connection by itself.
        config
            .keepalives_idle(ALIVE)
            .keepalives_interval(ALIVE)
            .keepalives_retries(2)
            .tcp_user_timeout(ALIVE * 2);
        config.connect(NoTls).ok().map(Inserts)
    }
}

impl Session for Inserts {
    fn write(&mut self, number: u64) -> bool {
        self.0.execute("INSERT INTO numbered VALUES ($1)", &[&(number as i64)]).is_ok()
    }
}

/// Everything that was acknowledged is there.
pub fn check(on: &PgNode, acked: &[Answer]) {
    let rows = on.connect().query("SELECT n FROM numbered", &[]).unwrap();
    let there: BTreeSet<i64> = rows.iter().map(|r| r.get(0)).collect();
    let missing: Vec<u64> =
        acked.iter().map(|a| a.number).filter(|n| !there.contains(&(*n as i64))).collect();
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?} of {}", acked.len());
}

/// The tables of both are equal.
pub fn assert_equal(primary: &PgNode, standby: &PgNode) {
    standby.wait_replayed(primary);
    let query =
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(n::text, ',' ORDER BY n)), '') FROM numbered";
    assert_eq!(primary.value(query), standby.value(query));
}
