//! Datagrams to the world and to published ports: what RFC 4787 and RFC 5508 ask of a NAT, and what a
//! socket uplink must not take away from a datagram.

mod lab;
mod udp;

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use lab::{HOST, Lab, NET, PATIENCE, WORLD, WORLD6, at, wait_for};
use nat::Protocol;
use netns::Kind;
use netns::datagram::{path_mtu, set_may_fragment};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, recvmsg, setsockopt, socket, sockopt,
};
use udp::{ask, publish, socket_at};
use worker::Publication;

/// The host's `ip_local_port_range` in a namespace nobody has configured.
const HOSTS_RANGE: std::ops::RangeInclusive<u16> = 32_768..=60_999;

fn gateway_drops(lab: &Lab, reason: &str) -> u64 {
    let stats = lab.switch.stats(NET);
    let found = stats[0].1.tx_dropped.iter().find(|(name, _)| *name == reason);
    found.map_or(0, |(_, count)| *count)
}

/// Makes `socket` tell TTL and traffic class of what it receives.
fn want_class(socket: &UdpSocket, v4: bool) {
    if v4 {
        setsockopt(socket, sockopt::Ipv4RecvTtl, &true).unwrap();
        setsockopt(socket, sockopt::IpRecvTos, &true).unwrap();
    } else {
        setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true).unwrap();
        setsockopt(socket, sockopt::Ipv6RecvTClass, &true).unwrap();
    }
}

/// What a socket sends with from now on.
fn set_class(socket: &UdpSocket, v4: bool, hop_limit: u8, class: u8) {
    if v4 {
        setsockopt(socket, sockopt::Ipv4Ttl, &hop_limit.into()).unwrap();
        setsockopt(socket, sockopt::Ipv4Tos, &class.into()).unwrap();
    } else {
        setsockopt(socket, sockopt::Ipv6Ttl, &hop_limit.into()).unwrap();
        setsockopt(socket, sockopt::Ipv6TClass, &class.into()).unwrap();
    }
}

/// One datagram with its TTL and traffic class.
fn receive(socket: &UdpSocket) -> (Vec<u8>, i32, u8) {
    let mut buffer = [0; 2048];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([libc::c_int; 8]);
    let flags = MsgFlags::empty();
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)
            .unwrap();
    let (len, mut hops, mut class) = (message.bytes, 0, 0);
    for control in message.cmsgs().unwrap() {
        match control {
            ControlMessageOwned::Ipv4Ttl(value) | ControlMessageOwned::Ipv6HopLimit(value) => {
                hops = value;
            }
            ControlMessageOwned::Ipv4Tos(value) => class = value,
            ControlMessageOwned::Ipv6TClass(value) => class = u8::try_from(value).unwrap(),
            _ => {}
        }
    }
    (buffer[..len].to_vec(), hops, class)
}

#[test]
fn one_containers_udp_flows_leave_room_for_anothers() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let (greedy, modest) = (lab.container(10, Kind::Tap), lab.container(11, Kind::Tap));
    let far = socket_at(&lab.world, at(WORLD, 7001));
    let before = socket_at(&modest.netns, at("0.0.0.0", 40_000));
    ask(&before, &far, at(WORLD, 7001));
    let spray: Vec<_> =
        (0..3).map(|n| socket_at(&greedy.netns, at("0.0.0.0", 50_000 + n))).collect();
    // More than its quota; refusals come back as errors of later sends, and a full queue loses some.
    let mut ports = (10_000..14_000).cycle();
    wait_for("the container's quota to be full", || {
        for port in ports.by_ref().take(100) {
            for socket in &spray {
                let _ = socket.send_to(b"x", at(WORLD, port));
            }
        }
        lab.switch.flows(None).len() >= 4000
    });
    let flows = lab.switch.flows(None);
    assert!(flows.len() <= 4001, "its quota: {}", flows.len());
    ask(&before, &far, at(WORLD, 7001));
    let after = socket_at(&modest.netns, at("0.0.0.0", 40_001));
    ask(&after, &far, at(WORLD, 7001));
    // Who sprays pays, and can still speak: its own flow that waited longest goes.
    ask(&spray[0], &far, at(WORLD, 7001));
}

