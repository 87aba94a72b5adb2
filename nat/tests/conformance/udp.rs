//! RFC 4787: UDP, and what holds for every protocol.

use std::collections::HashMap;

use nat::{Config, Filtering, Note, Protocol, Reason, Refused, Source, Tell};

use crate::lab::{ALICE, EXTERNAL, Lab, UPLINK, publish};
use crate::wire::{read, udp};

fn external(port: u16) -> String {
    format!("{EXTERNAL}:{port}")
}

fn filtering(filtering: Filtering) -> Lab {
    Lab::with(Config { filtering, ..Config::new(UPLINK, [7; 16]) })
}

#[test]
fn u1_a_mapping_is_endpoint_independent() {
    let mut lab = Lab::default();
    for (v, to) in ["198.51.100.2:53", "198.51.100.2:54", "198.51.100.9:53"].into_iter().enumerate()
    {
        lab.out(&udp("172.18.0.2:40000", to, &[0; 9][..v])).goes(&external(40_000), to);
    }
    for to in ["[2001:db8:9::1]:53", "[2001:db8:9::2]:99"] {
        lab.out(&udp("[fd00:18::2]:40000", to, b"six")).goes("[2001:db8:1::1]:40000", to);
    }
    assert_eq!(lab.nat.mappings().len(), 2);
}

/// Two workers have a flow's first two packets in hand.
#[test]
fn u1_a_flow_that_begins_twice_at_once_is_one() {
    let lab = Lab::default();
    let inside = nat::Ingress { zone: crate::lab::NET, inside: true, account: ALICE, mtu: 1500 };
    let addresses = [EXTERNAL.parse().unwrap()];
    let egress = nat::Egress { zone: UPLINK, inside: false, mtu: 1500, addresses: &addresses };
    let before = |payload: &[u8]| {
        let mut packet = udp("172.18.0.2:40000", "198.51.100.2:9", payload);
        let undone = nat::Undone::default();
        let passage =
            lab.nat.prerouting(&mut packet, undone, &inside, lab.now, &mut nat::NoNotes).unwrap();
        (packet, passage)
    };
    for (mut packet, mut passage) in [before(b"first"), before(b"second")] {
        let notes = &mut nat::NoNotes;
        let sent = lab.nat.postrouting(&mut packet, &mut passage, &egress, None, lab.now, notes);
        assert_eq!(sent, Ok(nat::Sent::Whole));
        read(&packet).goes(&external(40_000), "198.51.100.2:9");
    }
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (1, 1));
}

#[test]
fn u2_pooling_is_paired() {
    let lab = || {
        let lab = Lab::default();
        let range = "203.0.113.10".parse().unwrap()..="203.0.113.17".parse().unwrap();
        let rule = nat::Rule::new(nat::Match::ANY, Source::To(range));
        lab.nat.set_rules(nat::Rules::new(vec![], vec![rule]));
        lab
    };
    let mut lab = lab();
    let mut used = std::collections::BTreeSet::new();
    for host in 2..60 {
        let mut shown = std::collections::BTreeSet::new();
        for port in [4000, 4001, 5000] {
            for to in ["198.51.100.2:53", "198.51.100.3:99"] {
                let seen = lab.out(&udp(&format!("172.18.0.{host}:{port}"), to, b""));
                shown.insert(seen.src.ip());
            }
        }
        assert_eq!(shown.len(), 1, "one external address for a container");
        used.extend(shown);
    }
    assert_eq!(used.len(), 8, "all of the pool is used");
}

