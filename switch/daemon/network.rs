//! A network: its subnets, its gateway, its way out.
//!
//! Pure: what is planned in `plan.rs` is put to work by `networks.rs`. A network's own addresses (the gateway's)
//! and the routers its containers are told of are two things: `default-gateway` of a daemon.json may
//! name a station that is not us.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use datapath::{IpMtu, PortId};
use ipnet::IpNet;
use smoltcp::wire::IpCidr;
use worker::{Gateway, NetworkConfig, NetworkId, Policy, SegmentId, SegmentRow};

use crate::api;
use crate::error::Error;
use crate::ipam::Pool;
use crate::keeper::Keeper;
use crate::mac;
use crate::subnet::{self, SubnetError, Taken};
use crate::translation::Translation;
use crate::uplink::Uplink;

/// Name of the default network, as docker's.
pub(crate) const DEFAULT: &str = "bridge";

/// A network.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) number: NetworkId,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) created: SystemTime,
    /// One subnet of each family at most; an IPv4 one always, but where the network is a segment of the
    /// host's.
    pub(crate) subnets: Vec<Subnet>,
    /// Whether nobody asked for the IPv4 subnet it has.
    pub(crate) chosen: bool,
    pub(crate) mtu: u16,
    pub(crate) uplink: Uplink,
    /// Where the uplink's station is.
    pub(crate) segment: Option<SegmentId>,
    /// The interface of the host's that is one of its ports.
    pub(crate) bridged: Option<Bridged>,
    /// Addresses of its subnets that other stations of that segment were found to have, at most
    /// [`MAX_FOREIGN`]: not to be chosen.
    pub(crate) foreign: Vec<IpAddr>,
    pub(crate) translation: Translation,
    pub(crate) internal: bool,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) transient: bool,
    pub(crate) wants_host_port: bool,
    pub(crate) host_port: Option<HostPort>,
}

/// A subnet of a network, and who routes for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subnet {
    pub(crate) subnet: IpNet,
    /// What of it is handed out.
    pub(crate) range: IpNet,
    /// Our own address in it.
    pub(crate) gateway: Option<IpAddr>,
    /// Whom containers send what is for elsewhere, where that is not the gateway.
    pub(crate) router: Option<IpAddr>,
}

/// Addresses remembered that other stations have.
const MAX_FOREIGN: usize = 256;

/// An interface of the host's that is a port of the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridged {
    pub(crate) port: PortId,
    pub(crate) ifindex: u32,
}

/// Our interface in the host's namespace.
#[derive(Debug)]
pub(crate) struct HostPort {
    pub(crate) port: PortId,
    pub(crate) ifname: String,
    pub(crate) _keeper: Option<Keeper>,
}

impl Subnet {
    pub(crate) fn new(subnet: IpNet) -> Self {
        Self { subnet, range: subnet, gateway: None, router: None }
    }

    pub(crate) fn pool(&self) -> Pool {
        let reserved = self.gateway.into_iter().chain(self.router).collect();
        Pool { subnet: self.subnet, range: self.range, reserved }
    }

    /// Makes `gateway` our address here.
    pub(crate) fn set_gateway(&mut self, gateway: IpAddr) -> Result<(), Error> {
        if !self.pool().is_station(gateway) {
            return Err(SubnetError::GatewayNotAStation(gateway).into());
        }
        self.gateway = Some(gateway);
        Ok(())
    }
}

impl Network {
    /// Takes another subnet than the chosen one where that overlaps `taken` by now, and says so. Its
    /// gateway is the first station of that, if it has one.
    pub(crate) fn step_aside(&mut self, taken: &[Taken]) -> Option<String> {
        let first = self.subnets.first_mut().filter(|_| self.chosen)?;
        let clash = taken.iter().find(|taken| subnet::overlap(taken.subnet(), first.subnet))?;
        let (was, mut other) = (first.subnet, Subnet::new(subnet::free_ipv4(taken).ok()?));
        other.gateway = first.gateway.map(|_| other.pool().first_station());
        *first = other;
        let subnet = first.subnet;
        Some(format!("{was} overlaps {clash}, so network {} is {subnet}", self.name))
    }

    /// Notes that another station has an address; the one noted longest ago gives way to one too many.
    pub(crate) fn note_foreign(&mut self, addr: IpAddr) {
        if self.foreign.len() >= MAX_FOREIGN {
            self.foreign.remove(0);
        }
        self.foreign.push(addr);
    }

    /// The name servers that its segment tells of and containers of it can ask; `rows` are what the switch says.
    pub(crate) fn learnt_dns(&self, rows: &[SegmentRow]) -> Vec<IpAddr> {
        let row = rows.iter().find(|row| Some(row.segment) == self.segment);
        let reachable = |addr: &&IpAddr| {
            let near = matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
            !near && self.subnets.iter().any(|own| own.subnet.addr().is_ipv4() == addr.is_ipv4())
        };
        row.into_iter().flat_map(|row| &row.dns).filter(reachable).copied().collect()
    }

