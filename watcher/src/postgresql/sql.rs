//! Questions to a running cluster.

use std::time::Duration;

use super::cluster::Cluster;
use super::error::PostgresError;
use super::program::Program;

/// How long an answer may take. What is asked here is in memory.
const LIMIT: Duration = Duration::from_secs(30);

/// Between fields and between rows: what no name and no number contains.
const FIELD: char = '\u{1f}';
const ROW: char = '\u{1e}';

impl Cluster {
    /// What this query gives, row by row, asked as the cluster's user through its own socket in the database `postgres`.
    pub fn sql(&self, query: &str) -> Result<Vec<Vec<String>>, PostgresError> {
        let postmaster =
            self.running().ok_or_else(|| PostgresError::NotRunning(self.data_dir().to_path_buf()))?;
        let mut psql = Program::as_user(&self.program("psql")?, self.user())?
            .args(["-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", "postgres"])
            .args(["-F", FIELD.encode_utf8(&mut [0; 4]), "-R", ROW.encode_utf8(&mut [0; 4])])
            .env("PGCONNECT_TIMEOUT", "5")
            .arg("-h");
        // One without a socket is at home at least.
        psql = match postmaster.socket_dir() {
            Some(dir) => psql.arg(dir),
            None => psql.arg("localhost"),
        };
        if let Some(port) = postmaster.port() {
            psql = psql.arg("-p").arg(port.to_string());
        }
        let printed = psql.arg("-c").arg(query).run(LIMIT)?;
        Ok(rows(&String::from_utf8_lossy(&printed)))
    }
}

fn rows(printed: &str) -> Vec<Vec<String>> {
    let printed = printed.strip_suffix('\n').unwrap_or(printed);
    if printed.is_empty() {
        return Vec::new();
    }
    printed.split(ROW).map(|row| row.split(FIELD).map(str::to_owned).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::rows;

    #[test]
    fn rows_and_fields_are_told_apart_whatever_is_in_them() {
        assert_eq!(rows(""), Vec::<Vec<String>>::new());
        assert_eq!(rows("\n"), Vec::<Vec<String>>::new());
        assert_eq!(rows("t\n"), [["t"]]);
        assert_eq!(rows("a|b\u{1f}\u{1e}c\nd\u{1f}e\n"), [["a|b", ""], ["c\nd", "e"]]);
    }
}
