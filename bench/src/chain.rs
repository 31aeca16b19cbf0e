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
    /// The same with two workers of the relay.
    TwoWorkers,
    /// The sniffer alone: it sends to a relay without a viewer, which is its sink.
    Alone,
    /// The least that does what the whole chain does: three blocking loops.
    Floor,
    /// A bare loop: ring, gather, LZ4.
    Bare,
    /// The same, gathering packets as the sniffer does: as blocks of pcapng.
    BareBlocks,
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
    pub const ALL: [Kind; 10] = [
        Kind::Ringcast,
        Kind::TwoWorkers,
        Kind::Floor,
        Kind::Alone,
        Kind::Bare,
        Kind::BareBlocks,
        Kind::Tcpdump,
        Kind::TcpdumpLz4,
        Kind::Dumpcap,
        Kind::NetsniffNg,
    ];
    /// Ours, and what people use.
    pub const PEERS: [Kind; 5] =
        [Kind::Ringcast, Kind::Tcpdump, Kind::TcpdumpLz4, Kind::Dumpcap, Kind::NetsniffNg];
    /// The sniffer, and its floors.
    pub const ALONE: [Kind; 4] = [Kind::Alone, Kind::Bare, Kind::BareBlocks, Kind::Dumpcap];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ringcast => "ringcast",
            Kind::TwoWorkers => "ringcast, 2 workers",
            Kind::Alone => "sniffer alone",
            Kind::Floor => "floor of the chain",
            Kind::Bare => "bare loop",
            Kind::BareBlocks => "bare loop, pcapng blocks",
            Kind::Tcpdump => "tcpdump | socat (A)",
            Kind::TcpdumpLz4 => "tcpdump | lz4 | socat",
            Kind::Dumpcap => "dumpcap, capture only",
            Kind::NetsniffNg => "netsniff-ng, capture only",
        }
    }

    /// Whether packets come out at its end.
    pub fn delivers(self) -> bool {
        matches!(self, Kind::Ringcast | Kind::TwoWorkers | Kind::Floor | Kind::Tcpdump | Kind::TcpdumpLz4)
    }

    /// What else it is compared with than A, in the same round.
    pub fn beside(self) -> &'static [Kind] {
        match self {
            Kind::Ringcast => &[Kind::Floor],
            Kind::TwoWorkers => &[Kind::Ringcast],
            Kind::Alone => &[Kind::Bare, Kind::BareBlocks, Kind::Dumpcap],
            _ => &[],
        }
    }
}

/// The relay, where it only takes what the sniffer sends.
const RELAY_SINK: &str = "relay, sink";

/// Whether a program is a sink: shown apart, not part of the chain that is measured.
pub fn is_sink(program: &str) -> bool {
    program == "count" || program == RELAY_SINK
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
    /// When our relay has a stream.
    Listed,
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
    /// More arguments of what forwards in the floor of the chain.
    pub floor: Vec<String>,
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
        Kind::Ringcast | Kind::TwoWorkers | Kind::Alone => {
            let name = if kind == Kind::Alone { RELAY_SINK } else { "relay" };
            let mut relay = part(name, our("relay"), false, Ready::Says("listening on"));
            relay.command.extend(words(&format!("--listen {RELAY}")));
            if let Some(keys) = &options.keys {
                relay.command.extend(words(&format!(
                    "--cert {keys}/relay.pem --key {keys}/relay-key.pem --tokens {keys}/tokens.toml"
                )));
            }
            match kind {
                Kind::TwoWorkers => relay.command.extend(words("--workers 2")),
                // A sink keeps nothing: it would only fill memory that was never touched.
                Kind::Alone => relay.command.extend(words("--recent 1MiB")),
                _ => {}
            }
            relay.command.extend(options.relay.clone());
            let mut viewer = part("viewer", our("viewer"), false, Ready::Now);
            viewer.command.extend(options.to_relay("viewer"));
            viewer.command.push("--until-end".to_owned());
            viewer.command.extend(options.viewer.clone());
            let ready = if kind == Kind::Alone { Ready::Listed } else { Ready::Watched };
            let mut sniffer = part("sniffer", our("sniffer"), false, ready);
            sniffer.command.extend(words(&format!("-i {INTERFACE} --name bench")));
            sniffer.command.extend(options.to_relay("sniffer"));
            if !filter.is_empty() {
                sniffer.command.extend(["-f".to_owned(), filter.clone()]);
            }
            sniffer.command.extend(options.sniffer.clone());
            if kind == Kind::Alone { vec![relay, sniffer] } else { vec![relay, viewer, count, sniffer] }
        }
        Kind::Floor => {
            let floor = our("floor");
            let forward = format!("{floor} forward {}", options.floor.join(" "));
            vec![
                part("floor forward", forward, false, Ready::Listens(9000)),
                part("floor show", format!("{floor} show --to {SOCAT}"), false, Ready::Says("connected")),
                count,
                part(
                    "floor capture",
                    format!("{floor} capture --interface {INTERFACE} --to {SOCAT}"),
                    false,
                    Ready::Captures,
                ),
            ]
        }
        Kind::Bare => {
            let command = format!("{} --interface {INTERFACE}", our("bare"));
            vec![part("bare", command, false, Ready::Captures)]
        }
        Kind::BareBlocks => {
            let command = format!("{} --interface {INTERFACE} --blocks", our("bare"));
            vec![part("bare", command, false, Ready::Captures)]
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
        Kind::Ringcast | Kind::TwoWorkers | Kind::Alone => "sniffer",
        Kind::Floor => "floor capture",
        Kind::Bare | Kind::BareBlocks => "bare",
        Kind::Tcpdump | Kind::TcpdumpLz4 => "tcpdump",
        Kind::Dumpcap => "dumpcap",
        Kind::NetsniffNg => "netsniff-ng",
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
