//! A PostgreSQL beside each node of a pair: its `pg_wal` on the mount, its data directory not.

use crate::{Node, Pair, Setup, eventually, eventually_within};
use postgres::{Client, NoTls};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Where Debian puts it.
pub const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Whether it is installed; says so if it is not.
pub fn available(test: &str) -> bool {
    let there = Path::new(BIN).join("postgres").exists();
    if !there {
        println!("{test}: skipped: PostgreSQL 15 is not installed in {BIN} (apt-get install postgresql-15)");
    }
    there
}

/// Runs one of PostgreSQL's programs as its user.
pub fn run_as_postgres(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(Path::new(BIN).join(program)).args(args);
    // It must not inherit a directory that it can't read.
    command.current_dir("/").env("LC_ALL", "C").output().unwrap()
}

/// The same, which must succeed; what it printed.
pub fn pg(program: &str, args: &[&str]) -> String {
    let out = run_as_postgres(program, args);
    let (said, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?}: {said}\n{err}");
    said.into_owned()
}

/// A node and its database.
#[derive(Debug)]
pub struct PgNode {
    /// The node.
    pub node: Node,
    /// The data directory; its socket is in the directory above it, which is the node's own.
    pub data: PathBuf,
}

impl PgNode {
    /// `nasd pg clone`.
    pub fn clone_from(&self, primary: &PgNode) {
        let from = format!("host={} user=postgres", primary.socket_dir().display());
        self.node.cli(&["pg", "clone", "--from", &from]);
    }

    /// Where its socket is.
    pub fn socket_dir(&self) -> &Path {
        self.data.parent().unwrap()
    }

    /// A connection, if it takes one.
    pub fn try_connect(&self) -> Option<Client> {
        let mut config = postgres::Config::new();
        config
            .host_path(self.socket_dir())
            .user("postgres")
            .dbname("postgres")
            .connect_timeout(Duration::from_secs(10));
        config.connect(NoTls).ok()
    }

    /// A connection, as soon as it takes one.
    pub fn connect(&self) -> Client {
        eventually_within(Duration::from_secs(60), &format!("{} takes connections", self.node.name), || {
            self.try_connect()
        })
    }

    /// One value as text.
    pub fn value(&self, query: &str) -> String {
        let rows = self.connect().simple_query(query).unwrap();
        let first = rows.into_iter().find_map(|m| match m {
            postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        first.and_then(|r| r.get(0).map(str::to_owned)).unwrap_or_default()
    }

    /// Whether it is a standby.
    pub fn in_recovery(&self) -> bool {
        self.value("SELECT pg_is_in_recovery()") == "t"
    }

    /// Waits until it runs as a standby, or as a primary.
    pub fn wait_database(&self, state: &str) {
        self.node.wait_status(&format!("PostgreSQL is {state}"), |s| s["postgresql"]["state"] == state);
        eventually_within(
            Duration::from_secs(60),
            &format!("{}: a {state} that answers", self.node.name),
            || {
                let mut client = self.try_connect()?;
                let recovers: bool = client.query_one("SELECT pg_is_in_recovery()", &[]).ok()?.get(0);
                (recovers == (state == "standby")).then_some(())
            },
        );
    }

    /// The number of its postmaster.
    pub fn postmaster(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// SIGKILL to the postmaster and all its processes: those that are at home in the data directory.
    pub fn kill_database(&self) {
        let ours = || -> Vec<i32> {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            let at_home = |e: &std::fs::DirEntry| {
                std::fs::read_link(e.path().join("cwd")).is_ok_and(|cwd| cwd == self.data)
            };
            all.filter(at_home).filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
        };
        let killed = ours();
        for pid in killed.iter().filter_map(|&pid| rustix::process::Pid::from_raw(pid)) {
            // It can only be gone.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        eventually("the database is gone", || {
            let there = |pid: &i32| Path::new(&format!("/proc/{pid}")).exists();
            (!killed.iter().any(there) && ours().is_empty()).then_some(())
        });
    }

    /// Kills the node and its database, in this order.
    pub fn kill(&mut self) {
        self.node.kill();
        self.kill_database();
    }

    /// Waits until it has replayed what `other` has flushed.
    pub fn wait_replayed(&self, other: &PgNode) {
        let lsn = other.value("SELECT pg_current_wal_flush_lsn()");
        let query = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{lsn}', false)");
        eventually_within(Duration::from_secs(60), &format!("{} has replayed {lsn}", self.node.name), || {
            (self.value(&query) == "t").then_some(())
        });
    }

    /// What the server printed.
    pub fn server_log(&self) -> String {
        let mut all = String::new();
        for dir in [self.data.clone(), self.data.join("log")] {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|x| x == "log") {
                    all += &std::fs::read_to_string(entry.path()).unwrap_or_default();
                }
            }
        }
        all
    }
}

