//! `sniffer journal`: looks at a spool, or any other journal, also while it is written.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use wire::block::{Epoch, HEADER_BYTES_MAX, Kind, PackedBlock, StreamKey};
use wire::clock::{format_timestamp, parse_timestamp};
use wire::description::Description;
use wire::journal::inspect::{self, Blocks, Item};
use wire::pcapng::{Epbs, interface_description, section_header};
use wire::pool::Pool;
use wire::units::format_bytes;

use crate::fail;

/// What is done with a journal.
#[derive(Clone, Debug, Subcommand)]
pub enum JournalAction {
    /// Show its segments.
    List {
        /// Its directory.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Read everything and check every checksum; status 1 if something is damaged.
    Verify {
        /// Its directory.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Write its packets as pcapng.
    Dump {
        /// Its directory.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Write into FILE rather than to standard output ('-').
        #[arg(short = 'w', long = "write", value_name = "FILE", default_value = "-")]
        write: PathBuf,
        /// Only packets from this time on: `2026-11-24T10:00:00Z`, or ns since 1970.
        #[arg(long, value_name = "TIME", value_parser = parse_timestamp)]
        from: Option<u64>,
        /// Only packets before this time.
        #[arg(long, value_name = "TIME", value_parser = parse_timestamp)]
        until: Option<u64>,
    },
}

/// Does it.
pub fn run(action: &JournalAction) -> ExitCode {
    let (JournalAction::List { directory }
    | JournalAction::Verify { directory }
    | JournalAction::Dump { directory, .. }) = action;
    let done = match action {
        JournalAction::List { directory } => list(directory),
        JournalAction::Verify { directory } => verify(directory),
        JournalAction::Dump { directory, write, from, until } => {
            if from.zip(*until).is_some_and(|(from, until)| from >= until) {
                return fail(2, "--from is not before --until");
            }
            dump(directory, write, from.unwrap_or(0)..until.unwrap_or(u64::MAX))
        }
    };
    done.unwrap_or_else(|error| match error {
        // The reader has what it wanted.
        Failure::Output(_, error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Failure::Output(path, error) => fail(1, &format!("{}: {error}", path.display())),
        Failure::Journal(error) => fail(1, &format!("journal {}: {error}", directory.display())),
        Failure::Usage(text) => fail(2, &text),
    })
}

enum Failure {
    Journal(std::io::Error),
    Output(PathBuf, std::io::Error),
    Usage(String),
}

fn list(directory: &Path) -> Result<ExitCode, Failure> {
    let listing = inspect::list(directory).map_err(Failure::Journal)?;
    let mut text = format!(
        "{:<10} {:<7} {:>10} {:>9} {:>11} {:>7} {:<30} to\n",
        "segment", "state", "size", "blocks", "packets", "streams", "from"
    );
    let (mut bytes, mut blocks, mut packets) = (0, 0, 0);
    for one in &listing.segments {
        let state = match (&one.error, one.sealed) {
            (Some(_), _) => "damaged",
            (None, true) => "sealed",
            (None, false) => "open",
        };
        let (from, to) = match one.time_ns {
            Some((from, to)) => (format_timestamp(from), format_timestamp(to)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let size = format_bytes(one.file_bytes);
        text += &format!(
            "{:010} {state:<7} {size:>10} {:>9} {:>11} {:>7} {from:<30} {to}\n",
            one.number, one.blocks, one.packets, one.streams
        );
        bytes += one.file_bytes;
        blocks += one.blocks;
        packets += one.packets;
    }
    text += &format!(
        "{} segments, {}, {blocks} blocks, {packets} packets; acknowledged to {}, {} not acknowledged\n",
        listing.segments.len(),
        format_bytes(bytes),
        listing.acknowledged,
        format_bytes(listing.unacknowledged_bytes)
    );
    let evicted: u64 = listing.evictions.iter().map(|one| one.packets).sum();
    if !listing.evictions.is_empty() {
        text +=
            &format!("{evicted} packets of {} streams evicted and not told yet\n", listing.evictions.len());
    }
    let errors = listing.segments.iter().filter_map(|one| Some((one.number, one.error.as_ref()?)));
    for (number, error) in errors {
        text += &format!("segment {number:010}: {error}\n");
    }
    text.extend(listing.cursor_error.map(|error| error + "\n"));
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn verify(directory: &Path) -> Result<ExitCode, Failure> {
    let mut lines = String::new();
    let verified = inspect::verify(directory, |damage| lines += &format!("{damage}\n"));
    let verified = verified.map_err(Failure::Journal)?;
    let inspect::Verified { segments, blocks, packets, bytes, damaged } = verified;
    let state = if damaged == 0 { "whole".to_owned() } else { format!("{damaged} damaged parts") };
    let size = format_bytes(bytes);
    print(&format!("{lines}{segments} segments, {blocks} blocks of {size}, {packets} packets: {state}\n"))?;
    Ok(ExitCode::from(u8::from(damaged > 0)))
}

fn print(text: &str) -> Result<(), Failure> {
    let failed = |error| Failure::Output("standard output".into(), error);
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(failed)
}

fn dump(directory: &Path, write: &Path, time_ns: std::ops::Range<u64>) -> Result<ExitCode, Failure> {
    let mut blocks = Blocks::open(directory).map_err(Failure::Journal)?;
    let mut output: Box<dyn Write> = if write == Path::new("-") {
        if std::io::stdout().is_terminal() {
            return Err(Failure::Usage(
                "standard output is a terminal: redirect it, or write into a file with -w FILE".to_owned(),
            ));
        }
        Box::new(std::io::stdout().lock())
    } else {
        Box::new(File::create(write).map_err(|error| Failure::Output(write.to_owned(), error))?)
    };
    let failed = |error| Failure::Output(write.to_owned(), error);
    let mut pcapng = Vec::new();
    let application = format!("ringcast sniffer {}", env!("CARGO_PKG_VERSION"));
    section_header(&mut pcapng, Some(std::env::consts::ARCH), Some(std::env::consts::OS), &application);
    let mut dump = Dump { time_ns, ..Dump::default() };
    // One block at a time.
    let pool = Pool::new((wire::block::BODY_BYTES_MAX + HEADER_BYTES_MAX).next_power_of_two());
    let mut damaged = 0;
    while let Some(item) = blocks.read_next(&pool).map_err(Failure::Journal)? {
        match item {
            Item::Damage(damage) => {
                eprintln!("sniffer: {damage}");
                damaged += 1;
            }
            Item::Entry(entry) => {
                if let Err(error) = dump.append(&entry.block, &mut pcapng) {
                    let header = entry.block.header();
                    eprintln!("sniffer: stream {}, block {}: {error}", header.key, header.sequence);
                    damaged += 1;
                }
            }
        }
        output.write_all(&pcapng).map_err(failed)?;
        pcapng.clear();
    }
    output.write_all(&pcapng).and_then(|()| output.flush()).map_err(failed)?;
    Ok(ExitCode::from(u8::from(damaged > 0)))
}

/// Turns blocks into pcapng.
#[derive(Default)]
struct Dump {
    time_ns: std::ops::Range<u64>,
    /// For each stream, by its own interface ids: the output's, and what to add to time stamps, in ns.
    streams: HashMap<StreamKey, Vec<(u32, i64)>>,
    /// Rings of a fan-out group, and a stream that goes on from another, share an interface. Equal
    /// entries in the table of one stream stay apart: the number counts them.
    interfaces: HashMap<(Epoch, String, String, usize), u32>,
    body: Vec<u8>,
}

impl Dump {
    /// Appends what becomes of `block` to `out`, all of it or nothing.
    fn append(&mut self, block: &PackedBlock, out: &mut Vec<u8>) -> Result<(), String> {
        let header = block.header();
        self.body.clear();
        match header.kind {
            Kind::Report => Ok(()),
            Kind::Description => {
                block.unpack_into(&mut self.body).map_err(|error| error.to_string())?;
                let description: Description =
                    serde_json::from_slice(&self.body).map_err(|error| format!("description: {error}"))?;
                self.describe(header.key, &description, out);
                Ok(())
            }
            Kind::Packets => {
                if header.time_max_ns < self.time_ns.start || header.time_min_ns >= self.time_ns.end {
                    return Ok(());
                }
                let table = self.streams.get(&header.key).map(Vec::as_slice).unwrap_or_default();
                block.unpack_into(&mut self.body).map_err(|error| error.to_string())?;
                let mut kept = Vec::new();
                for epb in Epbs::new(&self.body, table.len() as u32) {
                    let epb = epb.map_err(|error| error.to_string())?;
                    let (id, offset_ns) = table[epb.interface as usize];
                    if self.time_ns.contains(&epb.time_ns.saturating_add_signed(offset_ns)) {
                        kept.push((epb.offset..epb.offset + epb.length, id));
                    }
                }
                for (range, id) in kept {
                    let start = out.len();
                    out.extend_from_slice(&self.body[range]);
                    out[start + 8..start + 12].copy_from_slice(&id.to_le_bytes());
                }
                Ok(())
            }
        }
    }

    /// The table of a stream is there, is there again, or has grown.
    fn describe(&mut self, key: StreamKey, description: &Description, out: &mut Vec<u8>) {
        let table = self.streams.entry(key).or_default();
        for (at, interface) in description.interfaces.iter().enumerate().skip(table.len()) {
            let file = description.file.as_deref().map(|file| file.rsplit('/').next().unwrap_or(file));
            let own = if interface.name.is_empty() { file.unwrap_or("") } else { &interface.name };
            let name = format!("{}:{own}", description.name);
            let before = description.interfaces[..at].iter().filter(|one| *one == interface).count();
            // It has no maps with keys that are not text, so it always serialises.
            let attributes = serde_json::to_string(interface).unwrap_or_default();
            let next = self.interfaces.len() as u32;
            let id =
                *self.interfaces.entry((key.epoch, name.clone(), attributes, before)).or_insert_with(|| {
                    interface_description(out, interface, &name);
                    next
                });
            table.push((id, interface.ts_offset_s.saturating_mul(1_000_000_000)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    use wire::Interface;
    use wire::journal::{Config, Journal, RealFs};
    use wire::pack::{Compression, Packer};

    /// A spool with two streams of one ring, the second going on from the first, and a third one.
    fn spool(directory: &Path) {
        let config = Config { directory: directory.to_owned(), cap_bytes: 8 << 20, segment_bytes: None };
        let (mut journal, _) = Journal::open(&config, RealFs, Instant::now()).expect("opens");
        for (stream, name) in [(1, "eth0"), (2, "eth0"), (3, "eth1")] {
            let key = StreamKey { epoch: Epoch(1), stream };
            let mut packer = Packer::new(key, Pool::new(8 << 20), 1 << 16, Compression::Lz4);
            let interface = Interface { name: name.to_owned(), link_type: 1, ..Interface::default() };
            let interfaces = vec![interface];
            let description = Description { name: "host".to_owned(), interfaces, ..Description::default() };
            let described = packer.seal_json(Kind::Description, &description, 0, false).expect("a buffer");
            journal.append(&described, Instant::now()).expect("appends");
            for time_s in 1..=3 {
                let data = [stream as u8; 60];
                packer.push(0, time_s * 1_000_000_000, 60, [&data[..]], &[]).expect("room");
            }
            journal.append(&packer.seal().expect("packets"), Instant::now()).expect("appends");
        }
        journal.sync().expect("syncs");
    }

    /// Interface descriptions, and interface and data of each packet.
    fn parse(mut bytes: &[u8]) -> (usize, Vec<(u32, u8)>) {
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
        let (mut interfaces, mut packets) = (0, Vec::new());
        assert_eq!(word(bytes, 0), 0x0a0d_0d0a, "a section header first");
        while !bytes.is_empty() {
            let length = word(bytes, 4) as usize;
            match word(bytes, 0) {
                1 => interfaces += 1,
                6 => packets.push((word(bytes, 8), bytes[28])),
                _ => {}
            }
            bytes = &bytes[length..];
        }
        (interfaces, packets)
    }

    #[test]
    fn a_dump_has_every_packet_under_its_interface() {
        let base = std::env::temp_dir().join(format!("ringcast-journal-{}", std::process::id()));
        let (directory, file) = (base.join("spool"), base.join("out.pcapng"));
        spool(&directory);
        let dumped = |time_ns| {
            assert!(dump(&directory, &file, time_ns).is_ok());
            parse(&std::fs::read(&file).expect("reads"))
        };
        let (interfaces, packets) = dumped(0..u64::MAX);
        assert_eq!(interfaces, 2, "streams of one ring share theirs");
        assert_eq!(packets, [(0, 1), (0, 1), (0, 1), (0, 2), (0, 2), (0, 2), (1, 3), (1, 3), (1, 3)]);
        let (_, packets) = dumped(2_000_000_000..3_000_000_000);
        assert_eq!(packets, [(0, 1), (0, 2), (1, 3)]);
        assert!(list(&directory).is_ok() && verify(&directory).is_ok());
        assert!(dump(&base.join("none"), &file, 0..1).is_err());
        std::fs::remove_dir_all(&base).expect("removes");
    }
}
