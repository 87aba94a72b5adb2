//! There and back: who is shown, where it goes, and that it is one hop older.

use datapath::{DropReason, Gso, Hop, Offload};
use nat::{Direction, Entry, Owner, Protocol, TransportAddr, Tuple};
use pnet::packet::tcp::TcpFlags;

use crate::town::{
    BESIDE, CAROL, FAR, NET, OURS, P1, P2, Plan, ROUTER, SEGMENT, Sent, Town, distant, everywhere,
    on_link,
};
use crate::wire::{ALICE, BOB, GATEWAY, IpSeen, Seen, Tcp, What, framed, ip};

const FAMILIES: [bool; 2] = [false, true];
const SYN: Tcp = Tcp { flags: TcpFlags::SYN, seq: 100, ack: 0 };

/// The one frame that left, by that network and port.
#[track_caller]
pub(crate) fn one(sent: Vec<Sent>, zone: nat::Zone, port: datapath::PortId) -> Seen {
    let all: Vec<_> = sent.iter().map(|sent| (sent.zone, sent.port, sent.seen())).collect();
    let [(there, by, seen)] = &all[..] else { panic!("not one frame: {all:?}") };
    assert_eq!((*there, *by), (zone, port), "{seen:?}");
    seen.clone()
}

/// A frame of Alice's to her gateway.
pub(crate) fn up(packet: &[u8]) -> Vec<u8> {
    framed(ALICE.mac, GATEWAY.mac, packet)
}

/// A frame to our station, by way of the router.
pub(crate) fn down(packet: &[u8]) -> Vec<u8> {
    framed(ROUTER.mac, OURS.mac, packet)
}

fn header(seen: &Seen) -> IpSeen {
    match &seen.what {
        What::Udp { ip, .. } | What::Tcp { ip, .. } | What::Icmp { ip, .. } => *ip,
        other => panic!("{other:?}"),
    }
}

/// RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-1: shown with our station's address, the port kept where
/// it is free; RFC 1812 §5.3.1: one hop older, once.
#[test]
fn a_flow_goes_out_as_ours_and_its_answer_comes_back() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan::default());
        let (alice, ours, far) = (ALICE.addr(v6), OURS.addr(v6), distant(v6));
        let there = ip(alice, far).ttl(17);
        let back = ip(far, ours).ttl(33);
        let answer = Tcp { flags: TcpFlags::SYN | TcpFlags::ACK, seq: 7, ack: 101 };
        let kind = if v6 { 129 } else { 0 };
        let reply = [0xbe, 0xef, 0, 1, b'p'];
        for (question, answer) in [
            (there.udp(4000, 53, b"q"), back.udp(53, 4000, b"a")),
            (there.tcp(4001, 80, SYN, b""), back.tcp(80, 4001, answer, b"")),
            (there.echo(0xbeef, 1, b"p"), back.icmp(kind, 0, &reply)),
        ] {
            for _ in 0..2 {
                let sent = town.bring(NET, P1, &up(&question)).unwrap();
                let seen = one(sent, SEGMENT, P1);
                assert_eq!((seen.src, seen.dst), (OURS.mac, ROUTER.mac));
                let ip = header(&seen);
                assert_eq!((ip.src, ip.dst, ip.ttl), (ours, far, 16), "{seen:?}");
                let sent = town.bring(SEGMENT, P1, &down(&answer)).unwrap();
                let seen = one(sent, NET, P1);
                assert_eq!((seen.src, seen.dst), (GATEWAY.mac, ALICE.mac));
                let ip = header(&seen);
                assert_eq!((ip.src, ip.dst, ip.ttl), (far, alice, 32), "{seen:?}");
            }
        }
    }
}

#[test]
fn a_neighbour_of_our_station_is_sent_to_without_the_router() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan::default());
        let packet = ip(ALICE.addr(v6), FAR.addr(v6)).udp(4000, 53, b"q");
        let sent = town.bring(NET, P1, &up(&packet)).unwrap();
        assert_eq!(one(sent, SEGMENT, P1).dst, FAR.mac);
    }
}

