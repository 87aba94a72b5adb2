//! What went wrong outside, in terms the container understands.
//!
//! Read ip(7), `IP_RECVERR`, and `icmp_err_convert` in `net/ipv4/icmp.c` first: the kernel turns ICMP
//! into errno, and the error queue still has the message.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use datapath::IcmpError;
use nat::Protocol;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

use crate::socket;

/// Messages read from an error queue at once.
const MAX_MESSAGES: usize = 32;

/// One message of a socket's error queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostError {
    pub(crate) errno: i32,
    origin: u8,
    kind: u8,
    code: u8,
    info: u32,
    /// Who said so.
    pub(crate) offender: Option<IpAddr>,
    /// Whom the datagram was for.
    pub(crate) dst: Option<SocketAddr>,
    /// Octets of the datagram's payload that came back, at most 512.
    pub(crate) len: usize,
    /// The payload's first octets.
    pub(crate) head: [u8; 8],
}

impl HostError {
    /// Whether a router or host said it, and not our own kernel.
    pub(crate) const fn is_icmp(&self) -> bool {
        matches!(self.origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6)
    }

    /// Whether our own kernel refused to send something as long as that, which its sender was told by the
    /// call itself.
    pub(crate) const fn is_refusal(&self) -> bool {
        !self.is_icmp() && self.errno == libc::EMSGSIZE
    }

    /// The message for the container about a datagram: for one nobody listens to there is no reset, so
    /// a refusal is told by ICMP, too.
    pub(crate) fn as_icmp_for(&self, protocol: Protocol) -> Option<IcmpError> {
        match self.as_icmp() {
            None if protocol == Protocol::Udp => Some(IcmpError::PortUnreachable),
            told => told,
        }
    }

    /// The message for the container.
    pub(crate) fn as_icmp(&self) -> Option<IcmpError> {
        if self.is_icmp() {
            return Some(IcmpError::Told { kind: self.kind, code: self.code, word: self.info });
        }
        match Errno::from_raw(self.errno) {
            Errno::EMSGSIZE => Some(IcmpError::TooBig(self.info)),
            errno => icmp_for(errno),
        }
    }
}

/// The ICMP error that makes a container's kernel report the same errno; none for a connection the far
/// side refused or broke off, which a reset tells.
pub(crate) fn icmp_for(errno: Errno) -> Option<IcmpError> {
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EPIPE => None,
        Errno::ENETUNREACH | Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT => Some(IcmpError::NoRoute),
        Errno::EACCES
        | Errno::EPERM
        | Errno::EMFILE
        | Errno::ENFILE
        | Errno::ENOBUFS
        | Errno::ENOMEM => Some(IcmpError::AdminProhibited),
        _ => Some(IcmpError::HostUnreachable),
    }
}

/// Reads a socket's error queue, as far as it goes.
pub(crate) fn read(fd: &impl AsRawFd) -> impl Iterator<Item = HostError> {
    (0..MAX_MESSAGES).map_while(|_| read_one(fd.as_raw_fd()))
}

fn read_one(fd: i32) -> Option<HostError> {
    let mut head = [0; 512];
    let mut control =
        nix::cmsg_space!([libc::sock_extended_err; 1], [libc::sockaddr_in6; 2], [i32; 4]);
    let mut slices = [std::io::IoSliceMut::new(&mut head)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut control), flags).ok()?;
    let dst = message.address.as_ref().and_then(socket::to_std);
    let len = message.bytes;
    let (error, offender) = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, from) => {
            let offender = from.map(|from| IpAddr::from(from.sin_addr.s_addr.to_ne_bytes()));
            Some((error, offender))
        }
        ControlMessageOwned::Ipv6RecvErr(error, from) => {
            let offender = from.map(|from| IpAddr::from(from.sin6_addr.s6_addr));
            Some((error, offender))
        }
        _ => None,
    })?;
    let mut first = [0; 8];
    let copied = len.min(8);
    first[..copied].copy_from_slice(&head[..copied]);
    Some(HostError {
        errno: i32::try_from(error.ee_errno).unwrap_or(libc::EIO),
        origin: error.ee_origin,
        kind: error.ee_type,
        code: error.ee_code,
        info: error.ee_info,
        offender: offender.filter(|addr| !addr.is_unspecified()),
        dst,
        len,
        head: first,
    })
}
