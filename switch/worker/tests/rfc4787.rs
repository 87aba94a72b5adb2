//! UDP to the world by the socket uplink, requirement by requirement: RFC 4787, and what RFC 7857 adds.
//!
//! The far sides are sockets of the world's namespace; REQ-n is in a test's name by its n.

mod lab;
mod station;
mod udp;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use datapath::{IpMtu, Offloads, PortRole, Uplink};
use lab::{Container, HOST, HOST6, Lab, NET, PATIENCE, WORLD, WORLD6, at, config, wait_for};
use nat::{Filtering, Timeouts};
use netns::{EndpointConfig, Kind};
use station::{Station, pattern};
use udp::{ask, socket_at};
use worker::{NetworkConfig, Policy, PortConfig};

/// Another host of the world.
const OTHER: &str = "198.51.100.3";
const OTHER6: &str = "2001:db8:7::3";

/// A lab whose world has two hosts, and a container with a socket that has spoken to the first.
fn with_two_far_hosts(workers: usize) -> Lab {
    let lab = Lab::new(workers);
    for (addr, len) in [(OTHER, 24), (OTHER6, 64)] {
        lab.world
            .enter(|| netns::link::add_address("down", format!("{addr}/{len}").parse().unwrap()))
            .unwrap();
    }
    lab
}

fn gateway_drops(lab: &Lab, reason: &str) -> u64 {
    let stats = lab.switch.stats(NET);
    let found = stats[0].1.tx_dropped.iter().find(|(name, _)| *name == reason);
    found.map_or(0, |(_, count)| *count)
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..len].to_vec(), from)
}

/// REQ-1: one outside address and port, whomever an inside one speaks to.
#[test]
fn u1_a_mapping_is_the_same_towards_every_far_side() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 3] {
        let lab = with_two_far_hosts(workers);
        let container = lab.container(10, Kind::Tap);
        for (any, hosts, far) in
            [("0.0.0.0", HOST, [WORLD, OTHER]), ("::", HOST6, [WORLD6, OTHER6])]
        {
            for inside_port in [40_000, 5353] {
                let inside = socket_at(&container.netns, at(any, inside_port));
                let mut seen = Vec::new();
                for to in far.into_iter().flat_map(|addr| [at(addr, 7001), at(addr, 7002)]) {
                    let far = socket_at(&lab.world, to);
                    seen.push(ask(&inside, &far, to));
                }
                assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
                assert_eq!(seen[0].ip(), at(hosts, 0).ip());
            }
        }
    }
}

/// REQ-8: who may send to a mapping. The container has spoken to one port of the first host.
#[test]
fn u8_filtering_is_by_address_unless_chosen_otherwise() {
    if !lab::possible() {
        return;
    }
    let lab = with_two_far_hosts(2);
    let container = lab.container(10, Kind::Tap);
    for (any, [first, second]) in [("0.0.0.0", [WORLD, OTHER]), ("::", [WORLD6, OTHER6])] {
        let asked = socket_at(&lab.world, at(first, 7001));
        let port = socket_at(&lab.world, at(first, 7002));
        let stranger = socket_at(&lab.world, at(second, 7001));
        let inside = socket_at(&container.netns, at(any, 40_000));
        let outside = ask(&inside, &asked, at(first, 7001));
        let cases = [
            (Policy::default(), [true, true, false]),
            (of(Filtering::EndpointIndependent), [true, true, true]),
            (of(Filtering::AddressAndPortDependent), [true, false, false]),
            (of(Filtering::AddressDependent), [true, true, false]),
        ];
        // The same mapping all the time: a change of policy loses none.
        for (policy, admitted) in cases {
            lab.switch.set_policy(NET, policy);
            for (socket, admitted) in
                [&port, &stranger, &asked].into_iter().zip([admitted[1], admitted[2], admitted[0]])
            {
                let before = gateway_drops(&lab, "filtered");
                socket.send_to(b"hello", outside).unwrap();
                if admitted {
                    let (octets, from) = receive(&inside);
                    assert_eq!((&octets[..], from), (&b"hello"[..], socket.local_addr().unwrap()));
                } else {
                    wait_for("the drop", || gateway_drops(&lab, "filtered") == before + 1);
                }
            }
        }
    }
}

fn of(filtering: Filtering) -> Policy {
    Policy { filtering, ..Policy::default() }
}

/// REQ-9, REQ-9a: a container reaches another by its outside address and port, and shows its own.
#[test]
fn u9_a_hairpin_shows_the_outside_address() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(2);
    hairpin(&lab);
}

