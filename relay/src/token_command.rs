//! `relay token`: adds, lists and revokes entries of the access file.

#[cfg(test)]
mod tests;

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use thiserror::Error;
use wire::access::{self, Access, AccessError, Credential, Entry, Role, TokenError};
use wire::clock::wall_ns;
use wire::globs;
use wire::secret::Secret;

use crate::private_file::{self, FileError};
use crate::shell::quoted;
use crate::{fail, print};

/// What is done with the entries.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenAction {
    /// Let somebody in: make a token, which is shown this one time, or name a client certificate.
    ///
    /// The token alone goes to standard output, everything else to standard error:
    /// relay token add web-1 --role publish --tokens tokens.toml > web-1.token
    Add(AddArgs),
    /// Show who may come in. There are no tokens in the file.
    List {
        /// The access file.
        #[arg(long, value_name = "FILE")]
        tokens: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove an entry, so that its token or certificate opens nothing any more.
    Revoke {
        /// The entry.
        #[arg(value_name = "NAME")]
        name: String,
        /// The access file.
        #[arg(long, value_name = "FILE")]
        tokens: PathBuf,
    },
}

/// Who is let in.
#[derive(Clone, Debug, Args)]
pub struct AddArgs {
    /// Name of the entry, for people and for the log.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What it may be.
    #[arg(long, value_name = "ROLE")]
    pub role: RoleArg,
    /// Sniffer names it may publish as; may be given several times. Default for publish: exactly
    /// NAME; for admin: all.
    #[arg(long, value_name = "GLOB")]
    pub publish: Vec<String>,
    /// Sniffer names it may see; may be given several times. Default for subscribe and admin: all.
    #[arg(long, value_name = "GLOB")]
    pub see: Vec<String>,
    /// When it ends: a time from now, as 90d or 12h, or a date, as 2027-03-01T00:00:00Z. Default: never.
    #[arg(long, value_name = "TIME", value_parser = parse_expiry)]
    pub expires: Option<Expiry>,
    /// Instead of a token: a subject alternative name of its client certificate.
    #[arg(long, value_name = "NAME", conflicts_with = "out")]
    pub certificate: Option<String>,
    /// The access file; it is made if it is not there.
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
    /// Write the token into this new file, with mode 0600, instead of to standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// A role as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// A sniffer.
    Publish,
    /// A viewer.
    Subscribe,
    /// Both.
    Admin,
}

/// When an entry ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// So long from now.
    After(Duration),
    /// At this second since 1970.
    At(u64),
}

fn parse_expiry(text: &str) -> Result<Expiry, String> {
    if let Ok(time) = wire::units::parse_time(text) {
        return Ok(Expiry::After(time));
    }
    let form = |_| "write a time from now, as 90d or 12h, or a date, as 2027-03-01T00:00:00Z".to_owned();
    access::parse_time(text).map(Expiry::At).map_err(form)
}

/// Why a command did nothing.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum TokenCommandError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: {source}", path.display())]
    Access { path: PathBuf, source: AccessError },
    #[error("--expires: it would be over already")]
    Past,
    #[error("{}: no entry {name:?}; relay token list shows those there are", path.display())]
    NoEntry { path: PathBuf, name: String },
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Does it.
pub fn run(action: &TokenAction) -> ExitCode {
    let now_s = wall_ns() / 1_000_000_000;
    let done = match action {
        TokenAction::Add(args) => add(args, now_s).map(|added| show(&args.name, &added)),
        TokenAction::List { tokens, json } => list(tokens, *json, now_s).map(|text| print(&text)),
        TokenAction::Revoke { name, tokens } => revoke(name, tokens).map(|text| {
            eprint!("{text}");
            ExitCode::SUCCESS
        }),
    };
    done.unwrap_or_else(|error| fail(if error.is_usage() { 2 } else { 1 }, &error.to_string()))
}

impl TokenCommandError {
    fn is_usage(&self) -> bool {
        match self {
            Self::Access { source, .. } => matches!(source, AccessError::Entry { .. }),
            Self::Past => true,
            _ => false,
        }
    }
}

