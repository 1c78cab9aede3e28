//! `nasd events`, `nasd notify`: events on the command line.

use crate::demand::Told;
use crate::sse::{Parser, Sent};
use crate::{client, consumers};
use anyhow::Result;
use hyper::Method;
use nasd_config::Config;
use nasd_watcher::event::now;
use nasd_watcher::event::{Cursor, Event, Kind};
use nasd_watcher::notify::{TIME_LIMIT, Way};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A node that is gone is looked for again so often.
const AGAIN: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(60);

/// What is asked for.
pub struct Wanted {
    pub since: Option<String>,
    pub paths: Vec<String>,
    pub states: Vec<String>,
    pub json: bool,
}

impl Wanted {
    fn query(&self, since: Option<&str>) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(since.map(|id| ("since", id)));
        query.extend_pairs(self.paths.iter().map(|glob| ("path", glob)));
        query.extend_pairs(self.states.iter().map(|kind| ("state", kind)));
        format!("/v1/events?{}", query.finish())
    }

    fn print(&self, event: &Event) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", event.json())?
        } else {
            writeln!(out, "{event}")?
        }
        // Line by line, also into a pipe.
        Ok(out.flush()?)
    }
}

/// Prints the events that are there.
pub fn list(socket: &Path, wanted: &Wanted) -> Result<()> {
    let list: Vec<Event> = client::call(socket, Method::GET, &wanted.query(wanted.since.as_deref()), SOON)?;
    list.iter().try_for_each(|event| wanted.print(event))
}

/// Prints events as they come, until it is interrupted. A node that is gone is waited for.
pub fn follow(socket: &Path, wanted: &Wanted) -> Result<()> {
    let mut at = wanted.since.clone();
    let mut first = true;
    loop {
        let mut parser = Parser::default();
        // What no other attempt would mend: nobody reads this, or the node is of another version.
        let mut hopeless = false;
        let ended = client::stream(socket, &wanted.query(at.as_deref()), |piece| {
            first = false;
            for Sent { id, data, .. } in parser.take(piece) {
                if let Some(data) = data {
                    let printed = client::understood(data.as_bytes()).and_then(|event| wanted.print(&event));
                    hopeless = printed.is_err();
                    printed?;
                }
                at = id.or(at.take());
            }
            Ok(())
        });
        match ended {
            // Or what was asked for makes no sense, or nobody answers here.
            Err(e) if first || hopeless => return Err(e),
            Err(e) => eprintln!("nasd: {e:#}; trying again"),
            Ok(()) => eprintln!("nasd: the node ended the stream; trying again"),
        }
        std::thread::sleep(AGAIN);
    }
}

/// Has the peers tell their consumers, and prints who did; whether all did.
pub fn notify(socket: &Path, reason: &str) -> Result<bool> {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("reason", reason).finish();
    let told: Vec<Told> = client::call(socket, Method::POST, &format!("/v1/notify?{query}"), SOON)?;
    for t in &told {
        if t.told {
            println!("{}: told", t.peer);
        } else {
            println!("{}: not told: {}", t.peer, t.reason);
        }
    }
    Ok(told.iter().all(|t| t.told))
}

/// Sends an event to each webhook of the configuration, and prints how it answered; whether all took it.
pub fn test_webhooks(config: &Config) -> Result<bool> {
    let event = Arc::new(Event {
        reason: format!("a test of the webhook by {}", config.node.name),
        ..Event::new(Kind::Demand, Cursor::default(), 0, now())
    });
    let mut well = true;
    let mut any = false;
    for n in &config.notify {
        let Way::Webhook(hook) = consumers::rule(n)?.way else { continue };
        any = true;
        match hook.post(&[Arc::clone(&event)], TIME_LIMIT) {
            Ok(status) => println!("{}: {status}", hook.url),
            Err(e) => {
                well = false;
                println!("{e}");
            }
        }
    }
    if !any {
        println!("no [[notify]] of the configuration has a webhook");
    }
    Ok(well && any)
}
