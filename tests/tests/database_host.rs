//! A database host without a node, which mounts a share by its kernel's own clients: its PostgreSQL follows there, woken by an
//! agent, as docs/share.md has it typed.
#![allow(clippy::unwrap_used)]

use nasd_tests::cluster::{Cluster, ClusterSetup};
use nasd_tests::guest::Guest;
use nasd_tests::lab::Lab;
use nasd_tests::node::binary;
use nasd_tests::postgres::{PgNode, available, initdb, make_room, open_to_all};
use nasd_tests::share::{self, PASSWORD, Servers};
use nasd_tests::{Node, eventually, eventually_within, http, nasd, put};
use postgres::{Client, NoTls};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
const SHARE: &str = include_str!("../../docs/share.md");
/// In this time an agent would have told.
const UNSEEN: Duration = Duration::from_secs(2);
/// For each kind of share: its standby, the port of it, where it is mounted.
const KINDS: [(&str, &str, u16); 2] = [("nfs", "main", 5432), ("cifs", "smb", 5433)];

/// The blocks of a language in the guide's section.
fn blocks(language: &str) -> Vec<&'static str> {
    let section = SHARE.split("\n## ").find(|s| s.starts_with("A database host\n")).unwrap();
    section.split(&format!("```{language}\n")).skip(1).map(|b| b.split("```").next().unwrap()).collect()
}

/// A pair with a PostgreSQL at the primary, a share of the secondary's mount, and a host that has neither.
struct World {
    guest: Guest,
    _servers: Servers,
    primary: PgNode,
    secondary: Node,
    dir: tempfile::TempDir,
    lab: Lab,
}

impl World {
    fn new(test: &str) -> Option<World> {
        if !available(test) || !share::available(test) {
            return None;
        }
        let lab = Lab::new(test, &["a", "b", "db"])?;
        let setup = ClusterSetup { no_address: true, ..ClusterSetup::default() };
        let cluster = Cluster::new(&lab, &["a", "b"], &setup);
        let guest = Guest::boot(test, &lab, "db", &cluster.dir.path().join("guest"))?;
        let address = http::open_at(&cluster.nodes[1], &lab.ip("b"), 7601);
        assert_eq!(address, format!("{}:7601", lab.ip("b")));

        let data = cluster.dir.path().join("a/db/pg");
        open_to_all(cluster.dir.path());
        open_to_all(&cluster.dir.path().join("a"));
        make_room(&data);
        let keep = blocks("")[0];
        initdb(&data, &format!("listen_addresses = '*'\nshared_buffers = 16MB\n{keep}"), 16);
        let hba = data.join("pg_hba.conf");
        let rules = std::fs::read_to_string(&hba).unwrap() + "host replication postgres samenet trust\n";
        std::fs::write(&hba, rules).unwrap();
        let config = &cluster.nodes[0].config;
        let text = std::fs::read_to_string(config).unwrap();
        let section = format!("[postgresql]\ndata_dir = \"{}\"\n", data.display());
        std::fs::write(config, text + &section).unwrap();

        let mut cluster = cluster;
        cluster.start();
        let Cluster { nodes, dir } = cluster;
        let [primary, secondary] = <[Node; 2]>::try_from(nodes).unwrap();
        primary.cli(&["pg", "adopt"]);
        let primary = PgNode { node: primary, data };
        primary.wait_database("primary");
        primary.connect().batch_execute("CREATE TABLE t (n int)").unwrap();
        let servers = Servers::start_for("postgres", &secondary, &dir.path().join("servers"));
        Some(World { guest, _servers: servers, primary, secondary, dir, lab })
    }

    /// A block of the guide as it is typed on this lab's hosts.
    fn here(&self, block: &str) -> String {
        block
            .replace("10.0.0.1", &self.lab.ip("a"))
            .replace("10.0.0.2", &self.lab.ip("b"))
            .replace("nas-b:", &format!("{}:", self.lab.ip("b")))
            .replace("/srv/nas ", &format!("{} ", self.secondary.mount.display()))
    }

    /// The secondary shows what the primary has committed.
    fn settle(&self) {
        std::fs::File::open(&self.primary.node.mount).unwrap().sync_all().unwrap();
        let seq = self.primary.node.status()["seq"].to_string();
        self.secondary.cli(&["wait", "--seq", &seq, "--timeout", "20s"]);
    }

