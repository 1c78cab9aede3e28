//! What last went wrong with the database: told once, and tried again after a while.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// What failed is tried again this much later.
const AGAIN: Duration = Duration::from_secs(5);

/// What was last told, and when the next attempt may be.
#[derive(Default)]
pub struct Trouble(Mutex<(String, Option<Instant>)>);

impl Trouble {
    /// Something succeeded.
    pub fn over(&self) {
        *self.0.lock() = (String::new(), None);
    }

    /// Something failed; whether that is news.
    pub fn note(&self, text: &str) -> bool {
        // The server's log in it has times and process numbers.
        let gist = |t: &str| t.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        let mut last = self.0.lock();
        let news = gist(&last.0) != gist(text);
        *last = (text.to_owned(), Some(Instant::now() + AGAIN));
        news
    }

    /// Whether it is too early for another attempt.
    pub fn waits(&self) -> bool {
        self.0.lock().1.is_some_and(|at| Instant::now() < at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once() {
        let trouble = Trouble::default();
        assert!(!trouble.waits());
        assert!(trouble.note("pid 17 ended at 12:01"));
        assert!(trouble.waits());
        assert!(!trouble.note("pid 18 ended at 12:02"));
        assert!(trouble.note("the disk is full"));
        trouble.over();
        assert!(!trouble.waits());
        assert!(trouble.note("the disk is full"));
    }
}
