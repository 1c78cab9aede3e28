//! The watcher on real directories.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::wait_until;
use nasd_watcher::{Apply, ApplyError, Mode, WatchError, Watcher, parse_name, spawn};
use tempfile::TempDir;

const POLL: Mode = Mode::Poll(Duration::from_millis(5));

/// What the applier does, and what it saw; shared with the test.
#[derive(Default)]
struct Replica {
    /// The next one, or None for a node that does not follow.
    wanted: Option<u64>,
    applied: Vec<u64>,
    calls: u64,
    /// What the next calls of apply answer instead of applying.
    answers: VecDeque<ApplyError>,
    /// When each was applied.
    times: Vec<Instant>,
    /// The watcher's thread, as in /proc.
    thread: PathBuf,
}

struct Applier(Arc<Mutex<Replica>>);

impl Apply for Applier {
    fn wanted(&mut self) -> Option<u64> {
        let mut replica = self.0.lock().unwrap();
        if replica.thread.as_os_str().is_empty() {
            replica.thread = Path::new("/proc").join(fs::read_link("/proc/thread-self").unwrap());
        }
        replica.wanted
    }

    fn apply(&mut self, path: &Path) -> Result<(), ApplyError> {
        let mut replica = self.0.lock().unwrap();
        replica.calls += 1;
        if let Some(answer) = replica.answers.pop_front() {
            return Err(answer);
        }
        if !path.is_file() {
            return Err(ApplyError::Retry(format!("{} is gone", path.display())));
        }
        let seq = parse_name(path.file_name().unwrap()).unwrap();
        assert_eq!(replica.wanted, Some(seq), "applied exactly for wanted");
        replica.times.push(Instant::now());
        replica.applied.push(seq);
        replica.wanted = Some(seq + 1);
        Ok(())
    }
}

struct Bed {
    base: TempDir,
    replica: Arc<Mutex<Replica>>,
}

impl Bed {
    fn new(wanted: Option<u64>) -> Bed {
        Bed::on(tempfile::tempdir().unwrap(), wanted)
    }

    /// For tens of thousands of files: in memory where that is possible, since a disk that is busy
    /// with other tests takes a minute for them.
    fn large(wanted: Option<u64>) -> Bed {
        let base = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Bed::on(base.unwrap(), wanted)
    }

    fn on(base: TempDir, wanted: Option<u64>) -> Bed {
        fs::create_dir(base.path().join("log")).unwrap();
        let replica = Replica { wanted, ..Replica::default() };
        Bed { base, replica: Arc::new(Mutex::new(replica)) }
    }

    fn log(&self) -> PathBuf {
        self.base.path().join("log")
    }

    fn path(&self, seq: u64) -> PathBuf {
        // Timestamps run backwards here: they must not order anything.
        let stamp = 59 - seq % 60;
        self.log().join(format!("20261123T0457{stamp:02}.123456789Z-{seq:016}.txn"))
    }

    /// A transaction file appears as they do: complete, by rename.
    fn put(&self, seq: u64) {
        let outside = self.base.path().join("new");
        fs::write(&outside, b"x").unwrap();
        fs::rename(outside, self.path(seq)).unwrap();
    }

    fn watch(&self, mode: Mode) -> Watcher {
        spawn(self.log(), mode, Box::new(Applier(self.replica.clone()))).unwrap()
    }

    fn replica(&self) -> std::sync::MutexGuard<'_, Replica> {
        self.replica.lock().unwrap()
    }

    #[track_caller]
    fn wait_applied(&self, last: u64) {
        wait_until(&format!("{last} applied"), || self.replica().wanted == Some(last + 1));
    }

    #[track_caller]
    fn assert_applied(&self, expected: impl IntoIterator<Item = u64>) {
        let expected: Vec<u64> = expected.into_iter().collect();
        assert_eq!(self.replica().applied, expected);
    }
}

fn out_of_order(mode: Mode) {
    let bed = Bed::new(Some(1));
    let watcher = bed.watch(mode);
    for seq in [3, 2, 5, 1, 4, 6] {
        bed.put(seq);
    }
    bed.wait_applied(6);
    watcher.stop();
    bed.assert_applied(1..=6);
}

#[test]
fn in_order_though_they_appear_out_of_order() {
    out_of_order(Mode::Inotify);
}

#[test]
fn in_order_in_poll_mode() {
    out_of_order(POLL);
}

