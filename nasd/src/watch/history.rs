//! What was seen of a node so far.

use super::Look;
use crate::status::Status;
use serde::Deserialize;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// So many looks are remembered.
const KEEP: usize = 120;

/// An event, as far as it is shown.
#[derive(Debug, Clone, Deserialize)]
pub struct Happened {
    pub time: String,
    #[serde(default)]
    pub reason: String,
}

/// The last looks.
#[derive(Debug, Default)]
pub struct History {
    pub status: Option<Status>,
    /// Why the last look saw nothing.
    pub trouble: Option<String>,
    /// Transactions a second, the oldest first.
    pub rates: VecDeque<u64>,
    /// For each peer the bytes that it lacks, the oldest first.
    pub lags: BTreeMap<String, VecDeque<u64>>,
    /// The last state events, the newest last.
    pub events: Vec<Happened>,
    /// When the last look was, and at which transaction.
    last: Option<(Instant, u64)>,
}

impl History {
    /// Takes a look in.
    pub fn note(&mut self, now: Instant, look: Look) {
        let (status, events) = match look {
            Ok(seen) => seen,
            Err(why) => {
                // How fast it was meanwhile nobody knows.
                self.last = None;
                self.trouble = Some(why);
                return;
            }
        };
        self.trouble = None;
        self.events = events;
        if let Some((then, seq)) = self.last {
            let seconds = now.duration_since(then).as_secs_f64();
            // A rewind goes back.
            let rate = status.seq.saturating_sub(seq) as f64 / seconds.max(f64::MIN_POSITIVE);
            push(&mut self.rates, rate.round() as u64);
        }
        self.last = Some((now, status.seq));
        self.lags.retain(|name, _| status.peers.iter().any(|p| p.name == *name));
        for peer in &status.peers {
            push(self.lags.entry(peer.name.clone()).or_default(), peer.lag_bytes);
        }
        self.status = Some(status);
    }
}

fn push<T>(to: &mut VecDeque<T>, value: T) {
    to.push_back(value);
    if to.len() > KEEP {
        to.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::view::tests::status;
    use std::time::Duration;

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let start = Instant::now();
        let mut history = History::default();
        for (second, seq) in [(0, 100), (1, 150), (3, 250), (4, 240)] {
            let mut seen = status();
            seen.seq = seq;
            history.note(start + Duration::from_secs(second), Ok((seen, Vec::new())));
        }
        assert_eq!(history.rates, [50, 50, 0]);
        history.note(start + Duration::from_secs(5), Err("gone".to_owned()));
        assert_eq!(history.trouble.as_deref(), Some("gone"));
        history.note(start + Duration::from_secs(50), Ok((status(), Vec::new())));
        assert_eq!(history.rates, [50, 50, 0], "nothing is known of the time without an answer");
        assert_eq!(history.trouble, None);
    }

    #[test]
    fn only_so_much_is_kept_and_peers_that_are_gone_are_not() {
        let mut history = History::default();
        for _ in 0..1000 {
            history.note(Instant::now(), Ok((status(), Vec::new())));
        }
        assert_eq!((history.rates.len(), history.lags["nas-b"].len()), (KEEP, KEEP));
        let mut alone = status();
        alone.peers.clear();
        history.note(Instant::now(), Ok((alone, Vec::new())));
        assert!(history.lags.is_empty());
    }
}
