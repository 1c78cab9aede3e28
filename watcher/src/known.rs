//! The transaction files that are known to be in the log directory and still have to be applied.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// A bounded map from sequence number to file name.
///
/// When it is full it forgets the highest numbers, which are needed last, and remembers that it
/// did: [`Known::needs_scan`] says when the directory has to be read to find them again.
pub(crate) struct Known {
    names: BTreeMap<u64, OsString>,
    capacity: usize,
    /// Names below this number were dropped, so nothing is known about them.
    floor: u64,
    /// Something happened that may have hidden a file from us.
    stale: bool,
    /// A name was forgotten since the last scan because the map was full.
    forgot: bool,
    /// The number that the last scan was made for: what it did not find can only come as an event.
    scanned_for: Option<u64>,
}

impl Known {
    /// An empty map that asks for a scan.
    pub fn new(capacity: usize) -> Known {
        Known { names: BTreeMap::new(), capacity, floor: 0, stale: true, forgot: false, scanned_for: None }
    }

    /// Asks for a scan before the next file is applied.
    pub fn invalidate(&mut self) {
        self.stale = true;
    }

    /// Forgets everything and asks for a scan.
    pub fn clear(&mut self) {
        *self = Known::new(self.capacity);
    }

    /// Whether the directory must be read to know if the file `wanted` is there.
    pub fn needs_scan(&self, wanted: u64) -> bool {
        let absent = || !self.names.contains_key(&wanted);
        self.stale || wanted < self.floor || (self.forgot && self.scanned_for != Some(wanted) && absent())
    }

    /// Begins a scan for `wanted`: what is not seen from now on is not in the directory.
    pub fn begin_scan(&mut self, wanted: u64) {
        self.clear();
        self.floor = wanted;
        self.stale = false;
        self.scanned_for = Some(wanted);
    }

    /// A file that an event told of. The last one told of a number is the one to apply.
    pub fn insert(&mut self, seq: u64, name: &OsStr) {
        self.put(seq, name, |_| true);
    }

    /// A file that a scan found. Should two have the same number, the later timestamp is taken; it
    /// is a guess, and applying the file verifies it.
    pub fn insert_scanned(&mut self, seq: u64, name: &OsStr) {
        self.put(seq, name, |there| there < name);
    }

    fn put(&mut self, seq: u64, name: &OsStr, replaces: impl Fn(&OsStr) -> bool) {
        if seq < self.floor {
            return;
        }
        if let Some(there) = self.names.get_mut(&seq) {
            if replaces(there) {
                name.clone_into(there);
            }
            return;
        }
        if self.names.len() >= self.capacity {
            self.forgot = true;
            match self.names.last_key_value() {
                Some((last, _)) if *last > seq => self.names.pop_last(),
                _ => return,
            };
        }
        self.names.insert(seq, name.to_owned());
    }

    /// Takes out the file `wanted`, and drops everything below, which will not be asked for.
    pub fn take(&mut self, wanted: u64) -> Option<OsString> {
        self.floor = self.floor.max(wanted);
        let first = *self.names.first_key_value()?.0;
        if first < wanted {
            self.names = self.names.split_off(&wanted);
        }
        self.names.remove(&wanted)
    }

    /// The lowest number known, for a message about what is missing below it.
    pub fn lowest(&self) -> Option<u64> {
        self.names.first_key_value().map(|(seq, _)| *seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(seq: u64) -> OsString {
        OsString::from(seq.to_string())
    }

    fn scanned(capacity: usize, wanted: u64, there: impl IntoIterator<Item = u64>) -> Known {
        let mut known = Known::new(capacity);
        known.begin_scan(wanted);
        for seq in there {
            known.insert_scanned(seq, &name(seq));
        }
        known
    }

    #[test]
    fn a_full_map_forgets_the_highest_and_asks_for_a_scan_when_it_matters() {
        let mut known = scanned(3, 1, [5, 4, 3, 2, 1]);
        for seq in 1..=3 {
            assert!(!known.needs_scan(seq));
            assert_eq!(known.take(seq), Some(name(seq)));
        }
        assert!(known.needs_scan(4));
    }

    #[test]
    fn what_a_scan_did_not_find_is_not_scanned_for_again() {
        let known = scanned(2, 1, [2, 3, 4]);
        assert!(!known.needs_scan(1), "forgetful, but 1 was just looked for");
    }

    #[test]
    fn going_back_asks_for_a_scan() {
        let mut known = scanned(9, 7, [5, 7, 8]);
        assert_eq!(known.take(7), Some(name(7)));
        assert!(!known.needs_scan(8));
        assert!(known.needs_scan(5));
    }

    #[test]
    fn names_below_wanted_are_dropped() {
        let mut known = scanned(9, 1, 1..=6);
        assert_eq!(known.take(5), Some(name(5)));
        assert_eq!(known.lowest(), Some(6));
        known.insert(3, &name(3));
        assert_eq!(known.lowest(), Some(6));
    }

    #[test]
    fn the_last_event_wins_and_in_a_scan_the_later_name() {
        let mut known = scanned(9, 1, []);
        known.insert_scanned(1, OsStr::new("b"));
        known.insert_scanned(1, OsStr::new("a"));
        known.insert(2, OsStr::new("b"));
        known.insert(2, OsStr::new("a"));
        assert_eq!(known.take(1), Some("b".into()));
        assert_eq!(known.take(2), Some("a".into()));
    }
}
