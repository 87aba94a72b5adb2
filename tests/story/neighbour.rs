//! ARP (RFC 826, RFC 5227) and NDP (RFC 4861, RFC 4862): who is where.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath::neighbour::{CAPACITY_PER_PORT, REACHABLE_TIME, RETRANS_TIME, STALE_TIME, State};
use datapath::{DropReason, MacAddr, PortId};

use crate::lab::{Lab, P1, P2, P3};
use crate::wire::{
    self, ALICE, BOB, BROADCAST, CAROL, GATEWAY, IpSeen, NOBODY, Seen, Station, What,
    advertisement, arp, arp_reply, arp_request, framed, group_mac, ip, solicitation,
};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Router, solicited, override (RFC 4861 §4.4).
const SOLICITED: u32 = 0xe000_0000;
const UNSOLICITED: u32 = 0xa000_0000;

fn arp_answer(to: (wire::Mac, Ipv4Addr)) -> Seen {
    let what = What::Arp { operation: 2, sender: (GATEWAY.mac, GATEWAY.v4), target: to };
    Seen { src: GATEWAY.mac, dst: to.0, what }
}

fn ndp_answer(dst: wire::Mac, to: Ipv6Addr, target: Ipv6Addr, flags: u32) -> Seen {
    let ip = IpSeen { src: target.into(), dst: to.into(), ttl: 255, class: 0 };
    let mut body = target.octets().to_vec();
    body.extend([2, 1]);
    body.extend(GATEWAY.mac);
    let what = What::Icmp { ip, kind: 136, code: 0, word: flags, body };
    Seen { src: GATEWAY.mac, dst, what }
}

fn state_of(lab: &Lab, addr: impl Into<IpAddr>) -> Option<(Option<MacAddr>, State)> {
    let addr = addr.into();
    let listed = lab.network.neighbours.list(lab.now);
    listed.into_iter().find(|(known, ..)| *known == addr).map(|(_, mac, state)| (mac, state))
}

#[test]
fn whoever_asks_for_the_gateway_is_answered_and_known() {
    let mut lab = Lab::new();
    let seen = lab.inject(P1, &arp_request(ALICE, GATEWAY.v4)).answer_beside_flood();
    assert_eq!(seen, arp_answer((ALICE.mac, ALICE.v4)));
    assert_eq!(state_of(&lab, ALICE.v4), Some((Some(MacAddr(ALICE.mac)), State::Reachable)));
    // Asked by unicast, as a kernel that confirms what it knows does, nobody else hears it.
    let asked = arp(GATEWAY.mac, 1, (ALICE.mac, ALICE.v4), GATEWAY.v4);
    let seen = lab.inject(P1, &asked).answered();
    assert_eq!(seen, arp_answer((ALICE.mac, ALICE.v4)));
}

#[test]
fn a_probe_for_the_gateways_address_is_answered_and_the_prober_not_remembered() {
    let mut lab = Lab::new();
    let probe = arp(BROADCAST, 1, (ALICE.mac, Ipv4Addr::UNSPECIFIED), GATEWAY.v4);
    let seen = lab.inject(P1, &probe).answer_beside_flood();
    assert_eq!(seen, arp_answer((ALICE.mac, Ipv4Addr::UNSPECIFIED)));
    assert!(lab.network.neighbours.list(lab.now).is_empty(), "{}", lab.report());
}

#[test]
fn a_question_for_somebody_else_is_carried_and_not_answered() {
    let mut lab = Lab::new();
    for target in [BOB.v4, NOBODY.v4, ALICE.v4, Ipv4Addr::new(198, 51, 100, 9)] {
        lab.inject(P1, &arp_request(ALICE, target)).flooded(&[P2, P3]);
    }
    let asked = solicitation(ALICE.mac, Some(ALICE.v6), BOB.v6);
    lab.inject(P1, &asked).flooded(&[P2, P3]);
    assert!(lab.network.neighbours.list(lab.now).is_empty(), "{}", lab.report());
}

#[test]
fn an_announcement_refreshes_whom_we_know_and_introduces_nobody() {
    let mut lab = Lab::new();
    lab.introduce(P1, ALICE);
    for operation in [1, 2] {
        for (port, station) in [(P1, ALICE), (P2, BOB)] {
            let told = arp(BROADCAST, operation, (station.mac, station.v4), station.v4);
            let others: Vec<_> = [P1, P2, P3].into_iter().filter(|other| *other != port).collect();
            lab.inject(port, &told).flooded(&others);
        }
    }
    assert_eq!(state_of(&lab, BOB.v4), None);
    // Alice is told from another station: it is there that she is now.
    let moved = arp(BROADCAST, 2, (BOB.mac, ALICE.v4), ALICE.v4);
    lab.inject(P2, &moved).flooded(&[P1, P3]);
    assert_eq!(state_of(&lab, ALICE.v4), Some((Some(MacAddr(BOB.mac)), State::Reachable)));
}

