//! The control API's part that is about events: a list, a stream, waiting, telling.

use super::App;
use super::answer::{Problem, Refusal, blocking};
use crate::demand::Told;
use crate::node::Node;
use crate::terms::Terms;
use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event as Sent, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use nasd_watcher::event::{Cursor, Event, Kind, Since};
use nasd_watcher::{Feed, Filter, NewsGuard, Subscription};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Display;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// A stream on which nothing happens says so often that it is there, and how far it is. Whoever follows it over a network that
/// is cut notices within a few of these.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Events that a list has, unless it is asked for more or fewer.
const LIST: usize = 1000;
/// Events that a stream takes at a time.
const PORTION: usize = 64;
/// The longest reason of an instruction, in bytes.
const LONGEST_REASON: usize = 4096;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(events)).routes(routes!(wait)).routes(routes!(notify))
}

/// Passes the news of the feed on: whoever tells wakes one task, and that wakes all streams.
#[derive(Default)]
pub struct Hub(OnceLock<(watch::Sender<()>, NewsGuard)>);

impl Hub {
    fn news(&self, feed: &Arc<Feed>) -> watch::Receiver<()> {
        let (sender, _) = self.0.get_or_init(|| {
            let rung = Arc::new(Notify::new());
            let ring = Arc::clone(&rung);
            let guard = feed.on_news(move || ring.notify_one());
            let sender = watch::Sender::new(());
            let all = sender.clone();
            tokio::spawn(async move {
                loop {
                    rung.notified().await;
                    all.send_replace(());
                }
            });
            (sender, guard)
        });
        sender.subscribe()
    }
}

/// A request that makes no sense, and why.
fn wrong(why: impl Display) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, why.to_string())
}

/// A task of this node panicked.
fn broken(e: JoinError) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())
}

/// What comes behind the `?`. A key may stand there more than once.
struct Asked(Vec<(String, String)>);

impl Asked {
    fn parse(query: Option<&str>, keys: &[&str]) -> Result<Asked, Refusal> {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned();
        let pairs: Vec<(String, String)> = pairs.collect();
        match pairs.iter().find(|(key, _)| !keys.contains(&key.as_str())) {
            Some((key, _)) => {
                Err(wrong(format!("{key:?} is not understood; here may stand {}", keys.join(", "))))
            }
            None => Ok(Asked(pairs)),
        }
    }

    fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    fn one(&self, key: &str) -> Option<&str> {
        self.all(key).last()
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Refusal> {
        let no_number = |text| wrong(format!("{key}={text} is no number"));
        self.one(key).map(|text| text.parse().map_err(|_| no_number(text))).transpose()
    }

    fn filter(&self) -> Result<Filter, Refusal> {
        let paths: Vec<&str> = self.all("path").collect();
        let states = self.all("state").map(Kind::state).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        Filter::new(&paths, &states).map_err(wrong)
    }
}

/// Where somebody begins who has had everything up to there.
fn begin(node: &Node, since: &str) -> Result<Cursor, Refusal> {
    let feed = &node.events.feed;
    if !since.contains('@') {
        return Ok(feed.cursor(since.parse::<Since>().map_err(wrong)?));
    }
    let told: Terms = since.parse().map_err(wrong)?;
    let volume = node.volume().ok_or_else(|| {
        Refusal(StatusCode::CONFLICT, "this node does not know its transactions yet; ask again".to_owned())
    })?;
    // Should transactions be taken back at this moment, the reader sees the event that says so.
    let n = feed.end().n;
    let (log, shown) = (&volume.log, feed.end().seq);
    let oldest = log.oldest().unwrap_or(log.tail().seq + 1);
    let fork = told.fork(oldest, shown, |seq| log.entry(seq).map(|entry| entry.position.epoch));
    let at = feed.cursor(Since::Seq(fork));
    Ok(Cursor { n: at.n.min(n), ..at })
}

/// What happens on the node: a list, or for who accepts `text/event-stream` a stream of server-sent events. Each event of the
/// stream has an `id`: who comes again with it in `Last-Event-ID` misses none. The bare number of a transaction does as well,
/// also on another node; with its epoch, as 1042@3, one begins behind the last transaction that both histories have.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(
    ("since" = Option<String>, Query, description = "Behind this id, or this transaction: 1042, or with its epoch and what was last of epochs before 1042@3,990@2. Without it a list has the newest, and a stream begins now"),
    ("path" = Option<Vec<String>>, Query, description = "A glob: transactions that change such a path. May stand there more than once"),
    ("state" = Option<Vec<String>>, Query, description = "A kind of state, as role or link. May stand there more than once; with neither path nor state everything is told"),
    ("limit" = Option<u64>, Query, description = "Of a list: so many at most"),
    ("Last-Event-ID" = Option<String>, Header, description = "Of a stream: instead of since, for who comes again"),
), responses(
    (status = 200, description = "the events", content((Vec<Event> = "application/json"), (Event = "text/event-stream"))),
    (status = 400, description = "a wrong parameter", body = Problem),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
))]
async fn events(
    State(App { node, hub, .. }): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let asked = Asked::parse(query.as_deref(), &["since", "path", "state", "limit"])?;
    let filter = asked.filter()?;
    let text = |name| headers.get(name).and_then(|v: &header::HeaderValue| v.to_str().ok());
    let streams = text(header::ACCEPT).is_some_and(|accepted| accepted.contains("text/event-stream"));
    // Who comes again says where it was; what stood in its address is older.
    let since =
        text(header::HeaderName::from_static("last-event-id")).filter(|_| streams).or(asked.one("since"));
    let feed = &node.events.feed;
    let from = since.map(|since| begin(&node, since)).transpose()?;
    if streams {
        let news = hub.news(feed);
        let reader = feed.subscribe(filter, from);
        return Ok(Sse::new(sent(node, reader, news)).into_response());
    }
    let limit = asked.number("limit")?.map_or(LIST, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let newest = from.is_none();
    let mut reader = feed.subscribe(filter, Some(from.unwrap_or_else(|| feed.start())));
    let list = tokio::task::spawn_blocking(move || {
        if !newest {
            return reader.next(limit);
        }
        let mut last = VecDeque::new();
        loop {
            let some = reader.next(PORTION);
            if some.is_empty() {
                return last.into();
            }
            last.extend(some);
            last.drain(..last.len().saturating_sub(limit));
        }
    });
    let list: Vec<Arc<Event>> = list.await.map_err(broken)?;
    Ok(Json(list.iter().map(|e| e.shown()).collect::<Vec<_>>()).into_response())
}

/// What a stream has in hand.
struct Streaming {
    node: Arc<Node>,
    reader: Subscription,
    news: watch::Receiver<()>,
    taken: VecDeque<Arc<Event>>,
    /// Behind what was sent.
    at: Cursor,
}

fn sent(
    node: Arc<Node>,
    reader: Subscription,
    news: watch::Receiver<()>,
) -> impl Stream<Item = Result<Sent, Infallible>> {
    let at = reader.cursor();
    let streaming = Streaming { node, reader, news, taken: VecDeque::new(), at };
    // At once, so that who asked from now on knows from when.
    let first = here(&streaming.node, at);
    let first = stream::once(async move { Ok(first) });
    stream::StreamExt::chain(first, stream::unfold(streaming, |s| async { s.next().await }))
}

/// Says where the stream is: who comes again begins there. With the epoch, which tells whoever goes to another node whether it
/// has the same history.
fn here(node: &Node, at: Cursor) -> Sent {
    let entry = node.volume().and_then(|volume| volume.log.entry(at.seq));
    let epoch = entry.map_or(String::new(), |entry| format!("epoch {}", entry.position.epoch));
    Sent::default().comment(epoch).id(at.to_string())
}

impl Streaming {
    async fn next(mut self) -> Option<(Result<Sent, Infallible>, Streaming)> {
        loop {
            if let Some(event) = self.taken.pop_front() {
                self.at = self.at.after(&event);
                let sent =
                    Sent::default().id(self.at.to_string()).event(event.kind.name()).data(event.json());
                return Some((Ok(sent), self));
            }
            // Before it is looked: what comes later is seen as news.
            self.news.borrow_and_update();
            if self.reader.lags() {
                // It reads from the disk, and others are served meanwhile.
                let mut reader = self.reader;
                let (events, reader) =
                    tokio::task::spawn_blocking(move || (reader.next(PORTION), reader)).await.ok()?;
                self.reader = reader;
                self.taken = events.into();
            } else {
                self.taken = self.reader.next(PORTION).into();
            }
            if !self.taken.is_empty() {
                continue;
            }
            self.at = self.reader.cursor();
            if self.node.stopping() {
                return None;
            }
            if timeout_at(Instant::now() + KEEP_ALIVE, self.news.changed()).await.is_err() {
                return Some((Ok(here(&self.node, self.at)), self));
            }
        }
    }
}

/// How a wait for a transaction ended.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Waited {
    /// Whether the node shows it.
    pub reached: bool,
    /// What the node shows.
    pub applied_seq: u64,
}