    /// What the workers must know of it.
    pub(crate) fn config(&self, host_addresses: Vec<IpAddr>) -> NetworkConfig {
        NetworkConfig {
            gateway: self.gateway(),
            uplink: match (&self.uplink, self.segment) {
                (Uplink::Sockets, _) => worker::Uplink::Sockets,
                (Uplink::Raw(_), Some(segment)) => worker::Uplink::Raw(segment.zone()),
                (Uplink::Raw(_), None) | (Uplink::None | Uplink::Bridge(_), _) => {
                    worker::Uplink::None
                }
            },
            mtu: IpMtu(self.mtu),
            host_addresses,
        }
    }

    /// How its flows by the host's sockets behave: all of them with the uplink `sockets`, and those of
    /// published ports in any case.
    pub(crate) fn policy(&self) -> Policy {
        let Translation { filtering, timers, .. } = &self.translation;
        Policy { filtering: filtering.0, timeouts: timers.timeouts() }
    }

    /// Our presence on it: all addresses on one station, made from the first.
    pub(crate) fn gateway(&self) -> Option<Gateway> {
        let own = self.own_addresses();
        let mac = mac::from_address(own.first()?.addr());
        let addresses = own.iter().map(|own| IpCidr::new(own.addr().into(), own.prefix_len()));
        Some(Gateway { mac, addresses: addresses.collect() })
    }

    /// The gateway's addresses with their prefix lengths.
    pub(crate) fn own_addresses(&self) -> Vec<IpNet> {
        let own = |subnet: &Subnet| IpNet::new(subnet.gateway?, subnet.subnet.prefix_len()).ok();
        self.subnets.iter().filter_map(own).collect()
    }

    /// Next hops for containers; none on an internal network, as docker has it.
    pub(crate) fn routers(&self) -> Vec<IpAddr> {
        if self.internal {
            return Vec::new();
        }
        self.subnets.iter().filter_map(|subnet| subnet.router.or(subnet.gateway)).collect()
    }

    /// Name of its interface in the host's namespace.
    pub(crate) fn host_ifname(&self) -> String {
        if self.name == DEFAULT {
            return "pontoon0".to_owned();
        }
        // Names are ASCII, so any octet is a boundary; 3 + 11 fit the kernel's 15.
        format!("pt-{}", self.name.get(..11).unwrap_or(&self.name))
    }

    /// As `docker network inspect` shows it; `containers` are the endpoints on it, by id.
    pub(crate) fn describe(
        &self,
        containers: BTreeMap<String, api::NetworkContainer>,
    ) -> api::Network {
        let config = |subnet: &Subnet| api::IpamConfig {
            subnet: subnet.subnet.to_string(),
            ip_range: Some(subnet.range)
                .filter(|range| *range != subnet.subnet)
                .map(|range| range.to_string())
                .unwrap_or_default(),
            gateway: subnet.gateway.map(|addr| addr.to_string()).unwrap_or_default(),
        };
        let mut options = BTreeMap::from([
            ("com.docker.network.driver.mtu".to_owned(), self.mtu.to_string()),
            ("pontoon.uplink".to_owned(), self.uplink.to_string()),
        ]);
        let mut option = |name: &str, value: String| options.insert(name.to_owned(), value);
        if let Some(host_port) = &self.host_port {
            option("pontoon.host_port", host_port.ifname.clone());
        }
        let translation = &self.translation;
        let raw = self.uplink.raw().filter(|raw| raw.nat);
        if raw.is_some() || self.uplink == Uplink::Sockets {
            option("pontoon.filtering", translation.filtering.to_string());
            option("pontoon.timeouts", translation.timers.to_string());
        }
        if raw.is_some() {
            option("pontoon.nat46", translation.nat46.to_string());
            if !translation.snat_to.is_empty() {
                option("pontoon.snat_to", joined(&translation.snat_to));
            }
            if !translation.prefixes6.is_empty() {
                option("pontoon.prefix6", joined(&translation.prefixes6));
            }
        }
        api::Network {
            name: self.name.clone(),
            id: self.id.clone(),
            created: humantime::format_rfc3339_nanos(self.created).to_string(),
            scope: "local".to_owned(),
            driver: "pontoon".to_owned(),
            enable_ipv6: self.subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv6()),
            ipam: api::Ipam {
                driver: "default".to_owned(),
                options: BTreeMap::new(),
                config: self.subnets.iter().map(config).collect(),
            },
            internal: self.internal,
            containers,
            options,
            ..api::Network::default()
        }
    }
}

fn joined<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
