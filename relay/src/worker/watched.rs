//! What a worker tells of itself when the admin port asks.

use std::cmp::Reverse;

use super::*;
use crate::figures::{Figures, Line, SERIES_MAX};

impl Worker {
    pub(super) fn figures(&self) -> Figures {
        let mut figures = Figures {
            entrance: self.entrance,
            authentication_failures: self.attempts.failed(),
            totals: self.hub.totals(),
            received: self.hub.received_by_name().into_iter().collect(),
            streams: self.hub.stream_counts(),
            recent_bytes: self.hub.recent_bytes(),
            ..Figures::default()
        };
        let mut viewers = Vec::new();
        for (id, peer) in &self.peers {
            match peer.role {
                Role::Stranger => figures.strangers += 1,
                Role::Publisher(..) => figures.sniffers += 1,
                Role::Subscriber(_) => {
                    figures.viewers += 1;
                    viewers.extend(self.hub.viewer_figures(PeerId(*id)).map(|of| (of, peer)));
                }
            }
        }
        viewers.sort_unstable_by_key(|(of, _)| Reverse(of.queued_bytes));
        let line = |(figures, peer): (_, &Peer)| Line {
            viewer: peer.owner().to_owned(),
            address: peer.address.clone(),
            figures,
        };
        figures.lines = viewers.into_iter().take(SERIES_MAX).map(line).collect();
        figures
    }
}
