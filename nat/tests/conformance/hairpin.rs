//! Containers that meet by their external addresses (RFC 4787 §6, RFC 5128 §3.3): each as if it were behind a NAT of
//! its own.

use nat::{Config, Filtering, Npt, Protocol, Reason};

use crate::lab::{EXTERNAL, Lab, UPLINK, masquerade, publish};
use crate::wire::{ACK, SYN, SYN_ACK, control, error, udp};

const ALICE: &str = "172.18.0.2:40000";
const BOB: &str = "172.18.0.3:50000";
const ALICE_OUT: &str = "203.0.113.1:40000";
const BOB_OUT: &str = "203.0.113.1:50000";
const RENDEZVOUS: &str = "198.51.100.2:9";

/// Both are known to a server they have met at.
fn met(filtering: Filtering) -> Lab {
    let mut lab = Lab::with(Config { filtering, ..Config::new(UPLINK, [7; 16]) });
    lab.out(&udp(ALICE, RENDEZVOUS, b""));
    lab.out(&udp(BOB, RENDEZVOUS, b""));
    lab
}

/// The first packet is refused and opens the way for the other's.
#[test]
fn u8_u9_both_reach_each_other_once_both_have_spoken() {
    for filtering in [Filtering::AddressDependent, Filtering::AddressAndPortDependent] {
        let mut lab = met(filtering);
        let refused = lab.leave(&udp(ALICE, BOB_OUT, b"1")).unwrap_err();
        assert!(matches!(refused.reason, Reason::Filtered(_)), "{}", refused.reason);
        lab.out(&udp(BOB, ALICE_OUT, b"2")).goes(BOB_OUT, ALICE);
        lab.out(&udp(ALICE, BOB_OUT, b"3")).goes(ALICE_OUT, BOB);
        lab.out(&udp(BOB, ALICE_OUT, b"4")).goes(BOB_OUT, ALICE);
        assert_eq!(lab.flows(), 3, "two to the rendezvous, one between them");
    }
}

/// Who has not been spoken to is not let in, however often he says so, and loses nothing by it.
#[test]
fn u8_a_container_is_a_stranger_like_any_other() {
    for filtering in [Filtering::AddressDependent, Filtering::AddressAndPortDependent] {
        let mut lab = met(filtering);
        for _ in 0..3 {
            lab.leave(&udp(ALICE, BOB_OUT, b"")).unwrap_err();
        }
        assert_eq!((lab.flows(), lab.nat.mappings().len()), (3, 2));
        lab.wait(121);
        lab.expire();
        assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
    }
}

/// REQ-8: by address, another port of the same address may answer; by address and port it may not.
#[test]
fn u8_filtering_between_containers_depends_on_the_port_where_it_shall() {
    const OTHER_PORT: &str = "172.18.0.3:50001";
    for (filtering, may) in
        [(Filtering::AddressDependent, true), (Filtering::AddressAndPortDependent, false)]
    {
        let mut lab = met(filtering);
        lab.out(&udp(OTHER_PORT, RENDEZVOUS, b""));
        lab.leave(&udp(ALICE, BOB_OUT, b"")).unwrap_err();
        let answer = lab.leave(&udp(OTHER_PORT, ALICE_OUT, b""));
        assert_eq!(answer.is_ok(), may, "{filtering:?}");
        // The very port may in any case.
        lab.out(&udp(BOB, ALICE_OUT, b"")).goes(BOB_OUT, ALICE);
    }
}

/// What knocks is let in as soon as the other has spoken to it by another port, if that is enough.
#[test]
fn u8_who_knocks_is_asked_again_each_time() {
    let mut lab = met(Filtering::AddressDependent);
    lab.leave(&udp(ALICE, BOB_OUT, b"")).unwrap_err();
    lab.out(&udp("172.18.0.2:40001", RENDEZVOUS, b""));
    lab.leave(&udp(BOB, "203.0.113.1:40001", b"")).unwrap_err();
    lab.out(&udp(ALICE, BOB_OUT, b"")).goes(ALICE_OUT, BOB);
}

/// RFC 5382 REQ-2 and REQ-4 in a hairpin: two SYNs that cross.
#[test]
fn t2_t8_both_open_at_once() {
    let mut lab = Lab::default();
    lab.out(&control(ALICE, "198.51.100.2:80", SYN, 1, 0));
    lab.out(&control(BOB, "198.51.100.2:80", SYN, 1, 0));
    lab.leave(&control(ALICE, BOB_OUT, SYN, 100, 0)).unwrap_err();
    lab.out(&control(BOB, ALICE_OUT, SYN, 500, 0)).goes(BOB_OUT, ALICE);
    lab.out(&control(ALICE, BOB_OUT, SYN_ACK, 100, 501)).goes(ALICE_OUT, BOB);
    lab.out(&control(BOB, ALICE_OUT, ACK, 501, 101)).goes(BOB_OUT, ALICE);
    lab.wait(7);
    assert!(lab.nat.due(lab.now).is_none(), "the first SYN was answered after all");
}

#[test]
fn t4_a_syn_nobody_answers_is_told_of_between_containers_too() {
    let mut lab = Lab::default();
    lab.out(&control(BOB, "198.51.100.2:80", SYN, 1, 0));
    let syn = control(ALICE, BOB_OUT, SYN, 100, 0);
    assert_eq!(lab.leave(&syn).unwrap_err().tell, None);
    lab.wait(6);
    assert_eq!(lab.nat.due(lab.now), Some((crate::lab::NET, syn)));
}

