//! What translation shows beside our own addresses: claimed where it is the segment's (RFC 5227, RFC 4862
//! §5.4), and what a changed configuration leaves alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use datapath::presence::{
    Addressing, Change, Lost, MAX_SHOWN, Origin, PresenceConfig, Settled, Standing,
};
use smoltcp::time::Duration;

use crate::craft::{BROADCAST, NOBODY, ROUTER, THEM, US, What, arp, dhcp, ip, link_local, v4};
use crate::lab::{Lab, config, given_v4};

fn range(first: &str, last: &str) -> RangeInclusive<IpAddr> {
    ip(first)..=ip(last)
}

fn shown(ranges: &[(&str, &str)]) -> PresenceConfig {
    let shown = ranges.iter().map(|(first, last)| range(first, last)).collect();
    PresenceConfig { shown, ..given_v4() }
}

/// The addresses asked for from nobody's address.
fn probed(sent: &[What]) -> BTreeSet<IpAddr> {
    let probed = sent.iter().filter_map(|what| match what {
        What::Arp { operation: 1, sender: (US, NOBODY), target } => Some(target.1.into()),
        What::NeighbourSolicitation { src: Ipv6Addr::UNSPECIFIED, target, .. } => {
            Some((*target).into())
        }
        _ => None,
    });
    probed.collect()
}

fn addrs<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
    texts.into_iter().map(ip).collect()
}

#[test]
fn rfc_5227_section_2_1_what_is_shown_is_probed_for_and_announced_and_withheld_until_it_is_ours() {
    let mut lab = Lab::new(shown(&[("192.0.2.8", "192.0.2.10")]));
    assert_eq!(lab.presence.withheld(), [range("192.0.2.8", "192.0.2.10")]);
    let mut lent = BTreeSet::new();
    let mut sent = Vec::new();
    for _ in 0..200 {
        sent.extend(lab.pass(Duration::from_millis(100)).into_iter().map(|(_, seen)| seen));
        lent.insert(lab.presence.withheld().to_vec().len());
        let whole = lab.presence.withheld() == [range("192.0.2.8", "192.0.2.10")];
        assert!(whole || lab.presence.withheld().is_empty(), "all from the same moment on");
    }
    assert_eq!(lent, BTreeSet::from([0, 1]));
    for last in 8..=10 {
        let of = |sender: Ipv4Addr| {
            let target = ([0; 6], v4(last));
            let what = What::Arp { operation: 1, sender: (US, sender), target };
            sent.iter().filter(|seen| seen.what == what && seen.dst == BROADCAST).count()
        };
        assert_eq!((of(NOBODY), of(v4(last))), (3, 2), "probes and announcements of .{last}");
    }
    // They are no addresses to speak from.
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
    assert_eq!(lab.routes(), ["192.0.2.0/24", "0.0.0.0/0 via 192.0.2.1"]);
}

#[test]
fn what_is_routed_to_us_is_asked_of_nobody() {
    let mut lab = Lab::new(shown(&[("198.51.100.0", "198.51.101.255")]));
    let sent = lab.pass_seconds(30);
    assert_eq!(probed(&sent), addrs(["192.0.2.5"]));
    assert_eq!(lab.presence.withheld(), []);
    // Of a range that is partly so the rest is claimed.
    let mut lab = Lab::new(shown(&[("192.0.2.253", "192.0.3.9")]));
    assert_eq!(lab.presence.withheld(), [range("192.0.2.253", "192.0.2.255")]);
    let sent = lab.pass_seconds(30);
    assert_eq!(probed(&sent), addrs(["192.0.2.5", "192.0.2.253", "192.0.2.254"]));
    let broadcast = range("192.0.2.255", "192.0.2.255");
    assert_eq!(lab.presence.withheld(), [broadcast], "no station has that");
}

#[test]
fn rfc_5227_section_2_1_1_an_address_another_station_has_is_withheld_alone() {
    let mut lab = Lab::new(shown(&[("192.0.2.4", "192.0.2.9")]));
    lab.pass(Duration::from_millis(1_500));
    lab.bring(&arp(2, (THEM, v4(7)), NOBODY));
    let conflict = Change::Conflict {
        address: v4(7).into(),
        station: datapath::MacAddr(THEM),
        settled: Settled::Avoided,
    };
    assert_eq!(lab.changes(), [conflict]);
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.presence.withheld(), [range("192.0.2.7", "192.0.2.7")]);
    let rows = lab.presence.rows();
    let row = rows.iter().find(|row| row.address.to_string() == "192.0.2.7/32").unwrap();
    assert_eq!((row.origin, row.standing), (Origin::Shown, Standing::Conflict));
    assert_eq!(rows.len(), 6, "our own address, which is within, is claimed once: {rows:?}");
    // It is asked for again, and had when that station is gone.
    lab.pass(Duration::from_secs(60));
    assert_eq!(lab.presence.withheld(), []);
}

