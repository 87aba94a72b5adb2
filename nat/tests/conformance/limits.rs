//! RFC 6888 REQ-4 and the bounds of every table: who pays when there is no more.

use nat::{
    Account, Config, Conntrack, Match, Profile, Protocol, Reason, Rule, Rules, Source, Tell,
};

use crate::lab::{Lab, UPLINK, masquerade, publish};
use crate::wire::{ACK, RST, SYN, SYN_ACK, control, echo, udp};

#[test]
fn r6888_4_ports_are_limited_for_each_container() {
    let config = Config { max_mappings_of_account: 10, ..Config::new(UPLINK, [0; 16]) };
    let mut lab = Lab::with(config);
    for port in 1000..1010 {
        lab.out(&udp(&format!("172.18.0.2:{port}"), "198.51.100.2:9", b""));
    }
    let refused = lab.leave(&udp("172.18.0.2:2000", "198.51.100.2:9", b"")).unwrap_err();
    assert_eq!((refused.reason, refused.tell), (Reason::PortQuota, Some(Tell::AdminProhibited)));
    // Another far side costs no port, and another container has its own.
    lab.out(&udp("172.18.0.2:1000", "198.51.100.3:9", b""));
    lab.out(&udp("172.18.0.3:2000", "198.51.100.2:9", b""));
}

/// Whoever takes all it can get of an external address finds an end; whoever just wants one does not, of any
/// range, however many such there are before it.
#[test]
fn r6888_4_ports_one_container_takes_are_not_anothers() {
    for (range, protocol) in [
        (1024..=u16::MAX, udp as fn(&str, &str, &[u8]) -> Vec<u8>),
        (1..=1023, udp),
        (0..=u16::MAX, asks),
    ] {
        let mut lab = Lab::default();
        let mut held = Vec::new();
        for greedy in 2..34 {
            let mut all = range.clone().map(|port| {
                let packet = protocol(&format!("172.18.0.{greedy}:{port}"), "198.51.100.2:9", b"");
                lab.leave(&packet).map_err(|refused| refused.reason)
            });
            let refused = all.find_map(Result::err);
            assert_eq!(refused, Some(Reason::PortQuota), "of {range:?}, container {greedy}");
            held.push(lab.nat.mappings().len_of(Account(1 << 16 | greedy)));
        }
        // All that a Linux container's own ports allow (`ip_local_port_range`) are there for one.
        assert!(range.len() < 60_000 || held[0] > 28_232, "{held:?} of {range:?}");
        let modest = protocol(&format!("172.18.0.99:{}", range.end()), "198.51.100.2:9", b"");
        lab.out(&modest);
    }
}

/// An external address for each source: ports that rest are remembered for no more addresses than that.
#[test]
fn r6888_5_the_memory_for_external_addresses_is_limited_for_each_container() {
    let config = Config { max_mappings_of_account: 10, ..Config::new(UPLINK, [0; 16]) };
    let mut lab = Lab::with(config);
    let range = "2001:db8:9::".parse().unwrap()..="2001:db8:9::ffff:ffff".parse().unwrap();
    let matches = Match { to: Some(UPLINK), ..Match::ANY };
    lab.nat.set_rules(Rules::new(vec![], vec![Rule::new(matches, Source::To(range))]));
    let from = |n: u16| udp(&format!("[fd00:18::{n}:2]:4000"), "[2001:db8::2]:9", b"");
    (0..10).for_each(|n| drop(lab.out(&from(n))));
    lab.wait(301);
    (0..100).for_each(|_| lab.nat.expire(lab.now));
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
    assert_eq!(lab.leave(&from(10)).unwrap_err().reason, Reason::PortQuota);
    lab.out(&from(9));
    // Those that have rested make room.
    lab.wait(301);
    for _ in 0..3 {
        lab.nat.expire(lab.now);
        lab.wait(130);
    }
    lab.out(&from(10));
}

