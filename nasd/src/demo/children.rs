//! Every process that this one has started, and whatever those leave behind.
//!
//! PostgreSQL's server outlives the nasd that starts it, and has processes of its own. As the *subreaper* this process
//! becomes the parent of all that descends from it and has lost its own, so that none escapes, and none that is another's
//! is taken for one.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use std::fs;
use std::time::{Duration, Instant};

/// How long killed processes may take to end.
const LIMIT: Duration = Duration::from_secs(20);

/// The children from now on.
pub struct Children {
    /// A shell may have had some before it became this process.
    not_ours: Vec<Pid>,
}

impl Children {
    /// From here on what descends from this process never gets another parent.
    pub fn keep() -> Result<Children> {
        set_child_subreaper(Some(getpid())).context("can't become the parent of orphans (prctl)")?;
        Ok(Children { not_ours: all() })
    }

    /// Kills them, and what becomes one by that. Nobody starts any meanwhile. Returns those that don't end.
    pub fn kill(&self) -> Vec<Pid> {
        let end = Instant::now() + LIMIT;
        loop {
            let mut left = all();
            left.retain(|pid| !self.not_ours.contains(pid));
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            for &pid in &left {
                // It can only be gone; and another thread may have waited for it.
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn all() -> Vec<Pid> {
    let me = getpid();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|e| Pid::from_raw(e.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| parent(*pid) == Some(me)).collect()
}

fn parent(pid: Pid) -> Option<Pid> {
    let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name before it may hold anything, blanks and parentheses too.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let parent = std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace().nth(1)?;
    Pid::from_raw(parent.parse().ok()?)
}
