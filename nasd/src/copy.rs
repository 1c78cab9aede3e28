//! A full copy, and the comparison that repairs a replica: the primary's side.
//!
//! The peer says what it has; the primary sends operations for what differs, and all transactions from the beginning
//! on, while it goes on writing. What it reads is therefore of no single moment; the redo of all those transactions on
//! the peer makes it so (see `volume::compare`).

use crate::link::Link;
use crate::node::Node;
use crate::peers::{PeerState, Peers, SessionError};
use crate::protocol::{self, Incoming, Message, kind};
use nasd_volume::compare::{CompareError, Gone, Item};
use nasd_volume::{FileId, Position, Volume};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Makes peer `i` equal. When it returns the peer is a replica as of some position, and sending goes on behind it.
///
/// Its log goes on from `fork`, where it ends now and ours has been; without one it begins anew.
pub fn run(
    peers: &Arc<Peers>,
    i: usize,
    node: &Arc<Node>,
    volume: &Arc<Volume>,
    link: &Arc<Link>,
    fork: Option<Position>,
) -> Result<(), SessionError> {
    // An older base costs the transactions since then; they are redone on files that have them already, as after a
    // crash.
    let base = match fork {
        Some(fork) => fork,
        None => peers.seal_point(volume)?,
    };
    // What differs is read behind it: older files would never get what lies between.
    peers.wait_data(volume, base.seq)?;
    // Of the base itself: the peer refuses what is older than that, and the next it gets is the one behind the base.
    let timestamp = volume.log.entry(base.seq).map_or(0, |e| e.timestamp);
    protocol::say(link, &Message::CopyBegin { volume: volume.id(), base, timestamp })?;
    let timeout = node.config.replication.peer_timeout;
    let (theirs, _) = hear_manifest(node, link)?;
    peers.start_sending(i, link, base.seq + 1);
    let fresh = peers.rows()[i].state == PeerState::FullCopy;
    let what = if fresh { "full copy to" } else { "resync of" };
    let what = format!("{what} {}", link.peer_name());
    let work = node.progress.begin(what, Some(volume.content_bytes()));
    let gone = |gone| {
        if let Gone::Settled(n) = gone {
            work.step(n);
        }
    };
    let result = volume.differences(theirs, gone, |ops, n| -> Result<(), SessionError> {
        link.send(kind::COPY_OPS, &[&n.to_le_bytes(), ops])?;
        peers.copied(i, ops.len() as u64);
        // The log must not outgrow its limits before the peer has it.
        peers.pump(i, volume)?;
        while let Some(frame) = link.recv_timeout(Duration::ZERO)? {
            take(peers, i, link, protocol::understand(link, frame)?)?;
        }
        Ok(())
    });
    match result {
        Ok(found) => tracing::info!(?found, "compared"),
        Err(CompareError::Sink(e)) => return Err(e),
        Err(CompareError::Io(e)) => return Err(SessionError::Compare(e.to_string())),
    }
    drop(work);
    let end = peers.seal_point(volume)?;
    while !sent_up_to(peers, i, volume, end.seq)? {
        match link.recv_timeout(timeout)? {
            Some(frame) => take(peers, i, link, protocol::understand(link, frame)?)?,
            None => return Err(SessionError::Silent(timeout)),
        };
    }
    protocol::say(link, &Message::CopyEnd(end))?;
    loop {
        match link.recv_timeout(timeout)? {
            Some(frame) => {
                if take(peers, i, link, protocol::understand(link, frame)?)? {
                    return Ok(());
                }
            }
            None => return Err(SessionError::Silent(timeout)),
        }
    }
}

fn sent_up_to(peers: &Peers, i: usize, volume: &Volume, seq: u64) -> Result<bool, SessionError> {
    Ok(peers.pump(i, volume)? || peers.sent(i) > seq)
}

/// Takes what the peer says during a copy; true: the copy is done.
fn take(peers: &Peers, i: usize, link: &Link, incoming: Incoming) -> Result<bool, SessionError> {
    match incoming {
        Incoming::Ack(a) => peers.note_ack(i, a),
        Incoming::Message(m) => match *m {
            Message::CopyDone => return Ok(true),
            Message::Pong(_) | Message::InSyncNoted(_) => {}
            m => {
                return Err(
                    protocol::unexpected(link, Incoming::Message(Box::new(m)), "an acknowledgement").into()
                );
            }
        },
        other => return Err(protocol::unexpected(link, other, "an acknowledgement").into()),
    }
    Ok(false)
}

/// Takes a manifest; what it is as of comes with it.
pub fn hear_manifest(node: &Node, link: &Link) -> Result<(HashMap<FileId, Item>, u64), SessionError> {
    let timeout = node.config.replication.peer_timeout;
    // How much it has only the peer knows.
    let work = node.progress.begin(format!("{} reads its files", link.peer_name()), None);
    let mut all = HashMap::new();
    loop {
        // The peer acknowledges something now and then while it computes.
        let Some(frame) = link.recv_timeout(timeout)? else {
            return Err(SessionError::Silent(timeout));
        };
        match protocol::understand(link, frame)? {
            Incoming::Ack(_) => {}
            Incoming::Message(m) => match *m {
                Message::Manifest(items) => {
                    work.step(items.iter().map(|i| i.size).sum());
                    all.extend(items.into_iter().map(|i| (i.id, i)));
                }
                Message::ManifestEnd(applied) => return Ok((all, applied)),
                Message::Pong(_) | Message::InSyncNoted(_) => {}
                m => {
                    return Err(
                        protocol::unexpected(link, Incoming::Message(Box::new(m)), "a manifest").into()
                    );
                }
            },
            other => return Err(protocol::unexpected(link, other, "a manifest").into()),
        }
    }
}
