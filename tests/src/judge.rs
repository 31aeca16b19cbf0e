//! What came out against what went in, packet for packet, as tshark tells both.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Stands between the comments of one packet.
const AGGREGATOR: &str = "|";
const FIELDS: [&str; 12] = [
    "frame.encap_type",
    "frame.section_number",
    "frame.interface_id",
    "frame.interface_name",
    "frame.time_epoch",
    "frame.cap_len",
    "frame.len",
    "frame.md5_hash",
    "frame.comment",
    "frame.packet_flags",
    "frame.drop_count",
    "frame.packet_id",
];

/// A packet as tshark tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Section and number of the interface; `None` in files that have none.
    pub interface: Option<(u32, u32)>,
    /// Name of the interface.
    pub interface_name: String,
    /// Time since 1970 as text, with nine digits behind the point.
    pub time: String,
    /// All that must stay: encapsulation, lengths, MD5 of the bytes, comments, flags, drops, id.
    pub facts: Vec<String>,
}

/// A file as tshark tells it.
#[derive(Clone, Debug, Default)]
pub struct TsharkFile {
    /// Its packets.
    pub packets: Vec<Told>,
    /// What tshark complained of; empty when it was content.
    pub complaint: String,
}

/// Reads a file with tshark, through a pipe: there it does not guess at records of Red Hat 6.1.
pub fn ask_tshark(path: &Path, home: &Path) -> TsharkFile {
    let mut command = Command::new("tshark");
    command.env("HOME", home).env("XDG_CONFIG_HOME", home);
    command.args(["-n", "-o", "frame.generate_md5_hash:TRUE", "-T", "fields"]);
    command.args(["-E", "occurrence=a", "-E", &format!("aggregator={AGGREGATOR}")]);
    command.args(FIELDS.iter().flat_map(|field| ["-e", field])).args(["-r", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("tshark starts");
    let mut pipe = child.stdin.take().expect("piped");
    let bytes = fs::read(path).expect("the file can be read");
    let output = std::thread::scope(|scope| {
        // tshark may leave early; then the rest is not needed.
        scope.spawn(move || _ = pipe.write_all(&bytes));
        child.wait_with_output().expect("tshark ends")
    });
    let complaint: Vec<String> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| !line.starts_with("Running as user") && !line.is_empty())
        .map(str::to_owned)
        .collect();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut packets = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), FIELDS.len(), "{line:?} of {}", path.display());
        // What is not a packet (custom blocks) has no encapsulation.
        if fields[0].is_empty() {
            continue;
        }
        let mut facts = vec![fields[0].to_owned()];
        facts.extend(fields[5..].iter().map(|field| (*field).to_owned()));
        packets.push(Told {
            interface: fields[1].parse().ok().zip(fields[2].parse().ok()),
            interface_name: fields[3].to_owned(),
            time: fields[4].to_owned(),
            facts,
        });
    }
    TsharkFile { packets, complaint: complaint.join("; ") }
}

/// Compares the packets of a file with those that came out of a viewer as sniffer `name`. `file`
/// is the file's own name. Times are compared by `same_time`.
pub fn compare(
    name: &str,
    file: &str,
    sent: &[Told],
    came: &[&Told],
    same_time: impl Fn(&str, &str) -> bool,
) -> Result<(), String> {
    let mut interfaces: BTreeMap<Option<(u32, u32)>, &Told> = BTreeMap::new();
    for (index, (sent, came)) in sent.iter().zip(came).enumerate() {
        let number = index + 1;
        if sent.facts != came.facts {
            return Err(format!("packet {number}: sent {:?}, came {:?}", sent.facts, came.facts));
        }
        if !same_time(&sent.time, &came.time) {
            return Err(format!("packet {number}: sent at {:?}, came at {:?}", sent.time, came.time));
        }
        let expected = match sent.interface_name.as_str() {
            "" | "unknown" => format!("{name}:{file}"),
            other => format!("{name}:{other}"),
        };
        if came.interface_name != expected {
            return Err(format!("packet {number}: interface {:?}, not {expected:?}", came.interface_name));
        }
        let first = *interfaces.entry(sent.interface).or_insert(came);
        if first.interface != came.interface {
            let (was, is) = (first.interface, came.interface);
            return Err(format!("packet {number}: interface {:?} was {was:?}, is {is:?}", sent.interface));
        }
    }
    let mut places: Vec<_> = interfaces.values().map(|one| one.interface).collect();
    places.sort_unstable();
    places.dedup();
    if places.len() != interfaces.len() {
        return Err(format!("{} interfaces became {}", interfaces.len(), places.len()));
    }
    if sent.len() != came.len() {
        return Err(format!("{} packets sent, {} came", sent.len(), came.len()));
    }
    Ok(())
}