    /// Mounts the share in each way, and starts a standby on each.
    fn standbys(&mut self) {
        let [by_nfs, by_smb, backup, start, ..] = blocks("sh")[..] else { panic!("the guide's blocks") };
        let secret = format!("username=postgres\npassword={PASSWORD}\n");
        // Where Debian's package has made a cluster, its configuration lies here.
        let debian = |name: &str, port: u16| {
            let (etc, data) =
                (format!("/etc/postgresql/15/{name}"), format!("/var/lib/postgresql/15/{name}"));
            format!(
                "mkdir -p {etc} {data}
                 cat >{etc}/postgresql.conf <<.
data_directory = '{data}'
hba_file = '{etc}/pg_hba.conf'
unix_socket_directories = '/run/postgresql'
listen_addresses = '*'
port = {port}
max_connections = 60
shared_buffers = 16MB
wal_retrieve_retry_interval = 1h
.
                 echo 'host all all samenet trust' >{etc}/pg_hba.conf
                 chown -R postgres: {etc} /var/lib/postgresql/15\n"
            )
        };
        self.guest.run(&format!(
            "install -d -o postgres /run/postgresql; mkdir -p /etc/nasd; printf '{secret}' >/etc/nasd/smb"
        ));
        self.settle();
        for ((kind, name, port), block) in KINDS.into_iter().zip([by_nfs, by_smb]) {
            let own = |text: &str| text.replace("/mnt/nas", &format!("/mnt/{name}")).replace("main", name);
            let mount = own(&self.here(block));
            assert!(mount.contains(&format!("-t {kind}")), "{mount}");
            eventually(&format!("{kind} is served"), || self.guest.try_run(&mount).ok());
            self.guest.run(&debian(name, port));
            // One backup does for both.
            let backup = match name {
                "main" => self.here(backup) + "cp -a main backup",
                _ => format!("cd /var/lib/postgresql/15; rm -r {name}; mv backup {name}"),
            };
            self.guest.run(&backup);
            self.guest.run(&own(start));
        }
    }

    /// A connection to a standby, as soon as it takes one.
    fn connect(&self, port: u16) -> Client {
        let mut config = postgres::Config::new();
        config.host(&self.lab.ip("db")).port(port).user("postgres").dbname("postgres");
        std::thread::scope(|s| {
            let connect = || {
                self.lab.move_to("a");
                eventually_within(MINUTE, &format!("the standby at {port} answers"), || {
                    config.connect(NoTls).ok()
                })
            };
            s.spawn(connect).join().unwrap()
        })
    }

    fn insert(&self) {
        self.primary.connect().batch_execute("INSERT INTO t VALUES (1)").unwrap();
    }

    /// The agent of the guide, which wakes both.
    fn start_agent(&mut self) {
        let pki = self.dir.path().join("pki");
        let made = nasd(&["cert", "node", "--dir", pki.to_str().unwrap(), "--name", "db-1"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        for name in ["ca.pem", "db-1.pem", "db-1.key"] {
            self.guest.bring(&pki.join(name));
        }
        let config = self.here(blocks("toml")[0]);
        let (head, rule) = config.split_once("[[notify]]").unwrap();
        let rules =
            KINDS.map(|(_, name, _)| format!("[[notify]]{}", rule.replace("15/main", &format!("15/{name}"))));
        let file = self.guest.shared.join("agent.toml");
        std::fs::write(&file, format!("{head}{}", rules.concat())).unwrap();
        let command = blocks("sh")[4].trim_end().replacen("nasd", &self.guest.bring(&binary()), 1);
        let shared = self.guest.shared.display().to_string();
        self.guest.run(&format!(
            "cd {shared}; mv ca.pem db-1.pem db-1.key agent.toml /etc/nasd/
             {command} >/tmp/agent.log 2>&1 &
             until grep -q follows /tmp/agent.log; do kill -0 $! && sleep 0.05 || {{ cat /tmp/agent.log; exit 1; }}; done"
        ));
    }
}

/// How many rows a standby has.
fn rows(standby: &mut Client) -> i64 {
    standby.query_one("SELECT count(*) FROM t", &[]).unwrap().get(0)
}

#[test]
fn a_standby_reads_its_log_from_the_share_and_an_agent_wakes_it() {
    let Some(mut w) = World::new("database_host") else { return };
    w.standbys();
    let mut standbys = KINDS.map(|(kind, _, port)| (kind, w.connect(port)));

    // By themselves they look once an hour here: what is there is not seen.
    w.insert();
    w.settle();
    std::thread::sleep(UNSEEN);
    for (kind, standby) in &mut standbys {
        assert_eq!(rows(standby), 0, "over {kind}: it was not told");
    }

    w.start_agent();
    for n in 2..=9 {
        // In a file that is new on the share, too.
        if n % 3 == 0 {
            w.primary.value("SELECT pg_switch_wal()");
        }
        w.insert();
        let committed = Instant::now();
        for (kind, standby) in &mut standbys {
            eventually(&format!("row {n} is seen over {kind}"), || (rows(standby) == n).then_some(()));
            println!("row {n} over {kind} after {:?}", committed.elapsed());
        }
    }

    // A name that was looked for in vain is there with the transaction that brings it.
    for (kind, name, _) in KINDS {
        for n in 0..3 {
            let file = format!("{kind}-{n}");
            w.guest.run(&format!("! test -e /mnt/{name}/{file}"));
            put(w.primary.node.path(&file), "x");
            w.settle();
            w.guest.run(&format!("test -e /mnt/{name}/{file}"));
        }
    }

    // The transactions themselves, as they are on the secondary.
    let list = blocks("sh")[5].replace("/mnt/nas", "/mnt/main");
    let listed = w.guest.run(&list);
    let names: Vec<&str> = listed.lines().collect();
    assert_eq!(names, w.secondary.log_names());
    w.guest.run(&format!("cp -r /mnt/main/.nasd/log {}", w.guest.shared.display()));
    for name in names {
        let read = std::fs::read(w.guest.shared.join("log").join(name)).unwrap();
        assert!(read == std::fs::read(w.secondary.state_dir.join("log").join(name)).unwrap(), "{name}");
    }
}
