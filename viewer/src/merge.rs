//! The merge by time: packets of several streams in one order. No I/O, no clock.
//!
//! Each stream's packets keep the order they came in. Of the oldest packets of all streams the
//! oldest leaves when no other live stream can still bring an older one: each has a packet waiting,
//! or has said that nothing older is to come, or has ended. It waits at most the window after it
//! arrived, and less when too much waits.
//!
//! INVARIANT: what waits exceeds the bound by one run at most.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use wire::block::StreamKey;

use crate::unpack::PacketEnd;

/// Packets of one stream and block that wait, whole Enhanced Packet Blocks.
#[derive(Debug)]
struct Run {
    bytes: Vec<u8>,
    ends: Vec<PacketEnd>,
    /// Packets that have left.
    next: usize,
    arrived: Instant,
}

impl Run {
    fn head_ns(&self) -> u64 {
        self.ends[self.next].time_ns
    }

    fn start(&self) -> usize {
        self.next.checked_sub(1).map_or(0, |last| self.ends[last].end as usize)
    }

    fn cost_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<PacketEnd>()
    }
}

#[derive(Debug, Default)]
struct Lane {
    runs: VecDeque<Run>,
    /// Nothing older is to come.
    through_ns: u64,
    ended: bool,
}

/// Packets of one stream that leave together.
#[derive(Debug)]
pub struct Leaving<'a> {
    /// Their stream.
    pub key: StreamKey,
    /// The packets.
    pub bytes: &'a [u8],
    /// How many they are.
    pub packets: usize,
}

/// The merge. See the module's head.
#[derive(Debug)]
pub struct Merge {
    window: Duration,
    limit_bytes: usize,
    waiting_bytes: usize,
    lanes: BTreeMap<StreamKey, Lane>,
    /// All packets of its first run have left: it goes when the next are asked for.
    used_up: Option<StreamKey>,
    spare: Vec<(Vec<u8>, Vec<PacketEnd>)>,
}

impl Merge {
    /// A merge that holds packets back for at most `window` and as long as at most `limit_bytes`
    /// wait.
    pub fn new(window: Duration, limit_bytes: usize) -> Self {
        let (lanes, used_up, spare) = (BTreeMap::new(), None, Vec::new());
        Self { window, limit_bytes, waiting_bytes: 0, lanes, used_up, spare }
    }

    /// A stream is live: others wait for it.
    pub fn join(&mut self, key: StreamKey) {
        self.lanes.entry(key).or_default().ended = false;
    }

