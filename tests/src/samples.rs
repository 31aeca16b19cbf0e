//! Small capture files, written here byte by byte so that what is in them is known.

/// Byte order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Least byte first.
    Little,
    /// Greatest byte first.
    Big,
}

/// A capture file under construction.
#[derive(Clone, Debug)]
pub struct Sample {
    order: Order,
    nanoseconds: bool,
    bytes: Vec<u8>,
}

impl Sample {
    /// A pcap file of `link_type`, in microseconds or nanoseconds.
    pub fn pcap(order: Order, nanoseconds: bool, link_type: u32) -> Self {
        let mut sample = Self { order, nanoseconds, bytes: Vec::new() };
        sample.u32(if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 });
        sample.u16(2);
        sample.u16(4);
        for word in [0, 0, 262_144, link_type] {
            sample.u32(word);
        }
        sample
    }

    /// A pcapng file with the options of its section header.
    pub fn pcapng(order: Order, options: &[(u16, &[u8])]) -> Self {
        let mut sample = Self { order, nanoseconds: false, bytes: Vec::new() };
        let mut body = sample.part();
        body.u32(0x1a2b_3c4d);
        body.u16(1);
        body.u16(0);
        body.bytes.extend_from_slice(&[0xff; 8]);
        body.options(options);
        sample.block(0x0a0d_0d0a, &body.bytes);
        sample
    }

    /// A packet of a pcap file: seconds, fraction, data, length on the wire.
    pub fn record(&mut self, seconds: u32, fraction: u32, data: &[u8], original: u32) {
        for word in [seconds, fraction, data.len() as u32, original] {
            self.u32(word);
        }
        self.bytes.extend_from_slice(data);
    }

    /// An interface of a pcapng file.
    pub fn interface(&mut self, link_type: u16, snaplen: u32, options: &[(u16, &[u8])]) {
        let mut body = self.part();
        body.u16(link_type);
        body.u16(0);
        body.u32(snaplen);
        body.options(options);
        self.block(1, &body.bytes);
    }

    /// An enhanced packet block; `time` is in the unit of its interface.
    pub fn packet(
        &mut self,
        interface: u32,
        time: u64,
        data: &[u8],
        original: u32,
        options: &[(u16, &[u8])],
    ) {
        let mut body = self.part();
        for word in [interface, (time >> 32) as u32, time as u32, data.len() as u32, original] {
            body.u32(word);
        }
        body.bytes.extend_from_slice(data);
        body.pad();
        body.options(options);
        self.block(6, &body.bytes);
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Time of a record, as its file can tell it: seconds and whole nanoseconds.
    pub fn fraction(&self, nanoseconds: u32) -> u32 {
        if self.nanoseconds { nanoseconds } else { nanoseconds / 1000 }
    }

    fn part(&self) -> Self {
        Self { bytes: Vec::new(), ..*self }
    }

    fn u16(&mut self, value: u16) {
        let bytes = if self.order == Order::Big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.bytes.extend_from_slice(&bytes);
    }

    fn u32(&mut self, value: u32) {
        let bytes = if self.order == Order::Big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.bytes.extend_from_slice(&bytes);
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn options(&mut self, options: &[(u16, &[u8])]) {
        for (code, value) in options {
            self.u16(*code);
            self.u16(value.len() as u16);
            self.bytes.extend_from_slice(value);
            self.pad();
        }
        if !options.is_empty() {
            self.u32(0);
        }
    }

    fn block(&mut self, kind: u32, body: &[u8]) {
        let length = body.len() as u32 + 12;
        self.u32(kind);
        self.u32(length);
        self.bytes.extend_from_slice(body);
        self.u32(length);
    }
}

/// An Ethernet frame with an IPv4 UDP datagram from `source` to `destination` (ports), whose
/// payload is `payload`.
pub fn udp_frame(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend_from_slice(&(28 + payload.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum >> 16) + (sum & 0xffff)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    for word in [source, destination, 8 + payload.len() as u16, 0] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    frame
}

/// Bytes that do not compress, the same for the same seed (splitmix64).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(length);
    out
}
