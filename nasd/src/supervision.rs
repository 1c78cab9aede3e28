//! What the service manager is told (`sd_notify(3)`): that this node serves, how it is, and that it lives.
//!
//! Without a service manager nobody is told anything.

use crate::node::Node;
use crate::status;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the node's state is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Tells; a service manager that can't be told changes nothing of what a node does.
pub fn tell(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!("telling the service manager: {e}");
    }
}

/// Tells the node's state when it changes, and that it lives as long as it is seen to.
pub fn run(node: &Arc<Node>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    // The watchdog is not fed any more once a loop has stood still for this long.
    let patience = watchdog.map(|limit| limit / 2);
    let tick = watchdog.map_or(TICK, |limit| TICK.min(limit / 8));
    let interval = node.config.replication.commit_interval;
    let mut told = String::new();
    let mut seal = Turns::new();
    let mut tidy = Turns::new();
    while !node.stopping() {
        let sentence = status::sentence(node);
        if sentence != told {
            tell(NotifyState::Status(&sentence));
            told = sentence;
        }
        // This thread hangs here with a disk that hangs.
        let disk = rustix::fs::statvfs(&node.config.node.state_dir).is_ok();
        let now = Instant::now();
        // Whoever leads the commits of others does not come back to its own loop meanwhile.
        let sealed = node.volume().map_or(0, |v| v.seals());
        let seal = seal.still(node.seal_turns.load(Ordering::Relaxed).wrapping_add(sealed), now);
        let tidy = tidy.still(node.tidy_turns.load(Ordering::Relaxed), now);
        let waits = node.peers().is_some_and(|p| p.waited_for());
        if patience.is_some_and(|patience| disk && lives(seal, tidy, waits, interval, patience)) {
            tell(NotifyState::Watchdog);
        }
        std::thread::sleep(tick);
    }
}

/// Whether the node lives, its loops having stood still for so long. The one that seals rests for an interval, and as long
/// as a commit waits for a peer.
fn lives(seal: Duration, tidy: Duration, waits: bool, interval: Duration, patience: Duration) -> bool {
    tidy < patience && (waits || seal < interval + patience)
}

/// The turns of a loop, and when the last of them was.
struct Turns {
    count: u64,
    since: Instant,
}

impl Turns {
    fn new() -> Turns {
        Turns { count: 0, since: Instant::now() }
    }

    /// How long the count has not changed.
    fn still(&mut self, count: u64, now: Instant) -> Duration {
        if count != self.count {
            *self = Turns { count, since: now };
        }
        now.duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_loop_that_stands_still_is_no_life() {
        assert!(lives(S, S, false, S, 5 * S));
        assert!(!lives(S, 5 * S, false, S, 5 * S));
        assert!(!lives(6 * S, S, false, S, 5 * S));
    }

    #[test]
    fn a_commit_that_waits_for_a_peer_is_life() {
        assert!(lives(1000 * S, S, true, S, 5 * S));
        assert!(!lives(1000 * S, 5 * S, true, S, 5 * S));
        // Nobody syncs, and what is written is sealed every hour.
        assert!(lives(3600 * S, S, false, 3600 * S, 5 * S));
    }

    #[test]
    fn any_change_is_a_turn() {
        let start = Instant::now();
        let mut turns = Turns { count: 0, since: start };
        assert_eq!(turns.still(0, start + S), S);
        assert_eq!(turns.still(7, start + 2 * S), Duration::ZERO);
        assert_eq!(turns.still(7, start + 5 * S), 3 * S);
        assert_eq!(turns.still(3, start + 6 * S), Duration::ZERO);
    }
}
