//! The certificate that a client has shown, after it was verified.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A verified certificate of a peer.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its subject alternative names (RFC 5280, section 4.2.1.6): DNS names, e-mail addresses, URIs,
    /// IP addresses. Others, and the subject itself, are no names here, nor is what has other than
    /// printable ASCII in it. DNS names are in lower case.
    pub names: Vec<String>,
    /// Its end, in seconds since 1970.
    pub not_after_s: u64,
    /// The certificate, then those between it and the authority.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

impl PeerCertificate {
    /// `None` where the first certificate cannot be read; then it has no name that could open
    /// anything.
    pub(crate) fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        let names = match certificate.subject_alternative_name().ok()? {
            Some(extension) => extension.value.general_names.iter().filter_map(name_text).collect(),
            None => Vec::new(),
        };
        let not_after_s = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
        Some(Self { names, not_after_s, chain })
    }
}

impl std::fmt::Debug for PeerCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("PeerCertificate");
        shown.field("names", &self.names).field("not_after_s", &self.not_after_s).finish_non_exhaustive()
    }
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    let text = match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::RFC822Name(text) | GeneralName::URI(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(four), _) => Some(IpAddr::from(Ipv4Addr::from(four)).to_string()),
            (_, Ok(sixteen)) => Some(IpAddr::from(Ipv6Addr::from(sixteen)).to_string()),
            _ => None,
        },
        _ => None,
    };
    text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// When a certificate ends, in seconds since 1970.
pub fn not_after_s(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}
