//! The watcher of the log directory: each transaction file is applied once, in order, soon after it
//! appeared.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tracing::{debug, error, info, warn};
use walkdir::WalkDir;

use crate::counters::Counter;
use crate::known::Known;
use crate::name::parse_name;
use crate::source::Source;
use crate::wake::Wake;

/// Names kept in memory, some 100 bytes each.
const KNOWN: usize = 65_536;

/// A file that is missing while later ones are there mostly comes at once; then it is looked for.
const GAP: Duration = Duration::from_millis(100);

/// A retry comes after the first of these, then twice as late each time, up to the second.
const RETRY: Duration = Duration::from_millis(1);
const RETRY_MOST: Duration = Duration::from_millis(500);

/// When the directory cannot be watched or read we try again so often.
const BROKEN: Duration = Duration::from_secs(1);

/// In a long series of applying, events are taken out of the kernel's queue this often.
const COLLECT_EVERY: u32 = 64;

/// What the owner of the replica does for its watcher.
pub trait Apply: Send + 'static {
    /// The next sequence number to apply; None while this node does not follow (it is primary, or
    /// is being copied to). After a None the watcher sleeps until it is [poked](Watcher::poke).
    fn wanted(&mut self) -> Option<u64>;

    /// Verifies and applies the transaction file; called in order, exactly for `wanted()`.
    fn apply(&mut self, path: &Path) -> Result<(), ApplyError>;
}

/// Why a transaction file was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Try again soon: the file vanished or is not there yet (renamed or pruned meanwhile).
    #[error("{0}; it is tried again by itself")]
    Retry(String),
    /// Stop applying until poked (the owner has marked the replica damaged).
    #[error("{0}; nothing more is applied until the replica is repaired")]
    Halt(String),
}

/// How the watcher learns of new files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The kernel tells.
    Inotify,
    /// Look this often, at most once a millisecond; for filesystems where inotify does not work.
    Poll(Duration),
}

