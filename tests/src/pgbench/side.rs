//! The set-ups that are measured side by side: a primary cluster each, and how its log gets to a second place.

use super::cluster::{Cluster, copy, program, run};
use super::gluster::Gluster;
use super::meter::{self, cpu_seconds, family_cpu_seconds};
use crate::{Pair, Setup, eventually_within};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How the log gets to a second place.
enum Link {
    None,
    Streaming,
    Receive(Child),
    Gluster(Gluster),
    Nasd(Box<Pair>),
}

/// Processor time used so far, seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// The primary's database with all its processes.
    pub database: f64,
    /// What replicates beside it, on its machine.
    pub near: f64,
    /// What replicates on the other machine.
    pub far: f64,
    /// The standby's database.
    pub standby: f64,
}

/// A set-up. (Fields are dropped in order: servers before what their logs are on.)
pub struct Side {
    /// In the tables.
    pub name: &'static str,
    /// Where the load goes.
    pub primary: Cluster,
    standby: Option<Cluster>,
    link: Link,
}

const NO_RECYCLING: &[&str] = &["wal_recycle=off", "wal_init_zero=off", "recovery_init_sync_method=syncfs"];

/// A copy of the template that does not run yet.
fn cluster(dir: &Path, template: &Path, settings: &[&str]) -> Cluster {
    let cluster = Cluster::new(dir, settings);
    copy(template, &cluster.data);
    cluster
}

impl Side {
    fn new(name: &'static str, primary: Cluster) -> Side {
        Side { name, primary, standby: None, link: Link::None }
    }

    /// No replication.
    pub fn plain(dir: &Path, template: &Path) -> Side {
        let mut side = Side::new("no replication", cluster(&dir.join("plain"), template, &[]));
        side.primary.start();
        side
    }

    /// PostgreSQL's own: a hot standby, `synchronous_commit = on`.
    pub fn streaming(dir: &Path, template: &Path) -> Side {
        let names = "synchronous_standby_names=standby";
        let mut side = Side::new("streaming", cluster(&dir.join("streaming"), template, &[names]));
        let from = format!(
            "primary_conninfo=host=127.0.0.1 port={} user=postgres application_name=standby",
            side.primary.port
        );
        let mut standby = cluster(&dir.join("streaming-standby"), template, &[&from]);
        File::create(standby.data.join("standby.signal")).unwrap();
        side.primary.start();
        standby.start();
        side.standby = Some(standby);
        side.link = Link::Streaming;
        side
    }

    /// Only the log is received, and flushed at once.
    pub fn receive(dir: &Path, template: &Path) -> Side {
        let names = "synchronous_standby_names=receive";
        let mut side = Side::new("pg_receivewal", cluster(&dir.join("receive"), template, &[names]));
        side.primary.start();
        let to = dir.join("receive-log");
        super::cluster::owned_dir(&to);
        let receive = program("pg_receivewal")
            .arg("-D")
            .arg(to)
            .arg("--synchronous")
            .args([
                "-d",
                &format!("host=127.0.0.1 port={} user=postgres application_name=receive", side.primary.port),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("receive.log")).unwrap())
            .spawn()
            .unwrap();
        side.link = Link::Receive(receive);
        side
    }

    /// The log on a GlusterFS volume with two replicas; an error says why this machine can't.
    pub fn gluster(dir: &Path, template: &Path) -> Result<Side, String> {
        let gluster = Gluster::start(&dir.join("gluster-volume"))?;
        let primary = cluster(&dir.join("gluster"), template, &[]);
        move_wal(&primary, &gluster.mount);
        let mut side = Side::new("GlusterFS, replica 2", primary);
        side.primary.start();
        side.link = Link::Gluster(gluster);
        Ok(side)
    }

    /// The log on nasd, and a standby that follows from the secondary's mount.
    pub fn nasd(dir: &Path, template: &Path) -> Side {
        let primary = cluster(&dir.join("nasd"), template, NO_RECYCLING);
        let mut standby = Cluster::new(&dir.join("nasd-standby"), NO_RECYCLING);
        let pair = pair(&primary.data, &standby.data);
        move_wal(&primary, &pair.a.mount);
        pair.sync_and_settle();
        let mut side = Side::new("nasd", primary);
        side.primary.start();
        run(side
            .primary
            .client("pg_basebackup")
            .args(["-X", "none", "-c", "fast", "--no-sync", "-D"])
            .arg(&standby.data));
        standby.link_wal(&pair.b.mount.join("pg_wal"));
        File::create(standby.data.join("standby.signal")).unwrap();
        pair.settle();
        standby.start();
        side.standby = Some(standby);
        side.link = Link::Nasd(Box::new(pair));
        side
    }

    /// Waits until the second place has everything, a standby shows it, and a commit waits for the second place.
    pub fn wait_ready(&self) {
        let within = |what: &str, f: &mut dyn FnMut() -> Option<()>| {
            eventually_within(Duration::from_secs(300), &format!("{}: {what}", self.name), f);
        };
        match &self.link {
            Link::None | Link::Gluster(_) => {}
            Link::Streaming | Link::Receive(_) => within("synchronous", &mut || {
                let sync = "select count(*) from pg_stat_replication where sync_state = 'sync' and state = 'streaming'";
                (self.primary.sql(sync) == "1").then_some(())
            }),
            Link::Nasd(pair) => {
                pair.a.wait_for("primary", "in-sync");
                pair.settle();
            }
        }
        // A commit, so that everything before it is flushed and in the second place.
        self.primary.sql("select pg_logical_emit_message(true, 'bench', '')");
        if let Some(standby) = &self.standby {
            let end = self.primary.sql("select pg_current_wal_flush_lsn()");
            let shown = format!("select pg_last_wal_replay_lsn() >= '{end}'");
            within("the standby follows", &mut || (standby.sql(&shown) == "t").then_some(()));
        }
    }

