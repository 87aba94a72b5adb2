//! Which address an endpoint gets.
//!
//! Pure, and without a memory of its own: what is in use is what the network's endpoints have, so an
//! address comes free with its endpoint and none can leak. The lowest free one is taken, as docker
//! does: .2, .3, … behind a gateway at .1.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// A subnet of a network, and what of it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The subnet.
    pub subnet: IpNet,
    /// The part of it that is handed out unasked (`fixed-cidr`); lies within `subnet`.
    pub range: IpNet,
    /// Addresses of the gateway and of the default router; never handed out.
    pub reserved: Vec<IpAddr>,
}

/// Why an address cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// It is not of the network.
    #[error(
        "address {addr} is outside {subnet}, the subnet of network {network}; choose one within it"
    )]
    Outside {
        /// What was asked for.
        addr: IpAddr,
        /// The subnet.
        subnet: IpNet,
        /// The network.
        network: String,
    },
    /// The network has no subnet of that family.
    #[error(
        "address {addr}: network {network} has no {family} subnet; \
         make one with `pontoon network create --subnet`"
    )]
    NoSubnet {
        /// What was asked for.
        addr: IpAddr,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The network.
        network: String,
    },
    /// It is the gateway's.
    #[error(
        "address {addr} is the gateway of network {network}; choose another, or leave --ip out"
    )]
    Gateway {
        /// What was asked for.
        addr: IpAddr,
        /// The network.
        network: String,
    },
    /// It is the subnet's own or its broadcast address.
    #[error(
        "address {addr} is the first or last of {subnet}, which no station may have; choose another"
    )]
    NotAStation {
        /// What was asked for.
        addr: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// Another endpoint has it.
    #[error(
        "address {addr} is in use by endpoint {by} on network {network}; choose another, or leave --ip out"
    )]
    InUse {
        /// What was asked for.
        addr: IpAddr,
        /// Who has it.
        by: String,
        /// The network.
        network: String,
    },
    /// Nothing is left.
    #[error(
        "network {network} has no free address left in {range}; make a larger one with `pontoon network create --subnet`"
    )]
    Exhausted {
        /// Where addresses are taken from.
        range: IpNet,
        /// The network.
        network: String,
    },
}

impl Pool {
    /// A pool of the whole of `subnet`.
    #[must_use]
    pub const fn new(subnet: IpNet, reserved: Vec<IpAddr>) -> Self {
        Self { subnet, range: subnet, reserved }
    }

    /// The lowest free address.
    ///
    /// The first station's place, .1, stays free for a gateway even while there is none.
    ///
    /// # Errors
    ///
    /// All are in use.
    pub fn next(&self, network: &str, used: &BTreeSet<IpAddr>) -> Result<IpAddr, IpamError> {
        let first = number(self.range.network());
        let last = number(self.range.broadcast());
        let gateways_place = number(self.subnet.network()) + 1;
        (first..=last)
            .filter(|&at| at != gateways_place || !self.reserved.is_empty())
            .map(|at| address(at, self.subnet))
            .filter(|addr| self.is_station(*addr) && !self.reserved.contains(addr))
            .find(|addr| !used.contains(addr))
            .ok_or_else(|| IpamError::Exhausted { range: self.range, network: network.to_owned() })
    }

    /// Whether `addr` may be given to an endpoint that asks for it; `owner` tells who has it now.
    ///
    /// # Errors
    ///
    /// It is outside, the gateway's, no station's, or in use.
    pub fn check(
        &self,
        addr: IpAddr,
        network: &str,
        owner: impl FnOnce(IpAddr) -> Option<String>,
    ) -> Result<(), IpamError> {
        let network = network.to_owned();
        if !self.subnet.contains(&addr) {
            Err(IpamError::Outside { addr, subnet: self.subnet, network })
        } else if self.reserved.contains(&addr) {
            Err(IpamError::Gateway { addr, network })
        } else if !self.is_station(addr) {
            Err(IpamError::NotAStation { addr, subnet: self.subnet })
        } else if let Some(by) = owner(addr) {
            Err(IpamError::InUse { addr, by, network })
        } else {
            Ok(())
        }
    }

    /// Neither the subnet's own address nor (IPv4) its broadcast address (RFC 1122 §3.2.1.3), nor
    /// (IPv6) the subnet-router anycast address (RFC 4291 §2.6.1).
    #[must_use]
    pub fn is_station(&self, addr: IpAddr) -> bool {
        addr != self.subnet.network() && (addr.is_ipv6() || addr != self.subnet.broadcast())
    }

