//! An agent as a process of its own.

use crate::node::binary;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One agent.
#[derive(Debug)]
pub struct Agent {
    /// Its configuration.
    pub config: PathBuf,
    /// What it logs; one file over all its runs.
    pub log: PathBuf,
    /// The network namespace that it runs in, if not this one.
    pub netns: Option<String>,
    child: Option<Child>,
}

impl Agent {
    /// An agent of the volume whose authority is in `pki`, with a certificate of its own; it does not run yet.
    pub fn new(dir: &Path, pki: &Path, servers: &[String], notify: &str) -> Agent {
        let text = pki.to_str().unwrap();
        // A second one on the same host shows the same.
        if !pki.join("db-1.pem").exists() {
            let made = crate::nasd(&["cert", "node", "--dir", text, "--name", "db-1"]);
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        let config = dir.join("agent.toml");
        let text = format!(
            "[agent]\nname = \"db-1\"\nservers = {servers:?}\nstate_file = \"{0}/agent/state\"\ntimeout = \"3s\"\n\
             [tls]\nca = \"{1}/ca.pem\"\ncert = \"{1}/db-1.pem\"\nkey = \"{1}/db-1.key\"\n{notify}",
            dir.display(),
            pki.display(),
        );
        std::fs::write(&config, text).unwrap();
        Agent { config, log: dir.join("agent.log"), netns: None, child: None }
    }

    /// Starts the process; does not wait for anything.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = match &self.netns {
            Some(name) => crate::lab::enter(name, &binary()),
            None => Command::new(binary()),
        };
        command.args(["agent", "--config"]).arg(&self.config).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM, and waits for the end; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        crate::eventually("the agent ends", || child.try_wait().unwrap()).code()
    }

    /// Everything that it logged.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- the agent\n{}", self.log_text());
        }
        self.kill();
    }
}
