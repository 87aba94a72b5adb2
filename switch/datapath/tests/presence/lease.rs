//! RFC 2131: the DHCP client.

use std::net::Ipv4Addr;

use datapath::presence::{Addressing, Change, Heard, Lost, Origin, PresenceConfig, Settled};
use datapath::{DropReason, IpMtu};
use smoltcp::time::{Duration, Instant};

use crate::craft::{
    BROADCAST, Message, NOBODY, ROUTER, THEM, US, What, arp, dhcp, dhcp_with, ip, v4,
};
use crate::lab::{Lab, config};

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;

const SERVER: (u8, &[u8]) = (54, &[192, 0, 2, 1]);
const HOUR: (u8, &[u8]) = (51, &[0, 0, 0x0e, 0x10]);
/// A lease of an hour in 192.0.2.0/24 with router and two name servers.
const GRANT: [(u8, &[u8]); 5] = [
    SERVER,
    HOUR,
    (1, &[255, 255, 255, 0]),
    (3, &[192, 0, 2, 1, 192, 0, 2, 2]),
    (6, &[192, 0, 2, 53, 198, 51, 100, 53]),
];

fn auto() -> PresenceConfig {
    PresenceConfig { v4: Addressing::Auto, ..config() }
}

/// The DHCP messages among what was sent, with when, from and to.
fn messages(
    sent: Vec<(Instant, crate::craft::Seen)>,
) -> Vec<(Instant, Ipv4Addr, Ipv4Addr, Message)> {
    sent.into_iter()
        .filter_map(|(at, seen)| match seen.what {
            What::Dhcp { src, dst, message } => {
                assert_eq!(seen.dst, if dst.is_broadcast() { BROADCAST } else { ROUTER });
                Some((at, src, dst, message))
            }
            _ => None,
        })
        .collect()
}

/// The one message sent within `seconds`.
#[track_caller]
fn one(lab: &mut Lab, seconds: u64) -> Message {
    let mut sent = messages(lab.pass(Duration::from_secs(seconds)));
    assert_eq!(sent.len(), 1, "{sent:?}");
    sent.remove(0).3
}

/// A lab whose client has sent its first DISCOVER.
fn selecting() -> (Lab, Message) {
    let mut lab = Lab::new(auto());
    let discover = one(&mut lab, 2);
    (lab, discover)
}

/// A lab that has 192.0.2.5 by `options`, and when the ACK came.
fn bound_by(options: &[(u8, &[u8])]) -> (Lab, Instant) {
    let (mut lab, discover) = selecting();
    lab.bring(&dhcp(ROUTER, OFFER, discover.xid, v4(5), options));
    let request = one(&mut lab, 1);
    lab.bring(&dhcp(ROUTER, ACK, request.xid, v4(5), options));
    let at = lab.now;
    lab.pass(Duration::from_secs(20));
    assert_eq!((lab.state(), lab.addresses().len()), ("BOUND", 1));
    lab.changes();
    (lab, at)
}

fn bound() -> (Lab, Instant) {
    bound_by(&GRANT)
}

#[test]
fn section_4_4_1_a_discover_says_who_asks_and_for_what() {
    let (lab, discover) = selecting();
    assert_eq!((discover.kind(), discover.ciaddr, lab.state()), (DISCOVER, NOBODY, "SELECTING"));
    // Client identifier (RFC 2132 §9.14): hardware type and address.
    assert_eq!(discover.option(61), Some(&[&[1][..], &US].concat()[..]));
    assert_eq!(discover.option(12), Some(&b"pontoon"[..]));
    let wanted = discover.option(55).unwrap();
    assert!([1, 3, 6, 26, 51, 58, 59, 121].iter().all(|kind| wanted.contains(kind)));
    let place = |kind| wanted.iter().position(|known| *known == kind);
    assert!(place(121) < place(3), "RFC 3442: classless routes before routers");
}

#[test]
fn section_4_1_retransmission_backs_off_from_four_seconds_to_sixty_four_with_jitter() {
    let mut lab = Lab::new(auto());
    let sent = messages(lab.pass(Duration::from_secs(600)));
    let at: Vec<_> = sent.iter().map(|(at, ..)| *at).collect();
    let gaps: Vec<_> = at.windows(2).map(|two| (two[1] - two[0]).total_millis()).collect();
    for (gap, expected) in gaps.iter().zip([4, 8, 16, 32, 64, 64, 64, 64]) {
        assert!(gap.abs_diff(expected * 1000) <= 1000, "{gaps:?}");
    }
    assert!(gaps.iter().any(|gap| gap % 1000 != 0), "{gaps:?}");
    assert!(sent.iter().all(|(_, src, dst, _)| (*src, *dst) == (NOBODY, Ipv4Addr::BROADCAST)));
    // §2, `secs`: since the client began.
    let (first, last) = (&sent[0], &sent[sent.len() - 1]);
    assert_eq!(first.3.secs, 0);
    assert_eq!(u64::from(last.3.secs), (last.0 - first.0).secs());
    assert!(sent.iter().all(|(.., message)| message.xid == first.3.xid));
}

