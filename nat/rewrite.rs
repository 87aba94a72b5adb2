//! Giving a packet other addresses and ports, in place.
//!
//! Read RFC 3022 §4 and RFC 1624. Checksums are updated, not made anew, so what was wrong before stays
//! wrong and is seen by whom it concerns. A partial checksum covers the pseudo-header alone: ports do not
//! move it. A UDP checksum of zero was never made and stays zero. A frame still to be segmented is one
//! packet. Undoing it is doing it with the tuples exchanged.

use std::net::IpAddr;

use crate::checksum::{Checksum, PseudoSum, Sum};
use crate::crc;
use crate::headers::{Body, Headers};
use crate::tuple::{DCCP, Protocol, SCTP, Tuple, UDP_LITE};

/// What an offload left undone on a packet.
///
/// Of a virtio header (`struct virtio_net_hdr`, virtio 1.2 §5.1.6), with the packet `network` octets into the
/// frame:
///
/// - `partial` if NEEDS_CSUM is set **and** `csum_start` is `network +` [`Headers::transport`]: the checksum
///   field of the outermost transport header then holds the folded sum of its pseudo-header, not complemented.
///   If `csum_start` lies further in, within a tunnel, nothing of this crate's concern is undone: `partial` is
///   false.
/// - `segment` is `gso_size` if `gso_type` is not GSO_NONE: octets of payload. The packet then has its whole
///   length in its IP header, up to 65,535 octets; what must fit the egress is one segment.
/// - DATA_VALID needs no word: that stays true.
///
/// What is undone before the hooks is undone behind them. If the IP version has changed
/// ([`Passage::changed_version`](crate::Passage::changed_version)), the caller's own header has to follow:
/// `csum_start` is `network +` the new [`Headers::transport`], and TCPV4 becomes TCPV6 or the reverse. A packet
/// that leaves in pieces has nothing undone any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// The transport checksum covers the pseudo-header alone.
    pub partial: bool,
    /// It is to be cut into segments of this many octets of payload.
    pub segment: Option<u16>,
}

/// Rewrites a packet's addresses, and its ports or identifier, to those of `to`, and describes it anew.
pub(crate) fn rewrite(octets: &mut [u8], headers: &Headers, to: &Tuple, undone: Undone) -> Headers {
    let (src, dst) = (to.src.addr, to.dst.addr);
    let sums = (addresses(headers.src, headers.dst), addresses(src, dst));
    set_addresses(octets, src, dst);
    if !headers.v6() {
        replace(octets, 10, sums.0, sums.1);
    }
    let (end, whole) = (headers.end.min(octets.len()), headers.end <= octets.len());
    let transport = &mut octets[headers.transport..end];
    let body = set_body(transport, (headers.protocol, headers.body), to, sums, undone, whole);
    Headers { src, dst, body, ..*headers }
}

/// The same for a packet quoted in an ICMP error.
pub(crate) fn rewrite_quoted(octets: &mut [u8], headers: &Headers, to: &Tuple) -> Headers {
    rewrite(octets, headers, to, Undone::default())
}

