//! Capture rings: AF_PACKET with TPACKET_V3, as a safe interface.
//!
//! ```text
//!            kernel                                   us
//! filter -> block being filled -> full, or timeout -> next_block() lends it -> frames() -> dropped: handed back
//! ```
//!
//! Invariants:
//! - Nothing is delivered before [`RingControl::set_filter`]: a ring opens with a filter that drops everything, so that
//!   several can be opened and joined to a fan-out group without a packet seen twice.
//! - A ring has one reader, which owns it. Other threads get a [`RingControl`], which can only change the filter.
//! - Packets the kernel offered are `Statistics::packets`; those of them it had no room for, `drops`. Everything else is
//!   in a block. What a filter rejects is counted nowhere.
//! - `unsafe` is in `socket`, `map` and `block`. Elsewhere on the capture path it is in the mapping of the totals file only.
//!
//! Set-up goes socket (protocol 0), version, ring, mapping, filter, promiscuous mode, bind. The order matters: version
//! and options are refused after the ring, and a socket bound first would queue packets outside of it.

mod block;
mod frame;
mod map;
mod socket;
#[cfg(test)]
mod tests;
mod uapi;

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use wire::limited;
use wire::log::{FEW, SOME};

pub use self::block::Block;
#[cfg(test)]
pub use self::frame::VlanTag;
pub use self::frame::{Direction, Frame};
pub use self::socket::RingControl;

use self::block::Cursor;
use self::map::Map;
use self::socket::Socket;
use self::uapi::{FRAME_SLOT_BYTES, MAX_BLOCKS};

/// One instruction of a classic BPF program: code, jump if true, jump if false, operand. (struct sock_filter)
pub type Instruction = (u16, u8, u8, u32);

/// The program that drops everything: `ret #0`.
pub const DROP_ALL: [Instruction; 1] = accept(0);

/// The program that keeps the first `snaplen` bytes of everything: `ret #snaplen`.
pub const fn accept(snaplen: u32) -> [Instruction; 1] {
    [((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, snaplen)]
}

/// A block below this cannot hold the largest frame without BIG TCP, which is then cut without a sign of it.
const SMALL_BLOCK_BYTES: usize = 128 * 1024;
/// The kernel's bound is below 2 GiB.
const MAX_BLOCK_BYTES: usize = 1 << 30;
/// One to be filled and one to be read.
const MIN_BLOCKS: usize = 2;

/// What a ring is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingConfig {
    /// Name of the interface.
    pub interface: String,
    /// Size of the whole ring, in bytes, rounded down to whole blocks (at least 2, at most 65536). Unswappable memory of
    /// the kernel, charged to no control group. Default 64 MiB.
    pub ring_bytes: usize,
    /// Size of a block, in bytes: a power of two from 4 KiB to 1 GiB. A frame that does not fit one is cut by the kernel
    /// without a sign of it, so below 128 KiB there is a warning. Default 2 MiB.
    pub block_bytes: usize,
    /// Time after which a block with packets is handed over although it is not full, in ms; what a lone packet waits at
    /// most. The timer runs freely, also when idle. From 1; default 10. (tp_retire_blk_tov)
    pub retire_ms: u32,
    /// Take frames addressed to others too. Default true.
    pub promiscuous: bool,
    /// Leave out what this host sends: for loopback, where each packet comes by twice. Default false. In a fan-out group
    /// the socket's option has no effect: tell [`Ring::join_fanout`] as well.
    pub ignore_outgoing: bool,
}

impl RingConfig {
    /// The defaults, for `interface`.
    pub fn new(interface: &str) -> RingConfig {
        RingConfig {
            interface: interface.to_owned(),
            ring_bytes: 64 * 1024 * 1024,
            block_bytes: 2 * 1024 * 1024,
            retire_ms: 10,
            promiscuous: true,
            ignore_outgoing: false,
        }
    }

