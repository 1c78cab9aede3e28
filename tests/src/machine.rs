//! A machine of our own, on which commands are typed as a document has them: a host of a [`Lab`] whose `/etc/nasd`,
//! `/var/lib/nasd`, `/srv` and `/root` are its own, and on which `nasd` is installed.

use crate::lab::Lab;
use crate::node::binary;
use std::fmt::Write;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// What every machine has for itself.
const OWN: [&str; 5] = ["/etc/nasd", "/var/lib/nasd", "/srv", "/root", "/run/nasd"];

/// A stand-in for systemd, which a test can't boot: starts and stops `nasd@NAME` as its unit does.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -eu
verb=$1 name=${2#nasd@} && name=${name%.service}
pid=/run/nasd/$name.pid
down() { [ ! -e $pid ] || { kill "$(cat $pid)" && tail --pid="$(cat $pid)" -f /dev/null; rm $pid; }; }
up() {
  setsid nasd run --config /etc/nasd/$name.toml </dev/null >>/run/nasd/$name.log 2>&1 &
  echo $! >$pid
  until nasd status --config /etc/nasd/$name.toml >/dev/null 2>&1; do
    kill -0 "$(cat $pid)" || { rm $pid; tail -3 /run/nasd/$name.log >&2; exit 1; }
    sleep 0.05
  done
}
case $verb in start) up ;; stop) down ;; restart) down; up ;; *) echo "systemctl: $verb?" >&2; exit 1 ;; esac
"#;

/// A stand-in for installing a newer package, which restarts the node; the package itself has a test of its own.
const APT_GET: &str =
    "#!/bin/bash\nset -eu\n[ \"$1 $2\" = 'install ./nasd.deb' ]\nexec systemctl restart nasd@nasd\n";

/// A machine. What runs on it ends with it.
#[derive(Debug)]
pub struct Machine {
    /// Its name in the lab.
    pub name: String,
    /// Holds what is its own: `etc-nasd` and so on.
    pub dir: PathBuf,
    /// Lives as long as its mounts.
    holder: Child,
}

impl Machine {
    /// A machine at this host of the lab, with its files below `dir`.
    pub fn new(lab: &Lab, name: &str, dir: &Path) -> Machine {
        let dir = dir.join(name);
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::os::unix::fs::symlink(binary(), bin.join("nasd")).unwrap();
        for (program, text) in [("systemctl", SYSTEMCTL), ("apt-get", APT_GET)] {
            std::fs::write(bin.join(program), text).unwrap();
            std::fs::set_permissions(bin.join(program), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut script = String::from("set -eu\n");
        for path in OWN {
            let own = dir.join(own_name(path));
            std::fs::create_dir_all(&own).unwrap();
            // The mount point itself is made on the real machine, where nothing else is changed.
            writeln!(script, "mkdir -p {path}; mount --bind {} {path}", own.display()).unwrap();
        }
        script += "echo ready; exec sleep infinity\n";
        let mut holder = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", lab.netns(name)))
            .args(["--", "unshare", "--mount", "--propagation", "private", "--", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Machine { name: name.to_owned(), dir, holder }
    }

    /// What is this machine's own at `path`, as the test sees it. What is mounted there on the machine is not in it.
    pub fn own(&self, path: &str) -> PathBuf {
        self.dir.join(own_name(path))
    }

    fn bash(&self, script: &str) -> Command {
        let path =
            format!("{}:{}", self.dir.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.holder.id()))
            .args(["--mount", "--net", "--", "bash", "-euo", "pipefail", "-c", script])
            .env("PATH", path)
            .env("NO_COLOR", "1")
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Runs what somebody types there.
    pub fn try_run(&self, script: &str) -> Output {
        self.bash(script).output().unwrap()
    }

    /// The same, which has to succeed. Gives what it prints.
    pub fn run(&self, script: &str) -> String {
        let out = self.try_run(script);
        let said = String::from_utf8_lossy(&out.stderr);
        let printed = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "on {}:\n{script}\n{printed}{said}{}", self.name, self.log());
        printed
    }

    /// Starts what runs on, in a process group of its own; ended with the machine at the latest.
    pub fn spawn(&self, script: &str) -> Child {
        self.bash(script).process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What its nodes have logged.
    pub fn log(&self) -> String {
        let logs = std::fs::read_dir(self.own("/run/nasd")).into_iter().flatten().flatten();
        logs.filter(|f| f.path().extension().is_some_and(|e| e == "log"))
            .map(|f| std::fs::read_to_string(f.path()).unwrap_or_default())
            .collect()
    }

    /// Its power is cut: nothing that runs there ends in order, what is on its disks stays.
    pub fn kill(&self) {
        let mine = namespace(self.holder.id());
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse::<u32>().ok()) else { continue };
            if pid != self.holder.id() && mine.is_some() && namespace(pid) == mine {
                let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        self.try_run("rm -f /run/nasd/*.pid; umount --lazy /srv/nas 2>/dev/null || true");
    }
}

fn own_name(path: &str) -> String {
    path.trim_start_matches('/').replace('/', "-")
}

/// Which mount namespace a process is in.
fn namespace(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        // Its mounts go with the last process in its namespace.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
