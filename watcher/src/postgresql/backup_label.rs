//! `backup_label`: what a base backup says of itself until its first recovery is under way.

use super::Lsn;

/// Where a base backup starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackupLabel {
    /// Recovery starts here, and not where `pg_control` says, which was copied later.
    pub start: Lsn,
    /// The file that holds it, as the primary names it.
    pub file: String,
}

impl BackupLabel {
    /// Reads the file; the error is what is wrong with it.
    pub fn parse(text: &str) -> Result<BackupLabel, String> {
        let line = text.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: "));
        let line = line.ok_or("it has no line START WAL LOCATION")?;
        let (start, rest) = line.split_once(' ').ok_or("START WAL LOCATION names no file")?;
        let file = rest.strip_prefix("(file ").and_then(|rest| rest.strip_suffix(')'));
        let file = file.filter(|file| super::is_wal_file(file.as_bytes()));
        Ok(BackupLabel {
            start: start.parse().map_err(|e: super::LsnError| e.to_string())?,
            file: file.ok_or("START WAL LOCATION names no WAL file")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found() {
        let text = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
                    CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nSTART TIMELINE: 1\n";
        let want = BackupLabel { start: Lsn(0x0200_0028), file: "000000010000000000000002".to_owned() };
        assert_eq!(BackupLabel::parse(text), Ok(want));
    }

    #[test]
    fn a_torn_one_is_refused() {
        for text in [
            "",
            "START WAL LOCATION: ",
            "START WAL LOCATION: 0/2000028",
            "START WAL LOCATION: 0/2000028 (file 0000000100",
            "START WAL LOCATION: x (file 000000010000000000000002)",
            "START WAL LOCATION: 0/2000028 (file ../../etc/passwd)",
        ] {
            assert!(BackupLabel::parse(text).is_err(), "{text:?}");
        }
    }
}
