//! `nasd pg follow`: a PostgreSQL that the node can't start itself, since it runs in a container of its own.
//!
//! It does here what the node does with a database that it manages: [`decide`] is the same. What the node's role is, and
//! whether its mount is ready, the node says over its control socket. That it may be late is no danger: on the mount of
//! a node that lost its role nothing can be committed.

use super::decide::{Next, Seen, decide};
use super::tool::configured;
use super::trouble::Trouble;
use super::{PATIENCE, TICK, carry_out, is_on};
use crate::api::Waited;
use crate::status::Status;
use crate::{client, signals};
use anyhow::{Result, bail};
use hyper::Method;
use nasd_config::Config;
use nasd_volume::Role;
use nasd_watcher::postgresql::{Cluster, Stop, Waker};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// A node that answers nothing for so long is taken for gone.
const ANSWER: Duration = Duration::from_secs(10);
/// How long one question for more of the log lasts.
const MORE: Duration = Duration::from_secs(30);

struct Follower {
    cluster: Cluster,
    mount: PathBuf,
    control: PathBuf,
    /// The mount that the server was started on: its device.
    started_on: Option<u64>,
    trouble: Trouble,
}

/// Starts, promotes and stops PostgreSQL with the node's role until SIGTERM, which stops it in order.
pub fn follow(config: &Config) -> Result<()> {
    crate::run::log_to_stderr();
    let (c, cluster) = configured(config)?;
    if c.manage {
        bail!(
            "nasd itself starts and stops this PostgreSQL: set manage = false in [postgresql], on this node"
        );
    }
    let (tx, end) = channel();
    signals::at_first(signals::OF_A_SERVICE, move |_| {
        let _ = tx.send(());
    })?;
    let control = config.node.control.clone();
    {
        let (cluster, control, every) = (cluster.clone(), control.clone(), c.notify_every);
        let wake = move || wake(cluster, &control, every);
        std::thread::Builder::new().name("wake".into()).spawn(wake)?;
    }
    let mount = config.volume.mount.clone();
    let mut follower = Follower { cluster, mount, control, started_on: None, trouble: Trouble::default() };
    while end.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        follower.tend();
    }
    tracing::info!("stopping PostgreSQL");
    Ok(follower.cluster.stop(Stop::Fast, PATIENCE)?)
}

impl Follower {
    fn tend(&mut self) {
        let node = match ask(&self.control) {
            Ok(node) => Some(node),
            Err(e) => {
                tracing::debug!("{e:#}");
                None
            }
        };
        let mount = device_of(&self.mount);
        let running = self.cluster.running().is_some();
        // Its files are on a mount that is dead, or not known to be this one.
        let stranded = running && (node.is_none() || mount != self.started_on);
        let (next, did) = match &node {
            _ if stranded => (Next::Stop, "PostgreSQL is stopped: the node's mount is gone, or another one"),
            Some(node) => {
                let next = self.next(node, mount, running);
                (next, next.did())
            }
            None => return,
        };
        if next == Next::Nothing || (self.trouble.waits() && next != Next::Stop) {
            return;
        }
        // Before: a start that takes too long may yet succeed.
        if matches!(next, Next::StartStandby | Next::StartPrimary) {
            self.started_on = mount;
        }
        match carry_out(next, &self.cluster) {
            Ok(()) => {
                self.trouble.over();
                tracing::info!("{did}");
            }
            Err(e) => {
                let text = e.to_string();
                if self.trouble.note(&text) {
                    tracing::warn!("{text}");
                }
            }
        }
    }

    fn next(&self, node: &Status, mount: Option<u64>, running: bool) -> Next {
        decide(Seen {
            role: if node.role == "primary" { Role::Primary } else { Role::Secondary },
            ready: mount.is_some() && node.postgresql.as_ref().is_some_and(|p| p.ready),
            usable: self.cluster.exists() && is_on(&self.cluster, &self.mount),
            running,
            standby: self.cluster.is_standby(),
        })
    }
}

fn ask(control: &Path) -> Result<Status> {
    client::call(control, Method::GET, "/v1/status", ANSWER)
}

/// The device of what is mounted there; none while nothing is.
fn device_of(mount: &Path) -> Option<u64> {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
    let here = device(mount)?;
    (device(mount.parent()?)? != here).then_some(here)
}

/// Wakes the standby when the replica shows more: at once after a quiet spell, then at most once `every`.
fn wake(cluster: Cluster, control: &Path, every: Duration) {
    let mut waker = Waker::new(cluster);
    let mut seen = 0_u64;
    loop {
        let question = format!("/v1/wait?seq={}&timeout_ms={}", seen + 1, MORE.as_millis());
        let pause = match client::call::<Waited>(control, Method::GET, &question, MORE + ANSWER) {
            Ok(answer) => {
                // A node that gave up transactions is behind what it was.
                seen = answer.applied_seq;
                if answer.reached {
                    waker.wake();
                }
                every
            }
            Err(_) => TICK,
        };
        std::thread::sleep(pause);
    }
}
