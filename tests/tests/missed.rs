//! Whatever is killed while commits go on, whoever goes on where he was is told of every transaction, in order.
#![allow(clippy::unwrap_used)]

use nasd_tests::agent::Agent;
use nasd_tests::events::Webhook;
use nasd_tests::node::binary;
use nasd_tests::writer::try_put;
use nasd_tests::{Node, Pair, Setup, eventually_within, http, seed, seq};
use nasd_volume::op::{Op, Ops};
use nasd_volume::txn::Txn;
use rand::prelude::*;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// What a subscriber was told of transactions, in that order: the number, and the paths.
type Told = Vec<(u64, BTreeSet<String>)>;

fn data(event: &Value) -> Option<(u64, BTreeSet<String>)> {
    assert_ne!(event["kind"], "gap", "{event}");
    let paths = event["paths"].as_array().into_iter().flatten();
    (event["kind"] == "data").then(|| (seq(event), paths.map(|p| p.as_str().unwrap().to_owned()).collect()))
}

/// A subscriber with no memory but the last id that it has handled, however often it is cut off.
struct Subscriber {
    told: Arc<Mutex<Told>>,
    /// What it is connected by now.
    connection: Arc<Mutex<Option<Connection>>>,
    over: Arc<AtomicBool>,
}

enum Connection {
    Socket(UnixStream),
    Program(Child),
}

impl Connection {
    fn kill(self) {
        match self {
            Connection::Socket(socket) => drop(socket.shutdown(std::net::Shutdown::Both)),
            Connection::Program(mut child) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }
}

type Connect = Box<dyn Fn(&str) -> Option<(Connection, Box<dyn BufRead>)> + Send>;

impl Subscriber {
    /// `connect` goes on behind an id, at first behind `from`; None while there is nobody.
    fn start(from: u64, connect: Connect) -> Subscriber {
        let told = Arc::new(Mutex::new(Told::new()));
        let connection = Arc::new(Mutex::new(None));
        let over = Arc::new(AtomicBool::new(false));
        let s = Subscriber { told: told.clone(), connection: connection.clone(), over: over.clone() };
        std::thread::spawn(move || {
            let mut at = from.to_string();
            while !over.load(Ordering::SeqCst) {
                let Some((held, lines)) = connect(&at) else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                *connection.lock().unwrap() = Some(held);
                for line in lines.lines().map_while(Result::ok) {
                    let line = line.strip_prefix("data: ").unwrap_or(&line);
                    // A line that was cut off with its writer is told again.
                    let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
                    if let Some(id) = event["id"].as_str() {
                        told.lock().unwrap().extend(data(&event));
                        id.clone_into(&mut at);
                    }
                }
                if let Some(held) = connection.lock().unwrap().take() {
                    held.kill();
                }
            }
        });
        s
    }

    /// A stream of server-sent events.
    fn stream(node: &Node, from: u64) -> Subscriber {
        let path = node.mount.with_file_name("nasd.sock");
        Subscriber::start(
            from,
            Box::new(move |at| {
                let mut socket = UnixStream::connect(&path).ok()?;
                write!(
                    socket,
                    "GET /v1/events HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nlast-event-id: {at}\r\n\r\n"
                )
                .ok()?;
                let lines = BufReader::new(socket.try_clone().ok()?);
                Some((Connection::Socket(socket), Box::new(lines)))
            }),
        )
    }

    /// `nasd events --follow`, a process.
    fn program(node: &Node, from: u64) -> Subscriber {
        let config = node.config.clone();
        Subscriber::start(
            from,
            Box::new(move |at| {
                let mut command = Command::new(binary());
                command.args(["events", "--follow", "--json", "--since", at, "--config"]).arg(&config);
                let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
                let lines = BufReader::new(child.stdout.take().unwrap());
                Some((Connection::Program(child), Box::new(lines)))
            }),
        )
    }

    fn kill(&self) {
        if let Some(held) = self.connection.lock().unwrap().take() {
            held.kill();
        }
    }

    fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.kill();
    }
}

/// The whole transactions in a log directory, and which files each creates in `w`.
fn logged(log: &Path) -> BTreeMap<u64, BTreeSet<String>> {
    let all = fs::read_dir(log).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    let all = all.map(|bytes| Txn::from_file(bytes).unwrap());
    let all: BTreeMap<u64, Txn> = all.map(|txn| (txn.header.position.seq, txn)).collect();
    let (mut whole, mut names) = (BTreeMap::new(), BTreeSet::new());
    for (seq, txn) in all {
        for op in Ops::new(&txn.payload().unwrap()) {
            if let Op::Create { name, .. } = op.unwrap()
                && name != b"w"
            {
                names.insert(format!("w/{}", String::from_utf8_lossy(name)));
            }
        }
        if !txn.header.continues {
            whole.insert(seq, std::mem::take(&mut names));
        }
    }
    whole
}

