//! Frames through real devices and flows through real sockets, between namespaces made here.

mod lab;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use datapath::Uplink;
use lab::{HOST, Lab, NET, PATIENCE, WORLD, WORLD6, at, serve, wait_for};
use nat::Protocol;
use netns::{Kind, Netns};
use worker::Publication;

const KINDS: [Kind; 3] = [Kind::Tap, Kind::TapPlain, Kind::Veth];

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()[0]).collect()
}

/// Sends `up` octets and reads as many `down`, both directions at once; the far side does the mirror.
fn exchange(stream: TcpStream, send: Vec<u8>) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut writer = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        writer.write_all(&send)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut got = Vec::new();
    (&stream).read_to_end(&mut got)?;
    sender.join().unwrap()?;
    Ok(got)
}

/// A TCP transfer both ways between `client` and a server at `addr` in `server`; returns whom the
/// server saw.
fn transfer(client: &Netns, server: &Netns, dial: SocketAddr, bind: SocketAddr) -> SocketAddr {
    let down = pattern(3_000_001);
    let up = pattern(2_000_003);
    let (send, expect) = (down.clone(), up.clone());
    let server = serve(
        server,
        move || TcpListener::bind(bind),
        move |listener| {
            let (stream, peer) = listener.accept()?;
            let got = exchange(stream, send)?;
            assert!(got == expect, "the upload arrived whole: {} octets", got.len());
            Ok(peer)
        },
    );
    let got = client
        .with(|| exchange(TcpStream::connect_timeout(&dial, PATIENCE)?, up))
        .unwrap_or_else(|error| panic!("client to {dial}: {error}"));
    assert!(got == down, "the download arrived whole: {} octets", got.len());
    server.join().unwrap().unwrap()
}

#[test]
fn containers_of_every_kind_exchange_tcp_with_each_other() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 3] {
        let lab = Lab::new(workers);
        let containers: Vec<_> =
            (0..).map(|n| 10 + n).zip(KINDS).map(|(n, kind)| lab.container(n, kind)).collect();
        for one in &containers {
            for other in &containers {
                if one.port == other.port {
                    continue;
                }
                for addr in [other.addr, other.addr6] {
                    let to = SocketAddr::new(addr, 5000);
                    let seen = transfer(&one.netns, &other.netns, to, to);
                    let expected = if addr.is_ipv4() { one.addr } else { one.addr6 };
                    assert_eq!(seen.ip(), expected);
                }
            }
        }
        for (port, stats) in lab.switch.stats(NET) {
            let dropped: u64 = stats.dropped.iter().map(|(_, count)| count).sum();
            assert_eq!(
                stats.rx_frames,
                stats.forwarded + stats.consumed + dropped,
                "port {port}: {stats:?}"
            );
        }
    }
}

