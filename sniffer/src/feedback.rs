//! The feedback detector: does the sniffer capture what it sends?
//!
//! The filters exclude our own connection by its addresses and port. Behind a proxy, a tunnel or a
//! network address translation the packets on the wire carry others, and then each block sent is
//! captured and sent again. Rates alone cannot tell that from incompressible traffic, so the
//! detector asks the line: it holds the uplink for a moment. What is our own falls silent. A hold
//! delays packets, so traffic of small packets is not suspected: what we send fills large ones; and
//! it ends as soon as more has come in than can have been under way when it began.

use std::time::{Duration, Instant};

/// How often rates are compared.
const INTERVAL: Duration = Duration::from_secs(1);
/// For how long in a row they must be alike.
const SUSPICIOUS_INTERVALS: u32 = 3;
/// Below this rate nothing is suspected, in bytes a second.
const RATE_MIN: u64 = 128 << 10;
/// Captured packets that are smaller on average, in bytes, are not a stream's: of full packets of 1500 bytes
/// and an acknowledgement for each the average is 790, of packets of 1000 bytes 530.
const AVERAGE_BYTES_MIN: u64 = 512;
/// How long the uplink is held to find out, at least: what was under way when the hold began is
/// still captured in its first half.
const HOLD_TIME_MIN: Duration = Duration::from_millis(400);
/// The same in block timeouts: within one the kernel may say nothing although packets come.
const HOLD_BLOCK_TIMEOUTS: u32 = 6;
/// What is under way when a hold begins may be captured so often at each interface, coming and going through bridges and
/// tunnels, headers included; and so many bytes more, for what is not counted.
const CAPTURED_TIMES: u64 = 4;
const UNCOUNTED_BYTES: u64 = 4 << 20;
/// With a longer block timeout there is no telling within a bearable hold.
const BLOCK_TIMEOUT_MAX: Duration = Duration::from_millis(200);
/// How often in a row capture must fall silent with the uplink. A transfer that ends by chance
/// within one hold does not do so in the next.
const PROOFS: u32 = 3;
/// After a suspicion that was wrong, nothing is suspected for this long, doubled each time.
const REST_TIME: Duration = Duration::from_secs(60);
const REST_TIME_MAX: Duration = Duration::from_secs(3600);

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Normal,
    /// Send nothing until the next verdict.
    Hold,
    /// Capture has fallen silent with the uplink: it captures itself.
    Feedback {
        /// Captured before, bytes a second.
        before: u64,
        /// Captured while nothing was sent, bytes a second.
        held: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum State {
    Watching {
        suspicious: u32,
    },
    Holding {
        since: Instant,
        /// The same by the clock of the packets.
        since_ns: u64,
        rate_before: u64,
        /// Captured since then.
        fresh_bytes: u64,
        /// More of them than this cannot be our own.
        own_bytes: u64,
    },
}

/// What was captured and sent since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Packets captured.
    pub captured_packets: u64,
    /// Their captured bytes.
    pub captured_bytes: u64,
    /// Bytes handed to the kernel for the relay.
    pub sent_bytes: u64,
    /// Bytes of blocks, at most, that were sent and have not come to the relay, wherever they are on their way.
    pub under_way_bytes: u64,
    /// Interfaces that are captured.
    pub interfaces: u64,
}

/// Compares what is captured with what is sent.
#[derive(Debug)]
pub struct FeedbackDetector {
    state: State,
    hold: Duration,
    proofs: u32,
    last: Option<(Instant, Seen)>,
    rest: Duration,
    rest_until: Option<Instant>,
}

impl FeedbackDetector {
    /// A detector that suspects nothing yet; `None` if the block timeout is too long for it.
    pub fn new(block_timeout: Duration) -> Option<Self> {
        (block_timeout <= BLOCK_TIMEOUT_MAX).then(|| Self {
            state: State::Watching { suspicious: 0 },
            hold: HOLD_TIME_MIN.max(block_timeout * HOLD_BLOCK_TIMEOUTS),
            proofs: 0,
            last: None,
            rest: REST_TIME,
            rest_until: None,
        })
    }

    /// Ends a hold: it would cost packets, or it has shown enough.
    pub fn give_up(&mut self, now: Instant) {
        self.state = State::Watching { suspicious: 0 };
        self.last = None;
        self.rest_from(now);
    }

    fn rest_from(&mut self, now: Instant) {
        self.proofs = 0;
        self.rest_until = Some(now + self.rest);
        self.rest = (self.rest * 2).min(REST_TIME_MAX);
    }

    /// Whether the uplink is held.
    pub fn is_holding(&self) -> bool {
        matches!(self.state, State::Holding { .. })
    }

