//! What a flow costs: octets of memory, and allocations on the established path.
//!
//! One test, for the allocator counts whatever any thread of the process does.

#[path = "conformance/wire.rs"]
#[allow(dead_code)]
mod wire;

use std::alloc::System;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use nat::{
    Account, Config, Conntrack, Destination, Direction, Egress, Entry, Ingress, Match, Nat,
    NoNotes, Npt, Owner, Profile, Protocol, Rule, Rules, Source, TcpState, TransportAddr, Tuple,
    Undone, Zone,
};
use smoltcp::time::Instant;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NOW: Instant = Instant::from_micros_const(1_000_000);

/// Octets an entry may cost, everything counted: itself, both its names, the account's list.
const MOST: [(Protocol, usize); 2] = [(Protocol::Tcp, 256), (Protocol::Udp, 208)];

fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change.bytes_allocated - change.bytes_deallocated
}

/// The `n`th flow, masqueraded, and answered if `answered`.
fn flow(protocol: Protocol, n: u32) -> (Account, Tuple, Tuple) {
    let [a, b, c, d] = n.to_be_bytes();
    let inside =
        TransportAddr::new(Ipv4Addr::new(172, 18, a, b).into(), u16::from_be_bytes([c, d]));
    let far = TransportAddr::new(Ipv4Addr::new(198, 51, 100, 2).into(), 443);
    let shown = TransportAddr::new(Ipv4Addr::new(203, 0, a, b).into(), inside.port);
    (Account(n % 16), Tuple::new(protocol, inside, far), Tuple::new(protocol, far, shown))
}

