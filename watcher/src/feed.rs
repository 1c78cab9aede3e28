//! The events of a node, for any number of readers at their own pace.
//!
//! There is one ring of the newest transactions and one of the newest state events, and a reader is a cursor and a
//! filter: it has no queue, and one that is slow or dead costs nothing and delays nobody. Transactions that are not in
//! the ring are read again from the log ([`History`]). What is not there any more is one event that says so
//! ([`Kind::Gap`]).
//!
//! The order is that of a cursor: a state event with `seq` S comes behind transaction S and before the next, and all
//! readers see the state events in the order of their numbers. When transactions are taken back a state event says so,
//! and whoever has seen them begins again at the fork; who has not seen them yet never does.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::event::{Cursor, Event, Kind, Since, now};
use crate::filter::Filter;

/// Transactions in the ring.
const TRANSACTIONS: usize = 4096;
/// Paths of all of them, some 100 bytes each.
const PATHS: usize = 1 << 17;
/// State events that are kept.
pub const STATES: usize = 4096;
/// Terms as primary that are kept.
const TERMS: usize = 16;
/// Transactions that are read from the log at a time.
const PORTION: usize = 64;

/// Transactions that were told before, and are read again.
pub trait History: Send + Sync {
    /// The transactions behind `after`, oldest first: those up to `upto`, or the first `most` of them. Their ids say
    /// nothing yet.
    fn read(&self, after: u64, upto: u64, most: usize) -> Past;

    /// On a primary: the last transaction that is acknowledged. None on a secondary, which pushes what it shows.
    fn acknowledged(&self) -> Option<u64>;
}

/// An answer of a [`History`].
#[derive(Debug, Default)]
pub struct Past {
    /// Everything up to here is gone.
    pub gone: Option<u64>,
    /// What is there behind it.
    pub events: Vec<Event>,
    /// Between what was asked for and here there is nothing else.
    pub upto: u64,
}

/// State events that are not kept any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dropped {
    /// The number of the last.
    pub n: u64,
    /// If any of them took transactions back.
    pub fork: Option<Fork>,
}

/// Where transactions were taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fork {
    /// The number of the last event that did.
    pub n: u64,
    /// The lowest transaction that any went back to.
    pub to: u64,
}

impl Dropped {
    /// With the next of them.
    #[must_use]
    pub fn and(self, event: &Event) -> Dropped {
        let n = event.id.n;
        let to = |to: u64| Fork { n, to: self.fork.map_or(to, |fork| to.min(fork.to)) };
        Dropped { n, fork: event.taken_back.map(|_| to(event.seq)).or(self.fork) }
    }
}

#[derive(Default)]
struct Inner {
    /// In the order of their numbers.
    states: VecDeque<Arc<Event>>,
    dropped: Dropped,
    /// Every transaction behind `ring_from` and up to `ring_to`.
    ring: VecDeque<Arc<Event>>,
    ring_from: u64,
    ring_to: u64,
    /// Paths in the ring.
    paths: usize,
    /// The last transaction that may be told.
    shown: u64,
    /// How often that went back.
    taken_back: u64,
    /// Behind the first and up to the second of each this node was primary: it had them from nobody.
    led: Vec<(u64, u64)>,
    history: Option<Arc<dyn History>>,
}

type Hook = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Hooks {
    next: u64,
    all: Vec<(u64, Hook)>,
}

/// The events of a node.
#[derive(Default)]
pub struct Feed {
    inner: Mutex<Inner>,
    news: Condvar,
    /// Never held together with `inner`.
    hooks: RwLock<Hooks>,
    interest: AtomicUsize,
    wanted: OnceLock<Hook>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Feed").field("end", &self.end()).finish_non_exhaustive()
    }
}

/// What a reader does next.
enum Step {
    /// Nothing: it is at the end.
    End,
    /// There is enough.
    Full,
    /// It has to read what is not in the ring.
    Read(Missing),
}

