//! TLS to etcd, by the library and the cryptography of the peers' link, with an ear for what it is refused for.
//!
//! In TLS 1.3 a client's handshake is over before the server judges its certificate. The judgement then comes as an
//! alert in the middle of HTTP/2, which more often than not says no more than that the connection is closed. So it is
//! caught on its way there.

use std::fs;
use std::io::{self, IoSlice};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use nasd_config::Etcd;
use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Uri;
use tower::{BoxError, Service, ServiceExt, service_fn};

use super::VoteError;
use super::connect::unreadable;

/// What a connection was refused for, by either side.
#[derive(Clone, Default)]
pub struct Objection(Arc<Mutex<Option<rustls::Error>>>);

impl Objection {
    /// If there was one: whose, and what to do.
    pub fn explain(&self, endpoint: &str) -> Option<VoteError> {
        use rustls::Error as Tls;
        let error = self.0.lock().clone()?;
        let (what, remedy) = match &error {
            Tls::InvalidCertificate(_) => (
                "its certificate is not accepted",
                "check `ca` in [failover.etcd], and that etcd's certificate is for the host in `endpoints`",
            ),
            Tls::AlertReceived(_) => (
                "it does not accept this node's certificate, or that there is none",
                "check `cert` and `key` in [failover.etcd]: etcd's authority must have issued them, for client authentication",
            ),
            Tls::InvalidMessage(_) => (
                "it does not speak TLS",
                "write http:// in [failover.etcd] endpoints, or set up etcd with a certificate",
            ),
            _ => ("TLS failed", "look at etcd's log and its certificates"),
        };
        Some(VoteError::refused(endpoint, format!("{what} ({error})"), remedy))
    }

    /// The first is the cause of those that follow.
    fn note(&self, error: &rustls::Error) {
        self.0.lock().get_or_insert_with(|| error.clone());
    }

    fn note_io(&self, error: &io::Error) {
        if let Some(error) = error.get_ref().and_then(|e| e.downcast_ref()) {
            self.note(error);
        }
    }
}

/// How to reach one endpoint by TLS.
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    objection: Objection,
}

impl Tls {
    /// Reads the certificates.
    pub fn new(config: &Etcd, endpoint: &str, objection: Objection) -> Result<Self, VoteError> {
        let unusable = |e: rustls::Error| {
            VoteError::refused(
                endpoint,
                format!("the certificates for it can't be used: {e}"),
                "check `cert` and `key` in [failover.etcd]: they belong together",
            )
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots(config, endpoint)?);
        let mut client = match &config.cert {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates(endpoint, cert, "cert")?;
                let key = PrivateKeyDer::from_pem_slice(&read(endpoint, key, "key")?)
                    .map_err(|e| unreadable(endpoint, key, &e, "`key` in [failover.etcd]"))?;
                builder.with_client_auth_cert(chain, key).map_err(unusable)?
            }
        };
        client.alpn_protocols = vec![b"h2".to_vec()];
        let name = server_name(endpoint).ok_or_else(|| {
            VoteError::refused(
                endpoint,
                "this is no host that a certificate could be for",
                "correct it in [failover.etcd] endpoints",
            )
        })?;
        Ok(Self { config: Arc::new(client), name, objection })
    }

    /// What gRPC makes its connections with: TCP and TLS, nothing above.
    pub fn connector(
        self,
    ) -> impl Service<Uri, Response = TokioIo<Watched>, Error = BoxError, Future: Send> + Send + 'static {
        let Self { config, name, objection } = self;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        service_fn(move |uri: Uri| {
            let tcp = tcp.clone();
            let tls = TlsConnector::from(Arc::clone(&config));
            let (name, objection) = (name.clone(), objection.clone());
            async move {
                let socket = tcp.oneshot(uri).await?.into_inner();
                let stream = tls.connect(name, socket).await.map_err(|e| {
                    objection.note_io(&e);
                    io::Error::new(e.kind(), Handshake(e))
                })?;
                Ok(TokioIo::new(Watched { stream, objection }))
            }
        })
    }
}

fn server_name(endpoint: &str) -> Option<ServerName<'static>> {
    let uri: Uri = endpoint.parse().ok()?;
    let host = uri.host()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).ok()
}

fn roots(config: &Etcd, endpoint: &str) -> Result<RootCertStore, VoteError> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &config.ca {
        for certificate in certificates(endpoint, ca, "ca")? {
            roots.add(certificate).map_err(|e| unreadable(endpoint, ca, &e, "`ca` in [failover.etcd]"))?;
        }
        return Ok(roots);
    }
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(VoteError::refused(
            endpoint,
            "this machine knows no authority that could have issued its certificate",
            "name etcd's own as `ca` in [failover.etcd], or install ca-certificates",
        ));
    }
    Ok(roots)
}

fn certificates(endpoint: &str, path: &Path, field: &str) -> Result<Vec<CertificateDer<'static>>, VoteError> {
    let bad =
        |e: &dyn std::fmt::Display| unreadable(endpoint, path, e, &format!("`{field}` in [failover.etcd]"));
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(endpoint, path, field)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(bad(&"there is no certificate in PEM in it")),
        found => found.map_err(|e| bad(&e)),
    }
}

fn read(endpoint: &str, path: &Path, field: &str) -> Result<Vec<u8>, VoteError> {
    fs::read(path).map_err(|e| unreadable(endpoint, path, &e, &format!("`{field}` in [failover.etcd]")))
}

/// What knows no TLS often just hangs up.
#[derive(Debug, thiserror::Error)]
#[error("the TLS handshake: is it http or https there?")]
struct Handshake(#[source] io::Error);

/// Hands on everything, and keeps what it was refused for.
pub struct Watched {
    stream: TlsStream<TcpStream>,
    objection: Objection,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        Poll::Ready(read.inspect_err(|e| self.objection.note_io(e)))
    }
}

impl Watched {
    /// One who does not like us may have hung up by the time we write: its alert, which is still to be read, says more
    /// than our broken pipe. It is read from the socket itself, since nobody has been woken for it yet.
    fn last_words<T>(&mut self, written: io::Result<T>) -> io::Result<T> {
        if written.is_err() {
            let (socket, tls) = self.stream.get_mut();
            while tls.read_tls(&mut Raw(socket)).is_ok_and(|n| n > 0) {
                if let Err(e) = tls.process_new_packets() {
                    self.objection.note(&e);
                    break;
                }
            }
        }
        written
    }
}

/// A socket without tokio: what is there now, or an error.
struct Raw<'a>(&'a TcpStream);

impl io::Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(self.last_words(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bytes));
        Poll::Ready(self.last_words(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(self.last_words(written))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