#[test]
fn u4_a_container_takes_no_port_the_host_does_not_give_away() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let far = socket_at(&lab.world, at(WORLD, 7001));
    let far6 = socket_at(&lab.world, at(WORLD6, 7001));
    for inside in [53, 1023, 1024, 5353, 32_768, 40_000, 40_001, 60_999, 61_000] {
        let v4 = socket_at(&container.netns, SocketAddr::new(container.addr, inside));
        let v6 = socket_at(&container.netns, SocketAddr::new(container.addr6, inside));
        let (seen, seen6) = (ask(&v4, &far, at(WORLD, 7001)), ask(&v6, &far6, at(WORLD6, 7001)));
        assert!(HOSTS_RANGE.contains(&seen.port()), "{inside}: {seen}");
        assert_eq!(seen.port() == inside, HOSTS_RANGE.contains(&inside), "{inside}: {seen}");
        assert_eq!(seen.port() % 2, inside % 2, "RFC 4787 REQ-4: parity");
        assert_eq!(seen.port(), seen6.port(), "both families of one inside port");
    }
}

#[test]
fn u3_two_containers_with_one_inside_port_have_an_outside_port_each() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let far = socket_at(&lab.world, at(WORLD, 7001));
    let mut seen = BTreeSet::new();
    for last in 10..13 {
        let container = lab.container(last, Kind::Tap);
        let inside = socket_at(&container.netns, at("0.0.0.0", 40_000));
        seen.insert(ask(&inside, &far, at(WORLD, 7001)));
    }
    assert_eq!(seen.len(), 3, "RFC 4787 REQ-3: no overloading: {seen:?}");
}

#[test]
fn a_port_that_is_published_is_taken_back_from_a_mapping_that_goes_on_by_another() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 3] {
        let lab = Lab::new(workers);
        let (client, server) = (lab.container(10, Kind::Tap), lab.container(11, Kind::Tap));
        let far = socket_at(&lab.world, at(WORLD, 7001));
        let inside = socket_at(&client.netns, at("0.0.0.0", 40_000));
        assert_eq!(ask(&inside, &far, at(WORLD, 7001)), at(HOST, 40_000));
        publish(&lab, &server, Protocol::Udp, at("0.0.0.0", 40_000));
        let seen = ask(&inside, &far, at(WORLD, 7001));
        assert_ne!(seen.port(), 40_000);
        far.send_to(b"answer", seen).unwrap();
        let mut buffer = [0; 64];
        assert_eq!(inside.recv_from(&mut buffer).unwrap(), (6, at(WORLD, 7001)));
        let published = socket_at(&server.netns, at("0.0.0.0", 80));
        far.send_to(b"request", at(HOST, 40_000)).unwrap();
        assert_eq!(published.recv_from(&mut buffer).unwrap(), (7, at(WORLD, 7001)));
    }
}

#[test]
fn ttl_tos_and_ecn_cross_in_both_directions_each_datagrams_own() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(2);
    let container = lab.container(10, Kind::Tap);
    for (world, any) in [(WORLD, "0.0.0.0"), (WORLD6, "::")] {
        let v4 = world == WORLD;
        let far = socket_at(&lab.world, at(world, 7001));
        let inside = socket_at(&container.netns, at(any, 40_000));
        let seen = ask(&inside, &far, at(world, 7001));
        for (sender, receiver, to) in [(&inside, &far, at(world, 7001)), (&far, &inside, seen)] {
            want_class(receiver, v4);
            // DSCP and ECN's ECT(1), ECT(0), CE and none.
            for n in 0..200_u8 {
                let (hops, class) = (30 + n % 7, [0xb8 | 1, 2, 3, 0][usize::from(n % 4)]);
                set_class(sender, v4, hops, class);
                sender.send_to(&[hops, class], to).unwrap();
            }
            for n in 0..200 {
                let (payload, hops, class) = receive(receiver);
                assert_eq!(hops, i32::from(payload[0]) - 1, "datagram {n} {world}");
                assert_eq!(class, payload[1], "datagram {n} {world}");
            }
        }
    }
}

