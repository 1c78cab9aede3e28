//! Telling an HTTP server: a POST of events as a JSON array.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::event::Event;

/// Between two attempts; twice as long each time.
const BACKOFF: Duration = Duration::from_millis(100);
/// The same at most.
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Where to, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// `http://` or `https://`; certificates are checked by the authorities that this machine trusts.
    pub url: String,
    /// A file with a token that is sent as `Authorization: Bearer`; read at each time.
    pub token_file: Option<PathBuf>,
}

/// The server did not take it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each says what it is.
pub enum WebhookError {
    #[error("{}: {source}; put the token of the webhook there", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("{url}: {source}; does the server run, and is this its address?")]
    Unreachable { url: String, source: Box<ureq::Error> },
    #[error("{url} answers {status}; it has to answer 2xx when it has the events")]
    Answer { url: String, status: u16 },
    #[error("{url}: no time left to tell it")]
    Late { url: String },
}

/// A webhook and its connections.
pub(crate) struct Poster {
    hook: Webhook,
    agent: Agent,
}

impl Webhook {
    /// Sends events once, and says what the server answered.
    ///
    /// # Errors
    /// When it did not take them, or not in time.
    pub fn post(&self, events: &[Arc<Event>], limit: Duration) -> Result<u16, WebhookError> {
        Poster::new(self.clone()).attempt(&body(events), limit)
    }
}

/// A JSON array of events.
fn body(events: &[Arc<Event>]) -> String {
    let events: Vec<String> = events.iter().map(|e| e.json()).collect();
    format!("[{}]", events.join(","))
}

impl Poster {
    pub fn new(hook: Webhook) -> Poster {
        // Looked for only where it is needed: on some machines it takes a while.
        let authorities: Vec<Certificate<'static>> = if hook.url.starts_with("https:") {
            let found = rustls_native_certs::load_native_certs();
            found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect()
        } else {
            Vec::new()
        };
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(authorities)))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // A redirected POST would become a GET without the events.
            .max_redirects(0)
            .user_agent(concat!("nasd/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Poster { hook, agent }
    }

    /// Sends events, again and again until the server has them or the time is up, or until `over`.
    pub fn tell(
        &self,
        events: &[Arc<Event>],
        until: Instant,
        over: impl Fn(Duration) -> bool,
    ) -> Result<(), WebhookError> {
        let body = body(events);
        let mut pause = BACKOFF;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Err(failed) = self.attempt(&body, left.min(ATTEMPT)) else { return Ok(()) };
            if Instant::now() + pause >= until || over(pause) {
                return Err(failed);
            }
            pause = (pause * 2).min(BACKOFF_MOST);
        }
    }

    fn attempt(&self, body: &str, limit: Duration) -> Result<u16, WebhookError> {
        let url = || self.hook.url.clone();
        if limit.is_zero() {
            return Err(WebhookError::Late { url: url() });
        }
        let mut request = self.agent.post(&self.hook.url).content_type("application/json");
        if let Some(path) = &self.hook.token_file {
            let token = std::fs::read_to_string(path)
                .map_err(|source| WebhookError::Token { path: path.clone(), source })?;
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        let answer = request.config().timeout_global(Some(limit)).build().send(body);
        let answer = answer.map_err(|e| WebhookError::Unreachable { url: url(), source: Box::new(e) })?;
        match answer.status().as_u16() {
            status @ 200..300 => Ok(status),
            status => Err(WebhookError::Answer { url: url(), status }),
        }
    }
}
