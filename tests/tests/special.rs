//! `.nasd/` on the mounts of a pair: what is told, when, and that it goes on through changes of role.
#![allow(clippy::unwrap_used)]

use nasd_tests::{Node, Pair, Setup, eventually};
use nasd_volume::txn::{Txn, seq_of_name};
use rustix::event::{Timespec, epoll};
use rustix::fs::OFlags;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What several `.nasd/notify` say, waited for with one epoll.
struct Listener {
    epoll: OwnedFd,
    open: Vec<(File, Vec<u8>)>,
}

impl Listener {
    fn on(nodes: &[&Node]) -> Listener {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut open = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            let mut options = File::options();
            options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
            let file = options.open(node.path(".nasd/notify")).unwrap();
            epoll::add(&epoll, &file, epoll::EventData::new_u64(i as u64), epoll::EventFlags::IN).unwrap();
            open.push((file, Vec::new()));
        }
        Listener { epoll, open }
    }

    /// Waits for the next events: of which node, and the event.
    fn next(&mut self) -> Vec<(usize, Value)> {
        let mut ready = Vec::with_capacity(8);
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&limit)).unwrap();
        assert!(!ready.is_empty(), "nothing happens");
        let mut events = Vec::new();
        for which in ready.iter().map(|event| event.data.u64() as usize) {
            let (file, text) = &mut self.open[which];
            let mut buffer = [0; 1000];
            match file.read(&mut buffer) {
                Ok(n) => text.extend_from_slice(&buffer[..n]),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            let lines: Vec<u8> = text.drain(..whole).collect();
            let lines = lines.split(|&b| b == b'\n').filter(|line| !line.is_empty());
            events.extend(lines.map(|line| (which, serde_json::from_slice(line).unwrap())));
        }
        events
    }

    /// Waits until each of `nodes` tells of a transaction that changed `path`.
    fn until_told(&mut self, path: &str, nodes: &[usize]) {
        let mut missing = nodes.to_vec();
        while !missing.is_empty() {
            for (which, event) in self.next() {
                if names(&event).any(|name| name == path) {
                    missing.retain(|node| *node != which);
                }
            }
        }
    }
}

/// The paths of a data event.
fn names(event: &Value) -> impl Iterator<Item = &str> {
    assert!(event["kind"] == "data" || event["paths"].as_array().is_none_or(Vec::is_empty), "{event}");
    event["paths"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap())
}

/// One commit that makes a whole file appear.
fn commit(node: &Node, name: &str, contents: &str) {
    let (new, path) = (node.path("new"), node.path(name));
    fs::write(&new, contents).unwrap();
    File::open(&new).unwrap().sync_all().unwrap();
    fs::rename(&new, &path).unwrap();
    File::open(&node.mount).unwrap().sync_all().unwrap();
}

#[test]
fn each_commit_is_told_on_both_mounts_once_it_can_be_read_there() {
    const COMMITS: usize = 100;
    let pair = Pair::start();
    let nodes = [&pair.a, &pair.b];
    let mut listener = Listener::on(&nodes);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..COMMITS).for_each(|n| commit(&pair.a, &format!("f{n}"), &n.to_string())));
        let mut told = [0; 2];
        let mut last = [0; 2];
        while told != [COMMITS; 2] {
            for (which, event) in listener.next() {
                if event["kind"] != "data" {
                    continue;
                }
                let seq = event["seq"].as_u64().unwrap();
                assert!(seq > last[which], "in order: {event}");
                last[which] = seq;
                for name in names(&event).filter_map(|name| name.strip_prefix('f')) {
                    let n: usize = name.parse().unwrap();
                    // Its times can come with the next one once more.
                    assert!(n <= told[which], "none is left out: {event}");
                    told[which] = told[which].max(n + 1);
                    let shown = fs::read_to_string(nodes[which].path(&format!("f{name}"))).unwrap();
                    assert_eq!(shown, name, "it can be read on {}", nodes[which].name);
                }
            }
        }
    });
}

#[test]
fn an_open_file_goes_on_through_a_switchover() {
    let pair = Pair::start();
    let mut listener = Listener::on(&[&pair.a, &pair.b]);
    commit(&pair.a, "before", "");
    listener.until_told("before", &[0, 1]);
    pair.b.cli(&["switchover"]);
    pair.b.wait_for("primary", "in-sync");
    pair.a.wait_for("secondary", "in-sync");
    commit(&pair.b, "after", "");
    let mut roles = [false; 2];
    let mut data = [false; 2];
    while !(roles == [true; 2] && data == [true; 2]) {
        for (which, event) in listener.next() {
            roles[which] |= event["kind"] == "role";
            data[which] |= names(&event).any(|name| name == "after");
        }
    }
}

