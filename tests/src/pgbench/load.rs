//! One run of pgbench, and what it saw.

use super::cluster::{Cluster, owned_dir, run};
use crate::stats::percentile;
use std::fs;
use std::path::{Path, PathBuf};

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// pgbench's own, like TPC-B.
    TpcB,
    /// The same without the two tables on which clients wait for one another (`-N`).
    SimpleUpdate,
    /// The same right behind a checkpoint: the first change of a page takes the whole page into the log.
    FullPages,
    /// One row of 500 random bytes.
    Noise,
}

impl Workload {
    /// In the tables.
    pub fn name(self) -> &'static str {
        match self {
            Workload::TpcB => "TPC-B-like",
            Workload::SimpleUpdate => "simple update (-N)",
            Workload::FullPages => "simple update (-N) right behind a checkpoint",
            Workload::Noise => "500 random bytes a row",
        }
    }
}

/// The table of [`Workload::Noise`].
pub const NOISE_TABLE: &str = "create extension pgcrypto; create table noise (id bigserial, data bytea)";
const NOISE_ROW: &str = "insert into noise (data) values (gen_random_bytes(500));\n";

/// What one run saw.
#[derive(Debug)]
pub struct Seen {
    /// Transactions.
    pub transactions: f64,
    /// Transactions a second.
    pub tps: f64,
    /// Latency of a transaction, milliseconds.
    pub p50: f64,
    /// The 99th percentile of it.
    pub p99: f64,
}

/// Runs clients for so many seconds. Both statements of a seed and their order are the same on every set-up.
pub fn load(on: &Cluster, dir: &Path, what: Workload, clients: usize, seconds: usize, seed: usize) -> Seen {
    let logs = dir.join("pgbench");
    if logs.exists() {
        fs::remove_dir_all(&logs).unwrap();
    }
    owned_dir(&logs);
    let mut pgbench = on.client("pgbench");
    pgbench.args(["-n", "-M", "prepared", "--log", "--log-prefix"]).arg(logs.join("log"));
    pgbench.args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string(), "-T", &seconds.to_string()]);
    pgbench.arg(format!("--random-seed={seed}"));
    match what {
        Workload::TpcB => pgbench.args(["-b", "tpcb-like"]),
        Workload::SimpleUpdate | Workload::FullPages => pgbench.args(["-b", "simple-update"]),
        Workload::Noise => {
            let script: PathBuf = dir.join("noise.sql");
            fs::write(&script, NOISE_ROW).unwrap();
            pgbench.arg("-f").arg(script)
        }
    };
    let said = run(pgbench.arg("postgres"));
    let tps = said.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    // client, number, µs, script, and when.
    let mut latencies = Vec::new();
    for log in fs::read_dir(&logs).unwrap() {
        let text = fs::read_to_string(log.unwrap().path()).unwrap();
        latencies.extend(text.lines().filter_map(|l| Some(l.split(' ').nth(2)?.parse::<f64>().ok()? / 1e3)));
    }
    latencies.sort_by(f64::total_cmp);
    Seen {
        transactions: latencies.len() as f64,
        tps: tps.unwrap_or_else(|| panic!("no tps: {said}")),
        p50: percentile(&latencies, 0.5),
        p99: percentile(&latencies, 0.99),
    }
}
