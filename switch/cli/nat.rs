//! `pontoon nat`: what is translated on the segments of raw uplinks, by which rules.

use std::net::SocketAddr;

use ::daemon::api::{self, NatMapping, NatRule};
use clap::{Args, ValueEnum};

use crate::failure::{Outcome, note};
use crate::output::{Listing, daemon, print, table};

/// List the NAT's rules with their counts, and its mappings
///
/// Networks with a raw uplink have a NAT, one for each interface. A rule of prerouting decides where a
/// flow goes, one of postrouting what its source is shown as; the first that matches does, once for a flow.
#[derive(Debug, Args)]
#[command(after_help = "\
A mapping is what an inside address and port is shown with, whatever it speaks to, as long as flows of it
are remembered (`pontoon conntrack` lists those).

Examples:
  pontoon nat
  pontoon nat lan --format json
  pontoon nat eth0 --as linux                                  as iptables-save prints rules
  pontoon nat --as linux --counters")]
pub(crate) struct Nat {
    /// Of this network only, or of the segment on this interface
    #[arg(value_name = "NETWORK|IF")]
    of: Option<String>,
    /// Print the rules as another program would
    #[arg(long = "as", value_enum, value_name = "WHOSE", conflicts_with = "format")]
    like: Option<Like>,
    /// With --as linux: print flows and octets before each rule, as iptables-save -c
    #[arg(short, long, requires = "like")]
    counters: bool,
    #[command(flatten)]
    listing: Listing,
}

/// Whose words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Like {
    /// iptables-save(8)'s and ip6tables-save(8)'s
    Linux,
}

impl Nat {
    pub(crate) fn go(self) -> Outcome {
        let nats = daemon()?.nat(self.of.as_deref())?;
        if nats.is_empty() {
            note(
                "no network has a raw uplink; `pontoon network create --uplink raw:IF NAME` makes one",
            );
        }
        match self.like {
            Some(Like::Linux) => print(&saved(&nats, self.counters)),
            None => self.listing.print(&nats, text),
        }
    }
}

fn text(nats: &[api::Nat]) -> String {
    let header = [
        "INTERFACE",
        "HOOK",
        "NUMBER",
        "TARGET",
        "PROTOCOL",
        "IN",
        "OUT",
        "SOURCE",
        "DESTINATION",
        "PORTS",
        "TO",
        "ENDPOINT",
        "FLOWS",
        "OCTETS",
    ];
    let rules = nats.iter().flat_map(|nat| nat.rules.iter().map(|rule| rule_cells(nat, rule)));
    let mut text = table(&header, rules);
    let mappings: Vec<_> = nats
        .iter()
        .flat_map(|nat| nat.mappings.iter().map(|mapping| mapping_cells(nat, mapping)))
        .collect();
    if !mappings.is_empty() {
        text += "\n\n";
        let header = ["INTERFACE", "PROTOCOL", "NETWORK", "ENDPOINT", "INSIDE", "OUTSIDE"];
        text += &table(&header, mappings);
    }
    text
}

fn rule_cells(nat: &api::Nat, rule: &NatRule) -> Vec<String> {
    let any = |value: &Option<String>| value.clone().unwrap_or_else(|| "any".to_owned());
    let ports = match rule.ports {
        None => "any".to_owned(),
        Some((first, last)) if first == last => first.to_string(),
        Some((first, last)) => format!("{first}-{last}"),
    };
    vec![
        nat.interface.clone(),
        rule.hook.clone(),
        rule.number.to_string(),
        rule.target.clone(),
        any(&rule.protocol),
        any(&rule.from),
        any(&rule.to),
        any(&rule.source),
        any(&rule.destination),
        ports,
        rule.changed_to.clone().unwrap_or_default(),
        rule.endpoint.clone().unwrap_or_default(),
        rule.flows.to_string(),
        rule.octets.to_string(),
    ]
}

fn mapping_cells(nat: &api::Nat, mapping: &NatMapping) -> Vec<String> {
    vec![
        nat.interface.clone(),
        mapping.protocol.clone(),
        mapping.network.clone(),
        mapping.endpoint.clone(),
        joined(&mapping.inside_ip, mapping.inside_port),
        joined(&mapping.external_ip, mapping.external_port),
    ]
}

fn joined(addr: &str, port: u16) -> String {
    match addr.parse() {
        Ok(addr) => SocketAddr::new(addr, port).to_string(),
        Err(_) => format!("{addr}:{port}"),
    }
}

