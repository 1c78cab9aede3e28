//! The record in etcd: changed by one at a time, found again when etcd is back, and never waited for too long.
#![allow(clippy::unwrap_used)]

use nasd::vote::{Put, Record, Store, Versioned, VoteError};
use nasd_tests::etcd::{Etcd, EtcdSetup, certificates};
use nasd_tests::eventually;
use nasd_tests::proxy::Proxy;
use std::fs;
use std::net::TcpListener;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// More than any of these takes.
const LONG: Duration = Duration::from_secs(10);
/// What etcd is waited for when it does not answer.
const SHORT: Duration = Duration::from_millis(400);
/// How much later a call may return; two cores and other tests.
const LATE: Duration = Duration::from_millis(250);

const SOON: Duration = Duration::from_secs(1);

fn store(etcd: &Etcd) -> Store {
    Store::new(&etcd.config(), "v")
}

fn put(store: &Store, revision: i64, value: &str) -> Put {
    store.put_if(revision, value.into(), LONG).unwrap()
}

fn done(put: Put) -> i64 {
    match put {
        Put::Done(revision) => revision,
        Put::Changed(now) => panic!("somebody changed it: {now:?}"),
    }
}

fn is(revision: i64, value: &str) -> Versioned {
    Versioned { revision, value: Some(value.into()) }
}

/// Both calls end in time, and say that there was no answer.
fn nobody_answers(store: &Store) {
    let start = Instant::now();
    let get = store.get(SHORT).unwrap_err();
    let took = start.elapsed();
    assert!(matches!(get, VoteError::Unreachable { .. }), "{get}");
    assert!(took < SHORT + LATE, "get took {took:?}");
    let start = Instant::now();
    let put = store.put_if(0, b"lost".to_vec(), SHORT).unwrap_err();
    let took = start.elapsed();
    assert!(matches!(put, VoteError::Unreachable { .. }), "{put}");
    assert!(took < SHORT + LATE, "put_if took {took:?}");
    println!("{get}\n{put}");
}

/// The reason and the remedy, as the operator reads them.
fn refused(store: &Store) -> String {
    let error = store.get(LONG).unwrap_err();
    println!("{error}");
    assert!(matches!(error, VoteError::Refused { .. }), "{error}");
    let put = store.put_if(0, b"x".to_vec(), LONG).unwrap_err();
    assert!(matches!(put, VoteError::Refused { .. }), "{put}");
    error.to_string()
}

#[test]
fn it_is_written_only_over_what_was_read() {
    let etcd = Etcd::new();
    let store = store(&etcd);
    assert_eq!(store.get(LONG).unwrap(), Versioned { revision: 0, value: None });
    let first = done(put(&store, 0, "one"));
    assert_eq!(store.get(LONG).unwrap(), is(first, "one"));
    assert_eq!(put(&store, 0, "again"), Put::Changed(is(first, "one")));
    let second = done(put(&store, first, "two"));
    assert!(second > first);
    assert_eq!(put(&store, first, "late"), Put::Changed(is(second, "two")));
    assert_eq!(put(&store, second + 7, "early"), Put::Changed(is(second, "two")));
    // It is where the operator looks for it, and another volume is another record.
    assert_eq!(store.key(), "/nasd/v");
    assert_eq!(etcd.etcdctl(&["get", "--print-value-only", "/nasd/v"]).stdout, b"two\n");
    assert_eq!(Store::new(&etcd.config(), "w").get(LONG).unwrap().revision, 0);
    etcd.ctl(&["del", "/nasd/v"]);
    assert_eq!(put(&store, second, "three"), Put::Changed(Versioned { revision: 0, value: None }));
    let third = done(put(&store, 0, "three"));
    let record = Record::first("a", 1, 1);
    done(store.put_if(third, record.encode(), LONG).unwrap());
    assert_eq!(Record::parse(store.key(), &store.get(LONG).unwrap().value.unwrap()), Ok(record));
}

