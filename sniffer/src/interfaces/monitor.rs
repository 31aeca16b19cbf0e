//! Links that come, change and go, as the kernel tells it.
//!
//! Invariant: the state a caller puts together from the events is that of the kernel, also when events came faster than
//! they were read: then the links are listed afresh, and what differs from what was told last is told.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::SockFlag;

use super::link_type;
use super::netlink::{self, Link, Message};

/// Datagrams read in one call, so that a storm of events does not hold up the caller; the rest is for the next.
const MAX_DATAGRAMS: usize = 64;

/// A link has appeared, changed or gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEvent {
    /// Its index. Identify links by this: names change.
    pub index: u32,
    /// Its present name.
    pub name: String,
    /// Switched on. (IFF_UP)
    pub up: bool,
    /// Up, and with a carrier. (IFF_RUNNING)
    pub running: bool,
    /// It was deleted, or moved to another network namespace.
    pub removed: bool,
    /// LINKTYPE of its frames; none where that is not known.
    pub link_type: Option<u16>,
}

/// A subscription to the links of the network namespace it was opened in. Readable when there are events; also works
/// edge-triggered if [`Monitor::events`] is called until it returns none.
#[derive(Debug)]
pub struct Monitor {
    pub(super) socket: OwnedFd,
    /// What was told last, by index.
    known: BTreeMap<u32, LinkEvent>,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes. Links that are there already cause no events: open the monitor, then list them; what changes in
    /// between is told as an event.
    pub fn open() -> io::Result<Monitor> {
        let socket = netlink::open(libc::RTMGRP_LINK as u32, SockFlag::SOCK_NONBLOCK)?;
        let known =
            netlink::dump_links()?.into_iter().map(|link| (link.index, event(&link, false))).collect();
        Ok(Monitor { socket, known, buffer: vec![0; 64 * 1024] })
    }

    /// The events since the last call, oldest first; none if there were none. Never waits.
    pub fn events(&mut self) -> io::Result<Vec<LinkEvent>> {
        let mut events = Vec::new();
        let mut datagrams = 0;
        // Never leaves with nothing told and something unread: who is called by edges would not be called again.
        while datagrams < MAX_DATAGRAMS || events.is_empty() {
            datagrams += 1;
            match netlink::receive(&self.socket, &mut self.buffer) {
                Ok(messages) => {
                    for message in messages {
                        match message {
                            Message::Present(link) => self.tell(event(&link, false), &mut events),
                            Message::Gone(link) => self.tell(event(&link, true), &mut events),
                            Message::Done | Message::Failed(_) | Message::Interrupted => {}
                        }
                    }
                }
                Err(Errno::EAGAIN) => break,
                // Events were lost: the socket's buffer was full.
                Err(Errno::ENOBUFS) => self.list_afresh(&mut events)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(events)
    }

    fn list_afresh(&mut self, events: &mut Vec<LinkEvent>) -> io::Result<()> {
        let present: BTreeMap<u32, LinkEvent> =
            netlink::dump_links()?.into_iter().map(|link| (link.index, event(&link, false))).collect();
        let gone: Vec<LinkEvent> =
            self.known.values().filter(|known| !present.contains_key(&known.index)).cloned().collect();
        for link in gone {
            self.tell(LinkEvent { removed: true, up: false, running: false, ..link }, events);
        }
        for link in present.into_values() {
            self.tell(link, events);
        }
        Ok(())
    }

    /// Tells of what is news: the kernel repeats itself, for things that are of no interest here.
    fn tell(&mut self, event: LinkEvent, events: &mut Vec<LinkEvent>) {
        let news = if event.removed {
            self.known.remove(&event.index).is_some()
        } else {
            self.known.insert(event.index, event.clone()).as_ref() != Some(&event)
        };
        if news {
            events.push(event);
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn event(link: &Link, removed: bool) -> LinkEvent {
    LinkEvent {
        index: link.index,
        name: link.name.clone(),
        up: link.up() && !removed,
        running: link.running() && !removed,
        removed,
        link_type: link_type(link.arphrd),
    }
}
