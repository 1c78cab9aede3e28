//! The third vote of this volume: the record as it was last seen, and writing it.

use crate::events::Kind;
use crate::node::Node;
use crate::vote::record::Record;
use crate::vote::{Put, Store, VoteError};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// No answer for so long is none.
const PATIENCE: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(2);

/// The record, and which one it is: whoever decides something by it writes on the condition that it still is that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    revision: i64,
    pub record: Option<Record>,
}

/// The third vote. It is looked at by a thread of its own; the record is written by whoever changes what it says.
pub struct Votes {
    config: nasd_config::Etcd,
    patience: Duration,
    store: OnceLock<Store>,
    /// What was last read or written, or why nothing could be.
    seen: Mutex<Result<Seen, String>>,
}

/// The record could not be read, or it is not what it was.
#[derive(Debug, thiserror::Error)]
pub enum VotesError {
    #[error("{0}")]
    Vote(#[from] VoteError),
    #[error("another node was faster: {0}")]
    Changed(String),
    #[error("it is not known whether the record was written, or will be: {0}")]
    Unsure(String),
    #[error("{0}")]
    Record(#[from] crate::vote::record::RecordError),
    #[error("this node has no volume yet, so etcd has no record of it")]
    NoVolume,
}

impl Votes {
    pub fn new(config: nasd_config::Etcd, timeout: Duration) -> Votes {
        Votes {
            config,
            patience: (timeout / 4).clamp(*PATIENCE.start(), *PATIENCE.end()),
            store: OnceLock::new(),
            seen: Mutex::new(Err("etcd was not asked yet".to_owned())),
        }
    }

    fn store(&self, node: &Node) -> Result<&Store, VotesError> {
        let id = node.volume().ok_or(VotesError::NoVolume)?.id();
        Ok(self.store.get_or_init(|| Store::new(&self.config, &id.to_string())))
    }

    /// What was last seen, and whether that is recent: an error says why there is nothing.
    pub fn seen(&self) -> Result<Seen, String> {
        self.seen.lock().clone()
    }

    fn note(&self, key: &str, revision: i64, value: Option<&[u8]>) -> Result<Seen, VotesError> {
        let record = value.map(|bytes| Record::parse(key, bytes)).transpose()?;
        let new = Seen { revision, record };
        let mut seen = self.seen.lock();
        // An answer may be overtaken by a newer one.
        if !matches!(&*seen, Ok(s) if s.revision > revision && revision > 0) {
            *seen = Ok(new.clone());
        }
        Ok(new)
    }

    fn failed<T>(&self, e: VotesError) -> Result<T, VotesError> {
        *self.seen.lock() = Err(e.to_string());
        Err(e)
    }

    /// The record as it is now.
    pub fn read(&self, node: &Node) -> Result<Seen, VotesError> {
        let store = self.store(node)?;
        let got = store.get(self.patience).map_err(VotesError::from);
        match got.and_then(|v| self.note(store.key(), v.revision, v.value.as_deref())) {
            Ok(seen) => Ok(seen),
            Err(e) => self.failed(e),
        }
    }

    /// Writes the record, if it still is the one that `base` is: what the decision was made by. When it is not known whether
    /// it was written it is read again; a failure then does not mean that it is not, or never will be.
    pub fn write(&self, node: &Node, base: &Seen, record: &Record) -> Result<(), VotesError> {
        let store = self.store(node)?;
        let bytes = record.encode();
        match store.put_if(base.revision, bytes.clone(), self.patience) {
            Ok(Put::Done(revision)) => {
                self.note(store.key(), revision, Some(&bytes))?;
                Ok(())
            }
            Ok(Put::Changed(now)) => {
                let now = self.note(store.key(), now.revision, now.value.as_deref())?;
                changed(base, record, now)
            }
            Err(e) => {
                let now = self.read(node).map_err(|_| VotesError::Unsure(e.to_string()))?;
                // What is there now may still be overtaken by what was written.
                changed(base, record, now).map_err(|e| VotesError::Unsure(e.to_string()))
            }
        }
    }
}

/// It is what was to be written, and newer than what it was to replace: it was, and only the answer was lost.
fn changed(base: &Seen, wanted: &Record, now: Seen) -> Result<(), VotesError> {
    if now.revision > base.revision && now.record.as_ref() == Some(wanted) {
        return Ok(());
    }
    let says = match now.record {
        Some(r) => format!("{} is primary of epoch {}", r.primary, r.epoch),
        None => "etcd has no record of this volume".to_owned(),
    };
    Err(VotesError::Changed(says))
}

/// Looks at the record as often as the state machine steps.
pub fn poll(node: &Arc<Node>) {
    let Some(votes) = node.failover.votes() else { return };
    while !node.stopping() {
        let (word, text) = match votes.read(node) {
            Ok(_) => ("answering", "etcd answers".to_owned()),
            // There is nothing to ask for yet.
            Err(VotesError::NoVolume) => (node.events.word(Kind::Etcd), String::new()),
            Err(e) => ("failing", format!("etcd: {e}")),
        };
        if word != node.events.word(Kind::Etcd) {
            node.events.emit_state(Kind::Etcd, word, text);
            node.failover.bell().ring();
        }
        std::thread::sleep(node.config.failover.interval);
    }
}
