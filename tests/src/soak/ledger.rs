//! Whether every packet that was sent was delivered, once, or counted: what came to a viewer, what its
//! summary says, and what the sniffers say they packed.
//!
//! Three accounts of different origin have to agree, for each viewer and sniffer, to the packet:
//!
//! - what its runs say they packed is what came and what is missing by stage; one that was killed
//!   says nothing;
//! - the summary's own equation adds up, and leaves nothing unexplained;
//! - numbers that did not come were counted, or are of a time when nobody captured; for a sniffer
//!   that was never without its interface all of them are counted.

use std::collections::BTreeMap;
use std::ops::Range;

use super::taker::Seen;
use super::world::Part;
use crate::faults::{missing_in, number_after, ranges, streams_in};

/// What is known of a sniffer.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Numbers from 0 up to this were sent.
    pub sent: u64,
    /// Numbers that may not have been captured.
    pub absent: Vec<Range<u64>>,
    /// Packets that its runs packed; `None` if one was killed, which did not tell.
    pub packed: Option<u64>,
    /// Packets that the kernel dropped in runs which ended in order.
    pub kernel_drops: u64,
}

impl Facts {
    /// What a part knows of itself.
    pub fn of(part: &Part, sent: u64) -> Self {
        Self { sent, absent: part.absent.clone(), packed: part.packed, kernel_drops: part.kernel_drops }
    }
}

/// The account of one sniffer's packets at one viewer.
#[derive(Clone, Debug)]
pub struct Account {
    /// Numbers sent.
    pub sent: u64,
    /// Packets that came.
    pub delivered: u64,
    /// Packets counted as lost behind the packing, by stage.
    pub lost: BTreeMap<String, u64>,
    /// Packets that the kernel dropped.
    pub kernel_drops: u64,
    /// Numbers that nobody captured, since nobody was there.
    pub absent: u64,
    /// What is wrong.
    pub complaints: Vec<String>,
}

/// Compares the three. `summary`: the viewer's line about this sniffer.
pub fn account(facts: &Facts, seen: &Seen, summary: &str) -> Account {
    let mut complaints = seen.faults.clone();
    let mut check = |is_right: bool, text: String| {
        if !is_right {
            complaints.push(text);
        }
    };
    let lost = missing_in(summary);
    let lost_packets: u64 = lost.values().sum();
    let unpacked: u64 = ["kernel ring", "lost before packing"].iter().map(|stage| term(summary, stage)).sum();
    let delivered = seen.delivered;
    let packed = facts.packed.unwrap_or(delivered + lost_packets);
    check(
        packed == delivered + lost_packets,
        format!("{packed} were packed, {delivered} came and {lost_packets} are counted"),
    );
    check(
        number_after(summary, ", written ") == Some(delivered),
        format!("{delivered} came, and the viewer says otherwise"),
    );
    check(!summary.to_lowercase().contains("unexplained"), "unexplained".to_owned());
    let (offered, sum) = equation(summary);
    check(offered == sum, format!("the equation does not add up: {offered} offered, {sum} in all"));
    check(
        seen.runs <= streams_in(summary),
        format!("{} runs of increasing numbers in {} streams", seen.runs, streams_in(summary)),
    );
    check(
        seen.greatest < Some(facts.sent),
        format!("{:?} came, and {} were sent", seen.greatest, facts.sent),
    );

    let missing = seen.missing(0..facts.sent);
    let is_excused = |number: &u64| facts.absent.iter().any(|range| range.contains(number));
    let outside: Vec<u64> = missing.iter().copied().filter(|number| !is_excused(number)).collect();
    let (missing_packets, counted) = (missing.len() as u64, lost_packets + unpacked);
    if facts.absent.is_empty() {
        check(
            missing_packets == counted,
            format!("{missing_packets} are missing ({}), {counted} are counted", ranges(&missing)),
        );
        check(offered == facts.sent, format!("{} were sent, {offered} offered", facts.sent));
        check(
            unpacked == facts.kernel_drops,
            format!("the kernel dropped {}, {unpacked} are told", facts.kernel_drops),
        );
    } else {
        check(
            outside.len() as u64 <= counted && counted <= missing_packets,
            format!(
                "{missing_packets} are missing, {} of them when somebody captured ({}), {counted} are counted",
                outside.len(),
                ranges(&outside)
            ),
        );
    }
    let absent = missing_packets.saturating_sub(counted);
    // What the kernel still held when a sniffer was killed was offered, and is gone with it.
    let held = term(summary, "in the ring or under way");
    check(
        held == 0 || facts.packed.is_none() && held <= absent,
        format!("{held} are still under way, {absent} were not captured"),
    );
    Account { sent: facts.sent, delivered, lost, kernel_drops: unpacked, absent, complaints }
}

/// The number of a term of the equation: ` + kernel ring 2`.
fn term(summary: &str, name: &str) -> u64 {
    number_after(summary, &format!(" + {name} ")).unwrap_or(0)
}

