//! What nasd knows of PostgreSQL, without any policy: which WAL a cluster needs, how it is started, told of new WAL,
//! promoted and stopped, and how its `pg_wal` gets onto a volume and off it.
//!
//! `pg_wal` is a symbolic link to a directory on the volume. On the secondary that directory is read-only, and the
//! standby is one by `standby.signal` alone: it connects to nobody and has nothing restored, it reads the directory.

mod adopt;
mod backup_label;
mod clone;
mod cluster;
mod conf;
mod control;
mod copy;
mod debian;
mod error;
mod files;
mod lsn;
mod postmaster;
mod program;
mod server;
mod settings;
mod sql;
mod waker;
mod wal;

pub use adopt::{adopt, release};
pub use clone::{CloneOptions, clone_from, copied};
pub use cluster::Cluster;
pub use control::Control;
pub use error::PostgresError;
pub use lsn::{Lsn, LsnError};
pub use postmaster::Postmaster;
pub use server::Stop;
pub use settings::settings;
pub use waker::{Waker, Woke};
pub use wal::{Need, is_wal_file, segment_of};
