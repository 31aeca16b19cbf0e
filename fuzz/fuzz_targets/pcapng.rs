//! The walk over packet blocks that came over the network, and the blocks around them: names and
//! counters of a peer make a file that our own reader reads.
#![no_main]

use fuzz::parts;
use libfuzzer_sys::fuzz_target;
use wire::Interface;
use wire::capture_file::CaptureReader;
use wire::pcapng::{Epbs, InterfaceStatistics, interface_description, interface_statistics, section_header};

fuzz_target!(|input: &[u8]| {
    let [body, json, name, ..] = parts(input)[..] else { return };
    let mut end = 0;
    for epb in Epbs::new(body, 3) {
        let Ok(epb) = epb else { break };
        assert!(epb.offset == end && epb.data.len() + epb.options.len() + 32 <= epb.length);
        end += epb.length;
    }
    assert!(end <= body.len());
    let interface: Interface = serde_json::from_slice(json).unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    let mut file = Vec::new();
    section_header(&mut file, Some(&name), Some(&name), &name);
    for _ in 0..3 {
        interface_description(&mut file, &interface, &name);
    }
    file.extend_from_slice(&body[..end]);
    interface_statistics(&mut file, 1, &InterfaceStatistics::default());
    let mut reader = CaptureReader::new(&file[..]).expect("our own section");
    let mut items = 0;
    while reader.next().unwrap_or_else(|error| panic!("{error}: {interface:?}")).is_some() {
        items += 1;
    }
    assert!(items >= 3);
});
