//! Power cuts: the filesystem below a state directory stops without writing anything more, under writers that know
//! what was acknowledged.
#![allow(clippy::unwrap_used)]

use nasd_tests::image::Image;
use nasd_tests::snapshot::assert_equal;
use nasd_tests::workload::{Oracle, Writers, sqlite_child};
use nasd_tests::{Node, Pair, Setup, eventually, long, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

#[test]
#[ignore = "the SQLite writer of the tests below, in a process of its own"]
fn sqlite_writer() {
    sqlite_child();
}

/// Whose power is cut, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// The primary's; the secondary is promoted, the old primary comes back.
    PrimaryThenPromote,
    /// Both, at one time; both come back as what they were.
    BothThenRestart,
    /// The primary's; it comes back as what it was.
    PrimaryThenRestart,
    /// The secondary's; it comes back while the writers go on.
    Secondary,
    /// Both, at one time; the secondary is promoted alone, the old primary comes back.
    BothThenPromote,
    /// The secondary's, then a checkpoint's time later both.
    SecondaryThenBoth,
}

const ROUNDS: [Round; 6] = [
    Round::PrimaryThenPromote,
    Round::BothThenRestart,
    Round::PrimaryThenRestart,
    Round::Secondary,
    Round::BothThenPromote,
    Round::SecondaryThenBoth,
];

/// A node and the filesystem of its state directory.
struct Machine {
    node: Node,
    image: Image,
}

impl Machine {
    fn cut(&self) {
        self.image.cut();
    }

    /// nasd may have ended by itself, or not have noticed yet.
    fn power_on(&mut self) {
        self.node.kill();
        self.image.power_on();
        self.node.start();
    }
}

/// The directories come first, so that they are dropped last: they hold the mounts.
fn machines(fs: &str, setup: Setup) -> ([tempfile::TempDir; 2], Machine, Machine) {
    let base = tempfile::Builder::new().prefix("nasd-power-").tempdir().unwrap();
    let new = if fs == "xfs" { Image::xfs } else { Image::ext4 };
    let images = ["a", "b"].map(|name| new(base.path(), name, 400).unwrap());
    let state_dirs = [0, 1].map(|i: usize| images[i].path.join("state"));
    let Pair { a, b, dir } = Pair::start_with(&Setup { state_dirs: Some(state_dirs), ..setup });
    let [image_a, image_b] = images;
    ([base, dir], Machine { node: a, image: image_a }, Machine { node: b, image: image_b })
}

fn wait_pair(primary: &Machine, secondary: &Machine) {
    primary.node.wait_for("primary", "in-sync");
    secondary.node.wait_for("secondary", "in-sync");
}

fn wait_acked(writers: &Writers, more: u64) {
    let from = writers.acked();
    eventually("the writers get on", || (writers.acked() >= from + more).then_some(()));
}

/// The moment of a cut is random, so this is no waiting for anything.
fn some_time(rng: &mut StdRng, at_most_ms: u64) {
    std::thread::sleep(Duration::from_micros(rng.random_range(0..at_most_ms * 1000)));
}

