//! One thread for everything that waits for the network, called from ordinary threads.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// What a call may take beyond its time: for the work to say itself what it waited for.
const GRACE: Duration = Duration::from_millis(20);

/// The thread. Dropped, it ends, whatever it waits for.
pub struct Driver {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("vote".to_owned()).spawn(move || {
            // Sent or dropped is the same.
            let _ = runtime.block_on(stopped);
            // A name that is being looked up can't be interrupted, and is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Does `work` over there, which keeps to `timeout` itself; `None`: it did not, and is given up.
    pub fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, result) = sync_channel(1);
        let task = self.handle.spawn(async move {
            // Nobody there: the caller has given up.
            let _ = done.send(work.await);
        });
        let result = result.recv_timeout(timeout.saturating_add(GRACE)).ok();
        task.abort();
        result
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
