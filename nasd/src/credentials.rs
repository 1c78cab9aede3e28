//! Certificates and keys in PEM files: of the peers' link, the control API and the agent.

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::path::{Path, PathBuf};

/// Such a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}; {remedy}", path.display())]
pub struct CredentialsError {
    path: PathBuf,
    reason: String,
    remedy: String,
}

impl CredentialsError {
    pub fn new(path: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> CredentialsError {
        CredentialsError { path: path.to_owned(), reason: reason.into(), remedy: remedy.into() }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let remedy = "correct the path in [tls] or its permissions; `nasd cert` makes such files";
    fs::read(path).map_err(|e| CredentialsError::new(path, format!("cannot read it: {e}"), remedy))
}

/// The authority that others are checked against.
pub fn authority(path: &Path) -> Result<RootCertStore, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| {
            CredentialsError::new(
                path,
                format!("not the certificate of an authority: {e}"),
                "name the file `ca.pem` of `nasd cert ca` in [tls] ca",
            )
        })?;
    }
    Ok(roots)
}

/// A certificate, perhaps followed by those between it and the authority.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err("there is no certificate in PEM in it".to_owned()),
        Err(pem::Error::MissingSectionEnd { .. }) => Err("it is cut short".to_owned()),
        Err(e) => Err(format!("it is not PEM: {e}")),
    }
    .map_err(|reason| CredentialsError::new(path, reason, "restore it, or make a new one with `nasd cert`"))
}

/// A private key.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|e| {
        CredentialsError::new(
            path,
            format!("no private key in PEM in it: {e}"),
            "name the node's `.key` file in [tls] key",
        )
    })
}

/// The one common name of a certificate.
pub fn common_name(der: &[u8]) -> Result<String, String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der)
        .map_err(|e| format!("the certificate cannot be read: {e}"))?;
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        // Two names would make the check of who it is a matter of order.
        (Some(name), None) => name
            .as_str()
            .map(str::to_owned)
            .map_err(|e| format!("the certificate's common name cannot be read: {e}")),
        (None, _) => Err("the certificate has no common name".to_owned()),
        (Some(_), Some(_)) => Err("the certificate has several common names".to_owned()),
    }
}