fn campaign(fs: &str, rounds: usize) {
    let seed = seed(fs);
    let mut rng = StdRng::seed_from_u64(seed);
    let replication = "peer_timeout = \"2s\"\non_peer_loss = \"suspend\"".to_owned();
    // Small limits, so that files of the log are recycled and checkpoints happen all the time.
    let log = "retain_for = \"1s\"\nretain_files = 200".to_owned();
    let (_dirs, mut primary, mut secondary) = machines(fs, Setup { replication, log, ..Setup::default() });
    let mut oracle = Oracle::default();
    oracle.emptied_files_may_mix = true;
    let start = Instant::now();
    let mut cuts = 0;
    for round in 0..rounds {
        // Each in turn at first, then at random.
        let what = *ROUNDS.get(round).unwrap_or_else(|| &ROUNDS[rng.random_range(0..ROUNDS.len())]);
        let context = format!("NASD_SEED={seed} {fs}, round {round}, {what:?}");
        println!("{:?} {context}", start.elapsed());
        let writers = Writers::start(&primary.node.mount, round, "sqlite_writer");
        wait_acked(&writers, 5);
        some_time(&mut rng, 250);
        let mut may_tear = true;
        let stopped = match what {
            Round::PrimaryThenPromote | Round::BothThenPromote => {
                primary.cut();
                if what == Round::BothThenPromote {
                    secondary.cut();
                    secondary.power_on();
                    secondary.node.wait_for("secondary", "disconnected");
                }
                // As the power of the whole machine would: some_time is what it has for wrong answers.
                some_time(&mut rng, 50);
                primary.node.kill();
                let stopped = writers.stop();
                secondary.node.cli(&["promote"]);
                primary.power_on();
                std::mem::swap(&mut primary, &mut secondary);
                may_tear = false;
                stopped
            }
            Round::PrimaryThenRestart => {
                primary.cut();
                some_time(&mut rng, 50);
                primary.node.kill();
                let stopped = writers.stop();
                primary.power_on();
                stopped
            }
            Round::BothThenRestart => {
                let (first, second) =
                    if rng.random() { (&primary, &secondary) } else { (&secondary, &primary) };
                first.cut();
                second.cut();
                primary.node.kill();
                let stopped = writers.stop();
                primary.power_on();
                secondary.power_on();
                stopped
            }
            Round::Secondary => {
                secondary.cut();
                some_time(&mut rng, 100);
                secondary.power_on();
                wait_pair(&primary, &secondary);
                wait_acked(&writers, 5);
                writers.stop()
            }
            Round::SecondaryThenBoth => {
                secondary.cut();
                some_time(&mut rng, 50);
                secondary.power_on();
                some_time(&mut rng, 300);
                primary.cut();
                secondary.cut();
                primary.node.kill();
                let stopped = writers.stop();
                secondary.power_on();
                primary.power_on();
                stopped
            }
        };
        cuts += if matches!(what, Round::BothThenRestart | Round::BothThenPromote) { 2 } else { 1 };
        cuts += if what == Round::SecondaryThenBoth { 2 } else { 0 };
        wait_pair(&primary, &secondary);
        oracle.check(&primary.node.mount, &stopped, may_tear);
        File::open(&primary.node.mount).unwrap().sync_all().unwrap();
        let seq = primary.node.status()["seq"].as_u64().unwrap();
        secondary.node.cli(&["wait", "--seq", &seq.to_string(), "--timeout", "20s"]);
        assert_equal(&context, &primary.node.data(), &secondary.node.data());
    }
    println!("{fs}: {rounds} rounds, {cuts} cuts, {} acknowledgements, {:?}", oracle.acked, start.elapsed());
}

fn rounds() -> usize {
    if long() { 100 } else { 6 }
}

#[test]
fn nothing_acknowledged_is_lost_on_ext4() {
    campaign("ext4", rounds());
}

#[test]
fn nothing_acknowledged_is_lost_on_xfs() {
    campaign("xfs", rounds());
}

/// A disk that fails under a running node: the first failure ends it, and nothing is acknowledged after it.
#[test]
fn a_node_whose_disk_fails_acknowledges_nothing_and_ends() {
    for fs in ["ext4", "xfs"] {
        let (_dirs, mut primary, mut secondary) = machines(fs, Setup::default());
        let mut f = File::create(primary.node.path("x")).unwrap();
        f.write_all(b"before").unwrap();
        f.sync_all().unwrap();
        f.write_all(b"written, not synced").unwrap();
        primary.cut();
        assert!(f.sync_all().is_err(), "{fs}: acknowledged on a dead disk");
        assert_eq!(primary.node.wait_exit().code(), Some(70), "{fs}");
        // The same on the other side: it must not tell the primary that it has what it has not.
        secondary.node.cli(&["promote"]);
        primary.power_on();
        wait_pair(&secondary, &primary);
        primary.cut();
        let mut f = File::options().append(true).open(secondary.node.path("x")).unwrap();
        f.write_all(b"after").unwrap();
        f.sync_all().unwrap();
        assert_eq!(primary.node.wait_exit().code(), Some(70), "{fs}: the secondary");
        assert_eq!(secondary.node.status()["state"], "degraded", "{fs}");
        f.write_all(b"more").unwrap();
        secondary.cut();
        assert!(f.sync_all().is_err(), "{fs}: acknowledged on a dead disk");
        assert_eq!(secondary.node.wait_exit().code(), Some(70), "{fs}: alone");
    }
}
