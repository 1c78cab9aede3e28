//! The story with PostgreSQL: its `pg_wal` is on the volume, its data files are not.
//!
//! nasd starts, promotes and stops it; the story only ever asks nasd.

mod load;
mod progress;
mod psql;
mod server;
mod tables;

use super::pair::{compare, in_sync, leave, ms, switch_over, take_over, watch};
use super::rows::body;
use super::stage::Stage;
use super::writer::Writer;
use anyhow::{Context, Result};
use load::Load;
use progress::Progress;
use server::Server;
use std::time::{Duration, Instant};

pub use server::{look_ahead, section};

/// Plays it. Fails when anything did not hold.
pub fn story(stage: &Stage, time: Duration) -> Result<()> {
    let (a, b) = (&Server::new(stage, &stage.a)?, &Server::new(stage, &stage.b)?);
    stage.say(format_args!(
        "a pair on this machine, in {}, and beside each node a PostgreSQL of {}",
        stage.path().display(),
        a.programs()?.display()
    ));
    in_sync(stage, a.node, b.node, || {
        stage.start(b.node)?;
        stage.start(a.node)
    })?;

    make_primary(stage, a)?;
    make_standby(stage, b, a)?;

    let (load, writer) = (Load::start(a)?, write(a)?);
    stage.say(format_args!(
        "load: pgbench -N with {} clients, and a psql that commits a numbered row at a time",
        load::CLIENTS
    ));
    show(stage, &load, &writer, Progress::of_both(a, b)?, time)?;

    let (died, acknowledged) = kill_in_mid_write(stage, a, load, writer)?;
    take_over(stage, b.node, died)?;
    write_first(stage, b, died)?;
    check(stage, b, acknowledged, "after the failover")?;

    let (load, writer) = (Load::start(b)?, write(b)?);
    show(stage, &load, &writer, Progress::of_primary(b)?, time / 2)?;
    come_back(stage, a, b)?;
    show(stage, &load, &writer, Progress::of_both(b, a)?, time / 2)?;
    let acknowledged = writer.stop()?;
    load.stop(b)?;

    switch_over(stage, a.node)?;
    in_sync(stage, a.node, b.node, || Ok(()))?;
    a.wait_for("primary")?;
    b.wait_for("standby")?;
    check(stage, a, acknowledged, "after the switchover")?;
    let (load, writer) = (Load::start(a)?, write(a)?);
    show(stage, &load, &writer, Progress::of_both(a, b)?, Duration::from_secs(1))?;
    let rows = writer.stop()?;
    load.stop(a)?;
    compare_tables(stage, a, b)?;
    compare(stage, a.node)?;

    if stage.keeps() {
        stage.say(format_args!("both PostgreSQL take connections (--keep):"));
        stage.say(format_args!("  {}: {}", a.node.name, a.how_to_connect()));
        stage.say(format_args!("  {}: {}", b.node.name, b.how_to_connect()));
    }
    leave(stage, a.node, b.node)?;
    stage.say(format_args!("all held: {rows} numbered rows were acknowledged, none is lost"));
    Ok(())
}

/// A new cluster, its log moved onto the volume, with the tables to write to.
fn make_primary(stage: &Stage, on: &Server) -> Result<()> {
    let start = Instant::now();
    on.initdb()?;
    stage.say(format_args!(
        "initdb -k made {}'s cluster, with checksums: took {}",
        on.node.name,
        ms(start.elapsed())
    ));
    for line in stage.nasd(&["pg", "adopt"], on.node)?.lines() {
        stage.say(format_args!("  nasd pg adopt: {line}"));
    }
    on.wait_for("primary")?;
    stage.say(format_args!("nasd has started PostgreSQL on {}: it is primary", on.node.name));
    let start = Instant::now();
    tables::make(on)?;
    stage.say(format_args!(
        "pgbench -i has filled {} accounts: took {}",
        tables::ACCOUNTS,
        ms(start.elapsed())
    ));
    Ok(())
}

