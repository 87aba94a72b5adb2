//! Layer 3: what the gateway answers, sends on, and sends back (RFC 1812, RFC 4443).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use datapath::{Decision, DropReason, NetworkConfig, Offload, Uplink};
use nat::{Account, Direction, Entry, Owner, Protocol, TransportAddr, Tuple, Zone};
use pnet::packet::tcp::TcpFlags;
use smoltcp::time::Duration;

use crate::lab::{Lab, P1, P2, config};
use crate::wire::{ALICE, BOB, GATEWAY, IpSeen, Station, Tcp, WORLD, What, framed, hello, ip};

/// A frame from Alice to the gateway's station.
fn up(packet: &[u8]) -> Vec<u8> {
    framed(ALICE.mac, GATEWAY.mac, packet)
}

/// A lab in which Alice and the gateway know each other.
fn lab_with(config: NetworkConfig) -> Lab {
    let mut lab = Lab::with(config);
    lab.introduce(P1, ALICE);
    lab
}

const PORT_UNREACHABLE: [(u8, u8); 2] = [(3, 3), (1, 4)];
const TIME_EXCEEDED: [(u8, u8); 2] = [(11, 0), (3, 0)];
const NO_ROUTE: [(u8, u8); 2] = [(3, 0), (1, 0)];
const PROHIBITED: [(u8, u8); 2] = [(3, 13), (1, 1)];

/// Both families, with the place of each in the tables above.
const FAMILIES: [(bool, usize); 2] = [(false, 0), (true, 1)];

#[test]
fn an_echo_for_the_gateway_comes_back_as_it_went() {
    let mut lab = lab_with(config());
    let link_local = (ALICE.link_local().into(), GATEWAY.link_local().into());
    lab.introduce(P1, Station { v6: ALICE.link_local(), ..ALICE });
    let pairs = [
        (ALICE.addr(false), GATEWAY.addr(false)),
        (ALICE.addr(true), GATEWAY.addr(true)),
        link_local,
    ];
    for (from, to) in pairs {
        for payload in [&b""[..], b"odd", &[0xa5; 1400]] {
            let seen = lab.inject(P1, &up(&ip(from, to).echo(0xbeef, 42, payload))).answered();
            let kind = if from.is_ipv6() { 129 } else { 0 };
            let ip = IpSeen { src: to, dst: from, ttl: 64, class: 0 };
            let body = payload.to_vec();
            let what = What::Icmp { ip, kind, code: 0, word: 0xbeef_002a, body };
            assert_eq!((seen.src, seen.dst, seen.what), (GATEWAY.mac, ALICE.mac, what));
        }
    }
}

#[test]
fn a_packet_that_may_live_one_hop_dies_at_the_gateway_and_its_sender_is_told() {
    let mut lab = lab_with(config());
    for (v6, family) in FAMILIES {
        for ttl in [1, 0] {
            for len in [0, 8, 600, 1400] {
                let header = ip(ALICE.addr(v6), WORLD.addr(v6)).ttl(ttl);
                let packet = header.udp(33_434, 33_434, &vec![7; len]);
                let seen = lab.inject(P1, &up(&packet)).dropped_telling(DropReason::TtlExceeded);
                seen.is_error(ALICE, TIME_EXCEEDED[family], &packet);
            }
        }
        // Two hops are enough to pass one gateway.
        let packet = ip(ALICE.addr(v6), WORLD.addr(v6)).ttl(2).udp(1, 2, b"");
        lab.inject(P1, &up(&packet)).for_uplink();
    }
}

#[test]
fn a_bridged_packet_may_live_one_hop_as_the_bridge_is_none() {
    let mut lab = lab_with(config());
    lab.inject(P2, &hello(BOB, ALICE)).forwarded(P1);
    for (v6, _) in FAMILIES {
        let packet = ip(ALICE.addr(v6), BOB.addr(v6)).ttl(1).udp(1, 2, b"next door");
        lab.inject(P1, &framed(ALICE.mac, BOB.mac, &packet)).forwarded(P2);
    }
    // The gateway itself is no hop either: it is the end.
    let echo = ip(ALICE.v4, GATEWAY.v4).ttl(1).echo(1, 1, b"");
    lab.inject(P1, &up(&echo)).answered();
}

