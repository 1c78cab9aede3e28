//! The way in over the network: TLS 1.3 always, and a token or a certificate for each request.

use super::auth::{self, Gate, TokenError, TokenFile};
use super::connection::{self, Connections, MOST, converse};
use crate::credentials::{self, CredentialsError};
use axum::Router;
use axum::middleware::from_fn_with_state;
use nasd_config::Api;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// A TLS handshake has this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A caller that does not acknowledge what was sent, or that it is still there, for so long is gone.
const GONE: Duration = Duration::from_secs(30);

/// The API can't be opened to the network.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "the certificate {cert} and the key {key} of the control API can't be used: {error}; name two that belong together in [api] or [tls]"
    )]
    Unusable { cert: String, key: String, error: rustls::Error },
    #[error(
        "{0}: callers can't be checked against it: {1}; name the file `ca.pem` of `nasd cert ca` in [tls] ca"
    )]
    Authority(String, rustls::server::VerifierBuilderError),
    #[error("{0}: the control API can't listen here: {1}; choose another `listen` in [api]")]
    Listen(String, io::Error),
}

/// Where callers come in.
pub struct Entrance {
    listener: TcpListener,
    tls: TlsAcceptor,
    token: Option<Arc<TokenFile>>,
}

impl Entrance {
    /// Reads the certificates and the token, and listens.
    pub fn open(api: &Api) -> Result<Entrance, ApiError> {
        let token = api.token_file.as_deref().map(TokenFile::open).transpose()?.map(Arc::new);
        let tls = TlsAcceptor::from(Arc::new(server_config(api)?));
        let listen = |e| ApiError::Listen(api.listen.clone(), e);
        let listener = TcpListener::bind(&api.listen).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        Ok(Entrance { listener, tls, token })
    }

    /// Takes callers for ever.
    pub async fn serve(self, router: Router, connections: &Connections) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(e) => {
                tracing::error!("the control API is not reached over the network: {e}; restart nasd");
                return std::future::pending().await;
            }
        };
        let room = Arc::new(Semaphore::new(MOST));
        let known = router.clone();
        let stranger = router.layer(from_fn_with_state(Gate(self.token), auth::check));
        loop {
            let place = connection::place(&room).await;
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    connection::not_taken("the control API", &e).await;
                    continue;
                }
            };
            let (tls, watcher) = (self.tls.clone(), connections.watcher());
            let (known, stranger) = (known.clone(), stranger.clone());
            // Whoever is slow in its handshake holds up only itself.
            tokio::spawn(async move {
                match shake_hands(stream, tls).await {
                    Ok(stream) => {
                        let certified = stream.get_ref().1.peer_certificates().is_some();
                        converse(stream, if certified { known } else { stranger }, watcher).await;
                    }
                    Err(e) => tracing::debug!("a caller of the control API: {e}"),
                }
                drop(place);
            });
        }
    }
}

async fn shake_hands(
    stream: TcpStream,
    tls: TlsAcceptor,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(GONE / 3).with_interval(GONE / 3))?;
    socket.set_tcp_user_timeout(Some(GONE))?;
    tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await?
}

fn server_config(api: &Api) -> Result<ServerConfig, ApiError> {
    let chain = credentials::certificates(&api.cert)?;
    let key = credentials::private_key(&api.key)?;
    let unusable = |error| ApiError::Unusable {
        cert: api.cert.display().to_string(),
        key: api.key.display().to_string(),
        error,
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?;
    let builder = match &api.ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            // A caller may show a certificate or none; a wrong one is refused here.
            let roots = Arc::new(credentials::authority(ca)?);
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots, provider).allow_unauthenticated();
            let verifier = verifier.build().map_err(|e| ApiError::Authority(ca.display().to_string(), e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // No session is ever resumed: each connection is checked anew.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
