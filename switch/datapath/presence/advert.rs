//! A router advertisement as it stands in a packet.
//!
//! Read RFC 4861 §4.2, §4.6 and §6.1.2 (what must be verified), RFC 4191 §2 (preference, routes) and
//! RFC 8106 §5.1 (name servers). smoltcp's reading keeps one prefix and knows neither routes nor
//! name servers, so options are walked here, each with its length checked before a field is read.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::time::Duration;
use smoltcp::wire::Ipv6Cidr;

use crate::drop::DropReason;
use crate::packet::{Packet, is_link_local_v6};

/// ICMPv6 type (RFC 4861 §4.2).
pub(crate) const ADVERTISEMENT: u8 = 134;

/// How a router asks to be chosen (RFC 4191 §2.1); the better is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Preference {
    Low,
    Medium,
    High,
}

impl Preference {
    /// Of the two bits behind three others; `None` for the reserved value.
    const fn read(octet: u8) -> Option<Self> {
        match octet >> 3 & 3 {
            0b00 => Some(Self::Medium),
            0b01 => Some(Self::High),
            0b11 => Some(Self::Low),
            _ => None,
        }
    }
}

/// A lifetime; `None` has no end (0xffffffff).
pub(crate) type Lifetime = Option<Duration>;

/// The head of an advertisement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advert<'a> {
    /// The router's link-local address.
    pub(crate) router: Ipv6Addr,
    /// As a default router; zero: not as one.
    pub(crate) lifetime: Duration,
    pub(crate) preference: Preference,
    options: &'a [u8],
}

/// What an option says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Prefix {
        prefix: Ipv6Cidr,
        on_link: bool,
        autonomous: bool,
        valid: Lifetime,
        preferred: Lifetime,
    },
    Mtu(u32),
    Route {
        to: Ipv6Cidr,
        preference: Preference,
        lifetime: Lifetime,
    },
    NameServers {
        addrs: &'a [[u8; 16]],
        lifetime: Lifetime,
    },
}

impl<'a> Advert<'a> {
    /// Reads `packet`, whose checksum was verified, of `frame`; it is an ICMPv6 message of type
    /// [`ADVERTISEMENT`].
    ///
    /// # Errors
    ///
    /// [`DropReason::BadNeighbour`] if it fails a check of RFC 4861 §6.1.2, or comes behind extension
    /// headers: no router sends such, but whoever evades a guard does (RFC 7113).
    pub(crate) fn read(packet: &Packet, frame: &'a [u8]) -> Result<Self, DropReason> {
        let checked = || {
            let IpAddr::V6(router) = packet.src else { return None };
            let (head, options) = packet.transport(frame).split_first_chunk::<16>()?;
            let direct = packet.transport == Packet::IP + 40;
            if !is_link_local_v6(router) || packet.hop_limit != 255 || head[1] != 0 || !direct {
                return None;
            }
            let mut rest = options;
            while !rest.is_empty() {
                (_, rest) = split_option(rest)?;
            }
            let seconds = u64::from(u16::from_be_bytes([head[6], head[7]]));
            Some(Self {
                router,
                lifetime: Duration::from_secs(seconds),
                preference: Preference::read(head[5]).unwrap_or(Preference::Medium),
                options,
            })
        };
        checked().ok_or(DropReason::BadNeighbour)
    }

    /// What its options say, those not understood left out.
    pub(crate) fn said(&self) -> impl Iterator<Item = Said<'a>> + use<'a> {
        let mut rest = self.options;
        std::iter::from_fn(move || {
            let (option, tail) = split_option(rest)?;
            rest = tail;
            Some(understand(option))
        })
        .flatten()
    }
}

/// The first option and what follows it; `None` if it is not whole or has no length.
fn split_option(options: &[u8]) -> Option<(&[u8], &[u8])> {
    match 8 * usize::from(*options.get(1)?) {
        0 => None,
        len => options.split_at_checked(len),
    }
}

fn understand(option: &[u8]) -> Option<Said<'_>> {
    const PREFIX: u8 = 3;
    const MTU: u8 = 5;
    const ROUTE: u8 = 24;
    const NAME_SERVERS: u8 = 25;
    match option[0] {
        PREFIX if option.len() == 32 && option[2] <= 128 => Some(Said::Prefix {
            prefix: network(option[2], &option[16..]),
            on_link: option[3] & 0x80 != 0,
            autonomous: option[3] & 0x40 != 0,
            valid: lifetime(&option[4..])?,
            preferred: lifetime(&option[8..])?,
        }),
        MTU if option.len() == 8 => Some(Said::Mtu(be32(&option[4..])?)),
        // As many octets of the prefix as its length needs (RFC 4191 §2.3).
        ROUTE if option[2] <= 128 && option.len() <= 24 => {
            let needed = 8 + usize::from(option[2]).div_ceil(64) * 8;
            (option.len() >= needed).then_some(())?;
            Some(Said::Route {
                to: network(option[2], &option[8..]),
                preference: Preference::read(option[3])?,
                lifetime: lifetime(&option[4..])?,
            })
        }
        NAME_SERVERS if option.len() >= 24 => Some(Said::NameServers {
            addrs: option[8..].as_chunks().0,
            lifetime: lifetime(&option[4..])?,
        }),
        _ => None,
    }
}

/// The prefix of `len` bits, 128 at most, that `octets` begin with; the rest is zero.
fn network(len: u8, octets: &[u8]) -> Ipv6Cidr {
    let mut whole = [0; 16];
    let given = octets.len().min(16);
    whole[..given].copy_from_slice(&octets[..given]);
    let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    Ipv6Cidr::new(Ipv6Addr::from(u128::from_be_bytes(whole) & mask), len)
}

fn lifetime(octets: &[u8]) -> Option<Lifetime> {
    let seconds = be32(octets)?;
    Some((seconds != u32::MAX).then(|| Duration::from_secs(seconds.into())))
}

fn be32(octets: &[u8]) -> Option<u32> {
    octets.first_chunk().map(|word| u32::from_be_bytes(*word))
}
