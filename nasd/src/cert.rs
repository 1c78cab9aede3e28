//! `nasd cert`: a small certificate authority for the nodes of one volume.
//!
//! The peers' link is always mutual TLS 1.3, so each node needs a certificate. These are enough to
//! start with; certificates of an authority that is there already do as well, if the node's name is
//! the common name and one of the DNS names, and both client and server authentication are allowed.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use chrono::{Datelike, Days, Months, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};

/// How long a certificate is valid, in years.
const YEARS: u32 = 10;

/// Writes a new certificate authority, `ca.pem` and `ca.key` (readable by its owner only), to `dir`,
/// which is made if it isn't there. Nothing is overwritten.
pub fn ca(dir: &Path) -> Result<()> {
    let mut params = parameters("nasd CA")?;
    // Zero: it signs nodes, never another authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate = params.self_signed(&key).context("cannot sign the CA")?;
    write_pair(dir, "ca", &certificate.pem(), &key.serialize_pem())
}

/// Writes a certificate for the node `name`, `NAME.pem` and `NAME.key` (readable by its owner only),
/// to `dir`, signed by the authority in `dir`. Nothing is overwritten.
///
/// Peers find the node by its name, whatever its address; `hosts` are further names or IP addresses
/// that the certificate holds for.
pub fn node(dir: &Path, name: &str, hosts: &[String]) -> Result<()> {
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate = certify(dir, name, hosts, &key)?;
    write_pair(dir, name, &certificate, &key.serialize_pem())
}

/// The certificate (PEM) for the key in a signing request (PEM) of the node `name`, by the authority in `dir`. Of the
/// request nothing but the key counts.
pub fn sign(dir: &Path, name: &str, request: &str) -> Result<String> {
    let request = CertificateSigningRequestParams::from_pem(request)
        .context("this is no signing request; both nodes need one version of nasd")?;
    certify(dir, name, &[], &request.public_key)
}

fn certify(dir: &Path, name: &str, hosts: &[String], key: &impl PublicKeyData) -> Result<String> {
    check_name(name)?;
    let authority = authority(dir)?;
    let mut params = parameters(name)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Each node calls the others and is called by them.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names.push(alternative_name(name)?);
    for host in hosts {
        let host = alternative_name(host)?;
        if !params.subject_alt_names.contains(&host) {
            params.subject_alt_names.push(host);
        }
    }
    let certificate = params
        .signed_by(key, &authority)
        .with_context(|| format!("cannot sign the certificate of {name}"))?;
    Ok(certificate.pem())
}

fn check_name(name: &str) -> Result<()> {
    // It becomes a file's name, and there is a file for the authority already.
    if !nasd_config::is_node_name(name) || name == "ca" {
        bail!(
            "{name:?} cannot be a node's name; write it like a host name (not `ca`): letters, digits and `-`, at most 63, a letter first"
        );
    }
    Ok(())
}

/// The authority that [`ca`] wrote to `dir`.
fn authority(dir: &Path) -> Result<Issuer<'static, KeyPair>> {
    let read = |file: &str| {
        let path = dir.join(file);
        fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; make the authority first: nasd cert ca --dir {}",
                path.display(),
                dir.display()
            )
        })
    };
    let damaged = |file: &str| {
        format!(
            "{} is damaged; restore it, or make a new authority and new certificates elsewhere",
            dir.join(file).display()
        )
    };
    let certificate = read("ca.pem")?;
    let key = KeyPair::from_pem(&read("ca.key")?).with_context(|| damaged("ca.key"))?;
    Issuer::from_ca_cert_pem(&certificate, key).with_context(|| damaged("ca.pem"))
}

fn parameters(common_name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // From yesterday on, for nodes whose clock is behind or whose day begins later.
    let today = Utc::now().date_naive();
    let first = today.checked_sub_days(Days::new(1));
    let last = first.and_then(|day| day.checked_add_months(Months::new(12 * YEARS)));
    let (Some(first), Some(last)) = (first, last) else {
        bail!("the clock says {today}; set it");
    };
    params.not_before = date_time_ymd(first.year(), first.month() as u8, first.day() as u8);
    params.not_after = date_time_ymd(last.year(), last.month() as u8, last.day() as u8);
    Ok(params)
}

fn alternative_name(host: &str) -> Result<SanType> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let dns = rustls::pki_types::DnsName::try_from(host)
        .map_err(|_| anyhow!("{host:?} is neither a host name nor an IP address; correct it"))?;
    let dns = dns.as_ref().try_into();
    Ok(SanType::DnsName(dns.with_context(|| format!("{host:?} cannot stand in a certificate; use ASCII"))?))
}

/// Writes both files or none.
pub fn write_pair(dir: &Path, name: &str, certificate: &str, key: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    // A name may have dots, so no `with_extension`.
    let pem = dir.join(format!("{name}.pem"));
    let key_path = dir.join(format!("{name}.key"));
    if pem.exists() {
        return Err(exists(&pem));
    }
    write_new(&key_path, key, 0o600)?;
    write_new(&pem, certificate, 0o644).inspect_err(|_| {
        // The key was made a moment ago, for this certificate alone.
        let _ = fs::remove_file(&key_path);
    })
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|e| {
            match e.kind() {
                ErrorKind::AlreadyExists => exists(path),
                _ => anyhow!("cannot write {}: {e}", path.display()),
            }
        })?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|e| {
        let _ = fs::remove_file(path);
        anyhow!("cannot write {}: {e}", path.display())
    })
}

