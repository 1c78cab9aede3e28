//! The record of who is primary: what a third vote keeps, and how it may change.
//!
//! It is changed by compare-and-swap only, and only in these ways, so that at any time at most one node may acknowledge
//! alone, and whoever is promoted has everything that was acknowledged.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The version of what [`Record::encode`] writes.
const VERSION: u32 = 1;

/// Who is primary, of which epoch, and who has everything that was acknowledged in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub epoch: u64,
    pub primary: String,
    /// Who may be promoted: nothing is acknowledged without them. The primary is one of them.
    pub in_sync: BTreeSet<String>,
    /// On how many of the others an acknowledged transaction is at least (or on all, if they are fewer).
    pub required: usize,
}

/// What lies in etcd.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    #[serde(flatten)]
    record: Record,
}

/// The record may not be changed so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("{primary} went on without this node in epoch {epoch}: it lacks what was committed since")]
    NotInSync { primary: String, epoch: u64 },
    #[error("epoch {epoch} is known already")]
    Stale { epoch: u64 },
    #[error("{primary} is primary of epoch {epoch}")]
    NotPrimary { primary: String, epoch: u64 },
}

/// What lies there is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error(
        "the record can't be read ({0}); somebody else writes to this key: set another prefix in [failover.etcd]"
    )]
    Garbage(String),
    #[error("the record has version {0}, this nasd knows {VERSION}; run the same nasd on all nodes")]
    Version(u32),
}

impl Record {
    /// Of a volume that has none, or whose record is not to be trusted any more: `me` alone.
    pub fn first(me: &str, epoch: u64, required: usize) -> Record {
        Record { epoch, primary: me.to_owned(), in_sync: BTreeSet::from([me.to_owned()]), required }
    }

    /// `me` becomes primary of `epoch`, alone.
    ///
    /// # Errors
    /// When it may lack something, or the epoch is not a new one.
    pub fn promoted(&self, me: &str, epoch: u64) -> Result<Record, Denied> {
        if !self.in_sync.contains(me) {
            return Err(Denied::NotInSync { primary: self.primary.clone(), epoch: self.epoch });
        }
        if epoch <= self.epoch {
            return Err(Denied::Stale { epoch });
        }
        Ok(Record::first(me, epoch, self.required))
    }

    /// The primary `me` goes on without `peer`.
    ///
    /// # Errors
    /// When it is not primary any more.
    pub fn without(&self, me: &str, epoch: u64, peer: &str) -> Result<Record, Denied> {
        let mut next = self.of_primary(me, epoch)?;
        next.in_sync.remove(peer);
        Ok(next)
    }

    /// The primary `me` acknowledges nothing without `peer` (or what `required` says) from now on.
    ///
    /// # Errors
    /// When it is not primary any more.
    pub fn with(&self, me: &str, epoch: u64, peer: &str) -> Result<Record, Denied> {
        let mut next = self.of_primary(me, epoch)?;
        next.in_sync.insert(peer.to_owned());
        Ok(next)
    }

    fn of_primary(&self, me: &str, epoch: u64) -> Result<Record, Denied> {
        if self.primary != me || self.epoch != epoch {
            return Err(Denied::NotPrimary { primary: self.primary.clone(), epoch: self.epoch });
        }
        Ok(self.clone())
    }

    /// As JSON, which an operator can read with etcd's own tools.
    pub fn encode(&self) -> Vec<u8> {
        // Strings and numbers: nothing of it can fail.
        serde_json::to_vec(&Written { version: VERSION, record: self.clone() }).unwrap_or_default()
    }

    /// Reads what [`Record::encode`] wrote.
    ///
    /// # Errors
    /// When it is something else, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
        let garbage = |e: serde_json::Error| RecordError::Garbage(e.to_string());
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(garbage)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(v) if v == u64::from(VERSION) => {}
            Some(v) => return Err(RecordError::Version(u32::try_from(v).unwrap_or(u32::MAX))),
            None => return Err(RecordError::Garbage("it has no version".to_owned())),
        }
        let written: Written = serde_json::from_value(value).map_err(garbage)?;
        Ok(written.record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_read_as_it_was_written() {
        let record = Record::first("a", 3, 2).with("a", 3, "b").unwrap();
        assert_eq!(Record::decode(&record.encode()), Ok(record));
        assert_eq!(
            Record::decode(br#"{"version":1,"epoch":3,"primary":"a","in_sync":["a"],"required":1}"#),
            Ok(Record::first("a", 3, 1)),
            "what an older nasd wrote"
        );
        assert!(matches!(Record::decode(b"{\"version\":2}"), Err(RecordError::Version(2))));
        assert!(matches!(Record::decode(b"hello"), Err(RecordError::Garbage(_))));
        assert!(matches!(Record::decode(b"{\"epoch\":1}"), Err(RecordError::Garbage(_))));
    }

    proptest! {
        /// Nodes that act on what they once saw, through a compare-and-swap.
        #[test]
        fn one_primary_an_epoch_and_nobody_from_outside(
            steps in prop::collection::vec((0usize..3, 0usize..3, 0usize..3, any::<bool>()), 1..200)
        ) {
            let names = ["a", "b", "c"];
            let mut now = (0u64, Record::first("a", 1, 1));
            let mut seen: Vec<_> = vec![now.clone(); 3];
            let mut primaries = std::collections::BTreeMap::from([(1u64, "a".to_owned())]);
            for (who, what, other, look) in steps {
                if look {
                    seen[who] = now.clone();
                    continue;
                }
                let (revision, record) = &seen[who];
                let (me, peer) = (names[who], names[other]);
                let next = match what {
                    0 => record.promoted(me, record.epoch + 1),
                    1 => record.with(me, record.epoch, peer),
                    _ if me != peer => record.without(me, record.epoch, peer),
                    _ => continue,
                };
                let Ok(next) = next else { continue };
                if *revision != now.0 {
                    continue;
                }
                prop_assert!(next.epoch >= now.1.epoch);
                if next.primary != now.1.primary || next.epoch != now.1.epoch {
                    prop_assert!(now.1.in_sync.contains(me), "from outside");
                    prop_assert!(primaries.insert(next.epoch, me.to_owned()).is_none(), "two of one epoch");
                }
                prop_assert!(next.in_sync.contains(&next.primary));
                now = (now.0 + 1, next);
                seen[who] = now.clone();
            }
        }
    }
}
