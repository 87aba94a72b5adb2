//! What the headers of an IP packet say, as far as translation needs it.
//!
//! Read RFC 791, RFC 8200 §4 and RFC 792, RFC 4443. Everything is bounds-checked here, once; behind it,
//! offsets are the proof. A packet quoted in an ICMP error is read by the same rules, except that it may
//! end early.

use std::net::IpAddr;

use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use crate::checksum::Sum;
use crate::tuple::{Protocol, TransportAddr, Tuple};

/// Extension headers looked through before giving up; RFC 8200 §4.1 knows seven in a sensible order.
const MAX_EXTENSION_HEADERS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Which piece of a datagram a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What the pieces have in common.
    pub id: u32,
    /// Its place, in octets.
    pub offset: usize,
    /// Whether others follow.
    pub more: bool,
}

/// What comes behind the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Source and destination port.
    Ports(u16, u16),
    /// An ICMP query or its answer, by its identifier.
    Query {
        /// The identifier.
        id: u16,
        /// Whether it is the answer.
        answer: bool,
    },
    /// An ICMP error, which quotes a packet.
    Error,
    /// Any other ICMP message, which is between neighbours only.
    Message,
    /// Something told apart by addresses alone.
    Bare,
}

/// What the headers of an IP packet say. Offsets are octets from the IP header's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Sender.
    pub src: IpAddr,
    /// Addressee.
    pub dst: IpAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Whether it may not be cut on its way; always so in IPv6.
    pub dont_fragment: bool,
    /// Which piece it is, if it is one.
    pub piece: Option<Piece>,
    /// Where the IPv6 fragment header lies, if there is one.
    pub fragment_header: Option<usize>,
    /// Where the octet is that says what follows the part every piece repeats (IPv6 only).
    pub next_header_at: usize,
    /// Where the transport header begins.
    pub transport: usize,
    /// One past the packet's last octet, as its header says; a quoted one may end before.
    pub end: usize,
    /// What comes there.
    pub body: Body,
}

