//! Layer 2: learning, flooding, filtering (802.1Q §8.6-§8.8).

use datapath::fdb::{AGEING_TIME, CAPACITY_PER_PORT};
use datapath::offload::PartialChecksum;
use datapath::{Decision, DropReason, Gso, IpMtu, MAX_FRAME_LEN, MacAddr, Offload};
use smoltcp::time::Duration;

use crate::lab::{Lab, P1, P2, P3, config, port};
use crate::wire::{self, ALICE, BOB, BROADCAST, CAROL, GATEWAY, arp_reply, arp_request, hello, ip};

#[test]
fn a_frame_for_an_unknown_station_goes_everywhere_but_back() {
    let mut lab = Lab::new();
    lab.inject(P1, &hello(ALICE, BOB)).flooded(&[P2, P3]);
    lab.inject(P3, &hello(CAROL, BOB)).flooded(&[P1, P2]);
}

#[test]
fn a_frame_for_a_group_goes_everywhere_but_back_even_when_everybody_is_known() {
    let mut lab = Lab::new();
    for (port, station) in [(P1, ALICE), (P2, BOB), (P3, CAROL)] {
        lab.introduce(port, station);
    }
    let mdns = [0x01, 0, 0x5e, 0, 0, 0xfb];
    let all_nodes = [0x33, 0x33, 0, 0, 0, 1];
    for group in [BROADCAST, mdns, all_nodes] {
        lab.inject(P2, &wire::frame(BOB.mac, group, 0x88b5, b"to all")).flooded(&[P1, P3]);
    }
}

#[test]
fn a_reply_goes_only_to_the_port_that_asked() {
    let mut lab = Lab::new();
    lab.inject(P1, &arp_request(ALICE, BOB.v4)).flooded(&[P2, P3]);
    lab.inject(P2, &arp_reply(BOB, ALICE)).forwarded(P1);
    lab.inject(P1, &hello(ALICE, BOB)).forwarded(P2);
}

#[test]
fn a_station_silent_for_five_minutes_is_unknown_again() {
    let mut lab = Lab::new();
    lab.inject(P1, &hello(ALICE, BOB)).flooded(&[P2, P3]);
    lab.advance(AGEING_TIME - Duration::from_micros(1));
    lab.inject(P2, &hello(BOB, ALICE)).forwarded(P1);
    lab.advance(Duration::from_micros(1));
    lab.inject(P2, &hello(BOB, ALICE)).flooded(&[P1, P3]);
    // Bob spoke, and so is known for another five minutes.
    lab.advance(AGEING_TIME - Duration::from_secs(1));
    lab.inject(P3, &hello(CAROL, BOB)).forwarded(P2);
}

#[test]
fn a_station_that_moves_is_followed_at_once() {
    let mut lab = Lab::new();
    lab.inject(P1, &hello(ALICE, BOB)).flooded(&[P2, P3]);
    lab.inject(P2, &hello(BOB, ALICE)).forwarded(P1);
    lab.inject(P3, &hello(ALICE, BOB)).forwarded(P2);
    lab.inject(P2, &hello(BOB, ALICE)).forwarded(P3);
    assert_eq!(lab.network.fdb.moves(), 1, "{}", lab.report());
}

#[test]
fn a_frame_for_a_station_behind_its_own_port_is_filtered() {
    let mut lab = Lab::new();
    lab.inject(P1, &hello(ALICE, CAROL)).flooded(&[P2, P3]);
    lab.inject(P1, &hello(BOB, ALICE)).dropped(DropReason::SamePort);
}

#[test]
fn a_source_that_is_no_station_is_neither_learned_nor_carried() {
    let mut lab = Lab::new();
    for source in [BROADCAST, [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1], [0; 6]] {
        let frame = wire::frame(source, BOB.mac, 0x0800, &[0; 46]);
        lab.inject(P1, &frame).dropped(DropReason::BadSource);
    }
    assert!(lab.network.fdb.is_empty(), "{}", lab.report());
}

