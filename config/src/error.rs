//! What can be wrong with a configuration, and where.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why there is no configuration. Displayed as one line that names the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read at all.
    #[error("{}: cannot be read: {source}; create it, or name another one with --config", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file says something that it may not say.
    #[error("{}:{line}: {what}; {remedy}", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

/// Something wrong at a place in the text, given as a range of bytes.
#[derive(Debug)]
pub(crate) struct Mistake {
    at: Range<usize>,
    what: String,
    remedy: String,
}

impl Mistake {
    pub(crate) fn new(at: Range<usize>, what: impl Into<String>, remedy: impl Into<String>) -> Mistake {
        Mistake { at, what: what.into(), remedy: remedy.into() }
    }

    /// Says in an operator's words what `toml` and `serde` say in a programmer's.
    pub(crate) fn from_toml(e: &toml::de::Error) -> Mistake {
        let at = e.span().unwrap_or(0..0);
        let message = e.message().replace('\n', " ");
        let (problem, expected) = message.split_once(", expected ").unwrap_or((&message, ""));
        let (what, remedy) = if let Some(key) = problem.strip_prefix("unknown field ") {
            let remedy = format!("remove or correct it: here may stand {expected}");
            (format!("unknown key {key}"), remedy)
        } else if let Some(value) = problem.strip_prefix("unknown variant ") {
            let value = value.replace('`', "\"");
            (format!("unknown value {value}"), format!("write {expected}"))
        } else if let Some(found) = problem.strip_prefix("invalid type: ") {
            let remedy = match (found, expected) {
                ("map", "a sequence") => "write the section's name in double brackets, [[…]]".to_owned(),
                // serde takes a section in double brackets for a struct without keys.
                ("map", _) => format!("write {expected}, or the section's name in single brackets"),
                (_, "a sequence") => "write a list in square brackets, [\"…\", \"…\"]".to_owned(),
                (_, "i64") => "write a whole number".to_owned(),
                _ => format!("write {expected}"),
            };
            (format!("{found} cannot stand here"), remedy)
        } else {
            let remedy = "correct this line (text stands in double quotes)";
            (format!("not valid TOML: {message}"), remedy.to_owned())
        };
        Mistake { at, what, remedy }
    }

    pub(crate) fn locate(self, text: &str, file: &Path) -> ConfigError {
        ConfigError::Wrong {
            file: file.to_path_buf(),
            line: line_of(text.as_bytes(), self.at.start),
            what: self.what,
            remedy: self.remedy,
        }
    }
}

/// The line, counted from 1, of the byte at `offset`; the end of the text counts as its last line.
pub(crate) fn line_of(text: &[u8], offset: usize) -> usize {
    // A file ends with a line feed; what is missing "at the end" is missing on the line before it.
    let offset = offset.min(text.len().saturating_sub(1));
    1 + text[..offset].split(|b| *b == b'\n').skip(1).count()
}
