//! PostgreSQL on the volume: the standby follows from the replica, takes over and comes back.
#![allow(clippy::unwrap_used)]

use nasd_tests::image::Image;
use nasd_tests::pgload::{self, Acked, Load};
use nasd_tests::postgres::{PgNode, PgPair, PgSetup, available, pg};
use nasd_tests::proxy::Proxy;
use nasd_tests::{Setup, eventually, eventually_within, long, seed};
use postgres::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// Milliseconds from a commit's return to its being visible on the standby, sorted.
fn visible_after(pair: &PgPair, commits: usize, pause: Duration) -> Vec<f64> {
    let (mut writer, mut reader) = (pair.a.connect(), pair.b.connect());
    writer.batch_execute("CREATE TABLE IF NOT EXISTS seen (n int)").unwrap();
    let query = "SELECT count(*) FROM seen";
    pair.b.wait_replayed(&pair.a);
    let mut times: Vec<f64> = (0..commits)
        .map(|_| {
            std::thread::sleep(pause);
            let before: i64 = reader.query_one(query, &[]).unwrap().get(0);
            writer.execute("INSERT INTO seen VALUES (1)", &[]).unwrap();
            let start = Instant::now();
            while reader.query_one(query, &[]).unwrap().get::<_, i64>(0) == before {
                assert!(start.elapsed() < MINUTE, "it never becomes visible");
            }
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

fn told(what: &str, sorted: &[f64]) -> f64 {
    let p50 = sorted[sorted.len() / 2];
    println!(
        "{what}: p50 {p50:.2} ms, p99 {:.2} ms, most {:.2} ms",
        sorted[sorted.len() * 99 / 100],
        sorted[sorted.len() - 1]
    );
    p50
}

#[test]
fn a_commit_is_soon_visible_on_the_standby() {
    if !available("a_commit_is_soon_visible_on_the_standby") {
        return;
    }
    let pair =
        PgPair::start_with(&PgSetup { section: "notify_every = \"0s\"".to_owned(), ..PgSetup::default() });
    let every = told("woken at every commit", &visible_after(&pair, 200, Duration::ZERO));
    // PostgreSQL alone would look every five seconds.
    assert!(every < 100.0, "{every} ms");
    let status = pair.b.node.status();
    assert!(status["postgresql"]["woken"].as_u64().unwrap() > 50, "{status:#}");
    assert!(pair.b.in_recovery());
    let text = pair.b.node.cli(&["pg", "status"]);
    assert!(text.contains("replayed"), "{text}");
    let found = pair.b.node.try_cli(&["doctor"]);
    let found = String::from_utf8_lossy(&found.stdout);
    assert!(found.lines().any(|l| l.starts_with("ok") && l.contains("its log on the volume")), "{found}");
    let text = pair.a.node.cli(&["pg", "status"]);
    assert!(text.contains("flushed") && text.contains("replicated"), "{text}");

    // Somebody starts the same node a second time: the first one's PostgreSQL is none of its business.
    let postmaster = pair.a.postmaster();
    let again = pair.a.node.try_cli(&["run"]);
    let why = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.code() == Some(2) && why.contains("another nasd uses"), "{why}");
    assert!(postmaster.is_some() && pair.a.postmaster() == postmaster);
}

/// A standby that nasd neither starts nor manages, and a rule of `[[notify]]` that wakes it.
#[test]
fn a_rule_wakes_a_standby_that_somebody_else_runs() {
    if !available("a_rule_wakes_a_standby_that_somebody_else_runs") {
        return;
    }
    // Neither the section's own wake-ups nor PostgreSQL's looking would show it anything within this test.
    let setup = Setup {
        more: "[[notify]]\npaths = [\"pg_wal/**\"]\npostgresql = \"{pg}\"\n".to_owned(),
        ..Setup::default()
    };
    let pair = PgPair::adopted(&PgSetup {
        setup,
        section: "manage = false\nnotify_every = \"1d\"".to_owned(),
        conf: "wal_retrieve_retry_interval = '10min'".to_owned(),
        ..PgSetup::default()
    });
    let run = |n: &PgNode| {
        let (data, log) = (n.data.to_str().unwrap(), n.data.join("server.log"));
        pg("pg_ctl", &["-D", data, "-l", log.to_str().unwrap(), "-w", "start"]);
    };
    run(&pair.a);
    pair.a.connect().batch_execute("CREATE TABLE t (n int)").unwrap();
    pair.clone_standby();
    run(&pair.b);
    assert!(pair.b.in_recovery());
    let mut client = pair.a.connect();
    let start = Instant::now();
    for n in 1..=20 {
        client.execute("INSERT INTO t VALUES ($1)", &[&n]).unwrap();
        let seen = || (pair.b.value("SELECT count(*) FROM t") == n.to_string()).then_some(());
        eventually("it is seen on the standby", seen);
    }
    println!("20 commits, each seen on the standby: {:?}", start.elapsed());
    let told = pair.b.node.status()["notify"][0].clone();
    assert!(told["sent"].as_u64().unwrap() >= 20 && told["failed"] == 0, "{told}");
    // The primary's rule tells nobody of what the primary writes.
    assert_eq!(pair.a.node.status()["notify"][0]["sent"], 0);
}

#[test]
fn after_a_quiet_spell_it_is_woken_at_once() {
    if !available("after_a_quiet_spell_it_is_woken_at_once") {
        return;
    }
    let pair =
        PgPair::start_with(&PgSetup { section: "notify_every = \"300ms\"".to_owned(), ..PgSetup::default() });
    let quiet = told("after a quiet spell", &visible_after(&pair, 10, Duration::from_millis(700)));
    assert!(quiet < 100.0, "{quiet} ms");
    let before = pair.b.node.status()["postgresql"]["woken"].as_u64().unwrap();
    let start = Instant::now();
    let mut client = pair.a.connect();
    while start.elapsed() < Duration::from_secs(2) {
        client.execute("INSERT INTO seen VALUES (2)", &[]).unwrap();
    }
    let woken = pair.b.node.status()["postgresql"]["woken"].as_u64().unwrap() - before;
    assert!(woken <= 9, "at most once in 300 ms, and not {woken} times in 2 s");
}

/// The database host that nobody tells anything: it looks by itself.
#[test]
fn without_the_watcher_it_follows_by_its_own_polling() {
    if !available("without_the_watcher_it_follows_by_its_own_polling") {
        return;
    }
    let pair = PgPair::start_with(&PgSetup {
        section: "notify_every = \"1d\"".to_owned(),
        conf: "wal_retrieve_retry_interval = '200ms'".to_owned(),
        ..PgSetup::default()
    });
    // Of the first transaction it may be told, or PostgreSQL was not there yet; and of no other.
    pair.a.connect().batch_execute("CREATE TABLE first (n int)").unwrap();
    let polled = told("polling every 200 ms", &visible_after(&pair, 10, Duration::ZERO));
    assert!(polled < 2000.0, "{polled} ms");
    assert!(pair.b.node.status()["postgresql"]["woken"].as_u64().unwrap() <= 1);
}

/// What keeps a standby from replaying.
#[derive(Debug, Clone, Copy)]
enum Absence {
    Stopped,
    ShutDown,
    Killed,
}

fn signal(node: &PgNode, signal: rustix::process::Signal) {
    let pid = node.postmaster().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for pid in children.split_whitespace().map(|c| c.parse().unwrap()).chain([pid]) {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal);
    }
}

fn start(node: &PgNode) {
    let log = node.data.join("test.log");
    pg("pg_ctl", &["-D", node.data.to_str().unwrap(), "-l", log.to_str().unwrap(), "-w", "start"]);
}

fn stop(node: &PgNode, mode: &str) {
    pg("pg_ctl", &["-D", node.data.to_str().unwrap(), "-m", mode, "-w", "stop"]);
}

fn segments(node: &PgNode) -> Vec<String> {
    let dir = std::fs::read_dir(node.node.mount.join("pg_wal")).unwrap();
    let mut names: Vec<String> = dir.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|n| n.len() == 24);
    names.sort();
    names
}

