//! What one frame costs on each of its ways through the data path, in time and in allocations.
//!
//! Memory to memory, one thread unless it says otherwise, no descriptor: what the kernel adds is
//! measured by the side-by-side. Each benchmark first counts the allocations of a thousand warm frames,
//! and stops there if an established path makes any.

use std::alloc::System;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use datapath::checksum::Sum;
use datapath::coalesce::{MAX_HEADERS, Run};
use datapath::emit::{IpHeader, fill_checksum};
use datapath::fdb::{Fdb, FdbCache};
use datapath::fragment::fragment;
use datapath::neighbour::Neighbours;
use datapath::segment::segment;
use datapath::{
    Datapath, Gateway, IpMtu, Leg, MacAddr, Network, NetworkConfig, Offload, Offloads, Outbox,
    Port, PortCounters, PortId, PortRole, Received, Silent, Uplink,
};
use nat::Zone;
use nat::{Account, Conntrack, Direction, Entry, Owner, Profile, Protocol, TransportAddr, Tuple};
use smoltcp::time::Instant;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const GATEWAY: MacAddr = MacAddr([2, 0x42, 172, 18, 0, 1]);
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
const INSIDE: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 10);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const NOW: Instant = Instant::from_micros_const(1_000_000);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The station behind port `n`.
const fn station(n: u16) -> MacAddr {
    let [high, low] = n.to_be_bytes();
    MacAddr([2, 0, 0, 0, high, low])
}

