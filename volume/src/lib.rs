//! What a volume is on disk: the data tree, the operations on it, the transaction file, the log directory.
//!
//! Nothing here knows FUSE, the network or a database.

pub mod apply;
pub mod changes;
pub mod commit;
pub mod compare;
pub mod crashsafe;
pub mod data;
pub mod diff;
pub mod errors;
pub mod fatal;
pub mod fs;
pub mod held;
pub mod histogram;
pub mod ids;
pub mod log;
pub mod op;
pub mod recover;
mod slot;
pub mod state;
pub mod tree;
pub mod txn;
pub mod volume;

pub use commit::{CommitDone, Replicator};
pub use data::Attr;
pub use errors::FsError;
pub use fs::{Caller, DirEntry, OpenFile, SetAttr, SetTime, StatFs};
pub use held::{HeldFile, Hold};
pub use ids::{FileId, Hash, Position, Time, VolumeId};
pub use op::Kind;
pub use state::Role;
pub use volume::{Access, KernelCache, Volume};
