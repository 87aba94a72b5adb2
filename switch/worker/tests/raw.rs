//! The raw uplink: containers behind a station of ours on a segment, seen from the world beyond.
//!
//! ```text
//!  containers ── switch ── our station 198.51.100.9, 2001:db8:7::9 ── world 198.51.100.2, 2001:db8:7::2
//!                          on the host's interface `up`               203.0.113.2 lies behind it
//! ```

mod lab;
mod udp;
mod world;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use lab::{Container, Lab, NET, PATIENCE, WORLD, WORLD6, at, serve};
use nat::Protocol;
use netns::{Kind, Netns};
use udp::{ask, socket_at};
use worker::NatPublication;
use world::{FAR, FAR6, SEGMENT, SHOWN, lab_of, pattern, shown, transfer};

/// sum(received) = forwarded + consumed + dropped, on both sides.
fn balanced(lab: &Lab) {
    for network in [NET, SEGMENT.network()] {
        for (port, stats) in lab.switch.stats(network) {
            let dropped: u64 = stats.dropped.iter().map(|(_, count)| count).sum();
            let decided = stats.forwarded + stats.consumed + dropped;
            assert_eq!(stats.rx_frames, decided, "{network:?} port {port}: {stats:?}");
        }
    }
}

#[test]
fn the_world_is_reached_over_tcp_and_sees_our_station() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 4] {
        let lab = lab_of(workers);
        for (n, kind) in (10..).zip([Kind::Tap, Kind::TapPlain, Kind::Veth]) {
            let container = lab.container(n, kind);
            for world in [WORLD, WORLD6, FAR, FAR6] {
                let to = at(world, 5000);
                let seen = transfer(&container.netns, &lab.world, to, to);
                assert_eq!(seen.ip(), shown(seen.is_ipv6()), "from {kind:?} to {to}");
            }
        }
        balanced(&lab);
    }
}

/// Frames and octets that `ifname` of a namespace has received.
fn received(netns: &Netns, ifname: &str) -> (u64, u64) {
    let table = netns.with(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    let prefix = format!("{ifname}:");
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&prefix)).unwrap();
    let mut counts = line.split_whitespace().map(|count| count.parse().unwrap());
    let octets = counts.next().unwrap();
    (counts.next().unwrap(), octets)
}

/// A frame still to be segmented crosses as one, both ways.
#[test]
fn frames_still_to_be_segmented_cross_whole() {
    const OCTETS: usize = 8_000_000;
    if !lab::possible() {
        return;
    }
    let lab = lab_of(1);
    let container = lab.container(10, Kind::Tap);
    for world in [WORLD, WORLD6] {
        for (netns, ifname, up) in [(&lab.world, "down", true), (&container.netns, "eth0", false)] {
            let before = received(netns, ifname);
            let to = at(world, 5000);
            let server = serve(
                &lab.world,
                move || TcpListener::bind(to),
                move |listener| {
                    let mut stream = listener.accept()?.0;
                    match up {
                        true => io::copy(&mut stream, &mut io::sink()),
                        false => stream.write_all(&pattern(OCTETS)).map(|()| 0),
                    }
                },
            );
            container
                .netns
                .with(|| {
                    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                    match up {
                        true => stream.write_all(&pattern(OCTETS)),
                        false => io::copy(&mut stream, &mut io::sink()).map(|_| ()),
                    }
                })
                .unwrap();
            server.join().unwrap().unwrap();
            let after = received(netns, ifname);
            let mean = (after.1 - before.1) / (after.0 - before.0);
            assert!(mean > 2 * 1514, "{mean} octets a frame to {ifname}, {world}");
        }
    }
}

/// Datagrams of every size there is: each comes back to whom it came from.
#[test]
fn datagrams_of_all_sizes_go_there_and_back() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 4] {
        let lab = lab_of(workers);
        let container = lab.container(10, Kind::Tap);
        for (any, world) in [("0.0.0.0", WORLD), ("::", WORLD6), ("0.0.0.0", FAR), ("::", FAR6)] {
            let far = socket_at(&lab.world, at(world, 7001));
            let inside = socket_at(&container.netns, at(any, 40_000));
            let mut buffer = [0; 65_535];
            for len in [0, 1, 8, 1400, 1472, 1473, 4000, 9000, 20_000, 65_000] {
                let sent = pattern(len);
                inside.send_to(&sent, at(world, 7001)).unwrap();
                let (got, from) = far.recv_from(&mut buffer).unwrap();
                assert!(buffer[..got] == sent, "{len} octets to {world}");
                assert_eq!(from, SocketAddr::new(shown(from.is_ipv6()), 40_000), "port kept");
                far.send_to(&sent, from).unwrap();
                let (got, from) = inside.recv_from(&mut buffer).unwrap();
                assert!(buffer[..got] == sent, "{len} octets from {world}");
                assert_eq!(from, at(world, 7001));
            }
        }
        balanced(&lab);
    }
}