#[test]
fn section_3_1_an_offer_is_requested_of_its_server_and_used_once_acknowledged_and_probed() {
    let (mut lab, discover) = selecting();
    let heard = lab.bring_for(&dhcp(ROUTER, OFFER, discover.xid, v4(5), &GRANT));
    assert_eq!(heard, (Heard::Consumed, vec![]));
    let request = one(&mut lab, 1);
    assert_eq!((request.kind(), request.xid, request.ciaddr), (REQUEST, discover.xid, NOBODY));
    assert_eq!((request.address(50), request.address(54)), (Some(v4(5)), Some(v4(1))));
    assert_eq!(lab.state(), "REQUESTING");
    let heard = lab.bring_for(&dhcp(ROUTER, ACK, request.xid, v4(5), &GRANT));
    assert_eq!(heard, (Heard::Consumed, vec![]));
    // §2.2 and RFC 5227 §2.1: not before it was probed for.
    assert_eq!((lab.state(), lab.addresses(), lab.routes()), ("BOUND", vec![], vec![]));
    let probes = lab.pass_seconds(20);
    let probe = What::Arp { operation: 1, sender: (US, NOBODY), target: ([0; 6], v4(5)) };
    assert_eq!(probes.iter().filter(|what| **what == probe).count(), 3);
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
    assert_eq!(
        lab.routes(),
        ["192.0.2.0/24", "0.0.0.0/0 via 192.0.2.1", "0.0.0.0/0 via 192.0.2.2"]
    );
    assert_eq!(lab.next_hop("203.0.113.1"), Some(ip("192.0.2.1")), "the first is the better");
    assert_eq!(lab.next_hop("192.0.2.77"), Some(ip("192.0.2.77")));
    assert_eq!(lab.presence.dns(), [ip("192.0.2.53"), ip("198.51.100.53")]);
    let address = "192.0.2.5/24".parse().unwrap();
    assert_eq!(
        lab.changes(),
        [Change::Gained { address, origin: Origin::Dhcp }, Change::Routes, Change::Dns]
    );
}

#[test]
fn section_4_4_5_t1_renews_with_the_server_t2_with_anybody_and_the_end_is_the_end() {
    let (mut lab, at) = bound();
    let sent = messages(lab.pass(Duration::from_secs(3600 - 21)));
    let since = |now: Instant| (now - at).secs();
    let renewing: Vec<_> = sent.iter().filter(|(_, _, dst, _)| !dst.is_broadcast()).collect();
    let rebinding: Vec<_> = sent.iter().filter(|(_, _, dst, _)| dst.is_broadcast()).collect();
    // T1 is half, but for a little chance; T2 seven eighths.
    assert!((1743..=1800).contains(&since(renewing[0].0)), "{}", since(renewing[0].0));
    assert!((3150..3152).contains(&since(rebinding[0].0)), "{}", since(rebinding[0].0));
    for (_, src, _, message) in &sent {
        assert_eq!((*src, message.ciaddr, message.kind()), (v4(5), v4(5), REQUEST));
        assert_eq!((message.address(50), message.address(54)), (None, None), "table 5");
    }
    assert!(renewing.iter().all(|(_, _, dst, _)| *dst == v4(1)));
    // Half of what is left each time, and no oftener than once a minute.
    for list in [&renewing, &rebinding] {
        let gaps: Vec<_> = list.windows(2).map(|two| (two[1].0 - two[0].0).secs()).collect();
        assert!(gaps.iter().all(|gap| *gap >= 59), "{gaps:?}");
        assert!(gaps.len() >= 2 && gaps.is_sorted_by(|a, b| a >= b), "{gaps:?}");
    }
    assert_eq!(lab.addresses(), ["192.0.2.5/24"], "to the last second");
    let after = messages(lab.pass(Duration::from_secs(3)));
    assert_eq!((lab.addresses(), lab.routes(), lab.presence.dns().len()), (vec![], vec![], 0));
    let address = "192.0.2.5/24".parse().unwrap();
    let lost = Change::Lost { address, origin: Origin::Dhcp, why: Lost::Expired };
    assert_eq!(lab.changes(), [lost, Change::Routes, Change::Dns]);
    let [(.., discover)] = &after[..] else { panic!("{after:?}") };
    assert_eq!((discover.kind(), discover.address(50)), (DISCOVER, Some(v4(5))), "§4.4.1");
}

