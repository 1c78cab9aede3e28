//! Every change of role, link, sync state or disk: logged, counted, kept for who asks.

use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// What kind of thing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Role,
    Link,
    Sync,
    Disk,
    Mount,
    Etcd,
    Database,
}

/// Something changed.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    pub id: u64,
    pub time: String,
    pub kind: Kind,
    pub text: String,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    last: VecDeque<Event>,
    counts: BTreeMap<Kind, u64>,
}

/// The events of this run.
#[derive(Debug, Default)]
pub struct Events(Mutex<Inner>);

/// Events kept.
const KEEP: usize = 1000;

impl Events {
    /// Tells.
    pub fn emit(&self, kind: Kind, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(?kind, "{text}");
        let mut inner = self.0.lock();
        inner.next += 1;
        *inner.counts.entry(kind).or_default() += 1;
        let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        let event = Event { id: inner.next, time, kind, text };
        inner.last.push_back(event);
        if inner.last.len() > KEEP {
            inner.last.pop_front();
        }
    }

    /// Events behind `id`.
    pub fn since(&self, id: u64) -> Vec<Event> {
        self.0.lock().last.iter().filter(|e| e.id > id).cloned().collect()
    }

    /// How many of each kind.
    pub fn counts(&self) -> BTreeMap<Kind, u64> {
        self.0.lock().counts.clone()
    }
}
