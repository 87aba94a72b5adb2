//! An endpoint: a container's attachment, from reservation to its end.
//!
//! Pure. An endpoint is in the registry from the moment its name and addresses are promised, so that
//! nobody else is promised them while its interface is being made.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use datapath::{MacAddr, PortId};
use ipnet::IpNet;
use nat::Protocol;
use netns::{Netns, Target};
use worker::{NetworkId, PublishId, Stock};

use crate::api;
use crate::error::Error;
use crate::ipam::IpamError;
use crate::keeper::Keeper;
use crate::network::{Network, Subnet};
use crate::subnet::family;
use crate::{mac, names};

/// Where an endpoint stands.
///
/// ```text
///   Attaching ──▶ Up ──▶ Detaching ──▶ (gone)
///       └─▶ (gone)  └─▶ Dead ──▶ Detaching
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Promised; its interface is being made.
    Attaching,
    /// Its frames are forwarded.
    Up,
    /// Its device is gone; it waits to be detached.
    Dead(String),
    /// Being taken apart.
    Detaching,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attaching => f.write_str("attaching"),
            Self::Up => f.write_str("up"),
            Self::Dead(why) => write!(f, "dead ({why})"),
            Self::Detaching => f.write_str("detaching"),
        }
    }
}

/// A host port that leads to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// The listener; none where the port is published at a station's own address, by translation alone.
    pub(crate) id: Option<PublishId>,
    pub(crate) protocol: Protocol,
    pub(crate) listen: SocketAddr,
    pub(crate) container: u16,
    /// Every client is relayed socket to socket, its address hidden.
    pub(crate) splice: bool,
}

/// An endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) network: NetworkId,
    pub(crate) network_name: String,
    pub(crate) created: SystemTime,
    pub(crate) status: Status,
    pub(crate) target: Target,
    pub(crate) netns_inode: u64,
    /// Held for as long as the endpoint is there: what is done later is done to this one, whatever the
    /// target stands for by then, and its number is nobody else's. None before there is a promise.
    pub(crate) netns: Option<Arc<Netns>>,
    pub(crate) own_mounts: bool,
    pub(crate) ifname: String,
    pub(crate) kind: netns::Kind,
    pub(crate) mac: MacAddr,
    pub(crate) addresses: Vec<IpNet>,
    /// Whether the namespace's default routes lead through it.
    pub(crate) routed: bool,
    pub(crate) routers: Vec<IpAddr>,
    pub(crate) mtu: u16,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) port: Option<PortId>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) published: Vec<Published>,
    /// Sockets inside, from the first published TCP port on. Keeps the namespace, so it goes when the
    /// endpoint does.
    pub(crate) stock: Option<Arc<Stock>>,
    /// Who detaches it when its namespace ends.
    pub(crate) watcher: Option<Watcher>,
}