    /// Checks every field and gives the number of blocks.
    fn block_count(&self) -> Result<usize, RingError> {
        let invalid = |what: &'static str| RingError::Config { interface: self.interface.clone(), what };
        check_name(&self.interface)?;
        if self.retire_ms == 0 {
            return Err(invalid("the block timeout must not be 0, for the kernel would then choose one"));
        }
        if !self.block_bytes.is_power_of_two()
            || self.block_bytes < page_bytes().max(FRAME_SLOT_BYTES)
            || self.block_bytes > MAX_BLOCK_BYTES
        {
            return Err(invalid("the block size must be a power of two from a page to 1 GiB"));
        }
        let count = self.ring_bytes / self.block_bytes;
        if count < MIN_BLOCKS {
            return Err(invalid("the ring must hold two blocks at least"));
        }
        if count > MAX_BLOCKS {
            return Err(invalid(
                "the ring must not have more than 65536 blocks; larger blocks make a larger ring",
            ));
        }
        if self.block_bytes < SMALL_BLOCK_BYTES {
            limited!(
                warn,
                SOME,
                "interface {}: blocks of {} bytes, below 128 KiB, cannot hold every frame that offloads make; the kernel \
                 cuts what does not fit",
                self.interface,
                self.block_bytes
            );
        }
        Ok(count)
    }
}

/// How the kernel deals packets out to the rings of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FanoutMode {
    /// By flow, both directions together.
    Hash,
    /// By the CPU the packet came in on.
    Cpu,
    /// By the receive queue of the NIC.
    Qm,
    /// In turn.
    Lb,
    /// To one until it is full, then to the next; reorders.
    Rollover,
}

impl FanoutMode {
    fn kernel_mode(self) -> u32 {
        match self {
            FanoutMode::Hash => libc::PACKET_FANOUT_HASH,
            FanoutMode::Cpu => libc::PACKET_FANOUT_CPU,
            FanoutMode::Qm => libc::PACKET_FANOUT_QM,
            FanoutMode::Lb => libc::PACKET_FANOUT_LB,
            FanoutMode::Rollover => libc::PACKET_FANOUT_ROLLOVER,
        }
    }
}

/// What the kernel counted for one ring since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets that passed the filter, those dropped included. Runs ahead of the reader by what is in the ring.
    pub packets: u64,
    /// Packets among them that were lost because the ring was full.
    pub drops: u64,
    /// How often the ring became full; one stands for any number of drops.
    pub freezes: u64,
}

