//! The story with SQLite: a database that is a file on the volume.

mod database;

use super::pair::{Rate, compare, in_sync, leave, switch_over, take_over, watch};
use super::stage::{Node, Stage};
use super::writer::Writer;
use crate::status::Status;
use anyhow::{Context, Result};
use database::Database;
use std::time::{Duration, Instant};

/// Plays it. Fails when anything did not hold.
pub fn story(stage: &Stage, time: Duration) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    stage.say(format_args!("a pair on this machine, in {}", stage.path().display()));
    in_sync(stage, a, b, || {
        stage.start(b)?;
        stage.start(a)
    })?;

    let first = Database::create(&a.mount.join("demo.db"))?;
    stage.say(format_args!(
        "SQLite on {}: WAL mode, synchronous=FULL, a COMMIT for each row",
        a.mount.display()
    ));
    let writer = first.write()?;
    show(stage, a, &writer, time)?;

    let (died, acknowledged) = kill_in_mid_write(stage, a, writer)?;
    take_over(stage, b, died)?;
    let second = check(stage, b, acknowledged, "after the failover")?;

    let writer = second.write()?;
    show(stage, b, &writer, time / 2)?;
    stage.say(format_args!("{} comes back, while {} goes on writing", a.name, b.name));
    in_sync(stage, b, a, || stage.start(a))?;
    show(stage, b, &writer, time / 2)?;
    let acknowledged = writer.stop()?;

    switch_over(stage, a)?;
    in_sync(stage, a, b, || Ok(()))?;
    let third = check(stage, a, acknowledged, "after the switchover")?;
    let writer = third.write()?;
    show(stage, a, &writer, Duration::from_secs(1))?;
    let rows = writer.stop()?;
    compare(stage, a)?;

    leave(stage, a, b)?;
    stage.say(format_args!("all held: {rows} rows were acknowledged, none is lost"));
    Ok(())
}

/// Shows for `time` how fast rows are committed and how far the secondary is behind.
fn show(stage: &Stage, primary: &Node, writer: &Writer, time: Duration) -> Result<()> {
    let mut rate = Rate::from(writer.acknowledged());
    watch(stage, writer, time, || {
        let rate = rate.until(writer.acknowledged());
        Ok(format!("{rate:6.0} commits/s, {}", behind(&primary.status()?)))
    })
}

fn behind(status: &Status) -> String {
    let Some(peer) = status.peers.first() else {
        return "no secondary".to_owned();
    };
    let how = match peer.state.as_str() {
        "in-sync" => String::new(),
        state => format!(" ({state})"),
    };
    format!(
        "{}{how} is behind by {} transactions, {} bytes; shows all but the last {}",
        peer.name,
        peer.lag_transactions,
        peer.lag_bytes,
        status.seq.saturating_sub(peer.applied_seq)
    )
}

/// SIGKILL, while the writer is somewhere in a transaction. Returns when that was, and the last row whose COMMIT
/// returned.
fn kill_in_mid_write(stage: &Stage, primary: &Node, writer: Writer) -> Result<(Instant, u64)> {
    let pid = stage.kill(primary)?;
    let died = Instant::now();
    let (acknowledged, error) = writer.wait_for_failure()?;
    stage.say(format_args!("{} (process {pid}) was killed with SIGKILL in mid-write", primary.name));
    stage.say(format_args!("row {acknowledged} was the last whose COMMIT returned; the next one: {error}"));
    Ok((died, acknowledged))
}

/// Opens the database on `node` and looks for every row up to `acknowledged`.
fn check(stage: &Stage, node: &Node, acknowledged: u64, when: &str) -> Result<Database> {
    let database = Database::open(&node.mount.join("demo.db"))?;
    let rows = database.check(acknowledged).with_context(|| format!("on {} {when}", node.name))?;
    stage.say(format_args!(
        "{when}: all {acknowledged} acknowledged rows are on {} ({rows} in all), integrity_check says ok",
        node.name
    ));
    Ok(database)
}
