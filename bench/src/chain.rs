//! The chains that are measured: Ringcast's own, and what people use today.

use std::path::Path;

use crate::testbed::INTERFACE;

/// Where our relay listens, in the namespace of the capture.
const RELAY: &str = "127.0.0.1:9440";
/// Where socat listens.
const SOCAT: &str = "127.0.0.1:9000";

/// A chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// sniffer, relay, viewer.
    Ringcast,
    /// `tcpdump | socat`, `socat`: what the others are compared with.
    Tcpdump,
    /// The same with lz4 in the pipes.
    TcpdumpLz4,
    /// dumpcap, which captures and throws away.
    Dumpcap,
    /// netsniff-ng, which captures and throws away.
    NetsniffNg,
}

impl Kind {
    /// All of them, ours first.
    pub const ALL: [Kind; 5] =
        [Kind::Ringcast, Kind::Tcpdump, Kind::TcpdumpLz4, Kind::Dumpcap, Kind::NetsniffNg];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ringcast => "ringcast",
            Kind::Tcpdump => "tcpdump | socat (A)",
            Kind::TcpdumpLz4 => "tcpdump | lz4 | socat",
            Kind::Dumpcap => "dumpcap, capture only",
            Kind::NetsniffNg => "netsniff-ng, capture only",
        }
    }

    /// Whether packets come out at its end.
    pub fn delivers(self) -> bool {
        !matches!(self, Kind::Dumpcap | Kind::NetsniffNg)
    }
}

/// When a part is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// At once.
    Now,
    /// When it has said this.
    Says(&'static str),
    /// When somebody listens on this TCP port.
    Listens(u16),
    /// When it has a packet socket.
    Captures,
    /// When our relay has a stream with a viewer.
    Watched,
}

/// A program of a chain.
#[derive(Clone, Debug)]
pub struct Part {
    /// Name in reports.
    pub name: &'static str,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its standard input is the standard output of the part before.
    pub is_piped: bool,
    /// When the next may start.
    pub ready: Ready,
}

/// How our programs are started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Filter of the capture; none if empty.
    pub filter: String,
    /// TLS and tokens between the programs, from a directory that `relay init` made.
    pub keys: Option<String>,
    /// More arguments of the sniffer.
    pub sniffer: Vec<String>,
    /// More arguments of the relay.
    pub relay: Vec<String>,
    /// More arguments of the viewer.
    pub viewer: Vec<String>,
}

impl Options {
    /// `--relay` and what belongs to it, for `viewer` or `sniffer`.
    pub fn to_relay(&self, role: &str) -> Vec<String> {
        match &self.keys {
            None => words(&format!("--relay ws://{RELAY}")),
            Some(keys) => {
                words(&format!("--relay wss://{RELAY} --ca {keys}/ca.pem --token-file {keys}/{role}.token"))
            }
        }
    }
}

/// The programs of a chain, in the order they are started. `programs`: the directory of ours.
pub fn parts(kind: Kind, programs: &Path, options: &Options) -> Vec<Part> {
    let our = |name: &str| programs.join(name).to_string_lossy().into_owned();
    let part =
        |name, command: String, is_piped, ready| Part { name, command: words(&command), is_piped, ready };
    let count = part("count", our("count"), true, Ready::Now);
    let filter = &options.filter;
    let tcpdump = part(
        "tcpdump",
        format!("tcpdump -i {INTERFACE} -w - -B 65536 {filter}"),
        false,
        Ready::Says("listening on"),
    );
    let socat_out = format!("socat -b 1048576 -u - TCP:{SOCAT}");
    let socat_in =
        part("socat in", "socat -b 1048576 -u TCP-LISTEN:9000 -".to_owned(), false, Ready::Listens(9000));
    match kind {
        Kind::Ringcast => {
            let mut relay = part("relay", our("relay"), false, Ready::Says("listening on"));
            relay.command.extend(words(&format!("--listen {RELAY}")));
            if let Some(keys) = &options.keys {
                relay.command.extend(words(&format!(
                    "--cert {keys}/relay.pem --key {keys}/relay-key.pem --tokens {keys}/tokens.toml"
                )));
            }
            relay.command.extend(options.relay.clone());
            let mut viewer = part("viewer", our("viewer"), false, Ready::Now);
            viewer.command.extend(options.to_relay("viewer"));
            viewer.command.push("--until-end".to_owned());
            viewer.command.extend(options.viewer.clone());
            let mut sniffer = part("sniffer", our("sniffer"), false, Ready::Watched);
            sniffer.command.extend(words(&format!("-i {INTERFACE} --name bench")));
            sniffer.command.extend(options.to_relay("sniffer"));
            if !filter.is_empty() {
                sniffer.command.extend(["-f".to_owned(), filter.clone()]);
            }
            sniffer.command.extend(options.sniffer.clone());
            vec![relay, viewer, count, sniffer]
        }
        Kind::Tcpdump => vec![socat_in, count, tcpdump, part("socat out", socat_out, true, Ready::Now)],
        Kind::TcpdumpLz4 => vec![
            socat_in,
            part("lz4 -dc", "lz4 -dc".to_owned(), true, Ready::Now),
            count,
            tcpdump,
            part("lz4", "lz4 -1 -c".to_owned(), true, Ready::Now),
            part("socat out", socat_out, true, Ready::Now),
        ],
        Kind::Dumpcap => {
            let filter = if filter.is_empty() { String::new() } else { format!("-f {filter}") };
            let command = format!("dumpcap -q -i {INTERFACE} -w /dev/null -B 64 {filter}");
            vec![part("dumpcap", command, false, Ready::Says("File: "))]
        }
        Kind::NetsniffNg => {
            let filter = if filter.is_empty() { String::new() } else { format!("-f {filter}") };
            // Its default would move interrupts of network cards and change the system's buffer sizes.
            let command = format!("netsniff-ng --in {INTERFACE} --out /dev/null -s -Q -A -S 64MiB {filter}");
            vec![part("netsniff-ng", command, false, Ready::Captures)]
        }
    }
}

/// The part that captures: it is ended first, and its end ends what reads from it.
pub fn capturing(kind: Kind) -> &'static str {
    match kind {
        Kind::Ringcast => "sniffer",
        Kind::Tcpdump | Kind::TcpdumpLz4 => "tcpdump",
        Kind::Dumpcap => "dumpcap",
        Kind::NetsniffNg => "netsniff-ng",
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
