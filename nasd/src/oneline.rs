//! One line on the terminal that is written over again and again, for whoever waits. Nothing where standard error is no
//! terminal.

use crate::client;
use crate::progress::ProgressStatus;
use crate::status::Status;
use anyhow::Result;
use hyper::Method;
use ratatui::crossterm::terminal;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How often a node is asked how far it is.
const EVERY: Duration = Duration::from_millis(500);
const ERASE: &str = "\r\x1b[K";

/// The line. It is gone when this is dropped.
pub struct OneLine {
    terminal: bool,
}

impl OneLine {
    pub fn new() -> OneLine {
        OneLine { terminal: std::io::stderr().is_terminal() }
    }

    /// Whether anybody sees it.
    pub fn is_seen(&self) -> bool {
        self.terminal
    }

    /// Shows as much of the text as fits.
    pub fn show(&self, text: &str) {
        if self.terminal {
            // One that does not know its size says 0.
            let width = terminal::size().map_or(0, |(width, _)| usize::from(width));
            let width = if width == 0 { 80 } else { width };
            let text: String = text.chars().take(width.saturating_sub(1)).collect();
            self.write(&text);
        }
    }

    fn write(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        // Who does not see it misses nothing.
        let _ = write!(stderr, "{ERASE}{text}").and_then(|()| stderr.flush());
    }
}

impl Drop for OneLine {
    fn drop(&mut self) {
        if self.terminal {
            self.write("");
        }
    }
}

/// Shows what the node behind `socket` is at while `work` waits for it.
pub fn while_waiting<T>(socket: &Path, work: impl FnOnce() -> T) -> T {
    let line = OneLine::new();
    if !line.is_seen() {
        return work();
    }
    let (done, stop) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while stop.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                if let Ok(text) = newest(socket) {
                    line.show(&text);
                }
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn newest(socket: &Path) -> Result<String> {
    let status: Status = client::call(socket, Method::GET, "/v1/status", EVERY)?;
    Ok(status.progress.last().map(ProgressStatus::line).unwrap_or_default())
}
