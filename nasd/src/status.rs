//! What a node says of itself: the JSON of `nasd status --json`, and the same for people.

use crate::database::DatabaseStatus;
use crate::diverged::{self, Diverged};
use crate::failover::FailoverStatus;
use crate::node::{Node, Phase};
use crate::peers::{PeerState, Row};
use crate::progress::ProgressStatus;
use nasd_config::CommitMode;
use nasd_volume::histogram::Summary;
use nasd_volume::txn::rfc3339;
use nasd_volume::{Access, Role, Volume};
use nasd_watcher::NotifyStats;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// What would be lost if this node burnt now.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Exposure {
    /// Transactions that no peer has on disk.
    pub transactions: u64,
    /// Their bytes, and those of operations that no transaction holds yet.
    pub bytes: u64,
    /// Age of the oldest of them.
    pub seconds: f64,
}

/// The log directory.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct LogStatus {
    pub files: u64,
    pub bytes: u64,
    pub oldest: Option<String>,
    pub spare_files: u64,
}

/// A peer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PeerStatus {
    pub name: String,
    pub state: String,
    pub reason: String,
    /// A commit waits for it.
    pub in_set: bool,
    pub received_seq: u64,
    pub durable_seq: u64,
    pub applied_seq: u64,
    pub lag_transactions: u64,
    pub lag_bytes: u64,
    pub lag_seconds: f64,
    pub round_trip_us: u64,
    /// Its last write and fdatasync of a transaction.
    pub fdatasync_us: u64,
    /// Bytes sent in the copy under way, or the last.
    pub copied_bytes: u64,
}

/// Microseconds.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Latency {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl From<Summary> for Latency {
    fn from(s: Summary) -> Latency {
        Latency { count: s.count, p50: s.p50, p99: s.p99, max: s.max }
    }
}

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub name: String,
    pub role: String,
    /// In one word.
    pub state: String,
    /// The same in a sentence, where one word is not enough.
    pub detail: String,
    pub volume: Option<String>,
    pub epoch: u64,
    pub seq: u64,
    pub timestamp: Option<String>,
    pub hash: String,
    pub commit_mode: String,
    /// The mode in force now: `alone` while no peer is waited for.
    pub commit_mode_now: String,
    pub applied_seq: u64,
    /// On a secondary: what has arrived.
    #[serde(default)]
    pub received_seq: u64,
    pub durable_seq: u64,
    pub checkpoint_seq: u64,
    pub exposure: Exposure,
    pub log: LogStatus,
    pub peers: Vec<PeerStatus>,
    /// On a secondary: the primary that it follows.
    pub following: Option<String>,
    /// On a secondary: the primary acknowledges nothing without this node, so it may be promoted.
    pub in_sync: bool,
    /// Peers without which transactions were acknowledged.
    pub out_of_set: Vec<String>,
    pub files: u64,
    pub mount: String,
    /// Transactions set aside by rewinds.
    pub diverged_files: u64,
    /// What they are, and where.
    #[serde(default)]
    pub diverged: Diverged,
    pub events: BTreeMap<String, u64>,
    /// Where commits spend their time, by stage.
    pub commit_us: Option<BTreeMap<String, Latency>>,
    pub watcher: BTreeMap<String, u64>,
    pub failover: FailoverStatus,
    /// Long work under way.
    #[serde(default)]
    pub progress: Vec<ProgressStatus>,
    /// What became of each `[[notify]]`.
    #[serde(default)]
    pub notify: Vec<NotifyStats>,
    /// The PostgreSQL of the configuration, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<DatabaseStatus>,
}

/// Seconds since this time, in nanoseconds since 1970.
pub fn seconds_since(ns: i64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    ((now - ns).max(0) as f64) / 1e9
}

const NO_VOLUME: &str = "has no volume yet: waits for a primary to copy from";

fn role_word(role: Role) -> &'static str {
    if role == Role::Primary { "primary" } else { "secondary" }
}

fn peer_status(volume: &Volume, row: &Row) -> PeerStatus {
    let tail = volume.log.tail().seq;
    let (lag_bytes, oldest) = volume.log.behind(row.ack.durable);
    let word = serde_json::to_value(row.state).ok().and_then(|v| v.as_str().map(str::to_owned));
    PeerStatus {
        name: row.name.clone(),
        state: word.unwrap_or_default(),
        reason: row.reason.clone(),
        in_set: row.in_set,
        received_seq: row.ack.received.max(row.ack.durable),
        durable_seq: row.ack.durable,
        applied_seq: row.ack.applied,
        lag_transactions: tail.saturating_sub(row.ack.durable),
        lag_bytes,
        lag_seconds: oldest.map_or(0.0, seconds_since),
        round_trip_us: row.round_trip_us,
        fdatasync_us: row.ack.fsync_us.into(),
        copied_bytes: row.copied_bytes,
    }
}