/// What a reader has to read elsewhere.
struct Missing {
    history: Arc<dyn History>,
    after: u64,
    upto: u64,
    /// See [`Inner::taken_back`].
    taken_back: u64,
}

impl Inner {
    fn last_n(&self) -> u64 {
        self.states.back().map_or(self.dropped.n, |e| e.id.n)
    }

    /// The number of the last state event before transaction `seq`.
    fn n_before(&self, seq: u64) -> u64 {
        self.states.iter().rev().find(|e| e.seq < seq).map_or(self.dropped.n, |e| e.id.n)
    }

    fn data(&self, event: Event) -> Arc<Event> {
        let id = Cursor { seq: event.seq, n: self.n_before(event.seq) };
        Arc::new(Event { id, ..event })
    }

    fn push_data(&mut self, since: u64, event: Event) {
        let seq = event.seq;
        if seq <= self.ring_to {
            return;
        }
        if since > self.ring_to {
            self.ring.clear();
            self.paths = 0;
            self.ring_from = since;
        }
        self.paths += event.paths.len();
        let event = self.data(event);
        self.ring.push_back(event);
        self.ring_to = seq;
        self.shown = self.shown.max(seq);
        while self.ring.len() > TRANSACTIONS || self.paths > PATHS && self.ring.len() > 1 {
            let Some(old) = self.ring.pop_front() else { break };
            self.paths -= old.paths.len();
            self.ring_from = old.seq;
        }
    }

    fn push_state(&mut self, event: Event) {
        if event.id.n <= self.last_n() {
            return;
        }
        if event.taken_back.is_some() {
            self.take_back(event.seq);
        }
        self.states.push_back(Arc::new(event));
        while self.states.len() > STATES {
            let Some(old) = self.states.pop_front() else { break };
            self.dropped = self.dropped.and(&old);
        }
    }

    fn take_back(&mut self, to: u64) {
        let rest = self.ring.partition_point(|e| e.seq <= to);
        self.paths -= self.ring.drain(rest..).map(|e| e.paths.len()).sum::<usize>();
        self.ring_to = self.ring_to.min(to);
        self.ring_from = self.ring_from.min(to);
        self.shown = self.shown.min(to);
        self.taken_back += 1;
        self.led.retain(|(from, _)| *from < to);
        self.led.iter_mut().for_each(|(_, end)| *end = to.min(*end));
    }

    /// The next state event for a reader that is `at`, and how far it may read transactions before.
    fn ahead(&self, at: Cursor) -> (Option<&Arc<Event>>, u64) {
        let next = self.states.partition_point(|e| e.id.n <= at.n);
        let rest = self.states.range(next..);
        // What was taken back later can't be read any more.
        let forks = rest.clone().filter(|e| e.taken_back.is_some()).map(|e| e.seq);
        let next = rest.clone().next();
        let limit = forks.chain(next.map(|e| e.seq)).chain([self.shown]).min().unwrap_or(0);
        (next, limit)
    }

