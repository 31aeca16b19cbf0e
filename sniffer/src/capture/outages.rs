//! The times in which a stream's interface gave nothing, for its reports.

use wire::ledger::{OUTAGES_MAX, Outage};

/// The latest outages of a stream, oldest first.
#[derive(Debug, Default)]
pub(super) struct Outages(Vec<Outage>);

impl Outages {
    /// Takes note of an outage, or of more about one that is known: its end. Beyond [`OUTAGES_MAX`] the oldest that is over
    /// is forgotten.
    pub(super) fn note(&mut self, outage: Outage) {
        let is_same = |known: &&mut Outage| {
            (known.kind, &known.interface, known.from_ns) == (outage.kind, &outage.interface, outage.from_ns)
        };
        match self.0.iter_mut().find(is_same) {
            Some(known) => *known = outage,
            None => {
                if self.0.len() >= OUTAGES_MAX {
                    let over = self.0.iter().position(|known| known.until_ns.is_some());
                    self.0.remove(over.unwrap_or(0));
                }
                self.0.push(outage);
            }
        }
    }

    /// What a report says.
    pub(super) fn list(&self) -> Vec<Outage> {
        self.0.clone()
    }

    /// The stream is succeeded: what is over was told in its reports, what lasts goes on in the next.
    pub(super) fn pass_on(&mut self) {
        self.0.retain(|outage| outage.until_ns.is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ledger::OutageKind;

    fn outage(from_ns: u64, until_ns: Option<u64>) -> Outage {
        Outage { kind: OutageKind::InterfaceDown, interface: "eth0".to_owned(), from_ns, until_ns }
    }

    #[test]
    fn an_outage_ends_where_it_began() {
        let mut outages = Outages::default();
        outages.note(outage(5, None));
        outages.note(outage(5, Some(9)));
        outages.note(Outage { kind: OutageKind::InterfaceGone, ..outage(5, Some(7)) });
        assert_eq!(outages.list().len(), 2);
        assert_eq!(outages.list()[0], outage(5, Some(9)));
    }

    #[test]
    fn the_latest_are_kept_and_what_lasts_is_passed_on() {
        let mut outages = Outages::default();
        outages.note(outage(1, None));
        for from_ns in 2..100 {
            outages.note(outage(from_ns, Some(from_ns + 1)));
        }
        let list = outages.list();
        assert_eq!(
            (list.len(), list[0].from_ns, list[1].from_ns),
            (OUTAGES_MAX, 1, 100 - OUTAGES_MAX as u64 + 1)
        );
        outages.pass_on();
        assert_eq!(outages.list(), [outage(1, None)]);
    }
}
