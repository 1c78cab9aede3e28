//! Telling a standby that there is more WAL.
//!
//! A standby without a primary to connect to looks into `pg_wal`, sleeps `wal_retrieve_retry_interval`, and looks again.
//! A `SIGHUP` to its startup process, and to no other, ends that sleep at once; besides it reads its configuration again,
//! which changes nothing.

use rustix::io::Errno;
use rustix::process::Signal;

use super::cluster::Cluster;
use crate::process::Process;

/// Wakes the process of a standby that replays.
#[derive(Debug)]
pub struct Waker {
    cluster: Cluster,
    /// It stays the one that it is for as long as it lives.
    startup: Option<Process>,
}

/// What came of a wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woke {
    /// The process that replays was told.
    Told,
    /// PostgreSQL runs, and nothing in it replays: it is a primary, or does not replay yet. What is there when it
    /// begins it reads unasked.
    NotReplaying,
    /// PostgreSQL does not run.
    NotRunning,
    /// It may not be told; nasd must be root, or the database's user.
    Refused(Errno),
}

impl Waker {
    /// For this cluster, whether it runs or not.
    pub fn new(cluster: Cluster) -> Waker {
        Waker { cluster, startup: None }
    }

    /// Has the standby look for WAL now.
    pub fn wake(&mut self) -> Woke {
        if let Some(startup) = &self.startup {
            match startup.signal(Signal::HUP) {
                Ok(()) => return Woke::Told,
                Err(Errno::SRCH) => self.startup = None,
                Err(e) => return Woke::Refused(e),
            }
        }
        let Some(postmaster) = self.cluster.running() else { return Woke::NotRunning };
        let Some(startup) = postmaster.startup() else { return Woke::NotReplaying };
        match startup.signal(Signal::HUP) {
            Ok(()) => {
                self.startup = Some(startup);
                Woke::Told
            }
            Err(Errno::SRCH) => Woke::NotReplaying,
            Err(e) => Woke::Refused(e),
        }
    }
}
