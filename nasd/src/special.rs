//! What the special files of the mount, `.nasd/`, say of this node.

use crate::node::Node;
use crate::status::status;
use nasd_fusefs::{NodeInfo, Subscription};
use nasd_watcher::Filter;
use nasd_watcher::feed::{self, Feed};
use std::sync::{Arc, Weak};

/// Events that a reader is given at a time.
const PORTION: usize = 64;

/// This node, as its mount sees it.
pub struct Info {
    node: Weak<Node>,
    feed: Arc<Feed>,
}

impl Info {
    pub fn of(node: &Arc<Node>) -> Info {
        Info { node: Arc::downgrade(node), feed: Arc::clone(&node.events.feed) }
    }
}

impl NodeInfo for Info {
    fn status(&self) -> Vec<u8> {
        // Nobody asks a node that is gone; if he does, he reads an empty file.
        let Some(node) = self.node.upgrade() else { return Vec::new() };
        let mut json = serde_json::to_vec(&status(&node)).unwrap_or_default();
        json.push(b'\n');
        json
    }

    fn subscribe(&self) -> Box<dyn Subscription> {
        Box::new(Lines(self.feed.subscribe(Filter::all(), None)))
    }

    fn on_news(&self, wake: Box<dyn Fn() + Send + Sync>) -> Box<dyn Send + Sync> {
        Box::new(self.feed.on_news(wake))
    }
}

/// Events as lines of JSON.
struct Lines(feed::Subscription);

impl Subscription for Lines {
    fn next(&mut self) -> Vec<u8> {
        self.0
            .next(PORTION)
            .iter()
            .flat_map(|event| event.json().into_bytes().into_iter().chain([b'\n']))
            .collect()
    }
}
