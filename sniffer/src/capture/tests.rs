//! A capture thread on a link of its own: streams that are succeeded.

use std::collections::BTreeMap;

use super::*;
use crate::test_net::{PATIENCE, Sender as Wire, TEST_TYPE, frame, in_namespace, let_go};
use crate::uplink::Sender as Uplink;
use wire::block::{Kind, PackedBlock, StreamKey};
use wire::ledger::Report;
use wire::pcapng::Epbs;
use wire::pool::Buffer;

const EPOCH: Epoch = Epoch(0xcafe);

/// The receiving end of a hand-over, which checks what comes: each stream is announced first, its blocks have no gaps, and
/// nothing follows its end.
pub(crate) struct Taker {
    pub(crate) handed: Receiver<Handed>,
    /// Its waker must outlive the threads that hand over.
    _poll: mio::Poll,
    pub(crate) streams: BTreeMap<u32, Taken>,
    /// Numbers in the packets' payloads, in the order they came.
    pub(crate) numbers: Vec<u32>,
    totals: Option<Arc<TotalsFile>>,
}

#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) predecessor: Option<StreamKey>,
    next_sequence: u64,
    packets: u64,
    pub(crate) has_ended: bool,
    /// The last one.
    pub(crate) report: Report,
}

impl Taker {
    pub(crate) fn new() -> (Handover, Self) {
        let (poll, handover, handed) = Uplink::channel().expect("a poll");
        let taker = Self { handed, _poll: poll, streams: BTreeMap::new(), numbers: Vec::new(), totals: None };
        (handover, taker)
    }

    /// Takes one thing, and returns the stream it was of if it was a block of packets. `None`: the thread has ended.
    fn take(&mut self) -> Option<Option<u32>> {
        let handed = self.handed.recv_timeout(PATIENCE).expect("something is handed over in time");
        self.handle(handed)
    }

    pub(crate) fn handle(&mut self, handed: Handed) -> Option<Option<u32>> {
        match handed {
            Handed::Stream(key, description) => {
                let taken = Taken { predecessor: description.predecessor, ..Taken::default() };
                assert!(self.streams.insert(key.stream, taken).is_none(), "a stream is announced once");
            }
            Handed::Block(block) => return Some(self.take_block(&block.plain())),
            Handed::Report { .. } | Handed::Mark(..) | Handed::Spool(..) | Handed::Look(..) => {}
            Handed::Ended(result) => {
                result.expect("in order");
                return None;
            }
        }
        Some(None)
    }

    fn take_block(&mut self, block: &PackedBlock) -> Option<u32> {
        let header = block.header();
        let stream = header.key.stream;
        let taken = self.streams.get_mut(&stream).expect("announced before");
        assert!(!taken.has_ended, "nothing follows the end of {stream}");
        assert_eq!((header.sequence, header.packets_before), (taken.next_sequence, taken.packets));
        assert_eq!(header.kind == Kind::Description, header.sequence == 0, "the description comes first");
        taken.next_sequence += 1;
        taken.packets += u64::from(header.packet_count);
        taken.has_ended = header.end;
        if let Some(totals) = &self.totals {
            let recorded = totals.next_sequence(stream).expect("it has a slot");
            assert!(recorded >= taken.next_sequence, "nobody has more than was recorded");
        }
        let mut body = Vec::new();
        block.unpack_into(&mut body).expect("ours");
        match header.kind {
            Kind::Packets => {
                for epb in Epbs::new(&body, 1) {
                    let data = epb.expect("whole").data;
                    if data[12..14] == TEST_TYPE.to_be_bytes() {
                        self.numbers.push(u32::from_be_bytes(data[14..18].try_into().expect("four bytes")));
                    }
                }
                return Some(stream);
            }
            Kind::Report => taken.report = serde_json::from_slice(&body).expect("a report"),
            Kind::Description => {}
        }
        None
    }

    pub(crate) fn take_to_the_end(&mut self) {
        while self.take().is_some() {}
        assert!(self.streams.values().all(|taken| taken.has_ended));
    }

