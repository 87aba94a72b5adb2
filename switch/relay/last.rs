//! What a datagram socket sent last, as its container's packet had it.
//!
//! An error brings back octets of a datagram from behind its headers, often not all, and none of what the
//! headers said: so a word a socket is kept here. It is believed of the far side it was sent to, and of
//! octets that begin as it did (RFC 5508 REQ-4: what is quoted is to be as it was inside).

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use datapath::Packet;
use nat::TransportAddr;

/// What a packet's IP header said that no socket says again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) traffic_class: u8,
    /// IPv4 only.
    pub(crate) dont_fragment: bool,
    /// The identification in IPv4, the flow label in IPv6.
    pub(crate) label: u32,
}

impl Default for Seen {
    fn default() -> Self {
        Self { traffic_class: 0, dont_fragment: true, label: 0 }
    }
}

impl Seen {
    pub(crate) fn of(packet: &Packet, frame: &[u8]) -> Self {
        Self {
            traffic_class: packet.traffic_class,
            dont_fragment: packet.dont_fragment,
            label: label(packet, frame),
        }
    }
}

/// The identification of an IPv4 packet, the flow label of an IPv6 one.
pub(crate) fn label(packet: &Packet, frame: &[u8]) -> u32 {
    let at = |at: usize| u32::from(frame[Packet::IP + at]);
    match packet.src.is_ipv4() {
        true => at(4) << 8 | at(5),
        false => (at(1) & 0xf) << 16 | at(2) << 8 | at(3),
    }
}

/// From the lowest bit: payload octets and one (16 bits, 0 before the first), traffic class (8), DF (1), label
/// (20), and what is left of its first octets (9) and of whom it was for (10).
#[derive(Debug, Default)]
pub(crate) struct Last(AtomicU64);

/// Payload octets a datagram is known by.
const START: usize = 4;

impl Last {
    /// Takes note of a datagram that left. An echo request's `to` has its sequence number for a port.
    pub(crate) fn note(&self, to: TransportAddr, payload: &[u8], seen: Seen) {
        let word = (payload.len() as u64 + 1) & 0xffff
            | u64::from(seen.traffic_class) << 16
            | u64::from(seen.dont_fragment) << 24
            | u64::from(seen.label & 0xf_ffff) << 25
            | start(payload) << 45
            | whom(to) << 54;
        self.0.store(word, Relaxed);
    }

    /// How many payload octets that datagram had of which `known` came back, and what its header said.
    /// `padded` octets may have zeros behind them that were never sent (RFC 4884 §5.1).
    #[expect(clippy::cast_possible_truncation, reason = "takes the word apart")]
    pub(crate) fn about(&self, to: TransportAddr, known: &[u8], padded: bool) -> (usize, Seen) {
        let word = self.0.load(Relaxed);
        let Some(len) = usize::from(word as u16).checked_sub(1).filter(|_| word >> 54 == whom(to))
        else {
            return (known.len(), Seen::default());
        };
        let seen = Seen {
            traffic_class: (word >> 16) as u8,
            dont_fragment: word >> 24 & 1 == 1,
            label: (word >> 25) as u32 & 0xf_ffff,
        };
        let (sent, behind) = known.split_at(known.len().min(len));
        let same = sent.len() < START.min(len) || start(sent) == word >> 45 & 0x1ff;
        match same && (behind.is_empty() || padded && behind.iter().all(|octet| *octet == 0)) {
            true => (len, seen),
            // An earlier one of the same flow.
            false => (known.len(), Seen { label: 0, ..seen }),
        }
    }
}

/// Nine bits of a payload's first octets.
fn start(payload: &[u8]) -> u64 {
    let first = payload.iter().take(START);
    mixed(first.fold(0, |word, octet| word << 8 | u64::from(*octet))) >> 55
}

/// Ten bits of a far side.
#[expect(clippy::cast_possible_truncation, reason = "takes the address apart")]
fn whom(to: TransportAddr) -> u64 {
    let addr = match to.addr {
        IpAddr::V4(addr) => u64::from(addr.to_bits()),
        IpAddr::V6(addr) => (addr.to_bits() >> 64) as u64 ^ mixed(addr.to_bits() as u64),
    };
    mixed(addr ^ u64::from(to.port) << 40) >> 54
}

/// Spreads a word over its upper bits (Fibonacci hashing).
const fn mixed(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i4_the_last_datagram_is_known_by_what_came_back_of_it() {
        for addr in ["198.51.100.9", "2001:db8::9"] {
            let [to, other] = [53, 54].map(|port| TransportAddr::new(addr.parse().unwrap(), port));
            let seen = Seen { traffic_class: 0x28, dont_fragment: false, label: 0xabcd };
            let last = Last::default();
            assert_eq!(last.about(to, b"", false), (0, Seen::default()));
            last.note(to, b"datagram", seen);
            // All of it came back, a part, its header alone; with padding, all of it again.
            for known in [&b"datagram"[..], b"datag", b"dat", b""] {
                assert_eq!(last.about(to, known, false), (8, seen));
            }
            assert_eq!(last.about(to, b"datagram\0\0\0", true), (8, seen));
            // Others, but for their flow.
            let earlier = Seen { label: 0, ..seen };
            for known in [&b"datagrams"[..], b"datagram\0", b"another"] {
                assert_eq!(last.about(to, known, false), (known.len(), earlier));
            }
            assert_eq!(last.about(other, b"datagram", false), (8, Seen::default()));
            last.note(to, b"", seen);
            assert_eq!(last.about(to, b"\0\0", true), (0, seen));
            last.note(to, &[7; 65_507], seen);
            assert_eq!(last.about(to, &[7; 520], false), (65_507, seen));
        }
    }
}
