//! Reads a corpus of real and broken capture files and compares every packet with what tshark says.
//!
//! The folder is named by `RINGCAST_CAPTURES` and has a `MANIFEST.tsv` whose first line names the
//! columns. Without the folder or without tshark the tests say that they are skipped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use wire::capture_file::{CaptureFileError, CaptureReader, Item};

/// One packet, as both sides tell it.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    /// Section from 1 and interface within it; absent in pcap.
    interface: Option<(u32, u32)>,
    time: Time,
    captured: u32,
    original: u32,
    md5: String,
    comments: String,
    flags: Option<u32>,
    drops: Option<u64>,
}

/// A time stamp, comparable with tshark's faults.
#[derive(Debug, Clone, Copy)]
enum Time {
    Ours(u64),
    /// Seconds, and nanoseconds of which 32 bits count: of a damaged file whose microseconds reach
    /// 4,294,968 the upper bits are lost there.
    Tshark(u64, i64),
}

impl PartialEq for Time {
    fn eq(&self, other: &Self) -> bool {
        let (ours, seconds, nanos) = match (*self, *other) {
            (Self::Ours(ours), Self::Tshark(seconds, nanos))
            | (Self::Tshark(seconds, nanos), Self::Ours(ours)) => (ours, seconds, nanos),
            _ => return false,
        };
        // A pcapng file may have times that nanoseconds in 64 bits do not reach.
        let Some(whole) = seconds.checked_mul(1_000_000_000) else {
            return ours == u64::MAX;
        };
        let Some(fraction) = ours.checked_sub(whole) else {
            return false;
        };
        fraction as u32 == nanos as u32 && fraction <= u64::from(u32::MAX) * 1000
    }
}

impl Eq for Time {}

/// What our reader made of a file.
struct Read {
    rows: Vec<Row>,
    link_types: Vec<u16>,
    error: Option<CaptureFileError>,
}

/// A line of the manifest.
struct Listed {
    file: String,
    packets: usize,
    packets_capinfos: Option<usize>,
    captured_bytes: u64,
    libpcap_reads: bool,
}

fn corpus() -> Option<(PathBuf, Vec<Listed>)> {
    let folder = std::env::var_os("RINGCAST_CAPTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"), PathBuf::from);
    let Ok(manifest) = fs::read_to_string(folder.join("MANIFEST.tsv")) else {
        eprintln!("skipped: no MANIFEST.tsv in {}", folder.display());
        return None;
    };
    let mut lines = manifest.lines();
    let columns: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    let column = |name: &str| {
        columns
            .iter()
            .position(|column| *column == name)
            .unwrap_or_else(|| panic!("MANIFEST.tsv has no column {name}"))
    };
    let (file, packets, capinfos) = (column("file"), column("packets"), column("packets_capinfos"));
    let (captured, libpcap) = (column("captured_bytes"), column("libpcap_1.10.3_reads"));
    let listed = lines
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            Listed {
                file: fields[file].to_owned(),
                packets: fields[packets].parse().unwrap_or(0),
                packets_capinfos: fields[capinfos].parse().ok(),
                captured_bytes: fields[captured].parse().unwrap_or(0),
                libpcap_reads: fields[libpcap] == "ok",
            }
        })
        .collect();
    Some((folder, listed))
}

fn read(path: &Path) -> Read {
    let mut read = Read { rows: Vec::new(), link_types: Vec::new(), error: None };
    let bytes = fs::read(path).expect("a listed file can be read");
    let places = interface_places(&bytes);
    let mut table = Vec::new();
    let mut reader = match CaptureReader::new(File::open(path).expect("it could be read")) {
        Ok(reader) => reader,
        Err(error) => {
            read.error = Some(error);
            return read;
        }
    };
    loop {
        match reader.next() {
            Ok(Some(Item::Interface(interface))) => table.push(interface),
            Ok(Some(Item::Packet(packet))) => {
                let link_type = table[packet.interface as usize].link_type;
                let hidden = pseudo_header_bytes(link_type);
                let mut row = Row {
                    interface: places.as_ref().map(|places| places[packet.interface as usize]),
                    time: Time::Ours(packet.time_ns),
                    captured: packet.data.len() as u32 - hidden,
                    original: (packet.original_len - hidden).min(MOST_ORIGINAL),
                    md5: format!("{:x}", md5::compute(&packet.data[hidden as usize..])),
                    comments: String::new(),
                    flags: None,
                    drops: None,
                };
                take_options(packet.options, &mut row);
                read.rows.push(row);
                read.link_types.push(link_type);
            }
            Ok(None) => break,
            Err(error) => {
                let again = reader.next().expect_err("an error stays");
                assert_eq!(again.to_string(), error.to_string());
                read.error = Some(error);
                break;
            }
        }
    }
    read
}

/// The most that tshark shows as length of a frame.
const MOST_ORIGINAL: u32 = i32::MAX as u32;

