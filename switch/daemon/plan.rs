//! What a request, a change or a configuration makes of a network.
//!
//! Pure: a plan is refused here, with the reason, or can be put to work.

use std::net::IpAddr;
use std::time::SystemTime;

use datapath::IpMtu;
use ipnet::IpNet;
use worker::NetworkId;

use crate::config::Config;
use crate::error::Error;
use crate::network::{DEFAULT, Network, Subnet};
use crate::subnet::{self, SubnetError, Taken};
use crate::translation::Translation;
use crate::uplink::Uplink;
use crate::{api, names};

/// Least and most MTU: RFC 791's least, and what a TAP takes at most.
pub(crate) const MTU: std::ops::RangeInclusive<u16> = 68..=65_521;

/// Least MTU of a network with IPv6 (RFC 8200 §5).
const MTU_IPV6: u16 = 1280;

impl Network {
    /// A user's network; `taken` is what it must not overlap.
    pub(crate) fn plan(
        number: NetworkId,
        request: api::NetworkCreate,
        taken: &[Taken],
    ) -> Result<Self, Error> {
        names::check_network(&request.name)?;
        let internal = request.internal;
        if internal && request.uplink.interface().is_some() {
            return Err(internal_has_none(&request.uplink));
        }
        let bridged = matches!(request.uplink, Uplink::Bridge(_));
        let mut subnets = Vec::new();
        for text in &request.subnets {
            let parsed = subnet::parse(text)?;
            if subnets.iter().any(|other: &Subnet| same_family(other.subnet, parsed.addr())) {
                return Err(SubnetError::SameFamily(subnet::family(parsed.addr())).into());
            }
            subnet::check_free(parsed, taken)?;
            subnets.push(Subnet::new(parsed));
        }
        let chosen = !bridged && !subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv4());
        if chosen {
            subnets.insert(0, Subnet::new(subnet::free_ipv4(taken)?));
        }
        for text in &request.ip_ranges {
            let range = subnet::range(text)?;
            let within = subnets.iter_mut().find(|subnet| subnet.subnet.contains(&range));
            within.ok_or(SubnetError::RangeOutside(range))?.range = range;
        }
        match gateways(&request.gateways)? {
            None => {}
            Some(given) if bridged => {
                for addr in given {
                    let subnet = within(&mut subnets, addr)?;
                    subnet.router = Some(addr);
                }
            }
            Some(given) => {
                for addr in given {
                    within(&mut subnets, addr)?.set_gateway(addr)?;
                }
                for subnet in subnets.iter_mut().filter(|subnet| subnet.gateway.is_none()) {
                    subnet.gateway = Some(subnet.pool().first_station());
                }
            }
        }
        let mtu = check_mtu(request.mtu, &subnets)?;
        let uplink = if internal { Uplink::None } else { request.uplink };
        let translation = Translation {
            snat_to: request.snat_to,
            filtering: request.filtering.unwrap_or_default(),
            timers: request.timeouts.unwrap_or_default(),
            nat46: request.nat46.unwrap_or_default(),
            prefixes6: request.prefixes6,
        };
        translation.check(&uplink, subnets.iter().map(|subnet| subnet.subnet))?;
        Ok(Self {
            number,
            id: new_id()?,
            name: request.name,
            created: SystemTime::now(),
            subnets,
            chosen,
            mtu,
            uplink,
            segment: None,
            bridged: None,
            foreign: Vec::new(),
            translation,
            internal,
            dns: Vec::new(),
            transient: request.transient,
            wants_host_port: !request.no_host_port && !bridged,
            host_port: None,
        })
    }

    /// The default network, as configured or as docker has it: 172.17.0.0/16, or the next free one.
    pub(crate) fn plan_default(
        number: NetworkId,
        config: &Config,
        taken: &[Taken],
    ) -> Result<Self, Error> {
        let mut subnet = match config.bip {
            Some(bip) => {
                subnet::check_free(bip.trunc(), taken)?;
                Subnet { gateway: Some(bip.addr()), ..Subnet::new(bip.trunc()) }
            }
            None => Subnet::new(subnet::free_ipv4(taken)?),
        };
        subnet.gateway = subnet.gateway.or_else(|| Some(subnet.pool().first_station()));
        subnet.range = config.fixed_cidr.unwrap_or(subnet.range);
        if let Some(router) = config.default_gateway {
            if !subnet.subnet.contains(&router) {
                return Err(SubnetError::GatewayOutside(router).into());
            }
            subnet.router = Some(router).filter(|_| subnet.gateway != Some(router));
        }
        let subnets = vec![subnet];
        Ok(Self {
            number,
            id: new_id()?,
            name: DEFAULT.to_owned(),
            created: SystemTime::now(),
            mtu: check_mtu(config.mtu, &subnets)?,
            subnets,
            chosen: config.bip.is_none(),
            uplink: Uplink::Sockets,
            segment: None,
            bridged: None,
            foreign: Vec::new(),
            translation: Translation::default(),
            internal: false,
            dns: config.dns.clone(),
            transient: false,
            wants_host_port: true,
            host_port: None,
        })
    }

    /// What would differ of it after `change`; `used` tells who has an address.
    pub(crate) fn changed(
        &self,
        change: &api::NetworkChange,
        used: impl Fn(IpAddr) -> Option<String>,
    ) -> Result<Changed, Error> {
        let mut subnets = self.subnets.clone();
        let uplink = change.uplink.clone().unwrap_or_else(|| self.uplink.clone());
        let bridged = matches!(uplink, Uplink::Bridge(_));
        if bridged != matches!(self.uplink, Uplink::Bridge(_)) || bridged && uplink != self.uplink {
            return Err(Error::Invalid {
                what: "uplink",
                value: uplink.to_string(),
                why: "whether a network is a segment of the host's is decided when it is made; make another",
            });
        }
        match gateways(&change.gateways)? {
            None => {
                for subnet in &mut subnets {
                    (subnet.gateway, subnet.router) = (None, None);
                }
            }
            Some(given) => {
                for addr in given {
                    if let Some(by) = used(addr) {
                        let network = self.name.clone();
                        return Err(crate::ipam::IpamError::InUse { addr, by, network }.into());
                    }
                    let subnet = within(&mut subnets, addr)?;
                    if bridged {
                        subnet.router = Some(addr);
                    } else {
                        subnet.set_gateway(addr)?;
                        subnet.router = None;
                    }
                }
            }
        }
        if self.internal && uplink != Uplink::None {
            return Err(internal_has_none(&uplink));
        }
        // What the new uplink cannot do goes, unless it is asked for.
        let now = self.translation.kept_by(&uplink);
        let translation = Translation {
            snat_to: change.snat_to.clone().unwrap_or(now.snat_to),
            filtering: change.filtering.unwrap_or(now.filtering),
            timers: change.timeouts.clone().unwrap_or(now.timers),
            nat46: change.nat46.clone().unwrap_or(now.nat46),
            prefixes6: change.prefixes6.clone().unwrap_or(now.prefixes6),
        };
        translation.check(&uplink, subnets.iter().map(|subnet| subnet.subnet))?;
        Ok(Changed { subnets, uplink, translation })
    }
}

