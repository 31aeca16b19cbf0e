//! `floor`: the least that does what the whole chain does, in three blocking loops. It checks nothing, acknowledges
//! nothing, keeps nothing and recovers from nothing: what it costs on a machine, nothing that sends packed blocks of
//! pcapng over two connections costs less. `replay --floor` runs it beside the chain.
//!
//! ```text
//!  capture: ring, gather, LZ4, mask --tcp--> forward: unmask --tcp--> show: LZ4 --> pipe
//! ```
//!
//! A message is sixteen bytes (length of the body before and after packing, key of the mask, nothing; little-endian
//! u32 each) and the masked body, from `forward` on unmasked.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;

use bench::ring::Ring;
use bench::tcp;
use clap::{Parser, Subcommand};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, vmsplice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use wire::interface::Interface;
use wire::pcapng::{interface_description, section_header};
use wire::pool::{Piece, Pool};
use wire::tcp::tune_unconnected;

/// Bytes gathered before they are packed, as in the sniffer.
const BODY_BYTES: usize = 256 << 10;
/// What a body has beyond that at most: a frame's block.
const FRAME_ROOM: usize = 256 << 10;
/// After a body that did not shrink to half so many are stored, as `--compression auto` does it.
const STORED_RUN: u32 = 15;
/// Bytes of each of the two pools of what shows.
const POOL_BYTES: usize = 64 << 20;
/// Bytes of the head of a message.
const HEAD_BYTES: usize = 16;

