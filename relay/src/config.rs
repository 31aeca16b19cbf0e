//! What was decided: the arguments, checked against each other before the first socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use wire::admin;
use wire::connection::Origin;

use crate::args::Args;

/// Room for a few of the largest usual blocks, so that a source that can wait need not lose one.
const VIEWER_QUEUE_BYTES_MIN: usize = 4 << 20;
const RECENT_BYTES_DEFAULT: usize = 256 << 20;
const MEMORY_BYTES_MIN: usize = 64 << 20;

/// The relay's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Threads that forward.
    pub workers: usize,
    /// Most bytes that wait for one viewer.
    pub viewer_queue_bytes: usize,
    /// Most bytes kept for viewers that come back.
    pub recent_bytes: usize,
    /// Most bytes of packed blocks in all.
    pub memory_bytes: usize,
    /// Certificate and key of the relay: TLS alone.
    pub cert: Option<PathBuf>,
    /// Given with `cert`, and only with it.
    pub key: Option<PathBuf>,
    /// Authorities of client certificates; only with `cert` and `tokens`.
    pub client_ca: Option<PathBuf>,
    /// Access file; without it everybody may do everything.
    pub tokens: Option<PathBuf>,
    /// Anyone may connect, from anywhere, as far as `cert` and `tokens` do not say otherwise.
    pub insecure: bool,
    /// Origins of web pages that may connect.
    pub allowed_origins: Arc<[Origin]>,
    /// Where the admin port is; `None`: there is none.
    pub admin: Option<SocketAddr>,
    /// Most connections in all.
    pub connections: usize,
    /// Most connections from one address.
    pub connections_per_address: usize,
}

/// Why the settings do not go together. Exit status 2.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum ConfigError {
    #[error(
        "--listen {listen}: not a loopback address, so anyone who reaches the port could watch and \
         publish; {missing} missing: relay init DIR makes them and shows the lines to start with. \
         Or listen on 127.0.0.1, or write --insecure"
    )]
    Insecure { listen: SocketAddr, missing: &'static str },
    #[error("{0}")]
    Admin(String),
    #[error("{given}: needs {missing} beside it")]
    Needs { given: &'static str, missing: &'static str },
    #[error("--viewer-queue {found}: at least {VIEWER_QUEUE_BYTES_MIN} bytes")]
    ViewerQueue { found: usize },
    #[error("--recent {found}: at most half of --memory, {most} bytes")]
    Recent { found: usize, most: usize },
    #[error("--memory {found}: at least {MEMORY_BYTES_MIN} bytes")]
    Memory { found: usize },
}

impl Config {
    /// Takes what was said, or the first thing that is wrong with it.
    pub fn new(args: &Args) -> Result<Self, ConfigError> {
        if let Some(mistake) = mistakes(args).into_iter().next() {
            return Err(mistake);
        }
        Ok(Self {
            listen: args.listen,
            workers: args.workers.into(),
            viewer_queue_bytes: args.viewer_queue,
            recent_bytes: recent_bytes(args),
            memory_bytes: args.memory,
            cert: args.cert.clone(),
            key: args.key.clone(),
            client_ca: args.client_ca.clone(),
            tokens: args.tokens.clone(),
            insecure: args.insecure,
            allowed_origins: args.allow_origin.clone().into(),
            admin: args.admin,
            connections: usize::try_from(args.connections).unwrap_or(usize::MAX),
            connections_per_address: usize::try_from(args.connections_per_address).unwrap_or(usize::MAX),
        })
    }
}

/// Everything that does not go together.
pub fn mistakes(args: &Args) -> Vec<ConfigError> {
    let (has_tls, has_tokens) = (args.cert.is_some(), args.tokens.is_some());
    let mut found = Vec::new();
    let mut needs = |given, missing| found.push(ConfigError::Needs { given, missing });
    match (has_tls, args.key.is_some()) {
        (true, false) => needs("--cert", "--key"),
        (false, true) => needs("--key", "--cert"),
        _ => {}
    }
    if args.client_ca.is_some() && !has_tls {
        needs("--client-ca", "--cert and --key");
    }
    if args.client_ca.is_some() && !has_tokens {
        needs("--client-ca", "--tokens with an entry for each certificate");
    }
    let missing = match (has_tls, has_tokens) {
        (true, true) => None,
        (true, false) => Some("--tokens is"),
        (false, true) => Some("--cert and --key are"),
        (false, false) => Some("--cert, --key and --tokens are"),
    };
    if let Some(missing) = missing.filter(|_| !args.listen.ip().is_loopback() && !args.insecure) {
        found.push(ConfigError::Insecure { listen: args.listen, missing });
    }
    if let Some(Err(text)) = args.admin.map(|address| admin::check(address, args.insecure_admin)) {
        found.push(ConfigError::Admin(text));
    }
    if args.viewer_queue < VIEWER_QUEUE_BYTES_MIN {
        found.push(ConfigError::ViewerQueue { found: args.viewer_queue });
    }
    if args.memory < MEMORY_BYTES_MIN {
        found.push(ConfigError::Memory { found: args.memory });
    }
    if recent_bytes(args) > args.memory / 2 {
        found.push(ConfigError::Recent { found: recent_bytes(args), most: args.memory / 2 });
    }
    found
}