/// Rewrites what stands behind the IP header: ports, identifier, checksum. `transport` may end early, as
/// in a quoted packet; what is there is right then.
fn set_body(
    transport: &mut [u8],
    (protocol, body): (Protocol, Body),
    to: &Tuple,
    (old, new): (Sum, Sum),
    undone: Undone,
    whole: bool,
) -> Body {
    let sctp = protocol == Protocol::Other(SCTP) && whole && !undone.partial;
    // A CRC that was wrong stays wrong, like any checksum.
    let sound = sctp && crc::is_right(transport);
    let mut renumbered = false;
    let (ports, body) = match body {
        Body::Ports(src, dst) => {
            renumbered = (src, dst) != (to.src.port, to.dst.port);
            let ports = (pair(src, dst), pair(to.src.port, to.dst.port));
            transport[..2].copy_from_slice(&to.src.port.to_be_bytes());
            transport[2..4].copy_from_slice(&to.dst.port.to_be_bytes());
            (ports, Body::Ports(to.src.port, to.dst.port))
        }
        Body::Query { id, answer } => {
            // Both ports of a query's tuple are its identifier.
            let now = to.src.port;
            transport[4..6].copy_from_slice(&now.to_be_bytes());
            ((Sum::word(id), Sum::word(now)), Body::Query { id: now, answer })
        }
        other => ((Sum::ZERO, Sum::ZERO), other),
    };
    if sound && renumbered {
        crc::renew(transport);
    }
    let Some((field, pseudo_header)) = checksum_field(protocol) else { return body };
    let Some(at) = transport.get_mut(field..field + 2) else { return body };
    let held = u16::from_be_bytes([at[0], at[1]]);
    // Zero says that there is none (UDP), or is not allowed at all (UDP-Lite, RFC 3828 §3.1).
    let udp = matches!(protocol, Protocol::Udp | Protocol::Other(UDP_LITE));
    let fresh = match (undone.partial, pseudo_header) {
        (true, true) => PseudoSum(held).replace_sum(old, new).0,
        (true, false) => held,
        (false, _) if protocol == Protocol::Udp && held == 0 => 0,
        (false, _) => {
            let moved = Checksum(held).replace_sum(ports.0, ports.1);
            let moved = if pseudo_header { moved.replace_sum(old, new) } else { moved };
            if udp { moved.for_udp().0 } else { moved.0 }
        }
    };
    at.copy_from_slice(&fresh.to_be_bytes());
    body
}

/// Where a protocol has its checksum, from its header's first octet, and whether that covers the
/// pseudo-header.
pub(crate) const fn checksum_field(protocol: Protocol) -> Option<(usize, bool)> {
    match protocol {
        Protocol::Tcp => Some((16, true)),
        // UDP, DCCP (RFC 4340 §9.1) and UDP-Lite (RFC 3828 §3.1).
        Protocol::Udp | Protocol::Other(DCCP | UDP_LITE) => Some((6, true)),
        Protocol::Icmp => Some((2, false)),
        Protocol::Icmpv6 => Some((2, true)),
        Protocol::Other(_) => None,
    }
}

/// Writes other addresses into an IP header, and nothing else.
pub(crate) fn set_addresses(octets: &mut [u8], src: IpAddr, dst: IpAddr) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            octets[12..16].copy_from_slice(&src.octets());
            octets[16..20].copy_from_slice(&dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            octets[8..24].copy_from_slice(&src.octets());
            octets[24..40].copy_from_slice(&dst.octets());
        }
        _ => debug_assert!(false, "a packet has one family"),
    }
}

/// The sum of both addresses.
pub(crate) fn addresses(src: IpAddr, dst: IpAddr) -> Sum {
    Sum::address(src).and(Sum::address(dst))
}

fn pair(a: u16, b: u16) -> Sum {
    Sum::word(a).and(Sum::word(b))
}

/// Updates the checksum at `field`.
pub(crate) fn replace(octets: &mut [u8], field: usize, old: Sum, new: Sum) {
    let held = Checksum(u16::from_be_bytes([octets[field], octets[field + 1]]));
    octets[field..field + 2].copy_from_slice(&held.replace_sum(old, new).0.to_be_bytes());
}

/// Gives an IPv4 packet another identification, and returns what it had.
pub(crate) fn renumber(packet: &mut [u8], new: u16) -> u16 {
    let old = u16::from_be_bytes([packet[4], packet[5]]);
    packet[4..6].copy_from_slice(&new.to_be_bytes());
    replace(packet, 10, Sum::word(old), Sum::word(new));
    old
}

/// Makes a partial checksum whole. A protocol that has none here is left alone.
pub(crate) fn complete(octets: &mut [u8], headers: &Headers) {
    let Some((field, _)) = checksum_field(headers.protocol) else { return };
    let transport = &mut octets[headers.transport..headers.end];
    let checksum = Sum::of(transport).checksum();
    let checksum = if field == 6 { checksum.for_udp() } else { checksum };
    if let Some(at) = transport.get_mut(field..field + 2) {
        at.copy_from_slice(&checksum.0.to_be_bytes());
    }
}
