//! Our certificates: whether they are there, valid, ours, and fit together.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use nasd_config::Tls;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Finding;

const CHECK: &str = "certificates";

/// When to warn of a certificate's end.
const SOON_SECONDS: i64 = 30 * 24 * 3600;

/// Checks the files of `[tls]` for the node `name`. If TLS can be spoken with them, also gives what
/// a client needs for it.
pub(super) fn check(tls: &Tls, name: &str) -> (Vec<Finding>, Option<Arc<ClientConfig>>) {
    match examine(tls, name) {
        Ok((findings, client)) => (findings, Some(client)),
        Err(failure) => (vec![Finding::fail(CHECK, failure)], None),
    }
}

/// The error is what was found, and the remedy: what comes after the first failure makes no sense.
fn examine(tls: &Tls, name: &str) -> Result<(Vec<Finding>, Arc<ClientConfig>), String> {
    let authorities = certificates(&tls.ca)?;
    let chain = certificates(&tls.cert)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| {
        let shown = tls.key.display();
        format!("{shown} cannot be read as a private key: {e}; correct `key` in [tls], or make one with `nasd cert node`")
    })?;

    let mut findings = Vec::new();
    let now = Utc::now();
    for authority in &authorities {
        findings.extend(validity(&tls.ca, authority, now)?);
    }
    let cert = chain.first().ok_or_else(|| none_in(&tls.cert))?;
    findings.extend(validity(&tls.cert, cert, now)?);
    let common_name = common_name(&tls.cert, cert)?;
    if common_name != name {
        return Err(format!(
            "{} is the certificate of {common_name:?}, but this node is {name:?}; make one with `nasd cert node --name {name}`",
            tls.cert.display()
        ));
    }

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        let added = roots.add(authority);
        added.map_err(|e| format!("{} holds no authority: {e}; correct `ca` in [tls]", tls.ca.display()))?;
    }
    let roots = Arc::new(roots);
    verify(tls, name, &chain, &roots, &provider)?;
    let client = configure(chain, key, &roots, &provider).map_err(|e| {
        format!(
            "{} and {} do not fit together: {e}; name the two files that were made together",
            tls.cert.display(),
            tls.key.display()
        )
    })?;

    findings.extend(key_mode(&tls.key));
    if findings.is_empty() {
        let text = format!("{} is valid and signed by {}", tls.cert.display(), tls.ca.display());
        findings.push(Finding::ok(CHECK, text));
    }
    Ok((findings, client))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = |path| CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    match read(path) {
        Ok(found) if found.is_empty() => Err(none_in(path)),
        Ok(found) => Ok(found),
        Err(e) => Err(format!(
            "{} cannot be read as PEM: {e}; correct [tls], or make certificates with `nasd cert`",
            path.display()
        )),
    }
}

fn none_in(path: &Path) -> String {
    format!("{} holds no certificate; correct [tls], or make certificates with `nasd cert`", path.display())
}

fn parse<'a>(path: &Path, der: &'a CertificateDer) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(e) => Err(format!(
            "{} holds a damaged certificate: {e}; restore it, or make a new one with `nasd cert`",
            path.display()
        )),
    }
}

/// A finding if the certificate ends soon, an error if it isn't valid now.
fn validity(path: &Path, der: &CertificateDer, now: DateTime<Utc>) -> Result<Option<Finding>, String> {
    let certificate = parse(path, der)?;
    let first = certificate.validity().not_before.timestamp();
    let last = certificate.validity().not_after.timestamp();
    let shown = path.display();
    if now.timestamp() < first {
        let first = day(first);
        return Err(format!("{shown} is valid only from {first} on; set the clock, or make a new one"));
    }
    if now.timestamp() > last {
        let last = day(last);
        return Err(format!("{shown} was valid until {last}; make a new one with `nasd cert`"));
    }
    Ok((last - now.timestamp() < SOON_SECONDS).then(|| {
        let last = day(last);
        let text = format!("{shown} is valid until {last} only; make a new one with `nasd cert`");
        Finding::warn(CHECK, text)
    }))
}

fn day(timestamp: i64) -> String {
    DateTime::from_timestamp(timestamp, 0)
        .map_or_else(|| format!("second {timestamp}"), |t| t.format("%Y-%m-%d").to_string())
}

fn common_name(path: &Path, der: &CertificateDer) -> Result<String, String> {
    let certificate = parse(path, der)?;
    let name = certificate.subject().iter_common_name().next();
    let name = name.and_then(|n| n.as_str().ok()).map(str::to_owned);
    name.ok_or_else(|| {
        let shown = path.display();
        format!("{shown} names nobody; make one with `nasd cert node`")
    })
}