#[test]
fn section_4_4_5_a_renewed_lease_goes_on_without_being_probed_for_again() {
    let (mut lab, _) = bound();
    let mut sent = messages(lab.pass(Duration::from_secs(1_790)));
    let (.., request) = sent.pop().expect("T1 is over");
    assert_eq!(lab.state(), "RENEWING");
    lab.bring(&dhcp(ROUTER, ACK, request.xid, v4(5), &GRANT));
    assert_eq!(lab.state(), "BOUND");
    assert_eq!(lab.pass(Duration::from_secs(1_700)), []);
    assert_eq!((lab.addresses(), lab.changes()), (vec!["192.0.2.5/24".to_owned()], vec![]));
}

#[test]
fn section_4_4_5_the_servers_own_t1_and_t2_hold_if_they_are_in_order() {
    let times = |t1: u8, t2: u8| {
        let options: [(u8, &[u8]); 5] =
            [SERVER, HOUR, GRANT[2], (58, &[0, 0, 0, t1]), (59, &[0, 0, 0, t2])];
        let (lab, at) = bound_by(&options);
        lab.presence.lease().unwrap().times.unwrap().map(|time| (time - at).secs())
    };
    let [t1, t2, end] = times(100, 200);
    assert!((96..=100).contains(&t1) && (t2, end) == (200, 3600), "{t1} {t2} {end}");
    let [t1, t2, _] = times(200, 100);
    assert!((1743..=1800).contains(&t1) && t2 == 3150, "{t1} {t2}");
}

#[test]
fn section_3_3_a_lease_for_ever_is_never_renewed() {
    let (mut lab, _) = bound_by(&[SERVER, (51, &[255; 4]), GRANT[2]]);
    assert_eq!(lab.pass(Duration::from_secs(86_400 * 365)), []);
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
}

#[test]
fn section_3_1_4_a_nak_begins_anew_but_not_at_a_raging_pace() {
    let (mut lab, _) = bound();
    lab.presence.link_down();
    lab.presence.link_up(lab.now);
    let request = messages(lab.pass(Duration::from_secs(1))).remove(0).3;
    lab.bring(&dhcp(ROUTER, NAK, request.xid, NOBODY, &[SERVER]));
    assert_eq!(lab.addresses(), [""; 0], "not one packet more from it");
    let address = "192.0.2.5/24".parse().unwrap();
    let lost = Change::Lost { address, origin: Origin::Dhcp, why: Lost::Refused };
    assert_eq!(lab.changes(), [lost, Change::Routes, Change::Dns]);
    // A server that offers what it then refuses.
    let end = lab.now + Duration::from_secs(600);
    let mut naks = 0;
    while lab.now < end {
        for (.., message) in messages(lab.pass(Duration::from_millis(100))) {
            let answer = if message.kind() == DISCOVER { OFFER } else { NAK };
            naks += usize::from(answer == NAK);
            lab.bring(&dhcp(ROUTER, answer, message.xid, v4(5), &GRANT));
        }
    }
    assert!((9..40).contains(&naks), "{naks} in ten minutes");
}

#[test]
fn rfc_5227_section_2_4_b_a_leased_address_claimed_twice_within_ten_seconds_is_given_back() {
    let (mut lab, _) = bound();
    lab.bring(&arp(2, (THEM, v4(5)), v4(5)));
    lab.changes();
    lab.pass(Duration::from_millis(9_900));
    let sent = lab.bring(&arp(2, (THEM, v4(5)), v4(5)));
    let [What::Dhcp { message, .. }] = &sent.iter().map(|s| s.what.clone()).collect::<Vec<_>>()[..]
    else {
        panic!("{sent:?}")
    };
    assert_eq!((message.kind(), message.address(50)), (DECLINE, Some(v4(5))));
    let station = datapath::MacAddr(THEM);
    let conflict =
        Change::Conflict { address: ip("192.0.2.5"), station, settled: Settled::GivenUp };
    assert!(lab.changes().contains(&conflict));
    assert_eq!((lab.addresses(), lab.next_hop("198.51.100.1")), (vec![], None));
}

