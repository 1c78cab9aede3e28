//! Programs of the operator that go with a change of role.

use crate::events::Kind;
use crate::node::{Node, RoleError};
use nasd_watcher::run_program;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// How long one may run.
const LIMIT: Duration = Duration::from_secs(30);

/// A change of role, for `on_role_change`.
#[derive(Debug)]
pub struct Change {
    pub old: &'static str,
    pub new: &'static str,
    pub epoch: u64,
    pub why: String,
}

/// Where changes are told.
pub struct Hook(Sender<Change>, parking_lot::Mutex<Option<Receiver<Change>>>);

impl Default for Hook {
    fn default() -> Hook {
        let (tx, rx) = channel();
        Hook(tx, parking_lot::Mutex::new(Some(rx)))
    }
}

impl Hook {
    /// Tells, in order; whoever waits for the program does not keep the change from going on.
    pub fn tell(&self, change: Change) {
        // Without a program nobody listens.
        let _ = self.0.send(change);
    }
}

/// Runs `on_role_change` after each change, one at a time.
pub fn run(node: &Arc<Node>) {
    let (Some(exec), Some(changes)) = (&node.config.failover.on_role_change, node.hook.1.lock().take())
    else {
        return;
    };
    while let Ok(c) = changes.recv() {
        let env = [
            ("NASD_NODE", node.config.node.name.clone()),
            ("NASD_OLD_ROLE", c.old.to_owned()),
            ("NASD_NEW_ROLE", c.new.to_owned()),
            ("NASD_EPOCH", c.epoch.to_string()),
            ("NASD_REASON", c.why),
        ];
        if let Err(e) = run_program(exec, &env, LIMIT) {
            node.events.emit(Kind::Role, format!("on_role_change: {e}"));
        }
    }
}

/// Has the old primary stopped, by the operator's means. Only 0 will do.
pub fn fence(node: &Node, exec: &Path) -> Result<(), RoleError> {
    let names: Vec<&str> = node.config.peers.iter().map(|p| p.name.as_str()).collect();
    let env = [("NASD_NODE", node.config.node.name.clone()), ("NASD_FENCE", names.join(" "))];
    run_program(exec, &env, LIMIT)
        .map_err(|e| RoleError::Refused(format!("the old primary could not be fenced off: {e}")))
}
