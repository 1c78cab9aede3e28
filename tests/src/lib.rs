//! What the end-to-end tests share: nodes as real processes with real mounts, and waiting for conditions.
//!
//! Tests may panic: `unwrap` and `expect` are how they fail.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod image;
pub mod node;
pub mod proxy;
pub mod snapshot;
pub mod wait;
pub mod writer;

pub use node::{Node, Pair, Setup, nasd};
pub use wait::{eventually, eventually_within};
pub use writer::{put, seq};

/// Whether the long variants run: `NASD_TEST_LONG=1`.
pub fn long() -> bool {
    std::env::var_os("NASD_TEST_LONG").is_some_and(|v| v == "1")
}
