//! What a viewer writes, read as it comes, from a pipe: each packet looked at and marked, none kept.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::Range;
use std::process::ChildStdout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::frames::Frames;

/// Most faults that are kept.
const FAULTS_MAX: usize = 20;

/// What came of one sniffer.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Packets.
    pub delivered: u64,
    /// The greatest number.
    pub greatest: Option<u64>,
    /// The least number of increasing runs that the packets are a mixture of.
    pub runs: u64,
    /// What must not be: packets twice, or not as they were sent.
    pub faults: Vec<String>,
    /// A bit for each number.
    bits: Vec<u64>,
    /// The last number of each run.
    ends: BTreeSet<u64>,
}

impl Seen {
    /// A packet has come.
    pub fn take(&mut self, number: u64) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit != 0 {
            self.fault(format!("packet {number} twice"));
        }
        self.bits[word] |= bit;
        self.delivered += 1;
        self.greatest = self.greatest.max(Some(number));
        let end = self.ends.range(..number).next_back().copied();
        match end {
            Some(end) => _ = self.ends.remove(&end),
            None => self.runs += 1,
        }
        self.ends.insert(number);
    }

    fn fault(&mut self, text: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(text);
        }
    }

    /// Numbers of a range that did not come.
    pub fn missing(&self, numbers: Range<u64>) -> Vec<u64> {
        numbers.filter(|number| !self.has(*number)).collect()
    }

    /// How many numbers below this one came.
    pub fn count_below(&self, number: u64) -> u64 {
        let (words, bits) = ((number / 64) as usize, number % 64);
        let whole: u32 = self.bits.iter().take(words).map(|word| word.count_ones()).sum();
        let rest = self.bits.get(words).map_or(0, |word| (word & ((1 << bits) - 1)).count_ones());
        u64::from(whole + rest)
    }

    fn has(&self, number: u64) -> bool {
        self.bits.get((number / 64) as usize).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }
}

/// Reads what a viewer writes, until it ends.
pub struct Taker {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    is_slow: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Taker {
    /// Begins to read. `frames`: what may come, by the sniffer's name.
    pub fn start(pipe: ChildStdout, frames: Arc<BTreeMap<String, Frames>>) -> Self {
        let seen: BTreeMap<_, _> = frames.keys().map(|name| (name.clone(), Seen::default())).collect();
        let seen = Arc::new(Mutex::new(seen));
        let is_slow = Arc::new(AtomicBool::new(false));
        let reader = Reader { seen: Arc::clone(&seen), frames, interfaces: Vec::new() };
        let slow = Arc::clone(&is_slow);
        Self { seen, is_slow, thread: std::thread::spawn(move || reader.run(pipe, &slow)) }
    }

    /// What came so far, by sniffer.
    pub fn seen(&self) -> MutexGuard<'_, BTreeMap<String, Seen>> {
        self.seen.lock().expect("the reader does not panic")
    }

    /// The greatest number of a sniffer so far, plus one: what was captured in order before is not to come.
    pub fn next(&self, sniffer: &str) -> u64 {
        self.seen()[sniffer].greatest.map_or(0, |number| number + 1)
    }

    /// Reads a few hundred KiB a second only, or as fast as it can.
    pub fn set_slow(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Ordering::Release);
    }

    /// What came in all, once the viewer has ended.
    pub fn finish(self) -> BTreeMap<String, Seen> {
        self.thread.join().expect("the reader does not panic");
        std::mem::take(&mut *self.seen.lock().expect("nobody else has it"))
    }
}

struct Reader {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    frames: Arc<BTreeMap<String, Frames>>,
    /// The sniffer of each.
    interfaces: Vec<String>,
}

impl Reader {
    fn run(mut self, mut pipe: ChildStdout, is_slow: &AtomicBool) {
        let (mut bytes, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            let mut room = chunk.len();
            if is_slow.load(Ordering::Acquire) {
                room = 1 << 14;
                std::thread::sleep(Duration::from_millis(50));
            }
            let count = pipe.read(&mut chunk[..room]).expect("a pipe can be read");
            bytes.extend_from_slice(&chunk[..count]);
            let mut at = 0;
            while let Some(block) = whole_block(&bytes[at..]) {
                self.take(block);
                at += block.len();
            }
            bytes.drain(..at);
            if count == 0 {
                assert!(bytes.is_empty(), "a block that is not whole at the end");
                return;
            }
        }
    }

    fn take(&mut self, block: &[u8]) {
        match word(block, 0) {
            1 => self.interfaces.push(sniffer_of(&block[16..])),
            6 => {
                let data = &block[28..28 + word(block, 20)];
                let mut seen = self.seen.lock().expect("nobody panics");
                let name = self.interfaces.get(word(block, 8)).map_or("", String::as_str);
                let (Some(seen), Some(frames)) = (seen.get_mut(name), self.frames.get(name)) else {
                    panic!("a packet of {name:?}, which is none of the sniffers");
                };
                match frames.number(data) {
                    Some(number) => seen.take(number),
                    None => seen.fault(format!("not as it was sent: {data:02x?}")),
                }
            }
            _ => {}
        }
    }
}

fn whole_block(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.len() < 12 {
        return None;
    }
    let length = word(bytes, 4);
    assert!(length >= 12 && length.is_multiple_of(4), "a block of {length} bytes");
    bytes.get(..length)
}

/// `web` of the option if_name `web:eth0`.
fn sniffer_of(mut options: &[u8]) -> String {
    while options.len() >= 4 {
        let code = u16::from_le_bytes([options[0], options[1]]);
        let length = usize::from(u16::from_le_bytes([options[2], options[3]]));
        if code == 2 {
            let name = String::from_utf8_lossy(&options[4..4 + length]).into_owned();
            return name.split(':').next().unwrap_or_default().to_owned();
        }
        options = &options[(4 + length.next_multiple_of(4)).min(options.len())..];
    }
    String::new()
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_marked() {
        let mut seen = Seen::default();
        for number in [0, 1, 5, 2, 6, 130] {
            seen.take(number);
        }
        assert_eq!((seen.delivered, seen.greatest, seen.runs), (6, Some(130), 2));
        assert_eq!(seen.missing(0..9), [3, 4, 7, 8]);
        assert_eq!(seen.missing(128..132), [128, 129, 131]);
        let counts = [0, 1, 3, 6, 64, 130, 131, 1000].map(|number| seen.count_below(number));
        assert_eq!(counts, [0, 1, 3, 4, 5, 5, 6, 6]);
        assert!(seen.faults.is_empty());
        seen.take(5);
        assert_eq!(seen.faults, ["packet 5 twice"]);
    }
}
