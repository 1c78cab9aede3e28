//! Signs of life beside the peers' link: a primary gives them on the other networks of the configuration, and a secondary
//! that hears nothing asks.

use crate::link::Link;
use crate::node::Node;
use crate::protocol::{self, Message};
use nasd_config::FailoverMode;
use nasd_volume::Role;
use std::sync::Arc;
use std::time::Duration;

/// Between two attempts to reach somebody who does not answer.
const RETRY: Duration = Duration::from_millis(250);

/// Starts a thread for each way to each peer.
pub fn start(node: &Arc<Node>) {
    if node.config.failover.mode == FailoverMode::Manual {
        return;
    }
    for (i, peer) in node.config.peers.iter().enumerate() {
        for address in std::iter::once(&peer.address).chain(&peer.heartbeat_addresses) {
            let main = *address == peer.address;
            let (node, address) = (Arc::clone(node), address.clone());
            let work = move || {
                while !node.stopping() {
                    let rest = if is_primary(&node) {
                        // The link that carries transactions gives them on the main way.
                        if !main {
                            give(&node, i, &address);
                        }
                        RETRY
                    } else {
                        ask(&node, i, &address);
                        node.config.failover.interval
                    };
                    std::thread::sleep(
                        rest.min(node.config.failover.interval.max(Duration::from_millis(20))),
                    );
                }
            };
            if let Err(e) = std::thread::Builder::new().name("heartbeat".into()).spawn(work) {
                nasd_volume::fatal::stop(&format!(
                    "no thread for heartbeats: {e}; raise the limit on processes"
                ));
            }
        }
    }
}

fn is_primary(node: &Node) -> bool {
    node.volume().is_some_and(|v| v.state.get().role == Role::Primary)
}

fn patience(node: &Node) -> Duration {
    (node.config.failover.timeout / 4).max(Duration::from_millis(50))
}

fn give(node: &Arc<Node>, i: usize, address: &str) {
    let Ok((link, _)) = node.dial_at(i, address, patience(node)) else { return };
    while is_primary(node) && !node.stopping() && beat(node, &link) {
        std::thread::sleep(node.config.failover.interval);
    }
}

fn beat(node: &Node, link: &Link) -> bool {
    let epoch = node.volume().map_or(0, |v| v.epoch());
    node.serving() && protocol::say(link, &Message::Heartbeat { epoch }).is_ok()
}

/// Half of the time is over: is there really no primary?
fn ask(node: &Arc<Node>, i: usize, address: &str) {
    if node.failover.silence() < node.config.failover.timeout / 2 {
        return;
    }
    let Ok((link, hello)) = node.dial_at(i, address, patience(node)) else { return };
    link.shutdown();
    let epoch = node.volume().map_or(0, |v| v.state.get().epoch);
    if hello.role == Role::Primary && hello.serving && hello.epoch >= epoch {
        node.failover.heard();
    }
}