#[test]
fn u2_pooling_stays_paired_where_addresses_of_the_pool_are_withheld() {
    let ip = |last: u8| std::net::IpAddr::from([203, 0, 113, last]);
    let mut lab = Lab::default();
    let rule = nat::Rule::new(nat::Match::ANY, Source::To(ip(10)..=ip(17)));
    lab.nat.set_rules(nat::Rules::new(vec![], vec![rule]));
    let mut shown = |host: usize| {
        let seen =
            lab.out(&udp(&format!("172.18.0.{host}:{}", 4000 + host), "198.51.100.2:53", b""));
        seen.src.ip()
    };
    let before: Vec<_> = (2..60).map(&mut shown).collect();
    // The first, two in the middle, the last.
    let withheld = vec![ip(10)..=ip(10), ip(12)..=ip(13), ip(17)..=ip(17)];
    lab.nat.withhold(withheld.clone());
    lab.nat
        .forget_addresses(lab.nat.uplink(), |addr| withheld.iter().any(|gap| gap.contains(&addr)));
    let mut shown = |host: usize| {
        let seen =
            lab.out(&udp(&format!("172.18.0.{host}:{}", 4000 + host), "198.51.100.3:53", b""));
        seen.src.ip()
    };
    for (host, before) in (2..60).zip(before) {
        let now = shown(host);
        assert!(!withheld.iter().any(|gap| gap.contains(&now)), "{now} is withheld");
        let moved = withheld.iter().any(|gap| gap.contains(&before));
        assert_eq!(now != before, moved, "of an address that is lent nobody is moved");
        assert_eq!(shown(host), now);
    }
    // With none to lend nobody is shown.
    lab.nat.withhold(vec![ip(9)..=ip(20)]);
    assert!(lab.leave(&udp("172.18.0.99:4000", "198.51.100.2:53", b"")).is_err());
}

#[test]
fn u3_no_port_is_overloaded() {
    let mut lab = Lab::default();
    let mut ports = std::collections::BTreeSet::new();
    for host in 2..100 {
        let seen = lab.out(&udp(&format!("172.18.0.{host}:40000"), "198.51.100.2:53", b""));
        assert!(ports.insert(seen.src.port()), "{} twice", seen.src);
    }
}

#[test]
fn u3a_the_range_of_a_port_is_kept() {
    let mut lab = Lab::default();
    for host in 2..20 {
        let low = lab.out(&udp(&format!("172.18.0.{host}:123"), "198.51.100.2:123", b""));
        assert!((1..1024).contains(&low.src.port()), "{}", low.src);
        let high = lab.out(&udp(&format!("172.18.0.{host}:5000"), "198.51.100.2:123", b""));
        assert!(high.src.port() >= 1024, "{}", high.src);
    }
}

#[test]
fn u3_exhaustion_is_told_and_nobody_loses_a_port() {
    let mut lab = Lab::default();
    let mut shown = HashMap::new();
    // No container has so many that the next has none; so many containers have them all.
    let refused = 'all: {
        for host in 2..=200 {
            for port in 1..1024 {
                let from = format!("172.18.0.{host}:{port}");
                match lab.leave(&udp(&from, "198.51.100.2:53", b"")) {
                    Ok(packet) => {
                        let before = shown.insert(read(&packet).src.port(), from);
                        assert_eq!(before, None);
                    }
                    Err(Refused { reason: Reason::PortQuota, .. }) => break,
                    Err(refused) => break 'all refused,
                }
            }
        }
        panic!("{} ports, and no end", shown.len());
    };
    assert_eq!(refused.tell, Some(Tell::AdminProhibited));
    assert!(matches!(refused.reason, Reason::Exhausted(_)), "{}", refused.reason);
    assert_eq!(shown.len(), 1023);
    for (port, from) in shown {
        lab.back(&udp("198.51.100.2:53", &external(port), b"")).goes("198.51.100.2:53", &from);
    }
    // A higher port is another range.
    lab.out(&udp("172.18.0.222:9999", "198.51.100.2:53", b""));
}

#[test]
fn u4_parity_is_kept() {
    let mut lab = Lab::default();
    for host in 2..40 {
        for port in [16_384, 16_385] {
            let seen = lab.out(&udp(&format!("172.18.0.{host}:{port}"), "198.51.100.2:9", b""));
            assert_eq!(seen.src.port() % 2, port % 2, "{}", seen.src);
        }
    }
}

