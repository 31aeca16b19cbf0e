//! Whether the line lives: dead, slow and stalled told apart. No I/O, no clock.
//!
//! * *Dead*: something was sent, and neither an acknowledgement nor a byte has come for the dead
//!   time; or all that was sent was acknowledged, and the peer itself, pinged, has said nothing for
//!   that long. The connection is closed.
//! * *Slow*: the peer's TCP acknowledges, however little. That is life.
//! * *Stalled*: the peer's TCP answers, but takes no byte, because its program does not read.
//!   That is no fault of the line and closes nothing here: [`Life::stalled_for`] tells how long it
//!   has lasted, and who knows what the peer is for decides.
//!
//! Where the system does not say what was acknowledged, a byte that the local kernel accepts stands
//! for one that the peer took; a line slower than one send buffer in the dead time is then taken for
//! dead.

use std::time::{Duration, Instant};

use super::acknowledged::SendState;

/// So many probes of a closed window have to go unanswered before it is silence: one may be lost.
const PROBES_MIN: u8 = 3;
/// Looks at the kernel's counters within one dead time.
const LOOKS: u32 = 20;

/// The times of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// For the TCP connection and the handshake. Default 10 s.
    pub handshake: Duration,
    /// After this time without sending, a ping is due. Default 5 s.
    pub ping: Duration,
    /// After this time without a sign of life the line is dead. Default 20 s.
    pub dead: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { handshake: super::HANDSHAKE_TIME, ping: super::PING_TIME, dead: super::DEAD_TIME }
    }
}

/// Signs of life of one connection.
#[derive(Debug)]
pub struct Life {
    times: Times,
    last_heard: Instant,
    last_sent: Instant,
    /// Until then no answer could be heard: a backlog kept pings from going out, we did not read, or
    /// did not run.
    unheard_until: Instant,
    /// At the last look something waited to be taken by the peer.
    waits: bool,
    /// When the peer last took a byte, or nothing waited for it.
    last_taken: Instant,
    acknowledged_bytes: u64,
    /// Something sent has been without an answer since then.
    unanswered_since: Option<Instant>,
    next_look: Instant,
}

impl Life {
    /// A connection that lives as of `now`.
    pub fn new(times: Times, now: Instant) -> Self {
        Self {
            times,
            last_heard: now,
            last_sent: now,
            unheard_until: now,
            waits: false,
            last_taken: now,
            acknowledged_bytes: 0,
            unanswered_since: None,
            next_look: now,
        }
    }

    /// Other times from now on.
    pub fn set_times(&mut self, times: Times) {
        self.times = times;
    }

    /// The times.
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// We do not read, by our own choice, so we hear no answer. That what we send is acknowledged is
    /// expected all the same.
    pub fn handle_paused(&mut self, now: Instant) {
        self.unheard_until = now;
    }

    /// Bytes came.
    pub fn handle_heard(&mut self, now: Instant) {
        self.last_heard = now;
    }

