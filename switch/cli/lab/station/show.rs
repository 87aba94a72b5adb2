//! What a namespace has, as ip(8) would print it.

use netns::table;

use crate::failure::Outcome;
use crate::output::print;

pub(super) fn links() -> Outcome {
    let interfaces = table::interfaces()?;
    print(&interfaces.iter().map(link).collect::<Vec<_>>().join("\n"))
}

pub(super) fn routes() -> Outcome {
    let routes = table::routes()?;
    let v4 = routes.iter().filter(|route| route.dst.addr().is_ipv4());
    print(&v4.map(route).collect::<Vec<_>>().join("\n"))
}

pub(super) fn neighbours() -> Outcome {
    let neighbours = table::all_neighbours()?;
    let v4 = neighbours.iter().filter(|neighbour| neighbour.address.is_ipv4());
    print(&v4.map(neighbour).collect::<Vec<_>>().join("\n"))
}

fn link(interface: &table::Interface) -> String {
    let mut flags = vec![if interface.loopback { "LOOPBACK" } else { "BROADCAST,MULTICAST" }];
    flags.extend(interface.up.then_some("UP"));
    let kind = if interface.loopback { "loopback" } else { "ether" };
    let mac = interface.mac.map(text_of).unwrap_or_default();
    let mut text = format!(
        "{}: {}: <{}> mtu {}\n    link/{kind} {mac}",
        interface.ifindex,
        interface.name,
        flags.join(","),
        interface.mtu
    );
    for address in interface.addresses.iter().filter(|address| address.addr().is_ipv4()) {
        text += &format!("\n    inet {address}");
    }
    text
}

fn route(route: &table::Route) -> String {
    let mut text = match route.dst.prefix_len() {
        0 => "default".to_owned(),
        _ => route.dst.to_string(),
    };
    if let Some(via) = route.via {
        text += &format!(" via {via}");
    }
    text += &format!(" dev {}", route.ifname);
    if let Some(source) = route.source {
        text += &format!(" src {source}");
    }
    text
}

fn neighbour(neighbour: &table::Neighbour) -> String {
    let lladdr = neighbour.lladdr.map(|mac| format!(" lladdr {}", text_of(mac)));
    let (address, ifname, state) = (neighbour.address, &neighbour.ifname, &neighbour.state);
    format!("{address} dev {ifname}{} {state}", lladdr.unwrap_or_default())
}

fn text_of(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_ips() {
        let interface = table::Interface {
            ifindex: 2,
            name: "eth0".to_owned(),
            mac: Some([2, 0x42, 172, 18, 0, 10]),
            mtu: 1500,
            up: true,
            loopback: false,
            addresses: vec!["172.18.0.10/16".parse().expect("a prefix")],
        };
        assert_eq!(
            link(&interface),
            "2: eth0: <BROADCAST,MULTICAST,UP> mtu 1500\n    link/ether 02:42:ac:12:00:0a\n    \
             inet 172.18.0.10/16"
        );
        let mut connected = table::Route {
            dst: "172.18.0.0/16".parse().expect("a prefix"),
            via: None,
            ifname: "br0".to_owned(),
            source: "172.18.0.1".parse().ok(),
            priority: 0,
        };
        assert_eq!(route(&connected), "172.18.0.0/16 dev br0 src 172.18.0.1");
        connected.dst = "0.0.0.0/0".parse().expect("a prefix");
        (connected.via, connected.source) = ("172.18.0.1".parse().ok(), None);
        assert_eq!(route(&connected), "default via 172.18.0.1 dev br0");
        let known = table::Neighbour {
            ifname: "eth0".to_owned(),
            address: [172, 18, 0, 20].into(),
            lladdr: Some([2, 0x42, 172, 18, 0, 20]),
            state: "STALE".to_owned(),
        };
        assert_eq!(neighbour(&known), "172.18.0.20 dev eth0 lladdr 02:42:ac:12:00:14 STALE");
    }
}
