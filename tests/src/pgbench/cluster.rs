//! A PostgreSQL server on a data directory.

use crate::eventually_within;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

/// Where PostgreSQL's programs are: `PG_BIN`, or Debian's newest.
static BIN: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(dir) = std::env::var_os("PG_BIN") {
        return dir.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let bins = versions.map(|e| e.unwrap().path().join("bin")).filter(|b| b.join("postgres").exists());
    bins.max().expect("PostgreSQL is installed")
});

/// PostgreSQL refuses to run as root.
static USER: LazyLock<(u32, u32)> = LazyLock::new(|| {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|l| l.starts_with("postgres:")).expect("there is a user postgres");
    let ids: Vec<u32> = line.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
    (ids[0], ids[1])
});

/// What every server is started with.
const COMMON: &[&str] = &[
    "shared_buffers=1GB",
    "max_wal_size=64GB",
    "min_wal_size=4GB",
    "checkpoint_timeout=1d",
    "full_page_writes=on",
    "synchronous_commit=on",
    "autovacuum=off",
    "wal_level=replica",
    "hot_standby=on",
    "listen_addresses=127.0.0.1",
];

/// One of PostgreSQL's programs, as its user.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(BIN.join(name));
    command.uid(USER.0).gid(USER.1).env("LC_ALL", "C").current_dir("/");
    command
}

/// Runs a program to its end, which must be a good one; what it printed.
pub fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

/// A new directory that PostgreSQL's user may write to.
pub fn owned_dir(path: &Path) {
    fs::create_dir(path).unwrap();
    std::os::unix::fs::chown(path, Some(USER.0), Some(USER.1)).unwrap();
}

/// Copies files or directories as they are.
pub fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to));
}

/// A server; stopped at once when dropped.
#[derive(Debug)]
pub struct Cluster {
    /// Its data directory.
    pub data: PathBuf,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    dir: PathBuf,
    settings: Vec<String>,
    server: Option<Child>,
}

impl Cluster {
    /// One that does not run yet, in the directory `dir`, which need not be there; its data directory is to come.
    pub fn new(dir: &Path, settings: &[&str]) -> Cluster {
        if !dir.exists() {
            owned_dir(dir);
        }
        let port = crate::node::free_port();
        let settings = settings.iter().map(|&s| s.to_owned()).collect();
        Cluster { data: dir.join("data"), port, dir: dir.to_owned(), settings, server: None }
    }

    /// Its data directory's log becomes a symbolic link to `to`.
    pub fn link_wal(&self, to: &Path) {
        let wal = self.data.join("pg_wal");
        fs::remove_dir_all(&wal).unwrap();
        std::os::unix::fs::symlink(to, &wal).unwrap();
    }

    /// Starts it and waits until it answers.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut server = program("postgres");
        server.arg("-D").arg(&self.data);
        let own = [format!("port={}", self.port), format!("unix_socket_directories={}", self.dir.display())];
        for setting in COMMON.iter().copied().chain(own.iter().chain(&self.settings).map(String::as_str)) {
            server.args(["-c", setting]);
        }
        self.server = Some(server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually_within(Duration::from_secs(120), "PostgreSQL answers", || {
            let ended = self.server.as_mut()?.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(self.dir.join("log")).unwrap());
            self.client("psql").args(["-c", "select 1"]).output().unwrap().status.success().then_some(())
        });
    }

    /// A client of it.
    pub fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command.arg("-h").arg(&self.dir).arg("-p").arg(self.port.to_string()).args(["-U", "postgres"]);
        command
    }

    /// What a query gives.
    pub fn sql(&self, sql: &str) -> String {
        run(self.client("psql").args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", sql]))
            .trim_end()
            .to_owned()
    }

    /// How long its log is.
    pub fn wal_bytes(&self) -> u64 {
        self.sql("select pg_current_wal_insert_lsn() - '0/0'").parse().unwrap()
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("it runs").id()
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut server) = self.server.take() {
            let _ = kill_process(Pid::from_raw(server.id() as i32).unwrap(), signal);
            server.wait().unwrap();
        }
    }

    /// Stops it in order, with a checkpoint.
    pub fn stop(&mut self) {
        self.end(Signal::INT);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Without a checkpoint, which would write all that the load has changed.
        self.end(Signal::QUIT);
    }
}