/// Bytes in front of the frame that tshark does not count as part of it.
fn pseudo_header_bytes(link_type: u16) -> u32 {
    const SUNATM: u16 = 123;
    if link_type == SUNATM { 4 } else { 0 }
}

/// Section and index of each interface of a pcapng file, found without our reader.
fn interface_places(bytes: &[u8]) -> Option<Vec<(u32, u32)>> {
    const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
    let mut places = Vec::new();
    let (mut at, mut big, mut section, mut index) = (0, false, 0, 0);
    if !bytes.starts_with(&SECTION) {
        return None;
    }
    while at + 12 <= bytes.len() {
        let word = |at: usize, big: bool| {
            let word = bytes[at..at + 4].try_into().expect("four bytes");
            if big { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        };
        if bytes[at..at + 4] == SECTION {
            big = bytes[at + 8] == 0x1a;
            (section, index) = (section + 1, 0);
        } else if word(at, big) == 1 {
            places.push((section, index));
            index += 1;
        }
        let length = word(at + 4, big) as usize;
        if length < 12 {
            break;
        }
        at += length.next_multiple_of(4);
    }
    Some(places)
}

fn take_options(mut options: &[u8], row: &mut Row) {
    let mut comments = Vec::new();
    while let [c0, c1, l0, l1, rest @ ..] = options {
        let length = usize::from(u16::from_le_bytes([*l0, *l1]));
        let value = &rest[..length];
        match u16::from_le_bytes([*c0, *c1]) {
            0 => panic!("opt_endofopt among the options"),
            1 => {
                let end = value.iter().position(|byte| *byte == 0).unwrap_or(length);
                comments.push(String::from_utf8_lossy(&value[..end]).into_owned());
            }
            2 => row.flags = Some(u32::from_le_bytes(value.try_into().expect("checked"))),
            4 => row.drops = Some(u64::from_le_bytes(value.try_into().expect("checked"))),
            _ => {}
        }
        options = &rest[length.next_multiple_of(4)..];
    }
    assert!(options.is_empty(), "options are padded");
    row.comments = comments
        .join(AGGREGATOR)
        .replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
        .replace('\t', "\\t");
}

/// What stands between the comments of one packet.
const AGGREGATOR: &str = "|";

/// What tshark made of a file: rows and their encapsulations, and whether it complained.
struct Told {
    rows: Vec<Row>,
    encapsulations: Vec<String>,
    failed: bool,
    complaint: String,
}

/// Through a pipe, where it does not guess at records of Red Hat 6.1 (module `pcap`).
fn ask_tshark(path: &Path, home: &Path) -> Option<Told> {
    const FIELDS: [&str; 10] = [
        "frame.encap_type",
        "frame.section_number",
        "frame.interface_id",
        "frame.time_epoch",
        "frame.cap_len",
        "frame.len",
        "frame.md5_hash",
        "frame.comment",
        "frame.packet_flags",
        "frame.drop_count",
    ];
    let mut command = Command::new("tshark");
    command.env("HOME", home).env("XDG_CONFIG_HOME", home);
    command.args(["-n", "-o", "frame.generate_md5_hash:TRUE", "-T", "fields"]);
    command.args(["-E", "occurrence=a", "-E", &format!("aggregator={AGGREGATOR}")]);
    command.args(FIELDS.iter().flat_map(|field| ["-e", field]));
    command.args(["-r", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().ok()?;
    let mut pipe = child.stdin.take().expect("it is piped");
    let bytes = fs::read(path).expect("a listed file can be read");
    let output = std::thread::scope(|scope| {
        // tshark may leave early; then the rest is not needed.
        scope.spawn(move || _ = pipe.write_all(&bytes));
        child.wait_with_output()
    })
    .ok()?;
    let mut told = Told {
        rows: Vec::new(),
        encapsulations: Vec::new(),
        failed: !output.status.success(),
        complaint: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), FIELDS.len(), "{line:?} of {}", path.display());
        // What is not a packet (custom blocks) has no encapsulation.
        if fields[0].is_empty() {
            continue;
        }
        told.encapsulations.push(fields[0].to_owned());
        told.rows.push(Row {
            interface: fields[1].parse().ok().zip(fields[2].parse().ok()),
            time: tshark_time(fields[3]),
            captured: fields[4].parse().expect("a number"),
            original: fields[5].parse().expect("a number"),
            md5: fields[6].to_owned(),
            comments: fields[7].to_owned(),
            flags: fields[8].strip_prefix("0x").and_then(|flags| u32::from_str_radix(flags, 16).ok()),
            drops: fields[9].parse().ok(),
        });
    }
    Some(told)
}

/// `seconds.nanoseconds`, where the sign is that of the nanoseconds if they are negative; empty
/// where there is none.
fn tshark_time(text: &str) -> Time {
    let Some((seconds, nanos)) = text.split_once('.') else {
        return Time::Tshark(0, 0);
    };
    let nanos: i64 = nanos.parse().expect("a number");
    match seconds.strip_prefix('-') {
        Some(seconds) => Time::Tshark(seconds.parse().expect("a number"), -nanos),
        None => Time::Tshark(seconds.parse().expect("a number"), nanos),
    }
}

#[test]
fn agrees_with_tshark() {
    let Some((folder, listed)) = corpus() else {
        return;
    };
    if Command::new("tshark").arg("--version").output().is_err() {
        assert!(
            std::env::var_os("RINGCAST_REQUIRE_ALL").is_none(),
            "tshark is missing, but nothing may be skipped here"
        );
        eprintln!("skipped: no tshark");
        return;
    }
    let home = std::env::temp_dir().join(format!("capture-file-corpus-{}", std::process::id()));
    fs::create_dir_all(&home).expect("a temporary folder");

    let listed: Vec<&Listed> = listed.iter().filter(|listed| listed.packets_capinfos.is_some()).collect();
    let next = AtomicUsize::new(0);
    let packets = AtomicUsize::new(0);
    let cut = AtomicUsize::new(0);
    let encapsulations = Mutex::new(BTreeMap::<u16, String>::new());
    let complaints = Mutex::new(Vec::<String>::new());
    let compare = |listed: &Listed| -> Result<(), String> {
        let path = folder.join(&listed.file);
        let ours = read(&path);
        let theirs = ask_tshark(&path, &home).ok_or("tshark did not start")?;
        if theirs.complaint.contains(" unknown or unsupported") {
            println!("{}: {}", listed.file, theirs.complaint.trim());
            let same = ours.error.is_none() && ours.rows.len() == listed.packets;
            return same.then_some(()).ok_or_else(|| format!("{} packets", ours.rows.len()));
        }
        for (index, pair) in ours.rows.iter().zip(&theirs.rows).enumerate() {
            if pair.0 != pair.1 {
                return Err(format!("packet {}: {:?} and {:?}", index + 1, pair.0, pair.1));
            }
        }
        if ours.rows.len() != theirs.rows.len() {
            return Err(format!(
                "{} packets, tshark has {}; {:?}",
                ours.rows.len(),
                theirs.rows.len(),
                ours.error
            ));
        }
        let truncated = matches!(ours.error, Some(CaptureFileError::Truncated { .. }));
        let cut_short = theirs.complaint.contains("cut short");
        if ours.error.is_some() != theirs.failed || truncated != cut_short {
            return Err(format!("{:?}, tshark says {}", ours.error, theirs.complaint));
        }
        if let Some(error) = &ours.error {
            println!("{}: {} packets, then {error}", listed.file, ours.rows.len());
        }
        let mut known = encapsulations.lock().expect("no thread panics with it");
        for (link_type, encapsulation) in ours.link_types.iter().zip(&theirs.encapsulations) {
            let first = known.entry(*link_type).or_insert_with(|| encapsulation.clone());
            if first != encapsulation {
                return Err(format!("link type {link_type} is {encapsulation}, was {first}"));
            }
        }
        packets.fetch_add(ours.rows.len(), Ordering::Relaxed);
        cut.fetch_add(usize::from(truncated), Ordering::Relaxed);
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(listed) = listed.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(complaint) = compare(listed) {
                        let mut complaints = complaints.lock().expect("no thread panics with it");
                        complaints.push(format!("{}: {complaint}", listed.file));
                    }
                }
            });
        }
    });
    let _ = fs::remove_dir_all(&home);
    let encapsulations = encapsulations.into_inner().expect("the threads have ended");
    println!(
        "{} files, {} packets, {} files cut short, {} link types",
        listed.len(),
        packets.into_inner(),
        cut.into_inner(),
        encapsulations.len()
    );
    // Ethernet, raw IP, loopback and cooked, by Wireshark's numbers.
    for (link_type, encapsulation) in [(1, "1"), (101, "7"), (0, "15"), (113, "25")] {
        if let Some(found) = encapsulations.get(&link_type) {
            assert_eq!(found, encapsulation, "link type {link_type}");
        }
    }
    let complaints = complaints.into_inner().expect("the threads have ended");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Files that capinfos refuses: an error, after the whole packets. Six of them it refuses only
/// because that release does not know their link type; libpcap reads them, and so do we.
#[test]
fn refuses_what_capinfos_refuses() {
    let Some((folder, listed)) = corpus() else {
        return;
    };
    for listed in listed {
        if listed.packets_capinfos.is_some() {
            continue;
        }
        let read = read(&folder.join(&listed.file));
        let said = read.error.as_ref().map_or("clean end".to_owned(), ToString::to_string);
        println!("{}: {} packets, then {said}", listed.file, read.rows.len());
        if listed.libpcap_reads {
            assert!(read.error.is_none(), "{}: {said}", listed.file);
            assert_eq!(read.rows.len(), listed.packets, "{}", listed.file);
            let captured: u64 = read.rows.iter().map(|row| u64::from(row.captured)).sum();
            assert_eq!(captured, listed.captured_bytes, "{}", listed.file);
        } else {
            assert!(read.error.is_some(), "{}", listed.file);
        }
    }
}