#[test]
fn the_sixteen_reserved_groups_end_here_and_the_next_do_not() {
    let mut lab = Lab::new();
    for last in 0..=0xff {
        let frame = wire::frame(ALICE.mac, [0x01, 0x80, 0xc2, 0, 0, last], 0x88b5, &[0; 46]);
        let outcome = lab.inject(P1, &frame);
        match last {
            0..=0x0f => outcome.dropped(DropReason::ReservedGroup),
            _ => outcome.flooded(&[P2, P3]),
        }
    }
}

#[test]
fn nobody_else_is_the_gateway() {
    let mut lab = Lab::new();
    lab.introduce(P2, BOB);
    let impostor = (GATEWAY.mac, ALICE.v4);
    for frame in [
        wire::framed(GATEWAY.mac, BOB.mac, &ip(GATEWAY.v4, BOB.v4).udp(1, 2, b"me")),
        wire::arp(BROADCAST, 1, impostor, BOB.v4),
        wire::arp(BOB.mac, 2, (GATEWAY.mac, GATEWAY.v4), BOB.v4),
    ] {
        lab.inject(P1, &frame).dropped(DropReason::SpoofedGateway);
    }
    assert_eq!(lab.network.fdb.lookup(MacAddr(GATEWAY.mac), lab.now), None);
    // Bob still reaches the true one.
    let echo = ip(BOB.v4, GATEWAY.v4).echo(1, 1, b"are you there?");
    lab.inject(P2, &wire::framed(BOB.mac, GATEWAY.mac, &echo)).answered();
}

#[test]
fn an_announced_gateway_address_of_another_station_moves_nothing() {
    let mut lab = Lab::new();
    lab.introduce(P2, BOB);
    // Alice claims 192.0.2.1 for herself; nobody gets to hear it, nor does the gateway follow.
    let claim = wire::arp(BROADCAST, 2, (ALICE.mac, GATEWAY.v4), GATEWAY.v4);
    lab.inject(P1, &claim).dropped(DropReason::SpoofedGateway);
    let known = lab.network.neighbours.list(lab.now);
    assert!(known.iter().all(|(addr, ..)| *addr != GATEWAY.v4), "{}", lab.report());
    let echo = ip(BOB.v4, GATEWAY.v4).echo(1, 1, b"still you?");
    let seen = lab.inject(P2, &wire::framed(BOB.mac, GATEWAY.mac, &echo)).answered();
    assert_eq!(seen.src, GATEWAY.mac);
}

/// A frame whose payload is `len` octets, tag included.
fn of_payload(len: usize) -> Vec<u8> {
    wire::frame(ALICE.mac, BOB.mac, 0x88b5, &vec![0; len])
}

#[test]
fn a_frame_longer_than_the_egress_mtu_and_one_tag_goes_no_further() {
    let mut lab = Lab::new();
    lab.inject(P2, &hello(BOB, ALICE)).flooded(&[P1, P3]);
    lab.inject(P1, &of_payload(1500)).forwarded(P2);
    lab.inject(P1, &of_payload(1504)).forwarded(P2);
    lab.inject(P1, &of_payload(1505)).dropped(DropReason::MtuExceeded);
    lab.inject(P1, &of_payload(9000)).dropped(DropReason::MtuExceeded);
}

#[test]
fn a_port_too_small_for_a_flooded_frame_loses_its_copy_and_delays_nobody() {
    let mut lab = Lab::new();
    lab.attach(P2, datapath::Port { mtu: IpMtu(1280), ..port() });
    lab.inject(P1, &of_payload(1400)).flooded(&[P3]);
    let missed = lab.count(P2).tx_dropped[DropReason::MtuExceeded as usize];
    assert_eq!(missed, 1, "{}", lab.report());
}

