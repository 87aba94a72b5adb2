//! Several uplinks, each with a NAT of its own, behind one conntrack.

use std::net::IpAddr;
use std::sync::Arc;

use nat::{
    Account, Config, Conntrack, Egress, External, Filtering, Ingress, Match, Nat, NoNotes, Profile,
    Protocol, Refused, Rule, Rules, Source, Timeouts, Undone, Zone,
};
use smoltcp::time::{Duration, Instant};

use crate::lab::{ALICE, Frame, NET, publish};
use crate::wire::{Seen, read, udp};
use nat::Buffer;

const NOW: Instant = Instant::from_micros_const(1_000_000_000);

/// Two uplinks: one with 203.0.113.1, one with 192.0.2.1.
struct Uplinks {
    nats: [Nat; 2],
}

const ZONES: [Zone; 2] = [Zone(100), Zone(101)];
const SHOWN: [&str; 2] = ["203.0.113.1", "192.0.2.1"];

impl Uplinks {
    fn new() -> Self {
        let conntrack = Arc::new(Conntrack::new(1000, Profile::Rfc));
        let nats = ZONES.map(|zone| {
            let config = Config {
                filtering: Filtering::EndpointIndependent,
                ..Config::new(zone, [u8::try_from(zone.0).unwrap(); 16])
            };
            let nat = Nat::new(Arc::clone(&conntrack), config);
            nat.set_rules(Rules::new(vec![], vec![masquerade(zone)]));
            nat
        });
        Self { nats }
    }

    fn pass(
        &self,
        by: usize,
        packet: &[u8],
        (from, inside): (Zone, bool),
        (to, to_inside): (Zone, bool),
    ) -> Result<Seen, Refused> {
        let mut frame = Frame::of(packet);
        let ingress = Ingress { zone: from, inside, account: ALICE, mtu: 1500 };
        let addresses: [IpAddr; 1] = [SHOWN[by].parse().unwrap()];
        let egress = Egress { zone: to, inside: to_inside, mtu: 1500, addresses: &addresses };
        let nat = &self.nats[by];
        let mut passage =
            nat.prerouting(&mut frame, Undone::default(), &ingress, NOW, &mut NoNotes)?;
        let _ = nat.postrouting(&mut frame, &mut passage, &egress, None, NOW, &mut NoNotes)?;
        Ok(read(frame.octets()))
    }

    fn out(&self, by: usize, packet: &[u8]) -> Seen {
        self.pass(by, packet, (NET, true), (ZONES[by], false)).unwrap()
    }

    fn back(&self, by: usize, packet: &[u8]) -> Result<Seen, Refused> {
        self.pass(by, packet, (ZONES[by], false), (NET, true))
    }

    fn flows(&self) -> usize {
        self.nats[0].conntrack().len()
    }
}

fn masquerade(zone: Zone) -> Rule<Source> {
    Rule::new(Match { to: Some(zone), ..Match::ANY }, Source::Masquerade)
}

fn shown(by: usize, port: u16) -> String {
    format!("{}:{port}", SHOWN[by])
}

/// The same container is shown by each uplink's own address, and answered by whichever it spoke by.
#[test]
fn each_uplink_shows_its_own_address() {
    let uplinks = Uplinks::new();
    for (by, far) in ["198.51.100.2:9", "198.51.100.3:9"].into_iter().enumerate() {
        uplinks.out(by, &udp("172.18.0.2:4000", far, b"")).goes(&shown(by, 4000), far);
        uplinks.back(by, &udp(far, &shown(by, 4000), b"")).unwrap().goes(far, "172.18.0.2:4000");
        // The other uplink's address is nobody's here.
        uplinks.back(by, &udp(far, &shown(1 - by, 4000), b"")).unwrap_err();
    }
    assert_eq!(uplinks.flows(), 2);
    let held = |by: usize| {
        let external = External { zone: ZONES[by], addr: SHOWN[by].parse().unwrap() };
        uplinks.nats[by].mappings().held(external, Protocol::Udp)
    };
    assert_eq!((held(0), held(1)), (1, 1));
}

/// RFC 4787 REQ-9 in each uplink's zone.
#[test]
fn each_uplink_has_its_own_hairpin() {
    let uplinks = Uplinks::new();
    for (by, far) in ["198.51.100.2:9", "198.51.100.3:9"].into_iter().enumerate() {
        uplinks.out(by, &udp("172.18.0.2:4000", far, b""));
        uplinks.out(by, &udp("172.18.0.3:5000", far, b""));
        let hairpin = |packet: &[u8]| uplinks.pass(by, packet, (NET, true), (NET, true)).unwrap();
        hairpin(&udp("172.18.0.2:4000", &shown(by, 5000), b""))
            .goes(&shown(by, 4000), "172.18.0.3:5000");
        hairpin(&udp("172.18.0.3:5000", &shown(by, 4000), b""))
            .goes(&shown(by, 5000), "172.18.0.2:4000");
    }
}

/// Out by its own network's NAT, then in by the other's, as if both had a wire between them.
#[test]
fn containers_of_two_uplinks_reach_each_other_by_their_external_addresses() {
    const THERE: Zone = Zone(2);
    let uplinks = Uplinks::new();
    let far = "198.51.100.2:9";
    uplinks.out(0, &udp("172.18.0.2:4000", far, b""));
    let bob = udp("172.19.0.2:5000", far, b"");
    uplinks.pass(1, &bob, (THERE, true), (ZONES[1], false)).unwrap().goes(&shown(1, 5000), far);
    let across = |from: (usize, Zone), to: (usize, Zone), packet: &[u8]| {
        let seen = uplinks.pass(from.0, packet, (from.1, true), (ZONES[from.0], false)).unwrap();
        let between = udp(&seen.src.to_string(), &seen.dst.to_string(), &seen.body[8..]);
        uplinks.pass(to.0, &between, (ZONES[to.0], false), (to.1, true)).unwrap()
    };
    across((0, NET), (1, THERE), &udp("172.18.0.2:4000", &shown(1, 5000), b"hello"))
        .goes(&shown(0, 4000), "172.19.0.2:5000");
    across((1, THERE), (0, NET), &udp("172.19.0.2:5000", &shown(0, 4000), b"hello yourself"))
        .goes(&shown(1, 5000), "172.18.0.2:4000");
}