#[test]
fn rfc_5227_section_2_4_c_what_is_shown_is_defended_and_kept() {
    let mut lab = Lab::new(shown(&[("192.0.2.8", "192.0.2.9")]));
    lab.pass(Duration::from_secs(20));
    lab.changes();
    let sent = lab.bring(&arp(2, (THEM, v4(8)), v4(8)));
    let target = ([0; 6], v4(8));
    let what = What::Arp { operation: 1, sender: (US, v4(8)), target };
    assert_eq!(sent.into_iter().map(|seen| seen.what).collect::<Vec<_>>(), [what]);
    assert_eq!(lab.presence.withheld(), []);
    lab.changes();
    assert_eq!(lab.bring(&arp(2, (THEM, v4(8)), v4(8))), []);
    assert_eq!((lab.changes(), lab.presence.withheld()), (vec![], &[][..]));
}

#[test]
fn no_more_are_claimed_than_the_bound_and_the_rest_is_withheld() {
    let wide = |shown| PresenceConfig {
        v4: Addressing::Static { addresses: vec!["10.0.0.5/16".parse().unwrap()], gateway: None },
        v6: Addressing::Static {
            addresses: vec!["2001:db8::5/64".parse().unwrap()],
            gateway: None,
        },
        shown,
        ..config()
    };
    let everything = vec![
        range("0.0.0.0", "255.255.255.255"),
        range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ];
    let mut lab = Lab::new(wide(everything));
    let sent = lab.pass_seconds(30);
    let own = addrs(["10.0.0.5", "2001:db8::5"]).into_iter().chain([link_local(US).into()]);
    let asked: Vec<_> = probed(&sent).into_iter().collect();
    let own: Vec<_> = own.collect();
    let asked: Vec<_> = asked.into_iter().filter(|addr| !own.contains(addr)).collect();
    assert_eq!(asked.len(), MAX_SHOWN);
    let near = [range("10.0.1.2", "10.0.255.255")];
    assert_eq!(lab.presence.withheld()[1..2], near, "{:?}", lab.presence.withheld());
    // And every group of theirs fits in a frame (RFC 3810 §5.2.15).
    let shown = vec![range("2001:db8::100", "2001:db8::1ff")];
    let mut lab = Lab::new(wide(shown));
    let sent = lab.pass_seconds(30);
    let mut reported = BTreeSet::new();
    for what in &sent {
        if let What::Listening { groups, .. } = what {
            assert!(8 + 20 * groups.len() <= 1280 - 48, "{} groups", groups.len());
            reported.extend(groups.iter().map(|(_, group)| *group));
        }
    }
    assert_eq!(reported.len(), 256 + 2, "and those of our own two");
    assert_eq!(lab.presence.withheld(), []);
}

#[test]
fn a_leased_subnet_decides_what_is_claimed() {
    let shown = vec![range("192.0.2.8", "192.0.2.9"), range("2001:db8::8", "2001:db8::8")];
    let mut lab = Lab::new(PresenceConfig { v4: Addressing::Auto, shown, ..config() });
    let whole = [range("192.0.2.8", "192.0.2.9"), range("2001:db8::8", "2001:db8::8")];
    assert_eq!(lab.presence.withheld(), whole, "whose it is cannot be told yet");
    let grant: [(u8, &[u8]); 3] =
        [(54, &[192, 0, 2, 1]), (51, &[0, 0, 0x0e, 0x10]), (1, &[255, 255, 255, 0])];
    let mut asked = BTreeSet::new();
    for _ in 0..30 {
        let sent = lab.pass_seconds(1);
        asked.extend(probed(&sent));
        for what in sent {
            if let What::Dhcp { message, .. } = what {
                let answer = if message.kind() == 1 { 2 } else { 5 };
                lab.bring(&dhcp(ROUTER, answer, message.xid, v4(5), &grant));
            }
        }
    }
    assert_eq!(asked, addrs(["192.0.2.5", "192.0.2.8", "192.0.2.9"]));
    assert_eq!(lab.presence.withheld(), &whole[1..], "of IPv6 there is nothing");
}

