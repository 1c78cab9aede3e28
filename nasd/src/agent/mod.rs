//! `nasd agent`: tells the programs of a host that mounts a share, where its kernel sees nothing of what changes on the
//! nodes.
//!
//! It follows the events of one node (`stream`) and goes to the next when that fails (`servers`), puts what comes into
//! a feed of this host's own (`inbox`), from which the same rules tell as on a node, and keeps how far all of them have told
//! (`place`).

mod inbox;
mod place;
mod servers;
mod stream;

use crate::signals::{self, Signals};
use crate::sse::Sent;
use crate::terms::Terms;
use crate::{consumers, run};
use anyhow::Result;
use inbox::Inbox;
use nasd_config::AgentConfig;
use nasd_config::notify::Every;
use nasd_watcher::{Cursor, Event, FilterError, Kind, Notifier, NotifyError, NotifyRule};
use parking_lot::Mutex;
use place::{Place, StateError, StateFile};
use servers::Servers;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use stream::{Dialer, DialerError, StreamError};

/// How often it is looked whether more is told, and that is kept.
const KEEP: Duration = Duration::from_millis(50);

/// An agent can't start: something is wrong that only the operator can mend.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Dialer(#[from] DialerError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("[[notify]]: {0}")]
    Rule(#[from] FilterError),
    #[error(transparent)]
    Notify(#[from] NotifyError),
}

/// Runs the agent until a signal.
pub fn run(config: &AgentConfig) -> Result<()> {
    run::log_to_stderr();
    let rules: Vec<NotifyRule> =
        config.notify.iter().map(consumers::rule).collect::<Result<_, _>>().map_err(AgentError::from)?;
    let dialer = Dialer::new(&config.tls, &query(config), config.timeout).map_err(AgentError::from)?;
    let file = StateFile(config.state_file.clone());
    let kept = file.read().map_err(AgentError::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::listen(signals::OF_A_SERVICE)?;
        let asked_to_end = async {
            signals.next().await;
        };
        tokio::pin!(asked_to_end);
        let mut servers = Servers::new(config.servers.clone());
        let place = match kept {
            Some(place) => place,
            None => tokio::select! {
                place = begin(&mut servers, &dialer) => {
                    file.write(&place).map_err(AgentError::from)?;
                    place
                }
                () = &mut asked_to_end => return Ok(()),
            },
        };
        tracing::info!("{} begins behind {place}", config.name);
        let inbox = Arc::new(Mutex::new(Inbox::resume(place)));
        let feed = Arc::clone(&inbox.lock().feed);
        let readers: Vec<Reader> =
            rules.iter().map(|r| Reader { transactions: r.filter.wants_data() }).collect();
        let notifier = Notifier::start(&feed, rules, None).map_err(AgentError::from)?;
        tokio::select! {
            never = follow(&mut servers, &dialer, &inbox) => match never {},
            kept = keep(&file, &inbox, &notifier, &readers, asked_to_end) => kept?,
        }
        // What is being told ends, and counts.
        let told = notifier.stop();
        if let Some(place) = inbox.lock().told(|at| all_told(&readers, &told, at)) {
            file.write(&place).map_err(AgentError::from)?;
        }
        tracing::info!("{} ends", config.name);
        Ok(())
    })
}

/// Which events: what the rules want, all together.
fn query(config: &AgentConfig) -> String {
    let mut query = form_urlencoded::Serializer::new("?".to_owned());
    for rule in &config.notify {
        query.extend_pairs(rule.paths.iter().map(|path| ("path", path)));
        query.extend_pairs(rule.states.iter().map(|state| ("state", state)));
        if rule.every == Every::OnDemand {
            query.append_pair("state", Kind::Demand.name());
        }
    }
    query.finish()
}

