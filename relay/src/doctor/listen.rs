//! The address: whether it can be listened on, and who can reach it.

use std::io::ErrorKind;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use wire::doctor::Finding;
use wire::text::io_text;

use crate::config::Config;

const SUBJECT: &str = "listen";

/// What is to be said of --listen.
pub fn check(config: &Config) -> Vec<Finding> {
    let address = config.listen;
    let mut findings = vec![match bind(address) {
        Ok(()) => Finding::ok(SUBJECT, format!("--listen {address}: free")),
        Err(error) => taken(address, &error),
    }];
    if config.insecure && !address.ip().is_loopback() {
        let lacking = match (config.cert.is_some(), config.tokens.is_some()) {
            (true, true) => None,
            (true, false) => Some("anyone who reaches it can watch and publish"),
            (false, true) => Some("nothing is encrypted, tokens neither"),
            (false, false) => Some("nothing is encrypted, and anyone who reaches it can watch and publish"),
        };
        findings.extend(lacking.map(|lacking| {
            Finding::warning(
                SUBJECT,
                format!("--insecure: {address} is open: {lacking}"),
                "relay init DIR --host NAME makes certificate, key and tokens, and shows the lines to start with",
            )
        }));
    }
    findings
}

/// Takes the address and gives it back, without listening.
fn bind(address: SocketAddr) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // as the relay does: connections that have just ended are in nobody's way
    socket.bind(&address.into())
}

fn taken(address: SocketAddr, error: &std::io::Error) -> Finding {
    let text = format!("--listen {address}: {}", io_text(error));
    match error.kind() {
        // It may well be the relay that is asked about, or its socket unit.
        ErrorKind::AddrInUse => Finding::warning(
            SUBJECT,
            format!("{text}: by a relay that runs, or by another program"),
            format!(
                "ss -ltnp 'sport = :{}' tells which; if it is another, choose another port",
                address.port()
            ),
        ),
        ErrorKind::PermissionDenied => Finding::problem(
            SUBJECT,
            text,
            "ports below 1024 are root's: choose a higher one, or let systemd open it (ringcast-relay.socket)",
        ),
        _ => Finding::problem(
            SUBJECT,
            text,
            "choose an address that this host has (ip addr), or 0.0.0.0 for all",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use wire::doctor::Level;

    fn found(line: &str) -> Vec<Finding> {
        let args = crate::args::Args::try_parse_from(std::iter::once("relay").chain(line.split(' ')))
            .expect("parses");
        check(&Config::new(&args).expect("good"))
    }

    #[test]
    fn an_address_is_free_taken_or_not_ours() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let taken = &found(&format!("--listen {address}"))[0];
        assert!(taken.level == Level::Warning && taken.text.contains("address already in use"), "{taken:?}");
        drop(listener);
        assert_eq!(found(&format!("--listen {address}"))[0].level, Level::Ok);
        let foreign = &found("--insecure --listen 203.0.113.77:9440")[..];
        assert!(
            foreign[0].level == Level::Problem && foreign[0].text.contains("203.0.113.77:9440"),
            "{foreign:?}"
        );
        assert!(foreign[1].text.contains("nothing is encrypted, and anyone"), "{foreign:?}");
    }
}
