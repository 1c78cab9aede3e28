//! What comes from the servers, in the order and with the numbers of a feed of this host's own.
//!
//! Transactions have the same numbers on all nodes. State events are numbered by each node for itself, so they get numbers
//! of this feed's own; which place in which node's events belongs to a place in this feed is remembered until all rules
//! have told what is before it.

use super::place::Place;
use crate::terms::Terms;
use nasd_watcher::Feed;
use nasd_watcher::event::{Cursor, Event, Kind, now};
use std::collections::VecDeque;
use std::sync::Arc;

/// Places that are remembered. When there are more, only some: then more is told again after a restart.
const REMEMBERED: usize = 8192;

/// What comes in.
pub struct Inbox {
    /// Of this host; rules read it.
    pub feed: Arc<Feed>,
    /// The last transaction.
    seq: u64,
    /// The history that it is of, and how far that has come; behind `seq` there is nothing in it that was asked for.
    terms: Terms,
    /// The number of the last state event.
    n: u64,
    /// Behind the last event.
    at: Place,
    /// What is in the feed and may not be told by all: its place there and where it came from.
    untold: VecDeque<(Cursor, Place)>,
}

impl Inbox {
    /// Goes on there.
    pub fn resume(at: Place) -> Inbox {
        let seq = at.id.seq;
        let feed = Arc::new(Feed::default());
        feed.shows(seq);
        Inbox { feed, seq, terms: at.terms.clone(), n: 0, at, untold: VecDeque::new() }
    }

    /// Behind what has come.
    pub fn at(&self) -> &Place {
        &self.at
    }

    /// The server says that it is there: everything before it has come. The transaction is of this epoch, if that is known.
    pub fn reached(&mut self, node: &str, id: Cursor, epoch: Option<u64>) {
        if let Some(epoch) = epoch
            && self.terms.has(id.seq, epoch).is_none()
        {
            self.terms.reach(id.seq, epoch);
        }
        self.note(node, id);
    }

    /// Takes an event, behind which the reader is at `id` of this node.
    pub fn take(&mut self, event: Event, node: &str, id: Cursor) {
        match event.kind {
            Kind::Data => self.take_data(event),
            Kind::Gap => self.take_gap(&event),
            _ => self.take_state(event),
        }
        self.note(node, id);
    }

    fn take_data(&mut self, event: Event) {
        let new = event.seq > self.seq;
        let known = self.terms.has(event.seq, event.epoch);
        if known == Some(true) && !new {
            // Told by another server before.
            return;
        }
        if known == Some(false) || known.is_none() && !new {
            self.fork(event.seq.saturating_sub(1), event.epoch);
        }
        if known != Some(true) {
            self.terms.reach(event.seq, event.epoch);
        }
        let since = std::mem::replace(&mut self.seq, event.seq);
        self.feed.push_data(since, event);
    }

    /// Another history goes on behind this transaction: what came of the old one is taken back.
    fn fork(&mut self, to: u64, epoch: u64) {
        let event = Event {
            reason: format!("epoch {epoch} goes on behind transaction {to}"),
            taken_back: Some(self.seq),
            ..Event::new(Kind::Sync, Cursor { seq: to, n: 0 }, epoch, now())
        };
        self.take_state(event);
    }

    /// The feed makes a gap of its own of transactions that it does not have.
    fn take_gap(&mut self, event: &Event) {
        tracing::warn!("{}: {} to {}", event.reason, word(event.old.as_ref()), word(event.new.as_ref()));
        if event.seq > self.seq {
            self.seq = event.seq;
            self.feed.shows(self.seq);
        }
    }

    fn take_state(&mut self, event: Event) {
        self.n += 1;
        if event.taken_back.is_some() {
            self.seq = self.seq.min(event.seq);
            self.terms.cut(event.seq);
        }
        self.feed.push(Event { id: Cursor { seq: event.seq, n: self.n }, ..event });
    }

    fn note(&mut self, node: &str, id: Cursor) {
        // What came of another server may be ahead of this one.
        let mut terms = self.terms.clone();
        terms.cut(id.seq);
        let place = Place { node: node.to_owned(), id, terms };
        if self.at == place {
            return;
        }
        if self.untold.len() >= REMEMBERED {
            self.untold.pop_back();
        }
        self.untold.push_back((Cursor { seq: self.seq, n: self.n }, place.clone()));
        self.at = place;
    }

    /// Where to begin after a restart, if it is elsewhere than when this was last asked: everything before has been told by
    /// all. `all_told` says of a place in the feed whether all have.
    pub fn told(&mut self, all_told: impl Fn(Cursor) -> bool) -> Option<Place> {
        let n = self.untold.iter().take_while(|(at, _)| all_told(*at)).count();
        self.untold.drain(..n).next_back().map(|(_, place)| place)
    }
}