/// Where the first server that answers is now.
async fn begin(servers: &mut Servers, dialer: &Dialer) -> Place {
    loop {
        let server = servers.current().to_owned();
        let place = async {
            let mut stream = dialer.open(&server, |_| None).await?;
            loop {
                let message = stream.next().await?;
                if let Some(id) = message.id {
                    let id = cursor(&id)?;
                    let mut terms = Terms::default();
                    message.epoch.into_iter().for_each(|epoch| terms.reach(id.seq, epoch));
                    return Ok(Place { node: stream.node.clone(), id, terms });
                }
            }
        };
        match place.await {
            Ok(place) => return place,
            Err(e) => pause(servers, &server, e).await,
        }
    }
}

/// Follows one server after the other.
async fn follow(servers: &mut Servers, dialer: &Dialer, inbox: &Mutex<Inbox>) -> Infallible {
    loop {
        let server = servers.current().to_owned();
        let Err(e) = follow_one(servers, dialer, inbox, &server).await;
        pause(servers, &server, e).await;
    }
}

async fn follow_one(
    servers: &mut Servers,
    dialer: &Dialer,
    inbox: &Mutex<Inbox>,
    server: &str,
) -> Result<Infallible, StreamError> {
    let mut stream = dialer.open(server, |node| Some(inbox.lock().at().since(node))).await?;
    tracing::info!("follows {} ({server}) behind {}", stream.node, inbox.lock().at());
    loop {
        let Sent { id, data, epoch } = stream.next().await?;
        servers.well();
        let Some(id) = id else { continue };
        let id = cursor(&id)?;
        match data {
            None => inbox.lock().reached(&stream.node, id, epoch),
            Some(data) => {
                let event: Event =
                    serde_json::from_str(&data).map_err(|e| StreamError::NoEvent(e.to_string()))?;
                inbox.lock().take(event, &stream.node, id);
            }
        }
    }
}

fn cursor(id: &str) -> Result<Cursor, StreamError> {
    id.parse().map_err(|e: nasd_watcher::event::NoCursor| StreamError::NoEvent(e.to_string()))
}

async fn pause(servers: &mut Servers, server: &str, why: StreamError) {
    // With its causes: a refusal comes as an alert in the middle of the conversation.
    tracing::warn!("{server}: {:#}", anyhow::Error::from(why));
    tokio::time::sleep(servers.failed()).await;
}

/// What a rule reads of the feed.
struct Reader {
    transactions: bool,
}

/// Whether each rule has told what there was for it before this place in the feed. One that wants no transactions does not
/// look how many there were.
fn all_told(readers: &[Reader], told: &[Cursor], at: Cursor) -> bool {
    let has = |(r, told): (&Reader, &Cursor)| told.n >= at.n && (!r.transactions || told.seq >= at.seq);
    readers.iter().zip(told).all(has)
}

/// Keeps how far all rules have told, again and again, until `end`; nothing is being written any more when it returns.
async fn keep(
    file: &StateFile,
    inbox: &Mutex<Inbox>,
    notifier: &Notifier,
    readers: &[Reader],
    mut end: impl Future<Output = ()> + Unpin,
) -> Result<(), AgentError> {
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            () = tokio::time::sleep(KEEP) => {}
        }
        let told = notifier.told();
        let place = inbox.lock().told(|at| all_told(readers, &told, at));
        if let Some(place) = place {
            let file = file.clone();
            // A slow disk holds up only this.
            let kept = tokio::task::spawn_blocking(move || file.write(&place)).await;
            kept.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_without_transactions_holds_up_none() {
        let readers = [Reader { transactions: true }, Reader { transactions: false }];
        let told = |a: (u64, u64), b: (u64, u64)| [a, b].map(|(seq, n)| Cursor { seq, n });
        let at = Cursor { seq: 9, n: 3 };
        assert!(all_told(&readers, &told((9, 3), (0, 3)), at));
        assert!(!all_told(&readers, &told((8, 3), (9, 3)), at));
        assert!(!all_told(&readers, &told((9, 3), (9, 2)), at));
        assert!(all_told(&[], &[], at));
    }
}