fn exists(path: &Path) -> anyhow::Error {
    anyhow!(
        "{} exists and is not overwritten; remove it first, or name another directory with --dir",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use x509_parser::extensions::GeneralName;
    use x509_parser::pem::Pem;

    fn read(path: &Path) -> Pem {
        let file = fs::File::open(path).expect("it was written");
        Pem::read(std::io::BufReader::new(file)).expect("PEM").0
    }

    #[test]
    fn a_node_is_signed_for_both_directions_and_all_its_names() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path().join("new/certs");
        ca(&dir).expect("the authority");
        let hosts = ["10.0.0.1", "fd00::1", "nas-a.example.com", "nas-a"].map(str::to_owned);
        node(&dir, "nas-a", &hosts).expect("the node");

        let pem = read(&dir.join("nas-a.pem"));
        let x509 = pem.parse_x509().expect("a certificate");
        let authority = read(&dir.join("ca.pem"));
        let authority = authority.parse_x509().expect("a certificate");
        assert_eq!(x509.subject().to_string(), "CN=nas-a");
        assert_eq!(x509.issuer(), authority.subject());
        assert!(authority.is_ca() && !x509.is_ca());
        let usage = x509.extended_key_usage().expect("well-formed").expect("there");
        assert!(usage.value.server_auth && usage.value.client_auth);
        let names = x509.subject_alternative_name().expect("well-formed").expect("there");
        let v6 = "fd00::1".parse::<std::net::Ipv6Addr>().expect("an address");
        assert_eq!(
            names.value.general_names,
            [
                GeneralName::DNSName("nas-a"),
                GeneralName::IPAddress(&[10, 0, 0, 1]),
                GeneralName::IPAddress(&v6.octets()),
                GeneralName::DNSName("nas-a.example.com"),
            ]
        );

        let validity = x509.validity();
        let now = Utc::now().timestamp();
        let day = 24 * 3600;
        assert!((day..=2 * day).contains(&(now - validity.not_before.timestamp())));
        let years = (validity.not_after.timestamp() - now) / day;
        assert!((3649..=3653).contains(&years), "{years} days");
    }

    #[test]
    fn of_a_signing_request_only_the_key_counts() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path();
        ca(dir).expect("the authority");
        let key = KeyPair::generate().expect("a key");
        // Who asks wants to be somebody else, and an authority.
        let mut wish = CertificateParams::new(["nas-a".to_owned()]).expect("a name");
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = wish.serialize_request(&key).and_then(|r| r.pem()).expect("a request");
        let signed = sign(dir, "nas-b", &request).expect("signed");
        let (_, pem) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).expect("PEM");
        let x509 = pem.parse_x509().expect("a certificate");
        assert_eq!(x509.subject().to_string(), "CN=nas-b");
        assert!(!x509.is_ca());
        let names = x509.subject_alternative_name().expect("well-formed").expect("there");
        assert_eq!(names.value.general_names, [GeneralName::DNSName("nas-b")]);
        assert_eq!(x509.public_key().subject_public_key.data, key.public_key_raw());
        for (name, request) in [("ca", request.as_str()), ("nas-b", "no request")] {
            sign(dir, name, request).expect_err("refused");
        }
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        ca(dir.path()).expect("the authority");
        node(dir.path(), "nas-a", &[]).expect("the node");
        for key in ["ca.key", "nas-a.key"] {
            let metadata = fs::metadata(dir.path().join(key)).expect("it was written");
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_half_done() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path();
        ca(dir).expect("the authority");
        let before = fs::read(dir.join("ca.key")).expect("it was written");
        let refused = ca(dir).expect_err("it is there").to_string();
        let expected = format!("{}/ca.pem exists and is not overwritten; ", dir.display());
        assert!(refused.starts_with(&expected), "{refused}");
        assert_eq!(fs::read(dir.join("ca.key")).expect("still there"), before);

        fs::write(dir.join("nas-a.pem"), "mine").expect("writable");
        node(dir, "nas-a", &[]).expect_err("it is there");
        assert!(!dir.join("nas-a.key").exists());
    }

    #[test]
    fn what_cannot_be_signed_is_said() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path();
        let no_ca = node(dir, "nas-a", &[]).expect_err("no authority");
        assert!(no_ca.to_string().contains("; make the authority first: nasd cert ca --dir "));
        ca(dir).expect("the authority");
        for name in ["", "../x", "ca", "nas a", "10.0.0.1"] {
            let e = node(dir, name, &[]).expect_err("no such name").to_string();
            assert!(e.contains("cannot be a node's name; write it"), "{e}");
        }
        let e = node(dir, "nas-a", &["a b".to_owned()]).expect_err("no such host");
        assert_eq!(e.to_string(), "\"a b\" is neither a host name nor an IP address; correct it");
        fs::write(dir.join("ca.key"), "garbage").expect("writable");
        let e = node(dir, "nas-a", &[]).expect_err("no key").to_string();
        assert!(e.contains("ca.key is damaged; "), "{e}");
    }
}
