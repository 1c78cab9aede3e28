//! What the configuration means: every default filled in, every value checked.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::notify::Notify;
use serde::{Deserialize, Serialize};

/// A node's whole configuration. Its `Display` is a valid `nasd.toml` with every default shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[node]`: this node.
    pub node: Node,
    /// `[volume]`: what it mounts.
    pub volume: Volume,
    /// `[replication]`: when `fsync` returns.
    pub replication: Replication,
    /// `[log]`: how much history is kept.
    pub log: Log,
    /// `[[peer]]`: the other nodes of the volume; none for a stand-alone volume.
    pub peers: Vec<Peer>,
    /// `[tls]`: always there when there is a peer.
    pub tls: Option<Tls>,
    /// `[api]`: where the control API is reached over the network; without it only on the control socket.
    pub api: Option<Api>,
    /// `[watcher]`: how the secondary sees a new transaction.
    pub watcher: Watcher,
    /// `[[notify]]`: whom this node tells.
    pub notify: Vec<Notify>,
    /// `[postgresql]`: the database whose log is on the volume, if it is one of these.
    pub postgresql: Option<Postgresql>,
    /// `[failover]`: who decides that a primary is dead, and what goes with the role.
    pub failover: Failover,
}

/// `[node]`: this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// How peers, certificates and people call it: a host name of at most 63 characters. Required.
    pub name: String,
    /// Everything that it keeps; absolute, neither inside the mount nor around it. Required.
    pub state_dir: PathBuf,
    /// Its role when `state_dir` is empty; read at no other time. Default `primary`.
    pub initial_role: Role,
    /// Where peers connect, `HOST:PORT`. Default `0.0.0.0:7400`.
    pub listen: String,
    /// The control socket, at most 107 bytes. Default `nasd.sock` in `state_dir`.
    pub control: PathBuf,
}

/// `[volume]`: what the node mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The mount point, absolute. Required.
    pub mount: PathBuf,
}

/// `[replication]`: when `fsync` returns, and what happens when it cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    /// When `fsync` may return. Default `durable`.
    pub commit: CommitMode,
    /// Changes that nobody synced are sealed this often: 10 ms to 1 h. Default 1 s.
    pub commit_interval: Duration,
    /// What `fsync` does without a peer. Default `degrade`.
    pub on_peer_loss: OnPeerLoss,
    /// A peer silent for so long is lost: 100 ms to 1 h. Default 5 s.
    pub peer_timeout: Duration,
    /// How many of the peers in sync must have a transaction before it is committed: 1 to 16. Default 1.
    pub required: usize,
}

/// `[log]`: how much of the transaction log is kept for peers that are away. The first limit that is
/// reached counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The greatest age, at most 10 years. Default 10 min.
    pub retain_for: Duration,
    /// The greatest size in bytes: 1 MiB to 1 EiB. Default 4 GiB.
    pub retain_bytes: u64,
    /// The greatest number of files: 16 to 1,000,000,000. Default 20,000.
    pub retain_files: u64,
}

/// `[[peer]]`: another node of the same volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The name in its own `[node]`, and in its certificate.
    pub name: String,
    /// Where it listens, `HOST:PORT`.
    pub address: String,
    /// The same node in other networks, `HOST:PORT`: a primary is heard over these, too. Default none.
    pub heartbeat_addresses: Vec<String>,
}

/// `[tls]`: PEM files, absolute paths outside the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate authority of all nodes.
    pub ca: PathBuf,
    /// This node's certificate, signed by it.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

/// `[api]`: the control API over TLS, beside the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    /// Where it listens, `HOST:PORT`. Default `0.0.0.0:7601`.
    pub listen: String,
    /// The file whose first line is the token that a caller without a certificate has to show. Required without `ca`.
    pub token_file: Option<PathBuf>,
    /// The authority of the callers that show a certificate: that of `[tls]`, if there is one.
    pub ca: Option<PathBuf>,
    /// The certificate that callers see, PEM. Default that of `[tls]`.
    pub cert: PathBuf,
    /// Its private key. Default that of `[tls]`.
    pub key: PathBuf,
}

/// `[watcher]`: how the secondary sees a new transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watcher {
    /// Default `inotify`.
    pub mode: WatchMode,
    /// How often `poll` looks: 1 ms to 1 min. Default 100 ms.
    pub poll_interval: Duration,
}