    /// Nothing more comes of a stream.
    pub fn end(&mut self, key: StreamKey) {
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.ended = true;
            if lane.runs.is_empty() {
                self.lanes.remove(&key);
            }
        }
    }

    /// Whether packets of a stream wait, or others wait for it.
    pub fn has(&self, key: StreamKey) -> bool {
        self.lanes.contains_key(&key)
    }

    /// Nothing older than `through_ns` is to come in a stream.
    pub fn advance(&mut self, key: StreamKey, through_ns: u64) {
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.through_ns = lane.through_ns.max(through_ns);
        }
    }

    /// Packets of a stream came; `ends` says where each ends in `bytes`, and its time.
    pub fn push(&mut self, key: StreamKey, bytes: &[u8], ends: &[PacketEnd], now: Instant) {
        if ends.is_empty() {
            return;
        }
        let (mut run_bytes, mut run_ends) = self.spare.pop().unwrap_or_default();
        run_bytes.extend_from_slice(bytes);
        run_ends.extend_from_slice(ends);
        let run = Run { bytes: run_bytes, ends: run_ends, next: 0, arrived: now };
        self.waiting_bytes += run.cost_bytes();
        self.lanes.entry(key).or_default().runs.push_back(run);
    }

    /// Bytes of memory that waiting packets hold.
    #[cfg(test)]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// When something leaves that would not leave now, if nothing more comes.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.lanes.values().filter_map(|lane| lane.runs.front()).map(|run| run.arrived + self.window).min()
    }

    /// The next packets that leave. `all`: whether they may or not, in order all the same.
    pub fn poll_leaving(&mut self, now: Instant, all: bool) -> Option<Leaving<'_>> {
        self.drop_used_up();
        // The oldest head, the oldest of the others, and how far the streams without a packet are.
        let mut first: Option<(u64, StreamKey)> = None;
        let mut second_ns = u64::MAX;
        let mut through_ns = u64::MAX;
        let mut due = all || self.waiting_bytes > self.limit_bytes;
        for (key, lane) in &self.lanes {
            let Some(run) = lane.runs.front() else {
                if !lane.ended {
                    through_ns = through_ns.min(lane.through_ns);
                }
                continue;
            };
            due |= run.arrived + self.window <= now;
            let head_ns = run.head_ns();
            match first {
                Some((first_ns, _)) if first_ns <= head_ns => second_ns = second_ns.min(head_ns),
                former => {
                    second_ns = former.map_or(second_ns, |(former_ns, _)| former_ns);
                    first = Some((head_ns, *key));
                }
            }
        }
        let (first_ns, key) = first?;
        if !due && first_ns > through_ns {
            return None;
        }
        let limit_ns = if due { second_ns } else { second_ns.min(through_ns) };
        let run = self.lanes.get_mut(&key)?.runs.front_mut()?;
        let (start, before) = (run.start(), run.next);
        run.next += 1; // the first one leaves whatever the limit says
        while run.ends.get(run.next).is_some_and(|packet| packet.time_ns <= limit_ns) {
            run.next += 1;
        }
        if run.next == run.ends.len() {
            self.used_up = Some(key);
        }
        Some(Leaving { key, bytes: &run.bytes[start..run.start()], packets: run.next - before })
    }

    fn drop_used_up(&mut self) {
        let Some(key) = self.used_up.take() else { return };
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if let Some(mut run) = lane.runs.pop_front() {
            self.waiting_bytes -= run.cost_bytes();
            if self.spare.len() < 4 && run.bytes.capacity() <= 2 << 20 {
                run.bytes.clear();
                run.ends.clear();
                self.spare.push((run.bytes, run.ends));
            }
        }
        if lane.ended && lane.runs.is_empty() {
            self.lanes.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wire::block::Epoch;

    fn key(stream: u32) -> StreamKey {
        StreamKey { epoch: Epoch(1), stream }
    }

    /// A run of packets of four bytes, each its own number; the times are given.
    fn run(times: &[u64], number: &mut u32) -> (Vec<u8>, Vec<PacketEnd>) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for time_ns in times {
            bytes.extend_from_slice(&number.to_le_bytes());
            *number += 1;
            ends.push(PacketEnd { time_ns: *time_ns, end: bytes.len() as u32 });
        }
        (bytes, ends)
    }

    fn drain(merge: &mut Merge, now: Instant, all: bool) -> Vec<(u32, u32)> {
        let mut left = Vec::new();
        while let Some(leaving) = merge.poll_leaving(now, all) {
            assert_eq!(leaving.bytes.len(), leaving.packets * 4);
            for packet in leaving.bytes.chunks(4) {
                left.push((leaving.key.stream, u32::from_le_bytes(packet.try_into().expect("four"))));
            }
        }
        left
    }

    #[test]
    fn it_waits_for_the_slower_stream_but_not_longer_than_the_window() {
        let now = Instant::now();
        let mut merge = Merge::new(Duration::from_millis(200), 1 << 20);
        let mut number = 0;
        merge.join(key(1));
        merge.join(key(2));
        let (bytes, ends) = run(&[10, 20, 30], &mut number);
        merge.push(key(1), &bytes, &ends, now);
        assert_eq!(drain(&mut merge, now, false), []);
        merge.advance(key(2), 20);
        assert_eq!(drain(&mut merge, now, false), [(1, 0), (1, 1)]);
        let (bytes, ends) = run(&[25, 40], &mut number);
        merge.push(key(2), &bytes, &ends, now + Duration::from_millis(100));
        assert_eq!(drain(&mut merge, now, false), [(2, 3), (1, 2)]);
        assert_eq!(merge.poll_timeout(), Some(now + Duration::from_millis(300)));
        assert_eq!(drain(&mut merge, now + Duration::from_millis(299), false), []);
        assert_eq!(drain(&mut merge, now + Duration::from_millis(300), false), [(2, 4)]);
        let (bytes, ends) = run(&[50], &mut number);
        merge.push(key(1), &bytes, &ends, now);
        merge.end(key(2));
        assert_eq!(drain(&mut merge, now, false), [(1, 5)]);
        assert_eq!(merge.waiting_bytes(), 0);
    }

    #[test]
    fn when_too_much_waits_the_oldest_leave() {
        let now = Instant::now();
        let mut merge = Merge::new(Duration::from_secs(60), 4096);
        merge.join(key(2));
        let mut number = 0;
        for round in 0..100 {
            let (bytes, ends) = run(&[round; 32], &mut number);
            merge.push(key(1), &bytes, &ends, now);
            drain(&mut merge, now, false);
            assert!(merge.waiting_bytes() <= 4096 + 2048);
        }
        assert!(merge.waiting_bytes() > 0);
    }

    #[derive(Clone, Debug)]
    struct Step {
        lane: u32,
        times: Vec<u64>,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0u32..4, proptest::collection::vec(0u64..1000, 1..20))
            .prop_map(|(lane, times)| Step { lane, times });
        proptest::collection::vec(step, 1..40)
    }

    proptest! {
        /// Whatever the times: nothing is lost or doubled, each stream keeps its order, nothing
        /// stays longer than the window.
        #[test]
        fn every_packet_leaves_once_and_in_its_streams_order(steps in steps(), gap_ms in 0u64..100) {
            let start = Instant::now();
            let window = Duration::from_millis(50);
            let mut merge = Merge::new(window, 1 << 20);
            let (mut number, mut pushed) = (0, BTreeMap::<u32, Vec<u32>>::new());
            let mut left = BTreeMap::<u32, Vec<u32>>::new();
            let mut now = start;
            (0..4).for_each(|lane| merge.join(key(lane)));
            for step in &steps {
                let from = number;
                let (bytes, ends) = run(&step.times, &mut number);
                pushed.entry(step.lane).or_default().extend(from..number);
                merge.push(key(step.lane), &bytes, &ends, now);
                now += Duration::from_millis(gap_ms);
                for (lane, packet) in drain(&mut merge, now, false) {
                    left.entry(lane).or_default().push(packet);
                }
                prop_assert!(merge.poll_timeout().is_none_or(|due| due > now));
            }
            for (lane, packet) in drain(&mut merge, now, true) {
                left.entry(lane).or_default().push(packet);
            }
            prop_assert_eq!(left, pushed);
            prop_assert_eq!(merge.waiting_bytes(), 0);
        }

        /// Streams that are in order themselves, and tell the truth, come out in one order.
        #[test]
        fn sorted_streams_come_out_sorted(steps in steps()) {
            let now = Instant::now();
            let mut merge = Merge::new(Duration::from_secs(60), 1 << 20);
            let (mut number, mut times, mut clocks) = (0, Vec::new(), [0u64; 4]);
            let mut left = Vec::new();
            (0..4).for_each(|lane| merge.join(key(lane)));
            for step in &steps {
                let clock = &mut clocks[step.lane as usize];
                let sorted: Vec<u64> = step.times.iter().map(|time| { *clock += time; *clock }).collect();
                let (bytes, ends) = run(&sorted, &mut number);
                times.extend(sorted);
                merge.push(key(step.lane), &bytes, &ends, now);
                merge.advance(key(step.lane), *clock);
                left.extend(drain(&mut merge, now, false));
            }
            (0..4).for_each(|lane| merge.end(key(lane)));
            left.extend(drain(&mut merge, now, false));
            prop_assert_eq!(left.len(), times.len());
            let order: Vec<u64> = left.iter().map(|(_, packet)| times[*packet as usize]).collect();
            prop_assert!(order.is_sorted());
        }
    }
}
