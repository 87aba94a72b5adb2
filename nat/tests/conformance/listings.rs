//! What there is, and why.

use std::collections::BTreeSet;

use nat::{Filtering, Protocol, Rules};

use crate::lab::{Lab, UPLINK, masquerade, publish};
use crate::wire::{at, ip, udp};

#[test]
fn mappings_are_listed_each_once() {
    let mut lab = Lab::default();
    for port in 2000..3000 {
        lab.out(&udp(&format!("172.18.0.2:{port}"), "198.51.100.2:9", b""));
        lab.out(&udp(&format!("[fd00:18::2]:{port}"), "[2001:db8:9::2]:9", b""));
    }
    lab.out(&udp("172.18.0.2:2000", "198.51.100.3:9", b""));
    lab.out(&udp("172.18.0.2:2000", "198.51.100.3:10", b""));
    let listed = lab.nat.mappings().list();
    assert_eq!(listed.len(), 2000);
    let shown = listed.iter().map(|mapping| (mapping.external().addr, mapping.external().port));
    assert_eq!(shown.collect::<BTreeSet<_>>().len(), 2000);
    let busy = at("203.0.113.1:2000").into();
    let busy = listed.iter().find(|mapping| mapping.external() == busy).unwrap();
    assert_eq!(busy.flows(), (3, 2), "three flows to two far sides");
}

fn explain(lab: &Lab) -> Vec<String> {
    let flows = lab.nat.conntrack().list(None);
    assert_eq!(flows.len(), 1);
    lab.nat.explain(&flows[0]).iter().map(ToString::to_string).collect()
}

#[test]
fn why_a_flow_is_translated_can_be_asked_at_any_time() {
    let published = || publish(Protocol::Udp, 80..=80, "172.18.0.3:53");
    let mut lab = Lab::publishing(vec![published()]);
    lab.out(&udp("172.18.0.2:4000", "198.51.100.2:9", b""));
    assert_eq!(
        explain(&lab),
        [
            "postrouting rule 0 matches: all: MASQUERADE",
            "172.18.0.2:4000 is shown as 203.0.113.1:4000, its port kept",
            "udp 172.18.0.2:4000 > 198.51.100.2:9 becomes udp 203.0.113.1:4000 > 198.51.100.2:9",
        ]
    );
    let mut lab = Lab::publishing(vec![published()]);
    lab.out(&udp("172.18.0.2:4000", "203.0.113.1:80", b""));
    assert_eq!(
        explain(&lab),
        [
            "prerouting rule 0 matches: udp to 203.0.113.1/32 port 80: DNAT to 172.18.0.3:53",
            "both ends are inside: the source shows its external address",
            "postrouting rule 0 matches: all: MASQUERADE",
            "172.18.0.2:4000 is shown as 203.0.113.1:4000, its port kept",
            "udp 172.18.0.2:4000 > 203.0.113.1:80 becomes udp 203.0.113.1:4000 > 172.18.0.3:53",
        ]
    );
    let config = nat::Config {
        filtering: Filtering::EndpointIndependent,
        ..nat::Config::new(UPLINK, [0; 16])
    };
    let mut lab = Lab::with(config);
    lab.out(&udp("172.18.0.2:4000", "198.51.100.2:9", b""));
    lab.back(&udp("198.51.100.3:9", "203.0.113.1:4000", b""));
    let flows = lab.nat.conntrack().list(None);
    let behind = flows.iter().find(|flow| flow.original.src.port == 9).unwrap();
    assert_eq!(
        lab.nat.explain(behind)[0].to_string(),
        "172.18.0.2:4000 is behind 203.0.113.1:4000 and may be answered from there"
    );
    let mut lab = Lab::default();
    lab.out(&ip("172.18.0.2".parse().unwrap(), "172.19.0.2".parse().unwrap(), 47, b""));
    assert_eq!(explain(&lab), [""; 0], "it is not");
}

/// Publishing one more port is no reason for the others' counts to begin again.
#[test]
fn a_rule_s_counts_go_on_when_others_change() {
    let mut lab = Lab::publishing(vec![publish(Protocol::Udp, 80..=80, "172.18.0.2:80")]);
    lab.back(&udp("198.51.100.2:9", "203.0.113.1:80", b""));
    lab.out(&udp("172.18.0.3:9", "198.51.100.2:9", b""));
    let rules = vec![
        publish(Protocol::Udp, 79..=79, "172.18.0.2:80"),
        publish(Protocol::Udp, 80..=80, "172.18.0.2:80"),
    ];
    lab.nat.set_rules(Rules::new(rules, vec![masquerade()]));
    let rules = lab.nat.rules();
    assert_eq!(rules.prerouting()[0].counts(), (0, 0));
    assert_eq!(rules.prerouting()[1].counts(), (1, 28));
    assert_eq!(rules.postrouting()[0].counts(), (1, 28));
}
