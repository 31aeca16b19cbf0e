//! The relay's access file: what is read comes back the same, and an edit of one entry changes no other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::access::{Access, format_time, parse_time, with_entry, without_entry};
use wire::secret::Secret;

const NOW_S: u64 = 1_800_000_000;

fuzz_target!(|input: &str| {
    if let Ok(time_s) = parse_time(input) {
        let _ = format_time(time_s);
    }
    let Ok(access) = Access::parse(input) else { return };
    let again = Access::parse(&access.to_text()).expect("our own text");
    assert_eq!(again.entries(), access.entries());
    assert!(access.check_token(&Secret::new(input), NOW_S).is_err());
    for entry in access.entries() {
        let _ = access.check_certificate(std::slice::from_ref(&entry.name), NOW_S);
    }
    let Some(first) = access.entries().first() else { return };
    let removed = without_entry(input, &first.name).expect("it was read");
    let (text, entry) = removed.expect("it is there");
    let rest = Access::parse(&text).expect("what is left of it");
    assert_eq!((&entry, rest.entries()), (first, &access.entries()[1..]));
    let text = with_entry(&text, entry).expect("it was there before");
    assert_eq!(Access::parse(&text).expect("our own text").entries().len(), access.entries().len());
});
