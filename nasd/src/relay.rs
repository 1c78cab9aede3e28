//! A secondary that feeds others: those of its `[[peer]]`s that nobody else feeds.

use crate::node::Node;
use crate::peers::{Peers, Row};
use nasd_volume::{Replicator, Role, Volume};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether there is something to feed from.
const LOOK: Duration = Duration::from_millis(100);

/// Those that this secondary feeds, as long as it follows somebody itself, and always the same one.
#[derive(Default)]
pub struct Relay(Mutex<Option<Feed>>);

struct Feed {
    peers: Arc<Peers>,
    /// The way by which this node has what it feeds them, and the epoch; the link itself tells it from a later one.
    from: (Vec<String>, u64, Arc<crate::link::Link>),
}

impl Relay {
    /// Feeds nobody any more: what this node has is about to be another history, or it becomes primary.
    pub fn end(&self) {
        if let Some(feed) = self.0.lock().take() {
            feed.peers.end();
        }
    }

    /// This transaction is in the log.
    pub fn logged(&self, volume: &Volume, seq: u64) {
        if let Some(feed) = &*self.0.lock() {
            feed.peers.logged(volume, seq);
        }
    }

    /// Has them tell their consumers.
    pub fn notify(&self, seq: u64, text: &str) {
        if let Some(feed) = &*self.0.lock() {
            feed.peers.ask_notify(seq, text);
        }
    }

    /// What is known of them.
    pub fn rows(&self) -> Vec<Row> {
        self.0.lock().as_ref().map(|feed| feed.peers.rows()).unwrap_or_default()
    }

    fn look(&self, node: &Arc<Node>) {
        let from = node.volume().and_then(|v| {
            let s = v.state.get();
            // What is between two states is nobody's to copy; who hears nothing has nothing to tell.
            let fit = s.role == Role::Secondary
                && !s.needs_copy
                && node.failover.silence() < node.config.failover.timeout / 2;
            node.upstream.chain().filter(|_| fit)
        });
        let same = |a: &Feed| {
            from.as_ref().is_some_and(|f| f.0 == a.from.0 && f.1 == a.from.1 && Arc::ptr_eq(&f.2, &a.from.2))
        };
        let mut now = self.0.lock();
        if now.as_ref().is_some_and(|feed| !same(feed))
            && let Some(feed) = now.take()
        {
            feed.peers.end();
        }
        if let (None, Some(from)) = (&*now, from) {
            let via = [from.0.clone(), vec![node.config.node.name.clone()]].concat();
            let peers = Peers::fed(node, via);
            peers.start(node);
            *now = Some(Feed { peers, from });
        }
    }
}

/// Looks after it until the node stops.
pub fn run(node: &Arc<Node>) {
    // With one peer there is nobody but the one that this node follows.
    if node.config.peers.len() < 2 {
        return;
    }
    while !node.stopping() {
        node.relay.look(node);
        std::thread::sleep(LOOK);
    }
    node.relay.end();
}
