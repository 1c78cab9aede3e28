//! What the end-to-end tests share: nodes as real processes with real mounts, and waiting for conditions.
//!
//! Tests may panic: `unwrap` and `expect` are how they fail.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod node;
pub mod snapshot;
pub mod wait;

pub use node::{Node, Pair, Setup};
pub use wait::{eventually, eventually_within};
