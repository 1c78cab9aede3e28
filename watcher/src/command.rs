//! One run of a consumer's command.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::event::Event;
use crate::notify::Notice;

/// How long a killed command may take to be gone. One that sits in a dead network filesystem cannot
/// die, and must not keep us with it.
const GRACE: Duration = Duration::from_secs(1);

/// A program of the operator's did not do what it was to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each says what it is.
pub enum CommandError {
    #[error("cannot run {}: {source}; make it an executable file, a script with #! in its first line", exec.display())]
    Start { exec: PathBuf, source: io::Error },
    #[error("cannot write the changed paths for {}: {source}; give nasd more memory or more open files", exec.display())]
    Input { exec: PathBuf, source: io::Error },
    #[error("cannot wait for {}, it was killed: {source}; raise the limit of open files (ulimit -n)", exec.display())]
    Wait { exec: PathBuf, source: io::Error },
    #[error("{} ended with {status}; see what it printed, above", exec.display())]
    Status { exec: PathBuf, status: ExitStatus },
    #[error("{} took longer than {limit:?} and was killed; let it do long work in the background", exec.display())]
    TooLong { exec: PathBuf, limit: Duration },
}

/// Runs the command and waits for it, at most until `limit` has passed; then its process group is
/// killed. What it prints goes to our standard error.
pub(crate) fn run(exec: &Path, notice: &Notice, limit: Duration) -> Result<(), CommandError> {
    let deadline = Instant::now().checked_add(limit);
    let input = input(notice).map_err(|source| CommandError::Input { exec: exec.to_path_buf(), source })?;
    let Event { id, kind, seq, epoch, time, reason, old, new, .. } = &*notice.event;
    let mut command = Command::new(exec);
    command
        .env("NASD_ID", id.to_string())
        .env("NASD_KIND", kind.name())
        .env("NASD_SEQ", seq.to_string())
        .env("NASD_EPOCH", epoch.to_string())
        .env("NASD_TIMESTAMP", time)
        .env("NASD_REASON", reason)
        .env("NASD_OLD", old.as_deref().unwrap_or_default())
        .env("NASD_NEW", new.as_deref().unwrap_or_default())
        .stdin(input);
    wait_for(exec, &mut command, limit, deadline)
}

/// Runs a program with nothing on its standard input and these variables in its environment, and waits for it, at most
/// until `limit` has passed; then its process group is killed. What it prints goes to our standard error.
///
/// # Errors
/// When it can't be run, takes too long, or ends with anything but 0.
pub fn run_program(exec: &Path, env: &[(&str, String)], limit: Duration) -> Result<(), CommandError> {
    let mut command = Command::new(exec);
    command.envs(env.iter().map(|(k, v)| (k, v))).stdin(Stdio::null());
    wait_for(exec, &mut command, limit, Instant::now().checked_add(limit))
}

fn wait_for(
    exec: &Path,
    command: &mut Command,
    limit: Duration,
    deadline: Option<Instant>,
) -> Result<(), CommandError> {
    let mut child = command
        .stdout(io::stderr())
        .process_group(0)
        .spawn()
        .map_err(|source| CommandError::Start { exec: exec.to_path_buf(), source })?;
    // Until it is waited for the number of the process is its own, and so is that of its group.
    let pid = Pid::from_child(&child);
    let cannot_wait = |source: io::Error| CommandError::Wait { exec: exec.to_path_buf(), source };
    let ended = pidfd_open(pid, PidfdFlags::empty()).and_then(|fd| {
        let ended = ended(&fd, deadline)?;
        if !ended {
            kill(pid);
            reap(&mut child, &fd);
        }
        Ok(ended)
    });
    match ended {
        Ok(true) => {
            let status = child.wait().map_err(cannot_wait)?;
            if status.success() {
                Ok(())
            } else {
                Err(CommandError::Status { exec: exec.to_path_buf(), status })
            }
        }
        Ok(false) => Err(CommandError::TooLong { exec: exec.to_path_buf(), limit }),
        Err(e) => {
            kill(pid);
            child.wait().map_err(cannot_wait)?;
            Err(cannot_wait(e.into()))
        }
    }
}

/// The paths as a file in memory: unlike a pipe it is there as a whole, so that a command that
/// reads late, slowly or not at all neither blocks us nor sends us a signal.
fn input(notice: &Notice) -> io::Result<Stdio> {
    let create = |flags| memfd_create("nasd-notify", flags);
    let fd = match create(MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3.
        Err(Errno::INVAL) => create(MemfdFlags::CLOEXEC),
        other => other,
    }?;
    let mut out = BufWriter::with_capacity(64 << 10, File::from(fd));
    notice.write_paths(&mut out)?;
    let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.flush()?;
    file.rewind()?;
    Ok(Stdio::from(file))
}

/// Waits until the process has ended (true) or the deadline has passed.
fn ended(process: &OwnedFd, deadline: Option<Instant>) -> Result<bool, Errno> {
    loop {
        let timeout = match deadline {
            Some(at) => Timespec::try_from(at.saturating_duration_since(Instant::now())).ok(),
            None => None,
        };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

fn kill(group: Pid) {
    // Fails only when it is gone already.
    let _ = kill_process_group(group, Signal::KILL);
}

fn reap(child: &mut Child, process: &OwnedFd) {
    if let Ok(true) = ended(process, Some(Instant::now() + GRACE)) {
        // It has ended, so this does not block; its status is our own signal.
        let _ = child.wait();
    }
}