#[test]
fn files_from_before_the_start() {
    for mode in [Mode::Inotify, POLL] {
        let bed = Bed::new(Some(4));
        for seq in (1..=9).rev() {
            bed.put(seq);
        }
        let watcher = bed.watch(mode);
        bed.wait_applied(9);
        bed.put(10);
        bed.wait_applied(10);
        assert!(watcher.stats().applied == 7, "{:?}", watcher.stats());
        watcher.stop();
        bed.assert_applied(4..=10);
    }
}

#[test]
fn poll_mode_sees_files_after_a_quiet_spell_too() {
    let bed = Bed::new(Some(1));
    let watcher = bed.watch(POLL);
    // After two seconds without a change only the directory's time is looked at: scans become rare.
    let start = Instant::now();
    let mut scans = (watcher.stats().rescans, Instant::now());
    wait_until("scans become rare", || {
        let now = watcher.stats().rescans;
        if now != scans.0 {
            scans = (now, Instant::now());
        }
        scans.1.elapsed() > Duration::from_millis(100)
    });
    println!("scans became rare after {:?}", start.elapsed());
    bed.put(1);
    bed.wait_applied(1);
    bed.assert_applied([1]);
}

/// The limit is read when inotify is set up, so it needs to be low only for that moment.
struct TinyQueue(String);

const QUEUE: &str = "/proc/sys/fs/inotify/max_queued_events";

impl TinyQueue {
    fn set() -> std::io::Result<TinyQueue> {
        let before = TinyQueue(fs::read_to_string(QUEUE)?);
        fs::write(QUEUE, "16")?;
        Ok(before)
    }
}

impl Drop for TinyQueue {
    fn drop(&mut self) {
        fs::write(QUEUE, &self.0).unwrap();
    }
}

#[test]
fn a_burst_overflows_the_queue_and_nothing_is_lost() {
    const BURST: u64 = 20_000;
    let bed = Bed::large(Some(1));
    let tiny = TinyQueue::set();
    let watcher = bed.watch(Mode::Inotify);
    let is_tiny = tiny.is_ok();
    match tiny {
        Ok(tiny) => drop(tiny),
        Err(e) => println!("the queue stays as it is, no overflow is tested: {QUEUE}: {e}"),
    }
    bed.put(1);
    bed.wait_applied(1);
    // The thread takes at most a few events and then sits at the lock; 16 fit into the queue.
    let held = bed.replica();
    for seq in 2..=100 {
        bed.put(seq);
    }
    drop(held);
    for seq in 101..=BURST {
        bed.put(seq);
    }
    let start = Instant::now();
    bed.wait_applied(BURST);
    let stats = watcher.stats();
    println!("caught up {:?} after the last file: {stats:?}", start.elapsed());
    assert_eq!(stats.applied, BURST);
    if is_tiny {
        assert!(stats.overflows >= 1 && stats.events < BURST, "{stats:?}");
    }
    watcher.stop();
    bed.assert_applied(1..=BURST);
    assert_eq!(bed.replica().calls, BURST, "each exactly once");
}

#[test]
fn nothing_falls_between_the_watch_and_the_first_scan() {
    const FILES: u64 = 2_000;
    for _ in 0..5 {
        let bed = Bed::large(Some(1));
        std::thread::scope(|scope| {
            scope.spawn(|| (1..=FILES).for_each(|seq| bed.put(seq)));
            wait_until("the writer is at it", || bed.path(200).exists());
            let watcher = bed.watch(Mode::Inotify);
            bed.wait_applied(FILES);
            watcher.stop();
        });
        bed.assert_applied(1..=FILES);
    }
}

#[test]
fn more_files_than_are_remembered() {
    const MANY: u64 = 70_000;
    let bed = Bed::large(Some(1));
    let seed = bed.base.path().join("seed");
    fs::write(&seed, b"x").unwrap();
    for seq in 1..=MANY {
        // Links are cheaper than files, but one file has at most 65,000 of them.
        if seq % 60_000 == 0 {
            fs::remove_file(&seed).unwrap();
            fs::write(&seed, b"x").unwrap();
        }
        fs::hard_link(&seed, bed.path(seq)).unwrap();
    }
    let watcher = bed.watch(Mode::Inotify);
    bed.wait_applied(MANY);
    assert_eq!(watcher.stats().rescans, 2);
    watcher.stop();
    bed.assert_applied(1..=MANY);
}

