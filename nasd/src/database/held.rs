//! WAL that the primary removed and the standby here still needs.

use super::WAL_DIR;
use nasd_volume::{HeldFile, Hold, Volume};
use nasd_watcher::postgresql::{Cluster, Need, is_wal_file, segment_of};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a file stays when nobody needs it any more: the standby removes what is behind its restartpoint itself, and
/// logs what it can't find.
const GRACE: Duration = Duration::from_secs(30);

/// Decides what is held, and lets go.
pub struct Keeper {
    cluster: Cluster,
    mount: PathBuf,
    limit: u64,
    /// Since when files have not been needed.
    idle: Mutex<HashMap<Vec<u8>, Instant>>,
    /// What is missing between what the standby needs and what there is.
    gap: Mutex<Option<String>>,
    /// The limit was reached, and this was told.
    full: Mutex<bool>,
}

/// A segment as its file's name has it, without the timeline.
fn digits(segment: u64, bytes: u64) -> String {
    let per_log = (1 << 32) / bytes.max(1);
    format!("{:08X}{:08X}", segment / per_log, segment % per_log)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl Keeper {
    pub fn new(cluster: Cluster, mount: PathBuf, limit: u64) -> Keeper {
        Keeper {
            cluster,
            mount,
            limit,
            idle: Mutex::default(),
            gap: Mutex::default(),
            full: Mutex::default(),
        }
    }

    /// The log's directory, as a user of the mount sees it.
    fn dir(&self) -> Vec<u8> {
        use std::os::unix::ffi::OsStrExt;
        let link = self.cluster.wal_link().ok();
        let below = link.as_deref().and_then(|to| to.strip_prefix(&self.mount).ok());
        below.map_or(WAL_DIR.as_bytes(), |p| p.as_os_str().as_bytes()).to_vec()
    }

    /// Whether the path is a file of the database's log.
    pub fn is_wal(&self, path: &[u8]) -> bool {
        let (dir, name) = split(path);
        is_wal_file(name) && dir == self.dir()
    }

    fn need(&self) -> Option<Need> {
        match self.cluster.needed_from() {
            Ok(need) => need,
            // Everything, until it can be read again.
            Err(e) => {
                tracing::debug!("what PostgreSQL needs: {e}");
                None
            }
        }
    }

    /// The first segment that the database needs, whatever the timeline: the last sixteen digits of its name.
    pub fn needed_from(&self) -> Option<String> {
        self.need().map(|need| digits(need.segment, need.segment_bytes))
    }

    /// What is missing, as last seen.
    pub fn gap(&self) -> Option<String> {
        self.gap.lock().clone()
    }

    /// Lets go what is not needed any more, or is too much; returns what there is to tell.
    pub fn tidy(&self, volume: &Volume) -> Vec<String> {
        let mut tell = Vec::new();
        let need = self.need();
        let now = Instant::now();
        let mut idle = self.idle.lock();
        let mut kept: Vec<(HeldFile, bool)> = Vec::new();
        let all = volume.held();
        idle.retain(|path, _| all.iter().any(|h| h.path.as_deref() == Some(path)));
        for held in all {
            let needed = match (&held.path, &need) {
                (None, _) => false,
                (Some(path), Some(need)) => need.needs(split(path).1),
                (Some(_), None) => true,
            };
            let since = match &held.path {
                Some(path) if !needed => *idle.entry(path.clone()).or_insert(now),
                Some(path) => {
                    idle.remove(path);
                    now
                }
                None => now,
            };
            if held.path.is_none() || (!needed && now - since > GRACE) {
                let_go(volume, &held);
            } else {
                kept.push((held, needed));
            }
        }
        // The oldest first: names of segments grow with the log, and no other names are held in number.
        let mut bytes: u64 = kept.iter().map(|(h, _)| h.bytes).sum();
        let over = bytes > self.limit;
        for (held, needed) in kept {
            if bytes <= self.limit {
                break;
            }
            bytes -= held.bytes;
            let_go(volume, &held);
            let path = String::from_utf8_lossy(held.path.as_deref().unwrap_or_default()).into_owned();
            if needed && need.is_some() {
                tell.push(format!(
                    "hold_bytes is reached: let go {path}, which the standby here still needed; it must be cloned \
                     (`nasd pg clone`)"
                ));
            } else if needed && !*self.full.lock() {
                tell.push(format!(
                    "hold_bytes is reached while there is no cluster in {} yet: the oldest held WAL goes",
                    self.cluster.data_dir().display()
                ));
            }
        }
        *self.full.lock() = over;
        let gap = need.as_ref().and_then(|need| missing(volume, &self.dir(), need));
        let mut last = self.gap.lock();
        if let (Some(gap), None) = (&gap, &*last) {
            tell.push(format!("{gap}: the standby here must be cloned (`nasd pg clone`)"));
        }
        *last = gap;
        tell
    }
}

fn let_go(volume: &Volume, held: &HeldFile) {
    if let Err(e) = volume.let_go(held) {
        tracing::warn!("letting go a held file: {e}");
    }
}

/// Which segment is missing between the first one needed and the last one there, if one is.
fn missing(volume: &Volume, dir: &[u8], need: &Need) -> Option<String> {
    let names = volume.names_in(dir)?;
    let there: BTreeSet<u64> = names.iter().filter_map(|n| segment_of(n, need.segment_bytes)).collect();
    let last = there.last().copied().unwrap_or(0).max(need.segment);
    let gap = (need.segment..=last).find(|n| !there.contains(n))?;
    Some(format!("WAL segment {}, which the standby needs, is missing", digits(gap, need.segment_bytes)))
}

impl Hold for Keeper {
    fn needs(&self, path: &[u8]) -> bool {
        self.is_wal(path) && self.need().is_none_or(|need| need.needs(split(path).1))
    }
}
