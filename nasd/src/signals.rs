//! The signals that ask a process to end.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What asks a service to end. SIGHUP is not among them: `nohup` must go on to mean what it does.
pub const OF_A_SERVICE: &[SignalKind] = &[SignalKind::interrupt(), SignalKind::terminate()];

/// What asks a program in a terminal to end.
pub const IN_A_TERMINAL: &[SignalKind] =
    &[SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];

/// Signals that do not find their default action any more, from its making to the process's end.
pub struct Signals(Vec<(SignalKind, Signal)>);

impl Signals {
    /// To be called within a runtime.
    pub fn listen(kinds: &[SignalKind]) -> io::Result<Signals> {
        kinds.iter().map(|kind| Ok((*kind, signal(*kind)?))).collect::<io::Result<_>>().map(Signals)
    }

    /// Waits for one of them; says which it was.
    pub async fn next(&mut self) -> SignalKind {
        poll_fn(|cx| {
            let came =
                self.0.iter_mut().find_map(|(kind, signal)| signal.poll_recv(cx).is_ready().then_some(*kind));
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Calls `then` at the first of them, in a thread of its own.
pub fn at_first(kinds: &[SignalKind], then: impl FnOnce(SignalKind) + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the thread, so that no signal finds the default action once this function has returned.
    let mut signals = {
        let _in_runtime = runtime.enter();
        Signals::listen(kinds)?
    };
    let wait = move || then(runtime.block_on(signals.next()));
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}
