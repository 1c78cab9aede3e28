//! Databases on a volume: the primary dies under load, the secondary takes over, the old primary comes back, the roles
//! swap back. Every row that was acknowledged to a client is there each time.
#![allow(clippy::unwrap_used)]

use nasd_tests::clients::{Clients, TABLE, check_rows, query};
use nasd_tests::mariadb::{self, MariaDb};
use nasd_tests::{Pair, Setup, long, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What the story needs to know of a database that has its files on a mount.
trait Database: Sized {
    /// Makes it, empty.
    fn create(mount: &Path);
    /// Starts it on what the mount holds.
    fn start(mount: &Path, beside: &Path) -> Self;
    /// Its command line.
    fn shell(&self) -> Command;
    /// Panics unless the database itself finds its files sound; `rows` is how many there are.
    fn find_sound(&self, rows: u64);
    /// SIGKILL.
    fn kill(self);
    /// Stops it in order.
    fn stop(self);
}

const CLIENTS: usize = 4;

fn story<D: Database>(name: &str) {
    let mut rng = StdRng::seed_from_u64(seed(name));
    let mut pair = Pair::start_with(&Setup::default());
    let beside = pair.dir.path().to_owned();
    let check = |db: &D, acked: &[u64]| {
        let rows = check_rows(acked, || db.shell());
        db.find_sound(rows.iter().sum());
        rows
    };
    D::create(&pair.a.mount);
    let db = D::start(&pair.a.mount, &beside);
    query(db.shell(), TABLE);
    db.stop();
    let mut rows = vec![0; CLIENTS];
    for round in 0..if long() { 20 } else { 1 } {
        let start = Instant::now();
        // The primary's machine dies while its clients commit: everything on it, at one time.
        let db = D::start(&pair.a.mount, &beside);
        let clients = Clients::start(&rows, || db.shell());
        clients.wait_more(rng.random_range(50..300));
        pair.a.kill();
        db.kill();
        let acked = clients.kill();

        // The secondary takes over, and the database recovers from what it finds there.
        pair.b.cli(&["promote"]);
        let db = D::start(&pair.b.mount, &beside);
        rows = check(&db, &acked);

        // The old primary comes back while the clients go on.
        let clients = Clients::start(&rows, || db.shell());
        clients.wait_more(20);
        pair.a.start();
        pair.a.wait_for("secondary", "in-sync");
        pair.b.wait_for("primary", "in-sync");
        clients.wait_more(20);
        let acked = clients.finish();
        assert_eq!(check(&db, &acked), acked, "nothing was on its way");

        // And back again, in order.
        db.stop();
        pair.b.cli(&["switchover"]);
        pair.in_sync_and_equal();
        let db = D::start(&pair.a.mount, &beside);
        assert_eq!(check(&db, &acked), acked, "after the switchover");
        let clients = Clients::start(&acked, || db.shell());
        clients.wait_more(20);
        rows = clients.finish();
        assert_eq!(check(&db, &rows), rows);
        db.stop();
        println!("{name}, round {round}: {} rows, {:?}", rows.iter().sum::<u64>(), start.elapsed());
    }
    pair.sync_and_settle();
    pair.in_sync_and_equal();
}

impl Database for MariaDb {
    fn create(mount: &Path) {
        mariadb::create(&mount.join("mariadb"));
    }

    fn start(mount: &Path, beside: &Path) -> MariaDb {
        let db = MariaDb::start(&mount.join("mariadb"), beside);
        query(db.shell(), "create database if not exists nasd");
        db
    }

    fn shell(&self) -> Command {
        let mut shell = MariaDb::shell(self);
        shell.arg("nasd");
        shell
    }

    /// The tables, and the binary log: it has each row once. (What is in one of the two only is a replica gone astray.)
    fn find_sound(&self, rows: u64) {
        let found = query(Database::shell(self), "check table rows_of extended");
        assert_eq!(found, ["nasd.rows_of\tcheck\tstatus\tOK"]);
        let logs = query(Database::shell(self), "show binary logs");
        let commits = |log: &String| {
            let name = log.split('\t').next().unwrap();
            let events = query(Database::shell(self), &format!("show binlog events in '{name}'"));
            events.iter().filter(|e| e.split('\t').nth(2) == Some("Xid")).count() as u64
        };
        assert_eq!(logs.iter().map(commits).sum::<u64>(), rows, "transactions in the binary log");
    }

    fn kill(mut self) {
        MariaDb::kill(&mut self);
    }

    fn stop(self) {
        MariaDb::stop(self);
    }
}

/// SQLite has no server: its clients are all there is of it.
struct Sqlite(PathBuf);

impl Database for Sqlite {
    fn create(mount: &Path) {
        std::fs::create_dir(mount.join("sqlite")).unwrap();
    }

    fn start(mount: &Path, _: &Path) -> Sqlite {
        Sqlite(mount.join("sqlite/db"))
    }

    fn shell(&self) -> Command {
        let mut shell = Command::new(env!("CARGO_BIN_EXE_sqlite_shell"));
        shell.arg(&self.0);
        shell
    }

    fn find_sound(&self, _: u64) {
        assert_eq!(query(self.shell(), "pragma integrity_check"), ["ok"]);
    }

    fn kill(self) {}

    fn stop(self) {}
}

#[test]
fn mariadb_loses_nothing() {
    if mariadb::installed() {
        story::<MariaDb>("MariaDB");
    }
}

#[test]
fn sqlite_loses_nothing() {
    story::<Sqlite>("SQLite");
}