    /// The local kernel took bytes, or a ping was queued for it.
    pub fn handle_sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// Whether nothing was sent for so long that a ping is due.
    pub fn is_ping_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_sent) >= self.times.ping
    }

    /// Whether it is time for [`Life::look`]. The system call that it takes is not made more often.
    pub fn is_look_due(&self, now: Instant) -> bool {
        now >= self.next_look
    }

    /// Takes what the kernel says now. `has_backlog`: more waits that the kernel has not taken.
    /// After how much silence the line is dead, if it is.
    pub fn look(&mut self, now: Instant, has_backlog: bool, state: Option<SendState>) -> Option<Duration> {
        if now.saturating_duration_since(self.next_look) >= self.times.dead / 2 {
            self.unheard_until = now; // this program was stopped
        }
        self.next_look = now + self.times.dead / LOOKS;
        let Some(state) = state else { return self.look_without(now, has_backlog) };
        let in_kernel = state.unsent_bytes > 0 || state.unacknowledged_segments > 0;
        self.waits = has_backlog || in_kernel;
        if !self.waits || state.acknowledged_bytes != self.acknowledged_bytes {
            (self.last_taken, self.acknowledged_bytes) = (now, state.acknowledged_bytes);
        }
        let answered = now.checked_sub(state.silent).unwrap_or(self.last_heard);
        let last_sign = self.last_heard.max(answered);
        if has_backlog || state.unsent_bytes > 0 {
            self.unheard_until = now;
        }
        if state.unacknowledged_segments == 0 && state.unanswered_probes == 0 {
            self.unanswered_since = None;
        } else if self.unanswered_since.is_none_or(|since| since < last_sign) {
            self.unanswered_since = Some(last_sign.max(self.unanswered_since.unwrap_or(now)));
        }
        let silent = now.saturating_duration_since(last_sign);
        // Silence from before the last thing was sent does not count: the peer had nothing to
        // answer. A quarter of the time is enough for an answer to what was sent since then, and a
        // ping goes out early enough to leave that.
        let has_waited = |part: u32| {
            self.unanswered_since
                .is_some_and(|since| now.saturating_duration_since(since) >= self.times.dead / part)
        };
        let is_cut = match state.unacknowledged_segments {
            0 => state.unanswered_probes >= PROBES_MIN && has_waited(4),
            _ => has_waited(4),
        };
        let could_answer = now.saturating_duration_since(self.last_heard.max(self.unheard_until));
        let is_mute = !self.waits && could_answer >= self.times.dead;
        (silent >= self.times.dead && is_cut || is_mute).then(|| silent.max(self.times.dead))
    }

    /// The rule where the system does not say what was acknowledged.
    fn look_without(&mut self, now: Instant, has_backlog: bool) -> Option<Duration> {
        self.waits = has_backlog;
        self.last_taken = if has_backlog { self.last_taken.max(self.last_sent) } else { now };
        // An idle line accepts into the local kernel whatever happens.
        let heard = self.last_heard.max(self.unheard_until);
        let last_sign = if has_backlog { heard.max(self.last_sent) } else { heard };
        let silent = now.saturating_duration_since(last_sign);
        (silent >= self.times.dead).then_some(silent)
    }

    /// Time since the peer last took a byte while some wait for it, to the accuracy of a look; zero
    /// while none waits.
    pub fn stalled_for(&self, now: Instant) -> Duration {
        if self.waits { now.saturating_duration_since(self.last_taken) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: SendState = SendState {
        acknowledged_bytes: 1,
        unsent_bytes: 0,
        unacknowledged_segments: 0,
        unanswered_probes: 0,
        silent: Duration::ZERO,
        round_trip: Duration::ZERO,
    };

    /// Looks each second from `from_s` on, until the line is dead or `until_s`; when it was.
    fn dead_at(
        life: &mut Life,
        start: Instant,
        seconds: std::ops::RangeInclusive<u64>,
        has_backlog: bool,
        mut state: impl FnMut(u64) -> SendState,
    ) -> Option<u64> {
        seconds.into_iter().find(|at_s| {
            let now = start + Duration::from_secs(*at_s);
            assert!(life.is_look_due(now));
            life.look(now, has_backlog, Some(state(*at_s))).is_some()
        })
    }

    #[test]
    fn slow_and_stalled_lines_live() {
        let start = Instant::now();
        let mut life = Life::new(Times::default(), start);
        // 50 kbit/s, 5 s of round trip: something is always under way, and acknowledged late.
        let slow = |at_s| SendState {
            acknowledged_bytes: at_s / 5 * 30_000,
            unsent_bytes: 250_000,
            unacknowledged_segments: 20,
            silent: Duration::from_secs(at_s % 5),
            ..IDLE
        };
        assert_eq!(dead_at(&mut life, start, 1..=300, true, slow), None);
        assert!(life.stalled_for(start + Duration::from_secs(300)) < Duration::from_secs(5));
        // The window is closed. Probes are answered, but the last of them come every two minutes.
        let stopped = |at_s| SendState {
            acknowledged_bytes: 77,
            unsent_bytes: 250_000,
            unacknowledged_segments: 0,
            unanswered_probes: u8::from(at_s % 120 == 0),
            silent: Duration::from_secs(at_s % 120),
            ..IDLE
        };
        assert_eq!(dead_at(&mut life, start, 301..=2000, true, stopped), None);
        assert_eq!(life.stalled_for(start + Duration::from_secs(2000)), Duration::from_secs(1699));
        // It reads on, and nothing is left: what it has to say itself may still take a while.
        assert_eq!(dead_at(&mut life, start, 2001..=2010, false, |_| IDLE), None);
        assert_eq!(life.stalled_for(start + Duration::from_secs(2010)), Duration::ZERO);
        assert_eq!(dead_at(&mut life, start, 2011..=2050, false, |_| IDLE), Some(2020), "not even to pings");
    }

    #[test]
    fn a_cut_line_is_dead_after_the_dead_time() {
        let start = Instant::now();
        let cut = |unacknowledged_segments, from_s: u64| {
            move |at_s: u64| SendState {
                unacknowledged_segments,
                unsent_bytes: 1,
                silent: Duration::from_secs(at_s - from_s),
                ..IDLE
            }
        };
        let mut life = Life::new(Times::default(), start);
        assert_eq!(dead_at(&mut life, start, 1..=99, true, cut(9, 0)), Some(20), "while busy");
        // Idle: the ping of second 5 is what is not acknowledged.
        let mut life = Life::new(Times::default(), start);
        let idle = |at_s| SendState { unsent_bytes: 0, ..cut(u32::from(at_s >= 5), 0)(at_s) };
        assert_eq!(dead_at(&mut life, start, 1..=99, false, idle), Some(20), "while idle");
        // A peer that does not read, and then is cut off: probes each 5 s show it.
        let mut life = Life::new(Times::default(), start);
        let probed = |at_s| SendState { unanswered_probes: (at_s / 5) as u8, ..cut(0, 0)(at_s) };
        assert_eq!(dead_at(&mut life, start, 1..=99, true, probed), Some(20), "while stalled");
    }

    #[test]
    fn what_was_only_just_sent_is_not_yet_unanswered() {
        let start = Instant::now();
        let at = |at_s| start + Duration::from_secs(at_s);
        let mut life = Life::new(Times::default(), start);
        assert_eq!(life.look(at(1), false, Some(IDLE)), None);
        // We are stopped for a minute, and the ping that is due goes out.
        let state = |silent_s| SendState {
            unacknowledged_segments: 1,
            silent: Duration::from_secs(silent_s),
            ..IDLE
        };
        for at_s in 60..65 {
            assert_eq!(life.look(at(at_s), false, Some(state(at_s - 1))), None);
        }
        assert_eq!(life.look(at(65), false, Some(IDLE)), None);
        assert_eq!(dead_at(&mut life, start, 66..=99, false, |_| IDLE), Some(80), "but it is mute");
    }

    #[test]
    fn who_does_not_read_hears_nothing_and_notices_a_cut_all_the_same() {
        let start = Instant::now();
        for (unacknowledged_segments, expected) in [(0, None), (1, Some(20))] {
            let mut life = Life::new(Times::default(), start);
            let found = (1..=60).find(|at_s| {
                let now = start + Duration::from_secs(*at_s);
                life.handle_paused(now);
                let silent = Duration::from_secs(if unacknowledged_segments > 0 { *at_s } else { at_s % 5 });
                let state = SendState { unacknowledged_segments, silent, ..IDLE };
                life.look(now, false, Some(state)).is_some()
            });
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_peer_that_acknowledges_pings_and_never_answers_is_dead() {
        let start = Instant::now();
        let mut life = Life::new(Times::default(), start);
        let pinged = |at_s| SendState { acknowledged_bytes: at_s / 5, ..IDLE };
        assert_eq!(dead_at(&mut life, start, 1..=99, false, pinged), Some(20));
    }

    #[test]
    fn without_the_kernels_word_what_it_accepts_counts() {
        let start = Instant::now();
        let at = |at_s| start + Duration::from_secs(at_s);
        let mut life = Life::new(Times::default(), start);
        assert_eq!(life.look(at(9), true, None), None);
        life.handle_sent(at(10));
        assert_eq!(life.look(at(19), true, None), None);
        assert_eq!(life.look(at(29), true, None), None);
        assert_eq!(life.stalled_for(at(29)), Duration::from_secs(19));
        assert_eq!(life.look(at(30), true, None), Some(Duration::from_secs(20)));
        assert_eq!(life.look(at(30), false, None), Some(Duration::from_secs(30)), "idle: only what came");
    }
}
