//! Kill -9 at random moments, under writers that know what was acknowledged.
#![allow(clippy::unwrap_used)]

use nasd_tests::snapshot::assert_equal;
use nasd_tests::workload::{Oracle, Writers, sqlite_child};
use nasd_tests::{Node, Pair, Setup, eventually, long, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};

#[test]
#[ignore = "the SQLite writer of the tests below, in a process of its own"]
fn sqlite_writer() {
    sqlite_child();
}

/// What is done to the pair in a round, and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// The primary dies and the secondary is promoted.
    PrimaryThenPromote,
    /// The primary dies and comes back as what it was.
    PrimaryThenRestart,
    /// The secondary dies, and comes back while the writers go on.
    Secondary,
    /// Both die, the primary first, and come back as what they were.
    BothThenRestart,
    /// Both die, the primary first, and the secondary is promoted alone: in suspend nothing was acknowledged without
    /// it. In degrade it can't know that, so it refuses, and both come back as what they were.
    BothThenPromote,
    /// The secondary dies; what is acknowledged from then on (in degrade) only the primary has. It dies as well, and
    /// both come back: the primary has to be primary again.
    SecondaryThenPrimary,
}

const ROUNDS: [Round; 6] = [
    Round::PrimaryThenPromote,
    Round::Secondary,
    Round::PrimaryThenRestart,
    Round::BothThenRestart,
    Round::SecondaryThenPrimary,
    Round::BothThenPromote,
];

impl Round {
    fn kills(self) -> usize {
        match self {
            Round::PrimaryThenPromote | Round::PrimaryThenRestart | Round::Secondary => 1,
            _ => 2,
        }
    }
}

fn wait_acked(writers: &Writers, more: u64) {
    let from = writers.acked();
    eventually("the writers get on", || (writers.acked() >= from + more).then_some(()));
}

fn wait_pair(primary: &Node, secondary: &Node) {
    primary.wait_for("primary", "in-sync");
    secondary.wait_for("secondary", "in-sync");
}

/// The moment of a kill is random, so this is no waiting for anything.
fn some_time(rng: &mut StdRng, at_most_ms: u64) {
    std::thread::sleep(Duration::from_micros(rng.random_range(0..at_most_ms * 1000)));
}

/// The secondary becomes primary, and the dead primary comes back as its secondary.
fn promote(primary: &mut Node, secondary: &mut Node) {
    secondary.cli(&["promote"]);
    primary.start();
    std::mem::swap(primary, secondary);
}

fn campaign(on_peer_loss: &str, kills: usize) {
    let seed = seed(on_peer_loss);
    let mut rng = StdRng::seed_from_u64(seed);
    let setup = Setup {
        replication: format!("peer_timeout = \"2s\"\non_peer_loss = \"{on_peer_loss}\""),
        // Small limits, so that files of the log are recycled and checkpoints happen all the time.
        log: "retain_for = \"1s\"\nretain_files = 200".to_owned(),
        ..Setup::default()
    };
    let Pair { a, b, dir: _dir } = Pair::start_with(&setup);
    let (mut primary, mut secondary) = (a, b);
    let mut oracle = Oracle::default();
    let (mut killed, start) = (0, Instant::now());
    for round in 0.. {
        if killed >= kills {
            break;
        }
        // Each in turn at first, then at random.
        let what = *ROUNDS.get(round).unwrap_or_else(|| &ROUNDS[rng.random_range(0..ROUNDS.len())]);
        let context = format!("NASD_SEED={seed} {on_peer_loss}, round {round}, {what:?}");
        println!("{:?} {context}", start.elapsed());
        killed += what.kills();
        let writers = Writers::start(&primary.mount, round, "sqlite_writer");
        wait_acked(&writers, 5);
        some_time(&mut rng, 250);
        // What this node finds in its own files it may serve, if it was never synced.
        let mut may_tear = true;
        let stopped = match what {
            Round::PrimaryThenPromote => {
                primary.kill();
                let stopped = writers.stop();
                promote(&mut primary, &mut secondary);
                may_tear = false;
                stopped
            }
            Round::BothThenPromote => {
                primary.kill();
                some_time(&mut rng, 20);
                secondary.kill();
                let stopped = writers.stop();
                secondary.start();
                if on_peer_loss == "suspend" {
                    secondary.wait_for("secondary", "disconnected");
                    promote(&mut primary, &mut secondary);
                    may_tear = false;
                } else {
                    secondary.wait_for("secondary", "outdated");
                    assert!(
                        !secondary.try_cli(&["promote"]).status.success(),
                        "{context}: it can't know enough"
                    );
                    primary.start();
                }
                stopped
            }
            Round::PrimaryThenRestart => {
                primary.kill();
                let stopped = writers.stop();
                primary.start();
                stopped
            }
            Round::Secondary => {
                secondary.kill();
                some_time(&mut rng, 100);
                secondary.start();
                wait_pair(&primary, &secondary);
                wait_acked(&writers, 5);
                writers.stop()
            }
            Round::BothThenRestart => {
                primary.kill();
                some_time(&mut rng, 20);
                secondary.kill();
                let stopped = writers.stop();
                let both = if rng.random() {
                    [&mut primary, &mut secondary]
                } else {
                    [&mut secondary, &mut primary]
                };
                for node in both {
                    node.start();
                    some_time(&mut rng, 100);
                }
                stopped
            }
            Round::SecondaryThenPrimary => {
                secondary.kill();
                if on_peer_loss == "degrade" {
                    wait_acked(&writers, 20);
                }
                some_time(&mut rng, 50);
                primary.kill();
                let stopped = writers.stop();
                secondary.start();
                primary.start();
                stopped
            }
        };
        wait_pair(&primary, &secondary);
        oracle.check(&primary.mount, &stopped, may_tear);
        settle(&primary, &secondary);
        assert_equal(&context, &primary.data(), &secondary.data());
    }
    println!("{on_peer_loss}: {killed} kills, {} acknowledgements, {:?}", oracle.acked, start.elapsed());
}

/// Waits until the secondary shows everything that was written on the primary's mount.
fn settle(primary: &Node, secondary: &Node) {
    std::fs::File::open(&primary.mount).unwrap().sync_all().unwrap();
    let seq = primary.status()["seq"].as_u64().unwrap();
    secondary.cli(&["wait", "--seq", &seq.to_string(), "--timeout", "20s"]);
}

fn kills() -> usize {
    if long() { 110 } else { 8 }
}

#[test]
fn nothing_acknowledged_is_lost_in_suspend() {
    campaign("suspend", kills());
}

#[test]
fn nothing_acknowledged_is_lost_in_degrade() {
    campaign("degrade", kills());
}
