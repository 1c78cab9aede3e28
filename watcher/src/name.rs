//! The name of a transaction file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What a name looks like: `0` stands for any decimal digit, everything else for itself.
const SHAPE: &[u8; 47] = b"00000000T000000.000000000Z-0000000000000000.txn";
const SEQ: std::ops::Range<usize> = 27..43;

/// The sequence number in the name of a transaction file, such as
/// `20261123T045757.123456789Z-0000000000000042.txn`; `None` for any other name.
///
/// The timestamp only has to look like one: it is for people and orders nothing.
pub fn parse_name(name: &OsStr) -> Option<u64> {
    let name: &[u8; SHAPE.len()] = name.as_bytes().try_into().ok()?;
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        _ => byte == shape,
    };
    if !name.iter().zip(SHAPE).all(fits) {
        return None;
    }
    // Sixteen digits always fit into a u64.
    Some(name[SEQ].iter().fold(0, |seq, digit| seq * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "20261123T045757.123456789Z-0000000000000042.txn";

    #[test]
    fn the_sequence_number_is_read() {
        assert_eq!(parse_name(OsStr::new(NAME)), Some(42));
    }

    #[test]
    fn foreign_names_are_none() {
        for name in [
            "",
            ".",
            "20261123T045757.123456789Z-0000000000000042.txn.tmp",
            "20261123T045757.123456789Z-0000000000000042.TXN",
            ".20261123T045757.123456789Z-000000000000042.txn",
            "20261123T045757.123456789Z-00000000000000042.txn",
            "20261123T045757.123456789Z-+000000000000042.txn",
            "20261123 045757.123456789Z-0000000000000042.txn",
            "0000000000000042.txn",
        ] {
            assert_eq!(parse_name(OsStr::new(name)), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn every_sequence_number_survives(
            seq in 0_u64..10_000_000_000_000_000,
            stamp in "[0-9]{8}T[0-9]{6}\\.[0-9]{9}Z",
        ) {
            let name = format!("{stamp}-{seq:016}.txn");
            prop_assert_eq!(parse_name(OsStr::new(&name)), Some(seq));
        }

        #[test]
        fn any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse_name(&OsString::from_vec(bytes));
        }

        /// A name is accepted exactly when writing what was read gives the same name again.
        #[test]
        fn one_changed_byte_is_seen(at in 0..47_usize, byte in any::<u8>()) {
            let mut bytes = NAME.as_bytes().to_vec();
            bytes[at] = byte;
            let digit_there = NAME.as_bytes()[at].is_ascii_digit();
            let good = if digit_there { byte.is_ascii_digit() } else { byte == NAME.as_bytes()[at] };
            let parsed = parse_name(&OsString::from_vec(bytes.clone()));
            prop_assert_eq!(parsed.is_some(), good);
            if let Some(seq) = parsed {
                let digits = format!("{seq:016}");
                prop_assert_eq!(digits.as_bytes(), &bytes[SEQ]);
            }
        }
    }
}
