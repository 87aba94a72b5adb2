//! What becomes of interfaces: told by the kernel when it happens.
//!
//! Read rtnetlink(7), RTMGRP_LINK. Nothing is polled: the descriptor is readable when there is something
//! to be told. What was missed because nobody read in time is said to be missed, and then
//! [`interfaces`](crate::interfaces) tells how things stand.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::Error;

/// Multicast group of link changes (`RTNLGRP_LINK`, `<linux/rtnetlink.h>`).
const LINK_GROUP: u32 = 1;

/// Tells of the interfaces of the namespace it was opened in.
pub struct LinkWatch {
    socket: Socket,
    /// Of the message last read, what is not told yet; the latest first.
    waiting: Vec<LinkEvent>,
}

/// What has become of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is so now: newly there, or changed.
    Is {
        /// Its number.
        ifindex: u32,
        /// Whether it is up.
        up: bool,
        /// Whether it has a carrier.
        carrier: bool,
        /// Largest IP packet, in octets.
        mtu: u32,
    },
    /// It is gone, or in another namespace now.
    Gone {
        /// Its number.
        ifindex: u32,
    },
    /// More happened than could be kept.
    Missed,
}

impl LinkWatch {
    /// Watches the interfaces of the calling thread's namespace, from now on and wherever the thread goes.
    ///
    /// # Errors
    /// [`Error::Step`] where the kernel gives no socket.
    pub fn open() -> Result<Self, Error> {
        let opened = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(LINK_GROUP)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = opened().map_err(|err: io::Error| Error::step("watch the interfaces", err))?;
        Ok(Self { socket, waiting: Vec::new() })
    }

    /// The next event; `None`: no more now.
    pub fn next_event(&mut self) -> Option<LinkEvent> {
        loop {
            if let Some(event) = self.waiting.pop() {
                return Some(event);
            }
            let octets = match self.socket.recv_from_full() {
                // Only the kernel's own word counts.
                Ok((octets, from)) if from.port_number() == 0 => octets,
                Ok(_) => continue,
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Some(LinkEvent::Missed);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return None,
            };
            self.waiting = events(&octets);
            self.waiting.reverse();
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl std::fmt::Debug for LinkWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkWatch").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

fn events(octets: &[u8]) -> Vec<LinkEvent> {
    let (mut rest, mut events) = (octets, Vec::new());
    while let Ok(view) = NetlinkBuffer::new_checked(rest) {
        let Ok(length) = usize::try_from(view.length()) else { break };
        let message = &rest[..length];
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // What the decoder does not understand is left out.
        let Ok(message) = NetlinkMessage::deserialize(message) else { continue };
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                events.extend(is(&link));
            }
            // One of AF_BRIDGE says that it has left a bridge.
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                if link.header.interface_family == AddressFamily::Unspec =>
            {
                events.push(LinkEvent::Gone { ifindex: link.header.index });
            }
            NetlinkPayload::Overrun(_) => events.push(LinkEvent::Missed),
            _ => {}
        }
    }
    events
}

/// Messages of a bridge about its ports (`AF_BRIDGE`) have no MTU, and are none of ours.
fn is(link: &LinkMessage) -> Option<LinkEvent> {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })?;
    let flags = link.header.flags;
    (link.header.interface_family == AddressFamily::Unspec).then_some(LinkEvent::Is {
        ifindex: link.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mtu,
    })
}
