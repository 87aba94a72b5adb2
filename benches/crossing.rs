//! What it costs to carry a packet between a network and a segment of the world.
//!
//! Memory to memory, one thread, no descriptor: a frame in the buffer it was read into, `ingress`, the NAT, the
//! next hop, a departure in the outbox. Each case first counts the allocations of a thousand packets; one ends
//! the run. A 64 KB frame costs what a small one does: it is not copied.

use std::alloc::System;
use std::collections::HashMap;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use datapath::emit::{IpHeader, fill_checksum};
use datapath::{
    Arrival, Crossing, Datapath, Decision, Gateway, Hop, IpMtu, Leg, Legs, MacAddr, Network,
    NetworkConfig, OFFLOAD_HEADER_LEN, Offload, Offloads, Outbox, Outside, Port, PortId, PortRole,
    Received, Silent, Slot, Uplink, slot,
};
use nat::{Config, Conntrack, Match, Nat, NoNotes, Profile, Rule, Rules, Source, Zone};
use smoltcp::time::Instant;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NOW: Instant = Instant::from_micros_const(1_000_000);
const NET: Zone = Zone(1);
const SEGMENT: Zone = Zone(0x8001);
const P1: PortId = PortId(1);
const CONTAINER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const STATION: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 1, 254]);

struct Nets(HashMap<Zone, Datapath>);

impl Legs for Nets {
    fn leg(&mut self, zone: Zone) -> Option<&mut Datapath> {
        self.0.get_mut(&zone)
    }
}

