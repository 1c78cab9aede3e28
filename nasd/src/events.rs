//! Every change of role, link, sync state or disk: logged, counted, kept on the disk, told to whoever wants to know.

use crate::bell::Bell;
use nasd_volume::changes::Past;
use nasd_volume::txn::rfc3339;
use nasd_volume::volume::Applied;
use nasd_volume::{Position, Volume};
pub use nasd_watcher::event::Kind;
use nasd_watcher::event::{Cursor, Event, MOST_PATHS, now};
use nasd_watcher::feed::{Feed, History};
use nasd_watcher::{Journal, JournalError};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

/// An event that has no number yet.
struct Draft {
    time: String,
    kind: Kind,
    reason: String,
    old: Option<String>,
    new: Option<String>,
    taken_back: Option<TakenBack>,
}

/// Transactions that are not of the history any more: behind `to`, up to `from`.
#[derive(Debug, Clone, Copy)]
struct TakenBack {
    to: u64,
    from: u64,
}

enum Order {
    Tell(Draft),
    /// Everything before this is told.
    Answer(Sender<()>),
}

/// The events of this node.
pub struct Events {
    /// What was told, for whoever reads it.
    pub feed: Arc<Feed>,
    /// Rung on a primary when somebody wants to know of transactions, and then at each.
    pub bell: Bell,
    counts: Mutex<BTreeMap<Kind, u64>>,
    /// What each part of which there is one was last said to be.
    words: Mutex<BTreeMap<Kind, &'static str>>,
    volume: Arc<RwLock<Weak<Volume>>>,
    queue: Sender<Order>,
    /// Until the journal is open.
    orders: Mutex<Option<Receiver<Order>>>,
}

impl Default for Events {
    fn default() -> Events {
        let (queue, orders) = channel();
        let (feed, bell) = (Arc::<Feed>::default(), Bell::default());
        let ring = bell.clone();
        feed.on_interest(move || ring.ring());
        let (orders, counts, words) = (Mutex::new(Some(orders)), Mutex::default(), Mutex::default());
        Events { feed, bell, counts, words, volume: Arc::default(), queue, orders }
    }
}

impl Events {
    /// Goes on behind what the journal in the state directory says, if there is one, and tells what waits for that.
    ///
    /// # Errors
    /// When the journal can't be opened, or there can be no more threads.
    pub fn open(&self, state_dir: &Path) -> Result<(), EventsError> {
        let Some(orders) = self.orders.lock().take() else { return Ok(()) };
        let (journal, kept) = Journal::open(&state_dir.join("events"))?;
        self.feed.resume(kept.dropped, kept.events);
        let teller = Teller { journal, feed: Arc::clone(&self.feed), volume: Arc::clone(&self.volume) };
        std::thread::Builder::new().name("events".into()).spawn(move || teller.run(&orders))?;
        Ok(())
    }

    /// Tells. It is on the disk before anybody is told, and nobody waits for the disk.
    pub fn emit(&self, kind: Kind, text: impl Into<String>) {
        self.tell(kind, text.into(), None, None, None);
    }

    /// Tells of something that was `old` and is `new`, each in a word.
    pub fn emit_change(&self, kind: Kind, old: &str, new: &str, text: impl Into<String>) {
        self.tell(kind, text.into(), Some(old.to_owned()), Some(new.to_owned()), None);
    }

    /// Tells that the one part of this kind, be it the mount or the disk, is `new` now; what it was is known from the last
    /// time. Something may have happened to it that did not change it.
    pub fn emit_state(&self, kind: Kind, new: &'static str, text: impl Into<String>) {
        // Until it is told: of two that come together the second has what the first says.
        let mut words = self.words.lock();
        let old = words.insert(kind, new).unwrap_or(at_start(kind));
        self.emit_change(kind, old, new, text);
    }