#[test]
fn u4b_a_port_is_preserved_while_it_is_free() {
    let mut lab = Lab::default();
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:53", b""))
        .goes(&external(40_000), "198.51.100.2:53");
    assert!(lab.notes.iter().any(|note| matches!(note, Note::New { .. })));
    let other = lab.out(&udp("172.18.0.3:40000", "198.51.100.2:53", b""));
    assert_ne!(other.src.port(), 40_000);
}

/// RFC 6056, RFC 6888 REQ-15: the next port tells nothing about the one after it.
#[test]
fn u15_a_port_that_is_not_preserved_cannot_be_guessed() {
    let ports = |secret: [u8; 16]| -> Vec<u16> {
        let mut lab = Lab::with(Config::new(UPLINK, secret));
        let hosts = (2..34).map(|host| format!("172.18.0.{host}:40000"));
        hosts.map(|host| lab.out(&udp(&host, "198.51.100.2:53", b"")).src.port()).skip(1).collect()
    };
    let (one, two) = (ports([1; 16]), ports([2; 16]));
    assert_ne!(one, two);
    let near = one.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 256).count();
    assert!(near < 4, "{one:?}");
}

#[test]
fn u5_a_mapping_lives_two_minutes_unanswered_and_five_answered() {
    let mut lab = Lab::default();
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    lab.wait(119);
    lab.back(&udp("198.51.100.2:9000", &external(40_000), b""));
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    lab.wait(299);
    lab.back(&udp("198.51.100.2:9000", &external(40_000), b""));
    lab.wait(2);
    let late = lab.arrive(&udp("198.51.100.2:9000", &external(40_000), b""));
    assert!(matches!(late.unwrap_err().reason, Reason::Filtered(_)));
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
}

#[test]
fn u5a_a_question_to_a_name_server_is_forgotten_once_answered() {
    let mut lab = Lab::default();
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:53", b""));
    lab.wait(100);
    lab.back(&udp("198.51.100.2:53", &external(40_000), b""));
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:53", b""));
    lab.wait(11);
    lab.expire();
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
}

#[test]
fn u5b_times_are_configurable() {
    let mut timeouts = nat::Timeouts::RFC;
    timeouts.udp_unreplied = smoltcp::time::Duration::from_secs(7);
    let conntrack = nat::Conntrack::new(100, nat::Profile::Rfc).with_timeouts(timeouts);
    let mut lab = Lab::new(conntrack, Config::new(UPLINK, [0; 16]));
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    lab.wait(8);
    lab.arrive(&udp("198.51.100.2:9000", &external(40_000), b"")).unwrap_err();
}

#[test]
fn u6_what_comes_from_outside_keeps_nothing_alive() {
    let mut lab = Lab::default();
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    for _ in 0..30 {
        lab.back(&udp("198.51.100.2:9000", &external(40_000), b""));
        lab.wait(9);
    }
    lab.wait(31);
    lab.arrive(&udp("198.51.100.2:9000", &external(40_000), b"")).unwrap_err();
}

#[test]
fn u6_what_goes_out_keeps_the_mapping_alive() {
    let mut lab = Lab::default();
    for _ in 0..10 {
        lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
        lab.wait(119);
        lab.expire();
    }
    lab.back(&udp("198.51.100.2:9000", &external(40_000), b""));
}

#[test]
fn u8_filtering_is_address_dependent_by_default() {
    let mut lab = Lab::default();
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    lab.back(&udp("198.51.100.2:7777", &external(40_000), b""))
        .goes("198.51.100.2:7777", "172.18.0.2:40000");
    let stranger = lab.arrive(&udp("198.51.100.3:9000", &external(40_000), b""));
    assert_eq!(stranger.unwrap_err().tell, None);
    // The answer to the other port goes out by the same mapping.
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:7777", b""))
        .goes(&external(40_000), "198.51.100.2:7777");
}

