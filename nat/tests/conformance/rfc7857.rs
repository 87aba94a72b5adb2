//! RFC 7857, section by section, and what of RFC 5508, RFC 4443 and RFC 4787 REQ-7 stands nowhere else.

use std::net::IpAddr;

use nat::{Account, Config, Filtering, Ingress};

use crate::lab::{EXTERNAL, EXTERNAL6, Lab, NET, UPLINK, publish};
use crate::wire::{
    ACK, RST, SYN, SYN_ACK, control, echo, error, icmp_message, ip, read_quoted, udp,
};

const ALICE: &str = "172.18.0.2:40000";
const FAR: &str = "198.51.100.2:9";
const SHOWN: &str = "203.0.113.1:40000";

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// §5: one protocol's mapping says nothing about another's.
#[test]
fn r7857_5_protocols_have_mappings_of_their_own() {
    let mut lab = Lab::default();
    lab.out(&udp(ALICE, FAR, b"")).goes(SHOWN, FAR);
    lab.out(&control("172.18.0.3:40000", FAR, SYN, 1, 0)).goes(SHOWN, FAR);
    let asked = lab.out(&echo("172.18.0.4", "198.51.100.2", 40_000, false));
    assert_eq!(asked.id(), 40_000);
    assert_eq!(lab.nat.mappings().len(), 3);
}

/// §8: an error that answers what came in keeps nothing alive, nor does a reset.
#[test]
fn r7857_8_errors_and_resets_from_inside_keep_nothing_alive() {
    let mut lab = Lab::default();
    lab.out(&udp(ALICE, FAR, b""));
    lab.back(&udp(FAR, SHOWN, b""));
    for _ in 0..4 {
        lab.wait(74);
        let came = lab.arrive(&udp(FAR, SHOWN, b"")).unwrap();
        lab.out(&error("172.18.0.2", "198.51.100.2", (3, 3), 0, &came));
    }
    lab.wait(5);
    lab.expire();
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0), "301 s after the first answer");
    let mut lab = Lab::default();
    lab.out(&control(ALICE, FAR, SYN, 100, 0));
    lab.back(&control(FAR, SHOWN, SYN_ACK, 500, 101));
    lab.out(&control(ALICE, FAR, ACK, 101, 501));
    lab.wait(1000);
    lab.back(&control(FAR, SHOWN, ACK, 501, 101));
    lab.out(&control(ALICE, FAR, RST, 101, 0));
    lab.wait(241);
    lab.expire();
    assert_eq!(lab.flows(), 0, "a day is four minutes now");
}

/// §11, RFC 6864 §4.1: what may be cut has an identification nobody else behind the address has at the time.
#[test]
fn r7857_11_identifications_are_told_apart_behind_one_address() {
    let mut lab = Lab::default();
    let mut seen = std::collections::BTreeSet::new();
    for host in 2..100 {
        // All with the same identification, as wire::ip makes them.
        let sent = lab.leave(&udp(&format!("172.18.0.{host}:1000"), FAR, b"")).unwrap();
        assert!(seen.insert([sent[4], sent[5]]), "{sent:?}");
    }
    // One that is never cut needs none (RFC 6864 §4.1), and is left alone.
    let atomic = crate::wire::dont_fragment(udp(ALICE, FAR, b""));
    let sent = lab.leave(&atomic).unwrap();
    assert_eq!(sent[4..6], atomic[4..6]);
}

/// §12: the mapping of a query goes with its last session, not before.
#[test]
fn r7857_12_a_query_s_mapping_goes_with_its_last_session() {
    let mut lab = Lab::default();
    lab.out(&echo("172.18.0.2", "198.51.100.2", 77, false));
    lab.wait(40);
    lab.out(&echo("172.18.0.2", "198.51.100.3", 77, false));
    lab.wait(40);
    lab.expire();
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (1, 1));
    lab.back(&echo("198.51.100.3", EXTERNAL, 77, true));
    lab.wait(61);
    lab.expire();
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
}

/// §13: queries pass between containers by their external addresses, too.
#[test]
fn r7857_13_i7_queries_are_hairpinned() {
    for ([alice, bob, world, shown], v6) in [
        (["172.18.0.2", "172.18.0.3", "198.51.100.2", EXTERNAL], false),
        (["fd00:18::2", "fd00:18::3", "2001:db8:9::2", EXTERNAL6], true),
    ] {
        let filtering = Filtering::EndpointIndependent;
        let mut lab = Lab::with(Config { filtering, ..Config::new(UPLINK, [7; 16]) });
        lab.out(&echo(bob, world, 77, false));
        let asked = lab.out(&echo(alice, shown, 77, false));
        assert_eq!((asked.src.ip(), asked.dst.ip()), (addr(shown), addr(bob)), "IPv6: {v6}");
        let answer = lab.out(&echo(bob, shown, asked.id(), true));
        assert_eq!((answer.src.ip(), answer.dst.ip()), (addr(shown), addr(alice)));
        assert_eq!(answer.id(), 77);
    }
}