    /// When to call again.
    pub fn next_check(&self, now: Instant) -> Instant {
        match (self.state, self.last) {
            (State::Holding { since, .. }, _) => since + self.hold,
            (State::Watching { .. }, Some((at, _))) => at + INTERVAL,
            _ => now,
        }
    }

    /// So many bytes were captured, none of them before `time_ns` since 1970.
    pub fn handle_captured(&mut self, time_ns: u64, bytes: u64) {
        if let State::Holding { since_ns, fresh_bytes, .. } = &mut self.state
            && time_ns >= *since_ns
        {
            *fresh_bytes += bytes;
        }
    }

    /// To be called again and again with what was seen up to `now`, which is `now_ns` since 1970 by the clock that
    /// stamps packets.
    pub fn check(&mut self, now: Instant, now_ns: u64, seen: Seen) -> Verdict {
        let Some((at, then)) = self.last else {
            self.last = Some((now, seen));
            return Verdict::Normal;
        };
        let elapsed = now.saturating_duration_since(at);
        let per_second = |bytes: u64| (u128::from(bytes) * 1_000_000 / elapsed.as_micros().max(1)) as u64;
        let captured_bytes = seen.captured_bytes.saturating_sub(then.captured_bytes);
        let captured_packets = seen.captured_packets.saturating_sub(then.captured_packets);
        let captured_rate = per_second(captured_bytes);
        let sent_rate = per_second(seen.sent_bytes.saturating_sub(then.sent_bytes));
        match self.state {
            State::Watching { suspicious } => {
                if elapsed < INTERVAL {
                    return Verdict::Normal;
                }
                self.last = Some((now, seen));
                let alike = sent_rate >= RATE_MIN
                    && captured_bytes / captured_packets.max(1) >= AVERAGE_BYTES_MIN
                    && sent_rate >= captured_rate / 10 * 7
                    && captured_rate >= sent_rate / 10 * 7;
                let rests = self.rest_until.is_some_and(|until| now < until);
                if !alike {
                    self.proofs = 0;
                }
                let suspicious = if alike && !rests { suspicious + 1 } else { 0 };
                if suspicious < SUSPICIOUS_INTERVALS {
                    self.state = State::Watching { suspicious };
                    return Verdict::Normal;
                }
                self.state = State::Holding {
                    since: now,
                    since_ns: now_ns,
                    rate_before: captured_rate,
                    fresh_bytes: 0,
                    own_bytes: UNCOUNTED_BYTES + CAPTURED_TIMES * seen.interfaces * seen.under_way_bytes,
                };
                Verdict::Hold
            }
            State::Holding { fresh_bytes, own_bytes, .. } if fresh_bytes > own_bytes => {
                self.give_up(now);
                Verdict::Normal
            }
            State::Holding { since, rate_before, .. } => {
                let held = now.saturating_duration_since(since);
                if held < self.hold / 2 {
                    self.last = Some((now, seen));
                    return Verdict::Hold;
                }
                if held < self.hold {
                    return Verdict::Hold;
                }
                self.last = Some((now, seen));
                self.state = State::Watching { suspicious: 0 };
                if captured_rate >= rate_before / 5 {
                    self.rest_from(now);
                    return Verdict::Normal;
                }
                self.proofs += 1;
                if self.proofs == PROOFS {
                    return Verdict::Feedback { before: rate_before, held: captured_rate };
                }
                Verdict::Normal
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(captured_bytes: u64, packet_bytes: u64, sent_bytes: u64) -> Seen {
        let captured_packets = captured_bytes / packet_bytes;
        Seen { captured_packets, captured_bytes, sent_bytes, under_way_bytes: 0, interfaces: 1 }
    }

    /// Runs the detector over a line whose own traffic comes back (or not) beside a steady rate.
    fn run(own_comes_back: bool, other_rate: u64, seconds: u64) -> (Verdict, u64) {
        run_sized(own_comes_back, other_rate, 1000, seconds)
    }

    /// The same, of packets of `packet_bytes`.
    fn run_sized(own_comes_back: bool, other_rate: u64, packet_bytes: u64, seconds: u64) -> (Verdict, u64) {
        let start = Instant::now();
        let mut detector = FeedbackDetector::new(Duration::from_millis(10)).expect("short enough");
        let (mut captured, mut sent, mut holds) = (0, 0, 0);
        let mut now = start;
        while now < start + Duration::from_secs(seconds) {
            now += Duration::from_millis(20);
            let send = if detector.is_holding() { 0 } else { other_rate.max(500_000) / 50 };
            sent += send;
            captured += other_rate / 50 + if own_comes_back { send } else { 0 };
            let was_holding = detector.is_holding();
            let now_ns = now.duration_since(start).as_nanos() as u64;
            detector.handle_captured(
                now_ns - 20_000_000,
                other_rate / 50 + if own_comes_back { send } else { 0 },
            );
            let verdict = detector.check(now, now_ns, seen(captured, packet_bytes, sent));
            holds += u64::from(!was_holding && verdict == Verdict::Hold);
            if let Verdict::Feedback { .. } = verdict {
                return (verdict, holds);
            }
        }
        (Verdict::Normal, holds)
    }

    #[test]
    fn what_comes_back_is_noticed() {
        assert!(matches!(run(true, 0, 30).0, Verdict::Feedback { .. }));
    }

    #[test]
    fn incompressible_traffic_is_not_taken_for_our_own() {
        let (verdict, holds) = run(false, 1_000_000, 600);
        assert_eq!(verdict, Verdict::Normal);
        assert!((1..=4).contains(&holds), "{holds} holds, each rarer than the last");
    }

    #[test]
    fn a_transfer_that_ends_within_a_hold_is_not_taken_for_our_own() {
        let start = Instant::now();
        let mut detector = FeedbackDetector::new(Duration::from_millis(10)).expect("short enough");
        let (mut bytes, mut now, mut held_once) = (0, start, false);
        while now < start + Duration::from_secs(60) {
            now += Duration::from_millis(20);
            held_once |= detector.is_holding();
            bytes += if held_once { 0 } else { 20_000 }; // incompressible, and over with the hold
            let verdict = detector.check(now, 0, seen(bytes, 1000, bytes));
            assert!(!matches!(verdict, Verdict::Feedback { .. }));
        }
        assert!(held_once);
    }

    const UNDER_WAY_BYTES: u64 = 10 << 20;
    /// Of a hold that begins with so much under way, at two interfaces.
    const OWN_BYTES: u64 = UNCOUNTED_BYTES + CAPTURED_TIMES * 2 * UNDER_WAY_BYTES;

    /// A detector that holds the uplink of 400 MB/s since 3 s, and what checks it `ms` after its start, when `came` more
    /// bytes were captured and nothing was sent.
    fn held() -> (FeedbackDetector, impl FnMut(&mut FeedbackDetector, u64, u64) -> Verdict) {
        let start = Instant::now();
        let mut detector = FeedbackDetector::new(Duration::from_millis(10)).expect("short enough");
        let mut bytes = 0;
        let mut check = move |detector: &mut FeedbackDetector, ms: u64, came: u64| {
            bytes += came;
            let under_way =
                Seen { under_way_bytes: UNDER_WAY_BYTES, interfaces: 2, ..seen(bytes, 1500, bytes) };
            detector.check(start + Duration::from_millis(ms), ms * 1_000_000, under_way)
        };
        for second in 0..3 {
            assert_eq!(check(&mut detector, second * 1000, 400_000_000), Verdict::Normal);
        }
        assert_eq!(check(&mut detector, 3000, 400_000_000), Verdict::Hold);
        (detector, check)
    }

    #[test]
    fn a_hold_ends_when_more_was_captured_after_its_begin_than_can_be_our_own() {
        let (mut detector, mut check) = held();
        // What was in the ring when the hold began says nothing, however much it is.
        detector.handle_captured(2_900_000_000, 4 * OWN_BYTES);
        assert_eq!(check(&mut detector, 3020, 4 * OWN_BYTES), Verdict::Hold);
        detector.handle_captured(3_000_000_000, OWN_BYTES);
        assert_eq!(check(&mut detector, 3040, OWN_BYTES), Verdict::Hold);
        detector.handle_captured(3_040_000_000, 1);
        assert_eq!(check(&mut detector, 3041, 1), Verdict::Normal);
        assert!(!detector.is_holding());
        for second in 4..63 {
            assert_eq!(check(&mut detector, second * 1000, 400_000_000), Verdict::Normal, "it rests");
        }
    }

    #[test]
    fn what_was_under_way_does_not_end_a_hold() {
        let (mut detector, mut check) = held();
        detector.handle_captured(3_010_000_000, OWN_BYTES);
        assert_eq!(check(&mut detector, 3150, OWN_BYTES), Verdict::Hold);
        for ms in (3160..3400).step_by(20) {
            assert_eq!(check(&mut detector, ms, 0), Verdict::Hold);
        }
        check(&mut detector, 3400, 0);
        assert_eq!(detector.proofs, 1, "it fell silent");
    }

    #[test]
    fn small_packets_are_never_held() {
        assert_eq!(run_sized(false, 1_000_000, 400, 600), (Verdict::Normal, 0));
    }

    #[test]
    fn a_quiet_line_is_never_held() {
        assert_eq!(run(false, 0, 60), (Verdict::Normal, 0));
    }
}
