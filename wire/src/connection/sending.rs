//! The way out: committed to the line, masked if we are the client, written, settled.

use super::*;

/// The budget is asked when what waits passes a multiple of this. What is less is part of what every
/// connection is charged: where memory is short, those with little to say go on.
const BUDGET_STEP_BYTES: usize = 16 << 10;

impl Connection {
    pub(super) fn push_control(&mut self, kind: Outgoing, payload: Vec<u8>) {
        // One pong says what many would (RFC 6455, section 5.5.3), and so does one progress: a peer
        // that asks often, or sends much, while it does not read must not fill the queue.
        let is_answer = kind == Outgoing::Pong || payload.starts_with(PONG_JSON);
        if is_answer && self.control.len() >= UNANSWERED_QUEUE {
            return;
        }
        let is_pong = |waiting: &(Outgoing, Vec<u8>)| waiting.0 == Outgoing::Pong;
        if kind == Outgoing::Pong
            && self.control.iter().filter(|waiting| is_pong(waiting)).count() >= PONGS_MAX
            && let Some(dropped) =
                self.control.iter().position(is_pong).and_then(|at| self.control.remove(at))
        {
            self.control_bytes -= dropped.1.len();
        }
        let superseding = match kind {
            Outgoing::Text => SUPERSEDING_JSON.into_iter().find(|head| payload.starts_with(head)),
            _ => None,
        };
        let one = (kind, payload);
        if let Some(head) = superseding
            && let Some(waiting) =
                self.control.iter_mut().find(|waiting| waiting.0 == kind && waiting.1.starts_with(head))
        {
            self.control_bytes = self.control_bytes - waiting.1.len() + one.1.len();
            *waiting = one;
            return;
        }
        self.control_bytes += one.1.len();
        self.control.push_back(one);
        self.count_against_budget();
    }

    fn count_against_budget(&mut self) {
        if let Some(budget) = &mut self.budget {
            let queued = self.control_bytes - self.control_bytes % BUDGET_STEP_BYTES;
            budget.is_used_up |= !budget.charge.set(budget.base_bytes + queued);
        }
    }

    /// Queues a close frame. 1005 is no code that is sent, but stands for none (RFC 6455, section
    /// 7.4.1).
    pub(super) fn push_close(&mut self, code: u16, reason: &str) {
        let mut end = reason.len().min(120);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let code = if code == 1005 { Vec::new() } else { code.to_be_bytes().to_vec() };
        self.push_control(Outgoing::Close, [&code[..], &reason.as_bytes()[..end]].concat());
    }

