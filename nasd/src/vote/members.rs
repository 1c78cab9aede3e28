//! etcd's members: a request for one that answers.
//!
//! The connection that worked last is asked first. If it fails, or says nothing for [`PATIENCE`], new ones are made to
//! all endpoints at once, and the first that answers is kept. So a dead member costs nothing but a few packets, and
//! no connection is waited for that the network has forgotten. There is no backoff: whoever calls has to know now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nasd_config::Etcd;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::connect::Member;
use super::{Versioned, VoteError};

/// How long the connection that worked last is waited for alone; of a short time a quarter.
const PATIENCE: Duration = Duration::from_millis(300);

/// How long new connections are waited for before more are made beside them. The kernel repeats a connection's first
/// packet after one second, then after two more, then four; a network that is back need not wait for that.
const ROUND: Duration = Duration::from_secs(1);

/// Until when there has to be an answer, and how long that was from the start, for messages.
#[derive(Clone, Copy)]
pub struct Limit {
    pub at: Instant,
    timeout: Duration,
}

impl Limit {
    pub fn new(timeout: Duration) -> Self {
        // A year stands for ever; adding the largest duration would overflow.
        Self { at: Instant::now() + timeout.min(Duration::from_secs(365 * 86_400)), timeout }
    }

    pub fn passed(self) -> String {
        format!("no answer within {:?}", self.timeout)
    }
}

/// All of them.
pub struct Members {
    config: Arc<Etcd>,
    last: Mutex<Option<Member>>,
}

impl Members {
    pub fn new(config: &Etcd) -> Self {
        Self { config: Arc::new(config.clone()), last: Mutex::new(None) }
    }

    /// The record under `key`, and who said so.
    pub async fn read(&self, key: &str, limit: Limit) -> Result<(Member, Versioned), VoteError> {
        let mut asked = JoinSet::new();
        let mut failures = BTreeMap::new();
        let mut round = Instant::now();
        let mut only_last = false;
        if let Some(member) = self.last.lock().clone() {
            only_last = true;
            round += PATIENCE.min(limit.timeout / 4);
            let key = key.to_owned();
            asked.spawn(async move { ask(member, key).await });
        }
        loop {
            tokio::select! {
                biased;
                Some(answer) = asked.join_next() => match answer {
                    Ok(Ok((member, record))) => {
                        *self.last.lock() = Some(member.clone());
                        return Ok((member, record));
                    }
                    Ok(Err((endpoint, error))) => {
                        failures.insert(endpoint, error);
                        if asked.is_empty() {
                            if !only_last {
                                break;
                            }
                            round = Instant::now();
                        }
                    }
                    // A panic in a library is no answer.
                    Err(e) => {
                        failures.insert(String::new(), VoteError::unreachable(e.to_string()));
                    }
                },
                () = sleep_until(limit.at) => {
                    failures.insert(String::new(), VoteError::unreachable(limit.passed()));
                    break;
                }
                () = sleep_until(round) => {
                    only_last = false;
                    round = Instant::now() + ROUND;
                    for endpoint in self.config.endpoints.clone() {
                        asked.spawn(connect_and_ask(Arc::clone(&self.config), endpoint, key.to_owned()));
                    }
                }
            }
        }
        self.forget();
        Err(verdict(failures))
    }

    /// The connection that worked last does not any more.
    pub fn forget(&self) {
        self.last.lock().take();
    }
}

type Answer = Result<(Member, Versioned), (String, VoteError)>;

async fn connect_and_ask(config: Arc<Etcd>, endpoint: String, key: String) -> Answer {
    match Member::connect(&config, &endpoint).await {
        Ok(member) => ask(member, key).await,
        Err(e) => Err((endpoint, e)),
    }
}

async fn ask(mut member: Member, key: String) -> Answer {
    match member.read(&key).await {
        Ok(record) => Ok((member, record)),
        Err(e) => Err((member.endpoint, e)),
    }
}

/// All said no: a refusal is what somebody can mend, whatever became of the others.
fn verdict(failures: BTreeMap<String, VoteError>) -> VoteError {
    let mut reasons = Vec::new();
    for error in failures.into_values() {
        match error {
            VoteError::Unreachable { reason } => reasons.push(reason),
            refused @ VoteError::Refused { .. } => return refused,
        }
    }
    VoteError::unreachable(reasons.join("; "))
}
