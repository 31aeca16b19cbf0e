//! A private certificate authority: P-256 keys and certificates by rcgen.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

const DAY_S: u64 = 86_400;
/// How long the authority is good for.
pub const CA_DAYS: u64 = 3650;
/// How long the relay's and a client's certificate are good for: what browsers take at most.
pub const LEAF_DAYS: u64 = 397;
/// Clocks of other hosts may be behind by so much.
const SKEW_S: u64 = 3600;

/// Why there is no certificate.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum AuthorityError {
    #[error("certificate: {0}")]
    Made(#[from] rcgen::Error),
    #[error("random numbers: {0}")]
    Random(getrandom::Error),
    #[error("clock: {time_s} seconds since 1970 is no time of a certificate; set the clock")]
    Clock { time_s: u64 },
    #[error("{file}: not a certificate in PEM")]
    Certificate { file: String },
    #[error("{file}: not a private key in PEM: {source}")]
    Key { file: String, source: rcgen::Error },
    #[error("the key of the authority does not belong to its certificate")]
    Pair,
    #[error("the authority's certificate has expired: make a new one with relay init in another directory")]
    Over,
    #[error(
        "{name:?}: not a name for a certificate; write a DNS name, an IP address{}",
        if *client { ", an e-mail address or a URI" } else { "" }
    )]
    Name { name: String, client: bool },
}

/// A certificate and its key, in PEM.
pub struct Made {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A relay.
    Server,
    /// A sniffer or a viewer.
    Client,
}

/// The authority, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    not_after_s: u64,
}

impl Authority {
    /// Makes a new one, good for ten years.
    pub fn make(name: &str, now_s: u64) -> Result<(Self, Made), AuthorityError> {
        let key = KeyPair::generate()?;
        let not_after_s = now_s.saturating_add(CA_DAYS * DAY_S);
        let common = format!("Ringcast CA of {name}").chars().take(64).collect::<String>(); // RFC 5280
        let mut params = params(&common, now_s, not_after_s)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let made = Made { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        Ok((Self { issuer: Issuer::new(params, key), not_after_s }, made))
    }

    /// Takes one that was made before; `files` are the names of both for errors.
    pub fn load(certificate: &str, key: &str, files: [&str; 2], now_s: u64) -> Result<Self, AuthorityError> {
        let [certificate_file, key_file] = files;
        let key_pair = key_pair(key, key_file)?;
        let (spki, not_after_s) = with_certificate(certificate, certificate_file, |parsed| {
            let not_after_s = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
            (parsed.public_key().raw.to_vec(), not_after_s)
        })?;
        if spki != key_pair.subject_public_key_info() {
            return Err(AuthorityError::Pair);
        }
        if not_after_s <= now_s {
            return Err(AuthorityError::Over);
        }
        Ok(Self { issuer: Issuer::from_ca_cert_pem(certificate, key_pair)?, not_after_s })
    }

    /// Makes a certificate and a key for these names. It does not outlive the authority.
    pub fn issue(&self, purpose: Purpose, names: &[String], now_s: u64) -> Result<Made, AuthorityError> {
        self.issue_for(KeyPair::generate()?, purpose, names, now_s)
    }

    /// Makes a new certificate for a key that is there.
    pub fn reissue(
        &self,
        (key, file): (&str, &str),
        purpose: Purpose,
        names: &[String],
        now_s: u64,
    ) -> Result<Made, AuthorityError> {
        self.issue_for(key_pair(key, file)?, purpose, names, now_s)
    }

    fn issue_for(
        &self,
        key: KeyPair,
        purpose: Purpose,
        names: &[String],
        now_s: u64,
    ) -> Result<Made, AuthorityError> {
        let not_after_s = now_s.saturating_add(LEAF_DAYS * DAY_S).min(self.not_after_s);
        let common: String = names.first().map_or("", String::as_str).chars().take(64).collect();
        let mut params = params(&common, now_s, not_after_s)?;
        params.subject_alt_names =
            names.iter().map(|name| alternative_name(name, purpose)).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match purpose {
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Made { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// DNS names and IP addresses of a certificate in PEM.
pub fn hosts_of(certificate: &str, file: &str) -> Result<Vec<String>, AuthorityError> {
    with_certificate(certificate, file, |parsed| {
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.iter().filter_map(host).collect());
        names.unwrap_or_default()
    })
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d]).to_string()),
            bytes => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    }
}

/// Whether text can be a host's DNS name (RFC 1123, with `_`), or one with `*` as its first label.
pub fn is_dns_name(text: &str) -> bool {
    let rest = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|one| one.is_ascii_alphanumeric() || one == b'-' || one == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What looks like a number would be taken for an IPv4 address.
    let numeric = rest.rsplit('.').next().is_some_and(|last| last.bytes().all(|one| one.is_ascii_digit()));
    text.len() <= 253 && !numeric && rest.split('.').all(is_label)
}

fn alternative_name(name: &str, purpose: Purpose) -> Result<SanType, AuthorityError> {
    let client = purpose == Purpose::Client;
    if let Ok(address) = name.parse() {
        return Ok(SanType::IpAddress(address));
    }
    if is_dns_name(name) {
        return Ok(SanType::DnsName(name.try_into()?));
    }
    let printable = name.len() <= 255 && name.bytes().all(|one| one.is_ascii_graphic());
    let scheme = name.split_once(':').is_some_and(|(scheme, rest)| {
        !rest.is_empty()
            && scheme.starts_with(|one: char| one.is_ascii_alphabetic())
            && scheme.chars().all(|one| one.is_ascii_alphanumeric() || "+-.".contains(one))
    });
    let mail = name.split_once('@').is_some_and(|(local, domain)| !local.is_empty() && is_dns_name(domain));
    match (client && printable, scheme, mail) {
        (true, true, _) => Ok(SanType::URI(name.try_into()?)),
        (true, false, true) => Ok(SanType::Rfc822Name(name.try_into()?)),
        _ => Err(AuthorityError::Name { name: name.to_owned(), client }),
    }
}

fn params(common: &str, now_s: u64, not_after_s: u64) -> Result<CertificateParams, AuthorityError> {
    let time = |time_s: u64| {
        let time = i64::try_from(time_s).ok().and_then(|time| OffsetDateTime::from_unix_timestamp(time).ok());
        time.ok_or(AuthorityError::Clock { time_s })
    };
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(AuthorityError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40; // positive, and always as long
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = time(now_s.saturating_sub(SKEW_S))?;
    params.not_after = time(not_after_s)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    Ok(params)
}

fn key_pair(pem: &str, file: &str) -> Result<KeyPair, AuthorityError> {
    KeyPair::from_pem(pem).map_err(|source| AuthorityError::Key { file: file.to_owned(), source })
}

fn with_certificate<T>(
    pem: &str,
    file: &str,
    take: impl FnOnce(&X509Certificate<'_>) -> T,
) -> Result<T, AuthorityError> {
    let fail = || AuthorityError::Certificate { file: file.to_owned() };
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| fail())?;
    let certificate = pem.parse_x509().map_err(|_| fail())?;
    Ok(take(&certificate))
}
