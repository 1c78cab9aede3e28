//! Who may link to whom: TLS 1.3 only, certificates on both sides, one authority for both.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, ServerConfig,
    ServerConnection,
};

use super::{Link, LinkError, feed, is_timeout};
use crate::credentials::{self, CredentialsError, common_name};

/// The accepting side says with this frame (no body) that it has seen and accepted the certificate of
/// the connecting side. In TLS 1.3 the client's handshake is over before the server judges its
/// certificate; without this frame a refusal would come up at some later `recv`.
const GREETING: u8 = 0;

/// Read at once during the handshake. Not larger: rustls stops taking records while it holds 16 KiB
/// of plaintext, and what a stranger sends right behind its handshake is taken out only afterwards.
const HANDSHAKE_BUFFER: usize = 8 * 1024;

/// This node's certificate, its key and the authority that its peers are checked against.
pub struct TlsContext {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// As a peer that is connected to checks.
    check_client: Arc<dyn ClientCertVerifier>,
    /// As a peer that connects checks.
    check_server: Arc<WebPkiServerVerifier>,
    chain: Vec<CertificateDer<'static>>,
    own_name: String,
    files: Files,
}

/// For messages: what to correct.
#[derive(Clone)]
struct Files {
    ca: PathBuf,
    cert: PathBuf,
}