/// Answers once the node shows transaction `seq`, or one behind `after`, or when the time is up.
#[utoipa::path(get, path = "/v1/wait", tag = "events", params(
    ("seq" = Option<u64>, Query, description = "The transaction; one of this and after"),
    ("after" = Option<u64>, Query, description = "Any behind this one"),
    ("timeout_ms" = Option<u64>, Query, description = "How long at most; not at all without it"),
), responses(
    (status = 200, description = "it is shown, or the time is up", body = Waited),
    (status = 400, description = "a wrong parameter", body = Problem),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
))]
async fn wait(
    State(App { node, hub, .. }): State<App>,
    RawQuery(query): RawQuery,
) -> Result<Json<Waited>, Refusal> {
    let asked = Asked::parse(query.as_deref(), &["seq", "after", "timeout_ms"])?;
    let seq = match (asked.number("seq")?, asked.number("after")?) {
        (Some(seq), None) => seq,
        (None, Some(after)) => after.saturating_add(1),
        _ => return Err(wrong("give one of seq=SEQ and after=SEQ")),
    };
    let limit = Duration::from_millis(asked.number("timeout_ms")?.unwrap_or(0));
    let feed = &node.events.feed;
    let mut news = hub.news(feed);
    let _interest = feed.interest();
    let end = Instant::now() + limit.min(Duration::from_secs(24 * 3600));
    loop {
        news.borrow_and_update();
        let applied_seq = node.volume().map_or(0, |v| v.applied().seq);
        let over = node.stopping() || Instant::now() >= end;
        if applied_seq >= seq || over {
            return Ok(Json(Waited { reached: applied_seq >= seq, applied_seq }));
        }
        // Late or not, it is looked again.
        let _ = timeout_at(end, news.changed()).await;
    }
}

/// Has the peers tell their consumers, once they show everything that was committed before.
#[utoipa::path(post, path = "/v1/notify", tag = "events", params(
    ("reason" = Option<String>, Query, description = "What the consumers are told"),
), responses(
    (status = 200, description = "which peer was told", body = Vec<Told>),
    (status = 400, description = "a wrong parameter", body = Problem),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
    (status = 409, description = "refused, and why", body = Problem),
))]
async fn notify(
    State(App { node, .. }): State<App>,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<Told>>, Refusal> {
    let asked = Asked::parse(query.as_deref(), &["reason"])?;
    let reason = asked.one("reason").unwrap_or_default().to_owned();
    if reason.len() > LONGEST_REASON {
        return Err(wrong(format!("the reason is longer than {LONGEST_REASON} bytes")));
    }
    blocking(move || node.notify(&reason)).await
}
