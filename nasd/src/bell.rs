//! Wakes a thread that sleeps until something has to be done.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// Rung by anybody, heard once. Clones are the same bell.
#[derive(Debug, Clone, Default)]
pub struct Bell(Arc<(Mutex<bool>, Condvar)>);

impl Bell {
    pub fn ring(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_one();
    }

    /// Returns when it is rung, or was since the last time, or when the time is up.
    pub fn wait(&self, at_most: Duration) {
        let mut rung = self.0.0.lock();
        if !*rung {
            self.0.1.wait_for(&mut rung, at_most);
        }
        *rung = false;
    }
}
