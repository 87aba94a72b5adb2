//! ICMP and ICMPv6 messages the gateway sends.
//!
//! Read RFC 1812 §4.3 and RFC 4443 §2.4 first: when an error may be sent, what it quotes, and that it
//! is never sent about another error, a group, or a later fragment.

use std::net::IpAddr;

use nat::Protocol;

use crate::emit::{self, IpHeader};
use crate::outbox::{Built, Outbox};
use crate::packet::{Fragment, Packet, is_martian_source};
use crate::port::MacAddr;

/// Octets of an IPv4 error in all (RFC 1812 §4.3.2.3).
const MAX_ERROR_V4: usize = 576;

/// Octets of an IPv6 error in all: the minimum MTU (RFC 4443 §2.4 (c)).
const MAX_ERROR_V6: usize = 1280;

/// Precedence "internetwork control" for IPv4 errors (RFC 1812 §4.3.2.5).
const CONTROL_TRAFFIC: u8 = 0xc0;

/// What a packet's sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No route to the destination: 3/0, v6 1/0.
    NoRoute,
    /// The destination's link layer does not answer: 3/1, v6 1/3.
    HostUnreachable,
    /// Nobody listens on that port: 3/3, v6 1/4.
    PortUnreachable,
    /// Its protocol is not spoken here: 3/2 (RFC 1122 §3.2.2.1), v6 4/1 with the place of the octet that names
    /// it, counted from the IP header's first (RFC 4443 §3.4).
    ProtocolUnreachable(u32),
    /// Policy forbids it, or a bound is reached (RFC 5508 REQ-8): 3/13, v6 1/1.
    AdminProhibited,
    /// TTL or hop limit ran out: 11/0, v6 3/0.
    TimeExceeded,
    /// Some of its pieces did not come in time: 11/1, v6 3/1.
    ReassemblyTimeExceeded,
    /// It is longer than the next hop's MTU, given in octets of IP: 3/4 (RFC 1191), v6 2/0.
    TooBig(u32),
    /// As another host or router said: type, code and the word behind the checksum.
    Told {
        /// ICMP type, of the packet's own family.
        kind: u8,
        /// ICMP code.
        code: u8,
        /// The second 32-bit word.
        word: u32,
    },
}

impl IcmpError {
    /// Type, code and second word.
    const fn header(self, v6: bool) -> (u8, u8, u32) {
        match (self, v6) {
            (Self::NoRoute, false) => (3, 0, 0),
            (Self::HostUnreachable, false) => (3, 1, 0),
            (Self::ProtocolUnreachable(_), false) => (3, 2, 0),
            (Self::PortUnreachable, false) => (3, 3, 0),
            (Self::AdminProhibited, false) => (3, 13, 0),
            (Self::TimeExceeded, false) => (11, 0, 0),
            (Self::ReassemblyTimeExceeded, false) => (11, 1, 0),
            (Self::TooBig(mtu), false) => (3, 4, if mtu < 0xffff { mtu } else { 0xffff }),
            (Self::NoRoute, true) => (1, 0, 0),
            (Self::AdminProhibited, true) => (1, 1, 0),
            (Self::HostUnreachable, true) => (1, 3, 0),
            (Self::ProtocolUnreachable(at), true) => (4, 1, at),
            (Self::PortUnreachable, true) => (1, 4, 0),
            // RFC 8201 §4: a node ignores what is below the minimum link MTU.
            (Self::TooBig(mtu), true) => (2, 0, if mtu > 1280 { mtu } else { 1280 }),
            (Self::TimeExceeded, true) => (3, 0, 0),
            (Self::ReassemblyTimeExceeded, true) => (3, 1, 0),
            (Self::Told { kind, code, word }, _) => (kind, code, word),
        }
    }
}

/// Whether an error about this packet may be sent at all.
#[must_use]
pub fn may_answer(packet: &Packet, frame: &[u8]) -> bool {
    let to_group = frame[0] & 1 == 1
        || match packet.dst {
            IpAddr::V4(dst) => dst.is_multicast() || dst.is_broadcast(),
            IpAddr::V6(dst) => dst.is_multicast(),
        };
    !to_group
        && packet.fragment != Fragment::Later
        && !is_martian_source(packet.src)
        && !packet.is_icmp_error(frame)
}

/// Builds the error about a packet for its sender. `quoted` is the packet from its IP header on; as much
/// of it as fits is quoted.
pub fn error(
    out: &mut Outbox,
    src_mac: MacAddr,
    from: IpAddr,
    to: IpAddr,
    what: IcmpError,
    quoted: &[u8],
) -> Built {
    let v6 = to.is_ipv6();
    let (protocol, max) =
        if v6 { (Protocol::Icmpv6, MAX_ERROR_V6) } else { (Protocol::Icmp, MAX_ERROR_V4) };
    let mut header = IpHeader::new(from, to, protocol.number());
    if !v6 {
        header.traffic_class = CONTROL_TRAFFIC;
    }
    let quoted = &quoted[..quoted.len().min(max - header.octets() - 8)];
    let built = out.build(header.transport() + 8 + quoted.len());
    let frame = out.frame_mut(built);
    header.emit(frame, src_mac);
    let message = &mut frame[header.transport()..];
    let (kind, code, word) = what.header(v6);
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..8].copy_from_slice(&word.to_be_bytes());
    message[8..].copy_from_slice(quoted);
    emit::fill_checksum(&header, message, 2);
    built
}

/// Builds the answer to an echo request: the same message from the address it was sent to.
pub fn echo_reply(out: &mut Outbox, src_mac: MacAddr, packet: &Packet, frame: &[u8]) -> Built {
    let header = IpHeader {
        traffic_class: packet.traffic_class,
        ..IpHeader::new(packet.dst, packet.src, packet.protocol.number())
    };
    let request = packet.transport(frame);
    let built = out.build(header.transport() + request.len());
    let reply = out.frame_mut(built);
    header.emit(reply, src_mac);
    let message = &mut reply[header.transport()..];
    message.copy_from_slice(request);
    message[0] = if packet.protocol == Protocol::Icmp { 0 } else { 129 };
    message[2..4].fill(0);
    emit::fill_checksum(&header, message, 2);
    built
}