impl AsRef<Node> for PgNode {
    fn as_ref(&self) -> &Node {
        &self.node
    }
}

impl AsMut<Node> for PgNode {
    fn as_mut(&mut self) -> &mut Node {
        &mut self.node
    }
}

impl Drop for PgNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.server_log();
            let lines: Vec<&str> = log.lines().collect();
            println!(
                "---- PostgreSQL of {}:\n{}",
                self.node.name,
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
        // nasd first: it would start the database again.
        self.node.kill();
        self.kill_database();
    }
}

/// A pair with a PostgreSQL on each side.
#[derive(Debug)]
pub struct PgPair {
    /// Initially primary.
    pub a: PgNode,
    /// Initially secondary.
    pub b: PgNode,
    /// Everything of theirs.
    pub dir: tempfile::TempDir,
}

/// What differs from the defaults.
#[derive(Debug, Clone)]
pub struct PgSetup {
    /// Of the nodes.
    pub setup: Setup,
    /// Further lines of `[postgresql]`.
    pub section: String,
    /// Lines of `postgresql.conf`.
    pub conf: String,
    /// MiB of a WAL segment.
    pub segment: u32,
    /// Where the data directories are, in directories that exist; by default beside everything else.
    pub data_dirs: Option<[PathBuf; 2]>,
}

impl Default for PgSetup {
    fn default() -> PgSetup {
        PgSetup {
            setup: Setup::default(),
            section: String::new(),
            conf: String::new(),
            segment: 16,
            data_dirs: None,
        }
    }
}

/// A new cluster, owned by `postgres`, that can only be reached by the socket beside it.
pub fn initdb(data: &Path, conf: &str, segment: u32) {
    let path = data.to_str().unwrap();
    let segment = format!("--wal-segsize={segment}");
    let args = ["-U", "postgres", "-A", "trust", "-k", "-E", "UTF8", "--locale=C", "--no-sync", &segment];
    pg("initdb", &[&["-D", path][..], &args].concat());
    let text =
        format!("listen_addresses = ''\nunix_socket_directories = '..'\nmax_connections = 60\n{conf}\n");
    let file = data.join("postgresql.conf");
    let old = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, old + &text).unwrap();
}

impl PgPair {
    /// A pair with defaults, the standby following.
    pub fn start() -> PgPair {
        PgPair::start_with(&PgSetup::default())
    }

    /// A pair whose PostgreSQL nasd manages, the standby following.
    pub fn start_with(s: &PgSetup) -> PgPair {
        let pair = PgPair::adopted(s);
        pair.clone_standby();
        pair.b.wait_database("standby");
        pair.b.wait_replayed(&pair.a);
        pair
    }

    /// A pair with a primary PostgreSQL and no standby yet.
    pub fn adopted(s: &PgSetup) -> PgPair {
        PgPair::adopted_with(s, |_, _| {})
    }

    /// The same; `before` is told of the nodes before they start.
    pub fn adopted_with(s: &PgSetup, before: impl FnOnce(&Node, &Node)) -> PgPair {
        let mut setup = s.setup.clone();
        let section = format!("[postgresql]\ndata_dir = \"{{pg}}\"\n{}\n", s.section);
        setup.more.push_str(&section);
        let Pair { mut a, mut b, dir } = Pair::new(&setup);
        open_to_all(dir.path());
        let data = |i: usize, name: &str| match &s.data_dirs {
            Some(dirs) => dirs[i].clone(),
            None => dir.path().join(name).join("pg"),
        };
        let data = [data(0, "a"), data(1, "b")];
        for (node, data) in [&a, &b].into_iter().zip(&data) {
            node.edit_config("{pg}", data.to_str().unwrap());
            make_room(data);
        }
        let [data_a, data_b] = data;
        initdb(&data_a, &s.conf, s.segment);
        before(&a, &b);
        b.start();
        a.start();
        a.wait_for("primary", "in-sync");
        b.wait_for("secondary", "in-sync");
        a.cli(&["pg", "adopt"]);
        let (a, b) = (PgNode { node: a, data: data_a }, PgNode { node: b, data: data_b });
        if !s.section.contains("manage = false") {
            a.wait_database("primary");
        }
        PgPair { a, b, dir }
    }

    /// `nasd pg clone` on the secondary.
    pub fn clone_standby(&self) {
        self.b.clone_from(&self.a);
    }
}

/// The directory above a data directory is PostgreSQL's to write: a clone is renamed into place.
pub fn make_room(data: &Path) {
    let above = data.parent().unwrap();
    std::fs::create_dir_all(above).unwrap();
    open_to_all(above);
    let done = Command::new("chown").arg("postgres:").arg(above).status().unwrap();
    assert!(done.success());
}

/// Lets every user enter it.
pub fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
}
