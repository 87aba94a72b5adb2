//! TCP to the world by the socket uplink, requirement by requirement: RFC 5382, RFC 7857, and that dead
//! far sides cost nobody else anything.

mod lab;
mod station;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use lab::{HOST, HOST6, Lab, NET, PATIENCE, WORLD, WORLD6, at, wait_for};
use netns::{Kind, Netns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use station::{ACK, PSH, RST, SYN, Segment, Station, checksum, sum};

/// Time for what must not happen.
const A_MOMENT: Duration = Duration::from_millis(50);

/// Another host of the world.
const OTHER: &str = "198.51.100.3";
const OTHER6: &str = "2001:db8:7::3";

fn with_two_far_hosts(workers: usize) -> Lab {
    let lab = Lab::new(workers);
    for (addr, len) in [(OTHER, 24), (OTHER6, 64)] {
        lab.world
            .enter(|| netns::link::add_address("down", format!("{addr}/{len}").parse().unwrap()))
            .unwrap();
    }
    lab
}

/// Connects from `port` of a namespace, which may have other connections.
fn dial_from(netns: &Netns, port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    netns.with(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        bind(fd.as_raw_fd(), &SockaddrStorage::from(at(any, port)))?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        let stream = TcpStream::from(fd);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// REQ-1, and product's port preservation: one outside port, whomever an inside one leads to.
#[test]
fn t1_connections_of_one_port_leave_by_one_port() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 3] {
        let lab = with_two_far_hosts(workers);
        let container = lab.container(10, Kind::Tap);
        for (host, far) in [(HOST, [WORLD, OTHER]), (HOST6, [WORLD6, OTHER6])] {
            for inside in [40_000, 5353] {
                let mut seen = BTreeSet::new();
                let mut open = Vec::new();
                for to in far.into_iter().flat_map(|addr| [at(addr, 5000), at(addr, 5001)]) {
                    let listener = lab.world.with(|| TcpListener::bind(to)).unwrap();
                    let client = dial_from(&container.netns, inside, to).unwrap();
                    let (server, from) = listener.accept().unwrap();
                    seen.insert(from);
                    open.push((client, server));
                }
                assert_eq!(seen.len(), 1, "{inside}: {seen:?}");
                let from = seen.first().unwrap();
                assert_eq!(from.ip(), at(host, 0).ip());
                // The host gives away 32768 to 60999, so no other is taken from it.
                assert_eq!(from.port() == inside, inside == 40_000, "{from}");
                assert_eq!(from.port() % 2, inside % 2);
            }
        }
    }
}

/// REQ-7: no two inside ports share an outside one, even towards different far sides.
#[test]
fn t7_no_outside_port_serves_two_containers() {
    if !lab::possible() {
        return;
    }
    let lab = with_two_far_hosts(2);
    let mut seen = BTreeSet::new();
    let mut open = Vec::new();
    for (last, far) in [(10, WORLD), (11, OTHER), (12, WORLD)] {
        let container = lab.container(last, Kind::Tap);
        let listener =
            lab.world.with(|| TcpListener::bind(at(far, 5000 + u16::from(last)))).unwrap();
        let client = dial_from(&container.netns, 40_000, at(far, 5000 + u16::from(last))).unwrap();
        let (server, from) = listener.accept().unwrap();
        seen.insert(from.port());
        open.push((container, client, server));
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

/// A connection that has ended leaves its name to the next, which begins at once: here the far side closes
/// first, so that the host may connect again, and the container has the same port in mind.
#[test]
fn a_name_is_used_again_at_once() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let listener = lab.world.with(|| TcpListener::bind(at(WORLD, 5000))).unwrap();
    for _ in 0..20 {
        let mut client = dial_from(&container.netns, 40_000, at(WORLD, 5000)).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        assert_eq!(from.port(), 40_000);
        server.write_all(b"over").unwrap();
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"over");
        drop(client);
        wait_for("the flow to end", || lab.switch.flows(Some(NET)).is_empty());
    }
}

/// The host's kernel lets a socket connect to itself; nobody listens there.
#[test]
fn a_container_that_dials_its_own_outside_port_is_refused() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let refused = dial_from(&container.netns, 40_000, at(HOST, 40_000)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

/// A far host no kernel plays: frames as they are on the wire, behind the offload header.
struct Wire(OwnedFd);

impl Wire {
    const IP: usize = 10 + 14;
    const TCP: usize = Self::IP + 20;

    /// The next segment to `to` with exactly these flags, as the frame it came in.
    #[track_caller]
    fn await_segment(&self, to: SocketAddr, flags: u8) -> Vec<u8> {
        let mut found = None;
        wait_for("a segment on the wire", || {
            let mut frame = vec![0; 70_000];
            while let Ok(len) = netns::recv_frame(&self.0, &mut frame) {
                let SocketAddr::V4(addr) = to else { unreachable!("IPv4") };
                if len > Self::TCP + 13
                    && frame[22..24] == [8, 0]
                    && frame[Self::IP + 9] == 6
                    && frame[Self::IP + 16..Self::TCP] == addr.ip().octets()
                    && frame[Self::TCP + 2..Self::TCP + 4] == to.port().to_be_bytes()
                    && frame[Self::TCP + 13] == flags
                {
                    found = Some(frame[..len].to_vec());
                    return true;
                }
            }
            false
        });
        found.unwrap()
    }

    /// Answers whoever sent `frame`.
    fn answer(&self, frame: &[u8], flags: u8, seq: u32, ack: u32) {
        let mut answer = vec![0; 10];
        answer.extend([&frame[16..22], &frame[10..16], &[8, 0]].concat());
        let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
        let (src, dst) = (&frame[Self::IP + 16..Self::TCP], &frame[Self::IP + 12..Self::IP + 16]);
        ip.extend([src, dst].concat());
        let octets = checksum(sum(&ip, 0));
        ip[10..12].copy_from_slice(&octets);
        let mut tcp =
            [&frame[Self::TCP + 2..Self::TCP + 4], &frame[Self::TCP..Self::TCP + 2]].concat();
        tcp.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
        tcp.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
        let octets = checksum(sum(&tcp, sum(&[src, dst].concat(), 6 + 20)));
        tcp[16..18].copy_from_slice(&octets);
        answer.extend(ip);
        answer.extend(tcp);
        netns::send_frame(&self.0, &answer).unwrap();
    }
}

fn word(frame: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(frame[at..at + 4].try_into().unwrap())
}

/// REQ-2: the SYNs of both sides may cross. The host's kernel does it with its own, from the very port the far
/// side has in mind, because that is the container's.
#[test]
fn t2_syns_that_cross_connect() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    mute(&lab);
    let wire = Wire(lab.world.enter(|| netns::packet_sockets("down", 1)).unwrap().remove(0));
    let station = Station::new(&lab, 10);
    let far = at("192.0.2.5", 5000);
    let syn = Segment {
        src_port: 40_000,
        dst_port: 5000,
        seq: 1000,
        flags: SYN,
        window: 1000,
        ..Segment::default()
    };
    station.send(far.ip(), &syn);
    let first = wire.await_segment(far, SYN);
    assert_eq!(first[Wire::TCP..Wire::TCP + 2], 40_000_u16.to_be_bytes());
    wire.answer(&first, SYN, 7000, 0);
    let both = wire.await_segment(far, SYN | ACK);
    let seq = word(&first, Wire::TCP + 4);
    assert_eq!((word(&both, Wire::TCP + 4), word(&both, Wire::TCP + 8)), (seq, 7001));
    wire.answer(&first, ACK, 7001, seq.wrapping_add(1));
    let answer = station.await_segment("SYN and ACK", |segment| segment.has(SYN | ACK));
    assert_eq!(answer.ack, 1001);
    let ack = answer.seq.wrapping_add(1);
    let data = Segment { seq: 1001, ack, flags: ACK, data: b"crossed".to_vec(), ..syn };
    station.send(far.ip(), &data);
    let octets = wire.await_segment(far, ACK | PSH);
    assert!(octets.ends_with(b"crossed"));
}

/// A router that takes everything and answers nothing.
fn mute(lab: &Lab) {
    lab.world.with(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")).unwrap();
}

/// RFC 6888 REQ-11, RFC 5382 REQ-5: 30,000 attempts to reach nobody hold up neither another container nor
/// their own: the oldest give way to the newest, and none that was answered does.
#[test]
fn dead_far_sides_leave_room_for_those_that_answer() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    mute(&lab);
    let modest = lab.container(11, Kind::Tap);
    let greedy = Station::new(&lab, 10);
    let listener = lab.world.with(|| TcpListener::bind(at(WORLD, 5000))).unwrap();
    let held = greedy.connect(at(WORLD, 5000), 1000, &[]);
    let (mut server, _) = listener.accept().unwrap();
    for n in 0..30_000_u32 {
        let to: SocketAddr = format!("192.0.2.{}:{}", n % 250, 1 + n / 250).parse().unwrap();
        let syn = Segment {
            src_port: 2000 + u16::try_from(n % 60_000).unwrap(),
            dst_port: to.port(),
            seq: n,
            flags: SYN,
            window: 1000,
            ..Segment::default()
        };
        greedy.send(to.ip(), &syn);
    }
    // Whatever is told meanwhile is about those.
    while greedy.next_within(A_MOMENT).is_some() {}
    let attempts = || lab.switch.flows(Some(NET)).len();
    wait_for("the attempts", || attempts() > 100);
    // Another container is not concerned.
    let mut client = dial_from(&modest.netns, 40_000, at(WORLD, 5000)).unwrap();
    let (mut other, _) = listener.accept().unwrap();
    other.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    // Nor is what answers, of the very container: before and after.
    server.write_all(b"still here").unwrap();
    let got = greedy.await_segment("the octets of the connection before", |segment| {
        segment.dst_port == held.port && !segment.data.is_empty()
    });
    assert_eq!(got.data, b"still here");
    let after = greedy.connect(at(WORLD, 5000), 1001, &[]);
    listener.accept().unwrap();
    after.send_at(RST, after.seq, 0, &[]);
    // Its share of its share: 1,500 flows, a quarter of which may be attempts.
    assert!(attempts() <= 1500 / 4 + 3, "{}", attempts());
}

/// RFC 5961 §4: a SYN within an established connection is challenged, and changes nothing.
#[test]
fn a_syn_in_the_window_is_challenged() {
    station::with_connection(&[], |_, mut connection, mut server| {
        for off in [0, 10, 0_u32.wrapping_sub(10)] {
            connection.send_at(SYN, connection.seq.wrapping_add(off), 0, &[]);
            let told = connection.await_segment("a challenge", |_| true);
            assert_eq!((told.flags, told.seq, told.ack), (ACK, connection.ack, connection.seq));
        }
        connection.push(b"alive");
        server.read_exact(&mut [0; 5]).unwrap();
    });
}

/// REQ-10 and RFC 1122 §4.2.3.9: what ICMP says of an established connection is a hint, and no end: here
/// the way is gone for a moment.
#[test]
fn t10_no_icmp_error_ends_a_connection() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let far = Netns::create().unwrap();
    netns::link::create_veth_pair("beyond", &lab.world, "far", &far).unwrap();
    for (netns, ifname, addr) in
        [(&lab.world, "beyond", "203.0.113.1/24"), (&far, "far", "203.0.113.2/24")]
    {
        netns
            .enter(|| {
                netns::link::add_address(ifname, addr.parse().unwrap())?;
                netns::link::set_up(ifname)
            })
            .unwrap();
    }
    far.enter(|| {
        netns::link::add_route("0.0.0.0/0".parse().unwrap(), "203.0.113.1".parse().unwrap())
    })
    .unwrap();
    let listener = far.with(|| TcpListener::bind("203.0.113.2:5000")).unwrap();
    let mut client = dial_from(&container.netns, 40_000, at("203.0.113.2", 5000)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    // Without the address, the world knows no way there, and says so.
    lab.world.enter(|| netns::link::set_down("beyond")).unwrap();
    client.write_all(b"first").unwrap();
    let unreachables = || {
        let table = lab.host.with(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
        let table = table.unwrap();
        let mut icmp = table.lines().filter(|line| line.starts_with("Icmp:"));
        let place =
            icmp.next().unwrap().split_whitespace().position(|name| name == "InDestUnreachs");
        icmp.next().unwrap().split_whitespace().nth(place.unwrap()).unwrap().parse::<u64>().unwrap()
    };
    wait_for("the router's word", || unreachables() > 0);
    lab.world.enter(|| netns::link::set_up("beyond")).unwrap();
    let mut got = [0; 5];
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"first");
    server.write_all(b"second").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
}

/// RFC 9293 §3.10.7.4: what a container sends of a connection nobody knows is reset.
#[test]
fn a_segment_of_no_connection_is_reset_and_a_reset_is_not() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let station = Station::new(&lab, 10);
    let stray = Segment {
        src_port: 4000,
        dst_port: 5000,
        seq: 77,
        ack: 4711,
        flags: ACK,
        ..Segment::default()
    };
    station.send(at(WORLD, 0).ip(), &stray);
    let reset = station.await_segment("a reset", |segment| segment.dst_port == 4000);
    assert_eq!((reset.flags, reset.seq), (RST, 4711));
    station.send(at(WORLD, 0).ip(), &Segment { flags: RST, ..stray });
    assert!(station.next_within(A_MOMENT).is_none());
}
