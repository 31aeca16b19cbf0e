//! Where the spool stands, for whoever looks: counted by the thread that serves it, published a few times a second.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wire::block::PackedBlock;
use wire::journal::{Eviction, Fs, Journal, Position};

/// Least time between two publications: looking at every segment takes its time.
const PUBLISH_TIME: Duration = Duration::from_millis(200);

/// Where the spool stands. Counters are of this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolFigures {
    /// Bytes of its files, what is allocated ahead included.
    pub file_bytes: u64,
    /// Most bytes of its files (`--spool-size`).
    pub bound_bytes: u64,
    /// Bytes of what is in it and not settled.
    pub unsettled_bytes: u64,
    /// Packets in it that are not settled.
    pub packets: u64,
    /// Time stamp of the oldest packet, ns since 1970, as far as segments tell: what is settled may be among it. `None`
    /// where all is settled.
    pub oldest_ns: Option<u64>,
    /// Packets thrown away for want of room, which nobody had read.
    pub evicted_packets: u64,
    /// Captured bytes of them.
    pub evicted_bytes: u64,
    /// Segments thrown away before all in them was settled.
    pub evicted_segments: u64,
    /// Times that it could not be written, or not made durable.
    pub write_failures: u64,
    /// Passages that could not be read.
    pub damages: u64,
}

impl SpoolFigures {
    /// How old the oldest packet is; `None` where all is settled.
    #[allow(dead_code)] // until something shows it
    pub fn oldest_age(&self, now_ns: u64) -> Option<Duration> {
        self.oldest_ns.map(|oldest_ns| Duration::from_nanos(now_ns.saturating_sub(oldest_ns)))
    }
}

/// What was published last.
#[derive(Clone, Debug, Default)]
pub struct SharedFigures(Arc<Mutex<SpoolFigures>>);

impl SharedFigures {
    /// A copy.
    pub fn read(&self) -> SpoolFigures {
        // A panic under the lock leaves figures that are as good as before.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, figures: SpoolFigures) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }
}

/// Counts what the spool takes and gives.
#[derive(Debug)]
pub struct Meter {
    /// As counted so far; what the journal itself knows is added when they are published.
    pub figures: SpoolFigures,
    shared: SharedFigures,
    publish_at: Instant,
}

impl Meter {
    /// For a journal that was just opened: what is in it counts.
    pub fn new<F: Fs>(journal: &mut Journal<F>, bound_bytes: u64) -> Self {
        let packets = journal.unacknowledged_packets();
        let figures = SpoolFigures { bound_bytes, packets, ..SpoolFigures::default() };
        let mut meter = Self { figures, shared: SharedFigures::default(), publish_at: Instant::now() };
        meter.publish(journal);
        meter
    }

    /// Where others read the figures.
    pub fn shared(&self) -> SharedFigures {
        self.shared.clone()
    }

    /// A block was appended.
    pub fn handle_appended(&mut self, block: &PackedBlock) {
        self.figures.packets += u64::from(block.header().packet_count);
    }

    /// A block that was read, of so many packets, is settled.
    pub fn handle_settled(&mut self, packets: u32) {
        self.figures.packets = self.figures.packets.saturating_sub(packets.into());
    }

    /// A segment was thrown away, and this of it had not been read. What had been is settled by and by.
    pub fn handle_evicted(&mut self, unread: &[Eviction]) {
        let packets: u64 = unread.iter().map(|one| one.packets).sum();
        self.figures.packets = self.figures.packets.saturating_sub(packets);
        self.figures.evicted_packets += packets;
        self.figures.evicted_bytes += unread.iter().map(|one| one.bytes).sum::<u64>();
        self.figures.evicted_segments += 1;
    }

    /// Everything was read: what is left is what was read and is not settled. Of what was damaged nobody else tells.
    pub fn handle_read_out(&mut self, handed: &VecDeque<(Position, u32)>) {
        self.figures.packets = handed.iter().map(|(_, packets)| u64::from(*packets)).sum();
    }

    /// Lets others see the figures, if they did not lately.
    pub fn publish_if_due<F: Fs>(&mut self, journal: &Journal<F>, now: Instant) {
        if now >= self.publish_at {
            self.publish(journal);
            self.publish_at = now + PUBLISH_TIME;
        }
    }

