//! Endpoints as their containers see them, and frames between them.

use std::net::IpAddr;

use netns::{
    Endpoint, EndpointConfig, Error, Kind, Opened, SocketKind, add_addresses, add_routes, attach,
    detach, look, set_gateways, sockets_in,
};
use serde_json::Value;

use crate::Case;
use crate::lab::{Container, Wire, config, eventually, pattern, receive, send, transfer};

pub(crate) const CASES: &[Case] = &[
    ("a_tap_is_what_was_asked_for", a_tap_is_what_was_asked_for),
    ("a_veth_is_what_was_asked_for", a_veth_is_what_was_asked_for),
    ("offloading_taps_exchange_segmented_frames", offloading_taps_exchange_segmented_frames),
    ("veth_pairs_exchange_segmented_frames", veth_pairs_exchange_segmented_frames),
    ("a_veth_and_a_tap_speak_one_header", a_veth_and_a_tap_speak_one_header),
    ("many_queues_carry_each_frame_once", many_queues_carry_each_frame_once),
    ("a_plain_tap_carries_whole_small_frames", a_plain_tap_carries_whole_small_frames),
    ("a_vlan_tag_survives_both_kinds", a_vlan_tag_survives_both_kinds),
    ("a_persistent_tap_is_only_opened", a_persistent_tap_is_only_opened),
    ("closing_the_descriptors_removes_everything", closing_the_descriptors_removes_everything),
    ("a_failure_leaves_nothing_behind", a_failure_leaves_nothing_behind),
    ("each_refusal_names_its_cause", each_refusal_names_its_cause),
    ("a_container_without_ipv6_gets_it_only_if_asked", ipv6_only_if_asked),
    ("gateways_addresses_and_routes_change_later", gateways_addresses_and_routes_change_later),
    ("an_mtu_below_ipv6s_is_no_obstacle_without_it", small_mtu),
    ("detaching_twice_is_fine", detaching_twice_is_fine),
    ("sockets_live_where_they_were_opened", sockets_live_where_they_were_opened),
    ("links_are_built_and_moved", links_are_built_and_moved),
];

fn a_tap_is_what_was_asked_for() {
    let container = Container::new();
    let mut wanted = config("eth0", 2, Kind::Tap);
    wanted.mtu = 9000;
    wanted.queues = 2;
    wanted.gateways = vec![ip("192.0.2.1"), ip("2001:db8::1")];
    let endpoint = attach(&container.netns, &wanted).expect("attach");
    assert_eq!(endpoint.opened, Opened::TapOffload);
    assert_eq!(endpoint.queues.len(), 2);
    assert_eq!(endpoint.netns_inode, container.netns.inode());
    check(&container, &wanted, &endpoint);
    let detail = container.run("ip -d -j link show dev eth0");
    let detail: Value = serde_json::from_str(&detail).expect("JSON of ip");
    let data = &detail[0]["linkinfo"]["info_data"];
    assert_eq!(data["type"], "tap");
    assert_eq!(data["vnet_hdr"], true);
    assert_eq!(data["multi_queue"], true);
    assert_eq!(data["persist"], false);
    assert_eq!(data["numqueues"], 2);
    let features = container.run("ethtool -k eth0");
    for on in ["tx-checksumming: on", "tcp-segmentation-offload: on", "tx-udp-segmentation: on"] {
        assert!(features.contains(on), "{on}: {features}");
    }
}

fn a_veth_is_what_was_asked_for() {
    let container = Container::new();
    let mut wanted = config("eth0", 2, Kind::Veth);
    wanted.mtu = 1400;
    wanted.gateways = vec![ip("192.0.2.1"), ip("fe80::1")];
    let endpoint = attach(&container.netns, &wanted).expect("attach");
    assert_eq!(endpoint.opened, Opened::Packet);
    check(&container, &wanted, &endpoint);
    assert!(container.run("ip -d link show dev eth0").contains("veth"));
}

/// The kernel has no IPv6 there (RFC 8200 §5), and nobody asked for any.
fn small_mtu() {
    for kind in [Kind::Tap, Kind::Veth] {
        let container = Container::new();
        let mut wanted = config("eth0", 2, kind);
        wanted.mtu = 68;
        wanted.addresses.retain(|address| address.addr().is_ipv4());
        let _endpoint = attach(&container.netns, &wanted).expect("attach");
        let shown = container.run("ip addr show dev eth0");
        assert!(shown.contains("mtu 68 ") && shown.contains("192.0.2.2/24"), "{shown}");
        assert!(!shown.contains("inet6"), "{shown}");
    }
}

