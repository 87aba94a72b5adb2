//! What one frame costs on each of its ways through the data path, in time and in allocations.
//!
//! Memory to memory, one thread, no descriptor: what the kernel adds is measured by the side-by-side.
//! Each benchmark first counts the allocations of a thousand warm frames and prints the mean.

use std::alloc::System;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use datapath::fdb::{Fdb, FdbCache};
use datapath::{
    Datapath, Gateway, IpMtu, MacAddr, Network, NetworkConfig, Offload, Offloads, Outbox, Port,
    PortCounters, PortId, PortRole, Received, Silent, Uplink,
};
use nat::{Conntrack, Profile, Zone};
use smoltcp::time::Instant;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const GATEWAY: MacAddr = MacAddr([2, 0x42, 172, 18, 0, 1]);
const NOW: Instant = Instant::from_micros_const(1_000_000);

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
    frame[28..32].copy_from_slice(&[172, 18, 0, 10]);
    frame[38..42].copy_from_slice(&[172, 18, 0, 1]);
    frame
}

/// A network with `ports` ports whose stations are all known.
fn warm(ports: u16) -> Datapath {
    let conntrack = Arc::new(Conntrack::new(1024, Profile::Rfc));
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
    };
    let mut datapath = Datapath::new(network, Arc::new(config), Arc::default());
    for n in 1..=ports {
        let port = Port {
            role: PortRole::Container,
            mtu: IpMtu::ETHERNET,
            offloads: Offloads::Header,
            mac: station(n),
            addresses: Vec::new(),
        };
        datapath.attach(PortId(n), port, Arc::<PortCounters>::default());
    }
    let mut out = Outbox::default();
    for n in 1..=ports {
        ingress(&mut datapath, n, &frame(station(n), GATEWAY, 60), &mut out);
    }
    datapath
}

fn ingress(datapath: &mut Datapath, port: u16, frame: &[u8], out: &mut Outbox) {
    let received = Received { port: PortId(port), place: 0, frame, offload: Offload::NONE };
    let decision = datapath.ingress(&received, NOW, out, &mut Silent);
    let _ = black_box(decision);
    black_box(out.departures());
    out.clear();
}

/// Allocations and octets allocated of one call, the mean of a thousand.
fn allocations(label: &str, mut work: impl FnMut()) {
    const CALLS: usize = 1000;
    work();
    let region = Region::new(ALLOCATOR);
    (0..CALLS).for_each(|_| work());
    let change = region.change();
    println!(
        "{label}: {:.3} allocations, {:.1} octets allocated per frame",
        change.allocations as f64 / CALLS as f64,
        change.bytes_allocated as f64 / CALLS as f64
    );
}

fn bridge(c: &mut Criterion) {
    let mut group = c.benchmark_group("bridge");
    group.throughput(Throughput::Elements(1));
    let mut out = Outbox::default();
    for len in [60, 1514, 65_000] {
        let mut datapath = warm(8);
        datapath.attach(
            PortId(2),
            Port {
                role: PortRole::Container,
                mtu: IpMtu(u16::MAX - 60),
                offloads: Offloads::Header,
                mac: station(2),
                addresses: Vec::new(),
            },
            Arc::default(),
        );
        ingress(&mut datapath, 2, &frame(station(2), GATEWAY, 60), &mut out);
        let known = frame(station(1), station(2), len);
        let label = format!("bridge/hit/{len}");
        allocations(&label, || ingress(&mut datapath, 1, &known, &mut out));
        group.bench_function(BenchmarkId::new("hit", len), |b| {
            b.iter(|| ingress(&mut datapath, 1, &known, &mut out));
        });
    }
    for ports in [3, 9, 65] {
        let mut datapath = warm(ports);
        let unknown = frame(station(1), station(60_000), 60);
        let label = format!("bridge/miss, flood to {}", ports - 1);
        allocations(&label, || ingress(&mut datapath, 1, &unknown, &mut out));
        group.bench_function(BenchmarkId::new("miss_flood_to", ports - 1), |b| {
            b.iter(|| ingress(&mut datapath, 1, &unknown, &mut out));
        });
    }
    let mut datapath = warm(2);
    let request = arp_request();
    allocations("gateway/arp", || ingress(&mut datapath, 1, &request, &mut out));
    group.bench_function("gateway_arp", |b| {
        b.iter(|| ingress(&mut datapath, 1, &request, &mut out));
    });
    group.finish();
}

fn fdb(c: &mut Criterion) {
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
            b.iter_custom(|rounds| shared_lookups(&fdb, threads, rounds));
        });
    }
    group.finish();
}

/// Time for each of `threads` threads to look up `rounds` stations of one table.
fn shared_lookups(fdb: &Fdb, threads: u64, rounds: u64) -> std::time::Duration {
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for round in 0..rounds {
                    let n = u16::try_from((round + thread * 37) % 1000).expect("below 1,000");
                    black_box(fdb.lookup(station(n), NOW));
                }
            });
        }
    });
    start.elapsed()
}

criterion_group!(benches, bridge, fdb);
criterion_main!(benches);