#[test]
fn of_two_that_race_exactly_one_wins() {
    let etcd = Etcd::new();
    let (together, rounds) = (Barrier::new(2), 200);
    let run = |me: &str| {
        let store = store(&etcd);
        let (mut revision, mut won) = (0, Vec::new());
        for round in 0..rounds {
            together.wait();
            let mine = format!("{me} {round}");
            match put(&store, revision, &mine) {
                Put::Done(now) => {
                    won.push(round);
                    revision = now;
                }
                Put::Changed(now) => {
                    let other = if me == "a" { "b" } else { "a" };
                    assert_eq!(now.value, Some(format!("{other} {round}").into_bytes()));
                    revision = now.revision;
                }
            }
        }
        won
    };
    let (a, b) = std::thread::scope(|s| {
        let b = s.spawn(|| run("b"));
        (run("a"), b.join().unwrap())
    });
    println!("a won {}, b {}", a.len(), b.len());
    let mut all = [a, b].concat();
    all.sort_unstable();
    assert_eq!(all, (0..rounds).collect::<Vec<_>>());
}

#[test]
fn etcd_dies_and_comes_back() {
    let mut etcd = Etcd::new();
    let store = store(&etcd);
    let revision = done(put(&store, 0, "one"));
    for _ in 0..3 {
        etcd.kill();
        let start = Instant::now();
        nobody_answers(&store);
        assert!(start.elapsed() < SHORT, "refused connections are an answer: {:?}", start.elapsed());
        etcd.start();
        assert_eq!(store.get(SOON).unwrap(), is(revision, "one"));
        // Also when nothing was asked meanwhile, and the connection is not known to be dead.
        etcd.kill();
        etcd.start();
        assert_eq!(store.put_if(revision + 5, vec![], SOON).unwrap(), Put::Changed(is(revision, "one")));
    }
    etcd.kill();
    etcd.start();
    done(store.put_if(revision, b"two".to_vec(), SOON).unwrap());
}

#[test]
fn a_node_starts_before_etcd() {
    let mut etcd = Etcd::new();
    etcd.kill();
    let store = store(&etcd);
    nobody_answers(&store);
    etcd.start();
    assert_eq!(store.get(SOON).unwrap().revision, 0);
}

#[test]
fn a_frozen_etcd_is_not_waited_for() {
    let etcd = Etcd::new();
    let (old, new) = (store(&etcd), store(&etcd));
    let revision = done(put(&old, 0, "one"));
    etcd.freeze();
    for _ in 0..3 {
        nobody_answers(&old);
        nobody_answers(&new);
    }
    // A store that waits is dropped at once.
    let start = Instant::now();
    drop(new);
    assert!(start.elapsed() < LATE, "{:?}", start.elapsed());
    etcd.thaw();
    assert_eq!(old.get(SOON).unwrap(), is(revision, "one"));
    done(put(&old, revision, "two"));
}

#[test]
fn a_call_outlasts_a_short_freeze() {
    let etcd = Etcd::new();
    let store = store(&etcd);
    let revision = done(put(&store, 0, "one"));
    etcd.freeze();
    std::thread::scope(|s| {
        let waits = s.spawn(|| store.put_if(revision, b"two".to_vec(), LONG));
        nobody_answers(&self::store(&etcd));
        etcd.thaw();
        done(waits.join().unwrap().unwrap());
    });
}

#[test]
fn a_network_that_swallows_is_not_waited_for() {
    let etcd = Etcd::new();
    let proxy = Proxy::start();
    proxy.lead_to(&etcd.address());
    let config = nasd_config::Etcd { endpoints: vec![format!("http://{}", proxy.address)], ..etcd.config() };
    let store = Store::new(&config, "v");
    let revision = done(put(&store, 0, "one"));
    proxy.swallow(true);
    nobody_answers(&store);
    proxy.swallow(false);
    assert_eq!(store.get(SOON).unwrap(), is(revision, "one"));
    // Swallowed and back between two calls: the old connection has lost bytes, and answers nothing any more.
    proxy.swallow(true);
    assert!(store.get(Duration::from_millis(1)).is_err());
    proxy.swallow(false);
    done(store.put_if(revision, b"two".to_vec(), SOON).unwrap());
}