/// Frames and octets that `eth0` of a namespace has received.
fn received(netns: &Netns) -> (u64, u64) {
    let table = netns.with(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
    let mut counts = line.split_whitespace().map(|count| count.parse().unwrap());
    let octets = counts.next().unwrap();
    (counts.next().unwrap(), octets)
}

/// A port without offloads sends segments of its MTU; towards one that can cut, they need not stay so
/// small.
#[test]
fn segments_of_a_plain_port_arrive_whole_in_frames_of_several() {
    const OCTETS: usize = 8_000_000;
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let from = lab.container(10, Kind::TapPlain);
    for (n, kind) in [(11, Kind::Tap), (12, Kind::Veth)] {
        let to = lab.container(n, kind);
        for addr in [to.addr, to.addr6] {
            let addr = SocketAddr::new(addr, 5000);
            let before = received(&to.netns);
            let sink = serve(
                &to.netns,
                move || TcpListener::bind(addr),
                |listener| {
                    let mut got = Vec::new();
                    listener.accept()?.0.read_to_end(&mut got)?;
                    Ok(got)
                },
            );
            let sent = pattern(OCTETS);
            from.netns.with(|| TcpStream::connect(addr)?.write_all(&sent)).unwrap();
            assert!(sink.join().unwrap().unwrap() == sent, "to {addr}");
            let after = received(&to.netns);
            let mean = (after.1 - before.1) / (after.0 - before.0);
            assert!(mean > 2 * 1514, "{mean} octets a frame to {addr}");
        }
    }
}

#[test]
fn the_world_is_reached_over_tcp_in_both_families_and_sees_the_host() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 3] {
        let lab = Lab::new(workers);
        for (n, kind) in (10..).zip(KINDS) {
            let container = lab.container(n, kind);
            for world in [WORLD, WORLD6] {
                let to = at(world, 5000);
                let seen = transfer(&container.netns, &lab.world, to, to);
                let host = if seen.is_ipv4() { HOST } else { lab::HOST6 };
                assert_eq!(seen.ip(), host.parse::<IpAddr>().unwrap());
            }
        }
        let deadline = std::time::Instant::now() + PATIENCE;
        while !lab.switch.flows(Some(NET)).is_empty() {
            let left = lab.switch.flows(Some(NET));
            assert!(std::time::Instant::now() < deadline, "flows that do not end: {left:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn what_the_far_side_says_is_what_the_container_sees() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let dial = |addr: SocketAddr| {
        container.netns.with(|| TcpStream::connect_timeout(&addr, PATIENCE)).unwrap_err()
    };
    assert_eq!(dial(at(WORLD, 9)).kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(dial(at("192.0.2.1", 9)).kind(), io::ErrorKind::NetworkUnreachable);
    lab.switch.set_network(NET, lab::config(Uplink::None));
    wait_for("the uplink to be gone", || {
        dial(at(WORLD, 9)).kind() == io::ErrorKind::NetworkUnreachable
    });
}

#[test]
fn udp_keeps_one_outside_port_for_one_inside_port_and_lets_only_the_asked_answer() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(2);
    let container = lab.container(10, Kind::Tap);
    let world = |port| lab.world.with(|| UdpSocket::bind(at(WORLD, port))).unwrap();
    let (first, second, stranger) =
        (world(7001), world(7002), { lab.host.with(|| UdpSocket::bind(at(HOST, 7003))).unwrap() });
    for socket in [&first, &second, &stranger] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let inside = container.netns.with(|| UdpSocket::bind("0.0.0.0:40000")).unwrap();
    inside.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 65_535];
    let mut seen = Vec::new();
    for (outside, port) in [(&first, 7001), (&second, 7002)] {
        inside.send_to(b"question", at(WORLD, port)).unwrap();
        let (len, from) = outside.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"question");
        seen.push(from);
    }
    assert_eq!(seen[0], seen[1], "one mapping for both");
    assert_eq!(seen[0], at(HOST, 40_000), "the port number is kept");
    stranger.send_to(b"unasked", seen[0]).unwrap();
    for size in [0, 1, 1472, 1473, 9000, 65_507] {
        let answer = pattern(size);
        first.send_to(&answer, seen[0]).unwrap();
        let (len, from) = inside.recv_from(&mut buffer).unwrap();
        assert_eq!((from, len), (at(WORLD, 7001), size));
        assert!(buffer[..len] == answer);
    }
    let stats = lab.switch.stats(NET);
    let filtered = stats[0].1.tx_dropped.iter().find(|(reason, _)| *reason == "filtered");
    assert_eq!(filtered.map(|(_, count)| *count), Some(1), "{stats:?}");
    let flows = lab.switch.flows(Some(NET));
    assert_eq!(flows.len(), 2, "{flows:?}");
    assert!(flows.iter().all(|flow| flow.original.src.port == 40_000));
}

#[test]
fn a_closed_udp_port_outside_is_told_to_the_container() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let inside = container
        .netns
        .with(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(at(WORLD, 9))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })
        .unwrap();
    inside.send(b"anyone?").unwrap();
    let error = inside.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_published_port_shows_the_client_to_the_container() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 2] {
        let lab = Lab::new(workers);
        let container = lab.container(10, Kind::Tap);
        let publish = |protocol, listen| {
            lab.host.with(|| {
                lab.switch.publish(Publication {
                    network: NET,
                    port: container.port,
                    protocol,
                    listen,
                    to: vec![container.addr, container.addr6],
                    to_port: 80,
                    splice: None,
                })
            })
        };
        publish(Protocol::Tcp, at("0.0.0.0", 8080)).unwrap();
        publish(Protocol::Tcp, at("::", 8080)).unwrap();
        publish(Protocol::Udp, at("0.0.0.0", 8080)).unwrap();
        let clash = publish(Protocol::Tcp, at("0.0.0.0", 8080)).unwrap_err();
        assert_eq!(clash.kind(), io::ErrorKind::AddrInUse);

        let cases = [
            (&lab.world, at(HOST, 8080), at("0.0.0.0", 80), WORLD),
            (&lab.world, at(lab::HOST6, 8080), at("::", 80), WORLD6),
            (&lab.host, at(HOST, 8080), at("0.0.0.0", 80), HOST),
            (&lab.host, at("127.0.0.1", 8080), at("0.0.0.0", 80), "172.18.0.1"),
        ];
        for (client, dial, bind, expected) in cases {
            let seen = transfer(client, &container.netns, dial, bind);
            assert_eq!(seen.ip(), expected.parse::<IpAddr>().unwrap(), "{dial}");
        }

        let server = container.netns.with(|| UdpSocket::bind("0.0.0.0:80")).unwrap();
        let client = lab.world.with(|| UdpSocket::bind(at(WORLD, 40_001))).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        client.send_to(b"ping", at(HOST, 8080)).unwrap();
        let mut buffer = [0; 64];
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"ping"[..], at(WORLD, 40_001)));
        server.send_to(b"pong", from).unwrap();
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"pong"[..], at(HOST, 8080)));
    }
}