#[test]
fn a_changed_configuration_leaves_alone_what_is_the_same() {
    let mut lab = Lab::new(shown(&[("192.0.2.8", "192.0.2.9")]));
    lab.pass(Duration::from_secs(20));
    lab.changes();
    // Nothing is asked because of something else.
    lab.presence.configure(shown(&[("192.0.2.8", "192.0.2.9")]), lab.now);
    assert_eq!((lab.pass_seconds(60), lab.changes()), (vec![], vec![]));
    // A longer range: what is new of it.
    lab.presence.configure(shown(&[("192.0.2.8", "192.0.2.10")]), lab.now);
    assert_eq!(lab.presence.withheld(), [range("192.0.2.10", "192.0.2.10")]);
    let sent = lab.pass_seconds(20);
    assert_eq!(probed(&sent), addrs(["192.0.2.10"]));
    assert_eq!(sent.len(), 5, "{sent:?}");
    // Another address beside the first, and another router: the first one stays.
    let addresses = vec!["192.0.2.5/24".parse().unwrap(), "192.0.2.6/24".parse().unwrap()];
    let v4 = Addressing::Static { addresses, gateway: Some(ip("192.0.2.2")) };
    lab.changes();
    lab.presence.configure(PresenceConfig { v4, ..config() }, lab.now);
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
    assert_eq!(lab.routes(), ["192.0.2.0/24", "0.0.0.0/0 via 192.0.2.2"]);
    let lost = lab.changes().into_iter().filter(|change| matches!(change, Change::Lost { .. }));
    assert_eq!(lost.count(), 3, "what is not shown any more");
    assert_eq!(probed(&lab.pass_seconds(20)), addrs(["192.0.2.6"]));
    assert_eq!(lab.addresses(), ["192.0.2.5/24", "192.0.2.6/24"]);
    // None at all.
    lab.presence.configure(config(), lab.now);
    assert_eq!(lab.addresses(), [""; 0]);
    let address = "192.0.2.5/24".parse().unwrap();
    let lost = Change::Lost { address, origin: Origin::Static, why: Lost::Withdrawn };
    assert!(lab.changes().contains(&lost));
}

#[test]
fn rfc_2131_section_4_4_6_a_lease_is_given_back_when_an_address_is_given_instead() {
    const RELEASE: u8 = 7;
    let grant: [(u8, &[u8]); 3] =
        [(54, &[192, 0, 2, 1]), (51, &[0, 0, 0x0e, 0x10]), (1, &[255, 255, 255, 0])];
    let mut lab = Lab::new(PresenceConfig { v4: Addressing::Auto, ..config() });
    for _ in 0..30 {
        for what in lab.pass_seconds(1) {
            if let What::Dhcp { message, .. } = what {
                let answer = if message.kind() == 1 { 2 } else { 5 };
                lab.bring(&dhcp(ROUTER, answer, message.xid, v4(77), &grant));
            }
        }
    }
    assert_eq!(lab.addresses(), ["192.0.2.77/24"]);
    lab.presence.configure(given_v4(), lab.now);
    assert_eq!(lab.addresses(), [""; 0]);
    let sent = lab.pass_seconds(20);
    let kinds = sent.iter().filter_map(|what| match what {
        What::Dhcp { message, .. } => Some((message.kind(), message.ciaddr)),
        _ => None,
    });
    assert_eq!(kinds.collect::<Vec<_>>(), [(RELEASE, v4(77))]);
    assert_eq!(lab.addresses(), ["192.0.2.5/24"]);
    assert!(lab.presence.lease().is_none());
}

#[test]
fn a_link_that_is_down_stays_silent_whatever_is_configured() {
    let mut lab = Lab::new(given_v4());
    lab.pass(Duration::from_secs(20));
    lab.presence.link_down();
    lab.presence.configure(shown(&[("192.0.2.8", "192.0.2.9")]), lab.now);
    assert_eq!(lab.pass_seconds(60), []);
    lab.presence.link_up(lab.now);
    assert_eq!(probed(&lab.pass_seconds(20)), addrs(["192.0.2.5", "192.0.2.8", "192.0.2.9"]));
    assert_eq!(lab.presence.withheld(), []);
}
