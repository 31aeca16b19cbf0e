//! What the process tests share: a small relay that does what it is told, streams to feed it with,
//! the viewer as a process, and a reader of what it writes.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, PcapBlockOwned, PcapError, PcapNGReader};
use wire::Interface;
use wire::block::{Epoch, Kind, PackedBlock, StreamKey};
use wire::connection::{Connection, ReadShare, Received};
use wire::description::Description;
use wire::ledger::Report;
use wire::message::{Control, Envelope, PROTOCOL, Selection, StreamStatus};
use wire::pack::{Compression, Packer};
use wire::pool::Pool;

/// Longest time for anything to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What an independent program makes of a file; `None`, said aloud, where it is not installed.
pub fn output_of(program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program).args(args).stderr(Stdio::null()).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program} refuses the file");
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Err(error) => {
            eprintln!("SKIPPED: {program}: {error}");
            None
        }
    }
}

enum Command_ {
    Control(Control),
    Data(Bytes),
    Instance(u64),
    Close(String),
    Cut,
}

/// A relay that welcomes whoever comes, and sends what the test says.
pub struct Relay {
    pub url: String,
    commands: Sender<Command_>,
    received: Receiver<Control>,
    /// Data bytes that wait because the viewer does not read.
    pub waiting: Arc<Mutex<usize>>,
}