#[test]
fn an_arp_message_nobody_here_can_read_is_bridged_and_teaches_nothing() {
    let mut lab = Lab::new();
    let good = arp_request(ALICE, GATEWAY.v4);
    let broken = |at: usize, octet: u8| {
        let mut frame = good.clone();
        frame[14 + at] = octet;
        frame
    };
    // Hardware, protocol, lengths and operation in turn; a group as sender of either kind.
    for mut frame in [
        broken(1, 6),
        broken(2, 0x86),
        broken(4, 8),
        broken(5, 16),
        broken(7, 3),
        broken(8, 0xff),
        broken(14, 224),
        good[..good.len() - 1].to_vec(),
    ] {
        lab.inject(P1, &frame).flooded(&[P2, P3]);
        frame[..6].copy_from_slice(&GATEWAY.mac);
        lab.inject(P1, &frame).dropped(DropReason::BadNeighbour);
    }
    assert!(lab.network.neighbours.list(lab.now).is_empty(), "{}", lab.report());
    // Padded to what Ethernet wants at least it is as good as before.
    let mut padded = good.clone();
    padded.resize(60, 0);
    lab.inject(P1, &padded).answer_beside_flood();
}

/// RFC 5227 §2.4 lets a host defend its address; a switch need not let it come to that.
#[test]
fn nobody_else_is_heard_claiming_the_gateways_address() {
    let mut lab = Lab::new();
    lab.introduce(P1, ALICE);
    for operation in [1, 2] {
        for dst in [BROADCAST, ALICE.mac, GATEWAY.mac] {
            let claim = arp(dst, operation, (BOB.mac, GATEWAY.v4), GATEWAY.v4);
            lab.inject(P2, &claim).dropped(DropReason::SpoofedGateway);
        }
    }
    for own in [GATEWAY.v6, GATEWAY.link_local()] {
        let thief = Station { v6: own, ..BOB };
        lab.inject(P2, &advertisement(thief, ALICE)).dropped(DropReason::SpoofedGateway);
        let asks = solicitation(BOB.mac, Some(own), ALICE.v6);
        lab.inject(P2, &asks).dropped(DropReason::SpoofedGateway);
    }
}

#[test]
fn nobody_else_is_heard_claiming_an_address_the_daemon_gave_away() {
    let mut lab = Lab::new();
    lab.attach_known(P1, ALICE);
    lab.introduce(P3, CAROL);
    let known = Some((Some(MacAddr(ALICE.mac)), State::Permanent));
    let thief = Station { mac: BOB.mac, ..ALICE };
    for frame in [
        arp(BROADCAST, 1, (BOB.mac, ALICE.v4), ALICE.v4),
        arp(BROADCAST, 2, (BOB.mac, ALICE.v4), ALICE.v4),
        arp_request(thief, GATEWAY.v4),
        arp_reply(thief, CAROL),
        arp_reply(thief, GATEWAY),
        solicitation(BOB.mac, Some(ALICE.v6), GATEWAY.v6),
        solicitation(BOB.mac, Some(ALICE.v6), CAROL.v6),
        advertisement(thief, CAROL),
        advertisement(thief, GATEWAY),
    ] {
        lab.inject(P2, &frame).dropped(DropReason::SpoofedNeighbour);
    }
    // Behind an extension header it is the same message.
    let mut hidden = advertisement(thief, CAROL);
    let next = std::mem::replace(&mut hidden[14 + 6], 60);
    hidden[14 + 5] += 8;
    hidden.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
    lab.inject(P2, &hidden).dropped(DropReason::SpoofedNeighbour);
    assert_eq!(state_of(&lab, ALICE.v4), known);
    assert_eq!(state_of(&lab, ALICE.v6), known);
    // Whoever tests whether the address is free claims nothing yet.
    lab.inject(P2, &arp(BROADCAST, 1, (BOB.mac, Ipv4Addr::UNSPECIFIED), ALICE.v4))
        .flooded(&[P3, P1]);
    lab.inject(P2, &solicitation(BOB.mac, None, ALICE.v6)).flooded(&[P3, P1]);
    // Its owner says so wherever he pleases, by another station even.
    lab.inject(P1, &arp(BROADCAST, 2, (ALICE.mac, ALICE.v4), ALICE.v4)).flooded(&[P2, P3]);
    let moved = Station { mac: NOBODY.mac, ..ALICE };
    lab.inject(P1, &arp_request(moved, GATEWAY.v4)).answer_beside_flood();
    assert_eq!(state_of(&lab, ALICE.v4), Some((Some(MacAddr(NOBODY.mac)), State::Permanent)));
}