/// A container's network, a segment with a router, and the NAT between them.
struct Town {
    nets: Nets,
    crossing: Crossing,
    out: Outbox,
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn town() -> Town {
    let conntrack = Arc::new(Conntrack::new(100_000, Profile::Rfc));
    let nat = Arc::new(Nat::new(Arc::clone(&conntrack), Config::new(SEGMENT, [7; 16])));
    let masquerade = Match { to: Some(SEGMENT), ..Match::ANY };
    nat.set_rules(Rules::new(vec![], vec![Rule::new(masquerade, Source::Masquerade)]));
    let shown = vec![addr("198.51.100.1"), addr("2001:db8:7::1")];
    let subnets = ["172.18.0.0/16", "fd00:18::/64"].map(|text| text.parse().expect("a subnet"));
    let behind = subnets.map(|subnet| (subnet, NET));
    let crossing = Crossing::new(nat, SEGMENT, shown, &behind, &[]);
    let gateway = |mac, addresses: [&str; 2]| Gateway {
        mac,
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
    };
    let routes = [("0.0.0.0/0", "198.51.100.254"), ("::/0", "2001:db8:7::fe")]
        .map(|(to, via)| Hop { to: to.parse().expect("a prefix"), via: Some(addr(via)) });
    let outside = Outside {
        routes: routes.to_vec(),
        behind: subnets.to_vec(),
        link_local: true,
        ..Outside::default()
    };
    let sides = [
        (NET, gateway(GATEWAY, ["172.18.0.1/16", "fd00:18::1/64"]), Leg::Inside, CONTAINER),
        (
            SEGMENT,
            gateway(STATION, ["198.51.100.1/24", "2001:db8:7::1/64"]),
            Leg::Uplink(outside),
            ROUTER,
        ),
    ];
    let mut out = Outbox::default();
    let nets = sides.map(|(zone, gateway, leg, mac)| {
        let config = NetworkConfig {
            gateway: Some(gateway),
            uplink: Uplink::Raw(SEGMENT),
            mtu: IpMtu(1500),
            host_addresses: Vec::new(),
            isolated_from: Vec::new(),
            leg,
        };
        let network = Arc::new(Network::new(zone, Arc::clone(&conntrack)));
        let mut dp = Datapath::new(network, Arc::new(config), Arc::default());
        let addresses = match zone {
            NET => vec![addr("172.18.0.2"), addr("fd00:18::2")],
            _ => vec![addr("198.51.100.254"), addr("2001:db8:7::fe")],
        };
        let port = Port {
            role: PortRole::Container,
            mtu: IpMtu(1500),
            offloads: Offloads::Header,
            mac,
            addresses,
        };
        dp.attach(P1, port, Arc::default());
        dp.introduce(P1, NOW, &mut out);
        (zone, dp)
    });
    Town { nets: Nets(nets.into()), crossing, out }
}

/// A frame behind its offload header, with room behind it.
struct Frame {
    octets: Vec<u8>,
    len: usize,
    offload: Offload,
}

fn frame(
    macs: (MacAddr, MacAddr),
    (from, to): (IpAddr, IpAddr),
    ports: (u16, u16),
    payload: usize,
) -> Frame {
    let header = IpHeader::new(from, to, 17);
    let transport = header.transport();
    let mut frame = vec![0; transport + 8 + payload];
    header.emit(&mut frame, macs.0);
    frame[..6].copy_from_slice(macs.1.as_bytes());
    frame[transport..][..2].copy_from_slice(&ports.0.to_be_bytes());
    frame[transport + 2..][..2].copy_from_slice(&ports.1.to_be_bytes());
    let len = u16::try_from(8 + payload).expect("a datagram");
    frame[transport + 4..][..2].copy_from_slice(&len.to_be_bytes());
    fill_checksum(&header, &mut frame[transport..], 6);
    let offload = match payload {
        0..=1472 => Offload { valid: true, ..Offload::NONE },
        _ => Offload::for_udp(&mut frame, 1400).expect("datagrams to be cut"),
    };
    let mut octets = vec![0; OFFLOAD_HEADER_LEN];
    offload.emit(octets.first_chunk_mut().expect("room"));
    octets.extend_from_slice(&frame);
    let len = octets.len();
    octets.resize(len + slot::SPARE, 0);
    Frame { octets, len, offload }
}

/// Carries a frame as a worker does, from a fresh copy of its headers.
fn carry(town: &mut Town, zone: Zone, original: &Frame, buffer: &mut Frame) {
    const HEADERS: usize = OFFLOAD_HEADER_LEN + 14 + 40 + 8;
    let headers = HEADERS.min(original.len);
    buffer.octets[..headers].copy_from_slice(&original.octets[..headers]);
    buffer.len = original.len;
    town.out.clear();
    let (offload, len) = (original.offload, original.len);
    let frame = &buffer.octets[OFFLOAD_HEADER_LEN..len];
    let received = Received { port: P1, place: 0, frame, offload };
    let dp = town.nets.0.get_mut(&zone).expect("a network");
    let decision = dp.ingress(&received, NOW, &mut town.out, &mut Silent);
    let Decision::Cross(_, packet) = decision else { panic!("{decision:?}") };
    let arrival = Arrival { zone, port: P1, offload, packet };
    let mut slot = Slot::new(&mut buffer.octets, &mut buffer.len, Some(0));
    let crossed =
        town.crossing.carry(&mut town.nets, &arrival, &mut slot, NOW, &mut town.out, &mut NoNotes);
    let _ = black_box(crossed.expect("it crosses"));
    assert_eq!(town.out.departures().len(), 1);
}

fn established(c: &mut Criterion) {
    let mut group = c.benchmark_group("crossing");
    group.throughput(Throughput::Elements(1));
    for (family, inside, far, shown) in [
        ("v4", "172.18.0.2", "203.0.113.7", "198.51.100.1"),
        ("v6", "fd00:18::2", "2001:db8:9::7", "2001:db8:7::1"),
    ] {
        for payload in [18, 1400, 63_000] {
            let mut town = town();
            let (inside, far, shown) = (addr(inside), addr(far), addr(shown));
            let out = frame((CONTAINER, GATEWAY), (inside, far), (4000, 9), payload);
            let back = frame((ROUTER, STATION), (far, shown), (9, 4000), payload);
            // So that each bridge knows its station.
            for (zone, frame) in [(NET, &out), (SEGMENT, &back)] {
                let mut buffer = Frame { octets: frame.octets.clone(), ..*frame };
                carry(&mut town, zone, frame, &mut buffer);
            }
            for (way, zone, original) in [("out", NET, &out), ("back", SEGMENT, &back)] {
                let mut buffer = Frame { octets: original.octets.clone(), ..*original };
                let region = Region::new(ALLOCATOR);
                (0..1000).for_each(|_| carry(&mut town, zone, original, &mut buffer));
                let allocations = region.change().allocations;
                println!(
                    "{family} {way}, {payload} octets: {allocations} allocations of a thousand"
                );
                group.bench_function(BenchmarkId::new(format!("{family}_{way}"), payload), |b| {
                    b.iter(|| carry(&mut town, zone, original, &mut buffer));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, established);
criterion_main!(benches);
