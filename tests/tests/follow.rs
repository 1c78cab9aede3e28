//! `nasd pg follow`: a PostgreSQL that another process than the node starts, promotes and stops.
#![allow(clippy::unwrap_used)]

use nasd_tests::node::binary;
use nasd_tests::postgres::{PgNode, PgPair, PgSetup, available, pg};
use nasd_tests::{eventually, eventually_within};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// The process; it and its PostgreSQL are gone with this value.
struct Follower(Child);

impl Follower {
    fn of(n: &PgNode) -> Follower {
        let log = std::fs::File::create(n.node.log.with_extension("follow")).unwrap();
        let mut command = Command::new(binary());
        command.args(["pg", "follow", "--config"]).arg(&n.node.config);
        Follower(command.stdin(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn stop(&mut self) -> ExitStatus {
        // It can only be gone.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        self.0.wait().unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop();
    }
}

fn wait(on: &PgNode, standby: bool) {
    eventually_within(MINUTE, &format!("{}: standby {standby}", on.node.name), || {
        let recovers: bool = on.try_connect()?.query_one("SELECT pg_is_in_recovery()", &[]).ok()?.get(0);
        (recovers == standby).then_some(())
    });
}

fn insert(on: &PgNode, n: i32) {
    on.connect().execute("INSERT INTO t VALUES ($1)", &[&n]).unwrap();
}

fn count(on: &PgNode) -> String {
    on.value("SELECT count(*) FROM t")
}

#[test]
fn it_goes_with_the_role_of_a_node_that_does_not_start_it() {
    if !available("follow") {
        return;
    }
    let setup = PgSetup { section: "manage = false\nnotify_every = \"0s\"".to_owned(), ..PgSetup::default() };
    let mut pair = PgPair::adopted(&setup);
    let mut on_a = Follower::of(&pair.a);
    wait(&pair.a, false);
    pair.a.connect().batch_execute("CREATE TABLE t (n int PRIMARY KEY)").unwrap();
    let on_b = Follower::of(&pair.b);
    pair.clone_standby();
    wait(&pair.b, true);
    assert_eq!(pair.a.node.status()["postgresql"]["ready"], true);

    // The standby is woken: by itself it would look every five seconds.
    pair.b.wait_replayed(&pair.a);
    let start = Instant::now();
    for n in 0..5 {
        insert(&pair.a, n);
        eventually("it is seen on the standby", || (count(&pair.b) == (n + 1).to_string()).then_some(()));
    }
    let took = start.elapsed();
    println!("five commits, each seen on the standby: {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");

    // In the middle of its work; it ends as in a crash, and comes back.
    pair.a.node.cli(&["switchover"]);
    wait(&pair.b, false);
    insert(&pair.b, 5);
    wait(&pair.a, true);
    pair.a.wait_replayed(&pair.b);
    assert_eq!(count(&pair.a), "6");

    // On the mount of a node that is gone nothing runs.
    pair.a.node.wait_for("secondary", "in-sync");
    pair.b.node.kill();
    eventually_within(MINUTE, "the database is gone with its node", || {
        pair.b.try_connect().is_none().then_some(())
    });
    pair.a.node.cli(&["promote"]);
    wait(&pair.a, false);
    insert(&pair.a, 6);
    pair.b.node.start();
    wait(&pair.b, true);
    pair.b.wait_replayed(&pair.a);
    assert_eq!(count(&pair.b), "7");

    assert!(on_a.stop().success());
    let control = pg("pg_controldata", &["-D", pair.a.data.to_str().unwrap()]);
    assert!(control.contains("shut down\n"), "{control}");
    drop(on_b);
}

#[test]
fn a_database_that_the_node_manages_is_refused() {
    if !available("follow-managed") {
        return;
    }
    let pair = PgPair::adopted(&PgSetup::default());
    let why = pair.a.node.refused(&["pg", "follow"]);
    assert!(why.contains("manage = false"), "{why}");
}