#[test]
fn whom_the_daemon_introduced_is_known_until_his_port_goes() {
    let mut lab = Lab::new();
    lab.attach_known(P2, BOB);
    lab.introduce(P1, ALICE);
    lab.advance((REACHABLE_TIME + STALE_TIME) * 3);
    assert!(lab.advance(RETRANS_TIME * 3).is_empty(), "nobody is asked for: {}", lab.report());
    for v6 in [false, true] {
        assert_eq!(state_of(&lab, BOB.addr(v6)).map(|(_, state)| state), Some(State::Permanent));
    }
    lab.detach(P2);
    assert_eq!(state_of(&lab, BOB.v4), None);
    assert_eq!(state_of(&lab, BOB.v6), None);
}

#[test]
fn what_waited_for_somebody_goes_out_when_the_daemon_introduces_him() {
    let mut lab = Lab::new();
    lab.introduce(P1, ALICE);
    let early = framed(ALICE.mac, GATEWAY.mac, &ip(ALICE.v4, BOB.v4).udp(1, 2, b"are you up?"));
    assert_eq!(lab.inject(P1, &early).taken_sending().len(), 3, "a question to each port");
    lab.attach_known(P2, BOB);
    let sent = lab.sent();
    let to_bob = sent.iter().filter(|(port, _)| *port == P2);
    let [(_, Seen { dst, what: What::Udp { payload, .. }, .. })] = &to_bob.collect::<Vec<_>>()[..]
    else {
        panic!("{sent:?} {}", lab.report())
    };
    assert_eq!((*dst, &**payload), (BOB.mac, &b"are you up?"[..]));
}

#[test]
fn what_waits_for_a_neighbour_whose_port_goes_is_counted() {
    let mut lab = Lab::new();
    lab.introduce(P1, ALICE);
    let lost = framed(ALICE.mac, GATEWAY.mac, &ip(ALICE.v4, NOBODY.v4).udp(1, 2, b""));
    lab.inject(P1, &lost).taken_sending();
    lab.detach(P1);
    assert_eq!(lab.not_sent(PortId::GATEWAY, DropReason::NeighbourFailed), 1);
}

#[test]
fn a_port_that_invents_neighbours_leaves_room_for_the_others() {
    let mut lab = Lab::new();
    lab.attach_known(P2, BOB);
    for n in 0..5000u16 {
        let [high, low] = n.to_be_bytes();
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 7, n);
        let inventor = Station { mac: [2, 0xee, 0, 0, high, low], v6, ..ALICE };
        let _ = lab.inject(P1, &solicitation(inventor.mac, Some(v6), GATEWAY.v6)).decision();
    }
    let learned = lab.network.neighbours.list(lab.now).len();
    assert_eq!(learned, CAPACITY_PER_PORT + 2, "and Bob's two");
    lab.introduce(P3, CAROL);
    assert!(state_of(&lab, CAROL.v4).is_some() && state_of(&lab, CAROL.v6).is_some());
    assert!(state_of(&lab, BOB.v4).is_some());
}

