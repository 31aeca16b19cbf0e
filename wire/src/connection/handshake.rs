//! The opening handshake of RFC 6455, both sides, over bytes. No I/O.
//!
//! What a stranger may send is narrow: one GET of HTTP/1.1 without a body, of bounded size, each
//! header that matters once. What it is told repeats little of what it sent, escaped.

use std::sync::Arc;

use data_encoding::BASE64;
use thiserror::Error;
use tungstenite::Error as WebSocketError;
use tungstenite::error::ProtocolError;
use tungstenite::handshake::client::{Request as ClientRequest, Response, generate_key, generate_request};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::Request;
use tungstenite::http::HeaderMap;

use super::origin::{Origin, repeated};
use super::url::RelayUrl;
use crate::message::SUBPROTOCOL;

/// Most bytes of a request or response.
pub const HANDSHAKE_BYTES_MAX: usize = 8 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;
/// Bytes of the random key of a request (RFC 6455, section 4.1).
const KEY_BYTES: usize = 16;

/// Why a handshake failed.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum HandshakeError {
    #[error("not HTTP: the peer sent \"{found}\"")]
    NotHttp { found: String },
    #[error("handshake of over {HANDSHAKE_BYTES_MAX} bytes")]
    TooLong,
    #[error("the server answered {status}: {text}")]
    Refused { status: u16, text: String },
    #[error("the server answered \"{found}\" where a WebSocket handshake has {expected:?}")]
    Answer { found: String, expected: String },
    #[error("the server does not speak {SUBPROTOCOL}, so it is no relay of this version")]
    Subprotocol,
    #[error("{reason}")]
    Rejected { reason: String },
    #[error("url cannot be put into a request: {0}")]
    Url(String),
}

/// What one end asks of the other in the handshake.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The subprotocol that both ends must name. Without one none is spoken: only the echo of the
    /// conformance run does that.
    pub subprotocol: Option<&'static str>,
    /// Pages of these origins may open a WebSocket to a server. Programs send no origin.
    pub origins: Arc<[Origin]>,
}

impl Default for Policy {
    /// Ours alone, and no pages.
    fn default() -> Self {
        Self { subprotocol: Some(SUBPROTOCOL), origins: Arc::default() }
    }
}

/// The request of a client, and the key that the answer must be made from.
pub fn client_request(url: &RelayUrl, policy: &Policy) -> Result<(Vec<u8>, String), HandshakeError> {
    let key = generate_key();
    let mut request = ClientRequest::builder()
        .uri(url.path())
        .header("Host", url.authority())
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", &key);
    if let Some(subprotocol) = policy.subprotocol {
        request = request.header("Sec-WebSocket-Protocol", subprotocol);
    }
    let request = request.body(()).map_err(|error| HandshakeError::Url(error.to_string()))?;
    let (bytes, _) = generate_request(request).map_err(|error| HandshakeError::Url(error.to_string()))?;
    Ok((bytes, key))
}