#[test]
fn u8_an_address_spoken_to_no_more_is_a_stranger_again() {
    let mut lab = Lab::default();
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    lab.wait(100);
    lab.out(&udp("172.18.0.2:40000", "198.51.100.3:9000", b""));
    lab.wait(30);
    lab.expire();
    lab.arrive(&udp("198.51.100.2:9001", &external(40_000), b"")).unwrap_err();
    lab.back(&udp("198.51.100.3:9001", &external(40_000), b""));
}

#[test]
fn u8_filtering_may_be_endpoint_independent() {
    let mut lab = filtering(Filtering::EndpointIndependent);
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    lab.back(&udp("198.51.100.3:1", &external(40_000), b""))
        .goes("198.51.100.3:1", "172.18.0.2:40000");
    lab.arrive(&udp("198.51.100.3:1", &external(40_001), b"")).unwrap_err();
}

#[test]
fn u8_filtering_may_depend_on_the_port_too() {
    let mut lab = filtering(Filtering::AddressAndPortDependent);
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    lab.arrive(&udp("198.51.100.2:7777", &external(40_000), b"")).unwrap_err();
    lab.back(&udp("198.51.100.2:9000", &external(40_000), b""));
}

#[test]
fn u9_hairpin_shows_the_external_source() {
    for (alice, bob, shown) in [
        ("172.18.0.2:40000", "172.18.0.3:50000", EXTERNAL.to_owned()),
        ("[fd00:18::2]:40000", "[fd00:18::3]:50000", "[2001:db8:1::1]".to_owned()),
        ("172.18.0.2:40000", "172.19.0.2:50000", EXTERNAL.to_owned()),
    ] {
        let mut lab = Lab::default();
        let (outer_a, outer_b) = (format!("{shown}:40000"), format!("{shown}:50000"));
        let world = if alice.starts_with('[') { "[2001:db8:9::1]:9" } else { "198.51.100.2:9" };
        lab.out(&udp(bob, world, b""));
        lab.out(&udp(alice, world, b""));
        let first = lab.leave(&udp(bob, &outer_a, b""));
        assert!(first.is_err(), "Alice has not spoken to that address");
        let mut lab = Lab::with(Config {
            filtering: Filtering::EndpointIndependent,
            ..Config::new(UPLINK, [7; 16])
        });
        lab.out(&udp(bob, world, b""));
        lab.out(&udp(alice, world, b""));
        lab.out(&udp(alice, &outer_b, b"hello")).goes(&outer_a, bob);
        lab.out(&udp(bob, &outer_a, b"hello yourself")).goes(&outer_b, alice);
    }
}

#[test]
fn u9_hairpin_to_a_published_port() {
    let mut lab = Lab::publishing(vec![publish(Protocol::Udp, 8080..=8080, "172.18.0.3:80")]);
    // Another container of the same network, of another, and the server itself.
    for (from, port) in [("172.18.0.2", 4000), ("172.19.0.2", 4001), ("172.18.0.3", 4002)] {
        let client = format!("{from}:{port}");
        lab.out(&udp(&client, &external(8080), b"")).goes(&external(port), "172.18.0.3:80");
        lab.out(&udp("172.18.0.3:80", &external(port), b"")).goes(&external(8080), &client);
    }
}

#[test]
fn u10_payload_is_never_touched() {
    let mut lab = Lab::default();
    let sip = b"INVITE sip:bob@198.51.100.2 SIP/2.0\r\nContact: <sip:alice@172.18.0.2:5060>\r\n";
    let seen = lab.out(&udp("172.18.0.2:5060", "198.51.100.2:5060", sip));
    assert_eq!(&seen.body[8..], sip);
}

#[test]
fn u11_behaviour_does_not_change_under_load() {
    let mut lab = Lab::default();
    for port in 10_000..11_000 {
        let from = format!("172.18.0.2:{port}");
        let first = lab.out(&udp(&from, "198.51.100.2:9000", b"")).src;
        let second = lab.out(&udp(&from, "198.51.100.3:9000", b"")).src;
        assert_eq!(first, second);
        assert_eq!(first.port(), port);
    }
    lab.arrive(&udp("198.51.100.4:9000", &external(10_500), b"")).unwrap_err();
    assert_eq!(lab.nat.mappings().len_of(nat::Account(1 << 16 | ALICE.0)), 1000);
}

