//! A thread that commits row after row, and knows which of them were acknowledged.

use anyhow::{Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// The thread.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Writer {
    /// Goes on behind row `last`; `commit` returns when the row of this number is committed.
    pub fn start(last: u64, mut commit: impl FnMut(u64) -> Result<()> + Send + 'static) -> Result<Writer> {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(last));
        let (stopped, done) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = std::thread::Builder::new().name("writer".into()).spawn(move || {
            for id in last + 1.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                commit(id)?;
                // Now, and not before, COMMIT has returned.
                done.store(id, Ordering::SeqCst);
            }
            Ok(())
        })?;
        Ok(Writer { stop, acknowledged, thread })
    }

    /// The last row whose COMMIT returned.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// It has failed.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it in order, and its connection; the last row whose COMMIT returned.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        match self.end() {
            (n, None) => Ok(n),
            (n, Some(e)) => Err(e.context(format!("the database, writing row {}", n + 1))),
        }
    }

    /// Waits until it fails, as it must when the volume is gone; the last row whose COMMIT returned, and the error.
    pub fn wait_for_failure(self) -> Result<(u64, String)> {
        match self.end() {
            (n, Some(e)) => Ok((n, format!("{e:#}"))),
            (n, None) => bail!("the writer ended by itself at row {n}"),
        }
    }

    fn end(self) -> (u64, Option<anyhow::Error>) {
        // A panic of the thread has ended the process.
        let error = self.thread.join().ok().and_then(Result::err);
        (self.acknowledged.load(Ordering::SeqCst), error)
    }
}
