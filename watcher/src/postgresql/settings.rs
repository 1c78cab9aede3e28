//! The settings that a cluster with its WAL on a volume has, and why.

use super::cluster::Cluster;
use super::conf::edit;
use super::error::PostgresError;
use super::files;

struct Setting {
    name: &'static str,
    value: &'static str,
    why: &'static str,
    /// A server that is older does not know it, and would not start.
    since: u32,
}

const SETTINGS: [Setting; 3] = [
    Setting {
        name: "wal_recycle",
        value: "off",
        why: "an old WAL file is removed and a new one made: renaming the old one would give a file that a standby \
              still reads another name",
        since: 12,
    },
    Setting {
        name: "wal_init_zero",
        value: "off",
        why: "a new WAL file is not filled with zeros first, which would cross the wire; the volume does not need it, \
              its files are durable by its own log",
        since: 12,
    },
    Setting {
        name: "recovery_init_sync_method",
        value: "syncfs",
        why: "after a crash a standby syncs filesystems as wholes, and does not open each file of a pg_wal that is \
              read-only",
        since: 14,
    },
];

/// What would have a standby connect to somewhere or restore from somewhere, or stop on its way: it reads the volume
/// to its end and nothing else.
const OF_OTHER_STANDBYS: [&str; 14] = [
    "primary_conninfo",
    "primary_slot_name",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "promote_trigger_file",
];

/// What nasd sets in a cluster whose WAL is on a volume: name, value, and why.
pub fn settings() -> Vec<(&'static str, &'static str, &'static str)> {
    SETTINGS.iter().map(|setting| (setting.name, setting.value, setting.why)).collect()
}

impl Cluster {
    /// Puts nasd's settings into `postgresql.auto.conf`, where they win over any `postgresql.conf`. All else in it
    /// stays. True when something was changed. They count from the next start on; a running server might
    /// overwrite them (`ALTER SYSTEM`).
    pub fn write_settings(&self) -> Result<bool, PostgresError> {
        let version = self.version()?;
        let known: Vec<_> = SETTINGS.iter().filter(|setting| setting.since <= version).collect();
        let add: Vec<_> = known.iter().map(|setting| (setting.name, setting.value)).collect();
        self.edit_auto_conf(&names(), &add)
    }

    /// Takes them out again. True when something was changed.
    pub fn remove_settings(&self) -> Result<bool, PostgresError> {
        self.edit_auto_conf(&names(), &[])
    }

    /// Takes out what a clone brought with it of its origin's own replication.
    pub(super) fn remove_foreign_settings(&self) -> Result<bool, PostgresError> {
        self.edit_auto_conf(&OF_OTHER_STANDBYS, &[])
    }

    fn edit_auto_conf(&self, without: &[&str], add: &[(&str, &str)]) -> Result<bool, PostgresError> {
        let path = self.file("postgresql.auto.conf");
        let before = files::read(&path)?.unwrap_or_default();
        let after = edit(&before, without, add);
        if after == before {
            return Ok(false);
        }
        files::write_durably(&path, &after, self.owner()?)?;
        Ok(true)
    }

    /// The major version that made the cluster.
    fn version(&self) -> Result<u32, PostgresError> {
        let path = self.file("PG_VERSION");
        let text = files::read(&path)?;
        let text = text.ok_or_else(|| PostgresError::NoCluster(self.data_dir().to_path_buf()))?;
        let text = String::from_utf8_lossy(&text);
        text.trim().parse().map_err(|_| PostgresError::Damaged {
            path,
            why: format!("{:?} is no version that nasd knows (12 and newer)", text.trim()),
        })
    }
}

fn names() -> [&'static str; SETTINGS.len()] {
    SETTINGS.each_ref().map(|setting| setting.name)
}
