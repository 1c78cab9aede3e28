//! Consumers that are told of what happens: each rule has a thread that reads the feed, and remembers how far it has told.

mod desk;
mod memory;
mod notice;
mod signal;
mod way;
mod webhook;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::counters::Counter;
use crate::event::{Cursor, Kind};
use crate::feed::{Feed, NewsGuard};
use crate::filter::Filter;
use desk::Desk;
use memory::Memory;
pub(crate) use notice::Notice;
pub use signal::{SignalError, signal_named};
pub use way::Way;
pub use webhook::{Webhook, WebhookError};

/// How long one telling may take: then a command is killed, and a webhook counts as failed.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// When a consumer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// At most this often, the first after a quiet spell at once; zero: of each event.
    Spell(Duration),
    /// When the primary says so.
    OnDemand,
}

/// One consumer: what it wants to hear of, when, and how.
#[derive(Debug, Clone)]
pub struct NotifyRule {
    /// What tells this rule from others, over restarts: what it told is remembered by it.
    pub name: String,
    /// Of what.
    pub filter: Filter,
    /// When.
    pub every: Every,
    /// How.
    pub way: Way,
}

/// Why a rule cannot work.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each says what it is.
pub enum NotifyError {
    #[error("cannot start a thread to notify {way}: {source}; raise the limit of processes (ulimit -u)")]
    Thread { way: String, source: io::Error },
    #[error("{}: {source}; how far consumers were told is kept there", dir.display())]
    Memory { dir: PathBuf, source: io::Error },
}

/// What a rule has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NotifyStats {
    /// Whom it tells.
    pub way: String,
    /// How often it told: commands that ended with exit code 0, signals, answers with 2xx.
    pub sent: u64,
    /// How often that failed.
    pub failed: u64,
    /// Changed paths that were not listed: more than 10,000 at once, or with a line break in them.
    pub left_out: u64,
}

/// The consumers; dropping it stops it too.
pub struct Notifier {
    workers: Vec<Worker>,
}

struct Worker {
    shared: Arc<Shared>,
    way: String,
    limit: Duration,
    thread: Option<JoinHandle<()>>,
    _news: NewsGuard,
}

#[derive(Default)]
struct Shared {
    slot: Mutex<Slot>,
    bell: Condvar,
    sent: Counter,
    failed: Counter,
    left_out: Counter,
}

#[derive(Default)]
struct Slot {
    news: bool,
    /// Set by stop: what is pending is told at once, and all is over then.
    stop_by: Option<Instant>,
    told: Cursor,
}

impl Notifier {
    /// Starts one thread a rule. What was told is remembered in the directory `memory`, and told from there on; without
    /// one, and at first, a rule tells from now on.
    ///
    /// # Errors
    /// When a thread or the directory can't be had.
    pub fn start(
        feed: &Arc<Feed>,
        rules: Vec<NotifyRule>,
        memory: Option<&Path>,
    ) -> Result<Notifier, NotifyError> {
        Notifier::with_time_limit(feed, rules, memory, TIME_LIMIT)
    }

    /// The same with another [time limit](TIME_LIMIT).
    ///
    /// # Errors
    /// As [`Notifier::start`].
    pub fn with_time_limit(
        feed: &Arc<Feed>,
        rules: Vec<NotifyRule>,
        memory: Option<&Path>,
        limit: Duration,
    ) -> Result<Notifier, NotifyError> {
        // A rule that is wrong further down drops, and so ends, the workers made before it.
        let mut notifier = Notifier { workers: Vec::new() };
        for rule in rules {
            notifier.workers.push(Worker::start(feed, rule, memory, limit)?);
        }
        Ok(notifier)
    }

    /// What each rule has done so far, in the order of the rules.
    pub fn stats(&self) -> Vec<NotifyStats> {
        let stats = |worker: &Worker| NotifyStats {
            way: worker.way.clone(),
            sent: worker.shared.sent.get(),
            failed: worker.shared.failed.get(),
            left_out: worker.shared.left_out.get(),
        };
        self.workers.iter().map(stats).collect()
    }

    /// Up to where each rule has told what it had to, in the order of the rules.
    pub fn told(&self) -> Vec<Cursor> {
        self.workers.iter().map(|worker| worker.shared.slot.lock().told).collect()
    }

    /// Ends the workers. What is being told is waited for and what is pending is told, all within one time limit. Returns
    /// [how far](Notifier::told) each rule came.
    pub fn stop(mut self) -> Vec<Cursor> {
        self.end();
        self.told()
    }

    fn end(&mut self) {
        for Worker { shared, limit, .. } in &self.workers {
            let now = Instant::now();
            shared.slot.lock().stop_by = Some(now.checked_add(*limit).unwrap_or(now));
            shared.bell.notify_one();
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                error!(
                    consumer = worker.way,
                    "the thread of a consumer panicked; restart nasd and report this"
                );
            }
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.end();
    }
}

impl Worker {
    fn start(
        feed: &Arc<Feed>,
        rule: NotifyRule,
        memory: Option<&Path>,
        limit: Duration,
    ) -> Result<Worker, NotifyError> {
        let (mut memory, kept) = match memory {
            Some(dir) => Memory::open(dir, &blake3::hash(rule.name.as_bytes()).to_hex()[..16])
                .map_err(|source| NotifyError::Memory { dir: dir.to_path_buf(), source })?,
            None => (Memory::none(), None),
        };
        let on_demand = rule.every == Every::OnDemand;
        let filter = if on_demand { rule.filter.and(Kind::Demand) } else { rule.filter };
        let reader = feed.subscribe(filter, kept);
        memory.told(reader.cursor());
        let slot = Slot { news: true, told: reader.cursor(), ..Slot::default() };
        let shared = Arc::new(Shared { slot: Mutex::new(slot), ..Shared::default() });
        let ring = shared.clone();
        let news = feed.on_news(move || ring.ring());
        let way = rule.way.to_string();
        let thread_error = |source| NotifyError::Thread { way: way.clone(), source };
        let desk = Desk {
            every: rule.every,
            demands: on_demand.then(|| feed.subscribe(Filter::only(Kind::Demand), Some(reader.cursor()))),
            demanded: 0,
            reader,
            way: rule.way,
            limit,
            memory,
            pending: VecDeque::new(),
            not_before: None,
            again_at: None,
            shared: shared.clone(),
        };
        let thread = thread::Builder::new()
            .name("nasd-notify".to_owned())
            .spawn(move || desk.work())
            .map_err(thread_error)?;
        Ok(Worker { shared, way, limit, thread: Some(thread), _news: news })
    }
}

impl Shared {
    fn ring(&self) {
        let mut slot = self.slot.lock();
        // Who is awake already need not be woken.
        if !std::mem::replace(&mut slot.news, true) {
            self.bell.notify_one();
        }
    }

    /// Sleeps until there is news, or until then.
    fn sleep(&self, until: Option<Instant>) {
        let mut slot = self.slot.lock();
        if !slot.news && slot.stop_by.is_none() {
            match until {
                Some(at) => {
                    self.bell.wait_until(&mut slot, at);
                }
                None => self.bell.wait(&mut slot),
            }
        }
        slot.news = false;
    }

    /// Sleeps so long, unless it is the end; says whether it is.
    fn pause(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut slot = self.slot.lock();
        while slot.stop_by.is_none() && !self.bell.wait_until(&mut slot, end).timed_out() {}
        slot.stop_by.is_some()
    }

    fn stop_by(&self) -> Option<Instant> {
        self.slot.lock().stop_by
    }
}
