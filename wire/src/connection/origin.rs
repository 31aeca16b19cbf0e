//! Web origins (RFC 6454): what a browser says of the page whose script opens a WebSocket.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Most characters of a peer's text that an answer or an error repeats.
const REPEATED_CHARS_MAX: usize = 100;

/// Why text is not an origin.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("origin {origin:?}: {problem}; write SCHEME://HOST[:PORT], such as https://desk.example.net")]
pub struct OriginError {
    origin: String,
    problem: &'static str,
}

/// An origin: scheme, host and port. Compares as section 5 says: letters of either case are the
/// same, and so are a scheme's default port and none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: String,
    /// With the brackets of an IPv6 address.
    host: String,
    /// `None`: the default port of the scheme.
    port: Option<u16>,
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let fail = |problem| {
            let origin = text.chars().take(REPEATED_CHARS_MAX).collect();
            Err(OriginError { origin, problem })
        };
        if text == "null" {
            return fail("every page without an origin of its own says null");
        }
        let Some((scheme, rest)) = text.split_once("://") else { return fail("no scheme") };
        let is_scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            || !scheme.bytes().all(is_scheme_byte)
        {
            return fail("the scheme is no scheme");
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(bracketed) => match bracketed.find(']') {
                Some(at) => rest.split_at(at + 2),
                None => return fail("the bracket is not closed"),
            },
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        let is_host = |byte: u8| byte.is_ascii_graphic() && !b"/?#@\\%,;\"'<>*".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_host) {
            return fail("no host, or more than a host");
        }
        let scheme = scheme.to_ascii_lowercase();
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return fail("characters behind the bracket"),
            // A sign is no part of a port.
            Some(digits) if !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                return fail("the port is no number");
            }
            Some(digits) => match digits.parse() {
                Ok(0) | Err(_) => return fail("the port is not 1 to 65535"),
                Ok(port) => Some(port),
            },
        };
        let default = match scheme.as_str() {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            _ => None,
        };
        let port = port.filter(|_| port != default);
        Ok(Self { scheme, host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}://{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(out, ":{port}"))
    }
}

/// Text of a peer as an answer and a log line may repeat it: plain ASCII on one line, and not long.
pub(super) fn repeated(text: &[u8]) -> String {
    let is_cut = text.len() > REPEATED_CHARS_MAX;
    let shown = text[..text.len().min(REPEATED_CHARS_MAX)].escape_ascii();
    format!("{shown}{}", if is_cut { "..." } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_same_origin_in_other_words() {
        let same = [
            ["https://desk.example.net", "HTTPS://Desk.Example.NET:443", "https://desk.example.net"],
            ["http://10.0.0.1:80", "http://10.0.0.1", "http://10.0.0.1"],
            ["http://[::1]:8080", "http://[::1]:08080", "http://[::1]:8080"],
            ["chrome-extension://abcdef", "Chrome-Extension://ABCDEF", "chrome-extension://abcdef"],
        ];
        for [one, other, shown] in same {
            let one: Origin = one.parse().expect(one);
            assert_eq!(one, other.parse().expect(other));
            assert_eq!(one.to_string(), shown);
        }
    }

    #[test]
    fn other_origins() {
        let mut all: Vec<Origin> = Vec::new();
        for text in [
            "https://a.net",
            "http://a.net",
            "https://a.net:80",
            "https://b.net",
            "https://a.net.b.net",
            "https://aa.net",
            "http://[::1]",
            "http://[::2]",
            "foo://a.net:443",
        ] {
            let origin = text.parse().expect(text);
            assert!(!all.contains(&origin), "{text}");
            all.push(origin);
        }
    }

    #[test]
    fn what_is_no_origin() {
        for text in [
            "",
            "null",
            "a.net",
            "://a.net",
            "https://",
            "https://:443",
            "https://a.net/",
            "https://a.net/x",
            "https://a.net?x",
            "https://u@a.net",
            "https://a.net:",
            "https://a.net:0",
            "https://a.net:65536",
            "https://a.net:+1",
            "https://a.net:1:2",
            "https://[::1",
            "https://[::1]x",
            "https://a.net b",
            "https://a.net\r\nX: y",
            "https://*.net",
            "1s://a.net",
        ] {
            let error = text.parse::<Origin>().expect_err(text);
            assert!(error.to_string().contains("SCHEME://HOST"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_the_same_origin(text in "[a-z]{1,5}://[a-zA-Z0-9.\\[\\]:-]{1,20}(:[0-9]{1,6})?") {
            if let Ok(origin) = text.parse::<Origin>() {
                prop_assert_eq!(Ok(origin.clone()), origin.to_string().parse());
            }
        }

        #[test]
        fn repeated_text_is_short_and_plain(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let text = repeated(&bytes);
            prop_assert!(text.len() <= 4 * REPEATED_CHARS_MAX + 3);
            prop_assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
        }
    }
}
