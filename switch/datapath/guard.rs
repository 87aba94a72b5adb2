//! RA guard: which frames speak as a router does.
//!
//! Read RFC 7113 §3 first: a message hides behind extension headers, or in a packet's second piece, or (what
//! Linux takes for untagged) behind a tag without a VLAN. It is asked of every frame, so what is no IPv6, or
//! has another hop limit than theirs, is told by a comparison or two. Which ports and networks it matters to,
//! the bridge says.

use smoltcp::wire::EthernetProtocol;

use crate::frame::Frame;

/// ICMPv6 types of the messages that only routers send (RFC 4861 §4.2, §4.5).
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// What they are sent with: no router has passed them on.
const HOP_LIMIT: u8 = 255;

/// EtherTypes of tags (802.1Q §9.5).
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;
/// Of the same form as the others (RFC 7045 §4, RFC 6564): mobility, HIP, Shim6.
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// Whether the frame carries a router advertisement or a redirect that a host may believe, or what may be
/// one as far as can be seen.
///
/// What is behind a header of a kind unknown here is not looked for: no host looks there either.
#[must_use]
#[inline]
pub fn speaks_as_router(frame: &Frame<'_>) -> bool {
    match frame.ethertype {
        EthernetProtocol::Ipv6 => {
            frame.payload.get(7) == Some(&HOP_LIMIT) && packet_speaks(frame.payload)
        }
        EthernetProtocol::Unknown(tag @ (VLAN | SERVICE_VLAN)) => tagged_speaks(tag, frame.payload),
        _ => false,
    }
}

/// The same of what may be behind tags. A VLAN is its users' own: nobody there is told of our gateway.
#[cold]
fn tagged_speaks(mut ethertype: u16, mut payload: &[u8]) -> bool {
    while let (VLAN | SERVICE_VLAN, Some((&[a, b, c, d], rest))) =
        (ethertype, payload.split_first_chunk())
    {
        let vlan = u16::from_be_bytes([a, b]) & 0x0fff;
        if vlan != 0 {
            return false;
        }
        (ethertype, payload) = (u16::from_be_bytes([c, d]), rest);
    }
    ethertype == EthernetProtocol::Ipv6.into() && packet_speaks(payload)
}

#[cold]
fn packet_speaks(packet: &[u8]) -> bool {
    let Some((header, rest)) = packet.split_first_chunk::<40>() else { return false };
    // From a link-local address, and by no router: hosts believe no other (RFC 4861 §6.1.2 and §8.1).
    if header[7] != HOP_LIMIT || header[8] != 0xfe || header[9] & 0xc0 != 0x80 {
        return false;
    }
    // Behind the packet's end there may be padding, which would be read in place of the next piece.
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    chain_speaks(header[6], &rest[..len.min(rest.len())])
}

/// The same of a chain of headers that begins with one of the kind `next`. One that ends before its message
/// begins is cut off, or has it in the next piece.
fn chain_speaks(mut next: u8, mut rest: &[u8]) -> bool {
    loop {
        let unit = match next {
            ICMPV6 => {
                return matches!(rest.first(), None | Some(&(ROUTER_ADVERTISEMENT | REDIRECT)));
            }
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => 8,
            AUTHENTICATION => 4,
            FRAGMENT => 0,
            _ => return false,
        };
        let Some(&[following, len, high, low]) = rest.first_chunk() else { return true };
        if next == FRAGMENT && u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
            // A later piece is nothing without the first.
            return false;
        }
        let Some(behind) = rest.get(8 + unit * usize::from(len)..) else { return true };
        (next, rest) = (following, behind);
    }
}