#[test]
fn a_frame_still_to_be_cut_passes_whole() {
    let mut lab = Lab::new();
    lab.inject(P2, &hello(BOB, ALICE)).flooded(&[P1, P3]);
    for (v6, gso) in [
        (false, Gso::Tcp4 { size: 1448, ecn: false }),
        (true, Gso::Tcp6 { size: 1428, ecn: false }),
    ] {
        let header = ip(ALICE.addr(v6), BOB.addr(v6));
        let packet =
            header.tcp(1, 2, wire::Tcp { flags: 0x10, ..Default::default() }, &[0; 60_000]);
        let frame = wire::framed(ALICE.mac, BOB.mac, &packet);
        let start = u16::try_from(frame.len() - 60_020).unwrap();
        let checksum = Some(PartialChecksum { start, offset: 16 });
        let offload = Offload { checksum, gso, valid: false, header_len: start + 20 };
        // The lab checks that its offload header goes along.
        lab.inject_with(P1, &frame, offload).forwarded(P2);
        // The same octets as one frame are too long for anybody.
        lab.inject(P1, &frame).dropped(DropReason::MtuExceeded);
    }
}

#[test]
fn a_frame_shorter_than_its_header_or_longer_than_any_is_refused_at_the_door() {
    let mut lab = Lab::new();
    let frame = hello(ALICE, BOB);
    for len in 0..14 {
        lab.inject(P1, &frame[..len]).dropped(DropReason::Runt);
    }
    lab.inject(P1, &vec![2; MAX_FRAME_LEN + 1]).dropped(DropReason::Oversized);
    assert!(lab.network.fdb.is_empty(), "{}", lab.report());
    lab.inject(P1, &frame[..14]).flooded(&[P2, P3]);
}

#[test]
fn a_tagged_frame_is_carried_as_it_is() {
    let mut lab = Lab::new();
    let inner = ip(ALICE.v4, BOB.v4).udp(1, 2, b"tagged");
    let mut payload = vec![0x60, 42, 0x08, 0x00];
    payload.extend(inner);
    for ethertype in [0x8100, 0x88a8] {
        let frame = wire::frame(ALICE.mac, CAROL.mac, ethertype, &payload);
        lab.inject(P1, &frame).flooded(&[P2, P3]);
        // The gateway has no VLANs: what is tagged is not for it.
        let frame = wire::frame(ALICE.mac, GATEWAY.mac, ethertype, &payload);
        lab.inject(P1, &frame).dropped(DropReason::UnknownEtherType);
    }
}

#[test]
fn a_station_whose_port_is_gone_is_unknown_and_alone_there_is_nowhere_to_go() {
    let mut lab = Lab::with(datapath::NetworkConfig { gateway: None, ..config() });
    lab.inject(P2, &hello(BOB, ALICE)).flooded(&[P1, P3]);
    lab.detach(P2);
    lab.inject(P1, &hello(ALICE, BOB)).flooded(&[P3]);
    lab.detach(P3);
    lab.inject(P1, &hello(ALICE, BOB)).dropped(DropReason::NoPort);
    lab.inject(P1, &arp_request(ALICE, BOB.v4)).dropped(DropReason::NoPort);
    // Back again under the same number, it is learned anew.
    lab.attach(P2, port());
    lab.inject(P2, &hello(BOB, ALICE)).forwarded(P1);
}

#[test]
fn a_container_that_invents_stations_crowds_out_nobody() {
    let mut lab = Lab::new();
    lab.inject(P2, &hello(BOB, ALICE)).flooded(&[P1, P3]);
    for n in 0..2 * CAPACITY_PER_PORT {
        let [.., a, b] = u32::try_from(n).unwrap().to_be_bytes();
        let invented = wire::frame([2, 0xff, 0, 0, a, b], BOB.mac, 0x88b5, &[]);
        assert!(matches!(lab.inject(P1, &invented).decision(), Decision::Forward(P2)));
    }
    assert_eq!(lab.network.fdb.len(), CAPACITY_PER_PORT + 1);
    // One it had before the end of its share, one after; a neighbour of another port; Bob himself.
    lab.inject(P2, &hello_mac([2, 0xff, 0, 0, 0, 0])).forwarded(P1);
    lab.inject(P2, &hello_mac([2, 0xff, 0, 0, 7, 0xff])).flooded(&[P1, P3]);
    lab.inject(P3, &hello(CAROL, BOB)).forwarded(P2);
    lab.inject(P2, &hello(BOB, CAROL)).forwarded(P3);
}

fn hello_mac(dst: wire::Mac) -> Vec<u8> {
    wire::frame(BOB.mac, dst, 0x88b5, b"hello")
}