/// The rules as iptables-save and then ip6tables-save would print them, were they the kernel's.
fn saved(nats: &[api::Nat], counters: bool) -> String {
    let rules: Vec<_> = nats.iter().flat_map(|nat| &nat.rules).collect();
    let interfaces: Vec<_> = nats.iter().map(|nat| format!("raw:{}", nat.interface)).collect();
    let mut lines = Vec::new();
    for v4 in [true, false] {
        let of = |hook: &'static str| {
            let own = rules.iter().filter(move |rule| rule.hook == hook && speaks(rule, v4));
            own.map(move |rule| line(rule, counters))
        };
        let program = if v4 { "iptables-save" } else { "ip6tables-save" };
        lines.push(format!("# as {program} would print it: {}", interfaces.join(" ")));
        lines.push("*nat".to_owned());
        for chain in ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"] {
            lines.push(format!(":{chain} ACCEPT [0:0]"));
        }
        lines.extend(of("prerouting").chain(of("postrouting")));
        lines.push("COMMIT".to_owned());
        let prefixes: Vec<_> = rules.iter().filter(|rule| rule.hook == "prefix" && !v4).collect();
        if !prefixes.is_empty() {
            lines.push("*mangle".to_owned());
            for chain in ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"] {
                lines.push(format!(":{chain} ACCEPT [0:0]"));
            }
            lines.extend(prefixes.iter().flat_map(|rule| prefix_lines(rule)));
            lines.push("COMMIT".to_owned());
        }
    }
    lines.join("\n")
}

/// Whether a rule is one of that family. One that names no address is of both.
fn speaks(rule: &NatRule, v4: bool) -> bool {
    let texts = [&rule.source, &rule.destination, &rule.changed_to];
    texts.into_iter().flatten().all(|text| is_v4(text) == v4)
        // Between families no rule of the kernel's leads; it is printed as what it matches.
        || rule.destination.as_deref().is_some_and(|text| is_v4(text) == v4)
}

fn is_v4(text: &str) -> bool {
    !text.starts_with('[') && text.matches(':').count() < 2
}

fn line(rule: &NatRule, counters: bool) -> String {
    let mut words = Vec::new();
    if counters {
        words.push(format!("[{}:{}]", rule.flows, rule.octets));
    }
    let prerouting = rule.hook == "prerouting";
    words.push(format!("-A {}", if prerouting { "PREROUTING" } else { "POSTROUTING" }));
    words.extend(rule.source.as_ref().map(|source| format!("-s {source}")));
    words.extend(rule.destination.as_ref().map(|destination| format!("-d {destination}")));
    words.extend(rule.from.as_ref().filter(|_| prerouting).map(|from| format!("-i {from}")));
    words.extend(rule.to.as_ref().map(|to| match to.strip_prefix('!') {
        Some(to) => format!("! -o {to}"),
        None => format!("-o {to}"),
    }));
    let protocol = rule.protocol.as_deref().map(|name| match name {
        "icmpv6" => "ipv6-icmp",
        other => other,
    });
    words.extend(protocol.map(|protocol| format!("-p {protocol}")));
    if let (Some(protocol), Some((first, last))) = (protocol, rule.ports) {
        let ports = if first == last { first.to_string() } else { format!("{first}:{last}") };
        words.push(format!("-m {protocol} --dport {ports}"));
    }
    words.push(format!("-j {}", rule.target));
    if let Some(to) = &rule.changed_to {
        let option = match &*rule.target {
            "DNAT" => "--to-destination",
            "SNAT" => "--to-source",
            _ => "--to",
        };
        words.push(format!("{option} {}", changed_to(rule, to)));
    }
    let line = words.join(" ");
    match (&rule.destination, &rule.changed_to) {
        (Some(from), Some(to)) if is_v4(from) != is_v4(to) => {
            format!("# {line}  (between families: the kernel has no such rule)")
        }
        _ => line,
    }
}

/// `172.17.0.2:80`, and for a range of ports `172.17.0.2:80-89/8080`, where the last is the rule's first.
fn changed_to(rule: &NatRule, to: &str) -> String {
    let range = rule.ports.filter(|(first, last)| first != last);
    match (range, to.parse::<SocketAddr>()) {
        (Some((first, last)), Ok(to)) if to.port() != first => {
            let end = to.port().saturating_add(last - first);
            format!("{to}-{end}/{first}")
        }
        (Some(_), Ok(to)) => to.ip().to_string(),
        _ => to.to_owned(),
    }
}

