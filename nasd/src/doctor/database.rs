//! The PostgreSQL of the configuration.

use super::Finding;
use nasd_config::{Config, Postgresql};
use nasd_watcher::postgresql::Cluster;

const CHECK: &str = "postgresql";

pub(super) fn check(config: &Config, c: &Postgresql) -> Finding {
    let cluster = crate::database::cluster(c);
    let data_dir = c.data_dir.display();
    let programs = match programs(&cluster) {
        Ok(programs) => programs,
        Err(why) => return Finding::fail(CHECK, why),
    };
    if !cluster.exists() {
        return Finding::warn(
            CHECK,
            format!("{programs}; there is no cluster in {data_dir} yet: `nasd pg clone` makes a standby's"),
        );
    }
    let control = match cluster.control() {
        Ok(control) => control,
        Err(e) => return Finding::fail(CHECK, e.to_string()),
    };
    match cluster.wal_link() {
        Ok(to) if to.starts_with(&config.volume.mount) => {}
        _ => {
            return Finding::warn(
                CHECK,
                format!(
                    "pg_wal of {data_dir} is not on {} yet: `nasd pg adopt`",
                    config.volume.mount.display()
                ),
            );
        }
    }
    if control.checksums {
        return Finding::ok(CHECK, format!("{programs}; {data_dir}, its log on the volume"));
    }
    Finding::warn(
        CHECK,
        format!(
            "{data_dir} has no data checksums: damage of its disk is found late; see pg_checksums --enable"
        ),
    )
}

fn programs(cluster: &Cluster) -> Result<String, String> {
    let dir = cluster.bin_dir().map_err(|e| e.to_string())?;
    for program in ["postgres", "pg_ctl", "pg_controldata", "pg_basebackup", "psql"] {
        if !dir.join(program).is_file() {
            return Err(format!("{} is missing in {}: set bin_dir in [postgresql]", program, dir.display()));
        }
    }
    Ok(format!("programs in {}", dir.display()))
}
