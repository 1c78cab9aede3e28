//! Whatever its pace, its filter and the size of what is kept: a reader gets every event that it wants, in order, or a gap
//! that covers exactly what it did not get.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nasd_watcher::feed::{Dropped, Feed, Fork, History, Past};
use nasd_watcher::{Cursor, Event, Filter, Journal, Kind, Since, Subscription};
use parking_lot::Mutex;
use proptest::prelude::*;

fn event(seq: u64, n: u64, kind: Kind) -> Event {
    Event::new(kind, Cursor { seq, n }, 1, "2026-11-23T04:57:57.000000Z".to_owned())
}

/// Odd transactions change `odd/…`, and each is of a history.
fn data(seq: u64, history: u64) -> Event {
    let path = if seq % 2 == 1 { format!("odd/{seq}") } else { format!("even/{seq}") };
    Event { epoch: history, paths: vec![path.into_bytes()], ..event(seq, 0, Kind::Data) }
}

/// The log of a node.
#[derive(Default)]
struct Log {
    txns: Mutex<BTreeMap<u64, Event>>,
    /// Everything up to here was pruned.
    pruned: Mutex<u64>,
}

impl History for Log {
    fn read(&self, after: u64, upto: u64, most: usize) -> Past {
        let pruned = *self.pruned.lock();
        let from = after.max(pruned);
        let txns = self.txns.lock();
        let there = txns.range(from + 1..).map(|(_, e)| e.clone()).take_while(|e| e.seq <= upto);
        let events: Vec<Event> = there.take(most).collect();
        Past { gone: (pruned > after).then_some(pruned), upto: events.last().map_or(upto, |e| e.seq), events }
    }

    fn acknowledged(&self) -> Option<u64> {
        None
    }
}

/// What may happen to a node.
#[derive(Debug, Clone)]
enum Act {
    /// Transactions that are applied, and told at once.
    Apply(u64),
    /// Transactions that are shown, and for whoever wants them in the log only.
    Show(u64),
    /// A state event; many of them drop the oldest.
    State(usize),
    /// The oldest transactions are pruned.
    Prune(u64),
    /// So many transactions are taken back.
    TakeBack(u64),
    /// The process starts anew: what it knows is its log and its journal.
    Restart,
    /// The reader reads so many.
    Read(usize),
    /// The reader goes away and comes again with the last id that it had.
    Reconnect,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1_u64..40).prop_map(Act::Apply),
        1 => (4000_u64..4200).prop_map(Act::Apply),
        2 => (1_u64..40).prop_map(Act::Show),
        3 => (1_usize..4).prop_map(Act::State),
        1 => (4090_usize..4110).prop_map(Act::State),
        2 => (1_u64..50).prop_map(Act::Prune),
        1 => (1_u64..20).prop_map(Act::TakeBack),
        1 => Just(Act::Restart),
        6 => (1_usize..100).prop_map(Act::Read),
        2 => Just(Act::Reconnect),
    ]
}

/// A node, and what of it is true.
struct World {
    feed: Arc<Feed>,
    log: Arc<Log>,
    shown: u64,
    n: u64,
    history: u64,
    /// The state events of all times.
    states: Vec<Event>,
    dropped: Dropped,
    /// Those that the journal has.
    kept: Vec<Event>,
}

impl World {
    fn new() -> World {
        let log = Arc::<Log>::default();
        let feed = Arc::new(Feed::default());
        feed.open(log.clone(), 0);
        let (states, kept) = (Vec::new(), Vec::new());
        World { feed, log, shown: 0, n: 0, history: 1, states, dropped: Dropped::default(), kept }
    }

    fn commit(&mut self) -> Event {
        self.shown += 1;
        let event = data(self.shown, self.history);
        self.log.txns.lock().insert(self.shown, event.clone());
        event
    }