fn recent_bytes(args: &Args) -> usize {
    args.recent.unwrap_or(RECENT_BYTES_DEFAULT.min(args.memory / 4))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn config(line: &str) -> Result<Config, String> {
        let words = std::iter::once("relay").chain(line.split_whitespace());
        let args = Args::try_parse_from(words).map_err(|error| error.to_string())?;
        Config::new(&args).map_err(|error| error.to_string())
    }

    fn refusal(line: &str) -> String {
        config(line).expect_err(line)
    }

    #[test]
    fn off_loopback_everything_is_needed() {
        for (line, missing) in [
            ("", "; --cert, --key and --tokens are missing"),
            ("--tokens t", "; --cert and --key are missing"),
            ("--cert c --key k", "; --tokens is missing"),
        ] {
            for listen in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
                let line = format!("--listen {listen} {line}");
                let text = refusal(&line);
                assert!(text.contains(missing) && text.contains("relay init DIR"), "{text}");
                assert!(config(&format!("{line} --insecure")).is_ok(), "{line}");
            }
            assert!(config(line).is_ok(), "{line}");
            assert!(config(&format!("--listen [::1]:1 {line}")).is_ok(), "{line}");
        }
        let config =
            config("--listen 0.0.0.0:1 --cert c --key k --tokens t --client-ca a").expect("complete");
        assert_eq!(config.cert, Some(PathBuf::from("c")));
        assert_eq!(config.client_ca, Some(PathBuf::from("a")));
    }

    #[test]
    fn insecure_drops_nothing_that_is_given() {
        let config = config("--insecure --cert c --key k --tokens t").expect("complete");
        assert!(config.insecure && config.cert.is_some() && config.key.is_some() && config.tokens.is_some());
    }

    #[test]
    fn options_that_need_others_say_so() {
        assert_eq!(refusal("--cert c"), "--cert: needs --key beside it");
        assert_eq!(refusal("--key k --insecure"), "--key: needs --cert beside it");
        assert_eq!(refusal("--client-ca c --tokens t"), "--client-ca: needs --cert and --key beside it");
        assert!(refusal("--client-ca c --cert c --key k").contains("--client-ca: needs --tokens"));
    }

    #[test]
    fn one_mistake_does_not_hide_another() {
        let args = "--listen 0.0.0.0:1 --cert c --viewer-queue 1 --memory 2 --recent 3";
        let args = Args::try_parse_from(std::iter::once("relay").chain(args.split(' '))).expect("parses");
        let found: Vec<String> = mistakes(&args).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 5, "{found:?}");
        for (text, begin) in
            found.iter().zip(["--cert:", "--listen", "--viewer-queue", "--memory", "--recent"])
        {
            assert!(text.starts_with(begin), "{text}");
        }
    }

    #[test]
    fn origins_are_read_as_browsers_send_them() {
        let config = config("--allow-origin HTTPS://Desk.example.net:8443").expect("an origin");
        assert_eq!(config.allowed_origins[0].to_string(), "https://desk.example.net:8443");
        for wrong in ["*", "null", "desk", "https://", "https://a/b", "https://u@a"] {
            assert!(refusal(&format!("--allow-origin {wrong}")).contains("--allow-origin"), "{wrong}");
        }
    }

    #[test]
    fn the_admin_port_is_on_loopback_unless_consented() {
        assert_eq!(config("").expect("defaults").admin, None);
        let open = config("--admin 9441").expect("a port of loopback");
        assert_eq!(open.admin, Some(SocketAddr::from(([127, 0, 0, 1], 9441))));
        assert!(refusal("--admin 0.0.0.0:9441 --insecure").contains("or write --insecure-admin"));
        assert!(config("--admin 0.0.0.0:9441 --insecure-admin").is_ok());
        assert!(refusal("--admin nowhere").contains("write ADDR:PORT"));
        assert!(refusal("--insecure-admin").contains("--admin"));
    }

    #[test]
    fn limits_have_ranges() {
        let config = config("").expect("defaults");
        assert_eq!((config.connections, config.connections_per_address), (4096, 1024));
        assert!(refusal("--connections 15").contains("16..=1000000"));
        assert!(refusal("--connections-per-address 0").contains("1..=1000000"));
    }

    #[test]
    fn subcommands_stand_alone() {
        assert!(Args::try_parse_from(["relay", "init", "d"]).is_ok());
        assert!(Args::try_parse_from(["relay", "--insecure", "init", "d"]).is_err());
        assert!(Args::try_parse_from(["relay", "token", "list", "--tokens", "t"]).is_ok());
        assert!(Args::try_parse_from(["relay", "token", "list"]).is_err());
    }
}
