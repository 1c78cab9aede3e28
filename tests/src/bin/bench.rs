//! `make bench`: the figures of `docs/performance.md`, side by side in one run.
//!
//! Everything is measured in turn, round after round, so that a machine whose speed drifts changes all rows alike. A row
//! gives the median over the rounds of each round's median (or 99th percentile), with minimum and maximum.
#![allow(clippy::unwrap_used)]

use nasd_tests::pgbench::meter::cpu_seconds;
use nasd_tests::stats::{env, median, percentile, spread};
use nasd_tests::{Pair, Setup, bare};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Row {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Row {
    fn add(&mut self, mut samples: Vec<f64>) {
        samples.sort_by(f64::total_cmp);
        self.p50.push(percentile(&samples, 0.5));
        self.p99.push(percentile(&samples, 0.99));
    }
}

/// 8 KiB as a database's log has them: half of it text-like, half random.
fn page(i: usize) -> Vec<u8> {
    let mut x = i as u64 * 2_654_435_761 + 1;
    (0..8192)
        .map(|n| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            if n % 64 < 32 { b'a' + (n % 23) as u8 } else { x as u8 }
        })
        .collect()
}

fn append(path: &Path, n: usize) -> Vec<f64> {
    let mut f = OpenOptions::new().create(true).append(true).open(path).unwrap();
    (0..n)
        .map(|i| {
            let page = page(i);
            let t = Instant::now();
            f.write_all(&page).unwrap();
            f.sync_data().unwrap();
            t.elapsed().as_secs_f64() * 1e6
        })
        .collect()
}

fn overwrite(path: &Path, n: usize) -> Vec<f64> {
    if !path.exists() {
        fs::write(path, vec![1; 16 << 20]).unwrap();
        File::open(path).unwrap().sync_all().unwrap();
    }
    let f = OpenOptions::new().write(true).open(path).unwrap();
    (0..n)
        .map(|i| {
            let page = page(i);
            let t = Instant::now();
            f.write_all_at(&page, (i % 2048) as u64 * 8192).unwrap();
            f.sync_data().unwrap();
            t.elapsed().as_secs_f64() * 1e6
        })
        .collect()
}

/// [`overwrite`] of two files at once on one disk, as both nodes' logs do it here: each sample ends with the later one. What
/// two nodes on one disk could do at best.
fn overwrite_two(dir: &Path, n: usize) -> Vec<f64> {
    let start = Barrier::new(2);
    let one = |name: &str| {
        let path = dir.join(name);
        overwrite(&path, 1);
        let f = OpenOptions::new().write(true).open(path).unwrap();
        let write = |i: usize| {
            let page = page(i);
            start.wait();
            let t = Instant::now();
            f.write_all_at(&page, (i % 2048) as u64 * 8192).unwrap();
            f.sync_data().unwrap();
            t.elapsed().as_secs_f64() * 1e6
        };
        (0..n).map(write).collect::<Vec<_>>()
    };
    std::thread::scope(|s| {
        let other = s.spawn(|| one("overwrite-2"));
        let own = one("overwrite");
        own.into_iter().zip(other.join().unwrap()).map(|(a, b)| f64::max(a, b)).collect()
    })
}

/// MiB a second of a buffered sequential write and of reading it again.
fn sequential(path: &Path, mib: usize) -> (f64, f64) {
    let mut block = vec![0u8; 1 << 20];
    for (i, b) in block.chunks_mut(8192).enumerate() {
        b.copy_from_slice(&page(i));
    }
    // A new file: ext4 flushes one that replaces its own contents when it is closed. (The bare mount can't remove.)
    let _ = fs::remove_file(path);
    let t = Instant::now();
    let mut f = File::create(path).unwrap();
    for i in 0..mib {
        block[0] = i as u8;
        f.write_all(&block).unwrap();
    }
    let write = mib as f64 / t.elapsed().as_secs_f64();
    f.sync_all().unwrap();
    let mut best = 0.0;
    for _ in 0..2 {
        let mut f = File::open(path).unwrap();
        let t = Instant::now();
        while f.read(&mut block).unwrap() > 0 {}
        best = f64::max(best, mib as f64 / t.elapsed().as_secs_f64());
    }
    let _ = fs::remove_file(path);
    (write, best)
}

/// From close on the primary to present on the secondary, milliseconds; 200 files a second.
fn propagation(pair: &Pair, round: usize, n: usize, sync: bool) -> Vec<f64> {
    let dir = format!("files-{round}-{sync}");
    fs::create_dir(pair.a.path(&dir)).unwrap();
    File::open(&pair.a.mount).unwrap().sync_all().unwrap();
    pair.settle();
    let b = pair.b.path(&dir);
    (0..n)
        .map(|i| {
            let start = Instant::now();
            let name = format!("f{i}");
            let mut f = File::create(pair.a.path(&dir).join(&name)).unwrap();
            f.write_all(&page(i)).unwrap();
            if sync {
                f.sync_all().unwrap();
            }
            drop(f);
            let closed = Instant::now();
            let there = b.join(&name);
            while !there.metadata().is_ok_and(|m| m.len() == 8192) {
                assert!(closed.elapsed() < Duration::from_secs(10), "{} did not come", there.display());
                std::thread::sleep(Duration::from_micros(50));
            }
            let took = closed.elapsed().as_secs_f64() * 1e3;
            std::thread::sleep(Duration::from_millis(5).saturating_sub(start.elapsed()));
            took
        })
        .collect()
}

