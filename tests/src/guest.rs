//! A host of a lab with a Linux kernel of its own (user mode Linux): the clients of NFS and SMB that are part of a kernel,
//! whatever the kernel of this machine was made with.

use crate::lab::{Lab, enter};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const INIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/guest/init.sh");
const KERNEL: &str = "/usr/bin/linux.uml";

/// A running guest. It and all that runs there ends with this value.
#[derive(Debug)]
pub struct Guest {
    /// A directory that is the same one here and there.
    pub shared: PathBuf,
    child: Child,
    console: BufReader<ChildStdout>,
    scripts: u32,
}

impl Guest {
    /// Boots one in the place of this host, and with its address; `shared` is a new directory. `None`, with a line that says
    /// why, where there is no such kernel.
    pub fn boot(test: &str, lab: &Lab, host: &str, shared: &Path) -> Option<Guest> {
        const NEEDED: [&str; 4] = [KERNEL, "/sbin/modprobe", "/sbin/mount.nfs", "/sbin/mount.cifs"];
        let missing: Vec<_> = NEEDED.into_iter().filter(|p| !Path::new(p).exists()).collect();
        if !missing.is_empty() {
            println!(
                "{test}: skipped: {missing:?} missing (apt-get install user-mode-linux kmod nfs-common cifs-utils)"
            );
            return None;
        }
        std::fs::create_dir_all(shared).unwrap();
        let netns = lab.netns(host);
        // The address is the guest's: this machine's kernel must not answer for it.
        let taken = Command::new("ip").args(["-n", &netns, "address", "flush", "dev", "eth0"]).status();
        assert!(taken.unwrap().success());
        let mut child = enter(&netns, Path::new("unshare"))
            // One that hangs ends some time, and with it the test that waits for it.
            .args(["--pid", "--fork", "--kill-child", "timeout", "--foreground", "--kill-after=5", "300"])
            .args([KERNEL, "mem=768M", "quiet"])
            .args(["rootfstype=hostfs", "root=/dev/root", "rw", &format!("init={INIT}")])
            .args(["con=null", "con1=fd:0,fd:1", "vec0:transport=raw,ifname=eth0,depth=128,gro=1"])
            .arg(format!("shared={}", shared.display()))
            .arg(format!("address={}/24", lab.ip(host)))
            // Else it leaves a directory in the home of who starts it.
            .env("HOME", shared)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let console = BufReader::new(child.stdout.take().unwrap());
        let mut guest = Guest { shared: shared.to_owned(), child, console, scripts: 0 };
        assert_eq!(guest.answer(), "ready");
        Some(guest)
    }

    /// The next line that is an answer; the kernel's own lines are none.
    fn answer(&mut self) -> String {
        let mut said = String::new();
        loop {
            let mut line = Vec::new();
            let n = self.console.read_until(b'\n', &mut line).unwrap();
            assert!(n > 0, "the guest ended:\n{said}");
            let line = String::from_utf8_lossy(&line);
            if let Some(answer) = line.trim_end().strip_prefix("guest ") {
                return answer.to_owned();
            }
            said += &line;
        }
    }

    /// A copy of a file of this machine, which may be where the guest has something else; its path there.
    pub fn bring(&self, file: &Path) -> String {
        let copy = self.shared.join(file.file_name().unwrap());
        std::fs::copy(file, &copy).unwrap();
        copy.to_str().unwrap().to_owned()
    }

    /// Runs what somebody types there; what it prints, if it succeeds.
    pub fn try_run(&mut self, script: &str) -> Result<String, String> {
        self.scripts += 1;
        let name = format!("script-{}", self.scripts);
        std::fs::write(self.shared.join(&name), script).unwrap();
        writeln!(self.child.stdin.as_mut().unwrap(), "{name}").unwrap();
        let code = self.answer();
        let said = std::fs::read(self.shared.join(name + ".out")).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        if code == "0" { Ok(said) } else { Err(format!("exit code {code}: {said}")) }
    }

    /// The same, which has to succeed.
    pub fn run(&mut self, script: &str) -> String {
        self.try_run(script).unwrap_or_else(|why| panic!("in the guest:\n{script}\n{why}"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // With the first process of its namespace all of the guest ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