/// A base backup: the one time that data files cross the wire.
fn make_standby(stage: &Stage, on: &Server, primary: &Server) -> Result<()> {
    let start = Instant::now();
    stage.nasd(&["pg", "clone", "--from", &primary.conninfo()], on.node)?;
    stage.say(format_args!(
        "nasd pg clone has copied {}'s data files to {}, once: took {}",
        primary.node.name,
        on.node.name,
        ms(start.elapsed())
    ));
    on.wait_for("standby")?;
    let lsn = Progress::of_both(primary, on)?.catch_up()?;
    stage.say(format_args!(
        "nasd has started PostgreSQL on {}: it is standby, fed by the volume alone, and has replayed all, up to {lsn}",
        on.node.name
    ));
    Ok(())
}

/// Commits row after row, behind the last one, each in a transaction of its own.
fn write(on: &Server) -> Result<Writer> {
    let mut psql = on.psql()?;
    let last = psql.value("SELECT coalesce(max(id), 0) FROM entry")?;
    let last = last.parse().with_context(|| format!("the last row's number is {last:?}"))?;
    Writer::start(last, move |id| {
        psql.run(&format!("INSERT INTO entry VALUES ({id}, '{}')", body(id)))?;
        Ok(())
    })
}

/// Shows for `time` how fast is committed and how far the standby is behind.
fn show(stage: &Stage, load: &Load, writer: &Writer, mut progress: Progress, time: Duration) -> Result<()> {
    watch(stage, writer, time, || {
        load.must_run()?;
        progress.line()
    })
}

/// SIGKILL to the node and to all of its PostgreSQL, while both are in the middle of transactions. Returns when that
/// was, and the last row whose COMMIT returned.
fn kill_in_mid_write(stage: &Stage, primary: &Server, load: Load, writer: Writer) -> Result<(Instant, u64)> {
    let died = Instant::now();
    let nasd = stage.kill(primary.node)?;
    let postmaster = primary.kill()?;
    drop(load);
    let (acknowledged, error) = writer.wait_for_failure()?;
    stage.say(format_args!(
        "{} (process {nasd}) and its PostgreSQL ({postmaster} and its children) were killed with SIGKILL in mid-write",
        primary.node.name
    ));
    stage.say(format_args!("row {acknowledged} was the last whose COMMIT returned; the next one: {error}"));
    Ok((died, acknowledged))
}

fn write_first(stage: &Stage, on: &Server, died: Instant) -> Result<()> {
    on.psql()?.run(&format!("INSERT INTO failover VALUES ('{}')", on.node.name))?;
    let after = died.elapsed();
    stage.say(format_args!(
        "first successful write to PostgreSQL on {} {} after the kill",
        on.node.name,
        ms(after)
    ));
    Ok(())
}

/// The old primary, on the data directory that it died with.
fn come_back(stage: &Stage, old: &Server, primary: &Server) -> Result<()> {
    stage.say(format_args!("{} comes back, while {} goes on writing", old.node.name, primary.node.name));
    in_sync(stage, primary.node, old.node, || stage.start(old.node))?;
    let start = Instant::now();
    old.wait_for("standby")?;
    let lsn = Progress::of_both(primary, old)?.catch_up()?;
    stage.say(format_args!(
        "its PostgreSQL is standby, on the data directory that it died with (no pg_rewind, no base backup), and has \
         replayed up to {lsn}: took {}",
        ms(start.elapsed())
    ));
    Ok(())
}

fn check(stage: &Stage, on: &Server, acknowledged: u64, when: &str) -> Result<()> {
    let place = || format!("on {} {when}", on.node.name);
    let rows = tables::check_rows(on, acknowledged).with_context(place)?;
    stage.say(format_args!(
        "{when}: all {acknowledged} acknowledged rows are on {} ({rows} in all)",
        on.node.name
    ));
    let sums = tables::check_sums(on).with_context(place)?;
    stage.say(format_args!("{when}: {sums}"));
    let verdict = tables::amcheck(on).with_context(place)?;
    stage.say(format_args!("{when}: {verdict}"));
    Ok(())
}

/// Compares what the tables hold on both sides.
fn compare_tables(stage: &Stage, primary: &Server, standby: &Server) -> Result<()> {
    Progress::of_both(primary, standby)?.catch_up()?;
    let rows = tables::compare(primary, standby)?;
    stage.say(format_args!(
        "compared with PostgreSQL on {}: {rows} rows in {} tables, by a hash of each, no difference",
        standby.node.name,
        tables::NAMES.len()
    ));
    Ok(())
}
