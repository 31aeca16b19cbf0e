//! Viewers that come back: they say how far they are, and read what they missed out of the recent
//! log, beside what is live.

use super::recent::What;
use super::viewer::Behind;
use super::*;

impl Hub {
    /// The next block of the recent log for a viewer that is behind. `None` also when a notice has
    /// to be told first, or when there is nothing more: then its streams go on as for everyone.
    pub(super) fn poll_recent(&mut self, peer: PeerId) -> Option<Delivery> {
        let first_number = self.recent.first_number();
        let viewer = self.viewers.get_mut(&peer)?;
        if viewer.behind.is_empty() {
            return None;
        }
        viewer.recent_at = viewer.recent_at.max(first_number);
        while let Some(entry) = self.recent.get(viewer.recent_at) {
            let key = entry.key;
            let Some(behind) = viewer.behind.get_mut(&key) else {
                viewer.recent_at += 1;
                continue;
            };
            let next_sequence = behind.place.next_sequence;
            match &entry.what {
                What::Block(block) if block.header().sequence < next_sequence => viewer.recent_at += 1,
                What::Block(block) if block.header().sequence > next_sequence => {
                    let untold = behind.untold(&block.begin());
                    behind.go_on(block.begin());
                    behind.misses_description = true;
                    if let Some(gap) = untold {
                        self.totals.skipped.add(Stage::ViewerAway, gap.packets, gap.bytes);
                        self.tell(peer, gap.control(key, Stage::ViewerAway));
                        return None;
                    }
                }
                What::Block(_) if std::mem::take(&mut behind.misses_description) => {
                    // The table may have grown in what is missing.
                    let description = self.streams.get(&key).and_then(|one| one.description.clone());
                    if let Some(description) = description {
                        return Some(viewer.deliver_recent(description, key, None, self.now_ms));
                    }
                }
                What::Block(block) => {
                    behind.go_on(block.end());
                    viewer.recent_at += 1;
                    let (bytes, header) = (block.bytes().clone(), Some(block.header()));
                    return Some(viewer.deliver_recent(bytes, key, header, self.now_ms));
                }
                What::Notice(notice) => {
                    viewer.recent_at += 1;
                    if behind.tell(notice) {
                        let notice = notice.clone();
                        self.tell(peer, notice);
                        return None;
                    }
                }
            }
        }
        self.finish_catch_up(peer);
        None
    }

    /// A viewer has read all of the recent log: what is missing at its end is told, and its streams
    /// go on with the next block.
    fn finish_catch_up(&mut self, peer: PeerId) {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        let mut behind: Vec<Behind> = viewer.behind.drain().map(|(_, behind)| behind).collect();
        behind.sort_unstable_by_key(|one| one.place.key);
        for one in behind {
            let (key, next_sequence) = (one.place.key, one.place.next_sequence);
            let Some(stream) = self.streams.get(&key) else { continue };
            let end = stream.end.clone().filter(|end| end.header().sequence >= next_sequence);
            let until = end.as_ref().map_or(stream.place(), PackedBlock::begin);
            let description = stream.description.clone();
            let misses_some = until.next_sequence > next_sequence;
            if let Some(gap) = one.untold(&until).filter(|_| misses_some) {
                self.totals.skipped.add(Stage::ViewerAway, gap.packets, gap.bytes);
                self.tell(peer, gap.control(key, Stage::ViewerAway));
            }
            let misses_description = one.misses_description || misses_some;
            if let Some(description) = description.filter(|_| misses_description)
                && let Some(viewer) = self.viewers.get_mut(&peer)
            {
                viewer.push_again(key, description, true, self.now_ms);
                self.outputs.push_back(Output::Data { to: peer });
            }
            if let Some(end) = end
                && let Some(viewer) = self.viewers.get_mut(&peer)
            {
                viewer.push_again(key, end.bytes().clone(), false, self.now_ms);
                self.outputs.push_back(Output::Data { to: peer });
            }
        }
        if let Some(viewer) = self.viewers.get_mut(&peer) {
            viewer.misses_until(0);
        }
        self.tell_gone(peer);
    }

    /// Whether a viewer is to be joined to a stream that is backlog: it asked for all of it, or knows
    /// this stream or one that it goes on from.
    pub(super) fn knows(&self, viewer: &Viewer, status: &StreamStatus) -> bool {
        let mut next = Some((status.key, status.predecessor));
        for _ in 0..PREDECESSORS_MAX {
            let Some((key, predecessor)) = next else { return false };
            if viewer.has_known(key) {
                return true;
            }
            next = predecessor.map(|key| {
                let of = self.streams.get(&key).and_then(|stream| stream.status.predecessor);
                (key, of.filter(|of| *of != key))
            });
        }
        false
    }
}
