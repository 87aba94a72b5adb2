//! Which subnet a network may have.
//!
//! Pure. A subnet that overlaps another network's, or a connected route of the host, would make
//! somebody unreachable, so it is refused with the name of who has it (RFC 4787 REQ-7). Default routes
//! overlap everything and do not count.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// A subnet in use, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A network of ours has it.
    Network {
        /// Its subnet.
        subnet: IpNet,
        /// Its name.
        name: String,
    },
    /// The host reaches it by an interface.
    Route {
        /// The route's destination.
        subnet: IpNet,
        /// The interface's name.
        interface: String,
    },
    /// Our own station on a segment has an address in it.
    Segment {
        /// The address's subnet.
        subnet: IpNet,
        /// The host's interface there.
        interface: String,
    },
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { subnet, name } => write!(f, "{subnet} of network {name}"),
            Self::Route { subnet, interface } => {
                write!(f, "the host's route {subnet} dev {interface}")
            }
            Self::Segment { subnet, interface } => {
                write!(f, "{subnet}, the segment of raw:{interface}")
            }
        }
    }
}

impl Taken {
    /// What is taken.
    #[must_use]
    pub const fn subnet(&self) -> IpNet {
        match self {
            Self::Network { subnet, .. }
            | Self::Route { subnet, .. }
            | Self::Segment { subnet, .. } => *subnet,
        }
    }
}

/// Why a subnet cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// It cannot be read.
    #[error("subnet {0:?} is malformed; write an address and a prefix length, as in 172.18.0.0/16")]
    Malformed(String),
    /// It has no room for a gateway and a container, or is too large to be meant.
    #[error(
        "subnet {0} has no room for a gateway and a container; use a prefix of /30 (IPv6: /126) or shorter"
    )]
    TooSmall(IpNet),
    /// Addresses that no network can have.
    #[error("subnet {0} is {1}; use a private one, as in 172.18.0.0/16 or fd00:1::/64")]
    NotUnicast(IpNet, &'static str),
    /// One subnet of each family is what a network has.
    #[error("two {0} subnets: a network has one of each family; leave one --subnet out")]
    SameFamily(&'static str),
    /// Another network has it.
    #[error("subnet {subnet} overlaps {other} of network {name}; {}", advice(.free))]
    Network {
        /// What was asked for.
        subnet: IpNet,
        /// What is there.
        other: IpNet,
        /// Whose.
        name: String,
        /// One that is free.
        free: Option<IpNet>,
    },
    /// The host has it.
    #[error("subnet {subnet} overlaps the host's route {other} dev {interface}; {}", advice(.free))]
    Route {
        /// What was asked for.
        subnet: IpNet,
        /// What is there.
        other: IpNet,
        /// The host's interface.
        interface: String,
        /// One that is free.
        free: Option<IpNet>,
    },
    /// A segment has it.
    #[error("subnet {subnet} overlaps {other}, the segment of raw:{interface}; {}", advice(.free))]
    Segment {
        /// What was asked for.
        subnet: IpNet,
        /// What is there.
        other: IpNet,
        /// The host's interface there.
        interface: String,
        /// One that is free.
        free: Option<IpNet>,
    },
    /// The part to be handed out lies in no subnet.
    #[error("ip-range {0} is in no subnet of the network; choose one within --subnet")]
    RangeOutside(IpNet),
    /// The part to be handed out cannot be read.
    #[error(
        "ip-range {0:?} is malformed; write an address and a prefix length, as in 172.18.5.0/24"
    )]
    RangeMalformed(String),
    /// Nothing is left of docker's own pools.
    #[error("no free subnet is left in 172.17.0.0/12 and 192.168.0.0/16; give one with --subnet")]
    Exhausted,
    /// The gateway does not lie in any subnet of the network.
    #[error("gateway {0} is in no subnet of the network; choose an address within it")]
    GatewayOutside(IpAddr),
    /// The gateway is the subnet's own or broadcast address.
    #[error(
        "gateway {0} is the first or last address of its subnet, which no station may have; choose another"
    )]
    GatewayNotAStation(IpAddr),
}

fn advice(free: &Option<IpNet>) -> String {
    match free {
        Some(free) => format!("--subnet {free} is free"),
        None => "give another with --subnet".to_owned(),
    }
}

/// Reads a subnet; host bits are cut off, as docker does.
///
/// # Errors
///
/// It is malformed, too small, or of addresses that cannot be stations'.
pub fn parse(text: &str) -> Result<IpNet, SubnetError> {
    let subnet: IpNet = text.parse().map_err(|_| SubnetError::Malformed(text.to_owned()))?;
    let subnet = subnet.trunc();
    let unusable = match subnet.network() {
        IpAddr::V4(addr) if addr.is_multicast() || addr.octets()[0] >= 240 => {
            Some("multicast or reserved")
        }
        IpAddr::V6(addr) if addr.is_multicast() => Some("multicast"),
        IpAddr::V6(addr) if addr.is_unicast_link_local() => Some("link-local"),
        addr if addr.is_loopback() => Some("loopback"),
        IpAddr::V4(addr) if addr.octets()[0] == 127 => Some("loopback"),
        addr if addr.is_unspecified() => Some("without a beginning"),
        _ => None,
    };
    if let Some(what) = unusable {
        return Err(SubnetError::NotUnicast(subnet, what));
    }
    if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
        return Err(SubnetError::TooSmall(subnet));
    }
    Ok(subnet)
}