/// The same where the host is on the network, too; what is the host's own it hears from the container itself.
#[test]
fn u9_a_hairpin_shows_the_outside_address_beside_a_host_port() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(2);
    let gateway = config(Uplink::Sockets).gateway.unwrap();
    let device = EndpointConfig {
        ifname: "pt-net".into(),
        mac: gateway.mac.0,
        mtu: 1500,
        addresses: vec!["172.18.0.1/16".parse().unwrap(), "fd00:18::1/64".parse().unwrap()],
        gateways: Vec::new(),
        queues: 2,
        kind: Kind::Tap,
    };
    let device = netns::attach(&lab.host, &device).unwrap();
    let host_addresses = vec![HOST.parse().unwrap(), HOST6.parse().unwrap()];
    lab.switch.set_network(NET, NetworkConfig { host_addresses, ..config(Uplink::Sockets) });
    let port = PortConfig {
        role: PortRole::Host,
        mtu: IpMtu(1500),
        mac: gateway.mac,
        addresses: vec!["172.18.0.1".parse().unwrap(), "fd00:18::1".parse().unwrap()],
        offloads: Offloads::Header,
        queues: device.queues,
    };
    lab.switch.add_port(NET, port).unwrap();
    let (one, _) = hairpin(&lab);
    let service = socket_at(&lab.host, at(HOST, 7002));
    let client = socket_at(&one.netns, at("0.0.0.0", 40_001));
    client.send_to(b"who", at(HOST, 7002)).unwrap();
    let (asked, from) = receive(&service);
    assert_eq!((asked, from), (b"who".to_vec(), SocketAddr::new(one.addr, 40_001)));
    service.send_to(b"you", from).unwrap();
    assert_eq!(receive(&client), (b"you".to_vec(), at(HOST, 7002)));
}

/// Two containers reach each other by their outside addresses.
fn hairpin(lab: &Lab) -> (Container, Container) {
    let far = socket_at(&lab.world, at(WORLD, 7001));
    let (one, other) = (lab.container(10, Kind::Tap), lab.container(11, Kind::Tap));
    let sockets =
        [&one, &other].map(|container| socket_at(&container.netns, at("0.0.0.0", 40_000)));
    let outside = [&sockets[0], &sockets[1]].map(|socket| ask(socket, &far, at(WORLD, 7001)));
    assert_ne!(outside[0], outside[1]);
    // Each has spoken to the host's address once it has sent its own; so filtering lets the other's in.
    sockets[0].send_to(b"first", outside[1]).unwrap();
    wait_for("the stranger to be filtered", || gateway_drops(lab, "filtered") == 1);
    sockets[1].send_to(b"second", outside[0]).unwrap();
    assert_eq!(receive(&sockets[0]), (b"second".to_vec(), outside[1]));
    sockets[0].send_to(b"third", outside[1]).unwrap();
    assert_eq!(receive(&sockets[1]), (b"third".to_vec(), outside[0]));
    (one, other)
}

/// REQ-10: nothing in a payload is rewritten.
#[test]
fn u10_no_payload_is_touched() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let sip = b"REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 172.18.0.10:5060\r\n\
                Contact: <sip:me@172.18.0.10:5060>\r\nContent-Length: 0\r\n\r\n";
    let far = socket_at(&lab.world, at(WORLD, 5060));
    let inside = socket_at(&container.netns, at("0.0.0.0", 5060));
    inside.send_to(sip, at(WORLD, 5060)).unwrap();
    assert_eq!(receive(&far).0, sip);
    let ftp = b"PORT 172,18,0,10,156,64\r\n";
    let listener = lab.world.with(|| TcpListener::bind(at(WORLD, 21))).unwrap();
    let mut client = container.netns.with(|| TcpStream::connect(at(WORLD, 21))).unwrap();
    client.write_all(ftp).unwrap();
    let mut got = [0; 25];
    listener.accept().unwrap().0.read_exact(&mut got).unwrap();
    assert_eq!(&got, ftp);
}

