//! The opening handshake of RFC 6455, both sides, over bytes. No I/O.

use thiserror::Error;
use tungstenite::handshake::client::{Request as ClientRequest, Response, generate_key, generate_request};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::HeaderValue;

use super::url::RelayUrl;
use crate::message::SUBPROTOCOL;

/// Most bytes of a request or response.
pub const HANDSHAKE_BYTES_MAX: usize = 8 << 10;

/// Why a handshake failed.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum HandshakeError {
    #[error("not HTTP: the peer sent {found:?}")]
    NotHttp { found: String },
    #[error("handshake of over {HANDSHAKE_BYTES_MAX} bytes")]
    TooLong,
    #[error("the server answered {status}: {text}")]
    Refused { status: u16, text: String },
    #[error("the server answered {found:?} where a WebSocket handshake has {expected:?}")]
    Answer { found: String, expected: String },
    #[error("the server does not speak {SUBPROTOCOL}, so it is no relay of this version")]
    Subprotocol,
    #[error("{reason}")]
    Rejected { reason: String },
    #[error("url cannot be put into a request: {0}")]
    Url(String),
}

/// The request of a client, and the key that the answer must be made from.
pub fn client_request(url: &RelayUrl) -> Result<(Vec<u8>, String), HandshakeError> {
    let key = generate_key();
    let request = ClientRequest::builder()
        .uri(url.path())
        .header("Host", url.authority())
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", &key)
        .header("Sec-WebSocket-Protocol", SUBPROTOCOL)
        .body(())
        .map_err(|error| HandshakeError::Url(error.to_string()))?;
    let (bytes, _) = generate_request(request).map_err(|error| HandshakeError::Url(error.to_string()))?;
    Ok((bytes, key))
}

/// Reads the answer to a client's request; `None` until it is whole, else its length.
pub fn client_response(bytes: &[u8], key: &str) -> Result<Option<usize>, HandshakeError> {
    let Some((length, response)) = parse::<Response>(bytes)? else { return Ok(None) };
    let status = response.status();
    if status.as_u16() != 101 {
        let text = String::from_utf8_lossy(&bytes[length..]);
        let reason = response.status().canonical_reason().unwrap_or("no reason given");
        let line = text.lines().next().unwrap_or(reason).chars().take(200).collect();
        return Err(HandshakeError::Refused { status: status.as_u16(), text: line });
    }
    let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap_or(""));
    let expected = derive_accept_key(key.as_bytes());
    for (name, expected) in [("Sec-WebSocket-Accept", expected.as_str()), ("Upgrade", "websocket")] {
        let found = header(name);
        if !found.eq_ignore_ascii_case(expected) {
            return Err(HandshakeError::Answer { found: found.to_owned(), expected: expected.to_owned() });
        }
    }
    if header("Sec-WebSocket-Protocol") != SUBPROTOCOL {
        return Err(HandshakeError::Subprotocol);
    }
    Ok(Some(length))
}

/// What a server makes of a request.
#[derive(Debug)]
pub enum ServerReply {
    /// Upgrade: send `response`; the WebSocket begins `consumed` bytes into what came.
    Upgrade {
        /// The answer to send.
        response: Vec<u8>,
        /// Length of the request.
        consumed: usize,
    },
    /// Answer with `response` and close.
    Refuse {
        /// The answer to send.
        response: Vec<u8>,
        /// Why, for the log.
        reason: String,
    },
}

