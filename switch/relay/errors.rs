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

use crate::context::Context;
use crate::{quote, socket};

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
    /// What whoever said so had to say beside that, header first (RFC 4884 §7): the labels the packet had
    /// (RFC 4950), the interface it came by (RFC 5837).
    objects: Vec<u8>,
}

impl HostError {
    /// Whether a router or host said it, and not our own kernel.
    pub(crate) const fn is_icmp(&self) -> bool {
        matches!(self.origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6)
    }

    /// Whether what came back may have been padded (RFC 4884 §5.1).
    pub(crate) const fn is_padded(&self) -> bool {
        !self.objects.is_empty()
    }

    /// Whether our own kernel refused to send something as long as that, which its sender was told by the
    /// call itself.
    pub(crate) const fn is_refusal(&self) -> bool {
        !self.is_icmp() && self.errno == libc::EMSGSIZE
    }

    /// Tells a container of it: `what`, about the packet of its own that `quoted` is, from its IP header on, with all that was said beside.
    pub(crate) fn tell(
        &self,
        (to, from): (IpAddr, Option<IpAddr>),
        what: IcmpError,
        mut quoted: Vec<u8>,
        ctx: &mut Context<'_>,
    ) {
        quote::arrive(what, &mut quoted);
        let what = extend(what, &mut quoted, &self.objects, to.is_ipv6());
        ctx.dp.tell_about(to, from, what, &quoted, ctx.now, ctx.out);
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
            let word = match (self.origin, self.kind) {
                // The kernel has taken the pointer of a parameter problem out of its word (`icmp_unreach`).
                (libc::SO_EE_ORIGIN_ICMP, 12) => self.info << 24,
                // Where objects began is as it may (RFC 4884 §4.4, §4.5).
                (libc::SO_EE_ORIGIN_ICMP6, 1 | 3) => 0,
                _ => self.info,
            };
            return Some(IcmpError::Told { kind: self.kind, code: self.code, word });
        }
        match Errno::from_raw(self.errno) {
            Errno::EMSGSIZE => Some(IcmpError::TooBig(self.info)),
            errno => icmp_for(errno),
        }
    }
}

/// The error with the objects behind what it quotes, padded as RFC 4884 §5.1 has it, and the word that says
/// where they begin.
fn extend(what: IcmpError, quoted: &mut Vec<u8>, objects: &[u8], v6: bool) -> IcmpError {
    /// Octets of what is quoted at least where something follows it.
    const LEAST: usize = 128;
    let IcmpError::Told { kind, code, word } = what else { return what };
    // How much an error may quote (RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c)), the unit of length and its place.
    let (most, unit, place) = if v6 { (1280 - 48, 8, 24) } else { (576 - 28, 4, 16) };
    let len = quoted.len().next_multiple_of(unit).max(LEAST);
    let units = u8::try_from(len / unit).ok().filter(|_| len + objects.len() <= most);
    let Some(units) = units.filter(|_| !objects.is_empty()) else { return what };
    quoted.resize(len, 0);
    quoted.extend_from_slice(objects);
    IcmpError::Told { kind, code, word: word | u32::from(units) << place }
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
    // `struct sock_ee_data_rfc4884`: how far behind what came back the objects are; 0, where there are none.
    let [low, high, ..] = error.ee_data.to_ne_bytes();
    let objects = match usize::from(u16::from_ne_bytes([low, high])) {
        0 => Vec::new(),
        at => payload.split_off(at.min(len)),
    };
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
        objects,
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
                objects: Vec::new(),
            };
            assert_eq!(error.as_icmp(), Some(IcmpError::Told { kind, code: 0, word }));
        }
    }
    /// RFC 4884 §4, §5.1: what is quoted is as long as its unit of 32 or 64 bits, and 128 octets at least, where
    /// objects follow; those that do not fit are left behind.
    #[test]
    fn i4_objects_stand_behind_what_is_quoted() {
        let told = |word| IcmpError::Told { kind: 11, code: 0, word };
        let objects = [0x20, 0, 0, 0, 0, 8, 1, 1, 0x01, 0x23, 0x45, 0xff];
        for (len, v6, padded, word) in [
            (28, false, 128, 32 << 16),
            (130, false, 132, 33 << 16),
            (48, true, 128, 16 << 24),
            (130, true, 136, 17 << 24),
            (536, false, 536, 134 << 16),
        ] {
            let mut quoted = vec![7; len];
            assert_eq!(extend(told(0), &mut quoted, &objects, v6), told(word));
            assert_eq!(quoted.len(), padded + objects.len());
            assert!(
                quoted.ends_with(&objects) && quoted[len..padded].iter().all(|octet| *octet == 0)
            );
        }
        for (len, objects) in [(537, &objects[..]), (300, &[])] {
            let mut quoted = vec![7; len];
            assert_eq!(extend(told(0), &mut quoted, objects, false), told(0));
            assert_eq!(quoted.len(), len);
        }
    }
}