/// A new entry.
#[derive(Debug)]
pub struct Added {
    /// The token for standard output, if it did not go into a file.
    pub secret: Option<Secret>,
    /// What to do now.
    pub advice: String,
}

/// Adds an entry to the access file.
pub fn add(args: &AddArgs, now_s: u64) -> Result<Added, TokenCommandError> {
    let (secret, credential) = match &args.certificate {
        Some(name) => (None, Credential::Certificate { name: name.clone() }),
        None => {
            let (secret, credential) = access::new_token()?;
            (Some(secret), credential)
        }
    };
    let entry = entry(args, credential, now_s)?;
    let lock = private_file::lock_beside(&args.tokens)?;
    let text = match read(&args.tokens) {
        Err(error) if error.source.kind() == ErrorKind::NotFound => String::new(),
        text => text?,
    };
    let in_file = |source| TokenCommandError::Access { path: args.tokens.clone(), source };
    let text = access::with_entry(&text, entry.clone()).map_err(in_file)?;
    // First the file that must not be there yet.
    let out = args.out.as_deref().zip(secret.as_ref());
    if let Some((path, secret)) = out {
        write_token(path, secret)?;
    }
    private_file::replace(&args.tokens, 0o600, text.as_bytes()).inspect_err(|_| {
        if let Some((path, _)) = out {
            let _ = std::fs::remove_file(path); // a token that opens nothing
        }
    })?;
    drop(lock);
    Ok(Added { advice: advice(args, &entry), secret: secret.filter(|_| args.out.is_none()) })
}

/// Writes a token into a new file of mode 0600.
pub fn write_token(path: &Path, secret: &Secret) -> Result<(), FileError> {
    // In two pieces, so that no copy of it is left behind in memory.
    private_file::create_of(path, 0o600, &[secret.expose().as_bytes(), b"\n"])
}

fn entry(args: &AddArgs, credential: Credential, now_s: u64) -> Result<Entry, TokenCommandError> {
    let role = match args.role {
        RoleArg::Publish => Role::Publish,
        RoleArg::Subscribe => Role::Subscribe,
        RoleArg::Admin => Role::Admin,
    };
    let or = |list: &[String], default: Option<String>| match list {
        [] => default.into_iter().collect(),
        list => list.to_vec(),
    };
    let expires_s = args.expires.map(|expires| match expires {
        Expiry::After(time) => now_s.saturating_add(time.as_secs()),
        Expiry::At(time_s) => time_s,
    });
    if expires_s.is_some_and(|expires_s| expires_s <= now_s) {
        return Err(TokenCommandError::Past);
    }
    Ok(Entry {
        name: args.name.clone(),
        role,
        publish: or(&args.publish, (role == Role::Publish).then(|| globs::exactly(&args.name))),
        see: or(&args.see, (role == Role::Subscribe).then(|| "*".to_owned())),
        expires_s,
        credential,
    })
}

fn advice(args: &AddArgs, entry: &Entry) -> String {
    let mut text =
        format!("{}: entry {:?} added, role {}", args.tokens.display(), entry.name, entry.role.text());
    if let Some(expires_s) = entry.expires_s {
        text += &format!(", until {}", access::format_time(expires_s));
    }
    let file = match (&args.certificate, &args.out) {
        (Some(_), _) => "--cert CERT.pem --key KEY.pem".to_owned(),
        (None, Some(path)) => format!("--token-file {}", quoted(path)),
        (None, None) => "--token-file FILE".to_owned(),
    };
    if args.certificate.is_none() && args.out.is_none() {
        text += "\nThe token on standard output is shown this one time: keep it in a FILE of mode 0600.";
    }
    text += "\nUse it with\n";
    if args.role != RoleArg::Subscribe {
        let name = match args.publish.as_slice() {
            [] if args.role == RoleArg::Publish => format!("--name {} ", quoted(Path::new(&args.name))),
            _ => String::new(),
        };
        text += &format!("    sniffer -i IFACE {name}--relay wss://HOST:9440 --ca ca.pem {file}\n");
    }
    if args.role != RoleArg::Publish {
        text += &format!("    viewer --relay wss://HOST:9440 --ca ca.pem {file} -w FILE.pcapng\n");
    }
    text + &reload("A relay that runs lets it in")
}