impl Relay {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let url = format!("ws://{}", listener.local_addr().expect("an address"));
        let (commands, orders) = channel();
        let (events, received) = channel();
        let waiting = Arc::new(Mutex::new(0));
        let shared = Arc::clone(&waiting);
        std::thread::spawn(move || serve(listener, &orders, &events, &shared));
        Self { url, commands, received, waiting }
    }

    fn order(&self, command: Command_) {
        self.commands.send(command).expect("the relay runs");
    }

    pub fn control(&self, control: Control) {
        self.order(Command_::Control(control));
    }

    pub fn data(&self, block: &PackedBlock) {
        self.order(Command_::Data(block.bytes().clone()));
    }

    /// It is another run of the relay from now on.
    pub fn set_instance(&self, instance: u64) {
        self.order(Command_::Instance(instance));
    }

    /// The relay closes the connection and says why.
    pub fn close(&self, reason: &str) {
        self.order(Command_::Close(reason.to_owned()));
    }

    /// The connection breaks.
    pub fn cut(&self) {
        self.order(Command_::Cut);
    }

    /// The next message of a viewer.
    pub fn next_control(&self) -> Control {
        self.received.recv_timeout(PATIENCE).expect("a viewer")
    }

    /// Whether a viewer says nothing at all for so long.
    pub fn is_left_alone(&self, time: Duration) -> bool {
        while self.received.try_recv().is_ok() {}
        self.received.recv_timeout(time).is_err()
    }

    /// Waits until a viewer has subscribed.
    pub fn subscription(&self) -> Selection {
        loop {
            if let Control::Subscribe { selection, .. } = self.next_control() {
                return selection;
            }
        }
    }

    /// Waits for a subscription and lets the viewer join `streams`.
    pub fn accept(&self, streams: &[&Source]) -> Selection {
        let selection = self.subscription();
        for source in streams {
            self.control(source.join(0));
            self.data(&source.description);
        }
        self.control(Control::Subscribed { streams: streams.len() as u32 });
        selection
    }

    pub fn wait_until_waiting(&self, is_so: fn(usize) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(*self.waiting.lock().expect("sound")) {
            assert!(Instant::now() < deadline, "nothing changes");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn serve(
    mut listener: TcpListener,
    orders: &Receiver<Command_>,
    events: &Sender<Control>,
    waiting: &Mutex<usize>,
) {
    let mut poll = Poll::new().expect("a poll");
    poll.registry().register(&mut listener, Token(0), Interest::READABLE).expect("registers");
    let pool = Pool::new(64 << 20);
    let mut instance = 1;
    let mut connection: Option<Connection> = None;
    let mut queued = std::collections::VecDeque::new();
    loop {
        let mut polled = Events::with_capacity(16);
        let _ = poll.poll(&mut polled, Some(Duration::from_millis(2)));
        match listener.accept() {
            Ok((mut stream, _)) => {
                let both = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut stream, Token(1), both).expect("registers");
                connection = Some(Connection::server(stream, None, Instant::now()).expect("a server"));
                queued.clear();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        loop {
            match orders.try_recv() {
                Ok(Command_::Instance(number)) => instance = number,
                Ok(Command_::Cut) => connection = None,
                Ok(Command_::Close(reason)) => {
                    if let Some(open) = &mut connection {
                        open.close(Instant::now(), 1008, &reason);
                    }
                }
                // What is told while data waits would overtake it: that is how notices work, but
                // tests say what comes first.
                Ok(other) => queued.push_back(other),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        let now = Instant::now();
        let Some(open) = &mut connection else { continue };
        open.set_ready(true, true);
        let outcome = (|| {
            let mut share = ReadShare::default();
            while let Some(received) = open.receive(now, &pool, &mut share)? {
                if let Received::Control(json) = received {
                    open.trust(false);
                    let control = Control::from_json(&json).expect("the viewer speaks the protocol");
                    if matches!(control, Control::Hello { .. }) {
                        let agent = "test".to_owned();
                        let instance = Epoch(instance);
                        open.queue_control(&Control::Welcome {
                            protocol: PROTOCOL,
                            instance,
                            agent,
                            clock_ns: 0,
                        });
                    }
                    let _ = events.send(control);
                }
            }
            while open.is_open() && open.is_flushed() {
                match queued.pop_front() {
                    Some(Command_::Control(control)) => open.queue_control(&control),
                    Some(Command_::Data(block)) => open.queue_data(Envelope::default(), block),
                    _ => break,
                }
                open.drive(now)?;
            }
            open.drive(now)
        })();
        let data_bytes =
            |command: &Command_| if let Command_::Data(block) = command { block.len() } else { 0 };
        *waiting.lock().expect("sound") = queued.iter().map(data_bytes).sum();
        if outcome.is_err() {
            connection = None;
        }
    }
}

/// A stream to send.
pub struct Source {
    pub key: StreamKey,
    pub name: String,
    pub packer: Packer,
    pub description: PackedBlock,
    clock_ns: u64,
}

pub fn ethernet(name: &str) -> Interface {
    Interface {
        name: name.into(),
        link_type: 1,
        snaplen: 262_144,
        os: Some("Linux 6.18".into()),
        hardware: Some("veth".into()),
        ..Interface::default()
    }
}

impl Source {
    pub fn new(epoch: u64, stream: u32, name: &str, interfaces: &[Interface]) -> Self {
        let description = Description { interfaces: interfaces.to_vec(), ..Description::default() };
        Self::described(epoch, stream, name, description)
    }

    pub fn described(epoch: u64, stream: u32, name: &str, description: Description) -> Self {
        let key = StreamKey { epoch: Epoch(epoch), stream };
        let mut packer = Packer::new(key, Pool::new(512 << 20), 1 << 20, Compression::Lz4);
        let description =
            Description { name: name.into(), opened_ns: 1_700_000_000_000_000_000, ..description };
        let description = packer.seal_json(Kind::Description, &description, 0, false).expect("room");
        Self { key, name: name.into(), packer, description, clock_ns: 1_700_000_000_000_000_000 }
    }

    /// The message that lets a viewer join, `next_sequence` being the first block that comes.
    pub fn join(&self, next_sequence: u64) -> Control {
        let status = StreamStatus { key: self.key, name: self.name.clone(), ..StreamStatus::default() };
        Control::Join { status, next_sequence }
    }

    /// A block of one packet for each of `interfaces`, a ms apart.
    pub fn packets(&mut self, interfaces: &[u32]) -> PackedBlock {
        for interface in interfaces {
            self.clock_ns += 1_000_000;
            self.push(*interface, self.clock_ns, &udp_frame(53));
        }
        self.packer.seal().expect("packets")
    }

    pub fn push(&mut self, interface: u32, time_ns: u64, data: &[u8]) {
        self.packer.push(interface, time_ns, data.len() as u32, [data], &[]).expect("room");
    }

    pub fn report(&mut self, report: &Report, end: bool) -> PackedBlock {
        self.packer.seal_json(Kind::Report, report, self.clock_ns, end).expect("room")
    }

    pub fn end(&mut self) -> PackedBlock {
        self.report(&Report { time_ns: self.clock_ns, ..Report::default() }, true)
    }
}

/// An Ethernet frame with a UDP datagram to `port`.
pub fn udp_frame(port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(5000u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 26, 0, 0]);
    frame.resize(60, 7);
    frame
}

/// The viewer as a process.
pub struct Viewer {
    pub child: Child,
    stderr: Option<std::thread::JoinHandle<String>>,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Viewer {
    pub fn start(relay: &str, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_viewer"))
            .args(["--relay", relay])
            .args(args)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut pipe = child.stderr.take().expect("piped");
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = pipe.read_to_string(&mut text);
            text
        });
        Self { child, stderr: Some(stderr) }
    }

    pub fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("piped, and not taken before")
    }

    /// Reads standard output in a thread, to its end.
    pub fn read(&mut self) -> std::thread::JoinHandle<Vec<u8>> {
        let mut pipe = self.stdout();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            bytes
        })
    }

    #[cfg(unix)]
    pub fn interrupt(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("runs");
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("can be waited for") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let stderr = self.stderr.take().expect("once").join().expect("reads");
                panic!("the viewer does not end: {stderr}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let stderr = self.stderr.take().expect("once").join().expect("reads");
        Ended { code: status.code(), stderr }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already, when all went well
        let _ = self.child.wait();
    }
}

/// A packet as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub interface: u32,
    pub time_ns: u64,
    pub data: Vec<u8>,
    pub comments: Vec<String>,
}

