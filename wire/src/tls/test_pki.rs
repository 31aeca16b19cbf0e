//! A certificate authority for tests, and what it issues, as files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;
use time::OffsetDateTime;

use super::{ClientFiles, ServerFiles};

/// An authority, its certificate in `ca()`.
pub struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Issued {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Issued {
    pub fn for_server(&self, client_ca: Option<&Authority>) -> ServerFiles {
        let client_ca = client_ca.map(Authority::ca);
        ServerFiles { cert: self.cert.clone(), key: self.key.clone(), client_ca }
    }

    pub fn for_client(&self, ca: &Authority) -> ClientFiles {
        ClientFiles { ca: Some(ca.ca()), cert: Some(self.cert.clone()), key: Some(self.key.clone()) }
    }
}

impl Authority {
    pub fn new() -> Self {
        Self::named("test")
    }

    pub fn named(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("written");
        Self { directory, issuer }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn ca(&self) -> PathBuf {
        self.path().join("ca.pem")
    }

    /// A certificate for `names`: with a scheme URIs, with an @ addresses of mail, else hosts and IP
    /// addresses; good from `from_s` to `until_s`, both from now on.
    pub fn issue(&self, names: &[&str], from_s: i64, until_s: i64) -> Issued {
        let hosts: Vec<String> =
            names.iter().filter(|name| !name.contains(['@', '/'])).map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        for name in names {
            let text = (*name).try_into().expect("ASCII");
            if name.contains("://") {
                params.subject_alt_names.push(SanType::URI(text));
            } else if name.contains('@') {
                params.subject_alt_names.push(SanType::Rfc822Name(text));
            }
        }
        let at = |seconds: i64| {
            let (whole, now) = (Duration::from_secs(seconds.unsigned_abs()), OffsetDateTime::now_utc());
            if seconds < 0 { now - whole } else { now + whole }
        };
        (params.not_before, params.not_after) = (at(from_s), at(until_s));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let issued = params.signed_by(&key, &self.issuer).expect("a certificate");
        let number = std::fs::read_dir(self.path()).expect("reads").count();
        let files = Issued {
            cert: self.path().join(format!("{number}.pem")),
            key: self.path().join(format!("{number}.key")),
        };
        std::fs::write(&files.cert, issued.pem()).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }

    /// One that is good for an hour.
    pub fn issue_good(&self, names: &[&str]) -> Issued {
        self.issue(names, -3600, 3600)
    }

    /// Trusts this authority, shows nothing.
    pub fn client_files(&self) -> ClientFiles {
        ClientFiles { ca: Some(self.ca()), ..ClientFiles::default() }
    }
}
