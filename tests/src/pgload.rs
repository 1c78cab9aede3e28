//! Writers on a PostgreSQL that know what was acknowledged, and the checks of what is found afterwards.

use crate::postgres::{PgNode, pg};
use postgres::{Client, NoTls};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Writers.
pub const CLIENTS: usize = 4;
const ACCOUNTS: i32 = 500;

/// Makes the tables.
pub fn prepare(on: &PgNode) {
    let mut client = on.connect();
    client
        .batch_execute(&format!(
            "CREATE TABLE acked (client int, n bigint, filler text, PRIMARY KEY (client, n));
             CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, filler text);
             INSERT INTO accounts SELECT i, 0, repeat('x', 80) FROM generate_series(1, {ACCOUNTS}) i;
             CREATE EXTENSION amcheck;"
        ))
        .unwrap();
}

#[derive(Debug, Default)]
struct Progress {
    /// The highest number that was acknowledged, of each client.
    acked: [AtomicU64; CLIENTS],
    stop: AtomicBool,
}

/// What was acknowledged so far, over all rounds.
pub type Acked = [u64; CLIENTS];

/// Each writer moves money between two accounts and writes down its next number, in one transaction; the numbers go on
/// where they ended before.
#[derive(Debug)]
pub struct Load {
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<()>>,
}

fn transfer(client: &mut Client, me: usize, n: u64) -> Result<(), postgres::Error> {
    let (from, to) = ((n * 7 + me as u64 * 13) as i32 % ACCOUNTS + 1, (n * 11 + 3) as i32 % ACCOUNTS + 1);
    let mut t = client.transaction()?;
    // In the order of their numbers, so that no two writers wait for each other in a ring.
    let mut moves = [(from, -(n as i64)), (to, n as i64)];
    moves.sort_unstable();
    for (id, amount) in moves {
        t.execute("UPDATE accounts SET balance = balance + $1 WHERE id = $2", &[&amount, &id])?;
    }
    let filler = format!("{n:0200}");
    t.execute("INSERT INTO acked VALUES ($1, $2, $3)", &[&(me as i32), &(n as i64), &filler])?;
    t.commit()
}

fn write(socket: &Path, me: usize, start: u64, progress: &Progress) {
    let mut config = postgres::Config::new();
    config.host_path(socket).user("postgres").dbname("postgres").connect_timeout(Duration::from_secs(5));
    let mut n = start;
    let Ok(mut client) = config.connect(NoTls) else { return };
    while !progress.stop.load(Ordering::SeqCst) {
        n += 1;
        match transfer(&mut client, me, n) {
            Ok(()) => progress.acked[me].store(n, Ordering::SeqCst),
            // The server is gone. What became of this one nobody knows; its number is not used again.
            Err(_) => return,
        }
    }
}

impl Load {
    /// Starts the writers behind what was acknowledged, and whatever else is there.
    pub fn start(on: &PgNode) -> Load {
        let progress = Arc::new(Progress::default());
        let mut client = on.connect();
        let threads = (0..CLIENTS)
            .map(|me| {
                let row = client
                    .query_one("SELECT coalesce(max(n), 0) FROM acked WHERE client = $1", &[&(me as i32)]);
                let start = row.unwrap().get::<_, i64>(0) as u64;
                let (socket, progress) = (on.socket_dir().to_owned(), Arc::clone(&progress));
                std::thread::spawn(move || write(&socket, me, start, &progress))
            })
            .collect();
        Load { progress, threads }
    }

    /// Commits acknowledged so far in this load, by its slowest writer.
    pub fn slowest(&self) -> u64 {
        self.progress.acked.iter().map(|a| a.load(Ordering::SeqCst)).min().unwrap_or(0)
    }

    /// The highest numbers that were acknowledged so far.
    pub fn acked(&self) -> Acked {
        std::array::from_fn(|i| self.progress.acked[i].load(Ordering::SeqCst))
    }

    /// Ends the writers; what was acknowledged.
    pub fn stop(self) -> Acked {
        self.progress.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::array::from_fn(|i| self.progress.acked[i].load(Ordering::SeqCst))
    }
}

/// Every acknowledged number is there, at most one more a client, and no money was made or lost.
pub fn check(on: &PgNode, acked: &Acked, context: &str) {
    let mut client = on.connect();
    for (me, &last) in acked.iter().enumerate() {
        let row = client
            .query_one("SELECT coalesce(max(n), 0) FROM acked WHERE client = $1", &[&(me as i32)])
            .unwrap();
        let there = row.get::<_, i64>(0) as u64;
        assert!(
            there >= last,
            "{context}: client {me} was told that {last} is committed, and {there} is the last"
        );
        assert!(there <= last + 1 || last == 0, "{context}: client {me} wrote {last}, and {there} is there");
    }
    let sum: i64 = client.query_one("SELECT sum(balance)::bigint FROM accounts", &[]).unwrap().get(0);
    assert_eq!(sum, 0, "{context}: a transaction is there by halves");
}

/// Heaps and indexes are whole.
pub fn amcheck(on: &PgNode) {
    let host = on.socket_dir().to_str().unwrap();
    pg("pg_amcheck", &["-h", host, "-U", "postgres", "--heapallindexed", "--parent-check", "postgres"]);
}

/// Both sides' tables are equal, row by row.
pub fn assert_equal(primary: &PgNode, standby: &PgNode, context: &str) {
    standby.wait_replayed(primary);
    for query in [
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(a::text, ',' ORDER BY client, n)), '') FROM acked a",
        "SELECT md5(string_agg(a::text, ',' ORDER BY id)) FROM accounts a",
    ] {
        assert_eq!(primary.value(query), standby.value(query), "{context}: {query}");
    }
}
