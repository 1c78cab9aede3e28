//! The node's `state` file: what must survive a crash and is not in the log.
//!
//! One line `nasd-state 1 <blake3 of the rest>` and a JSON object; replaced atomically.

use crate::crashsafe;
use crate::ids::{Position, VolumeId};
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Which side a node is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its mount is writable.
    Primary,
    /// Its mount is read-only and follows.
    Secondary,
}

/// What the state file says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// The volume; none while this node waits for its first full copy.
    pub volume: Option<VolumeId>,
    /// The role it last had. Written before the node acts in a new role.
    pub role: Role,
    /// The highest epoch that this node took part in or promised to. Never goes down.
    pub epoch: u64,
    /// Everything up to here is durable in `data/`: a redo starts behind it.
    pub checkpoint: Position,
    /// Stopped in order, with a checkpoint at the end: `data/` holds nothing that is not in the log.
    pub clean: bool,
    /// As a secondary: the primary has said that it acknowledges nothing without this node.
    pub in_sync: bool,
    /// `data/` or the log departs from the common history (a rewind, a copy under way): it is not shown to
    /// anybody and not promoted before a comparison with the primary has finished.
    pub needs_copy: bool,
    /// `data/` may hold changes from before this epoch that no transaction holds: an unclean stop, and no peer to
    /// compare with. A peer that has not been in this epoch is compared before it follows. 0: none.
    #[serde(default)]
    pub uncompared_epoch: u64,
    /// As the primary: the mount, in the boot, in which `data/` has had every change before the log had it (see
    /// [`mount_of`]). In that mount it lacks nothing after this process was killed, and a redo would mix what was
    /// synced with what came after it. None before this node has served as primary.
    #[serde(default)]
    pub whole_in: Option<String>,
    /// Whose history `data/` shows: see [`Led`].
    #[serde(default)]
    pub led: Led,
    /// As the primary: peers without which transactions have been acknowledged. They must not be promoted.
    pub out_of_set: BTreeSet<String>,
}

/// How a node acknowledged when it was last primary, as long as it has followed nobody since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Led {
    /// It follows.
    #[default]
    No,
    /// Nothing without the peers in the set having it on disk.
    Durably,
    /// Before a peer had it on disk.
    Weakly,
}

/// Names the mount that `dir` is in, in this boot: as long as it is the same, what was written there is there,
/// whoever was killed. `None` where the kernel can't tell (before Linux 6.8).
pub fn mount_of(dir: &Path) -> Option<String> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    // STATX_MNT_ID_UNIQUE: never used again, unlike the numbers in /proc/self/mountinfo.
    let unique = StatxFlags::from_bits_retain(0x4000);
    let st = statx(CWD, dir, AtFlags::empty(), unique).ok().filter(|st| st.stx_mask & unique.bits() != 0)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{} {}", boot.trim(), st.stx_mnt_id))
}

/// The state file can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// I/O.
    #[error("{0}: {1}; check the disk and its permissions")]
    Io(PathBuf, #[source] Errno),
    /// Damaged.
    #[error(
        "{0}: {1}; this node's role and epoch are not known. Move the state directory away and start this node \
         as a secondary: its peer gives it a full copy"
    )]
    Corrupt(PathBuf, String),
}

/// The state with its file. Readers get a copy; a change is durable before anybody sees it.
#[derive(Debug)]
pub struct StateFile {
    dir: OwnedFd,
    path: PathBuf,
    now: Mutex<State>,
}

const NAME: &str = "state";

impl StateFile {
    /// Reads the state of `state_dir`; `None` when there is none yet.
    pub fn open(state_dir: &Path) -> Result<Option<StateFile>, StateError> {
        let path = state_dir.join(NAME);
        let io = |e| StateError::Io(path.clone(), e);
        let dir = crashsafe::open_dir(state_dir).map_err(io)?;
        let bytes = match crashsafe::read_file(&dir, NAME) {
            Ok(b) => b,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(io(e)),
        };
        let now = decode(&bytes).map_err(|e| StateError::Corrupt(path.clone(), e))?;
        Ok(Some(StateFile { dir, path, now: Mutex::new(now) }))
    }

    /// Creates the state of a new node.
    pub fn create(state_dir: &Path, state: State) -> Result<StateFile, StateError> {
        let path = state_dir.join(NAME);
        let dir = crashsafe::open_dir(state_dir).map_err(|e| StateError::Io(path.clone(), e))?;
        let file = StateFile { dir, path, now: Mutex::new(state) };
        file.write(&file.get())?;
        Ok(file)
    }

    /// The state as it is.
    pub fn get(&self) -> State {
        self.now.lock().clone()
    }

    /// Changes the state; durable when it returns. Nothing is written when nothing changes.
    pub fn update(&self, change: impl FnOnce(&mut State)) -> Result<(), StateError> {
        let mut now = self.now.lock();
        let mut next = now.clone();
        change(&mut next);
        debug_assert!(next.epoch >= now.epoch, "an epoch never goes down");
        if next != *now {
            self.write(&next)?;
            *now = next;
        }
        Ok(())
    }

    fn write(&self, state: &State) -> Result<(), StateError> {
        let corrupt = |e: serde_json::Error| StateError::Corrupt(self.path.clone(), e.to_string());
        let body = serde_json::to_string_pretty(state).map_err(corrupt)? + "\n";
        let text = format!("nasd-state 1 {}\n{body}", blake3::hash(body.as_bytes()).to_hex());
        crashsafe::write_atomic(&self.dir, NAME, text.as_bytes())
            .map_err(|e| StateError::Io(self.path.clone(), e))
    }
}

fn decode(bytes: &[u8]) -> Result<State, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let (head, body) = text.split_once('\n').ok_or("it has no first line")?;
    let sum = head
        .strip_prefix("nasd-state 1 ")
        .ok_or("its first line is not `nasd-state 1 …`; it may come from a newer nasd")?;
    if blake3::hash(body.as_bytes()).to_hex().as_str() != sum {
        return Err("its checksum does not match".to_owned());
    }
    serde_json::from_str(body).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_byte_is_found() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let volume = VolumeId::random();
        let state = State {
            volume: Some(volume),
            role: Role::Primary,
            epoch: 3,
            checkpoint: Position::genesis(volume),
            clean: false,
            in_sync: false,
            needs_copy: false,
            uncompared_epoch: 0,
            whole_in: None,
            led: Led::Durably,
            out_of_set: BTreeSet::from(["b".to_owned()]),
        };
        StateFile::create(dir.path(), state.clone())?;
        let path = dir.path().join(NAME);
        let good = std::fs::read(&path)?;
        let read = StateFile::open(dir.path())?.ok_or("no state")?;
        assert_eq!(read.get(), state);
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1;
            std::fs::write(&path, &bad)?;
            assert!(matches!(StateFile::open(dir.path()), Err(StateError::Corrupt(..))), "byte {i}");
        }
        Ok(())
    }
}