/// The flow between them holds both external ports, and is what each may be answered by.
#[test]
fn u6_a_flow_between_containers_holds_both_mappings() {
    let mut lab = met(Filtering::AddressDependent);
    lab.leave(&udp(ALICE, BOB_OUT, b"")).unwrap_err();
    for _ in 0..5 {
        lab.out(&udp(BOB, ALICE_OUT, b"")).goes(BOB_OUT, ALICE);
        lab.out(&udp(ALICE, BOB_OUT, b"")).goes(ALICE_OUT, BOB);
        lab.wait(119);
        lab.expire();
    }
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (1, 2));
    // A third is shown with neither.
    let other = lab.out(&udp("172.18.0.4:40000", RENDEZVOUS, b"")).src.port();
    assert_ne!(other, 40_000);
    lab.wait(301);
    lab.expire();
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
}

/// RFC 5508 REQ-7.
#[test]
fn i7_an_error_between_containers_by_their_mappings() {
    let mut lab = met(Filtering::EndpointIndependent);
    let sent = lab.leave(&udp(ALICE, BOB_OUT, b"")).unwrap();
    let seen = lab.out(&error("172.18.0.3", EXTERNAL, (3, 3), 0, &sent));
    assert_eq!(
        (seen.src.ip().to_string(), seen.dst.ip().to_string()),
        (EXTERNAL.into(), "172.18.0.2".into())
    );
}

/// RFC 6296 beside rules: a published port leads to a host that has a prefix of its own, and back.
#[test]
fn r6296_a_host_with_a_prefix_may_be_published_too() {
    let lab = || {
        let lab = Lab::default();
        let (inside, outside) =
            ("fd00:18::/48".parse().unwrap(), "2001:db8:18::/48".parse().unwrap());
        lab.nat.set_prefixes(vec![Npt::new(UPLINK, inside, outside).unwrap()]);
        let published = publish(Protocol::Udp, 8080..=8080, "[fd00:18::2]:80");
        lab.nat.set_rules(nat::Rules::new(vec![published], vec![masquerade()]));
        lab
    };
    let mut lab = lab();
    let (client, outer, inner) =
        ("[2001:db8:9::1]:5555", "[2001:db8:1::1]:8080", "[fd00:18::2]:80");
    let asked = lab.arrive(&udp(client, outer, b"question")).unwrap();
    crate::wire::read(&asked).goes(client, inner);
    lab.out(&udp(inner, client, b"answer")).goes(outer, client);
    // An error about it is of the flow; one about anything else, of the prefix.
    let seen = lab.out(&error("fd00:18::2", "2001:db8:9::1", (1, 4), 0, &asked));
    assert_eq!(seen.src.ip().to_string(), "2001:db8:1::1");
    let sent = lab.leave(&udp("[fd00:18::2]:7", client, b"")).unwrap();
    let shown = crate::wire::read(&sent).src;
    assert!(shown.to_string().starts_with("[2001:db8:18:"), "{shown}");
    let seen = lab.back(&error("2001:db8:9::fe", &shown.ip().to_string(), (1, 0), 0, &sent));
    assert_eq!(seen.dst.ip().to_string(), "fd00:18::2");
    assert_eq!(lab.flows(), 1);
}

/// A rule for an address of the prefix goes before the prefix.
#[test]
fn r6296_a_rule_goes_before_a_prefix() {
    let mut lab = Lab::default();
    let (inside, outside) = ("fd00:18::/48".parse().unwrap(), "2001:db8:18::/48".parse().unwrap());
    let npt = Npt::new(UPLINK, inside, outside).unwrap();
    let bob =
        std::net::SocketAddr::new(npt.outward("fd00:18::3".parse().unwrap()).unwrap().into(), 80);
    lab.nat.set_prefixes(vec![npt]);
    let mut rule = publish(Protocol::Udp, 80..=80, "[fd00:18::2]:8080");
    rule.matches.dst = Some(format!("{}/128", bob.ip()).parse().unwrap());
    lab.nat.set_rules(nat::Rules::new(vec![rule], vec![masquerade()]));
    let client = "[2001:db8:9::1]:5555";
    lab.back(&udp(client, &bob.to_string(), b"")).goes(client, "[fd00:18::2]:8080");
    lab.out(&udp("[fd00:18::2]:8080", client, b"")).goes(&bob.to_string(), client);
    let elsewhere = std::net::SocketAddr::new(bob.ip(), 81).to_string();
    lab.back(&udp(client, &elsewhere, b"")).goes(client, "[fd00:18::3]:81");
}

/// Who has no prefix speaks to one who has: both see external addresses, so the answer finds its way.
#[test]
fn r6296_a_container_without_a_prefix_reaches_one_that_has_one() {
    let mut lab = Lab::default();
    let (inside, outside) = ("fd00:18::/48".parse().unwrap(), "2001:db8:18::/48".parse().unwrap());
    let npt = Npt::new(UPLINK, inside, outside).unwrap();
    let server =
        std::net::SocketAddr::new(npt.outward("fd00:18::3".parse().unwrap()).unwrap().into(), 80);
    lab.nat.set_prefixes(vec![npt]);
    let client = "[fd00:19::2]:4000";
    let seen = lab.out(&udp(client, &server.to_string(), b"question"));
    assert_eq!(seen.dst.to_string(), "[fd00:18::3]:80");
    lab.out(&udp("[fd00:18::3]:80", &seen.src.to_string(), b"answer"))
        .goes(&server.to_string(), client);
}
