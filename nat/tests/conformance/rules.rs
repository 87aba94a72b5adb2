//! Rules: which flows are rewritten, and how.

use nat::{Account, Destination, Match, Note, Protocol, Rule, Rules, Source};

use crate::lab::{Lab, NET, UPLINK, masquerade, publish};
use crate::wire::{ACK, SYN, SYN_ACK, Tcp, tcp, udp};

#[test]
fn a_range_of_ports_is_one_rule() {
    let mut lab = Lab::publishing(vec![publish(Protocol::Udp, 10_000..=60_000, "172.18.0.2:1000")]);
    for port in [10_000, 10_001, 33_333, 60_000] {
        lab.back(&udp("198.51.100.2:9", &format!("203.0.113.1:{port}"), b""))
            .goes("198.51.100.2:9", &format!("172.18.0.2:{}", port - 9000));
    }
    assert_eq!(lab.nat.rules().prerouting()[0].counts(), (4, 4 * 28));
}

/// `-s 172.18.0.0/16 -o eth0 -j MASQUERADE`.
#[test]
fn masquerade_spares_what_stays_on_the_bridge_and_other_networks() {
    let mut lab = Lab::default();
    let matches =
        Match { src: Some("172.18.0.0/16".parse().unwrap()), to: Some(UPLINK), ..Match::ANY };
    lab.nat.set_rules(Rules::new(vec![], vec![Rule::new(matches, Source::Masquerade)]));
    lab.out(&udp("172.18.0.2:5", "172.18.0.3:6", b"")).goes("172.18.0.2:5", "172.18.0.3:6");
    lab.out(&udp("172.18.0.2:5", "198.51.100.2:6", b"")).goes("203.0.113.1:5", "198.51.100.2:6");
    lab.out(&udp("172.19.0.2:5", "198.51.100.2:6", b"")).goes("172.19.0.2:5", "198.51.100.2:6");
}

#[test]
fn one_to_one_keeps_ports_and_lets_both_sides_begin() {
    let mut lab = Lab::default();
    let inward = Rule::new(
        Match { dst: Some("203.0.113.128/28".parse().unwrap()), ..Match::ANY },
        Destination::Prefix { inside: "172.18.0.0/28".parse().unwrap(), account: Account(9) },
    );
    let outward = Rule::new(
        Match { to: Some(UPLINK), src: Some("172.18.0.0/28".parse().unwrap()), ..Match::ANY },
        Source::Prefix("203.0.113.128/28".parse().unwrap()),
    );
    lab.nat.set_rules(Rules::new(vec![inward], vec![outward, masquerade()]));
    lab.out(&udp("172.18.0.2:5", "198.51.100.2:6", b"")).goes("203.0.113.130:5", "198.51.100.2:6");
    lab.back(&udp("198.51.100.2:6", "203.0.113.130:5", b"")).goes("198.51.100.2:6", "172.18.0.2:5");
    lab.back(&udp("198.51.100.7:7", "203.0.113.131:80", b""))
        .goes("198.51.100.7:7", "172.18.0.3:80");
    lab.out(&udp("172.18.0.3:80", "198.51.100.7:7", b""))
        .goes("203.0.113.131:80", "198.51.100.7:7");
    // Between themselves they show what they show outside.
    lab.out(&udp("172.18.0.2:5", "203.0.113.131:80", b"")).goes("203.0.113.130:5", "172.18.0.3:80");
    lab.out(&udp("172.18.0.3:80", "203.0.113.130:5", b"")).goes("203.0.113.131:80", "172.18.0.2:5");
    assert_eq!(lab.nat.mappings().len(), 0);
}

/// A sender that never falls silent must not be kept from a container that took another's place.
#[test]
fn flows_follow_the_rules_when_they_change() {
    let mut lab = Lab::publishing(vec![publish(Protocol::Udp, 80..=80, "172.18.0.2:80")]);
    let hello = udp("198.51.100.2:5", "203.0.113.1:80", b"");
    lab.back(&hello).goes("198.51.100.2:5", "172.18.0.2:80");
    lab.out(&udp("172.18.0.9:7", "198.51.100.2:9", b""));
    let same = || vec![publish(Protocol::Udp, 80..=80, "172.18.0.2:80")];
    lab.nat.set_rules(Rules::new(same(), vec![masquerade()]));
    assert_eq!(lab.flows(), 2, "what leads where it led goes on");
    let other = vec![publish(Protocol::Udp, 80..=80, "172.18.0.3:80")];
    lab.nat.set_rules(Rules::new(other, vec![masquerade()]));
    lab.back(&hello).goes("198.51.100.2:5", "172.18.0.3:80");
    lab.nat.set_rules(Rules::new(vec![], vec![masquerade()]));
    lab.arrive(&hello).unwrap_err();
    assert_eq!(lab.flows(), 1);
    lab.nat.forget_inside(NET, "172.18.0.9".parse().unwrap());
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
}

