//! How far an agent is, kept over restarts.

use crate::terms::Terms;
use nasd_volume::crashsafe::{open_dir, write_atomic};
use nasd_watcher::Cursor;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A place in the events of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The node, as its certificate calls it: the id means nothing on another.
    pub node: String,
    /// Behind the event of this id.
    pub id: Cursor,
    /// The history up to there, as far as it is known.
    pub terms: Terms,
}

impl Place {
    /// What to show to a node: there begins what this place has not seen. Another node is told the transactions only, with
    /// their epochs: it may have another history.
    pub fn since(&self, node: &str) -> String {
        let terms = self.terms.to_string();
        match (self.node == node, terms.is_empty()) {
            (true, _) => self.id.to_string(),
            (_, true) => self.id.seq.to_string(),
            (_, false) => terms,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {} {}", self.node, self.id, self.terms)
    }
}

/// The state file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: {source}; correct `state_file` in [agent], or its directory's permissions", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: this is no agent's state file; remove it to begin with what happens from now on, or correct `state_file` in [agent]", path.display())]
    Foreign { path: PathBuf },
}

/// The file that keeps a place.
#[derive(Debug, Clone)]
pub struct StateFile(pub PathBuf);

impl StateFile {
    fn io(&self, source: impl Into<io::Error>) -> StateError {
        StateError::Io { path: self.0.clone(), source: source.into() }
    }

    /// What is kept; None before the first time.
    pub fn read(&self) -> Result<Option<Place>, StateError> {
        if let Some(dir) = self.0.parent() {
            std::fs::create_dir_all(dir).map_err(|e| self.io(e))?;
        }
        let text = match std::fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => String::new(),
            Err(e) => return Err(self.io(e)),
        };
        let mut words = text.split_whitespace();
        let mut place = || {
            let (node, id) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
            let terms = words.next().map_or(Ok(Terms::default()), str::parse).ok()?;
            words.next().is_none().then_some(Place { node, id, terms })
        };
        place().map(Some).ok_or_else(|| StateError::Foreign { path: self.0.clone() })
    }

    /// Keeps it; durable when this returns.
    pub fn write(&self, place: &Place) -> Result<(), StateError> {
        let dir = self.0.parent().unwrap_or(Path::new("/"));
        let name = self.0.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let dir = open_dir(dir).map_err(|e| self.io(e))?;
        write_atomic(&dir, name, format!("{place}\n").as_bytes()).map_err(|e| self.io(e))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile(dir.path().join("sub/state"));
        assert_eq!(file.read().unwrap(), None);
        let bare = Place { node: "nas-a".to_owned(), id: Cursor { seq: 42, n: 7 }, terms: Terms::default() };
        file.write(&bare).unwrap();
        assert_eq!(file.read().unwrap(), Some(bare.clone()));
        assert_eq!(bare.since("nas-b"), "42");
        let place = Place { terms: "42@3,9@1".parse().unwrap(), ..bare };
        file.write(&place).unwrap();
        assert_eq!(file.read().unwrap(), Some(place.clone()));
        assert_eq!((place.since("nas-a"), place.since("nas-b")), ("42.7".to_owned(), "42@3,9@1".to_owned()));
        for foreign in ["", "nas-a", "nas-a 42", "nas-a 4.2 more", "nas-a 4.2 4@1 more", "\u{fffd}"] {
            std::fs::write(&file.0, foreign).unwrap();
            let said = file.read().unwrap_err().to_string();
            assert!(said.contains("remove it"), "{foreign:?}: {said}");
        }
        std::fs::write(&file.0, b"\xff").unwrap();
        assert!(file.read().is_err());
    }
}
