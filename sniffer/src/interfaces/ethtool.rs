//! What a driver says of itself: SIOCETHTOOL, best effort, no rights needed.
//!
//! Everything here may be absent. The older calls are used, which every kernel translates: they are short, and one
//! structure each.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// (linux/ethtool.h)
const ETHTOOL_GSET: u32 = 0x01;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_GGSO: u32 = 0x23;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// Offloads because of which a capture sees frames larger than were, or will be, on the wire. None: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Received TCP segments are joined by the kernel.
    pub gro: Option<bool>,
    /// Received TCP segments are joined by the NIC.
    pub lro: Option<bool>,
    /// Sent TCP segments are cut by the NIC.
    pub tso: Option<bool>,
    /// Sent segments are cut by the kernel, below the capture.
    pub gso: Option<bool>,
}

/// Places for received packets that a NIC has between it and the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NicRing {
    /// As many as there are now.
    pub received: u32,
    /// As many as there can be.
    pub received_max: u32,
}

/// A driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Driver {
    pub(super) name: String,
    /// Its address on its bus; may be empty.
    pub(super) bus: String,
}

/// struct ethtool_drvinfo
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

/// struct ethtool_cmd
#[repr(C)]
struct Settings {
    command: u32,
    supported: u32,
    advertising: u32,
    speed: u16,
    bytes: [u8; 6],
    packet_maxima: [u32; 2],
    speed_high: u16,
    tail_bytes: [u8; 2],
    tail: [u32; 3],
}

/// struct ethtool_value
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// struct ethtool_ringparam
#[repr(C)]
struct RingSizes {
    command: u32,
    /// Received, received small, received jumbo, sent.
    most: [u32; 4],
    now: [u32; 4],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);
const _: () = assert!(size_of::<RingSizes>() == 36);
const _: () = assert!(size_of::<Settings>() == 44);
const _: () = assert!(std::mem::offset_of!(Settings, speed_high) == 28);
const _: () = assert!(size_of::<Value>() == 8);

/// A structure of ethtool's: plain integers, the command first.
///
/// # Safety
///
/// Implementors are repr(C), any bytes are a valid value, and they are as long as the kernel writes for their commands.
unsafe trait Request {}
// SAFETY: as the trait asks; lengths asserted above.
unsafe impl Request for DriverInfo {}
// SAFETY: as above.
unsafe impl Request for Settings {}
// SAFETY: as above.
unsafe impl Request for Value {}
// SAFETY: as above.
unsafe impl Request for RingSizes {}

/// A socket to ask by.
#[derive(Debug)]
pub(super) struct Ethtool {
    socket: OwnedFd,
}

impl Ethtool {
    pub(super) fn open() -> io::Result<Ethtool> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Ethtool { socket })
    }

    pub(super) fn driver(&self, interface: &str) -> Option<Driver> {
        let mut info = DriverInfo {
            command: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            firmware: [0; 32],
            bus: [0; 32],
            rest: [0; 64],
        };
        self.call(interface, &mut info).ok()?;
        Some(Driver { name: text(&info.driver), bus: text(&info.bus) })
            .filter(|driver| !driver.name.is_empty())
    }

    pub(super) fn speed_bits(&self, interface: &str) -> Option<u64> {
        let mut settings = Settings {
            command: ETHTOOL_GSET,
            supported: 0,
            advertising: 0,
            speed: 0,
            bytes: [0; 6],
            packet_maxima: [0; 2],
            speed_high: 0,
            tail_bytes: [0; 2],
            tail: [0; 3],
        };
        self.call(interface, &mut settings).ok()?;
        let megabits = u32::from(settings.speed_high) << 16 | u32::from(settings.speed);
        // All ones, in 16 or in 32 bits, is "unknown".
        (megabits != 0 && megabits != u32::MAX && megabits != 0xffff)
            .then_some(u64::from(megabits) * 1_000_000)
    }

    pub(super) fn nic_ring(&self, interface: &str) -> Option<NicRing> {
        let mut sizes = RingSizes { command: ETHTOOL_GRINGPARAM, most: [0; 4], now: [0; 4] };
        self.call(interface, &mut sizes).ok()?;
        Some(NicRing { received: sizes.now[0], received_max: sizes.most[0] }).filter(|ring| ring.received > 0)
    }

    pub(super) fn offloads(&self, interface: &str) -> Offloads {
        let value = |command| {
            let mut value = Value { command, data: 0 };
            self.call(interface, &mut value).ok().map(|()| value.data)
        };
        Offloads {
            gro: value(ETHTOOL_GGRO).map(|data| data != 0),
            lro: value(ETHTOOL_GFLAGS).map(|data| data & ETH_FLAG_LRO != 0),
            tso: value(ETHTOOL_GTSO).map(|data| data != 0),
            gso: value(ETHTOOL_GGSO).map(|data| data != 0),
        }
    }

    fn call<R: Request>(&self, interface: &str, request: &mut R) -> nix::Result<()> {
        let name = interface.as_bytes();
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(Errno::ENODEV);
        }
        // SAFETY: integers and pointers only; all zeros is a valid value.
        let mut argument: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in argument.ifr_name.iter_mut().zip(name) {
            *to = *from as libc::c_char;
        }
        argument.ifr_ifru.ifru_data = std::ptr::from_mut(request).cast();
        // SAFETY: `argument` has a terminated name (checked above) and points at a request, exclusively ours during the
        // call, of the length its command writes (`Request`).
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut argument) };
        Errno::result(result).map(drop)
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}
