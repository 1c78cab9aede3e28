//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Waits until `condition` gives something, at most 20 seconds.
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    eventually_within(Duration::from_secs(20), what, condition)
}

/// Waits until `condition` gives something; panics with `what` when it does not in time.
pub fn eventually_within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(t) = condition() {
            return t;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
