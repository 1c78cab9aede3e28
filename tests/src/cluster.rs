//! Nodes on hosts of their own, each with all others as peers.

use crate::lab::Lab;
use crate::{Node, eventually_within, nasd};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// The address that goes with the role of primary.
pub const VIRTUAL: &str = "10.77.0.100";

/// What differs from the defaults.
#[derive(Debug, Clone, Default)]
pub struct ClusterSetup {
    /// Lines of `[replication]`.
    pub replication: String,
    /// Lines of `[failover]`, and sections behind it; `{name}` is the node's name, `{base}` its own directory.
    pub failover: String,
    /// Heartbeats also go through the other network.
    pub two_networks: bool,
    /// Without the virtual address.
    pub no_address: bool,
    /// Who is whose peer; if empty all are.
    pub peers: Vec<(&'static str, &'static str)>,
}

/// Nodes, alone or each with something that runs beside it; the first is initially primary.
#[derive(Debug)]
pub struct Cluster<N = Node> {
    /// In the order of their names.
    pub nodes: Vec<N>,
    /// Everything of theirs.
    pub dir: tempfile::TempDir,
}

impl Cluster {
    /// A node on each of these hosts of the lab; they do not run yet.
    pub fn new(lab: &Lab, names: &[&str], setup: &ClusterSetup) -> Cluster {
        let dir = tempfile::Builder::new().prefix("nasd-test-").tempdir().unwrap();
        let pki = dir.path().join("pki");
        std::fs::create_dir(&pki).unwrap();
        let pki = pki.to_str().unwrap();
        let made = |args: &[&str]| {
            let out = nasd(args);
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        };
        made(&["cert", "ca", "--dir", pki]);
        for name in names {
            made(&["cert", "node", "--dir", pki, "--name", name]);
        }
        let nodes = names.iter().map(|name| node(lab, names, name, dir.path(), pki, setup)).collect();
        Cluster { nodes, dir }
    }
}

impl<N: AsRef<Node> + AsMut<Node>> Cluster<N> {
    /// Starts all and waits until they are in sync.
    pub fn start(&mut self) {
        for node in self.nodes.iter_mut().rev() {
            node.as_mut().start();
        }
        self.whole();
    }

    /// Waits until one is primary and all others are in sync with it; says which.
    pub fn whole(&self) -> usize {
        eventually_within(Duration::from_secs(60), "one primary, the others in sync", || {
            let all: Vec<Value> =
                self.nodes.iter().map(|n| n.as_ref().try_status()).collect::<Option<_>>()?;
            let primary = |s: &Value| s["role"] == "primary" && s["state"] == "in-sync";
            let i = all.iter().position(primary)?;
            let follows = |s: &Value| s["role"] == "secondary" && s["state"] == "in-sync";
            let rest =
                all.iter().enumerate().all(|(n, s)| n == i || follows(s) && s["epoch"] == all[i]["epoch"]);
            rest.then_some(i)
        })
    }

    /// Waits until another one than `old` is primary and serves; says which.
    pub fn successor(&self, old: usize, within: Duration) -> usize {
        eventually_within(within, "another one is primary", || {
            self.nodes.iter().enumerate().find_map(|(i, n)| {
                let s = if i == old { None } else { n.as_ref().try_status() }?;
                let serves = ["degraded", "in-sync", "suspended"].iter().any(|w| s["state"] == *w);
                (s["role"] == "primary" && serves).then_some(i)
            })
        })
    }
}

fn node(lab: &Lab, names: &[&str], name: &str, dir: &Path, pki: &str, setup: &ClusterSetup) -> Node {
    let base = dir.join(name);
    let (mount, state_dir) = (base.join("mnt"), base.join("state"));
    std::fs::create_dir_all(&mount).unwrap();
    let role = if *name == *names[0] { "primary" } else { "secondary" };
    let listen = "0.0.0.0:7400".to_owned();
    let mut text = format!(
        "[node]\nname = \"{name}\"\nstate_dir = \"{}\"\ninitial_role = \"{role}\"\nlisten = \"{listen}\"\n\
         control = \"{}/nasd.sock\"\n[volume]\nmount = \"{}\"\n[replication]\n{}\n[tls]\nca = \"{pki}/ca.pem\"\n\
         cert = \"{pki}/{name}.pem\"\nkey = \"{pki}/{name}.key\"\n",
        state_dir.display(),
        base.display(),
        mount.display(),
        setup.replication,
    );
    let linked = |other: &str| {
        setup.peers.is_empty() || setup.peers.iter().any(|p| *p == (name, other) || *p == (other, name))
    };
    for other in names.iter().filter(|n| ***n != *name && linked(n)) {
        let ip = lab.ip(other);
        write!(text, "[[peer]]\nname = \"{other}\"\naddress = \"{ip}:7400\"\n").unwrap();
        if setup.two_networks {
            writeln!(text, "heartbeat_addresses = [\"{}:7400\"]", lab.other_ip(other)).unwrap();
        }
    }
    text += "[failover]\n";
    if !setup.no_address {
        write!(text, "virtual_address = \"{VIRTUAL}/24\"\ninterface = \"eth0\"\n").unwrap();
    }
    text += &setup.failover.replace("{name}", name).replace("{base}", base.to_str().unwrap());
    let config = dir.join(format!("{name}.toml"));
    std::fs::write(&config, text).unwrap();
    Node {
        name: name.to_owned(),
        config,
        state_dir,
        mount,
        listen,
        log: dir.join(format!("{name}.log")),
        netns: Some(lab.netns(name)),
        child: None,
    }
}
