//! Two nodes that know one code, and nothing else of each other, exchange what makes them a pair.
//!
//! The node that was set up first waits; the other one calls it, by TLS 1.3 with a certificate that was made for this
//! pairing and that the [`Code`] names. Then, a line of JSON each:
//!
//! 1. the caller: the code's secret, its name, where it will listen, and a request to sign its key. The key itself stays
//!    where it was made;
//! 2. the waiting node: a certificate, the authority's, and what both nodes must say alike; or why not;
//! 3. the caller: that it has written all of it down. Only now the waiting node takes it for a peer.

use super::code::Code;
use super::template::Peer;
use anyhow::{Context, Result, anyhow, bail};
use nasd_config::{CommitMode, OnPeerLoss};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, version::TLS13,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Another one does not understand this one's lines.
const VERSION: u32 = 1;
/// So many wrong codes end it.
const TRIES: u32 = 3;
/// One conversation takes no longer. Those that call meanwhile wait.
const CONVERSATION: Duration = Duration::from_secs(10);
/// Bytes of a line.
const LONGEST: u64 = 64 << 10;
/// In the certificate of a pairing. The code is what counts.
const NAME: &str = "nasd-pairing";

/// What the caller says.
#[derive(Serialize, Deserialize)]
struct Request {
    version: u32,
    secret: Vec<u8>,
    name: String,
    /// Of its `listen`.
    port: u16,
    /// Where peers reach it, if not there that it calls from.
    address: Option<String>,
    /// A certificate signing request, in PEM.
    csr: String,
}

/// What it is answered.
#[derive(Serialize, Deserialize)]
enum Reply {
    Welcome(Box<Welcome>),
    Refused(String),
}

/// What the joining node gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// PEM.
    pub ca: String,
    /// PEM, for the key in the request.
    pub certificate: String,
    pub shared: Shared,
}

/// What both nodes say alike, or the joining one takes as its default.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shared {
    /// The name of the node that was there first.
    pub name: String,
    /// Of its `listen`.
    pub port: u16,
    /// Where peers reach it, if not where it was called.
    pub address: Option<String>,
    pub mount: PathBuf,
    pub state_dir: PathBuf,
    pub commit: CommitMode,
    pub on_peer_loss: OnPeerLoss,
    pub postgres: Option<PathBuf>,
    pub etcd: Vec<String>,
}

/// What the joining node says of itself.
#[derive(Debug)]
pub struct Joining {
    pub name: String,
    pub port: u16,
    pub address: Option<String>,
    /// A certificate signing request, in PEM.
    pub csr: String,
}

/// A pairing that is waited for.
pub struct Offer {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    code: Code,
}

