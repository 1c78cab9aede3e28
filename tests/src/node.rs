//! A node as a process of its own, and a pair of them on loopback.

use crate::wait::eventually;
use serde_json::Value;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

/// The binary under test: built beside the tests' own.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("NASD_BIN") {
        return path.into();
    }
    let me = std::env::current_exe().unwrap();
    // A test lies in `deps/` below it, another program beside it.
    let path = me.ancestors().skip(1).take(2).map(|d| d.join("nasd")).find(|p| p.is_file());
    let path = path.unwrap_or_else(|| me.with_file_name("nasd"));
    assert!(path.exists(), "{}: build it first with `cargo build -p nasd`", path.display());
    path
}

/// What differs from the defaults.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Lines of `[replication]`.
    pub replication: String,
    /// Lines of `[log]`.
    pub log: String,
    /// Further sections, for both nodes; `{base}` is the node's own directory.
    pub more: String,
    /// Where the state directories are; by default beside everything else.
    pub state_dirs: Option<[PathBuf; 2]>,
    /// Where each node finds the other; by default where it listens. A proxy or another address goes here.
    pub peer_addresses: Option<[String; 2]>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            replication: "peer_timeout = \"2s\"".to_owned(),
            log: String::new(),
            more: String::new(),
            state_dirs: None,
            peer_addresses: None,
        }
    }
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub config: PathBuf,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its mount point.
    pub mount: PathBuf,
    /// Where it listens.
    pub listen: String,
    /// What it logs; one file over all its runs.
    pub log: PathBuf,
    /// The network namespace that it runs in, if not this one.
    pub netns: Option<String>,
    pub(crate) child: Option<Child>,
}

/// A port on which nobody listens.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs the command line.
pub fn nasd(args: &[&str]) -> Output {
    Command::new(binary()).args(args).output().unwrap()
}

impl Node {
    /// A node of a configuration that is there; its log is beside that.
    pub fn of(name: &str, config: PathBuf, state_dir: PathBuf, mount: PathBuf, listen: &str) -> Node {
        Node {
            name: name.to_owned(),
            log: config.with_extension("log"),
            config,
            state_dir,
            mount,
            listen: listen.to_owned(),
            netns: None,
            child: None,
        }
    }

    /// Starts the process; does not wait for anything.
    pub fn start(&mut self) {
        self.start_with_env(&[]);
    }

    /// Starts the process with further environment variables.
    pub fn start_with_env(&mut self, env: &[(&str, &str)]) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = match &self.netns {
            Some(name) => crate::lab::enter(name, &binary()),
            None => Command::new(binary()),
        };
        let child = command
            .args(["run", "--config"])
            .arg(&self.config)
            .envs(env.iter().copied())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGSTOP: it neither answers nor goes away. A thread that is on a processor goes on for a moment: waits for all.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
        let stands = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        eventually(&format!("{} stands still", self.name), || {
            let mut tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            tasks.all(|t| t.is_ok_and(stands)).then_some(())
        });
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// `nasd stop`, and waits for the end.
    pub fn stop(&mut self) {
        self.cli(&["stop"]);
        self.wait_exit();
    }