/// RFC 1122 §3.3.1.2, RFC 3442: the longest prefix counts, the segment's own subnet among them.
#[test]
fn a_route_to_a_part_of_the_segment_is_taken() {
    for v6 in FAMILIES {
        let part = if v6 { "2001:db8:7::9/128" } else { "198.51.100.9/32" };
        let part = Hop { to: part.parse().unwrap(), via: Some(ROUTER.addr(v6)) };
        let routes = [on_link(), everywhere(), vec![part]].concat();
        let mut town = Town::new(Plan { routes, ..Plan::default() });
        let packet = ip(ALICE.addr(v6), FAR.addr(v6)).udp(4000, 53, b"q");
        let sent = town.bring(NET, P1, &up(&packet)).unwrap();
        assert_eq!(one(sent, SEGMENT, P1).dst, ROUTER.mac);
    }
}

/// Clouds lease addresses of 32 bits and a router outside them.
#[test]
fn a_station_without_a_subnet_hears_its_router() {
    for v6 in FAMILIES {
        let plan = Plan { subnets: false, routes: everywhere(), ..Plan::default() };
        let mut town = Town::new(plan);
        for to in [distant(v6), FAR.addr(v6)] {
            let packet = ip(ALICE.addr(v6), to).udp(4000, 53, b"q");
            let sent = town.bring(NET, P1, &up(&packet)).unwrap();
            assert_eq!(one(sent, SEGMENT, P1).dst, ROUTER.mac);
        }
    }
}

/// RFC 4787 REQ-3: two containers with one source port are shown with two.
#[test]
fn no_external_port_is_shared() {
    let mut town = Town::new(Plan::default());
    let mut ports = Vec::new();
    for (who, port) in [(ALICE, P1), (BOB, P2)] {
        let packet = ip(who.v4, distant(false)).udp(4000, 53, b"q");
        let frame = framed(who.mac, GATEWAY.mac, &packet);
        let seen = one(town.bring(NET, port, &frame).unwrap(), SEGMENT, P1);
        let What::Udp { ports: (src, _), .. } = seen.what else { panic!("{seen:?}") };
        ports.push(src);
    }
    assert_eq!(ports[0], 4000);
    assert_ne!(ports[0], ports[1]);
}

/// RFC 4787 REQ-9a, RFC 5382 REQ-8: by a published port, from outside and from inside.
#[test]
fn a_published_port_leads_inside_and_hairpins() {
    for v6 in FAMILIES {
        let published = vec![(Protocol::Tcp, 8080, BOB.addr(v6), 80)];
        let mut town = Town::new(Plan { published, ..Plan::default() });
        let packet = ip(distant(v6), OURS.addr(v6)).tcp(999, 8080, SYN, b"");
        let sent = town.bring(SEGMENT, P1, &down(&packet)).unwrap();
        let seen = one(sent, NET, P2);
        let What::Tcp { ip: header, ports, .. } = seen.what else { panic!("{seen:?}") };
        assert_eq!((header.src, header.dst, ports), (distant(v6), BOB.addr(v6), (999, 80)));
        let packet = ip(ALICE.addr(v6), OURS.addr(v6)).tcp(4000, 8080, SYN, b"");
        let sent = town.bring(NET, P1, &up(&packet)).unwrap();
        let seen = one(sent, NET, P2);
        assert_eq!((seen.src, seen.dst), (GATEWAY.mac, BOB.mac));
        let What::Tcp { ip: header, ports, .. } = seen.what else { panic!("{seen:?}") };
        assert_eq!((header.src, header.dst, header.ttl), (OURS.addr(v6), BOB.addr(v6), 63));
        assert_eq!(ports, (4000, 80), "the external source");
    }
}

/// A frame of Carol's, whose network has another uplink, to her gateway.
fn beside(packet: &[u8]) -> Vec<u8> {
    framed(CAROL.mac, [2, 0, 0, 0, 8, 1], packet)
}