#[test]
fn u13_a_datagram_that_may_not_be_cut_is_answered_with_the_paths_true_mtu() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    lab.host.enter(|| netns::link::set_mtu("up", 1400)).unwrap();
    for (world, any, headers) in [(WORLD, "0.0.0.0", 28), (WORLD6, "::", 48)] {
        let v4 = world == WORLD;
        let far = socket_at(&lab.world, at(world, 7001));
        let inside = socket_at(&container.netns, at(any, 40_000));
        inside.connect(at(world, 7001)).unwrap();
        set_may_fragment(&inside, v4, false).unwrap();
        let mut buffer = [0; 2048];
        inside.send(&[1; 1500][headers..]).unwrap();
        wait_for("the path's MTU", || path_mtu(&inside, v4).unwrap() == 1400);
        // RFC 1191 §3, RFC 8201 §4: what fits goes through, what does not is refused at once.
        wait_for("the error to be taken note of", || inside.take_error().unwrap().is_none());
        inside.send(&[2; 1400][headers..]).unwrap();
        assert_eq!(far.recv(&mut buffer).unwrap(), 1400 - headers);
        let refused = inside.send(&[3; 1401][headers..]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
    }
    // Without DF the host cuts it, and the far side puts it together (RFC 4787 REQ-13).
    let far = socket_at(&lab.world, at(WORLD, 7002));
    let other = lab.container(11, Kind::Tap);
    let inside = socket_at(&other.netns, at("0.0.0.0", 40_001));
    set_may_fragment(&inside, true, true).unwrap();
    let mut buffer = [0; 2048];
    for len in [1372, 1373, 1472] {
        inside.send_to(&vec![4; len], at(WORLD, 7002)).unwrap();
        assert_eq!(far.recv(&mut buffer).unwrap(), len);
    }
}

#[test]
fn u13_what_a_router_on_the_way_says_of_the_mtu_reaches_the_container() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let far = netns::Netns::create().unwrap();
    netns::link::create_veth_pair("narrow", &lab.world, "far", &far).unwrap();
    for (netns, ifname, addr) in
        [(&lab.world, "narrow", "203.0.113.1/24"), (&far, "far", "203.0.113.2/24")]
    {
        netns
            .enter(|| {
                netns::link::set_mtu(ifname, 1300)?;
                netns::link::add_address(ifname, addr.parse().unwrap())?;
                netns::link::set_up(ifname)
            })
            .unwrap();
    }
    far.enter(|| {
        netns::link::add_route("0.0.0.0/0".parse().unwrap(), "203.0.113.1".parse().unwrap())
    })
    .unwrap();
    let sink = socket_at(&far, at("203.0.113.2", 7001));
    let inside = socket_at(&container.netns, at("0.0.0.0", 40_000));
    inside.connect(at("203.0.113.2", 7001)).unwrap();
    set_may_fragment(&inside, true, false).unwrap();
    inside.send(&[1; 1472]).unwrap();
    wait_for("the path's MTU", || path_mtu(&inside, true).unwrap() == 1300);
    wait_for("the error to be taken note of", || inside.take_error().unwrap().is_none());
    inside.send(&[2; 1272]).unwrap();
    assert_eq!(sink.recv(&mut [0; 2048]).unwrap(), 1272);
}

