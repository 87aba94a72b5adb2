//! RFC 4862 §5.4: IPv6 duplicate address detection, and what belongs to it.

use std::net::Ipv6Addr;

use datapath::presence::{Addressing, Change, Heard, Origin, PresenceConfig, Settled, Standing};
use smoltcp::time::Duration;

use crate::craft::{
    THEM, US, What, advertisement, all_nodes, ip, link_local, query, solicitation, solicited_node,
};
use crate::lab::{Lab, config};

const OVERRIDE: u8 = 0x20;

fn addr() -> Ipv6Addr {
    "2001:db8::5".parse().unwrap()
}

/// 2001:db8::5/64 and its router, given.
fn given_v6() -> PresenceConfig {
    let addresses = vec!["2001:db8::5/64".parse().unwrap()];
    let gateway = Some(ip("fe80::1"));
    PresenceConfig { v6: Addressing::Static { addresses, gateway }, ..config() }
}

fn probe(target: Ipv6Addr) -> What {
    let (src, dst) = (Ipv6Addr::UNSPECIFIED, solicited_node(target));
    What::NeighbourSolicitation { src, dst, target, lladdr: None }
}

fn announcement(target: Ipv6Addr) -> What {
    let (src, dst, lladdr) = (target, all_nodes(), Some(US));
    What::NeighbourAdvertisement { src, dst, target, flags: OVERRIDE, lladdr }
}

fn settled() -> Lab {
    let mut lab = Lab::new(given_v6());
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.addresses(), ["2001:db8::5/64"]);
    lab.changes();
    lab
}

fn standing(lab: &Lab, origin: Origin) -> Standing {
    let rows = lab.presence.rows();
    rows.iter().find(|row| row.origin == origin).expect("a row").standing
}

#[test]
fn section_5_4_2_one_probe_from_nobody_to_the_solicited_node_group_and_a_second_of_silence() {
    let mut lab = Lab::new(given_v6());
    let sent = lab.pass(Duration::from_secs(20));
    for target in [addr(), link_local(US)] {
        let at = |what: What| {
            let found = sent.iter().filter(|(_, seen)| seen.what == what);
            found.map(|(at, _)| *at).collect::<Vec<_>>()
        };
        let (probed, announced) = (at(probe(target)), at(announcement(target)));
        assert_eq!((probed.len(), announced.len()), (1, 2));
        assert_eq!(announced[0] - probed[0], Duration::from_secs(1), "RetransTimer");
        assert!(announced[1] - announced[0] >= Duration::from_secs(1), "RFC 4861 §7.2.6");
    }
    assert_eq!(lab.addresses(), ["2001:db8::5/64"]);
    assert_eq!(lab.routes(), ["2001:db8::/64", "::/0 via fe80::1"]);
    assert_eq!(standing(&lab, Origin::LinkLocal), Standing::InUse);
}

#[test]
fn section_5_4_2_the_groups_are_joined_before_the_first_probe() {
    let mut lab = Lab::new(given_v6());
    let sent: Vec<_> =
        lab.pass(Duration::from_secs(20)).into_iter().map(|(_, seen)| seen.what).collect();
    let mut groups = vec![(4, solicited_node(addr())), (4, solicited_node(link_local(US)))];
    groups.sort_by_key(|(_, group)| *group);
    let dst = "ff02::16".parse().unwrap();
    // RFC 3590 §4: from nobody, as long as there is no link-local address.
    let report = What::Listening { src: Ipv6Addr::UNSPECIFIED, dst, groups };
    assert_eq!(sent[0], report);
    let reports = sent.iter().filter(|what| matches!(what, What::Listening { .. }));
    assert_eq!(reports.count(), 2, "RFC 3810 §9.1: repeated once");
}

#[test]
fn section_5_4_3_whoever_probes_at_the_same_time_keeps_us_off() {
    let mut lab = Lab::new(given_v6());
    assert_eq!(lab.bring(&solicitation(THEM, None, addr())), []);
    assert_eq!(standing(&lab, Origin::Static), Standing::Conflict);
    assert_eq!(standing(&lab, Origin::LinkLocal), Standing::Tentative, "which is another address");
    let settled = Settled::Avoided;
    let station = datapath::MacAddr(THEM);
    assert_eq!(lab.changes(), [Change::Conflict { address: addr().into(), station, settled }]);
}