/// All of `wanted` was told, each behind the one before it, with its paths.
fn nothing_is_missed(name: &str, wanted: &BTreeMap<u64, BTreeSet<String>>, told: &Told) {
    let mut expected = wanted.iter().peekable();
    let mut again = 0;
    for (seq, paths) in told {
        match expected.peek() {
            Some((next, _)) if *seq == **next => drop(expected.next()),
            Some((next, _)) if seq > *next => panic!("{name}: told of {seq} before {next}"),
            _ => again += 1,
        }
        if let Some(created) = wanted.get(seq) {
            assert!(created.is_subset(paths), "{name}: of {seq} it is told {paths:?}, not {created:?}");
        }
    }
    println!("{name}: told {} times, {again} of them again", told.len());
    assert_eq!(expected.peek(), None, "{name}: never told");
}

#[test]
fn nothing_is_missed_whatever_is_killed_while_commits_go_on() {
    let mut random = StdRng::seed_from_u64(seed("missed"));
    let setup = Setup {
        replication: "peer_timeout = \"1s\"".to_owned(),
        log: "retain_files = 1000000".to_owned(),
        ..Setup::default()
    };
    let mut pair = Pair::new(&setup);
    let addresses = [&pair.a, &pair.b].map(http::open);
    pair.b.start();
    pair.a.start();
    pair.a.wait_for("primary", "in-sync");
    pair.b.wait_for("secondary", "in-sync");
    // Below the mount there is no such directory: nobody writes there while the mount is away.
    fs::create_dir(pair.a.path("w")).unwrap();
    File::open(&pair.a.mount).unwrap().sync_all().unwrap();
    pair.sync_and_settle();

    let hook = Webhook::start(|_| 200);
    let rule = format!("[[notify]]\npaths = [\"w/*\"]\nwebhook = \"{}\"\n", hook.url);
    let mut agent = Agent::new(pair.dir.path(), &pair.dir.path().join("pki"), &addresses, &rule);
    agent.start();
    eventually_within(LIMIT, "the agent follows", || agent.log_text().contains("follows ").then_some(()));
    let first = seq(&pair.a.status());
    let subscribers = [
        ("a stream of the primary", Subscriber::stream(&pair.a, first)),
        ("a program at the primary", Subscriber::program(&pair.a, first)),
        ("a stream of the secondary", Subscriber::stream(&pair.b, first)),
        ("a program at the secondary", Subscriber::program(&pair.b, first)),
    ];

    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|s| {
        // Also when this thread panics.
        let stopper = Stopper(&stop);
        for writer in 0..2 {
            let (dir, stop, written) = (pair.a.path("w"), &stop, &written);
            s.spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::SeqCst) {
                    match try_put(&dir.join(format!("{writer}-{n}")), b"x") {
                        Ok(()) => {
                            n += 1;
                            written.fetch_add(1, Ordering::SeqCst);
                        }
                        // The node is not there at the moment.
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            });
        }
        let more = |n: u64| {
            let from = written.load(Ordering::SeqCst);
            eventually_within(LIMIT, "commits go on", || {
                (written.load(Ordering::SeqCst) >= from + n).then_some(())
            });
        };
        // Each of these alone and with others, in some order; who is killed stays away for some commits, if there can be any.
        let mut kills: Vec<[bool; 4]> = vec![
            [true, false, false, false],
            [false, true, false, false],
            [false, false, true, false],
            [true, true, false, false],
            [true, false, true, true],
            [false, true, true, true],
            [true, true, true, true],
        ];
        kills.extend(kills.clone());
        kills.shuffle(&mut random);
        for [a, b, of_agent, of_subscribers] in kills {
            more(random.random_range(10..60));
            if of_subscribers {
                for (_, subscriber) in &subscribers {
                    subscriber.kill();
                }
            }
            if of_agent {
                agent.kill();
            }
            if b {
                pair.b.kill();
            }
            if a {
                pair.a.kill();
                pair.a.start();
            } else {
                more(random.random_range(1..40));
            }
            if b {
                pair.b.start();
            }
            if of_agent {
                more(random.random_range(1..40));
                agent.start();
            }
        }
        more(20);
        drop(stopper);
    });
    pair.a.wait_for("primary", "in-sync");
    pair.b.wait_for("secondary", "in-sync");
    pair.sync_and_settle();

    let wanted: BTreeMap<_, _> =
        logged(&pair.b.state_dir.join("log")).into_iter().filter(|(seq, _)| *seq > first).collect();
    let last = *wanted.keys().next_back().unwrap();
    println!("{} transactions", wanted.len());
    for (name, subscriber) in &subscribers {
        eventually_within(LIMIT, &format!("{name} is told of all"), || {
            subscriber.told.lock().unwrap().iter().any(|(seq, _)| *seq == last).then_some(())
        });
        nothing_is_missed(name, &wanted, &subscriber.told());
    }
    let wanted: BTreeMap<u64, BTreeSet<String>> =
        wanted.into_iter().filter(|(_, created)| !created.is_empty()).collect();
    let (last, mut told) = (*wanted.keys().next_back().unwrap(), Told::new());
    eventually_within(LIMIT, "the agent is told of all", || {
        told.extend(hook.events().iter().filter_map(data));
        told.iter().any(|(seq, _)| *seq == last).then_some(())
    });
    // What changes something without creating it is told as well.
    told.retain(|(seq, _)| wanted.contains_key(seq));
    nothing_is_missed("the agent", &wanted, &told);
}

/// Ends the writers.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
