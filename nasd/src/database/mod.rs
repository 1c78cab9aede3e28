//! The database whose log is on the volume: it follows the node's role.
//!
//! [`Database::tend`] looks now and then at what is and does what [`decide`] says; changes of role call it by name and
//! wait. What PostgreSQL is, `nasd_watcher::postgresql` knows.

mod decide;
pub mod follow;
mod held;
pub mod tool;
mod trouble;

use crate::events::{Events, Kind};
use crate::node::{Node, Phase};
use decide::{Next, Seen, decide};
use nasd_config::Config;
use nasd_volume::state::Led;
use nasd_volume::{Access, Hold, Role, Volume};
use nasd_watcher::Paced;
use nasd_watcher::postgresql::{Cluster, PostgresError, Stop, Waker, Woke};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use trouble::Trouble;
use utoipa::ToSchema;

/// How long a start, a promotion or an orderly stop may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Every so many looks what is held is tidied.
const TIDY_EVERY: u64 = 4;

/// Where the log is in the mount, or will be once there is a cluster.
const WAL_DIR: &str = "pg_wal";

/// In the state directory: why the database here must not be started before it is cloned.
const MUST_CLONE: &str = "postgresql-must-be-cloned";

/// What `nasd status` says of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct DatabaseStatus {
    /// `primary`, `standby`, `starting` (it takes no connections yet), `stopped`, `unseen` (not nasd's to start, and where
    /// it would run is not seen from here), `missing` (no cluster yet) or `elsewhere` (its `pg_wal` is not on the volume).
    pub state: String,
    /// nasd starts and stops it.
    pub managed: bool,
    /// It may be started as what the node's role makes of it.
    #[serde(default)]
    pub ready: bool,
    /// Why it must be cloned before it can follow again.
    pub must_clone: Option<String>,
    /// What is kept for it although the primary removed it.
    pub held_files: u64,
    pub held_bytes: u64,
    /// The first WAL segment that it needs, whatever the timeline.
    pub needed_from: Option<String>,
    /// How often the standby was woken.
    pub woken: u64,
}

/// The database of this node.
pub struct Database {
    cluster: Cluster,
    mount: PathBuf,
    managed: bool,
    marker: PathBuf,
    events: Arc<Events>,
    /// One at a time starts, promotes or stops it.
    one: Mutex<()>,
    wake: Paced,
    woken: Arc<AtomicU64>,
    keeper: Arc<held::Keeper>,
    trouble: Trouble,
}

