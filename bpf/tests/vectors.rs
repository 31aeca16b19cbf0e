//! libpcap's own filter tests, about a thousand expressions and their savefiles, through this crate.
//!
//! Skipped, with a printed line, when the captures or libpcap are absent.

mod common;

use bpf::{FilterError, Program, compile};
use common::{has_libpcap, link_type, read_savefile, rows, sha256, vectors};

/// The version the tables were made with. Another optimises differently and words its errors differently.
const TABLES_MADE_WITH: &str = "libpcap version 1.10.3 ";

fn is_version_of_the_tables() -> bool {
    let version = bpf::library_version().unwrap_or_default();
    let same = version.starts_with(TABLES_MADE_WITH);
    if !same {
        println!("comparing verdicts only: the tables are for {TABLES_MADE_WITH}, here is {version}");
    }
    same
}

#[test]
fn sha256_is_sha256() {
    assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    for (length, digest) in [
        (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a"),
        (63, "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34"),
        (64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"),
    ] {
        assert_eq!(sha256(&vec![b'a'; length]), digest, "{length} bytes");
    }
}

/// Bytes of a verdict in the table at most.
const CUT_AT: usize = 99;

/// Accepted or rejected, with which words, to how many instructions, to which instructions.
#[test]
fn every_expression_compiles_as_recorded() {
    let Some(folder) = vectors() else { return };
    if !has_libpcap() {
        return;
    }
    let exact = is_version_of_the_tables();
    let (mut accepted, mut rejected, mut metadata) = (0, 0, 0);
    let mut differing = Vec::new();
    for row in rows(&folder.join("compile.tsv")) {
        let [test, upstream, link, snaplen, expression, _, recorded, digest] = &row[..] else {
            panic!("a row has 8 fields: {row:?}")
        };
        let result = compile(expression, link_type(link), snaplen.parse().expect("a snaplen"));
        let verdict = match (&result, exact) {
            (Ok(program), true) => format!("accepts {} insns", program.instructions().len()),
            (Err(FilterError::Expression { message, .. }), true) => format!("rejects: {message}"),
            (Ok(_), false) => "accept".to_owned(),
            (Err(FilterError::Expression { .. }), false) => "reject".to_owned(),
            (Err(other), _) => format!("{other}"),
        };
        // Recorded of a handle without an interface, which libpcap takes for a live one: the program loads the
        // direction from metadata. Frames of a file have none, so this crate refuses what libpcap accepts.
        if let Err(FilterError::Metadata { .. }) = result {
            metadata += 1;
            if !(["inbound", "outbound"].contains(&&expression[..]) && upstream == "accept") {
                differing.push(format!(
                    "{test}: {link} {expression:?}: refused for metadata, recorded {recorded}"
                ));
            }
            continue;
        }
        // Of another version only that can be expected in which 1.10.3 and upstream are of one mind.
        let expected = if exact { recorded } else { upstream };
        if !exact && !recorded.starts_with(&upstream[..]) {
            continue;
        }
        // Long texts were cut when the table was made.
        if !(verdict == *expected || expected.len() >= CUT_AT && verdict.starts_with(expected)) {
            differing.push(format!("{test}: {link} {expression:?}: {verdict}, recorded {expected}"));
        }
        match result {
            Ok(program) => {
                accepted += 1;
                if exact && sha256(program.to_string().as_bytes())[..16] != digest[..] {
                    differing.push(format!("{test}: {link} {expression:?}: other instructions\n{program}"));
                }
            }
            Err(_) => rejected += 1,
        }
    }
    println!("{accepted} accepted, {rejected} rejected by libpcap, {metadata} refused for metadata");
    assert!(differing.is_empty(), "{} rows differ:\n{}", differing.len(), differing.join("\n"));
    assert!(accepted > 0 && rejected > 0);
}

/// Packets of the savefiles that the programs accept, evaluated by this crate.
#[test]
fn every_savefile_matches_as_recorded() {
    let Some(folder) = vectors() else { return };
    if !has_libpcap() {
        return;
    }
    let exact = is_version_of_the_tables();
    let (mut applied, mut evaluations) = (0, 0);
    let mut differing = Vec::new();
    for row in rows(&folder.join("apply.tsv")) {
        let [test, file, expression, upstream, packet_count, recorded] = &row[..] else {
            panic!("a row has 6 fields: {row:?}")
        };
        let savefile = read_savefile(&folder.join(file));
        assert_eq!(savefile.packets.len().to_string(), *packet_count, "{file}");
        let result = compile(expression, savefile.link_type, savefile.snaplen).map(|program: Program| {
            evaluations += savefile.packets.len();
            savefile.packets.iter().filter(|packet| program.run(&packet.data, packet.wire_len) != 0).count()
        });
        applied += usize::from(result.is_ok());
        let matches = result.map_or_else(|_| "rejects".to_owned(), |count| count.to_string());
        if matches != *recorded && (exact || recorded == upstream) {
            differing.push(format!("{test}: {file} {expression:?}: {matches}, recorded {recorded}"));
        }
    }
    println!("{applied} programs, {evaluations} evaluations");
    assert!(differing.is_empty(), "{} rows differ:\n{}", differing.len(), differing.join("\n"));
    assert!(applied > 0);
}
