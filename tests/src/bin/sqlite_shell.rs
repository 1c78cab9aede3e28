//! SQLite as a client of its own: each line of standard input is SQL, each row of its results a line of the output.
//!
//! A process, because SQLite maps its index: where the volume dies, so does whoever has it mapped. And not the `sqlite3`
//! program, since what matters is stated here: in WAL mode a COMMIT is promised with `synchronous = FULL` only.

use anyhow::Result;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection, Row};
use std::io::{BufRead, Write};
use std::time::Duration;

fn line(row: &Row<'_>) -> Result<String> {
    let columns = row.as_ref().column_count();
    let text = (0..columns).map(|i| {
        Ok(match row.get_ref(i)? {
            ValueRef::Integer(n) => n.to_string(),
            other => other.as_str()?.to_owned(),
        })
    });
    Ok(text.collect::<Result<Vec<_>>>()?.join("\t"))
}

fn main() -> Result<()> {
    let db = Connection::open(std::env::args_os().nth(1).unwrap_or_default())?;
    db.busy_timeout(Duration::from_secs(30))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    let mut out = std::io::stdout();
    for sql in std::io::stdin().lock().lines() {
        let sql = sql?;
        let mut statements = Batch::new(&db, &sql);
        while let Some(mut statement) = statements.next()? {
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                writeln!(out, "{}", line(row)?)?;
            }
        }
        out.flush()?;
    }
    Ok(())
}