    /// Every page's first change since a checkpoint logs the whole page, new segments of the log are filled with zeros
    /// before their first use, and nasd's log overwrites aged files once it has some: all of that is behind a database that
    /// has run for a while. So: so much log, a checkpoint that keeps its segments for reuse, one row locked on every
    /// page. There is no checkpoint after this one.
    pub fn warm_up(&self, log_mib: usize) {
        self.wait_ready();
        if !matches!(self.link, Link::Nasd(_)) {
            let fill = "select count(pg_logical_emit_message(false, 'bench', repeat('x', 1048576))) from generate_series(1,";
            self.primary.sql(&format!("{fill} {log_mib})"));
        }
        self.wait_ready();
        self.primary.sql("checkpoint");
        self.wait_ready();
        if let Some(standby) = &self.standby {
            standby.sql("checkpoint");
        }
        for table in ["accounts", "tellers", "branches"] {
            let key = if table == "accounts" { "aid % 50" } else { "0" };
            self.primary.sql(&format!(
                "select count(*) from (select 1 from pgbench_{table} where {key} = 0 for no key update) x"
            ));
        }
        self.wait_ready();
    }

    /// Bytes that the other machine has confirmed so far.
    pub fn sent(&self) -> Option<u64> {
        let sum = |wanted: &dyn Fn(&meter::Socket) -> bool| {
            meter::sockets(None).iter().filter(|s| wanted(s)).map(|s| s.acked).sum()
        };
        match &self.link {
            Link::None => None,
            Link::Streaming | Link::Receive(_) => Some(sum(&|s| s.local == self.primary.port)),
            Link::Gluster(gluster) => Some(gluster.sent()),
            Link::Nasd(pair) => {
                let [a, b] =
                    [&pair.a, &pair.b].map(|n| n.listen.rsplit(':').next().unwrap().parse::<u16>().unwrap());
                Some(sum(&|s| s.is_of(pair.a.pid()) && (s.peer == b || s.local == a)))
            }
        }
    }

    /// Processor time so far.
    pub fn cpu(&self) -> Cpu {
        let (near, far) = match &self.link {
            Link::None | Link::Streaming => (0.0, 0.0),
            Link::Receive(receive) => (0.0, cpu_seconds(receive.id())),
            Link::Gluster(g) => (cpu_seconds(g.client) + cpu_seconds(g.near), cpu_seconds(g.far)),
            Link::Nasd(pair) => (family_cpu_seconds(pair.a.pid()), family_cpu_seconds(pair.b.pid())),
        };
        let standby = self.standby.as_ref().map_or(0.0, |s| family_cpu_seconds(s.pid()));
        Cpu { database: family_cpu_seconds(self.primary.pid()), near, far, standby }
    }

    /// Whether its bytes on the wire are to be compared: those that send the log's bytes.
    pub fn counts_bytes(&self) -> bool {
        matches!(self.link, Link::Streaming | Link::Nasd(_))
    }

    /// The standby has the same rows.
    pub fn check(&self) {
        self.wait_ready();
        let Some(standby) = &self.standby else { return };
        let sums = "select (select sum(abalance) from pgbench_accounts), (select count(*) from pgbench_history), \
                    (select count(*) from noise)";
        assert_eq!(self.primary.sql(sums), standby.sql(sums), "{}: the standby has other rows", self.name);
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Link::Receive(receive) = &mut self.link {
            let _ = receive.kill();
            let _ = receive.wait();
        }
    }
}

/// The log moves to a mount, where a link in its place leads.
fn move_wal(primary: &Cluster, mount: &Path) {
    copy(&primary.data.join("pg_wal"), mount);
    primary.link_wal(&mount.join("pg_wal"));
}

fn pair(primary: &Path, standby: &Path) -> Pair {
    let mut pair = Pair::new(&Setup {
        replication: "commit = \"durable\"\npeer_timeout = \"10s\"".to_owned(),
        // As `make bench`: the warm-up makes enough transactions to have aged ones.
        log: "retain_files = 4000".to_owned(),
        ..Setup::default()
    });
    // PostgreSQL's user has to get to the mounts.
    fs::set_permissions(pair.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (node, data) in [(&pair.a, primary), (&pair.b, standby)] {
        let mut config = fs::read_to_string(&node.config).unwrap();
        config.push_str(&postgresql_section(data));
        fs::write(&node.config, config).unwrap();
    }
    pair.b.start();
    pair.a.start();
    pair.a.wait_for("primary", "in-sync");
    pair.b.wait_for("secondary", "in-sync");
    pair
}

fn postgresql_section(data: &Path) -> String {
    let bin: PathBuf = program("postgres").get_program().into();
    format!(
        "[postgresql]\ndata_dir = \"{}\"\nbin_dir = \"{}\"\nuser = \"postgres\"\nmanage = false\n",
        data.display(),
        bin.parent().unwrap().display()
    )
}

/// A data directory with pgbench's tables, stopped in order.
pub fn template(dir: &Path, scale: usize) -> PathBuf {
    let mut cluster = Cluster::new(&dir.join("template"), &["fsync=off"]);
    let data = cluster.data.clone();
    run(program("initdb").args(["-k", "-A", "trust", "--no-sync", "-D"]).arg(&data));
    cluster.start();
    // Room on each page, as a table that has been written to for a while has it.
    run(cluster.client("pgbench").args(["-i", "-q", "-F", "90", "-s", &scale.to_string(), "postgres"]));
    cluster.sql(super::load::NOISE_TABLE);
    cluster.stop();
    run(Command::new("sync").arg("-f").arg(&data));
    data
}
