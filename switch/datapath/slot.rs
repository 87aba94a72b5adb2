//! A frame that is rewritten where it lies.
//!
//! Translation works in the buffer a frame was received into, so that a routed frame is copied nowhere. An
//! offload header stands in front, as a device wants it; behind the frame is room for a longer IP header.

use nat::Buffer;
use smoltcp::wire::{EthernetFrame, EthernetProtocol};

use crate::checksum::Checksum;
use crate::offload::{Gso, OFFLOAD_HEADER_LEN, Offload, PartialChecksum};
use crate::port::{ETHERNET_HEADER_LEN, MacAddr};

/// Octets by which the IP header may grow when the version changes (RFC 7915).
pub const SPARE: usize = 20;

/// Where the packet begins.
const PACKET: usize = OFFLOAD_HEADER_LEN + ETHERNET_HEADER_LEN;

/// A frame behind its offload header, with spare octets behind it.
#[derive(Debug)]
pub struct Slot<'a> {
    octets: &'a mut [u8],
    /// Of offload header and frame.
    len: &'a mut usize,
    /// Its place in the burst, if it was received; anything else has to be copied out.
    place: Option<u16>,
}

impl<'a> Slot<'a> {
    /// The frame that ends `len` octets into `octets`.
    ///
    /// # Panics
    ///
    /// If there is not even an Ethernet header: the caller has looked at the frame already.
    pub fn new(octets: &'a mut [u8], len: &'a mut usize, place: Option<u16>) -> Self {
        assert!((PACKET..=octets.len()).contains(len), "a frame behind an offload header");
        Self { octets, len, place }
    }

    /// Its place in the burst.
    #[must_use]
    pub const fn place(&self) -> Option<u16> {
        self.place
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.octets[OFFLOAD_HEADER_LEN..*self.len]
    }

    /// The packet, one hop older. Its TTL or hop limit must not be 0.
    pub(crate) fn age(&mut self) {
        age(&mut self.octets[PACKET..]);
    }

    /// Addresses the frame, whose packet may be of another IP version by now.
    pub(crate) fn address(&mut self, src: MacAddr, dst: MacAddr) {
        let v6 = self.octets[PACKET] >> 4 == 6;
        let mut frame = EthernetFrame::new_unchecked(&mut self.octets[OFFLOAD_HEADER_LEN..]);
        frame.set_src_addr(src);
        frame.set_dst_addr(dst);
        frame.set_ethertype(if v6 { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 });
    }

    /// Writes what is left undone in front of the frame.
    pub(crate) fn emit(&mut self, offload: Offload) {
        if let Some(header) = self.octets.first_chunk_mut() {
            offload.emit(header);
        }
    }
}

impl Buffer for Slot<'_> {
    fn octets(&self) -> &[u8] {
        &self.octets[PACKET..*self.len]
    }

    fn octets_mut(&mut self) -> &mut [u8] {
        &mut self.octets[PACKET..*self.len]
    }

    fn resize(&mut self, len: usize) -> bool {
        let room = PACKET + len <= self.octets.len();
        if room {
            *self.len = PACKET + len;
        }
        room
    }
}

/// Makes a packet one hop older (RFC 1812 §5.3.1). Its TTL or hop limit must not be 0.
pub(crate) fn age(packet: &mut [u8]) {
    set_hop_limit(packet, |hops| hops - 1);
}

/// Takes [`age`] back.
pub(crate) fn rejuvenate(packet: &mut [u8]) {
    set_hop_limit(packet, |hops| hops.saturating_add(1));
}

fn set_hop_limit(packet: &mut [u8], change: impl FnOnce(u8) -> u8) {
    let word = |packet: &[u8]| u16::from_be_bytes([packet[8], packet[9]]);
    if packet[0] >> 4 == 6 {
        packet[7] = change(packet[7]);
        return;
    }
    let old = word(packet);
    packet[8] = change(packet[8]);
    let held = Checksum(u16::from_be_bytes([packet[10], packet[11]]));
    let checksum = held.replace(old, word(packet));
    packet[10..12].copy_from_slice(&checksum.0.to_be_bytes());
}

/// What is left undone on a frame whose packet has changed its IP version and now has its transport
/// header at `transport` of the packet.
pub(crate) fn undone_in_version(offload: Offload, v6: bool, transport: usize) -> Offload {
    let start = u16::try_from(ETHERNET_HEADER_LEN + transport).unwrap_or(u16::MAX);
    let was = offload.checksum.map_or(start, |partial| partial.start);
    let gso = match offload.gso {
        Gso::Tcp4 { size, ecn } | Gso::Tcp6 { size, ecn } => match v6 {
            true => Gso::Tcp6 { size, ecn },
            false => Gso::Tcp4 { size, ecn },
        },
        other => other,
    };
    // A hint, which may be as long as the frame.
    let header_len = match offload.header_len {
        0 => 0,
        len => len.saturating_add(start).saturating_sub(was),
    };
    let checksum = offload.checksum.map(|partial| PartialChecksum { start, ..partial });
    Offload { checksum, gso, header_len, valid: offload.valid }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hint of the headers' length is the sender's, and may be as long as the longest frame.
    #[test]
    fn no_hint_is_too_long_to_be_moved() {
        for (v6, transport) in [(true, 40), (false, 20)] {
            let was = ETHERNET_HEADER_LEN + if v6 { 20 } else { 40 };
            let start = u16::try_from(was).unwrap();
            let checksum = Some(PartialChecksum { start, offset: 16 });
            let offload = Offload { checksum, header_len: u16::MAX, ..Offload::NONE };
            let moved = undone_in_version(offload, v6, transport);
            assert!(usize::from(moved.header_len) >= ETHERNET_HEADER_LEN + transport);
            let offload = Offload { header_len: start + 20, ..offload };
            let moved = undone_in_version(offload, v6, transport);
            assert_eq!(usize::from(moved.header_len), ETHERNET_HEADER_LEN + transport + 20);
        }
    }
}
