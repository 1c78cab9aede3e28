//! How long after a commit on the primary somebody on the secondary hears of it, for each way of being told.
#![allow(clippy::unwrap_used)]

use nasd_tests::agent::Agent;
use nasd_tests::events::{Stream, Webhook};
use nasd_tests::{Pair, Setup, eventually, http};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Commits that are not counted, and commits that are.
const WARM_UP: usize = 50;

/// When somebody heard of something.
type Heard = Receiver<Instant>;

/// A way: its name, the configuration that it needs, and who listens.
struct Row(&'static str, fn() -> String, fn(&mut Pair) -> Heard);

/// Another way is another row.
const ROWS: &[Row] = &[
    Row("signal", signal_rule, signal),
    Row("blocking read of .nasd/notify", String::new, blocking_read),
    Row("signal from nasd agent", String::new, agent),
    Row("command (sh)", command_rule, command),
    Row("server-sent events", String::new, sse),
    Row("webhook", webhook_rule, webhook),
];

fn main() {
    let commits = std::env::var("COMMITS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    println!(
        "{commits} commits of 8 KiB for each way; microseconds until the subscriber on the secondary is told"
    );
    println!("{:<32} {:>21} {:>21}", "", "from fsync's return", "from fsync's call");
    println!("{:<32} {:>10} {:>10} {:>10} {:>10}", "way", "p50", "p99", "p50", "p99");
    for Row(name, rule, listen) in ROWS {
        let mut pair = Pair::start_with(&Setup { more: rule(), ..Setup::default() });
        let heard = listen(&mut pair);
        let (returned, called) = measure(&pair, &heard, commits);
        drop(AGENT.take());
        let [a, b] = percentiles(returned);
        let [c, d] = percentiles(called);
        println!("{name:<32} {a:>10.0} {b:>10.0} {c:>10.0} {d:>10.0}");
    }
}

/// One commit at a time, and the next once it was heard of.
fn measure(pair: &Pair, heard: &Heard, commits: usize) -> (Vec<Duration>, Vec<Duration>) {
    let file = File::create(pair.a.path("log")).unwrap();
    file.sync_all().unwrap();
    pair.settle();
    let (mut returned, mut called) = (Vec::new(), Vec::new());
    for n in 0..WARM_UP + commits {
        file.write_all_at(&nasd_tests::writer::noise(n as u64, 8192), n as u64 * 8192).unwrap();
        while heard.try_recv().is_ok() {}
        let call = Instant::now();
        file.sync_data().unwrap();
        let end = Instant::now();
        let at = heard.recv_timeout(Duration::from_secs(10)).expect("it is told");
        if n >= WARM_UP {
            // Who is told while the answer to the fsync is still under way is told at once.
            returned.push(at.saturating_duration_since(end));
            called.push(at.saturating_duration_since(call));
        }
    }
    (returned, called)
}

fn percentiles(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort();
    [50, 99].map(|p| times[times.len() * p / 100].as_secs_f64() * 1e6)
}

/// Runs `each` on a thread, again and again; it returns when it has heard of something, with no when there will be no more.
fn listener(mut each: impl FnMut() -> bool + Send + 'static) -> Heard {
    let (tx, rx): (Sender<Instant>, _) = channel();
    std::thread::spawn(move || while each() && tx.send(Instant::now()).is_ok() {});
    rx
}

const SIGNAL: &str = "[[notify]]\npaths = [\"**\"]\nsignal = \"USR1\"\npid_file = \"{base}/pid\"\n";

fn signal_rule() -> String {
    SIGNAL.to_owned()
}

fn signal(pair: &mut Pair) -> Heard {
    signals(pair.b.mount.parent().unwrap())
}

/// This process's signals, once its number is in `dir`.
fn signals(dir: &Path) -> Heard {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kind = tokio::signal::unix::SignalKind::user_defined1();
    let mut signals = runtime.block_on(async { tokio::signal::unix::signal(kind) }).unwrap();
    // Only now: who does not handle it ends by it.
    std::fs::write(dir.join("pid"), std::process::id().to_string()).unwrap();
    listener(move || runtime.block_on(signals.recv()).is_some())
}

thread_local! {
    static AGENT: std::cell::RefCell<Option<Agent>> = const { std::cell::RefCell::new(None) };
}

/// An agent over TLS, and the signal that it sends.
fn agent(pair: &mut Pair) -> Heard {
    pair.b.stop();
    let address = http::open(&pair.b);
    pair.b.start();
    pair.a.wait_for("primary", "in-sync");
    pair.b.wait_for("secondary", "in-sync");
    let dir = pair.dir.path();
    let heard = signals(dir);
    let rule = SIGNAL.replace("{base}", dir.to_str().unwrap());
    let mut agent = Agent::new(dir, &dir.join("pki"), &[address], &rule);
    agent.start();
    eventually("the agent follows", || agent.log_text().contains("follows ").then_some(()));
    AGENT.set(Some(agent));
    heard
}

fn blocking_read(pair: &mut Pair) -> Heard {
    let mut file = File::open(pair.b.path(".nasd/notify")).unwrap();
    let mut buf = vec![0; 64 << 10];
    listener(move || file.read(&mut buf).is_ok_and(|n| n > 0))
}

fn command_rule() -> String {
    "[[notify]]\npaths = [\"**\"]\nexec = \"{base}/told\"\n".to_owned()
}

fn command(pair: &mut Pair) -> Heard {
    let fifo = pair.dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut pipe = File::options().read(true).write(true).open(&fifo).unwrap();
    let path = pair.b.mount.with_file_name("told");
    std::fs::write(&path, format!("#!/bin/sh\necho > {}\n", fifo.display())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    listener(move || pipe.read_exact(&mut [0]).is_ok())
}

fn sse(pair: &mut Pair) -> Heard {
    let mut stream = Stream::open(&pair.b.mount.with_file_name("nasd.sock"), "path=**", None);
    listener(move || stream.try_event().is_some())
}

thread_local! {
    static HOOK: std::cell::RefCell<Option<Webhook>> = const { std::cell::RefCell::new(None) };
}

fn webhook_rule() -> String {
    let hook = Webhook::start(|_| 200);
    let rule = format!("[[notify]]\npaths = [\"**\"]\nwebhook = \"{}\"\n", hook.url);
    HOOK.set(Some(hook));
    rule
}

fn webhook(_: &mut Pair) -> Heard {
    let hook = HOOK.take().unwrap();
    listener(move || hook.wait())
}