#[test]
fn status_is_what_the_command_says() {
    let pair = Pair::start();
    commit(&pair.a, "f", "x");
    pair.settle();
    for node in [&pair.a, &pair.b] {
        let read: Value =
            serde_json::from_str(&fs::read_to_string(node.path(".nasd/status")).unwrap()).unwrap();
        let said = node.status();
        let keys = |status: &Value| status.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&read), keys(&said));
        for key in
            ["name", "role", "state", "volume", "epoch", "seq", "hash", "commit_mode", "mount", "files"]
        {
            assert_eq!(read[key], said[key], "{key} of {}", node.name);
        }
    }
}

fn listed(node: &Node) -> Vec<String> {
    let dir = fs::read_dir(node.path(".nasd/log")).unwrap();
    dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_log_can_be_read_on_both_mounts() {
    let pair = Pair::start();
    (0..20).for_each(|n| commit(&pair.a, "f", &n.to_string()));
    pair.settle();
    for node in [&pair.a, &pair.b] {
        // The watcher applies what is there; its own last transaction may be under way.
        eventually("the log is as it is on disk", || (listed(node) == node.log_names()).then_some(()));
        let log = node.path(".nasd/log");
        let names = listed(node);
        assert!(names.len() >= 20);
        for name in &names {
            assert!(
                fs::read(log.join(name)).unwrap() == fs::read(node.state_dir.join("log").join(name)).unwrap()
            );
            let out = nasd_tests::node::nasd(&["log", "verify", log.join(name).to_str().unwrap()]);
            assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stdout));
        }
        let out = nasd_tests::node::nasd(&["log", "verify", log.to_str().unwrap()]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }
    assert_eq!(listed(&pair.a).last(), listed(&pair.b).last());
}

/// Nothing but the files in `.nasd/log/` of the secondary: each listing is a piece of the one chain, and what a transaction
/// says is there already.
#[test]
fn the_log_alone_tells_what_there_is_while_it_is_pruned() {
    let setup = Setup { log: "retain_files = 100".to_owned(), ..Setup::default() };
    let pair = Pair::start_with(&setup);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::SeqCst) {
                commit(&pair.a, "f", &n.to_string());
                n += 1;
            }
        });
        let _stop = Stop(&stop);
        let log = pair.b.path(".nasd/log");
        let (mut whole, mut pruned, mut first) = (0, 0, None);
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end || pruned == 0 {
            assert!(Instant::now() < end + Duration::from_secs(20), "nothing is pruned");
            let names = listed(&pair.b);
            let numbers: Vec<u64> = names.iter().map(|name| seq_of_name(name.as_bytes()).unwrap()).collect();
            assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
            // At first it has what it was copied from, and no transaction.
            let Some(&oldest) = numbers.first() else { continue };
            pruned = oldest - *first.get_or_insert(oldest);
            let mut before: Option<Txn> = None;
            for name in names {
                let Ok(bytes) = fs::read(log.join(&name)) else {
                    // It has been pruned meanwhile, and so have all before it.
                    before = None;
                    continue;
                };
                let txn = Txn::from_file(bytes).unwrap();
                assert_eq!(txn.header.file_name(), name);
                if let Some(before) = before.replace(txn) {
                    let txn = before.header.position;
                    assert!(before.header.continues || shows(&pair.b, txn.seq), "{name} is there too early");
                }
                whole += 1;
            }
        }
        println!("{whole} transactions read while {pruned} were pruned");
    });
}

fn shows(node: &Node, seq: u64) -> bool {
    let status = fs::read_to_string(node.path(".nasd/status")).unwrap();
    serde_json::from_str::<Value>(&status).unwrap()["applied_seq"].as_u64().unwrap() >= seq
}

/// Ends the other thread, also when this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A program that waits in a read.
fn reader(path: &Path) -> Child {
    let child = Command::new("cat").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("it waits in a read", || {
        let wchan = fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap_or_default();
        wchan.contains("request_wait_answer").then_some(())
    });
    child
}

#[test]
fn whoever_waits_is_let_go_when_the_node_stops_or_dies() {
    let mut pair = Pair::start();
    let mut waiting: Vec<Child> = (0..5).map(|_| reader(&pair.b.path(".nasd/notify"))).collect();
    let began = Instant::now();
    pair.b.stop();
    println!("stopped in {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5));
    for child in &mut waiting {
        let ended = eventually("it ends", || child.try_wait().unwrap());
        assert!(ended.success(), "it read to the end");
    }
    let mut waiting = reader(&pair.a.path(".nasd/notify"));
    pair.a.kill();
    let ended = eventually("it ends", || waiting.try_wait().unwrap());
    assert!(!ended.success(), "an error, since there may have been more");
}