/// Why a ring could not be had, or not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// No interface has that name in this network namespace.
    #[error("interface {interface}: no such device")]
    NoSuchDevice {
        /// Its name.
        interface: String,
    },
    /// Not a name an interface can have.
    #[error("interface {interface:?}: not a valid name (1 to 15 bytes, without '/' and spaces)")]
    InvalidName {
        /// The name given.
        interface: String,
    },
    /// The process lacks the capability.
    #[error(
        "interface {interface}: permission denied: packet sockets need CAP_NET_RAW (run as root or setcap cap_net_raw+ep)"
    )]
    NotPermitted {
        /// Name of the interface.
        interface: String,
    },
    /// The interface is down.
    #[error("interface {interface}: is down")]
    Down {
        /// Name of the interface.
        interface: String,
    },
    /// Not even a ring of two blocks was to be had.
    #[error("interface {interface}: no memory for a ring of {ring_bytes} bytes, the least possible")]
    OutOfMemory {
        /// Name of the interface.
        interface: String,
        /// What was asked for last.
        ring_bytes: usize,
    },
    /// A setting is out of its range.
    #[error("interface {interface}: {what}")]
    Config {
        /// Name of the interface.
        interface: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The filter is empty or longer than the kernel takes.
    #[error("interface {interface}: a filter of {instructions} instructions (1 to 4096 are possible)")]
    FilterLength {
        /// Name of the interface.
        interface: String,
        /// Its length.
        instructions: usize,
    },
    /// The group exists and is another's, or is used in another way.
    #[error("interface {interface}: fan-out group {group} has another interface, mode or flags")]
    FanoutMismatch {
        /// Name of the interface.
        interface: String,
        /// Number of the group.
        group: u16,
    },
    /// The ring is gone.
    #[error("interface {interface}: the ring is closed")]
    Closed {
        /// Name of the interface.
        interface: String,
    },
    /// Any other failure of a system call.
    #[error("interface {interface}: {step} failed")]
    System {
        /// Name of the interface.
        interface: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

impl RingError {
    fn system(interface: &str, step: &'static str, errno: Errno) -> RingError {
        let interface = interface.to_owned();
        match errno {
            Errno::EPERM | Errno::EACCES => RingError::NotPermitted { interface },
            Errno::ENODEV | Errno::ENXIO => RingError::NoSuchDevice { interface },
            Errno::ENETDOWN => RingError::Down { interface },
            source => RingError::System { interface, step, source },
        }
    }
}

/// One capture ring on one interface.
#[derive(Debug)]
pub struct Ring {
    // INVARIANT: fields are dropped in this order: no cursor into a mapping that is gone, no mapping of a socket that is
    // closed (see `map`).
    cursor: Cursor,
    map: Map,
    socket: Socket,
    ring_bytes: usize,
    interface_index: i32,
    totals: Statistics,
    resynchronised: u64,
}

impl Ring {
    /// Opens a ring that drops everything until its filter is set.
    ///
    /// Where memory is short the ring is halved until it fits; [`Ring::ring_bytes`] says what was had. The timer and
    /// the memory of the ring stay with the CPU and node of the calling thread: pin it first.
    pub fn open(config: &RingConfig) -> Result<Ring, RingError> {
        let interface = config.interface.as_str();
        let block_count = config.block_count()?;
        // Before the socket, so that a wrong name is told as such to someone who lacks rights too.
        let expected_index = nix::net::if_::if_nametoindex(interface)
            .map_err(|errno| RingError::system(interface, "finding it", errno))?;

        let socket = Socket::open(interface)?;
        if config.ignore_outgoing {
            socket.ignore_outgoing()?;
        }
        let block_count = make_ring(&socket, config, block_count)?;
        // `ring_bytes` of the config was at least this, so the product fits.
        let ring_bytes = block_count * config.block_bytes;
        let mapped = NonZeroUsize::new(ring_bytes).expect("two blocks at least");
        let map = Map::new(socket.as_fd(), mapped)
            .map_err(|errno| RingError::system(interface, "mapping the ring", errno))?;
        let cursor = map.cursor(config.block_bytes);

        socket.control().set_filter(&DROP_ALL)?;
        if config.promiscuous {
            socket.set_promiscuous()?;
        }
        let interface_index = socket.bind()?;
        if u32::try_from(interface_index) != Ok(expected_index) {
            // Renamed in between: promiscuous mode may be on the one and the binding on the other.
            return Err(RingError::NoSuchDevice { interface: interface.to_owned() });
        }
        // What was counted so far was not offered to a filter of ours.
        socket.statistics()?;
        Ok(Ring {
            cursor,
            map,
            socket,
            ring_bytes,
            interface_index,
            totals: Statistics::default(),
            resynchronised: 0,
        })
    }

    /// Joins a fan-out group, which all rings of one interface share, and returns its number.
    ///
    /// The first ring gives `None` and gets a number nobody else has; the others give that number. Mode and
    /// `ignore_outgoing` have to be the same in all. Join before the filter is set.
    pub fn join_fanout(
        &self,
        group: Option<u16>,
        mode: FanoutMode,
        ignore_outgoing: bool,
    ) -> Result<u16, RingError> {
        self.socket.join_fanout(group, mode, ignore_outgoing)
    }

    /// A handle that changes the filter from another thread.
    pub fn control(&self) -> RingControl {
        self.socket.control()
    }

    /// Lends the next block, if the kernel has handed one over. Dropping it gives it back.
    #[inline]
    pub fn next_block(&mut self) -> Option<Block<'_>> {
        self.cursor.next()
    }

    /// Whether [`Ring::next_block`] would lend one.
    #[inline]
    pub fn ready(&self) -> bool {
        self.cursor.ready()
    }

    /// For a reader whom poll called although [`Ring::next_block`] has nothing: its place and the kernel's have come
    /// apart, and without this it would spin until the ring has gone round. Goes to the oldest block that is ours;
    /// returns whether there is one. Costs a look at every block.
    pub fn resynchronise(&mut self) -> bool {
        if self.cursor.ready() {
            return true;
        }
        let found = self.cursor.resynchronise();
        if found {
            self.resynchronised += 1;
            limited!(
                warn,
                FEW,
                "ring of interface {}: reader was out of step with the kernel, {} times so far",
                self.interface_index,
                self.resynchronised
            );
        }
        found
    }

    /// How often [`Ring::resynchronise`] had to move. Above 0 is a defect, ours or the kernel's.
    pub fn resynchronised(&self) -> u64 {
        self.resynchronised
    }

    /// The socket, to be polled: readable when a block is ready, in error when the interface has gone down. Nothing wakes
    /// it on drops, on packets the filter rejects, or when the link comes back.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes the pending error: ENETDOWN when the interface went down or away. Until it is taken, poll returns at once.
    pub fn take_error(&self) -> Option<Errno> {
        self.socket.take_error()
    }

    /// Whether the interface is still there. Once it was deleted or moved to another namespace the ring is dead; blocks
    /// can still be read. (The same name coming back needs a new ring.)
    pub fn attached(&self) -> bool {
        self.socket.bound_index().is_some()
    }

    /// Reads the kernel's counts, which clears them, and adds them up. The kernel's are 32 bits wide: read at least every
    /// few minutes.
    pub fn statistics(&mut self) -> Result<Statistics, RingError> {
        let since = self.socket.statistics()?;
        self.totals.packets += u64::from(since.tp_packets);
        self.totals.drops += u64::from(since.tp_drops);
        self.totals.freezes += u64::from(since.tp_freeze_q_cnt);
        Ok(self.totals)
    }

    /// Size of the ring as it was had, in bytes; less than was asked for where memory was short.
    pub fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// Blocks of the ring.
    pub fn block_count(&self) -> usize {
        self.cursor.block_count()
    }

    /// Blocks that the kernel has handed over and that were not taken yet, up to all of the ring. Looks at one status
    /// word if there are none, else at about as many as the number of blocks has binary digits.
    pub fn ready_blocks(&self) -> usize {
        self.cursor.ready_blocks()
    }

    /// Index of the interface. Names change, it does not.
    pub fn interface_index(&self) -> i32 {
        self.interface_index
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Makes the ring, halving it until it fits, and returns the number of blocks it got.
fn make_ring(socket: &Socket, config: &RingConfig, asked: usize) -> Result<usize, RingError> {
    let interface = config.interface.as_str();
    let mut count = within_memory(asked, config.block_bytes, available_memory());
    loop {
        match socket.make_ring(&request(config, count)?) {
            Ok(()) => break,
            Err(Errno::ENOMEM) if count > MIN_BLOCKS => count = (count / 2).max(MIN_BLOCKS),
            Err(Errno::ENOMEM) => {
                return Err(RingError::OutOfMemory {
                    interface: interface.to_owned(),
                    ring_bytes: count * config.block_bytes,
                });
            }
            Err(errno) => return Err(RingError::system(interface, "making the ring", errno)),
        }
    }
    if count < asked {
        limited!(
            warn,
            SOME,
            "interface {interface}: memory is short, its ring has {} bytes and not {}",
            count * config.block_bytes,
            config.ring_bytes
        );
    }
    Ok(count)
}

/// Halves the number of blocks until they take half of the memory that is free at most. The kernel would grant what it
/// has and more, and then call the OOM killer.
fn within_memory(asked: usize, block_bytes: usize, available: Option<u64>) -> usize {
    let mut count = asked;
    while count > MIN_BLOCKS && available.is_some_and(|free| (count * block_bytes) as u64 > free / 2) {
        count = (count / 2).max(MIN_BLOCKS);
    }
    count
}

fn request(config: &RingConfig, block_count: usize) -> Result<libc::tpacket_req3, RingError> {
    let too_large =
        || RingError::Config { interface: config.interface.clone(), what: "the ring is too large" };
    let narrow = |value: usize| u32::try_from(value).map_err(|_| too_large());
    let slots = (config.block_bytes / FRAME_SLOT_BYTES).checked_mul(block_count).ok_or_else(too_large)?;
    Ok(libc::tpacket_req3 {
        tp_block_size: narrow(config.block_bytes)?,
        tp_block_nr: narrow(block_count)?,
        tp_frame_size: narrow(FRAME_SLOT_BYTES)?,
        tp_frame_nr: narrow(slots)?,
        tp_retire_blk_tov: config.retire_ms,
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    })
}

/// The kernel's own rule, so that a name is refused before it is given to code that does not check.
pub fn check_name(name: &str) -> Result<(), RingError> {
    let fits = !name.is_empty() && name.len() < libc::IFNAMSIZ && name != "." && name != "..";
    if fits
        && !name.bytes().any(|byte| byte == 0 || byte == b'/' || byte == b':' || byte.is_ascii_whitespace())
    {
        Ok(())
    } else {
        Err(RingError::InvalidName { interface: name.to_owned() })
    }
}

fn page_bytes() -> usize {
    match nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) {
        Ok(Some(bytes)) => usize::try_from(bytes).unwrap_or(4096),
        _ => 4096,
    }
}

/// Memory that can be had without swapping, in bytes. (MemAvailable, /proc/meminfo)
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