#[test]
fn a_file_that_no_event_told_of_is_found_when_a_later_one_comes() {
    let bed = Bed::new(Some(1));
    let watcher = bed.watch(Mode::Inotify);
    bed.put(1);
    bed.wait_applied(1);
    // A hard link makes no MOVED_TO event.
    let outside = bed.base.path().join("new");
    fs::write(&outside, b"x").unwrap();
    fs::hard_link(&outside, bed.path(2)).unwrap();
    bed.put(3);
    bed.wait_applied(3);
    assert_eq!(watcher.stats().rescans, 2, "the first, and one for the gap");
    bed.assert_applied(1..=3);
}

#[test]
fn a_lasting_gap_costs_one_scan() {
    let bed = Bed::new(Some(1));
    let watcher = bed.watch(Mode::Inotify);
    bed.put(2);
    wait_until("the scan for the gap", || watcher.stats().rescans == 2);
    // Whatever else would scan has had its turn when the event of another file was handled.
    bed.put(3);
    wait_until("the event", || watcher.stats().events == 2);
    bed.put(1);
    bed.wait_applied(3);
    assert_eq!(watcher.stats().rescans, 2);
    bed.assert_applied(1..=3);
}

#[test]
fn retry_comes_by_itself() {
    for mode in [Mode::Inotify, POLL] {
        let bed = Bed::new(Some(1));
        bed.replica().answers.extend((0..5).map(|n| ApplyError::Retry(format!("not now ({n})"))));
        let watcher = bed.watch(mode);
        bed.put(1);
        bed.put(2);
        bed.wait_applied(2);
        assert_eq!(watcher.stats().retries, 5);
        watcher.stop();
        bed.assert_applied(1..=2);
    }
}

#[test]
fn a_file_that_vanished_is_applied_when_it_comes_again() {
    let bed = Bed::new(Some(1));
    let watcher = bed.watch(Mode::Inotify);
    let held = bed.replica();
    bed.put(1);
    fs::remove_file(bed.path(1)).unwrap();
    drop(held);
    wait_until("the retry found nothing", || watcher.stats().retries >= 1 && watcher.stats().rescans >= 2);
    bed.put(1);
    bed.wait_applied(1);
    bed.assert_applied([1]);
}

#[test]
fn halt_stops_until_poked() {
    for mode in [Mode::Inotify, POLL] {
        let bed = Bed::new(Some(1));
        bed.put(1);
        bed.replica().answers.push_back(ApplyError::Halt("damaged".to_owned()));
        let watcher = bed.watch(mode);
        wait_until("the halt", || bed.replica().calls == 1);
        bed.put(2);
        bed.put(3);
        // Nothing can be waited for here: give it the time in which it would have gone wrong.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(bed.replica().calls, 1);
        watcher.poke();
        bed.wait_applied(3);
        bed.put(4);
        bed.wait_applied(4);
        watcher.stop();
        bed.assert_applied(1..=4);
    }
}

#[test]
fn a_node_that_does_not_follow_sleeps_until_poked() {
    for mode in [Mode::Inotify, POLL] {
        let bed = Bed::new(None);
        bed.put(1);
        let watcher = bed.watch(mode);
        bed.put(2);
        bed.replica().wanted = Some(1);
        watcher.poke();
        bed.wait_applied(2);

        // It becomes primary, and writes files of its own...
        bed.replica().wanted = None;
        watcher.poke();
        wait_until("the watch is taken away", || mode == POLL || !has_watch(&bed.log()));
        let before = watcher.stats();
        for seq in 3..=9 {
            bed.put(seq);
        }
        assert_eq!(watcher.stats(), before, "these cost nothing");
        // ...and secondary again, from somewhere further back.
        bed.replica().wanted = Some(2);
        watcher.poke();
        bed.wait_applied(9);
        bed.put(10);
        bed.wait_applied(10);
        watcher.stop();
        bed.assert_applied([1, 2].into_iter().chain(2..=10));
    }
}

/// Whether any inotify instance of this process watches the directory.
fn has_watch(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(" ino:{:x} ", fs::metadata(dir).unwrap().ino());
    fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .any(|info| info.contains(&inode))
}

