//! Telling an HTTP server: a POST of events as a JSON array.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

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
    /// `http://` or `https://`.
    pub url: String,
    /// A file with the authorities that may have signed the server's certificate; without one those that this machine
    /// trusts.
    pub ca: Option<PathBuf>,
    /// A file with a token that is sent as `Authorization: Bearer`; read at each time.
    pub token_file: Option<PathBuf>,
}

/// The server did not take it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each says what it is.
pub enum WebhookError {
    #[error("{}: {source}; put the token of the webhook there", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("{}: this is no token; put one on a line of its own there, of letters, digits and signs", path.display())]
    NoToken { path: PathBuf },
    #[error("{}: {source}; put the certificate of the webhook's authority there", path.display())]
    Authority { path: PathBuf, source: Box<ureq::Error> },
    #[error("{url}: {source}; {remedy}")]
    Certificate { url: String, source: rustls::Error, remedy: &'static str },
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
    /// None before the first attempt, and after one that failed: then the authorities are read again.
    agent: Option<Agent>,
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
        Poster { hook, agent: None }
    }

    /// Sends events, again and again until the server has them or the time is up, or until `over`.
    pub fn tell(
        &mut self,
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

    fn attempt(&mut self, body: &str, limit: Duration) -> Result<u16, WebhookError> {
        let agent = match self.agent.take() {
            Some(agent) => agent,
            None => self.hook.agent()?,
        };
        let status = self.hook.attempt(&agent, body, limit)?;
        self.agent = Some(agent);
        Ok(status)
    }
}

impl Webhook {
    fn agent(&self) -> Result<Agent, WebhookError> {
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(self.authorities()?)))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // A redirected POST would become a GET without the events.
            .max_redirects(0)
            .user_agent(concat!("nasd/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(config.new_agent())
    }

    fn authorities(&self) -> Result<Vec<Certificate<'static>>, WebhookError> {
        // Looked for only where it is needed: on some machines it takes a while.
        if !self.url.starts_with("https:") {
            return Ok(Vec::new());
        }
        let Some(path) = &self.ca else {
            let found = rustls_native_certs::load_native_certs();
            return Ok(found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect());
        };
        let wrong =
            |source: ureq::Error| WebhookError::Authority { path: path.clone(), source: Box::new(source) };
        let pem = std::fs::read(path).map_err(|e| wrong(e.into()))?;
        let mut found = Vec::new();
        for item in parse_pem(&pem) {
            if let PemItem::Certificate(certificate) = item.map_err(wrong)? {
                found.push(certificate);
            }
        }
        if found.is_empty() { Err(wrong(ureq::Error::Tls("no certificate is in it"))) } else { Ok(found) }
    }

    fn token(path: &Path) -> Result<String, WebhookError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| WebhookError::Token { path: path.to_owned(), source })?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(WebhookError::NoToken { path: path.to_owned() });
        }
        Ok(token.to_owned())
    }

    /// What came in the way of an answer.
    fn failed(&self, e: ureq::Error) -> WebhookError {
        let url = self.url.clone();
        let tls = match &e {
            ureq::Error::Rustls(e) => Some(e),
            ureq::Error::Io(e) => e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
            _ => None,
        };
        let Some(source @ rustls::Error::InvalidCertificate(_)) = tls.cloned() else {
            return WebhookError::Unreachable { url, source: Box::new(e) };
        };
        let remedy = if self.ca.is_some() {
            "is the certificate in ca of its [[notify]] that of the server's authority, and is the host a name in the \
             server's certificate?"
        } else {
            "name the server's authority with ca in its [[notify]], or have this machine trust it"
        };
        WebhookError::Certificate { url, source, remedy }
    }

    fn attempt(&self, agent: &Agent, body: &str, limit: Duration) -> Result<u16, WebhookError> {
        let url = || self.url.clone();
        if limit.is_zero() {
            return Err(WebhookError::Late { url: url() });
        }
        let mut request = agent.post(&self.url).content_type("application/json");
        if let Some(path) = &self.token_file {
            request = request.header("authorization", format!("Bearer {}", Webhook::token(path)?));
        }
        let answer = request.config().timeout_global(Some(limit)).build().send(body);
        let answer = answer.map_err(|e| self.failed(e))?;
        match answer.status().as_u16() {
            status @ 200..300 => Ok(status),
            status => Err(WebhookError::Answer { url: url(), status }),
        }
    }
}