#[test]
fn without_an_uplink_there_is_no_route() {
    let mut lab = lab_with(NetworkConfig { uplink: Uplink::None, ..config() });
    for (v6, family) in FAMILIES {
        let packet = ip(ALICE.addr(v6), WORLD.addr(v6)).udp(1, 2, b"out there?");
        let seen = lab.inject(P1, &up(&packet)).dropped_telling(DropReason::NoRoute);
        seen.is_error(ALICE, NO_ROUTE[family], &packet);
    }
}

#[test]
fn another_network_is_prohibited() {
    let mut lab = lab_with(config());
    let others: [IpAddr; 2] = ["203.0.113.7".parse().unwrap(), "2001:db8:2::7".parse().unwrap()];
    for (other, (v6, family)) in others.into_iter().zip(FAMILIES) {
        let syn = Tcp { flags: TcpFlags::SYN, ..Tcp::default() };
        let packet = ip(ALICE.addr(v6), other).tcp(1, 2, syn, b"");
        let seen = lab.inject(P1, &up(&packet)).dropped_telling(DropReason::AdminProhibited);
        seen.is_error(ALICE, PROHIBITED[family], &packet);
    }
}

#[test]
fn a_protocol_the_uplink_cannot_carry_is_prohibited() {
    let mut lab = lab_with(config());
    const SCTP: u8 = 132;
    for (v6, family) in FAMILIES {
        let packet = ip(ALICE.addr(v6), WORLD.addr(v6)).carrying(SCTP, &[0; 24]);
        let seen = lab.inject(P1, &up(&packet)).dropped_telling(DropReason::UnsupportedProtocol);
        seen.is_error(ALICE, PROHIBITED[family], &packet);
    }
}

/// Strict reverse path (RFC 3704 §2.2), as far as addresses were given: nobody speaks to the world as another
/// endpoint.
#[test]
fn a_packet_with_another_endpoints_source_is_not_routed() {
    let mut lab = lab_with(config());
    lab.attach_known(P2, BOB);
    for (v6, _) in FAMILIES {
        let packet = ip(BOB.addr(v6), WORLD.addr(v6)).udp(4000, 53, b"as Bob");
        lab.inject(P1, &up(&packet)).dropped(DropReason::SpoofedNeighbour);
        let frame = framed(BOB.mac, GATEWAY.mac, &packet);
        lab.inject(P2, &frame).for_uplink();
        // An address nobody was given is whoever's says so.
        let packet = ip(ALICE.addr(v6), WORLD.addr(v6)).udp(4000, 53, b"as Alice");
        lab.inject(P1, &up(&packet)).for_uplink();
    }
}

/// RFC 1122 §3.2.2.1, RFC 4443 §3.4.
#[test]
fn a_protocol_the_gateway_does_not_speak_is_unreachable() {
    let mut lab = lab_with(config());
    const EXPERIMENT: u8 = 253;
    for ((v6, _), error) in FAMILIES.into_iter().zip([(3, 2), (4, 1)]) {
        let packet = ip(ALICE.addr(v6), GATEWAY.addr(v6)).carrying(EXPERIMENT, &[0; 24]);
        let seen = lab.inject(P1, &up(&packet)).dropped_telling(DropReason::UnsupportedProtocol);
        seen.is_error(ALICE, error, &packet);
        let What::Icmp { word, .. } = seen.what else { unreachable!() };
        assert_eq!(word, if v6 { 6 } else { 0 }, "the octet that names it");
    }
}

