//! What the database holds, and whether it is right.

use super::psql::Psql;
use super::server::Server;
use crate::demo::rows;
use anyhow::{Context, Result, bail};

/// pgbench's unit is 100000 accounts.
const SCALE: u32 = 5;
pub const ACCOUNTS: u32 = SCALE * 100_000;

/// The tables that are written to, and those beside them.
pub const NAMES: [&str; 6] =
    ["entry", "failover", "pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"];

/// Makes pgbench's tables and ours.
pub fn make(on: &Server) -> Result<()> {
    on.run("pgbench", &["-i", "-q", "-s", &SCALE.to_string(), "postgres"])?;
    let mut psql = on.psql()?;
    psql.run("CREATE TABLE entry (id bigint PRIMARY KEY, body text NOT NULL)")?;
    psql.run("CREATE TABLE failover (node text NOT NULL)")?;
    Ok(())
}

/// Looks for every row up to `acknowledged`. Returns how many there are.
pub fn check_rows(on: &Server, acknowledged: u64) -> Result<u64> {
    let all = on.psql()?.run("SELECT id, body FROM entry ORDER BY id")?;
    let row = |line: &String| {
        let (id, body) = line.split_once('|').with_context(|| format!("{line} is no row"))?;
        Ok((id.parse().with_context(|| format!("{line} has no number"))?, body.to_owned()))
    };
    rows::check(all.iter().map(row), acknowledged)
}

/// Each of pgbench's transactions adds to an account and notes what it added: the sums are equal, or one is there by
/// halves. Says what it found.
pub fn check_sums(on: &Server) -> Result<String> {
    let query = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_accounts), \
                 coalesce(sum(delta), 0), count(*) FROM pgbench_history";
    let row = on.psql()?.value(query)?;
    let [balances, accounts, deltas, transfers] = row.split('|').collect::<Vec<_>>()[..] else {
        bail!("not four numbers: {row}");
    };
    if balances != deltas {
        bail!(
            "pgbench's accounts sum up to {balances}, and its history to {deltas}: a transaction is there by halves"
        );
    }
    if accounts != ACCOUNTS.to_string() {
        bail!("pgbench has {accounts} accounts of {ACCOUNTS}");
    }
    Ok(format!("sum(abalance) = sum(delta) = {deltas} over {transfers} transactions of pgbench"))
}

/// Looks whether tables and indexes are whole. Says what it found.
pub fn amcheck(on: &Server) -> Result<&'static str> {
    const PROGRAM: &str = "pg_amcheck";
    if !on.has(PROGRAM)? {
        return Ok("pg_amcheck is not installed (PostgreSQL 14 and later have it): left out");
    }
    let args = ["--install-missing", "--heapallindexed", "--parent-check", "postgres"];
    on.run(PROGRAM, &args)?;
    Ok("pg_amcheck finds every table and index whole")
}

/// Compares what the tables hold on both sides; how many rows that is.
pub fn compare(primary: &Server, standby: &Server) -> Result<u64> {
    let (mut here, mut there) = (primary.psql()?, standby.psql()?);
    let mut sum = 0;
    for table in NAMES {
        let (a, b) = (hash(&mut here, table)?, hash(&mut there, table)?);
        if a != b {
            bail!(
                "table {table}: {} has {} rows, hash {}, and {} has {} rows, hash {}",
                primary.node.name,
                a.0,
                a.1,
                standby.node.name,
                b.0,
                b.1
            );
        }
        sum += a.0;
    }
    Ok(sum)
}

/// How many rows, and the sum of their hashes: in whatever order they come.
fn hash(psql: &mut Psql, table: &str) -> Result<(u64, String)> {
    let query = format!("SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t");
    let row = psql.value(&query)?;
    let (rows, hash) = row.split_once('|').with_context(|| format!("not a number and a hash: {row}"))?;
    Ok((rows.parse().with_context(|| format!("{rows:?} is no number of rows"))?, hash.to_owned()))
}
