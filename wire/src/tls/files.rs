//! Certificates and keys from PEM files (RFC 7468).

use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tracing::warn;
use zeroize::Zeroizing;

use super::peer;
use crate::clock::wall_ns;
use crate::service::is_credential;
use crate::text::io_text;

/// Why a certificate, a key or both cannot be used. Names the option and the file.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum TlsError {
    #[error("{option} {}: {}", .path.display(), io_text(error))]
    Read { option: &'static str, path: PathBuf, error: io::Error },
    #[error("{option} {}: {problem}", .path.display())]
    Content { option: &'static str, path: PathBuf, problem: String },
    #[error("--cert and --key: one is of no use without the other; give both")]
    Half,
    #[error(
        "--cert {} and --key {}: the key does not belong to the first certificate of that file",
        .cert.display(), .key.display()
    )]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error("this system has no certificate authorities that could be read; name one with --ca FILE")]
    NoRoots,
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// One file, and the option that named it.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    pub option: &'static str,
    pub path: &'a Path,
}

impl Named<'_> {
    fn read(&self) -> Result<Zeroizing<Vec<u8>>, TlsError> {
        std::fs::read(self.path).map(Zeroizing::new).map_err(|error| TlsError::Read {
            option: self.option,
            path: self.path.to_owned(),
            error,
        })
    }

    fn content(&self, problem: impl Into<String>) -> TlsError {
        TlsError::Content { option: self.option, path: self.path.to_owned(), problem: problem.into() }
    }

    /// All certificates of the file, at least one.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let pem = self.read()?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let found = found.map_err(|error| self.content(format!("not PEM: {error}")))?;
        if found.is_empty() {
            let holds_key = contains(&pem, b"PRIVATE KEY-----");
            let hint = if holds_key { "; it holds a private key: are the files mixed up?" } else { "" };
            return Err(
                self.content(format!("no certificate in it (PEM, -----BEGIN CERTIFICATE-----){hint}"))
            );
        }
        Ok(found)
    }

    /// The certificates of the file as those of authorities.
    pub fn authorities(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in self.certificates()?.into_iter().enumerate() {
            roots
                .add(certificate)
                .map_err(|error| self.content(format!("certificate {}: {error}", index + 1)))?;
        }
        Ok(roots)
    }

    /// The first private key of the file. Says so where others than its owner can read it.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let pem = self.read()?;
        warn_if_open(self.option, self.path);
        match PrivateKeyDer::from_pem_slice(&pem) {
            Ok(key) => Ok(key),
            Err(_) if contains(&pem, b"ENCRYPTED") => Err(self.content(
                "the key is encrypted, and there is nobody to ask for its passphrase: \
                 write it out with openssl pkey, mode 0600",
            )),
            // The cause could show a piece of the key.
            Err(_) if contains(&pem, b"-----BEGIN CERTIFICATE-----") => {
                Err(self.content("no private key in it, but a certificate: are the files mixed up?"))
            }
            Err(_) => Err(self.content("no private key in it (PEM, -----BEGIN PRIVATE KEY-----)")),
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Says where a file with a secret in it can be read by others than its owner.
pub fn warn_if_open(option: &str, path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
        let found = found.filter(|_| !is_credential(path));
        if found.is_some_and(|metadata| metadata.mode() & 0o044 != 0) {
            let path = path.display();
            warn!("{option} {path}: others than its owner can read it; chmod 600 {path}");
        }
    }
    #[cfg(not(unix))]
    let _ = (option, path);
}