/// Reads the answer to a client's request; `None` until it is whole, else its length.
pub fn client_response(bytes: &[u8], key: &str, policy: &Policy) -> Result<Option<usize>, HandshakeError> {
    let (length, response) = match Response::try_parse(bytes) {
        Ok(Some((length, _))) if length > HANDSHAKE_BYTES_MAX => return Err(HandshakeError::TooLong),
        Ok(Some(parsed)) => parsed,
        Ok(None) if bytes.len() >= HANDSHAKE_BYTES_MAX => return Err(HandshakeError::TooLong),
        Ok(None) => return Ok(None),
        Err(_) => return Err(not_http(bytes)),
    };
    let status = response.status();
    if status.as_u16() != 101 {
        let text = String::from_utf8_lossy(&bytes[length..]);
        let reason = response.status().canonical_reason().unwrap_or("no reason given");
        let line = text.lines().next().unwrap_or(reason).chars().take(200).collect();
        return Err(HandshakeError::Refused { status: status.as_u16(), text: line });
    }
    let headers = response.headers();
    let expected = derive_accept_key(key.as_bytes());
    let accept = the_one(headers, "Sec-WebSocket-Accept");
    if accept != Some(expected.as_bytes()) {
        return Err(HandshakeError::Answer { found: repeated(accept.unwrap_or_default()), expected });
    }
    for (name, expected) in [("Upgrade", "websocket"), ("Connection", "Upgrade")] {
        if !has_token(headers, name, expected) {
            let found = repeated(headers.get(name).map_or(b"", |value| value.as_bytes()));
            return Err(HandshakeError::Answer { found, expected: expected.to_owned() });
        }
    }
    // Nothing may be in use that was not offered (section 4.1).
    if let Some(extension) = headers.get("Sec-WebSocket-Extensions") {
        let found = format!("Sec-WebSocket-Extensions: {}", repeated(extension.as_bytes()));
        return Err(HandshakeError::Answer { found, expected: "no extension".to_owned() });
    }
    let spoken = headers.get("Sec-WebSocket-Protocol").map(|value| value.as_bytes());
    if spoken != policy.subprotocol.map(str::as_bytes) {
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
pub fn server_request(bytes: &[u8], policy: &Policy) -> Option<ServerReply> {
    let refused = match Request::try_parse(bytes) {
        Ok(Some((consumed, _))) if consumed > HANDSHAKE_BYTES_MAX => Refusal::bad(HandshakeError::TooLong),
        Ok(Some((consumed, request))) => match accept(&request, policy) {
            Ok(response) => return Some(ServerReply::Upgrade { response, consumed }),
            Err(refusal) => refusal,
        },
        Ok(None) if bytes.len() >= HANDSHAKE_BYTES_MAX => Refusal::bad(HandshakeError::TooLong),
        Ok(None) => return None,
        Err(WebSocketError::Protocol(ProtocolError::WrongHttpMethod)) => {
            Refusal { status: "405 Method Not Allowed", header: "Allow: GET\r\n", reason: "not a GET".into() }
        }
        Err(WebSocketError::Protocol(ProtocolError::WrongHttpVersion)) => {
            Refusal { status: "505 HTTP Version Not Supported", header: "", reason: "not HTTP/1.1".into() }
        }
        Err(WebSocketError::Capacity(_)) => Refusal::bad(format!("over {HEADERS_MAX} headers")),
        Err(_) => Refusal::bad(not_http(bytes)),
    };
    Some(refused.reply())
}

/// The answer to a request that opens a WebSocket.
fn accept(request: &Request, policy: &Policy) -> Result<Vec<u8>, Refusal> {
    let headers = request.headers();
    if headers.len() > HEADERS_MAX {
        return Err(Refusal::bad(format!("over {HEADERS_MAX} headers")));
    }
    if the_one(headers, "Host").is_none_or(<[u8]>::is_empty) {
        return Err(Refusal::bad("a request has one Host header"));
    }
    if headers.contains_key("Content-Length") || headers.contains_key("Transfer-Encoding") {
        return Err(Refusal::bad("a WebSocket request has no body"));
    }
    if !has_token(headers, "Connection", "Upgrade") || !has_token(headers, "Upgrade", "websocket") {
        return Err(Refusal::upgrade(format!(
            "GET {}: plain HTTP; this is a Ringcast relay, which speaks WebSocket: use viewer --relay",
            repeated(request.uri().path().as_bytes())
        )));
    }
    match the_one(headers, "Sec-WebSocket-Version") {
        Some(b"13") => {}
        other => {
            let found = repeated(other.unwrap_or(b"missing or repeated"));
            return Err(Refusal::upgrade(format!("WebSocket version {found}: this relay speaks 13")));
        }
    }
    let key = the_one(headers, "Sec-WebSocket-Key").unwrap_or_default();
    if BASE64.decode(key).map_or(0, |bytes| bytes.len()) != KEY_BYTES {
        return Err(Refusal::bad(format!("Sec-WebSocket-Key is not {KEY_BYTES} bytes in base64, once")));
    }
    check_origin(headers, &policy.origins)?;
    let mut response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n",
        derive_accept_key(key)
    );
    if let Some(ours) = policy.subprotocol {
        check_subprotocol(headers, ours)?;
        response.push_str(&format!("Sec-WebSocket-Protocol: {ours}\r\n"));
    }
    response.push_str("\r\n");
    Ok(response.into_bytes())
}

/// Only browsers send an origin, and they do so for any page that a user looks at (section 10.2).
fn check_origin(headers: &HeaderMap, allowed: &[Origin]) -> Result<(), Refusal> {
    if !headers.contains_key("Origin") {
        return Ok(());
    }
    let found = the_one(headers, "Origin").unwrap_or(b"given more than once");
    let origin = str::from_utf8(found).ok().and_then(|text| text.parse::<Origin>().ok());
    if origin.is_some_and(|origin| allowed.contains(&origin)) {
        return Ok(());
    }
    let reason =
        format!("origin {}: not allowed here; the relay's --allow-origin does that", repeated(found));
    Err(Refusal { status: "403 Forbidden", header: "", reason })
}

fn check_subprotocol(headers: &HeaderMap, ours: &str) -> Result<(), Refusal> {
    if has_exact_token(headers, "Sec-WebSocket-Protocol", ours) {
        return Ok(());
    }
    let offered: Vec<&[u8]> =
        headers.get_all("Sec-WebSocket-Protocol").iter().map(|value| value.as_bytes()).collect();
    Err(Refusal::bad(match offered.is_empty() {
        true => format!("no subprotocol offered: this relay speaks {ours}"),
        false => format!("subprotocol {}: this relay speaks {ours}", repeated(&offered.join(&b", "[..]))),
    }))
}

/// The value of a header that must be there once.
fn the_one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes().trim_ascii()),
        _ => None,
    }
}