/// Statistics of an interface as they were written.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    pub interface: u32,
    pub counts: BTreeMap<u16, u64>,
    pub comments: Vec<String>,
}

/// A pcapng file.
#[derive(Debug, Default)]
pub struct Capture {
    pub application: String,
    pub interfaces: Vec<(String, i32)>,
    pub packets: Vec<Packet>,
    pub statistics: Vec<Statistics>,
}

impl Capture {
    /// Reads `bytes`, which must be whole blocks of one section.
    pub fn read(bytes: &[u8]) -> Self {
        let mut capture = Self::default();
        let mut reader = PcapNGReader::new(4 << 20, bytes).expect("a section");
        let mut consumed = 0;
        loop {
            match reader.next() {
                Ok((length, PcapBlockOwned::NG(block))) => {
                    capture.add(&block);
                    consumed += length;
                    reader.consume(length);
                }
                Ok(_) => panic!("not pcapng"),
                Err(PcapError::Eof) => break,
                Err(PcapError::Incomplete(_)) => reader.refill().expect("refills"),
                Err(error) => panic!("byte {consumed}: {error:?}"),
            }
        }
        assert_eq!(consumed, bytes.len(), "torn at the end");
        capture
    }

    fn add(&mut self, block: &Block<'_>) {
        let text = |value: &[u8], length: u16| String::from_utf8_lossy(&value[..length.into()]).into_owned();
        match block {
            Block::SectionHeader(section) => {
                assert!(self.interfaces.is_empty(), "one section");
                let found = section.options.iter().find(|option| option.code.0 == 4).expect("application");
                self.application = text(&found.value, found.len);
            }
            Block::InterfaceDescription(idb) => {
                assert_eq!(idb.if_tsresol, 9);
                let name = idb.options.iter().find(|option| option.code.0 == 2).expect("a name");
                self.interfaces.push((text(&name.value, name.len), idb.linktype.0));
            }
            Block::EnhancedPacket(epb) => {
                assert!((epb.if_id as usize) < self.interfaces.len(), "described before its packets");
                let comments = epb.options.iter().filter(|option| option.code.0 == 1);
                self.packets.push(Packet {
                    interface: epb.if_id,
                    time_ns: u64::from(epb.ts_high) << 32 | u64::from(epb.ts_low),
                    data: epb.packet_data().to_vec(),
                    comments: comments.map(|option| text(&option.value, option.len)).collect(),
                });
            }
            Block::InterfaceStatistics(isb) => {
                let comments = isb.options.iter().filter(|option| option.code.0 == 1);
                let comments = comments.map(|option| text(&option.value, option.len)).collect();
                let counts = isb.options.iter().filter(|option| (4..=8).contains(&option.code.0));
                let count = |value: &[u8]| u64::from_le_bytes(value[..8].try_into().expect("eight bytes"));
                let counts = counts.map(|option| (option.code.0, count(&option.value))).collect();
                self.statistics.push(Statistics { interface: isb.if_id, counts, comments });
            }
            other => panic!("an unexpected block: {other:?}"),
        }
    }

    /// The last statistics of an interface.
    pub fn last_statistics(&self, interface: u32) -> &Statistics {
        self.statistics.iter().rfind(|one| one.interface == interface).expect("has statistics")
    }
}
