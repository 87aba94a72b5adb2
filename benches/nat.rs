//! What a flow costs the NAT: to enter, to pass once established, to be forgotten.
//!
//! Memory to memory, one thread, no descriptor. Established packets are measured with 10 to 1 M other flows
//! in the table: the cost must not grow with them, and a thousand of them must allocate nothing.

use std::alloc::System;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nat::{
    Account, Config, Conntrack, Direction, Egress, Entry, Ingress, Match, Nat, NoNotes, Owner,
    Profile, Protocol, Rule, Rules, Source, TransportAddr, Tuple, Undone, Zone,
};
use smoltcp::time::{Duration, Instant};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NOW: Instant = Instant::from_micros_const(1_000_000);
const NET: Zone = Zone(1);
const UPLINK: Zone = Zone(100);
const SHOWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const INSIDE: Ingress = Ingress { zone: NET, inside: true, account: Account(1), mtu: 1500 };
const OUTSIDE: Ingress = Ingress { zone: UPLINK, inside: false, account: Account(0), mtu: 1500 };

/// A NAT that masquerades, with `flows` flows in its table and room for some more.
fn nat(flows: u32) -> Nat {
    let conntrack = Conntrack::new(flows as usize + 100_000, Profile::Rfc);
    (0..flows).for_each(|n| enter(&conntrack, n));
    let mut config = Config::new(UPLINK, [7; 16]);
    config.max_mappings_of_account = usize::MAX;
    let nat = Nat::new(Arc::new(conntrack), config);
    let matches = Match { to: Some(UPLINK), ..Match::ANY };
    nat.set_rules(Rules::new(vec![], vec![Rule::new(matches, Source::Masquerade)]));
    nat
}

/// The names of the `n`th of the other flows.
fn tuples(n: u32) -> (Tuple, Tuple) {
    let [a, b, c, d] = n.to_be_bytes();
    let inside =
        TransportAddr::new(Ipv4Addr::new(172, 19, a, b).into(), u16::from_be_bytes([c, d]));
    let far = TransportAddr::new(FAR.into(), 443);
    let original = Tuple::new(Protocol::Udp, inside, far);
    let shown = TransportAddr::new(Ipv4Addr::new(100, 64, a, b).into(), inside.port);
    (original, Tuple::new(Protocol::Udp, far, shown))
}

fn enter(conntrack: &Conntrack, n: u32) {
    let (original, reply) = tuples(n);
    let entry = Entry::new(NET, Direction::Original, original, reply, Owner::NONE, NOW);
    conntrack.insert(Account(n % 64), entry).expect("room");
}

fn datagram(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&ports.0.to_be_bytes());
    packet.extend_from_slice(&ports.1.to_be_bytes());
    packet.extend_from_slice(&[0, 8, 0, 0]);
    packet
}

/// Both hooks.
fn pass(nat: &Nat, packet: &mut Vec<u8>, octets: &[u8], ingress: &Ingress) {
    packet.clear();
    packet.extend_from_slice(octets);
    let passage = nat.prerouting(packet, Undone::default(), ingress, NOW, &mut NoNotes);
    let zone = if ingress.inside { UPLINK } else { NET };
    let addresses = [SHOWN.into()];
    let egress = Egress { zone, inside: !ingress.inside, mtu: 1500, addresses: &addresses };
    let mut passage = passage.expect("it passes");
    let _ = black_box(nat.postrouting(packet, &mut passage, &egress, None, NOW, &mut NoNotes));
}

fn established(c: &mut Criterion) {
    let mut group = c.benchmark_group("nat");
    group.throughput(Throughput::Elements(1));
    for flows in [10, 1000, 100_000, 1_000_000] {
        let nat = nat(flows);
        let question = datagram(Ipv4Addr::new(172, 18, 0, 2), FAR, (4000, 9));
        let answer = datagram(FAR, SHOWN, (9, 4000));
        let mut packet = Vec::with_capacity(64);
        pass(&nat, &mut packet, &question, &INSIDE);
        let region = Region::new(ALLOCATOR);
        for _ in 0..1000 {
            pass(&nat, &mut packet, &question, &INSIDE);
            pass(&nat, &mut packet, &answer, &OUTSIDE);
        }
        let allocations = region.change().allocations;
        assert_eq!(allocations, 0, "established among {flows}");
        group.bench_function(BenchmarkId::new("established_out", flows), |b| {
            b.iter(|| pass(&nat, &mut packet, &question, &INSIDE));
        });
        group.bench_function(BenchmarkId::new("established_back", flows), |b| {
            b.iter(|| pass(&nat, &mut packet, &answer, &OUTSIDE));
        });
        let absent = Tuple::new(
            Protocol::Udp,
            TransportAddr::new(FAR.into(), 1),
            TransportAddr::new(FAR.into(), 2),
        );
        group.bench_function(BenchmarkId::new("lookup_miss", flows), |b| {
            b.iter(|| black_box(nat.conntrack().lookup(NET, black_box(absent))));
        });
        // Another flow each time: what the processor's caches do not hold is fetched.
        let mut n = 0u32;
        group.bench_function(BenchmarkId::new("lookup_spread", flows), |b| {
            b.iter(|| {
                n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let (original, _) = tuples(n % flows);
                black_box(nat.conntrack().lookup(NET, original))
            });
        });
        // One part of the table, none of which is over.
        group.bench_function(BenchmarkId::new("expire_one_part", flows), |b| {
            b.iter(|| black_box(nat.conntrack().expire(NOW)));
        });
    }
    group.finish();
}

fn new_flows(c: &mut Criterion) {
    let mut group = c.benchmark_group("nat_new");
    const FLOWS: u16 = 20_000;
    group.throughput(Throughput::Elements(u64::from(FLOWS)));
    group.sample_size(10);
    let mut packet = Vec::with_capacity(64);
    // Each with a mapping of its own, and all to one mapping.
    for (label, one) in [("mappings", false), ("far_sides", true)] {
        group.bench_function(BenchmarkId::new(label, FLOWS), |b| {
            b.iter_batched(
                || nat(0),
                |nat| {
                    for n in 0..FLOWS {
                        let ports = if one { (4000, n) } else { (2000 + n, 9) };
                        let octets = datagram(Ipv4Addr::new(172, 18, 0, 2), FAR, ports);
                        pass(&nat, &mut packet, &octets, &INSIDE);
                    }
                    nat
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.bench_function(BenchmarkId::new("expire", FLOWS), |b| {
        b.iter_batched(
            || nat(u32::from(FLOWS)),
            |nat| {
                let later = NOW + Duration::from_secs(1000);
                (0..100).for_each(|_| nat.expire(later));
                assert!(nat.conntrack().is_empty());
                nat
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, established, new_flows);
criterion_main!(benches);