#[test]
fn a_closed_container_port_resets_the_client_and_a_removed_port_ends_its_flows() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(2);
    let container = lab.container(10, Kind::Tap);
    lab.host
        .with(|| {
            lab.switch.publish(Publication {
                network: NET,
                port: container.port,
                protocol: Protocol::Tcp,
                listen: at("0.0.0.0", 8080),
                to: vec![container.addr],
                to_port: 80,
                splice: None,
            })
        })
        .unwrap();
    let dial = || lab.world.with(|| TcpStream::connect_timeout(&at(HOST, 8080), PATIENCE));
    // The reset may come while the client still looks at how its attempt ended.
    let refused = dial().and_then(|mut refused| {
        refused.set_read_timeout(Some(PATIENCE))?;
        refused.read(&mut [0; 1])
    });
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    let server = container.netns.with(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    let mut alive = dial().unwrap();
    alive.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    accepted.write_all(b"x").unwrap();
    alive.read_exact(&mut [0; 1]).unwrap();
    lab.switch.remove_port(NET, container.port);
    let error = alive.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(lab.switch.flows(Some(NET)).is_empty());
    assert_eq!(dial().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_slow_reader_outside_stops_the_container_and_loses_nothing() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let sent = pattern(24_000_000);
    let expect = sent.clone();
    let server = serve(
        &lab.world,
        || TcpListener::bind(at(WORLD, 5000)),
        move |listener| {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut got = Vec::new();
            let mut piece = vec![0; 1 << 20];
            loop {
                match stream.read(&mut piece)? {
                    0 => break,
                    len => got.extend_from_slice(&piece[..len]),
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            assert!(got == expect, "{} octets", got.len());
            Ok(())
        },
    );
    container
        .netns
        .with(|| {
            let mut stream = TcpStream::connect(at(WORLD, 5000))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(&sent)
        })
        .unwrap();
    server.join().unwrap().unwrap();
}

#[test]
fn a_transfer_survives_a_queue_that_loses_frames() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    for (n, kind) in (10..).zip([Kind::TapPlain, Kind::Tap]) {
        let container = lab.container(n, kind);
        // The device's own queue: what does not fit is lost without a word.
        container.netns.enter(|| netns::link::set_queue_len("eth0", 8)).unwrap();
        let to = at(WORLD, 5000);
        let before = lab.switch.flows(Some(NET));
        assert!(before.is_empty());
        transfer(&container.netns, &lab.world, to, to);
    }
}

/// Datagrams in bursts, of sizes that repeat and sizes that do not: what arrives is in order, once, and
/// unharmed, whichever devices the two ends have.
#[test]
fn bursts_of_datagrams_arrive_in_order_and_unharmed() {
    const DATAGRAMS: u32 = 20_000;
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let containers: Vec<_> = (10..).zip(KINDS).map(|(n, kind)| lab.container(n, kind)).collect();
    for one in &containers {
        for other in &containers {
            if one.port == other.port {
                continue;
            }
            for (from, to) in [(one.addr, other.addr), (one.addr6, other.addr6)] {
                let sink = other.netns.with(|| UdpSocket::bind((to, 7001))).unwrap();
                sink.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                let source = one.netns.with(|| UdpSocket::bind((from, 7000))).unwrap();
                // While a neighbour is asked for, the sender's own kernel may let later datagrams pass.
                wait_for("the first datagram", || {
                    source.send_to(b"", (to, 7001)).unwrap();
                    sink.recv_from(&mut [0; 1]).is_ok()
                });
                let sender = std::thread::spawn(move || {
                    let mut payload = pattern(1472 - 20);
                    for n in 0..DATAGRAMS {
                        payload[..4].copy_from_slice(&n.to_le_bytes());
                        // Sixteen of one size, a shorter one, then some of other sizes.
                        let len = if n % 32 < 16 { 64 } else { 8 + (n as usize * 37) % 1400 };
                        // A full queue is the receiver's loss, not the test's.
                        let _ = source.send_to(&payload[..len], (to, 7001));
                    }
                });
                let mut expected = pattern(1472 - 20);
                let (mut last, mut received) = (None, 0);
                let mut buffer = [0; 2048];
                while let Ok((len, _)) = sink.recv_from(&mut buffer) {
                    if len == 0 {
                        continue;
                    }
                    let n = u32::from_le_bytes(*buffer.first_chunk().unwrap());
                    assert!(last.is_none_or(|last| n > last), "{n} after {last:?}");
                    expected[..4].copy_from_slice(&n.to_le_bytes());
                    let sent = if n % 32 < 16 { 64 } else { 8 + (n as usize * 37) % 1400 };
                    assert_eq!(&buffer[..len], &expected[..sent], "datagram {n}");
                    (last, received) = (Some(n), received + 1);
                }
                sender.join().unwrap();
                assert!(received > DATAGRAMS / 20, "{received} of {DATAGRAMS} arrived");
            }
        }
    }
}
