//! A client's side: whom it trusts, and what it shows.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::ServerName;
use tracing::debug;

use super::files::{Named, TlsError, pair_error, warn_if_expired};
use super::{APPLICATION_PROTOCOL, TlsFault, provider};

/// PEM files of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// The only authorities to trust (`--ca`); `None`: the platform's.
    pub ca: Option<PathBuf>,
    /// Certificate of the client, with those in between if there are (`--cert`); needs the key.
    pub cert: Option<PathBuf>,
    /// Its private key, not encrypted (`--key`).
    pub key: Option<PathBuf>,
}

impl ClientFiles {
    /// The option that was given, if any was.
    pub fn first_option(&self) -> Option<&'static str> {
        let options = [("--ca", &self.ca), ("--cert", &self.cert), ("--key", &self.key)];
        options.into_iter().find(|(_, path)| path.is_some()).map(|(option, _)| option)
    }
}

/// A client's TLS, ready for connections. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// Reads and checks the files. A key that others can read, and a certificate that has expired,
    /// are only warned of.
    pub fn load(files: &ClientFiles) -> Result<Self, TlsError> {
        Self::load_for(files, rustls::DEFAULT_VERSIONS)
    }

    fn load_for(
        files: &ClientFiles,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Self, TlsError> {
        let roots = match &files.ca {
            Some(path) => Named { option: "--ca", path }.authorities()?,
            None => platform_roots()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|error| TlsError::Setup(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match (&files.cert, &files.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = Named { option: "--cert", path: cert }.certificates()?;
                let key_der = Named { option: "--key", path: key }.key()?;
                warn_if_expired("--cert", cert, &chain);
                builder
                    .with_client_auth_cert(chain, key_der)
                    .map_err(|error| pair_error(&error, cert, key))?
            }
            _ => return Err(TlsError::Half),
        };
        config.alpn_protocols = vec![APPLICATION_PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }

    /// A connection to `host`, a name (sent as SNI) or an address.
    pub(crate) fn connect(&self, host: &str) -> Result<ClientConnection, TlsFault> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| TlsFault::HostName { host: host.to_owned() })?;
        ClientConnection::new(Arc::clone(&self.config), name)
            .map_err(|error| TlsFault::Other { text: error.to_string() })
    }
}

/// For tests of what our programs never do.
#[cfg(test)]
impl ClientTls {
    /// Speaks these versions alone.
    pub(crate) fn load_versions(files: &ClientFiles, versions: &[&'static SupportedProtocolVersion]) -> Self {
        Self::load_for(files, versions).expect("good files")
    }

    /// The same with another configuration.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut ClientConfig)) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        change(&mut config);
        Self { config: Arc::new(config) }
    }
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

/// What the platform trusts; what of it cannot be read is left out.
fn platform_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        debug!("certificates of this system: {error}");
    }
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 { Err(TlsError::NoRoots) } else { Ok(roots) }
}
