//! A Docker engine of our own, in a network of its own.

use crate::eventually_within;
use crate::lab::{Lab, enter};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long an engine may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(60);
/// The one host of its lab.
pub const HOST: &str = "docker";

/// It is gone with this value, and its containers, volumes and networks. Its images stay in its cache.
#[derive(Debug)]
pub struct Engine {
    dockerd: Option<Child>,
    dir: TempDir,
    cache: PathBuf,
    lab: Arc<Lab>,
    /// Of one cache there is one engine at a time.
    _lock: File,
}

impl Engine {
    /// One whose images are in `cache`, with those that `tests/docker-images.sh` makes with `nasd` (or by the Dockerfile, when
    /// none is given). `None`, with a line that says why, where none can be started.
    pub fn new(test: &str, cache: &Path, nasd: Option<&Path>) -> Option<Engine> {
        for program in ["dockerd", "docker", "docker-compose", "debootstrap"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("{test}: skipped: no {program} here");
                return None;
            }
        }
        let lab = Arc::new(Lab::new(test, &[HOST])?);
        fs::create_dir_all(cache).unwrap();
        let lock = File::create(cache.join("lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let dir = tempfile::Builder::new().prefix("nasd-docker-").tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        let mut engine = Engine { dockerd: None, dir, cache: cache.to_owned(), lab, _lock: lock };
        // Packages come from outside, so images are made in the network of this machine.
        if let Err(why) = engine.start(Command::new("unshare")) {
            println!("{test}: skipped: dockerd does not start here: {why}");
            return None;
        }
        let mut make = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docker-images.sh"));
        // The flags of this build are not theirs.
        make.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").args(nasd);
        println!("{}", text(&engine.run(make)));
        engine.stop();
        engine.start(enter(&engine.lab.netns(HOST), Path::new("unshare"))).unwrap();
        Some(engine)
    }

    /// Containers, networks and volumes are in namespaces of its own, and no rule or address of this machine changes.
    fn start(&mut self, mut unshare: Command) -> Result<(), String> {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let shared = self.shared().display().to_string();
        let script =
            format!("mount --bind {shared} {shared} && mount --make-rshared {shared} && exec dockerd \"$@\"");
        let log = File::options().create(true).append(true).open(at("log")).unwrap();
        unshare.args(["--mount", "--propagation", "private", "sh", "-c", &script, "dockerd"]);
        unshare.arg("--data-root").arg(&self.cache).args([
            "--exec-root",
            &at("exec"),
            "--pidfile",
            &at("pid"),
        ]);
        unshare.args(["--host", &self.host(), "--bridge", "none", "--ip-forward=false", "--ip-masq=false"]);
        unshare.args(["--iptables=false", "--ip6tables=false"]);
        unshare.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.dockerd = Some(unshare.spawn().map_err(|e| e.to_string())?);
        let end = Instant::now() + LIMIT;
        while !self.docker(&["version"]).status.success() {
            let ended = self.dockerd.as_mut().and_then(|c| c.try_wait().unwrap()).is_some();
            if ended || Instant::now() > end {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                return Err(log.lines().last().unwrap_or("it says nothing").to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn stop(&mut self) {
        let Some(mut dockerd) = self.dockerd.take() else { return };
        // It can only be gone.
        let _ = kill_process(Pid::from_child(&dockerd), Signal::TERM);
        eventually_within(LIMIT, "dockerd ends", || dockerd.try_wait().unwrap());
    }

    fn host(&self) -> String {
        format!("unix://{}/socket", self.dir.path().display())
    }

    /// The directory that is on a shared mount, for containers to mount in.
    pub fn shared(&self) -> PathBuf {
        self.dir.path().join("shared")
    }

    /// Where its ports are.
    pub fn lab(&self) -> &Arc<Lab> {
        &self.lab
    }

    /// The mounts of that directory, as the engine's host sees them.
    pub fn mounts(&self) -> Vec<String> {
        let pid = self.dockerd.as_ref().expect("it runs").id();
        let all = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let below = format!("{}/", self.shared().display());
        all.lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|m| m.starts_with(&below))
            .map(str::to_owned)
            .collect()
    }

    /// Runs `docker`.
    pub fn docker(&self, args: &[&str]) -> Output {
        Command::new("docker").args(args).env("DOCKER_HOST", self.host()).output().unwrap()
    }

    /// What `docker` prints; it must succeed.
    pub fn says(&self, args: &[&str]) -> String {
        let mut docker = Command::new("docker");
        docker.args(args);
        text(&self.run(docker))
    }

    /// Runs `docker-compose` with the repository's compose.yaml; it must succeed.
    pub fn compose(&self, args: &[&str]) {
        let mut compose = Command::new("docker-compose");
        compose.args(args);
        self.run(compose);
    }

    /// Types what a document has, in the repository and with its directories where this engine has them; it must succeed.
    pub fn types(&self, script: &str) -> String {
        // Nobody sits at a terminal.
        let script = script.replace("docker-compose exec", "docker-compose exec -T");
        let mut shell = Command::new("bash");
        shell.args(["-euxo", "pipefail", "-c", &script]);
        text(&self.run(shell))
    }

    fn run(&self, mut command: Command) -> Output {
        command.env("DOCKER_HOST", self.host()).env("NASD_SHARED", self.shared());
        command.env("COMPOSE_PROJECT_NAME", "nasd").env("POSTGRES_PASSWORD", PASSWORD);
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let out = command.stdin(Stdio::null()).output().unwrap();
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        out
    }
}

/// Of PostgreSQL's superuser.
pub const PASSWORD: &str = "secret";

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

impl Drop for Engine {
    fn drop(&mut self) {
        let all = |args: &[&str]| String::from_utf8_lossy(&self.docker(args).stdout).into_owned();
        let ids = all(&["ps", "--all", "--quiet"]);
        if std::thread::panicking() {
            for id in ids.split_whitespace() {
                let out = self.docker(&["logs", "--tail", "30", id]);
                let name = all(&["inspect", "--format", "{{.Name}}", id]);
                eprintln!(
                    "{}{}{}",
                    name,
                    String::from_utf8_lossy(&out.stdout),
                    String::from_utf8_lossy(&out.stderr)
                );
            }
        }
        // What is not there can't be removed.
        for id in ids.split_whitespace() {
            self.docker(&["rm", "--force", "--volumes", id]);
        }
        self.docker(&["network", "prune", "--force"]);
        for volume in all(&["volume", "ls", "--quiet"]).split_whitespace() {
            self.docker(&["volume", "rm", volume]);
        }
        self.stop();
    }
}