impl Offer {
    /// Listens, with a certificate and a code of its own.
    pub async fn new(listen: &str) -> Result<Offer> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("{listen}: can't listen here; choose another one with --pair-on"))?;
        let made =
            rcgen::generate_simple_self_signed([NAME.to_owned()]).context("cannot make a certificate")?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let certificate = made.cert.der().clone();
        let code = Code::new(&certificate);
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.into())?;
        Ok(Offer { listener, acceptor: TlsAcceptor::from(Arc::new(config)), code })
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// What the other node must know.
    pub fn code(&self) -> &Code {
        &self.code
    }

    /// Waits for the other node; `sign` gives the certificate for its request, or says why not. The code is good for
    /// `valid`, for one node, and for so many mistakes.
    pub async fn wait(
        self,
        valid: Duration,
        shared: &Shared,
        ca: &str,
        sign: impl Fn(&str, &str) -> Result<String>,
    ) -> Result<Peer> {
        let talk = async {
            let mut wrong = 0;
            loop {
                let (socket, from) = self.listener.accept().await?;
                let talk = self.converse(socket, from, wrong, shared, ca, &sign);
                match timeout(CONVERSATION, talk).await {
                    Ok(Ok(Heard::Joined(peer))) => return Ok(peer),
                    Ok(Ok(Heard::WrongCode)) => {
                        wrong += 1;
                        eprintln!("nasd: {from} came with a wrong code");
                        if wrong == TRIES {
                            bail!("{TRIES} wrong codes: this one is void; `nasd setup pair` makes a new one");
                        }
                    }
                    Ok(Ok(Heard::Refused(why))) => eprintln!("nasd: {from} was refused: {why}"),
                    Ok(Err(e)) => eprintln!("nasd: {from}: {e:#}"),
                    Err(_) => eprintln!("nasd: {from} did not say in time what it wants"),
                }
            }
        };
        match timeout(valid, talk).await {
            Ok(result) => result,
            Err(_) => bail!("nobody has come in time: the code is void; `nasd setup pair` makes a new one"),
        }
    }

    async fn converse(
        &self,
        socket: TcpStream,
        from: SocketAddr,
        wrong: u32,
        shared: &Shared,
        ca: &str,
        sign: &impl Fn(&str, &str) -> Result<String>,
    ) -> Result<Heard> {
        let mut tls = BufReader::new(self.acceptor.accept(socket).await?);
        let request: Request = hear(&mut tls).await?;
        let refuse = |why: String| Reply::Refused(why);
        if request.version != VERSION {
            let why = format!("one of the nodes is older (pairing {}, {VERSION})", request.version);
            say(&mut tls, &refuse(why.clone())).await?;
            return Ok(Heard::Refused(why));
        }
        if !self.code.admits(&request.secret) {
            let left = TRIES - wrong - 1;
            // That it was wrong counts, whether it can be told or not.
            let _ = say(&mut tls, &refuse(format!("the code is wrong; {left} tries are left"))).await;
            return Ok(Heard::WrongCode);
        }
        let certificate = match sign(&request.name, &request.csr) {
            Ok(certificate) => certificate,
            Err(why) => {
                let why = format!("{why:#}");
                say(&mut tls, &refuse(why.clone())).await?;
                return Ok(Heard::Refused(why));
            }
        };
        let welcome = Welcome { ca: ca.to_owned(), certificate, shared: shared.clone() };
        say(&mut tls, &Reply::Welcome(Box::new(welcome))).await?;
        let () =
            hear(&mut tls).await.context("it did not say that it has written all down; let it try again")?;
        let address = request
            .address
            .unwrap_or_else(|| SocketAddr::new(from.ip().to_canonical(), request.port).to_string());
        Ok(Heard::Joined(Peer { name: request.name, address }))
    }
}

enum Heard {
    Joined(Peer),
    WrongCode,
    Refused(String),
}

/// Calls the waiting node; `keep` writes down what it says.
pub async fn join(
    target: &str,
    code: &Code,
    joining: Joining,
    keep: impl FnOnce(Welcome) -> Result<()>,
) -> Result<()> {
    let provider = Arc::new(ring::default_provider());
    let named = Named { code: code.clone(), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(named))
        .with_no_client_auth();
    let call = async {
        let socket = TcpStream::connect(target).await.with_context(|| {
            format!("{target}: no node waits here for another one; is `nasd setup` or `nasd setup pair` running there?")
        })?;
        let tls = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME)?, socket).await;
        let mut tls = BufReader::new(tls.map_err(|e| not_the_one(target, e))?);
        let request = Request {
            version: VERSION,
            secret: code.secret().to_vec(),
            name: joining.name,
            port: joining.port,
            address: joining.address,
            csr: joining.csr,
        };
        say(&mut tls, &request).await?;
        match hear(&mut tls).await? {
            Reply::Welcome(welcome) => Ok((*welcome, tls)),
            Reply::Refused(why) => Err(anyhow!("{target}: {why}")),
        }
    };
    let slow = || anyhow!("{target}: no answer within {CONVERSATION:?}; check the network, and try again");
    let (welcome, mut tls) = timeout(CONVERSATION, call).await.map_err(|_| slow())??;
    keep(welcome)?;
    timeout(CONVERSATION, say(&mut tls, &())).await.map_err(|_| slow())?
}

fn not_the_one(target: &str, e: std::io::Error) -> anyhow::Error {
    let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(_)) = inner {
        return anyhow!(
            "{target} is not the node that this code is from: check the address and the code; if both are right somebody is between the two"
        );
    }
    anyhow!("{target}: {e}")
}

async fn say(to: &mut (impl AsyncWrite + Unpin), what: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    Ok(to.flush().await?)
}

async fn hear<T: DeserializeOwned>(from: &mut (impl AsyncBufRead + Unpin)) -> Result<T> {
    let mut line = Vec::new();
    from.take(LONGEST).read_until(b'\n', &mut line).await?;
    serde_json::from_slice(&line)
        .context("what it says is not understood; both nodes need one version of nasd")
}

/// The certificate is the one that the code names, and whoever shows it has its key.
#[derive(Debug)]
struct Named {
    code: Code,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.code.is_for(end_entity) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
