//! Durations and sizes as people write them.

use std::time::Duration;

/// The units of a size, the largest first. A bare letter means the binary unit, as in `dd` and
/// systemd; `MB` and its like are decimal, as on the box of a disk.
const UNITS: [(&str, u64); 17] = [
    ("PiB", 1 << 50),
    ("P", 1 << 50),
    ("PB", 1_000_000_000_000_000),
    ("TiB", 1 << 40),
    ("T", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("G", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("M", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("K", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

/// Reads a size such as `4GiB`, `512 MiB`, `100k` (binary), `4GB` (decimal) or `65536`; the number of
/// bytes. The case of the unit does not matter.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    if number.is_empty() {
        return Err("it does not begin with a whole number".to_owned());
    }
    let unit = unit.trim();
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .ok_or_else(|| format!("{unit:?} is no unit of size"))?;
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(*factor))
        .ok_or_else(|| "it is too large".to_owned())
}

/// Writes a size in the largest binary unit that gives a whole number, so that [`parse_size`] reads
/// the same number of bytes.
pub fn format_size(bytes: u64) -> String {
    UNITS
        .iter()
        .filter(|(name, _)| name.ends_with("iB"))
        .find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor))
        .map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// Reads a duration such as `1s`, `100ms`, `1h 30m` or `0s`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim()).map_err(|e| e.to_string())
}

/// Writes a duration so that [`parse_duration`] reads the same.
pub(crate) fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65536),
            ("100k", 102_400),
            ("100 KiB", 102_400),
            ("100kB", 100_000),
            ("512MiB", 512 << 20),
            ("4GiB", 4 << 30),
            ("4g", 4 << 30),
            ("4GB", 4_000_000_000),
            (" 2T ", 2 << 40),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        for (text, reason) in [
            ("", "it does not begin with a whole number"),
            ("GiB", "it does not begin with a whole number"),
            ("-1", "it does not begin with a whole number"),
            ("1.5GiB", "\".5GiB\" is no unit of size"),
            ("4 gigs", "\"gigs\" is no unit of size"),
            ("99999999999999999999", "it is too large"),
            ("20000000PiB", "it is too large"),
        ] {
            assert_eq!(parse_size(text), Err(reason.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for bytes in [0, 1, 1023, 1024, 1_000_000, 4 << 30, (4 << 30) + 1, 1 << 60] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
        assert_eq!(format_size(4 << 30), "4GiB");
        assert_eq!(format_size(1536 << 20), "1536MiB");
        for millis in [0, 1, 100, 1000, 5_400_000, 86_400_000 * 400] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