/// The task that waits for an endpoint's end; dropped, it waits no longer.
#[derive(Debug)]
pub(crate) struct Watcher(pub(crate) tokio::task::AbortHandle);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Endpoint {
    /// Promises a place on `network`; `others` are all endpoints there are, on any network.
    ///
    /// `netns_inode` tells which of them share its namespace: the first there gets `eth0` and the
    /// default routes, the next `eth1` and none.
    pub(crate) fn plan<'a>(
        network: &Network,
        others: impl Iterator<Item = &'a Self> + Clone,
        request: &api::EndpointCreate,
        target: Target,
        netns_inode: u64,
    ) -> Result<Self, Error> {
        let here = others.clone().filter(|other| other.network == network.number);
        let addresses = addresses(network, here.clone(), request)?;
        let id = names::new_id()
            .map_err(|error| Error::System { what: "make an id", source: error.into() })?;
        let mac = match (&request.mac_address, addresses.first()) {
            (Some(text), _) => mac::parse(text)?,
            (None, Some(address)) => mac::from_address(address.addr()),
            // It finds an address by itself, on a segment where others have made up theirs.
            (None, None) => mac::from_id(&id),
        };
        let gateways = network.gateway().filter(|gateway| gateway.mac == mac);
        let used_by = here.clone().find(|other| other.mac == mac).map(|other| &other.name);
        if let Some(by) = gateways.map(|_| "the gateway").or(used_by.map(String::as_str)) {
            let by = if used_by.is_some() { format!("endpoint {by}") } else { by.to_owned() };
            let network = network.name.clone();
            return Err(Error::MacInUse { mac: mac::text(mac), by, network });
        }
        let taken = |name: &str| others.clone().find(|other| other.name == name);
        let name = match &request.name {
            None => names::invent(&id, |name| taken(name).is_some()),
            Some(name) => {
                names::check(name)?;
                if let Some(other) = taken(name) {
                    return Err(Error::EndpointExists {
                        name: name.clone(),
                        id: names::short_id(&other.id).to_owned(),
                        network: other.network_name.clone(),
                    });
                }
                name.clone()
            }
        };
        let neighbours = others.filter(|other| other.netns_inode == netns_inode);
        let ifname = match &request.ifname {
            Some(ifname) => ifname.clone(),
            None => free_ifname(neighbours.clone()),
        };
        names::check_interface(&ifname)?;
        let routed = neighbours.clone().all(|other| !other.routed);
        Ok(Self {
            id,
            name,
            network: network.number,
            network_name: network.name.clone(),
            created: SystemTime::now(),
            status: Status::Attaching,
            target,
            netns_inode,
            netns: None,
            own_mounts: request.own_mounts,
            ifname,
            kind: if request.veth { netns::Kind::Veth } else { netns::Kind::Tap },
            mac,
            addresses,
            routed,
            routers: if routed { network.routers() } else { Vec::new() },
            mtu: network.mtu,
            dns: network.dns.clone(),
            port: None,
            keeper: None,
            published: Vec::new(),
            stock: None,
            watcher: None,
        })
    }

    /// What the kernel is asked to make.
    pub(crate) fn device(&self, queues: usize) -> netns::EndpointConfig {
        netns::EndpointConfig {
            ifname: self.ifname.clone(),
            mac: self.mac.0,
            mtu: self.mtu,
            addresses: self.addresses.clone(),
            gateways: self.routers.clone(),
            queues: u16::try_from(queues).unwrap_or(u16::MAX),
            kind: self.kind,
        }
    }

    /// Its addresses, without prefix lengths.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(IpNet::addr).collect()
    }

    /// As `pontoon inspect` shows it.
    pub(crate) fn describe(&self) -> api::Endpoint {
        let of = |v4: bool| self.addresses.iter().find(|address| address.addr().is_ipv4() == v4);
        let text =
            |address: Option<&IpNet>| address.map(|a| a.addr().to_string()).unwrap_or_default();
        api::Endpoint {
            id: self.id.clone(),
            name: self.name.clone(),
            network: self.network_name.clone(),
            created: humantime::format_rfc3339_nanos(self.created).to_string(),
            status: self.status.to_string(),
            target: self.target.to_string(),
            pid: if let Target::Pid(pid) = self.target { Some(pid) } else { None },
            netns: format!("net:[{}]", self.netns_inode),
            own_mounts: self.own_mounts,
            interface: self.ifname.clone(),
            device: if self.kind == netns::Kind::Veth { "veth" } else { "tap" }.to_owned(),
            port: self.port.map(|port| port.0),
            mac_address: mac::text(self.mac),
            ip_address: text(of(true)),
            ip_prefix_len: of(true).map_or(0, IpNet::prefix_len),
            ipv6_address: text(of(false)),
            ipv6_prefix_len: of(false).map_or(0, IpNet::prefix_len),
            gateways: self.routers.iter().map(ToString::to_string).collect(),
            mtu: self.mtu,
            dns: self.dns.iter().map(ToString::to_string).collect(),
            ports: self.published.iter().map(Published::describe).collect(),
        }
    }

    /// As `pontoon network inspect` shows it.
    pub(crate) fn on_network(&self) -> api::NetworkContainer {
        let of = |v4: bool| {
            let address = self.addresses.iter().find(|address| address.addr().is_ipv4() == v4);
            address.map(ToString::to_string).unwrap_or_default()
        };
        api::NetworkContainer {
            name: self.name.clone(),
            endpoint_id: self.id.clone(),
            mac_address: mac::text(self.mac),
            ipv4_address: of(true),
            ipv6_address: of(false),
        }
    }
}

impl Published {
    /// As `pontoon port` shows it.
    pub(crate) fn describe(&self) -> api::PublishedPort {
        api::PublishedPort {
            protocol: self.protocol.to_string(),
            container_port: self.container,
            host_ip: self.listen.ip().to_string(),
            host_port: self.listen.port(),
            splice: self.splice,
        }
    }
}

fn addresses<'a>(
    network: &Network,
    here: impl Iterator<Item = &'a Endpoint> + Clone,
    request: &api::EndpointCreate,
) -> Result<Vec<IpNet>, Error> {
    let ip = wanted("ip", request.ip.as_deref(), true, network)?;
    let ip6 = wanted("ip6", request.ip6.as_deref(), false, network)?;
    let owner = |addr: IpAddr| {
        here.clone().find(|other| other.ips().contains(&addr)).map(|other| other.name.clone())
    };
    let used = here.clone().flat_map(Endpoint::ips).chain(network.foreign.iter().copied());
    let used: BTreeSet<IpAddr> = used.collect();
    let choose = |subnet: &Subnet| {
        let pool = subnet.pool();
        let addr = match if subnet.subnet.addr().is_ipv4() { ip } else { ip6 } {
            Some(addr) => pool.check(addr, &network.name, owner).map(|()| addr)?,
            None => pool.next(&network.name, &used)?,
        };
        // The prefix length is its subnet's, which has the same family.
        Ok(IpNet::new_assert(addr, subnet.subnet.prefix_len()))
    };
    network.subnets.iter().map(choose).collect()
}

