//! A packet of one IP version said in the other.
//!
//! Read RFC 7915: header fields §4.1 and §5.1, ICMP §4.2 and §5.2. Used with state (NAT46): the addresses
//! and ports come from conntrack. Pieces never come here, they were put together before. Checksums are
//! updated, so they stay as right or wrong as they were. Options and extension headers are left behind. A
//! packet is translated where it lies, and [`Former`] keeps what would be lost.

use std::net::IpAddr;

use crate::buffer::{Buffer, shift};
use crate::checksum::{Checksum, PseudoSum, Sum};
use crate::headers::{Body, Headers};
use crate::icmp;
use crate::refused::{DIFFERENCE, Reason};
use crate::rewrite::{Undone, checksum_field};
use crate::tuple::{Protocol, Tuple};

/// An IPv4 packet up to here may be cut (RFC 7915 §5.1): an IPv6 sender need never make shorter ones.
const NEVER_CUT: usize = 1260;

/// What a protocol is called in the other IP version.
pub(crate) const fn counterpart(protocol: Protocol) -> Protocol {
    match protocol {
        Protocol::Icmp => Protocol::Icmpv6,
        Protocol::Icmpv6 => Protocol::Icmp,
        other => other,
    }
}

/// Octets of a packet's front that [`Former`] keeps without allocating: an IP header of 60, and what is rewritten
/// of the transport header.
const FRONT: usize = 80;

/// Octets of a transport header, from its first, in which translation changes anything.
const REWRITTEN: usize = 20;

/// What a packet was before its IP version changed.
#[derive(Debug)]
pub(crate) enum Former {
    /// Its first `len` octets; what follows them is still in the packet.
    Front { octets: [u8; FRONT], len: u8, transport: u8 },
    /// All of it: an ICMP error, or a packet with many extension headers.
    Whole(Vec<u8>),
}

impl Former {
    fn of(packet: &[u8], headers: &Headers) -> Self {
        let front = &packet[..packet.len().min(headers.transport + REWRITTEN)];
        match (u8::try_from(front.len()), u8::try_from(headers.transport)) {
            (Ok(len), Ok(transport)) if front.len() <= FRONT => {
                let mut octets = [0; FRONT];
                octets[..front.len()].copy_from_slice(front);
                Self::Front { octets, len, transport }
            }
            _ => Self::Whole(packet.to_vec()),
        }
    }

    /// Makes a packet that `headers` describes by now what it was.
    pub(crate) fn restore<B: Buffer + ?Sized>(&self, packet: &mut B, headers: &Headers) {
        let restored = match self {
            Self::Front { octets, len, transport } => {
                let moved = shift(packet, headers.transport, usize::from(*transport));
                let front = &octets[..usize::from(*len)];
                if moved {
                    packet.octets_mut()[..front.len()].copy_from_slice(front);
                }
                moved
            }
            Self::Whole(octets) => replace(packet, octets),
        };
        debug_assert!(restored, "it was as long before");
    }
}

/// Makes a packet these octets.
fn replace<B: Buffer + ?Sized>(packet: &mut B, octets: &[u8]) -> bool {
    let room = packet.resize(octets.len());
    if room {
        packet.octets_mut().copy_from_slice(octets);
    }
    room
}

/// Says a packet in the version `to` has, with its addresses and ports, and describes it anew. `id` is for what
/// may be cut. Refused, it is what it was.
pub(crate) fn translate<B: Buffer + ?Sized>(
    packet: &mut B,
    headers: &Headers,
    to: &Tuple,
    id: u16,
    undone: Undone,
) -> Result<(Headers, Former), Reason> {
    let former = Former::of(packet.octets(), headers);
    reword(packet, headers, to, id, undone)?;
    match Headers::parse(packet.octets()) {
        Ok(headers) => Ok((headers, former)),
        Err(_) => {
            let own = if headers.v6() { 20 } else { 40 };
            former.restore(packet, &Headers { transport: own, ..*headers });
            Err(Reason::Untranslatable)
        }
    }
}

/// The same for a packet that may end early, and is nobody's if it is refused.
fn reword<B: Buffer + ?Sized>(
    packet: &mut B,
    headers: &Headers,
    to: &Tuple,
    id: u16,
    undone: Undone,
) -> Result<(), Reason> {
    let len = headers.end - headers.transport;
    let end = headers.end.min(packet.octets().len());
    check(&packet.octets()[headers.transport..end], headers, len, undone)?;
    let (made, own) = header(packet.octets(), headers, to, len, id)?;
    if !shift(packet, headers.transport, own) {
        return Err(Reason::Untranslatable);
    }
    let octets = packet.octets_mut();
    octets[..own].copy_from_slice(&made[..own]);
    transport(&mut octets[own..][..end - headers.transport], headers, to, len, undone);
    Ok(())
}