    fn tell(&mut self, taken_back: Option<u64>) {
        self.n += 1;
        let event = Event { taken_back, ..event(self.shown, self.n, Kind::Sync) };
        self.states.push(event.clone());
        self.kept.push(event.clone());
        if self.kept.len() > 4096 {
            self.dropped = self.dropped.and(&self.kept.remove(0));
        }
        self.feed.push(event);
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Apply(n) => {
                for _ in 0..n {
                    let since = self.shown;
                    let event = self.commit();
                    self.feed.push_data(since, event);
                }
            }
            Act::Show(n) => {
                for _ in 0..n {
                    self.commit();
                }
                self.feed.shows(self.shown);
            }
            Act::State(n) => (0..n).for_each(|_| self.tell(None)),
            Act::Prune(n) => {
                let mut pruned = self.log.pruned.lock();
                *pruned = self.shown.min(*pruned + n);
                let kept = self.log.txns.lock().split_off(&(*pruned + 1));
                *self.log.txns.lock() = kept;
            }
            Act::TakeBack(n) => {
                let from = self.shown;
                let to = from.saturating_sub(n).max(*self.log.pruned.lock());
                if to < from {
                    self.log.txns.lock().retain(|seq, _| *seq <= to);
                    self.shown = to;
                    self.history += 1;
                    self.tell(Some(from));
                }
            }
            Act::Restart => {
                let feed = Feed::default();
                feed.resume(self.dropped, self.kept.clone());
                feed.open(self.log.clone(), self.shown);
                self.feed = Arc::new(feed);
            }
            Act::Read(_) | Act::Reconnect => {}
        }
    }
}

/// What a reader should have had, and had.
struct Reader {
    subscription: Subscription,
    odd_only: bool,
    wants_states: bool,
    at: Cursor,
    /// What it has of each transaction: of which history.
    seen: BTreeMap<u64, u64>,
    /// Transactions and state events that a gap said it does not get.
    skipped: Vec<(u64, u64)>,
    skipped_states: Vec<(u64, u64)>,
    states: Vec<u64>,
}

impl Reader {
    fn filter(odd_only: bool, wants_states: bool) -> Filter {
        match (odd_only, wants_states) {
            (true, true) => Filter::new(&["odd/*"], &[Kind::Sync]).unwrap(),
            (true, false) => Filter::new(&["odd/*"], &[]).unwrap(),
            (false, true) => Filter::all(),
            (false, false) => Filter::new(&["**"], &[]).unwrap(),
        }
    }

    fn new(world: &World, odd_only: bool, wants_states: bool) -> Reader {
        let subscription =
            world.feed.subscribe(Reader::filter(odd_only, wants_states), Some(Cursor::default()));
        Reader {
            subscription,
            odd_only,
            wants_states,
            at: Cursor::default(),
            seen: BTreeMap::new(),
            skipped: Vec::new(),
            skipped_states: Vec::new(),
            states: Vec::new(),
        }
    }

    /// From the last id that it had itself: what it has on its own is less than what the feed knows of it.
    fn reconnect(&mut self, world: &World) {
        let from = world.feed.cursor(Since::Id(self.at));
        self.subscription =
            world.feed.subscribe(Reader::filter(self.odd_only, self.wants_states), Some(from));
    }

    fn read(&mut self, world: &World, most: usize) -> usize {
        let events = self.subscription.next(most);
        assert!(events.len() <= most + 1, "{} of {most}", events.len());
        for e in &events {
            self.take(world, e);
        }
        events.len()
    }

