//! The configuration that `nasd setup` writes.

use super::Answers;
use std::fmt::Write;
use std::path::Path;

/// A peer, as `[[peer]]` has it.
#[derive(Debug, Clone)]
pub struct Peer {
    pub name: String,
    pub address: String,
}

/// A node without peers; `pki` is where its certificates are.
pub fn node(answers: &Answers, pki: &Path) -> String {
    let Answers { name, role, listen, .. } = answers;
    let quoted_name = quoted(name);
    let [state_dir, mount] = [&answers.state_dir, &answers.mount].map(|p| quoted_path(p));
    let listen = quoted(listen);
    let file = |name: &str| quoted_path(&pki.join(name));
    let (ca, cert, key) = (file("ca.pem"), file(&format!("{name}.pem")), file(&format!("{name}.key")));
    let mut text = format!(
        r#"# A node of a volume, as `nasd setup` wrote it. `nasd check` looks whether it is right, and shows every key that is left
# out with its default. A change counts from the next start on.

[node]
# What its peers and its certificate call it.
name = {quoted_name}
# Everything that it keeps: on ext4, XFS or btrfs.
state_dir = {state_dir}
# Counts at the very first start only: later the node knows its role itself.
initial_role = "{role}"
# Where its peers reach it.
listen = {listen}

[volume]
# Where programs find the volume.
mount = {mount}

[replication]
# When fsync returns: "durable" is when both nodes have it on disk.
commit = "{}"
# While the peer is away: "degrade" goes on alone, "suspend" makes fsync wait.
on_peer_loss = "{}"

# Links are mutual TLS, always. The authority's own key is on the node that was set up first, and only there.
[tls]
ca = {ca}
cert = {cert}
key = {key}
"#,
        answers.commit, answers.on_peer_loss
    );
    if let Some(data_dir) = &answers.postgres {
        // Writing to a string can't fail.
        let _ = write!(
            text,
            r"
# PostgreSQL keeps its pg_wal on the volume and goes with the role of this node.
[postgresql]
data_dir = {}
",
            quoted_path(data_dir)
        );
    }
    text
}

/// What is added when a peer is known. Automatic failover needs one.
pub fn peer(peer: &Peer, etcd: &[String]) -> String {
    let mut text = format!(
        r"
# Another node of the volume.
[[peer]]
name = {}
address = {}
",
        quoted(&peer.name),
        quoted(&peer.address)
    );
    if !etcd.is_empty() {
        let endpoints: Vec<String> = etcd.iter().map(|e| quoted(e)).collect();
        let _ = write!(
            text,
            r#"
# The secondary takes over by itself when etcd agrees that the primary is gone.
[failover]
mode = "etcd"

[failover.etcd]
endpoints = [{}]
"#,
            endpoints.join(", ")
        );
    }
    text
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> String {
    // A configuration is UTF-8: `nasd_config` says so of a path that is not.
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::tests::answers;
    use nasd_config::{CommitMode, FailoverMode, OnPeerLoss, Role, parse};

    #[test]
    fn it_says_what_was_answered() {
        let mut answers = answers();
        answers.mount = "/srv/with \"quotes\" and \\".into();
        answers.commit = CommitMode::Apply;
        answers.on_peer_loss = OnPeerLoss::Suspend;
        answers.postgres = Some("/var/lib/postgresql/15/main".into());
        answers.role = Role::Secondary;
        let text = node(&answers, Path::new("/etc/nasd/nas-a"));
        let config = parse(&text, Path::new("a.toml")).expect("it is right");
        assert_eq!(config.node.name, answers.name);
        assert_eq!(config.node.initial_role, Role::Secondary);
        assert_eq!(config.volume.mount, answers.mount);
        assert_eq!(config.replication.commit, CommitMode::Apply);
        assert_eq!(config.replication.on_peer_loss, OnPeerLoss::Suspend);
        assert_eq!(config.postgresql.map(|p| p.data_dir), answers.postgres);
        assert_eq!(config.tls.expect("there").key, Path::new("/etc/nasd/nas-a/nas-a.key"));

        let b = Peer { name: "nas-b".to_owned(), address: "10.0.0.2:7400".to_owned() };
        let text = text + &peer(&b, &["http://10.0.0.3:2379".to_owned()]);
        let config = parse(&text, Path::new("a.toml")).expect("it is right");
        assert_eq!((&config.peers[0].name, &config.peers[0].address), (&b.name, &b.address));
        assert_eq!(config.failover.mode, FailoverMode::Etcd);
        assert_eq!(config.failover.etcd.expect("there").endpoints, ["http://10.0.0.3:2379"]);
    }
}
