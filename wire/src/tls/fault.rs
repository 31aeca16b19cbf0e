//! What went wrong with TLS on a connection, in words that say what to do.

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use rustls_pki_types::UnixTime;
use thiserror::Error as ThisError;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Which side we are, as far as texts differ.
#[derive(Clone, Debug)]
pub(crate) enum Side {
    /// A client of this host.
    Client { host: String },
    /// A server.
    Server,
}

impl Side {
    /// Whose certificate is spoken of.
    fn peer(&self) -> String {
        match self {
            Side::Client { host } => format!("the certificate of {host}"),
            Side::Server => "the client's certificate".to_owned(),
        }
    }
}

/// Why TLS ended a connection.
#[derive(Clone, Debug, ThisError, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum TlsFault {
    #[error("{host}: not a name or an address that a certificate can be for")]
    HostName { host: String },
    #[error("{host} does not speak TLS on this port: is it a relay without TLS (ws://), or another program?")]
    PlainServer { host: String },
    #[error("not TLS: plain HTTP; the peer has been told to use wss://")]
    PlainHttp,
    #[error("not TLS: the peer sent {found:?}")]
    NotTls { found: String },
    #[error("{whose} was not issued by an authority that is trusted here{hint}")]
    UnknownIssuer { whose: String, hint: &'static str },
    #[error("the certificate of {host} is not for that name{}", presented(names))]
    WrongHost { host: String, names: Vec<String> },
    #[error("{whose} expired{}", at(not_after_s))]
    Expired { whose: String, not_after_s: Option<u64> },
    #[error("{whose} is not yet valid{}; is a clock wrong?", begins(not_before_s))]
    NotYetValid { whose: String, not_before_s: Option<u64> },
    #[error("{whose} is refused: {problem}")]
    Certificate { whose: String, problem: String },
    #[error("the peer ended TLS: {text}")]
    Alert { text: String },
    #[error("the peer speaks neither TLS 1.2 nor 1.3")]
    Version,
    #[error("the peer closed the connection in the middle of the TLS handshake")]
    HandshakeCut,
    #[error(
        "the connection ended without a goodbye (TLS close_notify): the peer was killed, or something between cut it"
    )]
    NoGoodbye,
    #[error("TLS: {text}")]
    Other { text: String },
}

fn presented(names: &[String]) -> String {
    if names.is_empty() { " or any other".to_owned() } else { format!(", but for {}", names.join(", ")) }
}

fn at(not_after_s: &Option<u64>) -> String {
    not_after_s.map_or(String::new(), |seconds| format!(" at {}; is a clock wrong?", date(seconds)))
}

fn begins(not_before_s: &Option<u64>) -> String {
    not_before_s.map_or(String::new(), |seconds| format!(" (from {} on)", date(seconds)))
}

/// Seconds since 1970 as RFC 3339.
pub(super) fn date(seconds: u64) -> String {
    let text = i64::try_from(seconds).ok().and_then(|seconds| {
        OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok())
    });
    text.unwrap_or_else(|| format!("{seconds} s"))
}

/// Puts rustls' word into ours.
pub(crate) fn explain(error: &Error, side: &Side) -> TlsFault {
    match error {
        Error::InvalidCertificate(error) => certificate(error, side),
        Error::AlertReceived(alert) => TlsFault::Alert { text: alert_text(*alert, side) },
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => TlsFault::Version,
        Error::NoCertificatesPresented => {
            TlsFault::Certificate { whose: side.peer(), problem: "none was shown".to_owned() }
        }
        other => TlsFault::Other { text: other.to_string() },
    }
}

fn certificate(error: &CertificateError, side: &Side) -> TlsFault {
    let whose = side.peer();
    let seconds = |time: &UnixTime| Some(time.as_secs());
    match error {
        // The name of a trusted authority, the key of another one: it was made anew, say.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            let hint = match side {
                Side::Client { .. } => "; name its authority with --ca FILE",
                Side::Server => " (--client-ca)",
            };
            TlsFault::UnknownIssuer { whose, hint }
        }
        CertificateError::NotValidForNameContext { expected, presented } => TlsFault::WrongHost {
            host: expected.to_str().into_owned(),
            names: presented.iter().take(20).map(|name| plain_name(name)).collect(),
        },
        CertificateError::Expired => TlsFault::Expired { whose, not_after_s: None },
        CertificateError::ExpiredContext { not_after, .. } => {
            TlsFault::Expired { whose, not_after_s: seconds(not_after) }
        }
        CertificateError::NotValidYet => TlsFault::NotYetValid { whose, not_before_s: None },
        CertificateError::NotValidYetContext { not_before, .. } => {
            TlsFault::NotYetValid { whose, not_before_s: seconds(not_before) }
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            let problem = match side {
                Side::Client { .. } => "it is not for servers (extended key usage)",
                Side::Server => "it is not for clients (extended key usage)",
            };
            TlsFault::Certificate { whose, problem: problem.to_owned() }
        }
        other => TlsFault::Certificate { whose, problem: other.to_string() },
    }
}

/// `DnsName("a.example")` as rustls shows it, without the shell.
fn plain_name(shown: &str) -> String {
    match shown.split_once('(') {
        Some((_, rest)) => rest.trim_end_matches(')').trim_matches('"').to_owned(),
        None => shown.to_owned(),
    }
}

fn alert_text(alert: AlertDescription, side: &Side) -> String {
    let of_ours = match side {
        Side::Client { .. } => "our client certificate (--cert)",
        Side::Server => "our certificate",
    };
    match alert {
        AlertDescription::CertificateRequired => {
            "it wants a client certificate: give --cert and --key".to_owned()
        }
        AlertDescription::UnknownCA => format!("it does not trust the authority that issued {of_ours}"),
        AlertDescription::CertificateExpired => format!("{of_ours} has expired, or a clock is wrong"),
        AlertDescription::CertificateRevoked => format!("{of_ours} has been revoked"),
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => format!("it refuses {of_ours}"),
        AlertDescription::AccessDenied => "access denied".to_owned(),
        AlertDescription::ProtocolVersion => {
            "no TLS version in common; 1.2 and 1.3 are spoken here".to_owned()
        }
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "no cipher suite in common".to_owned()
        }
        AlertDescription::NoApplicationProtocol => "it does not speak http/1.1 (ALPN)".to_owned(),
        AlertDescription::UnrecognisedName => "it does not know the host name that was asked for".to_owned(),
        other => format!("{other:?}"),
    }
}
