//! `nasd notify`: the primary has everybody told, of everything that was committed before.

use crate::events::Kind;
use crate::link::Link;
use crate::node::{Node, RoleError};
use crate::peers::{Peers, Row};
use crate::protocol::{self, Message};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// How long a peer may take to apply everything and say that it has told.
const PATIENCE: Duration = Duration::from_secs(10);

/// A peer, and whether it told its consumers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[allow(clippy::struct_field_names)] // The names are the answer's.
pub struct Told {
    /// Its name.
    pub peer: String,
    /// Whether it was told.
    pub told: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// An instruction that came from the primary, and waits for what was committed before it.
struct Waiting {
    link: Arc<Link>,
    id: u64,
    seq: u64,
    text: String,
}

/// On a secondary: the instructions that wait.
#[derive(Default)]
pub struct Demands(Mutex<Vec<Waiting>>);

impl Node {
    /// Seals what is pending and has each peer tell its consumers, once it shows all of it. Says who was told.
    pub fn notify(&self, text: &str) -> Result<Vec<Told>, RoleError> {
        let refused = |why: &str| RoleError::Refused(why.to_owned());
        let volume = self.volume().filter(|v| v.writable());
        let (Some(volume), Some(peers)) = (volume, self.peers()) else {
            return Err(refused("only the primary has its peers notified: type this there"));
        };
        volume.commit_and_wait()?;
        let seq = volume.applied().seq;
        self.events.emit(Kind::Demand, text);
        Ok(peers.notify(seq, text, PATIENCE))
    }

    /// The primary, at the other end of `link`, wants the consumers here told once everything up to `seq` is shown.
    pub fn demanded(&self, link: &Arc<Link>, id: u64, seq: u64, text: String) {
        self.demands.0.lock().push(Waiting { link: Arc::clone(link), id, seq, text });
        self.tell_demands();
    }

    /// Tells what the primary wants told, as far as everything before it is shown.
    pub fn tell_demands(&self) {
        let mut waiting = self.demands.0.lock();
        if waiting.is_empty() {
            return;
        }
        let shown = self.events.feed.end().seq;
        for w in waiting.extract_if(.., |w| w.seq <= shown) {
            self.relay.notify(w.seq, &w.text);
            self.events.emit(Kind::Demand, w.text);
            // A link that is gone has nobody who waits for the answer.
            let _ = protocol::say(&w.link, &Message::Notified { id: w.id });
        }
    }
}

fn can_be_told(peer: &Row) -> bool {
    peer.is_connected() && peer.version >= protocol::NOTIFY
}

impl Peers {
    /// Has the peers tell their consumers, and waits for their answers.
    fn notify(&self, seq: u64, text: &str, patience: Duration) -> Vec<Told> {
        let id = self.ask_notify(seq, text);
        self.wait_rows(patience, |rows| rows.iter().all(|r| r.notified >= id || !can_be_told(r)));
        let rows = self.rows();
        let told = rows.into_iter().map(|r| {
            let told = r.notified >= id;
            let reason = match (told, r.is_connected()) {
                (true, _) => String::new(),
                (_, true) if !can_be_told(&r) => "one of the two runs an older nasd: upgrade it".to_owned(),
                (_, true) => format!("no answer within {patience:?}: it has not applied everything yet"),
                (_, false) if r.reason.is_empty() => "it is not connected".to_owned(),
                (_, false) => r.reason,
            };
            Told { peer: r.name, told, reason }
        });
        told.collect()
    }
}
