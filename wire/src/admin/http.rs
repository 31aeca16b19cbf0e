//! Requests as they are read, and answers as they are written: the little of HTTP/1.1 (RFC 9112) that is needed.

use httparse::{EMPTY_HEADER, Status};

/// Most bytes of a request; a longer one is refused.
pub(super) const REQUEST_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
const TEXT: &str = "text/plain; charset=utf-8";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Metrics,
    Health,
    Readiness,
}

/// What has come of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// More is to come.
    Partial,
    Whole(Target),
    /// It is answered at once.
    Refused(Answer),
}

impl Request {
    /// Looks at all that has come so far.
    pub fn read(bytes: &[u8]) -> Self {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(Status::Partial) if bytes.len() < REQUEST_BYTES_MAX => Self::Partial,
            Ok(Status::Partial) => Self::Refused(Answer::text(
                431,
                "Request Header Fields Too Large",
                &format!("a request has at most {REQUEST_BYTES_MAX} bytes"),
            )),
            Ok(Status::Complete(_)) => {
                Self::whole(request.method.unwrap_or_default(), request.path.unwrap_or_default())
            }
            Err(error) => Self::Refused(Answer::text(400, "Bad Request", &format!("not HTTP/1.1: {error}"))),
        }
    }

    fn whole(method: &str, path: &str) -> Self {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let target = match path {
            "/metrics" => Target::Metrics,
            "/healthz" => Target::Health,
            "/readyz" => Target::Readiness,
            _ => {
                return Self::Refused(Answer::text(
                    404,
                    "Not Found",
                    "ask for /metrics, /healthz or /readyz",
                ));
            }
        };
        match method {
            "GET" => Self::Whole(target),
            _ => Self::Refused(Answer::text(405, "Method Not Allowed", "only GET is answered")),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    reason: &'static str,
    content_type: &'static str,
    body: String,
}

impl Answer {
    /// What was asked for.
    pub fn ok(content_type: &'static str, body: String) -> Self {
        Self { status: 200, reason: "OK", content_type, body }
    }

    /// All is well.
    pub fn well(text: &str) -> Self {
        Self::ok(TEXT, format!("{text}\n"))
    }

    /// Something is not as it should be.
    pub fn unwell(text: &str) -> Self {
        Self::text(503, "Service Unavailable", text)
    }

    fn text(status: u16, reason: &'static str, text: &str) -> Self {
        Self { status, reason, content_type: TEXT, body: format!("{text}\n") }
    }

    /// As it is sent.
    pub fn into_bytes(self) -> Vec<u8> {
        let allow = if self.status == 405 { "Allow: GET\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n{allow}Connection: close\r\n\r\n",
            self.status,
            self.reason,
            self.content_type,
            self.body.len()
        );
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body.as_bytes());
        bytes
    }
}