/// SNPT on the way out and DNPT on the way in: ip6tables-extensions(8).
fn prefix_lines(rule: &NatRule) -> Vec<String> {
    let (Some(inside), Some(outside)) = (&rule.source, &rule.changed_to) else {
        return Vec::new();
    };
    let by = rule.to.as_deref().unwrap_or_default();
    vec![
        format!(
            "-A PREROUTING -d {outside} -i {by} -j DNPT --src-pfx {outside} --dst-pfx {inside}"
        ),
        format!(
            "-A POSTROUTING -s {inside} -o {by} -j SNPT --src-pfx {inside} --dst-pfx {outside}"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(hook: &str, target: &str, changed_to: &str) -> NatRule {
        NatRule {
            hook: hook.to_owned(),
            target: target.to_owned(),
            changed_to: Some(changed_to.to_owned()).filter(|text| !text.is_empty()),
            flows: 3,
            octets: 180,
            ..NatRule::default()
        }
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn nat() -> api::Nat {
        let published = |ports, to: &str| NatRule {
            protocol: some("tcp"),
            ports: Some(ports),
            destination: some("203.0.113.5/32"),
            endpoint: some("web"),
            ..rule("prerouting", "DNAT", to)
        };
        api::Nat {
            interface: "eth0".to_owned(),
            rules: vec![
                published((8080, 8080), "172.18.0.2:80"),
                published((9000, 9010), "172.18.0.2:80"),
                published((9000, 9010), "172.18.0.2:9000"),
                NatRule {
                    destination: some("2001:db8::5/128"),
                    ..published((80, 80), "172.18.0.2:80")
                },
                NatRule {
                    source: some("172.18.0.0/16"),
                    to: some("eth0"),
                    ..rule("postrouting", "MASQUERADE", "")
                },
                NatRule {
                    source: some("fd00::/64"),
                    to: some("eth0"),
                    ..rule("postrouting", "SNAT", "2001:db8::8-2001:db8::f")
                },
                NatRule {
                    source: some("fd00:7::/64"),
                    to: some("eth0"),
                    ..rule("prefix", "NPT", "2001:db8:7::/64")
                },
            ],
            mappings: vec![NatMapping {
                protocol: "udp".to_owned(),
                network: "lan".to_owned(),
                endpoint: "web".to_owned(),
                inside_ip: "fd00::2".to_owned(),
                inside_port: 5353,
                external_ip: "2001:db8::8".to_owned(),
                external_port: 5353,
            }],
            ..api::Nat::default()
        }
    }

    #[test]
    fn rules_are_printed_as_iptables_save_prints_them() {
        let saved = saved(&[nat()], false);
        let lines: Vec<_> = saved.lines().collect();
        assert_eq!(
            lines[..10],
            [
                "# as iptables-save would print it: raw:eth0",
                "*nat",
                ":PREROUTING ACCEPT [0:0]",
                ":INPUT ACCEPT [0:0]",
                ":OUTPUT ACCEPT [0:0]",
                ":POSTROUTING ACCEPT [0:0]",
                "-A PREROUTING -d 203.0.113.5/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:80",
                "-A PREROUTING -d 203.0.113.5/32 -p tcp -m tcp --dport 9000:9010 -j DNAT --to-destination 172.18.0.2:80-90/9000",
                "-A PREROUTING -d 203.0.113.5/32 -p tcp -m tcp --dport 9000:9010 -j DNAT --to-destination 172.18.0.2",
                "-A POSTROUTING -s 172.18.0.0/16 -o eth0 -j MASQUERADE",
            ]
        );
        for line in [
            "-A POSTROUTING -s fd00::/64 -o eth0 -j SNAT --to-source 2001:db8::8-2001:db8::f",
            "-A POSTROUTING -s fd00:7::/64 -o eth0 -j SNPT --src-pfx fd00:7::/64 --dst-pfx 2001:db8:7::/64",
            "-A PREROUTING -d 2001:db8:7::/64 -i eth0 -j DNPT --src-pfx 2001:db8:7::/64 --dst-pfx fd00:7::/64",
        ] {
            assert!(lines.contains(&line), "{saved}");
        }
        assert!(saved.contains("# -A PREROUTING -d 2001:db8::5/128 -p tcp"), "{saved}");
        assert_eq!(lines.iter().filter(|line| **line == "COMMIT").count(), 3);
        assert!(super::saved(&[nat()], true).contains("[3:180] -A POSTROUTING -s 172.18.0.0/16"));
    }

    #[test]
    fn a_table_has_rules_and_then_mappings() {
        let text = text(&[nat()]);
        assert!(text.starts_with("INTERFACE  HOOK "), "{text}");
        let row = |words: &[&str]| {
            let found = text.lines().any(|line| line.split_whitespace().eq(words.iter().copied()));
            assert!(found, "{words:?}: {text}");
        };
        row(&[
            "eth0",
            "prerouting",
            "0",
            "DNAT",
            "tcp",
            "any",
            "any",
            "any",
            "203.0.113.5/32",
            "8080",
            "172.18.0.2:80",
            "web",
            "3",
            "180",
        ]);
        row(&["eth0", "udp", "lan", "web", "[fd00::2]:5353", "[2001:db8::8]:5353"]);
    }
}