fn enter(conntrack: &Conntrack, protocol: Protocol, n: u32, answered: bool) {
    let (account, original, reply) = flow(protocol, n);
    let entry = Entry::new(Zone(1), Direction::Original, original, reply, Owner::NONE, NOW);
    let entry = conntrack.insert(account, entry).unwrap();
    if answered {
        entry.note(Direction::Reply, 1, 40, NOW);
        entry.set_state(TcpState::Established);
    }
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

#[test]
fn a_flow_is_small_and_an_established_one_allocates_nothing() {
    for (flows, answered, (protocol, most)) in
        [(1_000_000, false, MOST[0]), (100_000, true, MOST[0]), (100_000, false, MOST[1])]
    {
        let region = Region::new(ALLOCATOR);
        let conntrack = Conntrack::new(flows as usize, Profile::Rfc);
        (0..flows).for_each(|n| enter(&conntrack, protocol, n, answered));
        let each = held(&region) / flows as usize;
        println!("{flows} flows of {protocol}, answered: {answered}: {each} octets each");
        assert!(each <= most, "{each} octets for each of {flows} flows of {protocol}");
        let (_, _, reply) = flow(protocol, 4711);
        let region = Region::new(ALLOCATOR);
        for _ in 0..1000 {
            assert!(conntrack.lookup(Zone(1), reply).is_some());
            assert!(conntrack.find(Zone(1), reply, NOW).is_some());
        }
        assert_eq!(region.change().allocations, 0);
    }
    translation_of_a_known_flow_allocates_nothing();
    a_masqueraded_flow_of_any_protocol_allocates_nothing();
    addresses_nobody_is_shown_with_any_more_cost_nothing();
}

/// TCP, UDP and ICMP, in both families, both ways.
fn a_masqueraded_flow_of_any_protocol_allocates_nothing() {
    let uplink = Zone(100);
    let config = Config::new(uplink, [7; 16]);
    let nat = Nat::new(Arc::new(Conntrack::new(1000, Profile::Rfc)), config);
    let matches = Match { to: Some(uplink), ..Match::ANY };
    nat.set_rules(Rules::new(vec![], vec![Rule::new(matches, Source::Masquerade)]));
    let inside = Ingress { zone: Zone(1), inside: true, account: Account(1), mtu: 1500 };
    let outside = Ingress { zone: uplink, inside: false, ..inside };
    let addresses = ["203.0.113.1", "2001:db8:1::1"].map(|addr| addr.parse().unwrap());
    let out = Egress { zone: uplink, inside: false, mtu: 1500, addresses: &addresses };
    let back = Egress { zone: Zone(1), inside: true, ..out };
    let mut packet = Vec::with_capacity(128);
    let mut pass = |octets: &[u8], from_inside: bool| {
        packet.clear();
        packet.extend_from_slice(octets);
        let (ingress, egress) = if from_inside { (&inside, &out) } else { (&outside, &back) };
        let undone = Undone::default();
        let mut passage = nat.prerouting(&mut packet, undone, ingress, NOW, &mut NoNotes).unwrap();
        let sent = nat.postrouting(&mut packet, &mut passage, egress, None, NOW, &mut NoNotes);
        assert_eq!(sent, Ok(nat::Sent::Whole));
        let (flow, _) = passage.entry().unwrap();
        assert!(flow.translated());
    };
    for ends in wire::TALKS {
        let [alice, far, shown] = ends;
        pass(&wire::control(alice, far, wire::SYN, 100, 0), true);
        pass(&wire::control(far, shown, wire::SYN_ACK, 500, 101), false);
        for [there, here] in wire::talks(ends) {
            pass(&there, true);
            pass(&here, false);
            for (octets, from_inside) in [(&there, true), (&here, false)] {
                let region = Region::new(ALLOCATOR);
                (0..1000).for_each(|_| pass(octets, from_inside));
                let allocations = region.change().allocations;
                assert_eq!(allocations, 0, "{alice}, {far}, from inside: {from_inside}");
            }
        }
    }
    assert_eq!(nat.conntrack().len(), 6);
}

/// A container that has many addresses of its own, where there is an external one for each.
fn addresses_nobody_is_shown_with_any_more_cost_nothing() {
    const SOURCES: u16 = 20_000;
    let uplink = Zone(100);
    let v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap();
    let region = Region::new(ALLOCATOR);
    let conntrack = Conntrack::new(65_536, Profile::Rfc);
    let nat = Nat::new(Arc::new(conntrack), Config::new(uplink, [7; 16]));
    let range = v6("2001:db8:9::").into()..=v6("2001:db8:9::ffff:ffff").into();
    let matches = Match { to: Some(uplink), ..Match::ANY };
    nat.set_rules(Rules::new(vec![], vec![Rule::new(matches, Source::To(range))]));
    let inside = Ingress { zone: Zone(1), inside: true, account: Account(1), mtu: 1500 };
    let out = Egress { zone: uplink, inside: false, mtu: 1500, addresses: &[] };
    let empty = held(&region);
    let mut now = NOW;
    for round in 0..3 {
        for n in 0..SOURCES {
            let from = std::net::Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, round, n);
            let mut packet = datagram_v6(from, v6("2001:db8::2"), (4000, 9));
            let undone = Undone::default();
            let mut passage =
                nat.prerouting(&mut packet, undone, &inside, now, &mut NoNotes).unwrap();
            let sent = nat.postrouting(&mut packet, &mut passage, &out, None, now, &mut NoNotes);
            assert_eq!(sent, Ok(nat::Sent::Whole));
        }
        let each = (held(&region) - empty) / usize::from(SOURCES);
        println!("an external address for each of {SOURCES} flows: {each} octets each");
        assert!(each <= 1536, "{each} octets for a flow with an external address of its own");
        // Silent for long enough, and its port has rested.
        for _ in 0..4 {
            now += smoltcp::time::Duration::from_secs(301);
            (0..100).for_each(|_| nat.expire(now));
        }
        assert_eq!((nat.conntrack().len(), nat.mappings().len()), (0, 0));
        let left = held(&region).saturating_sub(empty);
        println!("when they are gone: {left} octets in all");
        assert!(left <= 256 << 10, "{left} octets are left of what is gone");
    }
}