fn wanted(
    what: &'static str,
    text: Option<&str>,
    v4: bool,
    network: &Network,
) -> Result<Option<IpAddr>, Error> {
    let Some(text) = text else { return Ok(None) };
    let why = if v4 { "it is no IPv4 address" } else { "it is no IPv6 address" };
    let invalid = || Error::Invalid { what, value: text.to_owned(), why };
    let addr: IpAddr = text.parse().map_err(|_| invalid())?;
    if addr.is_ipv4() != v4 {
        return Err(invalid());
    }
    if !network.subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv4() == v4) {
        let network = network.name.clone();
        return Err(IpamError::NoSubnet { addr, family: family(addr), network }.into());
    }
    Ok(Some(addr))
}

fn free_ifname<'a>(neighbours: impl Iterator<Item = &'a Endpoint>) -> String {
    let used: BTreeSet<&str> = neighbours.map(|other| other.ifname.as_str()).collect();
    // One of n + 1 names is not among n used.
    let mut names = (0..=used.len()).map(|number| format!("eth{number}"));
    names.find(|name| !used.contains(name.as_str())).unwrap_or_else(|| "eth0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn bridge() -> Network {
        Network::plan_default(NetworkId(1), &Config::default(), &[]).unwrap()
    }

    fn dual() -> Network {
        let request = api::NetworkCreate {
            name: "net0".into(),
            subnets: vec!["10.0.0.0/29".into(), "fd00::/64".into()],
            ..api::NetworkCreate::default()
        };
        Network::plan(NetworkId(2), request, &[]).unwrap()
    }

    fn plan(
        network: &Network,
        others: &[Endpoint],
        request: api::EndpointCreate,
        inode: u64,
    ) -> Result<Endpoint, String> {
        Endpoint::plan(network, others.iter(), &request, Target::Pid(1), inode)
            .map_err(|e| e.to_string())
    }

    fn any() -> api::EndpointCreate {
        api::EndpointCreate::default()
    }

    #[test]
    fn the_first_container_is_dockers() {
        let network = bridge();
        let first = plan(&network, &[], any(), 1).unwrap();
        assert_eq!(first.addresses, ["172.17.0.2/16".parse().unwrap()]);
        assert_eq!(first.mac.0, [2, 0x42, 172, 17, 0, 2]);
        assert_eq!((first.ifname.as_str(), first.routers.len()), ("eth0", 1));
        let second = plan(&network, &[first], any(), 2).unwrap();
        assert_eq!(second.addresses, ["172.17.0.3/16".parse().unwrap()]);
        assert_eq!(second.ifname, "eth0");
    }

    #[test]
    fn a_second_interface_of_a_namespace_is_eth1_without_routes() {
        let first = plan(&bridge(), &[], any(), 1).unwrap();
        let second = plan(&dual(), &[first], any(), 1).unwrap();
        assert_eq!(second.ifname, "eth1");
        assert!(second.routers.is_empty() && !second.routed);
        assert_eq!(second.describe().ipv6_address, "fd00::2");
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused_by_name() {
        let network = dual();
        let with = |ip: &str, ip6: &str, mac: &str, name: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            api::EndpointCreate {
                ip: some(ip),
                ip6: some(ip6),
                mac_address: some(mac),
                name: some(name),
                ..any()
            }
        };
        let first =
            plan(&network, &[], with("10.0.0.5", "fd00::5", "02:00:00:00:00:05", "c1"), 1).unwrap();
        assert_eq!(first.describe().ip_address, "10.0.0.5");
        assert_eq!(first.describe().mac_address, "02:00:00:00:00:05");
        let others = [first];
        for (request, why) in [
            (with("10.0.0.5", "", "", ""), "in use by endpoint c1"),
            (with("", "fd00::5", "", ""), "in use by endpoint c1"),
            (with("10.0.0.1", "", "", ""), "is the gateway"),
            (with("10.0.1.1", "", "", ""), "outside 10.0.0.0/29"),
            (with("fd00::9", "", "", ""), "no IPv4 address"),
            (with("", "", "02:00:00:00:00:05", ""), "in use by endpoint c1"),
            (with("", "", "02:42:0a:00:00:01", ""), "in use by the gateway"),
            (with("", "", "02:42", ""), "malformed"),
            (with("", "", "", "c1"), "the name c1 is taken by endpoint"),
            (with("", "", "", "-"), "not allowed"),
        ] {
            let said = plan(&network, &others, request, 2).expect_err(why);
            assert!(said.contains(why), "{said}");
        }
        let v4_only = plan(&bridge(), &[], with("", "fd00::9", "", ""), 2).unwrap_err();
        assert!(v4_only.contains("network bridge has no IPv6 subnet"), "{v4_only}");
    }
}