    /// Waits for the process to end by itself.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let mut child = self.child.take().expect("it runs");
        eventually(&format!("{name} ends"), || child.try_wait().unwrap())
    }

    /// Whether the process runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| c.try_wait().unwrap().is_none())
    }

    /// Runs `nasd COMMAND --config …`; the output as it is.
    pub fn try_cli(&self, args: &[&str]) -> Output {
        let config = self.config.to_str().unwrap();
        nasd(&[args, &["--config", config]].concat())
    }

    /// Runs `nasd COMMAND --config …`, which must succeed.
    pub fn cli(&self, args: &[&str]) -> String {
        let out = self.try_cli(args);
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{} {args:?}: {err}\n{}", self.name, self.log_text());
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// `nasd status --json`, if it answers.
    pub fn try_status(&self) -> Option<Value> {
        let out = self.try_cli(&["status", "--json"]);
        out.status.success().then(|| serde_json::from_slice(&out.stdout).unwrap())
    }

    /// `nasd status --json`, once it answers.
    pub fn status(&self) -> Value {
        eventually(&format!("{} answers\n{}", self.name, self.log_text()), || self.try_status())
    }

    /// Waits until `status` has this role and state.
    pub fn wait_for(&self, role: &str, state: &str) -> Value {
        let mut last = Value::Null;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while std::time::Instant::now() < end {
            if let Some(s) = self.try_status() {
                if s["role"] == role && s["state"] == state {
                    return s;
                }
                last = s;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} is not {role}, {state}: {last:#}\n{}", self.name, self.all_logs());
    }

    /// Waits until `status` is as wanted.
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::time::Instant::now() < end {
            if let Some(s) = self.try_status() {
                if wanted(&s) {
                    return s;
                }
                last = s;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{}: not {what}: {last:#}\n{}", self.name, self.all_logs());
    }

    /// Runs `nasd COMMAND --config …`, which must be refused with exit code 1; what it says.
    pub fn refused(&self, args: &[&str]) -> String {
        let out = self.try_cli(args);
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{} {args:?}: {err}\n{}", self.name, self.log_text());
        err
    }

    /// Starts the process, which must end by itself with exit code 2 and one line; the line.
    pub fn wrong(&mut self) -> String {
        let before = self.log_text().len();
        self.start();
        let status = self.wait_exit();
        let said = self.log_text().split_off(before);
        assert_eq!(status.code(), Some(2), "{said}");
        // What it did on the way is logged as well, with a time; the complaint is the line for people.
        let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("nasd: ")).collect();
        assert_eq!(lines.len(), 1, "one line: {said}");
        assert!(said.trim_end().ends_with(lines[0]), "{said}");
        lines[0].to_owned()
    }

    /// Replaces text in its configuration.
    pub fn edit_config(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        std::fs::write(&self.config, text.replace(from, to)).unwrap();
    }

    /// What `status --json` says under a key of its first peer.
    pub fn peer(&self, key: &str) -> Value {
        self.status()["peers"][0][key].clone()
    }

    /// The names in its log directory, oldest first.
    pub fn log_names(&self) -> Vec<String> {
        let dir = std::fs::read_dir(self.state_dir.join("log")).unwrap();
        let mut names: Vec<String> = dir.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        // The number decides, not the time.
        names.sort_by_key(|n| n.rsplit('-').next().unwrap_or("").to_owned());
        names
    }

    /// What all nodes of its test logged.
    fn all_logs(&self) -> String {
        let logs = std::fs::read_dir(self.log.parent().unwrap()).unwrap().map(|e| e.unwrap().path());
        let logs = logs.filter(|p| p.extension().is_some_and(|x| x == "log"));
        logs.map(|p| format!("{}:\n{}", p.display(), std::fs::read_to_string(&p).unwrap_or_default()))
            .collect()
    }

    /// Everything that it logged.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A path on its mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }

    /// Its files, below the mount.
    pub fn data(&self) -> PathBuf {
        self.state_dir.join("data")
    }
}

impl AsRef<Node> for Node {
    fn as_ref(&self) -> &Node {
        self
    }
}

impl AsMut<Node> for Node {
    fn as_mut(&mut self) -> &mut Node {
        self
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.child.as_mut().and_then(|c| c.try_wait().ok()?);
            println!("---- {} ({ended:?})\n{}", self.name, self.log_text());
            // Where its threads are, in case it is stuck.
            if let (None, Some(c)) = (ended, &self.child) {
                let tasks = format!(
                    "for t in /proc/{}/task/*; do echo $(cat $t/comm $t/wchan); done | sort | uniq -c",
                    c.id()
                );
                let out = Command::new("sh").args(["-c", &tasks]).output();
                println!(
                    "{}",
                    out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
                );
            }
        }
        self.kill();
        // A killed nasd leaves a dead mount behind, which keeps the temporary directory from being removed.
        let _ = rustix::mount::unmount(&self.mount, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Two nodes: `a`, initially primary, and `b`, initially secondary.
#[derive(Debug)]
pub struct Pair {
    /// Initially primary.
    pub a: Node,
    /// Initially secondary.
    pub b: Node,
    /// Everything of theirs.
    pub dir: tempfile::TempDir,
}

impl Pair {
    /// A pair with defaults, running and in sync.
    pub fn start() -> Pair {
        Pair::start_with(&Setup::default())
    }

    /// A pair, running and in sync.
    pub fn start_with(setup: &Setup) -> Pair {
        let mut pair = Pair::new(setup);
        pair.b.start();
        pair.a.start();
        pair.a.wait_for("primary", "in-sync");
        pair.b.wait_for("secondary", "in-sync");
        pair
    }

    /// A pair that does not run yet.
    pub fn new(setup: &Setup) -> Pair {
        let dir = tempfile::Builder::new().prefix("nasd-test-").tempdir().unwrap();
        let pki = dir.path().join("pki");
        let pki_arg = pki.to_str().unwrap();
        std::fs::create_dir(&pki).unwrap();
        for args in [
            &["cert", "ca", "--dir", pki_arg][..],
            &["cert", "node", "--dir", pki_arg, "--name", "a"],
            &["cert", "node", "--dir", pki_arg, "--name", "b"],
        ] {
            let out = nasd(args);
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        let listen = [free_port(), free_port()].map(|p| format!("127.0.0.1:{p}"));
        let node = |me: usize, name: &str, other: &str, role: &str| {
            let base = dir.path().join(name);
            let mount = base.join("mnt");
            std::fs::create_dir_all(&mount).unwrap();
            let state_dir = match &setup.state_dirs {
                Some(dirs) => dirs[me].clone(),
                None => base.join("state"),
            };
            let address = match &setup.peer_addresses {
                Some(addresses) => addresses[me].clone(),
                None => listen[1 - me].clone(),
            };
            let config = dir.path().join(format!("{name}.toml"));
            let text = format!(
                r#"[node]
name = "{name}"
state_dir = "{state}"
initial_role = "{role}"
listen = "{listen}"
control = "{base}/nasd.sock"
[volume]
mount = "{mount}"
[replication]
{replication}
[log]
{log}
[[peer]]
name = "{other}"
address = "{address}"
[tls]
ca = "{pki_arg}/ca.pem"
cert = "{pki_arg}/{name}.pem"
key = "{pki_arg}/{name}.key"
{more}
"#,
                state = state_dir.display(),
                listen = listen[me],
                base = base.display(),
                mount = mount.display(),
                replication = setup.replication,
                log = setup.log,
                more = setup.more.replace("{base}", base.to_str().unwrap()),
            );
            std::fs::write(&config, text).unwrap();
            let log = dir.path().join(format!("{name}.log"));
            Node {
                name: name.to_owned(),
                config,
                state_dir,
                mount,
                listen: listen[me].clone(),
                log,
                netns: None,
                child: None,
            }
        };
        let a = node(0, "a", "b", "primary");
        let b = node(1, "b", "a", "secondary");
        Pair { a, b, dir }
    }

    /// Waits until both are in sync, `a` being primary, and then until they are equal.
    pub fn in_sync_and_equal(&self) {
        self.a.wait_for("primary", "in-sync");
        self.b.wait_for("secondary", "in-sync");
        self.settle();
        crate::snapshot::assert_equal("replica", &self.a.data(), &self.b.data());
    }

    /// Commits what nobody synced on `a`, and waits until `b` shows it.
    pub fn sync_and_settle(&self) {
        std::fs::File::open(&self.a.mount).unwrap().sync_all().unwrap();
        self.settle();
    }

    /// Waits until `b` shows what `a` has committed.
    pub fn settle(&self) {
        let seq = self.a.status()["seq"].as_u64().unwrap();
        self.b.cli(&["wait", "--seq", &seq.to_string(), "--timeout", "20s"]);
    }
}