/// What `ip` says of the interface is what was asked for.
fn check(container: &Container, wanted: &EndpointConfig, endpoint: &Endpoint) {
    let name = &wanted.ifname;
    let shown = container.run(&format!("ip -j addr show dev {name}"));
    let shown: Value = serde_json::from_str(&shown).expect("JSON of ip");
    let shown = &shown[0];
    let flags = shown["flags"].as_array().expect("flags");
    assert!(flags.contains(&Value::from("UP")) && flags.contains(&Value::from("LOWER_UP")));
    assert_eq!(shown["ifindex"], endpoint.ifindex);
    assert_eq!(shown["mtu"], wanted.mtu);
    assert_eq!(shown["address"], "02:42:c0:00:02:02");
    let addresses = shown["addr_info"].as_array().expect("addresses");
    let has = |text: &str| addresses.iter().any(|address| address["local"] == text);
    assert!(has("192.0.2.2") && has("2001:db8::2") && has("fe80::42:c0ff:fe00:202"), "{shown}");
    assert_eq!(addresses.len(), 3, "{shown}");
    assert!(addresses.iter().all(|address| address["tentative"].is_null()), "{shown}");
    let v4 = addresses.iter().find(|address| address["family"] == "inet").expect("IPv4");
    assert_eq!(v4["broadcast"], "192.0.2.255");
    assert!(container.run("ip link show dev lo").contains("LOOPBACK,UP"));
    let routes = container.run("ip route") + &container.run("ip -6 route");
    for gateway in &wanted.gateways {
        let line = format!("default via {gateway} dev {name}");
        assert!(routes.contains(&line), "{line}: {routes}");
    }
    // The same by our own eyes.
    let view = look(&container.netns).expect("look");
    let found = view.interfaces.iter().find(|found| found.name == *name).expect("interface");
    assert_eq!((found.mac, found.up), (Some(wanted.mac), true));
    assert_eq!((found.ifindex, found.mtu), (endpoint.ifindex, u32::from(wanted.mtu)));
    assert!(wanted.addresses.iter().all(|address| found.addresses.contains(address)));
    let defaults = view.routes.iter().filter(|route| route.dst.prefix_len() == 0);
    let vias: Vec<IpAddr> = defaults.filter_map(|route| route.via).collect();
    assert_eq!(vias, wanted.gateways);
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pair(kinds: [Kind; 2], queues: u16, mtu: u16) -> (Container, Container, Wire) {
    let (a, b) = (Container::new(), Container::new());
    let attached = |container: &Container, host, kind| {
        let config = EndpointConfig { queues, mtu, ..config("eth0", host, kind) };
        attach(&container.netns, &config).expect("attach")
    };
    let wire = Wire::between(attached(&a, 2, kinds[0]), attached(&b, 3, kinds[1]));
    (a, b, wire)
}

fn offloading_taps_exchange_segmented_frames() {
    segmented_both_ways([Kind::Tap, Kind::Tap]);
}

fn veth_pairs_exchange_segmented_frames() {
    segmented_both_ways([Kind::Veth, Kind::Veth]);
}

fn a_veth_and_a_tap_speak_one_header() {
    segmented_both_ways([Kind::Veth, Kind::Tap]);
}

fn segmented_both_ways(kinds: [Kind; 2]) {
    let (a, b, wire) = pair(kinds, 1, 1500);
    a.run("ping -c 3 -i 0.01 -W 5 192.0.2.3");
    b.run("ping -c 3 -i 0.01 -W 5 2001:db8::2");
    // 1400 octets, unfragmented: as large as a datagram can be with what ping adds.
    a.run("ping -c 1 -W 5 -M do -s 1472 192.0.2.3");
    transfer(&a.netns, &b.netns, "192.0.2.3", 4 << 20);
    transfer(&b.netns, &a.netns, "2001:db8::2", 4 << 20);
    let view = look(&a.netns).expect("look");
    let peer = view.neighbours.iter().find(|found| found.address == ip("192.0.2.3"));
    let peer = peer.expect("resolved by now");
    assert_eq!(peer.lladdr, Some([0x02, 0x42, 192, 0, 2, 3]));
    assert_eq!(peer.ifname, "eth0");
    for seen in wire.stop() {
        assert!(seen.segmented > 0, "{seen:?}");
        assert!(seen.longest > 10 + 14 + 1500, "{seen:?}");
    }
}

fn many_queues_carry_each_frame_once() {
    for kind in [Kind::Tap, Kind::Veth] {
        let (a, b, wire) = pair([kind, kind], 4, 1500);
        // ping counts duplicates and says so.
        let said = a.run("ping -c 20 -i 0.005 -W 5 192.0.2.3");
        assert!(said.contains("20 received") && !said.contains("DUP"), "{said}");
        for _ in 0..4 {
            transfer(&a.netns, &b.netns, "192.0.2.3", 1 << 20);
        }
        drop(wire);
    }
}

fn a_plain_tap_carries_whole_small_frames() {
    let (a, b, wire) = pair([Kind::TapPlain, Kind::TapPlain], 1, 1500);
    a.run("ping -c 3 -i 0.01 -W 5 192.0.2.3");
    transfer(&a.netns, &b.netns, "2001:db8::3", 1 << 20);
    for seen in wire.stop() {
        assert!(seen.longest <= 14 + 1500, "{seen:?}");
    }
}

fn a_vlan_tag_survives_both_kinds() {
    for kind in [Kind::Tap, Kind::Veth] {
        let container = Container::new();
        let endpoint = attach(&container.netns, &config("eth0", 2, kind)).expect("attach");
        // 802.1Q, VLAN 5, priority 3, then a type nobody else here sends.
        let mut frame = [vec![0; 10], vec![0xff; 12]].concat();
        frame.extend([0x81, 0, 0x60, 5, 0x88, 0xb5]);
        frame.extend((0..46).map(pattern));
        let open = || netns::packet_sockets("eth0", 1);
        let inside = container.netns.enter(open).expect("open").pop().expect("one");
        netns::send_frame(&inside, &frame).expect("send inside");
        let mut buf = [0; 2048];
        let mut got = None;
        // Whatever the container's own kernel says at its start comes before.
        eventually("the frame is read outside", || {
            got = receive(&endpoint, &endpoint.queues[0], &mut buf);
            got.is_some_and(|len| buf[..len].ends_with(&frame[26..]))
        });
        assert_eq!(buf[10..got.expect("read")], frame[10..], "{kind:?}");
        // And in: what we send with a tag has one inside.
        send(&endpoint, &frame);
        eventually("the frame is read inside", || {
            let len = netns::recv_frame(&inside, &mut buf).unwrap_or(0);
            buf[..len].ends_with(&frame[26..])
        });
        assert_eq!(buf[10..frame.len()], frame[10..], "{kind:?}");
    }
}

fn a_persistent_tap_is_only_opened() {
    for many in ["", " multi_queue"] {
        let container = Container::new();
        container.run(&format!("ip tuntap add name tap0 mode tap{many}"));
        container.run("ip link set dev tap0 up mtu 1300");
        let before = container.run("ip -j addr show dev lo");
        let wanted = EndpointConfig { queues: 2, ..config("tap0", 9, Kind::TapExisting) };
        let endpoint = attach(&container.netns, &wanted).expect("attach");
        assert_eq!(endpoint.opened, Opened::TapOffload);
        assert_eq!(endpoint.queues.len(), if many.is_empty() { 1 } else { 2 });
        let shown = container.run("ip addr show dev tap0");
        assert!(shown.contains("mtu 1300") && !shown.contains("192.0.2.9"), "{shown}");
        assert_eq!(container.run("ip -j addr show dev lo"), before);
        drop(endpoint);
        assert!(container.has("tap0"));
    }
    let err = attach(&Container::new().netns, &config("tap0", 9, Kind::TapExisting));
    assert!(matches!(err, Err(Error::NoSuchInterface { .. })), "{err:?}");
}

fn closing_the_descriptors_removes_everything() {
    for kind in [Kind::Tap, Kind::TapPlain, Kind::Veth] {
        let container = Container::new();
        let endpoint = attach(&container.netns, &config("eth0", 2, kind)).expect("attach");
        assert!(container.has("eth0"));
        drop(endpoint);
        eventually("the interface is gone", || !container.has("eth0"));
        let view = look(&container.netns).expect("look");
        assert_eq!(view.interfaces.len(), 1, "{view:?}");
        assert!(view.routes.is_empty(), "{view:?}");
    }
}

fn a_failure_leaves_nothing_behind() {
    // A late step fails: the kernel takes no group address for a gateway, nor for a station.
    let bad_gateway = |kind| {
        let gateways = vec![ip("192.0.2.1"), ip("ff02::1")];
        EndpointConfig { gateways, ..config("eth0", 2, kind) }
    };
    let bad_mac = |kind| EndpointConfig { mac: [1, 0, 0, 0, 0, 1], ..config("eth0", 2, kind) };
    for kind in [Kind::Tap, Kind::TapPlain, Kind::Veth] {
        for wanted in [bad_gateway(kind), bad_mac(kind)] {
            let container = Container::new();
            container.run("ip link set dev lo down");
            let err = attach(&container.netns, &wanted).expect_err("a refusal");
            assert!(matches!(err, Error::Step { .. }), "{err:#}");
            let view = look(&container.netns).expect("look");
            assert_eq!(view.interfaces.len(), 1, "{kind:?}: {view:?}");
            assert!(!view.interfaces[0].up, "lo was down before");
            // A loopback that was up stays up.
            container.run("ip link set dev lo up");
            attach(&container.netns, &wanted).expect_err("a refusal");
            assert!(look(&container.netns).expect("look").interfaces[0].up);
        }
    }
}

fn each_refusal_names_its_cause() {
    let container = Container::new();
    let netns = &container.netns;
    let _first = attach(netns, &config("eth0", 2, Kind::Tap)).expect("attach");
    for kind in [Kind::Tap, Kind::TapPlain, Kind::Veth] {
        let err = attach(netns, &config("eth0", 3, kind)).expect_err("the name is taken");
        assert!(matches!(&err, Error::InterfaceExists { ifname } if ifname == "eth0"), "{err:#}");
        assert!(err.to_string().contains("--ifname"), "{err}");
    }
    let err = attach(netns, &config("sixteen-octets-x", 3, Kind::Tap)).expect_err("too long");
    assert!(matches!(err, Error::BadInterfaceName { .. }), "{err:#}");
    let many = EndpointConfig { queues: 300, ..config("eth1", 3, Kind::Tap) };
    assert!(attach(netns, &many).expect_err("too many").to_string().contains("at most 253"));
    assert!(!container.has("eth1"));
}

fn ipv6_only_if_asked() {
    for kind in [Kind::Tap, Kind::Veth] {
        let container = Container::new();
        container.run(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
        );
        let mut wanted = config("eth0", 2, kind);
        let v6 = wanted.addresses.pop().expect("two addresses");
        let first = attach(&container.netns, &wanted).expect("attach without IPv6");
        assert!(!container.run("ip addr show dev eth0").contains("inet6"));
        // As by `network connect` to one with IPv6.
        add_addresses(&container.netns, "eth0", &[v6]).expect("add IPv6");
        assert!(container.run("ip addr show dev eth0").contains("2001:db8::2/64"));
        drop(first);
        wanted = EndpointConfig { addresses: vec![v6], ..config("eth1", 3, kind) };
        let _second = attach(&container.netns, &wanted).expect("attach with IPv6");
        assert!(container.run("ip addr show dev eth1").contains("2001:db8::2/64"));
    }
}

fn gateways_addresses_and_routes_change_later() {
    let container = Container::new();
    let netns = &container.netns;
    let mut wanted = config("eth0", 2, Kind::Tap);
    wanted.gateways = vec![ip("192.0.2.1"), ip("2001:db8::1")];
    let _endpoint = attach(netns, &wanted).expect("attach");
    set_gateways(netns, "eth0", &[ip("192.0.2.254")]).expect("replace");
    let routes = container.run("ip route") + &container.run("ip -6 route");
    assert!(routes.contains("default via 192.0.2.254 dev eth0"), "{routes}");
    assert_eq!(routes.matches("default").count(), 1, "{routes}");
    // A gateway nobody said a prefix of, as pasta's 169.254.2.2.
    set_gateways(netns, "eth0", &[ip("203.0.113.1"), ip("fe80::1")]).expect("replace");
    let routes = container.run("ip route") + &container.run("ip -6 route");
    assert!(routes.contains("default via 203.0.113.1 dev eth0 proto static onlink"), "{routes}");
    assert!(routes.contains("default via fe80::1 dev eth0"), "{routes}");
    let more = ["198.51.100.7/24".parse().expect("one"), "192.0.2.2/24".parse().expect("there")];
    add_addresses(netns, "eth0", &more).expect("one new, one there already");
    assert!(container.run("ip addr show dev eth0").contains("198.51.100.7/24"));
    let routes = [
        ("203.0.113.0/24".parse().expect("a prefix"), Some(ip("192.0.2.9"))),
        ("2001:db8:1::/48".parse().expect("a prefix"), None),
    ];
    add_routes(netns, "eth0", &routes).expect("add");
    assert!(container.run("ip route").contains("203.0.113.0/24 via 192.0.2.9 dev eth0"));
    assert!(container.run("ip -6 route").contains("2001:db8:1::/48 dev eth0"));
    // The second network of a container has no say over the first one's default route.
    let second = config("eth1", 3, Kind::Tap);
    let second =
        EndpointConfig { addresses: vec!["198.51.100.9/24".parse().expect("one")], ..second };
    let _second = attach(netns, &second).expect("attach");
    let err = set_gateways(netns, "eth1", &[ip("198.51.100.1")]).expect_err("there is one");
    assert!(format!("{err:#}").contains("exists"), "{err:#}");
    set_gateways(netns, "eth0", &[]).expect("give it up");
    set_gateways(netns, "eth1", &[ip("198.51.100.1")]).expect("take it over");
    let err = set_gateways(netns, "eth7", &[]).expect_err("no such interface");
    assert!(matches!(err, Error::NoSuchInterface { .. }), "{err:#}");
}

fn detaching_twice_is_fine() {
    for kind in [Kind::Tap, Kind::Veth] {
        let container = Container::new();
        let _endpoint = attach(&container.netns, &config("eth0", 2, kind)).expect("attach");
        detach(&container.netns, "eth0").expect("detach");
        assert!(!container.has("eth0"));
        detach(&container.netns, "eth0").expect("gone already");
    }
}

fn sockets_live_where_they_were_opened() {
    use std::net::{TcpListener, UdpSocket};
    let container = Container::new();
    let sockets = sockets_in(&container.netns, SocketKind::Udp4, 3).expect("open");
    assert_eq!(sockets.len(), 3);
    // The port is free in every namespace but the container's.
    let taken = container.netns.with(|| UdpSocket::bind("127.0.0.1:0")).expect("bind");
    let at = taken.local_addr().expect("bound");
    let at: nix::sys::socket::SockaddrStorage = at.into();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&sockets[0]);
    let bound = nix::sys::socket::bind(fd, &at);
    assert_eq!(bound, Err(nix::errno::Errno::EADDRINUSE));
    let listening = sockets_in(&container.netns, SocketKind::Tcp6, 1).expect("open");
    TcpListener::from(listening.into_iter().next().expect("one")).set_ttl(9).expect("a socket");
}

