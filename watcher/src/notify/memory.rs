//! How far a rule has told, kept over restarts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::event::Cursor;

/// What nobody was told of is noted this often.
const EVERY: Duration = Duration::from_secs(1);

/// A small file with a cursor. It is overwritten in place and not synced: one that is too old only has something told
/// twice.
pub(crate) struct Memory {
    file: Option<File>,
    noted: Option<(Cursor, Instant)>,
}

impl Memory {
    /// Keeps nothing.
    pub fn none() -> Memory {
        Memory { file: None, noted: None }
    }

    /// What is kept under this name, if anything is.
    pub fn open(dir: &Path, name: &str) -> io::Result<(Memory, Option<Cursor>)> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join(name);
        let kept = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let file = File::options().create(true).write(true).truncate(false).open(&path)?;
        Ok((Memory { file: Some(file), noted: None }, kept))
    }

    /// Everything up to here is told.
    pub fn told(&mut self, cursor: Cursor) {
        if let Some(file) = &self.file
            && self.noted.is_none_or(|(last, _)| last != cursor)
            // Of one length, so that no older one shows behind it.
            && let Err(e) = file.write_all_at(format!("{:020}.{:020}\n", cursor.seq, cursor.n).as_bytes(), 0)
        {
            tracing::warn!("how far a consumer was told can't be kept: {e}");
        }
        self.noted = Some((cursor, Instant::now()));
    }

    /// There was nothing to tell up to here.
    pub fn passed(&mut self, cursor: Cursor) {
        if self.noted.is_none_or(|(_, at)| at.elapsed() >= EVERY) {
            self.told(cursor);
        }
    }
}