#[test]
fn a_write_whose_answer_is_lost_is_found() {
    let etcd = Etcd::new();
    let proxy = Proxy::start();
    proxy.lead_to(&etcd.address());
    proxy.delay(300);
    let config = nasd_config::Etcd { endpoints: vec![format!("http://{}", proxy.address)], ..etcd.config() };
    let far = Store::new(&config, "v");
    let near = store(&etcd);
    far.get(LONG).unwrap();
    // The read takes 0.6 s of it, the write's way there 0.3.
    let lost = far.put_if(0, b"mine".to_vec(), Duration::from_millis(1050)).unwrap_err();
    assert!(matches!(lost, VoteError::Unreachable { .. }), "{lost}");
    let now = eventually("the write arrives", || near.get(LONG).ok().filter(|now| now.revision > 0));
    assert_eq!(now.value.as_deref(), Some(&b"mine"[..]));
    assert_eq!(put(&near, 0, "theirs"), Put::Changed(now));
}

#[test]
fn one_of_several_endpoints_is_enough() {
    let etcd = Etcd::new();
    // One where nobody listens, and one where nobody answers.
    let gone = format!("http://127.0.0.1:{}", nasd_tests::node::free_port());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    for dead in [&gone, &silent] {
        for endpoints in [vec![dead.clone(), etcd.endpoint()], vec![etcd.endpoint(), dead.clone()]] {
            let store = Store::new(&nasd_config::Etcd { endpoints, ..etcd.config() }, "v");
            let start = Instant::now();
            let now = store.get(SOON).unwrap();
            done(store.put_if(now.revision, b"x".to_vec(), SOON).unwrap());
            println!("{:?}", start.elapsed());
        }
    }
    let store =
        Store::new(&nasd_config::Etcd { endpoints: vec![gone.clone(), silent], ..etcd.config() }, "v");
    nobody_answers(&store);
    assert!(store.get(SHORT).unwrap_err().to_string().contains(&gone));
}

#[test]
fn the_member_that_was_asked_last_fails() {
    let (mut first, second) = (Etcd::new(), Etcd::new());
    // Two of one cluster would have one record; here the revisions tell who answers.
    first.ctl(&["put", "/nasd/v", "first"]);
    second.ctl(&["put", "/nasd/v", "second"]);
    let both = nasd_config::Etcd { endpoints: vec![first.endpoint(), second.endpoint()], ..first.config() };
    let store = Store::new(&both, "v");
    second.freeze();
    assert_eq!(store.get(SOON).unwrap().value.unwrap(), b"first");
    second.thaw();
    first.freeze();
    assert_eq!(store.get(SOON).unwrap().value.unwrap(), b"second");
    first.thaw();
    second.freeze();
    assert_eq!(store.get(SOON).unwrap().value.unwrap(), b"first");
    second.thaw();
    first.kill();
    assert_eq!(store.get(SOON).unwrap().value.unwrap(), b"second");
}

#[test]
fn certificates_are_checked_on_both_sides() {
    let mut etcd = Etcd::with(EtcdSetup { tls: true, ..EtcdSetup::default() });
    let good = etcd.config();
    let store = Store::new(&good, "v");
    let revision = done(put(&store, 0, "one"));
    etcd.kill();
    nobody_answers(&store);
    etcd.start();
    assert_eq!(store.get(SOON).unwrap(), is(revision, "one"));
    etcd.freeze();
    nobody_answers(&store);
    etcd.thaw();
    assert_eq!(store.get(SOON).unwrap(), is(revision, "one"));

    let other = tempfile::tempdir().unwrap();
    certificates(other.path(), "127.0.0.1");
    let foreign = |name: &str| other.path().join(name);
    let wrong_ca = nasd_config::Etcd { ca: Some(foreign("ca.pem")), ..good.clone() };
    let said = refused(&Store::new(&wrong_ca, "v"));
    assert!(said.contains("its certificate is not accepted") && said.contains("check `ca`"), "{said}");
    let no_cert = nasd_config::Etcd { cert: None, ..good.clone() };
    let wrong_cert =
        nasd_config::Etcd { cert: Some((foreign("client.pem"), foreign("client.key"))), ..good.clone() };
    for config in [no_cert, wrong_cert] {
        for _ in 0..10 {
            let said = refused(&Store::new(&config, "v"));
            assert!(said.contains("this node's certificate") && said.contains("check `cert`"), "{said}");
        }
    }
    let no_file = nasd_config::Etcd { ca: Some(foreign("gone.pem")), ..good.clone() };
    assert!(refused(&Store::new(&no_file, "v")).contains("gone.pem"));
    let cert_only = nasd_config::Etcd { cert: Some((foreign("ca.pem"), foreign("client.key"))), ..good };
    refused(&Store::new(&cert_only, "v"));
}

