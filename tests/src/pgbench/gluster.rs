//! A GlusterFS volume with two replicas, all of it in a network namespace of its own: it takes fixed ports, and no
//! loopback address for a brick.

use super::meter;
use crate::eventually_within;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ADDRESS: &str = "10.99.0.1";
const DATABASES: &str = "/var/lib/glusterd/groups/db-workload";

/// The volume, mounted. Whoever started it also takes it down.
#[derive(Debug)]
pub struct Gluster {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its processes: the mount, and a brick each.
    pub client: u32,
    /// The brick that would be on the primary's machine.
    pub near: u32,
    /// The one that would be on the other.
    pub far: u32,
    daemon: Child,
}

fn said(mut command: Command) -> Result<(), String> {
    let out = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).trim().to_owned();
    if out.status.success() { Ok(()) } else { Err(format!("{command:?}: {said}")) }
}

/// A process id in a file that will be there.
fn pid_in(path: &Path) -> u32 {
    eventually_within(Duration::from_secs(20), &format!("{} is written", path.display()), || {
        fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}

impl Gluster {
    /// Starts one below `dir`; an error says why this machine can't.
    pub fn start(dir: &Path) -> Result<Gluster, String> {
        if !Path::new("/usr/sbin/glusterd").exists() {
            return Err("glusterd is missing: apt-get install glusterfs-server".to_owned());
        }
        let sub = |name: &str| dir.join(name);
        for name in ["work", "run", "brick-1", "brick-2", "mnt"] {
            fs::create_dir_all(sub(name)).unwrap();
        }
        let options = [
            ("working-directory", sub("work").display().to_string()),
            ("run-directory", sub("run").display().to_string()),
            ("glusterd-sockfile", sub("glusterd.sock").display().to_string()),
            ("transport-type", "socket".to_owned()),
            ("transport.address-family", "inet".to_owned()),
        ]
        .map(|(k, v)| format!("    option {k} {v}\n"))
        .concat();
        let volfile = sub("glusterd.vol");
        fs::write(&volfile, format!("volume management\n    type mgmt/glusterd\n{options}end-volume\n"))
            .unwrap();
        let network = format!("ip link set lo up; ip address add {ADDRESS}/32 dev lo");
        let daemon = Command::new("unshare")
            .args(["--net", "sh", "-c"])
            .arg(format!("{network}; exec glusterd -N -f \"$0\" -l \"$1\""))
            .args([&volfile, &sub("glusterd.log")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("unshare: {e}"))?;
        let inside = |program: &str| {
            let mut c = Command::new("nsenter");
            c.arg(format!("--net=/proc/{}/ns/net", daemon.id())).arg(program);
            c
        };
        let gluster = |words: &str| {
            let mut c = inside("gluster");
            c.arg("--mode=script").arg(format!("--glusterd-sock={}", sub("glusterd.sock").display()));
            c.args(words.split_whitespace());
            said(c)
        };
        let ready = || gluster("volume list").ok();
        eventually_within(Duration::from_secs(20), "glusterd answers", ready);
        let bricks = ["brick-1", "brick-2"].map(|b| format!("{ADDRESS}:{}", sub(b).display()));
        gluster(&format!("volume create wal replica 2 {} force", bricks.join(" ")))?;
        // What its makers ship for databases. With the defaults PostgreSQL stopped once, because it could not create a
        // file: "No such file or directory".
        for option in fs::read_to_string(DATABASES).map_err(|e| format!("{DATABASES}: {e}"))?.lines() {
            gluster(&format!("volume set wal {}", option.replace('=', " ")))?;
        }
        gluster("volume start wal")?;
        let mount = sub("mnt");
        let mut client = inside("glusterfs");
        client.args(["-s", ADDRESS, "--volfile-id=wal"]);
        client.arg(format!("--log-file={}", sub("mount.log").display()));
        client.arg(format!("--pid-file={}", sub("mount.pid").display())).arg(&mount);
        said(client)?;
        let brick = |name: &str| {
            let flat = sub(name).display().to_string().replace('/', "-");
            pid_in(&sub("run").join(format!("vols/wal/{ADDRESS}{flat}.pid")))
        };
        Ok(Gluster {
            client: pid_in(&sub("mount.pid")),
            near: brick("brick-1"),
            far: brick("brick-2"),
            mount,
            daemon,
        })
    }

    /// What the mount has sent to the far brick.
    pub fn sent(&self) -> u64 {
        let ports = meter::listens(self.far);
        let all = meter::sockets(Some(self.daemon.id()));
        let to_far = all.iter().filter(|s| s.is_of(self.client) && ports.contains(&s.peer));
        to_far.map(|s| s.acked).sum()
    }
}

impl Drop for Gluster {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.mount, rustix::mount::UnmountFlags::DETACH);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