/// The least that does what the whole chain does.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Captures, packs and sends
    Capture {
        /// Interface to capture on
        #[arg(long)]
        interface: String,
        /// Where `forward` listens
        #[arg(long)]
        to: SocketAddr,
    },
    /// Takes one connection that shows, then one that captures, and passes on what comes
    Forward {
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:9000")]
        listen: SocketAddr,
        /// Read into so many MiB in turn, as if to keep them; 0 reads into the same buffer again
        #[arg(long, default_value_t = 0)]
        recent_mib: usize,
    },
    /// Unpacks, and writes pcapng to standard output
    Show {
        /// Where `forward` listens
        #[arg(long)]
        to: SocketAddr,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().role {
        Role::Capture { interface, to } => capture(&interface, to),
        Role::Forward { listen, recent_mib } => forward(listen, recent_mib),
        Role::Show { to } => show(to),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where what was gathered goes: packed, masked, sent.
struct Sending {
    stream: TcpStream,
    gathered: Vec<u8>,
    packed: Vec<u8>,
    message: Vec<u8>,
    table: CompressTable,
    /// Bodies to be stored before LZ4 is tried again.
    stored_left: u32,
    key: u32,
}

impl Sending {
    fn send(&mut self) -> io::Result<()> {
        let mut packed = self.gathered.len();
        if self.stored_left > 0 {
            self.stored_left -= 1;
        } else {
            let bytes = compress_into_with_table(&self.gathered, &mut self.packed, &mut self.table)
                .map_err(io::Error::other)?;
            if bytes * 2 <= self.gathered.len() {
                packed = bytes;
            } else {
                self.stored_left = STORED_RUN;
            }
        }
        let body = if packed < self.gathered.len() { &self.packed[..packed] } else { &self.gathered[..] };
        // Not random, as RFC 6455 wants it: that costs nothing beside a message of 256 KiB.
        self.key = self.key.wrapping_mul(0x9E37_79B1).wrapping_add(1);
        let end = HEAD_BYTES + packed;
        let message = &mut self.message[..end];
        for (to, word) in
            message.chunks_exact_mut(4).zip([self.gathered.len() as u32, packed as u32, self.key, 0])
        {
            to.copy_from_slice(&word.to_le_bytes());
        }
        mask_into(&mut message[HEAD_BYTES..], body, self.key);
        self.stream.write_all(message)?;
        self.gathered.clear();
        Ok(())
    }
}

fn capture(interface: &str, to: SocketAddr) -> io::Result<()> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.thread_block()?;
    let ended = SignalFd::new(&ends)?;
    let stream = tcp::connect(to)?;
    stream.set_nodelay(true)?;
    let room = BODY_BYTES + FRAME_ROOM;
    let mut sending = Sending {
        stream,
        gathered: Vec::with_capacity(room),
        packed: vec![0; get_maximum_output_size(room)],
        message: vec![0; HEAD_BYTES + get_maximum_output_size(room)],
        table: CompressTable::large(),
        stored_left: 0,
        key: 1,
    };
    let mut ring = Ring::open(interface)?;
    let mut captured = 0u64;
    loop {
        let mut sent = Ok(());
        let walked = ring.walk(|frame| {
            frame.append_block(&mut sending.gathered);
            if sending.gathered.len() >= BODY_BYTES && sent.is_ok() {
                sent = sending.send();
            }
        });
        sent?;
        if !sending.gathered.is_empty() {
            sending.send()?;
        }
        captured += u64::from(walked.unwrap_or(0));
        if walked.is_none() {
            let mut waited =
                [PollFd::new(ring.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
            poll(&mut waited, PollTimeout::NONE)?;
            if waited[1].any() == Some(true) {
                break;
            }
        }
    }
    let (offered, dropped) = ring.statistics()?;
    eprintln!(
        "interface {interface}: {offered} packets passed the filter, {dropped} dropped by the kernel, \
         {captured} captured"
    );
    Ok(())
}

fn forward(listen: SocketAddr, recent_mib: usize) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    tune_unconnected(&listener, true);
    let (mut to, _) = listener.accept()?;
    let (mut from, _) = listener.accept()?;
    to.set_nodelay(true)?;
    let room = HEAD_BYTES + BODY_BYTES + FRAME_ROOM;
    let mut kept = vec![0; (recent_mib << 20).max(room)];
    let mut at = 0;
    loop {
        let message = &mut kept[at..at + room];
        if !read_message(&mut from, message)? {
            return Ok(());
        }
        let packed = word_at(message, 4) as usize;
        let key = word_at(message, 8);
        let end = HEAD_BYTES + packed;
        mask(&mut message[HEAD_BYTES..end], key);
        to.write_all(&message[..end])?;
        if recent_mib > 0 {
            at += end;
            at = if at + room > kept.len() { 0 } else { at };
        }
    }
}

fn show(to: SocketAddr) -> io::Result<()> {
    let mut from = tcp::connect(to)?;
    let mut out = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let is_pipe = fcntl(&out, FcntlArg::F_SETPIPE_SZ(256 << 10)).is_ok(); // as the viewer does
    eprintln!("connected");
    let mut head = Vec::new();
    section_header(&mut head, None, None, "floor");
    interface_description(&mut head, &Interface { link_type: 1, ..Interface::default() }, "bench");
    out.write_all(&head)?;
    let (incoming, unpacked) = (Pool::new(POOL_BYTES), Pool::new(POOL_BYTES));
    unpacked.prefer_giving(is_pipe);
    let take = |pool: &Pool, bytes| pool.take(bytes).ok_or_else(|| io::Error::other("no buffer is free"));
    let mut head = [0; HEAD_BYTES];
    while read_head(&mut from, &mut head)? {
        let (raw, packed) = (word_at(&head, 0) as usize, word_at(&head, 4) as usize);
        incoming.prefer_giving(raw == packed && is_pipe);
        let mut body = take(&incoming, packed)?;
        from.read_exact(&mut body)?;
        if raw == packed {
            write_out(&mut out, incoming.give(&body.freeze()))?;
        } else {
            let mut whole = take(&unpacked, raw)?;
            decompress_into(&body, &mut whole).map_err(io::Error::other)?;
            write_out(&mut out, unpacked.give(&whole.freeze()))?;
        }
    }
    Ok(())
}

/// Into a pipe, by reference where that may be.
fn write_out(out: &mut std::fs::File, mut piece: Piece<'_>) -> io::Result<()> {
    while !piece.is_empty() {
        piece = piece.after(match piece.is_given() {
            true => vmsplice(&*out, &[io::IoSlice::new(&piece)], SpliceFFlags::empty())?,
            false => out.write(&piece)?,
        });
    }
    Ok(())
}

/// Reads the head of a message. `false`: the other end has closed between two.
fn read_head(from: &mut TcpStream, head: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

/// Reads a whole message. `false`: the other end has closed between two.
fn read_message(from: &mut TcpStream, message: &mut [u8]) -> io::Result<bool> {
    if !read_head(from, &mut message[..HEAD_BYTES])? {
        return Ok(false);
    }
    let packed = word_at(message, 4) as usize;
    from.read_exact(&mut message[HEAD_BYTES..HEAD_BYTES + packed])?;
    Ok(true)
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Copies and masks; whole words are vectorised by the compiler.
fn mask_into(to: &mut [u8], from: &[u8], key: u32) {
    let key = key.to_le_bytes();
    let (words, rest) = from.as_chunks::<4>();
    let (to_words, to_rest) = to.as_chunks_mut::<4>();
    for (to, word) in to_words.iter_mut().zip(words) {
        *to = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(key)).to_ne_bytes();
    }
    for ((to, byte), key) in to_rest.iter_mut().zip(rest).zip(key) {
        *to = byte ^ key;
    }
}

fn mask(bytes: &mut [u8], key: u32) {
    let key = key.to_le_bytes();
    let (words, rest) = bytes.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(key)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key) {
        *byte ^= key;
    }
}