/// Checks that nobody has any of `subnet`; the refusal names who does, and a subnet to use instead.
///
/// # Errors
///
/// Somebody does.
pub fn check_free(subnet: IpNet, taken: &[Taken]) -> Result<(), SubnetError> {
    let Some(clash) = taken.iter().find(|taken| overlap(taken.subnet(), subnet)) else {
        return Ok(());
    };
    let free = if matches!(subnet, IpNet::V4(_)) { free_ipv4(taken).ok() } else { None };
    Err(match clash.clone() {
        Taken::Network { subnet: other, name } => {
            SubnetError::Network { subnet, other, name, free }
        }
        Taken::Route { subnet: other, interface } => {
            SubnetError::Route { subnet, other, interface, free }
        }
        Taken::Segment { subnet: other, interface } => {
            SubnetError::Segment { subnet, other, interface, free }
        }
    })
}

/// Reads a part of a subnet; host bits are cut off.
///
/// # Errors
///
/// It is malformed.
pub fn range(text: &str) -> Result<IpNet, SubnetError> {
    let range: Result<IpNet, _> = text.parse();
    range.map(|range| range.trunc()).map_err(|_| SubnetError::RangeMalformed(text.to_owned()))
}

/// The first of docker's pools that nobody has: 172.17.0.0/16 to 172.31.0.0/16, then the sixteen /20
/// of 192.168.0.0/16.
///
/// # Errors
///
/// All are taken.
pub fn free_ipv4(taken: &[Taken]) -> Result<IpNet, SubnetError> {
    pools()
        .find(|subnet| !taken.iter().any(|taken| overlap(taken.subnet(), *subnet)))
        .ok_or(SubnetError::Exhausted)
}

/// The first pool before `chosen` that is not a network's, and who has kept it from being chosen (RFC 4787
/// REQ-7): to be said to whoever did not choose.
#[must_use]
pub fn gave_way_to(chosen: IpNet, taken: &[Taken]) -> Option<(IpNet, &Taken)> {
    let clash = |pool: IpNet| taken.iter().find(move |taken| overlap(taken.subnet(), pool));
    let outside = |pool: IpNet| clash(pool).filter(|taken| !matches!(taken, Taken::Network { .. }));
    pools().take_while(|pool| *pool != chosen).find_map(|pool| Some((pool, outside(pool)?)))
}

fn pools() -> impl Iterator<Item = IpNet> {
    let sixteens = (17..=31).map(|second| (Ipv4Addr::new(172, second, 0, 0), 16));
    let twenties = (0..16).map(|third| (Ipv4Addr::new(192, 168, third * 16, 0), 20));
    sixteens
        .chain(twenties)
        .filter_map(|(addr, prefix)| Ipv4Net::new(addr, prefix).ok())
        .map(IpNet::V4)
}

/// Whether two subnets have an address in common.
#[must_use]
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// `IPv4` or `IPv6`.
#[must_use]
pub const fn family(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        parse(text).unwrap()
    }

    fn network(subnet: &str, name: &str) -> Taken {
        Taken::Network { subnet: net(subnet), name: name.to_owned() }
    }

    fn route(subnet: &str, interface: &str) -> Taken {
        Taken::Route { subnet: net(subnet), interface: interface.to_owned() }
    }

    #[test]
    fn pools_come_in_dockers_order() {
        assert_eq!(free_ipv4(&[]), Ok(net("172.17.0.0/16")));
        let mut taken = vec![network("172.17.0.0/16", "bridge")];
        assert_eq!(free_ipv4(&taken), Ok(net("172.18.0.0/16")));
        taken.push(route("172.18.4.0/24", "vpn0"));
        assert_eq!(free_ipv4(&taken), Ok(net("172.19.0.0/16")));
        taken.push(route("172.16.0.0/12", "vpn0"));
        assert_eq!(free_ipv4(&taken), Ok(net("192.168.0.0/20")));
        taken.push(route("192.168.0.0/16", "lan0"));
        assert_eq!(free_ipv4(&taken), Err(SubnetError::Exhausted));
    }

    #[test]
    fn a_clash_names_who_has_it_and_what_is_free() {
        let taken = [network("172.17.0.0/16", "bridge"), route("172.18.0.0/20", "vpn0")];
        let said = check_free(net("172.17.3.0/24"), &taken).unwrap_err().to_string();
        assert_eq!(
            said,
            "subnet 172.17.3.0/24 overlaps 172.17.0.0/16 of network bridge; --subnet 172.19.0.0/16 is free"
        );
        let said = check_free(net("172.18.0.0/16"), &taken).unwrap_err().to_string();
        assert_eq!(
            said,
            "subnet 172.18.0.0/16 overlaps the host's route 172.18.0.0/20 dev vpn0; --subnet 172.19.0.0/16 is free"
        );
        assert_eq!(check_free(net("10.0.0.0/8"), &taken), Ok(()));
        assert_eq!(check_free(net("fd00::/64"), &taken), Ok(()));
    }

    #[test]
    fn a_subnet_is_cut_to_its_prefix_and_must_hold_stations() {
        assert_eq!(net("172.18.0.5/16"), net("172.18.0.0/16"));
        assert!(matches!(parse("172.18.0.0"), Err(SubnetError::Malformed(_))));
        assert!(matches!(parse("172.18.0.0/33"), Err(SubnetError::Malformed(_))));
        assert!(matches!(parse("172.18.0.0/31"), Err(SubnetError::TooSmall(_))));
        assert!(matches!(parse("fd00::/127"), Err(SubnetError::TooSmall(_))));
        for text in [
            "224.0.0.0/8",
            "127.0.0.0/8",
            "127.1.0.0/16",
            "0.0.0.0/0",
            "::/0",
            "fe80::/64",
            "ff02::/16",
            "240.0.0.0/8",
        ] {
            assert!(matches!(parse(text), Err(SubnetError::NotUnicast(..))), "{text}");
        }
    }
}
