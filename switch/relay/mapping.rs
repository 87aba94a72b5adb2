//! One mapping: a host socket, and whom it speaks to.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datapath::{Gso, Offload, Packet, PortId};
use nat::{Entry, Protocol, TransportAddr, Zone};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};

use crate::key::Key;
use crate::limits::Lease;

/// One host socket for one inside address and port, or echo identifier.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) key: Key,
    pub(crate) zone: Zone,
    pub(crate) port: PortId,
    pub(crate) protocol: Protocol,
    pub(crate) inside: TransportAddr,
    pub(crate) fd: OwnedFd,
    hop_limit: AtomicU8,
    flows: Mutex<Flows>,
    /// Held, not read.
    _lease: Lease,
}

/// The far sides a mapping speaks to.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// No more flows may join: the socket is about to close.
    pub(crate) closed: bool,
}

impl Mapping {
    /// A mapping that speaks to nobody yet, of a port of a network.
    pub(crate) fn new(
        key: Key,
        (zone, port): (Zone, PortId),
        protocol: Protocol,
        inside: TransportAddr,
        fd: OwnedFd,
        lease: Lease,
    ) -> Self {
        Self {
            key,
            zone,
            port,
            protocol,
            inside,
            fd,
            hop_limit: AtomicU8::new(0),
            flows: Mutex::default(),
            _lease: lease,
        }
    }

    pub(crate) fn flows(&self) -> MutexGuard<'_, Flows> {
        // Nothing that can panic runs under this lock.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one packet's payload on.
    pub(crate) fn send(
        &self,
        to: SocketAddr,
        payload: &[u8],
        packet: &Packet,
        offload: Offload,
    ) -> Result<(), Errno> {
        let hop_limit = packet.hop_limit - 1;
        if self.hop_limit.swap(hop_limit, Relaxed) != hop_limit {
            let value = i32::from(hop_limit);
            if to.is_ipv4() {
                setsockopt(&self.fd, sockopt::Ipv4Ttl, &value)?;
            } else {
                setsockopt(&self.fd, sockopt::Ipv6Ttl, &value)?;
            }
        }
        let slices = [IoSlice::new(payload)];
        let to = SockaddrStorage::from(to);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let fd = self.fd.as_raw_fd();
        match offload.gso {
            Gso::Udp { size } => {
                let segments = [ControlMessage::UdpGsoSegments(&size)];
                sendmsg(fd, &slices, &segments, flags, Some(&to))?
            }
            _ => sendmsg(fd, &slices, &[], flags, Some(&to))?,
        };
        Ok(())
    }
}
