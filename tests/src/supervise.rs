//! Clean up after a program that starts servers and mounts, however it ends.
//!
//! The program runs as a child; whatever it starts, daemons too, comes back to this process when its parent is gone, so
//! that all of it is found by its parent and not by its name. Mounts and files are all below one directory.

use rustix::process::{Pid, Signal, WaitOptions};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

const WORKER: &str = "NASD_BENCH_DIR";

/// Runs `work` in a child with a new directory, which any user may enter, and takes everything down when that ends or
/// this program is interrupted.
pub fn supervised(prefix: &str, work: impl FnOnce(&Path)) -> ExitCode {
    if let Some(dir) = std::env::var_os(WORKER) {
        work(Path::new(&dir));
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    // It is: by `wait_for`, together with those that it left behind.
    #[allow(clippy::zombie_processes)]
    let worker = Command::new(std::env::current_exe().unwrap())
        .env(WORKER, dir.path())
        .env("TMPDIR", dir.path())
        // Ctrl-C is for this process: it ends the others in order.
        .process_group(0)
        .spawn()
        .unwrap();
    kill_on_signal(worker.id());
    let well = wait_for(worker.id());
    end_descendants();
    unmount_below(dir.path());
    crate::lab::clear(worker.id());
    if let Err(e) = dir.close() {
        eprintln!("not all is removed: {e}");
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waits for the worker; whether it ended well. What lost its parent meanwhile is this process's to let go of when it ends:
/// the worker may be waiting for it to be gone.
fn wait_for(worker: u32) -> bool {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() as u32 == worker => {
                return status.exit_status() == Some(0);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn kill_on_signal(worker: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Registered before the thread, so that none finds the default action any more.
    let guard = runtime.enter();
    let mut signals =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(|k| signal(k).unwrap());
    drop(guard);
    std::thread::spawn(move || {
        let [a, b, c] = &mut signals;
        runtime.block_on(async {
            tokio::select! { _ = a.recv() => (), _ = b.recv() => (), _ = c.recv() => () }
        });
        eprintln!("interrupted: taking everything down");
        send(worker, Signal::KILL);
    });
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Everything whose parent, or a parent of that, is this process.
fn descendants() -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (pid, parent) in crate::pgbench::meter::processes() {
        children.entry(parent).or_default().push(pid);
    }
    let mut all = Vec::new();
    let mut next = vec![std::process::id()];
    while let Some(pid) = next.pop() {
        let of = children.remove(&pid).unwrap_or_default();
        all.extend(&of);
        next.extend(of);
    }
    all
}

/// In order first, for ten seconds: a database that is killed leaves shared memory behind.
fn end_descendants() {
    let start = Instant::now();
    let mut asked = false;
    loop {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        let left = descendants();
        if left.is_empty() {
            return;
        }
        let signal = if start.elapsed() > Duration::from_secs(10) { Signal::KILL } else { Signal::INT };
        if signal == Signal::KILL || !asked {
            for pid in left {
                send(pid, signal);
            }
            asked = true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from);
    for point in points.filter(|p| p.starts_with(dir)) {
        let _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
    }
}
