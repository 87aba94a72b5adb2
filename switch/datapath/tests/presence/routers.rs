//! RFC 4861 §6.3, RFC 4862 §5.5, RFC 4191, RFC 7559, RFC 8106: what routers say.

use std::net::Ipv6Addr;

use datapath::neighbour::Reachability;
use datapath::presence::{Addressing, Change, Heard, Lost, Origin, PresenceConfig, Standing};
use datapath::{DropReason, IpMtu};
use smoltcp::time::{Duration, Instant};

use crate::craft::{Icmp, Mac, ROUTER, THEM, US, What, all_nodes, formed, ip, link_local};
use crate::lab::{Lab, config};

const FOREVER: u32 = u32::MAX;
const L: u8 = 0x80;
const A: u8 = 0x40;
const HIGH: u8 = 0x08;
const LOW: u8 = 0x18;
const RESERVED: u8 = 0x10;

fn auto() -> PresenceConfig {
    PresenceConfig { v6: Addressing::Auto, ..config() }
}

/// A lab with its link-local address.
fn ready() -> Lab {
    let mut lab = Lab::new(auto());
    lab.pass(Duration::from_millis(2_100));
    lab.changes();
    lab
}

/// An advertisement's head: default router for `lifetime` seconds, with these flags.
fn head(lifetime: u16, flags: u8) -> Vec<u8> {
    let [a, b] = lifetime.to_be_bytes();
    vec![64, flags, a, b, 0, 0, 0, 0, 0, 0, 0, 0]
}

fn prefix(len: u8, flags: u8, valid: u32, preferred: u32, addr: &str) -> Vec<u8> {
    let addr: Ipv6Addr = addr.parse().unwrap();
    let mut option = vec![3, 4, len, flags];
    option.extend(valid.to_be_bytes());
    option.extend(preferred.to_be_bytes());
    option.extend([0; 4]);
    option.extend(addr.octets());
    option
}

fn mtu(mtu: u32) -> Vec<u8> {
    [&[5, 1, 0, 0][..], &mtu.to_be_bytes()].concat()
}

fn route(len: u8, flags: u8, lifetime: u32, addr: &str) -> Vec<u8> {
    let addr: Ipv6Addr = addr.parse().unwrap();
    let units = 1 + usize::from(len).div_ceil(64);
    let mut option = vec![24, u8::try_from(units).unwrap(), len, flags];
    option.extend(lifetime.to_be_bytes());
    option.extend(&addr.octets()[..8 * (units - 1)]);
    option
}

fn servers(lifetime: u32, addrs: &[&str]) -> Vec<u8> {
    let mut option = vec![25, u8::try_from(1 + 2 * addrs.len()).unwrap(), 0, 0];
    option.extend(lifetime.to_be_bytes());
    for addr in addrs {
        option.extend(addr.parse::<Ipv6Addr>().unwrap().octets());
    }
    option
}

fn advert_from(from: Mac, parts: &[Vec<u8>]) -> Vec<u8> {
    let (src, dst, rest) = (link_local(from), all_nodes(), parts.concat());
    Icmp { from, src, dst, hop_limit: 255, kind: 134, code: 0, rest: &rest, extension: &[] }.frame()
}

/// The router's advertisement; nothing is ever said in answer.
#[track_caller]
fn advertise(lab: &mut Lab, parts: &[Vec<u8>]) {
    assert_eq!(lab.bring_for(&advert_from(ROUTER, parts)), (Heard::Consumed, vec![]));
}

fn own(net: &str) -> String {
    format!("{}/64", formed(net, US))
}

fn solicitations(lab: &mut Lab, time: Duration) -> Vec<Instant> {
    let sent = lab.pass(time).into_iter();
    let asked = sent.filter_map(|(at, seen)| match seen.what {
        What::RouterSolicitation { src, dst, lladdr } => {
            assert_eq!((src, lladdr), (link_local(US), Some(US)));
            assert_eq!(dst, "ff02::2".parse::<Ipv6Addr>().unwrap());
            Some(at)
        }
        _ => None,
    });
    asked.collect()
}

#[test]
fn rfc_7559_section_2_solicitations_back_off_and_end_with_an_answer() {
    let mut lab = Lab::new(auto());
    let asked = solicitations(&mut lab, Duration::from_secs(20_000));
    let gaps: Vec<_> = asked.windows(2).map(|two| (two[1] - two[0]).total_millis()).collect();
    assert!((3_600..=4_400).contains(&gaps[0]), "{gaps:?}");
    for two in gaps.windows(2).take(9) {
        assert!((18..=22).contains(&(two[1] * 10 / two[0])), "{gaps:?}");
    }
    assert!(gaps.iter().all(|gap| *gap <= 3_960_000), "{gaps:?}");
    assert!(asked.len() >= 12, "without end");
    advertise(&mut lab, &[head(1800, 0)]);
    assert_eq!(solicitations(&mut lab, Duration::from_secs(20_000)), []);
    // RFC 4861 §6.3.7: and again when the link was away.
    lab.presence.link_down();
    lab.presence.link_up(lab.now);
    assert!(!solicitations(&mut lab, Duration::from_secs(5)).is_empty());
}