#[test]
fn a_datagram_for_the_gateway_finds_no_port_open() {
    let mut lab = lab_with(config());
    for (v6, family) in FAMILIES {
        let packet = ip(ALICE.addr(v6), GATEWAY.addr(v6)).udp(4000, 53, b"who is who?");
        lab.inject(P1, &up(&packet)).answered().is_error(ALICE, PORT_UNREACHABLE[family], &packet);
    }
}

/// RFC 9293 §3.5.2, group 1.
#[test]
fn a_segment_for_the_gateway_is_reset_by_the_rule() {
    let mut lab = lab_with(config());
    let (seq, ack) = (0xffff_fffe_u32, 0x1234_5678_u32);
    let (reset, reset_ack) = (TcpFlags::RST, TcpFlags::RST | TcpFlags::ACK);
    let cases = [
        // No ACK to take a number from: SEQ=0, ACK=SEG.SEQ+SEG.LEN, where SYN and FIN count.
        (TcpFlags::SYN, &b""[..], (reset_ack, 0, seq.wrapping_add(1))),
        (TcpFlags::SYN | TcpFlags::FIN, b"abc", (reset_ack, 0, seq.wrapping_add(5))),
        (0, b"abc", (reset_ack, 0, seq.wrapping_add(3))),
        // Else the reset has the number the sender waits for.
        (TcpFlags::ACK, b"", (reset, ack, 0)),
        (TcpFlags::SYN | TcpFlags::ACK, b"", (reset, ack, 0)),
        (TcpFlags::FIN | TcpFlags::ACK, b"late", (reset, ack, 0)),
    ];
    for (v6, _) in FAMILIES {
        for (flags, payload, (answer, answer_seq, answer_ack)) in cases {
            let segment = Tcp { flags, seq, ack };
            let packet = ip(ALICE.addr(v6), GATEWAY.addr(v6)).tcp(4000, 80, segment, payload);
            let seen = lab.inject(P1, &up(&packet)).answered();
            let (src, dst) = (GATEWAY.addr(v6), ALICE.addr(v6));
            let expected = What::Tcp {
                ip: IpSeen { src, dst, ttl: 64, class: 0 },
                ports: (80, 4000),
                flags: answer,
                seq: answer_seq,
                ack: answer_ack,
                payload: Vec::new(),
            };
            assert_eq!(seen.what, expected, "to flags {flags:#x}");
        }
        for flags in [reset, reset_ack] {
            let packet =
                ip(ALICE.addr(v6), GATEWAY.addr(v6)).tcp(1, 2, Tcp { flags, seq, ack }, b"");
            lab.inject(P1, &up(&packet)).taken();
        }
    }
}

#[test]
fn a_packet_for_a_neighbour_by_way_of_the_gateway_goes_on_one_hop_older() {
    let mut lab = lab_with(config());
    lab.introduce(P2, BOB);
    for (v6, _) in FAMILIES {
        // TTL 0x0100 less one borrows in the checksum's word; 64 does not.
        for ttl in [2, 64, 255] {
            let packet = ip(ALICE.addr(v6), BOB.addr(v6)).ttl(ttl).udp(1, 2, b"the long way");
            let sent = lab.inject(P1, &up(&packet)).taken_sending();
            let [(P2, seen)] = &sent[..] else { panic!("{sent:?} {}", lab.report()) };
            assert_eq!((seen.src, seen.dst), (GATEWAY.mac, BOB.mac));
            let What::Udp { ip, ports, payload } = &seen.what else { panic!("{seen:?}") };
            assert_eq!((ip.src, ip.dst), (ALICE.addr(v6), BOB.addr(v6)));
            assert_eq!((ip.ttl, *ports, &**payload), (ttl - 1, (1, 2), &b"the long way"[..]));
        }
        let packet = ip(ALICE.addr(v6), BOB.addr(v6)).ttl(1).udp(1, 2, b"too long a way");
        lab.inject(P1, &up(&packet)).dropped_telling(DropReason::TtlExceeded);
    }
}