/// Some 16 MiB of WAL, which does not shrink, in segments of 1 MiB, and a checkpoint after each of them.
fn many_checkpoints(on: &PgNode) {
    let mut client = on.connect();
    client.batch_execute("CREATE TABLE IF NOT EXISTS bulk (n int, filler text)").unwrap();
    for n in 0..20 {
        client
            .execute(
                "INSERT INTO bulk SELECT $1, string_agg(md5(random()::text), '')
                 FROM generate_series(1, 250) i, generate_series(1, 100) j GROUP BY i",
                &[&n],
            )
            .unwrap();
        client.batch_execute("CHECKPOINT").unwrap();
    }
}

fn small_segments(more: &str) -> PgSetup {
    PgSetup {
        section: format!("manage = false\n{more}"),
        conf: "max_wal_size = 4MB\nmin_wal_size = 2MB\nwal_retrieve_retry_interval = '200ms'".to_owned(),
        segment: 1,
        ..PgSetup::default()
    }
}

fn unmanaged(setup: &PgSetup, recycle: bool) -> PgPair {
    let pair = PgPair::adopted(setup);
    start(&pair.a);
    let mut client = pair.a.connect();
    client.batch_execute(&format!("ALTER SYSTEM SET wal_recycle = {recycle}")).unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    pair.clone_standby();
    start(&pair.b);
    pair.b.wait_replayed(&pair.a);
    pair
}

