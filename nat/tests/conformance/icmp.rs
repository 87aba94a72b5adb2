//! RFC 5508: ICMP queries and errors, and ICMPv6 likewise.

use std::collections::HashSet;

use nat::{Reason, Tell};

use crate::lab::{EXTERNAL, EXTERNAL6, Lab};
use crate::wire::{
    ACK, SYN, SYN_ACK, control, dont_fragment, echo, error, icmp_message, read_quoted, sign_v4, udp,
};

const FAMILIES: [[&str; 4]; 2] = [
    ["172.18.0.2", "198.51.100.2", EXTERNAL, "198.51.100.254"],
    ["fd00:18::2", "2001:db8:9::2", EXTERNAL6, "2001:db8:9::fe"],
];

fn with_port(addr: &str, port: u16) -> String {
    std::net::SocketAddr::new(addr.parse().unwrap(), port).to_string()
}

#[test]
fn i1_queries_pass_and_their_identifier_is_endpoint_independent() {
    for [alice, far, shown, other] in FAMILIES {
        let mut lab = Lab::default();
        for to in [far, other] {
            let asked = lab.out(&echo(alice, to, 77, false));
            assert_eq!((asked.src.ip().to_string(), asked.id()), (shown.to_owned(), 77));
            let answer = lab.back(&echo(to, shown, 77, true));
            assert_eq!((answer.dst.ip().to_string(), answer.id()), (alice.to_owned(), 77));
        }
        assert_eq!(lab.nat.mappings().len(), 1);
    }
}

#[test]
fn i1_two_containers_with_one_identifier_are_told_apart() {
    for ([alice, far, shown, _], bob) in FAMILIES.into_iter().zip(["172.18.0.3", "fd00:18::3"]) {
        let mut lab = Lab::default();
        lab.out(&echo(alice, far, 77, false));
        let bobs = lab.out(&echo(bob, far, 77, false)).id();
        assert_ne!(bobs, 77);
        let answer = lab.back(&echo(far, shown, bobs, true));
        assert_eq!((answer.dst.ip().to_string(), answer.id()), (bob.to_owned(), 77));
        // An answer nobody asked for, and a question to what only answers.
        lab.arrive(&echo(far, shown, 9999, true)).unwrap_err();
        lab.arrive(&echo(far, shown, 77, false)).unwrap_err();
    }
}

#[test]
fn i2_a_query_is_remembered_for_a_minute() {
    let mut lab = Lab::default();
    lab.out(&echo("172.18.0.2", "198.51.100.2", 77, false));
    lab.wait(59);
    lab.back(&echo("198.51.100.2", EXTERNAL, 77, true));
    lab.wait(61);
    lab.expire();
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
}

#[test]
fn i3_bad_checksums_are_dropped() {
    let mut lab = Lab::default();
    let mut question = echo("172.18.0.2", "198.51.100.2", 77, false);
    *question.last_mut().unwrap() ^= 1;
    assert_eq!(lab.leave(&question).unwrap_err().reason, Reason::BadChecksum);
    let sent = lab.leave(&udp("172.18.0.2:40000", "198.51.100.2:9", b"hello")).unwrap();
    let mut quoted = sent.clone();
    quoted[10] ^= 1;
    let about = error("198.51.100.254", EXTERNAL, (3, 1), 0, &quoted);
    assert_eq!(lab.arrive(&about).unwrap_err().reason, Reason::Unrelated);
    // The quoted transport checksum is not ours to judge.
    let mut quoted = sent;
    quoted[26] ^= 1;
    lab.back(&error("198.51.100.254", EXTERNAL, (3, 1), 0, &quoted));
}

#[test]
fn i3_quoted_options_are_skipped() {
    let mut lab = Lab::default();
    let sent = lab.leave(&udp("172.18.0.2:40000", "198.51.100.2:9", b"hello")).unwrap();
    // A router on the way has noted itself (record route, RFC 791 §3.1).
    let mut quoted = sent[..20].to_vec();
    quoted.extend_from_slice(&[7, 7, 4, 198, 51, 100, 1, 0]);
    quoted.extend_from_slice(&sent[20..]);
    quoted[0] = 0x47;
    let len = u16::try_from(quoted.len()).unwrap();
    quoted[2..4].copy_from_slice(&len.to_be_bytes());
    sign_v4(&mut quoted);
    let seen = lab.back(&error("198.51.100.254", EXTERNAL, (3, 3), 0, &quoted));
    let inner = read_quoted(seen.quoted(), false);
    inner.goes("172.18.0.2:40000", "198.51.100.2:9");
}