    /// Sums over all streams: offered, dropped by the kernel, packed.
    fn sums(&self) -> (u64, u64, u64) {
        let last = |taken: &Taken| taken.report.interfaces.first().cloned().expect("one interface");
        let streams = || self.streams.values();
        (
            streams().map(|taken| last(taken).offered).sum(),
            streams().map(|taken| last(taken).kernel_drops).sum(),
            streams().map(|taken| taken.packets).sum(),
        )
    }

    /// Every stream but the first goes on from the one before.
    fn assert_chain(&self) {
        for (stream, taken) in &self.streams {
            let before = stream.checked_sub(1).map(|stream| StreamKey { epoch: EPOCH, stream });
            assert_eq!(taken.predecessor, before);
            assert_eq!(taken.report.packed_packets, taken.packets);
        }
    }
}

pub(crate) fn config(pool: Pool, totals: Option<Arc<TotalsFile>>) -> CaptureConfig {
    CaptureConfig {
        snaplen: 262_144,
        body_bytes: 64 << 10,
        compression: Compression::Lz4,
        block_timeout: Duration::from_millis(10),
        pool,
        marks_wanted: Arc::default(),
        next_stream: Arc::default(),
        losses: SharedLosses::default(),
        totals,
    }
}

/// Opens a ring on `far`, which captures what tests send.
fn open(thread: &CaptureThread, ring_bytes: usize) -> Arc<RingState> {
    let state = Arc::new(RingState::default());
    let config = RingConfig { ring_bytes, block_bytes: 128 << 10, ..RingConfig::new("far") };
    let order = RingOrder {
        id: 0,
        config,
        fanout: None,
        epoch: EPOCH,
        state: Arc::clone(&state),
        predecessor: None,
        description: Description::default(),
        outages: Vec::new(),
    };
    let opened = thread.open(order, PATIENCE).expect("a ring");
    let of_type =
        [(0x28, 0, 0, 12), (0x15, 0, 1, u32::from(TEST_TYPE)), (0x06, 0, 0, 262_144), (0x06, 0, 0, 0)];
    opened.control.set_filter(&of_type).expect("a filter");
    state
}

pub(crate) fn send(wire: &Wire, numbers: std::ops::Range<u32>) {
    numbers.for_each(|number| wire.send(&frame(&[&number.to_be_bytes()[..], &[7; 200]].concat())));
}

/// Streams succeed each other as fast as they can while packets come: none is lost and none comes twice.
#[test]
fn a_ring_goes_on_under_the_next_stream() {
    const PACKETS: u32 = 30_000;
    in_namespace(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let totals = Arc::new(TotalsFile::create(dir.path(), EPOCH).expect("made"));
        let (handover, mut taker) = Taker::new();
        taker.totals = Some(Arc::clone(&totals));
        let config = config(Pool::new(64 << 20), Some(Arc::clone(&totals)));
        let thread = CaptureThread::start(None, config, handover).expect("started");
        let state = open(&thread, 16 << 20);
        let sending = std::thread::spawn(|| send(&Wire::new("near"), 0..PACKETS));
        thread.succeed(&[1, 99]); // no such streams
        while taker.numbers.len() < PACKETS as usize {
            if let Some(stream) = taker.take().expect("it goes on") {
                // Twice, and late at times: then it is of a stream that has ended, and nothing happens.
                thread.succeed(&[stream]);
                thread.succeed(&[stream]);
            }
        }
        sending.join().expect("all were sent");
        thread.stop();
        taker.take_to_the_end();
        assert!(taker.numbers.iter().copied().eq(0..PACKETS));
        let streams = taker.streams.len();
        assert!(streams > 10, "only {streams} streams");
        assert_eq!(state.stream(), streams as u32 - 1);
        taker.assert_chain();
        assert_eq!(taker.sums(), (PACKETS.into(), 0, PACKETS.into()));

        // As after a kill, but that every stream has ended.
        let_go((thread, totals, taker.totals.take()));
        let former = crate::totals::former_runs(dir.path(), Epoch(1)).expect("read");
        assert_eq!(former[0].streams.len(), streams);
        for stream in &former[0].streams {
            let taken = &taker.streams[&stream.stream];
            assert!(stream.ended);
            assert_eq!((stream.next_sequence, stream.packets), (taken.next_sequence, taken.packets));
            assert_eq!(stream.offered, taken.report.interfaces[0].offered);
        }
    });
}

