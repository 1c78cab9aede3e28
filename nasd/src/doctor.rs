//! `nasd doctor`: what would keep this node from running, or from running well, before it runs.
//!
//! Every check looks at the real thing (it writes, syncs, binds, connects) and changes nothing that
//! lasts. It may run beside a running nasd; what that one holds is then a warning.

mod certificates;
mod database;
mod machine;
mod mounts;
mod peers;
mod state_dir;

use std::fmt;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use nasd_config::Config;
use nasd_config::notify::Way;

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// nasd runs, but something is missing, slow or short.
    Warn,
    /// nasd cannot run so.
    Fail,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was checked, in one word.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found, and the remedy if it isn't as it should be; one line.
    pub text: String,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Finding {
        Finding::new(check, Level::Ok, text)
    }

    fn warn(check: &'static str, text: impl Into<String>) -> Finding {
        Finding::new(check, Level::Warn, text)
    }

    fn fail(check: &'static str, text: impl Into<String>) -> Finding {
        Finding::new(check, Level::Fail, text)
    }

    fn new(check: &'static str, level: Level, text: impl Into<String>) -> Finding {
        Finding { check, level, text: text.into() }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:<4}  {:<12}  {}", self.level, self.check, self.text)
    }
}

/// Checks everything that `config` needs. Takes a second or two, and longer when a peer doesn't answer.
pub fn run(config: &Config) -> Vec<Finding> {
    let mut findings =
        vec![machine::root(), machine::fuse_device(), machine::mount_point(&config.volume.mount)];
    findings.extend(state_dir::check(&config.node.state_dir, config.log.retain_bytes));
    findings.push(machine::clock(&config.node.state_dir.join("log"), SystemTime::now()));
    findings.push(machine::listen(&config.node.listen));
    for notify in &config.notify {
        match &notify.way {
            Way::Exec(exec) => findings.push(machine::executable(exec)),
            Way::Webhook { ca, token_file, .. } => {
                let files = [("ca", ca), ("token_file", token_file)];
                let files = files.iter().filter_map(|(key, file)| file.as_ref().map(|file| (key, file)));
                findings.extend(files.map(|(key, file)| machine::readable(file, key)));
            }
            // Whether the others are there changes with the hour.
            Way::Signal { .. } | Way::Postgresql(_) => {}
        }
    }
    if let Some(postgresql) = &config.postgresql {
        findings.push(database::check(config, postgresql));
    }
    if let Some(tls) = &config.tls {
        let (found, credentials) = certificates::check(tls, &config.node.name);
        findings.extend(found);
        for peer in &config.peers {
            findings.push(peers::check(peer, credentials.as_ref()));
        }
    }
    findings
}

/// Prints the findings, one a line, and their sum; true if none is a [`Level::Fail`].
pub fn print(findings: &[Finding]) -> bool {
    for finding in findings {
        println!("{finding}");
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    let (warnings, failures) = (count(Level::Warn), count(Level::Fail));
    println!("{failures} to be mended, {warnings} to be considered");
    failures == 0
}

/// What `f` returns, unless that takes too long: a mount or a name server may not answer at all.
fn within<T: Send + 'static>(limit: Duration, f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    // Left behind when it hangs; the process ends soon.
    thread::spawn(move || sender.send(f()));
    receiver.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_stand_alone_node_is_checked_from_root_to_port() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path();
        let text = format!(
            "[node]\nname = 'nas-a'\nstate_dir = '{0}/state'\nlisten = '127.0.0.1:0'\n[volume]\nmount = '{0}/mnt'\n",
            dir.display()
        );
        let config = nasd_config::parse(&text, Path::new("nasd.toml")).expect("it is right");
        let checks: Vec<_> = run(&config).iter().map(|f| f.check).collect();
        let expected = [
            "root",
            "fuse",
            "mount",
            "state_dir",
            "xattrs",
            "fdatasync",
            "space",
            "filesystem",
            "clock",
            "listen",
        ];
        assert_eq!(checks, expected);
        assert_eq!(std::fs::read_dir(dir).expect("readable").count(), 0);
    }

    #[test]
    fn only_a_failure_fails() {
        let mut findings = vec![Finding::ok("a", "x"), Finding::warn("b", "y")];
        assert!(print(&findings));
        findings.push(Finding::fail("c", "z"));
        assert!(!print(&findings));
        assert_eq!(findings[2].to_string(), "FAIL  c             z");
    }

    #[test]
    fn what_hangs_is_given_up() {
        assert_eq!(within(Duration::from_secs(60), || 1), Some(1));
        let (_sender, receiver) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(1), move || receiver.recv()), None);
    }
}