/// A frame of `len` octets from station `from`.
fn frame(from: MacAddr, to: MacAddr, len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(to.as_bytes());
    frame[6..12].copy_from_slice(from.as_bytes());
    // An EtherType for local experiments (IEEE 802 §9.2.4): nobody looks further.
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// An ARP request of station 1 for the gateway.
fn arp_request() -> Vec<u8> {
    let mut frame = frame(station(1), MacAddr::BROADCAST, 42);
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(station(1).as_bytes());
    frame[28..32].copy_from_slice(&INSIDE.octets());
    frame[38..42].copy_from_slice(&GATEWAY4.octets());
    frame
}

/// A TCP segment or a UDP datagram from station 1 to `to`, its checksums made.
fn packet(to: MacAddr, v6: bool, protocol: u8, sequence: u32, payload: usize) -> Vec<u8> {
    let (src, dst): (IpAddr, IpAddr) = match v6 {
        false => (INSIDE.into(), OUTSIDE.into()),
        true => (INSIDE.to_ipv6_mapped().into(), OUTSIDE.to_ipv6_mapped().into()),
    };
    let header = IpHeader::new(src, dst, protocol);
    // A TCP header with timestamps, as Linux sends it.
    let transport_len = if protocol == TCP { 32 } else { 8 };
    let mut frame = vec![0x5a; header.transport() + transport_len + payload];
    header.emit(&mut frame, station(1));
    frame[..6].copy_from_slice(to.as_bytes());
    let octets = &mut frame[header.transport()..];
    octets[..4].copy_from_slice(&[0x9c, 0x40, 0, 53]);
    if protocol == TCP {
        octets[4..8].copy_from_slice(&sequence.to_be_bytes());
        octets[12..20].copy_from_slice(&[0x80, 0x10, 2, 0, 0, 0, 0, 0]);
        fill_checksum(&header, octets, 16);
    } else {
        let len = u16::try_from(octets.len()).expect("a datagram");
        octets[4..6].copy_from_slice(&len.to_be_bytes());
        octets[6..8].fill(0);
        fill_checksum(&header, octets, 6);
    }
    frame
}

fn port(n: u16, mtu: u16) -> Port {
    Port {
        role: PortRole::Container,
        mtu: IpMtu(mtu),
        offloads: Offloads::Header,
        mac: station(n),
        addresses: Vec::new(),
    }
}

/// A network with `ports` ports whose stations are all known, and room for `flows`.
fn warm(ports: u16, flows: usize) -> Datapath {
    let conntrack = Arc::new(Conntrack::new(flows, Profile::Rfc));
    let network = Arc::new(Network::new(Zone(1), conntrack));
    let config = NetworkConfig {
        gateway: Some(Gateway {
            mac: GATEWAY,
            addresses: vec!["172.18.0.1/16".parse().expect("an address")],
        }),
        uplink: Uplink::Sockets,
        mtu: IpMtu::ETHERNET,
        host_addresses: Vec::new(),
        isolated_from: Vec::new(),
        leg: Leg::Inside,
    };
    let mut datapath = Datapath::new(network, Arc::new(config), Arc::default());
    let mut out = Outbox::default();
    for n in 1..=ports {
        datapath.attach(PortId(n), port(n, u16::MAX - 60), Arc::<PortCounters>::default());
        ingress(&mut datapath, n, &frame(station(n), GATEWAY, 60), &mut out);
    }
    ingress(&mut datapath, 1, &arp_request(), &mut out);
    datapath
}

/// Brings in one frame and returns how many leave.
fn ingress(datapath: &mut Datapath, port: u16, frame: &[u8], out: &mut Outbox) -> usize {
    let received = Received { port: PortId(port), place: 0, frame, offload: Offload::NONE };
    let decision = datapath.ingress(&received, NOW, out, &mut Silent);
    let _ = black_box(decision);
    let departures = black_box(out.departures()).len();
    out.clear();
    departures
}

/// Allocations of one call of `work`, the mean of a thousand, which are no more than `most`.
fn allocations(label: &str, most: usize, mut work: impl FnMut()) {
    const CALLS: usize = 1000;
    work();
    let region = Region::new(ALLOCATOR);
    (0..CALLS).for_each(|_| work());
    let change = region.change();
    println!(
        "{label}: {:.3} allocations, {:.1} octets allocated",
        change.allocations as f64 / CALLS as f64,
        change.bytes_allocated as f64 / CALLS as f64
    );
    assert!(change.allocations <= most * CALLS, "{label} allocates more than {most} times");
}

fn bridge(c: &mut Criterion) {
    let mut group = c.benchmark_group("bridge");
    group.throughput(Throughput::Elements(1));
    let mut out = Outbox::default();
    let mut bench =
        |(path, number): (&str, usize), datapath: &mut Datapath, frame: &[u8], leave| {
            let label = format!("bridge/{path}/{number}");
            allocations(&label, 0, || {
                assert_eq!(ingress(datapath, 1, frame, &mut out), leave, "{label}");
            });
            let id = BenchmarkId::new(path, number);
            group.bench_function(id, |b| b.iter(|| ingress(datapath, 1, frame, &mut out)));
        };
    for len in [60, 1514, 65_000] {
        let known = frame(station(1), station(2), len);
        bench(("hit", len), &mut warm(8, 16), &known, 1);
    }
    let known = packet(station(2), false, TCP, 0, 1448);
    bench(("hit_tcp4", known.len()), &mut warm(8, 16), &known, 1);
    let known = packet(station(2), true, TCP, 0, 1448);
    bench(("hit_tcp6", known.len()), &mut warm(8, 16), &known, 1);
    // The cost of a frame does not grow with the network.
    for ports in [2, 50, 500] {
        let known = frame(station(1), station(ports), 60);
        bench(("hit_among_ports", ports.into()), &mut warm(ports, 16), &known, 1);
    }
    // Nor does a flood cost more than its copies, which are places in a list.
    for ports in [3, 9, 65, 500] {
        let unknown = frame(station(1), station(60_000), 60);
        let copies = usize::from(ports) - 1;
        bench(("miss_flood_to", copies), &mut warm(ports, 16), &unknown, copies);
    }
    let group_frame = frame(station(1), MacAddr::BROADCAST, 60);
    bench(("broadcast_to", 8), &mut warm(9, 16), &group_frame, 8);
    group.finish();
}

fn gateway(c: &mut Criterion) {
    let mut group = c.benchmark_group("gateway");
    group.throughput(Throughput::Elements(1));
    let mut out = Outbox::default();
    let mut datapath = warm(2, 16);
    let request = arp_request();
    // The answer, and the copy for the other port.
    allocations("gateway/arp", 0, || {
        assert_eq!(ingress(&mut datapath, 1, &request, &mut out), 2);
    });
    group.bench_function("arp", |b| b.iter(|| ingress(&mut datapath, 1, &request, &mut out)));
    let header = IpHeader::new(INSIDE.into(), GATEWAY4.into(), 1);
    let mut echo = vec![0; header.transport() + 64];
    header.emit(&mut echo, station(1));
    echo[..6].copy_from_slice(GATEWAY.as_bytes());
    echo[header.transport()] = 8;
    fill_checksum(&header, &mut echo[header.transport()..], 2);
    allocations("gateway/echo", 0, || {
        assert_eq!(ingress(&mut datapath, 1, &echo, &mut out), 1);
    });
    group.bench_function("echo", |b| b.iter(|| ingress(&mut datapath, 1, &echo, &mut out)));
    group.finish();
}

/// The flow of number `n` of many.
fn flow(n: u32) -> Entry {
    let [high, a, b, c] = n.to_be_bytes();
    let inside = TransportAddr::new(INSIDE.into(), 40_000);
    let outside = TransportAddr::new(Ipv4Addr::new(198, 18 ^ high, a, b).into(), c.into());
    let tuple = Tuple::new(Protocol::Udp, inside, outside);
    Entry::new(Zone(1), Direction::Original, tuple, tuple.inverse(), Owner(1), NOW)
}

fn nat(c: &mut Criterion) {
    let mut group = c.benchmark_group("nat");
    group.throughput(Throughput::Elements(1));
    let mut out = Outbox::default();
    let account = Account(1);
    for flows in [10, 10_000, 1_000_000] {
        let mut datapath = warm(2, flows + 16);
        let conntrack = Arc::clone(&datapath.network().conntrack);
        for n in 0..flows {
            let n = u32::try_from(n).expect("a million");
            conntrack.insert(account, flow(n)).expect("there is room");
        }
        let inside = TransportAddr::new(INSIDE.into(), 40_000);
        let known = Tuple::new(Protocol::Udp, inside, TransportAddr::new(OUTSIDE.into(), 53));
        let entry = Entry::new(Zone(1), Direction::Original, known, known.inverse(), Owner(1), NOW);
        conntrack.insert(account, entry).expect("there is room");
        let datagram = packet(GATEWAY, false, UDP, 0, 64);
        // Found by its tuple and given to its owner: nothing leaves yet.
        let label = format!("nat/established among {flows}");
        allocations(&label, 0, || {
            assert_eq!(ingress(&mut datapath, 1, &datagram, &mut out), 0);
        });
        group.bench_function(BenchmarkId::new("established_among", flows), |b| {
            b.iter(|| ingress(&mut datapath, 1, &datagram, &mut out));
        });
        let mut new = datagram.clone();
        new[34..36].copy_from_slice(&[0x9c, 0x41]);
        let udp = new.len() - 72;
        fill_checksum(&IpHeader::new(INSIDE.into(), OUTSIDE.into(), UDP), zeroed(&mut new, udp), 6);
        let strange = Tuple::new(
            Protocol::Udp,
            TransportAddr::new(INSIDE.into(), 40_001),
            TransportAddr::new(OUTSIDE.into(), 53),
        );
        group.bench_function(BenchmarkId::new("new_and_gone_among", flows), |b| {
            b.iter(|| {
                ingress(&mut datapath, 1, &new, &mut out);
                let (to, from) = (strange, strange.inverse());
                let entry = Entry::new(Zone(1), Direction::Original, to, from, Owner(1), NOW);
                let entry = conntrack.insert(account, entry).expect("there is room");
                conntrack.remove(&entry);
            });
        });
    }
    group.finish();
}

/// The datagram at `at` of a frame, its checksum field zero.
fn zeroed(frame: &mut [u8], at: usize) -> &mut [u8] {
    frame[at + 6..at + 8].fill(0);
    &mut frame[at..]
}

fn offloads(c: &mut Criterion) {
    let mut group = c.benchmark_group("offload");
    let mut scratch = Vec::new();
    for (label, v6, protocol, payload, size) in [
        ("segment_tso4", false, TCP, 62_264, 1448),
        ("segment_tso6", true, TCP, 61_404, 1428),
        ("segment_uso_64", false, UDP, 64 * 64, 64),
        ("segment_uso_1472", false, UDP, 44 * 1472, 1472),
    ] {
        let mut frame = packet(station(2), v6, protocol, 1, payload);
        let made = if protocol == TCP { Offload::for_tcp } else { Offload::for_udp };
        let offload = made(&mut frame, size).expect("a frame to cut");
        let mut cut = |frame: &[u8]| {
            segment(frame, offload, &mut scratch, &mut |plain| {
                black_box(plain);
            })
        };
        let count = cut(&frame).expect("it is cut");
        allocations(&format!("offload/{label} into {count}"), 0, || {
            black_box(cut(&frame)).expect("it is cut");
        });
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(label, |b| b.iter(|| cut(&frame)));
    }
    for (label, v6, protocol, size, count) in [
        ("join_tcp4_made", false, TCP, 1448, 32),
        ("join_tcp6_made", true, TCP, 1428, 32),
        ("join_udp_64_partial", false, UDP, 64, 32),
        ("join_udp_64_made", false, UDP, 64, 32),
    ] {
        let mut frames = Vec::new();
        for n in 0..count {
            let mut frame = packet(station(2), v6, protocol, n * size, size as usize);
            let offload = match label.ends_with("partial") {
                true => Offload::for_udp(&mut frame, u16::MAX - 1).expect("a datagram"),
                false => Offload::NONE,
            };
            frames.push((frame, offload));
        }
        let join = || {
            let (first, offload) = &frames[0];
            let mut run = Run::start(first, offload).expect("a run");
            for (frame, offload) in &frames[1..] {
                assert!(run.join(first, frame, offload));
            }
            let mut headers = [0; MAX_HEADERS];
            let headers = &mut headers[..run.payload_at()];
            headers.copy_from_slice(&first[..run.payload_at()]);
            black_box(run.finish(headers, *offload));
        };
        allocations(&format!("offload/{label} of {count}"), 0, join);
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(label, |b| b.iter(join));
    }
    let mut out = Outbox::default();
    let datagram = packet(station(2), false, UDP, 0, 8000);
    let mut cut = || {
        out.clear();
        let built = out.build(datagram.len());
        out.frame_mut(built).copy_from_slice(&datagram);
        black_box(fragment(&mut out, built, IpMtu::ETHERNET, 7)).len()
    };
    allocations("offload/fragment", 1, || assert_eq!(cut(), 6));
    group.throughput(Throughput::Bytes(8000));
    group.bench_function("fragment", |b| b.iter(&mut cut));
    group.finish();
}

/// Beside copying the same octets, which is the most a pass over memory can be.
fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [20, 64, 1448, 65_000] {
        let octets = vec![0x5a; len];
        let mut copy = vec![0; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("sum", len), |b| {
            b.iter(|| Sum::of(black_box(&octets)).fold());
        });
        group.bench_function(BenchmarkId::new("memcpy", len), |b| {
            b.iter(|| black_box(&mut copy).copy_from_slice(black_box(&octets)));
        });
    }
    group.finish();
}

