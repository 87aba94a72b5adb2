//! An IP packet in a frame: checked once, then described by offsets.
//!
//! Read RFC 1812 §5.2.2 (what a router verifies) and RFC 8200 §4 (extension headers). Everything is
//! bounds-checked here; behind it, offsets are the proof.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nat::{Headers, Protocol, TransportAddr, Tuple};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use crate::checksum;
use crate::drop::DropReason;
use crate::offload::{Gso, Offload};
use crate::port::ETHERNET_HEADER_LEN;

/// Extension headers looked through before giving up; RFC 8200 §4.1 knows seven in a sensible order.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Whether a packet is a piece of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    Whole,
    /// The piece with the transport header.
    First,
    /// Any other piece.
    Later,
}

/// What an IP packet's headers say. Offsets are octets from the frame's first.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Sender.
    pub src: IpAddr,
    /// Addressee.
    pub dst: IpAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS or traffic class.
    pub traffic_class: u8,
    /// Whether it may not be fragmented on its way; always so in IPv6.
    pub dont_fragment: bool,
    /// Whether it is a piece.
    pub fragment: Fragment,
    /// Source and destination port, or an echo's identifier twice; none where there are none.
    pub ports: Option<(u16, u16)>,
    /// Where the transport header begins.
    pub transport: usize,
    /// One past the packet's last octet; what follows is padding.
    pub end: usize,
}

impl Packet {
    /// Where the IP header begins.
    pub const IP: usize = ETHERNET_HEADER_LEN;

    /// Reads the IPv4 or IPv6 packet of an untagged frame and verifies its checksums, except those
    /// that `offload` says were never made or already verified.
    ///
    /// # Errors
    ///
    /// [`DropReason::Malformed`], [`DropReason::BadIpChecksum`], [`DropReason::BadL4Checksum`] or
    /// [`DropReason::SourceRoute`].
    pub fn parse(frame: &[u8], offload: &Offload) -> Result<Self, DropReason> {
        let octets = frame.get(Self::IP..).ok_or(DropReason::Malformed)?;
        let ethertype = EthernetFrame::new_unchecked(frame).ethertype();
        let mut packet = match (ethertype, octets.first().map(|first| first >> 4)) {
            (EthernetProtocol::Ipv4, Some(4)) => Self::parse_ipv4(octets)?,
            (EthernetProtocol::Ipv6, Some(6)) => Self::parse_ipv6(octets)?,
            _ => return Err(DropReason::Malformed),
        };
        // Each family has its own ICMP; in the other's header it means nothing.
        if matches!(
            (packet.protocol, packet.src),
            (Protocol::Icmpv6, IpAddr::V4(_)) | (Protocol::Icmp, IpAddr::V6(_))
        ) {
            return Err(DropReason::Malformed);
        }
        if packet.fragment != Fragment::Later {
            packet.ports = packet.parse_ports(frame)?;
        }
        let trusted = offload.checksum.is_some() || offload.valid || offload.gso != Gso::None;
        if packet.fragment == Fragment::Whole && !trusted {
            checksum::verify_transport(
                packet.src,
                packet.dst,
                packet.protocol.number(),
                &frame[packet.transport..packet.end],
            )?;
        }
        Ok(packet)
    }

