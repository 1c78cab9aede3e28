//! The secondary's watcher, wired: a new file in the log directory is applied, acknowledged and announced.

use crate::events::Kind;
use crate::node::Node;
use nasd_config::WatchMode;
use nasd_volume::apply::ApplyError;
use nasd_volume::{Access, Role, Volume};
use nasd_watcher::{Mode, WatchError, Watcher};
use rustix::io::Errno;
use std::path::Path;
use std::sync::{Arc, Weak};

struct Replica {
    node: Weak<Node>,
    volume: Arc<Volume>,
    /// The last attempt broke off in the middle: what it did is done again.
    again: bool,
    /// The last part seen of a transaction whose last part has not come yet.
    seen: u64,
}

/// Watches the volume's log directory.
pub fn watch(node: &Arc<Node>, volume: &Arc<Volume>) -> Result<Watcher, WatchError> {
    let mode = match node.config.watcher.mode {
        WatchMode::Inotify => Mode::Inotify,
        WatchMode::Poll => Mode::Poll(node.config.watcher.poll_interval),
    };
    let replica = Replica { node: Arc::downgrade(node), volume: Arc::clone(volume), again: false, seen: 0 };
    nasd_watcher::spawn(volume.log.dir().to_owned(), mode, Box::new(replica))
}

impl nasd_watcher::Apply for Replica {
    fn wanted(&mut self) -> Option<u64> {
        let state = self.volume.state.get();
        let wanted = self.volume.wanted();
        let in_group = self.seen >= wanted && self.volume.log.entry(self.seen).is_some_and(|e| e.continues);
        (state.role == Role::Secondary && !state.needs_copy).then_some(if in_group {
            self.seen + 1
        } else {
            wanted
        })
    }

    fn apply(&mut self, path: &Path) -> Result<(), nasd_watcher::ApplyError> {
        use nasd_watcher::ApplyError::{Halt, Retry};
        let Some(node) = self.node.upgrade() else {
            return Err(Halt("the node is gone".to_owned()));
        };
        let seq = self.wanted().unwrap_or(0);
        if self.volume.log.entry(seq).is_some_and(|e| e.continues) {
            // Nothing is applied before the last part is there.
            self.seen = seq;
            return Ok(());
        }
        let before = self.volume.applied().seq;
        match self.volume.apply_next(self.again) {
            Ok(Some(applied)) => {
                if std::mem::take(&mut self.again) {
                    self.volume.set_access(Access::ReadOnly);
                    node.upstream.set_trouble(None);
                    node.events.emit_state(Kind::Disk, "ok", "applying goes on");
                }
                node.upstream.applied(&self.volume);
                node.events.applied(before, &applied);
                node.tell_demands();
                if let Some(database) = &node.database {
                    database.applied(&applied.paths);
                }
                Ok(())
            }
            Ok(None) => Err(Retry(format!("{} is not in the log any more", path.display()))),
            Err(ApplyError::Io { source: source @ (Errno::NOSPC | Errno::DQUOT), .. }) => {
                let why = format!(
                    "no space below {} to apply {}: {source}",
                    self.volume.state_dir().display(),
                    path.display()
                );
                if !std::mem::replace(&mut self.again, true) {
                    // Half of it may be there: nobody looks until it is whole.
                    self.volume.set_access(Access::Closed);
                    node.events.emit_state(Kind::Disk, "full", why.clone());
                    node.upstream.set_trouble(Some(why.clone()));
                    node.upstream.hang_up(&why);
                }
                Err(Retry(why))
            }
            Err(e) => {
                let why = format!("applying {}: {e}", path.display());
                let text = format!("{why}; this replica is compared with the primary");
                node.events.emit_state(Kind::Disk, "damaged", text);
                if let Err(e) = self.volume.state.update(|s| {
                    s.needs_copy = true;
                    s.in_sync = false;
                }) {
                    nasd_volume::fatal::stop(&e.to_string());
                }
                self.volume.set_access(Access::Closed);
                node.upstream.hang_up(&why);
                Err(Halt(why))
            }
        }
    }
}