#[test]
fn what_the_standby_needs_is_held_until_it_is_past_it() {
    if !available("what_the_standby_needs_is_held_until_it_is_past_it") {
        return;
    }
    for recycle in [false, true] {
        let pair = unmanaged(&small_segments(""), recycle);
        for absence in [Absence::Stopped, Absence::ShutDown, Absence::Killed] {
            let context = format!("wal_recycle = {recycle}, {absence:?}");
            match absence {
                Absence::Stopped => signal(&pair.b, rustix::process::Signal::STOP),
                Absence::ShutDown => stop(&pair.b, "fast"),
                Absence::Killed => pair.b.kill_database(),
            }
            many_checkpoints(&pair.a);
            pair.a.node.cli(&["status"]);
            let held = pair.b.node.wait_status("some WAL is held", |s| s["postgresql"]["held_files"] != 0);
            println!(
                "{context}: {} files held, {} bytes",
                held["postgresql"]["held_files"], held["postgresql"]["held_bytes"]
            );
            assert!(held["postgresql"]["held_files"].as_u64().unwrap() >= 10, "{context}: {held:#}");
            assert_eq!(held["postgresql"]["must_clone"], serde_json::Value::Null, "{context}");
            let (on_a, on_b) = (segments(&pair.a), segments(&pair.b));
            assert!(on_a[0] > on_b[0], "{context}: {on_a:?} {on_b:?}");
            match absence {
                Absence::Stopped => signal(&pair.b, rustix::process::Signal::CONT),
                Absence::ShutDown | Absence::Killed => start(&pair.b),
            }
            pair.b.wait_replayed(&pair.a);
            let rows = "SELECT count(*) FROM bulk";
            assert_eq!(pair.a.value(rows), pair.b.value(rows), "{context}");
            // A restartpoint makes the standby independent of what it needed before, and it removes it itself.
            pair.b.connect().batch_execute("CHECKPOINT").unwrap();
            pair.b.node.wait_status("nothing is held", |s| s["postgresql"]["held_files"] == 0);
        }
    }
}