#[test]
fn what_the_uplink_gets_says_what_the_packet_says() {
    let mut lab = lab_with(config());
    for (v6, _) in FAMILIES {
        let (src, dst) = (ALICE.addr(v6), WORLD.addr(v6));
        let transport = if v6 { 54 } else { 34 };
        let header = || ip(src, dst).ttl(17);
        let syn = Tcp { flags: TcpFlags::SYN, seq: 1, ack: 0 };
        let icmp = if v6 { Protocol::Icmpv6 } else { Protocol::Icmp };
        for (packet, protocol, ports) in [
            (header().udp(4000, 53, b"q"), Protocol::Udp, (4000, 53)),
            (header().tcp(4001, 80, syn, b""), Protocol::Tcp, (4001, 80)),
            (header().echo(77, 1, b"ping"), icmp, (77, 77)),
        ] {
            let mut frame = up(&packet);
            let end = frame.len();
            frame.extend(b"padding");
            let seen = lab.inject(P1, &frame).for_uplink();
            assert_eq!((seen.src, seen.dst, seen.protocol), (src, dst, protocol));
            assert_eq!((seen.ports, seen.hop_limit), (Some(ports), 17));
            assert_eq!((seen.transport, seen.end), (transport, end));
        }
    }
}

#[test]
fn a_packet_of_a_known_flow_goes_to_its_owner_in_its_direction_as_long_as_it_may_live() {
    let mut lab = lab_with(config());
    let tuple = |src: IpAddr, dst: IpAddr| {
        Tuple::new(Protocol::Udp, TransportAddr::new(src, 4000), TransportAddr::new(dst, 53))
    };
    for ((v6, family), (zone, owner)) in FAMILIES.into_iter().zip([(1, 5), (1, 6)]) {
        let original = tuple(ALICE.addr(v6), WORLD.addr(v6));
        let entry = Entry::new(
            Zone(zone),
            Direction::Original,
            original,
            original.inverse(),
            Owner(owner),
            lab.now,
        );
        lab.network.conntrack.insert(Account(1), entry).unwrap();
        let header = ip(ALICE.addr(v6), WORLD.addr(v6));
        let outcome = lab.inject(P1, &up(&header.udp(4000, 53, b"again")));
        let Decision::Flow(to, direction, _) = outcome.decision() else {
            panic!("{}", lab.report())
        };
        assert_eq!((to, direction), (Owner(owner), Direction::Original));
        let last = header.clone().ttl(1).udp(4000, 53, b"last");
        let seen = lab.inject(P1, &up(&last)).dropped_telling(DropReason::TtlExceeded);
        seen.is_error(ALICE, TIME_EXCEEDED[family], &last);
        // Another source port is another flow.
        lab.inject(P1, &up(&header.udp(4001, 53, b"new"))).for_uplink();
    }
}

#[test]
fn the_same_tuple_of_another_network_is_another_flow() {
    let mut lab = lab_with(config());
    let (src, dst) =
        (TransportAddr::new(ALICE.v4.into(), 1), TransportAddr::new(WORLD.v4.into(), 2));
    let original = Tuple::new(Protocol::Udp, src, dst);
    let elsewhere =
        Entry::new(Zone(2), Direction::Original, original, original.inverse(), Owner(1), lab.now);
    lab.network
        .conntrack
        .insert(Account(1), Arc::into_inner(Arc::new(elsewhere)).unwrap())
        .unwrap();
    lab.inject(P1, &up(&ip(ALICE.v4, WORLD.v4).udp(1, 2, b""))).for_uplink();
}

