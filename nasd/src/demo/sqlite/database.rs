//! A SQLite database whose rows are numbered, so that the last acknowledged number stands for all of them.

use anyhow::{Context, Result, anyhow, bail};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

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

    /// Looks for every row up to `acknowledged`, whole and right, and nothing that never was written. One more row may
    /// be there: its COMMIT did its work and never returned. Returns how many there are.
    pub fn check(&self, acknowledged: u64) -> Result<u64> {
        let verdict: String = self.connection.query_row("PRAGMA integrity_check", [], |r| r.get(0))?;
        if verdict != "ok" {
            bail!("{}: integrity_check says {verdict}", self.path.display());
        }
        let mut statement = self.connection.prepare("SELECT id, body FROM entry ORDER BY id")?;
        let mut rows = statement.query([])?;
        let mut n = 0;
        while let Some(row) = rows.next()? {
            n += 1;
            let (id, found): (u64, String) = (row.get(0)?, row.get(1)?);
            if id != n {
                bail!("row {n} is missing; acknowledged were {acknowledged}");
            }
            if found != body(id) {
                bail!("row {id} is not what was written");
            }
        }
        if n < acknowledged {
            bail!("rows {} to {acknowledged} were acknowledged and are missing", n + 1);
        }
        if n > acknowledged + 1 {
            bail!("{n} rows are there, and only {} were written", acknowledged + 1);
        }
        Ok(n)
    }

    fn insert(&self, id: u64) -> rusqlite::Result<()> {
        let c = &self.connection;
        c.execute_batch("BEGIN IMMEDIATE")?;
        c.prepare_cached("INSERT INTO entry VALUES (?, ?)")?.execute((id, body(id)))?;
        c.execute_batch("COMMIT")
    }
}

fn body(id: u64) -> String {
    blake3::hash(&id.to_le_bytes()).to_hex().to_string()
}

/// A thread that commits row after row.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), rusqlite::Error>>,
}

impl Writer {
    /// Goes on behind the last row.
    pub fn start(database: Database) -> Result<Writer> {
        let last = "SELECT coalesce(max(id), 0) FROM entry";
        let last: u64 = database.connection.query_row(last, [], |r| r.get(0))?;
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(last));
        let (stopped, done) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = std::thread::Builder::new().name("writer".into()).spawn(move || {
            for id in last + 1.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                database.insert(id)?;
                // Now, and not before, COMMIT has returned.
                done.store(id, Ordering::SeqCst);
            }
            Ok(())
        })?;
        Ok(Writer { stop, acknowledged, thread })
    }

    /// The last row whose COMMIT returned.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// It has failed.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it in order and closes the database; the last row whose COMMIT returned.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        match self.end() {
            (n, None) => Ok(n),
            (n, Some(e)) => Err(anyhow!(e).context(format!("the database, writing row {}", n + 1))),
        }
    }

    /// Waits until it fails, as it must when the volume is gone; the last row whose COMMIT returned, and the error.
    pub fn wait_for_failure(self) -> Result<(u64, String)> {
        match self.end() {
            (n, Some(e)) => Ok((n, e.to_string())),
            (n, None) => bail!("the writer ended by itself at row {n}"),
        }
    }

    fn end(self) -> (u64, Option<rusqlite::Error>) {
        // A panic of the thread has ended the process.
        let error = self.thread.join().ok().and_then(Result::err);
        (self.acknowledged.load(Ordering::SeqCst), error)
    }
}
