//! Telling a process by a signal.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::process::Process;

/// The signals that a consumer may be told by, with their names. None that a process can't handle.
const SIGNALS: [(&str, Signal); 9] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("CONT", Signal::CONT),
    ("URG", Signal::URG),
    ("WINCH", Signal::WINCH),
];

/// The signal of this name.
pub fn signal_named(name: &str) -> Option<Signal> {
    SIGNALS.iter().find(|(n, _)| *n == name).map(|(_, signal)| *signal)
}

/// Nobody could be signalled.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each says what it is.
pub enum SignalError {
    #[error("{}: {source}; is the program running, and is this its pid file?", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} holds no process number; name the program's pid file", path.display())]
    NoNumber { path: PathBuf },
    #[error("the process {pid} of {} has ended; start the program again", path.display())]
    Ended { path: PathBuf, pid: i32 },
    #[error("the process {pid} of {} can't be signalled: {source}; run as root, or as its user", path.display())]
    Refused { path: PathBuf, pid: i32, source: Errno },
}

/// The process of a pid file.
#[derive(Debug, Default)]
pub(crate) struct Target {
    /// Its number, and which file said so when. As long as that is so this is the one that is meant: another that gets
    /// the number later is not.
    said: Option<(i32, u64, SystemTime)>,
    process: Option<Process>,
}

impl Target {
    /// Signals the process whose number is in the file now.
    pub fn signal(&mut self, pid_file: &Path, signal: Signal) -> Result<(), SignalError> {
        let path = || pid_file.to_path_buf();
        let read = || {
            let mut file = File::open(pid_file)?;
            let meta = file.metadata()?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok((text, meta.ino(), meta.modified()?))
        };
        let (text, inode, time) = read().map_err(|source| SignalError::Read { path: path(), source })?;
        let number = text.split_whitespace().next().and_then(|word| word.parse().ok());
        let pid: i32 = number.filter(|&pid| pid > 0).ok_or_else(|| SignalError::NoNumber { path: path() })?;
        if self.said != Some((pid, inode, time)) {
            self.said = Some((pid, inode, time));
            self.process = Process::find(pid, |_| true);
        }
        let ended = || SignalError::Ended { path: path(), pid };
        match self.process.as_ref().ok_or_else(ended)?.signal(signal) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(ended()),
            Err(source) => Err(SignalError::Refused { path: path(), pid, source }),
        }
    }
}
