//! Where the headers of a frame lie.
//!
//! For whoever does the work an offload header left undone. Unlike `packet.rs`, the gateway's
//! reading, this one knows VLAN tags and judges nothing: a bridged packet need not be one we would
//! route. Read RFC 8200 §4 for the extension headers.

use std::net::IpAddr;

use smoltcp::wire::{
    IpProtocol, IpVersion, Ipv4Packet, Ipv6ExtHeader, Ipv6Packet, TcpPacket, UDP_HEADER_LEN,
};

use crate::checksum::Sum;
use crate::drop::DropReason;
use crate::port::ETHERNET_HEADER_LEN;

/// Octets of an 802.1Q tag.
const VLAN_TAG_LEN: usize = 4;

/// Extension headers looked through before giving up; RFC 8200 §4.1 knows seven in a sensible
/// order.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Where the payload of the frame begins: behind the Ethernet header and one VLAN tag, if any.
pub(crate) fn network_offset(frame: &[u8]) -> usize {
    match frame.get(12..14) {
        Some([0x81, 0x00] | [0x88, 0xa8]) => ETHERNET_HEADER_LEN + VLAN_TAG_LEN,
        _ => ETHERNET_HEADER_LEN,
    }
}

/// Where the headers of an IP packet lie in its frame; offsets are octets from the frame's first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The family.
    pub(crate) version: IpVersion,
    /// Where the IP header begins.
    pub(crate) network: usize,
    /// Where the transport header begins, behind options and extension headers.
    pub(crate) transport: usize,
    /// One past the packet's last octet; what follows is padding.
    pub(crate) end: usize,
    /// What the transport header is.
    pub(crate) protocol: IpProtocol,
    /// Whether it is a piece of a packet.
    pub(crate) fragment: bool,
    /// Whether the destination in the header is not the final one (RFC 8200 §8.1).
    pub(crate) source_routed: bool,
}

impl Layout {
    /// Reads the headers; `None` if the frame is not IP.
    ///
    /// # Errors
    ///
    /// [`DropReason::Malformed`] if a header is not whole or contradicts the frame.
    pub(crate) fn of(frame: &[u8]) -> Result<Option<Self>, DropReason> {
        let network = network_offset(frame);
        let (Some(ethertype), Some(octets)) =
            (frame.get(network - 2..network), frame.get(network..))
        else {
            return Err(DropReason::Malformed);
        };
        match ethertype {
            [0x08, 0x00] => Self::of_ipv4(octets, network).map(Some),
            [0x86, 0xdd] => Self::of_ipv6(octets, network).map(Some),
            _ => Ok(None),
        }
    }

    fn of_ipv4(octets: &[u8], network: usize) -> Result<Self, DropReason> {
        let header = Ipv4Packet::new_checked(octets).map_err(|_| DropReason::Malformed)?;
        if header.version() != 4 {
            return Err(DropReason::Malformed);
        }
        Ok(Self {
            version: IpVersion::Ipv4,
            network,
            transport: network + usize::from(header.header_len()),
            end: network + usize::from(header.total_len()),
            protocol: header.next_header(),
            fragment: header.more_frags() || header.frag_offset() != 0,
            source_routed: false,
        })
    }

    fn of_ipv6(octets: &[u8], network: usize) -> Result<Self, DropReason> {
        let header = Ipv6Packet::new_checked(octets).map_err(|_| DropReason::Malformed)?;
        if header.version() != 6 {
            return Err(DropReason::Malformed);
        }
        let octets = &octets[..header.total_len()];
        let mut layout = Self {
            version: IpVersion::Ipv6,
            network,
            transport: network + header.header_len(),
            end: network + octets.len(),
            protocol: header.next_header(),
            fragment: false,
            source_routed: false,
        };
        for _ in 0..=MAX_EXTENSION_HEADERS {
            let rest = &octets[layout.transport - network..];
            match layout.protocol {
                IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                    let header = Ipv6ExtHeader::new_checked(rest);
                    let header = header.map_err(|_| DropReason::Malformed)?;
                    let segments_left = layout.protocol == IpProtocol::Ipv6Route && rest[3] != 0;
                    layout.source_routed |= segments_left;
                    layout.protocol = header.next_header();
                    layout.transport += 8 * (usize::from(header.header_len()) + 1);
                }
                IpProtocol::Ipv6Frag => {
                    // Not read as the others: its second octet is no length (RFC 8200 §4.5).
                    let header = rest.first_chunk::<8>().ok_or(DropReason::Malformed)?;
                    layout.protocol = header[0].into();
                    layout.transport += header.len();
                    layout.fragment = u16::from_be_bytes([header[2], header[3]]) & 0xfff9 != 0;
                    if layout.fragment {
                        return Ok(layout);
                    }
                }
                _ => return Ok(layout),
            }
        }
        Err(DropReason::Malformed)
    }

    /// Octets of the transport header and its payload.
    pub(crate) const fn len(&self) -> usize {
        self.end - self.transport
    }

    /// Octets of the transport header, if it is TCP or UDP and whole.
    pub(crate) fn transport_header_len(&self, frame: &[u8]) -> Option<usize> {
        let octets = &frame[self.transport..self.end];
        match self.protocol {
            IpProtocol::Tcp => {
                TcpPacket::new_checked(octets).ok().map(|tcp| usize::from(tcp.header_len()))
            }
            IpProtocol::Udp => (octets.len() >= UDP_HEADER_LEN).then_some(UDP_HEADER_LEN),
            _ => None,
        }
    }

    /// The sender.
    pub(crate) fn src(&self, frame: &[u8]) -> IpAddr {
        match self.version {
            IpVersion::Ipv4 => Ipv4Packet::new_unchecked(&frame[self.network..]).src_addr().into(),
            IpVersion::Ipv6 => Ipv6Packet::new_unchecked(&frame[self.network..]).src_addr().into(),
        }
    }

    /// The addressee, as the IP header names it.
    pub(crate) fn dst(&self, frame: &[u8]) -> IpAddr {
        match self.version {
            IpVersion::Ipv4 => Ipv4Packet::new_unchecked(&frame[self.network..]).dst_addr().into(),
            IpVersion::Ipv6 => Ipv6Packet::new_unchecked(&frame[self.network..]).dst_addr().into(),
        }
    }

    /// The pseudo-header, of a segment of `len` octets.
    pub(crate) fn pseudo_header(&self, frame: &[u8], len: usize) -> Sum {
        Sum::pseudo_header(self.src(frame), self.dst(frame), self.protocol.into(), len)
    }
}
