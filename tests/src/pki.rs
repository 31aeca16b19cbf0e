//! What `relay init` and `relay token` make, in a directory of its own, and certificates that they
//! would not make.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::process::run;

/// A private CA, the relay's certificate and its access file.
pub struct Pki {
    directory: TempDir,
}

impl Pki {
    /// As `relay init` makes it, for a relay at `hosts` and on loopback.
    pub fn new(hosts: &[&str]) -> Self {
        let pki = Self { directory: tempfile::tempdir().expect("a directory") };
        let mut init = Command::new(crate::program("relay"));
        init.arg("init").arg(pki.path(""));
        for host in hosts {
            init.args(["--host", host]);
        }
        let (code, _, stderr) = run(&mut init);
        assert_eq!(code, 0, "{stderr}");
        pki
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        let made = self.directory.path().join("made");
        if name.is_empty() { made } else { made.join(name) }
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// What the relay is started with.
    pub fn relay(&self) -> Vec<String> {
        ["--cert", "relay.pem", "--key", "relay-key.pem", "--tokens", "tokens.toml"]
            .map(|one| if one.starts_with("--") { one.to_owned() } else { self.text(one) })
            .to_vec()
    }

    /// What a sniffer or viewer with this token file is started with.
    pub fn client(&self, token: &str) -> Vec<String> {
        vec!["--ca".into(), self.text("ca.pem"), "--token-file".into(), self.text(token)]
    }

    /// A token of its own: `name` is the entry, and its file is `name.token`.
    pub fn add(&self, name: &str, arguments: &[&str]) -> String {
        let file = format!("{name}.token");
        let mut add = self.token_command("add");
        add.arg(name).arg("--out").arg(self.path(&file)).args(arguments);
        let (code, _, stderr) = run(&mut add);
        assert_eq!(code, 0, "{stderr}");
        file
    }

    /// An entry is removed.
    pub fn revoke(&self, name: &str) {
        let (code, _, stderr) = run(self.token_command("revoke").arg(name));
        assert_eq!(code, 0, "{stderr}");
    }

    /// `relay token ACTION --tokens` this access file.
    pub fn token_command(&self, action: &str) -> Command {
        let mut command = Command::new(crate::program("relay"));
        command.args(["token", action, "--tokens"]).arg(self.path("tokens.toml"));
        command
    }

    /// Its CA, to sign with.
    pub fn issuer(&self) -> Issuer<'static, KeyPair> {
        let [cert, key] = ["ca.pem", "ca-key.pem"]
            .map(|name| std::fs::read_to_string(self.path(name)).expect("relay init made it"));
        let key = KeyPair::from_pem(&key).expect("a key");
        Issuer::from_ca_cert_pem(&cert, key).expect("a certificate")
    }
}

/// What is special about a certificate made by hand.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// Its names.
    pub names: &'a [&'a str],
    /// For a client rather than a server.
    pub is_client: bool,
    /// Days from now at which it ends; it began 100 days ago.
    pub days_left: i64,
}

impl Leaf<'_> {
    /// Writes the certificate and its key.
    pub fn write(&self, issuer: &Issuer<'_, KeyPair>, cert: &Path, key: &Path) {
        let not_after = OffsetDateTime::now_utc() + time::Duration::days(self.days_left);
        self.write_until(not_after, issuer, cert, key);
    }

    /// The same with an end to the second.
    pub fn write_until(
        &self,
        not_after: OffsetDateTime,
        issuer: &Issuer<'_, KeyPair>,
        cert: &Path,
        key: &Path,
    ) {
        let names: Vec<String> = self.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = vec![match self.is_client {
            true => ExtendedKeyUsagePurpose::ClientAuth,
            false => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        params.not_before = OffsetDateTime::now_utc() - time::Duration::days(100);
        params.not_after = not_after;
        let pair = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&pair, issuer).expect("a certificate");
        std::fs::write(cert, signed.pem()).expect("written");
        std::fs::write(key, pair.serialize_pem()).expect("written");
    }
}

/// A CA that nobody has heard of.
pub fn other_authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}