/// The members of a header that is a list, whose lines are one list together (RFC 9110, section
/// 5.3).
fn tokens<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).into_iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

fn has_token(headers: &HeaderMap, name: &str, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// Subprotocols are compared letter by letter (RFC 6455, section 11.5).
fn has_exact_token(headers: &HeaderMap, name: &str, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token == wanted.as_bytes())
}

/// Why a request is refused, and how HTTP says it.
struct Refusal {
    status: &'static str,
    /// A header line that goes with the status, or nothing.
    header: &'static str,
    reason: String,
}

impl Refusal {
    fn bad(reason: impl ToString) -> Self {
        Self { status: "400 Bad Request", header: "", reason: reason.to_string() }
    }

    /// What would be right is named (section 4.4).
    fn upgrade(reason: String) -> Self {
        let header = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        Self { status: "426 Upgrade Required", header, reason }
    }

    fn reply(self) -> ServerReply {
        let Self { status, header, reason } = self;
        let response = format!(
            "HTTP/1.1 {status}\r\n{header}Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
             X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n\
             Content-Length: {}\r\n\r\n{reason}\n",
            reason.len() + 1
        );
        ServerReply::Refuse { response: response.into_bytes(), reason }
    }
}

fn not_http(bytes: &[u8]) -> HandshakeError {
    let line = bytes.split(|byte| b"\r\n".contains(byte)).next().unwrap_or_default();
    HandshakeError::NotHttp { found: line[..line.len().min(60)].escape_ascii().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ours() -> Policy {
        Policy::default()
    }

    /// A request as programs send it, with `more` lines, and without those that begin with `less`.
    fn request(more: &[&str], less: &str) -> Vec<u8> {
        let lines = [
            "Host: relay",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Protocol: ringcast.1",
        ];
        let kept = lines.iter().filter(|line| less.is_empty() || !line.starts_with(less)).chain(more);
        let lines: Vec<String> = kept.map(|line| format!("{line}\r\n")).collect();
        format!("GET / HTTP/1.1\r\n{}\r\n", lines.concat()).into_bytes()
    }

    fn upgraded(bytes: &[u8], policy: &Policy) -> String {
        match server_request(bytes, policy) {
            Some(ServerReply::Upgrade { response, consumed }) => {
                assert_eq!(consumed, bytes.len());
                String::from_utf8(response).expect("text")
            }
            other => panic!("{}: {other:?}", bytes.escape_ascii()),
        }
    }

    /// The head of the answer, and the reason, which its body repeats.
    fn refused(bytes: &[u8], policy: &Policy) -> (String, String) {
        let Some(ServerReply::Refuse { response, reason }) = server_request(bytes, policy) else {
            panic!("taken: {}", bytes.escape_ascii())
        };
        let response = String::from_utf8(response).expect("text");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head");
        assert_eq!(body, format!("{reason}\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
        for line in ["Connection: close", "Cache-Control: no-store", "X-Content-Type-Options: nosniff"] {
            assert!(head.lines().any(|one| one == line), "no {line} in {head}");
        }
        assert!(!head.contains("Server:") && !head.contains(env!("CARGO_PKG_VERSION")), "{head}");
        assert!(reason.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{reason:?}");
        assert!(response.len() < 1000, "{response}");
        (head.to_owned(), reason)
    }

    #[test]
    fn both_sides_agree() {
        let url = RelayUrl::parse("ws://example.net:1234/capture").expect("a url");
        for policy in [ours(), Policy { subprotocol: None, ..ours() }] {
            let (request, key) = client_request(&url, &policy).expect("a request");
            for cut in 0..request.len() {
                assert!(server_request(&request[..cut], &policy).is_none());
            }
            let response = upgraded(&request, &policy);
            let response = response.as_bytes();
            for cut in 0..response.len() {
                assert_eq!(client_response(&response[..cut], &key, &policy), Ok(None));
            }
            assert_eq!(client_response(response, &key, &policy), Ok(Some(response.len())));
            let error = client_response(response, "other", &policy);
            assert!(matches!(error, Err(HandshakeError::Answer { .. })));
        }
    }

    #[test]
    fn the_sample_of_the_standard() {
        let response = upgraded(&request(&[], ""), &ours());
        assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{response}");
        assert!(
            response.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
            "{response}"
        );
        assert!(response.contains("\r\nSec-WebSocket-Protocol: ringcast.1\r\n"), "{response}");
    }

    #[test]
    fn headers_in_other_words_are_understood() {
        for (less, more) in [
            ("Connection", &["connection: keep-alive, UPGRADE"][..]),
            ("Connection", &["Connection: keep-alive", "Connection: ,upgrade ,"]),
            ("Upgrade", &["Upgrade: h2c, WebSocket"]),
            ("Sec-WebSocket-Protocol", &["Sec-WebSocket-Protocol: chat.7,ringcast.1"]),
            ("Sec-WebSocket-Protocol", &["Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: ringcast.1"]),
            ("", &["Sec-WebSocket-Extensions: permessage-deflate", "User-Agent: x"]),
        ] {
            let response = upgraded(&request(more, less), &ours());
            assert!(!response.contains("Extensions"), "none is spoken: {response}");
        }
    }

    #[test]
    fn requests_that_are_refused() {
        let long = format!("X: {}", "a".repeat(HANDSHAKE_BYTES_MAX));
        let many = vec!["X: y"; 59];
        let too_many = vec!["X: y"; 200];
        let cases: [(&str, &[&str], &str, &str); 22] = [
            ("Host", &[], "400", "one Host"),
            ("Host", &["Host:"], "400", "one Host"),
            ("", &["Host: other"], "400", "one Host"),
            ("", &["Content-Length: 5"], "400", "no body"),
            ("", &["Transfer-Encoding: chunked"], "400", "no body"),
            ("Connection", &[], "426", "Ringcast relay"),
            ("Connection", &["Connection: foo Upgrade"], "426", "Ringcast relay"),
            ("Upgrade", &[], "426", "Ringcast relay"),
            ("Upgrade", &["Upgrade: websockets"], "426", "Ringcast relay"),
            ("Sec-WebSocket-Version", &[], "426", "speaks 13"),
            (
                "Sec-WebSocket-Version",
                &["Sec-WebSocket-Version: 8"],
                "426",
                "version 8: this relay speaks 13",
            ),
            ("", &["Sec-WebSocket-Version: 13"], "426", "repeated"),
            ("Sec-WebSocket-Key", &[], "400", "16 bytes"),
            ("Sec-WebSocket-Key", &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"], "400", "16 bytes"),
            ("Sec-WebSocket-Key", &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZXM="], "400", "16 bytes"),
            ("", &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="], "400", "once"),
            ("Sec-WebSocket-Protocol", &[], "400", "no subprotocol"),
            ("Sec-WebSocket-Protocol", &["Sec-WebSocket-Protocol: Ringcast.1"], "400", "Ringcast.1: this"),
            ("", &[&long], "400", "over 8192 bytes"),
            ("", &many, "400", "over 64 headers"),
            ("", &too_many, "400", "over 64 headers"),
            ("", &["X : y"], "400", "not HTTP"),
        ];
        for (less, more, status, text) in cases {
            let (head, reason) = refused(&request(more, less), &ours());
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")) && reason.contains(text),
                "{head} {reason}"
            );
            let names_version = head.contains("\r\nSec-WebSocket-Version: 13\r\n");
            assert_eq!(names_version, status == "426", "{head}");
        }
        upgraded(&request(&many[1..], ""), &ours());
    }

    #[test]
    fn other_methods_versions_and_protocols() {
        let line = |line: &str| {
            let rest = String::from_utf8(request(&[], "")).expect("text");
            refused(rest.replace("GET / HTTP/1.1", line).as_bytes(), &ours())
        };
        let (head, _) = line("POST / HTTP/1.1");
        assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("\r\nAllow: GET\r\n"), "{head}");
        assert!(line("CONNECT relay:1 HTTP/1.1").0.starts_with("HTTP/1.1 405 "));
        assert!(line("GET / HTTP/1.0").0.starts_with("HTTP/1.1 505 "));
        assert!(line("GET / HTTP/2.0").0.starts_with("HTTP/1.1 400 "));
        let (head, reason) = refused(b"\x16\x03\x01\x02\0 garbage\r\n\r\n", &ours());
        assert!(head.starts_with("HTTP/1.1 400 ") && reason.contains("not HTTP"), "{reason}");
    }

    #[test]
    fn what_is_repeated_is_short_and_escaped() {
        let path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "<script>".repeat(200));
        let (_, reason) = refused(path.as_bytes(), &ours());
        assert!(reason.len() < 300, "{reason}");
        let origin = format!("Origin: {}", "\u{85}\u{9b}".repeat(300));
        let (head, reason) = refused(&request(&[&origin], ""), &ours());
        assert!(head.starts_with("HTTP/1.1 403 ") && reason.contains("\\xc2\\x85"), "{reason}");
        let subprotocol = format!("Sec-WebSocket-Protocol: {}", "x".repeat(2000));
        refused(&request(&[&subprotocol], "Sec-WebSocket-Protocol"), &ours());
        // A bare CR ends no line.
        refused(&request(&["Origin: a\rX-Injected: b"], ""), &ours());
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let origins = ["https://desk.example.net", "http://10.0.0.1:8080"];
        let origins = origins.iter().map(|text| text.parse().expect("an origin")).collect();
        let policy = Policy { origins, ..ours() };
        for allowed in ["https://desk.example.net", "HTTPS://Desk.example.net:443", "http://10.0.0.1:8080"] {
            let bytes = request(&[&format!("Origin: {allowed}")], "");
            upgraded(&bytes, &policy);
            let (head, reason) = refused(&bytes, &ours());
            assert!(head.starts_with("HTTP/1.1 403 Forbidden"), "{head}");
            assert!(reason.contains(allowed) && reason.contains("--allow-origin"), "{reason}");
        }
        let good = "Origin: https://desk.example.net";
        for lines in [
            &["Origin: null"][..],
            &["Origin:"],
            &["Origin: https://evil.example.net"],
            &["Origin: http://desk.example.net"],
            &["Origin: https://desk.example.net:8443"],
            &["Origin: https://desk.example.net.evil.net"],
            &["Origin: https://desk.example.net https://evil.net"],
            &[good, good],
            &[good, "Origin: https://evil.net"],
        ] {
            let (head, _) = refused(&request(lines, ""), &policy);
            assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        }
    }

    #[test]
    fn answers_that_are_none_of_ours() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let good = upgraded(&request(&[], ""), &ours());
        assert_eq!(client_response(good.as_bytes(), key, &ours()), Ok(Some(good.len())));
        for (from, to) in [
            ("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "S3PPLMBITXAQ9KYGZZHZRBK+XOO="),
            ("Sec-WebSocket-Accept", "X"),
            ("Upgrade: websocket", "Upgrade: h2c"),
            ("Connection: Upgrade", "Connection: close"),
            ("Connection: Upgrade", "Connection: Upgrade\r\nSec-WebSocket-Extensions: permessage-deflate"),
        ] {
            let error = client_response(good.replace(from, to).as_bytes(), key, &ours());
            assert!(matches!(error, Err(HandshakeError::Answer { .. })), "{to}: {error:?}");
        }
        for to in ["chat.7", "ringcast.1, chat.7"] {
            let error = client_response(good.replace("ringcast.1", to).as_bytes(), key, &ours());
            assert_eq!(error, Err(HandshakeError::Subprotocol));
        }
        let unasked = Policy { subprotocol: None, ..ours() };
        assert_eq!(client_response(good.as_bytes(), key, &unasked), Err(HandshakeError::Subprotocol));
        let error = client_response(b"SSH-2.0-OpenSSH_9\r\n", key, &ours());
        assert!(matches!(error, Err(HandshakeError::NotHttp { .. })));
        let endless = [&b"HTTP/1.1 101 x\r\nX: "[..], &[b'a'; HANDSHAKE_BYTES_MAX]].concat();
        assert_eq!(client_response(&endless, key, &ours()), Err(HandshakeError::TooLong));
    }

    #[test]
    fn a_refusal_is_read_by_the_other_side() {
        let url = RelayUrl::parse("ws://h").expect("a url");
        let (request, key) = client_request(&url, &ours()).expect("a request");
        let other = String::from_utf8(request).expect("text").replace(SUBPROTOCOL, "ringcast.9");
        let Some(ServerReply::Refuse { response, .. }) = server_request(other.as_bytes(), &ours()) else {
            panic!("taken")
        };
        let error = client_response(&response, &key, &ours()).expect_err("refused").to_string();
        assert!(
            error.contains("400") && error.contains("ringcast.9") && error.contains("ringcast.1"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = server_request(&bytes, &ours());
            let _ = client_response(&bytes, "key", &ours());
        }

        #[test]
        fn no_header_makes_it_panic(name in "[A-Za-z-]{1,30}", value in proptest::collection::vec(any::<u8>(), 0..60)) {
            let line = [name.as_bytes(), b": ", &value, b"\r\n\r\n"].concat();
            let mut bytes = request(&[], "");
            bytes.truncate(bytes.len() - 2);
            bytes.extend(line);
            if let Some(ServerReply::Refuse { response, .. }) = server_request(&bytes, &ours()) {
                prop_assert!(response.iter().all(|byte| matches!(byte, b'\r' | b'\n' | b' '..=b'~')));
            }
        }
    }
}