    fn publish<F: Fs>(&mut self, journal: &Journal<F>) {
        let unsettled_bytes = journal.unacknowledged_bytes();
        self.figures.file_bytes = journal.size_bytes();
        self.figures.unsettled_bytes = unsettled_bytes;
        self.figures.oldest_ns = journal.oldest_time_ns().filter(|_| unsettled_bytes > 0);
        self.shared.write(self.figures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::block::StreamKey;
    use wire::journal::{Config, JournalEvent, RealFs};
    use wire::pack::{Compression, Packer};
    use wire::pool::Pool;

    /// Blocks of ten packets each, of 1 KiB, so that a segment holds some hundred.
    fn block(packer: &mut Packer, time_ns: u64) -> PackedBlock {
        for _ in 0..10 {
            packer.push(0, time_ns, 1_000, [&[7; 1_000][..]], &[]).expect("room");
        }
        packer.seal().expect("packets")
    }

    #[test]
    fn packets_are_counted_through_reading_eviction_and_the_next_run() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = Config {
            directory: directory.path().to_owned(),
            cap_bytes: 4 << 20,
            segment_bytes: Some(1 << 20),
        };
        let pool = Pool::new(64 << 20);
        let now = Instant::now();
        let (mut journal, _) = Journal::open(&config, RealFs, now).expect("opens");
        let mut meter = Meter::new(&mut journal, config.cap_bytes);
        assert_eq!(meter.shared().read(), SpoolFigures { bound_bytes: 4 << 20, ..SpoolFigures::default() });

        let mut packer = Packer::new(StreamKey::default(), pool.clone(), 64 << 10, Compression::None);
        let mut append = |journal: &mut Journal, meter: &mut Meter, blocks: u64| {
            for number in 0..blocks {
                let block = block(&mut packer, 1_000 + number);
                journal.append(&block, now).expect("room is made");
                meter.handle_appended(&block);
            }
        };
        append(&mut journal, &mut meter, 200);
        meter.publish_if_due(&journal, now + PUBLISH_TIME);
        let figures = meter.shared().read();
        assert_eq!((figures.packets, figures.oldest_ns), (2_000, Some(1_000)));
        assert!(figures.unsettled_bytes > 2_000_000 && figures.file_bytes >= figures.unsettled_bytes);
        assert_eq!(figures.oldest_age(1_005), Some(Duration::from_nanos(5)));
        assert_eq!(figures.oldest_age(0), Some(Duration::ZERO), "a clock that was set back");

        // Thirty are read, ten of them are settled; then there is no room for so much more.
        let mut handed = VecDeque::new();
        for _ in 0..30 {
            let entry = journal.read_next(&pool).expect("reads").expect("there are more");
            handed.push_back((entry.next, entry.block.header().packet_count));
        }
        for _ in 0..10 {
            let (through, packets) = handed.pop_front().expect("read above");
            meter.handle_settled(packets);
            journal.acknowledge(through, now);
        }
        assert_eq!(meter.figures.packets, 1_900);
        append(&mut journal, &mut meter, 300);
        let mut evicted = 0;
        while let Some(event) = journal.poll_event() {
            if let JournalEvent::Evicted { unread, .. } = event {
                evicted += unread.iter().map(|one| one.packets).sum::<u64>();
                meter.handle_evicted(&unread);
            }
        }
        assert!(evicted > 0 && meter.figures.evicted_segments > 0);
        assert_eq!(meter.figures.evicted_packets, evicted);
        assert_eq!(meter.figures.packets, 1_900 + 3_000 - evicted);

        // All is read: what is not settled is what was read.
        while let Some(entry) = journal.read_next(&pool).expect("reads") {
            handed.push_back((entry.next, entry.block.header().packet_count));
        }
        let counted = meter.figures.packets;
        meter.handle_read_out(&handed);
        assert_eq!(meter.figures.packets, counted, "nothing was damaged");
        // The next run finds what is not settled, but for what had been read of what was evicted.
        let half = handed.len() / 2;
        let settled: Vec<(Position, u32)> = handed.drain(..half).collect();
        settled.iter().for_each(|(_, packets)| meter.handle_settled(*packets));
        journal.acknowledge(settled.last().expect("some").0, now);
        let left = meter.figures.packets;
        journal.close().expect("closes");
        let (mut journal, _) = Journal::open(&config, RealFs, now).expect("opens");
        assert_eq!(Meter::new(&mut journal, config.cap_bytes).figures.packets, left);
        while let Some(entry) = journal.read_next(&pool).expect("reads") {
            journal.acknowledge(entry.next, now);
        }
        let mut meter = Meter::new(&mut journal, config.cap_bytes);
        meter.publish(&journal);
        let figures = meter.shared().read();
        assert_eq!((figures.packets, figures.unsettled_bytes, figures.oldest_ns), (0, 0, None));
    }
}
