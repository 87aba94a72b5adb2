//! Datagrams in bursts, in trains, and of every size: what the ways that carry several at once, or cut
//! and join them, must not do to them.

mod lab;
mod udp;

use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use lab::{HOST, HOST6, Lab, NET, WORLD, WORLD6, at};
use nat::Protocol;
use netns::Kind;
use nix::sys::socket::{setsockopt, sockopt};
use udp::{ask, publish, socket_at};

/// Datagram `n` of a stream: 32 of one size, then some of other sizes.
fn payload(n: u32) -> Vec<u8> {
    let len = if n % 48 < 32 { 200 } else { 4 + n * 37 % 1400 };
    let mut octets: Vec<u8> = (0..len).map(|at| (at ^ n).to_le_bytes()[0]).collect();
    octets[..4].copy_from_slice(&n.to_le_bytes());
    octets
}

/// Datagrams in bursts, of sizes that repeat and sizes that do not, out and in, by mappings and published
/// ports: what arrives is in order, once, and unharmed.
#[test]
fn bursts_cross_the_uplink_in_order_and_unharmed() {
    const DATAGRAMS: u32 = 10_000;
    const MARKS: u32 = 10_000;
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    // What is left of one is no part of the next.
    let streams = Cell::new(0);
    let stream = |source: &UdpSocket, to: SocketAddr, sink: &UdpSocket| {
        let first = streams.replace(streams.get() + 1) << 16;
        let end = first + DATAGRAMS;
        let source = source.try_clone().unwrap();
        let seen = Arc::new(AtomicU32::new(0));
        let arrived = Arc::clone(&seen);
        let sender = std::thread::spawn(move || {
            for n in first..end {
                // A full queue is the receiver's loss, not the test's.
                let _ = source.send_to(&payload(n), to);
                // A burst shall not be so long that most of it is lost.
                for _ in 0..20 {
                    if n % 64 != 63 || arrived.load(Relaxed) >= n {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            // A mark of the end may be lost as well.
            for _ in 0..MARKS {
                if arrived.load(Relaxed) == end {
                    break;
                }
                let _ = source.send_to(&payload(end), to);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let (mut last, mut received, mut buffer) = (None, 0, [0; 2048]);
        loop {
            let (len, _) = sink.recv_from(&mut buffer).unwrap();
            let n = u32::from_le_bytes(*buffer.first_chunk().unwrap());
            if n < first {
                continue;
            }
            seen.store(n, Relaxed);
            if n == end {
                break;
            }
            assert!(last.is_none_or(|last| n > last), "{n} after {last:?}");
            assert_eq!(buffer[..len], payload(n), "datagram {n}");
            (last, received) = (Some(n), received + 1);
        }
        sender.join().unwrap();
        assert!(received > DATAGRAMS / 20, "{received} of {DATAGRAMS} arrived at {to}");
    };
    for (last, kind) in (10..).zip([Kind::Tap, Kind::TapPlain, Kind::Veth]) {
        let container = lab.container(last, kind);
        for (world, host, any) in [(WORLD, HOST, "0.0.0.0"), (WORLD6, HOST6, "::")] {
            let far = socket_at(&lab.world, at(world, 7001));
            let inside = socket_at(&container.netns, at(any, 40_000 + u16::from(last)));
            let seen = ask(&inside, &far, at(world, 7001));
            stream(&inside, at(world, 7001), &far);
            stream(&far, seen, &inside);
            let port = 8000 + u16::from(last);
            publish(&lab, &container, Protocol::Udp, at(any, port));
            let server = socket_at(&container.netns, at(any, 80));
            let (client, published) = (&far, at(host, port));
            client.send_to(b"request", published).unwrap();
            let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
            stream(client, published, &server);
            stream(&server, from, client);
        }
    }
}

#[test]
fn datagrams_of_every_size_cross_in_both_directions() {
    if !lab::possible() {
        return;
    }
    for workers in [1, 2] {
        let lab = Lab::new(workers);
        let container = lab.container(10, Kind::Tap);
        for (world, host, any) in [(WORLD, HOST, "0.0.0.0"), (WORLD6, HOST6, "::")] {
            let far = socket_at(&lab.world, at(world, 7001));
            let inside = socket_at(&container.netns, at(any, 40_000));
            let seen = ask(&inside, &far, at(world, 7001));
            publish(&lab, &container, Protocol::Udp, at(any, 8080));
            let server = socket_at(&container.netns, at(any, 80));
            far.send_to(b"request", at(host, 8080)).unwrap();
            let (_, client) = server.recv_from(&mut [0; 64]).unwrap();
            let mut buffer = vec![0; 65_535];
            let longest = if any == "::" { 65_527 } else { 65_507 };
            for len in [0, 1, 8, 1452, 1453, 1472, 1473, 2952, 9000, 32_768, 65_000, longest] {
                let octets: Vec<u8> =
                    (0..len).map(|at: usize| (at % 251).to_le_bytes()[0]).collect();
                for (sender, receiver, to) in [
                    (&inside, &far, at(world, 7001)),
                    (&far, &inside, seen),
                    (&far, &server, at(host, 8080)),
                    (&server, &far, client),
                ] {
                    sender.send_to(&octets, to).unwrap();
                    let (got, _) = receiver.recv_from(&mut buffer).unwrap_or_else(|error| {
                        panic!("{len} octets to {to}: {error}; {:?}", lab.switch.stats(NET))
                    });
                    assert!(buffer[..got] == octets, "{len} octets to {to}, {got} came");
                }
            }
        }
    }
}

/// A sender that cuts trains itself (`UDP_SEGMENT`), as QUIC servers do, and a receiver that takes them
/// whole (`UDP_GRO`).
#[test]
fn trains_of_the_endpoints_own_pass_whole() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let far = socket_at(&lab.world, at(WORLD, 7001));
    let inside = socket_at(&container.netns, at("0.0.0.0", 40_000));
    let seen = ask(&inside, &far, at(WORLD, 7001));
    let octets: Vec<u8> = (0..64_000_u32).map(|at| (at % 251).to_le_bytes()[0]).collect();
    for (sender, receiver, to) in [(&inside, &far, at(WORLD, 7001)), (&far, &inside, seen)] {
        setsockopt(sender, sockopt::UdpGsoSegment, &1000).unwrap();
        sender.send_to(&octets[..60_500], to).unwrap();
        setsockopt(sender, sockopt::UdpGsoSegment, &0).unwrap();
        let mut got = Vec::new();
        let mut buffer = [0; 2048];
        while got.len() < 60_500 {
            let len = receiver.recv(&mut buffer).unwrap();
            assert!(len == 1000 || len == 500 && got.len() == 60_000, "{len} at {}", got.len());
            got.extend_from_slice(&buffer[..len]);
        }
        assert!(got == octets[..60_500]);
    }
}