impl TlsContext {
    /// Reads the three PEM files: the authority, this node's certificate (perhaps followed by those
    /// between it and the authority) and its key.
    pub fn new(ca: &Path, cert: &Path, key: &Path) -> Result<Self, LinkError> {
        let roots = Arc::new(credentials::authority(ca)?);
        let chain = credentials::certificates(cert)?;
        let own_name = chain
            .first()
            .ok_or_else(|| "there is no certificate in it".to_owned())
            .and_then(|c| common_name(c))
            .map_err(|e| CredentialsError::new(cert, e, "make a new one with `nasd cert node`"))?;
        let key_der = credentials::private_key(key)?;

        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let useless = |e: VerifierBuilderError| {
            CredentialsError::new(
                ca,
                format!("peers cannot be checked against it: {e}"),
                "name the file `ca.pem` of `nasd cert ca` in [tls] ca",
            )
        };
        let check_client =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(useless)?;
        let check_server =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(useless)?;
        let unusable = |e: rustls::Error| {
            CredentialsError::new(
                cert,
                format!("cannot be used with the key {}: {e}", key.display()),
                "[tls] cert and key must be the two files that `nasd cert node` wrote together",
            )
        };
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::clone(&check_client))
            .with_single_cert(chain.clone(), key_der.clone_key())
            .map_err(unusable)?;
        // No session is ever resumed: each link checks both certificates anew.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_webpki_verifier(Arc::clone(&check_server))
            .with_client_auth_cert(chain.clone(), key_der)
            .map_err(unusable)?;
        client.resumption = Resumption::disabled();

        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            check_client,
            check_server,
            chain,
            own_name,
            files: Files { ca: ca.to_owned(), cert: cert.to_owned() },
        })
    }

    /// The common name of this node's certificate. Peers see this node under it.
    pub fn own_name(&self) -> &str {
        &self.own_name
    }

    /// Whether a peer with the same authority would accept this node's certificate now: issued by the
    /// authority, in its time, for both directions. Not part of [`TlsContext::new`], as a node whose
    /// certificate has expired may still serve alone.
    pub fn check_own(&self) -> Result<(), LinkError> {
        let Some((end, between)) = self.chain.split_first() else {
            return Ok(());
        };
        let name = ServerName::try_from(self.own_name.clone()).map_err(|e| {
            CredentialsError::new(
                &self.files.cert,
                format!("its common name {:?} is no DNS name: {e}", self.own_name),
                "make a new one with `nasd cert node`",
            )
        })?;
        let now = UnixTime::now();
        self.check_client
            .verify_client_cert(end, between, now)
            .map(drop)
            .and_then(|()| self.check_server.verify_server_cert(end, between, &name, &[], now))
            .map(drop)
            .map_err(|e| {
                let (reason, remedy) = explain(&e, &self.files, Some(&self.own_name));
                CredentialsError::new(&self.files.cert, reason, remedy).into()
            })
    }

    /// Connects to a peer and returns when both sides have accepted each other.
    ///
    /// `server_name` is the peer's node name; it must be a DNS name in its certificate. `timeout` is
    /// for all of it together (except for the resolver, which has its own), later for each write.
    pub fn connect(&self, address: &str, server_name: &str, timeout: Duration) -> Result<Link, LinkError> {
        let deadline = Deadline::new(address, timeout);
        let name = ServerName::try_from(server_name.to_owned()).map_err(|e| LinkError::Tls {
            peer: address.to_owned(),
            reason: format!("{server_name:?} cannot be a node's name: {e}"),
            remedy: "correct `name` in [[peer]]".to_owned(),
        })?;
        let socket = tcp(address, &deadline)?;
        let conn = ClientConnection::new(Arc::clone(&self.client), name)
            .map_err(|e| self.refused(address, &e, Some(server_name)))?;
        let (conn, peer_name) = self.handshake(conn.into(), &socket, &deadline, Some(server_name))?;
        let link = Link::new(conn, socket, address.to_owned(), peer_name, timeout)?;
        match link.recv_timeout(deadline.left()?) {
            Ok(Some(frame)) if frame.kind == GREETING && frame.body.is_empty() => Ok(link),
            Ok(Some(_)) => Err(not_nasd(address, "it does not greet as nasd does")),
            Ok(None) => Err(deadline.passed()),
            // The peer's judgement of our certificate arrives here.
            Err(e) => Err(link.tls_error().map_or(e, |e| self.refused(address, &e, Some(server_name)))),
        }
    }

    /// Takes a connection from a listener and returns when both sides have accepted each other.
    /// `timeout` as for [`TlsContext::connect`].
    pub fn accept(&self, socket: TcpStream, timeout: Duration) -> Result<Link, LinkError> {
        let address = match socket.peer_addr() {
            Ok(address) => address.to_string(),
            Err(e) => return Err(LinkError::io("a new connection", "asking its address", e)),
        };
        let deadline = Deadline::new(&address, timeout);
        // A listener of an event loop hands out sockets that do not block.
        socket.set_nonblocking(false).map_err(|e| LinkError::io(&address, "setting it up", e))?;
        let conn =
            ServerConnection::new(Arc::clone(&self.server)).map_err(|e| self.refused(&address, &e, None))?;
        let (conn, peer_name) = self.handshake(conn.into(), &socket, &deadline, None)?;
        let link = Link::new(conn, socket, address, peer_name, timeout)?;
        link.send(GREETING, &[])?;
        Ok(link)
    }

    /// Returns when this side is done, with the peer's name.
    fn handshake(
        &self,
        mut conn: Connection,
        mut socket: &TcpStream,
        deadline: &Deadline,
        expected: Option<&str>,
    ) -> Result<(Connection, String), LinkError> {
        let peer = deadline.peer.as_str();
        socket.set_nodelay(true).map_err(|e| LinkError::io(peer, "setting it up", e))?;
        let mut buffer = [0; HANDSHAKE_BUFFER];
        let mut out = Vec::new();
        // A peer that refuses us may have closed by the time we write: its alert, which is still to
        // be read, says more than our broken pipe.
        let mut write_error = None;
        loop {
            while conn.wants_write() {
                conn.write_tls(&mut out).map_err(|e| LinkError::io(peer, "writing", e))?;
            }
            if !out.is_empty() && write_error.is_none() {
                let written =
                    socket.set_write_timeout(Some(deadline.left()?)).and_then(|()| socket.write_all(&out));
                match written {
                    Err(e) if is_timeout(&e) => return Err(deadline.passed()),
                    written => write_error = written.err(),
                }
            }
            out.clear();
            if !conn.is_handshaking() {
                break;
            }
            socket
                .set_read_timeout(Some(deadline.left()?))
                .map_err(|e| LinkError::io(peer, "setting it up", e))?;
            let n = match socket.read(&mut buffer) {
                Ok(0) => {
                    return Err(LinkError::Closed {
                        peer: peer.to_owned(),
                        reason: "it hung up during the TLS handshake; its log says why".to_owned(),
                    });
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if is_timeout(&e) => return Err(deadline.passed()),
                Err(e) => {
                    return Err(LinkError::io(peer, "the TLS handshake", write_error.unwrap_or(e)));
                }
            };
            let mut plaintext = Vec::new();
            if let Err(e) = feed(&mut conn, &buffer[..n], |bytes| {
                plaintext.extend_from_slice(bytes);
            }) {
                // Say why, if it can be said without waiting.
                while conn.wants_write() && conn.write_tls(&mut out).is_ok() {}
                let _ = socket.set_write_timeout(Some(Duration::from_millis(100)));
                let _ = socket.write_all(&out);
                let _ = socket.shutdown(std::net::Shutdown::Write);
                return Err(self.refused(peer, &e, expected));
            }
            if !plaintext.is_empty() {
                return Err(not_nasd(peer, "it sent data before it was greeted"));
            }
        }
        if let Some(e) = write_error {
            return Err(LinkError::io(peer, "the TLS handshake", e));
        }
        let name = conn
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or_else(|| "it has no certificate".to_owned())
            .and_then(|c| common_name(c))
            .map_err(|reason| LinkError::Tls {
                peer: peer.to_owned(),
                reason,
                remedy: "make it a new certificate with `nasd cert node`".to_owned(),
            })?;
        Ok((conn, name))
    }

    fn refused(&self, peer: &str, error: &rustls::Error, expected: Option<&str>) -> LinkError {
        let (reason, remedy) = explain(error, &self.files, expected);
        LinkError::Tls { peer: peer.to_owned(), reason, remedy }
    }
}

