//! Published ports as rules of a segment's NAT.
//!
//! Pure. Read `worker::NatPublication` for what comes of one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use worker::NatPublication;

use crate::endpoint::{Endpoint, Published};

/// What an endpoint on a network behind a segment has published, as rules of its NAT: neighbouring ports
/// in one. `station` tells which addresses are its own.
pub(crate) fn publications(
    endpoint: &Endpoint,
    station: impl Fn(IpAddr) -> bool,
) -> Vec<NatPublication> {
    let Some(port) = endpoint.port else { return Vec::new() };
    // A listener of each family is the same port here. What is said of one address goes before what is
    // said of all.
    let mut wanted: BTreeMap<_, [bool; 2]> = BTreeMap::new();
    for Published { protocol, listen, container, .. } in &endpoint.published {
        let addr = listen.ip();
        let only = match addr.is_unspecified() {
            true => None,
            false if station(addr) => Some(addr),
            // An address of the host's own: a listener, and no more.
            false => continue,
        };
        let port = (only.is_none(), only, *protocol, listen.port(), *container);
        wanted.entry(port).or_default()[usize::from(addr.is_ipv6())] = true;
    }
    let mut publications: Vec<NatPublication> = Vec::new();
    let mut before = None;
    for ((_, listen, protocol, at, container), families) in wanted {
        let run = (protocol, listen, families, container.wrapping_sub(at));
        if let Some(last) = publications.last_mut()
            && before == Some(run)
            && last.ports.end().checked_add(1) == Some(at)
        {
            last.ports = *last.ports.start()..=at;
            continue;
        }
        before = Some(run);
        let of_family = |addr: &IpAddr| families[usize::from(addr.is_ipv6())];
        let to = match listen {
            // One of the other family is reached by translation, if the segment has that.
            Some(_) => endpoint.ips(),
            None if families == [true; 2] => endpoint.ips(),
            None => endpoint.ips().into_iter().filter(of_family).collect(),
        };
        publications.push(NatPublication {
            protocol,
            listen,
            ports: at..=at,
            network: endpoint.network,
            port,
            to,
            to_port: container,
        });
    }
    publications.retain(|publication| !publication.to.is_empty());
    publications
}

#[cfg(test)]
mod tests {
    use datapath::PortId;
    use nat::Protocol;
    use netns::Target;
    use worker::NetworkId;

    use super::*;
    use crate::api;
    use crate::network::Network;

    fn endpoint(published: &[(&str, u16, Protocol)]) -> Endpoint {
        let subnets = vec!["10.0.0.0/24".into(), "fd00::/64".into()];
        let request = api::NetworkCreate {
            name: "lan".into(),
            uplink: "raw:eth0".parse().unwrap(),
            subnets,
            ..api::NetworkCreate::default()
        };
        let network = Network::plan(NetworkId(2), request, &[]).unwrap();
        let none = std::iter::empty::<&Endpoint>();
        let create = api::EndpointCreate::default();
        let planned = Endpoint::plan(&network, none, &create, Target::Pid(1), 1);
        let mut endpoint = planned.unwrap();
        endpoint.port = Some(PortId(7));
        let published = published.iter().map(|(listen, container, protocol)| Published {
            id: None,
            protocol: *protocol,
            listen: listen.parse().unwrap(),
            container: *container,
            splice: false,
        });
        endpoint.published = published.collect();
        endpoint
    }

    fn rules(published: &[(&str, u16, Protocol)]) -> Vec<String> {
        let own: IpAddr = "203.0.113.5".parse().unwrap();
        let rules = publications(&endpoint(published), |addr| addr == own);
        let text = |rule: NatPublication| {
            let listen = rule.listen.map_or("*".to_owned(), |addr| addr.to_string());
            let to: Vec<_> = rule.to.iter().map(ToString::to_string).collect();
            let (first, last) = (rule.ports.start(), rule.ports.end());
            format!("{} {listen} {first}-{last} {} {}", rule.protocol, to.join(","), rule.to_port)
        };
        rules.into_iter().map(text).collect()
    }

    #[test]
    fn a_published_range_is_one_rule_and_loopback_none() {
        use Protocol::{Tcp, Udp};
        assert_eq!(
            rules(&[
                ("0.0.0.0:8002", 82, Tcp),
                ("[::]:8002", 82, Tcp),
                ("0.0.0.0:8000", 80, Tcp),
                ("[::]:8000", 80, Tcp),
                ("0.0.0.0:8001", 81, Tcp),
                ("[::]:8001", 81, Tcp),
                ("0.0.0.0:8003", 90, Tcp),
                ("0.0.0.0:8004", 91, Tcp),
                ("[::]:9000", 9000, Udp),
                ("127.0.0.1:7000", 70, Tcp),
                ("198.51.100.1:7000", 70, Tcp),
                ("203.0.113.5:8001", 18, Tcp),
            ]),
            [
                "tcp 203.0.113.5 8001-8001 10.0.0.2,fd00::2 18",
                "tcp * 8000-8002 10.0.0.2,fd00::2 80",
                "tcp * 8003-8004 10.0.0.2 90",
                "udp * 9000-9000 fd00::2 9000",
            ]
        );
        let every: Vec<_> = (1..=u16::MAX).map(|port| format!("0.0.0.0:{port}")).collect();
        let every: Vec<_> = every.iter().map(|text| (&**text, 9, Tcp)).collect();
        // One container port for all of them is a rule for each.
        assert_eq!(rules(&every[..3]).len(), 3);
        let every: Vec<_> =
            every.iter().zip(1..=u16::MAX).map(|((text, ..), at)| (*text, at, Tcp)).collect();
        assert_eq!(rules(&every), ["tcp * 1-65535 10.0.0.2 1"]);
    }
}
