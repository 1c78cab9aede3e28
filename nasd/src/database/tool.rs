//! `nasd pg …`: what an operator does with the database beside the volume.

use super::{MUST_CLONE, WAL_DIR, cluster, state_of};
use crate::client;
use crate::oneline::OneLine;
use crate::progress::Progress;
use crate::status::Status;
use anyhow::{Context, Result, bail};
use hyper::Method;
use nasd_config::{Config, Postgresql};
use nasd_watcher::postgresql::{
    CloneOptions, Cluster, Lsn, adopt as adopt_cluster, clone_from, copied, release as release_cluster,
};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

pub(super) fn configured(config: &Config) -> Result<(&Postgresql, Cluster)> {
    let c = config.postgresql.as_ref().context(
        "there is no [postgresql] in the configuration: add one with data_dir = \"/var/lib/postgresql/15/main\"",
    )?;
    Ok((c, cluster(c)))
}

fn node(config: &Config) -> Result<Status> {
    client::call(&config.node.control, Method::GET, "/v1/status", SOON)
}

fn as_role(config: &Config, role: &str, states: &[&str]) -> Result<Status> {
    let node = node(config)?;
    if node.role != role || !states.contains(&node.state.as_str()) {
        bail!(
            "{} is {} ({}); this is done on the {role}, when `nasd status` says {}",
            node.name,
            node.role,
            node.state,
            states.join(" or ")
        );
    }
    Ok(node)
}

const SERVES: [&str; 4] = ["in-sync", "stand-alone", "degraded", "suspended"];

/// Moves `pg_wal` onto the volume.
pub fn adopt(config: &Config) -> Result<()> {
    let (_, cluster) = configured(config)?;
    as_role(config, "primary", &SERVES)?;
    for line in adopt_cluster(&cluster, &config.volume.mount, WAL_DIR)? {
        println!("{line}");
    }
    Ok(())
}

/// Moves it back.
pub fn release(config: &Config) -> Result<()> {
    let (c, cluster) = configured(config)?;
    as_role(config, "primary", &SERVES)?;
    if c.manage && cluster.running().is_some() {
        bail!(
            "nasd runs this PostgreSQL: set manage = false in [postgresql], restart nasd and stop PostgreSQL first"
        );
    }
    for line in release_cluster(&cluster, &config.volume.mount, WAL_DIR)? {
        println!("{line}");
    }
    Ok(())
}

/// Makes the standby.
pub fn clone(config: &Config, from: &str) -> Result<()> {
    let (c, cluster) = configured(config)?;
    as_role(config, "secondary", &["in-sync", "catch-up", "disconnected", "outdated"])?;
    let options = CloneOptions { from: from.to_owned(), wal_target: config.volume.mount.join(WAL_DIR) };
    copy(&cluster, &options)?;
    let marker: PathBuf = config.node.state_dir.join(MUST_CLONE);
    match std::fs::remove_file(&marker) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("{}: remove it by hand", marker.display()));
        }
        _ => {}
    }
    if c.manage {
        println!("nasd starts it as standby now");
    } else {
        println!("start it: it follows from {}", options.wal_target.display());
    }
    Ok(())
}

/// The base backup. On a terminal its progress is one line.
fn copy(cluster: &Cluster, options: &CloneOptions) -> Result<()> {
    let seen = OneLine::new();
    let all = Progress::default();
    let mut work = None;
    let mut before = 0;
    clone_from(cluster, options, |line| match copied(line) {
        Some((done, total)) if seen.is_seen() => {
            let work = work.get_or_insert_with(|| all.begin("base backup", Some(total)));
            work.step(done.saturating_sub(before));
            before = before.max(done);
            all.status().iter().for_each(|w| seen.show(&w.line()));
        }
        _ => {
            seen.show("");
            println!("{line}");
        }
    })?;
    Ok(())
}

#[derive(Debug, Serialize)]
struct PgStatus {
    node: String,
    role: String,
    state: String,
    /// Flushed here, which is: on the disks of all peers that are in sync as well.
    flushed_lsn: Option<String>,
    /// On the peers' disks too.
    replicated_lsn: Option<String>,
    replayed_lsn: Option<String>,
    /// Age of the last commit that the standby has replayed.
    replay_delay_seconds: Option<f64>,
    /// What would be lost if the primary burnt now.
    lost_transactions: u64,
    lost_bytes: u64,
    held_files: u64,
    held_bytes: u64,
    must_clone: Option<String>,
}

/// The first row; that the database does not answer is told, and the rest of the status goes on.
fn one(cluster: &Cluster, query: &str) -> Option<Vec<String>> {
    let rows = cluster.sql(query).map_err(|e| eprintln!("nasd: {e}")).ok()?;
    rows.into_iter().next()
}

/// Says how far the log is.
pub fn status(config: &Config, json: bool) -> Result<()> {
    let (c, cluster) = configured(config)?;
    let node = node(config)?;
    let database = node.postgresql.clone().unwrap_or_default();
    // It may be seen from here and not by the node, which is in another container.
    let state = state_of(&cluster, &config.volume.mount, c.manage);
    let mut s = PgStatus {
        node: node.name.clone(),
        role: node.role.clone(),
        state: state.to_owned(),
        flushed_lsn: None,
        replicated_lsn: None,
        replayed_lsn: None,
        replay_delay_seconds: None,
        lost_transactions: node.exposure.transactions,
        lost_bytes: node.exposure.bytes,
        held_files: database.held_files,
        held_bytes: database.held_bytes,
        must_clone: database.must_clone.clone(),
    };
    match state {
        "primary" => {
            let row = one(&cluster, "SELECT pg_current_wal_flush_lsn()");
            s.flushed_lsn = row.and_then(|r| r.into_iter().next());
            // In these modes an fsync returns when the peers have it, and what PostgreSQL calls flushed is what returned.
            let whole =
                node.state == "in-sync" && ["durable", "apply"].contains(&node.commit_mode_now.as_str());
            if whole {
                s.replicated_lsn.clone_from(&s.flushed_lsn);
            }
        }
        "standby" => {
            let query = "SELECT pg_last_wal_replay_lsn(), \
                         extract(epoch FROM now() - pg_last_xact_replay_timestamp())";
            if let Some(row) = one(&cluster, query) {
                s.replayed_lsn = row.first().filter(|l| l.parse::<Lsn>().is_ok()).cloned();
                s.replay_delay_seconds = row.get(1).and_then(|d| d.parse().ok());
            }
        }
        _ => {}
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&s)?);
        return Ok(());
    }
    let line = |k: &str, v: String| println!("{k:<12} {v}");
    let unknown = || "not known".to_owned();
    line("node", format!("{} ({}), PostgreSQL: {}", s.node, s.role, s.state));
    if let Some(lsn) = &s.flushed_lsn {
        line("flushed", lsn.clone());
        line(
            "replicated",
            s.replicated_lsn.clone().unwrap_or_else(|| format!("not all of it: the node is {}", node.state)),
        );
        line(
            "would lose",
            format!("{} transactions of the volume, {} bytes", s.lost_transactions, s.lost_bytes),
        );
    }
    if s.state == "standby" {
        line("replayed", s.replayed_lsn.clone().unwrap_or_else(unknown));
        let delay = s.replay_delay_seconds.map_or_else(unknown, |d| format!("{d:.3} s ago"));
        line("last commit", delay);
    }
    if s.held_files > 0 {
        line("held", format!("{} WAL files, {} bytes", s.held_files, s.held_bytes));
    }
    if let Some(why) = &s.must_clone {
        line("must clone", why.clone());
    }
    Ok(())
}
