//! Failover under everything that goes wrong, decided by a seed: see `nasd_tests::sim`.
#![allow(clippy::unwrap_used)]

use nasd_config::FailoverMode;
use nasd_tests::long;
use nasd_tests::sim::{Broken, Bug, Counts, Settings, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn replay(seed: u64) -> String {
    format!("NASD_SEED={seed} cargo test -p nasd-tests --test simulation replay -- --nocapture")
}

/// Runs seeds `first..last` on all processors until one is broken or the time is over.
fn campaign(
    first: u64,
    last: u64,
    time: Duration,
    set: impl Fn(u64) -> Settings + Sync,
) -> (u64, Counts, Option<(u64, Broken)>) {
    let start = Instant::now();
    let next = AtomicU64::new(first);
    let all = Mutex::new((0, Counts::default(), None::<(u64, Broken)>));
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            s.spawn(|| {
                while start.elapsed() < time {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= last {
                        return;
                    }
                    let (broken, counts) = run(set(seed), seed);
                    let mut all = all.lock().unwrap();
                    all.0 += 1;
                    all.1 += &counts;
                    if let Some(broken) = broken {
                        // The lowest of those that were under way.
                        if all.2.as_ref().is_none_or(|(s, _)| seed < *s) {
                            all.2 = Some((seed, broken));
                        }
                        next.store(last, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    all.into_inner().unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_whatever_goes_wrong() {
    let (seeds, time) =
        if long() { (100_000, Duration::from_secs(3 * 3600)) } else { (100_000, Duration::from_secs(20)) };
    let first = if long() { 0 } else { nasd_tests::seed("simulation") % (1 << 40) };
    let start = Instant::now();
    let (n, counts, broken) = campaign(first, first + seeds, time, Settings::of);
    println!("{n} seeds in {:.1} s: {:?}", start.elapsed().as_secs_f64(), counts.all());
    if let Some((seed, (invariant, how))) = broken {
        panic!("seed {seed} breaks invariant {invariant}: {how}\n{}", replay(seed));
    }
    // What never happened was not tried.
    for (what, count) in counts.all() {
        assert!(count >= n / 50, "{what}: only {count} times in {n} seeds");
    }
}

#[test]
fn replay_one_seed() {
    if let Ok(seed) = std::env::var("NASD_SEED") {
        let seed = seed.parse().expect("NASD_SEED is a number");
        let set =
            Settings { trace: true, bug: bug_of_environment(), ..mode_of_environment(Settings::of(seed)) };
        println!("{set:?}");
        let (broken, counts) = run(set, seed);
        println!("{:?}", counts.all());
        assert_eq!(broken, None, "{}", replay(seed));
    }
}

/// `NASD_BUG=SkipGather` plants it in a replay.
fn bug_of_environment() -> Option<Bug> {
    let wanted = std::env::var("NASD_BUG").ok()?;
    ALL.into_iter().map(|b| b.0).find(|b| format!("{b:?}") == wanted)
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..20 {
        let once = run(Settings::of(seed), seed);
        let again = run(Settings::of(seed), seed);
        assert_eq!((once.0, once.1.all()), (again.0, again.1.all()), "seed {seed}");
    }
}

/// Without a third vote nothing protects against cut links: only nodes that die are tried.
#[test]
fn without_a_third_vote_nodes_may_die() {
    for mode in [FailoverMode::Heartbeat, FailoverMode::Manual] {
        // Of three nodes two can take over at the same time: nothing but a third vote decides between them.
        let set = |seed| Settings { mode, cuts: false, nodes: 2, required: 1, ..Settings::of(seed) };
        let (n, _, broken) = campaign(0, 300, Duration::from_secs(10), set);
        println!("{mode:?}: {n} seeds, {broken:?}");
        if let Some((seed, (invariant, how))) = broken.filter(|(_, b)| b.0 != 4) {
            panic!("{mode:?}, seed {seed} breaks invariant {invariant}: {how}");
        }
    }
}

/// Each with the invariants that it breaks.
const ALL: [(Bug, &[u8]); 29] = [
    (Bug::AcknowledgeBeforeRecord, &[1, 2]),
    (Bug::PromoteFromOutside, &[1, 2]),
    (Bug::IncludeBeforeCaughtUp, &[1, 2]),
    (Bug::TakeAfterPromise, &[1, 2, 3]),
    (Bug::TakeAfterSwap, &[1, 2, 3]),
    (Bug::UnknownIsFailure, &[1, 2]),
    (Bug::UnknownIsSuccess, &[1, 2]),
    (Bug::AcknowledgeWithFewer, &[1, 2]),
    (Bug::SkipGather, &[1, 2]),
    (Bug::ForgetDiverged, &[4]),
    (Bug::StayInOffice, &[4]),
    (Bug::SwapAgainstLatest, &[1, 2, 3]),
    (Bug::AskingForEver, &[4]),
    (Bug::ServeAfterVote, &[4]),
    (Bug::RewindOnStaleHello, &[1, 2, 4]),
    (Bug::RewindInFlight, &[1, 2, 4]),
    (Bug::StayAfterExclusion, &[4]),
    (Bug::LagsBehind, &[1, 2]),
    (Bug::CountsBeforeRecord, &[1, 2]),
    // Two answers of etcd have to be lost in a row, and the first request has to take effect last: not found in 78,000
    // seeds, so there is no test of it.
    (Bug::EqualIsWritten, &[1, 2]),
    (Bug::PromiseOutranksRecord, &[1, 2, 4]),
    (Bug::SwitchoverOfOldTerm, &[1, 2, 4]),
    (Bug::OldHandle, &[1, 2]),
    (Bug::PromiseWhileStarting, &[1, 2, 4]),
    (Bug::DoubtsLate, &[4]),
    (Bug::RefusesUnsure, &[1, 2]),
    (Bug::StoppingIsUnclean, &[4]),
    (Bug::SealedIsCommitted, &[1, 2]),
    (Bug::CommitOutlivesTerm, &[1, 2]),
];

/// These take tens of thousands of seeds.
const RARE: [Bug; 2] = [Bug::StoppingIsUnclean, Bug::RefusesUnsure];

fn found(bug: Bug) {
    if RARE.contains(&bug) && !long() {
        return println!("{bug:?} takes a while: only with NASD_TEST_LONG=1");
    }
    let wanted = ALL.iter().find(|b| b.0 == bug).expect("listed").1;
    let (n, _, broken) = campaign(0, 100_000, Duration::from_secs(200), |seed| Settings {
        bug: Some(bug),
        ..Settings::of(seed)
    });
    let (seed, (invariant, how)) = broken.unwrap_or_else(|| panic!("{bug:?} is not found in {n} seeds"));
    println!("{bug:?}: {n} seeds; seed {seed} breaks invariant {invariant}: {how}");
    assert!(wanted.contains(&invariant), "{bug:?}: seed {seed} breaks invariant {invariant}: {how}");
}

macro_rules! planted {
    ($($name:ident: $bug:ident),* $(,)?) => { $(#[test] fn $name() { found(Bug::$bug); })* };
}
planted! {
    planted_acknowledge_before_the_record: AcknowledgeBeforeRecord,
    planted_promote_from_outside: PromoteFromOutside,
    planted_include_before_caught_up: IncludeBeforeCaughtUp,
    planted_take_after_the_promise: TakeAfterPromise,
    planted_take_after_the_swap: TakeAfterSwap,
    planted_unknown_is_failure: UnknownIsFailure,
    planted_unknown_is_success: UnknownIsSuccess,
    planted_acknowledge_with_fewer: AcknowledgeWithFewer,
    planted_skip_gather: SkipGather,
    planted_forget_diverged: ForgetDiverged,
    planted_stay_in_office: StayInOffice,
    planted_swap_against_the_latest: SwapAgainstLatest,
    planted_asking_for_ever: AskingForEver,
    planted_serve_after_the_vote: ServeAfterVote,
    planted_rewind_on_a_stale_hello: RewindOnStaleHello,
    planted_rewind_in_flight: RewindInFlight,
    planted_stay_after_exclusion: StayAfterExclusion,
    planted_lags_behind: LagsBehind,
    planted_counts_before_the_record: CountsBeforeRecord,
    planted_promise_outranks_the_record: PromiseOutranksRecord,
    planted_switchover_of_an_old_term: SwitchoverOfOldTerm,
    planted_old_handle: OldHandle,
    planted_promise_while_starting: PromiseWhileStarting,
    planted_doubts_late: DoubtsLate,
    planted_refuses_unsure: RefusesUnsure,
    planted_stopping_is_unclean: StoppingIsUnclean,
    planted_sealed_is_committed: SealedIsCommitted,
    planted_commit_outlives_its_term: CommitOutlivesTerm,
}

/// `NASD_MODE=heartbeat` or `manual` replays a seed of the smoke runs.
fn mode_of_environment(set: Settings) -> Settings {
    match std::env::var("NASD_MODE").as_deref() {
        Ok("heartbeat") => Settings { mode: FailoverMode::Heartbeat, cuts: false, ..set },
        Ok("manual") => Settings { mode: FailoverMode::Manual, cuts: false, ..set },
        _ => set,
    }
}