    /// Sends what can be sent. In the end of a close this is what ends with an error.
    pub fn drive(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if let Phase::ClientHandshake { connected, .. } = &mut self.phase
            && !*connected
        {
            if let Some(error) = self.transport.stream().take_error()? {
                return Err(error.into());
            }
            match self.transport.stream().peer_addr() {
                Ok(_) => *connected = true,
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.check_control_queue()?;
        self.send(now)?;
        if let Phase::Closing { shut: false, .. } = self.phase
            && self.staged.is_empty()
            && self.control.is_empty()
            && self.committed.is_empty()
        {
            self.transport.say_goodbye();
            self.send(now)?;
            if !self.transport.wants_write() {
                let _ = self.transport.stream().shutdown(Shutdown::Write); // the peer may be gone already
                if let Phase::Closing { shut, .. } = &mut self.phase {
                    *shut = true;
                }
            }
        }
        Ok(())
    }

    /// Sends until nothing is left or the socket takes no more.
    fn send(&mut self, now: Instant) -> Result<(), ConnectionError> {
        while self.writable && self.wants_to_send() {
            let sent = if self.transport.wants_write() {
                self.transport.flush()
            } else {
                self.commit()?;
                match (self.staged.is_empty(), self.committed.front()) {
                    // The head of a frame of which TCP is to have the rest by reference.
                    (false, Some(piece)) if piece.is_lent && piece.done > 0 => {
                        self.transport.write_before_pages(self.staged.unsent())
                    }
                    (false, _) => self.transport.write(&[IoSlice::new(self.staged.unsent())]),
                    (true, Some(piece)) if piece.is_lent => {
                        let rest = &piece.payload[piece.done.saturating_sub(piece.head.len())..];
                        self.transport.write_pages(rest)
                    }
                    (true, _) => write_pieces(&mut self.transport, &self.committed),
                }
            };
            match sent {
                Ok(count) => {
                    self.life.handle_sent(now);
                    self.settle(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What is left of it is copied.
                Err(error)
                    if error.kind() == ErrorKind::Unsupported
                        && self.committed.front().is_some_and(|piece| piece.is_lent) =>
                {
                    self.committed.iter_mut().for_each(|piece| piece.is_lent = false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) fn wants_to_send(&self) -> bool {
        if self.transport.wants_write() {
            return true;
        }
        if !self.transport.is_established() {
            return false; // what is staged waits for the TLS handshake
        }
        let queued = !self.control.is_empty() || !self.data.is_empty() || !self.committed.is_empty();
        !self.staged.is_empty() || (queued && (self.is_open() || self.is_closing()))
    }

    /// Lets go of everything that waits: it can never be sent.
    pub(super) fn abandon(&mut self) {
        self.staged.clear();
        self.staged_ends.clear();
        self.control.clear();
        self.control_bytes = 0;
        self.data.clear();
        self.data_bytes = 0;
        self.committed.clear();
        self.committed_bytes = 0;
    }

    pub(super) fn check_control_queue(&self) -> Result<(), ConnectionError> {
        if self.budget.as_ref().is_some_and(|budget| budget.is_used_up) {
            return Err(ConnectionError::Budget);
        }
        let is_over = self.control.len() > CONTROL_QUEUE_MAX || self.control_bytes > CONTROL_QUEUE_BYTES_MAX;
        if is_over { Err(ConnectionError::NotReading) } else { Ok(()) }
    }

    /// Commits queued messages to the line, control first, and masks a client's into the send
    /// buffer.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        if !(self.is_open() || self.is_closing()) {
            return Ok(());
        }
        while self.committed.len() < COMMITTED_MESSAGES && self.committed_bytes < COMMITTED_BYTES {
            let (kind, envelope, Payload { bytes: payload, mask: masked_with, is_lent }) =
                if let Some((kind, payload)) = self.control.pop_front() {
                    self.control_bytes -= payload.len();
                    (kind, None, Bytes::from(payload).into())
                } else if let Some((envelope, payload)) = self.data.pop_front() {
                    self.data_bytes -= payload.bytes.len();
                    (Outgoing::Binary, Some(envelope), payload)
                } else {
                    break;
                };
            let is_lent = is_lent && masked_with.is_some() && self.transport.takes_pages();
            // What is copied gets a mask of its own: what is sent again must not have the one it had before.
            let mask = match masked_with {
                Some(mask) if is_lent => Some(mask),
                _ if self.is_client => Some(random_mask()?),
                _ => None,
            };
            let envelope_bytes = envelope.map(Envelope::emit);
            let envelope_len = envelope_bytes.map_or(0, |bytes| bytes.len());
            let mut head = Vec::with_capacity(24);
            write_header(&mut head, kind, envelope_len + payload.len(), mask);
            if let Some(mut bytes) = envelope_bytes {
                if let Some(mask) = mask {
                    apply_mask(&mut bytes, mask, 0);
                }
                head.extend_from_slice(&bytes);
            }
            let mask = combined(mask, masked_with);
            let piece = Piece { head, payload, mask, is_lent, is_data: envelope.is_some(), done: 0 };
            self.committed_bytes += piece.len();
            self.committed.push_back(piece);
        }
        self.count_against_budget();
        if self.is_client && self.staged.is_empty() {
            self.mask_into_send_buffer();
        }
        Ok(())
    }

    /// Fills a client's send buffer from the committed messages, up to a payload that TCP is to have by reference.
    pub(super) fn mask_into_send_buffer(&mut self) {
        if self.committed.is_empty() {
            return;
        }
        self.staged.begin(SEND_BUFFER_BYTES);
        while let Some(piece) = self.committed.front_mut() {
            let room = self.staged.room();
            if room.len() < 64 {
                break;
            }
            let head = &piece.head[piece.done.min(piece.head.len())..];
            let (head_room, room) = room.split_at_mut(head.len());
            head_room.copy_from_slice(head);
            if piece.is_lent {
                let filled = head.len();
                self.staged.fill(filled);
                piece.done += filled;
                self.staged_total += filled as u64;
                break;
            }
            let payload_done = piece.done.saturating_sub(piece.head.len());
            let count = room.len().min(piece.payload.len() - payload_done);
            let from = &piece.payload[payload_done..payload_done + count];
            // The envelope, eight bytes, is part of the masked payload: the phase stays the same.
            copy_masked(from, &mut room[..count], piece.mask.unwrap_or_default(), payload_done);
            let filled = head.len() + count;
            self.staged.fill(filled);
            piece.done += filled;
            self.staged_total += filled as u64;
            if piece.done < piece.len() {
                break;
            }
            if piece.is_data {
                self.staged_ends.push_back(self.staged_total);
            }
            self.committed_bytes -= piece.len();
            self.committed.pop_front();
        }
    }

    /// Stages bytes that are no message: those of a handshake.
    pub(super) fn stage(&mut self, bytes: &[u8]) {
        self.staged.push(bytes);
        self.staged_total += bytes.len() as u64;
    }

    /// `count` more bytes have been handed to the kernel.
    pub(super) fn settle(&mut self, mut count: usize) {
        if !self.staged.is_empty() {
            self.staged.sent(count);
            let staged_left = self.staged.unsent().len() as u64;
            let through = self.staged_total - staged_left;
            while self.staged_ends.front().is_some_and(|end| *end <= through) {
                self.staged_ends.pop_front();
                self.data_sent += 1;
            }
            return;
        }
        while count > 0 {
            let Some(piece) = self.committed.front_mut() else { return };
            let left = piece.len() - piece.done;
            if count < left {
                piece.done += count;
                return;
            }
            count -= left;
            self.data_sent += u64::from(piece.is_data);
            self.committed_bytes -= piece.len();
            self.committed.pop_front();
        }
    }
}

/// One vectored write of the committed frames, from where their payloads lie.
fn write_pieces(transport: &mut Transport, pieces: &VecDeque<Piece>) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); 2 * COMMITTED_MESSAGES];
    let mut used = 0;
    for piece in pieces.iter().take(COMMITTED_MESSAGES) {
        let head = piece.head.get(piece.done..).unwrap_or_default();
        let payload = &piece.payload[piece.done.saturating_sub(piece.head.len())..];
        for part in [head, payload] {
            if !part.is_empty() {
                slices[used] = IoSlice::new(part);
                used += 1;
            }
        }
    }
    transport.write(&slices[..used])
}

/// What payload that is masked with `is` is to be masked with to be masked with `wanted`.
fn combined(wanted: Option<Mask>, is: Option<Mask>) -> Option<Mask> {
    let (Some(wanted), Some(is)) = (wanted, is) else { return wanted.or(is) };
    Some(std::array::from_fn(|at| wanted[at] ^ is[at]))
}
