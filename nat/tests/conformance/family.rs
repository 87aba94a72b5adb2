//! RFC 6296 (NPTv6), NAT66, and NAT46 by RFC 7915.

use nat::{Config, Npt, Protocol, Tell};

use crate::lab::{Lab, UPLINK, publish};
use crate::wire::{ACK, SYN, SYN_ACK, Tcp, control, echo, error, read_quoted, tcp, udp};

fn npt() -> Lab {
    let lab = Lab::default();
    let (inside, outside) = ("fd00:18::/48".parse().unwrap(), "2001:db8:18::/48".parse().unwrap());
    lab.nat.set_prefixes(vec![Npt::new(UPLINK, inside, outside).unwrap()]);
    lab
}

#[test]
fn r6296_every_inside_address_has_its_own_outside_without_state() {
    let mut lab = npt();
    let world = "[2001:db8:9::1]:53";
    let sent = lab.out(&udp("[fd00:18::2]:4000", world, b"question"));
    let shown = sent.src;
    assert_eq!(shown.port(), 4000);
    assert!(shown.ip().to_string().starts_with("2001:db8:18:"), "{shown}");
    lab.back(&udp(world, &shown.to_string(), b"answer")).goes(world, "[fd00:18::2]:4000");
    // Anybody may begin, and a segment of no known connection passes.
    lab.back(&control("[2001:db8:7::7]:1", &shown.to_string(), ACK, 5, 6))
        .goes("[2001:db8:7::7]:1", "[fd00:18::2]:4000");
    lab.out(&echo("fd00:18::2", "2001:db8:9::1", 9, false));
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
}

#[test]
fn r6296_quoted_packets_are_translated_too() {
    let mut lab = npt();
    let packet = udp("[fd00:18::2]:4000", "[2001:db8:9::1]:53", b"question");
    let sent = lab.leave(&packet).unwrap();
    let shown = read_quoted(&sent, true).src.ip().to_string();
    let seen = lab.back(&error("2001:db8:9::fe", &shown, (1, 0), 0, &sent));
    assert_eq!(seen.quoted(), packet);
}

#[test]
fn r6296_hairpin() {
    let mut lab = npt();
    let bob = lab.out(&udp("[fd00:18::3]:80", "[2001:db8:9::1]:53", b"")).src;
    let seen = lab.out(&udp("[fd00:18::2]:4000", &bob.to_string(), b"hello"));
    assert_eq!(seen.dst.to_string(), "[fd00:18::3]:80");
    assert!(seen.src.ip().to_string().starts_with("2001:db8:18:"), "{}", seen.src);
}

#[test]
fn nat66_masquerades_unique_local_addresses() {
    let mut lab = Lab::default();
    lab.out(&udp("[fd00:18::2]:4000", "[2001:db8:9::1]:53", b"q"))
        .goes("[2001:db8:1::1]:4000", "[2001:db8:9::1]:53");
    lab.back(&udp("[2001:db8:9::1]:53", "[2001:db8:1::1]:4000", b"a"))
        .goes("[2001:db8:9::1]:53", "[fd00:18::2]:4000");
}

/// A container without IPv6, published on the host's IPv6 address.
fn nat46() -> Lab {
    let pool = "198.18.0.1".parse().unwrap()..="198.18.0.254".parse().unwrap();
    let lab = Lab::with(Config { nat46: Some(pool), ..Config::new(UPLINK, [3; 16]) });
    let rules = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
        let mut rule = publish(protocol, 8080..=8080, "172.18.0.2:80");
        rule.matches.dst = None;
        rule
    });
    lab.nat.set_rules(nat::Rules::new(rules.into(), vec![crate::lab::masquerade()]));
    lab
}

const CLIENT: &str = "[2001:db8:9::1]:5555";
const OUTER: &str = "[2001:db8:1::1]:8080";