#[test]
fn a_promotion_while_files_are_held() {
    if !available("a_promotion_while_files_are_held") {
        return;
    }
    let mut pair = unmanaged(&small_segments(""), false);
    stop(&pair.b, "fast");
    many_checkpoints(&pair.a);
    let rows = pair.a.value("SELECT count(*) FROM bulk");
    pair.b.node.wait_status("some WAL is held", |s| s["postgresql"]["held_files"] != 0);
    pair.a.kill();
    pair.b.node.cli(&["promote"]);
    start(&pair.b);
    pg("pg_ctl", &["-D", pair.b.data.to_str().unwrap(), "-w", "promote"]);
    assert_eq!(pair.b.value("SELECT count(*) FROM bulk"), rows);
    // Before its first checkpoint as primary it starts from the last restartpoint: with what is held.
    pair.b.kill_database();
    start(&pair.b);
    assert_eq!(pair.b.value("SELECT count(*) FROM bulk"), rows);
    pair.b.connect().batch_execute("CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT").unwrap();
    pair.b.node.wait_status("nothing is held", |s| s["postgresql"]["held_files"] == 0);
    // The old primary needs from its last checkpoint on, which the new one has removed meanwhile.
    many_checkpoints(&pair.b);
    pair.a.node.start();
    pair.a.node.wait_for("secondary", "in-sync");
    std::fs::write(pair.a.data.join("standby.signal"), "").unwrap();
    start(&pair.a);
    pair.a.wait_replayed(&pair.b);
    let rows = "SELECT count(*) FROM bulk";
    assert_eq!(pair.a.value(rows), pair.b.value(rows));
}

#[test]
fn past_its_limit_the_hold_lets_go_and_says_who_must_be_cloned() {
    if !available("past_its_limit_the_hold_lets_go_and_says_who_must_be_cloned") {
        return;
    }
    let pair = unmanaged(&small_segments("hold_bytes = \"4MiB\""), false);
    stop(&pair.b, "fast");
    many_checkpoints(&pair.a);
    pair.b.node.wait_status("it is at its limit and must be cloned", |s| {
        s["postgresql"]["must_clone"].is_string() && s["postgresql"]["held_bytes"].as_u64() <= Some(4 << 20)
    });
    assert!(pair.b.node.log_text().contains("hold_bytes is reached"), "{}", pair.b.node.log_text());
    assert!(pair.b.node.cli(&["status"]).contains("MUST BE CLONED"));
    std::fs::remove_dir_all(&pair.b.data).unwrap();
    pair.clone_standby();
    start(&pair.b);
    pair.b.wait_replayed(&pair.a);
    pair.b.node.wait_status("all is well again", |s| s["postgresql"]["must_clone"].is_null());
}

#[test]
fn the_standby_takes_over_within_a_second() {
    if !available("the_standby_takes_over_within_a_second") {
        return;
    }
    let mut pair = PgPair::start();
    pgload::prepare(&pair.a);
    pair.b.wait_replayed(&pair.a);
    pair.a.kill();
    let begin = Instant::now();
    let steps = pair.b.node.cli(&["promote"]);
    let mut client = pair.b.connect();
    client.execute("INSERT INTO acked VALUES (0, 1, '')", &[]).unwrap();
    let took = begin.elapsed();
    println!("{steps}from the command to the first successful write: {took:?}");
    assert!(steps.contains("PostgreSQL is promoted"), "{steps}");
    // A second on a machine with nothing else to do; here others use it too.
    assert!(took < Duration::from_secs(5), "{took:?}\n{steps}");
}

