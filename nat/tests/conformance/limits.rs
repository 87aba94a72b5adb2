//! RFC 6888 REQ-4 and the bounds of every table: who pays when there is no more.

use nat::{Config, Conntrack, Profile, Reason, Tell};

use crate::lab::{Lab, UPLINK};
use crate::wire::udp;

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

/// Early drop: only what was never answered, only one's own, and its port comes back with it.
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
