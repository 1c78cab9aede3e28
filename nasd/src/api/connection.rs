//! One caller's connection: HTTP/1 with limits on time, size and number.

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;

/// Connections at a time, for each way in: a thousand event streams and room for those who only ask.
pub const MOST: usize = 2048;
/// A request's head has to be there in this time, and the next request on a connection that is kept open, too.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// What a request's head may have of headers, and of bytes.
const HEADERS: usize = 64;
const HEAD_BYTES: usize = 16 << 10;
/// When a node stops, what is being answered has this time.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// All connections that are open.
#[derive(Default)]
pub struct Connections(Mutex<GracefulShutdown>);

impl Connections {
    /// For a new one.
    pub fn watcher(&self) -> Watcher {
        self.0.lock().watcher()
    }

    /// Ends all: what is being answered is answered first. An event stream never is.
    pub async fn end(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        let _ = tokio::time::timeout(LAST_WORDS, all.shutdown()).await;
    }
}

/// Answers one caller until either side ends it.
pub async fn converse<S>(stream: S, router: Router, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service =
        service_fn(move |request: Request<Incoming>| router.clone().oneshot(request.map(Body::new)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(e) = watcher.watch(connection).await {
        tracing::debug!("a caller of the control API: {e}");
    }
}

/// Waits until there is room for one more; the place is free again when what this returns is dropped.
pub async fn place(room: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // Nobody closes the semaphore.
    Arc::clone(room).acquire_owned().await.ok()
}

/// Says that a caller could not be taken, and waits a moment: mostly too many files are open, and that passes.
pub async fn not_taken(door: &str, error: &std::io::Error) {
    tracing::warn!("{door}: a caller could not be taken: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