fn not_nasd(peer: &str, reason: &str) -> LinkError {
    LinkError::Tls {
        peer: peer.to_owned(),
        reason: reason.to_owned(),
        remedy: "check the address and port in [[peer]], and that both nodes run the same version".to_owned(),
    }
}

/// When something must be done.
struct Deadline {
    peer: String,
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    fn new(peer: &str, timeout: Duration) -> Self {
        // A year stands for ever; adding the largest duration would overflow.
        let timeout = timeout.min(Duration::from_secs(365 * 86_400));
        Self { peer: peer.to_owned(), at: Instant::now() + timeout, timeout }
    }

    fn left(&self) -> Result<Duration, LinkError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.passed());
        }
        Ok(left)
    }

    fn passed(&self) -> LinkError {
        LinkError::Timeout { peer: self.peer.clone(), doing: "setting up the link", after: self.timeout }
    }
}

/// Tries all addresses of a name in turn.
fn tcp(address: &str, deadline: &Deadline) -> Result<TcpStream, LinkError> {
    let found = address.to_socket_addrs().map_err(|e| LinkError::io(address, "looking up the address", e))?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in found {
        match TcpStream::connect_timeout(&candidate, deadline.left()?) {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    if is_timeout(&last) {
        return Err(deadline.passed());
    }
    Err(LinkError::io(address, "connecting", last))
}

/// What is wrong and what to do about it. `expected` is the name looked for, on the connecting side.
fn explain(error: &rustls::Error, files: &Files, expected: Option<&str>) -> (String, String) {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    let ca = files.ca.display();
    let cert = files.cert.display();
    let one_ca = format!("both nodes need certificates of one authority; here it is {ca}");
    let clocks = "renew it with `nasd cert node`, or set the clocks of both nodes".to_owned();
    match error {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            ("its certificate is unknown: the authority did not issue it".to_owned(), one_ca)
        }
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            ("its certificate has expired".to_owned(), clocks)
        }
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            ("its certificate is not valid yet".to_owned(), clocks)
        }
        rustls::Error::InvalidCertificate(
            e @ (Bad::NotValidForName | Bad::NotValidForNameContext { .. }),
        ) => {
            let has = match e {
                Bad::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                    // rustls writes `DnsName("nas-b")`.
                    let names: Vec<_> =
                        presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name)).collect();
                    format!(" but for {}", names.join(", "))
                }
                _ => String::new(),
            };
            (
                format!(
                    "its certificate is not for the node {:?}{has}",
                    expected.unwrap_or("?")
                ),
                "correct `name` or `address` in [[peer]], or make the peer's certificate with `nasd cert node --name`".to_owned(),
            )
        }
        rustls::Error::InvalidCertificate(Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. }) => (
            "its certificate is not for both client and server authentication".to_owned(),
            "make one with `nasd cert node`".to_owned(),
        ),
        rustls::Error::InvalidCertificate(e) => {
            (format!("its certificate is not acceptable: {e}"), "make one with `nasd cert node`".to_owned())
        }
        rustls::Error::NoCertificatesPresented => (
            "it has no certificate".to_owned(),
            "only nodes with a certificate may link; if it is one, see its [tls]".to_owned(),
        ),
        rustls::Error::AlertReceived(
            Alert::UnknownCA | Alert::DecryptError | Alert::BadCertificate | Alert::CertificateUnknown,
        ) => (
            format!("it does not accept this node's certificate {cert}: another authority, or another name"),
            format!("{one_ca}; the peer's log says more"),
        ),
        rustls::Error::AlertReceived(Alert::CertificateExpired) => {
            (format!("it says that this node's certificate {cert} is not valid now"), clocks)
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            ("it wants a certificate of this node".to_owned(), "set [tls] cert and key".to_owned())
        }
        rustls::Error::AlertReceived(alert) => {
            (format!("it refused: TLS alert {alert:?}"), "the peer's log says why".to_owned())
        }
        rustls::Error::InvalidMessage(_)
        | rustls::Error::InappropriateMessage { .. }
        | rustls::Error::InappropriateHandshakeMessage { .. } => (
            format!("what it sent is not TLS, or damaged ({error})"),
            "check that the address and port are those of nasd on both sides".to_owned(),
        ),
        rustls::Error::PeerIncompatible(_) => {
            (format!("it cannot do TLS 1.3 as nasd does ({error})"), "check that it is nasd".to_owned())
        }
        error => (
            format!("TLS failed: {error}"),
            "if it happens again, check the network and the peer's log".to_owned(),
        ),
    }
}
