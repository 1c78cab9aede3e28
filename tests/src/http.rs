//! The control API as its clients see it: requests and answers by hand, over the socket or TLS.

use crate::node::free_port;
use crate::{Node, nasd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The token of [`open`].
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The status line and the headers, in small letters.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|l| l.split_once(": "));
        lines.find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}

/// Asks by HTTP/1.0 and reads to the end; an error when there is no answer.
pub fn ask(stream: &mut (impl Read + Write), method: &str, path: &str, headers: &str) -> io::Result<Answer> {
    write!(stream, "{method} {path} HTTP/1.0\r\n{headers}\r\n")?;
    stream.flush()?;
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err(read.err().unwrap_or_else(|| io::Error::other(format!("no answer but {text:?}"))));
    };
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok(Answer { code, head: head.to_lowercase(), body: body.to_owned() })
}

/// Asks a node on its control socket.
pub fn over_socket(node: &Node, method: &str, path: &str) -> Answer {
    let socket = node.config.with_extension("").join("nasd.sock");
    let mut stream = UnixStream::connect(&socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
    ask(&mut stream, method, path, "").unwrap()
}

/// Gives a node that does not run yet an `[api]` with [`TOKEN`], on this machine; where it listens.
pub fn open(node: &Node) -> String {
    open_at(node, "127.0.0.1", free_port())
}

/// The same on one of its addresses, which its certificate names.
pub fn open_at(node: &Node, ip: &str, port: u16) -> String {
    let token = token_file(node);
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let pki = node.config.with_file_name("pki");
    let (dir, name) = (pki.to_str().unwrap(), format!("{}-api", node.name));
    let made = nasd(&["cert", "node", "--dir", dir, "--name", &name, "--host", &node.name, ip]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let address = format!("{ip}:{port}");
    let section = format!(
        "[api]\nlisten = \"{address}\"\ntoken_file = \"{}\"\ncert = \"{dir}/{name}.pem\"\nkey = \"{dir}/{name}.key\"\n",
        token.display()
    );
    let text = std::fs::read_to_string(&node.config).unwrap();
    std::fs::write(&node.config, text + &section).unwrap();
    address
}

/// Where the token of [`open`] is.
pub fn token_file(node: &Node) -> PathBuf {
    node.config.with_extension("token")
}

/// A client over TLS.
#[derive(Debug, Clone)]
pub struct Client(Arc<ClientConfig>);

impl Client {
    /// It trusts `ca.pem` of this directory, and shows the certificate `name.pem` of it, if there is to be one.
    pub fn new(pki: &Path, name: Option<&str>) -> Client {
        Client::showing(pki, name.map(|name| (pki, name)))
    }

    /// The same with a certificate of another directory.
    pub fn showing(pki: &Path, own: Option<(&Path, &str)>) -> Client {
        let chain = |path: PathBuf| CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap);
        let mut roots = RootCertStore::empty();
        chain(pki.join("ca.pem")).for_each(|c| roots.add(c).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((dir, name)) => {
                let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain(dir.join(format!("{name}.pem"))).collect(), key).unwrap()
            }
        };
        Client(Arc::new(config))
    }

    /// Connects to the node of this name.
    pub fn connect(&self, address: &str, name: &str) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(StreamOwned::new(ClientConnection::new(Arc::clone(&self.0), name).unwrap(), socket))
    }

    /// Asks the node of this name.
    pub fn ask(
        &self,
        address: &str,
        name: &str,
        method: &str,
        path: &str,
        headers: &str,
    ) -> io::Result<Answer> {
        ask(&mut self.connect(address, name)?, method, path, headers)
    }
}

/// The header that shows the token.
pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}
