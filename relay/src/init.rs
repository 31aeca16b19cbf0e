//! `relay init`: a directory with all that a relay needs to be reached safely, and later its new
//! certificates.
//!
//! ```text
//! ca.pem        ca-key.pem       the private authority; clients trust ca.pem
//! relay.pem     relay-key.pem    the relay's certificate
//! tokens.toml                    who may come in: one entry for each of the tokens
//! sniffer.token viewer.token admin.token
//! ```
//!
//! Nothing that is there is overwritten, but for `relay.pem` by `--renew`.

#[cfg(test)]
mod tests;

use std::fs::DirBuilder;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use thiserror::Error;
use wire::access::{self, Access, AccessError, Entry, Role, TokenError};
use wire::clock::wall_ns;

use crate::authority::{Authority, AuthorityError, CA_DAYS, LEAF_DAYS, Made, Purpose, hosts_of, is_dns_name};
use crate::private_file::{self, FileError};
use crate::shell::quoted;
use crate::token_command::write_token;
use crate::{fail, print};

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const RELAY: &str = "relay.pem";
const RELAY_KEY: &str = "relay-key.pem";
const TOKENS: &str = "tokens.toml";
/// The first tokens: file, entry, role.
const FIRST: [(&str, &str, Role); 3] = [
    ("sniffer.token", "sniffers", Role::Publish),
    ("viewer.token", "viewers", Role::Subscribe),
    ("admin.token", "admin", Role::Admin),
];

/// What is made.
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// Directory for the files; it is made if it is not there.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// DNS name or IP address by which others reach the relay; may be given several times. This
    /// host's own name, localhost, 127.0.0.1 and ::1 are always in the certificate.
    #[arg(long, value_name = "HOST", conflicts_with = "client")]
    pub host: Vec<String>,
    /// Make a new relay.pem for the same key and hosts, for 397 days from now; nothing else changes.
    #[arg(long, conflicts_with = "client")]
    pub renew: bool,
    /// Make a client certificate for this name instead: a DNS name, an IP address, an e-mail address
    /// or a URI.
    #[arg(long, value_name = "NAME")]
    pub client: Option<String>,
}