#[test]
fn r6888_4_flows_are_limited_for_each_container() {
    let conntrack = Conntrack::new(1000, Profile::Rfc).with_quota(10);
    let mut lab = Lab::new(conntrack, Config::new(UPLINK, [0; 16]));
    for port in 0..10 {
        lab.out(&udp("172.18.0.2:1000", &format!("198.51.100.2:{}", 100 + port), b""));
        lab.back(&udp(&format!("198.51.100.2:{}", 100 + port), "203.0.113.1:1000", b""));
    }
    let refused = lab.leave(&udp("172.18.0.2:1000", "198.51.100.2:99", b"")).unwrap_err();
    assert_eq!((refused.reason, refused.tell), (Reason::FlowQuota, Some(Tell::AdminProhibited)));
    lab.out(&udp("172.18.0.3:1000", "198.51.100.2:99", b""));
}

/// Early drop: only what is not assured, only one's own, and its port comes back with it.
#[test]
fn a_scan_makes_room_for_itself() {
    let conntrack = Conntrack::new(1000, Profile::Rfc).with_quota(10);
    let mut lab = Lab::new(conntrack, Config::new(UPLINK, [0; 16]));
    lab.out(&udp("172.18.0.2:1000", "198.51.100.2:9", b""));
    lab.back(&udp("198.51.100.2:9", "203.0.113.1:1000", b""));
    for port in 2000..3000 {
        lab.out(&udp(&format!("172.18.0.2:{port}"), "198.51.100.2:9", b""));
    }
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (10, 10));
    lab.back(&udp("198.51.100.2:9", "203.0.113.1:1000", b""))
        .goes("198.51.100.2:9", "172.18.0.2:1000");
}

/// A published server answers forged senders, too: they keep out nobody, neither who is there nor who comes.
#[test]
fn who_asks_in_anothers_name_shuts_nobody_out() {
    let server = "172.18.0.2:80";
    let outside = "203.0.113.1:8080";
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let conntrack = Conntrack::new(1000, Profile::Rfc).with_quota(10);
        let mut lab = Lab::new(conntrack, Config::new(UPLINK, [0; 16]));
        let rule = publish(protocol, 8080..=8080, server);
        lab.nat.set_rules(Rules::new(vec![rule], vec![masquerade()]));
        let meet = |lab: &mut Lab, client: &str, forged: bool| {
            let talk = match protocol {
                Protocol::Tcp => [
                    control(client, outside, SYN, 100, 0),
                    control(server, client, SYN_ACK, 500, 101),
                    control(client, outside, if forged { RST } else { ACK }, 101, 501),
                ],
                _ => [
                    udp(client, outside, b"?"),
                    udp(server, client, b"!"),
                    udp(client, outside, b"thanks"),
                ],
            };
            let [asks, answers, goes_on] = talk;
            lab.back(&asks).goes(client, server);
            lab.out(&answers).goes(outside, client);
            if !forged || protocol == Protocol::Tcp {
                lab.back(&goes_on).goes(client, server);
            }
        };
        meet(&mut lab, "198.51.100.2:9", false);
        for port in 2000..3000 {
            meet(&mut lab, &format!("198.51.100.66:{port}"), true);
        }
        for port in 10..19 {
            meet(&mut lab, &format!("198.51.100.2:{port}"), false);
        }
        let there = match protocol {
            Protocol::Tcp => control("198.51.100.2:9", outside, ACK, 101, 501),
            _ => udp("198.51.100.2:9", outside, b"once more"),
        };
        lab.back(&there).goes("198.51.100.2:9", server);
        assert_eq!(lab.nat.conntrack().list(None).iter().filter(|flow| flow.assured()).count(), 10);
        // All of them are there to stay.
        let next = match protocol {
            Protocol::Tcp => control("198.51.100.2:20", outside, SYN, 100, 0),
            _ => udp("198.51.100.2:20", outside, b"?"),
        };
        assert_eq!(lab.arrive(&next).unwrap_err().reason, Reason::FlowQuota);
    }
}

#[test]
fn an_address_that_is_lost_takes_its_flows_along() {
    let mut lab = Lab::default();
    for port in 1000..1100 {
        lab.out(&udp(&format!("172.18.0.2:{port}"), "198.51.100.2:9", b""));
    }
    let external = nat::External { zone: UPLINK, addr: "203.0.113.1".parse().unwrap() };
    lab.nat.forget_address(external);
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
}

/// An echo request; its source's port is the identifier.
fn asks(src: &str, dst: &str, _: &[u8]) -> Vec<u8> {
    let (addr, id) = src.rsplit_once(':').unwrap();
    echo(addr, dst.rsplit_once(':').unwrap().0, id.parse().unwrap(), false)
}