/// REQ-11: with many mappings as with few, each is the one its inside port had first; of two containers
/// with the same ports, the second has others, of the same parity.
#[test]
fn u11_many_mappings_are_as_one() {
    if !lab::possible() {
        return;
    }
    const EACH: u16 = 700;
    let lab = with_two_far_hosts(2);
    let (first, second) =
        (socket_at(&lab.world, at(WORLD, 7001)), socket_at(&lab.world, at(OTHER, 7001)));
    let mut taken = BTreeSet::new();
    for last in [10, 11] {
        let container = lab.container(last, Kind::Tap);
        let mut sockets = Vec::new();
        for port in 40_000..40_000 + EACH {
            let socket = socket_at(&container.netns, at("0.0.0.0", port));
            let seen = ask(&socket, &first, at(WORLD, 7001));
            assert_eq!(seen.port() == port, last == 10, "{port}: {seen}");
            assert_eq!(seen.port() % 2, port % 2);
            assert!(taken.insert(seen.port()), "{seen} is another's");
            sockets.push((socket, seen));
        }
        for (socket, seen) in &sockets {
            assert_eq!(ask(socket, &second, at(OTHER, 7001)), *seen);
        }
    }
}

/// REQ-12: the far side's ICMP error is told, and the next datagram has the mapping the last had.
#[test]
fn u12_an_error_is_told_and_ends_nothing() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    for (any, world) in [("0.0.0.0", WORLD), ("::", WORLD6)] {
        let far = socket_at(&lab.world, at(world, 7001));
        let inside = socket_at(&container.netns, at(any, 40_000));
        let before = ask(&inside, &far, at(world, 7001));
        let told = socket_at(&container.netns, at(any, 40_001));
        told.connect(at(world, 9)).unwrap();
        told.send(b"anyone?").unwrap();
        assert_eq!(told.recv(&mut [0; 16]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        inside.send_to(b"anyone?", at(world, 9)).unwrap();
        assert_eq!(ask(&inside, &far, at(world, 7001)), before);
        far.send_to(b"answer", before).unwrap();
        assert_eq!(receive(&inside).0, b"answer");
    }
}

/// Cuts an IP packet of a station's into pieces whose payload is `room` octets, a multiple of eight.
fn cut(packet: &[u8], room: usize, id: u16) -> Vec<Vec<u8>> {
    let v4 = packet[0] >> 4 == 4;
    let (header, payload) = packet.split_at(if v4 { 20 } else { 40 });
    let count = payload.len().div_ceil(room);
    let cut = |(n, part): (usize, &[u8])| {
        let place = u16::try_from(n * room).unwrap();
        let more = u16::from(n + 1 < count);
        let mut piece = header.to_vec();
        if v4 {
            piece[2..4].copy_from_slice(&u16::try_from(20 + part.len()).unwrap().to_be_bytes());
            piece[4..6].copy_from_slice(&id.to_be_bytes());
            piece[6..8].copy_from_slice(&((more << 13) | (place / 8)).to_be_bytes());
            piece[10..12].fill(0);
            let sum = piece.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
            let sum = sum.fold(0, |sum: u32, word| (sum + word) % 0xffff);
            piece[10..12].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
        } else {
            let next = std::mem::replace(&mut piece[6], 44);
            piece[4..6].copy_from_slice(&u16::try_from(8 + part.len()).unwrap().to_be_bytes());
            piece.extend([next, 0]);
            piece.extend((place | more).to_be_bytes());
            piece.extend(u32::from(id).to_be_bytes());
        }
        piece.extend(part);
        piece
    };
    payload.chunks(room).enumerate().map(cut).collect()
}

/// REQ-14, REQ-14a: pieces in any order make the datagram that was cut, up to the longest there is.
#[test]
fn u14_pieces_in_any_order_arrive_as_one_datagram() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let station = Station::new(&lab, 10);
    for world in [WORLD, WORLD6] {
        let to = at(world, 7001);
        let far = socket_at(&lab.world, to);
        for (id, len) in [(1, 2000), (2, 9000), (3, 65_507)] {
            let octets = pattern(len);
            let whole = station.datagram(40_000, to, 64, &octets);
            let mut pieces = cut(&whole, 1440, id);
            // The second before the first, the last before all, in turn.
            match id {
                1 => pieces.reverse(),
                2 => pieces.rotate_right(1),
                _ => pieces.swap(0, 1),
            }
            pieces.iter().for_each(|piece| station.send_packet(piece));
            let mut buffer = vec![0; 70_000];
            let got = far.recv(&mut buffer).unwrap();
            assert!(buffer[..got] == octets, "{got} of {len} octets");
        }
        // Nothing, too, is a datagram.
        station.send_packet(&station.datagram(40_000, to, 64, &[]));
        assert_eq!(far.recv(&mut [0; 8]).unwrap(), 0);
    }
    // IPv4 leaves it to the sender to make a checksum (RFC 768).
    let mut without = station.datagram(40_000, at(WORLD, 7001), 64, b"unsummed");
    without[26..28].fill(0);
    let far = socket_at(&lab.world, at(WORLD, 7001));
    station.send_packet(&without);
    assert_eq!(receive(&far).0, b"unsummed");
}

