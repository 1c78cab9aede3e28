//! What a monitor reads: the status as numbers, and where commits spend their time.

use super::App;
use super::answer::Problem;
use super::exposition::{CONTENT_TYPE, Exposition};
use crate::node::Node;
use crate::peers::Peers;
use crate::status::{PeerStatus, Status, status};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use nasd_volume::commit::CommitTimes;
use nasd_watcher::NotifyStats;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// For Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain"),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
))]
async fn metrics(State(a): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], exposition(&a.node))
}

fn exposition(node: &Node) -> String {
    let s = status(node);
    let mut e = Exposition::default();
    node_itself(&mut e, &s);
    positions(&mut e, &s);
    files(&mut e, &s);
    peers(&mut e, &s.peers);
    if let Some(volume) = node.volume() {
        let peers = node.peers();
        commits(&mut e, volume.commit_times(), peers.as_deref());
    }
    counters(&mut e, &s);
    notifications(&mut e, &s.notify);
    failover(&mut e, &s);
    e.text()
}

fn node_itself(e: &mut Exposition, s: &Status) {
    let version = env!("CARGO_PKG_VERSION");
    let volume = s.volume.as_deref().unwrap_or_default();
    e.gauge("nasd_info", "Who the node is; always 1.")
        .sample(&[("name", &s.name), ("version", version), ("volume", volume)], 1);
    let mut role = e.gauge("nasd_role", "Whether the node has this role.");
    for word in ["primary", "secondary"] {
        role.flag(&[("role", word)], s.role == word);
    }
    e.gauge("nasd_state", "How the node is, in one word; 1 for the word that holds.")
        .flag(&[("state", &s.state)], true);
    e.gauge("nasd_in_sync", "On a secondary: whether nothing is acknowledged without it.")
        .flag(&[], s.in_sync);
    e.gauge("nasd_epoch", "Grows with every promotion.").sample(&[], s.epoch);
}

fn positions(e: &mut Exposition, s: &Status) {
    for (name, help, value) in [
        ("nasd_seq", "The last transaction in the log.", s.seq),
        ("nasd_applied_seq", "The last transaction that the mount shows.", s.applied_seq),
        ("nasd_received_seq", "The last transaction that has arrived.", s.received_seq),
        ("nasd_durable_seq", "The last transaction that is on the disk.", s.durable_seq),
        ("nasd_checkpoint_seq", "Up to here a restart has nothing to redo.", s.checkpoint_seq),
        (
            "nasd_exposure_transactions",
            "On a primary: transactions that no peer has on disk.",
            s.exposure.transactions,
        ),
        ("nasd_exposure_bytes", "Their bytes, and those that no transaction holds yet.", s.exposure.bytes),
    ] {
        e.gauge(name, help).sample(&[], value);
    }
    e.gauge("nasd_exposure_seconds", "The age of the oldest of them.").sample(&[], s.exposure.seconds);
}

fn files(e: &mut Exposition, s: &Status) {
    let held = s.postgresql.as_ref().map_or((0, 0), |d| (d.held_files, d.held_bytes));
    for (name, help, value) in [
        ("nasd_files", "Files in the volume.", s.files),
        ("nasd_log_files", "Transactions in the log directory.", s.log.files),
        ("nasd_log_bytes", "Their bytes.", s.log.bytes),
        ("nasd_spare_files", "Aged transaction files, kept to be overwritten.", s.log.spare_files),
        ("nasd_diverged_files", "Transactions that were set aside.", s.diverged.files),
        ("nasd_diverged_bytes", "Their bytes.", s.diverged.bytes),
        ("nasd_held_files", "Files that the primary removed and this node's database still needs.", held.0),
        ("nasd_held_bytes", "Their bytes.", held.1),
    ] {
        e.gauge(name, help).sample(&[], value);
    }
}

