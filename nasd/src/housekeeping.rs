//! What has to happen now and then: sealing what nobody synced, spares, checkpoints, pruning.

use crate::node::Node;
use crate::peers::PeerState;
use nasd_volume::log::Retention;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A checkpoint comes at least this often while something changes.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// How often spares are topped up and the log is pruned.
const TICK: Duration = Duration::from_millis(100);
/// Files pruned at a time, some 12 µs each.
const PORTION: u64 = 16;
/// How long the log is left alone between two portions.
const BREATH: Duration = Duration::from_millis(1);

/// Seals what nobody synced: every `commit_interval`, sooner when it is much or a file was closed.
pub fn seal(node: &Arc<Node>) {
    let interval = node.config.replication.commit_interval;
    while !node.stopping() {
        node.seal_turns.fetch_add(1, Ordering::Relaxed);
        match node.volume().filter(|v| v.writable()) {
            Some(volume) => {
                if let Err(e) = volume.seal_unsynced(interval) {
                    tracing::debug!("sealing: {e}");
                    std::thread::sleep(interval);
                }
            }
            None => std::thread::sleep(interval),
        }
    }
}

/// Tops up spares, checkpoints and prunes.
pub fn tidy(node: &Arc<Node>) {
    let log = &node.config.log;
    let limits = Retention {
        age: i64::try_from(log.retain_for.as_nanos()).unwrap_or(i64::MAX),
        bytes: log.retain_bytes,
        files: log.retain_files,
    };
    let mut last = Instant::now();
    let mut last_seq = None;
    let mut rest = TICK;
    while !node.stopping() {
        node.tidy_turns.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(std::mem::replace(&mut rest, TICK));
        let Some(volume) = node.volume() else {
            continue;
        };
        let tail = volume.log.tail().seq;
        if last_seq != Some(tail) {
            let made = if last_seq.is_none() { volume.log.stock() } else { volume.log.top_up() };
            if let Err(e) = made {
                tracing::debug!("spares: {e}");
            }
            last_seq = Some(tail);
        }
        let state = volume.state.get();
        let applied = volume.applied().seq;
        let behind = applied.saturating_sub(state.checkpoint.seq);
        // Well before a limit is reached, so that there is always something that may be pruned.
        let stats = volume.log.stats();
        let crowded = behind > log.retain_files / 4
            || (stats.bytes > log.retain_bytes / 2
                && behind > 0
                && stats.files > 0
                && behind * 4 > stats.files);
        if behind > 0 && (last.elapsed() > CHECKPOINT_EVERY || crowded) {
            if let Err(e) = volume.checkpoint() {
                tracing::error!("checkpoint: {e}");
            }
            last = Instant::now();
        }
        let needed = match node.peers() {
            Some(p) => p.rows().iter().map(|r| r.ack.durable + 1).min().unwrap_or(u64::MAX),
            // One that a secondary feeds counts while it is fed.
            None => {
                let fed = node.relay.rows().into_iter().filter(|r| r.state == PeerState::CatchUp);
                fed.map(|r| r.ack.durable + 1).min().unwrap_or(u64::MAX)
            }
        };
        // In small portions: a busy log ages by hundreds of files in a tick, and commits need the processor as well.
        let start = Instant::now();
        loop {
            match volume.prune(&limits, needed, PORTION) {
                // A log that grows faster than this is pruned on in the next tick, behind what else is to be done.
                Ok(PORTION) if start.elapsed() < TICK => std::thread::sleep(BREATH),
                Ok(PORTION) => {
                    rest = Duration::ZERO;
                    break;
                }
                Ok(_) => break,
                Err(e) => {
                    tracing::error!("pruning: {e}");
                    break;
                }
            }
        }
    }
}
