//! What a worker shares with the others: notes, blocks, what is settled, and memory.

use super::*;

impl Worker {
    pub(super) fn read_inbox(&mut self, now: Instant) {
        while let Ok((from, note)) = self.inbox.try_recv() {
            let peer = worker_peer(from);
            match note {
                Note::Adopt(newcomer) => self.adopt(*newcomer, now),
                Note::Block(envelope, bytes) => {
                    // Blocks may wait at the other worker for room here.
                    self.wake[from] |= self.inboxes.queued_bytes(self.index) >= INBOX_BYTES_MAX / 2;
                    self.inboxes.taken(self.index, bytes.len());
                    // The other worker has checked it; a stream it gave up meanwhile is unknown.
                    if let Err(error) = self.hub.handle_block(peer, envelope, bytes) {
                        limited!(debug, FEW, "worker {from}: {error}");
                    }
                }
                Note::Control(Control::Join { status, next_sequence }) => {
                    self.hub.handle_join(peer, status, next_sequence);
                }
                Note::Control(Control::Gone { place, reason, ended }) => {
                    self.hub.handle_worker_gone(peer, place, &reason, ended);
                }
                Note::Control(Control::Mark { epoch, stream, complete_through_ns }) => {
                    self.hub.handle_mark(peer, epoch, stream, complete_through_ns);
                }
                Note::Control(Control::Takers { viewers, marks }) => {
                    self.hub.handle_worker_takers(peer, viewers, marks);
                }
                Note::Control(control) => self.hub.handle_skipped(peer, &control),
                Note::Shed => self.shed(),
                // The admin port may have given up waiting.
                Note::Look(answer) => drop(answer.send((self.index, Box::new(self.figures())))),
                Note::Settled(key, through) => {
                    self.hub.handle_worker_settled(peer, key, through);
                }
            }
        }
    }

    /// Passes blocks to other workers, as far as their inboxes have room, and tells them what is
    /// settled here.
    pub(super) fn tell_workers(&mut self) {
        for other in (0..self.inboxes.len()).filter(|other| *other != self.index) {
            while self.worker_data[other] && self.inboxes.queued_bytes(other) < INBOX_BYTES_MAX {
                match self.hub.poll_data(worker_peer(other)) {
                    Some((envelope, block)) => {
                        self.inboxes.send(self.index, other, Note::Block(envelope, block));
                        self.wake[other] = true;
                    }
                    None => self.worker_data[other] = false,
                }
            }
        }
        while let Some((to, key, settled)) = self.hub.poll_settled() {
            if let Some(other) = worker_of(to) {
                self.inboxes.send(self.index, other, Note::Settled(key, settled));
                self.wake[other] = true;
            }
        }
        for other in (0..self.inboxes.len()).filter(|other| *other != self.index) {
            if std::mem::take(&mut self.wake[other]) {
                self.inboxes.wake(other);
            }
        }
    }

    /// Connections whose reading waits for a buffer: the viewers that are furthest behind make
    /// room, here and behind the other workers.
    pub(super) fn feed_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        if self.is_short_of_memory() {
            self.shed();
            for other in (0..self.inboxes.len()).filter(|other| *other != self.index) {
                self.inboxes.send(self.index, other, Note::Shed);
                self.wake[other] = true;
            }
        }
        for id in std::mem::take(&mut self.starved) {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.connection.retry_buffer();
                self.list(id);
            }
        }
    }

    /// Too little is left for the largest block.
    pub(super) fn is_short_of_memory(&self) -> bool {
        let budget = self.pool.budget_bytes();
        self.pool.used_bytes() + (BLOCK_BYTES_MAX * 3 / 2).max(budget / 8) > budget
    }

    /// Viewers share blocks, so several may have to lose their queues before memory is free.
    pub(super) fn shed(&mut self) {
        while self.is_short_of_memory() && self.hub.shed() {}
    }
}