#[test]
fn u13_a_published_servers_long_answer_is_told_the_paths_mtu_too() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    lab.host.enter(|| netns::link::set_mtu("up", 1400)).unwrap();
    publish(&lab, &container, Protocol::Udp, at("0.0.0.0", 8080));
    let server = socket_at(&container.netns, at("0.0.0.0", 80));
    set_may_fragment(&server, true, false).unwrap();
    let client = socket_at(&lab.world, at(WORLD, 40_001));
    let mut buffer = [0; 2048];
    client.send_to(b"request", at(HOST, 8080)).unwrap();
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.connect(from).unwrap();
    server.send(&[1; 1472]).unwrap();
    wait_for("the path's MTU", || path_mtu(&server, true).unwrap() == 1400);
}

#[test]
fn requests_by_broadcast_and_from_link_local_clients_are_answered_by_the_way_they_came() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    publish(&lab, &container, Protocol::Udp, at("0.0.0.0", 8080));
    publish(&lab, &container, Protocol::Udp, at("::", 8080));
    let mut buffer = [0; 64];
    let server = socket_at(&container.netns, SocketAddr::new(container.addr, 80));

    let client = socket_at(&lab.world, at(WORLD, 40_001));
    client.set_broadcast(true).unwrap();
    client.send_to(b"broadcast", at("198.51.100.255", 8080)).unwrap();
    let (len, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(from, at(WORLD, 40_001), "it sees the client");
    server.send_to(&buffer[..len], from).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap(), (9, at(HOST, 8080)));

    // Two interfaces, so that the address alone does not say which one.
    netns::link::create_veth_pair("up2", &lab.host, "down2", &lab.world).unwrap();
    for (netns, ifname, addr) in [
        (&lab.host, "up", "fe80::1/64"),
        (&lab.host, "up2", "fe80::11/64"),
        (&lab.world, "down", "fe80::2/64"),
        (&lab.world, "down2", "fe80::12/64"),
    ] {
        netns
            .enter(|| {
                netns::link::set_up(ifname)?;
                netns::link::add_address(ifname, addr.parse().unwrap())
            })
            .unwrap();
    }
    let scope =
        |ifname: &str| lab.world.with(|| Ok(nix::net::if_::if_nametoindex(ifname)?)).unwrap();
    let with_scope = |addr: &str, port, ifname| {
        SocketAddr::V6(SocketAddrV6::new(addr.parse().unwrap(), port, 0, scope(ifname)))
    };
    for (ifname, own, hosts) in [("down2", "fe80::12", "fe80::11"), ("down", "fe80::2", "fe80::1")]
    {
        let client = lab
            .world
            .with(|| {
                // A tentative address cannot be bound yet (RFC 4862 §5.4).
                let deadline = std::time::Instant::now() + PATIENCE;
                loop {
                    match UdpSocket::bind(with_scope(own, 40_002, ifname)) {
                        Err(_) if std::time::Instant::now() < deadline => {
                            std::thread::sleep(Duration::from_millis(20));
                        }
                        bound => return bound,
                    }
                }
            })
            .unwrap();
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let server = socket_at(&container.netns, SocketAddr::new(container.addr6, 80));
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            // The host's own address may still be tentative.
            client.send_to(b"request", with_scope(hosts, 8080, ifname)).unwrap();
            server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            if let Ok((len, from)) = server.recv_from(&mut buffer) {
                assert_eq!(from.ip(), "fd00:18::1".parse::<IpAddr>().unwrap());
                server.send_to(&buffer[..len], from).unwrap();
            }
            if let Ok((len, from)) = client.recv_from(&mut buffer) {
                assert_eq!((len, from), (7, with_scope(hosts, 8080, ifname)));
                break;
            }
            assert!(std::time::Instant::now() < deadline, "no answer by {ifname}");
        }
    }
}