/// Without a buffer the old stream cannot end: the packets stay in the ring meanwhile, and what no longer fits there is
/// counted by the kernel; over both streams exactly.
#[test]
fn a_succession_waits_for_a_buffer_and_the_sums_are_exact() {
    const PACKETS: u32 = 5_000;
    in_namespace(|| {
        let (handover, mut taker) = Taker::new();
        let pool = Pool::new(4 << 20);
        let thread = CaptureThread::start(None, config(pool.clone(), None), handover).expect("started");
        let state = open(&thread, 256 << 10);
        let wire = Wire::new("near");
        send(&wire, 0..1);
        while taker.numbers.is_empty() {
            taker.take().expect("it goes on");
        }
        // All that there is, until the idle thread has given back what it had.
        let mut held = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while held.iter().map(Buffer::capacity).sum::<usize>() < pool.used_bytes() || held.is_empty() {
            assert!(Instant::now() < deadline, "the thread keeps its buffers");
            while let Some(buffer) = [1 << 20, 64 << 10, 512].iter().find_map(|len| pool.take(*len)) {
                held.push(buffer);
            }
            if let Ok(handed) = taker.handed.recv_timeout(Duration::from_millis(1)) {
                taker.handle(handed);
            }
        }
        thread.succeed(&[0]);
        send(&wire, 1..PACKETS);
        assert_eq!(state.stream(), 0, "it cannot end yet");
        drop(held);
        thread.buffer_is_free();
        while state.stream() == 0 {
            taker.take().expect("it goes on");
        }
        thread.stop();
        taker.take_to_the_end();
        taker.assert_chain();
        assert_eq!(taker.streams.len(), 2);
        let (offered, drops, packed) = taker.sums();
        assert_eq!((offered, packed), (PACKETS.into(), taker.numbers.len() as u64));
        assert!(
            drops > 0 && offered == packed + drops,
            "{offered} offered, {drops} dropped, {packed} packed"
        );
        assert!(taker.numbers.is_sorted_by(|one, next| one < next), "each came once");
    });
}

/// A line that never has room holds nothing up for good, and the end of a stream not at all.
#[test]
fn a_line_without_room_holds_nothing_up_for_good() {
    const BATCH: u32 = 20_000; // less than half of the ring, and more than the line has room for
    in_namespace(|| {
        let (handover, mut taker) = Taker::new();
        let config = CaptureConfig { compression: Compression::None, ..config(Pool::new(64 << 20), None) };
        let thread = CaptureThread::start(None, config, handover.clone()).expect("started");
        open(&thread, 16 << 20);
        handover.set_gone(0);
        let wire = Wire::new("near");
        send(&wire, 0..BATCH);
        while taker.numbers.len() < BATCH as usize {
            taker.take().expect("it goes on");
        }
        assert!(handover.line_is_full() && !handover.line_has_room());
        handover.set_gone(u64::MAX);
        thread.line_has_room();
        assert!(!handover.line_is_full() && handover.line_has_room());
        send(&wire, BATCH..2 * BATCH);
        handover.set_gone(0);
        thread.stop();
        taker.take_to_the_end();
        assert!(taker.numbers.iter().copied().eq(0..2 * BATCH));
    });
}

#[test]
fn reports_say_what_the_sending_thread_lost() {
    in_namespace(|| {
        let (handover, mut taker) = Taker::new();
        let config = config(Pool::new(16 << 20), None);
        let losses = config.losses.clone();
        let thread = CaptureThread::start(None, config, handover).expect("started");
        open(&thread, 1 << 20);
        let mut lost = Losses::default();
        lost.add(wire::ledger::Stage::NoBuffer, 3, 300);
        losses.set(0, lost.clone());
        losses.set(1, Losses::default());
        thread.succeed(&[0]);
        while !taker.streams.contains_key(&1) {
            taker.take().expect("it goes on");
        }
        thread.stop();
        taker.take_to_the_end();
        assert_eq!(taker.streams[&0].report.lost, lost);
        assert_eq!(taker.streams[&1].report.lost, Losses::default());
    });
}
