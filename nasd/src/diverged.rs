//! What was set aside: transactions that were given up for another history, and damaged ones.

use serde::{Deserialize, Serialize};
use std::path::Path;
use utoipa::ToSchema;

/// The directory `diverged/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diverged {
    pub files: u64,
    pub bytes: u64,
    /// When the newest of them was committed.
    pub newest: Option<String>,
    pub path: String,
}

/// When a transaction was committed, by its file's name: `20261123T045757.123456789Z-…`.
fn time_of(name: &str) -> Option<String> {
    let (time, _) = name.split_once('-')?;
    let t = chrono::NaiveDateTime::parse_from_str(time, "%Y%m%dT%H%M%S.%9fZ").ok()?;
    Some(t.and_utc().to_rfc3339_opts(chrono::SecondsFormat::Nanos, true))
}

/// Counts what is there. What can't be read is left out: this is for the status, which is asked again.
pub fn look(state_dir: &Path) -> Diverged {
    let path = state_dir.join("diverged");
    let mut all = Diverged { path: path.display().to_string(), ..Diverged::default() };
    for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
        all.files += 1;
        all.bytes += entry.metadata().map_or(0, |m| m.len());
        let time = entry.file_name().to_str().and_then(time_of);
        // As text they sort as in time.
        all.newest = all.newest.max(time);
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let none = look(dir.path());
        assert_eq!((none.files, none.bytes, none.newest), (0, 0, None));
        let diverged = dir.path().join("diverged");
        std::fs::create_dir(&diverged).unwrap();
        for name in [
            nasd_volume::txn::file_name(1_700_000_000_000_000_001, 7),
            nasd_volume::txn::file_name(1_700_000_000_000_000_002, 6) + ".1",
            "rubbish".to_owned(),
        ] {
            std::fs::write(diverged.join(name), "1234").unwrap();
        }
        let all = look(dir.path());
        assert_eq!((all.files, all.bytes), (3, 12));
        assert_eq!(all.newest.as_deref(), Some("2023-11-14T22:13:20.000000002Z"));
        assert_eq!(all.path, diverged.display().to_string());
    }
}
