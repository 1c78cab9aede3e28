//! Writers on a mount that dies under them, and what they know to be safe: the oracle of the kill and power tests.
//!
//! Everything acknowledged is recorded in this process, outside of the volume. Each round's files are new, in a
//! directory of the round's own, so that a writer starts from nothing it would have to trust.
//!
//! What is checked after a recovery: a record whose `fsync` returned is there and whole; records have no gaps, and
//! behind the last there is nothing, or the beginning of the next, which nobody acknowledged, up to a page's end: the
//! kernel gives a write(2) that goes on in a page that it has not read to FUSE in two pieces, and another writer's
//! `fsync` may come in between; what was renamed and synced has its new name; a file that is replaced by a rename is the old or
//! the new one; what was removed and synced is gone; SQLite holds every row whose COMMIT returned, transactions
//! whole, and finds itself intact. And rounds that were checked once never change again.

use rusqlite::Connection;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;

/// Threads that append.
const APPENDERS: u64 = 3;
/// Rounds whose files stay on the volume.
const KEEP: usize = 3;
/// Records that a file holds that is then emptied and written anew.
const REUSE: u64 = 8;
/// Rows of one SQLite transaction.
const ROWS: u64 = 3;

/// What a writing thread does below a directory until it is stopped.
type Work = Box<dyn FnOnce(&Path, &Acked, &AtomicBool) + Send>;

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// Record `n` of writer `who`: its length, its number, a checksum, and bytes that follow from the number.
pub fn record(who: u64, n: u64) -> Vec<u8> {
    let mut x = (who << 40 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let len = 16 + (x >> 33) % 3000;
    let mut body = Vec::with_capacity(len as usize);
    while (body.len() as u64) < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        body.extend_from_slice(&x.to_le_bytes());
    }
    let mut all = Vec::with_capacity(body.len() + 24);
    all.extend_from_slice(&(body.len() as u64).to_le_bytes());
    all.extend_from_slice(&n.to_le_bytes());
    all.extend_from_slice(&fnv(&body).to_le_bytes());
    all.extend_from_slice(&body);
    all
}

/// What one round's writers know.
#[derive(Debug, Default)]
struct Acked {
    /// Records of each appender.
    appended: [AtomicU64; APPENDERS as usize],
    /// Files that were created, synced, renamed, their directory synced.
    renamed: AtomicU64,
    /// The generation of the file that is replaced.
    replaced: AtomicU64,
    /// Records of the file that is emptied now and then.
    reused: AtomicU64,
    /// Files that were removed and their directory synced.
    removed: AtomicU64,
    /// Transactions of SQLite.
    rows: AtomicU64,
}

impl Acked {
    fn all(&self) -> u64 {
        let appended: u64 = self.appended.iter().map(|a| a.load(SeqCst)).sum();
        appended
            + [&self.renamed, &self.replaced, &self.reused, &self.removed, &self.rows]
                .iter()
                .map(|a| a.load(SeqCst))
                .sum::<u64>()
    }
}

/// The writers of one round, while they run.
#[derive(Debug)]
pub struct Writers {
    round: usize,
    acked: Arc<Acked>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    child: Child,
}

/// Ends at the first error, as the mount may be dead.
fn until_stopped(stop: &AtomicBool, mut step: impl FnMut(u64) -> std::io::Result<()>) {
    for n in 1.. {
        if stop.load(SeqCst) || step(n).is_err() {
            return;
        }
    }
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut f = File::create(path)?;
    f.write_all(bytes)?;
    f.sync_all()
}

fn dir_of(round: usize) -> String {
    format!("round-{round:04}")
}