/// RFC 4861 §7.1.1 and §7.1.2, each check in turn.
#[test]
fn a_neighbour_message_that_breaks_a_rule_is_discarded() {
    let mut lab = Lab::new();
    let nobody = Ipv6Addr::UNSPECIFIED;
    let lla = |kind: u8| [&[kind, 1][..], &ALICE.mac].concat();
    let rest = |flags: u8, target: Ipv6Addr, options: &[u8]| {
        [&[flags, 0, 0, 0][..], &target.octets(), options].concat()
    };
    let to_gateway = |src: Ipv6Addr, dst: Ipv6Addr, kind: u8, rest: &[u8]| {
        framed(ALICE.mac, GATEWAY.mac, &ip(src, dst).ttl(255).icmp(kind, 0, rest))
    };
    let group = wire::solicited_node(GATEWAY.v6);
    let (asked, own) = (GATEWAY.v6, ALICE.v6);
    let whole = rest(0, asked, &lla(1));
    for bad in [
        // Shorter than 24 octets.
        to_gateway(own, asked, 135, &whole[..19]),
        // The target is a group.
        to_gateway(own, asked, 135, &rest(0, ALL_NODES, &lla(1))),
        to_gateway(own, asked, 136, &rest(0x60, ALL_NODES, &lla(2))),
        // An option of no length, one that is not whole, one too short for a station.
        to_gateway(own, asked, 135, &rest(0, asked, &[1, 0, 0, 0, 0, 0, 0, 0])),
        to_gateway(own, asked, 135, &rest(0, asked, &[14, 2, 0, 0, 0, 0, 0, 0])),
        to_gateway(own, asked, 135, &rest(0, asked, &[1])),
        // A group or nobody as station.
        to_gateway(own, asked, 135, &rest(0, asked, &[1, 1, 3, 0, 0, 0, 0, 1])),
        to_gateway(own, asked, 135, &rest(0, asked, &[1, 1, 0, 0, 0, 0, 0, 0])),
        // From nobody: with a source link-layer address, or not to the solicited-node group.
        to_gateway(nobody, group, 135, &whole),
        to_gateway(nobody, asked, 135, &rest(0, asked, &[])),
        to_gateway(nobody, ALL_NODES, 135, &rest(0, asked, &[])),
        // Solicited, and yet to everybody.
        to_gateway(own, ALL_NODES, 136, &rest(0x40, own, &lla(2))),
    ] {
        lab.inject(P1, &bad).dropped(DropReason::BadNeighbour);
    }
    assert!(lab.network.neighbours.list(lab.now).is_empty(), "{}", lab.report());
    // An option nobody knows is no harm (RFC 4861 §4.6).
    let options = [&[14, 2][..], &[0; 14], &lla(1)].concat();
    let seen = lab.inject(P1, &to_gateway(own, asked, 135, &rest(0, asked, &options))).answered();
    assert_eq!(seen, ndp_answer(ALICE.mac, own, asked, SOLICITED));
    // Without the option the frame says where it came from.
    let other = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 77);
    lab.inject(P1, &to_gateway(other, asked, 135, &rest(0, asked, &[]))).answered();
    assert_eq!(state_of(&lab, other), Some((Some(MacAddr(ALICE.mac)), State::Reachable)));
}

#[test]
fn a_solicitation_for_each_address_of_the_gateway_is_answered() {
    let mut lab = Lab::new();
    let pairs = [
        (ALICE.v6, GATEWAY.v6),
        (ALICE.v6, GATEWAY.link_local()),
        (ALICE.link_local(), GATEWAY.v6),
    ];
    for (sender, target) in pairs {
        let asked = solicitation(ALICE.mac, Some(sender), target);
        let seen = lab.inject(P1, &asked).answer_beside_flood();
        assert_eq!(seen, ndp_answer(ALICE.mac, sender, target, SOLICITED));
        assert_eq!(state_of(&lab, sender), Some((Some(MacAddr(ALICE.mac)), State::Reachable)));
    }
}

#[test]
fn whoever_tests_the_gateways_address_for_himself_learns_before_all_that_it_is_taken() {
    let mut lab = Lab::new();
    let tested = solicitation(ALICE.mac, None, GATEWAY.v6);
    let outcome = lab.inject(P1, &tested);
    // Everybody hears the answer, the tester too (RFC 4861 §7.2.4).
    let everybody = ndp_answer(group_mac(ALL_NODES), ALL_NODES, GATEWAY.v6, UNSOLICITED);
    let sent = outcome.flooded_sending(&[P2, P3]);
    assert_eq!(sent, [P1, P2, P3].map(|port| (port, everybody.clone())));
    assert!(lab.network.neighbours.list(lab.now).is_empty(), "{}", lab.report());
}

#[test]
fn a_solicitation_that_came_from_beyond_the_link_is_not_believed() {
    let mut lab = Lab::new();
    let mut rest = vec![0; 4];
    rest.extend(GATEWAY.v6.octets());
    rest.extend([1, 1]);
    rest.extend(ALICE.mac);
    let unicast = |hop_limit: u8, code: u8| {
        let packet = ip(ALICE.v6, GATEWAY.v6).ttl(hop_limit).icmp(135, code, &rest);
        framed(ALICE.mac, GATEWAY.mac, &packet)
    };
    let seen = lab.inject(P1, &unicast(255, 0)).answered();
    assert_eq!(seen, ndp_answer(ALICE.mac, ALICE.v6, GATEWAY.v6, SOLICITED));
    for (hop_limit, code) in [(254, 0), (64, 0), (255, 1)] {
        lab.inject(P1, &unicast(hop_limit, code)).dropped(DropReason::BadNeighbour);
    }
    // To a group it is still the bridge's to carry; nobody answers.
    let mut far = solicitation(BOB.mac, Some(BOB.v6), GATEWAY.v6);
    far[14 + 7] = 254;
    lab.inject(P2, &far).flooded(&[P1, P3]);
    assert_eq!(state_of(&lab, BOB.v6), None);
}