/// RFC 4787 REQ-7: the same prefix inside and outside. Which of the two a destination means is for the route;
/// the NAT tells both apart by zone.
#[test]
fn u7_the_same_addresses_inside_and_outside_are_told_apart() {
    let mut lab = Lab::publishing(vec![publish(nat::Protocol::Udp, 80..=80, "172.18.0.2:80")]);
    // Somebody on the segment has the address of another container, and even its port.
    let there = "172.18.0.3:4000";
    let outside = Ingress { zone: UPLINK, inside: false, account: Account(0), mtu: 1500 };
    let asked = lab.pass(&udp(there, "203.0.113.1:80", b""), &outside).unwrap();
    crate::wire::read(&asked).goes(there, "172.18.0.2:80");
    // The container of that name has flows of its own.
    lab.out(&udp(there, FAR, b"")).goes("203.0.113.1:4000", FAR);
    lab.back(&udp(FAR, "203.0.113.1:4000", b"")).goes(FAR, there);
    assert_eq!(lab.nat.conntrack().list(Some(UPLINK)).len(), 2);
    let entry = lab.nat.conntrack().list(Some(NET));
    assert!(entry.iter().all(|flow| flow.named(flow.from_inside()).0 == NET));
}

/// A UDP datagram over IPv6 with `extensions` (each with its own type) in front.
fn extended(from: &str, to: &str, extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let plain = udp(from, to, b"question");
    let (src, dst) = (crate::wire::at(from).ip(), crate::wire::at(to).ip());
    let mut payload = Vec::new();
    for (nth, (_, body)) in extensions.iter().enumerate() {
        let next = extensions.get(nth + 1).map_or(17, |(kind, _)| *kind);
        payload.push(next);
        payload.extend_from_slice(body);
    }
    payload.extend_from_slice(&plain[40..]);
    ip(src, dst, extensions[0].0, &payload)
}

/// RFC 5508 REQ-4 in IPv6: extension headers of the quoted packet are looked through, the fragment header of a
/// first piece among them, and kept.
#[test]
fn i4_quoted_extension_headers_are_looked_through() {
    let pad = [0, 1, 4, 0, 0, 0, 0];
    let piece = [0, 0, 1, 0, 0, 0, 9];
    let stories: [&[(u8, &[u8])]; 4] = [
        &[(0, &pad)],
        &[(60, &pad)],
        &[(0, &pad), (43, &[0, 0, 0, 0, 0, 0, 0])],
        &[(0, &pad), (44, &piece)],
    ];
    for extensions in stories {
        let mut lab = Lab::default();
        lab.out(&udp("[fd00:18::2]:40000", "[2001:db8:9::2]:9", b"question"));
        let on_its_way = extended("[2001:db8:1::1]:40000", "[2001:db8:9::2]:9", extensions);
        for kind in [(1, 0), (2, 0), (3, 0), (4, 1)] {
            let about = error("2001:db8:9::fe", EXTERNAL6, kind, 1280, &on_its_way);
            let seen = lab.back(&about);
            assert_eq!(seen.dst.ip(), addr("fd00:18::2"));
            let inside = extended("[fd00:18::2]:40000", "[2001:db8:9::2]:9", extensions);
            assert_eq!(seen.quoted(), inside, "what its sender sent, checksum included");
        }
        // A later piece tells no flow.
        let mut later = on_its_way.clone();
        if let Some(place) = extensions.iter().position(|(kind, _)| *kind == 44) {
            later[40 + 8 * place + 2] = 1;
            let about = error("2001:db8:9::fe", EXTERNAL6, (1, 0), 0, &later);
            lab.arrive(&about).unwrap_err();
        }
    }
}

/// RFC 8201: a Packet Too Big reaches its sender with the MTU it tells.
#[test]
fn u13_a_packet_too_big_from_the_way_reaches_the_container() {
    let mut lab = Lab::default();
    let sent = lab.leave(&udp("[fd00:18::2]:40000", "[2001:db8:9::2]:9", &[7; 1400])).unwrap();
    let (from, to) = (addr("2001:db8:9::fe"), addr(EXTERNAL6));
    let about = icmp_message(from, to, 2, 0, 1300, &sent[..1232]);
    let seen = lab.back(&about);
    assert_eq!((seen.icmp(), &seen.body[4..8]), ((2, 0), &1300u32.to_be_bytes()[..]));
    read_quoted(seen.quoted(), false).goes("[fd00:18::2]:40000", "[2001:db8:9::2]:9");
}

/// RFC 5508 REQ-9: what filters packets filters errors about them, too: one that quotes what never passed is
/// related to nothing.
#[test]
fn i9_an_error_about_what_was_refused_does_not_pass() {
    let mut lab = Lab::default();
    lab.out(&udp(ALICE, FAR, b""));
    let stranger = udp("192.0.2.7:9", SHOWN, b"");
    lab.arrive(&stranger).unwrap_err();
    let about = error("172.18.0.2", "192.0.2.7", (3, 3), 0, &udp("192.0.2.7:9", ALICE, b""));
    lab.leave(&about).unwrap_err();
}