fn tables(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    group.throughput(Throughput::Elements(1));
    let fdb = Fdb::default();
    for n in 0..1000 {
        fdb.learn(station(n), PortId(1), NOW);
    }
    let mut cache = FdbCache::default();
    group.bench_function("hit_cached", |b| {
        b.iter(|| black_box(cache.lookup(&fdb, black_box(station(7)), NOW)));
    });
    group.bench_function("hit_shared", |b| {
        b.iter(|| black_box(fdb.lookup(black_box(station(7)), NOW)));
    });
    group.bench_function("miss", |b| {
        b.iter(|| black_box(cache.lookup(&fdb, black_box(station(60_000)), NOW)));
    });
    group.bench_function("refresh_cached", |b| {
        b.iter(|| black_box(cache.learn(&fdb, black_box(station(7)), PortId(1), NOW)));
    });
    for threads in [1, 2, 4, 8] {
        group.throughput(Throughput::Elements(threads));
        group.bench_function(BenchmarkId::new("hit_shared_by_threads", threads), |b| {
            b.iter_custom(|rounds| {
                by_threads(threads, rounds, |n| {
                    black_box(fdb.lookup(station(n), NOW));
                })
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("neighbour");
    let neighbours = Neighbours::default();
    let address = |n: u16| {
        let [high, low] = n.to_be_bytes();
        IpAddr::from([172, 18, high, low])
    };
    for n in 0..1000 {
        neighbours.introduce(address(n), station(n), PortId(n), NOW);
    }
    for threads in [1, 2, 4, 8] {
        group.throughput(Throughput::Elements(threads));
        group.bench_function(BenchmarkId::new("hit_by_threads", threads), |b| {
            b.iter_custom(|rounds| {
                by_threads(threads, rounds, |n| {
                    black_box(neighbours.resolve(address(n), PortId(1), NOW));
                })
            });
        });
    }
    group.finish();
}

/// Time for each of `threads` threads to do `work` `rounds` times, on another of a thousand each time.
fn by_threads(threads: u64, rounds: u64, work: impl Fn(u16) + Sync) -> Duration {
    let start = std::time::Instant::now();
    let work = &work;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for round in 0..rounds {
                    let n = (round + thread * 37) % 1000;
                    work(u16::try_from(n).expect("below 1,000"));
                }
            });
        }
    });
    start.elapsed()
}

fn brief() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
}

criterion_group! {
    name = benches;
    config = brief();
    targets = bridge, gateway, nat, offloads, checksum, tables
}
criterion_main!(benches);
