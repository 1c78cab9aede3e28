//! `nasd demo` holds, and leaves nothing behind, however it ends.
#![allow(clippy::unwrap_used)]

use nasd_tests::{eventually, node, postgres};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// What of a demo is still there: processes, mounts, files below its `TMPDIR`.
fn left_behind(tmp: &Path) -> Vec<String> {
    let text = tmp.to_str().unwrap();
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // A process of PostgreSQL's is known by where it works.
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if String::from_utf8_lossy(&cmdline).contains(text) || cwd.starts_with(tmp) {
            left.push(format!("process {}", entry.file_name().display()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    left.extend(mounts.lines().filter(|l| l.contains(text)).map(str::to_owned));
    left.extend(std::fs::read_dir(tmp).unwrap().map(|e| e.unwrap().path().display().to_string()));
    left
}

/// A directory for a demo's own, which the database's user can enter.
fn tmp() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let tmp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    tmp
}

fn demo(tmp: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(node::binary());
    command.arg("demo").args(args).env("TMPDIR", tmp).stdin(Stdio::null());
    command
}

/// Plays it to its end, which must be a good one, and nothing is left behind. It says all of `steps`.
fn plays(args: &[&str], steps: &[&str]) {
    let tmp = tmp();
    let out = demo(tmp.path(), args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let left = left_behind(tmp.path());
    assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
    for step in steps {
        assert!(said.contains(step), "it does not say {step:?}:\n{said}");
    }
    assert_eq!(left, Vec::<String>::new());
}

/// Interrupts it when it says `word`.
fn interrupted(args: &[&str], word: &str) {
    let tmp = tmp();
    let mut child = demo(tmp.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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

#[test]
fn all_holds_and_nothing_is_left_behind() {
    plays(
        &["--seconds", "2"],
        &[
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
        ],
    );
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    // At its start (again and again: its own thread is making files then), in the middle of the first copy, of the
    // writing, and of the second.
    let start = ["a pair on this machine"; 20];
    for word in start.into_iter().chain(["commits/s", "is promoted", "comes back"]) {
        interrupted(&["--seconds", "2"], word);
    }
}

#[test]
fn with_postgresql_all_holds_and_nothing_is_left_behind() {
    if !postgres::available("with_postgresql_all_holds_and_nothing_is_left_behind") {
        return;
    }
    plays(
        &["--postgres", "--seconds", "2"],
        &[
            "nas-b is in sync",
            "it is primary",
            "it is standby",
            "commits/s",
            "killed with SIGKILL",
            "nas-b is promoted",
            "first successful write",
            "after the failover: all ",
            "after the failover: sum(abalance) = sum(delta) = ",
            "nas-a comes back",
            "no pg_rewind, no base backup",
            "nas-a gets its role back",
            "after the switchover: all ",
            "in 6 tables, by a hash of each, no difference",
            "all held: ",
        ],
    );
}

#[test]
fn with_postgresql_interrupted_it_leaves_nothing_behind() {
    if !postgres::available("with_postgresql_interrupted_it_leaves_nothing_behind") {
        return;
    }
    // In the middle of: making the cluster, starting it, filling it, copying it, the load, going on, coming back.
    for word in
        ["is in sync", "wal_recycle", "it is primary", "pgbench -i", "commits/s", "is promoted", "comes back"]
    {
        interrupted(&["--postgres", "--seconds", "2"], word);
    }
}

/// Where nobody else has it, in a mount namespace, nothing is where PostgreSQL would be.
#[test]
fn without_postgresql_it_says_how_to_get_it() {
    let tmp = tmp();
    let hide = "! [ -d /usr/lib/postgresql ] || mount -t tmpfs none /usr/lib/postgresql; exec \"$0\" demo --postgres";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", hide]).arg(node::binary()).env("TMPDIR", tmp.path());
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("apt-get install postgresql"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(left_behind(tmp.path()), Vec::<String>::new());
}

#[test]
fn kept_it_runs_on() {
    kept(&[]);
}

#[test]
fn with_postgresql_kept_it_runs_on() {
    if postgres::available("with_postgresql_kept_it_runs_on") {
        kept(&["--postgres"]);
    }
}

fn kept(args: &[&str]) {
    let tmp = tmp();
    let out = demo(tmp.path(), &[args, &["--seconds", "1", "--keep"]].concat()).output().unwrap();
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