impl Database {
    /// The database that the configuration names, if it names one.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn new(config: &Config, events: Arc<Events>) -> std::io::Result<Option<Database>> {
        let Some(c) = &config.postgresql else { return Ok(None) };
        let cluster = cluster(c);
        let mut waker = Waker::new(cluster.clone());
        let woken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&woken);
        let wake = Paced::start("database-wake", c.notify_every, move || {
            if waker.wake() == Woke::Told {
                count.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(Some(Database {
            keeper: Arc::new(held::Keeper::new(cluster.clone(), config.volume.mount.clone(), c.hold_bytes)),
            cluster,
            mount: config.volume.mount.clone(),
            managed: c.manage,
            marker: config.node.state_dir.join(MUST_CLONE),
            events,
            one: Mutex::new(()),
            wake,
            woken,
            trouble: Trouble::default(),
        }))
    }

    /// What the volume has to hold for it.
    pub fn hold(&self) -> Arc<dyn Hold> {
        Arc::clone(&self.keeper) as Arc<dyn Hold>
    }

    /// These paths of the replica have changed: the standby is woken if they are its log.
    pub fn applied(&self, paths: &[Vec<u8>]) {
        if paths.iter().any(|p| self.keeper.is_wal(p)) {
            self.wake.ask();
        }
    }

    /// At the start of this process: a database that a killed nasd left running holds files of a mount that is dead.
    pub fn before_mount(&self) {
        if self.managed && self.linked() && self.cluster.running().is_some() {
            self.tell("PostgreSQL was left running on a mount that is gone: stopping it");
            self.stop(Stop::Immediate);
        }
    }

    fn linked(&self) -> bool {
        is_on(&self.cluster, &self.mount)
    }

    /// Why it must be cloned, if it must.
    pub fn must_clone(&self) -> Option<String> {
        std::fs::read_to_string(&self.marker).ok().map(|s| s.trim().to_owned())
    }

    /// History that the database here may have acted on was given up: it can't follow what goes on from before it.
    pub fn lost_history(&self, why: &str) {
        if !self.cluster.exists() {
            return;
        }
        let write = || {
            let dir = self.marker.parent().unwrap_or(Path::new("/"));
            let dir = nasd_volume::crashsafe::open_dir(dir)?;
            nasd_volume::crashsafe::write_atomic(&dir, MUST_CLONE, format!("{why}\n").as_bytes())
        };
        if let Err(e) = write() {
            // Started all the same it would show what no other node has.
            nasd_volume::fatal::stop(&format!("{}: {e}; check the disk", self.marker.display()));
        }
        self.tell(format!("PostgreSQL here must be cloned (`nasd pg clone`) before it follows again: {why}"));
    }

    /// Tells of it, with what it is now.
    fn tell(&self, text: impl Into<String>) {
        let clone = self.must_clone().is_some() || self.keeper.gap().is_some();
        let word = if clone { "must-clone" } else { state_of(&self.cluster, &self.mount, self.managed) };
        self.events.emit_state(Kind::Database, word, text);
    }

    /// Stops it, if it is nasd's to stop.
    pub fn halt(&self, how: Stop) {
        if self.managed && self.linked() {
            self.stop(how);
        }
    }

    fn stop(&self, how: Stop) {
        let _one = self.one.lock();
        if self.cluster.running().is_none() {
            return;
        }
        match self.cluster.stop(how, PATIENCE) {
            Ok(()) => self.tell("PostgreSQL is stopped"),
            Err(e) => self.tell(format!("stopping PostgreSQL: {e}")),
        }
    }

    /// Makes it primary, now that the mount is writable. What was done, with its time; nothing if it was primary or is
    /// not nasd's to promote.
    pub fn become_primary(&self) -> Option<(String, Duration)> {
        if !self.managed {
            return None;
        }
        let start = Instant::now();
        let did = self.act(self.seen(Role::Primary, true))?;
        Some((did, start.elapsed()))
    }

    fn seen(&self, role: Role, ready: bool) -> Seen {
        let exists = self.cluster.exists();
        Seen {
            role,
            ready,
            usable: exists && self.linked() && self.must_clone().is_none(),
            running: exists && self.cluster.running().is_some(),
            standby: self.cluster.is_standby(),
        }
    }

    /// Does the next thing; says what, or nothing if there was nothing to do or it failed.
    fn act(&self, seen: Seen) -> Option<String> {
        let _one = self.one.lock();
        let next = decide(seen);
        if next == Next::Nothing {
            return None;
        }
        match carry_out(next, &self.cluster) {
            Ok(()) => {
                self.trouble.over();
                if let Some(word) = next.makes() {
                    self.events.emit_state(Kind::Database, word, next.did());
                }
                Some(next.did().to_owned())
            }
            Err(e) => {
                let text = e.to_string();
                if self.trouble.note(&text) {
                    self.tell(text);
                }
                None
            }
        }
    }

    /// Lets go what was held for it and is not needed any more.
    fn tidy(&self, node: &Node) {
        // A primary's database removes by itself what it does not need.
        let Some(volume) = node.volume().filter(|v| v.access() == Access::ReadOnly) else { return };
        for event in self.keeper.tidy(&volume) {
            self.tell(event);
        }
    }

    /// Looks whether the database is what the node's role wants, and does something about it.
    fn tend(&self, node: &Node) {
        let Some(volume) = node.volume() else { return };
        let role = volume.state.get().role;
        if !self.managed || self.trouble.waits() || !in_its_role(node) {
            return;
        }
        // A change of role does what it wants by itself, and in its order.
        let Some(_still) = node.try_transition() else { return };
        self.act(self.seen(role, lets(&volume, role) && node.mounted()));
    }

    /// What there is to say of it.
    pub fn status(&self, node: &Node, volume: &Volume) -> DatabaseStatus {
        let held = volume.held();
        DatabaseStatus {
            state: state_of(&self.cluster, &self.mount, self.managed).to_owned(),
            managed: self.managed,
            ready: in_its_role(node) && lets(volume, volume.state.get().role) && self.must_clone().is_none(),
            must_clone: self.must_clone().or_else(|| self.keeper.gap()),
            held_files: held.len() as u64,
            held_bytes: held.iter().map(|h| h.bytes).sum(),
            needed_from: self.keeper.needed_from(),
            woken: self.woken.load(Ordering::Relaxed),
        }
    }
}

/// Whether the cluster's log is on this mount.
fn is_on(cluster: &Cluster, mount: &Path) -> bool {
    cluster.wal_link().is_ok_and(|to| to.starts_with(mount))
}

/// What there is to say of the server in one word: [`DatabaseStatus::state`].
fn state_of(cluster: &Cluster, mount: &Path, managed: bool) -> &'static str {
    let exists = cluster.exists();
    match cluster.running() {
        _ if !exists => "missing",
        _ if !is_on(cluster, mount) => "elsewhere",
        None if !managed && cluster.is_noted() => "unseen",
        None => "stopped",
        Some(server) if !server.is_ready() => "starting",
        Some(_) if cluster.is_standby() => "standby",
        Some(_) => "primary",
    }
}

/// Whether the node does what belongs to its role, and nothing else.
fn in_its_role(node: &Node) -> bool {
    *node.phase.lock() == Phase::Running && !node.stopping()
}

/// Whether the volume lets a database do what belongs to the role.
fn lets(volume: &Volume, role: Role) -> bool {
    match role {
        Role::Primary => volume.access() == Access::ReadWrite,
        // What this node wrote as primary may yet be given up for the history of whoever is primary now: a standby that
        // replayed it could not follow that any more.
        Role::Secondary => volume.access() == Access::ReadOnly && volume.state.get().led == Led::No,
    }
}

fn carry_out(next: Next, cluster: &Cluster) -> Result<(), PostgresError> {
    match next {
        Next::Nothing => Ok(()),
        Next::StartStandby => cluster.start_standby(PATIENCE),
        Next::StartPrimary => cluster.start_primary(PATIENCE),
        Next::Promote => cluster.promote(PATIENCE),
        Next::Stop => cluster.stop(Stop::Immediate, PATIENCE),
    }
}

/// The cluster of a configuration.
pub fn cluster(c: &nasd_config::Postgresql) -> Cluster {
    Cluster::new(c.data_dir.clone(), c.bin_dir.clone(), c.user.clone())
}

/// Tends the database until the node stops.
pub fn run(node: &Arc<Node>) {
    let Some(database) = &node.database else { return };
    for turn in 0_u64.. {
        if node.stopping() {
            return;
        }
        if turn.is_multiple_of(TIDY_EVERY) {
            database.tidy(node);
        }
        database.tend(node);
        std::thread::sleep(TICK);
    }
}
