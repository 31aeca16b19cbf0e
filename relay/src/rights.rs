//! Who may do what: the relay's certificate, its client CA and its access file, and how they change
//! while it runs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tracing::warn;
use wire::access::{Access, Denied, Grant};
use wire::secret::Secret;
use wire::text::io_text;
use wire::tls::{PeerCertificate, ServerFiles, ServerTls};

use crate::config::Config;

/// A certificate that ends within this time is worth a warning, in seconds; of one that has ended,
/// who reads it tells.
const ENDS_SOON_S: u64 = 14 * 86_400;

/// Who is at the other end of a connection, as it has proved.
#[derive(Clone, Debug)]
pub struct Who {
    /// What it may do.
    pub grant: Grant,
    /// The certificate by which it has it; `None`: by a token, or anyone may.
    certificate: Option<PeerCertificate>,
}

/// What holds now.
#[derive(Debug)]
struct Keys {
    tls: Option<ServerTls>,
    /// `None`: anyone may do anything.
    access: Option<Access>,
}

/// Shared by all workers.
#[derive(Debug)]
pub struct Rights {
    tls_files: Option<ServerFiles>,
    access_file: Option<PathBuf>,
    keys: RwLock<Arc<Keys>>,
    generation: AtomicU64,
}

impl Rights {
    /// Reads the files that the settings name. The error names the file.
    pub fn load(config: &Config, now_s: u64) -> Result<Self, String> {
        let tls_files = match (&config.cert, &config.key) {
            (Some(cert), Some(key)) => Some(ServerFiles {
                cert: cert.clone(),
                key: key.clone(),
                client_ca: config.client_ca.clone(),
            }),
            _ => None,
        };
        let access_file = config.tokens.clone();
        let keys = read(tls_files.as_ref(), access_file.as_ref(), now_s)?;
        Ok(Self { tls_files, access_file, keys: RwLock::new(Arc::new(keys)), generation: AtomicU64::new(0) })
    }

    /// Reads the files anew. If one of them is wrong, all stays as it is.
    pub fn reload(&self, now_s: u64) -> Result<(), String> {
        let keys = read(self.tls_files.as_ref(), self.access_file.as_ref(), now_s)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Grows whenever who may do what has changed.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The TLS of new connections; `None`: there is none.
    pub fn tls(&self) -> Option<ServerTls> {
        self.keys().tls.clone()
    }

    /// When the relay's own certificate ends, in seconds since 1970; `None`: there is none, or it cannot be read.
    pub fn certificate_ends_s(&self) -> Option<u64> {
        self.keys().tls.as_ref().and_then(ServerTls::expires_s)
    }

    /// Whether one must prove who one is.
    pub fn asks(&self) -> bool {
        self.access_file.is_some()
    }

    /// Who this is, by its token or else by its certificate.
    pub fn identify(
        &self,
        token: Option<&Secret>,
        certificate: Option<PeerCertificate>,
        now_s: u64,
    ) -> Result<Who, Denied> {
        let keys = self.keys();
        let Some(access) = &keys.access else {
            return Ok(Who { grant: Grant::anyone(), certificate: None });
        };
        match (token, certificate) {
            (Some(token), _) => Ok(Who { grant: access.check_token(token, now_s)?, certificate: None }),
            (None, Some(certificate)) => {
                let grant = access.check_certificate(&certificate.names, now_s)?;
                Ok(Who { grant, certificate: Some(certificate) })
            }
            (None, None) => Err(Denied::Unknown),
        }
    }

    /// Whether it still holds what `who` has proved; if not, why.
    pub fn check(&self, who: &Who, now_s: u64) -> Result<(), String> {
        let keys = self.keys();
        if let Some(access) = &keys.access {
            access.still_grants(&who.grant, now_s).map_err(|denied| denied.to_string())?;
        }
        match (&who.certificate, &keys.tls) {
            (Some(certificate), Some(tls)) => tls.verify_again(certificate, now_s),
            _ => Ok(()),
        }
    }

    /// Whether what `who` has proved has run out by itself.
    pub fn has_expired(who: &Who, now_s: u64) -> bool {
        // The last second of a certificate belongs to it (RFC 5280, section 4.1.2.5).
        who.grant.expires_s().is_some_and(|end_s| now_s >= end_s)
            || who.certificate.as_ref().is_some_and(|certificate| now_s > certificate.not_after_s)
    }
}

fn read(tls: Option<&ServerFiles>, access: Option<&PathBuf>, now_s: u64) -> Result<Keys, String> {
    let tls = tls.map(ServerTls::load).transpose().map_err(|error| error.to_string())?;
    if let Some(end_s) = tls.as_ref().and_then(ServerTls::expires_s)
        && (now_s..now_s.saturating_add(ENDS_SOON_S)).contains(&end_s)
    {
        let days = (end_s - now_s) / 86_400;
        warn!(
            "the relay's certificate ends in {days} day(s): renew it, then send SIGHUP (as a credential: restart)"
        );
    }
    let access = match access {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("--tokens {}: {}", path.display(), io_text(&error)))?;
            let parsed = Access::parse(&text);
            Some(parsed.map_err(|error| format!("--tokens {}: {error}", path.display()))?)
        }
    };
    Ok(Keys { tls, access })
}
