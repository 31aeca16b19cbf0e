//! TLS 1.2 and 1.3 by rustls: what each side proves itself with, read from PEM files.
//!
//! * The cryptography is `ring`'s, passed explicitly, with rustls' default suites. The application
//!   protocol (ALPN, RFC 7301) is `http/1.1`: a WebSocket begins as that.
//! * A client trusts the certificates of `--ca` alone where it is given, else the platform's. A
//!   server's certificate must be for the host of the url, be that a name or an address.
//! * A server may ask for a client certificate; who shows none is let in here, and must prove itself
//!   in another way (a token).
//! * INVARIANT: no session is ever resumed. A resumed TLS session would bring the client certificate
//!   of the first handshake without verifying it again, be it expired by now or its authority no
//!   longer trusted. What it would save, a signature per connection, is nothing here.
//!
//! No key shows itself in an error, a log line or the debug output of any of these types.

mod client;
mod fault;
mod files;
mod peer;
mod server;
#[cfg(test)]
pub(crate) mod test_pki;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use client::{ClientFiles, ClientTls};
pub use fault::TlsFault;
pub(crate) use fault::{Side, explain};
pub(crate) use files::warn_if_open;
pub use files::{TlsError, ends_s};
pub use peer::PeerCertificate;
pub use server::{ServerFiles, ServerTls};

/// What is spoken inside (ALPN).
const APPLICATION_PROTOCOL: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