/// `[postgresql]`: a PostgreSQL whose `pg_wal` is on the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgresql {
    /// Its data directory; absolute, outside of the mount. Required.
    pub data_dir: PathBuf,
    /// Where `pg_ctl` and the like are. Default: found by the data directory's version, or by `pg_config`.
    pub bin_dir: Option<PathBuf>,
    /// Whom it runs as. Default `postgres`.
    pub user: String,
    /// Whether nasd starts, promotes and stops it with the role. Default true; else it is only notified.
    pub manage: bool,
    /// WAL kept for it, when it is the standby, beyond what the primary keeps: bytes, from 1 MiB on. Default 8 GiB.
    pub hold_bytes: u64,
    /// At most this often, and at once after a quiet spell, the standby is woken: up to 1 day; zero: at each
    /// transaction. Default 1 s.
    pub notify_every: Duration,
}

/// `[failover]`: who decides that a primary is dead, and what goes with the role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// Who decides. Default `manual`.
    pub mode: FailoverMode,
    /// A primary that is silent on every path for so long is dead: 200 ms to 1 h. Default 10 s.
    pub timeout: Duration,
    /// How often a primary says that it is there, and how often the third vote is looked at: 10 ms to a third of
    /// `timeout`. Default a tenth of `timeout`.
    pub interval: Duration,
    /// In mode `heartbeat`: this program must end with 0 before this node is promoted by itself. Absolute.
    pub fence_exec: Option<PathBuf>,
    /// Whether the node whose `initial_role` is primary takes the role back once it is in sync. Default false.
    pub auto_failback: bool,
    /// The address that goes with the role of primary.
    pub virtual_address: Option<VirtualAddress>,
    /// Run after each change of role. Absolute.
    pub on_role_change: Option<PathBuf>,
    /// `[failover.etcd]`: there exactly when the mode is `etcd`.
    pub etcd: Option<Etcd>,
}

/// An address that goes with the role of primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualAddress {
    /// The address itself, neither unspecified, loopback nor multicast.
    pub address: IpAddr,
    /// The length of its network's prefix: up to 32, or 128.
    pub prefix_len: u8,
    /// The network interface that it is added to: at most 15 bytes.
    pub interface: String,
}

/// `[failover.etcd]`: where the record of who is primary lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// `http://HOST:PORT` or `https://HOST:PORT`, at least one, all of one kind.
    pub endpoints: Vec<String>,
    /// The key is this, a slash, and the volume's identity. Default `/nasd`.
    pub prefix: String,
    /// The authority of etcd's certificate; with `https` only. Default the system's.
    pub ca: Option<PathBuf>,
    /// This node's certificate for etcd, if it asks for one, and its private key.
    pub cert: Option<(PathBuf, PathBuf)>,
    /// Whom etcd knows this node as, and the file that holds the password (its first line).
    pub user: Option<(String, PathBuf)>,
}

/// Who decides that the primary is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailoverMode {
    /// The operator, or a program of theirs: `nasd promote`.
    Manual,
    /// The secondary, when it does not hear the primary. Two nodes that are cut from each other can't tell that from a dead
    /// peer.
    Heartbeat,
    /// Two of three: primary, secondary and etcd.
    Etcd,
}

/// What a node does with the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its mount is writable.
    Primary,
    /// Its mount is read-only and follows.
    Secondary,
}

/// When `fsync` may return.
///
/// The order is by strength: each mode promises what those before it promise, and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommitMode {
    /// The transaction is on this node's disk.
    Async,
    /// And a peer has it in memory.
    Receive,
    /// And a peer has it on disk.
    Durable,
    /// And a peer's replica shows it.
    Apply,
}

/// What `fsync` does when the peer that it should wait for is lost. Never an I/O error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPeerLoss {
    /// It goes on alone, and says so.
    Degrade,
    /// It waits for the peer.
    Suspend,
}

/// How the secondary sees a new transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WatchMode {
    /// The kernel tells it.
    Inotify,
    /// It looks every `poll_interval`, for filesystems where inotify does not work.
    Poll,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Role::Primary => "primary",
            Role::Secondary => "secondary",
        })
    }
}

impl fmt::Display for CommitMode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            CommitMode::Async => "async",
            CommitMode::Receive => "receive",
            CommitMode::Durable => "durable",
            CommitMode::Apply => "apply",
        })
    }
}

impl fmt::Display for OnPeerLoss {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            OnPeerLoss::Degrade => "degrade",
            OnPeerLoss::Suspend => "suspend",
        })
    }
}

impl fmt::Display for WatchMode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            WatchMode::Inotify => "inotify",
            WatchMode::Poll => "poll",
        })
    }
}

impl fmt::Display for FailoverMode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            FailoverMode::Manual => "manual",
            FailoverMode::Heartbeat => "heartbeat",
            FailoverMode::Etcd => "etcd",
        })
    }
}

impl fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}
