//! The network interfaces of this host: what they are, and when they come and go.
//!
//! Invariant: what must be right (name, index, link type, state, addresses) is asked of the kernel by netlink and
//! getifaddrs, so it is that of the network namespace of the calling thread. Files under /sys are not read: sysfs shows
//! the namespace it was mounted in. Driver, speed and offloads come by ethtool's ioctl, as far as they are to be had.

mod drops;
mod ethtool;
mod monitor;
mod netlink;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

pub use self::drops::interface_drops;
pub use self::ethtool::{NicRing, Offloads};
pub use self::monitor::{LinkEvent, Monitor};

use self::ethtool::Ethtool;
use self::netlink::Link;

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceInfo {
    /// Its name, which can change.
    pub name: String,
    /// Its index, which does not.
    pub index: u32,
    /// LINKTYPE of the frames a packet socket gets from it (see [`link_type`]); none where that is not known.
    pub link_type: Option<u16>,
    /// Switched on. (IFF_UP)
    pub up: bool,
    /// Up, and with a carrier. (IFF_RUNNING)
    pub running: bool,
    /// Is `lo`. (IFF_LOOPBACK)
    pub loopback: bool,
    /// Largest packet it sends, in bytes, without the link-layer header. Offloads make larger frames.
    pub mtu: u32,
    /// Its Ethernet address; none for loopback and for interfaces without.
    pub mac: Option<[u8; 6]>,
    /// Its addresses, in the order of the kernel.
    pub addresses: Vec<IpAddr>,
    /// Name of its driver.
    pub driver: Option<String>,
    /// Driver and bus address, for pcapng's if_hardware: `ixgbe 0000:3b:00.0`.
    pub hardware: Option<String>,
    /// Its speed in bits per second, where the driver knows one.
    pub speed_bits: Option<u64>,
    /// Offloads that change what a capture sees.
    pub offloads: Offloads,
    /// The NIC's own ring of received packets.
    pub nic_ring: Option<NicRing>,
}

/// Why an interface could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// No interface has that name in this network namespace.
    #[error("interface {interface}: no such device")]
    NoSuchDevice {
        /// The name.
        interface: String,
    },
    /// The kernel could not be asked.
    #[error("interface {interface}: cannot be looked up")]
    System {
        /// The name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// All interfaces, by index.
pub fn list() -> io::Result<Vec<InterfaceInfo>> {
    let links = netlink::dump_links()?;
    let mut addresses = addresses()?;
    let ethtool = Ethtool::open().ok();
    let mut interfaces: Vec<InterfaceInfo> = links
        .into_iter()
        .map(|link| {
            let addresses = addresses.remove(&link.name).unwrap_or_default();
            describe(link, addresses, ethtool.as_ref())
        })
        .collect();
    interfaces.sort_by_key(|interface| interface.index);
    Ok(interfaces)
}

/// The interface of that name.
pub fn find(name: &str) -> Result<InterfaceInfo, InterfaceError> {
    list()
        .map_err(|source| InterfaceError::System { interface: name.to_owned(), source })?
        .into_iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| InterfaceError::NoSuchDevice { interface: name.to_owned() })
}

/// Name and release of the operating system, for pcapng's if_os: `Linux 6.18.44`.
pub fn os_description() -> String {
    match nix::sys::utsname::uname() {
        Ok(uname) => format!("{} {}", uname.sysname().display(), uname.release().display()),
        Err(_) => "Linux".to_owned(),
    }
}

/// LINKTYPE (tcpdump.org/linktypes.html) of the frames a packet socket of type SOCK_RAW gets from a device of this
/// ARPHRD type (linux/if_arp.h). None where it is unknown, or where the frames would have to be rewritten first.
pub fn link_type(arphrd: u16) -> Option<u16> {
    const ETHERNET: u16 = 1;
    const RAW_IP: u16 = 101;
    Some(match arphrd {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => ETHERNET,
        libc::ARPHRD_FDDI => 10,
        // No header at all: the IP packet itself.
        libc::ARPHRD_NONE
        | ARPHRD_RAWIP
        | libc::ARPHRD_PPP
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_IPGRE
        | ARPHRD_IP6GRE => RAW_IP,
        libc::ARPHRD_IEEE80211 => 105,
        libc::ARPHRD_IEEE80211_PRISM => 119,
        libc::ARPHRD_IEEE80211_RADIOTAP => 127,
        libc::ARPHRD_IEEE802154 => 230,
        ARPHRD_VSOCKMON => 271,
        _ => return None,
    })
}

/// All that [`link_type`] gives.
pub const LINK_TYPES: [u16; 8] = [1, 10, 101, 105, 119, 127, 230, 271];

/// IP without a header, as modems have it. Not in the `libc` crate. (linux/if_arp.h)
const ARPHRD_RAWIP: u16 = 519;
/// GRE over IPv6. Not in the `libc` crate. (linux/if_arp.h)
const ARPHRD_IP6GRE: u16 = 823;
/// Monitor of vsock. Not in the `libc` crate. (linux/if_arp.h)
const ARPHRD_VSOCKMON: u16 = 826;

fn describe(link: Link, addresses: Vec<IpAddr>, ethtool: Option<&Ethtool>) -> InterfaceInfo {
    let driver = ethtool.and_then(|ethtool| ethtool.driver(&link.name));
    let hardware = driver.as_ref().map(|driver| match driver.bus.as_str() {
        "" | "N/A" => driver.name.clone(),
        bus => format!("{} {bus}", driver.name),
    });
    InterfaceInfo {
        link_type: link_type(link.arphrd),
        up: link.up(),
        running: link.running(),
        loopback: link.loopback(),
        mtu: link.mtu,
        mac: link.mac.filter(|_| !link.loopback()),
        addresses,
        driver: driver.map(|driver| driver.name),
        hardware,
        speed_bits: ethtool.and_then(|ethtool| ethtool.speed_bits(&link.name)),
        offloads: ethtool.map(|ethtool| ethtool.offloads(&link.name)).unwrap_or_default(),
        nic_ring: ethtool.and_then(|ethtool| ethtool.nic_ring(&link.name)),
        index: link.index,
        name: link.name,
    }
}

/// IP addresses by name of the interface.
fn addresses() -> io::Result<BTreeMap<String, Vec<IpAddr>>> {
    let mut by_name: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for entry in getifaddrs()? {
        let Some(address) = entry.address else { continue };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        // IPv4 labels ("eth0:1") are shown in place of the name.
        let name = entry.interface_name.split(':').next().unwrap_or_default().to_owned();
        by_name.entry(name).or_default().push(ip);
    }
    Ok(by_name)
}