#[test]
fn section_5_5_3_a_prefix_makes_an_address_which_is_probed_for() {
    let mut lab = ready();
    let prefix = prefix(64, L | A, 7200, 3600, "2001:db8:1::");
    advertise(&mut lab, &[head(1800, 0), vec![1, 1, 2, 0, 0, 0, 0, 1], prefix]);
    assert_eq!(lab.addresses(), [""; 0]);
    let target = formed("2001:db8:1::", US);
    let sent = lab.pass_seconds(5);
    let probed =
        |what: &What| matches!(what, What::NeighbourSolicitation { target: t, .. } if *t == target);
    assert!(sent.iter().any(probed), "{sent:?}");
    assert_eq!(lab.addresses(), [own("2001:db8:1::")]);
    let router = link_local(ROUTER);
    assert_eq!(lab.routes(), ["2001:db8:1::/64".to_owned(), format!("::/0 via {router}")]);
    let address = own("2001:db8:1::").parse().unwrap();
    let changes = lab.changes();
    assert!(
        changes.contains(&Change::Gained { address, origin: Origin::Advertised }),
        "{changes:?}"
    );
}

#[test]
fn section_5_5_3_what_makes_no_address() {
    let mut lab = ready();
    advertise(
        &mut lab,
        &[
            head(1800, 0),
            prefix(64, L, 7200, 3600, "2001:db8:1::"), // not autonomous
            prefix(64, A, 3600, 7200, "2001:db8:2::"), // (c) preferred for longer than valid
            prefix(64, L | A, 7200, 3600, "fe80::"),   // (b) link-local
            prefix(96, A, 7200, 3600, "2001:db8:3::"), // (d) no room for the identifier
            prefix(64, A, 0, 0, "2001:db8:4::"),       // (d) no time
            prefix(64, L | A, 7200, 3600, "ff02::"),
        ],
    );
    lab.pass(Duration::from_secs(10));
    assert_eq!(lab.addresses(), [""; 0]);
    assert_eq!(lab.routes()[0], "2001:db8:1::/64", "which is on the segment all the same");
    // On the segment for itself alone.
    advertise(&mut lab, &[prefix_only_a()].map(|option| [head(1800, 0), option].concat()));
    lab.pass(Duration::from_secs(10));
    assert_eq!(lab.addresses(), [format!("{}/128", formed("2001:db8:9::", US))]);
    assert_eq!(lab.routes().len(), 2);
}

fn prefix_only_a() -> Vec<u8> {
    prefix(64, A, 7200, 3600, "2001:db8:9::")
}

#[test]
fn section_5_5_4_an_address_is_deprecated_and_then_gone() {
    let mut lab = ready();
    let both = [
        head(9000, 0),
        prefix(64, L | A, 3000, 1000, "2001:db8:1::"),
        prefix(64, L | A, FOREVER, FOREVER, "2001:db8:2::"),
    ];
    advertise(&mut lab, &both);
    lab.pass(Duration::from_secs(990));
    assert_eq!(lab.addresses(), [own("2001:db8:1::"), own("2001:db8:2::")]);
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.addresses(), [own("2001:db8:2::"), own("2001:db8:1::")], "not for what is new");
    assert_eq!(
        lab.presence.rows().iter().filter(|row| row.standing == Standing::Deprecated).count(),
        1
    );
    lab.changes();
    lab.pass(Duration::from_secs(2_000));
    assert_eq!(lab.addresses(), [own("2001:db8:2::")]);
    let address = own("2001:db8:1::").parse().unwrap();
    let lost = Change::Lost { address, origin: Origin::Advertised, why: Lost::Expired };
    assert!(lab.changes().contains(&lost));
    lab.pass(Duration::from_secs(1_000_000));
    assert_eq!(lab.addresses(), [own("2001:db8:2::")], "for ever");
}