    /// Takes what there is for a reader: `most` events, whether they pass the filter or not.
    fn step(&self, at: &mut Cursor, filter: &Filter, most: usize, found: &mut Vec<Arc<Event>>) -> Step {
        while found.len() < most {
            if at.n < self.dropped.n {
                let fork = self.dropped.fork.filter(|fork| at.n < fork.n);
                let to = Cursor { seq: fork.map_or(at.seq, |fork| at.seq.min(fork.to)), n: self.dropped.n };
                if filter.wants_states() {
                    found.push(gap(
                        to,
                        Cursor { n: at.n + 1, ..*at },
                        Cursor { n: to.n, ..*at },
                        "state events are not kept for so long",
                    ));
                }
                *at = to;
                continue;
            }
            let (state, mut limit) = self.ahead(*at);
            if filter.wants_data() && at.seq < limit {
                if filter.follows() {
                    if let Some((_, end)) =
                        self.led.iter().find(|(from, end)| (*from..*end).contains(&at.seq))
                    {
                        at.seq = limit.min(*end);
                        continue;
                    }
                    limit = self.before_term(at.seq, limit);
                }
                if (self.ring_from..self.ring_to).contains(&at.seq) {
                    let next = self.ring.partition_point(|e| e.seq <= at.seq);
                    match self.ring.get(next).filter(|e| e.seq <= limit) {
                        Some(event) => {
                            *at = at.after(event);
                            found.push(event.clone());
                        }
                        None => at.seq = limit.min(self.ring_to),
                    }
                    continue;
                }
                let upto = if at.seq < self.ring_from { limit.min(self.ring_from) } else { limit };
                let Some(history) = self.history.clone() else {
                    self.skip(at, upto, found);
                    continue;
                };
                return Step::Read(Missing { history, after: at.seq, upto, taken_back: self.taken_back });
            }
            let Some(state) = state else { return Step::End };
            *at = at.after(state);
            found.push(state.clone());
        }
        Step::Full
    }

    /// The transactions up to `upto` can't be told any more.
    fn skip(&self, at: &mut Cursor, upto: u64, found: &mut Vec<Arc<Event>>) {
        let to = Cursor { seq: upto, n: at.n };
        found.push(gap(
            to,
            Cursor { seq: at.seq + 1, n: at.n },
            to,
            "transactions that are not in the log any more",
        ));
        *at = to;
    }

    /// How far a reader that [follows](Filter::following) and is at `seq` can read before a term of this node begins.
    fn before_term(&self, seq: u64, limit: u64) -> u64 {
        self.led
            .iter()
            .map(|(from, _)| *from)
            .filter(|from| *from > seq)
            .chain([limit])
            .min()
            .unwrap_or(limit)
    }

    fn has_news(&self, at: Cursor, filter: &Filter) -> bool {
        let led = || filter.follows() && self.led.iter().any(|(from, end)| (*from..*end).contains(&at.seq));
        at.n < self.last_n() || filter.wants_data() && at.seq < self.shown && !led()
    }

    fn lags(&self, at: Cursor) -> bool {
        at.seq < self.shown && !(self.ring_from..self.ring_to).contains(&at.seq)
    }
}

fn gap(id: Cursor, first: Cursor, last: Cursor, reason: &str) -> Arc<Event> {
    Arc::new(Event {
        reason: reason.to_owned(),
        old: Some(first.to_string()),
        new: Some(last.to_string()),
        ..Event::new(Kind::Gap, id, 0, now())
    })
}

impl Feed {
    /// Goes on behind state events that were kept, and those that were not; before anything else is told.
    pub fn resume(&self, dropped: Dropped, states: Vec<Event>) {
        let shown = states.last().map_or(0, |e| e.seq);
        self.change(|inner| {
            inner.dropped = dropped;
            for event in states {
                inner.push_state(event);
            }
            (inner.ring_from, inner.ring_to, inner.shown) = (shown, shown, shown);
        });
    }

    /// From now on transactions that are not in the ring are read from here; `shown` is the last that can be read
    /// through the mount.
    pub fn open(&self, history: Arc<dyn History>, shown: u64) {
        self.change(|inner| {
            inner.history = Some(history);
            inner.shown = inner.shown.max(shown);
        });
    }

    /// Tells an event. A state event has the next number: one that is not above the last was told before, and is not
    /// again. A transaction follows on the last one that was told.
    pub fn push(&self, event: Event) {
        self.change(|inner| match event.kind {
            Kind::Data => inner.push_data(inner.ring_to, event),
            Kind::Gap => {}
            _ => inner.push_state(event),
        });
    }

    /// Tells a transaction that can be read through the mount now; between `since` and it there is no other.
    pub fn push_data(&self, since: u64, event: Event) {
        self.change(|inner| inner.push_data(since, event));
    }

