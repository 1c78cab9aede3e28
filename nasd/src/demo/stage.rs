//! What the demo sets up, and takes down again whatever happens: an error, Ctrl-C, a panic.

use super::children::Children;
use super::teller::Teller;
use crate::status::Status;
use crate::{cert, client, doctor, signals};
use anyhow::{Context, Result, anyhow, bail};
use hyper::Method;
use nasd_config::Config;
use parking_lot::Mutex;
use rustix::mount::{UnmountFlags, unmount};
use serde::de::{DeserializeOwned, IgnoredAny};
use std::fmt::Arguments;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// One of the two nodes.
pub struct Node {
    pub name: &'static str,
    /// Everything of it is below, but for its configuration and its log.
    pub dir: PathBuf,
    pub config: PathBuf,
    pub control: PathBuf,
    pub mount: PathBuf,
    pub log: PathBuf,
}

impl Node {
    /// Asks it.
    pub fn call<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        client::call(&self.control, method, path, super::PATIENCE)
    }

    pub fn status(&self) -> Result<Status> {
        self.call(Method::GET, "/v1/status")
    }
}

/// What must not be left behind.
struct Props {
    dir: Option<TempDir>,
    mounts: Vec<PathBuf>,
    children: Children,
    /// Taken down: nothing is started any more.
    gone: bool,
}

impl Props {
    fn take_down(&mut self, keep: bool) {
        if std::mem::replace(&mut self.gone, true) {
            return;
        }
        if keep {
            self.dir.take().map(TempDir::keep);
            return;
        }
        for pid in self.children.kill() {
            eprintln!("nasd: process {} does not end; look what it waits for", pid.as_raw_nonzero());
        }
        for mount in &self.mounts {
            // Detached, since this process may have files open there. Not mounted is right as well.
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
        if let Some(dir) = self.dir.take() {
            let path = dir.keep();
            // Out of the way first: what the story's own thread still makes by its name then fails, instead of coming
            // between the listing of a directory and its removal.
            let away = path.with_extension("gone");
            let removed = fs::rename(&path, &away).and_then(|()| fs::remove_dir_all(&away));
            if let Err(e) = removed {
                eprintln!(
                    "nasd: {} or {}: can't be removed: {e}; remove it by hand",
                    path.display(),
                    away.display()
                );
            }
        }
    }
}

/// Two nodes, and how to take them down.
pub struct Stage {
    pub a: Node,
    pub b: Node,
    path: PathBuf,
    keep: bool,
    props: Arc<Mutex<Props>>,
    running: Mutex<Vec<(&'static str, Child)>>,
    interrupted: Arc<AtomicBool>,
    teller: Mutex<Teller>,
}

impl Stage {
    /// Certificates, configurations and mount points in a new temporary directory; `section` is what the story adds to a
    /// node's configuration. From here on a signal and a panic take everything down.
    pub fn set(keep: bool, section: impl Fn(&Node) -> String) -> Result<Stage> {
        let dir = tempfile::Builder::new().prefix("nasd-demo-").tempdir().with_context(|| {
            format!("no temporary directory in {}; set TMPDIR to another one", std::env::temp_dir().display())
        })?;
        let path = dir.path().to_owned();
        let a = node("nas-a", &path);
        let b = node("nas-b", &path);
        let mounts = vec![a.mount.clone(), b.mount.clone()];
        let props = Props { dir: Some(dir), mounts, children: Children::keep()?, gone: false };
        let props = Arc::new(Mutex::new(props));
        let interrupted = Arc::new(AtomicBool::new(false));
        take_down_on_panic(&props, keep);
        take_down_on_signal(&props, &interrupted, keep)?;
        let running = Mutex::default();
        let teller = Mutex::new(Teller::new());
        let stage = Stage { a, b, path, keep, props, running, interrupted, teller };
        if let Err(e) = stage.prepare(section) {
            stage.clear();
            return Err(e);
        }
        Ok(stage)
    }