/// Why nothing was made.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum InitError {
    #[error(
        "{} is there already and stays as it is; choose another directory or another name, or --renew \
         for a new certificate of the relay", path.display()
    )]
    There { path: PathBuf },
    #[error("--host {host:?}: not a DNS name or an IP address")]
    Host { host: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Access(#[from] AccessError),
}

/// Makes it, and shows what to do with it on standard output.
pub fn run(args: &InitArgs) -> ExitCode {
    let own = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let now_s = wall_ns() / 1_000_000_000;
    match init(args, own.as_deref(), now_s) {
        Ok(text) => print(&text),
        Err(error @ InitError::Host { .. }) => fail(2, &error.to_string()),
        Err(error @ InitError::Authority(AuthorityError::Name { .. })) => {
            fail(2, &format!("--client {error}"))
        }
        Err(error) => fail(1, &error.to_string()),
    }
}

/// Makes what is asked for; `own` is this host's name. Returns what to do with it.
pub fn init(args: &InitArgs, own: Option<&str>, now_s: u64) -> Result<String, InitError> {
    for host in &args.host {
        if host.parse::<IpAddr>().is_err() && !is_dns_name(host) {
            return Err(InitError::Host { host: host.clone() });
        }
    }
    let directory = args.directory.as_path();
    match (&args.client, args.renew) {
        (Some(name), _) => client(directory, name, now_s),
        (None, true) => renew(directory, &args.host, now_s),
        (None, false) => first(directory, &args.host, own, now_s),
    }
}

fn first(directory: &Path, given: &[String], own: Option<&str>, now_s: u64) -> Result<String, InitError> {
    let own = own.filter(|own| is_dns_name(own) && *own != "localhost");
    let mut hosts = given.to_vec();
    hosts.extend(own.map(str::to_owned));
    hosts.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let hosts = once_each(hosts);
    let name = own.or(hosts.first().map(String::as_str)).unwrap_or_default();

    let (authority, ca) = Authority::make(name, now_s)?;
    let relay = authority.issue(Purpose::Server, &hosts, now_s)?;
    let mut access = Access::default();
    let mut tokens = Vec::new();
    for (file, name, role) in FIRST {
        let (token, credential) = access::new_token()?;
        let all = |wanted: bool| if wanted { vec!["*".to_owned()] } else { Vec::new() };
        access.add(Entry {
            name: name.to_owned(),
            role,
            publish: all(role != Role::Subscribe),
            see: all(role != Role::Publish),
            expires_s: None,
            credential,
        })?;
        tokens.push((file, token));
    }

    let at = |source| FileError { path: directory.to_owned(), source };
    if !directory.is_dir() {
        DirBuilder::new().mode(0o700).create(directory).map_err(at)?;
    }
    let names = [CA, CA_KEY, RELAY, RELAY_KEY, TOKENS].into_iter().chain(FIRST.map(|(file, ..)| file));
    absent(directory, names)?;
    let mut made = MadeFiles { directory, paths: Vec::new() };
    made.add(CA, |path| private_file::create(path, 0o644, ca.certificate.as_bytes()))?;
    made.add(CA_KEY, |path| private_file::create(path, 0o600, ca.key.as_bytes()))?;
    made.pair(RELAY, RELAY_KEY, &relay)?;
    made.add(TOKENS, |path| private_file::create(path, 0o600, access.to_text().as_bytes()))?;
    for (file, token) in &tokens {
        made.add(file, |path| write_token(path, token))?;
    }
    made.paths.clear();
    Ok(first_advice(directory, &hosts))
}

fn renew(directory: &Path, given: &[String], now_s: u64) -> Result<String, InitError> {
    let authority = authority(directory, now_s)?;
    let (path, key_path) = (directory.join(RELAY), directory.join(RELAY_KEY));
    let mut hosts = hosts_of(&read(&path)?, &shown(&path))?;
    hosts.extend(given.iter().cloned());
    let hosts = once_each(hosts);
    let key = read(&key_path)?;
    let made = authority.reissue((&key, &shown(&key_path)), Purpose::Server, &hosts, now_s)?;
    private_file::replace(&path, 0o644, made.certificate.as_bytes())?;
    Ok(format!(
        "{}: good for {LEAF_DAYS} days, for {}\n\
         A relay that runs takes it when it reads its files again: pkill -HUP -x relay, or systemctl reload; what\n\
         systemd hands over as a credential it has anew after systemctl restart.\n",
        path.display(),
        hosts.join(", ")
    ))
}

fn client(directory: &Path, name: &str, now_s: u64) -> Result<String, InitError> {
    let made = authority(directory, now_s)?.issue(Purpose::Client, &[name.to_owned()], now_s)?;
    let file_of = |one: char| if one.is_ascii_alphanumeric() || "._-@".contains(one) { one } else { '-' };
    let stem: String = name.chars().map(file_of).collect();
    let stem = stem.trim_start_matches(['.', '-']);
    let (certificate, key) = (format!("{stem}.pem"), format!("{stem}-key.pem"));
    absent(directory, [certificate.as_str(), key.as_str()].into_iter())?;
    let mut files = MadeFiles { directory, paths: Vec::new() };
    files.pair(&certificate, &key, &made)?;
    files.paths.clear();
    let word = quoted(Path::new(name));
    let path = |file: &str| quoted(&directory.join(file));
    Ok(format!(
        "{}: a client certificate of {name}, good for {LEAF_DAYS} days, and its key {}\n\n\
         The relay takes it when it runs with --client-ca {}. Let it in, to publish or to see:\n    \
         relay token add {word} --certificate {word} --role publish --tokens {tokens}\n    \
         relay token add {word} --certificate {word} --role subscribe --tokens {tokens}\n\n\
         Copy both files and {} to its host, and use them there with\n    \
         --relay wss://HOST:9440 --ca {CA} --cert {certificate} --key {key}\n",
        directory.join(&certificate).display(),
        directory.join(&key).display(),
        path(CA),
        path(CA),
        tokens = path(TOKENS),
    ))
}

fn first_advice(directory: &Path, hosts: &[String]) -> String {
    let path = |file: &str| quoted(&directory.join(file));
    let host = match hosts.first() {
        Some(host) if host.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{host}]"),
        Some(host) => host.clone(),
        None => "localhost".to_owned(),
    };
    format!(
        "{}: a private authority ({} years), a certificate of the relay ({LEAF_DAYS} days) and three tokens\n\
         The certificate is for {}.\n\n\
         Start the relay here:\n    \
         relay --listen 0.0.0.0:9440 --cert {} --key {} --tokens {}\n\n\
         Copy {} and {} to the capture host, and there:\n    \
         sniffer -i any --relay wss://{host}:9440 --ca {CA} --token-file sniffer.token\n\n\
         Copy {} and {} to the desk, and there:\n    \
         viewer --relay wss://{host}:9440 --ca {CA} --token-file viewer.token | wireshark -k -i -\n\n\
         One token for each sniffer, so that one can be revoked alone and none can take another's name:\n    \
         relay token add web-1 --role publish --tokens {} --out web-1.token\n\n\
         A new certificate before this one ends: relay init {} --renew\n\
         {} signs certificates and is needed for nothing else: it may be kept elsewhere.\n",
        directory.display(),
        CA_DAYS / 365,
        hosts.join(", "),
        path(RELAY),
        path(RELAY_KEY),
        path(TOKENS),
        path(CA),
        path("sniffer.token"),
        path(CA),
        path("viewer.token"),
        path(TOKENS),
        quoted(directory),
        path(CA_KEY),
    )
}

/// Files that are removed again unless all of them could be made.
struct MadeFiles<'a> {
    directory: &'a Path,
    paths: Vec<PathBuf>,
}

impl MadeFiles<'_> {
    fn add(
        &mut self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let path = self.directory.join(name);
        make(&path)?;
        self.paths.push(path);
        Ok(())
    }

    fn pair(&mut self, certificate: &str, key: &str, made: &Made) -> Result<(), FileError> {
        self.add(certificate, |path| private_file::create(path, 0o644, made.certificate.as_bytes()))?;
        self.add(key, |path| private_file::create(path, 0o600, made.key.as_bytes()))
    }
}

impl Drop for MadeFiles<'_> {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn absent<'a>(directory: &Path, mut names: impl Iterator<Item = &'a str>) -> Result<(), InitError> {
    match names.find_map(|name| Some(directory.join(name)).filter(|path| path.symlink_metadata().is_ok())) {
        Some(path) => Err(InitError::There { path }),
        None => Ok(()),
    }
}

fn authority(directory: &Path, now_s: u64) -> Result<Authority, InitError> {
    let (path, key_path) = (directory.join(CA), directory.join(CA_KEY));
    let (certificate, key) = (read(&path)?, read(&key_path)?);
    Ok(Authority::load(&certificate, &key, [&shown(&path), &shown(&key_path)], now_s)?)
}

/// The hosts in lower case and in order, each one time.
fn once_each(hosts: Vec<String>) -> Vec<String> {
    let mut once: Vec<String> = Vec::new();
    for host in hosts {
        let host = host.parse::<IpAddr>().map_or(host.to_ascii_lowercase(), |address| address.to_string());
        if !once.contains(&host) {
            once.push(host);
        }
    }
    once
}

fn read(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|source| FileError { path: path.to_owned(), source })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
