//! The state events of a node on its disk: a file of lines, each the JSON of one event, so that they survive a restart.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::event::Event;
use crate::feed::{Dropped, Fork, STATES};

/// Bytes that the file may have before what is not kept any more is taken out of it. A line has some 200.
const MOST_BYTES: u64 = 2 << 20;

/// How long events are kept, at least if there are not too many.
const KEEP: chrono::TimeDelta = chrono::TimeDelta::hours(24);

/// The journal failed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}; check the disk and that nasd may write there", path.display())]
pub struct JournalError {
    path: PathBuf,
    source: io::Error,
}

/// A line.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    /// The first, after some were dropped.
    Dropped {
        dropped: Dropped,
    },
    Event(Box<Event>),
}

/// The file, open for more.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// What a journal holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// What was there before, and is not any more.
    pub dropped: Dropped,
    /// Oldest first.
    pub events: Vec<Event>,
}

impl Journal {
    /// Opens the journal in `dir`, which is made if it is missing. A last line that a crash has torn is cut off.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn open(dir: &Path) -> Result<(Journal, Kept), JournalError> {
        let path = dir.join("journal");
        let failed = |source| JournalError { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(failed)?,
        };
        let (kept, len) = parse(&text);
        if len < text.len() {
            warn!("{}: {} bytes behind the last whole line are cut off", path.display(), text.len() - len);
        }
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        file.set_len(len as u64).map_err(failed)?;
        let journal = Journal { path, file, bytes: len as u64 };
        let most = STATES.min(kept.events.len());
        if most < kept.events.len() || kept.events.first().is_some_and(is_old) {
            return journal.rewrite(kept, most);
        }
        sync_dir(dir).map_err(|e| journal.failed(e))?;
        Ok((journal, kept))
    }

    fn failed(&self, source: io::Error) -> JournalError {
        JournalError { path: self.path.clone(), source }
    }

    /// Adds events; they are durable when it returns.
    ///
    /// # Errors
    /// When they can't be written. What is there of them is found torn, or whole, the next time.
    pub fn append<'a>(&mut self, events: impl IntoIterator<Item = &'a Event>) -> Result<(), JournalError> {
        let mut lines = String::new();
        for event in events {
            lines.push_str(&event.json());
            lines.push('\n');
        }
        self.file.write_all(lines.as_bytes()).map_err(|e| self.failed(e))?;
        self.file.sync_data().map_err(|e| self.failed(e))?;
        self.bytes += lines.len() as u64;
        if self.bytes > MOST_BYTES {
            let (kept, _) = parse(&std::fs::read(&self.path).map_err(|e| self.failed(e))?);
            let journal = Journal {
                path: self.path.clone(),
                file: self.file.try_clone().map_err(|e| self.failed(e))?,
                ..*self
            };
            // Half of it, so that it is not rewritten again at once.
            let most = STATES.min(kept.events.len() / 2);
            *self = journal.rewrite(kept, most)?.0;
        }
        Ok(())
    }

    /// Without what is too old, and the `most` newest of the others; replaced atomically.
    fn rewrite(mut self, mut kept: Kept, most: usize) -> Result<(Journal, Kept), JournalError> {
        let old = kept.events.iter().take_while(|e| is_old(e)).count().max(kept.events.len() - most);
        for event in kept.events.drain(..old) {
            kept.dropped = kept.dropped.and(&event);
        }
        let mut text = String::new();
        let lines = kept.events.iter().map(Event::json);
        let first = serde_json::to_string(&Line::Dropped { dropped: kept.dropped }).unwrap_or_default();
        for line in [first].into_iter().chain(lines) {
            text.push_str(&line);
            text.push('\n');
        }
        let new = self.path.with_extension("new");
        let written = File::create(&new).and_then(|mut f| {
            f.write_all(text.as_bytes())?;
            f.sync_all()
        });
        written.map_err(|e| self.failed(e))?;
        std::fs::rename(&new, &self.path).map_err(|e| self.failed(e))?;
        sync_dir(self.path.parent().unwrap_or(Path::new("/"))).map_err(|e| self.failed(e))?;
        self.file = File::options().append(true).open(&self.path).map_err(|e| self.failed(e))?;
        self.bytes = text.len() as u64;
        Ok((self, kept))
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn is_old(event: &Event) -> bool {
    let at = chrono::DateTime::parse_from_rfc3339(&event.time);
    at.is_ok_and(|at| chrono::Utc::now().signed_duration_since(at) > KEEP)
}

/// What is in it, and how many bytes of it are whole lines. What is damaged in the middle is as good as dropped.
fn parse(text: &[u8]) -> (Kept, usize) {
    let len = text.iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1);
    let mut kept = Kept::default();
    for line in text[..len].split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Line::Dropped { dropped }) => kept.dropped = dropped,
            Ok(Line::Event(event)) => {
                let next = kept.events.last().map_or(kept.dropped.n, |e| e.id.n) + 1;
                if event.id.n > next {
                    // What is missing may have taken anything back.
                    let n = event.id.n - 1;
                    kept.dropped = Dropped { n, fork: Some(Fork { n, to: 0 }) };
                    kept.events.clear();
                }
                if event.id.n >= next {
                    kept.events.push(*event);
                }
            }
            Err(e) => warn!("a line of the journal of events can't be read: {e}"),
        }
    }
    (kept, len)
}
