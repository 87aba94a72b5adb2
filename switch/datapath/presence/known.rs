//! What a presence has: routes, name servers, MTU, and its rows for listings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use smoltcp::wire::{IpCidr, Ipv6Cidr};

use super::Presence;
use super::claim::{Claim, Own};
use super::lease::Lease;
use super::report::{AddressRow, Addressing, Change, LeaseRow, Origin, Standing};
use super::solicit::Solicit;
use crate::hop::Hop;
use crate::port::IpMtu;

/// Least MTU a DHCP server is believed: what every host must take (RFC 791 §3.2).
const LEAST_MTU_V4: u16 = 576;

impl Presence {
    /// Tells of routes, name servers and MTU if they are others than before.
    pub(super) fn compare(&mut self) {
        let (routes, dns, mtu) = (self.known_routes(), self.known_dns(), self.known_mtu());
        if std::mem::replace(&mut self.routes, routes) != self.routes {
            self.tell(Change::Routes);
        }
        if std::mem::replace(&mut self.dns, dns) != self.dns {
            self.tell(Change::Dns);
        }
        if std::mem::replace(&mut self.mtu, mtu) != self.mtu {
            self.tell(Change::Mtu);
        }
    }

    fn known_routes(&self) -> Vec<Hop> {
        let in_use = self.own.iter().filter(|own| own.claim.in_use());
        let subnets = in_use.filter(|own| own.origin != Origin::LinkLocal);
        let subnets = subnets.map(|own| network(own.address));
        let mut routes: Vec<_> = subnets
            .filter(|subnet| {
                !matches!((subnet, subnet.prefix_len()), (IpCidr::Ipv4(_), 32) | (_, 128))
            })
            .map(|to| Hop { to, via: None })
            .collect();
        if let Some(lease) = self.held_lease() {
            routes.extend_from_slice(&lease.routes);
        }
        if let (Some(solicit), Some(_)) = (&self.solicit, self.link_local()) {
            routes.extend(solicit.routes());
        }
        let v4 = given_router(&self.config.v4).filter(|_| self.speaks(false));
        let v6 = given_router(&self.config.v6).filter(|_| self.speaks(true));
        let default_v4 = IpCidr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into(), 0);
        let default_v6 = IpCidr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED).into(), 0);
        routes.extend(v4.map(|via| Hop { to: default_v4, via: Some(via) }));
        routes.extend(v6.map(|via| Hop { to: default_v6, via: Some(via) }));
        let mut seen = Vec::with_capacity(routes.len());
        for hop in routes {
            if !seen.contains(&hop) {
                seen.push(hop);
            }
        }
        seen
    }

    /// Whether an address of this family is in use.
    fn speaks(&self, v6: bool) -> bool {
        self.own
            .iter()
            .any(|own| own.claim.in_use() && matches!(own.address, IpCidr::Ipv6(_)) == v6)
    }

    fn known_dns(&self) -> Vec<IpAddr> {
        // RFC 8106 §5.3.1: DHCP's before those of routers.
        let leased = self.held_lease().map_or(&[][..], |lease| &lease.name_servers);
        let leased = leased.iter().map(|addr| IpAddr::V4(*addr));
        leased.chain(self.solicit.iter().flat_map(Solicit::name_servers)).collect()
    }

    fn known_mtu(&self) -> IpMtu {
        let leased = self.held_lease().and_then(|lease| lease.mtu);
        let leased = leased.filter(|mtu| *mtu >= LEAST_MTU_V4);
        let advertised = self.solicit.as_ref().and_then(Solicit::mtu);
        let advertised = advertised.and_then(|mtu| u16::try_from(mtu).ok());
        let least = leased.into_iter().chain(advertised).min();
        self.config.mtu.min(least.map_or(self.config.mtu, IpMtu))
    }

    /// The lease, once its address is ours.
    fn held_lease(&self) -> Option<&Lease> {
        let ours = |own: &Own| own.origin == Origin::Dhcp && own.claim.in_use();
        self.lease.as_ref()?.lease().filter(|_| self.own.iter().any(ours))
    }

    /// Our link-local address, once it is ours.
    #[must_use]
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        self.own.iter().filter(|own| own.claim.in_use()).find_map(|own| match own {
            Own { origin: Origin::LinkLocal, address: IpCidr::Ipv6(cidr), .. } => {
                Some(cidr.address())
            }
            _ => None,
        })
    }

    /// The addresses in use with their subnets' prefix lengths, those to speak from first; neither the
    /// link-local one nor what translation shows is among them.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpCidr> {
        let mut own: Vec<_> = self
            .own
            .iter()
            .filter(|own| own.claim.in_use() && own.origin != Origin::LinkLocal)
            .collect();
        own.sort_by_key(|own| own.deprecated);
        own.iter().map(|own| own.address).collect()
    }

    /// What of the addresses to be shown is to be shown to nobody now, in order: it is the segment's, and
    /// not ours.
    #[must_use]
    pub fn withheld(&self) -> &[RangeInclusive<IpAddr>] {
        self.shown.withheld()
    }

    /// Every address, those not in use, the link-local one and what is claimed to be shown, too.
    #[must_use]
    pub fn rows(&self) -> Vec<AddressRow> {
        let own = self.own.iter().map(|own| AddressRow {
            address: own.address,
            origin: own.origin,
            standing: match standing(&own.claim) {
                Standing::InUse if own.deprecated => Standing::Deprecated,
                standing => standing,
            },
            expires: own.expires,
        });
        let shown = self.shown.claims().map(|(addr, claim)| AddressRow {
            address: IpCidr::new(addr.into(), if addr.is_ipv4() { 32 } else { 128 }),
            origin: Origin::Shown,
            standing: standing(claim),
            expires: None,
        });
        own.chain(shown).collect()
    }

    /// The routes, the best first of those to one prefix: on-link subnets, what DHCP and routers have
    /// said, and default routes. [`next_hop`](crate::hop::next_hop) finds the way by them.
    #[must_use]
    pub fn routes(&self) -> &[Hop] {
        &self.routes
    }

    /// The name servers learnt, the best first.
    #[must_use]
    pub fn dns(&self) -> &[IpAddr] {
        &self.dns
    }

    /// Largest IP packet on the segment: the interface's, or less if DHCP or a router says so.
    #[must_use]
    pub const fn mtu(&self) -> IpMtu {
        self.mtu
    }

    /// The lease; `None` without DHCP.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseRow> {
        let client = self.lease.as_ref()?;
        let lease = client.lease();
        Some(LeaseRow {
            state: client.state(),
            address: lease.map(|lease| lease.address),
            server: lease.map(|lease| lease.server.into()),
            times: lease.and_then(|lease| lease.times),
        })
    }
}

fn standing(claim: &Claim) -> Standing {
    match claim {
        claim if claim.has_yielded() => Standing::Conflict,
        claim if claim.in_use() => Standing::InUse,
        _ => Standing::Tentative,
    }
}

fn given_router<A>(addressing: &Addressing<A>) -> Option<IpAddr> {
    match addressing {
        Addressing::Static { gateway, .. } => *gateway,
        Addressing::None | Addressing::Auto => None,
    }
}

/// The subnet of an address.
fn network(address: IpCidr) -> IpCidr {
    match address {
        IpCidr::Ipv4(cidr) => cidr.network().into(),
        IpCidr::Ipv6(cidr) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(cidr.prefix_len())).unwrap_or(0);
            let bits = u128::from(cidr.address()) & mask;
            Ipv6Cidr::new(bits.into(), cidr.prefix_len()).into()
        }
    }
}