fn peers(e: &mut Exposition, peers: &[PeerStatus]) {
    let mut state = e.gauge("nasd_peer_state", "How a peer is, in one word; 1 for the word that holds.");
    for p in peers {
        state.flag(&[("peer", &p.name), ("state", &p.state)], true);
    }
    let mut each = |name, help, value: fn(&PeerStatus) -> f64| {
        let mut metric = e.gauge(name, help);
        for p in peers {
            metric.sample(&[("peer", &p.name)], value(p));
        }
    };
    each("nasd_peer_in_set", "Whether commits wait for the peer.", |p| f64::from(u8::from(p.in_set)));
    each("nasd_peer_received_seq", "What the peer has in memory.", |p| p.received_seq as f64);
    each("nasd_peer_durable_seq", "What the peer has on disk.", |p| p.durable_seq as f64);
    each("nasd_peer_applied_seq", "What the peer shows.", |p| p.applied_seq as f64);
    each("nasd_peer_lag_transactions", "Transactions that it does not have on disk.", |p| {
        p.lag_transactions as f64
    });
    each("nasd_peer_lag_bytes", "Their bytes.", |p| p.lag_bytes as f64);
    each("nasd_peer_lag_seconds", "The age of the oldest of them.", |p| p.lag_seconds);
    each("nasd_peer_copied_bytes", "Bytes sent in the copy or resync under way, or the last.", |p| {
        p.copied_bytes as f64
    });
    each("nasd_peer_round_trip_seconds", "Its link, when it was last asked.", |p| {
        p.round_trip_us as f64 / 1e6
    });
    each("nasd_peer_fdatasync_seconds", "Its last write and fdatasync.", |p| p.fdatasync_us as f64 / 1e6);
}

fn commits(e: &mut Exposition, times: &CommitTimes, peers: Option<&Peers>) {
    let stages = times.stages();
    let mut total =
        e.histogram("nasd_commit_seconds", "A commit, from its beginning until it may be acknowledged.");
    for (_, histogram) in stages.iter().filter(|(name, _)| *name == "total") {
        total.observed(&[], &histogram.cumulative());
    }
    let mut stage = e.histogram(
        "nasd_commit_stage_seconds",
        "Where commits spend their time; local and the way to the peers (wire, and peer: its disk) run side by side.",
    );
    for (name, histogram) in stages.iter().filter(|(name, _)| *name != "total") {
        stage.observed(&[("stage", name)], &histogram.cumulative());
    }
    for (row, journey) in peers.iter().flat_map(|p| p.rows().into_iter().zip(p.journeys())) {
        stage.observed(&[("stage", "wire"), ("peer", &row.name)], &journey.wire.cumulative());
        stage.observed(&[("stage", "peer"), ("peer", &row.name)], &journey.peer.cumulative());
    }
}

fn counters(e: &mut Exposition, s: &Status) {
    let mut events = e.counter("nasd_events_total", "Changes of state, by kind.");
    for (kind, n) in &s.events {
        events.sample(&[("kind", kind)], n);
    }
    for (name, help, key) in [
        (
            "nasd_watcher_applied_total",
            "Transactions that the watcher of the log directory had applied.",
            "applied",
        ),
        ("nasd_watcher_overflows_total", "How often the kernel's queue was full.", "overflows"),
        ("nasd_watcher_rescans_total", "How often the log directory was read as a whole.", "rescans"),
    ] {
        if let Some(n) = s.watcher.get(key) {
            e.counter(name, help).sample(&[], n);
        }
    }
}

fn notifications(e: &mut Exposition, rules: &[NotifyStats]) {
    let mut each = |name, help, value: fn(&NotifyStats) -> u64| {
        let mut metric = e.counter(name, help);
        for (i, rule) in rules.iter().enumerate() {
            metric.sample(&[("rule", &(i + 1).to_string()), ("way", &rule.way)], value(rule));
        }
    };
    each("nasd_notifications_sent_total", "By rule, in the order of the configuration.", |r| r.sent);
    each("nasd_notifications_failed_total", "By rule, in the order of the configuration.", |r| r.failed);
}

fn failover(e: &mut Exposition, s: &Status) {
    let f = &s.failover;
    e.gauge("nasd_primary_silent_seconds", "On a secondary: for how long nothing was heard of a primary.")
        .sample(&[], f.silent_seconds);
    if f.mode == "etcd" {
        e.gauge("nasd_etcd_reachable", "Whether etcd answers.").flag(&[], f.etcd_error.is_none());
    }
    if f.virtual_address.is_some() {
        e.gauge("nasd_holds_address", "Whether the virtual address is here.").flag(&[], f.holds_address);
    }
}