fn rss_mib(pid: u32) -> f64 {
    let s = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = s.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn stages(status: &Value) -> String {
    ["seal", "slot", "ship", "local", "wait", "total"]
        .map(|s| format!("{s} {}", status["commit_us"][s]["p50"]))
        .join(", ")
}

fn main() {
    let rounds = env("ROUNDS", 5);
    let n = env("N", 400);
    let mib = env("MIB", 128);
    let mode = |m: &str| Setup {
        replication: format!("commit = \"{m}\"\npeer_timeout = \"10s\""),
        // A node that has run for a while overwrites aged files: that is what is measured, after a warm-up.
        log: "retain_files = 4000".to_owned(),
        ..Setup::default()
    };
    let durable = Pair::start_with(&mode("durable"));
    let asynchronous = Pair::start_with(&mode("async"));
    let receive = Pair::start_with(&mode("receive"));
    let plain = tempfile::Builder::new().prefix("nasd-bench-").tempdir().unwrap();
    let below = tempfile::Builder::new().prefix("nasd-bench-").tempdir().unwrap();
    let passed_on = tempfile::Builder::new().prefix("nasd-bench-mnt-").tempdir().unwrap();
    let bare = bare::mount(below.path(), passed_on.path(), &["append", "overwrite", "sequential"]).unwrap();
    fs::write(below.path().join("overwrite"), vec![1; 16 << 20]).unwrap();
    let names = ["ext4", "bare FUSE", "durable", "async", "receive"];
    let dirs = [
        plain.path().to_owned(),
        passed_on.path().to_owned(),
        durable.a.mount.clone(),
        asynchronous.a.mount.clone(),
        receive.a.mount.clone(),
    ];
    let mut appends: [Row; 5] = Default::default();
    let mut overwrites: [Row; 5] = Default::default();
    let (mut synced, mut closed) = (Row::default(), Row::default());
    let mut two = Row::default();
    let mut seq: [[Vec<f64>; 2]; 3] = Default::default();
    for pair in [&durable, &asynchronous, &receive] {
        append(&pair.a.path("warm-up"), 5000);
    }
    for round in 0..=rounds {
        for (i, dir) in dirs.iter().enumerate() {
            let (a, o) = (append(&dir.join("append"), n), overwrite(&dir.join("overwrite"), n));
            // The first round warms up.
            if round > 0 {
                appends[i].add(a);
                overwrites[i].add(o);
            }
        }
        let both = overwrite_two(&dirs[0], n);
        if round > 0 {
            two.add(both);
        }
        let with = propagation(&durable, round, n / 2, true);
        let without = propagation(&durable, round, n / 2, false);
        for (i, dir) in [&dirs[0], &dirs[1], &dirs[3]].into_iter().enumerate() {
            let (write, read) = sequential(&dir.join("sequential"), mib);
            if round > 0 {
                seq[i][0].push(write);
                seq[i][1].push(read);
            }
        }
        if round > 0 {
            synced.add(with);
            closed.add(without);
        }
    }
    println!("8 KiB write + fdatasync, µs, median of {rounds} rounds of {n} (minimum–maximum):\n");
    println!("| | p50 | p99 | p50 / ext4 append | p50 / ext4 overwrite |\n| --- | --- | --- | --- | --- |");
    let (ea, eo) = (median(&appends[0].p50), median(&overwrites[0].p50));
    let print = |name: &str, row: &Row| {
        let (m, p50, p99) = (median(&row.p50), spread(&row.p50, 0), spread(&row.p99, 0));
        println!("| {name} | {p50} | {p99} | {:.2} | {:.2} |", m / ea, m / eo);
    };
    for (what, rows) in [("append", &appends), ("overwrite", &overwrites)] {
        for (name, row) in names.iter().zip(rows) {
            print(&format!("{name} {what}"), row);
        }
    }
    print("two ext4 overwrites at once", &two);
    println!("\nfile closed on the primary to present on the secondary, 200 a second, ms:\n");
    println!("| | p50 | p99 |\n| --- | --- | --- |");
    for (name, row) in [("fsync, close", &synced), ("close only", &closed)] {
        println!("| {name} | {:.2} | {:.2} |", median(&row.p50), median(&row.p99));
    }
    println!("\nsequential {mib} MiB, MiB/s:\n");
    println!("| | ext4 | bare FUSE | nasd (async) | bare / ext4 | nasd / ext4 | nasd / bare |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (i, name) in ["buffered write", "read again"].iter().enumerate() {
        let [plain, bare, nasd] = [0, 1, 2].map(|k: usize| median(&seq[k][i]));
        println!(
            "| {name} | {} | {} | {} | {:.2} | {:.2} | {:.2} |",
            spread(&seq[0][i], 0),
            spread(&seq[1][i], 0),
            spread(&seq[2][i], 0),
            bare / plain,
            nasd / plain,
            nasd / bare
        );
    }
    for (name, pair) in [("durable", &durable), ("async", &asynchronous)] {
        let s = pair.a.status();
        println!("\nstages of a commit on the primary, {name}, p50 µs: {}", stages(&s));
        println!("peer's write and fdatasync, last: {} µs", s["peers"][0]["fdatasync_us"]);
    }
    let pids = [durable.a.pid(), durable.b.pid()];
    let before = pids.map(cpu_seconds);
    let idle = Duration::from_secs(env("IDLE", 10) as u64);
    std::thread::sleep(idle);
    for (name, (pid, before)) in ["primary", "secondary"].iter().zip(pids.iter().zip(before)) {
        let share = (cpu_seconds(*pid) - before) / idle.as_secs_f64() * 100.0;
        println!("\nidle {name}: {share:.2} % of a core; peak memory so far {:.0} MiB", rss_mib(*pid));
    }
    drop(bare);
}
