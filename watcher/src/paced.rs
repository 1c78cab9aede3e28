//! Something that is done soon after it is asked for, at most every so often, on a thread of its own.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct Asked {
    pending: bool,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Asked>,
    bell: Condvar,
}

/// The thread; dropping it ends it after what it is doing.
pub struct Paced {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Paced {
    /// Starts the thread. `work` is called at once after a quiet spell, then at most once `every`; what is asked for
    /// meanwhile is one call.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(name: &str, every: Duration, mut work: impl FnMut() + Send + 'static) -> io::Result<Paced> {
        let shared = Arc::new(Shared::default());
        let here = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut not_before: Option<Instant> = None;
            while here.next(not_before) {
                not_before = Instant::now().checked_add(every);
                work();
            }
        })?;
        Ok(Paced { shared, thread: Some(thread) })
    }

    /// Asks for it; never waits.
    pub fn ask(&self) {
        let mut asked = self.shared.asked.lock();
        // Who is awake already need not be woken.
        if !std::mem::replace(&mut asked.pending, true) {
            self.shared.bell.notify_one();
        }
    }
}

impl Shared {
    /// Waits until it is asked for and time; false: the end.
    fn next(&self, not_before: Option<Instant>) -> bool {
        let mut asked = self.asked.lock();
        loop {
            if asked.stopping {
                return false;
            }
            match not_before {
                _ if !asked.pending => self.bell.wait(&mut asked),
                Some(at) if Instant::now() < at => {
                    self.bell.wait_until(&mut asked, at);
                }
                _ => {
                    asked.pending = false;
                    return true;
                }
            }
        }
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.shared.asked.lock().stopping = true;
        self.shared.bell.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_first_comes_at_once_and_the_rest_together_when_it_is_time() -> io::Result<()> {
        let every = Duration::from_millis(200);
        let (tx, rx) = mpsc::channel();
        let start = Instant::now();
        let paced = Paced::start("paced", every, move || {
            let _ = tx.send(start.elapsed());
        })?;
        paced.ask();
        let first = rx.recv_timeout(Duration::from_secs(10)).map_err(io::Error::other)?;
        for _ in 0..100 {
            paced.ask();
        }
        let second = rx.recv_timeout(Duration::from_secs(10)).map_err(io::Error::other)?;
        assert!(second + Duration::from_millis(5) >= first + every, "{first:?} {second:?}");
        drop(paced);
        assert!(rx.recv().is_err(), "nothing more was asked for");
        Ok(())
    }
}
