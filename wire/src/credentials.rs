//! What a client proves itself with and whom it trusts: read from files and the environment, and
//! checked against the address of the relay. Never from the command line, which others can read.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::connection::RelayUrl;
use crate::secret::Secret;
use crate::text::io_text;
use crate::tls::{ClientFiles, ClientTls, TlsError, warn_if_open};

/// The environment variable that may hold a token; a token file wins over it.
pub const TOKEN_VARIABLE: &str = "RINGCAST_TOKEN";
/// Most bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 512;

/// Where a client's credentials are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    /// Certificates and key.
    pub tls: ClientFiles,
    /// File whose first line is the token (`--token-file`).
    pub token_file: Option<PathBuf>,
}

/// A client's credentials, ready for connections.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// For `wss://`; `None` with `ws://`.
    pub tls: Option<ClientTls>,
    /// For the hello.
    pub token: Option<Secret>,
}

/// Why credentials are refused. Names the option and the file, and shows no secret.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum CredentialError {
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("{option} needs a relay with TLS, and {url} is without; use wss://")]
    NeedsTls { option: &'static str, url: RelayUrl },
    #[error("{source_text}: the token would cross the network unencrypted to {url}; use wss://")]
    Unencrypted { source_text: String, url: RelayUrl },
    #[error("--token-file {}: {}", .path.display(), io_text(error))]
    Read { path: PathBuf, error: io::Error },
    #[error(
        "{source_text}: the first line is to be a token of 1 to {TOKEN_BYTES_MAX} letters, digits and signs; {problem}"
    )]
    Token { source_text: String, problem: &'static str },
}

impl CredentialFiles {
    /// Every file that is named, as for a sandbox that has to leave them readable.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let ClientFiles { ca, cert, key } = &self.tls;
        [ca, cert, key, &self.token_file].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Reads and checks everything, the environment too, for a relay at `url`.
    pub fn load(&self, url: &RelayUrl) -> Result<Credentials, CredentialError> {
        self.load_with(url, std::env::var_os(TOKEN_VARIABLE))
    }

    /// `variable`: what the environment says; empty is as if it were not there.
    fn load_with(&self, url: &RelayUrl, variable: Option<OsString>) -> Result<Credentials, CredentialError> {
        if let Some(option) = self.tls.first_option().filter(|_| !url.is_secure()) {
            return Err(CredentialError::NeedsTls { option, url: url.clone() });
        }
        let token = match (&self.token_file, variable.filter(|value| !value.is_empty())) {
            (Some(path), _) => {
                let source_text = format!("--token-file {}", path.display());
                Some((token(&read_token_file(path)?, &source_text)?, source_text))
            }
            (None, Some(value)) => {
                let value = Zeroizing::new(value.into_encoded_bytes());
                Some((token(&value, TOKEN_VARIABLE)?, TOKEN_VARIABLE.to_owned()))
            }
            (None, None) => None,
        };
        let token = match token {
            Some((_, source_text)) if !url.is_secure() && !url.is_loopback() => {
                return Err(CredentialError::Unencrypted { source_text, url: url.clone() });
            }
            other => other.map(|(token, _)| token),
        };
        let tls = if url.is_secure() { Some(ClientTls::load(&self.tls)?) } else { None };
        Ok(Credentials { tls, token })
    }
}

fn read_token_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
    let fail = |error| CredentialError::Read { path: path.to_owned(), error };
    let file = File::open(path).map_err(fail)?;
    warn_if_open("--token-file", path);
    // Room for all that may be read: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(8 << 10));
    file.take(4 << 10).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

