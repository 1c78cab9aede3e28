//! Whoever is told of a transaction can read it: never before, whatever the transaction changed and however he was told.
#![allow(clippy::unwrap_used)]

use nasd_tests::marks::{self, CHANGES, Marks};
use nasd_tests::node::binary;
use nasd_tests::{Node, Pair, Setup, eventually_within, put, seq};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Looks that each subscriber takes at least.
const LOOKS: usize = 400;
/// The same of a program that is run each time.
const LOOKS_OF_PROGRAM: usize = 20;

/// What a subscriber saw: told of this transaction, he read these.
type Seen = Vec<(u64, Marks)>;

/// A subscriber on a thread of its own: each time that there is something to read he looks at the mount, at once.
struct Subscriber {
    name: &'static str,
    looks: Arc<AtomicUsize>,
    thread: JoinHandle<Seen>,
}

impl Subscriber {
    /// `stream` holds lines with JSON; it ends once it was told of `last`.
    fn start(
        name: &'static str,
        mut stream: impl Read + Send + 'static,
        on: &Node,
        last: &Arc<AtomicU64>,
    ) -> Subscriber {
        let looks = Arc::new(AtomicUsize::new(0));
        let (mount, last, count) = (on.mount.clone(), Arc::clone(last), Arc::clone(&looks));
        let thread = std::thread::spawn(move || {
            let appended = File::open(mount.join("appended")).unwrap();
            let (mut seen, mut rest, mut piece) = (Seen::new(), Vec::new(), vec![0; 1 << 16]);
            let mut told = 0;
            while told < last.load(Ordering::SeqCst) {
                let n = stream.read(&mut piece).unwrap();
                assert!(n > 0, "{name}: the stream ends");
                // Before anything else: the last of what he was told has to be there, so all of it.
                let marks = marks::look(&mount, &appended);
                rest.extend_from_slice(&piece[..n]);
                let whole = rest.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
                let before = told;
                for line in rest.drain(..whole).collect::<Vec<u8>>().split(|&b| b == b'\n') {
                    if let Some(event) = data(line) {
                        let seq = seq(&event);
                        assert!(seq > told, "{name}: in order: {event} after {told}");
                        told = seq;
                    }
                }
                if told > before {
                    seen.push((told, marks));
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
            seen
        });
        Subscriber { name, looks, thread }
    }
}

/// The data event of a line, as JSON or as one line of a stream of server-sent events.
fn data(line: &[u8]) -> Option<Value> {
    let line = std::str::from_utf8(line).unwrap();
    let line = line.strip_prefix("data: ").unwrap_or(line);
    let event: Value = serde_json::from_str(line).ok().filter(Value::is_object)?;
    assert_ne!(event["kind"], "gap", "{event}");
    (event["kind"] == "data").then_some(event)
}

/// A process that is killed when this goes.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn server_sent(node: &Node) -> UnixStream {
    let mut socket = UnixStream::connect(node.mount.with_file_name("nasd.sock")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n").unwrap();
    socket
}

/// Says what it was told of and what it reads.
fn program(path: &Path) {
    let text = "#!/bin/sh\ncd ${0%/*}/mnt || exit 1\n\
        echo $NASD_KIND $NASD_SEQ $(($(stat -c %s appended) / 16)) $(cat overwritten) $(cat renamed) \
        $(ls created | sort -n | tail -1) $(stat -c %Y touched) >> ../seen\n";
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    // Were it open for writing here, another test's fork could keep it so.
    assert!(Command::new("mv").args([&new, path]).status().unwrap().success());
}

fn seen_by_program(base: &Path) -> Seen {
    let text = fs::read_to_string(base.join("seen")).unwrap_or_default();
    let line = |line: &str| {
        let words: Vec<&str> = line.strip_prefix("data ")?.split(' ').collect();
        let numbers: Vec<u64> = words.iter().map(|word| word.parse().unwrap()).collect();
        Some((numbers[0], numbers[1..].try_into().unwrap()))
    };
    text.split_inclusive('\n').filter_map(|l| line(l.strip_suffix('\n')?)).collect()
}

#[test]
fn what_a_subscriber_is_told_of_he_reads_at_once() {
    let rule = "[[notify]]\npaths = [\"**\"]\nexec = \"{base}/look\"\n".to_owned();
    let setup = Setup { more: rule, log: "retain_files = 1000000".to_owned(), ..Setup::default() };
    let mut pair = Pair::new(&setup);
    let base = pair.b.mount.parent().unwrap().to_owned();
    for node in [&pair.a, &pair.b] {
        program(&node.mount.with_file_name("look"));
    }
    pair.b.start();
    pair.a.start();
    pair.a.wait_for("primary", "in-sync");
    pair.b.wait_for("secondary", "in-sync");
    marks::make(&pair.a.mount);
    pair.sync_and_settle();
    fs::remove_file(base.join("seen")).ok();

    let last = Arc::new(AtomicU64::new(u64::MAX));
    let mut follow = Command::new(binary());
    follow.args(["events", "--follow", "--json", "--config"]).arg(&pair.b.config).stdout(Stdio::piped());
    let mut follow = Killed(follow.spawn().unwrap());
    let subscribers = [
        (
            "a read of .nasd/notify",
            Box::new(File::open(pair.b.path(".nasd/notify")).unwrap()) as Box<dyn Read + Send>,
        ),
        ("nasd events --follow", Box::new(follow.0.stdout.take().unwrap())),
        ("server-sent events", Box::new(server_sent(&pair.b))),
    ]
    .map(|(name, stream)| Subscriber::start(name, stream, &pair.b, &last));

    // All ways of changing something at the same time, as fast as they can.
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for change in CHANGES {
            let (mount, stop) = (&pair.a.mount, &stop);
            s.spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::SeqCst) {
                    n += 1;
                    change(mount, n);
                }
            });
        }
        let enough = || {
            let looks =
                subscribers.iter().all(|s| s.looks.load(Ordering::SeqCst) >= LOOKS || s.thread.is_finished());
            looks && seen_by_program(&base).len() >= LOOKS_OF_PROGRAM
        };
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while !enough() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::SeqCst);
    });
    last.store(seq(&pair.a.status()), Ordering::SeqCst);
    // They are told once more, and end.
    put(pair.a.path("end"), b"x");
    pair.sync_and_settle();
    let told = seq(&pair.b.status());
    eventually_within(Duration::from_secs(30), "the program is told of all", || {
        seen_by_program(&base).last().is_some_and(|(seq, _)| *seq == told).then_some(())
    });
    let by_program = seen_by_program(&base);
    let mut all: Vec<(&str, Seen)> = subscribers.map(|s| (s.name, s.thread.join().unwrap())).into();
    all.push(("a program", by_program));

    let logged = marks::logged(&pair.b.state_dir.join("log"));
    let shown = marks::look(&pair.b.mount, &File::open(pair.b.path("appended")).unwrap());
    assert_eq!(logged.values().next_back(), Some(&shown), "the transactions are what is shown");
    println!("{} transactions; marks {shown:?}", logged.len());
    for (name, seen) in all {
        println!("{name}: looked {} times", seen.len());
        assert!(seen.len() >= LOOKS_OF_PROGRAM, "{name}");
        for (seq, marks) in seen {
            let there = logged[&seq];
            let read = there.iter().zip(&marks).all(|(there, read)| read >= there);
            assert!(read, "{name}: told of {seq}, which holds {there:?}, when {marks:?} was read");
        }
    }
}
