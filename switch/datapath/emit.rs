//! Headers of the frames we make ourselves.
//!
//! The layout is smoltcp's; checksums are either made here or left partial for the egress
//! (`offload.rs`).

use std::net::IpAddr;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, Ipv6Packet};

use crate::checksum::Sum;
use crate::port::{ETHERNET_HEADER_LEN, MacAddr};

/// TTL and hop limit of what we originate (RFC 1700, "IP TIME TO LIVE PARAMETER").
pub const DEFAULT_TTL: u8 = 64;

/// What an IP header says, in either family.
#[derive(Clone, Copy, Debug)]
pub struct IpHeader {
    /// Sender.
    pub src: IpAddr,
    /// Addressee; of the sender's family.
    pub dst: IpAddr,
    /// Protocol number or next header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS or traffic class.
    pub traffic_class: u8,
    /// IPv4 only: identification of a datagram that may be fragmented; `None` sets DF.
    pub identification: Option<u16>,
}

impl IpHeader {
    /// A header for something of our own: TTL 64, DF, no traffic class.
    #[must_use]
    pub const fn new(src: IpAddr, dst: IpAddr, protocol: u8) -> Self {
        Self { src, dst, protocol, hop_limit: DEFAULT_TTL, traffic_class: 0, identification: None }
    }

    /// Octets of the header.
    #[must_use]
    pub const fn octets(&self) -> usize {
        match self.src {
            IpAddr::V4(_) => 20,
            IpAddr::V6(_) => 40,
        }
    }

    /// Where the transport header begins in the frame.
    #[must_use]
    pub const fn transport(&self) -> usize {
        ETHERNET_HEADER_LEN + self.octets()
    }

    /// Writes Ethernet and IP header of `frame`, whose octets behind them are the IP payload. The
    /// destination station is written when it is known.
    ///
    /// # Panics
    ///
    /// If the frame is shorter than the headers, longer than 65,535 octets of IP, or the addresses are
    /// of two families: all are the caller's constants.
    pub fn emit(&self, frame: &mut [u8], src_mac: MacAddr) {
        let payload_len = frame.len() - self.transport();
        let mut ethernet = EthernetFrame::new_unchecked(&mut *frame);
        ethernet.set_src_addr(src_mac);
        ethernet.set_ethertype(match self.src {
            IpAddr::V4(_) => EthernetProtocol::Ipv4,
            IpAddr::V6(_) => EthernetProtocol::Ipv6,
        });
        let octets = &mut frame[ETHERNET_HEADER_LEN..];
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                octets[..20].fill(0);
                let total_len = u16::try_from(payload_len + 20).expect("an IP packet is ≤ 65,535");
                let mut ip = Ipv4Packet::new_unchecked(&mut *octets);
                ip.set_version(4);
                ip.set_header_len(20);
                ip.set_total_len(total_len);
                ip.set_ident(self.identification.unwrap_or(0));
                ip.set_dont_frag(self.identification.is_none());
                ip.set_hop_limit(self.hop_limit);
                ip.set_next_header(self.protocol.into());
                ip.set_src_addr(src);
                ip.set_dst_addr(dst);
                octets[1] = self.traffic_class;
                Ipv4Packet::new_unchecked(octets).fill_checksum();
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                octets[..40].fill(0);
                let len = u16::try_from(payload_len).expect("an IPv6 payload is ≤ 65,535");
                let mut ip = Ipv6Packet::new_unchecked(&mut *octets);
                ip.set_version(6);
                ip.set_traffic_class(self.traffic_class);
                ip.set_payload_len(len);
                ip.set_next_header(self.protocol.into());
                ip.set_hop_limit(self.hop_limit);
                ip.set_src_addr(src);
                ip.set_dst_addr(dst);
            }
            _ => unreachable!("source and destination are of one family"),
        }
    }
}

/// Writes the whole checksum of a transport header at `offset` in `transport`, whose field must be 0.
///
/// # Panics
///
/// If `transport` ends before the field.
pub fn fill_checksum(header: &IpHeader, transport: &mut [u8], offset: usize) {
    let len = transport.len();
    let pseudo = match header.protocol {
        1 => Sum::ZERO, // ICMP has no pseudo-header (RFC 792)
        protocol => Sum::pseudo_header(header.src, header.dst, protocol, len),
    };
    let checksum = pseudo.and(Sum::of(transport)).checksum();
    let checksum = if header.protocol == 17 { checksum.for_udp() } else { checksum };
    transport[offset..offset + 2].copy_from_slice(&checksum.0.to_be_bytes());
}
