//! The events of one server, as they come: HTTP over TLS, with certificates on both sides.

use crate::credentials::{self, CredentialsError, common_name};
use crate::sse::{Parser, Sent};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use nasd_config::Tls;
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Why a server is not followed any more.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("connecting: {0}")]
    Connect(io::Error),
    #[error(
        "TLS: {0}; check that its certificate is of the authority in [tls] ca and for the host in `servers`, and this agent's of the authority of its [tls]"
    )]
    Tls(io::Error),
    #[error("{0:?} is no host that a certificate could be for; correct `servers` in [agent]")]
    Name(String),
    #[error("its certificate does not say who it is: {0}; make it one with `nasd cert node`")]
    Nobody(String),
    #[error("it answers {0}: {1}")]
    Refused(hyper::StatusCode, String),
    #[error("the conversation ended")]
    Http(#[from] hyper::Error),
    #[error("the conversation ended")]
    End,
    #[error("nothing heard of it for {0:?}")]
    Silent(Duration),
    #[error("it tells what is no event: {0}; check that it is nasd, and not older than this agent")]
    NoEvent(String),
}

/// How servers are reached.
pub struct Dialer {
    tls: TlsConnector,
    /// A server that is silent for so long is gone.
    timeout: Duration,
    path: String,
}

/// The agent's certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DialerError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(
        "the agent's certificate can't be used with its key: {0}; name two that belong together in [tls]"
    )]
    Unusable(#[from] rustls::Error),
}

impl Dialer {
    /// Reads the certificates; `query` says which events.
    pub fn new(tls: &Tls, query: &str, timeout: Duration) -> Result<Dialer, DialerError> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(credentials::authority(&tls.ca)?)
            .with_client_auth_cert(
                credentials::certificates(&tls.cert)?,
                credentials::private_key(&tls.key)?,
            )?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Dialer { tls: TlsConnector::from(Arc::new(config)), timeout, path: format!("/v1/events{query}") })
    }

    /// Connects; `since` says where a node of this name begins, None from now on.
    pub async fn open(
        &self,
        server: &str,
        since: impl FnOnce(&str) -> Option<String>,
    ) -> Result<Stream, StreamError> {
        timeout(self.timeout, self.open_slowly(server, since))
            .await
            .map_err(|_| StreamError::Silent(self.timeout))?
    }

    async fn open_slowly(
        &self,
        server: &str,
        since: impl FnOnce(&str) -> Option<String>,
    ) -> Result<Stream, StreamError> {
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| StreamError::Name(host.to_owned()))?;
        let socket = TcpStream::connect(server).await.map_err(StreamError::Connect)?;
        socket.set_nodelay(true).map_err(StreamError::Connect)?;
        let stream = self.tls.connect(name, socket).await.map_err(StreamError::Tls)?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let node = certificate.map_or(Err("there is none".to_owned()), |c| common_name(c));
        let node = node.map_err(StreamError::Nobody)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // What ends it is seen by whoever reads.
            let _ = connection.await;
        });
        let mut request =
            Request::get(&self.path).header("host", server).header("accept", "text/event-stream");
        if let Some(since) = since(&node) {
            request = request.header("last-event-id", since);
        }
        let request =
            request.body(Empty::<Bytes>::new()).map_err(|_| StreamError::Name(server.to_owned()))?;
        let answer = sender.send_request(request).await?;
        let code = answer.status();
        let mut body = answer.into_body();
        if !code.is_success() {
            let said =
                body.frame().await.and_then(Result::ok).and_then(|f| f.into_data().ok()).unwrap_or_default();
            driver.abort();
            return Err(StreamError::Refused(code, String::from_utf8_lossy(&said).into_owned()));
        }
        Ok(Stream {
            node,
            body,
            parser: Parser::default(),
            ended: VecDeque::new(),
            timeout: self.timeout,
            driver,
        })
    }
}

/// A stream that has begun.
pub struct Stream {
    /// Who tells, as its certificate says.
    pub node: String,
    body: Incoming,
    parser: Parser,
    ended: VecDeque<Sent>,
    timeout: Duration,
    driver: JoinHandle<()>,
}

impl Stream {
    /// The next message.
    pub async fn next(&mut self) -> Result<Sent, StreamError> {
        loop {
            if let Some(message) = self.ended.pop_front() {
                return Ok(message);
            }
            let frame = timeout(self.timeout, self.body.frame()).await;
            let frame = frame.map_err(|_| StreamError::Silent(self.timeout))?.ok_or(StreamError::End)??;
            if let Some(bytes) = frame.data_ref() {
                self.ended.extend(self.parser.take(bytes));
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