/// How a running relay hears of it.
fn reload(what: &str) -> String {
    format!("{what} when it has read the file again: pkill -HUP -x relay, or systemctl reload.\n")
}

fn show(name: &str, added: &Added) -> ExitCode {
    if let Some(secret) = &added.secret {
        let mut out = std::io::stdout().lock();
        let pieces = [secret.expose().as_bytes(), b"\n"];
        let written = pieces.iter().try_for_each(|piece| out.write_all(piece)).and_then(|()| out.flush());
        if let Err(error) = written {
            return fail(
                1,
                &format!("standard output: {error}; nobody has the token of {name:?}: revoke it"),
            );
        }
    }
    eprint!("{}", added.advice);
    ExitCode::SUCCESS
}

/// The entries as a table, or as JSON.
pub fn list(path: &Path, as_json: bool, now_s: u64) -> Result<String, TokenCommandError> {
    let access = Access::parse(&read(path)?)
        .map_err(|source| TokenCommandError::Access { path: path.to_owned(), source })?;
    let is_over = |entry: &Entry| entry.expires_s.is_some_and(|expires_s| expires_s <= now_s);
    if as_json {
        let objects: Vec<_> = access.entries().iter().map(|entry| json_of(entry, is_over(entry))).collect();
        return Ok(format!("{:#}\n", serde_json::Value::from(objects)));
    }
    let mut rows =
        vec![["name", "role", "publish", "see", "expires", "token or certificate"].map(str::to_owned)];
    for entry in access.entries() {
        let globs = |list: &[String]| match list {
            [] => "-".to_owned(),
            list => list.join(" ").escape_debug().to_string(),
        };
        let end = if is_over(entry) { " EXPIRED" } else { "" };
        let expires = entry.expires_s.map_or("never".to_owned(), access::format_time) + end;
        let credential = match &entry.credential {
            Credential::Token { id, .. } => format!("rct_{id}_..."),
            Credential::Certificate { name } => name.clone(),
        };
        let role = entry.role.text().to_owned();
        rows.push([entry.name.clone(), role, globs(&entry.publish), globs(&entry.see), expires, credential]);
    }
    let mut widths = [0; 6];
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = cell.chars().count().max(*width));
    }
    let line = |row: &[String; 6]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    Ok(rows.iter().map(line).collect())
}

fn json_of(entry: &Entry, is_over: bool) -> serde_json::Value {
    let (token_id, certificate) = match &entry.credential {
        Credential::Token { id, .. } => (Some(id), None),
        Credential::Certificate { name } => (None, Some(name)),
    };
    json!({
        "name": entry.name,
        "role": entry.role.text(),
        "publish": entry.publish,
        "see": entry.see,
        "expires": entry.expires_s.map(access::format_time),
        "expired": is_over,
        "token_id": token_id,
        "certificate": certificate,
    })
}

/// Removes an entry from the access file, and says how it takes effect.
pub fn revoke(name: &str, path: &Path) -> Result<String, TokenCommandError> {
    let lock = private_file::lock_beside(path)?;
    let rest = access::without_entry(&read(path)?, name)
        .map_err(|source| TokenCommandError::Access { path: path.to_owned(), source })?;
    let (text, _) =
        rest.ok_or_else(|| TokenCommandError::NoEntry { path: path.to_owned(), name: name.to_owned() })?;
    private_file::replace(path, 0o600, text.as_bytes())?;
    drop(lock);
    let what = "A relay that runs closes its connections and refuses it";
    Ok(format!("{}: entry {name:?} removed\n{}", path.display(), reload(what)))
}

fn read(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|source| FileError { path: path.to_owned(), source })
}