/// Why the log directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The directory is missing, no directory, or forbidden.
    #[error("cannot watch {}: {source}; create the directory and let nasd read it", dir.display())]
    Directory {
        /// The log directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No inotify watch is left for this user.
    #[error("cannot watch {}: the limit of inotify watches is reached; raise fs.inotify.max_user_watches or set mode = \"poll\" in [watcher]", dir.display())]
    Watches {
        /// The log directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No inotify instance or file descriptor is left for this user.
    #[error("cannot watch {}: the limit of inotify instances or of open files is reached; raise fs.inotify.max_user_instances or the limit of open files (ulimit -n), or set mode = \"poll\" in [watcher]", dir.display())]
    Instances {
        /// The log directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Inotify does not work here.
    #[error("cannot watch {} with inotify: {source}; set mode = \"poll\" in [watcher]", dir.display())]
    Inotify {
        /// The log directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread or its wake-up could not be made.
    #[error("cannot start the watcher of {}: {source}; raise the limits of processes and of open files (ulimit -u, ulimit -n)", dir.display())]
    Start {
        /// The log directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a watcher has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WatchStats {
    /// How often the kernel's queue of events was full and some were lost.
    pub overflows: u64,
    /// How often the directory was read as a whole.
    pub rescans: u64,
    /// Transaction files applied.
    pub applied: u64,
    /// Events of files, foreign ones too.
    pub events: u64,
    /// How often applying asked to be tried again.
    pub retries: u64,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    overflows: Counter,
    rescans: Counter,
    applied: Counter,
    events: Counter,
    retries: Counter,
}

/// A running watcher; dropping it stops it too.
pub struct Watcher {
    shared: Arc<Shared>,
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

/// Starts to watch `dir`. When this returns, a file that appears is not missed any more.
pub fn spawn(dir: PathBuf, mode: Mode, apply: Box<dyn Apply>) -> Result<Watcher, WatchError> {
    let cannot_start = |dir: &Path, source: io::Error| WatchError::Start { dir: dir.to_path_buf(), source };
    let wake = Arc::new(Wake::new().map_err(|e| cannot_start(&dir, e.into()))?);
    // The watch comes first and the scan, in the thread, second: nothing falls between.
    let (source, interval) = match mode {
        Mode::Inotify => (Source::inotify(&dir, wake.clone())?, None),
        Mode::Poll(interval) => {
            (Source::poll(&dir, wake.clone())?, Some(interval.max(Duration::from_millis(1))))
        }
    };
    let shared = Arc::new(Shared::default());
    let follower = Follower {
        dir: dir.clone(),
        source,
        interval,
        apply,
        known: Known::new(KNOWN),
        shared: shared.clone(),
        gap: None,
        doubt_at: None,
        tick_at: None,
        retry: RETRY,
        broken: false,
    };
    let thread = thread::Builder::new()
        .name("nasd-watcher".to_owned())
        .spawn(move || follower.run())
        .map_err(|e| cannot_start(&dir, e))?;
    Ok(Watcher { shared, wake, thread: Some(thread) })
}

impl Watcher {
    /// Makes the watcher look again at once, with a scan of the directory: after a change of role,
    /// after a halt, and whenever [`Apply::wanted`] has something again after it had nothing.
    pub fn poke(&self) {
        self.wake.wake();
    }

    /// Ends the watcher; the file that is being applied is finished first.
    pub fn stop(self) {
        drop(self);
    }

    /// What it has done so far.
    pub fn stats(&self) -> WatchStats {
        WatchStats {
            overflows: self.shared.overflows.get(),
            rescans: self.shared.rescans.get(),
            applied: self.shared.applied.get(),
            events: self.shared.events.get(),
            retries: self.shared.retries.get(),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.wake.wake();
        if let Some(thread) = self.thread.take()
            // An owner that is dropped by its own `apply` must not wait for itself.
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            error!("the watcher of the log directory panicked; restart nasd and report this");
        }
    }
}

/// What there is to do after all that could be applied is applied.
#[derive(PartialEq, Eq)]
enum Next {
    /// Wait for news.
    Wait,
    /// Sleep until poked.
    Park,
}

/// The thread of a watcher.
struct Follower {
    dir: PathBuf,
    source: Source,
    interval: Option<Duration>,
    apply: Box<dyn Apply>,
    known: Known,
    shared: Arc<Shared>,
    /// The missing number that `doubt_at` was set for: one scan a gap, then events have to do.
    gap: Option<u64>,
    /// When to scan because the next file is missing or wants a retry; moot once one is applied.
    doubt_at: Option<Instant>,
    /// When to look again regardless: poll mode, or a directory that is broken.
    tick_at: Option<Instant>,
    /// How long to wait before the next retry.
    retry: Duration,
    /// Whether the directory's trouble was told already.
    broken: bool,
}

impl Follower {
    fn run(mut self) {
        let mut parked = false;
        while !self.stopping() {
            if !parked && self.advance() == Next::Park {
                parked = true;
                self.park();
            }
            let deadline = match (self.doubt_at, self.tick_at) {
                (Some(doubt), Some(tick)) => Some(doubt.min(tick)),
                (doubt, tick) => doubt.or(tick),
            };
            let ready = match self.source.wait(deadline) {
                Ok(ready) => ready,
                Err(e) => {
                    self.no_wait(e);
                    continue;
                }
            };
            if ready.events {
                self.collect();
            }
            if ready.poked {
                parked = false;
                self.known.invalidate();
            }
            self.ring();
        }
    }

    fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// Applies whatever can be applied now.
    fn advance(&mut self) -> Next {
        let mut until_collect = COLLECT_EVERY;
        while !self.stopping() {
            let Some(wanted) = self.apply.wanted() else {
                return Next::Park;
            };
            if self.known.needs_scan(wanted) {
                self.scan(wanted);
            }
            let Some(name) = self.known.take(wanted) else {
                self.note_gap(wanted);
                return Next::Wait;
            };
            let path = self.dir.join(name);
            match self.apply.apply(&path) {
                Ok(()) => self.applied(),
                Err(ApplyError::Retry(why)) => {
                    self.retry_later(&path, &why);
                    return Next::Wait;
                }
                Err(ApplyError::Halt(why)) => {
                    error!(file = %path.display(), "applying has stopped: {why}");
                    return Next::Park;
                }
            }
            until_collect -= 1;
            if until_collect == 0 {
                until_collect = COLLECT_EVERY;
                self.collect();
            }
        }
        Next::Wait
    }

    fn applied(&mut self) {
        self.shared.applied.add(1);
        self.gap = None;
        self.doubt_at = None;
        self.retry = RETRY;
    }

    /// The file is out of the map: an event of its number brings it back at once, else the scan.
    fn retry_later(&mut self, path: &Path, why: &str) {
        self.shared.retries.add(1);
        if self.retry == RETRY {
            warn!(file = %path.display(), "not applied yet, trying again: {why}");
        } else {
            debug!(file = %path.display(), "not applied yet, trying again: {why}");
        }
        self.doubt_at = Some(Instant::now() + self.retry);
        self.retry = (self.retry * 2).min(RETRY_MOST);
    }

    /// Nothing is watched or remembered while nothing is to be applied: the scan finds it all.
    fn park(&mut self) {
        self.source.unwatch();
        self.known.clear();
        self.gap = None;
        self.doubt_at = None;
        self.tick_at = None;
        self.retry = RETRY;
    }

    fn note_gap(&mut self, wanted: u64) {
        let Some(lowest) = self.known.lowest() else {
            return;
        };
        // A retry that is under way scans anyway.
        if self.doubt_at.is_none() && self.gap != Some(wanted) {
            self.gap = Some(wanted);
            info!(wanted, lowest, "a transaction file is missing before later ones; looking for it");
            self.doubt_at = Some(Instant::now() + GAP);
        }
    }

    /// Does what the timers ask for.
    fn ring(&mut self) {
        let now = Instant::now();
        if self.doubt_at.is_some_and(|at| at <= now) {
            self.doubt_at = None;
            self.known.invalidate();
        }
        if self.tick_at.is_some_and(|at| at <= now) {
            self.tick_at = self.next_look();
            if self.source.may_have_changed() {
                self.known.invalidate();
            }
        }
    }

    fn next_look(&self) -> Option<Instant> {
        Instant::now().checked_add(self.interval?)
    }

    /// Takes the events that wait out of the kernel's queue.
    fn collect(&mut self) {
        let known = &mut self.known;
        let seen = self.source.read(|name| {
            if let Some(seq) = parse_name(name) {
                known.insert(seq, name);
            }
        });
        match seen {
            Ok(seen) => {
                self.shared.events.add(seen.events);
                if seen.overflow {
                    self.shared.overflows.add(1);
                    info!("inotify lost events, its queue was full; reading the log directory");
                    self.known.invalidate();
                }
                if seen.lost {
                    warn!(dir = %self.dir.display(), "the log directory was moved or removed; looking for it again");
                    self.source.unwatch();
                    self.known.invalidate();
                }
            }
            Err(e) => {
                self.trouble(&format!("cannot read inotify events: {e}"));
                self.source.unwatch();
            }
        }
    }

    /// Reads the directory, with the watch in place before.
    fn scan(&mut self, wanted: u64) {
        self.shared.rescans.add(1);
        self.tick_at = self.next_look();
        let watched = self.source.watch();
        self.known.begin_scan(wanted);
        let read = self.read_directory();
        match (watched, read) {
            (Ok(()), Ok(())) => self.broken = false,
            (Err(e), _) => self.trouble(&e.to_string()),
            (_, Err(e)) => self.trouble(&format!("cannot read it: {e}")),
        }
    }

    fn read_directory(&mut self) -> Result<(), walkdir::Error> {
        // A log directory may itself be a link, but what is in it is not followed.
        for entry in WalkDir::new(&self.dir).min_depth(1).max_depth(1) {
            let entry = entry?;
            if let Some(seq) = parse_name(entry.file_name())
                && entry.file_type().is_file()
            {
                self.known.insert_scanned(seq, entry.file_name());
            }
        }
        Ok(())
    }

    /// The directory cannot be watched or read: say so once, look again a little later.
    fn trouble(&mut self, what: &str) {
        if !self.broken {
            self.broken = true;
            error!(dir = %self.dir.display(), "trouble with the log directory, looking again each second: {what}");
        }
        self.tick_at = Some(Instant::now() + BROKEN);
    }

    /// The kernel had no memory to wait with: a pause, or this would spin.
    fn no_wait(&mut self, e: Errno) {
        self.trouble(&format!("cannot wait for news: {e}"));
        thread::sleep(Duration::from_millis(100));
    }
}
