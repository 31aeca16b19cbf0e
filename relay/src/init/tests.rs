//! What is made is verified by rustls, in memory.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use tempfile::TempDir;
use wire::secret::Secret;

use super::*;

fn made(args: &[&str], own: Option<&str>, now_s: u64) -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("directory");
    let text = run_in(&directory, args, own, now_s).expect("made");
    (directory, text)
}

/// Runs `relay init DIR/ringcast`.
fn run_in(directory: &TempDir, args: &[&str], own: Option<&str>, now_s: u64) -> Result<String, String> {
    use clap::Parser;
    let at = directory.path().join("ringcast").display().to_string();
    let words = ["relay", "init", &at].into_iter().chain(args.iter().copied());
    match crate::args::Args::try_parse_from(words).map_err(|error| error.to_string())?.command {
        Some(crate::args::Command::Init(args)) => init(&args, own, now_s).map_err(|error| error.to_string()),
        _ => panic!("another command"),
    }
}

fn now_s() -> u64 {
    wall_ns() / 1_000_000_000
}

fn file(directory: &TempDir, name: &str) -> PathBuf {
    directory.path().join("ringcast").join(name)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("file").permissions().mode() & 0o7777
}

fn chain(path: &Path) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_file(path).expect("certificate")]
}

/// A handshake of a client that trusts `ca.pem` with a relay that has `relay.pem`; both ask for the
/// other's certificate if there is a client's. The error is the one of the side that refuses.
fn handshake(directory: &TempDir, host: &str, client: Option<&str>) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file(directory, CA)).expect("ca")).expect("ca");
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = |name: &str| PrivateKeyDer::from_pem_file(file(directory, name)).expect("key");

    let server = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let server = server.with_safe_default_protocol_versions().expect("versions");
    let server = match client {
        None => server.with_no_client_auth(),
        Some(_) => server.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .expect("verifier"),
        ),
    };
    let server = server.with_single_cert(chain(&file(directory, RELAY)), key(RELAY_KEY)).expect("server");
    let config = ClientConfig::builder_with_provider(provider);
    let config =
        config.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some(name) => config
            .with_client_auth_cert(
                chain(&file(directory, &format!("{name}.pem"))),
                key(&format!("{name}-key.pem")),
            )
            .expect("client"),
    };
    let host = ServerName::try_from(host.to_owned()).expect("host");
    let mut client = ClientConnection::new(Arc::new(config), host).expect("client");
    let mut server = ServerConnection::new(Arc::new(server)).expect("server");
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("memory");
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server.process_new_packets().map_err(|error| format!("server: {error}"))?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("memory");
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().map_err(|error| format!("client: {error}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_files_are_there_and_private() {
    let (directory, text) = made(&["--host", "relay.example.net"], Some("box"), now_s());
    assert_eq!(mode(&directory.path().join("ringcast")), 0o700);
    for name in [CA_KEY, RELAY_KEY, TOKENS, "sniffer.token", "viewer.token", "admin.token"] {
        assert_eq!(mode(&file(&directory, name)), 0o600, "{name}");
    }
    for name in [CA, RELAY] {
        assert_eq!(mode(&file(&directory, name)), 0o644, "{name}");
    }
    assert_eq!(std::fs::read_dir(directory.path().join("ringcast")).expect("directory").count(), 8);
    for line in [
        "wss://relay.example.net:9440 --ca ca.pem --token-file sniffer.token",
        "wss://relay.example.net:9440 --ca ca.pem --token-file viewer.token",
        "relay --listen 0.0.0.0:9440 --cert ",
        "relay token add web-1 --role publish --tokens ",
        " --renew",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn the_first_tokens_open_what_they_are_for() {
    let (directory, text) = made(&[], None, now_s());
    let tokens = read(&file(&directory, TOKENS)).expect("tokens");
    let access = Access::parse(&tokens).expect("access file");
    let grant = |name: &str| {
        let secret = Secret::new(&read(&file(&directory, name)).expect("token"));
        assert!(!tokens.contains(&secret.expose()[17..]) && !text.contains(&secret.expose()[17..]));
        let grant = access.check_token(&secret, now_s()).expect("granted");
        (grant.may_publish("any"), grant.may_see("any"))
    };
    assert_eq!(grant("sniffer.token"), (true, false));
    assert_eq!(grant("viewer.token"), (false, true));
    assert_eq!(grant("admin.token"), (true, true));
}

#[test]
fn clients_that_trust_the_authority_accept_the_relay() {
    let hosts = ["--host", "Relay.example.net", "--host", "192.0.2.7"];
    let (directory, _) = made(&hosts, Some("box"), now_s());
    for host in ["relay.example.net", "192.0.2.7", "box", "localhost", "127.0.0.1", "::1"] {
        assert_eq!(handshake(&directory, host, None), Ok(()), "{host}");
    }
    for host in ["example.net", "192.0.2.8"] {
        let error = handshake(&directory, host, None).expect_err(host);
        assert!(error.contains("client: invalid peer certificate"), "{error}");
    }
}

#[test]
fn another_authority_is_not_trusted() {
    let (directory, _) = made(&[], None, now_s());
    let (other, _) = made(&[], None, now_s());
    std::fs::copy(file(&other, CA), file(&directory, CA)).expect("copy");
    assert!(handshake(&directory, "localhost", None).is_err());
    let error = run_in(&directory, &["--renew"], None, now_s()).expect_err("foreign");
    assert!(error.contains("does not belong to its certificate"), "{error}");
}

#[test]
fn an_expired_certificate_is_renewed_and_nothing_else_changes() {
    let (directory, _) = made(&["--host", "relay.example.net"], None, now_s() - 400 * 86_400);
    let error = handshake(&directory, "relay.example.net", None).expect_err("expired");
    assert!(error.to_lowercase().contains("expired"), "{error}");
    let unchanged = [CA, CA_KEY, RELAY_KEY, TOKENS, "sniffer.token"].map(|name| file(&directory, name));
    let before = unchanged.each_ref().map(|path| read(path).expect("file"));
    let old = read(&file(&directory, RELAY)).expect("file");
    let text = run_in(&directory, &["--renew", "--host", "new.example.net"], None, now_s()).expect("renewed");
    assert!(text.contains("relay.example.net, localhost, 127.0.0.1, ::1, new.example.net"), "{text}");
    for host in ["relay.example.net", "::1", "new.example.net"] {
        assert_eq!(handshake(&directory, host, None), Ok(()), "{host}");
    }
    assert_eq!(unchanged.each_ref().map(|path| read(path).expect("file")), before);
    let serial = |text: &str| {
        let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).expect("PEM");
        pem.parse_x509().expect("certificate").raw_serial().to_vec()
    };
    assert_ne!(serial(&old), serial(&read(&file(&directory, RELAY)).expect("file")));
    assert_eq!(mode(&file(&directory, RELAY)), 0o644);
}

#[test]
fn a_certificate_does_not_outlive_its_authority() {
    let (directory, _) = made(&[], None, now_s() - (CA_DAYS - 1) * 86_400);
    run_in(&directory, &["--renew"], None, now_s()).expect("one day is left");
    let text = read(&file(&directory, RELAY)).expect("file");
    let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).expect("PEM");
    let not_after_s = pem.parse_x509().expect("certificate").validity().not_after.timestamp();
    assert!(not_after_s as u64 <= now_s() + 86_400, "{not_after_s}");
    let error = run_in(&directory, &["--renew"], None, now_s() + 2 * 86_400).expect_err("over");
    assert!(error.contains("authority's certificate has expired"), "{error}");
}

#[test]
fn nothing_is_overwritten() {
    let (directory, _) = made(&[], None, now_s());
    let error = run_in(&directory, &[], None, now_s()).expect_err("there");
    assert!(error.contains("ringcast/ca.pem is there already"), "{error}");
    for name in [CA, CA_KEY, RELAY, RELAY_KEY, TOKENS, "sniffer.token", "viewer.token", "admin.token"] {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::create_dir(directory.path().join("ringcast")).expect("directory");
        std::fs::write(file(&directory, name), "mine").expect("file");
        let error = run_in(&directory, &[], None, now_s()).expect_err(name);
        assert!(error.contains(&format!("ringcast/{name} is there already")), "{error}");
        assert_eq!(read(&file(&directory, name)).expect("file"), "mine");
        assert_eq!(std::fs::read_dir(directory.path().join("ringcast")).expect("directory").count(), 1);
    }
}

#[test]
fn a_client_certificate_is_taken_by_the_relay() {
    let (directory, _) = made(&[], None, now_s());
    let text = run_in(&directory, &["--client", "web-1.example.net"], None, now_s()).expect("made");
    let line = "relay token add web-1.example.net --certificate web-1.example.net --role publish --tokens ";
    assert!(text.contains(line) && text.contains("--client-ca "), "{text}");
    assert_eq!(mode(&file(&directory, "web-1.example.net-key.pem")), 0o600);
    assert_eq!(handshake(&directory, "localhost", Some("web-1.example.net")), Ok(()));
    // The relay's own certificate is not one of a client.
    let error = handshake(&directory, "localhost", Some("relay")).expect_err("a server's");
    assert!(error.contains("server: invalid peer certificate"), "{error}");
    let error = run_in(&directory, &["--client", "web-1.example.net"], None, now_s()).expect_err("there");
    assert!(error.contains("web-1.example.net.pem is there already"), "{error}");
    for name in ["ca", "relay"] {
        assert!(run_in(&directory, &["--client", name], None, now_s()).is_err(), "{name}");
    }
}

#[test]
fn client_names_are_of_four_kinds() {
    use x509_parser::extensions::GeneralName;
    let (directory, _) = made(&[], None, now_s());
    let kind = |name: &str, stem: &str| {
        run_in(&directory, &["--client", name], None, now_s()).expect(name);
        assert_eq!(handshake(&directory, "localhost", Some(stem)), Ok(()), "{name}");
        let text = read(&file(&directory, &format!("{stem}.pem"))).expect("file");
        let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).expect("PEM");
        let certificate = pem.parse_x509().expect("certificate");
        let names = certificate.subject_alternative_name().expect("names").expect("names");
        match names.value.general_names.as_slice() {
            [GeneralName::DNSName(text)] => format!("DNS {text}"),
            [GeneralName::URI(text)] => format!("URI {text}"),
            [GeneralName::RFC822Name(text)] => format!("mail {text}"),
            [GeneralName::IPAddress(bytes)] => format!("address {bytes:?}"),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(kind("web-1", "web-1"), "DNS web-1");
    assert_eq!(
        kind("spiffe://example.net/web/1", "spiffe---example.net-web-1"),
        "URI spiffe://example.net/web/1"
    );
    assert_eq!(kind("anna@example.net", "anna@example.net"), "mail anna@example.net");
    assert_eq!(kind("192.0.2.7", "192.0.2.7"), "address [192, 0, 2, 7]");
    for wrong in ["", "a b", "-a", "a..b", "../x", "@x", "ä", "1.2.3"] {
        let args = format!("--client={wrong}");
        let error = run_in(&directory, &[&args], None, now_s()).expect_err(wrong);
        assert!(error.contains("not a name for a certificate"), "{error}");
    }
}

#[test]
fn hosts_are_checked_and_a_strange_own_name_is_left_out() {
    let directory = tempfile::tempdir().expect("directory");
    for wrong in ["a b", "https://a", "a:9440", "1.2.3", "x_.-"] {
        let error = run_in(&directory, &["--host", wrong], None, now_s()).expect_err(wrong);
        assert!(error.contains("not a DNS name or an IP address"), "{error}");
    }
    let text = run_in(&directory, &["--host", "2001:db8::1"], Some("my box"), now_s()).expect("made");
    assert!(text.contains("for 2001:db8::1, localhost, 127.0.0.1, ::1.\n"), "{text}");
    assert!(text.contains("wss://[2001:db8::1]:9440"), "{text}");
}
