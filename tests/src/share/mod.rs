//! A node's mount as a share: the servers of docs/share with their configurations, and clients that are told what to do.

mod client;

pub use client::{Client, Refusal};

use crate::Node;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/share");
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/share");
/// Who logs in by SMB, a user of every Debian.
const USER: &str = "daemon";
/// Of everybody who logs in by SMB.
pub const PASSWORD: &str = "secret";

/// Whether Samba, Ganesha and what they need are here; if not, a line says so.
pub fn available(test: &str) -> bool {
    const PROGRAMS: [&str; 5] =
        ["/usr/sbin/smbd", "/usr/bin/ganesha.nfsd", "/sbin/rpcbind", "/usr/bin/nfs-cp", "/usr/bin/smbclient"];
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|p| !Path::new(p).exists()).collect();
    if !missing.is_empty() {
        println!(
            "{test}: skipped: {missing:?} missing (apt-get install samba smbclient nfs-ganesha-vfs libnfs-utils rpcbind)"
        );
    }
    missing.is_empty()
}

/// One of the scripts beside this file.
fn script(name: &str) -> PathBuf {
    Path::new(SCRIPTS).join(name)
}

/// Samba and Ganesha on a node's host. They end with this value.
#[derive(Debug)]
pub struct Servers {
    dir: PathBuf,
    child: Child,
}

impl Servers {
    /// Starts them, with their files below `dir`; does not wait for them. The node is mounted.
    pub fn start(node: &Node, dir: &Path) -> Servers {
        Servers::start_for(USER, node, dir)
    }

    /// The same, with this user of the machine for SMB, whose password is [`PASSWORD`].
    pub fn start_for(user: &str, node: &Node, dir: &Path) -> Servers {
        fs::create_dir_all(dir.join("private")).unwrap();
        let (dir_arg, mount) = (dir.to_str().unwrap(), node.mount.to_str().unwrap());
        let documented = |name: &str| {
            let text = fs::read_to_string(Path::new(DOCS).join(name)).unwrap();
            assert!(text.contains("/srv/nas"), "{name} exports another mount point");
            text.replace("/srv/nas", mount)
        };
        fs::write(dir.join("ganesha.conf"), documented("ganesha.conf")).unwrap();
        let own: String = ["private", "lock", "state", "cache"]
            .map(|d| format!("{d} {} = {dir_arg}/{d}\n", if d == "private" { "dir" } else { "directory" }))
            .concat();
        let own = format!("[global]\n{own}pid directory = {dir_arg}\nncalrpc dir = {dir_arg}/ncalrpc\n");
        let smb = documented("smb.conf").replace("[global]\n", &own).replace("@nas", user);
        fs::write(dir.join("smb.conf"), smb).unwrap();
        let add =
            format!("printf '{PASSWORD}\\n{PASSWORD}\\n' | smbpasswd -c {dir_arg}/smb.conf -a -s {user}");
        assert!(Command::new("sh").args(["-c", &add]).stdout(Stdio::null()).status().unwrap().success());
        assert!(Command::new("mkfifo").arg(dir.join("control")).status().unwrap().success());
        let log = fs::File::create(dir.join("out")).unwrap();
        let netns = node.netns.as_ref().expect("a host of its own");
        let child = crate::lab::enter(netns, Path::new("unshare"))
            .args(["--pid", "--fork", "--kill-child"])
            .arg(script("servers.sh"))
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Servers { dir: dir.to_owned(), child }
    }

    /// Starts them anew, as is documented for when nasd was.
    pub fn restart(&self) {
        fs::write(self.dir.join("control"), "restart\n").unwrap();
    }

    /// A directory with a `systemctl` for the documented programs: whatever it is asked to do, the servers start anew.
    pub fn systemctl(dir: &Path) -> PathBuf {
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).unwrap();
        // Servers that do not run yet can't begin anew.
        let text = format!(
            "#!/bin/sh\ncd {}\n[ -p control ] || exit 0\necho \"$@\" | tee -a asked >control\n",
            dir.display()
        );
        fs::write(bin.join("systemctl"), text).unwrap();
        fs::set_permissions(bin.join("systemctl"), PermissionsExt::from_mode(0o755)).unwrap();
        bin
    }

    /// What [`Servers::systemctl`] was asked to do.
    pub fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.dir.join("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }

    /// A client by NFS on a host of this namespace.
    pub fn nfs(netns: &str, host: &str, node: &Node) -> Client {
        Client::start(netns, Path::new("/usr/bin/python3"), &["nfs", host, node.mount.to_str().unwrap()])
    }

    /// A client by SMB on a host of this namespace; `python` has smbprotocol.
    pub fn smb(netns: &str, host: &str, python: &Path) -> Client {
        Client::start(netns, python, &["smb", host, "nas", USER, PASSWORD])
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // Nobody is to wait for them here, and it can only be gone.
        let _ = fs::remove_file(self.dir.join("control"));
        // All of them go with the first process of their namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for log in ["out", "ganesha.log"] {
                let text = fs::read_to_string(self.dir.join(log)).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(20).collect();
                println!("---- {}/{log}, last first\n{}", self.dir.display(), tail.join("\n"));
            }
        }
    }
}

/// The handle of a file, as a server gets it from the kernel.
pub fn handle(path: &Path) -> String {
    let out = Command::new("python3").arg(script("handle.py")).arg("take").arg(path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
}

/// What the file of a handle holds, on any mount of its volume.
pub fn read_by_handle(mount: &Path, handle: &str) -> Vec<u8> {
    let mut command = Command::new("python3");
    let out = command.arg(script("handle.py")).arg("read").arg(mount).arg(handle).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}
