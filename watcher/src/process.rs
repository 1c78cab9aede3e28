//! Processes, told apart by more than their number, which the next one may have.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

/// A process, whose number can't become another's while we hold this.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    fd: OwnedFd,
}

impl Process {
    /// The process of this number, if it is the one that is looked for.
    ///
    /// The descriptor is opened before the look. Whoever is still alive after it is the one that was looked at.
    pub fn find(pid: i32, is_it: impl FnOnce(i32) -> bool) -> Option<Process> {
        let process = Process::open(pid)?;
        (is_it(pid) && !process.ended_by(Some(Instant::now()))).then_some(process)
    }

    /// One that has ended, and whose parent has not yet heard of it.
    pub fn find_dead(pid: i32) -> Option<Process> {
        Process::open(pid).filter(|process| process.ended_by(Some(Instant::now())))
    }

    fn open(pid: i32) -> Option<Process> {
        // A file may hold any number; 0 and those below are no process.
        let number = (pid > 0).then(|| Pid::from_raw(pid)).flatten()?;
        Some(Process { pid, fd: pidfd_open(number, PidfdFlags::empty()).ok()? })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// `ESRCH`: it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        pidfd_send_signal(&self.fd, signal)
    }

    /// Waits until it has ended (true) or the deadline has passed.
    pub fn ended_by(&self, deadline: Option<Instant>) -> bool {
        wait_any(&[self.fd.as_fd()], deadline)
    }

    /// Lets go of the number of one that has ended. Daemons become children of process 1, which nasd is in a
    /// container, and there nobody else does. Any other's child is not ours to wait for, and the kernel says so.
    pub fn reap(&self) {
        let _ = waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of the processes has ended (true) or the deadline has passed.
pub(crate) fn wait_any(processes: &[BorrowedFd<'_>], deadline: Option<Instant>) -> bool {
    let mut fds: Vec<_> = processes.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    loop {
        let rest = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = rest.and_then(|rest| Timespec::try_from(rest).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            // Only a lack of kernel memory: it is not known to have ended.
            Err(_) => return false,
        }
    }
}

/// Whether it is a server process of the cluster whose data directory is this device and inode: the programs
/// `postgres` work there, and whoever else does, as an administrator's shell, is not `postgres`.
pub(crate) fn is_server_in(pid: i32, data_dir: (u64, u64)) -> bool {
    place_of(&proc_file(pid, "cwd")).is_ok_and(|place| place == data_dir)
        && fs::read_link(proc_file(pid, "exe")).is_ok_and(|exe| {
            // After an upgrade of the package the file of a running server is another.
            let name = exe.file_name().unwrap_or_default().as_bytes();
            matches!(name, b"postgres" | b"postgres (deleted)")
        })
}

/// What tells a directory from all others.
pub(crate) fn place_of(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// The processes of which this one is the parent.
pub(crate) fn children_of(parent: i32) -> Vec<i32> {
    match fs::read_to_string(proc_file(parent, &format!("task/{parent}/children"))) {
        Ok(children) => children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        // A kernel without CONFIG_PROC_CHILDREN.
        Err(_) => all().filter(|pid| parent_of(*pid) == Some(parent)).collect(),
    }
}

/// All processes.
pub(crate) fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The number of its parent.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read(proc_file(pid, "stat")).ok()?;
    // The name before it may hold anything, blanks and parentheses too.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// What it calls itself.
pub(crate) fn title_of(pid: i32) -> Option<Vec<u8>> {
    let line = fs::read(proc_file(pid, "cmdline")).ok()?;
    let title = line.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(title.trim_ascii_end().to_vec())
}

fn proc_file(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn own() -> i32 {
        std::process::id().cast_signed()
    }

    #[test]
    fn a_process_is_found_by_what_it_is() {
        assert!(Process::find(own(), |pid| parent_of(pid).is_some()).is_some());
        assert!(Process::find(own(), |_| false).is_none());
        assert!(Process::find(0, |_| true).is_none());
        assert!(Process::find(-1, |_| true).is_none());
    }

    #[test]
    fn one_that_ended_during_the_look_is_none() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id().cast_signed();
        let found = Process::find(pid, |_| {
            child.kill().unwrap();
            child.wait().unwrap();
            true
        });
        assert!(found.is_none());
    }

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        // Other tests have children of other threads; those are not all in the list of the first thread.
        let pid = child.id().cast_signed();
        assert_eq!(parent_of(pid), Some(own()));
        assert!(all().any(|other| other == pid));
        assert!(title_of(pid).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