/// Reads a client's request; `None` until it is whole.
pub fn server_request(bytes: &[u8]) -> Option<ServerReply> {
    let (consumed, request) = match parse::<Request>(bytes) {
        Ok(None) => return None,
        Ok(Some(parsed)) => parsed,
        Err(error) => return Some(refuse("400 Bad Request", error.to_string())),
    };
    let mut response = match create_response(&request) {
        Ok(response) => response,
        Err(_) => {
            let reason = format!(
                "{} {}: plain HTTP; this is a Ringcast relay, which speaks WebSocket: use viewer --relay ws://...",
                request.method(),
                request.uri().path().chars().take(100).collect::<String>().escape_default()
            );
            return Some(refuse("426 Upgrade Required", reason));
        }
    };
    let offered = request.headers().get_all("Sec-WebSocket-Protocol").iter();
    let offered: Vec<&str> = offered.filter_map(|value| value.to_str().ok()).collect();
    let speaks_ours = offered.iter().flat_map(|list| list.split(',')).any(|one| one.trim() == SUBPROTOCOL);
    if !speaks_ours {
        let reason = match offered.is_empty() {
            true => format!("no subprotocol offered: this relay speaks {SUBPROTOCOL}"),
            false => {
                let offered = offered.join(", ").chars().take(100).collect::<String>();
                format!("subprotocol {}: this relay speaks {SUBPROTOCOL}", offered.escape_default())
            }
        };
        return Some(refuse("400 Bad Request", reason));
    }
    response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
    let mut out = Vec::new();
    if let Err(error) = write_response(&mut out, &response) {
        return Some(refuse("500 Internal Server Error", error.to_string()));
    }
    Some(ServerReply::Upgrade { response: out, consumed })
}

fn refuse(status: &str, reason: String) -> ServerReply {
    let upgrade = if status.starts_with("426") { "Upgrade: websocket\r\n" } else { "" };
    let response = format!(
        "HTTP/1.1 {status}\r\n{upgrade}Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\n\r\n{reason}\n",
        reason.len() + 1
    );
    ServerReply::Refuse { response: response.into_bytes(), reason }
}

/// Parses a request or a response; `None` until it is whole.
fn parse<T: TryParse>(bytes: &[u8]) -> Result<Option<(usize, T)>, HandshakeError> {
    match T::try_parse(bytes) {
        Ok(Some(parsed)) => Ok(Some(parsed)),
        Ok(None) if bytes.len() >= HANDSHAKE_BYTES_MAX => Err(HandshakeError::TooLong),
        Ok(None) => Ok(None),
        Err(_) => {
            let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let line = &line[..line.len().min(60)];
            Err(HandshakeError::NotHttp { found: line.escape_ascii().to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_sides_agree() {
        let url = RelayUrl::parse("ws://example.net:1234/capture").expect("a url");
        let (request, key) = client_request(&url).expect("a request");
        assert!(server_request(&request[..request.len() - 1]).is_none());
        let Some(ServerReply::Upgrade { response, consumed }) = server_request(&request) else {
            panic!("refused")
        };
        assert_eq!(consumed, request.len());
        assert_eq!(client_response(&response[..20], &key), Ok(None));
        assert_eq!(client_response(&response, &key), Ok(Some(response.len())));
        assert!(matches!(client_response(&response, "other"), Err(HandshakeError::Answer { .. })));
    }

    #[test]
    fn what_is_no_handshake_is_refused_with_a_reason() {
        let refused = |bytes: &[u8]| match server_request(bytes) {
            Some(ServerReply::Refuse { response, reason }) => {
                (String::from_utf8(response).expect("text"), reason)
            }
            other => panic!("{other:?}"),
        };
        let (response, _) = refused(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(response.starts_with("HTTP/1.1 426 "), "{response}");
        let (response, reason) = refused(b"\x16\x03\x01\x02\0 garbage\r\n\r\n");
        assert!(response.starts_with("HTTP/1.1 400 ") && reason.contains("not HTTP"), "{reason}");
        let url = RelayUrl::parse("ws://h").expect("a url");
        let (request, key) = client_request(&url).expect("a request");
        let other = String::from_utf8(request).expect("text").replace(SUBPROTOCOL, "ringcast.9");
        let (response, reason) = refused(other.as_bytes());
        assert!(reason.contains("ringcast.9") && reason.contains("ringcast.1"), "{reason}");
        let error = client_response(response.as_bytes(), &key).expect_err("refused");
        assert!(error.to_string().contains("400") && error.to_string().contains("ringcast.9"), "{error}");
        assert!(matches!(
            client_response(b"SSH-2.0-OpenSSH_9\r\n", &key),
            Err(HandshakeError::NotHttp { .. })
        ));
        let (_, reason) = refused(&[&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; HANDSHAKE_BYTES_MAX]].concat());
        assert!(reason.contains("over 8192 bytes"), "{reason}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = server_request(&bytes);
            let _ = client_response(&bytes, "key");
        }
    }
}
