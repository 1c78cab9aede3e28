//! What `pg_control` says, by way of `pg_controldata`: the layout of the file changes between PostgreSQL's versions,
//! what the program prints does not.

use std::str::FromStr;

use super::Lsn;

/// What a cluster knows of itself (`global/pg_control`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// What makes two clusters the same: a clone has that of its origin.
    pub system_id: u64,
    /// As PostgreSQL names it: `shut down`, `in production`, `in archive recovery`, …
    pub state: String,
    /// The timeline of the latest checkpoint. After a promotion it is the old one until the first checkpoint.
    pub timeline: u32,
    /// From where a start reads the WAL.
    pub redo: Lsn,
    /// The size of a WAL segment.
    pub segment_bytes: u64,
    /// Whether data pages have checksums.
    pub checksums: bool,
}

impl Control {
    /// Whether the cluster was shut down in order as a primary.
    pub fn shut_down(&self) -> bool {
        self.state == "shut down"
    }

    /// Whether it writes, or did when it died.
    pub fn in_production(&self) -> bool {
        self.state == "in production"
    }

    /// Whether it replays, or did when it died.
    pub fn in_recovery(&self) -> bool {
        matches!(&*self.state, "in archive recovery" | "in crash recovery")
    }

    /// Reads what `pg_controldata` printed with `LC_ALL=C`; the error is what is wrong with it.
    pub(super) fn parse(printed: &str) -> Result<Control, String> {
        // Then nothing that follows can be trusted, and yet it exits with 0.
        if let Some(warning) = printed.lines().find(|line| line.starts_with("WARNING")) {
            return Err(warning.to_owned());
        }
        let field = |name: &str| {
            let mut values = printed.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            values.next().map(str::trim).ok_or_else(|| format!("it does not say {name:?}"))
        };
        let segment_bytes = number(field("Bytes per WAL segment")?)?;
        if !u64::is_power_of_two(segment_bytes) || !(1 << 20..=1 << 30).contains(&segment_bytes) {
            return Err(format!("{segment_bytes} is no size of a WAL segment"));
        }
        Ok(Control {
            system_id: number(field("Database system identifier")?)?,
            state: field("Database cluster state")?.to_owned(),
            timeline: number(field("Latest checkpoint's TimeLineID")?)?,
            redo: number(field("Latest checkpoint's REDO location")?)?,
            segment_bytes,
            checksums: number::<u32>(field("Data page checksum version")?)? != 0,
        })
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not the number that it should be"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7389045678901234567
Database cluster state:               in archive recovery
pg_control last modified:             Mon Nov 23 04:57:57 2026
Latest checkpoint location:           0/3000060
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's REDO WAL file:    000000010000000000000003
Latest checkpoint's TimeLineID:       1
Latest checkpoint's PrevTimeLineID:   1
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn what_is_printed_is_read() {
        let control = Control::parse(PRINTED);
        let want = Control {
            system_id: 7_389_045_678_901_234_567,
            state: "in archive recovery".to_owned(),
            timeline: 1,
            redo: Lsn(0x0300_0028),
            segment_bytes: 16 << 20,
            checksums: true,
        };
        assert_eq!(control, Ok(want));
    }

    #[test]
    fn a_damaged_file_is_not_believed() {
        let printed =
            format!("WARNING: Calculated CRC checksum does not match value stored in file.\n{PRINTED}");
        assert!(Control::parse(&printed).is_err_and(|why| why.contains("CRC")));
    }

    #[test]
    fn what_is_missing_or_nonsense_is_named() {
        let cases = [
            ("Latest checkpoint's REDO location:    0/3000028\n", "", "REDO location"),
            ("0/3000028", "elsewhere", "elsewhere"),
            ("16777216", "0", "size of a WAL segment"),
            ("16777216", "16777217", "size of a WAL segment"),
        ];
        for (from, to, word) in cases {
            let why = Control::parse(&PRINTED.replace(from, to)).err();
            assert!(why.as_ref().is_some_and(|why| why.contains(word)), "{from:?} -> {to:?}: {why:?}");
        }
    }
}