/// The first line as a token.
fn token(text: &[u8], source_text: &str) -> Result<Secret, CredentialError> {
    let fail = |problem| Err(CredentialError::Token { source_text: source_text.to_owned(), problem });
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii();
    if line.is_empty() {
        return fail("it is empty");
    }
    if line.len() > TOKEN_BYTES_MAX {
        return fail("it is longer");
    }
    match std::str::from_utf8(line) {
        Ok(line) if line.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Secret::new(line)),
        _ => fail("it has spaces or other characters in it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> RelayUrl {
        RelayUrl::parse(text).expect("a url")
    }

    fn write(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    fn files(token_file: Option<&Path>) -> CredentialFiles {
        CredentialFiles { token_file: token_file.map(Path::to_owned), ..CredentialFiles::default() }
    }

    #[test]
    fn the_first_line_of_a_file_is_the_token_and_wins() {
        let file = write(b"  rct_abc_def \r\nand a remark\n");
        let load = |files: &CredentialFiles, url, variable: Option<&str>| {
            files.load_with(url, variable.map(OsString::from)).map(|found| found.token)
        };
        let local = url("ws://localhost");
        let from_file = load(&files(Some(file.path())), &local, Some("other")).expect("good");
        assert_eq!(from_file, Some(Secret::new("rct_abc_def")));
        let from_variable = load(&files(None), &local, Some("other")).expect("good");
        assert_eq!(from_variable, Some(Secret::new("other")));
        assert_eq!(load(&files(None), &local, Some("")).expect("good"), None);
        assert_eq!(load(&files(None), &url("ws://10.0.0.1"), None).expect("good"), None);
    }

    #[test]
    fn a_bad_token_is_named_and_not_shown() {
        for (text, problem) in [
            (&b"\nsecond"[..], "empty"),
            (b"", "empty"),
            (b"hunter2 hunter2", "spaces"),
            (b"hunter2\x07", "characters"),
            ("hunter2\u{e9}".as_bytes(), "characters"),
            (&[b'h'; 513], "longer"),
        ] {
            let file = write(text);
            let error =
                files(Some(file.path())).load_with(&url("ws://localhost"), None).expect_err("refused");
            let error = format!("{error} {error:?}");
            assert!(error.contains(problem) && error.contains("--token-file /"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
            let error = files(None).load_with(&url("ws://localhost"), Some("hunter 2".into()));
            assert!(error.expect_err("refused").to_string().starts_with("RINGCAST_TOKEN: "));
        }
        let missing = files(Some(Path::new("/nowhere/token"))).load_with(&url("ws://localhost"), None);
        let missing = missing.expect_err("refused").to_string();
        assert_eq!(missing, "--token-file /nowhere/token: no such file or directory");
    }

    #[test]
    fn nothing_secret_goes_where_it_could_be_read() {
        let file = write(b"rct_abc_def");
        for (found, expected) in [
            (files(Some(file.path())).load_with(&url("ws://relay"), None), "--token-file /"),
            (files(None).load_with(&url("ws://10.0.0.1:1"), Some("rct_abc_def".into())), "RINGCAST_TOKEN"),
        ] {
            let error = found.expect_err("refused").to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(error.contains("unencrypted to ws://") && error.contains("use wss://"), "{error}");
            assert!(!error.contains("rct_abc"), "{error}");
        }
        let named = |ca: Option<&str>, cert: Option<&str>, key: Option<&str>| CredentialFiles {
            tls: ClientFiles { ca: ca.map(Into::into), cert: cert.map(Into::into), key: key.map(Into::into) },
            token_file: None,
        };
        for (files, option) in [
            (named(Some("/x"), None, None), "--ca"),
            (named(None, Some("/x"), Some("/y")), "--cert"),
            (named(None, None, Some("/y")), "--key"),
        ] {
            let error = files.load_with(&url("ws://localhost"), None).expect_err("refused").to_string();
            assert_eq!(
                error,
                format!("{option} needs a relay with TLS, and ws://localhost:9440/ is without; use wss://")
            );
        }
        let half = CredentialFiles {
            tls: ClientFiles { ca: Some(file.path().to_owned()), cert: Some("/x".into()), key: None },
            token_file: None,
        };
        let error = half.load_with(&url("wss://relay"), None).expect_err("refused").to_string();
        assert!(error.starts_with("--ca /") && error.contains("no certificate in it"), "{error}");
        assert_eq!(half.paths().count(), 2);
    }
}
