//! A SQLite database with numbered rows.

use crate::demo::rows::{self, body};
use crate::demo::writer::Writer;
use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};

/// The open database.
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// A new one.
    pub fn create(path: &Path) -> Result<Database> {
        let database = Database::connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        database
            .connection
            .execute_batch("CREATE TABLE entry (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
            .with_context(|| format!("{}: making the table", path.display()))?;
        Ok(database)
    }

    /// The one that is there. SQLite recovers from its own log what the killed writer left in it.
    pub fn open(path: &Path) -> Result<Database> {
        Database::connect(path, OpenFlags::empty())
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Database> {
        let open = || -> rusqlite::Result<Connection> {
            let c = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            // Exclusive: the index of the log stays in memory and is not mapped from the mount. A mapped page of a mount
            // that has just died is a SIGBUS, which would end the demo and not only the writer.
            c.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            c.pragma_update(None, "journal_mode", "WAL")?;
            c.pragma_update(None, "synchronous", "FULL")?;
            Ok(c)
        };
        let connection = open().with_context(|| format!("{}: opening the database", path.display()))?;
        Ok(Database { connection, path: path.to_owned() })
    }

    /// Looks whether the file is whole, and for every row up to `acknowledged`. Returns how many there are.
    pub fn check(&self, acknowledged: u64) -> Result<u64> {
        let verdict: String = self.connection.query_row("PRAGMA integrity_check", [], |r| r.get(0))?;
        if verdict != "ok" {
            bail!("{}: integrity_check says {verdict}", self.path.display());
        }
        let mut statement = self.connection.prepare("SELECT id, body FROM entry ORDER BY id")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows::check(rows.map(|row| Ok(row?)), acknowledged)
    }

    /// Commits row after row, behind the last one; the writer's end closes the database.
    pub fn write(self) -> Result<Writer> {
        let last = "SELECT coalesce(max(id), 0) FROM entry";
        let last = self.connection.query_row(last, [], |r| r.get(0))?;
        Writer::start(last, move |id| Ok(self.insert(id)?))
    }

    fn insert(&self, id: u64) -> rusqlite::Result<()> {
        let c = &self.connection;
        c.execute_batch("BEGIN IMMEDIATE")?;
        c.prepare_cached("INSERT INTO entry VALUES (?, ?)")?.execute((id, body(id)))?;
        c.execute_batch("COMMIT")
    }
}
