//! The server process of a cluster.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::Signal;

use super::cluster::Cluster;
use crate::process::{self, Process};

/// A running server, known to be this cluster's.
#[derive(Clone, Debug)]
pub struct Postmaster {
    process: Arc<Process>,
    place: (u64, u64),
    started: i64,
    port: Option<u16>,
    socket_dir: Option<PathBuf>,
    status: String,
}

impl Postmaster {
    /// Its process.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The port of its socket.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Where its socket is.
    pub fn socket_dir(&self) -> Option<&Path> {
        self.socket_dir.as_deref()
    }

    /// Whether it accepted connections when it was looked at.
    pub fn is_ready(&self) -> bool {
        self.status == "ready"
    }

    /// The same, or it replays without accepting any, as `hot_standby = off` has it.
    pub(super) fn is_ready_or_replays(&self) -> bool {
        self.is_ready() || self.status == "standby"
    }

    /// When it was started, in seconds since 1970.
    pub(super) fn started(&self) -> i64 {
        self.started
    }

    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), Errno> {
        self.process.signal(signal)
    }

    /// Waits until it has ended (true) or the deadline has passed.
    pub(super) fn ended_by(&self, deadline: Instant) -> bool {
        let ended = self.process.ended_by(Some(deadline));
        if ended {
            self.process.reap();
        }
        ended
    }

    /// The process that replays: none before it has begun, nor in a primary.
    pub(super) fn startup(&self) -> Option<Process> {
        let children = process::children_of(self.pid());
        children.into_iter().find_map(|pid| {
            Process::find(pid, |pid| {
                process::parent_of(pid) == Some(self.pid())
                    && process::is_server_in(pid, self.place)
                    && process::title_of(pid).is_some_and(|title| is_startup(&title))
            })
        })
    }
}

impl Cluster {
    /// The server of this cluster if it runs. A process that has got the number of a dead server is never taken for it.
    pub fn running(&self) -> Option<Postmaster> {
        self.postmaster(|pid| Some(pid).filter(|pid| *pid > 0))
    }

    /// Whether a server has noted itself in the data directory: it runs, here or where its processes are not seen from
    /// here, or it was killed.
    pub fn is_noted(&self) -> bool {
        self.file("postmaster.pid").exists()
    }

    /// The same as [`Cluster::running`], or a single-user server, which notes its number with a minus.
    pub(super) fn in_use(&self) -> Option<Postmaster> {
        self.postmaster(i32::checked_abs)
    }

    fn postmaster(&self, number: impl FnOnce(i32) -> Option<i32>) -> Option<Postmaster> {
        let noted = std::fs::read(self.file("postmaster.pid")).ok()?;
        let place = process::place_of(self.data_dir()).ok()?;
        let mut lines = noted.split(|byte| *byte == b'\n');
        let mut text = || lines.next().and_then(|line| std::str::from_utf8(line).ok()).map(str::trim);
        let pid = number(text()?.parse().ok()?)?;
        let process = Process::find(pid, |pid| process::is_server_in(pid, place))?;
        let _data_dir = text();
        let started = text().and_then(|text| text.parse().ok()).unwrap_or_default();
        let port = text().and_then(|text| text.parse().ok());
        let socket_dir = lines.next().filter(|dir| !dir.is_empty());
        let socket_dir = socket_dir.map(|dir| PathBuf::from(OsString::from_vec(dir.to_vec())));
        // Two more: the address and the shared memory.
        let status = lines.nth(2).map(|line| String::from_utf8_lossy(line).trim().to_owned());
        Some(Postmaster {
            process: Arc::new(process),
            place,
            started,
            port,
            socket_dir,
            status: status.unwrap_or_default(),
        })
    }
}

/// Whether a process that calls itself so is the one that replays: `postgres: 15/main: startup recovering
/// 0000000100000000000000A1`, the cluster's name only if it has one. A connection of a user `startup` has its
/// database and its address in these places.
fn is_startup(title: &[u8]) -> bool {
    let Some(title) = std::str::from_utf8(title).ok().and_then(|title| title.strip_prefix("postgres: "))
    else {
        return false;
    };
    let doing = title.strip_prefix("startup").into_iter();
    let mut doing =
        doing.chain(title.match_indices(": startup").map(|(at, found)| &title[at + found.len()..]));
    doing.any(|doing| {
        doing.is_empty()
            || [" recovering ", " waiting for "]
                .iter()
                .any(|what| doing.strip_prefix(what).is_some_and(|file| super::is_wal_file(file.as_bytes())))
    })
}

#[cfg(test)]
mod tests {
    use super::is_startup;

    #[test]
    fn the_startup_process_is_known_by_its_title() {
        for title in [
            "postgres: startup",
            "postgres: startup recovering 000000010000000000000003",
            "postgres: startup waiting for 000000010000000000000003",
            "postgres: 15/main: startup recovering 0000000100000000000000A1",
            "postgres: a: startup thing: startup waiting for 00000002.history",
        ] {
            assert!(is_startup(title.as_bytes()), "{title}");
        }
        for title in [
            "",
            "startup",
            "/usr/lib/postgresql/15/bin/postgres -D /startup",
            "postgres: checkpointer",
            "postgres: 15/main: walwriter",
            "postgres: startup recovering [local] idle",
            "postgres: startup shop 10.0.0.1(5432) SELECT",
            "postgres: 15/main: startup recovering 10.0.0.1(5432) idle in transaction",
            "postgres: startups",
        ] {
            assert!(!is_startup(title.as_bytes()), "{title}");
        }
    }
}
