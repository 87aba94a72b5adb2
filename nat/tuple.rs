//! A flow's name in one direction: protocol, two transport addresses.
//!
//! Read `include/net/netfilter/nf_conntrack_tuple.h` beside this. The inverse of a tuple is what an
//! untranslated answer carries; translation is the difference between the inverse of the original
//! tuple and the reply tuple (`entry.rs`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// IP protocol of SCTP (RFC 9260). It has ports where TCP has them.
pub const SCTP: u8 = 132;

/// IP protocol of GRE (RFC 2784), which has addresses only.
pub const GRE: u8 = 47;

/// IP protocol of DCCP (RFC 4340). It has ports where TCP has them.
pub const DCCP: u8 = 33;

/// IP protocol of UDP-Lite (RFC 3828). It has ports where UDP has them.
pub const UDP_LITE: u8 = 136;

/// What the flow speaks above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP (RFC 9293), IP protocol 6.
    Tcp,
    /// UDP (RFC 768), IP protocol 17.
    Udp,
    /// ICMP queries (RFC 792), IP protocol 1.
    Icmp,
    /// ICMPv6 queries (RFC 4443), IP protocol 58.
    Icmpv6,
    /// Any other, by its IP protocol number. It has addresses only, except SCTP, UDP-Lite and DCCP.
    Other(u8),
}

impl Protocol {
    /// The protocol of an IPv4 `protocol` or IPv6 `next header` value.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Icmp,
            6 => Self::Tcp,
            17 => Self::Udp,
            58 => Self::Icmpv6,
            other => Self::Other(other),
        }
    }

    /// The assigned Internet protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmpv6 => 58,
            Self::Other(number) => number,
        }
    }

    /// Whether flows are told apart by ports, a source and a destination port in the first four octets.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Other(SCTP | UDP_LITE | DCCP))
    }

    /// Whether what is inside has an external port of its own, whomever it speaks to. An SCTP association may have
    /// several addresses at either end and is known by its ports (RFC 9260 §1.3): those stay where they can.
    #[must_use]
    pub const fn has_mappings(self) -> bool {
        self.is_query() || (self.has_ports() && !matches!(self, Self::Other(SCTP)))
    }

    /// Whether flows are told apart by an ICMP identifier instead of two ports.
    #[must_use]
    pub const fn is_query(self) -> bool {
        matches!(self, Self::Icmp | Self::Icmpv6)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.pad("tcp"),
            Self::Udp => f.pad("udp"),
            Self::Icmp => f.pad("icmp"),
            Self::Icmpv6 => f.pad("icmpv6"),
            Self::Other(SCTP) => f.pad("sctp"),
            Self::Other(GRE) => f.pad("gre"),
            Self::Other(DCCP) => f.pad("dccp"),
            Self::Other(UDP_LITE) => f.pad("udplite"),
            Self::Other(_) => f.pad("unknown"),
        }
    }
}

/// An IP address and a port in host order, in 20 octets where [`SocketAddr`] takes 32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransportAddr {
    /// The IP address.
    pub addr: IpAddr,
    /// TCP or UDP port, or the ICMP identifier of a query; 0 where the protocol has neither.
    pub port: u16,
}

impl TransportAddr {
    /// Joins an address and a port.
    #[must_use]
    pub const fn new(addr: IpAddr, port: u16) -> Self {
        Self { addr, port }
    }
}

impl From<SocketAddr> for TransportAddr {
    fn from(addr: SocketAddr) -> Self {
        Self { addr: addr.ip(), port: addr.port() }
    }
}

impl From<TransportAddr> for SocketAddr {
    fn from(addr: TransportAddr) -> Self {
        Self::new(addr.addr, addr.port)
    }
}

impl fmt::Display for TransportAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SocketAddr::from(*self), f)
    }
}

impl fmt::Debug for TransportAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One direction of a flow, as it reads in the packet.
///
/// An ICMP query puts its identifier in both ports, so a reply is still the inverse of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Protocol above IP.
    pub protocol: Protocol,
    /// Sender.
    pub src: TransportAddr,
    /// Addressee.
    pub dst: TransportAddr,
}

impl Tuple {
    /// The tuple of a TCP segment, a UDP datagram, or (both ports the identifier) an ICMP query.
    #[must_use]
    pub const fn new(protocol: Protocol, src: TransportAddr, dst: TransportAddr) -> Self {
        Self { protocol, src, dst }
    }

    /// All of it in one run of octets with two of the caller's, for hashing: another tuple has others.
    pub(crate) fn octets(self, prefix: u16) -> [u8; 40] {
        let mut octets = [0; 40];
        octets[..2].copy_from_slice(&prefix.to_ne_bytes());
        octets[2] = self.protocol.number();
        octets[4..6].copy_from_slice(&self.src.port.to_ne_bytes());
        octets[6..8].copy_from_slice(&self.dst.port.to_ne_bytes());
        let (src, dst) = octets[8..].split_at_mut(16);
        for (at, addr) in [(src, self.src.addr), (dst, self.dst.addr)] {
            match addr {
                IpAddr::V4(addr) => at[..4].copy_from_slice(&addr.octets()),
                IpAddr::V6(addr) => at.copy_from_slice(&addr.octets()),
            }
        }
        octets[3] = u8::from(self.src.addr.is_ipv6()) | u8::from(self.dst.addr.is_ipv6()) << 1;
        octets
    }

    /// What an untranslated answer to this packet carries.
    #[must_use]
    pub const fn inverse(self) -> Self {
        Self { protocol: self.protocol, src: self.dst, dst: self.src }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} > {}", self.protocol, self.src, self.dst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_tuple_is_small_and_its_inverse_undoes_itself() {
        let a = TransportAddr::new(Ipv4Addr::new(172, 18, 0, 10).into(), 40_000);
        let b = TransportAddr::new("2001:db8::1".parse::<IpAddr>().unwrap(), 443);
        let tuple = Tuple::new(Protocol::Tcp, a, b);
        assert_eq!(tuple.inverse().src, b);
        assert_eq!(tuple.inverse().inverse(), tuple);
        assert!(size_of::<Tuple>() <= 44, "{}", size_of::<Tuple>());
        assert_eq!(tuple.to_string(), "tcp 172.18.0.10:40000 > [2001:db8::1]:443");
    }

    #[test]
    fn protocol_numbers_go_both_ways() {
        for number in 0..=u8::MAX {
            assert_eq!(Protocol::from_number(number).number(), number);
        }
    }
}
