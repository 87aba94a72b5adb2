//! The host's side of a network: its addresses and routes, and our interface among them.
//!
//! With CAP_NET_ADMIN in our own namespace each network gets a host port: a TAP with the gateway's
//! addresses, whose connected route lets the host reach containers by their own addresses as docker0
//! does. Without, the network works all the same, and the host reaches what is published.

use std::net::IpAddr;

use datapath::{IpMtu, MacAddr, Offloads, PortRole};
use ipnet::IpNet;
use netns::{Netns, Opened};
use worker::{NetworkId, PortConfig, Switch};

use crate::keeper::Keeper;
use crate::log::log;
use crate::network::{HostPort, Network};
use crate::subnet::Taken;

/// The host's addresses that are neither loopback nor `own`; none where the kernel does not tell.
pub(crate) fn addresses(own: &[IpAddr]) -> Vec<IpAddr> {
    let all = netns::host_addresses().unwrap_or_else(|error| {
        log!("read the host's addresses: {error:#}");
        Vec::new()
    });
    let mut addresses: Vec<_> =
        all.into_iter().filter(|addr| !addr.is_loopback() && !own.contains(addr)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The host's routes but for default ones, loopback's, IPv6 link-local and those of `own_interfaces`.
pub(crate) fn connected_routes(own_interfaces: &[String]) -> Vec<Taken> {
    let routes = netns::routes().unwrap_or_else(|error| {
        log!("read the host's routes: {error:#}");
        Vec::new()
    });
    let counts = |route: &netns::Route| {
        let link_local =
            matches!(route.dst.addr(), IpAddr::V6(addr) if addr.is_unicast_link_local());
        route.dst.prefix_len() > 0
            && !link_local
            && !route.dst.addr().is_loopback()
            && !own_interfaces.contains(&route.ifname)
    };
    let routes = routes.into_iter().filter(counts);
    routes.map(|route| Taken::Route { subnet: route.dst, interface: route.ifname }).collect()
}

/// What a host port is made of.
#[derive(Debug)]
pub(crate) struct Wanted {
    ifnames: [String; 2],
    mac: MacAddr,
    mtu: u16,
    addresses: Vec<IpNet>,
    network: String,
}

/// The host port `network` should have, if any.
pub(crate) fn wanted(network: &Network) -> Option<Wanted> {
    let gateway = network.gateway().filter(|_| network.wants_host_port)?;
    // Names that begin alike share a short one; the id's beginning does instead.
    let by_id = format!("pt-{}", network.id.get(..11).unwrap_or("0"));
    Some(Wanted {
        ifnames: [network.host_ifname(), by_id],
        mac: gateway.mac,
        mtu: network.mtu,
        addresses: network.own_addresses(),
        network: network.name.clone(),
    })
}

/// Makes the host port `network` should have; `None` where there is none to be or none can be.
pub(crate) fn add_port(switch: &Switch, network: &Network) -> Option<HostPort> {
    make(switch, network.number, &wanted(network)?)
}

/// Makes a host port. What stands against it is noted in the log, and the network goes without.
pub(crate) fn make(switch: &Switch, network: NetworkId, wanted: &Wanted) -> Option<HostPort> {
    if !may_configure() {
        return None;
    }
    for ifname in &wanted.ifnames {
        let config = netns::EndpointConfig {
            ifname: ifname.clone(),
            mac: wanted.mac.0,
            mtu: wanted.mtu,
            addresses: wanted.addresses.clone(),
            gateways: Vec::new(),
            queues: u16::try_from(switch.workers()).unwrap_or(u16::MAX),
            kind: netns::Kind::Tap,
        };
        let device = match Netns::current().and_then(|here| netns::attach(&here, &config)) {
            Ok(device) => device,
            Err(netns::Error::InterfaceExists { .. }) => continue,
            Err(error) => {
                log!("network {} has no host port: {error:#}", wanted.network);
                return None;
            }
        };
        let keeper = Keeper::of(&device);
        let port = PortConfig {
            role: PortRole::Host,
            mtu: IpMtu(wanted.mtu),
            mac: wanted.mac,
            addresses: wanted.addresses.iter().map(IpNet::addr).collect(),
            offloads: offloads(device.opened),
            queues: device.queues,
        };
        return match switch.add_port(network, port) {
            Ok(port) => Some(HostPort { port, ifname: ifname.clone(), _keeper: keeper }),
            Err(error) => {
                log!("network {} has no host port: {error}", wanted.network);
                None
            }
        };
    }
    log!("network {} has no host port: interface {} is taken", wanted.network, wanted.ifnames[0]);
    None
}

/// How the switch reads what was opened.
pub(crate) const fn offloads(opened: Opened) -> Offloads {
    match opened {
        Opened::TapOffload | Opened::Packet => Offloads::Header,
        Opened::TapPlain => Offloads::None,
    }
}

/// Whether we may make interfaces where we are: CAP_NET_ADMIN, bit 12 of `CapEff`
/// (`proc_pid_status(5)`, `capabilities(7)`). Whether this namespace is one it counts in shows when
/// the interface is made.
fn may_configure() -> bool {
    const CAP_NET_ADMIN: u64 = 1 << 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & CAP_NET_ADMIN != 0)
}
