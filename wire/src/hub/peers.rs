//! Who is there: publishers, workers, viewers, and what each is told of the others.

use super::*;

impl Hub {
    /// A sniffer said hello. An older connection of its epoch, or of its spool, is closed; one of
    /// another owner is not, nor are the streams of another owner taken over: the newcomer is refused.
    pub fn add_publisher(&mut self, peer: PeerId, run: Run, address: String) -> Result<(), HubError> {
        let is_older =
            |one: &Publisher| !one.is_worker && (one.run.epoch == run.epoch || one.run.home == run.home);
        let older: Vec<(PeerId, &Publisher)> =
            self.publishers.iter().filter(|(_, one)| is_older(one)).map(|(peer, one)| (*peer, one)).collect();
        if older.iter().any(|(_, one)| one.run.owner != run.owner)
            || self.is_of_another(run.epoch, &run.owner)
        {
            return Err(HubError::Taken { epoch: run.epoch });
        }
        for peer in older.into_iter().map(|(peer, _)| peer).collect::<Vec<_>>() {
            let reason = "a newer connection of the same sniffer took over".to_owned();
            self.outputs.push_back(Output::Close { peer, reason });
            self.remove_publisher(peer, self.now_ms);
        }
        if run.was_elsewhere {
            self.awaited.await_others();
        }
        self.publishers.insert(peer, Publisher::new(run, address, false));
        Ok(())
    }

    /// Whether a run is not this owner's. Runs of one spool meet at the same worker, so what another
    /// worker has is another's.
    pub(super) fn is_of_another(&self, epoch: Epoch, owner: &str) -> bool {
        self.holdings.owner_of(epoch).is_some_and(|of| of != owner)
    }

    /// Another worker, which takes all streams of our own and passes on its own.
    pub fn add_worker(&mut self, peer: PeerId, queue_bytes: usize) {
        self.publishers.insert(peer, Publisher::new(Run::default(), String::new(), true));
        self.viewers.insert(peer, Viewer::worker(queue_bytes));
        self.workers.push(peer);
    }

    /// A run of a viewer subscribed: every stream that matches is joined, from its next block on, or from
    /// where `cursors` say that the viewer is. Of sniffers that its grant does not let it see it learns nothing.
    pub fn add_viewer(
        &mut self,
        peer: PeerId,
        run: Epoch,
        selection: &Selection,
        grant: &Grant,
        cursors: &[Cursor],
    ) -> Result<(), HubError> {
        let matcher = Matcher::within(selection, grant)?;
        self.remove_viewer(peer, false);
        let mut viewer = Viewer::new(run, matcher, selection, self.config.viewer_queue_bytes);
        viewer.cursors = cursors.iter().map(|cursor| (cursor.key, *cursor)).collect();
        self.viewers.insert(peer, viewer);
        let mut keys: Vec<StreamKey> = self.streams.keys().copied().collect();
        keys.sort_unstable();
        let since = (!cursors.is_empty()).then(|| self.awaited.since(run));
        let joined = keys.into_iter().filter(|key| self.join(peer, *key, since)).count();
        let arrived_at = self.awaited.arrive(run, cursors.is_empty());
        if let Some(viewer) = self.viewers.get_mut(&peer) {
            viewer.arrived_at = Some(arrived_at);
        }
        self.let_go(); // it may have been the last that was awaited, and miss nothing
        self.outputs
            .push_back(Output::Control { to: peer, control: Control::Subscribed { streams: joined as u32 } });
        Ok(())
    }

    /// A connection is gone, whatever it was; a viewer does not come back if it went `for_good`. `now_ms`
    /// is any clock that does not go back.
    pub fn remove_peer(&mut self, peer: PeerId, for_good: bool, now_ms: u64) {
        self.now_ms = now_ms;
        self.remove_viewer(peer, for_good);
        self.remove_publisher(peer, now_ms);
    }

    /// A publisher that waits rather than have a block skipped asks how much may be under way.
    pub fn handle_paced(&mut self, peer: PeerId, wants: bool) {
        if let Some(publisher) = self.publishers.get_mut(&peer)
            && std::mem::replace(&mut publisher.is_paced, wants) != wants
        {
            self.tell_windows();
        }
    }

