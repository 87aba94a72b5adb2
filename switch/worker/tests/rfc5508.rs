//! ICMP by the socket uplink, requirement by requirement: RFC 5508. What the far side and the routers on the
//! way say reaches the container in their own names, without any privilege.
//!
//! ```text
//!   station ── switch (host) 198.51.100.1 ══ 198.51.100.2 world, a router 203.0.113.1 ══ 203.0.113.2 far
//! ```

mod lab;
mod station;
mod udp;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use lab::{HOST, HOST6, Lab, NET, PATIENCE, WORLD, WORLD6, at, wait_for};
use nat::Protocol;
use netns::{Kind, Netns};
use nix::sys::socket::{setsockopt, sockopt};
use station::{RST, SYN, Segment, Station};
use worker::Publication;

/// The far host, behind the world.
const FAR: [&str; 2] = ["203.0.113.2", "2001:db8:f::2"];

/// Puts another host behind the world, which becomes a router.
fn beyond(lab: &Lab) -> Netns {
    let far = Netns::create().unwrap();
    netns::link::create_veth_pair("beyond", &lab.world, "far", &far).unwrap();
    for (netns, ifname, last) in [(&lab.world, "beyond", 1), (&far, "far", 2)] {
        netns
            .enter(|| {
                netns::link::add_address(ifname, format!("203.0.113.{last}/24").parse().unwrap())?;
                let v6 = format!("2001:db8:f::{last}/64").parse().unwrap();
                netns::link::add_address(ifname, v6)?;
                netns::link::set_up(ifname)
            })
            .unwrap();
    }
    let route = |netns: &Netns, to: &str, via: &str| {
        netns.enter(|| netns::link::add_route(to.parse().unwrap(), via.parse().unwrap())).unwrap();
    };
    route(&far, "0.0.0.0/0", "203.0.113.1");
    route(&far, "::/0", "2001:db8:f::1");
    route(&lab.host, "2001:db8:f::/64", WORLD6);
    lab.world.with(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")).unwrap();
    // Links come up, and addresses are tentative, for a while.
    for addr in FAR {
        let refused = || {
            let dialled = lab.host.with(|| TcpStream::connect_timeout(&at(addr, 9), PATIENCE));
            dialled.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        };
        wait_for("the far host", refused);
    }
    far
}

fn addresses(v4: bool) -> (IpAddr, IpAddr) {
    let parse = |addr: &str| addr.parse().unwrap();
    if v4 { (parse(WORLD), parse(FAR[0])) } else { (parse(WORLD6), parse(FAR[1])) }
}

/// REQ-1, RFC 7857 §12: an identifier is a container's own; two that have the same one get their own answers.
#[test]
fn i1_two_containers_with_one_identifier_get_their_own_answers() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let stations = [Station::new(&lab, 10), Station::new(&lab, 11)];
    for world in [WORLD, WORLD6] {
        for round in 0..2 {
            for (n, station) in stations.iter().enumerate() {
                let octets = format!("{round} of {n}");
                station.send_packet(&station.echo(77, at(world, 0).ip(), 64, octets.as_bytes()));
                let answer = station.next_packet(PATIENCE).expect("an answer");
                let message = &answer[if at(world, 0).is_ipv4() { 20 } else { 40 }..];
                let reply = if at(world, 0).is_ipv4() { 0 } else { 129 };
                assert_eq!((message[0], &message[4..6]), (reply, &77_u16.to_be_bytes()[..]));
                assert_eq!(&message[8..], octets.as_bytes());
            }
        }
    }
}

/// REQ-4, REQ-5: whose hops run out on the way is told by that router, in a packet that quotes the container's
/// own: so traceroute works with datagrams, echo requests and SYNs.
#[test]
fn i4_a_router_on_the_way_speaks_for_itself() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let _far = beyond(&lab);
    let station = Station::new(&lab, 10);
    for v4 in [true, false] {
        let (router, far) = addresses(v4);
        let exceeded = if v4 { [11, 0] } else { [3, 0] };
        let header = if v4 { 20 } else { 40 };

        let datagram = station.datagram(40_000, SocketAddr::new(far, 33_434), 2, b"a probe");
        station.send_packet(&datagram);
        let (from, told, quoted) = station.await_error();
        assert_eq!((from, told), (router, exceeded));
        assert!(quoted[header..] == datagram[header..], "ports, length, checksum and payload");

        let echo = station.echo(77, far, 2, b"a probe");
        station.send_packet(&echo);
        let (from, told, quoted) = station.await_error();
        assert_eq!((from, told), (router, exceeded));
        assert!(quoted[header..] == echo[header..]);

        let syn = Segment {
            src_port: 4000,
            dst_port: 80,
            seq: 1000,
            flags: SYN,
            window: 1000,
            ..Segment::default()
        };
        station.send_with(far, 2, &syn);
        let (from, told, quoted) = station.await_error();
        assert_eq!((from, told), (router, exceeded));
        let expected =
            [&4000_u16.to_be_bytes()[..], &80_u16.to_be_bytes(), &1000_u32.to_be_bytes()];
        assert_eq!(quoted[header..header + 8], expected.concat());
        // One hop more, and the far host itself refuses.
        station.send_with(far, 3, &Segment { src_port: 4001, ..syn.clone() });
        let reset = station.await_segment("a reset", |segment| segment.dst_port == 4001);
        assert!(reset.has(RST), "{reset:?}");
        station.send_packet(&station.datagram(40_000, SocketAddr::new(far, 33_434), 3, b"a probe"));
        let (from, told, _) = station.await_error();
        assert_eq!((from, told), (far, if v4 { [3, 3] } else { [1, 4] }));
    }
}