/// Says where our own certificate is of no use by the clock; how long the first of them lasts.
pub fn warn_if_expired(option: &str, path: &Path, chain: &[CertificateDer<'static>]) -> Option<u64> {
    let not_after_s = peer::not_after_s(chain.first()?)?;
    if not_after_s < wall_ns() / 1_000_000_000 {
        let path = path.display();
        warn!("{option} {path}: expired at {}; peers will refuse it", super::fault::date(not_after_s));
    }
    Some(not_after_s)
}

/// When each certificate of a file ends, in seconds since 1970; one of which that cannot be read is left out. `option`
/// names the file in errors.
pub fn ends_s(option: &'static str, path: &Path) -> Result<Vec<u64>, TlsError> {
    let certificates = Named { option, path }.certificates()?;
    Ok(certificates.iter().filter_map(peer::not_after_s).collect())
}

/// rustls' word on a chain and a key that were to go together.
pub fn pair_error(error: &rustls::Error, cert: &Path, key: &Path) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { cert: cert.to_owned(), key: key.to_owned() }
        }
        rustls::Error::InvalidCertificate(problem) => TlsError::Content {
            option: "--cert",
            path: cert.to_owned(),
            problem: format!("the first certificate cannot be read: {problem}"),
        },
        // The text is of the kind of key alone.
        other => TlsError::Content {
            option: "--key",
            path: key.to_owned(),
            problem: format!("cannot be used: {other}; ECDSA, Ed25519 and RSA keys can"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_pki::Authority;
    use super::super::{ClientFiles, ClientTls, ServerFiles, ServerTls};
    use std::path::PathBuf;

    #[test]
    fn a_bad_file_is_named_with_its_option_and_what_to_do() {
        let authority = Authority::new();
        let (good, other) = (authority.issue_good(&["a"]), authority.issue_good(&["a"]));
        let write = |name: &str, text: &str| {
            let path = authority.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let read = |path: &PathBuf| std::fs::read_to_string(path).expect("text");
        let encrypted = write("encrypted", &read(&good.key).replace("PRIVATE", "ENCRYPTED PRIVATE"));
        let broken = write("broken", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let torn = write("torn", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0");
        let missing = PathBuf::from("/nowhere/x.pem");
        let server = |cert: &PathBuf, key: &PathBuf, client_ca: Option<&PathBuf>| {
            let files = ServerFiles { cert: cert.clone(), key: key.clone(), client_ca: client_ca.cloned() };
            ServerTls::load(&files).map(drop)
        };
        let client = |ca: &PathBuf, cert: Option<&PathBuf>, key: Option<&PathBuf>| {
            let files = ClientFiles { ca: Some(ca.clone()), cert: cert.cloned(), key: key.cloned() };
            ClientTls::load(&files).map(drop)
        };
        let ca = authority.ca();
        for (loaded, option, text) in [
            (server(&missing, &good.key, None), "--cert /nowhere/x.pem: ", "no such file"),
            (server(&good.key, &good.cert, None), "--cert ", "holds a private key: are the files mixed up?"),
            (server(&good.cert, &good.cert, None), "--key ", "no private key in it, but a certificate"),
            (server(&good.cert, &encrypted, None), "--key ", "encrypted"),
            (server(&good.cert, &torn, None), "--key ", "no private key in it"),
            (server(&good.cert, &other.key, None), "--cert ", "the key does not belong"),
            (server(&broken, &good.key, None), "--cert ", "cannot be read"),
            (server(&good.cert, &good.key, Some(&broken)), "--client-ca ", "certificate 1: "),
            (server(&good.cert, &good.key, Some(&good.key)), "--client-ca ", "no certificate in it"),
            (client(&broken, None, None), "--ca ", "certificate 1: "),
            (client(&missing, None, None), "--ca /nowhere/x.pem: ", "no such file"),
            (client(&ca, Some(&good.cert), Some(&other.key)), "--cert ", "the key does not belong"),
            (client(&ca, Some(&good.cert), None), "--cert and --key", "give both"),
        ] {
            let error = loaded.expect_err(text);
            let shown = error.to_string();
            assert!(shown.starts_with(option) && shown.contains(text), "{shown}");
            assert!(!format!("{shown} {error:?}").contains("c2VjcmV0"), "{error:?}");
        }
        assert!(server(&good.cert, &good.key, Some(&ca)).is_ok());
        assert!(client(&ca, Some(&good.cert), Some(&good.key)).is_ok());
    }

    #[test]
    fn nothing_of_a_key_is_shown() {
        let authority = Authority::new();
        let issued = authority.issue_good(&["a"]);
        let server = ServerTls::load(&issued.for_server(Some(&authority))).expect("a server");
        let client = ClientTls::load(&issued.for_client(&authority)).expect("a client");
        assert!(server.expires_s().is_some());
        let shown = format!("{server:?} {client:?}");
        assert!(shown.len() < 100 && shown.starts_with("ServerTls { expires_s: Some("), "{shown}");
    }
}
