//! Checksums somebody else has to finish, and the judgement of finished ones.
//!
//! The sums themselves, and their updates, are `nat`'s: read [`nat::checksum`] first for the three forms
//! one number wears. Here is what needs a frame: the partial checksum an offload left behind is
//! completed, a finished one is verified.

use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, UdpPacket};

use crate::drop::DropReason;

pub use nat::checksum::{Checksum, PseudoSum, Sum};

/// Where a UDP header has its checksum (RFC 768), in octets from its first.
pub(crate) const UDP_FIELD: u16 = 6;

/// Where a TCP header has its checksum (RFC 9293 §3.1), in octets from its first.
pub(crate) const TCP_FIELD: u16 = 16;

/// Where an ICMP and an ICMPv6 header have theirs (RFC 792, RFC 4443 §2.1), in octets from the
/// first.
pub(crate) const ICMP_FIELD: u16 = 2;

/// A checksum that somebody further on has to make: `CHECKSUM_PARTIAL` in
/// `Documentation/networking/checksum-offloads.rst`, `csum_start` and `csum_offset` in virtio 1.2
/// §5.1.6. Until then the field holds a [`PseudoSum`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First octet covered, counted from the frame's first.
    pub start: u16,
    /// First octet of the field, counted from `start`.
    pub offset: u16,
}

impl PartialChecksum {
    /// First octet of the field, counted from the frame's first.
    #[must_use]
    pub const fn field(self) -> usize {
        self.start as usize + self.offset as usize
    }
}

/// Makes a checksum that was left partial, over everything from `start` to the end of `frame`, as
/// `skb_checksum_help` in `net/core/dev.c` does.
///
/// # Errors
///
/// [`DropReason::BadOffload`] if the field is not inside the frame.
pub fn complete(frame: &mut [u8], partial: PartialChecksum) -> Result<(), DropReason> {
    let covered = frame.get_mut(usize::from(partial.start)..).ok_or(DropReason::BadOffload)?;
    let checksum = Sum::of(covered).checksum();
    let field = covered
        .get_mut(usize::from(partial.offset)..)
        .and_then(|rest| rest.first_chunk_mut::<2>())
        .ok_or(DropReason::BadOffload)?;
    // Only UDP and its kin have their field there; elsewhere zero is a checksum like any other.
    let checksum = if partial.offset == UDP_FIELD { checksum.for_udp() } else { checksum };
    *field = checksum.0.to_be_bytes();
    Ok(())
}

/// Verifies the header checksum of the IPv4 packet `packet` begins with.
///
/// # Errors
///
/// [`DropReason::BadIpChecksum`], or [`DropReason::Malformed`] if the header is not whole.
pub fn verify_ipv4_header(packet: &[u8]) -> Result<(), DropReason> {
    let len = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    match packet.get(..len) {
        Some(header) if len >= 20 && Sum::of(header).fold() == 0xffff => Ok(()),
        Some(_) if len >= 20 => Err(DropReason::BadIpChecksum),
        _ => Err(DropReason::Malformed),
    }
}

/// Verifies the checksum of a transport header and its payload, which must be a whole packet's and
/// carry no partial checksum. A protocol that has none here passes.
///
/// A UDP checksum of zero was never made: fine in IPv4 (RFC 768), refused in IPv6 (RFC 8200 §8.1).
/// UDP counts by its own length field, and what lies behind is not covered.
///
/// # Errors
///
/// [`DropReason::BadL4Checksum`], or [`DropReason::Malformed`] if the header is not whole.
pub fn verify_transport(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    octets: &[u8],
) -> Result<(), DropReason> {
    let (covered, field) = match (IpProtocol::from(protocol), dst) {
        (IpProtocol::Tcp, _) => (octets, TCP_FIELD),
        (IpProtocol::Udp, _) => {
            let datagram = UdpPacket::new_checked(octets).map_err(|_| DropReason::Malformed)?;
            match (datagram.checksum(), dst) {
                (0, IpAddr::V4(_)) => return Ok(()),
                (0, IpAddr::V6(_)) => return Err(DropReason::BadL4Checksum),
                _ => (&octets[..usize::from(datagram.len())], UDP_FIELD),
            }
        }
        (IpProtocol::Icmp, IpAddr::V4(_)) | (IpProtocol::Icmpv6, IpAddr::V6(_)) => {
            (octets, ICMP_FIELD)
        }
        _ => return Ok(()),
    };
    if covered.len() < usize::from(field) + 2 {
        return Err(DropReason::Malformed);
    }
    let pseudo_header = match IpProtocol::from(protocol) {
        IpProtocol::Icmp => Sum::ZERO, // none in RFC 792; ICMPv6 has one (RFC 4443 §2.3)
        _ => Sum::pseudo_header(src, dst, protocol, covered.len()),
    };
    match pseudo_header.and(Sum::of(covered)).fold() {
        0xffff => Ok(()),
        _ => Err(DropReason::BadL4Checksum),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn verifies_an_ipv4_header() {
        let mut header = [
            0x45, 0x00, 0x00, 0x54, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x01, 0x9d, 0x70, 0xc0, 0x00,
            0x02, 0x01, 0xc0, 0x00, 0x02, 0x02,
        ];
        let field = Sum::of(&header[..10]).and(Sum::of(&header[12..])).checksum();
        header[10..12].copy_from_slice(&field.0.to_be_bytes());
        assert_eq!(verify_ipv4_header(&header), Ok(()));
        header[8] -= 1;
        assert_eq!(verify_ipv4_header(&header), Err(DropReason::BadIpChecksum));
        assert_eq!(verify_ipv4_header(&header[..19]), Err(DropReason::Malformed));
        assert_eq!(verify_ipv4_header(&[0x44; 40]), Err(DropReason::Malformed));
        assert_eq!(verify_ipv4_header(&[]), Err(DropReason::Malformed));
    }

    #[test]
    fn no_udp_checksum_is_fine_in_ipv4_only() {
        let datagram = [0, 7, 0, 9, 0, 9, 0, 0, 0x55];
        let v4 = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
        let v6 = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
        assert_eq!(verify_transport(v4, v4, 17, &datagram), Ok(()));
        assert_eq!(verify_transport(v6, v6, 17, &datagram), Err(DropReason::BadL4Checksum));
    }
}
