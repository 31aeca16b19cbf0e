//! As much of rtnetlink as tells about links: the dump, and the messages of RTMGRP_LINK.
//!
//! ```text
//! nlmsghdr   len u32 | type u16 | flags u16 | seq u32 | pid u32
//! ifinfomsg  family u8 | pad u8 | ARPHRD u16 | index i32 | IFF_ flags u32 | change u32
//! rtattr     len u16 | type u16 | value | padding to 4          (repeated)
//! ```
//!
//! Invariants: only messages of the kernel (port 0) are believed; every length is checked before it is used.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto, socket,
};

const MESSAGE_HEADER_BYTES: usize = 16;
const LINK_HEADER_BYTES: usize = 16;
/// The dump was changed while it was read, and is not to be relied on. (linux/netlink.h)
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The kernel makes no message of a dump larger than 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;
/// A dump that is interrupted so often is given up.
const DUMP_ATTEMPTS: usize = 10;

/// What the kernel says of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// ARPHRD_ of linux/if_arp.h.
    pub(super) arphrd: u16,
    flags: u32,
    pub(super) mtu: u32,
    pub(super) mac: Option<[u8; 6]>,
}

impl Link {
    pub(super) fn up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }

    pub(super) fn running(&self) -> bool {
        self.flags & libc::IFF_RUNNING as u32 != 0
    }

    pub(super) fn loopback(&self) -> bool {
        self.flags & libc::IFF_LOOPBACK as u32 != 0
    }
}

/// One message about links.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The link is there, in this state.
    Present(Link),
    /// The link is gone.
    Gone(Link),
    /// The dump is complete.
    Done,
    /// The kernel refuses.
    Failed(Errno),
    /// The dump has to be asked for again.
    Interrupted,
}

/// A netlink socket that hears `groups`.
pub(super) fn open(groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// All links of this network namespace.
pub(super) fn dump_links() -> io::Result<Vec<Link>> {
    let socket = open(0, SockFlag::empty())?;
    for attempt in 0..DUMP_ATTEMPTS {
        request_dump(&socket, attempt as u32)?;
        if let Some(links) = read_dump(&socket)? {
            return Ok(links);
        }
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "the list of interfaces keeps changing"))
}