#[test]
fn section_5_4_3_a_question_for_a_tentative_address_is_ignored() {
    let mut lab = Lab::new(given_v6());
    let frame = solicitation(THEM, Some(link_local(THEM)), addr());
    assert_eq!(lab.bring_for(&frame), (Heard::Pass, vec![]));
    assert_eq!(standing(&lab, Origin::Static), Standing::Tentative);
}

#[test]
fn section_5_4_4_an_advertisement_of_a_tentative_address_is_a_conflict() {
    let mut lab = Lab::new(given_v6());
    lab.pass(Duration::from_millis(1_000));
    lab.bring(&advertisement(THEM, addr()));
    assert_eq!(standing(&lab, Origin::Static), Standing::Conflict);
    lab.pass(Duration::from_secs(50));
    assert_eq!(lab.addresses(), [""; 0]);
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.addresses(), ["2001:db8::5/64"], "asked for again after a minute");
}

#[test]
fn section_5_4_3_what_looks_like_ours_but_is_forged_is_nothing() {
    let mut lab = Lab::new(given_v6());
    // RFC 4861 §7.1.1: hop limit 255.
    let mut frame = advertisement(THEM, addr());
    frame[14 + 7] = 254;
    lab.bring(&frame);
    // A wrong checksum.
    let mut frame = advertisement(THEM, addr());
    frame[14 + 42] ^= 1;
    lab.bring(&frame);
    // Our own frame, come back.
    lab.bring(&solicitation(US, None, addr()));
    assert_eq!(standing(&lab, Origin::Static), Standing::Tentative);
}

#[test]
fn an_address_in_use_is_defended_but_not_more_often_than_every_ten_seconds() {
    let mut lab = settled();
    let claim = advertisement(THEM, addr());
    assert_eq!(lab.bring(&claim)[0].what, announcement(addr()));
    assert_eq!(lab.bring(&claim), []);
    lab.pass(Duration::from_secs(10));
    assert_eq!(lab.bring(&claim)[0].what, announcement(addr()));
    assert_eq!(lab.addresses(), ["2001:db8::5/64"]);
    let station = datapath::MacAddr(THEM);
    let conflict = Change::Conflict { address: addr().into(), station, settled: Settled::Defended };
    assert_eq!(lab.changes(), [conflict, conflict]);
}

#[test]
fn rfc_3810_section_6_2_a_query_is_answered_within_its_time() {
    let mut lab = settled();
    assert_eq!(lab.bring_for(&query(true, 5_000)), (Heard::Pass, vec![]));
    let sent = lab.pass_seconds(5);
    let [What::Listening { src, dst, groups }] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((*src, *dst), (link_local(US), "ff02::16".parse().unwrap()));
    assert_eq!(groups.len(), 2);
    assert!(groups.iter().all(|(kind, _)| *kind == 2), "MODE_IS_EXCLUDE");
    // RFC 2710 §3: each group by itself, and to itself.
    lab.bring(&query(false, 3_000));
    let sent = lab.pass_seconds(3);
    let own = [solicited_node(addr()), solicited_node(link_local(US))];
    let mut seen = Vec::new();
    for what in &sent {
        let What::Listening { dst, groups, .. } = what else { panic!("{sent:?}") };
        assert_eq!(groups[..], [(0, *dst)]);
        seen.push(*dst);
    }
    assert_eq!(seen.len(), 2);
    assert!(own.iter().all(|group| seen.contains(group)));
}

#[test]
fn many_queries_are_answered_once_a_second() {
    for v2 in [true, false] {
        let mut lab = settled();
        let mut sent = 0;
        for _ in 0..100 {
            lab.bring(&query(v2, 0));
            sent += lab.pass(Duration::from_millis(100)).len();
        }
        let frames = if v2 { 1 } else { 2 };
        assert!((9 * frames..=11 * frames).contains(&sent), "{sent} frames in ten seconds");
    }
}

#[test]
fn rfc_3810_section_5_1_14_a_query_from_no_link_local_address_is_none() {
    let mut lab = settled();
    let mut frame = query(true, 1_000);
    // An octet up and one down leave the checksum as it was.
    frame[14 + 8] = 0x20;
    frame[14 + 10] = frame[14 + 10].wrapping_add(0xde);
    lab.bring(&frame);
    assert_eq!(lab.pass_seconds(5), []);
}