impl Writers {
    /// Starts them on `mount`; `child` is how this test program is started as the SQLite writer ([`sqlite_child`]).
    ///
    /// # Panics
    /// When the mount does not take the first files.
    pub fn start(mount: &Path, round: usize, child: &str) -> Writers {
        let dir = mount.join(dir_of(round));
        for d in ["renamed", "moved", "sqlite"] {
            fs::create_dir_all(dir.join(d)).unwrap();
        }
        sync_dir(&dir).unwrap();
        sync_dir(mount).unwrap();
        let acked = Arc::new(Acked::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut spawn = |work: Work| {
            let (dir, acked, stop) = (dir.clone(), Arc::clone(&acked), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || work(&dir, &acked, &stop)));
        };
        for i in 0..APPENDERS {
            spawn(Box::new(move |dir, acked, stop| append(dir, i, &acked.appended[i as usize], stop)));
        }
        spawn(Box::new(rename_and_remove));
        spawn(Box::new(replace));
        spawn(Box::new(reuse));
        // In a process of its own: it maps its index, and a page of a dead mount is a SIGBUS.
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", child, "--ignored", "--nocapture", "--quiet"])
            .env("NASD_TEST_SQLITE", dir.join("sqlite"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let known = Arc::clone(&acked);
        threads.push(std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(n) = line.strip_prefix("acked ") {
                    known.rows.store(n.parse().unwrap(), SeqCst);
                }
            }
        }));
        Writers { round, acked, stop, threads, child }
    }

    /// How much they have acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.acked.all()
    }

    /// Ends them: at once when the mount is dead, else after the step that each is at.
    pub fn stop(mut self) -> Stopped {
        self.stop.store(true, SeqCst);
        // It ends when its standard input does.
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
        for t in self.threads.drain(..) {
            t.join().unwrap();
        }
        Stopped { round: self.round, acked: Arc::clone(&self.acked) }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writers that have ended.
#[derive(Debug)]
pub struct Stopped {
    round: usize,
    acked: Arc<Acked>,
}

fn append(dir: &Path, who: u64, acked: &AtomicU64, stop: &AtomicBool) {
    let Ok(mut f) = File::options().create(true).append(true).open(dir.join(format!("log-{who}"))) else {
        return;
    };
    until_stopped(stop, |n| {
        f.write_all(&record(who, n))?;
        if n % 2 == 0 {
            f.sync_data()?;
        } else {
            f.sync_all()?;
        }
        acked.store(n, SeqCst);
        Ok(())
    });
}

fn rename_and_remove(dir: &Path, acked: &Acked, stop: &AtomicBool) {
    let (renamed, moved) = (dir.join("renamed"), dir.join("moved"));
    until_stopped(stop, |n| {
        let new = renamed.join("new");
        write_synced(&new, &record(100, n))?;
        fs::rename(&new, renamed.join(n.to_string()))?;
        sync_dir(&renamed)?;
        acked.renamed.store(n, SeqCst);
        // Half of them go on to another directory, and there the older ones are removed again.
        if n % 2 == 0 {
            fs::rename(renamed.join(n.to_string()), moved.join(n.to_string()))?;
            if n > 10 {
                fs::remove_file(moved.join((n - 10).to_string()))?;
            }
            sync_dir(&moved)?;
            acked.removed.store(n, SeqCst);
        }
        Ok(())
    });
}

fn replace(dir: &Path, acked: &Acked, stop: &AtomicBool) {
    let (current, new) = (dir.join("current"), dir.join("current.new"));
    until_stopped(stop, |n| {
        write_synced(&new, &record(200, n))?;
        fs::rename(&new, &current)?;
        sync_dir(dir)?;
        acked.replaced.store(n, SeqCst);
        Ok(())
    });
}

/// Emptied without a sync, as databases do with a journal that they need no more.
fn reuse(dir: &Path, acked: &Acked, stop: &AtomicBool) {
    let Ok(mut f) = File::options().create(true).append(true).open(dir.join("reused")) else { return };
    until_stopped(stop, |n| {
        if n % REUSE == 1 {
            f.set_len(0)?;
        }
        f.write_all(&record(400, n))?;
        f.sync_data()?;
        acked.reused.store(n, SeqCst);
        Ok(())
    });
}

fn open_sqlite(dir: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(dir.join("db"))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    // The log is wrapped around and reset often.
    db.pragma_update(None, "wal_autocheckpoint", 20)?;
    Ok(db)
}

fn insert(db: &mut Connection, n: u64) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    for i in 0..ROWS {
        tx.execute("insert into t (tx, data) values (?1, ?2)", (n as i64, record(300 + i, n)))?;
    }
    tx.commit()
}