#[test]
fn the_gateway_asks_for_whom_it_does_not_know_and_then_sends_what_waited() {
    for v6 in [false, true] {
        let mut lab = Lab::new();
        // Alice speaks without having asked; the gateway must ask where to answer.
        let echo = ip(ALICE.addr(v6), GATEWAY.addr(v6)).echo(7, 1, b"who am I?");
        let sent = lab.inject(P1, &framed(ALICE.mac, GATEWAY.mac, &echo)).taken_sending();
        let ports: Vec<_> = sent.iter().map(|(port, _)| *port).collect();
        assert_eq!(ports, [P1, P2, P3], "{}", lab.report());
        match &sent[0].1 {
            Seen { dst: BROADCAST, what: What::Arp { operation: 1, sender, target }, .. } => {
                assert_eq!((*sender, target.1), ((GATEWAY.mac, GATEWAY.v4), ALICE.v4));
            }
            Seen { dst, what: What::Icmp { ip, kind: 135, body, .. }, .. } => {
                let group = wire::solicited_node(ALICE.v6);
                assert_eq!((*dst, ip.dst, ip.ttl), (group_mac(group), group.into(), 255));
                assert_eq!(body[..16], ALICE.v6.octets());
                assert_eq!(body[16..], [&[1, 1][..], &GATEWAY.mac].concat());
            }
            _ => panic!("no question: {}", lab.report()),
        }
        let answer = if v6 { advertisement(ALICE, GATEWAY) } else { arp_reply(ALICE, GATEWAY) };
        let waited = lab.inject(P1, &answer).answered();
        let What::Icmp { ip: header, kind, body, .. } = &waited.what else {
            panic!("{}", lab.report())
        };
        assert_eq!((waited.dst, header.dst), (ALICE.mac, ALICE.addr(v6)));
        assert_eq!((*kind, &**body), (if v6 { 129 } else { 0 }, &b"who am I?"[..]));
    }
}

#[test]
fn a_packet_for_a_neighbour_who_never_answers_comes_back_as_host_unreachable() {
    for (v6, unreachable) in [(false, (3, 1)), (true, (1, 3))] {
        let mut lab = Lab::new();
        lab.introduce(P1, ALICE);
        let lost = ip(ALICE.addr(v6), NOBODY.addr(v6)).udp(1, 2, b"anybody?");
        let asked = lab.inject(P1, &framed(ALICE.mac, GATEWAY.mac, &lost)).taken_sending();
        assert_eq!(asked.len(), 3, "one question to each port: {}", lab.report());
        let sent = lab.advance(RETRANS_TIME * 3);
        let (questions, told): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(_, seen)| {
            matches!(seen.what, What::Arp { .. } | What::Icmp { kind: 135, .. })
        });
        assert_eq!(questions.len(), 2 * 3, "asked twice more: {}", lab.report());
        assert_eq!(told.len(), 1, "{}", lab.report());
        assert_eq!(told[0].0, P1);
        // The packet as it was forwarded: one hop older than it came.
        let aged = ip(ALICE.addr(v6), NOBODY.addr(v6)).ttl(63).udp(1, 2, b"anybody?");
        told[0].1.is_error(ALICE, unreachable, &aged);
    }
}

#[test]
fn a_neighbour_is_reachable_then_stale_then_forgotten() {
    let mut lab = Lab::new();
    lab.introduce(P1, ALICE);
    let state = |lab: &Lab| state_of(lab, ALICE.v4).map(|(_, state)| state);
    assert_eq!(state(&lab), Some(State::Reachable));
    lab.advance(REACHABLE_TIME);
    assert_eq!(state(&lab), Some(State::Stale));
    // Used while stale, it is used and asked, by unicast.
    let echo = framed(ALICE.mac, GATEWAY.mac, &ip(ALICE.v4, GATEWAY.v4).echo(1, 1, b""));
    let sent = lab.inject(P1, &echo).taken_sending();
    assert_eq!(sent.len(), 2, "{}", lab.report());
    assert!(sent.iter().all(|(port, seen)| *port == P1 && seen.dst == ALICE.mac));
    assert_eq!(state(&lab), Some(State::Probe));
    lab.inject(P1, &arp_reply(ALICE, GATEWAY)).taken();
    assert_eq!(state(&lab), Some(State::Reachable));
    lab.advance(REACHABLE_TIME + STALE_TIME);
    assert_eq!(state(&lab), None);
}
