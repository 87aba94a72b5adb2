//! The packet an ICMP error is about, written again from what is known of its flow.
//!
//! A host socket tells of an error without the packet; the container's kernel finds its socket by the
//! quoted headers (RFC 792: the IP header and eight octets behind it).

use datapath::emit::IpHeader;
use datapath::{ETHERNET_HEADER_LEN, MacAddr};
use nat::{Protocol, TransportAddr};

/// Octets behind the ports, or behind the ICMP checksum, that are quoted.
const REST: usize = 4;

/// The IP packet from `src` to `dst` as far as an error quotes it; `rest` are octets 4 to 7 of its
/// transport header. For ICMP, the port of `src` is the identifier.
pub(crate) fn packet(
    protocol: Protocol,
    src: TransportAddr,
    dst: TransportAddr,
    rest: &[u8; REST],
) -> Vec<u8> {
    let header = IpHeader::new(src.addr, dst.addr, protocol.number());
    let mut frame = vec![0; header.transport() + 8];
    header.emit(&mut frame, MacAddr([0; 6]));
    let transport = &mut frame[header.transport()..];
    match protocol {
        Protocol::Icmp | Protocol::Icmpv6 => {
            transport[0] = if protocol == Protocol::Icmp { 8 } else { 128 };
            transport[4..6].copy_from_slice(&src.port.to_be_bytes());
            transport[6..8].copy_from_slice(&rest[2..]);
        }
        _ => {
            transport[..2].copy_from_slice(&src.port.to_be_bytes());
            transport[2..4].copy_from_slice(&dst.port.to_be_bytes());
            transport[4..8].copy_from_slice(rest);
        }
    }
    frame.split_off(ETHERNET_HEADER_LEN)
}

/// What stands behind the ports of a datagram of `len` payload octets: its length and no checksum.
pub(crate) fn datagram(len: usize) -> [u8; REST] {
    let [high, low] = u16::try_from(len + 8).unwrap_or(u16::MAX).to_be_bytes();
    [high, low, 0, 0]
}

/// What stands behind the ports of a segment: its sequence number.
pub(crate) const fn segment(seq: u32) -> [u8; REST] {
    seq.to_be_bytes()
}