/// The SQLite writer: to be called by an ignored test, which [`Writers::start`] starts as a process.
pub fn sqlite_child() {
    let Some(dir) = std::env::var_os("NASD_TEST_SQLITE") else { return };
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        ended.store(true, SeqCst);
    });
    // Any error may be the mount's death.
    let Ok(mut db) = open_sqlite(Path::new(&dir)) else { return };
    let table = "create table if not exists t (id integer primary key, tx integer, data blob)";
    if db.execute_batch(table).is_err() {
        return;
    }
    until_stopped(&stop, |n| {
        insert(&mut db, n).map_err(std::io::Error::other)?;
        // Not println!: the test harness must not keep it back.
        writeln!(std::io::stdout(), "acked {n}")
    });
}

/// Checks every round that is still on the volume.
#[derive(Debug, Default)]
pub struct Oracle {
    rounds: BTreeMap<usize, BTreeMap<PathBuf, u64>>,
    /// Acknowledgements in all.
    pub acked: u64,
    /// A file that was emptied without a sync and was written anew may come back as a mixture, when its node lost its
    /// power and serves again: the disk has the emptying, the redo of what was synced before it since the checkpoint
    /// puts that behind zeros. Known and open; the peer still has the file whole.
    pub emptied_files_may_mix: bool,
}

impl Oracle {
    /// Checks the round on `mount`. `may_tear`: the last, unacknowledged record of a file may be there in any part,
    /// because this node itself was killed or cut while it wrote, and serves what it found in its own files.
    pub fn check(&mut self, mount: &Path, stopped: &Stopped, may_tear: bool) {
        let dir = mount.join(dir_of(stopped.round));
        let acked = &stopped.acked;
        self.acked += acked.all();
        for i in 0..APPENDERS {
            check_log(&dir.join(format!("log-{i}")), i, acked.appended[i as usize].load(SeqCst), may_tear);
        }
        check_renamed(&dir, acked);
        if !(may_tear && self.emptied_files_may_mix) {
            check_reused(&dir.join("reused"), acked.reused.load(SeqCst), may_tear);
        }
        check_replaced(&dir, acked.replaced.load(SeqCst));
        check_sqlite(&dir.join("sqlite"), acked.rows.load(SeqCst));
        for (round, files) in &self.rounds {
            assert_eq!(
                &contents(&mount.join(dir_of(*round))),
                files,
                "round {round} changed after it was checked"
            );
        }
        self.rounds.insert(stopped.round, contents(&dir));
        while self.rounds.len() > KEEP {
            let (round, _) = self.rounds.pop_first().unwrap();
            fs::remove_dir_all(mount.join(dir_of(round))).unwrap();
        }
    }
}

/// A checksum of each file. SQLite's index is not kept over a crash.
fn contents(dir: &Path) -> BTreeMap<PathBuf, u64> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .map(Result::unwrap)
        .filter(|e| e.file_type().is_file() && !e.path().ends_with("db-shm"))
        .map(|e| (e.path().strip_prefix(dir).unwrap().to_owned(), fnv(&fs::read(e.path()).unwrap())))
        .collect()
}

fn check_log(path: &Path, who: u64, acked: u64, may_tear: bool) {
    let bytes = fs::read(path).unwrap_or_default();
    let (mut at, mut n) = (0, 0);
    loop {
        let want = record(who, n + 1);
        if bytes[at..].starts_with(&want) {
            at += want.len();
            n += 1;
            continue;
        }
        let rest = &bytes[at..];
        let torn = !rest.is_empty();
        let part = want.starts_with(rest);
        let pages = bytes.len().is_multiple_of(4096);
        assert!(
            n >= acked,
            "{}: record {} of {acked} acknowledged is missing ({} bytes of the file)",
            path.display(),
            n + 1,
            bytes.len()
        );
        assert!(
            !torn || part && (may_tear || pages),
            "{}: behind record {n} ({acked} acknowledged) there are {} bytes that are no record",
            path.display(),
            rest.len()
        );
        return;
    }
}