#[test]
fn foreign_names_are_ignored() {
    for mode in [Mode::Inotify, POLL] {
        let bed = Bed::new(Some(1));
        let foreign = |name: &str| {
            let outside = bed.base.path().join("foreign");
            fs::write(&outside, b"x").unwrap();
            fs::rename(outside, bed.log().join(name)).unwrap();
        };
        foreign("before.txt");
        // A directory with a good name is foreign too, for the scan as for events.
        fs::create_dir(bed.path(1)).unwrap();
        let watcher = bed.watch(mode);
        foreign("20261123T045757.123456789Z-0000000000000001.txn.tmp");
        foreign("20261123T045757.123456789Z-1.txn");
        let outside = bed.base.path().join("directory");
        fs::create_dir(&outside).unwrap();
        fs::remove_dir(bed.path(1)).unwrap();
        fs::rename(outside, bed.path(1)).unwrap();
        fs::remove_dir(bed.path(1)).unwrap();
        bed.put(1);
        bed.wait_applied(1);
        assert_eq!(watcher.stats().retries, 0);
        watcher.stop();
        bed.assert_applied([1]);
    }
}

#[test]
fn a_directory_that_was_replaced_is_watched_again() {
    let bed = Bed::new(Some(1));
    let watcher = bed.watch(Mode::Inotify);
    bed.put(1);
    bed.wait_applied(1);
    fs::rename(bed.log(), bed.base.path().join("old")).unwrap();
    fs::create_dir(bed.log()).unwrap();
    bed.put(2);
    bed.wait_applied(2);
    bed.put(3);
    bed.wait_applied(3);
    fs::remove_dir_all(bed.log()).unwrap();
    fs::create_dir(bed.log()).unwrap();
    bed.put(4);
    bed.wait_applied(4);
    watcher.stop();
    bed.assert_applied(1..=4);
}

#[test]
fn a_missing_directory_is_an_error_with_a_remedy() {
    for mode in [Mode::Inotify, POLL] {
        let bed = Bed::new(Some(1));
        let dir = bed.base.path().join("missing");
        let apply = Box::new(Applier(bed.replica.clone()));
        let Err(error) = spawn(dir.clone(), mode, apply) else {
            panic!("a watcher of nothing");
        };
        assert!(matches!(error, WatchError::Directory { .. }));
        let text = error.to_string();
        assert!(text.contains(&dir.display().to_string()) && text.contains("create"));
    }
}

#[test]
fn it_stops_at_once_wherever_it_waits() {
    for mode in [Mode::Inotify, Mode::Poll(Duration::from_secs(3600))] {
        for wanted in [None, Some(1)] {
            let bed = Bed::new(wanted);
            let start = Instant::now();
            bed.watch(mode).stop();
            assert!(start.elapsed() < Duration::from_secs(5));
        }
    }
}

#[test]
fn idle_costs_nothing() {
    for wanted in [None, Some(1)] {
        let bed = Bed::new(wanted);
        let watcher = bed.watch(Mode::Inotify);
        wait_until("it runs", || !bed.replica().thread.as_os_str().is_empty());
        let status = bed.replica().thread.join("status");
        let switches = || {
            let status = fs::read_to_string(&status).unwrap();
            let switches = |line: &&str| line.contains("ctxt_switches");
            status.lines().filter(switches).map(str::to_owned).collect::<Vec<String>>()
        };
        // Once quiet it stays so: no timer wakes it.
        let mut last = (switches(), Instant::now());
        wait_until("half a second without waking", || {
            let now = switches();
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() > Duration::from_millis(500)
        });
        assert!(watcher.stats().rescans <= 1);
    }
}

/// A figure, not a promise: other tests run beside it.
#[test]
fn latency_from_rename_to_apply() {
    let bed = Bed::new(Some(1));
    let watcher = bed.watch(Mode::Inotify);
    let mut latencies = Vec::new();
    for seq in 1..=500 {
        let outside = bed.base.path().join("new");
        fs::write(&outside, b"x").unwrap();
        let start = Instant::now();
        fs::rename(outside, bed.path(seq)).unwrap();
        bed.wait_applied(seq);
        let applied = *bed.replica().times.last().unwrap();
        latencies.push(applied - start);
    }
    latencies.sort();
    println!(
        "rename begun to apply: p50 {:?} p99 {:?}; {:?}",
        latencies[250],
        latencies[495],
        watcher.stats()
    );
    assert!(latencies[250] < Duration::from_millis(50));
}