/// RFC 1812 §4.3.2.8, RFC 4443 §2.4 (f).
#[test]
fn errors_are_limited_for_each_port_and_what_is_suppressed_is_counted() {
    let mut lab = lab_with(config());
    lab.introduce(P2, BOB);
    lab.advance(Duration::from_secs(10));
    let flood = |lab: &mut Lab| {
        let packet = ip(ALICE.v4, GATEWAY.v4).udp(1, 2, b"");
        let told = (0..500).filter(|_| !lab.inject(P1, &up(&packet)).taken_sending().is_empty());
        told.count()
    };
    let first = flood(&mut lab);
    assert!((50..=51).contains(&first), "{first} errors at once");
    assert_eq!(lab.not_sent(P1, DropReason::ErrorLimit), 500 - first as u64);
    lab.now += Duration::from_millis(20);
    let later = flood(&mut lab);
    assert!((20..=21).contains(&later), "{later} errors 20 ms later");
    // Bob has not caused a single one, and is told at once.
    let packet = ip(BOB.v4, GATEWAY.v4).udp(1, 2, b"");
    lab.inject(P2, &framed(BOB.mac, GATEWAY.mac, &packet)).answered();
    assert_eq!(lab.not_sent(P2, DropReason::ErrorLimit), 0);
}

/// RFC 1812 §5.3.7: a router does not take a packet from its own address off the link.
#[test]
fn a_packet_from_the_gateways_own_address_is_martian() {
    let mut lab = lab_with(config());
    for v6 in [false, true] {
        for dst in [GATEWAY, WORLD, BOB] {
            let packet = ip(GATEWAY.addr(v6), dst.addr(v6)).udp(1, 2, b"");
            lab.inject(P1, &up(&packet)).dropped(DropReason::MartianSource);
        }
    }
    let packet = ip(GATEWAY.link_local(), WORLD.v6).udp(1, 2, b"");
    lab.inject(P1, &up(&packet)).dropped(DropReason::MartianSource);
}

