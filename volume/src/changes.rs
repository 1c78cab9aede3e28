//! Which paths a transaction in the log changed, for consumers that hear of it late.

use crate::log::LogError;
use crate::op::{Op, Ops};
use crate::tree::Tree;
use crate::txn::Txn;
use crate::volume::{Applied, Volume};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// A look into the log.
#[derive(Debug, Default)]
pub struct Past {
    /// The last transaction before those that are there, if that is behind where the look began.
    pub gone: Option<u64>,
    /// What is there, one for each whole transaction.
    pub applied: Vec<Applied>,
    /// There is nothing else up to here.
    pub upto: u64,
}

impl Volume {
    /// What the whole transactions behind `after` changed: those up to `upto`, but not many more than `most`. Paths are
    /// those that the files have now; what is gone is named by the operation that took it away, in the directory as it
    /// is called now.
    pub fn changes(&self, after: u64, upto: u64, most: usize) -> Past {
        let mut past = Past { upto: after, ..Past::default() };
        let Some(oldest) = self.log.oldest() else { return Past { gone: Some(upto), upto, ..past } };
        if after + 1 < oldest {
            past.gone = Some(oldest - 1);
            past.upto = oldest - 1;
        }
        let mut paths = BTreeSet::new();
        for seq in past.upto + 1..=upto {
            let Ok(header) = self.changed_by(seq, &mut paths).map(|txn| txn.header) else {
                // Pruned or set aside at this moment, or damaged: what was found before it still counts.
                if past.applied.is_empty() {
                    past.gone = Some(seq);
                    past.upto = seq;
                }
                break;
            };
            if header.continues {
                continue;
            }
            past.upto = seq;
            past.applied.push(Applied {
                position: Some(header.position),
                timestamp: header.timestamp,
                paths: std::mem::take(&mut paths).into_iter().collect(),
            });
            if past.applied.len() >= most {
                break;
            }
        }
        past
    }

    fn changed_by(&self, seq: u64, paths: &mut BTreeSet<Vec<u8>>) -> Result<std::sync::Arc<Txn>, LogError> {
        let txn = self.log.read(seq)?;
        let damaged = |why: String| LogError::Unreadable { seq, path: self.log.dir().to_owned(), why };
        let payload = txn.payload().map_err(|e| damaged(e.to_string()))?;
        // In portions: a transaction may hold very many, and nobody changes a name meanwhile.
        let mut ops = Ops::new(&payload);
        while let ControlFlow::Continue(()) = {
            let tree = self.tree.read();
            let mut left = 1024;
            loop {
                match ops.next() {
                    None => break ControlFlow::Break(()),
                    Some(op) => note(&tree, &op.map_err(|e| damaged(e.to_string()))?, paths),
                }
                left -= 1;
                if left == 0 {
                    break ControlFlow::Continue(());
                }
            }
        } {}
        Ok(txn)
    }
}

/// Notes the same paths as an application does: the file's, and the directory's where an entry changed.
fn note(tree: &Tree, op: &Op<'_>, paths: &mut BTreeSet<Vec<u8>>) {
    // What is removed has the entry's path; other names that it may have did not change.
    if !matches!(op, Op::Remove { .. }) {
        paths.extend(op.files().filter_map(|id| tree.user_path(id)).filter(|path| !path.is_empty()));
    }
    for (parent, name) in op.entries() {
        let Some(mut path) = tree.user_path(parent) else { continue };
        if !path.is_empty() {
            paths.insert(path.clone());
            path.push(b'/');
        }
        path.extend_from_slice(name);
        paths.insert(path);
    }
}