/// What was offered, and the sum of what became of it: `offered 20 = written 10 + missing 4 (viewer
/// queue) + kernel ring 6`.
fn equation(summary: &str) -> (u64, u64) {
    let Some((_, text)) = summary.split_once("; offered ") else { return (0, 1) };
    let text = text.split(';').next().unwrap_or_default().trim_start_matches("about ");
    let Some((offered, terms)) = text.split_once(" = ") else { return (0, 1) };
    let value = |term: &str| -> u64 {
        let words = term.split(" (").next().unwrap_or_default();
        words.split(' ').next_back().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    (offered.parse().unwrap_or(0), terms.split(" + ").map(value).sum())
}

/// The line about a sniffer in a viewer's summary.
pub fn line_of<'a>(said: &'a str, sniffer: &str) -> Option<&'a str> {
    let start = format!("viewer: {sniffer}:");
    let line = said.lines().find(|line| line.starts_with(&start) && line.contains(": received "));
    line.map(|line| &line["viewer: ".len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "web:v1 (2 streams): received 8 packets (1 KiB), written 8; missing 3 spool evicted, \
                           1 viewer queue; offered 14 = written 8 + missing 4 (3 spool evicted, 1 viewer queue) + \
                           kernel ring 2";

    /// Numbers 0 to 13 were sent: 2 to 4 and 6 are missing, 12 and 13 were dropped by the kernel.
    fn sound() -> (Facts, Seen) {
        let mut seen = Seen::default();
        [0, 1, 5, 7, 8, 9, 10, 11].into_iter().for_each(|number| seen.take(number));
        (Facts { sent: 14, packed: Some(12), kernel_drops: 2, absent: Vec::new() }, seen)
    }

    fn complaints(facts: &Facts, seen: &Seen, summary: &str) -> Vec<String> {
        account(facts, seen, summary).complaints
    }

    #[test]
    fn what_adds_up_is_right() {
        let (facts, seen) = sound();
        let account = account(&facts, &seen, SUMMARY);
        assert_eq!(account.complaints, [""; 0]);
        assert_eq!((account.delivered, account.kernel_drops, account.absent), (8, 2, 0));
        assert_eq!(account.lost["spool evicted"], 3);
        let said = format!("viewer: web\nviewer: {SUMMARY}\nviewer: total: received 8");
        assert_eq!(line_of(&said, "web"), Some(SUMMARY));
        assert_eq!(line_of(&said, "db"), None);
    }

    #[test]
    fn each_packet_that_is_not_accounted_for_is_told() {
        let (facts, seen) = sound();
        for (wrong, text) in [
            (SUMMARY.replace("1 viewer", "2 viewer"), "were packed"),
            (SUMMARY.replace("written 8;", "written 9;"), "says otherwise"),
            (SUMMARY.replace("offered 14", "offered 15"), "does not add up"),
            (SUMMARY.replace("kernel ring 2", "kernel ring 1"), "does not add up"),
            (format!("{SUMMARY}; 1 UNEXPLAINED, a defect"), "unexplained"),
            (format!("{SUMMARY} + in the ring or under way 1"), "under way"),
        ] {
            let found = complaints(&facts, &seen, &wrong);
            assert!(found.iter().any(|one| one.contains(text)), "{text}: {found:?} of {wrong}");
        }
        let mut twice = seen.clone();
        twice.take(5);
        assert!(complaints(&facts, &twice, SUMMARY).iter().any(|one| one.contains("packet 5 twice")));
        let late = Facts { sent: 11, ..facts.clone() };
        assert!(complaints(&late, &seen, SUMMARY).iter().any(|one| one.contains("and 11 were sent")));
        let mut unordered = Seen::default();
        [11, 10, 9, 8, 7, 5, 1, 0].into_iter().for_each(|number| unordered.take(number));
        assert!(complaints(&facts, &unordered, SUMMARY).iter().any(|one| one.contains("increasing")));
    }

    #[test]
    fn only_what_was_when_nobody_captured_is_excused() {
        let (facts, seen) = sound();
        // 14 to 19 were not captured.
        let facts = Facts { sent: 20, absent: std::iter::once(12..20).collect(), ..facts };
        let account = account(&facts, &seen, SUMMARY);
        assert_eq!((account.complaints, account.absent), (Vec::new(), 6));
        // After a kill the kernel's last word may be of some that nobody took out of the ring.
        let held = SUMMARY.replace("offered 14", "offered 17") + " + in the ring or under way 3";
        let killed = Facts { packed: None, ..facts.clone() };
        assert_eq!(complaints(&killed, &seen, &held), [""; 0]);
        assert!(complaints(&facts, &seen, &held).iter().any(|one| one.contains("under way")));
        let narrow = Facts { absent: std::iter::once(19..20).collect(), ..facts };
        assert!(complaints(&narrow, &seen, SUMMARY).iter().any(|one| one.contains("somebody captured")));
    }
}