#[test]
fn tls_on_one_side_only() {
    let plain = Etcd::new();
    let tls = Etcd::with(EtcdSetup { tls: true, ..EtcdSetup::default() });
    // Both just hang up, as one does that is being stopped: it can't be known whether it passes.
    let error = |endpoint: String| {
        let store = Store::new(&nasd_config::Etcd { endpoints: vec![endpoint], ..tls.config() }, "v");
        let error = store.get(LONG).unwrap_err();
        println!("{error}");
        assert!(matches!(error, VoteError::Unreachable { .. }));
        error.to_string()
    };
    assert!(error(plain.endpoint().replace("http:", "https:")).contains("is it http or https"));
    error(tls.endpoint().replace("https:", "http:"));
}

fn with_users(token_ttl: Option<u32>) -> Etcd {
    Etcd::with(EtcdSetup { password: Some("secret".to_owned()), token_ttl, ..EtcdSetup::default() })
}

#[test]
fn a_wrong_password_is_said_to_be_wrong() {
    let mut etcd = with_users(None);
    let good = etcd.config();
    let store = Store::new(&good, "v");
    let revision = done(put(&store, 0, "one"));
    let nobody = nasd_config::Etcd { user: None, ..good.clone() };
    assert!(refused(&Store::new(&nobody, "v")).contains("it wants a user"));
    let elsewhere = nasd_config::Etcd { prefix: "/other".to_owned(), ..good.clone() };
    assert!(refused(&Store::new(&elsewhere, "v")).contains("does not permit"));
    let no_file = nasd_config::Etcd { user: Some(("nasd".to_owned(), "/nowhere".into())), ..good.clone() };
    assert!(refused(&Store::new(&no_file, "v")).contains("/nowhere"));

    fs::write(etcd.password_file(), "wrong\n").unwrap();
    assert!(refused(&Store::new(&good, "v")).contains("wrong user or password"));
    // The one that is logged in reads it when it has to, and again when it has been corrected.
    etcd.kill();
    etcd.start();
    assert!(refused(&store).contains("wrong user or password"));
    fs::write(etcd.password_file(), "secret").unwrap();
    assert_eq!(store.get(SOON).unwrap(), is(revision, "one"));

    let open = Etcd::new();
    let user = nasd_config::Etcd { user: good.user, ..open.config() };
    assert!(refused(&Store::new(&user, "v")).contains("it has no users"));
}

#[test]
fn a_login_that_has_expired_is_renewed() {
    let etcd = with_users(Some(1));
    let store = store(&etcd);
    let mut revision = done(put(&store, 0, "one"));
    for n in 0..3 {
        let start = Instant::now();
        // The time is the condition: tokens are swept every second, and this one is 1 s old without use.
        eventually("it has expired", || (start.elapsed() > Duration::from_millis(2200)).then_some(()));
        revision = done(store.put_if(revision, format!("{n}").into_bytes(), SOON).unwrap());
    }
    assert_eq!(etcd.log_text().matches("invalid auth token").count(), 3, "it did not expire");
}

/// Removed with the test.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn etcd_runs_where_the_network_is_another() {
    let space = Namespace(format!("nasd-vote-{}", std::process::id()));
    let ip = |args: &[&str]| std::process::Command::new("ip").args(args).status().is_ok_and(|s| s.success());
    if !ip(&["netns", "add", &space.0]) {
        println!("skipped: no network namespaces here");
        return;
    }
    let name = space.0.as_str();
    assert!(ip(&["-n", name, "link", "set", "lo", "up"]));
    assert!(ip(&["-n", name, "addr", "add", "192.0.2.7/32", "dev", "lo"]));
    let setup =
        EtcdSetup { netns: Some(name.to_owned()), ip: Some("192.0.2.7".to_owned()), ..EtcdSetup::default() };
    let mut etcd = Etcd::with(setup);
    etcd.ctl(&["put", "/nasd/v", "there"]);
    etcd.freeze();
    etcd.thaw();
    etcd.kill();
    etcd.start();
    assert_eq!(etcd.etcdctl(&["get", "--print-value-only", "/nasd/v"]).stdout, b"there\n");
    // From here there is no way to it.
    let error = store(&etcd).get(SHORT).unwrap_err();
    assert!(matches!(error, VoteError::Unreachable { .. }), "{error}");
}