    /// Everything up to here can be read through the mount, and is read from the log for whom it concerns.
    pub fn shows(&self, seq: u64) {
        self.change(|inner| inner.shown = inner.shown.max(seq));
    }

    /// This node is primary: what is behind `from` it has from nobody.
    pub fn begin_term(&self, from: u64) {
        self.change(|inner| inner.led.push((from, u64::MAX)));
    }

    /// It is primary no more, from this transaction on.
    pub fn end_term(&self, to: u64) {
        self.change(|inner| {
            inner.led.iter_mut().for_each(|(_, end)| *end = to.min(*end));
            let most = inner.led.len().saturating_sub(TERMS);
            inner.led.drain(..most);
        });
    }

    fn change(&self, f: impl FnOnce(&mut Inner)) {
        f(&mut self.inner.lock());
        self.news.notify_all();
        let hooks: Vec<Hook> = self.hooks.read().all.iter().map(|(_, hook)| hook.clone()).collect();
        for hook in hooks {
            hook();
        }
    }

    /// On a primary: looks how far its acknowledgements are.
    pub fn refresh(&self) {
        let (history, before) = {
            let inner = self.inner.lock();
            (inner.history.clone(), inner.taken_back)
        };
        let Some(seq) = history.and_then(|h| h.acknowledged()) else { return };
        let ahead = {
            let inner = self.inner.lock();
            inner.taken_back == before && inner.shown < seq
        };
        if ahead {
            self.change(|inner| {
                if inner.taken_back == before {
                    inner.shown = inner.shown.max(seq);
                }
            });
        }
    }

    /// Behind the oldest transaction in the ring, with all state events that are kept.
    pub fn start(&self) -> Cursor {
        let inner = self.inner.lock();
        let seq = if inner.ring.is_empty() { inner.shown } else { inner.ring_from };
        Cursor { seq, n: inner.dropped.n }
    }

    /// The end: behind everything that was told.
    pub fn end(&self) -> Cursor {
        let inner = self.inner.lock();
        Cursor { seq: inner.shown, n: inner.last_n() }
    }

    /// Up to where the ring is filled: a primary's goes on from here.
    pub fn told(&self) -> u64 {
        self.inner.lock().ring_to
    }

    /// Where a reader begins. What this node does not show yet may be another history's: it is told again.
    pub fn cursor(&self, since: Since) -> Cursor {
        self.refresh();
        let inner = self.inner.lock();
        match since {
            // Before the volume is open nothing is known of transactions.
            Since::Id(id) if inner.history.is_none() => id,
            Since::Id(id) => Cursor { seq: id.seq.min(inner.shown), n: id.n.min(inner.last_n()) },
            Since::Seq(seq) => {
                let later = inner.states.iter().find(|e| e.seq >= seq);
                let n = later.map_or(inner.last_n(), |e| e.id.n - 1);
                Cursor { seq: seq.min(inner.shown), n }
            }
        }
    }

    /// A reader of what passes the filter, behind `from`; None: from now on.
    pub fn subscribe(self: &Arc<Self>, filter: Filter, from: Option<Cursor>) -> Subscription {
        let interest = (filter.wants_data() && !filter.follows()).then(|| self.interest());
        let at = from.unwrap_or_else(|| {
            self.refresh();
            self.end()
        });
        Subscription { feed: self.clone(), filter, at, _interest: interest }
    }

    /// Has `f` called after each change, on the thread that made it: it must neither block nor drop its guard.
    pub fn on_news(self: &Arc<Self>, f: impl Fn() + Send + Sync + 'static) -> NewsGuard {
        let mut hooks = self.hooks.write();
        hooks.next += 1;
        let id = hooks.next;
        hooks.all.push((id, Arc::new(f)));
        NewsGuard { feed: self.clone(), id }
    }

    /// Somebody wants to know of each transaction, until this is dropped: a primary tells them only then.
    pub fn interest(self: &Arc<Self>) -> Interest {
        self.interest.fetch_add(1, Ordering::SeqCst);
        if let Some(wanted) = self.wanted.get() {
            wanted();
        }
        Interest(self.clone())
    }

