//! Control messages, envelopes, and the JSON of descriptions and reports, as a peer sends them. What
//! is understood comes back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::description::Description;
use wire::ledger::{Losses, Report};
use wire::message::{Control, Envelope};

fuzz_target!(|input: &[u8]| {
    if let Ok(control) = Control::from_json(input) {
        assert_eq!(Control::from_json(&control.to_json()).expect("our own words"), control);
        assert!(!format!("{control:?}").is_empty());
    }
    if let Ok(envelope) = Envelope::parse(input) {
        assert_eq!(Envelope::parse(&envelope.emit()).expect("our own bytes"), envelope);
    }
    if let Ok(description) = serde_json::from_slice::<Description>(input) {
        let again = serde_json::to_vec(&description).expect("serialises");
        assert_eq!(serde_json::from_slice::<Description>(&again).expect("our own words"), description);
        let _ = description.announcement(fuzz::key(0));
    }
    if let Ok(report) = serde_json::from_slice::<Report>(input) {
        let again = serde_json::to_vec(&report).expect("serialises");
        assert_eq!(serde_json::from_slice::<Report>(&again).expect("our own words"), report);
    }
    if let Ok(losses) = serde_json::from_slice::<Losses>(input) {
        let _ = (losses.packets(), losses.text());
    }
});
