//! A server's side: what it shows, and whose client certificates it takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ServerConfig, ServerConnection};
use rustls_pki_types::UnixTime;

use super::fault::{Side, explain};
use super::files::{Named, TlsError, pair_error, warn_if_expired};
use super::{APPLICATION_PROTOCOL, PeerCertificate, TlsFault, provider};

/// PEM files of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Certificate of the server, with those in between if there are (`--cert`).
    pub cert: PathBuf,
    /// Its private key, not encrypted (`--key`).
    pub key: PathBuf,
    /// Authorities of client certificates (`--client-ca`); `None`: none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// A server's TLS, ready for connections. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    client_verifier: Option<Arc<dyn ClientCertVerifier>>,
    expires_s: Option<u64>,
}

impl ServerTls {
    /// Reads and checks the files. A key that others can read, and a certificate that has expired,
    /// are only warned of.
    pub fn load(files: &ServerFiles) -> Result<Self, TlsError> {
        let setup = |error: String| TlsError::Setup(error);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(error.to_string()))?;
        let client_verifier: Option<Arc<dyn ClientCertVerifier>> = match &files.client_ca {
            Some(path) => {
                let roots = Arc::new(Named { option: "--client-ca", path }.authorities()?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| setup(error.to_string()))?;
                Some(verifier)
            }
            None => None,
        };
        let builder = match &client_verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let chain = Named { option: "--cert", path: &files.cert }.certificates()?;
        let key = Named { option: "--key", path: &files.key }.key()?;
        let expires_s = warn_if_expired("--cert", &files.cert, &chain);
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| pair_error(&error, &files.cert, &files.key))?;
        // All suites are good; of these the strongest that both have.
        config.ignore_client_order = true;
        config.alpn_protocols = vec![APPLICATION_PROTOCOL.to_vec()];
        // See the module's invariant.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), client_verifier, expires_s })
    }

    /// Whether the certificate of a peer, verified when it connected, still is good: under the client
    /// authorities as they are here, at `now_s` (seconds since 1970). The error is for the log.
    pub fn verify_again(&self, peer: &PeerCertificate, now_s: u64) -> Result<(), String> {
        let Some(verifier) = &self.client_verifier else {
            return Err("no client authority is set any more".to_owned());
        };
        let Some((first, between)) = peer.chain.split_first() else {
            return Err("no certificate".to_owned());
        };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
        match verifier.verify_client_cert(first, between, now) {
            Ok(_) => Ok(()),
            Err(error) => Err(explain(&error, &Side::Server).to_string()),
        }
    }

    /// When its own certificate expires, in seconds since 1970; `None` where that cannot be read.
    pub fn expires_s(&self) -> Option<u64> {
        self.expires_s
    }

    pub(crate) fn accept(&self) -> Result<ServerConnection, TlsFault> {
        ServerConnection::new(Arc::clone(&self.config))
            .map_err(|error| TlsFault::Other { text: error.to_string() })
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ServerTls").field("expires_s", &self.expires_s).finish_non_exhaustive()
    }
}
