//! The spool's side of the sending thread, and what is looked at each second: succession, losses, the
//! watchdog.

use wire::ledger::Losses;

use super::*;

impl Sender {
    /// Passes on what the uplink asks of the spool, and has streams succeeded.
    pub(super) fn serve_spool(&mut self, now: Instant) {
        self.uplink.handle_timeout(self.ms(now));
        if self.spool_until.is_none() && self.spool.is_some() && self.stop_at.is_some_and(|at| now >= at) {
            self.uplink.spool_now();
            self.spool_until = Some(now + SPOOL_TIME);
        }
        if let Some(spool) = &self.spool {
            while let Some(request) = self.uplink.poll_spool() {
                spool.thread.ask(request);
            }
        }
        let mut succeeded = Vec::new();
        while let Some(stream) = self.uplink.poll_succession() {
            succeeded.push(stream);
        }
        if let Packing::Live(fleet) = &self.packing
            && !succeeded.is_empty()
        {
            limited!(debug, FEW, "{} streams are succeeded: the line is behind", succeeded.len());
            fleet.succeed(&succeeded);
        }
        while let Some((key, lost)) = self.uplink.poll_done() {
            self.handle_done(key, &lost);
        }
    }

    /// Nothing is left to do of a stream.
    fn handle_done(&mut self, key: StreamKey, lost: &Losses) {
        if key.epoch == self.epoch {
            self.losses.remove(key.stream);
        }
        let Some(spool) = &mut self.spool else { return };
        spool.thread.done(key);
        if key.epoch != self.epoch {
            spool.former.handle_done(key, lost);
        } else if let Some(totals) = &spool.totals {
            totals.release(key.stream);
        }
    }

    /// What is done each second.
    pub(super) fn watch(&mut self, now: Instant) {
        if now < self.watch_at {
            return;
        }
        self.watch_at = now + WATCH_TIME;
        wire::log::turn(now);
        // A thread that hangs is not alive for us: the service manager may start us anew.
        if self.watchdog.threads_live() {
            self.heart.beat(now);
        }
        for (stream, lost) in self.uplink.losses() {
            if !lost.0.is_empty() {
                self.losses.set(stream, lost.clone());
            }
        }
        let Packing::Live(fleet) = &mut self.packing else { return };
        fleet.handle_timeout(now);
        if self.stop_at.is_some() {
            return;
        }
        let (unreceived_blocks, unsettled_blocks) = self.uplink.waiting_blocks();
        let figures = Figures {
            captured_packets: self.packed.packets,
            handed_blocks: self.handed_blocks,
            received_blocks: self.handed_blocks.saturating_sub(unreceived_blocks),
            settled_blocks: self.handed_blocks.saturating_sub(unsettled_blocks),
            is_connected: self.uplink.is_streaming(),
            threads: &fleet.beats(),
        };
        for notice in self.watchdog.check(now, &figures) {
            if notice.is_alarm {
                limited!(warn, FEW, "{}", notice.text);
            } else {
                limited!(info, FEW, "{}", notice.text);
            }
        }
    }

    /// Makes the spool durable at the end; what it holds is the next run's.
    pub(super) fn close_spool(&mut self) -> Option<Closed> {
        while let Some((key, lost)) = self.uplink.poll_done() {
            self.handle_done(key, &lost);
        }
        let is_safe = self.threads_running == 0 && self.uplink.is_spooled();
        let Spool { totals, thread, .. } = self.spool.take()?;
        let closed = thread.close();
        // As long as something may be lost, the next run counts it by the totals.
        if let Some(totals) = totals
            && is_safe
            && closed.is_durable
            && let Err(error) = totals.remove()
        {
            warn!("totals: {error}");
        }
        Some(closed)
    }
}