/// A port that is published no more takes no connections, and leaves those there are to their ends.
#[test]
fn connections_outlive_the_rule_that_let_them_in() {
    let segment = |from: &str, to: &str, flags, (seq, ack), payload: &[u8]| {
        tcp(from, to, &Tcp { flags, seq, ack, payload: payload.to_vec(), options: vec![] })
    };
    let mut lab = Lab::publishing(vec![publish(Protocol::Tcp, 8080..=8080, "172.18.0.2:80")]);
    let [client, shown, server] = ["198.51.100.2:5", "203.0.113.1:8080", "172.18.0.2:80"];
    lab.back(&segment(client, shown, SYN, (100, 0), b"")).goes(client, server);
    lab.out(&segment(server, client, SYN_ACK, (500, 101), b"")).goes(shown, client);
    lab.back(&segment(client, shown, ACK, (101, 501), b"")).goes(client, server);
    lab.nat.set_rules(Rules::new(vec![], vec![masquerade()]));
    lab.out(&segment(server, client, ACK, (501, 101), b"served")).goes(shown, client);
    lab.back(&segment(client, shown, ACK, (101, 507), b"more")).goes(client, server);
    lab.arrive(&segment("198.51.100.2:6", shown, SYN, (100, 0), b"")).unwrap_err();
}

/// The same addresses in two networks are two containers.
#[test]
fn networks_are_zones() {
    let mut lab = Lab::default();
    let packet = udp("172.18.0.2:40000", "198.51.100.2:9", b"");
    let ingress = |zone| nat::Ingress { zone, inside: true, account: Account(1), mtu: 1500 };
    let one = crate::wire::read(&lab.pass(&packet, &ingress(nat::Zone(50))).unwrap());
    let two = crate::wire::read(&lab.pass(&packet, &ingress(nat::Zone(51))).unwrap());
    assert_ne!(one.src, two.src);
    assert_eq!(lab.nat.conntrack().list(Some(nat::Zone(50))).len(), 1);
}

#[test]
fn why_is_told_with_the_rule_and_the_ports() {
    let mut lab = Lab::publishing(vec![publish(Protocol::Udp, 80..=80, "172.18.0.2:8080")]);
    lab.back(&udp("198.51.100.2:5", "203.0.113.1:80", b""));
    let said: Vec<_> = lab.notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "udp 198.51.100.2:5 > 203.0.113.1:80 is no known flow: the rules are asked",
            "prerouting rule 0 matches: udp to 203.0.113.1/32 port 80: DNAT to 172.18.0.2:8080",
            "udp 198.51.100.2:5 > 203.0.113.1:80 becomes udp 198.51.100.2:5 > 172.18.0.2:8080",
        ]
    );
    lab.notes.clear();
    lab.out(&udp("172.18.0.2:8080", "198.51.100.2:5", b""));
    assert!(matches!(lab.notes[0], Note::Flow { .. }), "{:?}", lab.notes);
}

/// Whoever speaks from one port to two that lead to one is answered by each from where it asked; by the second
/// it is shown with another port (`nf_nat_alloc_null_binding`).
#[test]
fn two_published_ports_may_lead_one_client_to_one_port() {
    let rules = [80, 81, 82].map(|port| publish(Protocol::Udp, port..=port, "172.18.0.2:80"));
    let mut lab = Lab::publishing(rules.into());
    let client = "198.51.100.2:5";
    let mut shown = Vec::new();
    for port in [80, 81, 82, 81, 80] {
        let asked = format!("203.0.113.1:{port}");
        let seen = lab.back(&udp(client, &asked, b""));
        assert_eq!(
            (seen.src.ip(), seen.dst),
            (crate::wire::at(client).ip(), crate::wire::at("172.18.0.2:80"))
        );
        shown.push(seen.src.port());
        lab.out(&udp("172.18.0.2:80", &seen.src.to_string(), b"")).goes(&asked, client);
    }
    assert_eq!(shown[0], 5, "its own, where that is free");
    assert!(shown[1] != shown[0] && shown[2] != shown[0] && shown[1] != shown[2], "{shown:?}");
    assert_eq!(shown[3..], [shown[1], shown[0]]);
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (3, 0));
}