fn state_word(node: &Node, volume: &Volume, rows: &[Row]) -> (&'static str, String) {
    let state = volume.state.get();
    match &*node.phase.lock() {
        Phase::Starting => return ("starting", String::new()),
        Phase::Asking(names) => {
            return (
                "waiting",
                format!("was primary; waits for {} to say that it was not promoted", names.join(", ")),
            );
        }
        Phase::Comparing => {
            return ("comparing", "compares with a peer after an unclean stop".to_owned());
        }
        Phase::Switching => return ("switching", String::new()),
        Phase::Stopping => return ("stopping", String::new()),
        Phase::Running => {}
    }
    if state.role == Role::Primary {
        if rows.is_empty() {
            return ("stand-alone", String::new());
        }
        let out: Vec<&str> =
            rows.iter().filter(|r| r.state != PeerState::InSync).map(|r| r.name.as_str()).collect();
        let suspended = node.config.replication.on_peer_loss == nasd_config::OnPeerLoss::Suspend;
        return match (out.is_empty(), suspended) {
            (true, _) => ("in-sync", String::new()),
            (false, true) => ("suspended", format!("fsync waits for {}", out.join(", "))),
            (false, false) => ("degraded", format!("goes on without {}", out.join(", "))),
        };
    }
    if let Some(why) = node.upstream.trouble() {
        return ("trouble", why);
    }
    if state.needs_copy || volume.access() == Access::Closed {
        return ("copying", "is being brought up to date; its files are not shown meanwhile".to_owned());
    }
    match (node.upstream.name(), state.in_sync) {
        (Some(_), true) => ("in-sync", String::new()),
        (Some(_), false) => ("catch-up", String::new()),
        (None, true) => ("disconnected", "no primary calls; it was in sync and may be promoted".to_owned()),
        (None, false) => {
            ("outdated", "no primary calls, and it may have gone on without this node".to_owned())
        }
    }
}

/// How the node is, in a sentence.
pub fn sentence(node: &Node) -> String {
    let (role, (word, detail)) = match node.volume() {
        Some(volume) => {
            let rows = node.peers().map_or_else(|| node.relay.rows(), |p| p.rows());
            (volume.state.get().role, state_word(node, &volume, &rows))
        }
        None => (Role::Secondary, ("connecting", NO_VOLUME.to_owned())),
    };
    let role = role_word(role);
    if detail.is_empty() { format!("{role}, {word}") } else { format!("{role}, {word}: {detail}") }
}

/// What the node says now.
pub fn status(node: &Node) -> Status {
    let config = &node.config;
    let mode = config.replication.commit.to_string();
    let mut s = Status {
        name: config.node.name.clone(),
        role: "secondary".to_owned(),
        state: "connecting".to_owned(),
        detail: NO_VOLUME.to_owned(),
        volume: None,
        epoch: 0,
        seq: 0,
        timestamp: None,
        hash: String::new(),
        commit_mode: mode.clone(),
        commit_mode_now: mode,
        applied_seq: 0,
        received_seq: 0,
        durable_seq: 0,
        checkpoint_seq: 0,
        exposure: Exposure::default(),
        log: LogStatus::default(),
        peers: Vec::new(),
        following: node.upstream.name(),
        in_sync: false,
        out_of_set: Vec::new(),
        files: 0,
        mount: config.volume.mount.display().to_string(),
        diverged_files: 0,
        diverged: Diverged::default(),
        events: node.events.counts().iter().map(|(k, n)| (k.to_string(), *n)).collect(),
        commit_us: None,
        watcher: BTreeMap::new(),
        failover: node.failover.status(node),
        progress: node.progress.status(),
        notify: node.notifier.stats(),
        postgresql: None,
    };
    let Some(volume) = node.volume() else {
        return s;
    };
    let state = volume.state.get();
    let tail = volume.log.tail();
    let rows = node.peers().map_or_else(|| node.relay.rows(), |p| p.rows());
    let (word, detail) = state_word(node, &volume, &rows);
    word.clone_into(&mut s.state);
    s.detail = detail;
    role_word(state.role).clone_into(&mut s.role);
    s.volume = Some(volume.id().to_string());
    s.epoch = state.epoch;
    s.seq = tail.seq;
    s.hash = tail.hash.to_string();
    s.timestamp = Some(volume.log.tail_timestamp()).filter(|&t| t > 0).map(rfc3339);
    s.applied_seq = volume.applied().seq;
    s.received_seq = node.upstream.received.load(Ordering::SeqCst).max(tail.seq);
    s.durable_seq = tail.seq;
    s.checkpoint_seq = state.checkpoint.seq;
    let waited_for =
        rows.iter().any(|r| r.in_set) || config.replication.on_peer_loss == nasd_config::OnPeerLoss::Suspend;
    if state.role == Role::Primary
        && config.replication.commit != CommitMode::Async
        && (rows.is_empty() || !waited_for)
    {
        "alone".clone_into(&mut s.commit_mode_now);
    }
    if state.role == Role::Primary {
        let best = rows.iter().map(|r| r.ack.durable).max().unwrap_or(0);
        let (bytes, oldest) = volume.log.behind(best);
        s.exposure = Exposure {
            transactions: tail.seq.saturating_sub(best),
            bytes: bytes + volume.pending_bytes() as u64,
            seconds: oldest.map_or(0.0, seconds_since),
        };
    }
    let log = volume.log.stats();
    s.log = LogStatus {
        files: log.files,
        bytes: log.bytes,
        oldest: log.oldest.map(rfc3339),
        spare_files: log.spare_files,
    };
    s.peers = rows.iter().map(|r| peer_status(&volume, r)).collect();
    s.in_sync = state.in_sync;
    s.out_of_set = state.out_of_set.iter().cloned().collect();
    s.files = volume.file_count() as u64;
    s.diverged = diverged::look(volume.state_dir());
    s.diverged_files = s.diverged.files;
    s.commit_us =
        Some(volume.commit_times().stages().map(|(k, h)| (k.to_owned(), h.summary().into())).into());
    s.postgresql = node.database.as_ref().map(|d| d.status(node, &volume));
    if let Some(w) = node.watch_stats() {
        s.watcher = [
            ("overflows", w.overflows),
            ("rescans", w.rescans),
            ("applied", w.applied),
            ("events", w.events),
        ]
        .map(|(k, n)| (k.to_owned(), n))
        .into();
    }
    s
}