/// Says an ICMP error in the version `sent` has, about the packet as `sent` names it, from its addressee to its
/// sender. Refused, it is what it was.
pub(crate) fn translate_error<B: Buffer + ?Sized>(
    packet: &mut B,
    headers: &Headers,
    quoted: &Headers,
    sent: &Tuple,
    id: u16,
) -> Result<(Headers, Former), Reason> {
    let octets = packet.octets();
    let inner_at = headers.transport + icmp::HEADER;
    let message = &octets[headers.transport..inner_at];
    let word = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    let to_v6 = !headers.v6();
    let (kind, code, word) = if to_v6 {
        error_to_v6(message[0], message[1], word)
    } else {
        error_to_v4(message[0], message[1], word)
    }
    .ok_or(Reason::Untranslatable)?;
    let mut inner = octets[inner_at..headers.end].to_vec();
    reword(&mut inner, quoted, sent, id, Undone::default())?;
    // As much as an error of that version may have in all (RFC 1812 §4.3.2.3, RFC 4443 §2.4).
    inner.truncate(if to_v6 { 1232 } else { 548 });
    let protocol = if to_v6 { Protocol::Icmpv6 } else { Protocol::Icmp };
    let back = Tuple::new(protocol, sent.dst, sent.src);
    let (made, own) = header(octets, headers, &back, icmp::HEADER + inner.len(), id)?;
    let mut out = made[..own].to_vec();
    out.extend_from_slice(&[kind, code, 0, 0]);
    out.extend_from_slice(&word.to_be_bytes());
    out.extend_from_slice(&inner);
    let described = Headers {
        src: back.src.addr,
        dst: back.dst.addr,
        protocol,
        transport: own,
        end: out.len(),
        ..*headers
    };
    icmp::finish(&mut out, &described);
    let headers = Headers::parse(&out).map_err(|_| Reason::Untranslatable)?;
    let former = Former::Whole(octets.to_vec());
    if replace(packet, &out) { Ok((headers, former)) } else { Err(Reason::Untranslatable) }
}

/// An IP header of the version `to` has, for `len` octets behind it, and its length.
fn header(
    packet: &[u8],
    headers: &Headers,
    to: &Tuple,
    len: usize,
    id: u16,
) -> Result<([u8; 40], usize), Reason> {
    let class = if headers.v6() { packet[0] << 4 | packet[1] >> 4 } else { packet[1] };
    let protocol = to.protocol.number();
    let mut out = [0; 40];
    match (to.src.addr, to.dst.addr) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = u16::try_from(len + 20).map_err(|_| Reason::Untranslatable)?;
            let whole = usize::from(total) > NEVER_CUT;
            out[..2].copy_from_slice(&[0x45, class]);
            out[2..4].copy_from_slice(&total.to_be_bytes());
            out[4..6].copy_from_slice(&if whole { 0 } else { id }.to_be_bytes());
            out[6] = if whole { 0x40 } else { 0 };
            out[8..10].copy_from_slice(&[headers.hop_limit, protocol]);
            out[12..16].copy_from_slice(&src.octets());
            out[16..20].copy_from_slice(&dst.octets());
            let checksum = Sum::of(&out[..20]).checksum();
            out[10..12].copy_from_slice(&checksum.0.to_be_bytes());
            Ok((out, 20))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let len = u16::try_from(len).map_err(|_| Reason::Untranslatable)?;
            out[..2].copy_from_slice(&[0x60 | class >> 4, class << 4]);
            out[4..6].copy_from_slice(&len.to_be_bytes());
            out[6..8].copy_from_slice(&[protocol, headers.hop_limit]);
            out[8..24].copy_from_slice(&src.octets());
            out[24..40].copy_from_slice(&dst.octets());
            Ok((out, 40))
        }
        _ => Err(Reason::Untranslatable),
    }
}

/// Whether the other version can say what stands behind the IP header.
fn check(octets: &[u8], headers: &Headers, len: usize, undone: Undone) -> Result<(), Reason> {
    let can = match headers.body {
        Body::Ports(..) => {
            let none = headers.protocol == Protocol::Udp && octets.get(6..8) == Some(&[0, 0]);
            // A checksum that IPv6 insists on (RFC 7915 §4.5) is made of the whole datagram.
            !none || undone.partial || octets.len() >= len
        }
        Body::Query { .. } => {
            matches!((octets[0], headers.v6()), (128 | 129, true) | (8 | 0, false))
        }
        Body::Error | Body::Message => false,
        Body::Bare => true,
    };
    if can { Ok(()) } else { Err(Reason::Untranslatable) }
}

