//! Streams that are announced, and the viewers that are joined to them.

use super::*;

/// Most bytes of the names of a stream's interfaces that the relay keeps; viewers have the whole table
/// from the description. Each viewer that joins is told them.
const NAMES_BYTES_MAX: usize = 8 << 10;

fn trim(names: &mut Vec<String>) {
    let mut bytes = 0;
    let fits = |name: &&String| {
        bytes += name.len();
        bytes <= NAMES_BYTES_MAX
    };
    let count = names.iter().take_while(fits).count();
    names.truncate(count);
}

impl Hub {
    /// A publisher announces a stream, or that its table has grown.
    pub fn handle_stream(&mut self, peer: PeerId, announcement: Announcement) -> Result<(), HubError> {
        let Some(publisher) = self.publishers.get(&peer) else {
            return Err(HubError::NotPublisher { what: "a stream" });
        };
        let Announcement { key, mut interfaces, filter, opened_ns, predecessor, backlog } = announcement;
        if key.epoch != publisher.run.epoch {
            // Of an earlier run, whose spool is drained. That run must be over.
            let is_its = |(of, one): (&PeerId, &Publisher)| {
                *of != peer && !one.is_worker && one.run.epoch == key.epoch
            };
            if self.publishers.iter().any(is_its) {
                return Err(HubError::Foreign { key });
            }
        }
        // What another relay had, its viewers know: this stream of an earlier run, or the one before it.
        let is_foreign =
            |key: &StreamKey| key.epoch != publisher.run.epoch && !self.streams.contains_key(key);
        if [Some(key), predecessor].iter().flatten().any(is_foreign) {
            self.awaited.await_others();
        }
        // Its owner would find its run taken when it comes back.
        if self.is_of_another(key.epoch, &publisher.run.owner) {
            return Err(HubError::Foreign { key });
        }
        if interfaces.is_empty()
            && let Some(known) = self.streams.get(&key)
        {
            interfaces = known.status.interfaces.clone(); // the spool no longer knows
        }
        trim(&mut interfaces);
        let status = StreamStatus {
            key,
            name: publisher.run.name.clone(),
            interfaces,
            filter,
            opened_ns,
            predecessor,
            backlog,
            address: publisher.address.clone(),
            ..StreamStatus::default()
        };
        let owner = publisher.run.owner.clone();
        if !self.streams.contains_key(&key) && self.holdings.streams_of(&owner) >= STREAMS_PER_PUBLISHER_MAX {
            let is_its = |one: &&Stream| {
                one.publisher == Some(peer) && !matches!(one.state, State::Ended | State::GivenUp)
            };
            let own = self.streams.values().filter(is_its).count();
            if own >= STREAMS_PER_PUBLISHER_MAX {
                return Err(HubError::TooManyStreams);
            }
        }
        let noticed = self.streams.get(&key).map_or(0, |known| known.notices.len()) * NOTICE_BYTES;
        self.holdings.announce(key, &owner, bytes_of(&status) + noticed).map_err(|full| match full {
            Full::Streams => HubError::TooManyOfOwner,
            Full::Memory => HubError::Memory { key },
        })?;
        self.open_stream(peer, status, 0);
        self.owe_ack(peer, key); // tells after a cut how far we are
        Ok(())
    }

    /// An upstream worker joined us to one of its streams, or says that its sniffer is away.
    pub fn handle_join(&mut self, peer: PeerId, status: StreamStatus, next_sequence: u64) {
        let (key, is_away) = (status.key, status.state == AWAY);
        self.holdings.mirror(key, bytes_of(&status));
        self.open_stream(peer, status, next_sequence);
        if is_away
            && let Some(stream) = self.streams.get_mut(&key)
            && stream.state == State::Live
        {
            stream.state = State::Away(u64::MAX); // its owner decides when it is given up
        }
    }

    pub(super) fn open_stream(&mut self, peer: PeerId, status: StreamStatus, next_sequence: u64) {
        let key = status.key;
        let stream = self.streams.entry(key).or_insert_with(|| Stream {
            status: status.clone(),
            state: State::Live,
            publisher: None,
            description: None,
            end: None,
            cut: None,
            is_started: false,
            notices: VecDeque::new(),
            next_sequence: (next_sequence > 0).then_some(next_sequence),
            settled: next_sequence,
            openings: Vec::new(),
            arrived: 0,
            arrived_upstream: 0,
            pending: VecDeque::new(),
            subscribers: Vec::new(),
        });
        let former = stream.publisher.replace(peer);
        let has_changed =
            stream.status.interfaces != status.interfaces || stream.status.backlog != status.backlog;
        let is_revived = stream.state == State::GivenUp;
        if stream.state != State::Ended {
            stream.state = State::Live;
        }
        // Another worker says where a stream begins that it got in the middle. Only descriptions
        // can be under way between us, so nothing is overtaken.
        let begins = !stream.is_started && next_sequence > stream.next_sequence.unwrap_or(0);
        if begins {
            stream.next_sequence = Some(next_sequence);
            (stream.status.packets, stream.status.bytes) = (status.packets, status.bytes);
        }
        stream.status = StreamStatus {
            packets: stream.status.packets,
            bytes: stream.status.bytes,
            viewers: stream.status.viewers,
            ..status
        };
        if (stream.openings.is_empty() || has_changed || is_revived) && stream.openings.len() < OPENINGS_MAX {
            let beginning = Cursor { key, ..Cursor::default() };
            let place = if stream.openings.is_empty() { beginning } else { stream.place() };
            let (interfaces, backlog) = (stream.status.interfaces.len(), stream.status.backlog);
            stream.openings.push(Opening { moment: self.awaited.moment(), place, interfaces, backlog });
        }
        // Only a first join, or one that says where a stream begins, names a block.
        let begins_at = if begins { next_sequence } else { 0 };
        let status = stream.status.clone();
        for to in stream.subscribers.clone() {
            let is_worker = self.viewers.get(&to).is_some_and(Viewer::is_worker);
            if is_worker && (former != Some(peer) || has_changed) {
                self.tell(to, Control::Join { status: status.clone(), next_sequence: 0 });
            }
            if former != Some(peer) {
                self.taker_joined(peer, to);
            }
        }
        if is_revived {
            self.ended.retain(|ended| *ended != key);
        }
        if is_revived || begins {
            self.join_again(key, begins_at);
        }
        let mut viewers: Vec<PeerId> = self.viewers.keys().copied().collect();
        viewers.sort_unstable();
        for viewer in viewers {
            self.join(viewer, key, None);
        }
    }

