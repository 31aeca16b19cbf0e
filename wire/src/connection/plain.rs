//! A connection that speaks plain WebSocket: what the echo of the conformance run needs and no
//! program of ours has. Behind the feature `conformance`.

use super::*;

impl Connection {
    /// Speaks without a subprotocol, and takes messages of up to `bytes_max`. To be called before
    /// anything else; a client gives its `url` again.
    pub fn speak_plainly(&mut self, url: Option<&RelayUrl>, bytes_max: usize) -> Result<(), ConnectionError> {
        self.policy.subprotocol = None;
        self.deframer.set_limits(Limits { text_bytes: bytes_max, binary_bytes: bytes_max });
        if let Some(url) = url {
            let (request, key) = handshake::client_request(url, &self.policy)?;
            self.phase = Phase::ClientHandshake { connected: false, key, answer: Vec::new() };
            self.staged.clear();
            self.staged_total = 0;
            self.stage(&request);
        }
        Ok(())
    }

    /// Queues a text or binary message.
    pub fn queue_plain(&mut self, is_text: bool, payload: Vec<u8>) {
        self.push_control(if is_text { Outgoing::Text } else { Outgoing::Binary }, payload);
    }

    /// Closes as [`Connection::close`] does, with a close frame alone.
    pub fn close_plainly(&mut self, now: Instant, code: u16, reason: &str) {
        if self.is_open() {
            self.push_close(code, reason);
            self.phase = Phase::Closing { deadline: now + CLOSE_TIME, shut: false };
        }
    }
}
