//! On a primary: makes the events of transactions from the log, as long as somebody wants them. A commit rings a bell.

use crate::node::Node;
use nasd_volume::Volume;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether this node stops.
const LOOK: Duration = Duration::from_secs(1);
/// What was sealed without anybody waiting for it is acknowledged at the latest by then.
const UNSYNCED: Duration = Duration::from_millis(50);
/// Transactions read at a time.
const PORTION: usize = 64;

/// Tells until the node stops.
pub fn run(node: &Arc<Node>) {
    let feed = &node.events.feed;
    // Up to here there is nothing to do; None while nobody wants any.
    let mut done = None;
    while !node.stopping() {
        node.events.bell.wait(LOOK);
        let volume = node.volume().filter(|v| v.writable());
        let Some(volume) = volume.filter(|_| feed.is_wanted()) else {
            done = None;
            continue;
        };
        feed.refresh();
        let from = *done.get_or_insert(feed.end().seq);
        acknowledge(node, &volume);
        feed.refresh();
        done = Some(tell(node, &volume, from.max(feed.told()), feed.end().seq));
    }
}

/// Has acknowledged what was sealed when nobody synced it.
fn acknowledge(node: &Node, volume: &Volume) {
    let sealed = volume.applied().seq;
    while volume.acknowledged() < sealed && volume.writable() && !node.stopping() {
        let before = volume.acknowledged();
        node.events.bell.wait(UNSYNCED);
        if volume.acknowledged() == before
            && let Err(e) = volume.commit_and_wait()
        {
            tracing::debug!("telling of transactions: {e}");
            return;
        }
    }
}

/// Tells what lies behind `from` up to `upto`; returns how far it got.
fn tell(node: &Node, volume: &Volume, mut from: u64, upto: u64) -> u64 {
    while from < upto && volume.writable() {
        let past = volume.changes(from, upto, PORTION);
        from = past.gone.unwrap_or(from);
        for applied in &past.applied {
            node.events.applied(from, applied);
            from = applied.position.map_or(from, |p| p.seq);
        }
        if past.applied.is_empty() {
            break;
        }
    }
    from
}
