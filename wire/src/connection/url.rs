//! The address of a relay: `ws://HOST[:PORT][/PATH]`, or `wss://...` over TLS.

use std::net::IpAddr;

use rustls_pki_types::ServerName;
use thiserror::Error;
use tungstenite::http::Uri;

use crate::message::DEFAULT_PORT;

/// Why text is not the address of a relay.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("relay url {url:?}: {problem}; write wss://HOST[:PORT][/PATH], or ws://... without TLS")]
pub struct UrlError {
    url: String,
    problem: &'static str,
}

/// A relay's address, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayUrl {
    secure: bool,
    /// Name or address, without brackets.
    host: String,
    port: u16,
    path: String,
}

impl RelayUrl {
    /// Reads `ws://HOST[:PORT][/PATH]` or `wss://...`; the port is 9440 when none is given. An IPv6
    /// address stands in brackets.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let fail = |problem| {
            // What stands before an @ may be a password.
            let url = url.rsplit_once('@').map_or(url.to_owned(), |(_, tail)| format!("...@{tail}"));
            Err(UrlError { url, problem })
        };
        let (secure, rest) = match url.split_once("://") {
            Some(("ws", rest)) => (false, rest),
            Some(("wss", rest)) => (true, rest),
            Some(_) => return fail("the scheme is neither ws nor wss"),
            None => return fail("no scheme"),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if authority.contains('@') {
            return fail("user names and passwords do not belong in it");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => match bracketed.split_once(']') {
                Some((host, "")) => (host, None),
                Some((host, tail)) => match tail.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None => return fail("characters behind the bracket"),
                },
                None => return fail("the bracket is not closed"),
            },
            None => match authority.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => return fail("an IPv6 address needs brackets"),
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return fail("no host");
        }
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        // What the request cannot carry would fail at each attempt to connect.
        let is_target = |path: &str| path.parse::<Uri>().is_ok();
        if !plain(host)
            || !plain(path)
            || path.contains('#')
            || !is_target(path)
            || host.contains(['?', '#', '\\'])
        {
            return fail("characters that do not belong in a url");
        }
        let port = match port.map(str::parse) {
            None => DEFAULT_PORT,
            Some(Ok(0)) | Some(Err(_)) => return fail("the port is not 1 to 65535"),
            Some(Ok(port)) => port,
        };
        if secure && ServerName::try_from(host).is_err() {
            return fail("the host is no name or address that a certificate can be for");
        }
        Ok(Self { secure, host: host.to_owned(), port, path: path.to_owned() })
    }

    /// Whether it is spoken to over TLS: `wss`.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether it can only be this very host: `localhost`, a name under it (RFC 6761, section 6.3),
    /// 127.0.0.0/8 or ::1. What goes there crosses no network.
    pub fn is_loopback(&self) -> bool {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return address.to_canonical().is_loopback();
        }
        let name = self.host.strip_suffix('.').unwrap_or(&self.host).to_ascii_lowercase();
        name == "localhost" || name.ends_with(".localhost")
    }

    /// Name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query of the request.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `HOST:PORT`, with brackets where the host is an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl std::fmt::Display for RelayUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.secure { "wss" } else { "ws" };
        write!(formatter, "{scheme}://{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        for (text, expected) in [
            ("ws://127.0.0.1:9440", "ws://127.0.0.1:9440/"),
            ("ws://relay", "ws://relay:9440/"),
            ("ws://[::1]:80/x?y=1", "ws://[::1]:80/x?y=1"),
            ("ws://[fe80::1]/", "ws://[fe80::1]:9440/"),
            ("wss://relay.example.net", "wss://relay.example.net:9440/"),
            ("wss://[::1]:443", "wss://[::1]:443/"),
        ] {
            assert_eq!(RelayUrl::parse(text).expect(text).to_string(), expected);
        }
    }

    #[test]
    fn what_stays_on_this_host_is_known() {
        for (host, expected) in [
            ("localhost", true),
            ("LocalHost.", true),
            ("a.b.localhost", true),
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("10.0.0.1", false),
            ("0.0.0.0", false),
            ("[fe80::1]", false),
            ("localhost.example.net", false),
            ("notlocalhost", false),
            ("127.0.0.1.example.net", false),
        ] {
            let url = RelayUrl::parse(&format!("ws://{host}:1")).expect(host);
            assert_eq!((url.is_loopback(), url.is_secure()), (expected, false), "{host}");
            assert!(RelayUrl::parse(&format!("wss://{host}:1")).expect(host).is_secure());
        }
    }

    #[test]
    fn what_is_no_url_is_named_with_its_fault() {
        for (text, problem) in [
            ("relay:9440", "no scheme"),
            ("http://relay", "scheme"),
            ("wss://re?lay", "characters"),
            ("wss://-relay-", "certificate"),
            ("wss://[fe80::1%eth0]", "certificate"),
            ("ws://", "no host"),
            ("ws://:80", "no host"),
            ("ws://relay:0", "port"),
            ("ws://relay:x", "port"),
            ("ws://relay:70000", "port"),
            ("ws://::1", "brackets"),
            ("ws://[::1", "closed"),
            ("ws://[::1]x", "behind"),
            ("ws://me:secret@relay", "passwords"),
            ("ws://re lay", "characters"),
            ("ws://relay/a b", "characters"),
            ("ws://relay/a>b", "characters"),
        ] {
            let error = RelayUrl::parse(text).expect_err(text).to_string();
            assert!(error.contains(problem), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