#[test]
fn section_3_1_5_a_taken_address_is_declined_and_another_asked_for_after_ten_seconds() {
    let (mut lab, discover) = selecting();
    lab.bring(&dhcp(ROUTER, OFFER, discover.xid, v4(5), &GRANT));
    let request = one(&mut lab, 1);
    lab.bring(&dhcp(ROUTER, ACK, request.xid, v4(5), &GRANT));
    lab.pass(Duration::from_millis(1_500));
    let sent = lab.bring(&arp(2, (THEM, v4(5)), NOBODY));
    let [What::Dhcp { src, dst, message }] =
        &sent.iter().map(|s| s.what.clone()).collect::<Vec<_>>()[..]
    else {
        panic!("{sent:?}")
    };
    // Table 5: requested address and server, broadcast, no address of our own.
    assert_eq!((*src, *dst, message.kind()), (NOBODY, Ipv4Addr::BROADCAST, DECLINE));
    assert_eq!((message.address(50), message.address(54)), (Some(v4(5)), Some(v4(1))));
    assert_eq!(message.ciaddr, NOBODY);
    let station = datapath::MacAddr(THEM);
    let conflict =
        Change::Conflict { address: ip("192.0.2.5"), station, settled: Settled::Avoided };
    assert_eq!(lab.changes(), [conflict]);
    assert_eq!(lab.pass(Duration::from_millis(9_900)), []);
    let discover = one(&mut lab, 2);
    assert_eq!(discover.kind(), DISCOVER);
    // The next one is free.
    lab.bring(&dhcp(ROUTER, OFFER, discover.xid, v4(6), &GRANT));
    let request = one(&mut lab, 1);
    lab.bring(&dhcp(ROUTER, ACK, request.xid, v4(6), &GRANT));
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.addresses(), ["192.0.2.6/24"]);
}

#[test]
fn section_3_2_after_the_link_was_away_the_same_address_is_asked_for_and_used_meanwhile() {
    let (mut lab, _) = bound();
    lab.presence.link_down();
    assert_eq!(lab.pass(Duration::from_secs(30)), []);
    lab.presence.link_up(lab.now);
    assert_eq!(lab.state(), "REBOOTING");
    let (_, src, dst, request) = messages(lab.pass(Duration::from_secs(1))).remove(0);
    // Table 5, INIT-REBOOT: requested address, no server, no address of our own.
    assert_eq!((src, dst, request.kind()), (NOBODY, Ipv4Addr::BROADCAST, REQUEST));
    assert_eq!((request.ciaddr, request.address(50)), (NOBODY, Some(v4(5))));
    assert_eq!(request.address(54), None);
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
    lab.bring(&dhcp(ROUTER, ACK, request.xid, v4(5), &GRANT));
    assert_eq!((lab.state(), lab.addresses().len()), ("BOUND", 1));
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.changes(), []);
}

#[test]
fn section_3_2_4_if_nobody_answers_the_lease_lasts_as_long_as_it_does() {
    let (mut lab, _) = bound();
    lab.presence.link_down();
    lab.presence.link_up(lab.now);
    lab.pass(Duration::from_secs(120));
    assert_eq!((lab.state(), lab.addresses().len()), ("BOUND", 1));
    // Gone while the link was away.
    lab.presence.link_down();
    lab.pass(Duration::from_secs(4_000));
    assert_eq!(lab.addresses(), [""; 0]);
    lab.presence.link_up(lab.now);
    assert_eq!(one(&mut lab, 2).kind(), DISCOVER);
}

#[test]
fn section_4_4_6_a_release_tells_the_server_once() {
    let (mut lab, _) = bound();
    let sent = lab.leave();
    let [What::Dhcp { src, dst, message }] =
        &sent.iter().map(|s| s.what.clone()).collect::<Vec<_>>()[..]
    else {
        panic!("{sent:?}")
    };
    assert_eq!((*src, *dst, message.kind(), message.ciaddr), (v4(5), v4(1), RELEASE, v4(5)));
    assert_eq!((message.address(50), message.address(54)), (None, Some(v4(1))));
    assert_eq!(sent[0].dst, ROUTER);
    assert_eq!(lab.leave(), []);
}

#[test]
fn rfc_3442_classless_routes_replace_the_routers() {
    let routes = [
        24, 198, 51, 100, 192, 0, 2, 9, // 198.51.100.0/24 via 192.0.2.9
        0, 192, 0, 2, 254, // default via 192.0.2.254
        32, 203, 0, 113, 7, 0, 0, 0, 0, // 203.0.113.7 on the segment
        33, 1, 2, 3, // and nonsense
    ];
    let options: Vec<_> = GRANT.into_iter().chain([(121, &routes[..])]).collect();
    let (lab, _) = bound_by(&options);
    assert_eq!(
        lab.routes(),
        [
            "192.0.2.0/24",
            "198.51.100.0/24 via 192.0.2.9",
            "0.0.0.0/0 via 192.0.2.254",
            "203.0.113.7/32"
        ]
    );
    assert_eq!(lab.next_hop("198.51.100.77"), Some(ip("192.0.2.9")));
    assert_eq!(lab.next_hop("203.0.113.7"), Some(ip("203.0.113.7")));
    assert_eq!(lab.next_hop("203.0.113.8"), Some(ip("192.0.2.254")));
}