#[test]
fn i4_an_error_from_outside_reaches_who_is_concerned_with_what_he_sent() {
    let errors: [[((u8, u8), u32); 4]; 2] = [
        [((3, 3), 0), ((11, 0), 0), ((3, 4), 1400), ((12, 0), 0)],
        [((1, 4), 0), ((3, 0), 0), ((2, 0), 1400), ((4, 0), 0)],
    ];
    for ([alice, far, shown, router], errors) in FAMILIES.into_iter().zip(errors) {
        let mut lab = Lab::default();
        let from = with_port(alice, 40_000);
        let packets = [
            udp(&from, &with_port(far, 9), b"who is there, and who is not?"),
            control(&from, &with_port(far, 9), SYN, 1, 0),
            echo(alice, far, 77, false),
        ];
        for packet in packets {
            let sent = lab.leave(&packet).unwrap();
            for (kind, word) in errors {
                let seen = lab.back(&error(router, shown, kind, word, &sent));
                assert_eq!(seen.src.ip().to_string(), router, "who says so stays");
                assert_eq!(seen.dst.ip().to_string(), alice);
                assert_eq!(seen.icmp(), kind);
                assert_eq!(seen.body[4..8], word.to_be_bytes());
                assert_eq!(seen.quoted(), packet, "as its sender wrote it, checksums included");
            }
        }
        let stranger = udp(&with_port(shown, 4711), &with_port(far, 9), b"");
        let refused = lab.arrive(&error(router, shown, errors[0].0, 0, &stranger));
        assert_eq!(refused.unwrap_err(), nat::Refused { reason: Reason::Unrelated, tell: None });
    }
}

#[test]
fn i4_eight_octets_of_a_segment_are_enough() {
    let mut lab = Lab::default();
    let sent = lab.leave(&control("172.18.0.2:40000", "198.51.100.2:80", SYN, 77, 0)).unwrap();
    let about = error("198.51.100.254", EXTERNAL, (3, 1), 0, &sent[..28]);
    let seen = lab.back(&about);
    read_quoted(&[seen.quoted(), &[0; 12]].concat(), false)
        .goes("172.18.0.2:40000", "198.51.100.2:80");
    let short = error("198.51.100.254", EXTERNAL, (3, 1), 0, &sent[..24]);
    assert_eq!(lab.arrive(&short).unwrap_err().reason, Reason::Unrelated);
}

#[test]
fn i3_extensions_are_kept() {
    let mut lab = Lab::default();
    let sent = lab.leave(&udp("172.18.0.2:40000", "198.51.100.2:9", &[1; 200])).unwrap();
    // RFC 4884 §4.1: the quoted packet in 32 words, then an extension structure.
    let mut body = sent[..128].to_vec();
    let extension = [0x20, 0, 0xdf, 0xff, 0, 8, 1, 1, 1, 2, 3, 4];
    body.extend_from_slice(&extension);
    let (from, to) = ("198.51.100.254".parse().unwrap(), EXTERNAL.parse().unwrap());
    let about = icmp_message(from, to, 11, 0, 32 << 16, &body);
    let seen = lab.back(&about);
    assert!(seen.body.ends_with(&extension));
    assert_eq!(seen.body[4..8], [0, 32, 0, 0]);
}

#[test]
fn i5_an_error_from_inside_shows_the_external_address() {
    for [alice, far, shown, _] in FAMILIES {
        let mut lab = Lab::default();
        lab.out(&udp(&with_port(alice, 40_000), &with_port(far, 9), b""));
        let received =
            lab.arrive(&udp(&with_port(far, 9), &with_port(shown, 40_000), b"hm")).unwrap();
        let kind = if alice.contains(':') { (1, 4) } else { (3, 3) };
        let seen = lab.out(&error(alice, far, kind, 0, &received));
        assert_eq!(
            (seen.src.ip().to_string(), seen.dst.ip().to_string()),
            (shown.into(), far.into())
        );
        let inner = read_quoted(seen.quoted(), true);
        inner.goes(&with_port(far, 9), &with_port(shown, 40_000));
    }
}

#[test]
fn i6_u12_t10_an_error_neither_keeps_nor_ends_a_flow() {
    let mut lab = Lab::default();
    let sent = lab.leave(&udp("172.18.0.2:40000", "198.51.100.2:9", b"hello")).unwrap();
    let about = error("198.51.100.2", EXTERNAL, (3, 3), 0, &sent);
    lab.wait(100);
    lab.back(&about);
    // The next datagram still maps.
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9", b"hello"))
        .goes("203.0.113.1:40000", "198.51.100.2:9");
    for _ in 0..11 {
        lab.wait(11);
        let _ = lab.arrive(&about);
    }
    lab.expire();
    assert_eq!(lab.flows(), 0, "121 s after the last datagram");
    let mut lab = Lab::default();
    let syn = lab.leave(&control("172.18.0.2:40000", "198.51.100.2:80", SYN, 1, 0)).unwrap();
    lab.back(&error("198.51.100.254", EXTERNAL, (3, 1), 0, &syn));
    lab.back(&control("198.51.100.2:80", "203.0.113.1:40000", SYN_ACK, 9, 2));
    lab.out(&control("172.18.0.2:40000", "198.51.100.2:80", ACK, 2, 10));
}

