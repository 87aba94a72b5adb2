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

/// Octets of a packet an error brings back at most (RFC 4443 §2.4 (c)).
const MAX_QUOTED: usize = 1280;

/// Messages read from an error queue at once.
const MAX_MESSAGES: usize = 32;

/// One message of a socket's error queue.
#[derive(Clone, Debug)]
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
    /// The host's address it was sent from, where the socket tells.
    pub(crate) local: Option<IpAddr>,
    /// What came back of it, from behind its UDP header on; of other protocols, from their header on.
    pub(crate) payload: Vec<u8>,
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
            // The kernel has taken the pointer of a parameter problem out of its word (`icmp_unreach`).
            let pointer = self.origin == libc::SO_EE_ORIGIN_ICMP && self.kind == 12;
            let word = if pointer { self.info << 24 } else { self.info };
            return Some(IcmpError::Told { kind: self.kind, code: self.code, word });
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
        | Errno::EADDRINUSE
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
    let mut payload = vec![0; MAX_QUOTED];
    let mut control = nix::cmsg_space!(
        [libc::sock_extended_err; 1],
        [libc::sockaddr_in6; 2],
        [i32; 4],
        libc::in6_pktinfo
    );
    let mut slices = [std::io::IoSliceMut::new(&mut payload)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut control), flags).ok()?;
    let dst = message.address.as_ref().and_then(socket::to_std);
    let len = message.bytes;
    let (mut told, mut local) = (None, None);
    for control in message.cmsgs().ok()? {
        match control {
            ControlMessageOwned::Ipv4RecvErr(error, from) => {
                let offender = from.map(|from| IpAddr::from(from.sin_addr.s_addr.to_ne_bytes()));
                told = Some((error, offender));
            }
            ControlMessageOwned::Ipv6RecvErr(error, from) => {
                told = Some((error, from.map(|from| IpAddr::from(from.sin6_addr.s6_addr))));
            }
            // Whom the error was sent to, which is who sent the datagram.
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                local = Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                local = Some(IpAddr::from(info.ipi6_addr.s6_addr));
            }
            _ => {}
        }
    }
    let (error, offender) = told?;
    payload.truncate(len);
    Some(HostError {
        errno: i32::try_from(error.ee_errno).unwrap_or(libc::EIO),
        origin: error.ee_origin,
        kind: error.ee_type,
        code: error.ee_code,
        info: error.ee_info,
        // A host that speaks to itself has no address a container could know it by.
        offender: offender.filter(|addr| !addr.is_unspecified() && !addr.is_loopback()),
        dst,
        local,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 792, RFC 4443 §3.4: the pointer stands in the first octet of its word, or in all of it.
    #[test]
    fn i4_a_parameter_problem_keeps_its_pointer() {
        for (origin, kind, info, word) in [
            (libc::SO_EE_ORIGIN_ICMP, 12, 20, 20 << 24),
            (libc::SO_EE_ORIGIN_ICMP, 3, 1400, 1400),
            (libc::SO_EE_ORIGIN_ICMP6, 4, 40, 40),
            (libc::SO_EE_ORIGIN_ICMP6, 2, 1400, 1400),
        ] {
            let error = HostError {
                errno: libc::EPROTO,
                origin,
                kind,
                code: 0,
                info,
                offender: None,
                dst: None,
                local: None,
                payload: Vec::new(),
            };
            assert_eq!(error.as_icmp(), Some(IcmpError::Told { kind, code: 0, word }));
        }
    }
}