#[test]
fn rfc_3396_an_option_in_pieces_is_one_option() {
    let options: Vec<_> =
        GRANT.into_iter().chain([(121, &[24, 198, 51][..]), (121, &[100, 192, 0, 2, 9])]).collect();
    let (lab, _) = bound_by(&options);
    assert_eq!(lab.routes(), ["192.0.2.0/24", "198.51.100.0/24 via 192.0.2.9"]);
}

#[test]
fn rfc_2132_section_9_3_options_go_on_where_the_overload_option_says() {
    let (mut lab, discover) = selecting();
    // Overloaded: the lease time is in `file`, the mask in `sname`.
    let tail = |kind| {
        [&[0x63, 0x82, 0x53, 0x63, 53, 1, kind][..], &[54, 4, 192, 0, 2, 1, 52, 1, 3, 255]].concat()
    };
    let overloaded = |kind, xid| {
        let mut frame = dhcp_with(ROUTER, xid, v4(5), US, &tail(kind));
        let message = 14 + 28;
        frame[message + 108..][..7].copy_from_slice(&[51, 4, 0, 0, 0x0e, 0x10, 255]);
        frame[message + 44..][..7].copy_from_slice(&[1, 4, 255, 255, 0, 0, 255]);
        frame[14 + 26..][..2].fill(0); // UDP without a checksum.
        frame
    };
    lab.bring(&overloaded(OFFER, discover.xid));
    let request = one(&mut lab, 1);
    lab.bring(&overloaded(ACK, request.xid));
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.addresses(), ["192.0.2.5/16"]);
}

#[test]
fn rfc_2132_section_5_1_an_mtu_is_believed_between_what_every_host_takes_and_the_interfaces() {
    for (said, believed) in [(1400, 1400), (9000, 1500), (500, 1500), (576, 576)] {
        let mtu = u16::to_be_bytes(said);
        let options: Vec<_> = GRANT.into_iter().chain([(26, &mtu[..])]).collect();
        let (lab, _) = bound_by(&options);
        assert_eq!(lab.presence.mtu(), IpMtu(believed));
    }
}

#[test]
fn section_4_4_1_what_was_not_asked_for_is_not_believed() {
    let (mut lab, discover) = selecting();
    let wrong_xid = dhcp(ROUTER, OFFER, discover.xid ^ 1, v4(5), &GRANT);
    let early_ack = dhcp(ROUTER, ACK, discover.xid, v4(5), &GRANT);
    let other_client =
        dhcp_with(ROUTER, discover.xid, v4(5), THEM, &[0x63, 0x82, 0x53, 0x63, 53, 1, 2]);
    for frame in [wrong_xid, early_ack, other_client] {
        assert_eq!(lab.bring_for(&frame), (Heard::Consumed, vec![]));
        assert_eq!(lab.state(), "SELECTING");
    }
    let no_server = dhcp(ROUTER, OFFER, discover.xid, v4(5), &GRANT[1..]);
    let multicast = dhcp(ROUTER, OFFER, discover.xid, Ipv4Addr::new(224, 0, 0, 5), &GRANT);
    let no_cookie = dhcp_with(ROUTER, discover.xid, v4(5), US, &[0, 0, 0, 0, 53, 1, 2]);
    for frame in [no_server, multicast, no_cookie] {
        assert_eq!(lab.bring_for(&frame), (Heard::Drop(DropReason::Malformed), vec![]));
        assert_eq!(lab.state(), "SELECTING");
    }
    lab.bring(&dhcp(ROUTER, OFFER, discover.xid, v4(5), &GRANT));
    let request = one(&mut lab, 1);
    // Another server's NAK, another address's ACK, one that never ends and one that has ended.
    let other: &[(u8, &[u8])] = &[(54, &[192, 0, 2, 66])];
    lab.bring(&dhcp(THEM, NAK, request.xid, NOBODY, other));
    lab.bring(&dhcp(ROUTER, ACK, request.xid, v4(66), &GRANT));
    lab.bring(&dhcp(ROUTER, ACK, request.xid, v4(5), &[SERVER]));
    lab.bring(&dhcp(ROUTER, ACK, request.xid, v4(5), &[SERVER, (51, &[0; 4])]));
    assert_eq!(lab.state(), "REQUESTING");
}
