//! Numbers with a meaning: file ids, positions, times.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The stable identity of a file: its FUSE node id and inode number, on every node of the pair.
///
/// Given once, when the file is created, kept with the file in the `trusted.nasd.id` attribute and
/// carried in every operation. The upper 24 bits are the epoch in which it was given, the lower 40
/// a counter: so an id that a crashed primary gave without logging it is never given again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct FileId(pub u64);

impl FileId {
    /// The root directory of every volume; the number that FUSE gives the root.
    pub const ROOT: FileId = FileId(1);
    /// The place, outside the volume, where a redo keeps files whose name is taken by a later file.
    pub const LIMBO: FileId = FileId(2);
    /// The place, outside the volume, of files that the primary removed and a consumer here still needs.
    pub const HELD: FileId = FileId(3);
    /// No epoch ever has this bit: files with it are this node's own, in no transaction.
    pub const LOCAL: u64 = 1 << 63;
    /// How many bits of an id count within an epoch.
    pub const COUNTER_BITS: u32 = 40;
    /// Ids that no file ever has, on any node, since epochs start at 1: for what a mount shows besides the volume.
    pub const SPECIAL: std::ops::Range<u64> = 16..1 << Self::COUNTER_BITS;

    /// Whether the file is this node's own, in no transaction.
    pub fn is_local(self) -> bool {
        self.0 & Self::LOCAL != 0
    }

    /// The first id of `epoch` (epochs start at 1, so no id collides with the root's).
    pub fn first_of_epoch(epoch: u64) -> u64 {
        epoch << Self::COUNTER_BITS
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A blake3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// The identity of a volume, given when its first node is initialised; both nodes of a pair have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct VolumeId(pub [u8; 16]);

impl VolumeId {
    /// A new random identity.
    pub fn random() -> VolumeId {
        VolumeId(*uuid::Uuid::new_v4().as_bytes())
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).fmt(f)
    }
}

/// A point in a volume's history: two nodes agree on everything up to it exactly when all three are equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    /// The epoch in which the transaction was sealed.
    pub epoch: u64,
    /// The transaction's sequence number; 0 is the empty volume.
    pub seq: u64,
    /// The transaction's chain hash.
    pub hash: Hash,
}

impl Position {
    /// The position of the empty volume, before its first transaction.
    pub fn genesis(volume: VolumeId) -> Position {
        Position { epoch: 0, seq: 0, hash: Hash(*blake3::hash(&volume.0).as_bytes()) }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({:?})", self.epoch, self.seq, self.hash)
    }
}

/// A time since the Unix epoch, as files carry it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Time {
    /// Whole seconds; negative before 1970.
    pub secs: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}
