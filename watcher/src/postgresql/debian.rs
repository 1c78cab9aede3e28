//! Debian keeps a cluster's configuration outside of its data directory, in `/etc/postgresql/VERSION/NAME/`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::process::place_of;

/// Where Debian keeps the configurations of all clusters.
pub(super) const CONFIG_ROOT: &str = "/etc/postgresql";

/// A cluster as Debian's tools know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// PostgreSQL's major version.
    pub version: OsString,
    /// The cluster's name, `main` for the first.
    pub name: OsString,
    /// Its `postgresql.conf`.
    pub config: PathBuf,
}

impl Known {
    /// Where Debian's tools write the server's log, and logrotate rotates it.
    pub fn log(&self) -> PathBuf {
        let mut name = OsString::from("postgresql-");
        name.push(&self.version);
        name.push("-");
        name.push(&self.name);
        name.push(".log");
        Path::new("/var/log/postgresql").join(name)
    }
}

/// The cluster below `root` whose configuration names this data directory.
pub(super) fn find(root: &Path, data_dir: &Path) -> Option<Known> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    for version in entries(root) {
        for cluster in entries(&version.path()) {
            let config = cluster.path().join("postgresql.conf");
            let Ok(text) = fs::read_to_string(&config) else { continue };
            if data_directory(&text).is_some_and(|named| same(&named, data_dir)) {
                return Some(Known { version: version.file_name(), name: cluster.file_name(), config });
            }
        }
    }
    None
}

fn same(a: &Path, b: &Path) -> bool {
    // One that is to be cloned is not there yet.
    a == b || place_of(a).is_ok_and(|a| place_of(b).is_ok_and(|b| a == b))
}

/// The value of `data_directory`, of which the last one counts.
fn data_directory(config: &str) -> Option<PathBuf> {
    config.lines().rev().find_map(|line| {
        let (name, value) = super::conf::setting(line)?;
        name.eq_ignore_ascii_case("data_directory").then(|| PathBuf::from(value))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_found_by_the_directory_that_it_names() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("it's data");
        for (name, dir) in [("main", "/elsewhere".to_owned()), ("two", data.display().to_string())] {
            let place = root.path().join("15").join(name);
            fs::create_dir_all(&place).unwrap();
            let text = format!(
                "# data_directory = '/nowhere'\nport = 5432\nData_Directory='{}' # here\n",
                dir.replace('\'', "''")
            );
            fs::write(place.join("postgresql.conf"), text).unwrap();
        }
        let found = find(root.path(), &data).unwrap();
        assert_eq!(found.config, root.path().join("15/two/postgresql.conf"));
        assert_eq!(found.log(), Path::new("/var/log/postgresql/postgresql-15-two.log"));
        assert_eq!(find(root.path(), Path::new("/nowhere")), None);
        assert_eq!(find(Path::new("/nonexistent"), &data), None);
    }
}
