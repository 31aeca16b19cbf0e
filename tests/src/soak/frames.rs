//! Numbered frames of which each byte is known, and who sends them.
//!
//! A frame follows from its number and the sniffer it is meant for: its size, whether it has a VLAN
//! tag, and which piece of random filler it holds.

use std::fs;
use std::path::{Path, PathBuf};

use crate::live::udp;
use crate::netns::Netns;
use crate::process::Process;
use crate::samples::noise;

/// Bytes of UDP payload, by number: the number itself, the mark and filler.
const PAYLOADS: [usize; 8] = [16, 20, 150, 560, 1400, 18, 250, 900];
/// Every frame whose number divides by it has a VLAN tag.
const TAGGED_EVERY: u64 = 5;
/// Bytes of the filler.
const FILLER_BYTES: usize = 1 << 18;
/// Steps through the filler, a prime number of bytes.
const STEP: u64 = 61;
/// Bytes before the payload.
const HEADER_BYTES: usize = 42;
/// Where a tag stands.
const TAG_AT: usize = 12;

/// Sends frames at a mean rate until SIGTERM: interface, rate a second, file of templates, filler,
/// and a file in which it says what may be sent and what is. Twice in three seconds it pauses and then
/// sends at once what was due. While the interface is away numbers pass unsent.
const SEND: &str = "
import json, mmap, signal, socket, sys, time
interface, rate, templates, filler, shown = sys.argv[1], int(sys.argv[2]), *sys.argv[3:6]
templates = json.load(open(templates))
heads = [(bytes.fromhex(head), payload) for head, payload in templates['heads']]
mark, tagged, step = templates['mark'].encode(), templates['tagged'], templates['step']
filler = open(filler, 'rb').read()
room = len(filler) - 2000
held = open(shown, 'r+b')
shown = mmap.mmap(held.fileno(), 16)
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
def show(at, number):
    shown[at:at + 8] = number.to_bytes(8, 'little')
def opened():
    try:
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.bind((interface, 0))
        return out
    except OSError:
        return None
def frame(number):
    head, payload = heads[number % len(heads)]
    at = number * step % room
    data = head[:34] + (20000 + number % 64).to_bytes(2, 'big') + head[36:] + b'number=%08d' % number + mark
    data += filler[at:at + payload - 16]
    if number % tagged == 0:
        data = data[:12] + b'\\x81\\x00' + (number & 0xffff).to_bytes(2, 'big') + data[12:]
    return data
out = opened()
number, begin = 0, time.monotonic()
print('sending', file=sys.stderr, flush=True)
while not ends:
    passed = time.monotonic() - begin
    if passed % 1.5 < 0.25:
        time.sleep(0.25)
        continue
    due = int(passed * rate)
    upto = min(due, number + 300) # more at once the receiving side of a wire may not take
    show(0, upto)
    for attempt in range(2): # the first may only learn that the interface was away
        try:
            while number < upto:
                out.send(frame(number))
                number += 1
        except (OSError, AttributeError):
            if out:
                out.close()
            out = opened()
    number = upto
    show(8, number)
    time.sleep(0.01 if number == due else 0.002)
";

/// The frames for one sniffer.
#[derive(Clone, Debug)]
pub struct Frames {
    mark: u8,
    filler: Vec<u8>,
}

impl Frames {
    /// Those with a letter of their own.
    pub fn new(mark: char) -> Self {
        Self { mark: mark as u8, filler: noise(u64::from(u32::from(mark)), FILLER_BYTES) }
    }

    /// The frame of a number, whole.
    pub fn frame(&self, number: u64) -> Vec<u8> {
        let length = PAYLOADS[(number % PAYLOADS.len() as u64) as usize];
        let mut payload = format!("number={number:08}").into_bytes();
        payload.push(self.mark);
        let at = (number * STEP % (FILLER_BYTES as u64 - 2000)) as usize;
        payload.extend(&self.filler[at..at + length - payload.len()]);
        let mut frame = udp(20_000 + (number % 64) as u16, 5000, &payload);
        if number.is_multiple_of(TAGGED_EVERY) {
            let [high, low] = (number as u16).to_be_bytes();
            frame.splice(TAG_AT..TAG_AT, [0x81, 0x00, high, low]);
        }
        frame
    }

    /// The number of a frame; `None` if it is no frame of these, or not byte for byte.
    pub fn number(&self, data: &[u8]) -> Option<u64> {
        let is_tagged = data.get(TAG_AT..TAG_AT + 2)? == [0x81, 0x00];
        let at = HEADER_BYTES + if is_tagged { 4 } else { 0 };
        let digits = data.get(at..at + 15)?.strip_prefix(b"number=")?;
        let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (self.frame(number) == data).then_some(number)
    }

    fn templates(&self) -> String {
        let heads: Vec<(String, usize)> = PAYLOADS
            .iter()
            .map(|length| {
                let frame = udp(0, 5000, &vec![0; *length]);
                (frame[..HEADER_BYTES].iter().map(|byte| format!("{byte:02x}")).collect(), *length)
            })
            .collect();
        let mark = char::from(self.mark).to_string();
        serde_json::json!({ "heads": heads, "mark": mark, "tagged": TAGGED_EVERY, "step": STEP }).to_string()
    }
}

/// Numbered frames that are being sent.
pub struct Sender {
    process: Process,
    shown: PathBuf,
}

impl Sender {
    /// Begins to send out of an interface, so many a second on average.
    pub fn start(netns: &Netns, interface: &str, frames: &Frames, rate: u64, folder: &Path) -> Self {
        let [templates, filler, shown] =
            ["templates", "filler", "shown"].map(|what| folder.join(format!("{interface}-{what}")));
        fs::write(&templates, frames.templates()).expect("written");
        fs::write(&filler, &frames.filler).expect("written");
        fs::write(&shown, [0; 16]).expect("written");
        let mut command = netns.command("python3");
        command.args(["-c", SEND, interface, &rate.to_string()]).args([&templates, &filler, &shown]);
        let mut process = Process::start_as("sender", &mut command);
        process.await_line("sending");
        Self { process, shown }
    }

    /// All below were sent, but for those due while the interface was away.
    pub fn sent(&self) -> u64 {
        self.shown(8)
    }

    /// None from here on was sent.
    pub fn begun(&self) -> u64 {
        self.shown(0)
    }

    /// Stops; returns the number after the last one sent.
    pub fn stop(self) -> u64 {
        let shown = self.shown;
        let ended = self.process.terminate();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        read(&shown, 8)
    }

    fn shown(&self, at: usize) -> u64 {
        read(&self.shown, at)
    }
}

fn read(shown: &Path, at: usize) -> u64 {
    let bytes = fs::read(shown).expect("the sender's file");
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_known_by_each_byte() {
        let (frames, others) = (Frames::new('s'), Frames::new('m'));
        for number in 0..100 {
            let mut frame = frames.frame(number);
            assert_eq!((frames.number(&frame), others.number(&frame)), (Some(number), None));
            for at in 0..frame.len() {
                frame[at] ^= 1;
                assert_ne!(frames.number(&frame), Some(number), "byte {at} of frame {number}");
                frame[at] ^= 1;
            }
            assert_eq!(frames.number(&frame[..frame.len() - 1]), None);
        }
    }
}