    fn take(&mut self, world: &World, e: &Event) {
        let forked = || world.states.iter().any(|s| s.taken_back.is_some() && s.seq < e.seq);
        if e.kind == Kind::Data && e.seq <= self.at.seq && forked() {
            // What it is not told, or was told too long ago, it is not told; it begins again at a fork all the same.
            self.at.seq = e.seq - 1;
        }
        match e.kind {
            Kind::Data => {
                assert!(e.seq > self.at.seq, "{e} behind {}", self.at);
                assert!(!self.odd_only || e.seq % 2 == 1, "not asked for: {e}");
                // Nothing between is left out without a word.
                for seq in self.at.seq + 1..e.seq {
                    let asked = !self.odd_only || seq % 2 == 1;
                    assert!(!asked, "{e} behind {}: {seq} is missing", self.at);
                }
                self.seen.insert(e.seq, e.epoch);
            }
            Kind::Gap => {
                let [old, new]: [Cursor; 2] =
                    [&e.old, &e.new].map(|id| id.as_ref().unwrap().parse::<Cursor>().unwrap());
                if e.reason.starts_with("state events") {
                    assert!(self.wants_states && old.n == self.at.n + 1, "{e} behind {}", self.at);
                    self.skipped_states.push((old.n, new.n));
                } else {
                    self.skipped.push((old.seq, new.seq));
                }
            }
            _ => {
                assert!(self.wants_states);
                assert_eq!(e.id.n, self.at.n + 1, "{e} behind {}", self.at);
                self.states.push(e.id.n);
            }
        }
        self.at = self.at.after(e);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("NASD_TEST_LONG").is_some() { 2000 } else { 60 }))]
    #[test]
    fn nothing_is_missed_without_a_word(
        acts in proptest::collection::vec(act(), 1..60),
        odd_only: bool,
        wants_states: bool,
    ) {
        let mut world = World::new();
        let mut reader = Reader::new(&world, odd_only, wants_states);
        for act in &acts {
            world.act(act);
            match act {
                Act::Read(n) => { reader.read(&world, *n); }
                Act::Reconnect | Act::Restart => reader.reconnect(&world),
                _ => {}
            }
        }
        while reader.read(&world, 1000) > 0 {}
        prop_assert_eq!(reader.subscription.cursor(), Cursor { seq: world.shown, n: world.n });
        let covered = |ranges: &[(u64, u64)], x: u64| ranges.iter().any(|(a, b)| (*a..=*b).contains(&x));
        // What is in the log is of the history that it is of; what is not was pruned.
        for seq in (1..=world.shown).filter(|seq| !odd_only || seq % 2 == 1) {
            let there = world.log.txns.lock().get(&seq).map(|e| e.epoch);
            match (reader.seen.get(&seq), there) {
                (Some(seen), Some(there)) => prop_assert_eq!(*seen, there, "transaction {}", seq),
                (Some(_), None) => {}
                (None, _) => prop_assert!(covered(&reader.skipped, seq), "transaction {} is missing", seq),
            }
        }
        for (old, new) in &reader.skipped {
            prop_assert!(old <= new, "{} to {} is no gap", old, new);
        }
        if wants_states {
            for n in 1..=world.n {
                let had = reader.states.contains(&n);
                prop_assert_eq!(had, !covered(&reader.skipped_states, n), "state event {}", n);
            }
        } else {
            prop_assert!(reader.states.is_empty() && reader.skipped_states.is_empty());
        }
    }

    #[test]
    fn a_journal_keeps_what_was_written_whatever_is_torn_off(count in 1_u64..50, cut in 0_usize..400) {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, kept) = Journal::open(dir.path()).unwrap();
        prop_assert_eq!(kept, nasd_watcher::Kept::default());
        let now = nasd_watcher::event::now();
        let events: Vec<Event> =
            (1..=count).map(|n| Event { time: now.clone(), ..event(n, n, Kind::Disk) }).collect();
        let (a, b) = events.split_at(events.len() / 2);
        journal.append(a).unwrap();
        journal.append(b).unwrap();
        drop(journal);
        let path = dir.path().join("journal");
        let text = std::fs::read(&path).unwrap();
        let cut = cut.min(text.len());
        std::fs::write(&path, &text[..text.len() - cut]).unwrap();
        let whole = text[..text.len() - cut].split(|b| *b == b'\n').count() - 1;
        let (mut journal, kept) = Journal::open(dir.path()).unwrap();
        prop_assert_eq!(&kept.events[..], &events[..whole]);
        // It goes on behind what is left.
        let next = Event { time: now, ..event(1, whole as u64 + 1, Kind::Role) };
        journal.append([&next]).unwrap();
        drop(journal);
        let (_, kept) = Journal::open(dir.path()).unwrap();
        prop_assert_eq!(kept.events.last(), Some(&next));
    }
}