#[test]
fn i2_only_echo_replies_to_its_own_requests_reach_a_container() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    // The world answers nothing by itself: this test does.
    lab.world.with(|| std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1")).unwrap();
    container.netns.with(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")).unwrap();
    let icmp = |netns: &netns::Netns, kind| {
        let fd: OwnedFd = netns
            .with(|| {
                Ok(socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?)
            })
            .unwrap();
        // ICMP needs no more of a socket than UDP does: send to, receive from.
        let socket = UdpSocket::from(fd);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let raw = icmp(&lab.world, SockType::Raw);
    let ping = icmp(&container.netns, SockType::Datagram);
    ping.send_to(&[8, 0, 0, 0, 0, 0, 0, 1, b'h', b'i'], at(WORLD, 0)).unwrap();
    let mut buffer = [0; 2048];
    let len = raw.recv(&mut buffer).unwrap();
    let request = buffer[20..len].to_vec();
    assert_eq!((request[0], &request[8..]), (8, &b"hi"[..]));
    let reply = |kind, code| {
        let mut message = request.clone();
        message[..4].copy_from_slice(&[kind, code, 0, 0]);
        let sum: u32 =
            message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        message[2..4].copy_from_slice(&(!folded).to_be_bytes());
        raw.send_to(&message, at(HOST, 0)).unwrap();
    };
    // A reply with a code, and an extended echo reply (RFC 8335), which a ping socket is given, too.
    reply(0, 1);
    reply(43, 0);
    wait_for("both to be dropped", || gateway_drops(&lab, "filtered") == 2);
    reply(0, 0);
    let len = ping.recv(&mut buffer).unwrap();
    assert_eq!((buffer[0], buffer[1], &buffer[8..len]), (0, 0, &b"hi"[..]));
}

#[test]
fn thousands_of_ports_are_published_at_once_all_of_them_or_none() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(3);
    let container = lab.container(10, Kind::Tap);
    let range = |ports: std::ops::Range<u16>| {
        let publications = ports.map(|port| Publication {
            network: NET,
            port: container.port,
            protocol: Protocol::Udp,
            listen: at("0.0.0.0", port),
            to: vec![container.addr],
            to_port: 80,
            splice: None,
        });
        lab.host.with(|| Ok(lab.switch.publish_all(publications.collect()))).unwrap()
    };
    let other = socket_at(&lab.host, at("0.0.0.0", 21_500));
    let (place, error) = range(20_000..22_000).unwrap_err();
    assert_eq!((place, error.kind()), (1500, io::ErrorKind::AddrInUse));
    drop(other);
    let ids = range(20_000..22_000).unwrap();
    assert_eq!(ids.len(), 2000);
    let server = socket_at(&container.netns, at("0.0.0.0", 80));
    let client = socket_at(&lab.world, at(WORLD, 40_001));
    let mut buffer = [0; 64];
    for port in [20_000, 20_001, 21_000, 21_999] {
        client.send_to(b"request", at(HOST, port)).unwrap();
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..len], from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (7, at(HOST, port)));
    }
    lab.switch.unpublish_all(&ids);
    for port in [20_000, 20_001, 21_999] {
        socket_at(&lab.host, at("0.0.0.0", port));
    }
}

#[test]
fn i8_a_refused_flow_is_told_and_counted() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let far = socket_at(&lab.world, at(WORLD, 7001));
    // More inside ports than the container may have host sockets.
    let mut refused: Option<io::Error> = None;
    for n in 0..=1500 {
        let socket = socket_at(&container.netns, at("0.0.0.0", 10_000 + n));
        socket.connect(far.local_addr().unwrap()).unwrap();
        socket.send(b"x").unwrap();
        if n == 1500 {
            refused = socket.recv(&mut [0; 16]).err();
        }
    }
    // RFC 5508 REQ-8: 3/13, which the kernel reports as EHOSTUNREACH (`icmp_err_convert`).
    let errno = refused.and_then(|error| error.raw_os_error());
    assert_eq!(errno, Some(libc::EHOSTUNREACH));
    let stats = lab.switch.stats(NET);
    let (_, of_port) = stats.iter().find(|(port, _)| *port == container.port).unwrap();
    assert!(of_port.dropped.iter().any(|(reason, _)| *reason == "flow_limit"), "{of_port:?}");
}
