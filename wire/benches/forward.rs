//! Times of what the relay does with a block: `cargo bench -p wire --bench forward`. The hub alone; and
//! with the connections around it, over loopback, where sniffer and viewers run in the same thread and
//! are in the time.
//!
//! What the relay as a program moves, and how that compares, is measured by `bench/relay.sh`.

#![allow(missing_docs)] // criterion's macros make public functions
#![allow(clippy::expect_used)]

mod common;

use std::net::TcpListener;
use std::time::Instant;

use common::{KEY, frames, packed, packer};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use wire::access::Grant;
use wire::block::{Epoch, PackedBlock};
use wire::connection::{Connection, ReadShare, Received, RelayUrl};
use wire::hub::{Hub, HubConfig, PeerId, Run};
use wire::message::{Announcement, ENVELOPE_BYTES, Envelope, Selection};
use wire::pool::Pool;

const SNIFFER: PeerId = PeerId(1);

/// A hub with a stream, and viewers that have joined it.
fn hub_of(viewers: u64) -> (Hub, Vec<PeerId>) {
    let mut hub = Hub::new(HubConfig { viewer_queue_bytes: 64 << 20, recent_bytes: 1 << 20 });
    let run = Run {
        owner: "bench".into(),
        name: "bench".into(),
        epoch: KEY.epoch,
        home: KEY.epoch,
        was_elsewhere: false,
    };
    hub.add_publisher(SNIFFER, run, "[::1]:1".into()).expect("its own");
    let announcement = Announcement { key: KEY, interfaces: vec!["eth0".into()], ..Announcement::default() };
    hub.handle_stream(SNIFFER, announcement).expect("a publisher");
    let all: Vec<PeerId> = (2..2 + viewers).map(PeerId).collect();
    for viewer in &all {
        hub.add_viewer(*viewer, Epoch(1), &Selection::default(), &Grant::anyone(), &[]).expect("globs");
    }
    (hub, all)
}

fn hub(criterion: &mut Criterion) {
    for viewers in [1, 10, 100] {
        let (mut hub, all) = hub_of(viewers);
        let (mut packer, frames, mut sent) = (packer(), frames(true), 0);
        let mut group = criterion.benchmark_group("hub alone, small blocks");
        group.throughput(Throughput::Elements(viewers));
        group.bench_function(format!("{viewers} viewers"), |bencher| {
            bencher.iter_batched(
                || packed(&mut packer, &frames[..12]),
                |block| {
                    hub.handle_block(SNIFFER, Envelope::default(), block.bytes().clone()).expect("in order");
                    while hub.poll_output().is_some() {}
                    sent += 1;
                    for viewer in &all {
                        while hub.poll_data(*viewer).is_some() {}
                        hub.handle_data_sent(*viewer, sent);
                        hub.handle_progress(*viewer, sent);
                    }
                    while hub.poll_ack().is_some() {}
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

/// Both ends of a connection over loopback.
struct Line {
    client: Connection,
    server: Connection,
}

impl Line {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let ends =
            (std::net::TcpStream::connect(address).expect("connects"), listener.accept().expect("a peer").0);
        let [client, server] = [ends.0, ends.1].map(|stream| {
            stream.set_nonblocking(true).expect("an option");
            mio::net::TcpStream::from_std(stream)
        });
        let (url, now) = (RelayUrl::parse(&format!("ws://{address}")).expect("a url"), Instant::now());
        let mut line = Self {
            client: Connection::client(client, &url, None, now).expect("no TLS"),
            server: Connection::server(server, None, now).expect("no TLS"),
        };
        let pool = Pool::new(1 << 20);
        while !(line.client.is_open() && line.server.is_open()) {
            for end in [&mut line.client, &mut line.server] {
                assert!(!matches!(receive(end, &pool), Some(Received::Control(_))));
                end.drive(now).expect("sends");
            }
        }
        line.client.trust(true);
        line.server.trust(true);
        line
    }
}

/// What comes next, if anything is there.
fn receive(end: &mut Connection, pool: &Pool) -> Option<Received> {
    end.set_ready(true, true);
    end.receive(Instant::now(), pool, &mut ReadShare::default()).expect("sound messages")
}

/// A sniffer, a hub, and viewers.
struct Chain {
    hub: Hub,
    pool: Pool,
    sniffer: Line,
    viewers: Vec<(PeerId, Line)>,
    sent: u64,
}

impl Chain {
    fn new(viewers: u64) -> Self {
        let (hub, all) = hub_of(viewers);
        let viewers = all.into_iter().map(|peer| (peer, Line::open())).collect();
        Self { hub, pool: Pool::new(64 << 20), sniffer: Line::open(), viewers, sent: 0 }
    }

    /// A block goes from the sniffer to each viewer.
    fn forward(&mut self, block: &PackedBlock) {
        let now = Instant::now();
        self.sniffer.client.queue_data(Envelope::default(), block.bytes().clone());
        let message = loop {
            self.sniffer.client.drive(now).expect("sends");
            self.sniffer.client.set_ready(false, true);
            if let Some(Received::Data(message)) = receive(&mut self.sniffer.server, &self.pool) {
                break message;
            }
        };
        let envelope = Envelope::parse(&message).expect("an envelope");
        self.hub.handle_block(SNIFFER, envelope, message.slice(ENVELOPE_BYTES..)).expect("in order");
        drop(message);
        while self.hub.poll_output().is_some() {}
        self.sent += 1;
        for (peer, line) in &mut self.viewers {
            let (envelope, block) = self.hub.poll_data(*peer).expect("it has joined");
            line.server.queue_data(envelope, block);
            loop {
                line.server.set_ready(false, true);
                line.server.drive(now).expect("sends");
                if let Some(Received::Data(_)) = receive(&mut line.client, &self.pool) {
                    break;
                }
            }
            self.hub.handle_data_sent(*peer, self.sent);
            self.hub.handle_progress(*peer, self.sent);
        }
        while self.hub.poll_ack().is_some() {}
    }
}

fn chain(criterion: &mut Criterion) {
    for (name, is_text) in [("over loopback, blocks of text", true), ("over loopback, random blocks", false)]
    {
        for viewers in [1, 10] {
            let (mut chain, mut packer, frames) = (Chain::new(viewers), packer(), frames(is_text));
            let first = packed(&mut packer, &frames);
            let mut group = criterion.benchmark_group(name);
            group.sample_size(20).throughput(Throughput::Bytes(first.bytes().len() as u64 * viewers));
            chain.forward(&first);
            group.bench_function(format!("{viewers} viewers"), |bencher| {
                bencher.iter_batched(
                    || packed(&mut packer, &frames),
                    |block| chain.forward(&block),
                    BatchSize::PerIteration,
                );
            });
            group.finish();
        }
    }
}

criterion_group!(forward, hub, chain);
criterion_main!(forward);
