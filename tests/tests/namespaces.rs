//! Readers of `.nasd/notify` in another PID namespace than the node, as containers are.
#![allow(clippy::unwrap_used)]

use nasd_tests::node::binary;
use nasd_tests::{Node, Pair, eventually, eventually_within, put};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than a node lets a reader wait whom it can't see.
const LONG: Duration = Duration::from_secs(6);

/// A process that is gone with this value, and all of its namespace with it.
struct Running(Child);

impl Running {
    fn start(program: &Path, args: &[&str]) -> Running {
        Running(Command::new(program).args(args).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn output(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.0.stdout.take().unwrap())
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process that `unshare` started, as it is called here.
fn inner(unshare: &Running) -> i32 {
    let file = format!("/proc/{0}/task/{0}/children", unshare.0.id());
    eventually("there is a process in the namespace", || {
        std::fs::read_to_string(&file).ok()?.trim().parse().ok()
    })
}

/// Whether a process sits in a read that the node has not answered.
fn waits(pid: i32) -> bool {
    let text = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    text("wchan").contains("request_wait_answer") || text("syscall").starts_with("0 ")
}

fn terminate(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

fn told(lines: &mut impl BufRead, path: &str) {
    let mut line = String::new();
    while !line.contains(&format!("\"{path}\"")) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ends before it is told of {path}");
    }
}

fn notify(node: &Node) -> String {
    node.path(".nasd/notify").to_str().unwrap().to_owned()
}

/// A program that reads once, and does not read again when that fails.
const ONE_READ: &str = "sysread(STDIN, my $line, 65536) or die \"read: $!\\n\"; print $line";

#[test]
fn a_reader_in_a_namespace_below_blocks_and_can_be_interrupted() {
    let pair = Pair::start();
    let below = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut readers: Vec<_> = [&pair.a, &pair.b]
        .into_iter()
        .map(|node| {
            let read = format!("exec perl -e '{ONE_READ}' < {}", notify(node));
            let mut once = Running::start(Path::new("unshare"), &[&below[..], &["sh", "-c", &read]].concat());
            let reader = inner(&once);
            eventually("it reads", || waits(reader).then_some(()));
            (once.output(), once)
        })
        .collect();
    let mut killed = Running::start(Path::new("unshare"), &[&below[..], &["cat", &notify(&pair.b)]].concat());
    let cat = inner(&killed);
    eventually("it reads", || waits(cat).then_some(()));
    let start = Instant::now();
    // The first process of a namespace ends by no other signal.
    let pid = rustix::process::Pid::from_raw(cat).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("it is let go", || (!killed.runs()).then_some(()));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let quiet = Instant::now();
    while quiet.elapsed() < LONG {
        assert!(readers.iter_mut().all(|(_, once)| once.runs()), "a read ended with nothing to read");
        std::thread::sleep(Duration::from_millis(50));
    }
    put(pair.a.path("news"), b"x");
    for (said, _) in &mut readers {
        let mut line = String::new();
        assert!(said.read_line(&mut line).unwrap() > 0, "its one read failed");
        assert!(line.contains("\"kind\":\"data\""), "{line}");
    }
}

#[test]
fn readers_outside_of_a_nodes_namespace_go_on_and_can_be_ended() {
    let mut pair = Pair::new(&nasd_tests::Setup::default());
    let config = pair.a.config.to_str().unwrap().to_owned();
    let node = binary();
    let args = ["--pid", "--fork", "--kill-child", node.to_str().unwrap(), "run", "--config", &config];
    let mut a = Running::start(Path::new("unshare"), &args);
    pair.b.start();
    pair.a.wait_for("primary", "in-sync");
    let file = notify(&pair.a);
    // What most programs do: they read again.
    let mut cat = Running::start(Path::new("cat"), &[&file]);
    let mut python = Running::start(
        Path::new("python3"),
        &["-uc", "import sys\nfor l in open(sys.argv[1]): print(l, end='')", &file],
    );
    let mut outputs = [cat.output(), python.output()];
    for reader in [&cat, &python] {
        eventually("it reads", || waits(reader.0.id() as i32).then_some(()));
    }
    let quiet = Instant::now();
    while quiet.elapsed() < LONG {
        assert!(cat.runs() && python.runs(), "a read ended with nothing to read");
        std::thread::sleep(Duration::from_millis(50));
    }
    put(pair.a.path("news"), b"x");
    for output in &mut outputs {
        told(output, "news");
    }
    terminate(cat.0.id() as i32);
    let status = eventually_within(LONG, "a signal ends it", || cat.0.try_wait().unwrap());
    assert_eq!(status.signal(), Some(15), "{status}");
    pair.a.cli(&["stop"]);
    eventually("the node ends", || (!a.runs()).then_some(()));
    eventually("what is open ends", || (!python.runs()).then_some(()));
}