/// The host, by whose sockets Carol's packets leave, has no way to our station; so it is here. She is shown
/// with the address she speaks to (RFC 4787 REQ-9a), and an error about her packet finds her.
#[test]
fn a_network_with_another_uplink_reaches_a_published_port() {
    for nat in [true, false] {
        for v6 in FAMILIES {
            let published = vec![(Protocol::Udp, 8080, BOB.addr(v6), 80)];
            let mut town = Town::new(Plan { nat, published, ..Plan::default() });
            let packet = ip(CAROL.addr(v6), OURS.addr(v6)).udp(4000, 8080, b"question");
            let there = one(town.bring(BESIDE, P1, &beside(&packet)).unwrap(), NET, P2);
            assert_eq!((there.src, there.dst), (GATEWAY.mac, BOB.mac));
            let What::Udp { ip: header, ports, .. } = there.what else { panic!("{there:?}") };
            assert_eq!((header.src, header.dst, header.ttl), (OURS.addr(v6), BOB.addr(v6), 63));
            assert_eq!(ports, (4000, 80));
            let answer = ip(BOB.addr(v6), OURS.addr(v6)).udp(80, ports.0, b"answer");
            let frame = framed(BOB.mac, GATEWAY.mac, &answer);
            let back = one(town.bring(NET, P2, &frame).unwrap(), BESIDE, P1);
            assert_eq!(back.dst, CAROL.mac);
            let What::Udp { ip: header, ports, .. } = back.what else { panic!("{back:?}") };
            assert_eq!((header.src, header.dst, header.ttl), (OURS.addr(v6), CAROL.addr(v6), 63));
            assert_eq!(ports, (8080, 4000));
            // Bob's server has ended: his host says so of the packet it got.
            let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
            let quoted = ip(OURS.addr(v6), BOB.addr(v6)).udp(4000, 80, b"question");
            let told = [&[0; 4], &quoted[..]].concat();
            let told = ip(BOB.addr(v6), OURS.addr(v6)).icmp(kind, code, &told);
            let frame = framed(BOB.mac, GATEWAY.mac, &told);
            let back = one(town.bring(NET, P2, &frame).unwrap(), BESIDE, P1);
            let What::Icmp { ip: header, body, .. } = back.what else { panic!("{back:?}") };
            assert_eq!(header.dst, CAROL.addr(v6));
            let addresses = if v6 { 8..40 } else { 12..20 };
            assert_eq!(
                body[addresses.clone()],
                packet[addresses],
                "about the packet as she sent it"
            );
        }
    }
}

/// To whom is beside it, our station is a host like any other; and it is no way to them from outside.
#[test]
fn our_station_is_all_that_a_network_with_another_uplink_has_here() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan { nat: false, ..Plan::default() });
        let echo = ip(CAROL.addr(v6), OURS.addr(v6)).echo(7, 1, b"there?");
        let seen = one(town.bring(BESIDE, P1, &beside(&echo)).unwrap(), BESIDE, P1);
        assert_eq!((header(&seen).src, seen.dst), (OURS.addr(v6), CAROL.mac));
        let syn = ip(CAROL.addr(v6), OURS.addr(v6)).tcp(4000, 22, SYN, b"");
        let seen = one(town.bring(BESIDE, P1, &beside(&syn)).unwrap(), BESIDE, P1);
        let What::Tcp { flags, .. } = seen.what else { panic!("{seen:?}") };
        assert!(flags & TcpFlags::RST != 0, "nobody listens there");
        let datagram = ip(distant(v6), CAROL.addr(v6)).udp(53, 4000, b"unasked");
        let Err((why, said)) = town.bring(SEGMENT, P1, &down(&datagram)) else { panic!() };
        assert_eq!((why, said.len()), (DropReason::NoRoute, 0));
    }
}

#[test]
fn our_station_answers_an_echo_and_nothing_else() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan::default());
        let echo = ip(distant(v6), OURS.addr(v6)).ttl(1).echo(7, 1, b"there?");
        let seen = one(town.bring(SEGMENT, P1, &down(&echo)).unwrap(), SEGMENT, P1);
        assert_eq!((seen.src, seen.dst, header(&seen).ttl), (OURS.mac, ROUTER.mac, 64));
        let datagram = ip(distant(v6), OURS.addr(v6)).udp(53, 4000, b"unasked");
        let Err((why, said)) = town.bring(SEGMENT, P1, &down(&datagram)) else { panic!() };
        assert_eq!((why, said.len()), (DropReason::Filtered, 0));
        // From inside it is a host like any other.
        let echo = ip(ALICE.addr(v6), OURS.addr(v6)).echo(7, 1, b"there?");
        let seen = one(town.bring(NET, P1, &up(&echo)).unwrap(), NET, P1);
        assert_eq!(header(&seen).src, OURS.addr(v6));
    }
}

