//! Reading the record and changing it by compare-and-swap, in a time that the caller sets.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetResponse, Txn, TxnOp, TxnOpResponse, TxnResponse};
use nasd_config::Etcd;
use tokio::time::timeout_at;

use super::VoteError;
use super::driver::Driver;
use super::members::{Limit, Members};

/// The record as it is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// etcd's revision of the last change of it; 0: there is none.
    pub revision: i64,
    /// What it holds; `None`: there is none.
    pub value: Option<Vec<u8>>,
}

/// What etcd found under one key.
pub(super) fn versioned(mut found: GetResponse) -> Versioned {
    match found.take_kvs().pop() {
        Some(record) => Versioned { revision: record.mod_revision(), value: Some(record.into_key_value().1) },
        None => Versioned { revision: 0, value: None },
    }
}

/// How a conditional write ended that etcd has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// It is written, and this is its revision.
    Done(i64),
    /// It was not written, as it is not at that revision any more: somebody else changed it, to this.
    ///
    /// It may be one's own earlier write, if that one ended with [`VoteError::Unreachable`]: look at the value.
    Changed(Versioned),
}

/// One volume's record in etcd. Blocking, for ordinary threads, several at a time if need be.
pub struct Store {
    members: Arc<Members>,
    key: String,
    driver: io::Result<Driver>,
}

impl Store {
    /// Connects at the first call, so that a node starts without etcd.
    pub fn new(config: &Etcd, volume: &str) -> Self {
        let key = format!("{}/{volume}", config.prefix);
        Self { members: Arc::new(Members::new(config)), key, driver: Driver::start() }
    }

    /// Where the record is, for messages and for etcdctl.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The record, no older than this call: a member asks the leader, and the leader the majority.
    pub fn get(&self, timeout: Duration) -> Result<Versioned, VoteError> {
        let (members, key, limit) = (Arc::clone(&self.members), self.key.clone(), Limit::new(timeout));
        self.run(timeout, async move { Ok(members.read(&key, limit).await?.1) })
    }

    /// Writes `value` if the record's revision is still `revision` (0: if there is no record).
    ///
    /// After [`VoteError::Unreachable`] **it is not known whether it was written, nor whether it still will be**; see
    /// there how to find out. After [`VoteError::Refused`] it was not.
    pub fn put_if(&self, revision: i64, value: Vec<u8>, timeout: Duration) -> Result<Put, VoteError> {
        let (members, key, limit) = (Arc::clone(&self.members), self.key.clone(), Limit::new(timeout));
        self.run(timeout, async move { put_if(&members, key, revision, value, limit).await })
    }

    fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T, VoteError>> + Send + 'static,
    ) -> Result<T, VoteError> {
        let driver = self.driver.as_ref().map_err(|e| {
            VoteError::unreachable(format!("this process can't start the thread that would ask it: {e}"))
        })?;
        let late = || VoteError::unreachable(format!("no answer within {timeout:?}"));
        driver.run(timeout, work).unwrap_or_else(|| Err(late()))
    }
}

/// The write goes to a member that has just answered a read, and once: a second one would fail by what the first has
/// done. So a dead connection is found where that does no harm.
async fn put_if(
    members: &Members,
    key: String,
    revision: i64,
    value: Vec<u8>,
    limit: Limit,
) -> Result<Put, VoteError> {
    let (mut member, now) = members.read(&key, limit).await?;
    if now.revision != revision {
        return Ok(Put::Changed(now));
    }
    let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
    let txn = Txn::new()
        .when([unchanged])
        .and_then([TxnOp::put(key.as_str(), value, None)])
        .or_else([TxnOp::get(key, None)]);
    let failed = match timeout_at(limit.at, member.client.txn(txn)).await {
        Ok(Ok(answer)) => match outcome(&answer) {
            Some(put) => return Ok(put),
            None => VoteError::unreachable(format!("{}: an answer without what was asked", member.endpoint)),
        },
        // Its certificate and ours were good for the read: what TLS says now is no refusal of this write.
        Ok(Err(e)) => VoteError::from_client(&member.endpoint, &e),
        Err(_) => VoteError::unreachable(format!("{}: {}", member.endpoint, limit.passed())),
    };
    members.forget();
    Err(failed)
}

fn outcome(answer: &TxnResponse) -> Option<Put> {
    if answer.succeeded() {
        return Some(Put::Done(answer.header()?.revision()));
    }
    match answer.op_responses().pop()? {
        TxnOpResponse::Get(found) => Some(Put::Changed(versioned(found))),
        _ => None,
    }
}
