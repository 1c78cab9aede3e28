//! The names in `pg_wal`, and which of these files a cluster still needs.

use super::Lsn;

/// From where on a cluster needs WAL, to start or to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The first segment that is needed, counted from the beginning of the WAL.
    pub segment: u64,
    /// The size of a segment.
    pub segment_bytes: u64,
}

impl Need {
    /// What is needed when `from` is the first byte that is read. `segment_bytes` is not 0.
    pub(super) fn from(from: Lsn, segment_bytes: u64) -> Need {
        Need { segment: from.0 / segment_bytes, segment_bytes }
    }

    /// Whether the file of this name in `pg_wal` is needed: a segment from there on, whatever its timeline, since
    /// which one will be followed is not known; and every timeline history, which are small and rare. Any other
    /// file is not, as a segment in the making or one that was set aside.
    pub fn needs(&self, name: &[u8]) -> bool {
        match parse(name) {
            Some(WalFile::Segment { log, part }) => {
                segment_number(log, part, self.segment_bytes) >= self.segment
            }
            Some(WalFile::History) => true,
            None => false,
        }
    }
}

/// Whether a file of this name in `pg_wal` is a WAL segment or a timeline history. Nothing else is read to recover.
pub fn is_wal_file(name: &[u8]) -> bool {
    parse(name).is_some()
}

enum WalFile {
    Segment { log: u64, part: u64 },
    History,
}

fn parse(name: &[u8]) -> Option<WalFile> {
    if let Some(timeline) = name.strip_suffix(b".history") {
        return (timeline.len() == 8).then(|| hex(timeline)).flatten().map(|_| WalFile::History);
    }
    if name.len() != 24 {
        return None;
    }
    hex(&name[..8])?;
    Some(WalFile::Segment { log: hex(&name[8..16])?, part: hex(&name[16..])? })
}

fn segment_number(log: u64, part: u64, segment_bytes: u64) -> u64 {
    log * ((1 << 32) / segment_bytes.max(1)) + part
}

/// PostgreSQL writes and reads capital letters only.
fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |sum, digit| match digit {
        b'0'..=b'9' => Some(sum << 4 | u64::from(digit - b'0')),
        b'A'..=b'F' => Some(sum << 4 | u64::from(digit - b'A' + 10)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// The name of the segment that holds this position.
    fn segment_name(timeline: u32, at: Lsn, segment_bytes: u64) -> String {
        let per_log = (1 << 32) / segment_bytes;
        let number = at.0 / segment_bytes;
        format!("{timeline:08X}{:08X}{:08X}", number / per_log, number % per_log)
    }

    #[test]
    fn a_segment_is_needed_from_its_number_on_whatever_its_timeline() {
        let need = Need::from(Lsn(0x1_0300_0028), 16 * MIB);
        assert_eq!(need.segment, 0x103);
        assert!(!need.needs(b"000000010000000100000002"));
        assert!(need.needs(b"000000010000000100000003"));
        assert!(!need.needs(b"0000000900000000000000FF"));
        assert!(need.needs(b"00000002000000020000000A"));
    }

    #[test]
    fn of_the_other_names_only_a_history_counts() {
        let need = Need { segment: 0, segment_bytes: 16 * MIB };
        assert!(need.needs(b"00000002.history"));
        for name in [
            &b"xlogtemp.123"[..],
            b"000000010000000000000001.partial",
            b"000000010000000000000001.00000028.backup",
            b"000000010000000000000001.ready",
            b"00000001000000000000000a",
            b"0000000100000000000000",
            b"00000002.history.done",
            b"2.history",
            b".history",
            b"archive_status",
            b"",
        ] {
            assert!(!need.needs(name), "{}", name.escape_ascii());
            assert!(!is_wal_file(name), "{}", name.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn the_segment_of_a_position_is_needed_and_the_one_before_is_not(
            at: u64, timeline: u32, shift in 20_u32..=30,
        ) {
            let bytes = 1 << shift;
            let need = Need::from(Lsn(at), bytes);
            prop_assert!(need.needs(segment_name(timeline, Lsn(at), bytes).as_bytes()));
            if let Some(before) = at.checked_sub(bytes) {
                prop_assert!(!need.needs(segment_name(timeline, Lsn(before), bytes).as_bytes()));
            }
        }

        #[test]
        fn any_name_is_looked_at_without_a_panic(
            name in proptest::collection::vec(any::<u8>(), 0..40), segment: u64, segment_bytes: u64,
        ) {
            Need { segment, segment_bytes }.needs(&name);
        }
    }
}