    /// Tells those who have joined a stream that it is live again, or where it begins after all.
    pub(super) fn join_again(&mut self, key: StreamKey, next_sequence: u64) {
        let Some(stream) = self.streams.get(&key) else { return };
        let status = stream.status.clone();
        for to in stream.subscribers.clone() {
            let Some(viewer) = self.viewers.get_mut(&to) else { continue };
            viewer.revive(key);
            self.tell(to, Control::Join { status: status.clone(), next_sequence });
        }
    }

    /// Where a stream begins for a viewer that comes back and has no cursor of it: where it would have begun
    /// if the viewer had been there, if it was opened `since` then and is of a run that the viewer knows.
    fn opened_while_away(&self, viewer: &Viewer, stream: &Stream, since: u64) -> Option<Cursor> {
        let knows = self.knows(viewer, &stream.status);
        if !knows && !viewer.knows_epoch(stream.status.key.epoch) {
            return None;
        }
        let mut then = stream.status.clone();
        let is_its = |opening: &&Opening| {
            then.interfaces.clone_from(&stream.status.interfaces);
            then.interfaces.truncate(opening.interfaces);
            opening.moment > since && (knows || !opening.backlog) && viewer.wants(&then, false)
        };
        stream.openings.iter().find(is_its).map(|opening| opening.place)
    }

    /// Joins a viewer to a stream if it wants it and has not joined yet. `since`: it comes back, and knew the
    /// streams of that moment.
    pub(super) fn join(&mut self, peer: PeerId, key: StreamKey, since: Option<u64>) -> bool {
        let (Some(viewer), Some(stream)) = (self.viewers.get(&peer), self.streams.get(&key)) else {
            return false;
        };
        if stream.status.backlog && !viewer.is_worker() && !self.knows(viewer, &stream.status) {
            return false;
        }
        let opened = since.and_then(|since| self.opened_while_away(viewer, stream, since));
        let (Some(viewer), Some(stream)) = (self.viewers.get_mut(&peer), self.streams.get_mut(&key)) else {
            return false;
        };
        let cursor = viewer.cursors.get(&key).copied().or(opened);
        // A worker takes what is ours, not what it or another worker gave us.
        let from_worker = stream
            .publisher
            .and_then(|publisher| self.publishers.get(&publisher))
            .is_some_and(|publisher| publisher.is_worker);
        let place = stream.place();
        // One that comes back wants the rest of a stream that has ended meanwhile.
        let is_behind = cursor.is_some_and(|cursor| cursor.next_sequence < place.next_sequence);
        let is_over = matches!(stream.state, State::Ended | State::GivenUp);
        if (is_over && !is_behind) || !viewer.wants(&stream.status, from_worker) || !viewer.join(key) {
            return false;
        }
        let gone = match stream.state {
            State::GivenUp => Some(GIVEN_UP.to_owned()),
            _ => stream.cut.clone(),
        };
        stream.subscribers.push(peer);
        stream.status.viewers = stream.subscribers.len() as u32;
        let mut status = stream.status.clone();
        let from = cursor.unwrap_or(place);
        (status.packets, status.bytes) = (from.packets, from.bytes);
        let mut controls = vec![Control::Join { status, next_sequence: from.next_sequence }];
        controls.extend(stream.notices.iter().cloned());
        if let Some(cursor) = cursor {
            viewer.come_back(cursor, is_behind, self.recent.first_number());
            if is_behind && viewer.miss() {
                self.awaited.miss(viewer.run);
            }
        }
        if let Some(behind) = viewer.behind.get_mut(&key) {
            for notice in &stream.notices {
                behind.tell(notice);
            }
        }
        let description = stream.description.as_ref().filter(|_| !is_behind);
        let has_description = description.is_some();
        if let Some(description) = description {
            viewer.push_again(key, description.clone(), true, self.now_ms);
        }
        if let Some(publisher) = stream.publisher {
            self.taker_joined(publisher, peer);
        }
        for control in controls {
            self.tell(peer, control);
        }
        if has_description || is_behind {
            self.outputs.push_back(Output::Data { to: peer });
        }
        if let (Some(reason), Some(viewer)) = (gone, self.viewers.get_mut(&peer)) {
            viewer.give_up(key, reason);
        }
        true
    }
}
