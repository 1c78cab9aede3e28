//! Clients of a database: each commits its rows one after the other and remembers which were acknowledged.
//!
//! A client is the database's own shell, a process: SQL goes in line by line, and a row counts as acknowledged when the
//! shell has answered the statement behind it.

use crate::eventually_within;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

/// The table that they fill.
pub const TABLE: &str =
    "create table rows_of (client integer, n integer, data varchar(1000), primary key (client, n))";

/// What row `n` of a client holds: some hundred bytes that no other row has.
fn data(client: usize, n: u64) -> String {
    let len = 100 + n % 700;
    (0..len).map(|i| char::from(b'a' + ((client as u64 * 7 + n * 31 + i * i) % 26) as u8)).collect()
}

#[derive(Debug)]
struct Client {
    shell: Child,
    acked: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    fn start(id: usize, from: u64, mut shell: Command, stop: &Arc<AtomicBool>) -> Client {
        let mut shell = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What it says when its database dies is of no interest.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut sql, out) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let acked = Arc::new(AtomicU64::new(from));
        let (known, stop) = (Arc::clone(&acked), Arc::clone(stop));
        let thread = std::thread::spawn(move || {
            let mut answers = out.lines();
            for n in from + 1.. {
                let row = format!("insert into rows_of values ({id}, {n}, '{}'); select {n};", data(id, n));
                if stop.load(SeqCst) || writeln!(sql, "{row}").is_err() {
                    return;
                }
                match answers.next() {
                    Some(Ok(answer)) if answer == n.to_string() => known.store(n, SeqCst),
                    _ => return,
                }
            }
        });
        Client { shell, acked, thread: Some(thread) }
    }

    fn end(&mut self) -> u64 {
        if let Some(thread) = self.thread.take() {
            // Its end closes the shell's input, which ends that.
            thread.join().unwrap();
            self.shell.wait().unwrap();
        }
        self.acked.load(SeqCst)
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Clients {
    clients: Vec<Client>,
    stop: Arc<AtomicBool>,
}

impl Clients {
    /// Starts one for each number in `from`, the last row that it has there already.
    pub fn start(from: &[u64], shell: impl Fn() -> Command) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = from.iter().enumerate().map(|(id, &n)| Client::start(id, n, shell(), &stop)).collect();
        Clients { clients, stop }
    }

    fn acked(&self) -> u64 {
        self.clients.iter().map(|c| c.acked.load(SeqCst)).sum()
    }

    /// Waits for `more` acknowledged rows.
    pub fn wait_more(&self, more: u64) {
        let from = self.acked();
        eventually_within(Duration::from_secs(60), "the clients get on", || {
            (self.acked() >= from + more).then_some(())
        });
    }

    /// SIGKILL to all; the last acknowledged row of each.
    pub fn kill(mut self) -> Vec<u64> {
        for c in &mut self.clients {
            c.shell.kill().unwrap();
        }
        self.clients.iter_mut().map(Client::end).collect()
    }

    /// Each ends after its current row; the last acknowledged row of each.
    pub fn finish(mut self) -> Vec<u64> {
        self.stop.store(true, SeqCst);
        self.clients.iter_mut().map(Client::end).collect()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for c in &mut self.clients {
            let _ = c.shell.kill();
            let _ = c.shell.wait();
        }
    }
}

/// Runs SQL in a shell of its own, which must succeed; the lines of the result.
pub fn query(mut shell: Command, sql: &str) -> Vec<String> {
    let mut shell =
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    writeln!(shell.stdin.take().unwrap(), "{sql};").unwrap();
    let out = shell.wait_with_output().unwrap();
    assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Every acknowledged row of each client is there, whole, and at most the one behind it that was on its way; the last
/// row of each.
pub fn check_rows(acked: &[u64], shell: impl Fn() -> Command) -> Vec<u64> {
    let check = |(client, &acked): (usize, &u64)| {
        let sql = format!("select n, data from rows_of where client = {client} order by n");
        let rows = query(shell(), &sql);
        for (n, row) in (1..).zip(&rows) {
            assert_eq!(row, &format!("{n}\t{}", data(client, n)), "client {client}: row {n}");
        }
        let there = rows.len() as u64;
        assert!(
            there == acked || there == acked + 1,
            "client {client}: {acked} acknowledged rows, {there} are there"
        );
        there
    };
    acked.iter().enumerate().map(check).collect()
}
