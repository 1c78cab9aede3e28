//! How fast the primary commits, and how far the standby is behind.

use super::psql::Psql;
use super::server::Server;
use crate::demo::PATIENCE;
use crate::demo::pair::Rate;
use anyhow::{Context, Result, bail};
use nasd_watcher::postgresql::Lsn;
use std::time::{Duration, Instant};

/// How long is waited for the standby before it is told to be further behind than that.
const SOON: Duration = Duration::from_secs(2);
/// Between two looks at it.
const LOOK: Duration = Duration::from_micros(200);

/// Connections to both.
pub struct Progress {
    primary: Psql,
    standby: Option<(&'static str, Psql)>,
    commits: Rate,
}

impl Progress {
    pub fn of_primary(primary: &Server) -> Result<Progress> {
        let mut primary = primary.psql()?;
        let commits = Rate::from(flushed(&mut primary)?.0);
        Ok(Progress { primary, standby: None, commits })
    }

    pub fn of_both(primary: &Server, standby: &Server) -> Result<Progress> {
        let other = Some((standby.node.name, standby.psql()?));
        Ok(Progress { standby: other, ..Progress::of_primary(primary)? })
    }

    /// What there is to say now. In time the standby is behind by how long it takes to be where the primary is now.
    pub fn line(&mut self) -> Result<String> {
        // Before the primary is asked, so that it is never told to be nearer than it is.
        let before = self.standby.as_mut().map(|(_, standby)| replayed(standby)).transpose()?;
        let start = Instant::now();
        let (transactions, now) = flushed(&mut self.primary)?;
        let rate = self.commits.until(transactions);
        let (Some((name, standby)), Some(before)) = (&mut self.standby, before) else {
            return Ok(format!("{rate:6.0} commits/s up to {now}; there is no standby"));
        };
        let behind = if before > now {
            // What the primary's flush still waits for, the standby's disk has, and the standby may have replayed.
            "0 bytes, 0 ms behind (ahead: the flush waits for it)".to_owned()
        } else {
            let late = match wait(standby, now, start, SOON)? {
                Some(late) => format!("{:.1} ms", late.as_secs_f64() * 1e3),
                None => format!("more than {SOON:?}"),
            };
            format!("{} bytes, {late} behind", now.0 - before.0)
        };
        Ok(format!("{rate:6.0} commits/s up to {now}; {name} replayed {before}: {behind}"))
    }

    /// Waits until the standby is where the primary is now: there.
    pub fn catch_up(&mut self) -> Result<Lsn> {
        let now = flushed(&mut self.primary)?.1;
        let (name, standby) = self.standby.as_mut().context("there is no standby")?;
        match wait(standby, now, Instant::now(), PATIENCE)? {
            Some(_) => Ok(now),
            None => bail!("PostgreSQL on {name} has not replayed {now} after {PATIENCE:?}"),
        }
    }
}

/// How many transactions have ever written there, each of which takes a number, and how far its log is flushed.
fn flushed(primary: &mut Psql) -> Result<(u64, Lsn)> {
    let row =
        primary.value("SELECT txid_snapshot_xmax(txid_current_snapshot()), pg_current_wal_flush_lsn()")?;
    let (transactions, lsn) = row.split_once('|').with_context(|| format!("{row:?} is no pair"))?;
    let transactions = transactions.parse().with_context(|| format!("{transactions:?} is no number"))?;
    Ok((transactions, lsn.parse()?))
}

fn replayed(standby: &mut Psql) -> Result<Lsn> {
    Ok(standby.value("SELECT pg_last_wal_replay_lsn()")?.parse()?)
}

/// How long after `start` the standby is there, if that is not longer than `limit`.
fn wait(standby: &mut Psql, there: Lsn, start: Instant, limit: Duration) -> Result<Option<Duration>> {
    loop {
        let is = replayed(standby)?;
        let after = start.elapsed();
        if is >= there {
            return Ok(Some(after));
        }
        if after > limit {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}
