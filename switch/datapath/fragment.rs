//! Datagrams of our own that are longer than the MTU, cut into fragments (RFC 791 §3.2, RFC 8200 §4.5).

use smoltcp::wire::Ipv4Packet;

use crate::outbox::{Built, Outbox};
use crate::port::{ETHERNET_HEADER_LEN, IpMtu};

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const FRAGMENT_HEADER_LEN: usize = 8;

/// IPv6 next header value of the fragment header.
const FRAGMENT: u8 = 44;

/// Cuts a frame we built ourselves (no IP options or extension headers, checksum made) into fragments of
/// at most `mtu`, in order.
pub fn fragment(out: &mut Outbox, built: Built, mtu: IpMtu, identification: u16) -> Vec<Built> {
    let v4 = out.frame(built)[ETHERNET_HEADER_LEN] >> 4 == 4;
    let (header_len, own) = if v4 {
        (IPV4_HEADER_LEN, IPV4_HEADER_LEN)
    } else {
        (IPV6_HEADER_LEN, IPV6_HEADER_LEN + FRAGMENT_HEADER_LEN)
    };
    let payload = built.len() - ETHERNET_HEADER_LEN - header_len;
    // Every piece but the last is a multiple of eight octets long.
    let room = (usize::from(mtu.0).saturating_sub(own) / 8 * 8).max(8);
    (0..payload)
        .step_by(room)
        .map(|at| {
            let len = room.min(payload - at);
            let more = at + len < payload;
            let piece = out.build(ETHERNET_HEADER_LEN + own + len);
            let (whole, frame) = out.two_mut(built, piece);
            let header = &whole[..ETHERNET_HEADER_LEN + header_len];
            frame[..header.len()].copy_from_slice(header);
            let from = header.len() + at;
            frame[ETHERNET_HEADER_LEN + own..].copy_from_slice(&whole[from..from + len]);
            let octets = &mut frame[ETHERNET_HEADER_LEN..];
            let at = u16::try_from(at).expect("an offset in an IP packet");
            if v4 {
                let total = u16::try_from(own + len).expect("at most the MTU");
                let mut ip = Ipv4Packet::new_unchecked(octets);
                ip.set_total_len(total);
                ip.set_ident(identification);
                ip.set_dont_frag(false);
                ip.set_more_frags(more);
                ip.set_frag_offset(at);
                ip.fill_checksum();
            } else {
                let next = octets[6];
                octets[6] = FRAGMENT;
                let payload_len =
                    u16::try_from(FRAGMENT_HEADER_LEN + len).expect("at most the MTU");
                octets[4..6].copy_from_slice(&payload_len.to_be_bytes());
                let extension = &mut octets[IPV6_HEADER_LEN..][..FRAGMENT_HEADER_LEN];
                extension[..2].copy_from_slice(&[next, 0]);
                extension[2..4].copy_from_slice(&(at | u16::from(more)).to_be_bytes());
                extension[4..].copy_from_slice(&u32::from(identification).to_be_bytes());
            }
            piece
        })
        .collect()
}
