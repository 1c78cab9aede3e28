//! What is in the record, and who may change it to what. No I/O: each change is a function of what was read, and is
//! written only if nothing has changed since.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What [`Record::encode`] writes and [`Record::parse`] reads.
const VERSION: u64 = 1;

/// Who is primary, of which epoch, and who has everything that was acknowledged in it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Grows with every promotion.
    pub epoch: u64,
    /// The node that may acknowledge in this epoch; nobody else may.
    pub primary: String,
    /// Who has everything that was acknowledged, and so may be promoted; the primary is one of them.
    pub in_sync: BTreeSet<String>,
    /// How many peers the primary waits for, as it was configured when the record was made.
    pub required: usize,
}

/// Why a change is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Somebody acknowledged without it.
    #[error(
        "{me} can't become primary: it may lack what {primary} acknowledged in epoch {epoch}; only {} has all of it",
        list(.in_sync)
    )]
    NotInSync {
        /// Who asked.
        me: String,
        /// The primary of the record.
        primary: String,
        /// The epoch of the record.
        epoch: u64,
        /// Who could be promoted.
        in_sync: BTreeSet<String>,
    },
    /// The epoch is taken, or over.
    #[error("{me} can't become primary of epoch {epoch}: {primary} has been that of epoch {current}")]
    Stale {
        /// Who asked.
        me: String,
        /// For which epoch.
        epoch: u64,
        /// The primary of the record.
        primary: String,
        /// The epoch of the record.
        current: u64,
    },
    /// Only the primary says who is in sync with it.
    #[error(
        "{me} can't change who is in sync in epoch {epoch}: it is not the primary of that any more, {primary} is primary of epoch {current}"
    )]
    NotPrimary {
        /// Who asked.
        me: String,
        /// The epoch that it takes itself for the primary of.
        epoch: u64,
        /// The primary of the record.
        primary: String,
        /// The epoch of the record.
        current: u64,
    },
    /// A primary has what it has acknowledged.
    #[error("{me} can't take itself out of those that are in sync: it is the primary")]
    Itself {
        /// The primary.
        me: String,
    },
}