#[test]
fn u13_too_long_to_be_sent_is_told_or_cut() {
    let mut lab = Lab { mtu: 1400, ..Lab::default() };
    let packet = udp("172.18.0.2:40000", "198.51.100.2:9000", &[7; 1452]);
    let refused = lab.leave(&crate::wire::dont_fragment(packet.clone())).unwrap_err();
    assert_eq!(refused.tell, Some(Tell::TooBig(1400)));
    let six = udp("[fd00:18::2]:40000", "[2001:db8:9::1]:9000", &[7; 1452]);
    assert_eq!(lab.leave(&six).unwrap_err().tell, Some(Tell::TooBig(1400)));
    let inside = nat::Ingress { zone: crate::lab::NET, inside: true, account: ALICE, mtu: 1500 };
    let pieces = lab.pass_in_pieces(&packet, &inside).unwrap();
    assert_eq!(pieces.len(), 2);
    let offsets: Vec<_> =
        pieces.iter().map(|piece| Lab::parse(piece).piece.unwrap().offset).collect();
    assert_eq!(offsets, [0, 1376]);
    assert!(pieces.iter().all(|piece| piece.len() <= 1400));
}

/// A datagram whose checksum was never made keeps none (RFC 768).
#[test]
fn u16_no_checksum_stays_no_checksum() {
    let mut lab = Lab::default();
    let mut packet = udp("172.18.0.2:40000", "198.51.100.2:9000", b"x");
    packet[26..28].fill(0);
    assert_eq!(read(&lab.leave(&packet).unwrap()).body[6..8], [0, 0]);
}

/// RFC 8200 §8.1.
#[test]
fn u16_a_datagram_without_a_checksum_is_none_in_ipv6() {
    let mut lab = Lab::default();
    let mut packet = udp("[fd00:18::2]:40000", "[2001:db8:9::1]:9000", b"x");
    packet[46..48].fill(0);
    assert_eq!(lab.leave(&packet).unwrap_err().reason, Reason::BadChecksum);
}

/// RFC 6888 REQ-8: who comes next does not get what the last one had.
#[test]
fn r8_a_port_rests_before_another_container_has_it() {
    let mut lab = Lab::default();
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    lab.wait(121);
    lab.expire();
    let other = lab.out(&udp("172.18.0.3:40000", "198.51.100.2:9000", b""));
    assert_ne!(other.src.port(), 40_000);
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""))
        .goes(&external(40_000), "198.51.100.2:9000");
}

/// However long nothing has happened before: it rests from when it was given back.
#[test]
fn r8_a_port_rests_for_two_minutes_from_its_end_on() {
    let mut lab = Lab::default();
    lab.out(&udp("172.18.0.2:40000", "198.51.100.2:9000", b""));
    lab.wait(5000);
    lab.expire();
    assert_eq!(lab.nat.mappings().len(), 0);
    lab.wait(119);
    let other = lab.out(&udp("172.18.0.3:40000", "198.51.100.2:9000", b""));
    assert_ne!(other.src.port(), 40_000);
    lab.wait(241);
    lab.out(&udp("172.18.0.4:40000", "198.51.100.2:9000", b""))
        .goes(&external(40_000), "198.51.100.2:9000");
}

/// Ports that are published are nobody's to be shown with.
#[test]
fn u7_a_published_port_is_not_handed_out() {
    let mut lab = Lab::publishing(vec![publish(Protocol::Udp, 40_000..=40_999, "172.18.0.3:1000")]);
    for port in 40_000..40_100 {
        let seen = lab.out(&udp(&format!("172.18.0.2:{port}"), "198.51.100.2:9000", b""));
        assert!(!(40_000..=40_999).contains(&seen.src.port()), "{}", seen.src);
    }
}