    /// What the one part of this kind is, in a word.
    pub fn word(&self, kind: Kind) -> &'static str {
        self.words.lock().get(&kind).copied().unwrap_or(at_start(kind))
    }

    /// Tells that the transactions behind `to` are not of this history, of which this node may have shown those up to
    /// `from`; when it returns nobody reads them any more. Before anything else is shown.
    pub fn take_back(&self, from: u64, to: u64, text: impl Into<String>) {
        let from = from.max(self.feed.end().seq);
        let taken_back = (from > to).then_some(TakenBack { to, from });
        self.tell(Kind::Sync, text.into(), None, None, taken_back);
        self.flush();
    }

    fn tell(
        &self,
        kind: Kind,
        reason: String,
        old: Option<String>,
        new: Option<String>,
        taken_back: Option<TakenBack>,
    ) {
        tracing::info!(?kind, "{reason}");
        *self.counts.lock().entry(kind).or_default() += 1;
        // The thread ends with this queue.
        let _ = self.queue.send(Order::Tell(Draft { time: now(), kind, reason, old, new, taken_back }));
    }

    /// Waits until everything before is told.
    pub fn flush(&self) {
        let (tx, rx) = channel();
        if self.queue.send(Order::Answer(tx)).is_ok() {
            // An error says that the thread is gone: nothing more is told.
            let _ = rx.recv();
        }
    }

    /// The volume is known.
    pub fn opened(&self, volume: &Arc<Volume>) {
        *self.volume.write() = Arc::downgrade(volume);
        let (feed, bell) = (Arc::downgrade(&self.feed), self.bell.clone());
        volume.on_commit(move || {
            if feed.upgrade().is_some_and(|feed| feed.is_wanted()) {
                bell.ring();
            }
        });
        self.feed.open(Arc::new(LogHistory(Arc::downgrade(volume))), volume.applied().seq);
    }

    /// A secondary shows a transaction; before it, it showed everything up to `since`.
    pub fn applied(&self, since: u64, applied: &Applied) {
        if let Some(event) = data(applied) {
            self.feed.push_data(since, event);
        }
    }

    /// This node's files are a copy now, as of `end`: any may have changed.
    pub fn copied(&self, end: Position, from: &str) {
        self.feed.push_data(
            self.feed.end().seq,
            Event {
                reason: format!("brought up to date by {from}"),
                more: true,
                ..Event::new(Kind::Data, Cursor { seq: end.seq, n: 0 }, end.epoch, now())
            },
        );
    }

    /// How many state events of each kind there were in this run.
    pub fn counts(&self) -> BTreeMap<Kind, u64> {
        self.counts.lock().clone()
    }
}

/// What a part is before anything was said of it.
fn at_start(kind: Kind) -> &'static str {
    match kind {
        Kind::Mount => "unmounted",
        Kind::Disk => "ok",
        _ => "unknown",
    }
}

/// The events of a node can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("no thread for the events: {0}; raise the limit on processes")]
    Thread(#[from] std::io::Error),
}

/// Numbers events, writes them down and tells them.
struct Teller {
    journal: Journal,
    feed: Arc<Feed>,
    volume: Arc<RwLock<Weak<Volume>>>,
}

impl Teller {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            // What came together is written together.
            let mut drafts = Vec::new();
            let mut answers = Vec::new();
            for order in std::iter::once(first).chain(orders.try_iter()) {
                match order {
                    Order::Tell(draft) => drafts.push(draft),
                    Order::Answer(tx) => answers.push(tx),
                }
            }
            self.tell(drafts);
            for tx in answers {
                // Whoever asked may have gone.
                let _ = tx.send(());
            }
        }
    }

    fn tell(&mut self, drafts: Vec<Draft>) {
        if drafts.is_empty() {
            return;
        }
        self.feed.refresh();
        let Cursor { mut seq, mut n } = self.feed.end();
        let epoch = self.volume.read().upgrade().map_or(0, |v| v.state.get().epoch);
        let mut events = Vec::new();
        for d in drafts {
            n += 1;
            seq = d.taken_back.map_or(seq, |t| t.to.min(seq));
            events.push(Event {
                reason: d.reason,
                old: d.old,
                new: d.new,
                taken_back: d.taken_back.map(|t| t.from),
                ..Event::new(d.kind, Cursor { seq, n }, epoch, d.time)
            });
        }
        if let Err(e) = self.journal.append(&events) {
            // Told all the same: it is about this disk, as likely as not.
            tracing::warn!("events are not kept: {e}");
        }
        for event in events {
            self.feed.push(event);
        }
    }
}

/// The event of a transaction.
fn data(applied: &Applied) -> Option<Event> {
    let position = applied.position?;
    Some(Event {
        paths: applied.paths.iter().take(MOST_PATHS).cloned().collect(),
        more: applied.paths.len() > MOST_PATHS,
        ..Event::new(
            Kind::Data,
            Cursor { seq: position.seq, n: 0 },
            position.epoch,
            rfc3339(applied.timestamp),
        )
    })
}

/// The log of the volume.
struct LogHistory(Weak<Volume>);

impl History for LogHistory {
    fn read(&self, after: u64, upto: u64, most: usize) -> nasd_watcher::Past {
        let Some(volume) = self.0.upgrade() else { return nasd_watcher::Past::default() };
        let Past { gone, applied, upto } = volume.changes(after, upto, most);
        nasd_watcher::Past { gone, events: applied.iter().filter_map(data).collect(), upto }
    }

    fn acknowledged(&self) -> Option<u64> {
        let volume = self.0.upgrade()?;
        volume.writable().then(|| volume.acknowledged().min(volume.applied().seq))
    }
}
