//! Prefixes of IPv6 translated without state.
//!
//! Read RFC 6296: one prefix for another of the same length, and a word of the rest adjusted so that no
//! checksum changes, neither of the packet nor of one it quotes. Nothing is remembered and no port is
//! touched; every inside address has its own outside.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::Ipv6Cidr;

use crate::checksum::Sum;
use crate::headers::{Body, Headers};
use crate::icmp;
use crate::rewrite;
use crate::zone::Zone;

/// A pair of prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt {
    /// The zone in which the outside prefix is seen.
    pub zone: Zone,
    inside: Ipv6Cidr,
    outside: Ipv6Cidr,
}

impl Npt {
    /// Shows `inside` as `outside` to `zone`. None unless both are equally long, and at most 64 bits.
    #[must_use]
    pub fn new(zone: Zone, inside: Ipv6Cidr, outside: Ipv6Cidr) -> Option<Self> {
        let same = inside.prefix_len() == outside.prefix_len() && inside.prefix_len() <= 64;
        same.then_some(Self { zone, inside, outside })
    }

    /// The outside address of an inside one; none if it is no inside one, or has none (RFC 6296 §3.4).
    #[must_use]
    pub fn outward(&self, addr: IpAddr) -> Option<Ipv6Addr> {
        translate(addr, &self.inside, &self.outside)
    }

    /// The inside address of an outside one, likewise.
    #[must_use]
    pub fn inward(&self, addr: IpAddr) -> Option<Ipv6Addr> {
        translate(addr, &self.outside, &self.inside)
    }

    /// Whether the outside prefix has that address.
    #[must_use]
    pub fn shows(&self, addr: IpAddr) -> bool {
        matches!(addr, IpAddr::V6(addr) if self.outside.contains_addr(&addr))
    }

    /// Whether the inside prefix has that address.
    #[must_use]
    pub fn hides(&self, addr: IpAddr) -> bool {
        matches!(addr, IpAddr::V6(addr) if self.inside.contains_addr(&addr))
    }

    /// Moves a packet's source outward. None if it has no outside address; nothing is changed then.
    pub(crate) fn leave(&self, packet: &mut [u8], headers: &Headers) -> Option<Headers> {
        let src = self.outward(headers.src)?.into();
        if let (Body::Error, Ok(quoted)) = (headers.body, icmp::quoted(packet, headers))
            && let Some(dst) = self.outward(quoted.dst)
        {
            let at = headers.transport + icmp::HEADER;
            rewrite::set_addresses(&mut packet[at..], quoted.src, dst.into());
        }
        rewrite::set_addresses(packet, src, headers.dst);
        Some(Headers { src, ..*headers })
    }

    /// Moves a packet's destination inward. None if it has no inside address; nothing is changed then.
    pub(crate) fn enter(&self, packet: &mut [u8], headers: &Headers) -> Option<Headers> {
        let dst = self.inward(headers.dst)?.into();
        if let (Body::Error, Ok(quoted)) = (headers.body, icmp::quoted(packet, headers))
            && let Some(src) = self.inward(quoted.src)
        {
            let at = headers.transport + icmp::HEADER;
            rewrite::set_addresses(&mut packet[at..], src.into(), quoted.dst);
        }
        rewrite::set_addresses(packet, headers.src, dst);
        Some(Headers { dst, ..*headers })
    }
}

fn translate(addr: IpAddr, from: &Ipv6Cidr, to: &Ipv6Cidr) -> Option<Ipv6Addr> {
    let IpAddr::V6(addr) = addr else { return None };
    if !from.contains_addr(&addr) {
        return None;
    }
    let rest = u128::MAX.checked_shr(from.prefix_len().into()).unwrap_or(0);
    let moved = Ipv6Addr::from_bits(to.address().to_bits() & !rest | addr.to_bits() & rest);
    let mut words = moved.segments();
    // The subnet where the prefix leaves it alone (§3.4), else the first word of the interface
    // identifier that can take it (§3.5).
    let at = if from.prefix_len() <= 48 {
        Some(3).filter(|at| words[*at] != 0xffff)
    } else {
        (4..8).find(|at| words[*at] != 0xffff)
    }?;
    // What the new prefix adds to the sum is taken away again, in one's complement.
    let old = Sum::address(IpAddr::V6(addr)).fold();
    let new = Sum::address(IpAddr::V6(moved)).fold();
    let word = Sum::word(words[at]).and(Sum::word(old)).and(Sum::word(!new)).fold();
    words[at] = if word == 0xffff { 0 } else { word };
    Some(words.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npt(inside: &str, outside: &str) -> Npt {
        Npt::new(Zone(9), inside.parse().unwrap(), outside.parse().unwrap()).unwrap()
    }

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// RFC 6296 §3.4 and its appendix.
    #[test]
    fn maps_as_rfc_6296_does() {
        let npt = npt("fd01:203:405::/48", "2001:db8:1::/48");
        let outside = npt.outward(addr("fd01:203:405:1::1234")).unwrap();
        assert_eq!(outside, addr("2001:db8:1:d550::1234"));
        assert_eq!(
            npt.inward(outside.into()).map(IpAddr::from),
            Some(addr("fd01:203:405:1::1234"))
        );
        assert_eq!(npt.outward(addr("fd01:203:405:ffff::1")), None);
        assert_eq!(npt.outward(addr("2001:db8::1")), None);
    }

    #[test]
    fn a_longer_prefix_leaves_its_subnet_and_adjusts_the_identifier() {
        let npt = npt("fd00:1:2:3400::/56", "2001:db8:a:bc00::/56");
        for text in ["fd00:1:2:3456::1", "fd00:1:2:34ff:ffff::1", "fd00:1:2:3400:1:2:3:4"] {
            let inside = addr(text);
            let outside = IpAddr::V6(npt.outward(inside).unwrap());
            assert!(npt.shows(outside) && npt.hides(inside));
            assert_eq!(npt.inward(outside).map(IpAddr::from), Some(inside));
            assert_eq!(Sum::address(inside).fold(), Sum::address(outside).fold(), "{outside}");
        }
    }
}
