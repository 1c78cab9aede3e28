//! The thread of a rule: it takes events out of the feed, and tells them when it is time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::event::{Cursor, Event, Kind};
use crate::feed::Subscription;
use crate::notify::memory::Memory;
use crate::notify::notice::Notice;
use crate::notify::way::{Teller, Way};
use crate::notify::{Every, Shared};

/// Notices that a rule has in hand. What does not fit stays in the feed.
const IN_HAND: usize = 16;
/// Events that are read of the feed at a time.
const PORTION: usize = 64;
/// Portions that are read before it is looked whether it is time.
const PORTIONS: usize = 64;
/// Who could not be told is not told again so soon, whatever happens.
const AGAIN: Duration = Duration::from_secs(1);
/// The same when nothing else happens.
const AGAIN_UNASKED: Duration = Duration::from_secs(30);

/// What a rule works with.
pub(crate) struct Desk {
    pub every: Every,
    /// Where the primary's instructions are seen ahead of what is pending, if the rule waits for them.
    pub demands: Option<Subscription>,
    /// Instructions that have been seen and not told yet.
    pub demanded: usize,
    pub reader: Subscription,
    pub way: Way,
    /// How long one telling may take.
    pub limit: Duration,
    pub memory: Memory,
    pub pending: VecDeque<Notice>,
    pub not_before: Option<Instant>,
    /// What is pending could not be told, and nothing has come since: not before then.
    pub again_at: Option<Instant>,
    pub shared: Arc<Shared>,
}

enum Next {
    Tell,
    Sleep(Option<Instant>),
    End,
}

impl Desk {
    /// Works until it is stopped.
    pub fn work(mut self) {
        let mut teller = Teller::new(self.way.clone());
        loop {
            self.gather(teller.lists());
            match self.next() {
                Next::Tell => {
                    if !self.tell_all(&mut teller) && self.shared.stop_by().is_some() {
                        return;
                    }
                }
                Next::Sleep(until) => self.shared.sleep(until),
                Next::End => return,
            }
        }
    }

    /// Takes what there is; of a rule that waits for instructions, what there is up to the last of them.
    fn gather(&mut self, list: bool) {
        if let Some(demands) = &mut self.demands {
            self.demanded += demands.next(PORTION).iter().filter(|e| e.kind == Kind::Demand).count();
            if self.demanded == 0 {
                return;
            }
        }
        let (portion, portions) = if self.demands.is_some() { (1, usize::MAX) } else { (PORTION, PORTIONS) };
        for turn in 0.. {
            if turn == portions || self.pending.len() >= IN_HAND {
                return;
            }
            let mut at = self.reader.cursor();
            let events = self.reader.next(portion);
            for event in &events {
                at = at.after(event);
                self.add(event, at, list);
            }
            let last = events.last();
            if self.demands.is_some() && last.is_some_and(|e| e.kind == Kind::Demand) {
                self.demanded -= 1;
                if self.demanded == 0 {
                    return;
                }
            }
            if last.is_none() {
                break;
            }
        }
        // An instruction that is not there any more is part of a gap.
        self.demanded = 0;
        if self.pending.is_empty() {
            let at = self.reader.cursor();
            self.memory.passed(at);
            self.shared.slot.lock().told = at;
        }
    }

    fn add(&mut self, event: &Arc<Event>, upto: Cursor, list: bool) {
        self.again_at = None;
        let left_out = match self.pending.back_mut().filter(|last| last.takes(event)) {
            Some(last) => last.add(event, upto, list),
            None => {
                let (notice, left_out) = Notice::new(event, upto, list);
                self.pending.push_back(notice);
                left_out
            }
        };
        self.shared.left_out.add(left_out);
    }

    fn next(&self) -> Next {
        if self.shared.stop_by().is_some() {
            return if self.pending.is_empty() { Next::End } else { Next::Tell };
        }
        if self.pending.is_empty() {
            return Next::Sleep(None);
        }
        match self.not_before.max(self.again_at) {
            Some(at) if Instant::now() < at => Next::Sleep(Some(at)),
            _ => Next::Tell,
        }
    }

    /// Tells what is pending, oldest first, until one can't be told; says whether all were.
    fn tell_all(&mut self, teller: &mut Teller) -> bool {
        let start = Instant::now();
        if let Every::Spell(every) = self.every {
            self.not_before = start.checked_add(every);
        }
        while let Some(notice) = self.pending.front() {
            let left = self.shared.stop_by().map(|by| by.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                self.shared.failed.add(1);
                warn!(seq = notice.event.seq, "no time left to tell {} of the last changes", self.way);
                return false;
            }
            let shared = &self.shared;
            match teller.tell(notice, left.unwrap_or(self.limit), |pause| shared.pause(pause)) {
                Ok(true) => shared.sent.add(1),
                Ok(false) => {}
                Err(e) => {
                    shared.failed.add(1);
                    warn!(seq = notice.event.seq, "a consumer was not told: {e}");
                    if !e.was_told() {
                        let now = Instant::now();
                        self.not_before = self.not_before.max(now.checked_add(AGAIN));
                        self.again_at = now.checked_add(AGAIN_UNASKED);
                        return false;
                    }
                }
            }
            let upto = notice.upto;
            self.pending.pop_front();
            self.memory.told(upto);
            self.shared.slot.lock().told = upto;
        }
        true
    }
}