/// Masquerade; a port published to a client of the other IP version (NAT46); a prefix translated without state;
/// each both ways, and with a partial checksum on a frame still to be segmented.
fn translation_of_a_known_flow_allocates_nothing() {
    let uplink = Zone(100);
    let config = Config {
        nat46: Some(Ipv4Addr::new(198, 18, 0, 1)..=Ipv4Addr::new(198, 18, 0, 1)),
        ..Config::new(uplink, [7; 16])
    };
    let nat = Nat::new(Arc::new(Conntrack::new(1000, Profile::Rfc)), config);
    let alice = Ipv4Addr::new(172, 18, 0, 2);
    let to = Destination::To {
        addr: alice.into(),
        first_port: Some(80),
        account: Account(1),
        zone: Zone(1),
    };
    let published = Match { dst_ports: 8080..=8080, ..Match::ANY };
    let matches = Match { to: Some(uplink), ..Match::ANY };
    nat.set_rules(Rules::new(
        vec![Rule::new(published, to)],
        vec![Rule::new(matches, Source::Masquerade)],
    ));
    let prefix = |text: &str| text.parse().unwrap();
    nat.set_prefixes(
        Npt::new(uplink, prefix("fd00:77::/48"), prefix("2001:db8:77::/48")).into_iter().collect(),
    );
    let shown: IpAddr = Ipv4Addr::new(203, 0, 113, 1).into();
    let inside = Ingress { zone: Zone(1), inside: true, account: Account(1), mtu: 1500 };
    let outside = Ingress { zone: uplink, inside: false, ..inside };
    let addresses = [shown];
    let out = Egress { zone: uplink, inside: false, mtu: 1500, addresses: &addresses };
    let back = Egress { zone: Zone(1), inside: true, ..out };
    let far = Ipv4Addr::new(198, 51, 100, 2);
    let v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap();
    let client = v6("2001:db8:9::1");
    let pairs = [
        [datagram(alice, far, (4000, 9)), datagram(far, Ipv4Addr::new(203, 0, 113, 1), (9, 4000))],
        [
            datagram_v6(client, v6("2001:db8:1::1"), (5000, 8080)),
            datagram(alice, Ipv4Addr::new(198, 18, 0, 1), (80, 5000)),
        ],
        [
            datagram_v6(v6("fd00:77::2"), client, (4000, 9)),
            datagram_v6(client, v6("2001:db8:77:f9d1::2"), (9, 4000)),
        ],
    ];
    let mut packet = Vec::with_capacity(128);
    let mut pass = |octets: &[u8], undone: Undone| {
        packet.clear();
        packet.extend_from_slice(octets);
        let from_inside = octets[12..14] == [172, 18] || octets[8..10] == [0xfd, 0];
        let (ingress, egress) = if from_inside { (&inside, &out) } else { (&outside, &back) };
        let mut passage = nat.prerouting(&mut packet, undone, ingress, NOW, &mut NoNotes).unwrap();
        let sent = nat.postrouting(&mut packet, &mut passage, egress, None, NOW, &mut NoNotes);
        assert_eq!(sent, Ok(nat::Sent::Whole));
    };
    for undone in [Undone::default(), Undone { partial: true, segment: Some(1200) }] {
        pairs.iter().flatten().for_each(|octets| pass(octets, undone));
        let region = Region::new(ALLOCATOR);
        for _ in 0..1000 {
            pairs.iter().flatten().for_each(|octets| pass(octets, undone));
        }
        assert_eq!(region.change().allocations, 0, "{undone:?}");
    }
}

fn datagram_v6(from: std::net::Ipv6Addr, to: std::net::Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&ports.0.to_be_bytes());
    packet.extend_from_slice(&ports.1.to_be_bytes());
    packet.extend_from_slice(&[0, 8, 0x12, 0x34]);
    packet
}
