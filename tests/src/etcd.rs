//! A real etcd of one member, to be killed, frozen and locked.

use crate::eventually;
use crate::node::{free_port, nasd};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// Where Debian puts it.
const BIN: &str = "/usr/bin/etcd";
/// Who may do all, once there are users.
const ROOT: &str = "root:root";

/// What is not as usual about it.
#[derive(Debug, Clone, Default)]
pub struct EtcdSetup {
    /// TLS, and only for clients with a certificate of its authority.
    pub tls: bool,
    /// There are users: `nasd` with this password, who may read and write below `/nasd/`, and `root`.
    pub password: Option<String>,
    /// How many seconds a login holds without being used; 300 if not said.
    pub token_ttl: Option<u32>,
    /// Where it listens; 127.0.0.1 if not said.
    pub ip: Option<String>,
    /// The network namespace that it runs in.
    pub netns: Option<String>,
}

/// It runs in a temporary directory on ports of its own, and is gone with this value.
#[derive(Debug)]
pub struct Etcd {
    dir: TempDir,
    setup: EtcdSetup,
    ip: String,
    ports: [u16; 2],
    /// Whether it asks for passwords by now.
    locked: bool,
    child: Option<Child>,
}

impl Etcd {
    /// One that answers.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Etcd {
        Etcd::with(EtcdSetup::default())
    }

    /// One that answers.
    pub fn with(setup: EtcdSetup) -> Etcd {
        assert!(Path::new(BIN).exists(), "{BIN} is missing: apt-get install etcd-server etcd-client");
        let ip = setup.ip.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
        let ports = [free_port(), free_port()];
        let dir = tempfile::Builder::new().prefix("nasd-etcd").tempdir().unwrap();
        let mut etcd = Etcd { dir, setup, ip, ports, locked: false, child: None };
        if etcd.setup.tls {
            certificates(&etcd.file("pki"), &etcd.ip);
        }
        etcd.start();
        if let Some(password) = etcd.setup.password.clone() {
            etcd.lock(&password);
        }
        etcd
    }

    /// Its client URL.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", if self.setup.tls { "https" } else { "http" }, self.address())
    }

    /// The same as host and port.
    pub fn address(&self) -> String {
        format!("{}:{}", self.ip, self.ports[0])
    }

    /// What a node needs to reach it.
    pub fn config(&self) -> nasd_config::Etcd {
        let pki = |name: &str| self.file("pki").join(name);
        nasd_config::Etcd {
            endpoints: vec![self.endpoint()],
            prefix: "/nasd".to_owned(),
            ca: self.setup.tls.then(|| pki("ca.pem")),
            cert: self.setup.tls.then(|| (pki("client.pem"), pki("client.key"))),
            user: self.setup.password.is_some().then(|| ("nasd".to_owned(), self.password_file())),
        }
    }

    /// Where `nasd`'s password is written, if there are users.
    pub fn password_file(&self) -> PathBuf {
        self.file("password")
    }

    /// Starts it on the data that it has; returns when it answers.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = fs::File::options().create(true).append(true).open(self.file("log")).unwrap();
        let peer = format!("http://127.0.0.1:{}", self.ports[1]);
        let mut command = self.command(BIN);
        command.arg("--data-dir").arg(self.file("data"));
        command.args(["--name", "one", "--heartbeat-interval", "20", "--election-timeout", "200"]);
        command.args(["--listen-client-urls", &self.endpoint(), "--advertise-client-urls", &self.endpoint()]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("one={peer}")]);
        if self.setup.tls {
            let pki = self.file("pki");
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(pki.join("ca.pem"));
            command.arg("--cert-file").arg(pki.join("etcd.pem")).arg("--key-file").arg(pki.join("etcd.key"));
        }
        if let Some(seconds) = self.setup.token_ttl {
            command.args(["--auth-token-ttl", &seconds.to_string()]);
        }
        let stderr = log.try_clone().unwrap();
        self.child = Some(command.stdin(Stdio::null()).stdout(log).stderr(stderr).spawn().unwrap());
        eventually("etcd answers", || {
            let ended = self.child.as_mut().and_then(|c| c.try_wait().unwrap());
            assert!(ended.is_none(), "etcd ended:\n{}", self.log_text());
            self.etcdctl(&["endpoint", "health"]).status.success().then_some(())
        });
    }

    /// SIGKILL. What it has answered is on its disk.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGSTOP: connections stay and new ones are made, and nobody answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let stands = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        eventually("etcd stands still", || {
            let mut tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            tasks.all(|t| t.is_ok_and(stands)).then_some(())
        });
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What it has said in all its runs.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Runs etcdctl on it, as `root` if there are users.
    pub fn etcdctl(&self, args: &[&str]) -> Output {
        let mut command = self.command("etcdctl");
        command.args(["--endpoints", &self.endpoint(), "--command-timeout", "2s", "--dial-timeout", "2s"]);
        if let Some((cert, key)) = self.config().cert {
            command.arg("--cacert").arg(self.file("pki/ca.pem"));
            command.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        if self.locked {
            command.args(["--user", ROOT]);
        }
        command.args(args).output().unwrap()
    }

    /// The same, which must succeed.
    pub fn ctl(&self, args: &[&str]) {
        let out = self.etcdctl(args);
        assert!(out.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn lock(&mut self, password: &str) {
        fs::write(self.password_file(), format!("{password}\nand what follows is not read\n")).unwrap();
        self.ctl(&["user", "add", ROOT]);
        self.ctl(&["user", "add", &format!("nasd:{password}")]);
        self.ctl(&["role", "add", "nasd"]);
        self.ctl(&["role", "grant-permission", "nasd", "--prefix=true", "readwrite", "/nasd/"]);
        self.ctl(&["user", "grant-role", "nasd", "nasd"]);
        self.ctl(&["auth", "enable"]);
        self.locked = true;
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ip netns exec` becomes what it runs, so that the process id is that of etcd.
    fn command(&self, program: &str) -> Command {
        let mut command = match &self.setup.netns {
            Some(name) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", name, program]);
                ip
            }
            None => Command::new(program),
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(name);
            }
        }
        command.env("ETCDCTL_API", "3");
        command
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid() as i32).unwrap(), signal).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("etcd's log:\n{}", self.log_text());
        }
    }
}

/// An authority, etcd's certificate and that of a client, in `dir`.
pub fn certificates(dir: &Path, ip: &str) {
    let dir = dir.to_str().unwrap();
    for args in [
        &["ca", "--dir", dir][..],
        &["node", "--dir", dir, "--name", "etcd", "--host", ip],
        &["node", "--dir", dir, "--name", "client"],
    ] {
        let out = nasd(&[&["cert"], args].concat());
        assert!(out.status.success(), "nasd cert {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
}
