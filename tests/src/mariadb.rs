//! A MariaDB server of one's own, everything of it in one directory.

use crate::eventually_within;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SERVER: &str = "/usr/sbin/mariadbd";

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct MariaDb {
    server: Child,
    socket: PathBuf,
}

/// Whether it is installed; prints one line if not.
pub fn installed() -> bool {
    let there = Path::new(SERVER).exists();
    if !there {
        println!("skipped: {SERVER} is missing: apt-get install mariadb-server-core mariadb-client-core");
    }
    there
}

/// Makes a new data directory, with nothing but the server's own tables.
pub fn create(data: &Path) {
    let out = Command::new("mariadb-install-db")
        .args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .arg(format!("--datadir={}", data.display()))
        .output()
        .unwrap();
    let said = [out.stdout, out.stderr].concat();
    assert!(out.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&said));
}

impl MariaDb {
    /// Starts it on a data directory and waits until it answers; a crash recovery is part of that. Its socket and its
    /// messages go to `beside`, since the volume has only what must survive.
    pub fn start(data: &Path, beside: &Path) -> MariaDb {
        let socket = beside.join("mariadb.sock");
        let log = beside.join("mariadb.err");
        let server = Command::new(SERVER)
            .args(["--no-defaults", "--user=root", "--skip-networking", "--server-id=1"])
            // What makes a COMMIT durable: the redo log and the binary log, each synced.
            .args(["--innodb-flush-log-at-trx-commit=1", "--log-bin=binlog", "--sync-binlog=1"])
            .args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--pid-file={}", beside.join("mariadb.pid").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let mut db = MariaDb { server, socket };
        eventually_within(Duration::from_secs(60), "MariaDB answers", || {
            let ended = db.server.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", std::fs::read_to_string(&log).unwrap());
            let ping = db.shell().args(["-e", "select 1"]).output().unwrap();
            ping.status.success().then_some(())
        });
        db
    }

    /// Its command line: SQL from standard input, one line for each row, at once.
    pub fn shell(&self) -> Command {
        let mut shell = Command::new("mariadb");
        shell.args(["--no-defaults", "--user=root", "--batch", "--skip-column-names", "--unbuffered"]);
        shell.arg(format!("--socket={}", self.socket.display()));
        shell
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.server.kill();
        self.server.wait().unwrap();
    }

    /// Stops it in order.
    pub fn stop(mut self) {
        let out = self.shell().args(["-e", "shutdown"]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let ended = self.server.wait().unwrap();
        assert!(ended.success(), "{ended}");
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.kill();
    }
}
