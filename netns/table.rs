//! What the calling thread's namespace has: interfaces, addresses, routes, neighbours.
//!
//! Read by dumps of rtnetlink(7), each of one moment, but no two of the same one. An object the
//! decoder does not understand (a newer kernel's) is left out rather than spoiling the rest.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ifname::index_of;
use crate::netlink::Rtnl;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its number inside the namespace.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; `None` where it has none of six octets.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in octets.
    pub mtu: u32,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Its addresses with their prefixes.
    pub addresses: Vec<IpNet>,
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; a prefix of length 0 is the default route.
    pub dst: IpNet,
    /// Next hop; `None` on a connected network, and for a multipath route.
    pub via: Option<IpAddr>,
    /// Out of which interface; empty for a multipath route.
    pub ifname: String,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Metric; of several routes to one prefix the lowest wins.
    pub priority: u32,
}

/// A neighbour: what `ip neigh` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The interface it is on.
    pub ifname: String,
    /// Its IP address.
    pub address: IpAddr,
    /// Its hardware address, once known.
    pub lladdr: Option<[u8; 6]>,
    /// State in the words of `ip-neighbour(8)`: `REACHABLE`, `STALE`, `INCOMPLETE`, `FAILED` …
    pub state: String,
}

/// What a namespace has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its interfaces with their addresses.
    pub interfaces: Vec<Interface>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// Its neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// All of it.
pub(crate) fn look() -> Result<View, Error> {
    Ok(View { interfaces: interfaces()?, routes: routes()?, neighbours: all_neighbours()? })
}

/// All interfaces, loopback included.
///
/// # Errors
/// Where the kernel does not answer.
pub fn interfaces() -> Result<Vec<Interface>, Error> {
    let mut interfaces: Vec<_> = links()?.iter().map(interface).collect();
    for (ifindex, address) in addresses()? {
        if let Some(found) = interfaces.iter_mut().find(|found| found.ifindex == ifindex) {
            found.addresses.push(address);
        }
    }
    Ok(interfaces)
}

/// All addresses of all interfaces, loopback's included.
///
/// # Errors
/// Where the kernel does not answer.
pub fn host_addresses() -> Result<Vec<IpAddr>, Error> {
    Ok(addresses()?.into_iter().map(|(_, address)| address.addr()).collect())
}

/// Unicast routes of the main table, both families.
///
/// # Errors
/// Where the kernel does not answer.
pub fn routes() -> Result<Vec<Route>, Error> {
    let names = names()?;
    let answers = dump("read the routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    Ok(answers
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => route(message, &names),
            _ => None,
        })
        .collect())
}

/// Neighbours on an interface, without those that need no resolving (group addresses).
///
/// # Errors
/// [`Error::NoSuchInterface`]
pub fn neighbours(ifname: &str) -> Result<Vec<Neighbour>, Error> {
    index_of(ifname)?;
    let all = all_neighbours()?.into_iter();
    Ok(all.filter(|neighbour| neighbour.ifname == ifname).collect())
}

/// Neighbours on every interface.
///
/// # Errors
/// Where the kernel does not answer.
pub fn all_neighbours() -> Result<Vec<Neighbour>, Error> {
    let names = names()?;
    let ask = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    Ok(dump("read the neighbours", ask)?
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => neighbour(message, &names),
            _ => None,
        })
        .collect())
}

/// The name of each interface by its number.
fn names() -> Result<HashMap<u32, String>, Error> {
    Ok(links()?.iter().map(interface).map(|found| (found.ifindex, found.name)).collect())
}

pub(crate) fn links() -> Result<Vec<LinkMessage>, Error> {
    let ask = RouteNetlinkMessage::GetLink(LinkMessage::default());
    Ok(dump("read the interfaces", ask)?
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(message),
            _ => None,
        })
        .collect())
}

/// Each address with the number of its interface.
fn addresses() -> Result<Vec<(u32, IpNet)>, Error> {
    let ask = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    Ok(dump("read the addresses", ask)?
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => {
                address(message).map(|address| (message.header.index, address))
            }
            _ => None,
        })
        .collect())
}

fn dump(what: &str, ask: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
    Rtnl::open().and_then(|mut rtnl| rtnl.dump(&ask)).map_err(|refused| refused.while_trying(what))
}

fn interface(message: &LinkMessage) -> Interface {
    let mut found = Interface {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(mac) => found.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            _ => {}
        }
    }
    found
}

/// IFA_LOCAL is our own address and IFA_ADDRESS that of the far end on a point-to-point link; where
/// there is no such distinction IPv6 sends IFA_ADDRESS alone (`<linux/if_addr.h>`).
fn address(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(local.or(any)?, message.header.prefix_len).ok()
}

fn route(message: &RouteMessage, names: &HashMap<u32, String>) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut dst, mut via, mut source) = (unspecified, None, None);
    let (mut ifname, mut priority) = (String::new(), 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => via = ip(address),
            // An IPv4 route by an IPv6 next hop: RFC 5549.
            RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some((*address).into()),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(ifindex) => ifname = names.get(ifindex).cloned()?,
            RouteAttribute::Priority(metric) => priority = *metric,
            _ => {}
        }
    }
    let dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
    Some(Route { dst, via, ifname, source, priority })
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage, names: &HashMap<u32, String>) -> Option<Neighbour> {
    let ifname = names.get(&message.header.ifindex)?.clone();
    let state = match message.header.state {
        NeighbourState::Incomplete => "INCOMPLETE",
        NeighbourState::Reachable => "REACHABLE",
        NeighbourState::Stale => "STALE",
        NeighbourState::Delay => "DELAY",
        NeighbourState::Probe => "PROBE",
        NeighbourState::Failed => "FAILED",
        NeighbourState::Permanent => "PERMANENT",
        NeighbourState::None => "NONE",
        _ => return None,
    };
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    let lladdr = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => octets.as_slice().try_into().ok(),
        _ => None,
    });
    Some(Neighbour { ifname, address, lladdr, state: state.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_seen_whole() {
        let found = interfaces().expect("rtnetlink answers everybody");
        let lo = found.iter().find(|found| found.name == "lo").expect("each namespace has one");
        assert!(lo.loopback);
        assert_eq!(lo.ifindex, 1);
        assert!(lo.mtu >= 16_384);
        let all = host_addresses().expect("rtnetlink answers everybody");
        assert!(lo.addresses.iter().all(|address| all.contains(&address.addr())));
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let err = neighbours("pontoon-none").expect_err("no such interface");
        assert!(matches!(err, Error::NoSuchInterface { ifname } if ifname == "pontoon-none"));
    }
}