#[test]
fn nat46_an_ipv6_client_reaches_an_ipv4_container() {
    let mut lab = nat46();
    let options = vec![2, 4, 5, 160];
    let syn = Tcp { flags: SYN, seq: 1, options, ..Tcp::default() };
    let seen = lab.back(&tcp(CLIENT, OUTER, &syn));
    let shown = seen.src.to_string();
    assert!(shown.starts_with("198.18.0."), "{shown}");
    assert_eq!((seen.src.port(), seen.dst.to_string()), (5555, "172.18.0.2:80".into()));
    lab.out(&control("172.18.0.2:80", &shown, SYN_ACK, 100, 2)).goes(OUTER, CLIENT);
    lab.back(&control(CLIENT, OUTER, ACK, 2, 101)).goes(&shown, "172.18.0.2:80");
    let answer = tcp(
        "172.18.0.2:80",
        &shown,
        &Tcp {
            flags: ACK,
            seq: 101,
            ack: 2,
            payload: b"HTTP/1.1 200 OK".to_vec(),
            options: vec![],
        },
    );
    let seen = lab.out(&answer);
    seen.goes(OUTER, CLIENT);
    assert!(seen.body.ends_with(b"200 OK"));
    assert_eq!(lab.flows(), 1);
}

/// RFC 7915 §4.5: IPv6 insists on the checksum IPv4 may leave out.
#[test]
fn nat46_a_checksum_that_was_not_made_is_made() {
    let mut lab = nat46();
    let shown = lab.back(&udp(CLIENT, OUTER, b"question")).src.to_string();
    let mut answer = udp("172.18.0.2:80", &shown, b"answer");
    answer[26..28].fill(0);
    let seen = lab.out(&answer);
    seen.goes(OUTER, CLIENT);
    assert_ne!(seen.body[6..8], [0, 0]);
}

/// RFC 7915 §4.2, §4.3: errors, and the packets they quote.
#[test]
fn nat46_errors_are_told_in_the_sender_s_own_version() {
    let mut lab = nat46();
    let question = udp(CLIENT, OUTER, b"question");
    let inner = lab.arrive(&question).unwrap();
    let shown = read_quoted(&inner, true).src.ip().to_string();
    for (said, word, heard, heard_word) in [
        ((3, 3), 0, (1, 4), 0),
        ((3, 13), 0, (1, 1), 0),
        ((3, 4), 1400u32, (2, 0), 1420u32),
        ((11, 0), 0, (3, 0), 0),
    ] {
        let seen = lab.out(&error("172.18.0.2", &shown, said, word, &inner));
        assert_eq!(seen.icmp(), heard);
        assert_eq!(seen.body[4..8], heard_word.to_be_bytes());
        assert_eq!(
            (seen.src.ip().to_string(), seen.dst.ip().to_string()),
            ("2001:db8:1::1".into(), "2001:db8:9::1".into())
        );
        let quoted = read_quoted(seen.quoted(), true);
        quoted.goes(CLIENT, OUTER);
        assert_eq!(&quoted.body[8..], b"question");
    }
    let answer = lab.leave(&udp("172.18.0.2:80", &format!("{shown}:5555"), b"answer")).unwrap();
    let seen = lab.back(&error("2001:db8:9::1", "2001:db8:1::1", (1, 4), 0, &answer));
    assert_eq!(seen.icmp(), (3, 3));
    read_quoted(seen.quoted(), true).goes("172.18.0.2:80", &format!("{shown}:5555"));
}

#[test]
fn nat46_too_long_is_told_with_the_difference_of_the_headers() {
    let mut lab = nat46();
    let shown = lab.back(&udp(CLIENT, OUTER, b"question")).src.to_string();
    let long = crate::wire::dont_fragment(udp("172.18.0.2:80", &shown, &[7; 1472]));
    let refused = lab.leave(&long).unwrap_err();
    assert_eq!(refused.tell, Some(Tell::TooBig(1480)));
    // Where its sender allows it, it is cut (RFC 7915 §4).
    let long = udp("172.18.0.2:80", &shown, &[7; 1472]);
    let (zone, account) = (crate::lab::NET, crate::lab::ALICE);
    let inside = nat::Ingress { zone, inside: true, account, mtu: 1500 };
    let pieces = lab.pass_in_pieces(&long, &inside).unwrap();
    assert_eq!(pieces.len(), 2);
    assert!(pieces.iter().all(|piece| piece.len() <= 1500 && piece[0] >> 4 == 6));
}

#[test]
fn nat46_needs_addresses_to_show() {
    let mut rule = publish(Protocol::Udp, 8080..=8080, "172.18.0.2:80");
    rule.matches.dst = None;
    let mut lab = Lab::publishing(vec![rule]);
    let refused = lab.arrive(&udp(CLIENT, OUTER, b"")).unwrap_err();
    assert_eq!(refused.reason, nat::Reason::Untranslatable);
}