/// RFC 2827: nobody outside can have an inside address; RFC 1122 §3.2.1.3: what is for nobody here is
/// dropped in silence.
#[test]
fn what_cannot_come_from_outside_does_not() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan::default());
        let cases = [
            (BOB.addr(v6), OURS.addr(v6), DropReason::ForeignSource),
            (OURS.addr(v6), OURS.addr(v6), DropReason::MartianSource),
            (distant(v6), FAR.addr(v6), DropReason::NoRoute),
            (distant(v6), BOB.addr(v6), DropReason::Filtered),
        ];
        for (src, dst, expected) in cases {
            let packet = ip(src, dst).udp(1, 2, b"x");
            let Err((why, said)) = town.bring(SEGMENT, P1, &down(&packet)) else { panic!() };
            match (why, expected) {
                (DropReason::Filtered, DropReason::Filtered) => {}
                _ => assert_eq!(why, expected, "{src} to {dst}"),
            }
            assert_eq!(said.len(), 0, "{src} to {dst}");
        }
    }
}

/// Routed without translation, both ways.
#[test]
fn without_nat_containers_keep_their_addresses() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan { nat: false, ..Plan::default() });
        let packet = ip(ALICE.addr(v6), distant(v6)).udp(4000, 53, b"q");
        let sent = town.bring(NET, P1, &up(&packet)).unwrap();
        assert_eq!(header(&one(sent, SEGMENT, P1)).src, ALICE.addr(v6));
        let packet = ip(distant(v6), BOB.addr(v6)).udp(4000, 53, b"q");
        let sent = town.bring(SEGMENT, P1, &down(&packet)).unwrap();
        let ip = header(&one(sent, NET, P2));
        assert_eq!((ip.src, ip.dst, ip.ttl), (distant(v6), BOB.addr(v6), 63));
    }
}

/// A frame still to be segmented crosses whole: translated, and right once it is cut.
#[test]
fn a_frame_still_to_be_segmented_crosses_as_one() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan::default());
        let syn = ip(ALICE.addr(v6), distant(v6)).tcp(4001, 80, SYN, b"");
        let _ = town.bring(NET, P1, &up(&syn)).unwrap();
        let flags = TcpFlags::SYN | TcpFlags::ACK;
        let answer =
            ip(distant(v6), OURS.addr(v6)).tcp(80, 4001, Tcp { flags, seq: 7, ack: 101 }, b"");
        let _ = town.bring(SEGMENT, P1, &down(&answer)).unwrap();
        let payload: Vec<u8> = (0..20_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let data = Tcp { flags: TcpFlags::ACK, seq: 101, ack: 8 };
        let mut frame = up(&ip(ALICE.addr(v6), distant(v6)).ttl(9).tcp(4001, 80, data, &payload));
        let offload = Offload::for_tcp(&mut frame, 1400).unwrap();
        let sent = town.bring_with(NET, P1, &frame, offload).unwrap();
        let [whole] = &sent[..] else { panic!("{} frames", sent.len()) };
        assert_eq!((whole.zone, whole.octets.len()), (SEGMENT, frame.len()));
        assert!(matches!(
            whole.offload.gso,
            Gso::Tcp4 { size: 1400, .. } | Gso::Tcp6 { size: 1400, .. }
        ));
        let mut got = Vec::new();
        let mut cut = |plain: &[u8]| {
            let seen = crate::wire::read(plain);
            let What::Tcp { ip, ports, payload, .. } = seen.what else { panic!("{seen:?}") };
            assert_eq!((ip.src, ip.ttl, ports), (OURS.addr(v6), 8, (4001, 80)));
            got.extend(payload);
        };
        datapath::segment::segment(&whole.octets, whole.offload, &mut Vec::new(), &mut cut)
            .unwrap();
        assert!(got == payload);
    }
}

/// Enters a flow of the relay's, as a published port has it on the host's own address: of a distant client's port 999
/// with Alice's port 80.
pub(crate) fn relay(town: &Town) -> Owner {
    let at = |addr, port| TransportAddr::new(addr, port);
    let client = at(distant(false), 999);
    let original = Tuple::new(Protocol::Tcp, client, at(ALICE.addr(false), 80));
    let (reply, owner) = (original.inverse(), Owner(42));
    let entry = Entry::new(NET, Direction::Reply, original, reply, owner, town.now);
    town.nat.conntrack().insert(nat::Account(1), entry).unwrap();
    owner
}

#[test]
fn a_relayed_flow_is_left_to_its_owner() {
    let mut town = Town::new(Plan::default());
    let owner = relay(&town);
    let data = Tcp { flags: TcpFlags::ACK, seq: 1, ack: 1 };
    let packet = ip(ALICE.v4, distant(false)).tcp(80, 999, data, b"hello");
    let sent = town.bring(NET, P1, &up(&packet)).unwrap();
    assert_eq!((sent.len(), town.owned), (0, Some(owner)));
}