#[test]
fn the_other_familys_icmp_is_malformed() {
    let mut lab = lab_with(config());
    for (v6, protocol) in [(false, 58), (true, 1)] {
        for dst in [GATEWAY, WORLD] {
            let packet = ip(ALICE.addr(v6), dst.addr(v6))
                .carrying(protocol, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
            lab.inject(P1, &up(&packet)).dropped(DropReason::Malformed);
        }
    }
}

/// A lab in which Bob's link carries 1,400 octets, and the gateway knows him.
fn lab_with_narrow_bob() -> Lab {
    let mut lab = lab_with(config());
    lab.attach(P2, datapath::Port { mtu: datapath::IpMtu(1400), ..crate::lab::port() });
    lab.introduce(P2, BOB);
    lab
}

/// RFC 1191 §4, RFC 4443 §3.2: the MTU told is that of the link the packet did not fit.
#[test]
fn whoever_sends_too_much_is_told_what_the_next_link_carries() {
    let mut lab = lab_with_narrow_bob();
    let dont_fragment = |mut packet: Vec<u8>| {
        packet[6] |= 0x40;
        let mut ip = pnet::packet::ipv4::MutableIpv4Packet::new(&mut packet).unwrap();
        let checksum = pnet::packet::ipv4::checksum(&ip.to_immutable());
        ip.set_checksum(checksum);
        packet
    };
    for (v6, header, kind) in [(false, 20, (3, 4)), (true, 40, (2, 0))] {
        let datagram = |len: usize| {
            let packet = ip(ALICE.addr(v6), BOB.addr(v6)).udp(1, 2, &vec![5; len - header - 8]);
            if v6 { packet } else { dont_fragment(packet) }
        };
        let sent = lab.inject(P1, &up(&datagram(1400))).taken_sending();
        assert_eq!(sent.len(), 1, "{}", lab.report());
        let large = datagram(1401);
        let seen = lab.inject(P1, &up(&large)).dropped_telling(DropReason::TooBig);
        seen.is_error(ALICE, kind, &large);
        let What::Icmp { word, .. } = seen.what else { unreachable!() };
        assert_eq!(word, 1400);
    }
}

/// RFC 1812 §5.2.6: what may be cut is cut.
#[test]
fn a_datagram_too_long_for_the_next_link_goes_on_in_pieces() {
    let mut lab = lab_with_narrow_bob();
    let payload: Vec<u8> = (0..1440u32).map(|n| n.to_le_bytes()[0]).collect();
    let packet = ip(ALICE.v4, BOB.v4).udp(1, 2, &payload);
    let pieces = lab.inject(P1, &up(&packet)).taken_sending();
    assert_eq!(pieces.len(), 2, "{}", lab.report());
    let mut whole: Vec<u8> = Vec::new();
    for (index, (port, piece)) in pieces.iter().enumerate() {
        let What::Piece { ip, identification, at, more, octets } = &piece.what else {
            panic!("{piece:?}")
        };
        assert_eq!((*port, piece.dst, ip.ttl, *identification), (P2, BOB.mac, 63, 0x4242));
        assert!(octets.len() <= 1400 - 20);
        assert_eq!((*at, *more), (whole.len(), index == 0));
        whole.extend(octets);
    }
    assert_eq!(whole, packet[20..]);
}

/// Options of a header stand in every piece if they say so (RFC 791 §3.1); a frame still to be segmented is cut
/// segment by segment.
#[test]
fn whatever_may_be_cut_goes_on_in_pieces() {
    let mut lab = lab_with_narrow_bob();
    let payload: Vec<u8> = (0..4000u32).map(|n| n.to_le_bytes()[0]).collect();
    // Router alert (RFC 2113), which is copied.
    let options = ip(ALICE.v4, BOB.v4).options(&[148, 4, 0, 0]);
    let long = options.udp(1, 2, &payload[..1440]);
    let pieces = lab.inject(P1, &up(&long)).taken_sending();
    assert_eq!(pieces.len(), 2, "{}", lab.report());
    let segmented = ip(ALICE.v4, BOB.v4).udp(1, 2, &payload);
    let mut frame = up(&segmented);
    let offload = Offload::for_udp(&mut frame, 1440).unwrap();
    let pieces = lab.inject_with(P1, &frame, offload).taken_sending();
    // Two of 1,440 octets in two pieces each, and the rest.
    assert_eq!(pieces.len(), 5, "{}", lab.report());
    let mut got: Vec<u8> = Vec::new();
    let mut datagram: Vec<u8> = Vec::new();
    for (port, seen) in &pieces {
        assert_eq!((*port, seen.dst), (P2, BOB.mac));
        match &seen.what {
            What::Piece { at, more, octets, .. } => {
                assert_eq!(*at, datagram.len());
                datagram.extend(octets);
                if !more {
                    got.extend(&std::mem::take(&mut datagram)[8..]);
                }
            }
            What::Udp { payload, .. } => got.extend(payload),
            other => panic!("{other:?}"),
        }
    }
    assert!(got == payload);
}

/// A kernel refuses a frame whose hint of its headers' length reaches behind it.
#[test]
fn what_is_turned_round_without_its_padding_has_a_hint_within_it() {
    let mut lab = lab_with(config());
    lab.introduce(P2, BOB);
    let mut frame = up(&ip(ALICE.v4, BOB.v4).udp(1, 2, b""));
    let end = frame.len();
    frame.resize(60, 0);
    let offload = Offload { header_len: 60, ..Offload::NONE };
    let left = lab.inject_with(P1, &frame, offload).offloads();
    let [left] = left[..] else { panic!("{left:?} {}", lab.report()) };
    assert_eq!(usize::from(left.header_len), end);
}

#[test]
fn a_network_without_a_gateway_is_a_bridge_and_nothing_else() {
    let mut lab = Lab::with(NetworkConfig { gateway: None, ..config() });
    let asked = crate::wire::arp_request(ALICE, Ipv4Addr::new(192, 0, 2, 1));
    lab.inject(P1, &asked).flooded(&[P2, crate::lab::P3]);
    let echo = ip(ALICE.v4, GATEWAY.v4).echo(1, 1, b"");
    lab.inject(P1, &up(&echo)).flooded(&[P2, crate::lab::P3]);
}