/// A packet's headers contradict it or end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Headers {
    /// Reads a packet that must be whole.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub fn parse(octets: &[u8]) -> Result<Self, Malformed> {
        let headers = Self::read(octets)?;
        if headers.end > octets.len() { Err(Malformed) } else { Ok(headers) }
    }

    /// Reads a packet quoted in an ICMP error, as much of it as there is: at least what tells its flow
    /// apart.
    ///
    /// # Errors
    ///
    /// [`Malformed`], also if the IPv4 header's checksum is wrong (RFC 5508 REQ-3).
    pub fn parse_quoted(octets: &[u8]) -> Result<Self, Malformed> {
        let headers = Self::read(octets)?;
        let sound = headers.src.is_ipv6() || {
            let len = usize::from(octets[0] & 0x0f) * 4;
            Sum::of(&octets[..len]).fold() == 0xffff
        };
        if sound { Ok(headers) } else { Err(Malformed) }
    }

    fn read(octets: &[u8]) -> Result<Self, Malformed> {
        let mut headers = match octets.first().map(|first| first >> 4) {
            Some(4) => Self::read_v4(octets)?,
            Some(6) => Self::read_v6(octets)?,
            _ => return Err(Malformed),
        };
        if headers.piece.is_none_or(|piece| piece.offset == 0) {
            let end = headers.end.min(octets.len());
            let transport = octets.get(headers.transport..end).ok_or(Malformed)?;
            headers.body = read_body(headers.protocol, headers.src.is_ipv6(), transport)?;
        }
        Ok(headers)
    }

    fn read_v4(octets: &[u8]) -> Result<Self, Malformed> {
        if octets.len() < 20 {
            return Err(Malformed);
        }
        let header = Ipv4Packet::new_unchecked(octets);
        let (len, end) = (usize::from(header.header_len()), usize::from(header.total_len()));
        if len < 20 || end < len || octets.len() < len {
            return Err(Malformed);
        }
        let (offset, more) = (usize::from(header.frag_offset()), header.more_frags());
        let piece = Piece { id: header.ident().into(), offset, more };
        Ok(Self {
            src: header.src_addr().into(),
            dst: header.dst_addr().into(),
            protocol: Protocol::from_number(header.next_header().into()),
            hop_limit: header.hop_limit(),
            dont_fragment: header.dont_frag(),
            piece: (more || offset != 0).then_some(piece),
            fragment_header: None,
            next_header_at: 9,
            transport: len,
            end,
            body: Body::Bare,
        })
    }

    fn read_v6(octets: &[u8]) -> Result<Self, Malformed> {
        if octets.len() < 40 {
            return Err(Malformed);
        }
        let header = Ipv6Packet::new_unchecked(octets);
        let end = 40 + usize::from(header.payload_len());
        let octets = &octets[..end.min(octets.len())];
        let mut headers = Self {
            src: header.src_addr().into(),
            dst: header.dst_addr().into(),
            protocol: Protocol::Icmpv6,
            hop_limit: header.hop_limit(),
            dont_fragment: true,
            piece: None,
            fragment_header: None,
            next_header_at: 6,
            transport: 40,
            end,
            body: Body::Bare,
        };
        let mut next = u8::from(header.next_header());
        let mut named_at = 6;
        for _ in 0..MAX_EXTENSION_HEADERS {
            let at = headers.transport;
            match next {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    let len = 8 + 8 * usize::from(*octets.get(at + 1).ok_or(Malformed)?);
                    let extension = octets.get(at..at + len).ok_or(Malformed)?;
                    // What lies before the fragment header every piece repeats: all but the
                    // destination options, unless a routing header follows (RFC 8200 §4.5).
                    if next != DESTINATION && headers.fragment_header.is_none() {
                        headers.next_header_at = at;
                    }
                    next = extension[0];
                    named_at = at;
                    headers.transport += len;
                }
                FRAGMENT => {
                    let header = octets[at..].first_chunk::<8>().ok_or(Malformed)?;
                    let word = u16::from_be_bytes([header[2], header[3]]);
                    let piece = Piece {
                        id: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                        offset: usize::from(word & 0xfff8),
                        more: word & 1 != 0,
                    };
                    headers.fragment_header = Some(at);
                    headers.next_header_at = named_at;
                    named_at = at;
                    // One that is no piece of anything is an atomic fragment (RFC 6946).
                    headers.piece = (piece.more || piece.offset != 0).then_some(piece);
                    next = header[0];
                    headers.transport += 8;
                    if headers.piece.is_some_and(|piece| piece.offset != 0) {
                        break;
                    }
                }
                _ => break,
            }
        }
        if matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) && headers.piece.is_none() {
            return Err(Malformed);
        }
        headers.protocol = Protocol::from_number(next);
        Ok(headers)
    }

    /// Whether it is IPv6.
    #[must_use]
    pub const fn v6(&self) -> bool {
        self.src.is_ipv6()
    }

    /// The flow it belongs to, if it belongs to any.
    #[must_use]
    pub const fn tuple(&self) -> Option<Tuple> {
        let (src, dst) = match self.body {
            Body::Ports(src, dst) => (src, dst),
            Body::Query { id, .. } => (id, id),
            Body::Bare => (0, 0),
            Body::Error | Body::Message => return None,
        };
        let (src, dst) = (TransportAddr::new(self.src, src), TransportAddr::new(self.dst, dst));
        Some(Tuple::new(self.protocol, src, dst))
    }
}

fn read_body(protocol: Protocol, v6: bool, octets: &[u8]) -> Result<Body, Malformed> {
    let word = |at: usize| octets.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    match protocol {
        _ if protocol.has_ports() => match (word(0), word(2), octets.len() >= 8) {
            (Some(src), Some(dst), true) => Ok(Body::Ports(src, dst)),
            _ => Err(Malformed),
        },
        Protocol::Icmp if v6 => Err(Malformed),
        Protocol::Icmpv6 if !v6 => Err(Malformed),
        Protocol::Icmp | Protocol::Icmpv6 => {
            let (kind, id) = octets.first().zip(word(4)).ok_or(Malformed)?;
            let _ = octets.get(7).ok_or(Malformed)?;
            Ok(match (v6, kind) {
                // Echo, timestamp, information, address mask (RFC 792, RFC 950).
                (false, 8 | 13 | 15 | 17) | (true, 128) => Body::Query { id, answer: false },
                (false, 0 | 14 | 16 | 18) | (true, 129) => Body::Query { id, answer: true },
                // Source quench is deprecated (RFC 6633) and not translated (RFC 5508 REQ-10).
                // Nor is a redirect, whose gateway is no neighbour of the translated packet's sender.
                (false, 3 | 11 | 12) | (true, 1..=4) => Body::Error,
                _ => Body::Message,
            })
        }
        _ => Ok(Body::Bare),
    }
}
