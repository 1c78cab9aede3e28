//! What a consumer still has to be told: many transactions in one, bounded.

use std::collections::BTreeSet;
use std::io::{self, Write};

use crate::notify::Applied;

/// Paths that one notification lists at most.
pub(crate) const MOST_PATHS: usize = 10_000;

/// The newest transaction, and the paths that it and those before it changed.
pub(crate) struct Pending {
    pub seq: u64,
    pub epoch: u64,
    pub timestamp: String,
    paths: BTreeSet<Vec<u8>>,
    /// Whether there are more paths than the list holds.
    more: bool,
}

impl Pending {
    /// Adds a transaction to what is pending, and gives the number of paths that found no place.
    pub fn add(pending: &mut Option<Pending>, applied: &Applied, paths: &[&Vec<u8>]) -> u64 {
        let pending = pending.get_or_insert_with(|| Pending {
            seq: 0,
            epoch: 0,
            timestamp: String::new(),
            paths: BTreeSet::new(),
            more: false,
        });
        pending.seq = applied.seq;
        pending.epoch = applied.epoch;
        applied.timestamp.clone_into(&mut pending.timestamp);
        let mut left_out = 0;
        for path in paths {
            if pending.paths.contains(*path) {
                continue;
            }
            // A path with a line break cannot be told on one line, and halves of it would be lies.
            if pending.paths.len() >= MOST_PATHS || path.contains(&b'\n') {
                left_out += 1;
                continue;
            }
            pending.paths.insert((*path).clone());
        }
        pending.more |= left_out > 0;
        left_out
    }

    /// One path a line, in the order of their bytes; `...` at the end when not all are listed.
    pub fn write_paths(&self, out: &mut impl Write) -> io::Result<()> {
        for path in &self.paths {
            out.write_all(path)?;
            out.write_all(b"\n")?;
        }
        if self.more {
            out.write_all(b"...\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(pending: Option<Pending>) -> Vec<u8> {
        let mut out = Vec::new();
        pending.unwrap().write_paths(&mut out).unwrap();
        out
    }

    fn applied(seq: u64) -> Applied {
        Applied { seq, epoch: seq * 10, timestamp: format!("t{seq}"), paths: Vec::new() }
    }

    #[test]
    fn the_newest_transaction_and_all_paths() {
        let mut pending = None;
        let (a, b) = (b"a".to_vec(), b"b".to_vec());
        assert_eq!(Pending::add(&mut pending, &applied(1), &[&b, &a]), 0);
        assert_eq!(Pending::add(&mut pending, &applied(2), &[&a]), 0);
        let newest = pending.as_ref().unwrap();
        assert_eq!((newest.seq, newest.epoch), (2, 20));
        assert_eq!(newest.timestamp, "t2");
        assert_eq!(told(pending), b"a\nb\n");
    }

    #[test]
    fn bounded_but_known_paths_are_not_counted_as_left_out() {
        let paths: Vec<Vec<u8>> = (0..MOST_PATHS + 5).map(|n| format!("{n:06}").into_bytes()).collect();
        let paths: Vec<&Vec<u8>> = paths.iter().collect();
        let mut pending = None;
        assert_eq!(Pending::add(&mut pending, &applied(1), &paths), 5);
        assert_eq!(Pending::add(&mut pending, &applied(2), &paths[..9]), 0);
        let told = told(pending);
        assert!(told.ends_with(b"009999\n...\n"));
        assert_eq!(String::from_utf8(told).unwrap().lines().count(), MOST_PATHS + 1);
    }

    #[test]
    fn a_line_break_in_a_path_is_left_out() {
        let mut pending = None;
        let path = b"pg_wal/1\npg_wal/2".to_vec();
        assert_eq!(Pending::add(&mut pending, &applied(1), &[&path]), 1);
        assert_eq!(told(pending), b"...\n");
    }
}