    fn parse_ipv4(octets: &[u8]) -> Result<Self, DropReason> {
        let header = Ipv4Packet::new_checked(octets).map_err(|_| DropReason::Malformed)?;
        let header_len = usize::from(header.header_len());
        if header_len < 20 || header.version() != 4 {
            return Err(DropReason::Malformed);
        }
        if !header.verify_checksum() {
            return Err(DropReason::BadIpChecksum);
        }
        if has_source_route(&octets[20..header_len]) {
            return Err(DropReason::SourceRoute);
        }
        let fragment = match (header.frag_offset(), header.more_frags()) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            _ => Fragment::Later,
        };
        Ok(Self {
            src: header.src_addr().into(),
            dst: header.dst_addr().into(),
            protocol: Protocol::from_number(header.next_header().into()),
            hop_limit: header.hop_limit(),
            traffic_class: octets[1],
            dont_fragment: header.dont_frag(),
            fragment,
            ports: None,
            transport: Self::IP + header_len,
            end: Self::IP + usize::from(header.total_len()),
        })
    }

    fn parse_ipv6(octets: &[u8]) -> Result<Self, DropReason> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        const DESTINATION: u8 = 60;

        let header = Ipv6Packet::new_checked(octets).map_err(|_| DropReason::Malformed)?;
        let end = 40 + usize::from(header.payload_len());
        let mut next = u8::from(header.next_header());
        let mut at = 40;
        let mut fragment = Fragment::Whole;
        for _ in 0..MAX_EXTENSION_HEADERS {
            let len = match next {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    8 + 8 * usize::from(*octets[..end].get(at + 1).ok_or(DropReason::Malformed)?)
                }
                FRAGMENT => 8,
                AUTHENTICATION => {
                    8 + 4 * usize::from(*octets[..end].get(at + 1).ok_or(DropReason::Malformed)?)
                }
                _ => break,
            };
            let extension = octets[..end].get(at..at + len).ok_or(DropReason::Malformed)?;
            if next == ROUTING && extension[2] == 0 && extension[3] > 0 {
                // RFC 5095: a type 0 routing header with segments left is an error.
                return Err(DropReason::SourceRoute);
            }
            if next == FRAGMENT {
                let word = u16::from_be_bytes([extension[2], extension[3]]);
                fragment = match (word & 0xfff8, word & 1) {
                    (0, 0) => Fragment::Whole, // an atomic fragment, RFC 6946
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
            }
            next = extension[0];
            at += len;
            if fragment == Fragment::Later {
                break;
            }
        }
        Ok(Self {
            src: header.src_addr().into(),
            dst: header.dst_addr().into(),
            protocol: Protocol::from_number(next),
            hop_limit: header.hop_limit(),
            traffic_class: header.traffic_class(),
            dont_fragment: true,
            fragment,
            ports: None,
            transport: Self::IP + at,
            end: Self::IP + end,
        })
    }

    /// The ports in the transport header, whose length is checked so that no later reader of a whole
    /// packet's header can run past it.
    fn parse_ports(&self, frame: &[u8]) -> Result<Option<(u16, u16)>, DropReason> {
        let octets = &frame[self.transport..self.end];
        let word = |at: usize| u16::from_be_bytes([octets[at], octets[at + 1]]);
        match self.protocol {
            Protocol::Tcp => {
                if self.fragment == Fragment::Whole {
                    let header =
                        TcpPacket::new_checked(octets).map_err(|_| DropReason::Malformed)?;
                    if header.header_len() < 20 {
                        return Err(DropReason::Malformed);
                    }
                } else if octets.len() < 20 {
                    return Err(DropReason::Malformed);
                }
                Ok(Some((word(0), word(2))))
            }
            Protocol::Udp => {
                if octets.len() < 8 {
                    return Err(DropReason::Malformed);
                }
                let len = usize::from(word(4));
                if self.fragment == Fragment::Whole && (len < 8 || len > octets.len()) {
                    return Err(DropReason::Malformed);
                }
                Ok(Some((word(0), word(2))))
            }
            Protocol::Icmp | Protocol::Icmpv6 => {
                if octets.len() < 8 {
                    return Err(DropReason::Malformed);
                }
                let echo = match self.protocol {
                    Protocol::Icmp => octets[0] == 8 || octets[0] == 0,
                    _ => octets[0] == 128 || octets[0] == 129,
                };
                Ok(echo.then(|| (word(4), word(4))))
            }
            Protocol::Other(_) => Ok(None),
        }
    }

    /// The flow this packet belongs to, if it carries enough to tell.
    #[must_use]
    pub fn tuple(&self) -> Option<Tuple> {
        let (src_port, dst_port) = self.ports?;
        Some(Tuple::new(
            self.protocol,
            TransportAddr::new(self.src, src_port),
            TransportAddr::new(self.dst, dst_port),
        ))
    }

    /// Where the octet is that names the protocol, counted from the IP header's first.
    #[must_use]
    pub fn protocol_at(&self, frame: &[u8]) -> u32 {
        const AUTHENTICATION: u8 = 51;
        let octets = &frame[Self::IP..self.transport];
        if self.src.is_ipv4() {
            return 9;
        }
        // Each extension header names what follows it, and is as long as it was when it was read.
        let (mut named_at, mut at, mut kind) = (6, 40, octets[6]);
        while let Some([next, len]) = octets.get(at..at + 2) {
            let unit = if kind == AUTHENTICATION { 4 } else { 8 };
            (named_at, kind) = (at, *next);
            at += 8 + unit * usize::from(*len);
        }
        u32::try_from(named_at).unwrap_or(6)
    }

    /// Octets of the IP packet.
    #[must_use]
    pub const fn ip_len(&self) -> usize {
        self.end - Self::IP
    }

    /// The transport header and payload.
    #[must_use]
    pub fn transport<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        &frame[self.transport..self.end]
    }

    /// Type and code, if it is an ICMP or ICMPv6 message that is whole.
    #[must_use]
    pub fn icmp(&self, frame: &[u8]) -> Option<(u8, u8)> {
        let whole = self.fragment == Fragment::Whole && self.protocol.is_query();
        whole.then(|| (frame[self.transport], frame[self.transport + 1]))
    }

    /// Whether it is an ICMP error message, about which no other error may be sent
    /// (RFC 1122 §3.2.2, RFC 4443 §2.4).
    #[must_use]
    pub fn is_icmp_error(&self, frame: &[u8]) -> bool {
        match self.icmp(frame) {
            Some((kind, _)) if self.protocol == Protocol::Icmp => {
                matches!(kind, 3 | 4 | 5 | 11 | 12)
            }
            Some((kind, _)) => kind < 128 || kind == 137,
            None => false,
        }
    }

    /// The packet an ICMP error quotes, from its IP header on; none of any other packet.
    #[must_use]
    pub fn quoted<'f>(&self, frame: &'f [u8]) -> Option<&'f [u8]> {
        self.is_icmp_error(frame).then(|| &self.transport(frame)[8..])
    }

    /// The flow an ICMP error is about, as packets of it from the error's sender name it.
    #[must_use]
    pub fn concerns(&self, frame: &[u8]) -> Option<Tuple> {
        let quoted = Headers::parse_quoted(self.quoted(frame)?).ok()?;
        quoted.tuple().map(Tuple::inverse)
    }
}

