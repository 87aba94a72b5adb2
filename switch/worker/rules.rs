//! The rules of a segment's NAT, from what was configured and what addresses the station has.

use std::net::IpAddr;

use datapath::{Addressing, PortId};
use nat::{Destination, Match, Npt, Protocol, Rule, Rules, Source, Zone};
use smoltcp::wire::{IpCidr, Ipv4Cidr, Ipv6Cidr};

use crate::segments::{NatPublication, SegmentConfig};

/// The rules: published ports at each of the station's addresses, so that who comes from a container finds
/// them as well and nobody else's port is taken; and what sources are shown as.
pub(crate) fn rules(
    config: &SegmentConfig,
    published: &[NatPublication],
    addresses: &[IpCidr],
    zone: Zone,
) -> Rules {
    let mut prerouting = Vec::new();
    for published in published {
        let own = addresses.iter().map(|own| IpAddr::from(own.address()));
        let here = own.filter(|own| published.listen.is_none_or(|listen| listen == *own));
        for own in here.chain(published.listen.filter(|listen| shown(config, *listen))) {
            let same = published.to.iter().find(|to| to.is_ipv4() == own.is_ipv4());
            let other = || published.to.iter().find(|to| to.is_ipv4() && config.nat46.is_some());
            let Some(to) = same.or_else(other) else { continue };
            let inside = Zone(published.network.0);
            let matches = Match {
                dst: Some(host(own)),
                protocol: Some(published.protocol),
                dst_ports: published.ports.clone(),
                ..Match::ANY
            };
            let action = Destination::To {
                addr: *to,
                first_port: Some(published.to_port),
                account: published.port.account(inside),
                zone: inside,
            };
            prerouting.push(Rule::new(matches, action));
        }
    }
    let mut postrouting = Vec::new();
    if config.nat {
        let leaving = Match { to: Some(zone), ..Match::ANY };
        for range in &config.snat_to {
            let of_family = Match { src: Some(everything(*range.start())), ..leaving.clone() };
            postrouting.push(Rule::new(of_family, Source::To(range.clone())));
        }
        postrouting.push(Rule::new(leaving, Source::Masquerade));
    }
    Rules::new(prerouting, postrouting)
}

fn shown(config: &SegmentConfig, addr: IpAddr) -> bool {
    config.snat_to.iter().any(|range| range.contains(&addr))
}

/// The one address.
fn host(addr: IpAddr) -> IpCidr {
    IpCidr::new(addr.into(), if addr.is_ipv4() { 32 } else { 128 })
}

/// Every address of the family.
pub(crate) fn everything(family: IpAddr) -> IpCidr {
    match family {
        IpAddr::V4(_) => IpCidr::Ipv4(Ipv4Cidr::new([0; 4].into(), 0)),
        IpAddr::V6(_) => IpCidr::Ipv6(Ipv6Cidr::new([0; 16].into(), 0)),
    }
}

/// What contradicts itself in a configuration, in words.
pub(crate) fn check(config: &SegmentConfig) -> Result<(), String> {
    let router = |gateway: &Option<IpAddr>, on_link: &dyn Fn(IpAddr) -> bool, v4: bool| {
        let Some(router) = *gateway else { return Ok(()) };
        if router.is_ipv4() != v4 {
            return Err(format!("the router {router} is of the other IP version"));
        }
        match on_link(router) {
            true => Ok(()),
            false => Err(format!("no subnet of the station's has its router {router}")),
        }
    };
    if let Addressing::Static { addresses, gateway } = &config.v4 {
        let near = |addr: IpAddr| match addr {
            IpAddr::V4(addr) => addresses.iter().any(|own| own.contains_addr(&addr)),
            IpAddr::V6(_) => false,
        };
        router(gateway, &near, true)?;
    }
    if let Addressing::Static { addresses, gateway } = &config.v6 {
        let near = |addr: IpAddr| match addr {
            IpAddr::V6(addr) => {
                datapath::packet::is_link_local_v6(addr)
                    || addresses.iter().any(|own| own.contains_addr(&addr))
            }
            IpAddr::V4(_) => false,
        };
        router(gateway, &near, false)?;
    }
    for range in &config.snat_to {
        let (first, last) = (range.start(), range.end());
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(format!("{first}-{last} is no range of addresses"));
        }
        let same = config.snat_to.iter().filter(|other| other.start().is_ipv4() == first.is_ipv4());
        if same.count() > 1 {
            return Err("one range of addresses to show is enough for an IP version".to_owned());
        }
    }
    for (inside, outside) in &config.npt {
        if Npt::new(Zone(0), *inside, *outside).is_none() {
            return Err(format!("{inside}={outside}: as long as each other, at most /64"));
        }
    }
    Ok(())
}

/// Why a port cannot be published so, in words.
pub(crate) fn check_published(published: &NatPublication) -> Result<(), String> {
    let NatPublication { protocol, ports, to, to_port, .. } = published;
    let has_ports = !matches!(protocol, Protocol::Icmp | Protocol::Icmpv6);
    let width = ports.end().saturating_sub(*ports.start());
    if !has_ports || ports.is_empty() || *ports.start() == 0 {
        return Err(format!("{protocol} {}-{}: no ports", ports.start(), ports.end()));
    }
    if *to_port == 0 || to_port.checked_add(width).is_none() {
        return Err(format!("port {to_port} and {width} more: beyond 65535"));
    }
    if to.is_empty() || published.port == PortId::GATEWAY {
        return Err("published for no container".to_owned());
    }
    Ok(())
}
