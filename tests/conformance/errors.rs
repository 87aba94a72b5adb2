//! ICMP errors as RFC 792 and RFC 4443 number them.

use std::net::IpAddr;

use crate::lab::Family;
use crate::packet::Packet;

/// Type and code in either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) v4: (u8, u8),
    pub(crate) v6: (u8, u8),
}

pub(crate) const NET: Kind = Kind { v4: (3, 0), v6: (1, 0) };
pub(crate) const HOST: Kind = Kind { v4: (3, 1), v6: (1, 3) };
pub(crate) const PORT: Kind = Kind { v4: (3, 3), v6: (1, 4) };
pub(crate) const ADMIN: Kind = Kind { v4: (3, 13), v6: (1, 1) };
pub(crate) const TOO_BIG: Kind = Kind { v4: (3, 4), v6: (2, 0) };
/// Pieces that are missing did not come in time.
pub(crate) const PIECES: Kind = Kind { v4: (11, 1), v6: (3, 1) };
pub(crate) const TTL: Kind = Kind { v4: (11, 0), v6: (3, 0) };

impl Kind {
    pub(crate) fn of(self, family: Family) -> (u8, u8) {
        if family == Family::V4 { self.v4 } else { self.v6 }
    }
}

/// An error about a packet, to the one who sent it; `value` is what stands behind the checksum.
pub(crate) fn error(from: IpAddr, kind: Kind, value: u32, about: &[u8]) -> Packet {
    let family = Family::of(from);
    let (kind, code) = kind.of(family);
    let quoted = Packet::read_quoted(about).unwrap();
    // As much as fits into the least every host takes: RFC 1812 4.3.2.3, RFC 4443 2.4.
    let most = if family == Family::V4 { 576 - 28 } else { 1280 - 48 };
    let about = &about[..about.len().min(most)];
    Packet::icmp(from, quoted.src, kind, code, value.to_be_bytes(), about)
}

/// The next hop's MTU that a "too big" carries.
pub(crate) fn mtu_of(packet: &Packet) -> u32 {
    let octets = packet.payload[4..8].try_into().unwrap();
    let value = u32::from_be_bytes(octets);
    if packet.src.is_ipv4() { value & 0xffff } else { value }
}
