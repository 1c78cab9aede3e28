//! `nasd demo` holds, and leaves nothing behind, however it ends.
#![allow(clippy::unwrap_used)]

use nasd_tests::{eventually, node};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// What of a demo is still there: processes, mounts, files below its `TMPDIR`.
fn left_behind(tmp: &Path) -> Vec<String> {
    let text = tmp.to_str().unwrap();
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&cmdline).contains(text) {
            left.push(format!("process {}", entry.file_name().display()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    left.extend(mounts.lines().filter(|l| l.contains(text)).map(str::to_owned));
    left.extend(std::fs::read_dir(tmp).unwrap().map(|e| e.unwrap().path().display().to_string()));
    left
}

fn demo(tmp: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(node::binary());
    command.arg("demo").args(args).env("TMPDIR", tmp).stdin(Stdio::null());
    command
}

#[test]
fn all_holds_and_nothing_is_left_behind() {
    let tmp = tempfile::tempdir().unwrap();
    let out = demo(tmp.path(), &["--seconds", "2"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
    for step in [
        "nas-b is in sync",
        "commits/s",
        "killed with SIGKILL",
        "nas-b is promoted",
        "after the failover: all ",
        "nas-a comes back",
        "nas-a gets its role back",
        "after the switchover: all ",
        "no difference",
        "all held: ",
    ] {
        assert!(said.contains(step), "it does not say {step:?}:\n{said}");
    }
    assert_eq!(left_behind(tmp.path()), Vec::<String>::new());
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    // At its start (again and again: its own thread is making files then), in the middle of the first copy, of the
    // writing, and of the second.
    let start = ["a pair on this machine"; 20];
    for word in start.into_iter().chain(["commits/s", "is promoted", "comes back"]) {
        let tmp = tempfile::tempdir().unwrap();
        let mut child = demo(tmp.path(), &["--seconds", "2"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|l| l.unwrap().contains(word)), "it ends before {word:?}");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let ended = eventually("it ends", || child.try_wait().unwrap());
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!(ended.code(), Some(130), "{said}");
        assert_eq!(left_behind(tmp.path()), Vec::<String>::new(), "interrupted at {word:?}: {said}");
    }
}

#[test]
fn kept_it_runs_on() {
    let tmp = tempfile::tempdir().unwrap();
    let out = demo(tmp.path(), &["--seconds", "1", "--keep"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let dir = std::fs::read_dir(tmp.path()).unwrap().next().expect("it keeps its directory").unwrap().path();
    let configs = ["nas-a", "nas-b"].map(|n| dir.join(format!("{n}.toml")).to_str().unwrap().to_owned());
    let states = configs.each_ref().map(|c| node::nasd(&["status", "--config", c]));
    // Before any assertion, so that a failure leaves nothing behind either.
    let stopped = configs.each_ref().map(|c| node::nasd(&["stop", "--config", c]));
    assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
    for (state, role) in states.iter().zip(["(primary, in-sync)", "(secondary, in-sync)"]) {
        let text = String::from_utf8_lossy(&state.stdout).into_owned();
        assert!(text.contains(role), "{text}");
    }
    assert!(stopped.iter().all(|o| o.status.success()));
    for config in &configs {
        assert!(said.contains(&format!("nasd stop --config {config}")), "it says how to end it:\n{said}");
    }
    eventually("both end", || {
        let left = left_behind(tmp.path());
        left.iter().all(|l| !l.starts_with("process")).then_some(())
    });
}