/// Ports, identifier, ICMP type and checksum. `octets` may end early; `len` says how long it was.
fn transport(octets: &mut [u8], headers: &Headers, to: &Tuple, len: usize, undone: Undone) {
    let mut old = Sum::address(headers.src).and(Sum::address(headers.dst));
    let mut new = Sum::address(to.src.addr).and(Sum::address(to.dst.addr));
    let ports;
    match headers.body {
        Body::Ports(src, dst) => {
            ports = (pair(src, dst), pair(to.src.port, to.dst.port));
            octets[..2].copy_from_slice(&to.src.port.to_be_bytes());
            octets[2..4].copy_from_slice(&to.dst.port.to_be_bytes());
        }
        Body::Query { id, answer } => {
            let first = Sum::word(u16::from_be_bytes([octets[0], octets[1]]));
            octets[0] = match (headers.v6(), answer) {
                (true, false) => 8,
                (true, true) => 0,
                (false, false) => 128,
                (false, true) => 129,
            };
            octets[4..6].copy_from_slice(&to.src.port.to_be_bytes());
            let now = Sum::word(u16::from_be_bytes([octets[0], octets[1]]));
            ports = (first.and(Sum::word(id)), now.and(Sum::word(to.src.port)));
            // Only ICMPv6 covers a pseudo-header.
            if headers.v6() {
                old = Sum::pseudo_header(headers.src, headers.dst, 58, len);
                new = Sum::ZERO;
            } else {
                old = Sum::ZERO;
                new = Sum::pseudo_header(to.src.addr, to.dst.addr, 58, len);
            }
        }
        Body::Error | Body::Message | Body::Bare => return,
    }
    let Some((field, _)) = checksum_field(headers.protocol) else { return };
    let Some(at) = octets.get(field..field + 2) else { return };
    let held = u16::from_be_bytes([at[0], at[1]]);
    let udp = headers.protocol == Protocol::Udp;
    let fresh = if undone.partial {
        PseudoSum(held).replace_sum(old, new).0
    } else if udp && held == 0 {
        // IPv6 insists on a checksum (RFC 7915 §4.5).
        let pseudo_header = Sum::pseudo_header(to.src.addr, to.dst.addr, 17, len);
        pseudo_header.and(Sum::of(octets)).checksum().for_udp().0
    } else {
        let moved = Checksum(held).replace_sum(old.and(ports.0), new.and(ports.1));
        if udp { moved.for_udp().0 } else { moved.0 }
    };
    octets[field..field + 2].copy_from_slice(&fresh.to_be_bytes());
}

fn pair(a: u16, b: u16) -> Sum {
    Sum::word(a).and(Sum::word(b))
}

/// Type, code and second word (RFC 7915 §4.2).
fn error_to_v6(kind: u8, code: u8, word: u32) -> Option<(u8, u8, u32)> {
    Some(match (kind, code) {
        (3, 0 | 1 | 5..=8 | 11 | 12) => (1, 0, 0),
        (3, 2) => (4, 1, 6),
        (3, 3) => (1, 4, 0),
        (3, 4) => {
            let mtu = word & 0xffff;
            // Routers older than RFC 1191 say no MTU.
            let mtu = if mtu == 0 { 1280 } else { mtu + u32::from(DIFFERENCE) };
            (2, 0, mtu.max(1280))
        }
        (3, 9 | 10 | 13 | 15) => (1, 1, 0),
        (11, code) => (3, code, 0),
        (12, 0 | 2) => {
            let pointer = match word >> 24 {
                0 => 0,
                1 => 1,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return None,
            };
            (4, 0, pointer)
        }
        _ => return None,
    })
}

/// Type, code and second word (RFC 7915 §5.2).
fn error_to_v4(kind: u8, code: u8, word: u32) -> Option<(u8, u8, u32)> {
    Some(match (kind, code) {
        (1, 0 | 2 | 3) => (3, 1, 0),
        (1, 1) => (3, 10, 0),
        (1, 4) => (3, 3, 0),
        (2, _) => (3, 4, word.saturating_sub(u32::from(DIFFERENCE)).min(0xffff)),
        (3, code) => (11, code, 0),
        (4, 0) => {
            let pointer: u32 = match word {
                0 => 0,
                1 => 1,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return None,
            };
            (12, 0, pointer << 24)
        }
        (4, 1) => (3, 2, 0),
        _ => return None,
    })
}