#[test]
fn i7_hairpinned_errors_and_queries() {
    let mut lab = Lab::publishing(vec![crate::lab::publish(
        nat::Protocol::Udp,
        8080..=8080,
        "172.18.0.3:80",
    )]);
    let sent = lab.leave(&udp("172.18.0.2:4000", "203.0.113.1:8080", b"hello")).unwrap();
    let seen = lab.out(&error("172.18.0.3", EXTERNAL, (3, 3), 0, &sent));
    // Alice hears it from whom she spoke to.
    assert_eq!(seen.src.ip().to_string(), EXTERNAL);
    assert_eq!(seen.dst.ip().to_string(), "172.18.0.2");
    read_quoted(seen.quoted(), true).goes("172.18.0.2:4000", "203.0.113.1:8080");
}

#[test]
fn i8_without_resources_the_sender_is_told() {
    let conntrack = nat::Conntrack::new(9, nat::Profile::Rfc);
    let mut lab = Lab::new(conntrack, nat::Config::new(crate::lab::UPLINK, [0; 16]));
    for id in 0..9 {
        lab.out(&echo("172.18.0.2", "198.51.100.2", id, false));
        lab.back(&echo("198.51.100.2", EXTERNAL, id, true));
    }
    let refused = lab.leave(&echo("172.18.0.3", "198.51.100.2", 1, false)).unwrap_err();
    assert_eq!((refused.reason, refused.tell), (Reason::TableFull, Some(Tell::AdminProhibited)));
    assert_eq!(lab.nat.mappings().len(), 9, "what was leased on the way is given back");
}

/// RFC 6864 §4.1, §5.3: two containers that use the same at the same time; RFC 5508 REQ-4.
#[test]
fn i4_an_identification_given_outside_is_taken_back_in_what_is_quoted() {
    let mut lab = Lab::default();
    let mut sent = Vec::new();
    for (n, host) in (0..200_u16).flat_map(|n| [(n, 2), (n, 3)]) {
        let mut packet = udp(&format!("172.18.0.{host}:4000"), "198.51.100.2:9", b"hello");
        packet[4..6].copy_from_slice(&n.to_be_bytes());
        sign_v4(&mut packet);
        sent.push((lab.leave(&packet).unwrap(), packet));
    }
    let given: HashSet<_> = sent.iter().map(|(outside, _)| [outside[4], outside[5]]).collect();
    assert_eq!(given.len(), sent.len(), "no two at a time");
    for (outside, packet) in &sent {
        let seen = lab.back(&error("198.51.100.254", EXTERNAL, (11, 0), 0, outside));
        assert_eq!(seen.quoted(), packet);
    }
    // What may not be cut keeps its own.
    let mut whole = dont_fragment(sent[0].1.clone());
    whole[4..6].copy_from_slice(&[0x12, 0x34]);
    sign_v4(&mut whole);
    let outside = lab.leave(&whole).unwrap();
    assert_eq!(outside[4..6], whole[4..6]);
    let seen = lab.back(&error("198.51.100.254", EXTERNAL, (11, 0), 0, &outside));
    assert_eq!(seen.quoted(), whole);
}

/// RFC 1812 §5.2.7.2: a redirect is a neighbour's to a host of its own network; `nf_nat_icmp_reply_translation`.
#[test]
fn i10_a_redirect_is_not_translated() {
    for [alice, far, shown, router] in FAMILIES {
        let mut lab = Lab::default();
        let sent = lab.leave(&udp(&with_port(alice, 40_000), &with_port(far, 9), b"hello"));
        let redirect = if alice.contains(':') { (137, 0) } else { (5, 1) };
        let gateway = u32::from_be_bytes([198, 51, 100, 253]);
        let message = error(router, shown, redirect, gateway, &sent.unwrap());
        match lab.arrive(&message) {
            Ok(packet) => {
                assert_eq!(packet, message, "it is for the station, and none of the NAT's")
            }
            Err(refused) => assert_eq!(refused.reason, Reason::NoFlow),
        }
    }
}

#[test]
fn i10_source_quench_is_not_translated() {
    let mut lab = Lab::default();
    let sent = lab.leave(&udp("172.18.0.2:40000", "198.51.100.2:9", b"hello")).unwrap();
    let quench = error("198.51.100.254", EXTERNAL, (4, 0), 0, &sent);
    assert!(lab.arrive(&quench).is_err());
    // Nor does one leave, or any other message that is neither query nor error.
    for kind in [4, 9, 10, 40] {
        let (from, to) = ("172.18.0.2".parse().unwrap(), "198.51.100.2".parse().unwrap());
        let message = icmp_message(from, to, kind, 0, 0, &sent);
        assert_eq!(lab.leave(&message).unwrap_err().reason, Reason::NoFlow);
    }
}