fn word(id: Option<&String>) -> &str {
    id.map_or("?", String::as_str)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use nasd_watcher::Filter;

    fn data(seq: u64, epoch: u64) -> Event {
        event(Kind::Data, seq, epoch, None)
    }

    fn event(kind: Kind, seq: u64, epoch: u64, taken_back: Option<u64>) -> Event {
        Event {
            paths: vec![b"file".to_vec()],
            taken_back,
            ..Event::new(kind, Cursor { seq, n: 0 }, epoch, String::new())
        }
    }

    fn id(seq: u64, n: u64) -> Cursor {
        Cursor { seq, n }
    }

    fn place(node: &str, seq: u64, n: u64, terms: &str) -> Place {
        let terms = if terms.is_empty() { Terms::default() } else { terms.parse().unwrap() };
        Place { node: node.to_owned(), id: id(seq, n), terms }
    }

    fn seen(inbox: &Inbox) -> Vec<(Kind, u64)> {
        let mut reader = inbox.feed.subscribe(Filter::all(), Some(Cursor::default()));
        reader.next(1000).iter().map(|e| (e.kind, e.seq)).collect()
    }

    #[test]
    fn what_two_servers_tell_is_told_once() {
        use Kind::{Data, Link, Role};
        let mut inbox = Inbox::resume(place("a", 0, 90, ""));
        inbox.take(data(1, 1), "a", id(1, 90));
        inbox.take(event(Kind::Link, 1, 1, None), "a", id(1, 91));
        inbox.take(data(2, 1), "a", id(2, 91));
        // The other one numbers its states for itself.
        inbox.take(event(Kind::Role, 1, 2, None), "b", id(1, 3));
        inbox.take(data(2, 1), "b", id(2, 3));
        inbox.take(data(3, 2), "b", id(3, 3));
        // Whoever reads from the beginning finds a state behind the transaction that was shown at the time.
        assert_eq!(seen(&inbox), [(Data, 1), (Link, 1), (Role, 1), (Data, 2), (Data, 3)]);
        assert_eq!(inbox.at(), &place("b", 3, 3, "3@2,2@1"));
    }

    #[test]
    fn another_history_is_told_from_the_fork_on() {
        let mut inbox = Inbox::resume(place("a", 0, 0, ""));
        for seq in 1..=5 {
            inbox.take(data(seq, 1), "a", id(seq, 0));
        }
        let mut reader = inbox.feed.subscribe(Filter::all(), Some(Cursor { seq: 5, n: 0 }));
        inbox.take(data(4, 2), "b", id(4, 0));
        inbox.take(data(5, 2), "b", id(5, 0));
        let told: Vec<_> = reader.next(10).iter().map(|e| (e.kind, e.seq, e.epoch)).collect();
        assert_eq!(told, [(Kind::Sync, 3, 2), (Kind::Data, 4, 2), (Kind::Data, 5, 2)]);
    }

    /// What a reader is told who has had everything before.
    fn news(inbox: &mut Inbox, events: Vec<Event>) -> Vec<(Kind, u64, u64)> {
        let mut reader = inbox.feed.subscribe(Filter::all(), None);
        for event in events {
            let at = id(event.seq, 0);
            inbox.take(event, "b", at);
        }
        reader.next(100).iter().map(|e| (e.kind, e.seq, e.epoch)).collect()
    }

    #[test]
    fn after_a_restart_it_is_known_what_history_was_told() {
        use Kind::{Data, Sync};
        let mut inbox = Inbox::resume(place("a", 5, 0, "5@3,2@1"));
        // The same one, of a server that is behind.
        assert_eq!(news(&mut inbox, vec![data(2, 1), data(4, 3), data(5, 3), data(6, 3)]), [(Data, 6, 3)]);
        // One that has nothing of epoch 3, and more of the one before.
        let told = news(&mut inbox, vec![data(3, 1), data(4, 4)]);
        assert_eq!(told, [(Sync, 2, 1), (Data, 3, 1), (Data, 4, 4)]);
        assert_eq!(inbox.at(), &place("b", 4, 0, "4@4,3@1"));
    }

    #[test]
    fn a_server_says_how_far_it_is_though_nothing_was_asked_for() {
        use Kind::{Data, Sync};
        let mut inbox = Inbox::resume(place("a", 2, 0, "2@1"));
        inbox.reached("a", id(9, 0), Some(3));
        assert_eq!(inbox.at(), &place("a", 9, 0, "9@3,2@1"));
        assert_eq!(news(&mut inbox, vec![data(5, 4)]), [(Sync, 4, 4), (Data, 5, 4)]);
        // And one that is behind all that says nothing new.
        inbox.reached("b", id(1, 0), Some(1));
        assert_eq!(inbox.at(), &place("b", 1, 0, "1@1"));
        assert_eq!(news(&mut inbox, vec![data(5, 4), data(6, 4)]), [(Data, 6, 4)]);
    }

    #[test]
    fn what_is_gone_is_a_gap() {
        let mut inbox = Inbox::resume(place("a", 3, 0, ""));
        inbox.take(event(Kind::Gap, 9, 0, None), "a", id(9, 0));
        inbox.take(data(10, 1), "a", id(10, 0));
        let mut reader = inbox.feed.subscribe(Filter::all(), Some(Cursor { seq: 3, n: 0 }));
        let told: Vec<_> = reader.next(10).iter().map(|e| (e.kind, e.seq)).collect();
        assert_eq!(told, [(Kind::Gap, 9), (Kind::Data, 10)]);
    }

    #[test]
    fn a_restart_begins_behind_what_all_have_told() {
        let mut inbox = Inbox::resume(place("a", 7, 7, ""));
        assert_eq!(inbox.told(|_| true), None);
        inbox.take(data(8, 1), "a", id(8, 7));
        inbox.take(event(Kind::Link, 8, 1, None), "a", id(8, 8));
        inbox.take(data(9, 1), "a", id(9, 8));
        assert_eq!(inbox.told(|_| false), None);
        assert_eq!(inbox.told(|at| at.seq <= 8), Some(place("a", 8, 8, "8@1")));
        assert_eq!(inbox.told(|at| at.seq <= 8), None);
        for seq in 10..20_000 {
            inbox.take(data(seq, 1), "a", id(seq, 8));
        }
        assert!(inbox.untold.len() <= REMEMBERED);
        assert_eq!(inbox.told(|_| true), Some(place("a", 19_999, 8, "19999@1")));
    }
}
