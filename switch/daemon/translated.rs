//! What is translated on segments, with the names of whom it is about.

use std::net::IpAddr;

use nat::{Destination, Match, Rule, Source, TransportAddr, Zone};
use smoltcp::wire::IpCidr;
use worker::NetworkId;

use crate::api;
use crate::error::Error;
use crate::segment::Segment;
use crate::state::{Daemon, Registry};

impl Daemon {
    /// The NAT of the segment a network is behind, or of the segment on an interface, or of all: rules and
    /// mappings.
    ///
    /// # Errors
    ///
    /// There is no such network or segment, or the network is behind none.
    pub fn nat(&self, of: Option<&str>) -> Result<Vec<api::Nat>, Error> {
        let registry = self.registry();
        let asked = |segment: &&Segment| match of {
            None => true,
            Some(name) if segment.raw.interface == name => true,
            Some(name) => {
                registry.network(name).is_ok_and(|network| network.segment == Some(segment.id))
            }
        };
        let segments: Vec<&Segment> = registry.segments.values().filter(asked).collect();
        if let (Some(name), []) = (of, &segments[..]) {
            let network = registry.network(name)?;
            let (name, uplink) = (network.name.clone(), network.uplink.to_string());
            return Err(Error::NotTranslated { network: name, uplink });
        }
        // Only what is atomic is asked of the NAT here, but for the list of mappings, whose locks are
        // nobody's for long.
        Ok(segments.into_iter().filter_map(|segment| self.nat_of(&registry, segment)).collect())
    }

    fn nat_of(&self, registry: &Registry, segment: &Segment) -> Option<api::Nat> {
        let nat = self.switch.nat(segment.id)?;
        let rules = nat.rules();
        let rows = rules.prerouting().iter().enumerate().map(|(number, rule)| {
            let matched = registry.matched("prerouting", number, &rule.matches);
            destination(registry, rule, matched)
        });
        let rows = rows.chain(rules.postrouting().iter().enumerate().map(|(number, rule)| {
            let matched = registry.matched("postrouting", number, &rule.matches);
            source(rule, matched)
        }));
        let prefixes =
            registry.behind(segment.id).flat_map(|network| &network.translation.prefixes6);
        let rows = rows.chain(prefixes.enumerate().map(|(number, pair)| api::NatRule {
            hook: "prefix".to_owned(),
            number,
            to: Some(segment.raw.interface.clone()),
            source: Some(pair.inside.to_string()),
            target: "NPT".to_owned(),
            changed_to: Some(pair.outside.to_string()),
            ..api::NatRule::default()
        }));
        let mut mappings: Vec<_> = nat
            .mappings()
            .list()
            .iter()
            .map(|mapping| {
                let (inside, external) = (mapping.inside(), mapping.external());
                api::NatMapping {
                    protocol: inside.protocol.to_string(),
                    network: registry.zone_name(inside.zone),
                    endpoint: registry.endpoint_at(inside.zone, inside.at.addr),
                    inside_ip: inside.at.addr.to_string(),
                    inside_port: inside.at.port,
                    external_ip: external.addr.to_string(),
                    external_port: external.port,
                }
            })
            .collect();
        mappings.sort_by(|a, b| {
            let name =
                |m: &api::NatMapping| (m.external_ip.clone(), m.protocol.clone(), m.external_port);
            name(a).cmp(&name(b))
        });
        Some(api::Nat {
            interface: segment.raw.interface.clone(),
            networks: registry.behind(segment.id).map(|network| network.name.clone()).collect(),
            filtering: segment.translation.filtering,
            timeouts: segment.translation.timers.clone(),
            rules: rows.collect(),
            mappings,
        })
    }
}

impl Registry {
    /// The name of a network, or of the interface of a segment.
    pub(crate) fn zone_name(&self, zone: Zone) -> String {
        match worker::SegmentId::of(zone) {
            Some(id) => self.segments.get(&id).map(|segment| segment.raw.interface.clone()),
            None => self.by_number(NetworkId(zone.0)).map(|network| network.name.clone()),
        }
        // It went while the table was read.
        .unwrap_or_default()
    }

    /// The name of the endpoint that has an address; nothing where none does.
    fn endpoint_at(&self, zone: Zone, addr: IpAddr) -> String {
        let mut endpoints = self.on(NetworkId(zone.0));
        let found = endpoints.find(|endpoint| endpoint.ips().contains(&addr));
        found.map(|endpoint| endpoint.name.clone()).unwrap_or_default()
    }

    fn matched(&self, hook: &str, number: usize, matches: &Match) -> api::NatRule {
        let cidr = |cidr: &Option<IpCidr>| cidr.map(|cidr| cidr.to_string());
        let ports = (*matches.dst_ports.start(), *matches.dst_ports.end());
        api::NatRule {
            hook: hook.to_owned(),
            number,
            from: matches.from.map(|zone| self.zone_name(zone)),
            to: matches.to.map(|zone| self.zone_name(zone)),
            source: cidr(&matches.src),
            destination: cidr(&matches.dst),
            protocol: matches.protocol.map(|protocol| protocol.to_string()),
            ports: Some(ports).filter(|ports| *ports != (0, u16::MAX)),
            ..api::NatRule::default()
        }
    }
}

fn destination(
    registry: &Registry,
    rule: &Rule<Destination>,
    matched: api::NatRule,
) -> api::NatRule {
    let (flows, octets) = rule.counts();
    let (target, changed_to, endpoint) = match &rule.action {
        Destination::To { addr, first_port, zone, .. } => {
            let to = match first_port {
                Some(port) => TransportAddr::new(*addr, *port).to_string(),
                None => addr.to_string(),
            };
            let endpoint = registry.endpoint_at(*zone, *addr);
            ("DNAT", Some(to), Some(endpoint).filter(|name| !name.is_empty()))
        }
        Destination::Prefix { inside, .. } => ("NETMAP", Some(inside.to_string()), None),
    };
    api::NatRule { target: target.to_owned(), changed_to, endpoint, flows, octets, ..matched }
}

fn source(rule: &Rule<Source>, matched: api::NatRule) -> api::NatRule {
    let (flows, octets) = rule.counts();
    let (target, changed_to) = match &rule.action {
        Source::Masquerade => ("MASQUERADE", None),
        Source::To(range) if range.start() == range.end() => {
            ("SNAT", Some(range.start().to_string()))
        }
        Source::To(range) => ("SNAT", Some(format!("{}-{}", range.start(), range.end()))),
        Source::Prefix(outside) => ("NETMAP", Some(outside.to_string())),
    };
    api::NatRule { target: target.to_owned(), changed_to, flows, octets, ..matched }
}