fn publish(lab: &Lab, container: &Container, protocol: Protocol, ports: (u16, u16), to_port: u16) {
    let published = NatPublication {
        protocol,
        listen: None,
        ports: ports.0..=ports.1,
        network: NET,
        port: container.port,
        to: vec![container.addr, container.addr6],
        to_port,
    };
    lab.switch.publish_nat(SEGMENT, vec![published]).unwrap();
}

/// A published port is reached from the world, whose address the server sees, and from containers, which
/// are shown with our station's (RFC 4787 REQ-9a, RFC 5382 REQ-8).
#[test]
fn a_published_port_is_reached_from_the_world_and_from_inside() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 4] {
        let lab = lab_of(workers);
        let server = lab.container(10, Kind::Tap);
        let client = lab.container(11, Kind::Veth);
        publish(&lab, &server, Protocol::Tcp, (8080, 8089), 80);
        for v6 in [false, true] {
            let bind = SocketAddr::new(if v6 { server.addr6 } else { server.addr }, 83);
            let dial = SocketAddr::new(shown(v6), 8083);
            let seen = transfer(&lab.world, &server.netns, dial, bind);
            assert_eq!(seen.ip(), at(if v6 { WORLD6 } else { WORLD }, 0).ip());
            for inside in [&client, &server] {
                let seen = transfer(&inside.netns, &server.netns, dial, bind);
                assert_eq!(seen.ip(), shown(v6), "hairpin");
            }
        }
        let refused = lab
            .world
            .with(|| TcpStream::connect_timeout(&at(SHOWN, 8090), Duration::from_millis(200)));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut, "silence at first");
        balanced(&lab);
    }
}

/// RFC 4787 REQ-9: two containers reach each other by their external addresses and ports, once each has
/// spoken to the other's, as address-dependent filtering wants it.
#[test]
fn containers_meet_by_their_external_addresses() {
    if !lab::possible() {
        return;
    }
    let lab = lab_of(1);
    let (one, other) = (lab.container(10, Kind::Tap), lab.container(11, Kind::Tap));
    for (any, world) in [("0.0.0.0", WORLD), ("::", WORLD6)] {
        let far = socket_at(&lab.world, at(world, 7001));
        let sockets =
            [socket_at(&one.netns, at(any, 40_000)), socket_at(&other.netns, at(any, 40_001))];
        let seen = sockets.each_ref().map(|inside| ask(inside, &far, at(world, 7001)));
        let mut buffer = [0; 64];
        sockets[0].send_to(b"hello?", seen[1]).unwrap();
        for (from, to, words) in [(1, 0, b"hello!"), (0, 1, b"at las"), (1, 0, b"indeed")] {
            sockets[from].send_to(words, seen[to]).unwrap();
            let (len, sender) = sockets[to].recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], sender), (&words[..], seen[from]));
        }
    }
}

/// What the far side says is what the container sees: an ICMP error is translated back (RFC 5508 REQ-4).
#[test]
fn errors_of_the_world_reach_the_container() {
    if !lab::possible() {
        return;
    }
    let lab = lab_of(1);
    let container = lab.container(10, Kind::Tap);
    for (any, world) in [("0.0.0.0", WORLD), ("::", WORLD6), ("0.0.0.0", FAR), ("::", FAR6)] {
        let to = at(world, 9);
        let dial = container.netns.with(|| TcpStream::connect_timeout(&to, PATIENCE));
        assert_eq!(dial.unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "{to}");
        let inside = socket_at(&container.netns, at(any, 40_000));
        inside.connect(to).unwrap();
        inside.send(b"anybody?").unwrap();
        let told = inside.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(told.kind(), io::ErrorKind::ConnectionRefused, "{to}");
    }
    // A host of the segment that is not there: 3/1 after three requests (RFC 1812 §4.3.3.1).
    for nobody in ["198.51.100.77", "2001:db8:7::77"] {
        let to = at(nobody, 9);
        let dial = container.netns.with(|| TcpStream::connect_timeout(&to, PATIENCE));
        assert_eq!(dial.unwrap_err().kind(), io::ErrorKind::HostUnreachable, "{to}");
    }
}