/// What a change makes of a network.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) subnets: Vec<Subnet>,
    pub(crate) uplink: Uplink,
    pub(crate) translation: Translation,
}

fn internal_has_none(uplink: &Uplink) -> Error {
    Error::Invalid {
        what: "uplink",
        value: uplink.to_string(),
        why: "an internal network has none; make another without --internal",
    }
}

fn new_id() -> Result<String, Error> {
    names::new_id().map_err(|error| Error::System { what: "make an id", source: error.into() })
}

fn same_family(a: IpNet, b: IpAddr) -> bool {
    a.addr().is_ipv4() == b.is_ipv4()
}

fn within(subnets: &mut [Subnet], addr: IpAddr) -> Result<&mut Subnet, Error> {
    let found = subnets.iter_mut().find(|subnet| subnet.subnet.contains(&addr));
    found.ok_or_else(|| SubnetError::GatewayOutside(addr).into())
}

/// The gateways of a request; `None` where it says `none`.
fn gateways(given: &[String]) -> Result<Option<Vec<IpAddr>>, Error> {
    if given.iter().any(|text| text == "none") {
        if given.len() > 1 {
            let why = "`none` stands alone";
            return Err(Error::Invalid { what: "gateways", value: given.join(" "), why });
        }
        return Ok(None);
    }
    let parse = |text: &String| {
        let why = "write an IP address within the subnet, or none";
        text.parse().map_err(|_| Error::Invalid { what: "gateway", value: text.clone(), why })
    };
    given.iter().map(parse).collect::<Result<Vec<_>, _>>().map(Some)
}