fn request_dump(socket: &OwnedFd, sequence: u32) -> io::Result<()> {
    let length = MESSAGE_HEADER_BYTES + LINK_HEADER_BYTES;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(libc::RTM_GETLINK.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend(sequence.to_ne_bytes());
    request.resize(length, 0); // port 0; any family, type, index
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

/// Reads a dump to its end; none if it was interrupted.
fn read_dump(socket: &OwnedFd) -> io::Result<Option<Vec<Link>>> {
    let mut links = Vec::new();
    let mut interrupted = false;
    let mut buffer = vec![0; RECEIVE_BYTES];
    loop {
        for message in receive(socket, &mut buffer)? {
            match message {
                Message::Present(link) => links.push(link),
                Message::Interrupted => interrupted = true,
                Message::Failed(errno) => return Err(errno.into()),
                Message::Done => return Ok((!interrupted).then_some(links)),
                Message::Gone(_) => {}
            }
        }
    }
}

/// Receives one datagram and parses it.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> nix::Result<Vec<Message>> {
    loop {
        match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), buffer) {
            Ok((length, sender)) if sender.is_some_and(|sender| sender.pid() == 0) => {
                return Ok(parse(&buffer[..length]));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The messages of a datagram; what is cut short or of another kind is left out.
fn parse(mut datagram: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(header) = datagram.first_chunk::<MESSAGE_HEADER_BYTES>() {
        let length = u32_at(header, 0) as usize;
        let kind = u16_at(header, 4);
        let Some(body) = datagram.get(MESSAGE_HEADER_BYTES..length) else { break };
        if u16_at(header, 6) & NLM_F_DUMP_INTR != 0 {
            messages.push(Message::Interrupted);
        }
        match i32::from(kind) {
            libc::NLMSG_DONE => messages.push(Message::Done),
            libc::NLMSG_ERROR => {
                let code = body.first_chunk::<4>().map_or(-libc::EPROTO, |code| i32::from_ne_bytes(*code));
                messages.push(Message::Failed(Errno::from_raw(code.saturating_neg())));
            }
            _ if kind == libc::RTM_NEWLINK => messages.extend(parse_link(body).map(Message::Present)),
            _ if kind == libc::RTM_DELLINK => messages.extend(parse_link(body).map(Message::Gone)),
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    messages
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let header = body.first_chunk::<LINK_HEADER_BYTES>()?;
    // A bridge says "gone" of a port that leaves it, in its own family: the link itself stays.
    if i32::from(header[0]) != libc::AF_UNSPEC {
        return None;
    }
    let mut link = Link {
        index: u32_at(header, 4),
        name: String::new(),
        arphrd: u16_at(header, 2),
        flags: u32_at(header, 8),
        mtu: 0,
        mac: None,
    };
    let mut rest = &body[LINK_HEADER_BYTES..];
    while rest.len() >= 4 {
        let length = usize::from(u16_at(rest, 0));
        let Some(value) = rest.get(4..length) else { break };
        match u16_at(rest, 2) {
            libc::IFLA_IFNAME => {
                let name = value.split(|&byte| byte == 0).next().unwrap_or(value);
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            libc::IFLA_MTU => link.mtu = value.first_chunk().map_or(0, |mtu| u32::from_ne_bytes(*mtu)),
            libc::IFLA_ADDRESS => link.mac = <[u8; 6]>::try_from(value).ok(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Some(link)
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_ne_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((MESSAGE_HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link_body(family: u8) -> Vec<u8> {
        let mut body = vec![family, 0];
        body.extend(1_u16.to_ne_bytes());
        body.extend(7_u32.to_ne_bytes());
        body.extend((libc::IFF_UP as u32).to_ne_bytes());
        body.extend([0; 4]);
        for (kind, value) in [
            (libc::IFLA_IFNAME, &b"eth7\0"[..]),
            (libc::IFLA_MTU, &1500_u32.to_ne_bytes()),
            (libc::IFLA_ADDRESS, &[2; 6]),
        ] {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }

    #[test]
    fn links_are_read() {
        let mut bytes = message(libc::RTM_NEWLINK, 0, &link_body(0));
        bytes.extend(message(libc::RTM_DELLINK, 0, &link_body(0)));
        bytes.extend(message(libc::NLMSG_DONE as u16, 0, &[0; 4]));
        let link = Link {
            index: 7,
            name: "eth7".to_owned(),
            arphrd: 1,
            flags: libc::IFF_UP as u32,
            mtu: 1500,
            mac: Some([2; 6]),
        };
        assert!(link.up() && !link.running() && !link.loopback());
        assert_eq!(parse(&bytes), [Message::Present(link.clone()), Message::Gone(link), Message::Done]);
    }

    #[test]
    fn a_port_that_leaves_a_bridge_is_not_gone() {
        assert_eq!(parse(&message(libc::RTM_DELLINK, 0, &link_body(libc::AF_BRIDGE as u8))), []);
    }

    #[test]
    fn refusals_and_interruptions_are_told() {
        let refusal = message(libc::NLMSG_ERROR as u16, 0, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(parse(&refusal), [Message::Failed(Errno::EPERM)]);
        let interrupted = message(libc::NLMSG_DONE as u16, NLM_F_DUMP_INTR, &[0; 4]);
        assert_eq!(parse(&interrupted), [Message::Interrupted, Message::Done]);
    }

    #[test]
    fn damage_is_survived() {
        let whole = message(libc::RTM_NEWLINK, 0, &link_body(0));
        for cut in 0..whole.len() {
            parse(&whole[..cut]);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 255] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                parse(&bytes);
            }
        }
    }
}
