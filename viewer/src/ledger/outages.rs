//! Times in which nothing could be captured, each told once. Reports repeat them, know more of them
//! later, and those of a stream repeat those of the stream before it.

use std::collections::{HashMap, HashSet, VecDeque};

use wire::block::StreamKey;
use wire::ledger::Outage;

/// Most outages that are remembered, so as not to be told twice.
const TOLD_MAX: usize = 65_536;
/// Most outages that last at the same time.
const LASTING_MAX: usize = 4096;

/// An outage that has not ended.
#[derive(Debug)]
pub struct Lasting {
    /// The stream that told of it last; it may have ended since.
    pub key: StreamKey,
    /// Its sniffer.
    pub name: String,
    /// The outage.
    pub outage: Outage,
}

/// What tells one outage from another: the sniffer, the interface, the kind and the begin.
type OutageKey = (String, String, u8, u64);

/// What is known of outages.
#[derive(Debug, Default)]
pub struct Outages {
    told: HashSet<OutageKey>,
    told_order: VecDeque<OutageKey>,
    lasting: HashMap<OutageKey, (StreamKey, Outage)>,
}

impl Outages {
    /// A stream of the sniffer `name` tells of `outage`; whether it is over, and was not told before.
    pub fn handle(&mut self, key: StreamKey, name: &str, outage: &Outage) -> bool {
        let outage_key = (name.to_owned(), outage.interface.clone(), outage.kind as u8, outage.from_ns);
        if self.told.contains(&outage_key) {
            return false;
        }
        if outage.until_ns.is_none() {
            self.lasting.insert(outage_key, (key, outage.clone()));
            return false;
        }
        self.lasting.remove(&outage_key);
        self.remember(outage_key);
        true
    }

    /// Too many last to be kept.
    pub fn is_over(&self) -> bool {
        self.lasting.len() > LASTING_MAX
    }

    /// Those that last, which count as told now.
    pub fn take_lasting(&mut self) -> Vec<Lasting> {
        let mut all: Vec<Lasting> = Vec::with_capacity(self.lasting.len());
        for (outage_key, (key, outage)) in std::mem::take(&mut self.lasting) {
            all.push(Lasting { key, name: outage_key.0.clone(), outage });
            self.remember(outage_key);
        }
        all.sort_by_key(|lasting| (lasting.key, lasting.outage.from_ns));
        all
    }

    fn remember(&mut self, key: OutageKey) {
        if self.told.insert(key.clone()) {
            self.told_order.push_back(key);
        }
        if self.told_order.len() > TOLD_MAX
            && let Some(oldest) = self.told_order.pop_front()
        {
            self.told.remove(&oldest);
        }
    }
}