fn links_are_built_and_moved() {
    use netns::link;
    let (a, b, c) = (Container::new(), Container::new(), Container::new());
    link::create_veth_pair("left", &a.netns, "right", &b.netns).expect("a pair");
    assert!(a.has("left") && b.has("right") && !a.has("right"));
    let err = link::create_veth_pair("left", &a.netns, "new", &b.netns).expect_err("taken");
    assert!(matches!(err, Error::InterfaceExists { .. }), "{err:#}");
    assert!(!b.has("new"));
    let file = std::fs::File::open("/proc/self/exe").expect("ourselves");
    let err = link::create_veth_pair("new", &a.netns, "new", &file).expect_err("no namespace");
    assert_eq!(err.errno(), Some(libc::EINVAL), "{err:#}");
    assert!(!a.has("new"));
    b.netns
        .enter(|| {
            link::rename("right", "port")?;
            link::move_interface("port", &c.netns)
        })
        .expect("move");
    for (container, name, host) in [(&a, "left", 1), (&c, "port", 2)] {
        let address = format!("198.51.100.{host}/24").parse().expect("an address");
        container
            .netns
            .enter(|| {
                link::set_mtu(name, 1400)?;
                link::set_mac(name, [2, 0, 0, 0, 0, host])?;
                link::add_address(name, address)?;
                link::set_up(name)
            })
            .expect("configure");
    }
    a.run("ping -c 1 -W 5 198.51.100.2");
    let far = "203.0.113.0/24".parse().expect("a prefix");
    a.netns
        .enter(|| {
            link::add_route(far, ip("198.51.100.2"))?;
            let err = link::add_route(far, ip("198.51.100.2")).expect_err("there already");
            assert_eq!(err.errno(), Some(libc::EEXIST));
            let err = link::add_route(far, ip("192.0.2.1")).expect_err("no such network");
            assert!(format!("{err:#}").contains("Nexthop has invalid gateway"), "{err:#}");
            link::remove_route(far, "left")?;
            link::remove_address("left", "198.51.100.1/24".parse().expect("an address"))?;
            link::set_down("left")?;
            link::delete("left")
        })
        .expect("take down");
    assert!(!a.has("left") && !c.has("port"));
}
