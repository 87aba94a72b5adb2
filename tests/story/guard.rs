//! RA guard (RFC 6105, RFC 7113): where the gateway is ours, no container is a router.

use std::net::Ipv6Addr;

use datapath::{DropReason, NetworkConfig, Port, PortRole};

use crate::lab::{Lab, P1, P2, P3, config, port};
use crate::wire::{self, ALICE, BOB, GATEWAY, Ip, framed, group_mac, ip};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;
/// What any of these may be that says nothing: with a length of 0 their 8 octets end with them. The last
/// four are those of PadN.
const EMPTY: [u8; 6] = [1, 4, 0, 0, 0, 0];

/// The header of what Alice says to all on the link.
fn to_all() -> Ip {
    ip(ALICE.link_local(), ALL_NODES).ttl(255)
}

/// Headers with which no host believes a router (RFC 4861 §6.1.2, §8.1).
fn incredible() -> [Ip; 2] {
    [ip(ALICE.v6, ALL_NODES).ttl(255), to_all().ttl(254)]
}

fn flooding(packet: &[u8]) -> Vec<u8> {
    framed(ALICE.mac, group_mac(ALL_NODES), packet)
}

/// An advertisement of a router for half an hour, and of 2001:db8:bad::/64.
fn advertisement(header: &Ip) -> Vec<u8> {
    let mut rest = vec![64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    rest.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    rest.extend("2001:db8:bad::".parse::<Ipv6Addr>().unwrap().octets());
    header.icmp(134, 0, &rest)
}

/// "There is a better way to Carol": by Alice.
fn redirect(header: &Ip) -> Vec<u8> {
    let mut rest = vec![0; 4];
    rest.extend(ALICE.link_local().octets());
    rest.extend(wire::CAROL.v6.octets());
    header.icmp(137, 0, &rest)
}

/// The same packet with headers of these kinds, which say nothing, before its message.
fn behind(kinds: &[u8], packet: &[u8]) -> Vec<u8> {
    let mut octets = packet[..40].to_vec();
    let following = kinds.iter().skip(1).chain([&packet[6]]);
    octets[6] = *kinds.first().unwrap_or(&packet[6]);
    for (kind, next) in kinds.iter().zip(following) {
        octets.extend([*next, 0]);
        octets.extend(if *kind == FRAGMENT { [0, 0, 0, 0, 0x42, 0x42] } else { EMPTY });
    }
    octets.extend(&packet[40..]);
    let len = u16::try_from(octets.len() - 40).unwrap();
    octets[4..6].copy_from_slice(&len.to_be_bytes());
    octets
}

#[test]
fn a_containers_router_advertisement_or_redirect_goes_no_further() {
    let mut lab = Lab::new();
    for known in [false, true] {
        if known {
            lab.introduce(P2, BOB);
        }
        let to_bob = ip(ALICE.link_local(), BOB.link_local()).ttl(255);
        let to_gateway = ip(ALICE.link_local(), GATEWAY.link_local()).ttl(255);
        for message in [advertisement, redirect] {
            lab.inject(P1, &flooding(&message(&to_all()))).dropped(DropReason::RaGuard);
            for (dst, header) in [(BOB.mac, &to_bob), (GATEWAY.mac, &to_gateway)] {
                let frame = framed(ALICE.mac, dst, &message(header));
                lab.inject(P1, &frame).dropped(DropReason::RaGuard);
            }
        }
    }
    let totals = lab.count(P1);
    assert_eq!((totals.rx_frames, totals.dropped(DropReason::RaGuard)), (12, 12));
}

/// RFC 7113 §3, number 3: the whole chain is read, however long it is.
#[test]
fn behind_extension_headers_it_is_the_same_message() {
    let mut lab = Lab::new();
    let chains: [&[u8]; 8] = [
        &[HOP_BY_HOP],
        &[ROUTING],
        &[FRAGMENT],
        &[AUTHENTICATION],
        &[DESTINATION],
        &[HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION],
        &[135, 139, 140],
        &[DESTINATION; 100],
    ];
    for chain in chains {
        for message in [advertisement, redirect] {
            let frame = flooding(&behind(chain, &message(&to_all())));
            lab.inject(P1, &frame).dropped(DropReason::RaGuard);
        }
    }
    // Headers longer than the shortest.
    let message = advertisement(&to_all());
    for (kind, len) in [(DESTINATION, 3), (AUTHENTICATION, 6)] {
        let mut header = vec![ICMPV6, len];
        header.resize(32, 0);
        header.extend(&message[40..]);
        let frame = flooding(&to_all().carrying(kind, &header));
        lab.inject(P1, &frame).dropped(DropReason::RaGuard);
    }
}

/// RFC 7113 §3, number 4.
#[test]
fn a_first_piece_that_hides_its_message_is_dropped_when_it_may_be_the_links() {
    let message = advertisement(&to_all());
    let pad = [&[ICMPV6, 0][..], &EMPTY].concat();
    // All of it but the message; and so that padding stands where the message would.
    let short = |header: Ip| header.fragment(0, true).carrying(DESTINATION, &pad);
    let padded = |header: Ip| [&short(header)[..], &[128; 64]].concat();
    // The message would be in the packet, but not by its length: Linux does not see to that of 0.
    let no_len = |header: Ip| {
        let mut packet = behind(&[HOP_BY_HOP], &advertisement(&header));
        packet[4..6].fill(0);
        packet
    };
    let no_type = |header: Ip| header.fragment(0, true).carrying(ICMPV6, &[]);
    let mut lab = Lab::new();
    for packet in [short(to_all()), padded(to_all()), no_len(to_all()), no_type(to_all())] {
        lab.inject(P1, &flooding(&packet)).dropped(DropReason::RaGuard);
    }
    for header in incredible() {
        for packet in [short(header.clone()), padded(header.clone()), no_type(header)] {
            lab.inject(P1, &flooding(&packet)).flooded(&[P2, P3]);
        }
    }
    // What is seen in a first piece is no secret, and a later one is nothing without it.
    let first = to_all().fragment(0, true).carrying(ICMPV6, &message[40..48]);
    lab.inject(P1, &flooding(&first)).dropped(DropReason::RaGuard);
    let later = to_all().fragment(8, false).carrying(ICMPV6, &message[48..]);
    lab.inject(P1, &flooding(&later)).flooded(&[P2, P3]);
}

#[test]
fn an_advertisement_cut_anywhere_behind_its_first_header_is_none_that_passes() {
    let mut lab = Lab::new();
    let frame = flooding(&behind(&[HOP_BY_HOP, DESTINATION], &advertisement(&to_all())));
    for len in 14..frame.len() {
        let outcome = lab.inject(P1, &frame[..len]);
        match len {
            14..54 => outcome.flooded(&[P2, P3]),
            _ => outcome.dropped(DropReason::RaGuard),
        }
    }
}

/// Linux takes a frame whose tag has no VLAN (802.1Q §9.6: a priority tag) for an untagged one.
#[test]
fn a_priority_tag_hides_nothing_and_a_vlan_is_its_users_own() {
    let mut lab = Lab::new();
    let packet = advertisement(&to_all());
    let tagged = |outer: u16, tci: u16, inner: u16, payload: &[u8]| {
        let tag = [tci.to_be_bytes(), inner.to_be_bytes()].concat();
        let frame = wire::frame(ALICE.mac, group_mac(ALL_NODES), outer, &tag);
        [&frame, payload].concat()
    };
    for tag in [0x8100, 0x88a8] {
        lab.inject(P1, &tagged(tag, 0xe000, 0x86dd, &packet)).dropped(DropReason::RaGuard);
        let inner = [&[0x20, 0, 0x86, 0xdd][..], &packet].concat();
        lab.inject(P1, &tagged(tag, 0, 0x8100, &inner)).dropped(DropReason::RaGuard);
        lab.inject(P1, &tagged(tag, 42, 0x86dd, &packet)).flooded(&[P2, P3]);
        lab.inject(P1, &tagged(tag, 0, 0x0800, &packet)).flooded(&[P2, P3]);
        lab.inject(P1, &tagged(tag, 0, tag, &[0])).flooded(&[P2, P3]);
    }
}

/// RFC 7113 §3, numbers 1, 2 and 7.
#[test]
fn whatever_else_a_host_says_on_the_link_is_carried() {
    let mut lab = Lab::new();
    for header in incredible() {
        for packet in [advertisement(&header), redirect(&header)] {
            lab.inject(P1, &flooding(&packet)).flooded(&[P2, P3]);
        }
    }
    let solicitation = to_all().icmp(133, 0, &[0; 4]);
    let neighbour = [&[0x20, 0, 0, 0][..], &ALICE.link_local().octets()].concat();
    let listener = ip(ALICE.link_local(), ALL_NODES).ttl(1).icmp(143, 0, &[0; 4]);
    for packet in [
        solicitation.clone(),
        behind(&[DESTINATION], &solicitation),
        to_all().icmp(136, 0, &neighbour),
        behind(&[HOP_BY_HOP], &listener),
        to_all().echo(1, 1, &[134; 32]),
        to_all().udp(134, 137, &[134; 32]),
        behind(&[DESTINATION], &to_all().udp(134, 137, &[134; 32])),
        to_all().fragment(0, true).carrying(17, &[134; 64]),
        to_all().carrying(59, &[]),
        to_all().carrying(89, &[134; 44]),
    ] {
        lab.inject(P1, &flooding(&packet)).flooded(&[P2, P3]);
    }
    // Types 134 and 137 are others in IPv4.
    for kind in [134, 137] {
        let packet = ip(ALICE.v4, BOB.v4).ttl(255).icmp(kind, 0, &[0; 4]);
        lab.inject(P1, &framed(ALICE.mac, BOB.mac, &packet)).flooded(&[P2, P3]);
    }
}

#[test]
fn routers_are_heard_where_the_gateway_is_not_ours_and_from_what_is_no_container() {
    let packets = [advertisement(&to_all()), redirect(&to_all())];
    let mut lab = Lab::with(NetworkConfig { gateway: None, ..config() });
    for packet in &packets {
        lab.inject(P1, &flooding(packet)).flooded(&[P2, P3]);
    }
    for role in [PortRole::Interface, PortRole::Host] {
        let mut lab = Lab::new();
        lab.detach(P1);
        lab.attach(P1, Port { role, ..port() });
        for packet in &packets {
            lab.inject(P1, &flooding(packet)).flooded(&[P2, P3]);
        }
    }
}