#[test]
fn a_journal_does_not_grow_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path()).unwrap();
    let now = nasd_watcher::event::now();
    let reason = "x".repeat(1000);
    for n in 1..=6000 {
        let event = Event { time: now.clone(), reason: reason.clone(), ..event(n, n, Kind::Disk) };
        journal.append([&event]).unwrap();
    }
    let len = std::fs::metadata(dir.path().join("journal")).unwrap().len();
    assert!(len < 3 << 20, "{len}");
    let (_, kept) = Journal::open(dir.path()).unwrap();
    let first = kept.events[0].id.n;
    assert_eq!(kept.dropped, Dropped { n: first - 1, fork: None });
    assert_eq!(kept.events.last().unwrap().id.n, 6000);
}

#[test]
fn what_is_too_old_is_dropped_and_a_fork_in_it_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path()).unwrap();
    let old = [
        event(50, 1, Kind::Role),
        Event { taken_back: Some(50), ..event(40, 2, Kind::Sync) },
        event(60, 3, Kind::Link),
    ]
    .map(|e| Event { time: "2020-01-01T00:00:00Z".to_owned(), ..e });
    let new = Event { time: nasd_watcher::event::now(), ..event(70, 4, Kind::Role) };
    journal.append(old.iter().chain([&new])).unwrap();
    drop(journal);
    let (_, kept) = Journal::open(dir.path()).unwrap();
    assert_eq!(kept.dropped, Dropped { n: 3, fork: Some(Fork { n: 2, to: 40 }) });
    assert_eq!(kept.events, [new]);
}

#[test]
fn a_reader_that_waits_is_woken_by_what_it_wants_and_sleeps_otherwise() {
    let feed = Arc::new(Feed::default());
    let reader = feed.subscribe(Filter::only(Kind::Role), None);
    let soon = || Instant::now() + Duration::from_millis(50);
    feed.push(event(1, 0, Kind::Data));
    assert!(!reader.wait(soon()), "a transaction is nothing to it");
    let pushing = feed.clone();
    let thread = std::thread::spawn(move || pushing.push(event(1, 1, Kind::Role)));
    assert!(reader.wait(Instant::now() + Duration::from_secs(20)));
    thread.join().unwrap();
}

#[test]
fn nobody_who_reads_slowly_holds_anything_up() {
    let feed = Arc::new(Feed::default());
    let mut slow = feed.subscribe(Filter::all(), None);
    let start = Instant::now();
    for seq in 1..=100_000 {
        feed.push(data(seq, 1));
    }
    println!("telling a transaction: {:?}", start.elapsed() / 100_000);
    let first = slow.next(1);
    // There is no log here: what the ring does not have is gone.
    assert_eq!(first[0].kind, Kind::Gap);
    assert_eq!((first[0].old.as_deref(), first[0].new.as_deref()), (Some("1.0"), Some("95904.0")));
    assert_eq!(slow.next(usize::MAX).len(), 4096);
    assert_eq!(slow.cursor().seq, 100_000);
}

#[test]
fn who_follows_hears_nothing_of_what_this_node_committed_itself() {
    let feed = Arc::new(Feed::default());
    let mut rule = feed.subscribe(Filter::all().following(), None);
    let mut other = feed.subscribe(Filter::all(), None);
    let seqs = |s: &mut Subscription| s.next(usize::MAX).iter().map(|e| e.seq).collect::<Vec<_>>();
    (1..=3).for_each(|seq| feed.push(data(seq, 1)));
    feed.begin_term(3);
    (4..=6).for_each(|seq| feed.push(data(seq, 1)));
    assert_eq!(seqs(&mut rule), [1, 2, 3]);
    feed.end_term(6);
    (7..=8).for_each(|seq| feed.push(data(seq, 1)));
    assert_eq!(seqs(&mut rule), [7, 8]);
    assert_eq!(seqs(&mut other), [1, 2, 3, 4, 5, 6, 7, 8]);
}
