//! What a consumer is told at a time: a state event, or many transactions in one, bounded.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;

use crate::event::{Cursor, Event, Kind, MOST_PATHS};

/// Events that a notice lists at most, where it lists them.
const MOST_EVENTS: usize = 500;

/// One telling.
#[derive(Debug)]
pub(crate) struct Notice {
    /// The newest of its events.
    pub event: Arc<Event>,
    /// All of them, for who wants each.
    pub events: Vec<Arc<Event>>,
    paths: BTreeSet<Vec<u8>>,
    /// Whether there are more paths than the list holds.
    more: bool,
    /// Behind it.
    pub upto: Cursor,
}

impl Notice {
    /// Of an event, behind which the reader is at `upto`; gives also how many of its paths found no place.
    pub fn new(event: &Arc<Event>, upto: Cursor, list: bool) -> (Notice, u64) {
        let (events, paths) = (Vec::new(), BTreeSet::new());
        let mut notice = Notice { event: event.clone(), events, paths, more: false, upto };
        let left_out = notice.add(event, upto, list);
        (notice, left_out)
    }

    /// Whether an event can be told with it. A state event is told alone, an instruction with what is pending.
    pub fn takes(&self, event: &Event) -> bool {
        self.event.kind == Kind::Data
            && matches!(event.kind, Kind::Data | Kind::Demand)
            && self.events.len() < MOST_EVENTS
    }

    /// Adds an event; gives how many of its paths found no place.
    pub fn add(&mut self, event: &Arc<Event>, upto: Cursor, list: bool) -> u64 {
        self.event = event.clone();
        self.upto = upto;
        if list {
            self.events.push(event.clone());
        }
        let mut left_out = 0;
        for path in &event.paths {
            if self.paths.contains(path) {
                continue;
            }
            // A path with a line break cannot be told on one line, and halves of it would be lies.
            if self.paths.len() >= MOST_PATHS || path.contains(&b'\n') {
                left_out += 1;
                continue;
            }
            self.paths.insert(path.clone());
        }
        self.more |= left_out > 0 || event.more;
        left_out
    }

    /// One path a line, in the order of their bytes; `...` at the end when not all are listed.
    pub fn write_paths(&self, out: &mut impl Write) -> io::Result<()> {
        for path in &self.paths {
            out.write_all(path)?;
            out.write_all(b"\n")?;
        }
        if self.more {
            out.write_all(b"...\n")?;
        }
        Ok(())
    }
}