#[test]
fn section_5_5_3_e_no_advertisement_takes_an_address_within_two_hours() {
    let mut lab = ready();
    let say = |lab: &mut Lab, valid, preferred| {
        advertise(lab, &[head(1800, 0), prefix(64, L | A, valid, preferred, "2001:db8:1::")]);
        lab.pass(Duration::from_secs(5));
        let rows = lab.presence.rows();
        let row = rows.iter().find(|row| row.origin == Origin::Advertised).expect("a row");
        row.expires.map(|end| (end - lab.now).secs())
    };
    assert_eq!(say(&mut lab, 86_400, 3600), Some(86_395));
    assert_eq!(say(&mut lab, 10, 0), Some(7_195), "rule 3: two hours, no less");
    let rows = lab.presence.rows();
    assert!(rows.iter().any(|row| row.standing == Standing::Deprecated), "but preferred no more");
    assert_eq!(say(&mut lab, 10, 10), Some(7_190), "rule 2: nothing changes");
    assert_eq!(say(&mut lab, 7_201, 0), Some(7_196), "rule 1: more than two hours");
    assert_eq!(say(&mut lab, FOREVER, FOREVER), None);
    assert_eq!(say(&mut lab, 0, 0), Some(7_195));
}

#[test]
fn rfc_4191_section_2_1_default_routers_by_preference_and_as_long_as_they_live() {
    let mut lab = ready();
    let third: Mac = [2, 0, 0, 0, 0, 3];
    lab.bring(&advert_from(ROUTER, &[head(100, LOW)]));
    lab.bring(&advert_from(THEM, &[head(200, HIGH)]));
    lab.bring(&advert_from(third, &[head(300, RESERVED)]));
    let via = |mac| format!("::/0 via {}", link_local(mac));
    assert_eq!(lab.routes(), [via(THEM), via(third), via(ROUTER)]);
    assert_eq!(lab.next_hop("2001:db8:ffff::1"), Some(link_local(THEM).into()));
    lab.pass(Duration::from_secs(100));
    assert_eq!(lab.routes(), [via(THEM), via(third)]);
    // RFC 4861 §6.3.4: a lifetime of zero ends it at once.
    lab.bring(&advert_from(THEM, &[head(0, HIGH)]));
    assert_eq!(lab.routes(), [via(third)]);
    assert!(lab.changes().contains(&Change::Routes));
}

#[test]
fn rfc_4861_section_6_3_6_a_router_known_to_be_there_comes_before_one_that_is_silent() {
    let mut lab = ready();
    for router in [ROUTER, THEM] {
        lab.bring(&advert_from(router, &[head(1800, 0)]));
    }
    let to = "2001:db8:ffff::1";
    let (first, second) = (link_local(ROUTER).into(), link_local(THEM).into());
    let by = |first_is, second_is| {
        let of = |addr| if addr == first { first_is } else { second_is };
        lab.next_hop_where(to, of)
    };
    assert_eq!(by(Reachability::Unknown, Reachability::Unknown), Some(first));
    assert_eq!(by(Reachability::Probable, Reachability::Probable), Some(first));
    assert_eq!(by(Reachability::Suspect, Reachability::Suspect), Some(first));
    assert_eq!(by(Reachability::Suspect, Reachability::Unknown), Some(second), "the next is tried");
    assert_eq!(by(Reachability::Unknown, Reachability::Probable), Some(second));
}

#[test]
fn rfc_4861_section_6_3_4_who_advertises_again_does_not_change_the_order() {
    let mut lab = ready();
    let said = |servers_of: &str| {
        [head(1800, 0), route(48, 0, 600, "2001:db8:a::"), servers(600, &[servers_of])]
    };
    lab.bring(&advert_from(ROUTER, &said("2001:db8::1")));
    lab.bring(&advert_from(THEM, &said("2001:db8::2")));
    let (routes, dns) = (lab.routes(), lab.presence.dns().to_vec());
    lab.changes();
    for _ in 0..3 {
        lab.bring(&advert_from(ROUTER, &said("2001:db8::1")));
        lab.bring(&advert_from(THEM, &said("2001:db8::2")));
    }
    assert_eq!((lab.routes(), lab.presence.dns()), (routes, &dns[..]));
    assert_eq!(lab.changes(), []);
}

#[test]
fn rfc_4191_section_2_3_more_specific_routes() {
    let mut lab = ready();
    let said = [
        head(0, 0),
        route(48, 0, 600, "2001:db8:a::"),
        route(128, HIGH, FOREVER, "2001:db8:b::7"),
        route(0, 0, 600, "::"),
        route(64, RESERVED, 600, "2001:db8:c::"),
    ];
    advertise(&mut lab, &said);
    let via = |to: &str| format!("{to} via {}", link_local(ROUTER));
    assert_eq!(lab.routes(), [via("2001:db8:b::7/128"), via("2001:db8:a::/48"), via("::/0")]);
    advertise(&mut lab, &[head(0, 0), route(48, 0, 0, "2001:db8:a::")]);
    lab.pass(Duration::from_secs(600));
    assert_eq!(lab.routes(), [via("2001:db8:b::7/128")]);
}