#[test]
fn a_switchover_there_and_back_and_an_orderly_stop() {
    if !available("a_switchover_there_and_back_and_an_orderly_stop") {
        return;
    }
    let mut pair = PgPair::start();
    pgload::prepare(&pair.a);
    for round in 0..2 {
        let load = Load::start(&pair.a);
        eventually("the writers get on", || (load.slowest() > 5).then_some(()));
        let begin = Instant::now();
        let steps = pair.a.node.cli(&["switchover"]);
        println!("switchover in {:?}\n{steps}", begin.elapsed());
        let acked = load.stop();
        pair.b.wait_database("primary");
        pgload::check(&pair.b, &acked, &format!("switchover {round}"));
        pair.a.wait_database("standby");
        pgload::assert_equal(&pair.b, &pair.a, &format!("switchover {round}"));
        std::mem::swap(&mut pair.a, &mut pair.b);
    }
    pair.a.node.stop();
    assert!(pair.a.postmaster().is_none(), "an orderly stop stops the database first");
    pair.a.node.start();
    pair.a.wait_database("primary");
    pair.b.wait_replayed(&pair.a);
}

/// What dies, and how.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// nasd, then PostgreSQL.
    NodeFirst,
    /// PostgreSQL, then nasd.
    DatabaseFirst,
    /// nasd alone: its PostgreSQL lives on for a while, on a mount that is dead.
    NodeOnly,
    /// The power of the machine.
    Power,
    /// PostgreSQL alone: its node lives, and hands over.
    DatabaseOnly,
}

/// A round: the primary dies under load, the standby takes over, the old primary comes back as its standby on its old
/// data directory, and both are compared.
fn come_back(
    primary: &mut PgNode,
    standby: &mut PgNode,
    images: &mut [Image; 2],
    death: Death,
    rng: &mut StdRng,
    context: &str,
) {
    let load = Load::start(primary);
    eventually_within(MINUTE, "the writers get on", || (load.slowest() > 3).then_some(()));
    // The moment is random, so this is no waiting for anything.
    std::thread::sleep(Duration::from_micros(rng.random_range(0..400_000)));
    if rng.random() {
        // Dirty pages get to the disk as soon as their WAL may.
        let _ = primary.try_connect().map(|mut c| c.batch_execute("CHECKPOINT"));
    }
    match death {
        Death::NodeFirst => primary.kill(),
        Death::DatabaseFirst => {
            primary.kill_database();
            primary.node.kill();
        }
        Death::NodeOnly => primary.node.kill(),
        Death::DatabaseOnly => primary.kill_database(),
        Death::Power => {
            images[0].cut();
            primary.kill();
        }
    }
    let acked: Acked = load.stop();
    standby.node.cli(&[if let Death::DatabaseOnly = death { "switchover" } else { "promote" }]);
    standby.wait_database("primary");
    pgload::check(standby, &acked, context);
    let load = Load::start(standby);
    match death {
        Death::DatabaseOnly => {}
        Death::Power => {
            images[0].power_on();
            primary.node.start();
        }
        _ => primary.node.start(),
    }
    primary.node.wait_for("secondary", "in-sync");
    primary.wait_database("standby");
    eventually_within(MINUTE, "the writers get on", || (load.slowest() > 3).then_some(()));
    let acked = load.stop();
    pgload::check(standby, &acked, context);
    pgload::assert_equal(standby, primary, context);
    pgload::amcheck(standby);
    std::mem::swap(primary, standby);
    images.swap(0, 1);
}

fn campaign(rounds: usize, deaths: &[Death]) {
    let seed = seed("come back");
    let mut rng = StdRng::seed_from_u64(seed);
    let base = tempfile::Builder::new().prefix("nasd-pg-").tempdir().unwrap();
    let mut images = ["a", "b"].map(|name| Image::xfs(base.path(), name, 1200).unwrap());
    std::fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let dirs = |what: &str| [0, 1].map(|i: usize| images[i].path.join(what));
    let pair = PgPair::start_with(&PgSetup {
        setup: Setup {
            replication: "peer_timeout = \"2s\"\non_peer_loss = \"degrade\"".to_owned(),
            log: "retain_for = \"2s\"\nretain_files = 500".to_owned(),
            state_dirs: Some(dirs("state")),
            ..Setup::default()
        },
        conf: "max_wal_size = 64MB\ncheckpoint_timeout = 30s".to_owned(),
        data_dirs: Some([images[0].path.join("db/pg"), images[1].path.join("db/pg")]),
        ..PgSetup::default()
    });
    let PgPair { mut a, mut b, dir: _dir } = pair;
    pgload::prepare(&a);
    b.wait_replayed(&a);
    let begin = Instant::now();
    for round in 0..rounds {
        let death = deaths.get(round).copied().unwrap_or_else(|| deaths[rng.random_range(0..deaths.len())]);
        let context = format!("NASD_SEED={seed} round {round}, {death:?}");
        println!("{:?} {context}", begin.elapsed());
        come_back(&mut a, &mut b, &mut images, death, &mut rng, &context);
    }
    println!("{rounds} rounds in {:?}", begin.elapsed());
}

