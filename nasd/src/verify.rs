//! The scrub that an operator asks for: this node's files against each peer's.

use crate::copy;
use crate::events::Kind;
use crate::node::{Node, RoleError};
use crate::peers::{PeerState, SessionError};
use crate::protocol::{self, Message};
use nasd_volume::compare::{CompareError, Gone};
use nasd_volume::op::{Op, Ops};
use nasd_volume::{FileId, Volume};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use utoipa::ToSchema;

/// What the comparison with a peer gave.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    pub peer: String,
    /// Files and bytes compared.
    pub files: u64,
    pub bytes: u64,
    /// Files that were changed meanwhile, and so were not judged.
    pub changing: u64,
    /// Paths that differ; at most 1000.
    pub different: Vec<String>,
}

/// Compares with every peer that is in sync.
pub fn run(node: &Arc<Node>) -> Result<Vec<Verified>, RoleError> {
    let refused = |why: &str| RoleError::Refused(why.to_owned());
    let (Some(volume), Some(peers)) = (node.volume(), node.peers()) else {
        return Err(refused("verify runs on the primary: ask that node"));
    };
    let mut all = Vec::new();
    for (i, row) in peers.rows().iter().enumerate().filter(|(_, r)| r.state == PeerState::InSync) {
        let v = verify(node, &volume, i)?;
        let verdict = if v.different.is_empty() {
            "equal".to_owned()
        } else {
            format!("{} files differ", v.different.len())
        };
        node.events.emit(Kind::Sync, format!("verified {} files against {}: {verdict}", v.files, row.name));
        all.push(v);
    }
    if all.is_empty() {
        return Err(refused("no peer is in sync to compare with; see `nasd status`"));
    }
    Ok(all)
}

fn verify(node: &Arc<Node>, volume: &Arc<Volume>, i: usize) -> Result<Verified, RoleError> {
    volume.commit_and_wait()?;
    let from = volume.log.tail().seq;
    let (link, hello) = node.dial(i)?;
    protocol::say(&link, &Message::AskManifest(from))?;
    let (theirs, as_of) = copy::hear_manifest(node, &link)?;
    let work = node.progress.begin(format!("verify against {}", hello.name), Some(volume.content_bytes()));
    let gone = |gone| {
        if let Gone::Read(n) = gone {
            work.step(n);
        }
    };
    let mut differ = BTreeSet::new();
    let compared = volume.differences(theirs, gone, |ops, _| -> Result<(), RoleError> {
        differ.extend(Ops::new(ops).filter_map(Result::ok).flat_map(|op| ids_of(&op)));
        Ok(())
    });
    let found = compared.map_err(|e| match e {
        CompareError::Sink(e) => e,
        CompareError::Io(e) => RoleError::Session(SessionError::Compare(e.to_string())),
    })?;
    // Whatever has a later operation, logged or still pending, was changing.
    volume.commit_and_wait()?;
    let mut changing = BTreeSet::new();
    for seq in as_of.min(from) + 1..=volume.log.tail().seq {
        let txn = volume.log.read(seq).map_err(SessionError::from)?;
        let payload = txn.payload().map_err(|e| RoleError::Refused(e.to_string()))?;
        changing.extend(Ops::new(&payload).filter_map(Result::ok).flat_map(|op| ids_of(&op)));
    }
    let different = differ.difference(&changing).take(1000).map(|&id| path(volume, id)).collect();
    Ok(Verified {
        peer: hello.name,
        files: found.files,
        bytes: found.bytes,
        changing: differ.intersection(&changing).count() as u64,
        different,
    })
}

fn path(volume: &Volume, id: FileId) -> String {
    volume.user_path(id).map_or_else(|| format!("file {id}"), |p| String::from_utf8_lossy(&p).into_owned())
}

fn ids_of<'a>(op: &Op<'a>) -> impl Iterator<Item = FileId> + use<'a> {
    op.files().chain(op.entries().map(|(directory, _)| directory))
}