/// As a peer will look at it: once when it calls us, once when we call it.
fn verify(
    tls: &Tls,
    name: &str,
    chain: &[CertificateDer],
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<(), String> {
    let (cert, ca) = (tls.cert.display(), tls.ca.display());
    let no_authority = |e| format!("{ca} holds no authority: {e}; correct `ca` in [tls]");
    let (Some((leaf, between)), Ok(server_name)) = (chain.split_first(), ServerName::try_from(name)) else {
        return Err(none_in(&tls.cert));
    };
    let now = UnixTime::now();
    let client = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(no_authority)?;
    let server = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(no_authority)?;
    client.verify_client_cert(leaf, between, now).map_err(|e| {
        format!(
            "{cert} is not signed by {ca} for a client: {e}; make one with `nasd cert node` beside the ca"
        )
    })?;
    server
        .verify_server_cert(leaf, between, &server_name, &[], now)
        .map_err(|e| {
            format!("{cert} is not signed by {ca} for a server called {name:?}: {e}; make one with `nasd cert node --name {name}`")
        })?;
    Ok(())
}

/// Both ends, as the peers' link uses them; `rustls` compares key and certificate here.
fn configure(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let versions = &[&rustls::version::TLS13];
    ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key.clone_key())?;
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(client))
}

fn key_mode(key: &Path) -> Option<Finding> {
    let mode = fs::metadata(key).ok()?.permissions().mode();
    (mode & 0o077 != 0).then(|| {
        let shown = key.display();
        let text =
            format!("{shown} can be read by others (mode {:03o}); run `chmod 600 {shown}`", mode & 0o777);
        Finding::warn(CHECK, text)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Level;
    use super::*;
    use crate::cert;

    /// `[tls]` of the node `name` with the files that `nasd cert` makes in `dir`.
    pub(in super::super) fn made(dir: &Path, name: &str) -> Tls {
        if !dir.join("ca.pem").exists() {
            cert::ca(dir).expect("the authority");
        }
        cert::node(dir, name, &[]).expect("the node");
        Tls {
            ca: dir.join("ca.pem"),
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        }
    }

    fn the_one_failure(tls: &Tls, name: &str) -> String {
        let (findings, client) = check(tls, name);
        assert!(client.is_none());
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].level, Level::Fail, "{}", findings[0]);
        findings[0].text.clone()
    }

    #[test]
    fn what_nasd_cert_makes_is_good() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tls = made(dir.path(), "nas-a");
        let (findings, client) = check(&tls, "nas-a");
        assert!(client.is_some());
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].level, Level::Ok, "{}", findings[0]);

        fs::set_permissions(&tls.key, fs::Permissions::from_mode(0o644)).expect("ours");
        let (findings, client) = check(&tls, "nas-a");
        assert!(client.is_some());
        assert_eq!(findings[0].level, Level::Warn, "{}", findings[0]);
    }

    #[test]
    fn what_does_not_fit_together_is_said() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let good = made(dir.path(), "nas-a");
        let other = made(dir.path(), "nas-b");
        let foreign = made(&dir.path().join("foreign"), "nas-a");
        let empty = dir.path().join("empty");
        fs::write(&empty, "").expect("writable");

        let text = the_one_failure(&good, "nas-b");
        assert!(text.contains("is the certificate of \"nas-a\", but this node is \"nas-b\""), "{text}");
        let key = other.key.clone();
        let text = the_one_failure(&Tls { key, ..good.clone() }, "nas-a");
        assert!(text.contains("do not fit together"), "{text}");
        let ca = foreign.ca.clone();
        let text = the_one_failure(&Tls { ca, ..good.clone() }, "nas-a");
        assert!(text.contains("is not signed by"), "{text}");
        let cert = empty.clone();
        let text = the_one_failure(&Tls { cert, ..good.clone() }, "nas-a");
        assert!(text.contains("holds no certificate"), "{text}");
        let key = empty;
        let text = the_one_failure(&Tls { key, ..good.clone() }, "nas-a");
        assert!(text.contains("cannot be read as a private key"), "{text}");
        let ca = dir.path().join("missing");
        let text = the_one_failure(&Tls { ca, ..good }, "nas-a");
        assert!(text.contains("cannot be read as PEM"), "{text}");
    }

    #[test]
    fn time_runs_out() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tls = made(dir.path(), "nas-a");
        let der = certificates(&tls.cert).expect("readable").remove(0);
        let at = |days: i64| validity(&tls.cert, &der, Utc::now() + chrono::TimeDelta::days(days));
        assert_eq!(at(0), Ok(None));
        assert!(at(3640).is_ok_and(|f| f.is_some_and(|f| f.level == Level::Warn)));
        assert!(at(3660).is_err_and(|e| e.contains(" was valid until ")));
        assert!(at(-3).is_err_and(|e| e.contains(" is valid only from ")));
    }
}