#[test]
fn the_old_primary_comes_back_on_its_old_data_directory() {
    if !available("the_old_primary_comes_back_on_its_old_data_directory") {
        return;
    }
    let deaths = [Death::NodeFirst, Death::DatabaseFirst, Death::NodeOnly, Death::Power, Death::DatabaseOnly];
    campaign(if long() { 60 } else { 5 }, &deaths);
}

#[test]
fn what_a_primary_committed_alone_is_not_hidden() {
    if !available("what_a_primary_committed_alone_is_not_hidden") {
        return;
    }
    let setup = Setup {
        replication: "peer_timeout = \"1s\"\non_peer_loss = \"degrade\"".to_owned(),
        ..Setup::default()
    };
    let mut pair = PgPair::start_with(&PgSetup { setup, ..PgSetup::default() });
    pgload::prepare(&pair.a);
    pair.b.wait_replayed(&pair.a);
    pair.b.kill();
    pair.a.connect().execute("INSERT INTO acked VALUES (9, 1, 'alone')", &[]).unwrap();
    pair.a.kill();
    pair.b.node.start();
    pair.b.node.wait_for("secondary", "outdated");
    let why = pair.b.node.refused(&["promote"]);
    assert!(why.contains("may have acknowledged"), "{why}");
    pair.b.node.cli(&["promote", "--force"]);
    pair.b.wait_database("primary");
    pair.b.connect().execute("INSERT INTO acked VALUES (9, 2, 'other')", &[]).unwrap();
    pair.a.node.start();
    pair.a.node.wait_for("secondary", "in-sync");
    let a = pair.a.node.wait_status("it must be cloned", |s| s["postgresql"]["must_clone"].is_string());
    println!("{}", a["postgresql"]["must_clone"]);
    assert_eq!(a["postgresql"]["state"], "stopped", "{a:#}");
    assert!(a["diverged_files"].as_u64().unwrap() > 0);
    // Nor is it promoted as it is.
    pair.b.node.kill();
    assert!(pair.a.node.refused(&["promote"]).contains("nasd pg clone"));
    pair.b.node.start();
    pair.b.wait_database("primary");
    pair.a.node.wait_for("secondary", "in-sync");
    std::fs::remove_dir_all(&pair.a.data).unwrap();
    std::mem::swap(&mut pair.a, &mut pair.b);
    pair.clone_standby();
    pair.b.wait_database("standby");
    pgload::assert_equal(&pair.a, &pair.b, "cloned");
}