fn check_mtu(mtu: Option<u16>, subnets: &[Subnet]) -> Result<u16, Error> {
    let mtu = mtu.unwrap_or(IpMtu::ETHERNET.0);
    let invalid = |why| Err(Error::Invalid { what: "mtu", value: mtu.to_string(), why });
    if !MTU.contains(&mtu) {
        return invalid("it must be from 68 (RFC 791) to 65521");
    }
    if mtu < MTU_IPV6 && subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv6()) {
        return invalid("IPv6 needs 1280 or more (RFC 8200 §5)");
    }
    Ok(mtu)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn request(subnets: &[&str], gateways: &[&str]) -> api::NetworkCreate {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        api::NetworkCreate {
            name: "net0".to_owned(),
            subnets: owned(subnets),
            gateways: owned(gateways),
            ..api::NetworkCreate::default()
        }
    }

    fn plan(subnets: &[&str], gateways: &[&str]) -> Result<Network, String> {
        let taken =
            [Taken::Network { subnet: "172.17.0.0/16".parse().unwrap(), name: "bridge".into() }];
        Network::plan(NetworkId(2), request(subnets, gateways), &taken).map_err(|e| e.to_string())
    }

    fn own(network: &Network) -> Vec<String> {
        network.own_addresses().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_default_network_is_dockers() {
        let network = Network::plan_default(NetworkId(1), &Config::default(), &[]).unwrap();
        assert_eq!(own(&network), ["172.17.0.1/16"]);
        assert_eq!(network.gateway().unwrap().mac.0, [2, 0x42, 172, 17, 0, 1]);
        assert_eq!(network.host_ifname(), "pontoon0");
        let json = serde_json::to_value(network.describe(BTreeMap::new())).unwrap();
        for field in [
            "Name",
            "Id",
            "Created",
            "Scope",
            "Driver",
            "EnableIPv6",
            "IPAM",
            "Internal",
            "Attachable",
            "Ingress",
            "ConfigFrom",
            "ConfigOnly",
            "Containers",
            "Options",
            "Labels",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["IPAM"]["Config"][0]["Subnet"], "172.17.0.0/16");
        assert_eq!(json["IPAM"]["Config"][0]["Gateway"], "172.17.0.1");
        assert_eq!(json["ConfigFrom"]["Network"], "");
    }

    #[test]
    fn the_default_network_steps_aside_for_the_hosts_own() {
        let taken =
            [Taken::Route { subnet: "172.17.0.0/16".parse().unwrap(), interface: "lan0".into() }];
        let network = Network::plan_default(NetworkId(1), &Config::default(), &taken).unwrap();
        assert_eq!(own(&network), ["172.18.0.1/16"]);
        let config = Config { bip: "172.17.0.1/24".parse().ok(), ..Config::default() };
        let refused = Network::plan_default(NetworkId(1), &config, &taken).unwrap_err();
        assert!(refused.to_string().contains("dev lan0"));
    }

    #[test]
    fn a_configured_router_is_not_us() {
        let config = Config {
            bip: "192.168.1.1/24".parse().ok(),
            fixed_cidr: "192.168.1.0/25".parse().ok(),
            default_gateway: "192.168.1.254".parse().ok(),
            ..Config::default()
        };
        let network = Network::plan_default(NetworkId(1), &config, &[]).unwrap();
        assert_eq!(own(&network), ["192.168.1.1/24"]);
        assert_eq!(network.routers(), ["192.168.1.254".parse::<IpAddr>().unwrap()]);
        let pool = network.subnets[0].pool();
        assert_eq!(pool.next("bridge", &Default::default()).unwrap().to_string(), "192.168.1.2");
        assert_eq!(pool.reserved.len(), 2);
    }

    #[test]
    fn user_networks_take_the_next_subnet_and_its_first_address() {
        assert_eq!(own(&plan(&[], &[]).unwrap()), ["172.18.0.1/16"]);
        assert_eq!(own(&plan(&["172.100.0.0/16"], &[]).unwrap()), ["172.100.0.1/16"]);
        let dual = plan(&["fd00:7::/64"], &[]).unwrap();
        assert_eq!(own(&dual), ["172.18.0.1/16", "fd00:7::1/64"]);
        assert!(dual.describe(BTreeMap::new()).enable_ipv6);
        let given = plan(&["10.1.0.0/24", "fd00:7::/64"], &["10.1.0.254"]).unwrap();
        assert_eq!(own(&given), ["10.1.0.254/24", "fd00:7::1/64"]);
        assert_eq!(own(&plan(&["10.1.0.0/24"], &["none"]).unwrap()), [""; 0]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        for (subnets, gateways, why) in [
            (&["10.0.0.0/8", "11.0.0.0/8"][..], &[][..], "two IPv4 subnets"),
            (&["10.0.0.0/24"], &["10.0.1.1"], "gateway 10.0.1.1 is in no subnet"),
            (&["10.0.0.0/24"], &["10.0.0.255"], "first or last"),
            (&["10.0.0.0/24"], &["ten"], "gateway \"ten\""),
            (&["10.0.0.0/24"], &["none", "10.0.0.1"], "stands alone"),
            (&["172.17.9.0/24"], &[], "of network bridge"),
        ] {
            let said = plan(subnets, gateways).expect_err(why);
            assert!(said.contains(why), "{said}");
        }
        let small = api::NetworkCreate { mtu: Some(1000), ..request(&["fd00::/64"], &[]) };
        assert!(Network::plan(NetworkId(2), small, &[]).unwrap_err().to_string().contains("1280"));
    }

    #[test]
    fn internal_networks_have_a_gateway_and_no_way_out() {
        let request = api::NetworkCreate { internal: true, ..request(&[], &[]) };
        let network = Network::plan(NetworkId(2), request, &[]).unwrap();
        assert!(network.gateway().is_some() && network.routers().is_empty());
        assert_eq!(network.uplink, Uplink::None);
    }

    #[test]
    fn a_gateway_can_come_later() {
        let network = plan(&["172.18.0.0/16"], &["none"]).unwrap();
        let change = |gateways: &[&str]| api::NetworkChange {
            gateways: gateways.iter().map(|text| (*text).to_owned()).collect(),
            ..api::NetworkChange::default()
        };
        let changed = network.changed(&change(&["172.18.0.1"]), |_| None).unwrap();
        assert_eq!(changed.subnets[0].gateway, "172.18.0.1".parse().ok());
        let taken = network.changed(&change(&["172.18.0.10"]), |_| Some("c1".into()));
        assert!(taken.unwrap_err().to_string().contains("in use by endpoint c1"));
        let changed = network.changed(&change(&["none"]), |_| None).unwrap();
        assert_eq!(changed.subnets[0].gateway, None);
    }
}
