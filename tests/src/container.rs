//! A Debian of its own, with a systemd that runs: what is installed there is gone with it.

use crate::eventually_within;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How long a start or an orderly end may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A container that has booted.
#[derive(Debug)]
pub struct Container {
    root: tempfile::TempDir,
    nspawn: Child,
    /// Its systemd, as it is seen from here.
    leader: u32,
}

impl Container {
    /// Boots one; an error says why this machine can't. `cache` keeps what was downloaded once.
    pub fn boot(cache: &Path) -> Result<Container, String> {
        let debian = debian(cache)?;
        let root = tempfile::Builder::new().prefix("machine-").tempdir_in(cache).unwrap();
        let mut copy = Command::new("cp");
        run(copy.args(["-a", "--reflink=auto"]).arg(debian.join(".")).arg(root.path()))?;
        let mut nspawn = Command::new("systemd-nspawn")
            // There need not be a systemd outside, nor a network: the loopback is enough.
            .args([
                "--quiet",
                "--register=no",
                "--keep-unit",
                "--private-network",
                "--boot",
                "--console=pipe",
            ])
            .args(["--bind=/dev/fuse", "--machine"])
            .arg(root.path().file_name().unwrap())
            .arg("--directory")
            .arg(root.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("systemd-nspawn: {e}"))?;
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        let found = eventually_within(PATIENCE, "the machine's first process", || {
            if let Some(status) = nspawn.try_wait().unwrap() {
                return Some(Err(format!("systemd-nspawn ended: {status}")));
            }
            let children = fs::read_to_string(&children).ok()?;
            // Others only prepare it.
            let is_systemd = |pid: &&str| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == "systemd")
            };
            Some(Ok(children.split_whitespace().find(is_systemd)?.parse().unwrap()))
        });
        let machine = Container { root, nspawn, leader: found? };
        eventually_within(PATIENCE, "the machine has booted", || {
            let out = machine.try_run(&["systemctl", "is-system-running"]);
            out.stdout.starts_with(b"running").then_some(())
        });
        Ok(machine)
    }

    /// Runs a program in it.
    pub fn try_run(&self, command: &[&str]) -> Output {
        let target = self.leader.to_string();
        Command::new("nsenter").args(["--all", "--target", &target, "--"]).args(command).output().unwrap()
    }

    /// Runs a program in it, which must succeed; what it printed.
    pub fn run(&self, command: &[&str]) -> String {
        let out = self.try_run(command);
        let [said, complained] = [&out.stdout, &out.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
        assert!(out.status.success(), "{command:?}: {said}{complained}\n{}", self.journal());
        said + &complained
    }

    /// A path in it, as it is now: with what is mounted there.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader))
    }

    /// What its services logged.
    pub fn journal(&self) -> String {
        String::from_utf8_lossy(&self.try_run(&["journalctl", "--no-pager", "--lines=200"]).stdout)
            .into_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- the machine\n{}", self.journal());
        }
        // Its mounts and processes are gone with its first process.
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
        if let Some(pid) = rustix::process::Pid::from_raw(self.leader as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        eventually_within(PATIENCE, "the machine's first process is gone", || {
            (!Path::new(&format!("/proc/{}", self.leader)).exists()).then_some(())
        });
        // Directories below mounts may be immutable.
        let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(self.root.path().join("srv")).output();
    }
}

/// The smallest Debian that boots, downloaded once.
fn debian(cache: &Path) -> Result<PathBuf, String> {
    let there = cache.join("debian-bookworm");
    if there.exists() {
        return Ok(there);
    }
    let draft = cache.join("debian-bookworm.draft");
    let _ = fs::remove_dir_all(&draft);
    run(Command::new("debootstrap")
        .args(["--variant=minbase", "--include=systemd,systemd-sysv,fuse3", "bookworm"])
        .arg(&draft))?;
    fs::rename(&draft, &there).unwrap();
    Ok(there)
}

fn run(command: &mut Command) -> Result<(), String> {
    let out = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    let said = [out.stdout, out.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    Err(format!("{command:?}: {}", said.lines().last().unwrap_or("no reason given")))
}
