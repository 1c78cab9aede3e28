//! What the end-to-end tests share: nodes as real processes with real mounts, and waiting for conditions.
//!
//! Tests may panic: `unwrap` and `expect` are how they fail.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod agent;
pub mod bare;
pub mod caller;
pub mod clients;
pub mod cluster;
pub mod container;
pub mod docker;
pub mod etcd;
pub mod events;
pub mod failovers;
pub mod guest;
pub mod http;
pub mod image;
pub mod journal;
pub mod lab;
pub mod machine;
pub mod mariadb;
pub mod marks;
pub mod node;
pub mod pgbench;
pub mod pgcluster;
pub mod pgload;
pub mod postgres;
pub mod proxy;
pub mod share;
pub mod sim;
pub mod snapshot;
pub mod stats;
pub mod supervise;
pub mod tools;
pub mod wait;
pub mod workload;
pub mod writer;

pub use node::{Node, Pair, Setup, nasd};
pub use wait::{eventually, eventually_within};
pub use writer::{put, seq};

/// Whether the long variants are asked for: `NASD_TEST_LONG=1`.
pub fn long() -> bool {
    std::env::var_os("NASD_TEST_LONG").is_some_and(|v| v != "0")
}

/// Where random choices start from: `NASD_SEED`, or something new, and printed for a replay.
pub fn seed(what: &str) -> u64 {
    let seed = match std::env::var("NASD_SEED") {
        Ok(s) => s.parse().expect("NASD_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("{what}: NASD_SEED={seed}");
    seed
}