/// REQ-4 for published ports: a server learns that its client is gone, in the client's name.
#[test]
fn i4_a_published_server_is_told_of_a_client_that_is_gone() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    for (any, host, world) in [("0.0.0.0", HOST, WORLD), ("::", HOST6, WORLD6)] {
        let publication = Publication {
            network: NET,
            port: container.port,
            protocol: Protocol::Udp,
            listen: at(any, 8080),
            to: vec![container.addr, container.addr6],
            to_port: 80,
            splice: None,
        };
        lab.host.with(|| lab.switch.publish(publication)).unwrap();
        let server = udp::socket_at(&container.netns, at(any, 80));
        let client = udp::socket_at(&lab.world, at(world, 40_001));
        client.send_to(b"request", at(host, 8080)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(from, at(world, 40_001));
        drop(client);
        server.connect(from).unwrap();
        server.send(b"answer").unwrap();
        let error = server.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

/// REQ-9a by published ports, RFC 5382 REQ-8: a container reaches itself and others by the host's address.
#[test]
fn t8_u9_a_published_port_is_reached_from_inside() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let (server, other) = (lab.container(10, Kind::Tap), lab.container(11, Kind::Tap));
    for (any, host) in [("0.0.0.0", HOST), ("::", HOST6)] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let publication = Publication {
                network: NET,
                port: server.port,
                protocol,
                listen: at(any, 8080),
                to: vec![server.addr, server.addr6],
                to_port: 80,
                splice: None,
            };
            lab.host.with(|| lab.switch.publish(publication)).unwrap();
        }
        let listener = server.netns.with(|| TcpListener::bind(at(any, 80))).unwrap();
        let datagrams = udp::socket_at(&server.netns, at(any, 80));
        for client in [&server, &other] {
            let mut dialled = client.netns.with(|| TcpStream::connect(at(host, 8080))).unwrap();
            let (mut accepted, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), at(host, 0).ip(), "the outside address (REQ-9a)");
            accepted.write_all(b"hello").unwrap();
            dialled.read_exact(&mut [0; 5]).unwrap();

            let asking = udp::socket_at(&client.netns, at(any, 0));
            asking.send_to(b"question", at(host, 8080)).unwrap();
            let (_, from) = datagrams.recv_from(&mut [0; 16]).unwrap();
            assert_eq!(from.ip(), at(host, 0).ip());
            datagrams.send_to(b"answer", from).unwrap();
            let (_, by) = asking.recv_from(&mut [0; 16]).unwrap();
            assert_eq!(by, at(host, 8080));
        }
    }
}

/// The host moves to another network: what its sockets were bound to is no address, so mappings go on from the
/// new one, and a published port answers by it.
#[test]
fn a_host_that_roams_keeps_its_mappings_and_published_ports() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let far = udp::socket_at(&lab.world, at(WORLD, 7001));
    let inside = udp::socket_at(&container.netns, at("0.0.0.0", 40_000));
    assert_eq!(udp::ask(&inside, &far, at(WORLD, 7001)), at(HOST, 40_000));
    udp::publish(&lab, &container, Protocol::Udp, at("0.0.0.0", 8080));
    let server = udp::socket_at(&container.netns, at("0.0.0.0", 80));
    let client: UdpSocket = udp::socket_at(&lab.world, at(WORLD, 40_001));
    client.send_to(b"request", at(HOST, 8080)).unwrap();
    let (_, from) = server.recv_from(&mut [0; 16]).unwrap();

    let moved = "198.51.100.99";
    lab.host
        .enter(|| {
            netns::link::remove_address("up", format!("{HOST}/24").parse().unwrap())?;
            netns::link::add_address("up", format!("{moved}/24").parse().unwrap())?;
            netns::link::add_route("0.0.0.0/0".parse().unwrap(), WORLD.parse().unwrap())
        })
        .unwrap();
    assert_eq!(udp::ask(&inside, &far, at(WORLD, 7001)), at(moved, 40_000), "the same port");
    far.send_to(b"answer", at(moved, 40_000)).unwrap();
    inside.recv_from(&mut [0; 16]).unwrap();
    // Nobody is at the address the client used; the answer comes from where the host is now.
    server.send_to(b"late", from).unwrap();
    let (_, by) = client.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(by, at(moved, 8080));
    client.send_to(b"request", at(moved, 8080)).unwrap();
    let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
    server.send_to(b"answer", from).unwrap();
    let (_, by) = client.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(by, at(moved, 8080));
}

/// RFC 2474 §3: what class a container's segments have, the host's have.
#[test]
fn a_connections_class_is_its_containers() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let listener = lab.world.with(|| TcpListener::bind(at(WORLD, 5000))).unwrap();
    // The world's kernel answers in the class it was asked in (`tcp_reflect_tos`).
    lab.world.with(|| std::fs::write("/proc/sys/net/ipv4/tcp_reflect_tos", "1")).unwrap();
    let mut client = container
        .netns
        .with(|| {
            let fd = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Inet,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            setsockopt(&fd, sockopt::Ipv4Tos, &0x28)?;
            let to = nix::sys::socket::SockaddrStorage::from(at(WORLD, 5000));
            nix::sys::socket::connect(fd.as_raw_fd(), &to)?;
            Ok(TcpStream::from(fd))
        })
        .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    let class = nix::sys::socket::getsockopt(&server, sockopt::Ipv4Tos).unwrap();
    assert_eq!(class, 0x28);
}
