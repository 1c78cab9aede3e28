//! What the tests share.

use std::time::{Duration, Instant};

/// Far more than anything here takes, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Waits until the condition holds.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "in vain waited for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