fn check_reused(path: &Path, acked: u64, may_tear: bool) {
    let bytes = fs::read(path).unwrap_or_default();
    let number = bytes.get(8..16).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()));
    // Those of the last acknowledged one's turn, or the next turn has begun: with nothing, or with a first record.
    let (this, next) = ((acked.max(1) - 1) / REUSE * REUSE + 1, acked + 1);
    let first = if acked > 0 && acked.is_multiple_of(REUSE) && (number == next || bytes.len() < 24) {
        next
    } else {
        this
    };
    let (mut at, mut n) = (0, first - 1);
    while bytes[at..].starts_with(&record(400, n + 1)) {
        n += 1;
        at += record(400, n).len();
    }
    let (rest, head) = (&bytes[at..], &bytes[..bytes.len().min(32)]);
    let part = record(400, n + 1).starts_with(rest) && (may_tear || bytes.len().is_multiple_of(4096));
    assert!(
        n >= acked && (rest.is_empty() || part),
        "{}: {acked} acknowledged; from {first} to {n} of {} bytes, beginning {head:?}",
        path.display(),
        bytes.len()
    );
}

fn check_renamed(dir: &Path, acked: &Acked) {
    let (done, removed) = (acked.renamed.load(SeqCst), acked.removed.load(SeqCst));
    for n in 1..=done {
        let here = fs::read(dir.join("renamed").join(n.to_string())).ok();
        let there = fs::read(dir.join("moved").join(n.to_string())).ok();
        let moved = n % 2 == 0;
        // An unacknowledged step may have happened or not: the move of the last one, the removal of the tenth before.
        let may_be_gone = moved && n + 10 <= done + 2;
        let must_be_gone = moved && n + 10 <= removed;
        let content = match (&here, &there) {
            (Some(c), None) if !moved || n > removed => c,
            (None, Some(c)) if moved && !must_be_gone => c,
            (None, None) if may_be_gone => continue,
            _ => panic!(
                "{}: file {n} of {done} ({removed} moved): at its old name: {}, at its new: {}",
                dir.display(),
                here.is_some(),
                there.is_some()
            ),
        };
        assert_eq!(content, &record(100, n), "{}: file {n} is torn", dir.display());
    }
}

fn check_replaced(dir: &Path, acked: u64) {
    let Ok(content) = fs::read(dir.join("current")) else {
        assert_eq!(acked, 0, "{}: the replaced file is gone", dir.display());
        return;
    };
    let generation = content.get(8..16).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()));
    assert_eq!(content, record(200, generation), "{}: the replaced file is torn", dir.display());
    assert!(generation >= acked, "{}: generation {generation}, {acked} was acknowledged", dir.display());
}

fn check_sqlite(dir: &Path, acked: u64) {
    let db = open_sqlite(dir).unwrap();
    let ok: String = db.query_row("pragma integrity_check", [], |r| r.get(0)).unwrap();
    assert_eq!(ok, "ok", "{}", dir.display());
    let exists: i64 =
        db.query_row("select count(*) from sqlite_master where name = 't'", [], |r| r.get(0)).unwrap();
    if exists == 0 {
        assert_eq!(acked, 0, "{}: the table is gone", dir.display());
        return;
    }
    let mut rows = db.prepare("select tx, data from t order by id").unwrap();
    let all: Vec<(i64, Vec<u8>)> =
        rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
    for (i, (tx, data)) in all.iter().enumerate() {
        let (n, row) = (i as u64 / ROWS + 1, i as u64 % ROWS);
        assert_eq!((*tx as u64, data), (n, &record(300 + row, n)), "{}: row {i}", dir.display());
    }
    let n = all.len() as u64;
    assert_eq!(n % ROWS, 0, "{}: a transaction by halves", dir.display());
    assert!(n / ROWS >= acked, "{}: {} transactions, {acked} were acknowledged", dir.display(), n / ROWS);
}