    /// The first address of the subnet: docker's choice of a gateway.
    #[must_use]
    pub fn first_station(&self) -> IpAddr {
        address(number(self.subnet.network()) + 1, self.subnet)
    }
}

const fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits() as u128,
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// The address of `number` in the family of `subnet`.
fn address(number: u128, subnet: IpNet) -> IpAddr {
    match subnet {
        // Numbers come from inside an IPv4 subnet, so the upper bits are zero.
        #[allow(clippy::cast_possible_truncation)]
        IpNet::V4(_) => IpAddr::V4((number as u32).into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pool(subnet: &str, reserved: &[&str]) -> Pool {
        Pool::new(subnet.parse().unwrap(), reserved.iter().map(|text| addr(text)).collect())
    }

    fn take(pool: &Pool, used: &mut BTreeSet<IpAddr>) -> IpAddr {
        let next = pool.next("net0", used).unwrap();
        used.insert(next);
        next
    }

    #[test]
    fn addresses_come_in_order_and_come_back() {
        let pool = pool("172.17.0.0/16", &["172.17.0.1"]);
        let mut used = BTreeSet::new();
        assert_eq!(take(&pool, &mut used), addr("172.17.0.2"));
        assert_eq!(take(&pool, &mut used), addr("172.17.0.3"));
        used.remove(&addr("172.17.0.2"));
        assert_eq!(take(&pool, &mut used), addr("172.17.0.2"));
        assert_eq!(take(&pool, &mut used), addr("172.17.0.4"));
    }

    #[test]
    fn the_gateways_place_is_kept_while_there_is_none() {
        assert_eq!(pool("10.0.0.0/24", &[]).next("n", &BTreeSet::new()), Ok(addr("10.0.0.2")));
        let high = pool("10.0.0.0/24", &["10.0.0.254"]);
        assert_eq!(high.next("n", &BTreeSet::new()), Ok(addr("10.0.0.1")));
        assert_eq!(high.first_station(), addr("10.0.0.1"));
    }

    #[test]
    fn a_full_pool_says_so() {
        let pool = pool("10.0.0.0/30", &["10.0.0.1"]);
        let mut used = BTreeSet::new();
        assert_eq!(take(&pool, &mut used), addr("10.0.0.2"));
        let full = pool.next("n0", &used).unwrap_err();
        assert!(full.to_string().contains("network n0 has no free address left in 10.0.0.0/30"));
    }

    #[test]
    fn a_range_bounds_what_is_handed_out_but_not_what_is_asked_for() {
        let mut pool = pool("192.168.1.0/24", &["192.168.1.1"]);
        pool.range = "192.168.1.128/31".parse().unwrap();
        let mut used = BTreeSet::new();
        assert_eq!(take(&pool, &mut used), addr("192.168.1.128"));
        assert_eq!(take(&pool, &mut used), addr("192.168.1.129"));
        assert!(pool.next("n", &used).is_err());
        assert_eq!(pool.check(addr("192.168.1.7"), "n", |_| None), Ok(()));
    }

    #[test]
    fn ipv6_counts_from_two_in_any_prefix() {
        let pool = pool("fd00:1::/64", &["fd00:1::1"]);
        let mut used = BTreeSet::new();
        assert_eq!(take(&pool, &mut used), addr("fd00:1::2"));
        assert_eq!(take(&pool, &mut used), addr("fd00:1::3"));
        assert_eq!(
            pool.check(addr("fd00:1::"), "n", |_| None)
                .map_err(|e| e.to_string().contains("first or last")),
            Err(true)
        );
        assert_eq!(pool.check(addr("fd00:1:0:0:ffff:ffff:ffff:ffff"), "n", |_| None), Ok(()));
    }

    #[test]
    fn an_address_asked_for_is_checked() {
        let pool = pool("172.18.0.0/16", &["172.18.0.1"]);
        let check = |text| pool.check(addr(text), "net0", |_| None);
        assert_eq!(check("172.18.0.10"), Ok(()));
        assert!(matches!(check("172.19.0.1"), Err(IpamError::Outside { .. })));
        assert!(matches!(check("fd00::1"), Err(IpamError::Outside { .. })));
        assert!(matches!(check("172.18.0.1"), Err(IpamError::Gateway { .. })));
        assert!(matches!(check("172.18.0.0"), Err(IpamError::NotAStation { .. })));
        assert!(matches!(check("172.18.255.255"), Err(IpamError::NotAStation { .. })));
        let used = pool.check(addr("172.18.0.10"), "net0", |_| Some("c1".into())).unwrap_err();
        assert!(used.to_string().contains("172.18.0.10 is in use by endpoint c1 on network net0"));
    }
}