/// Whether IPv4 options hold a loose or strict source route (types 131 and 137).
fn has_source_route(options: &[u8]) -> bool {
    let mut rest = options;
    while let [kind, tail @ ..] = rest {
        match kind {
            0 => return false,
            1 => rest = tail,
            131 | 137 => return true,
            _ => {
                let len = tail.first().map_or(0, |len| usize::from(*len));
                if len < 2 {
                    return false;
                }
                rest = rest.get(len..).unwrap_or(&[]);
            }
        }
    }
    false
}

/// Whether no sender can have this address: unspecified, multicast, broadcast or loopback
/// (RFC 1812 §5.3.7).
#[must_use]
pub fn is_martian_source(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            addr.octets()[0] == 0
                || addr.is_multicast()
                || addr == Ipv4Addr::BROADCAST
                || addr.is_loopback()
                || addr.octets()[0] >= 240
        }
        // A mapped address never stands on a wire (RFC 4291 §2.5.5.2): to a socket it is an IPv4 one,
        // the loopback's among them.
        IpAddr::V6(addr) => {
            addr.is_unspecified()
                || addr.is_multicast()
                || addr.is_loopback()
                || addr.to_ipv4_mapped().is_some()
        }
    }
}

/// Whether no router carries a packet there: unspecified, multicast, broadcast, loopback, link-local.
#[must_use]
pub fn is_martian_destination(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => is_martian_source(addr.into()) || addr.is_link_local(),
        IpAddr::V6(addr) => is_martian_source(addr.into()) || is_link_local_v6(addr),
    }
}

/// Whether `addr` is in fe80::/10.
#[must_use]
pub const fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if is_link_local_v6(addr))
}

/// Whether `addr` is in fe80::/10 (RFC 4291 §2.5.6).
#[must_use]
pub const fn is_link_local_v6(addr: Ipv6Addr) -> bool {
    addr.segments()[0] & 0xffc0 == 0xfe80
}
