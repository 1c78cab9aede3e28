//! Consumers that are told by a command: of each transaction, or every so often, and of the paths
//! that changed.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use parking_lot::{Condvar, Mutex};
use tracing::{error, warn};

use crate::command;
use crate::counters::Counter;
use crate::pending::Pending;

/// How long a command may run before it is killed.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// One consumer: which paths it wants to hear of, how often at most, and by what command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotifyRule {
    /// Globs relative to the root of the volume; `*` does not match a slash, `**` does.
    pub paths: Vec<String>,
    /// Zero: at each transaction; else at most this often, the first after a quiet spell at once.
    pub every: Duration,
    /// The command.
    pub exec: PathBuf,
}

/// A transaction that the replica shows now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its sequence number.
    pub seq: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Its timestamp, as in the name of its file.
    pub timestamp: String,
    /// The paths that it changed, relative to the root of the volume; they need not be UTF-8.
    pub paths: Vec<Vec<u8>>,
}

/// Why a rule cannot work.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// No paths.
    #[error("the rule of {} names no paths; give paths = [\"**\"] for everything", exec.display())]
    NoPaths {
        /// The rule's command.
        exec: PathBuf,
    },
    /// A wrong glob.
    #[error("the pattern {pattern:?} of {} is wrong: {source}; write for example \"pg_wal/**\"", exec.display())]
    Pattern {
        /// The rule's command.
        exec: PathBuf,
        /// The glob as it was given.
        pattern: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// The globs are too much together.
    #[error("the patterns of {} are too many or too large: {source}; use fewer", exec.display())]
    Patterns {
        /// The rule's command.
        exec: PathBuf,
        /// What is wrong with them.
        source: globset::Error,
    },
    /// No thread for the rule.
    #[error("cannot start a thread for {}: {source}; raise the limit of processes (ulimit -u)", exec.display())]
    Thread {
        /// The rule's command.
        exec: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a rule has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NotifyStats {
    /// Commands that ended with exit code 0.
    pub sent: u64,
    /// Commands that could not be run, ended otherwise, or were killed.
    pub failed: u64,
    /// Changed paths that were not listed: more than 10,000 at once, or with a line break in them.
    pub left_out: u64,
}

/// The consumers; dropping it stops it too.
pub struct Notifier {
    workers: Vec<Worker>,
}

struct Worker {
    rule: Arc<Rule>,
    thread: Option<JoinHandle<()>>,
}

struct Rule {
    globs: GlobSet,
    every: Duration,
    exec: PathBuf,
    limit: Duration,
    slot: Mutex<Slot>,
    bell: Condvar,
    sent: Counter,
    failed: Counter,
    left_out: Counter,
}

#[derive(Default)]
struct Slot {
    pending: Option<Pending>,
    /// Set by stop: what is pending is told at once, and all is over then.
    stop_by: Option<Instant>,
}

impl Notifier {
    /// Starts one worker a rule, with the usual [time limit](TIME_LIMIT) for the commands.
    pub fn new(rules: Vec<NotifyRule>) -> Result<Notifier, NotifyError> {
        Notifier::with_time_limit(rules, TIME_LIMIT)
    }

    /// The same with another time limit.
    pub fn with_time_limit(rules: Vec<NotifyRule>, limit: Duration) -> Result<Notifier, NotifyError> {
        // A rule that is wrong further down drops, and so ends, the workers made before it.
        let mut notifier = Notifier { workers: Vec::new() };
        for rule in rules {
            notifier.workers.push(Worker::start(rule, limit)?);
        }
        Ok(notifier)
    }

    /// Tells whom it concerns, some time; never waits for a consumer.
    pub fn applied(&self, applied: &Applied) {
        for worker in &self.workers {
            worker.rule.applied(applied);
        }
    }

    /// What each rule has done so far, in the order of the rules.
    pub fn stats(&self) -> Vec<NotifyStats> {
        let stats = |worker: &Worker| NotifyStats {
            sent: worker.rule.sent.get(),
            failed: worker.rule.failed.get(),
            left_out: worker.rule.left_out.get(),
        };
        self.workers.iter().map(stats).collect()
    }

    /// Ends the workers. Running commands are waited for and what is pending is told, all within
    /// one time limit.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        for Worker { rule, .. } in &self.workers {
            let now = Instant::now();
            rule.slot.lock().stop_by = Some(now.checked_add(rule.limit).unwrap_or(now));
            rule.bell.notify_one();
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                let exec = worker.rule.exec.display();
                error!(%exec, "the thread of a consumer panicked; restart nasd and report this");
            }
        }
    }
}