    fn prepare(&self, section: impl Fn(&Node) -> String) -> Result<()> {
        // Held to the end: it makes directories, also above others, and a signal must find all of them.
        let props = self.props.lock();
        if props.gone {
            bail!("the demo is over");
        }
        let pki = self.path.join("pki");
        cert::ca(&pki)?;
        let ports = free_ports()?;
        let nodes = [(&self.a, &self.b, "primary"), (&self.b, &self.a, "secondary")];
        for (i, (me, peer, role)) in nodes.into_iter().enumerate() {
            cert::node(&pki, me.name, &[])?;
            fs::create_dir_all(&me.mount).with_context(|| format!("can't make {}", me.mount.display()))?;
            let text = configuration(&self.path, me, peer, role, ports[i], ports[1 - i]) + &section(me);
            fs::write(&me.config, text).with_context(|| format!("can't write {}", me.config.display()))?;
            let config =
                nasd_config::load(&me.config).context("TMPDIR is not fit for the demo; set another one")?;
            look_ahead(config)?;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn keeps(&self) -> bool {
        self.keep
    }

    // ---- words ----------------------------------------------------------------------------------------------

    pub fn say(&self, text: Arguments) {
        self.teller.lock().line(text, false);
    }

    /// Like [`Stage::say`]; on a terminal the next one is written over it.
    pub fn say_live(&self, text: Arguments) {
        self.teller.lock().rewrite(text);
    }

    pub fn end_live(&self) {
        self.teller.lock().end_live();
    }

    /// What the nodes logged last: for an error, before it is removed.
    pub fn tell_last_words(&self) {
        self.end_live();
        for node in [&self.a, &self.b] {
            let log = fs::read_to_string(&node.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(10)..] {
                eprintln!("{}: {line}", node.name);
            }
        }
    }

    pub fn tell_what_is_where(&self) {
        self.say(format_args!("both nodes go on running (--keep):"));
        for node in [&self.a, &self.b] {
            self.say(format_args!(
                "  {}: mount {}, log {}, nasd status --config {}",
                node.name,
                node.mount.display(),
                node.log.display(),
                node.config.display()
            ));
        }
        self.say(format_args!(
            "to end it: nasd stop --config {}; nasd stop --config {}; rm -r {}",
            self.a.config.display(),
            self.b.config.display(),
            self.path.display()
        ));
    }

    // ---- processes ------------------------------------------------------------------------------------------

    /// Starts a process, which does not outlive the demo.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let props = self.props.lock();
        if props.gone {
            bail!("the demo is over");
        }
        command.spawn().with_context(|| format!("can't start {}", command.get_program().display()))
    }

    /// Starts the node's process. Nothing is waited for.
    pub fn start(&self, node: &Node) -> Result<()> {
        let log = File::options().create(true).append(true).open(&node.log);
        let log = log.with_context(|| format!("can't write {}", node.log.display()))?;
        let mut command = nasd(&["run"], node)?;
        let child = self.spawn(command.stdout(Stdio::null()).stderr(log))?;
        self.running.lock().push((node.name, child));
        Ok(())
    }

    /// What this command of nasd's says when it is done on this node.
    pub fn nasd(&self, words: &[&str], node: &Node) -> Result<String> {
        let name = format!("nasd {} on {}", words.join(" "), node.name);
        self.output(&mut nasd(words, node)?, &name)
    }

    /// What a process prints, which must succeed; `name` is for the error.
    pub fn output(&self, command: &mut Command, name: &str) -> Result<String> {
        let child = self.spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let out = child.wait_with_output().with_context(|| name.to_owned())?;
        if !out.status.success() {
            bail!("{name}: {}: {}", out.status, one_line(&String::from_utf8_lossy(&out.stderr)));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn take(&self, node: &Node) -> Result<Child> {
        let mut running = self.running.lock();
        let at = running.iter().position(|(name, _)| *name == node.name);
        at.map(|i| running.swap_remove(i).1).ok_or_else(|| anyhow!("{} does not run", node.name))
    }

    /// SIGKILL. Returns the process id that it had.
    pub fn kill(&self, node: &Node) -> Result<u32> {
        let mut child = self.take(node)?;
        child.kill().and_then(|()| child.wait()).with_context(|| format!("killing {}", node.name))?;
        Ok(child.id())
    }

    /// `nasd stop`, and waits for the end.
    pub fn stop(&self, node: &Node) -> Result<()> {
        node.call::<IgnoredAny>(Method::POST, "/v1/stop")
            .with_context(|| format!("stopping {}", node.name))?;
        let ended = self.take(node)?.wait()?;
        if !ended.success() {
            bail!("{} did not stop in order: {ended}", node.name);
        }
        Ok(())
    }

    /// Waits until `done` of the node's status; after `limit` the last status is the inner error.
    pub fn wait_for(
        &self,
        node: &Node,
        limit: Duration,
        done: impl Fn(&Status) -> bool,
    ) -> Result<Result<Status, Box<Status>>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(ended) = self.ended(node)? {
                bail!("{} ended ({ended}) instead of running", node.name);
            }
            match node.status() {
                Ok(s) if done(&s) => return Ok(Ok(s)),
                Ok(s) if Instant::now() > end => return Ok(Err(Box::new(s))),
                Err(e) if Instant::now() > end => return Err(e),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn ended(&self, node: &Node) -> Result<Option<std::process::ExitStatus>> {
        let mut running = self.running.lock();
        match running.iter_mut().find(|(name, _)| *name == node.name) {
            Some((_, child)) => Ok(child.try_wait()?),
            None => bail!("{} does not run", node.name),
        }
    }

    // ---- the end --------------------------------------------------------------------------------------------

    /// After a signal everything breaks in this thread, too: that is no news, and the signal's thread ends the process.
    pub fn wait_if_interrupted(&self) {
        while self.interrupted.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }

    /// Takes everything down, but for `--keep`.
    pub fn clear(&self) {
        self.end_live();
        self.props.lock().take_down(self.keep);
    }
}

fn node(name: &'static str, dir: &Path) -> Node {
    let base = dir.join(name);
    Node {
        name,
        config: dir.join(format!("{name}.toml")),
        control: base.join("nasd.sock"),
        mount: base.join("mnt"),
        dir: base,
        log: dir.join(format!("{name}.log")),
    }
}

/// This program, to do something with a node.
fn nasd(words: &[&str], node: &Node) -> Result<Command> {
    let nasd = std::env::current_exe().context("can't find the nasd binary; run it by its path")?;
    let mut command = Command::new(nasd);
    command.args(words).arg("--config").arg(&node.config);
    // Ctrl-C is for the demo, which ends its processes itself.
    command.stdin(Stdio::null()).process_group(0);
    Ok(command)
}

/// The last lines of what a program said, as one.
pub fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join(" | ")
}

fn configuration(dir: &Path, me: &Node, peer: &Node, role: &str, port: u16, peer_port: u16) -> String {
    format!(
        r#"[node]
name = "{name}"
state_dir = "{dir}/{name}/state"
initial_role = "{role}"
listen = "127.0.0.1:{port}"
control = "{control}"

[volume]
mount = "{mount}"

[[peer]]
name = "{peer}"
address = "127.0.0.1:{peer_port}"

[tls]
ca = "{dir}/pki/ca.pem"
cert = "{dir}/pki/{name}.pem"
key = "{dir}/pki/{name}.key"
"#,
        name = me.name,
        dir = dir.display(),
        control = me.control.display(),
        mount = me.mount.display(),
        peer = peer.name,
    )
}

/// Two ports that nobody listens on. Somebody may before we do; the node then says so.
fn free_ports() -> Result<[u16; 2]> {
    let any = || TcpListener::bind("127.0.0.1:0");
    let both = any().and_then(|x| Ok([x, any()?]));
    let [x, y] =
        both.context("no free port on 127.0.0.1; is the loopback interface up (ip link set lo up)?")?;
    Ok([x.local_addr()?.port(), y.local_addr()?.port()])
}

/// What `nasd doctor` would say of this node alone.
fn look_ahead(mut config: Config) -> Result<()> {
    config.peers.clear();
    let failed = doctor::run(&config).into_iter().filter(|f| f.level == doctor::Level::Fail);
    let all: Vec<String> = failed.map(|f| f.text).collect();
    if !all.is_empty() {
        bail!("the demo can't run here: {}", all.join("; "));
    }
    Ok(())
}

/// A hook and not a guard: where a panic aborts the process, nothing is dropped.
fn take_down_on_panic(props: &Arc<Mutex<Props>>, keep: bool) {
    let props = Arc::clone(props);
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tell(info);
        // The panic may have come while this thread held the lock.
        if let Some(mut p) = props.try_lock_for(Duration::from_secs(5)) {
            p.take_down(keep);
        }
        std::process::exit(101);
    }));
}

fn take_down_on_signal(props: &Arc<Mutex<Props>>, interrupted: &Arc<AtomicBool>, keep: bool) -> Result<()> {
    let (props, interrupted) = (Arc::clone(props), Arc::clone(interrupted));
    signals::at_first(signals::IN_A_TERMINAL, move |signal| {
        interrupted.store(true, Ordering::SeqCst);
        eprintln!("nasd: interrupted: taking everything down");
        props.lock().take_down(keep);
        std::process::exit(128 + signal.as_raw_value())
    })?;
    Ok(())
}