/// REQ-14a, RFC 5722: orphans by the thousand hold up neither whole datagrams nor another container's pieces;
/// pieces that overlap make nothing.
#[test]
fn u14_a_flood_of_orphans_costs_nobody_else() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let (flooder, other) = (Station::new(&lab, 10), Station::new(&lab, 11));
    let to = at(WORLD, 7001);
    let far = socket_at(&lab.world, to);
    let long = flooder.datagram(40_000, to, 64, &pattern(2000));
    for id in 0..10_000 {
        flooder.send_packet(&cut(&long, 1440, id)[usize::from(id % 2)]);
    }
    flooder.send_packet(&flooder.datagram(40_000, to, 64, b"whole"));
    assert_eq!(receive(&far).0, b"whole");
    for piece in cut(&other.datagram(40_000, to, 64, &pattern(2000)), 1440, 7) {
        other.send_packet(&piece);
    }
    assert!(receive(&far).0 == pattern(2000));
    let to = at(WORLD6, 7001);
    let far = socket_at(&lab.world, to);
    let mut overlapping = cut(&other.datagram(40_000, to, 64, &pattern(2000)), 1440, 8);
    let mut twice = overlapping[1].clone();
    // One eight octets farther on, for which there is a place, but not beside the others.
    twice[43] = twice[43].wrapping_sub(8);
    overlapping.insert(1, twice);
    overlapping.iter().for_each(|piece| other.send_packet(piece));
    other.send_packet(&other.datagram(40_000, to, 64, b"behind"));
    assert_eq!(receive(&far).0, b"behind");
}

/// RFC 1122 §3.3.2: what is cut is put together for the gateway's own addresses, too, and answered, in pieces
/// again.
#[test]
fn u14_the_gateway_answers_what_came_in_pieces() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let station = Station::new(&lab, 10);
    for own in ["172.18.0.1", "fd00:18::1"] {
        let own = own.parse().unwrap();
        let octets = pattern(4000);
        let request = station.echo(77, own, 64, &octets);
        cut(&request, 1440, 9).iter().rev().for_each(|piece| station.send_packet(piece));
        let mut got = 0;
        while got < octets.len() + 8 {
            let piece = station.next_packet(PATIENCE).expect("a piece of the answer");
            let v4 = piece[0] >> 4 == 4;
            let (protocol, payload) = match v4 {
                true => (piece[9], &piece[20..]),
                false if piece[6] == 44 => (piece[40], &piece[48..]),
                false => continue,
            };
            assert_eq!(protocol, if v4 { 1 } else { 58 });
            if got == 0 {
                assert_eq!(payload[0], if v4 { 0 } else { 129 }, "an echo reply");
            }
            got += payload.len();
        }
        assert_eq!(got, octets.len() + 8);
        // A port nobody listens on is told so, too.
        let datagram = station.datagram(40_000, SocketAddr::new(own, 9), 64, &octets);
        cut(&datagram, 1440, 10).iter().for_each(|piece| station.send_packet(piece));
        let (from, told, quoted) = station.await_error();
        assert_eq!((from, told), (own, if own.is_ipv4() { [3, 3] } else { [1, 4] }));
        assert!(datagram.starts_with(&quoted) || quoted.len() > 500, "{} octets", quoted.len());
    }
}

/// RFC 792, RFC 8200 §4.5: whoever's pieces never become whole is told (ICMP 11/1).
#[test]
fn u14_the_sender_of_pieces_that_never_become_whole_is_told() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let station = Station::new(&lab, 10);
    let timeouts = Timeouts {
        fragment_v4: smoltcp::time::Duration::from_millis(10),
        fragment_v6: smoltcp::time::Duration::from_millis(10),
        ..Timeouts::RFC
    };
    lab.switch.set_policy(NET, Policy { timeouts, ..Policy::default() });
    for (world, expected) in [(WORLD, [11, 1]), (WORLD6, [3, 1])] {
        let first =
            cut(&station.datagram(40_000, at(world, 7001), 64, &pattern(2000)), 1440, 11).remove(0);
        station.send_packet(&first);
        let (_, told, quoted) = station.await_error();
        assert_eq!(told, expected);
        assert!(first.starts_with(&quoted), "as it came");
        assert!(quoted.len() >= 28);
    }
}