impl Worker {
    fn start(rule: NotifyRule, limit: Duration) -> Result<Worker, NotifyError> {
        let NotifyRule { paths, every, exec } = rule;
        let rule = Arc::new(Rule {
            globs: globs(&paths, &exec)?,
            every,
            exec,
            limit,
            slot: Mutex::default(),
            bell: Condvar::new(),
            sent: Counter::default(),
            failed: Counter::default(),
            left_out: Counter::default(),
        });
        let working = rule.clone();
        let thread = thread::Builder::new()
            .name("nasd-notify".to_owned())
            .spawn(move || working.work())
            .map_err(|source| NotifyError::Thread { exec: rule.exec.clone(), source })?;
        Ok(Worker { rule, thread: Some(thread) })
    }
}

fn globs(patterns: &[String], exec: &std::path::Path) -> Result<GlobSet, NotifyError> {
    if patterns.is_empty() {
        return Err(NotifyError::NoPaths { exec: exec.to_path_buf() });
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        set.add(glob.map_err(|source| NotifyError::Pattern {
            exec: exec.to_path_buf(),
            pattern: pattern.clone(),
            source,
        })?);
    }
    set.build().map_err(|source| NotifyError::Patterns { exec: exec.to_path_buf(), source })
}

impl Rule {
    fn applied(&self, applied: &Applied) {
        // Matching is done before the slot is locked; the worker holds the lock only to look at it.
        let matches = |path: &&Vec<u8>| self.globs.is_match(OsStr::from_bytes(path));
        let paths: Vec<&Vec<u8>> = applied.paths.iter().filter(matches).collect();
        if paths.is_empty() {
            return;
        }
        let left_out = Pending::add(&mut self.slot.lock().pending, applied, &paths);
        self.bell.notify_one();
        self.left_out.add(left_out);
    }

    fn work(&self) {
        let mut not_before = None;
        while let Some((pending, limit)) = self.next(not_before) {
            not_before = Instant::now().checked_add(self.every);
            match command::run(&self.exec, &pending, limit) {
                Ok(()) => self.sent.add(1),
                Err(e) => {
                    self.failed.add(1);
                    warn!(seq = pending.seq, "a consumer was not told: {e}");
                }
            }
        }
    }

    /// Waits for the next thing to tell, and gives it with the time there is for it.
    fn next(&self, not_before: Option<Instant>) -> Option<(Pending, Duration)> {
        let mut slot = self.slot.lock();
        loop {
            let now = Instant::now();
            if let Some(stop_by) = slot.stop_by {
                let pending = slot.pending.take()?;
                let left = stop_by.saturating_duration_since(now);
                if left.is_zero() {
                    self.failed.add(1);
                    let exec = self.exec.display();
                    warn!(seq = pending.seq, "no time left to tell {exec} of the last changes");
                    return None;
                }
                return Some((pending, left));
            }
            match not_before {
                _ if slot.pending.is_none() => self.bell.wait(&mut slot),
                Some(at) if now < at => {
                    self.bell.wait_until(&mut slot, at);
                }
                _ => return slot.pending.take().map(|pending| (pending, self.limit)),
            }
        }
    }
}