    /// All paced publishers together get half of a viewer's queue, or of a worker's: a viewer that
    /// takes all of them has room for what they send.
    pub(super) fn tell_windows(&mut self) {
        let is_paced = |publisher: &Publisher| publisher.is_paced;
        let count = self.publishers.values().filter(|one| is_paced(one)).count() as u64;
        let workers = 1 + self.publishers.values().filter(|one| one.is_worker).count() as u64;
        let all_bytes = self.config.viewer_queue_bytes as u64 / 2 / workers;
        for (peer, _) in self.publishers.iter().filter(|(_, one)| is_paced(one)) {
            let control = Control::Window { bytes: all_bytes / count };
            self.outputs.push_back(Output::Control { to: *peer, control });
        }
    }

    pub(super) fn remove_publisher(&mut self, peer: PeerId, now_ms: u64) {
        let Some(publisher) = self.publishers.remove(&peer) else { return };
        self.count_former(&publisher);
        if publisher.is_paced {
            self.tell_windows();
        }
        let of_peer = |(_, stream): &(&StreamKey, &Stream)| stream.publisher == Some(peer);
        let mut keys: Vec<StreamKey> = self.streams.iter().filter(of_peer).map(|(key, _)| *key).collect();
        keys.sort_unstable(); // told in the same order by every run
        for key in keys {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            stream.publisher = None;
            if stream.state != State::Live {
                continue;
            }
            stream.state = State::Away(now_ms);
            let is_worker = |peer: &PeerId| self.viewers.get(peer).is_some_and(Viewer::is_worker);
            for to in stream.subscribers.iter().copied().filter(is_worker) {
                let status = StreamStatus { state: AWAY.to_owned(), ..stream.status.clone() };
                let control = Control::Join { status, next_sequence: 0 };
                self.outputs.push_back(Output::Control { to, control });
            }
        }
    }

    pub(super) fn remove_viewer(&mut self, peer: PeerId, for_good: bool) {
        let Some(mut viewer) = self.viewers.remove(&peer) else { return };
        // Before anything is settled.
        if !viewer.is_worker() {
            self.awaited.leave(viewer.run, for_good);
            if viewer.misses_some() {
                self.awaited.catch_up(viewer.run); // as far as this connection goes
            }
        }
        for key in viewer.joined() {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            stream.subscribers.retain(|one| *one != peer);
            stream.status.viewers = stream.subscribers.len() as u32;
            if let Some(publisher) = stream.publisher {
                self.taker_left(publisher, peer);
            }
        }
        for (key, sequence) in viewer.take_unsettled() {
            self.serve(key, sequence);
        }
        self.let_go(); // it may have been the last that was awaited
    }

    pub(super) fn taker_joined(&mut self, publisher: PeerId, viewer: PeerId) {
        if let Some(one) = self.publishers.get_mut(&publisher) {
            match one.taker_at(viewer) {
                Ok(at) => one.takers[at].1 += 1,
                Err(at) => one.takers.insert(at, (viewer, 1)),
            }
            self.takers_changed.insert(publisher);
        }
    }

    pub(super) fn taker_left(&mut self, publisher: PeerId, viewer: PeerId) {
        if let Some(one) = self.publishers.get_mut(&publisher)
            && let Ok(at) = one.taker_at(viewer)
        {
            one.takers[at].1 -= 1;
            if one.takers[at].1 == 0 {
                one.takers.remove(at);
                self.takers_changed.insert(publisher);
            }
        }
    }

    /// Tells publishers whose takers have changed.
    pub(super) fn tell_takers(&mut self) {
        for peer in std::mem::take(&mut self.takers_changed) {
            let Some(publisher) = self.publishers.get_mut(&peer) else { continue };
            let mut takers = (0, false);
            for viewer in publisher.takers.iter().filter_map(|(viewer, _)| self.viewers.get(viewer)) {
                let (viewers, marks) = viewer.takers();
                takers = (takers.0 + viewers, takers.1 | marks);
            }
            if publisher.told != takers {
                publisher.told = takers;
                let control = Control::Takers { viewers: takers.0, marks: takers.1 };
                self.outputs.push_back(Output::Control { to: peer, control });
            }
        }
    }

    /// A downstream worker has that many viewers for our streams.
    pub fn handle_worker_takers(&mut self, peer: PeerId, viewers: u32, marks: bool) {
        if let Some(viewer) = self.viewers.get_mut(&peer) {
            viewer.set_worker_takers(viewers, marks);
            let takes = |publisher: &Publisher| publisher.taker_at(peer).is_ok();
            let changed = self.publishers.iter().filter(|(_, one)| takes(one)).map(|(peer, _)| *peer);
            self.takers_changed.extend(changed);
        }
    }
}