impl Status {
    /// For people.
    pub fn text(&self) -> String {
        let mut t = String::new();
        // Writing to a string can't fail.
        let mut line = |k: &str, v: String| {
            let _ = writeln!(t, "{k:<12} {v}");
        };
        let detail = if self.detail.is_empty() { String::new() } else { format!(": {}", self.detail) };
        line("node", format!("{} ({}, {}{detail})", self.name, self.role, self.state));
        line("mount", format!("{}, {} files", self.mount, self.files));
        let time = self.timestamp.as_deref().unwrap_or("-");
        line("position", format!("epoch {}, transaction {} of {time}", self.epoch, self.seq));
        line("commit", format!("{}, now {}", self.commit_mode, self.commit_mode_now));
        line("applied", format!("{} (checkpoint {})", self.applied_seq, self.checkpoint_seq));
        if let Some(p) = &self.following {
            line("following", p.clone());
        }
        if self.role == "primary" {
            let e = &self.exposure;
            line(
                "exposure",
                format!("{} transactions, {} bytes, {:.1} s", e.transactions, e.bytes, e.seconds),
            );
        }
        let f = &self.failover;
        let mut says = format!("{}, after {} s", f.mode, f.timeout_seconds);
        if self.role == "secondary" && f.silent_seconds > f.timeout_seconds / 2.0 {
            let _ = write!(says, "; nothing heard of a primary for {:.1} s", f.silent_seconds);
        }
        if let Some(why) = &f.hindrance {
            let _ = write!(says, "; does not take over: {why}");
        }
        line("failover", says);
        if let Some(warning) = &f.warning {
            line("", format!("beware: {warning}"));
        }
        if let Some(r) = &f.record {
            let others: Vec<&str> =
                r.in_sync.iter().filter(|n| **n != r.primary).map(String::as_str).collect();
            let who = if others.is_empty() { "nobody".to_owned() } else { others.join(", ") };
            line("etcd", format!("{} is primary of epoch {}; {who} may take over", r.primary, r.epoch));
        }
        if let Some(why) = &f.etcd_error {
            line("etcd", why.clone());
        }
        if let Some(address) = &f.virtual_address {
            line("address", format!("{address}, {}", if f.holds_address { "held here" } else { "not here" }));
        }
        let l = &self.log;
        line("log", format!("{} files, {} bytes, {} spare", l.files, l.bytes, l.spare_files));
        if self.diverged_files > 0 {
            let d = &self.diverged;
            let newest = d.newest.as_ref().map_or_else(String::new, |t| format!(", newest of {t}"));
            line(
                "diverged",
                format!(
                    "{} transactions set aside in diverged/, {} bytes{newest}",
                    self.diverged_files, d.bytes
                ),
            );
            line("", format!("see `nasd log list {0}`, `nasd log export {0} --to DIR`", d.path));
        }
        if let Some(d) = &self.postgresql {
            let must =
                d.must_clone.as_ref().map_or_else(String::new, |why| format!(", MUST BE CLONED: {why}"));
            let held = match d.held_files {
                0 => String::new(),
                n => format!(", {n} WAL files held, {} bytes", d.held_bytes),
            };
            line("postgresql", format!("{}{held}{must}", d.state));
        }
        for work in &self.progress {
            line("progress", work.line());
        }
        for n in &self.notify {
            let failed = if n.failed > 0 { format!(", {} failed", n.failed) } else { String::new() };
            line("notify", format!("{}: told {} times{failed}", n.way, n.sent));
        }
        for p in &self.peers {
            let why = if p.reason.is_empty() { String::new() } else { format!(" ({})", p.reason) };
            line(
                "peer",
                format!(
                    "{}: {}{why}, behind by {} transactions, {} bytes, {:.1} s, round trip {} us",
                    p.name, p.state, p.lag_transactions, p.lag_bytes, p.lag_seconds, p.round_trip_us
                ),
            );
        }
        t
    }
}