/// What one uplink loses, or is told, is no other's concern.
#[test]
fn no_uplink_ends_another_s_flows() {
    let uplinks = Uplinks::new();
    let rule = |port| publish(Protocol::Udp, port..=port, "172.18.0.3:80");
    let mut elsewhere = rule(81);
    elsewhere.matches.dst = None;
    uplinks.nats[0].set_rules(Rules::new(vec![rule(80)], vec![masquerade(ZONES[0])]));
    uplinks.nats[1].set_rules(Rules::new(vec![elsewhere], vec![masquerade(ZONES[1])]));
    uplinks.back(0, &udp("198.51.100.2:9", &shown(0, 80), b"")).unwrap();
    uplinks.back(1, &udp("198.51.100.3:9", &shown(1, 81), b"")).unwrap();
    uplinks.out(0, &udp("172.18.0.2:4000", "198.51.100.7:9", b""));
    uplinks.out(1, &udp("172.18.0.2:4001", "198.51.100.7:9", b""));
    uplinks.nats[1].set_rules(Rules::new(vec![], vec![masquerade(ZONES[1])]));
    assert_eq!(uplinks.flows(), 3, "the second's publication ends, and nothing else");
    let addr = SHOWN[0].parse().unwrap();
    uplinks.nats[1].forget_address(External { zone: ZONES[1], addr });
    assert_eq!(uplinks.flows(), 3);
    uplinks.nats[0].forget_address(External { zone: ZONES[0], addr });
    assert_eq!(uplinks.flows(), 1, "published and masqueraded ones of the address that is gone");
    uplinks.nats[0].forget_inside(NET, "172.18.0.2".parse().unwrap());
    assert_eq!(uplinks.flows(), 1);
    uplinks.nats[1].forget_inside(NET, "172.18.0.2".parse().unwrap());
    assert_eq!(uplinks.flows(), 0);
}

/// What it is shown as is not the other uplink's: it begins anew, with its second packet.
#[test]
fn a_flow_whose_route_changes_begins_anew() {
    let uplinks = Uplinks::new();
    let packet = udp("172.18.0.2:4000", "198.51.100.7:9", b"");
    uplinks.out(0, &packet);
    let refused = uplinks.pass(1, &packet, (NET, true), (ZONES[1], false)).unwrap_err();
    assert_eq!(refused.reason, nat::Reason::NoFlow);
    assert_eq!(uplinks.flows(), 0);
    uplinks.out(1, &packet).goes(&shown(1, 4000), "198.51.100.7:9");
}

/// Protocols without ports hold no mapping, and end with the address all the same.
#[test]
fn an_address_that_is_lost_takes_flows_without_ports_along() {
    let uplinks = Uplinks::new();
    let gre =
        crate::wire::ip("172.18.0.2".parse().unwrap(), "198.51.100.2".parse().unwrap(), 47, b"");
    uplinks.out(0, &gre);
    uplinks.nats[0].forget_address(External { zone: ZONES[0], addr: SHOWN[0].parse().unwrap() });
    assert_eq!(uplinks.flows(), 0);
}

/// Each uplink has its own idle times, and they may be changed.
#[test]
fn each_uplink_has_its_own_times() {
    let uplinks = Uplinks::new();
    let mut timeouts = Timeouts::RFC;
    timeouts.udp_unreplied = Duration::from_secs(7);
    let config = Config {
        timeouts: Some(timeouts),
        uplink: ZONES[0],
        secret: [0; 16],
        ..(*uplinks.nats[1].config()).clone()
    };
    uplinks.nats[1].set_config(config);
    let now = uplinks.nats[1].config();
    assert_eq!((now.uplink, now.secret), (ZONES[1], [101; 16]), "what cannot change has not");
    for by in [0, 1] {
        uplinks.out(by, &udp(&format!("172.18.0.2:400{by}"), "198.51.100.2:9", b""));
    }
    let expire = |seconds| {
        (0..100).for_each(|_| uplinks.nats[0].expire(NOW + Duration::from_secs(seconds)));
        uplinks.flows()
    };
    assert_eq!((expire(6), expire(8), expire(121)), (2, 1, 0));
}

/// Fewer mappings from now on, and who has more keeps them.
#[test]
fn a_quota_may_change() {
    let uplinks = Uplinks::new();
    let out = |port: u16| {
        let packet = udp(&format!("172.18.0.2:{port}"), "198.51.100.2:9", b"");
        uplinks.pass(0, &packet, (NET, true), (ZONES[0], false))
    };
    (1000..1010).for_each(|port| drop(out(port).unwrap()));
    let config = Config { max_mappings_of_account: 5, ..(*uplinks.nats[0].config()).clone() };
    uplinks.nats[0].set_config(config);
    assert_eq!(out(2000).unwrap_err().reason, nat::Reason::PortQuota);
    out(1000).unwrap();
    assert_eq!(uplinks.nats[0].mappings().len_of(ALICE), 10);
    assert_eq!(uplinks.nats[0].mappings().len_of(Account(99)), 0);
}
