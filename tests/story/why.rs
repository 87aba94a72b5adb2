//! The steps of a decision, for whoever asks why.

use datapath::fdb::Learned;
use datapath::{DropReason, MacAddr, NetworkConfig, PortId, Step, Uplink};
use nat::{Account, Direction, Entry, Owner, Protocol, TransportAddr, Tuple, Zone};

use crate::lab::{Lab, P1, P2, config};
use crate::wire::{ALICE, BOB, GATEWAY, NOBODY, WORLD, arp_request, framed, hello, ip};

const LEARNED: Step = Step::Learn { station: MacAddr(ALICE.mac), outcome: Learned::Refreshed };

fn ingress(frame: &[u8]) -> Step {
    Step::Ingress { port: P1, len: frame.len() }
}

#[test]
fn each_way_of_a_frame_explains_itself_step_by_step() {
    let mut lab = Lab::new();
    lab.introduce(P1, ALICE);
    lab.introduce(P2, BOB);
    let flow = Tuple::new(
        Protocol::Udp,
        TransportAddr::new(ALICE.v4.into(), 4000),
        TransportAddr::new(WORLD.v4.into(), 53),
    );
    let entry = Entry::new(Zone(1), Direction::Original, flow, flow.inverse(), Owner(1), lab.now);
    lab.network.conntrack.insert(Account(1), entry).unwrap();
    let up = |packet: &[u8]| framed(ALICE.mac, GATEWAY.mac, packet);
    let (dst, direction) = (WORLD.v4.into(), Direction::Original);
    let world = |packet: crate::wire::Ip| up(&packet.udp(4001, 53, b""));
    let bob = MacAddr(BOB.mac);
    let ways = [
        ("hit", hello(ALICE, BOB), vec![LEARNED, Step::Known { station: bob, port: P2 }]),
        ("miss", hello(ALICE, NOBODY), vec![LEARNED, Step::Flood { copies: 2 }]),
        ("question", arp_request(ALICE, GATEWAY.v4), vec![LEARNED, Step::Answered]),
        (
            "echo for the gateway",
            up(&ip(ALICE.v4, GATEWAY.v4).echo(1, 1, b"")),
            vec![LEARNED, Step::Gateway, Step::Answered],
        ),
        (
            "new flow",
            world(ip(ALICE.v4, WORLD.v4)),
            vec![LEARNED, Step::Gateway, Step::Uplink { dst }],
        ),
        (
            "known flow",
            up(&ip(ALICE.v4, WORLD.v4).udp(4000, 53, b"")),
            vec![LEARNED, Step::Gateway, Step::Flow { tuple: flow, direction }],
        ),
        (
            "last hop",
            world(ip(ALICE.v4, WORLD.v4).ttl(1)),
            vec![LEARNED, Step::Gateway, Step::Dropped(DropReason::TtlExceeded)],
        ),
        (
            "back to its own port",
            framed(BOB.mac, ALICE.mac, &ip(BOB.v4, ALICE.v4).udp(1, 2, b"")),
            vec![
                Step::Learn { station: bob, outcome: Learned::Moved },
                Step::Known { station: MacAddr(ALICE.mac), port: P1 },
                Step::Dropped(DropReason::SamePort),
            ],
        ),
        ("runt", vec![0; 13], vec![Step::Dropped(DropReason::Runt)]),
    ];
    for (name, frame, expected) in ways {
        let steps = lab.explain(P1, &frame);
        let expected = [vec![ingress(&frame)], expected].concat();
        assert_eq!(steps, expected, "{name}{}", lab.report());
    }
}

#[test]
fn a_station_first_heard_and_a_route_not_there_are_steps_too() {
    let mut lab = Lab::with(NetworkConfig { uplink: Uplink::None, ..config() });
    let frame = framed(ALICE.mac, GATEWAY.mac, &ip(ALICE.v4, WORLD.v4).udp(1, 2, b""));
    let station = MacAddr(ALICE.mac);
    let expected = [
        ingress(&frame),
        Step::Learn { station, outcome: Learned::New },
        Step::Gateway,
        Step::Dropped(DropReason::NoRoute),
    ];
    assert_eq!(lab.explain(P1, &frame), expected);
}

/// The same frame is decided the same way whether anybody asks or not.
#[test]
fn asking_changes_nothing() {
    let frames = [
        hello(ALICE, BOB),
        arp_request(ALICE, GATEWAY.v4),
        framed(ALICE.mac, GATEWAY.mac, &ip(ALICE.v4, GATEWAY.v4).echo(1, 1, b"")),
        framed(ALICE.mac, GATEWAY.mac, &ip(ALICE.v4, WORLD.v4).ttl(1).udp(1, 2, b"")),
        vec![0; 13],
    ];
    let (mut asked, mut silent) = (Lab::new(), Lab::new());
    for frame in frames {
        asked.explain(P1, &frame);
        let _ = silent.inject(P1, &frame);
        for port in [P1, P2, PortId::GATEWAY] {
            assert_eq!(asked.count(port), silent.count(port), "{}", silent.report());
        }
        assert_eq!(asked.network.fdb.list(), silent.network.fdb.list());
    }
}