/// The record can't be read. It is left as it is: it may say who has the only copy of what was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A newer nasd has written it.
    #[error(
        "the record {key} in etcd is of version {found}, and this nasd knows {VERSION}: update nasd here, or correct `prefix` in [failover.etcd]"
    )]
    Version {
        /// Where it is.
        key: String,
        /// What it says of itself.
        found: u64,
    },
    /// nasd has not written it.
    #[error(
        "what is in etcd under {key} is no record of nasd ({reason}): correct `prefix` in [failover.etcd] if something else lives there; else stop all nodes, etcdctl del {key}, and start the last primary first"
    )]
    Garbage {
        /// Where it is.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Record {
    /// The record of a volume that has none: `me` is primary, and alone until it knows better.
    pub fn first(me: &str, epoch: u64, required: usize) -> Self {
        Self { epoch, primary: me.to_owned(), in_sync: BTreeSet::from([me.to_owned()]), required }
    }

    /// `me` becomes primary of `epoch`, and alone until it knows better. Also of itself: a restart.
    pub fn promoted(&self, me: &str, epoch: u64) -> Result<Self, Denied> {
        if !self.in_sync.contains(me) {
            return Err(Denied::NotInSync {
                me: me.to_owned(),
                primary: self.primary.clone(),
                epoch: self.epoch,
                in_sync: self.in_sync.clone(),
            });
        }
        if epoch <= self.epoch {
            return Err(Denied::Stale {
                me: me.to_owned(),
                epoch,
                primary: self.primary.clone(),
                current: self.epoch,
            });
        }
        Ok(Self::first(me, epoch, self.required))
    }

    /// The primary goes on without `peer`, which may not be promoted from then on.
    pub fn without(&self, me: &str, epoch: u64, peer: &str) -> Result<Self, Denied> {
        self.check_primary(me, epoch)?;
        if peer == me {
            return Err(Denied::Itself { me: me.to_owned() });
        }
        let mut changed = self.clone();
        changed.in_sync.remove(peer);
        Ok(changed)
    }

    /// `peer` has everything, and will have everything that is acknowledged from then on.
    pub fn with(&self, me: &str, epoch: u64, peer: &str) -> Result<Self, Denied> {
        self.check_primary(me, epoch)?;
        let mut changed = self.clone();
        changed.in_sync.insert(peer.to_owned());
        Ok(changed)
    }

    fn check_primary(&self, me: &str, epoch: u64) -> Result<(), Denied> {
        if self.primary == me && self.epoch == epoch {
            return Ok(());
        }
        Err(Denied::NotPrimary {
            me: me.to_owned(),
            epoch,
            primary: self.primary.clone(),
            current: self.epoch,
        })
    }

    /// As it is stored: JSON, for `etcdctl get`.
    pub fn encode(&self) -> Vec<u8> {
        let Self { epoch, primary, in_sync, required } = self;
        serde_json::json!({
            "version": VERSION, "epoch": epoch, "primary": primary, "in_sync": in_sync, "required": required,
        })
        .to_string()
        .into_bytes()
    }

    /// What was stored under `key`.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, RecordError> {
        let garbage = |reason: String| RecordError::Garbage { key: key.to_owned(), reason };
        let mut value: Value = serde_json::from_slice(bytes).map_err(|e| garbage(e.to_string()))?;
        let version = value.as_object_mut().and_then(|fields| fields.remove("version"));
        match version.as_ref().and_then(Value::as_u64) {
            Some(VERSION) => (),
            Some(found) => return Err(RecordError::Version { key: key.to_owned(), found }),
            None => return Err(garbage("it has no version".to_owned())),
        }
        let record: Self = serde_json::from_value(value).map_err(|e| garbage(e.to_string()))?;
        if !record.in_sync.contains(&record.primary) {
            return Err(garbage(format!("its primary {} is not in sync with itself", record.primary)));
        }
        Ok(record)
    }
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const NODES: [&str; 3] = ["a", "b", "c"];

    /// What etcd does: the revision moves with every write, and a write names the one it was made from.
    #[derive(Default, Clone)]
    struct Register {
        revision: i64,
        record: Option<Record>,
    }

    impl Register {
        fn put_if(&mut self, revision: i64, record: Record) -> bool {
            let unchanged = revision == self.revision;
            if unchanged {
                *self = Self { revision: self.revision + 1, record: Some(record) };
            }
            unchanged
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// What it does later is made from this, however old it is by then.
        Read,
        First(u64),
        /// This much above the epoch that it knows of, or below.
        Promote(i64),
        Without(usize),
        With(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
        let step = prop_oneof![
            4 => Just(Step::Read),
            1 => (1..4_u64).prop_map(Step::First),
            3 => (-1..3_i64).prop_map(Step::Promote),
            2 => (0..NODES.len()).prop_map(Step::Without),
            3 => (0..NODES.len()).prop_map(Step::With),
        ];
        prop::collection::vec((0..NODES.len(), step), 1..200)
    }

    /// What a node writes, given what it has read and the epoch that it was primary of last.
    fn wish(me: &str, seen: &Register, own_epoch: u64, step: &Step) -> Option<Record> {
        match (step, &seen.record) {
            (Step::First(epoch), None) => Some(Record::first(me, *epoch, 1)),
            (Step::Promote(above), Some(r)) => r.promoted(me, r.epoch.saturating_add_signed(*above)).ok(),
            (Step::Without(peer), Some(r)) => r.without(me, own_epoch, NODES[*peer]).ok(),
            (Step::With(peer), Some(r)) => r.with(me, own_epoch, NODES[*peer]).ok(),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn nodes_that_race_keep_one_history(steps in steps()) {
            let mut etcd = Register::default();
            let mut seen = vec![Register::default(); NODES.len()];
            let mut own_epoch = [0; NODES.len()];
            let mut primary_of: BTreeMap<u64, String> = BTreeMap::new();
            for (node, step) in steps {
                let me = NODES[node];
                if matches!(step, Step::Read) {
                    seen[node] = etcd.clone();
                }
                let Some(new) = wish(me, &seen[node], own_epoch[node], &step) else { continue };
                let before = etcd.clone();
                if !etcd.put_if(seen[node].revision, new.clone()) {
                    prop_assert_eq!(&etcd.record, &before.record);
                    continue;
                }
                seen[node] = etcd.clone();
                if let Some(before) = &before.record {
                    prop_assert!(new.epoch >= before.epoch, "the epoch fell");
                    prop_assert_eq!(new.required, before.required);
                    if new.epoch > before.epoch {
                        prop_assert!(before.in_sync.contains(me), "it may lack something");
                    } else {
                        prop_assert_eq!(&new.primary, &before.primary);
                        prop_assert_eq!(me, before.primary.as_str());
                    }
                }
                prop_assert!(new.in_sync.contains(&new.primary));
                let primary = primary_of.entry(new.epoch).or_insert_with(|| new.primary.clone());
                prop_assert_eq!(&*primary, &new.primary, "two primaries in one epoch");
                if new.primary == me {
                    own_epoch[node] = new.epoch;
                }
                prop_assert_eq!(Record::parse("k", &new.encode()), Ok(new));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Record::parse("k", &bytes).is_err());
        }
    }

    fn record() -> Record {
        let mut record = Record::first("a", 3, 1);
        record.in_sync.insert("b".to_owned());
        record
    }

    #[test]
    fn who_is_denied_and_why() {
        assert_eq!(record().promoted("b", 4), Ok(Record::first("b", 4, 1)));
        assert_eq!(record().promoted("a", 4), Ok(Record::first("a", 4, 1)));
        let lacks = record().promoted("c", 4).unwrap_err().to_string();
        assert!(lacks.contains("c can't become primary") && lacks.contains("only a, b has all"), "{lacks}");
        assert!(matches!(record().promoted("b", 3), Err(Denied::Stale { current: 3, .. })));
        assert!(matches!(record().without("b", 3, "a"), Err(Denied::NotPrimary { .. })));
        assert!(matches!(record().with("a", 2, "c"), Err(Denied::NotPrimary { current: 3, .. })));
        assert!(matches!(record().without("a", 3, "a"), Err(Denied::Itself { .. })));
        assert_eq!(record().without("a", 3, "b"), Ok(Record::first("a", 3, 1)));
        assert_eq!(record().with("a", 3, "b"), Ok(record()));
    }

    #[test]
    fn as_it_is_stored() {
        let text = r#"{"version":1,"epoch":3,"primary":"a","in_sync":["a","b"],"required":1}"#;
        assert_eq!(Record::parse("k", text.as_bytes()), Ok(record()));
        let value: Value = serde_json::from_slice(&record().encode()).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn what_it_does_not_know_it_names() {
        let newer = Record::parse("/nasd/v", br#"{"version":2,"what":"ever"}"#).unwrap_err();
        assert_eq!(newer, RecordError::Version { key: "/nasd/v".to_owned(), found: 2 });
        for text in [
            "",
            "[]",
            "7",
            r#"{"epoch":3}"#,
            r#"{"version":"1"}"#,
            r#"{"version":1,"epoch":-3,"primary":"a","in_sync":["a"],"required":1}"#,
            r#"{"version":1,"epoch":3,"primary":"a","in_sync":["b"],"required":1}"#,
            r#"{"version":1,"epoch":3,"primary":"a","in_sync":["a"],"required":1,"more":0}"#,
        ] {
            let error = Record::parse("/nasd/v", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("under /nasd/v is no record of nasd"), "{text}: {error}");
        }
    }
}
