//! The record of who is primary.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Who is primary, of which epoch, and who has everything that was acknowledged in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub epoch: u64,
    pub primary: String,
    pub in_sync: BTreeSet<String>,
    pub required: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("not in sync")]
    NotInSync,
    #[error("stale")]
    Stale,
    #[error("not primary")]
    NotPrimary,
}

impl Record {
    pub fn first(me: &str, epoch: u64, required: usize) -> Record {
        Record { epoch, primary: me.to_owned(), in_sync: BTreeSet::from([me.to_owned()]), required }
    }
    pub fn promoted(&self, me: &str, epoch: u64) -> Result<Record, Denied> {
        if !self.in_sync.contains(me) { return Err(Denied::NotInSync); }
        if epoch <= self.epoch { return Err(Denied::Stale); }
        Ok(Record::first(me, epoch, self.required))
    }
    pub fn without(&self, me: &str, epoch: u64, peer: &str) -> Result<Record, Denied> {
        if self.primary != me || self.epoch != epoch { return Err(Denied::NotPrimary); }
        let mut r = self.clone();
        r.in_sync.remove(peer);
        Ok(r)
    }
    pub fn with(&self, me: &str, epoch: u64, peer: &str) -> Result<Record, Denied> {
        if self.primary != me || self.epoch != epoch { return Err(Denied::NotPrimary); }
        let mut r = self.clone();
        r.in_sync.insert(peer.to_owned());
        Ok(r)
    }
}
