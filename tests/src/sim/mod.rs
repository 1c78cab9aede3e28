//! Two and three nodes and etcd in one thread, with a clock of their own: crashes, power cuts, processes that stand still,
//! slow disks, cut and broken links, an etcd that answers late or never. A seed decides everything.
//!
//! The decisions are the product's own: `nasd::failover::machine`, `nasd::vote::record`, `nasd::decide`. What is written
//! here is what does I/O in the product, and it keeps the order in which the product does things, since that is what its
//! invariants hang on: `peers/`, `serve.rs`, `office.rs`, `boot.rs` and `failover.rs` are to be read beside the files of
//! the same names there. A thread of the product is a task here; where it blocks, the task awaits.
//!
//! What must be true (`checks.rs`):
//!
//! 1. nothing that was acknowledged is missing in the log of whoever serves the highest epoch;
//! 2. at most one node serves and acknowledges in an epoch, and once the next epoch is served nobody acknowledges what its
//!    primary does not have;
//! 3. the same number and epoch is the same transaction everywhere;
//! 4. when nothing is wrong any more there is one primary within bounded time, all follow it with equal logs, and whatever
//!    was given up is in `diverged/`.

#![allow(missing_docs)]

mod boot;
pub mod checks;
mod etcd;
mod failover;
mod faults;
mod network;
mod node;
mod office;
mod peers;
mod serve;
pub mod settings;
mod world;

pub use checks::{Broken, Counts};
pub use settings::{Bug, Settings};

use std::rc::Rc;
use world::{SECOND, World};

/// Runs one seed; returns what it broke, and what happened.
pub fn run(set: Settings, seed: u64) -> (Option<Broken>, Counts) {
    let w = World::new(set, seed);
    for node in 0..w.set.nodes {
        faults::start(&w, node);
    }
    for _ in 0..w.between(1, 3) {
        faults::for_ever(&w, faults::client(Rc::clone(&w)));
    }
    faults::for_ever(&w, faults::harm(Rc::clone(&w)));
    w.run(w.set.faults_until);
    if !w.checks.failed() {
        faults::heal(&w);
        if w.set.mode == nasd_config::FailoverMode::Etcd {
            faults::settle(&w, 180 * SECOND);
        } else {
            // Without a third vote some of it waits for the operator.
            w.run(w.now() + 40 * SECOND);
        }
    }
    w.checks.counts.steps.set(w.polls());
    let result = (w.checks.result(), w.checks.counts.clone());
    w.kill_tasks(None);
    w.nodes.borrow_mut().clear();
    result
}
