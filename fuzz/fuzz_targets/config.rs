//! What a person writes on a command line or into a file: quantities, URLs, times, globs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::block::Epoch;
use wire::clock::{format_timestamp, parse_timestamp};
use wire::connection::RelayUrl;
use wire::hub::Matcher;
use wire::message::{Selection, StreamStatus};
use wire::units::{format_bytes, parse_rate, parse_size, parse_time};

fuzz_target!(|input: &str| {
    if let Ok(bytes) = parse_size(input) {
        assert!(!format_bytes(bytes as u64).is_empty());
    }
    let _ = (parse_time(input), parse_rate(input), Epoch::try_from(input.to_owned()));
    // A bare number may be of a year that is not written.
    if let Ok(time_ns) = parse_timestamp(input)
        && input.ends_with('Z')
    {
        assert_eq!(parse_timestamp(&format_timestamp(time_ns)), Ok(time_ns), "{input:?}");
    }
    if let Ok(url) = RelayUrl::parse(input) {
        assert!(!url.host().is_empty() && url.port() > 0 && url.path().starts_with('/'));
        assert!(wire::connection::fuzzing::client_request(&url, &Default::default()).is_ok(), "{input:?}");
    }
    let globs: Vec<String> = input.split('\n').map(str::to_owned).collect();
    let selection = Selection { sniffers: globs.clone(), interfaces: globs, ..Selection::default() };
    if let Ok(matcher) = Matcher::new(&selection) {
        let status = StreamStatus { name: input.to_owned(), ..StreamStatus::default() };
        let _ = (matcher.matches(&status), matcher.matches_interface(input));
    }
});
