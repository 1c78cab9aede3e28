//! What the demo prints.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Lines with the time since the start; on a terminal a live line is written over.
pub struct Teller {
    start: Instant,
    terminal: bool,
    live: bool,
}

impl Teller {
    pub fn new() -> Teller {
        Teller { start: Instant::now(), terminal: std::io::stdout().is_terminal(), live: false }
    }

    pub fn line(&mut self, text: std::fmt::Arguments, live: bool) {
        self.end_live();
        let end = if live && self.terminal { "" } else { "\n" };
        // Whoever reads may have gone; the demo goes on to its exit code.
        let mut out = std::io::stdout().lock();
        let _ = write!(out, "{:8.3} s  {text}{end}", self.start.elapsed().as_secs_f64());
        let _ = out.flush();
        self.live = end.is_empty();
    }

    /// The next live line replaces this one.
    pub fn rewrite(&mut self, text: std::fmt::Arguments) {
        if std::mem::take(&mut self.live) {
            let _ = write!(std::io::stdout().lock(), "\r\x1b[K");
        }
        self.line(text, true);
    }

    pub fn end_live(&mut self) {
        if std::mem::take(&mut self.live) {
            let _ = writeln!(std::io::stdout().lock());
        }
    }
}