#[test]
fn rfc_8106_section_5_1_name_servers_and_their_lifetimes() {
    let mut lab = ready();
    advertise(&mut lab, &[head(1800, 0), servers(600, &["2001:db8::53", "fe80::53"])]);
    assert_eq!(lab.presence.dns(), [ip("2001:db8::53"), ip("fe80::53")]);
    assert!(lab.changes().contains(&Change::Dns));
    advertise(&mut lab, &[head(1800, 0), servers(0, &["fe80::53"]), servers(600, &["ff02::1"])]);
    assert_eq!(lab.presence.dns(), [ip("2001:db8::53")]);
    lab.pass(Duration::from_secs(600));
    assert!(lab.presence.dns().is_empty());
}

#[test]
fn section_6_3_4_an_mtu_is_believed_between_1280_and_the_interfaces() {
    let mut lab = ready();
    for (said, believed) in [(1279, 1500), (1280, 1280), (1400, 1400), (100_000, 1500)] {
        advertise(&mut lab, &[head(1800, 0), mtu(said)]);
        assert_eq!(lab.presence.mtu(), IpMtu(believed), "{said}");
    }
}

#[test]
fn section_6_1_2_what_is_no_advertisement_is_not_believed() {
    let rest = [head(1800, 0), prefix(64, L | A, 7200, 3600, "2001:db8:1::")].concat();
    let good = Icmp {
        from: ROUTER,
        src: link_local(ROUTER),
        dst: all_nodes(),
        hop_limit: 255,
        kind: 134,
        code: 0,
        rest: &rest,
        extension: &[],
    };
    let half = [head(1800, 0), vec![3, 4, 64, 0xc0]].concat();
    let empty = [head(1800, 0), vec![3, 0, 64, 0xc0, 0, 0, 0, 0]].concat();
    let global = "2001:db8::1".parse().unwrap();
    let wrong = [
        Icmp { hop_limit: 254, ..good.clone() },
        Icmp { code: 1, ..good.clone() },
        Icmp { src: global, ..good.clone() },
        Icmp { rest: &half, ..good.clone() },
        Icmp { rest: &empty, ..good.clone() },
        Icmp { rest: &rest[..11], ..good.clone() },
    ];
    let mut lab = ready();
    for icmp in wrong {
        let heard = lab.bring_for(&icmp.frame());
        assert_eq!(heard, (Heard::Drop(DropReason::BadNeighbour), vec![]), "{icmp:?}");
    }
    // RFC 7113: hidden behind an extension header (the look at the door passes it on).
    let hidden = Icmp { extension: &[58, 0, 1, 4, 0, 0, 0, 0], ..good.clone() };
    assert_eq!(lab.bring_for(&hidden.frame()), (Heard::Pass, vec![]));
    lab.pass(Duration::from_secs(5));
    assert_eq!((lab.addresses(), lab.routes()), (vec![], vec![]));
    lab.bring(&good.frame());
    lab.pass(Duration::from_secs(5));
    assert_eq!(lab.addresses().len(), 1, "and this is one");
}

#[test]
fn a_flood_of_advertisements_takes_nothing_from_the_first_and_fills_nothing() {
    let mut lab = ready();
    let first = [head(1800, 0), prefix(64, L | A, 7200, 3600, "2001:db8:1::")];
    advertise(&mut lab, &first);
    for n in 0..500u16 {
        let [a, b] = n.to_be_bytes();
        let from = [2, 1, 0, 0, a, b];
        let mut parts = vec![head(9000, HIGH)];
        for m in 0..20 {
            parts.push(prefix(64, L | A, 7200, 3600, &format!("2001:db8:{n:x}:{m:x}::")));
            parts.push(route(64, HIGH, 7200, &format!("2001:db8:{n:x}:{m:x}::")));
            parts.push(servers(7200, &[&format!("2001:db8:{n:x}:{m:x}::53")]));
        }
        lab.bring(&advert_from(from, &parts));
    }
    lab.pass(Duration::from_secs(5));
    assert!(lab.addresses().contains(&own("2001:db8:1::")), "{:?}", lab.addresses());
    assert!(lab.addresses().len() <= 8);
    assert!(lab.routes().contains(&format!("::/0 via {}", link_local(ROUTER))));
    assert!(lab.routes().len() <= 8 + 8 + 32, "{:?}", lab.routes());
    assert!(lab.presence.dns().len() <= 8);
    assert!(lab.changes().len() <= datapath::Presence::MAX_CHANGES);
}
