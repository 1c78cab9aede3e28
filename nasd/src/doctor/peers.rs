//! Whether a peer can be reached, and whether we and it accept each other's certificates.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use nasd_config::Peer;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Stream};

use super::{Finding, within};

const CHECK: &str = "peer";
const CONNECT: Duration = Duration::from_secs(2);
const RESOLVE: Duration = Duration::from_secs(10);

/// In TLS 1.3 the server judges our certificate after the client is through: so long we wait for its
/// protest.
const PROTEST: Duration = Duration::from_millis(500);

/// Connects to `peer`, with TLS if there are credentials for it.
pub(super) fn check(peer: &Peer, credentials: Option<&Arc<ClientConfig>>) -> Finding {
    let Peer { name, address, .. } = peer;
    let owned = address.clone();
    let resolve = move || owned.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    let addresses = match within(RESOLVE, resolve) {
        Some(Ok(addresses)) if !addresses.is_empty() => addresses,
        Some(Err(e)) => {
            return Finding::fail(
                CHECK,
                format!("{name}: {address} is not found: {e}; correct `address`, or the name service"),
            );
        }
        _ => {
            return Finding::fail(
                CHECK,
                format!("{name}: {address} is not found; correct `address`, or the name service"),
            );
        }
    };
    let stream = match connect(&addresses) {
        Ok(stream) => stream,
        // As it should be when the other node is set up after this one.
        Err(e) => {
            return Finding::warn(
                CHECK,
                format!(
                    "{name}: {address} does not answer: {e}; start nasd there, or open the port in its firewall"
                ),
            );
        }
    };
    let Some(credentials) = credentials else {
        let text = format!("{name}: {address} answers, but TLS was not tried; mend our certificates first");
        return Finding::warn(CHECK, text);
    };
    match greet(stream, name, credentials) {
        Ok(()) => Finding::ok(CHECK, format!("{name}: {address} answers, and TLS holds both ways")),
        Err(e) => Finding::fail(
            CHECK,
            format!(
                "{name}: {address} answers, but TLS fails: {e}; give both nodes certificates of one ca, the peer's named {name}"
            ),
        ),
    }
}

/// The first address that answers, each given its time.
fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn greet(mut stream: TcpStream, name: &str, credentials: &Arc<ClientConfig>) -> io::Result<()> {
    stream.set_read_timeout(Some(CONNECT))?;
    stream.set_write_timeout(Some(CONNECT))?;
    let server = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(credentials.clone(), server).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).map_err(said_plainly)?;
    }
    stream.set_read_timeout(Some(PROTEST))?;
    match Stream::new(&mut tls, &mut stream).read(&mut [0; 1]) {
        Err(e) if !is_timeout(&e) => Err(said_plainly(e)),
        // Silence is consent; a word is a greeting; an end without a protest is not TLS's affair.
        _ => {
            tls.send_close_notify();
            // The peer may be gone already; nothing depends on it.
            let _ = tls.write_tls(&mut stream);
            Ok(())
        }
    }
}

fn said_plainly(e: io::Error) -> io::Error {
    if is_timeout(&e) {
        return io::Error::new(ErrorKind::TimedOut, "no answer in time");
    }
    if e.kind() == ErrorKind::UnexpectedEof {
        return io::Error::new(e.kind(), "the peer closed the connection");
    }
    e
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::super::{Level, certificates};
    use super::*;
    use nasd_config::Tls;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig, ServerConnection};
    use std::net::TcpListener;
    use std::path::Path;
    use std::thread;

    /// A peer that takes one call as `nasd` does, and is silent then.
    fn serve_once(tls: &Tls) -> Peer {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(&tls.ca).expect("the authority");
        roots.add(ca).expect("an authority");
        let cert = CertificateDer::from_pem_file(&tls.cert).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&tls.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .expect("a verifier");
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![cert], key)
            .expect("they fit together");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a call");
            let mut tls = ServerConnection::new(Arc::new(config)).expect("a connection");
            // Ends when the caller hangs up, or with the alert that says what is wrong.
            while tls.complete_io(&mut stream).is_ok_and(|(read, _)| read > 0) {}
        });
        Peer { name: "nas-b".to_owned(), address, heartbeat_addresses: Vec::new() }
    }

    fn credentials(dir: &Path) -> Arc<ClientConfig> {
        let tls = certificates::tests::made(dir, "nas-a");
        certificates::check(&tls, "nas-a").1.expect("good ones")
    }

    #[test]
    fn nodes_of_one_authority_accept_each_other() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ours = credentials(dir.path());
        let peer = serve_once(&certificates::tests::made(dir.path(), "nas-b"));
        let finding = check(&peer, Some(&ours));
        assert_eq!(finding.level, Level::Ok, "{finding}");
    }

    #[test]
    fn a_peer_with_another_name_or_authority_fails() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ours = credentials(dir.path());
        let peer = serve_once(&certificates::tests::made(dir.path(), "nas-c"));
        let finding = check(&peer, Some(&ours));
        assert_eq!(finding.level, Level::Fail, "{finding}");

        let foreign = certificates::tests::made(&dir.path().join("foreign"), "nas-b");
        let finding = check(&serve_once(&foreign), Some(&ours));
        assert_eq!(finding.level, Level::Fail, "{finding}");
    }

    #[test]
    fn a_peer_that_does_not_accept_us_fails() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ours = credentials(dir.path());
        // It shows a certificate that we accept, but trusts another authority.
        let mut peer = certificates::tests::made(dir.path(), "nas-b");
        peer.ca = certificates::tests::made(&dir.path().join("foreign"), "nas-b").ca;
        let finding = check(&serve_once(&peer), Some(&ours));
        assert_eq!(finding.level, Level::Fail, "{finding}");
        assert!(finding.text.contains("TLS fails: "), "{finding}");
    }

    #[test]
    fn a_peer_that_is_not_there_yet_is_a_warning() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let peer = Peer { name: "nas-b".to_owned(), address, heartbeat_addresses: Vec::new() };
        assert!(check(&peer, None).text.contains("TLS was not tried"));
        drop(listener);
        assert!(check(&peer, None).text.contains("does not answer"));
        let peer = Peer { address: "nas-b.invalid:7400".to_owned(), ..peer };
        assert_eq!(check(&peer, None).level, Level::Fail);
    }
}