    /// Whether there is anybody.
    pub fn is_wanted(&self) -> bool {
        self.interest.load(Ordering::SeqCst) > 0
    }

    /// Has `f` called whenever there is one more; once.
    pub fn on_interest(&self, f: impl Fn() + Send + Sync + 'static) {
        // A second one is a mistake of the node that owns the feed, and changes nothing.
        let _ = self.wanted.set(Arc::new(f));
    }
}

/// See [`Feed::on_news`].
#[must_use = "dropped it calls no more"]
pub struct NewsGuard {
    feed: Arc<Feed>,
    id: u64,
}

impl Drop for NewsGuard {
    fn drop(&mut self) {
        self.feed.hooks.write().all.retain(|(id, _)| *id != self.id);
    }
}

/// See [`Feed::interest`].
#[must_use = "dropped it is none"]
pub struct Interest(Arc<Feed>);

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.interest.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A reader.
pub struct Subscription {
    feed: Arc<Feed>,
    filter: Filter,
    at: Cursor,
    _interest: Option<Interest>,
}

impl Subscription {
    /// What there is now, oldest first, at most `max`; never waits, but [may read the log](Subscription::lags).
    pub fn next(&mut self, max: usize) -> Vec<Arc<Event>> {
        let mut passed = Vec::new();
        let mut found = Vec::new();
        while passed.len() < max {
            let step =
                self.feed.inner.lock().step(&mut self.at, &self.filter, max - passed.len(), &mut found);
            passed.extend(found.drain(..).filter_map(|e| self.filter.pass(&e)));
            match step {
                Step::End => break,
                Step::Full => {}
                Step::Read(missing) => {
                    let most = (max - passed.len()).min(PORTION);
                    let past = missing.history.read(missing.after, missing.upto, most);
                    self.take(past, &missing, &mut passed);
                }
            }
        }
        passed
    }

    /// Takes what was read of the log, unless it was taken back meanwhile.
    fn take(&mut self, past: Past, missing: &Missing, passed: &mut Vec<Arc<Event>>) {
        let inner = self.feed.inner.lock();
        if inner.taken_back != missing.taken_back {
            return;
        }
        // What neither is there nor ends short of anything is gone as well: a reader always gets on.
        let stuck = past.events.is_empty() && past.upto <= missing.after;
        let gone = if stuck { Some(past.gone.unwrap_or(missing.upto)) } else { past.gone };
        if let Some(gone) = gone.map(|gone| gone.min(missing.upto)).filter(|&gone| gone > self.at.seq) {
            inner.skip(&mut self.at, gone, passed);
        }
        let from = self.at.seq;
        for event in past.events.into_iter().filter(|e| (from + 1..=missing.upto).contains(&e.seq)) {
            let event = inner.data(event);
            self.at = self.at.after(&event);
            passed.extend(self.filter.pass(&event));
        }
        self.at.seq = self.at.seq.max(past.upto.min(missing.upto));
    }

    /// Waits until there may be something, or until then; says whether there may be.
    pub fn wait(&self, until: Instant) -> bool {
        let mut inner = self.feed.inner.lock();
        while !inner.has_news(self.at, &self.filter) {
            if self.feed.news.wait_until(&mut inner, until).timed_out() {
                return inner.has_news(self.at, &self.filter);
            }
        }
        true
    }

    /// Whether [`Subscription::next`] has to read from the disk.
    pub fn lags(&self) -> bool {
        self.filter.wants_data() && self.feed.inner.lock().lags(self.at)
    }

    /// Where it is: behind everything that it gave and everything that did not pass.
    pub fn cursor(&self) -> Cursor {
        self.at
    }

    /// Reads on from there.
    pub fn seek(&mut self, to: Cursor) {
        self.at = to;
    }

    /// What it reads.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }
}