/// With native synchronous replication a waiting session that is cancelled or terminated, and a restart, make a commit
/// visible that no standby has. Here WAL that is not on both nodes is not flushed, and so it is not visible.
#[test]
fn what_the_peer_lacks_never_becomes_visible() {
    if !available("what_the_peer_lacks_never_becomes_visible") {
        return;
    }
    let proxies = [Proxy::start(), Proxy::start()];
    let setup = Setup {
        replication: "peer_timeout = \"1s\"\non_peer_loss = \"suspend\"".to_owned(),
        peer_addresses: Some([proxies[0].address.clone(), proxies[1].address.clone()]),
        ..Setup::default()
    };
    let mut pair = PgPair::adopted_with(&PgSetup { setup, ..PgSetup::default() }, |a, b| {
        proxies[0].lead_to(&b.listen);
        proxies[1].lead_to(&a.listen);
    });
    pair.clone_standby();
    pair.b.wait_database("standby");
    pgload::prepare(&pair.a);
    pair.b.wait_replayed(&pair.a);
    let visible = |node: &PgNode| node.value("SELECT count(*) FROM acked");
    assert_eq!((visible(&pair.a), visible(&pair.b)), ("0".to_owned(), "0".to_owned()));

    let cut = |on: bool| proxies.iter().for_each(|p| p.swallow(on));
    cut(true);
    let commits: Vec<_> = (0..3_i64)
        .map(|n| {
            let mut client = pair.a.connect();
            let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
            let thread = std::thread::spawn(move || {
                client.execute("INSERT INTO acked VALUES (7, $1, '')", &[&n]).is_ok()
            });
            (pid, thread)
        })
        .collect::<Vec<(i32, std::thread::JoinHandle<bool>)>>();
    let mut operator = pair.a.connect();
    eventually("the commits wait for their log", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT%' AND wait_event IN ('WALSync', 'WALWrite')";
        (operator.query_one(query, &[]).ok()?.get::<_, i64>(0) == 3).then_some(())
    });
    pair.a.node.wait_for("primary", "suspended");
    let nothing = |operator: &mut Client, when: &str| {
        let rows: i64 = operator.query_one("SELECT count(*) FROM acked", &[]).unwrap().get(0);
        assert_eq!(rows, 0, "visible on the primary {when}");
        assert_eq!(visible(&pair.b), "0", "visible on the standby {when}");
    };
    nothing(&mut operator, "while the commits wait");
    for (pid, _) in &commits {
        operator.query_one("SELECT pg_cancel_backend($1)", &[pid]).unwrap();
    }
    nothing(&mut operator, "after they were cancelled");
    for (pid, _) in &commits {
        operator.query_one("SELECT pg_terminate_backend($1)", &[pid]).unwrap();
    }
    nothing(&mut operator, "after they were terminated");
    assert!(commits.iter().all(|(_, t)| !t.is_finished()), "nobody was told anything");

    // The server is killed, and comes back. It may wait for its log, but it shows nothing that the peer lacks.
    drop(operator);
    let postmaster = pair.a.postmaster().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(postmaster).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        if let Some(mut client) = pair.a.try_connect()
            && let Ok(row) = client.query_one("SELECT count(*) FROM acked", &[])
        {
            assert_eq!(row.get::<_, i64>(0), 0, "visible after a restart");
        }
        assert_eq!(visible(&pair.b), "0");
        std::thread::sleep(Duration::from_millis(100));
    }

    // nasd dies as well; the peer takes over, and what waited is nowhere.
    pair.a.kill();
    for (_, thread) in commits {
        assert!(!thread.join().unwrap(), "a commit was acknowledged that the peer does not have");
    }
    let mut promote = Command::new(nasd_tests::node::binary())
        .args(["promote", "--config", pair.b.node.config.to_str().unwrap()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // The new primary suspends as well: it can't even end its recovery before it has a peer.
    pair.b.node.wait_for("primary", "suspended");
    assert_eq!(visible(&pair.b), "0");
    cut(false);
    pair.a.node.start();
    assert!(promote.wait().unwrap().success());
    pair.b.wait_database("primary");
    pair.a.wait_database("standby");
    pair.a.wait_replayed(&pair.b);
    assert_eq!(visible(&pair.a), "0");
    pair.b.connect().execute("INSERT INTO acked VALUES (7, 9, '')", &[]).unwrap();
    pair.a.wait_replayed(&pair.b);
    assert_eq!((visible(&pair.a), visible(&pair.b)), ("1".to_owned(), "1".to_owned()));
}
