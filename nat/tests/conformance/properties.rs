//! What holds whatever happens, and in whatever order.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use nat::{Account, Config, Conntrack, Filtering, Ingress, NoNotes, Profile, Protocol, Undone};
use proptest::prelude::*;

use crate::lab::{EXTERNAL, EXTERNAL6, Lab, UPLINK, publish};
use crate::wire::{ACK, FIN_ACK, RST, SYN, SYN_ACK, control, echo, error, ip, read, udp};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    /// A container sends to a far side.
    Out {
        host: u8,
        port: u16,
        far: u8,
        kind: Kind,
    },
    /// A far side sends to an external port, or answers the last packet that came out.
    Back {
        far: u8,
        port: u16,
        kind: Kind,
        answer: bool,
    },
    /// A container speaks to an external port of ours.
    Hairpin {
        host: u8,
        port: u16,
        to: u16,
    },
    /// An error about the last packet that came out.
    Error,
    Wait(u16),
    Expire,
    Lost,
    /// Other ports are published, or none.
    Rules(u8),
    /// A container is gone.
    Gone(u8),
    /// Another quota of mappings, and another filtering.
    Config(usize),
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    Udp6,
    Echo,
    Echo6,
    Tcp(u8),
    Sctp(u8),
    Gre,
}

fn kind() -> impl Strategy<Value = Kind> {
    let flags = prop::sample::select(vec![SYN, SYN_ACK, ACK, FIN_ACK, RST]);
    prop_oneof![
        3 => Just(Kind::Udp),
        1 => Just(Kind::Udp6),
        1 => Just(Kind::Echo),
        1 => Just(Kind::Echo6),
        3 => flags.prop_map(Kind::Tcp),
        1 => prop::sample::select(vec![1, 4, 6, 8, 0]).prop_map(Kind::Sctp),
        1 => Just(Kind::Gre),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let port = || prop_oneof![Just(53u16), Just(80), 1020..1030u16, 40_000..40_004u16];
    prop_oneof![
        6 => (2..6u8, port(), 2..5u8, kind())
            .prop_map(|(host, port, far, kind)| Event::Out { host, port, far, kind }),
        4 => (2..5u8, port(), kind(), any::<bool>())
            .prop_map(|(far, port, kind, answer)| Event::Back { far, port, kind, answer }),
        1 => (2..6u8, port(), port()).prop_map(|(host, port, to)| Event::Hairpin { host, port, to }),
        1 => Just(Event::Error),
        2 => prop_oneof![0..20u16, 100..400u16].prop_map(Event::Wait),
        2 => Just(Event::Expire),
        1 => Just(Event::Lost),
        1 => (0..3u8).prop_map(Event::Rules),
        1 => (2..6u8).prop_map(Event::Gone),
        1 => (1..6usize).prop_map(Event::Config),
    ]
}

fn packet(from: (&str, &str), to: (&str, &str), ports: (u16, u16), kind: Kind) -> Vec<u8> {
    let at = |(v4, v6): (&str, &str), port: u16| match kind {
        Kind::Udp6 | Kind::Echo6 => format!("[{v6}]:{port}"),
        _ => format!("{v4}:{port}"),
    };
    let (src, dst) = (at(from, ports.0), at(to, ports.1));
    match kind {
        Kind::Udp | Kind::Udp6 => udp(&src, &dst, b"payload"),
        Kind::Echo => echo(from.0, to.0, ports.0, false),
        Kind::Echo6 => echo(from.1, to.1, ports.0, false),
        Kind::Tcp(flags) => control(&src, &dst, flags, 100, 500),
        Kind::Sctp(chunk) => {
            let tag = if chunk == 1 { 0 } else { 7 };
            let words =
                [ports.0.to_be_bytes(), ports.1.to_be_bytes(), [0, 0], [0, tag], [0; 2], [0; 2]];
            let octets = [&words.concat()[..], &[chunk, 0, 0, 8, 0, 0, 0, 9]].concat();
            ip(from.0.parse().unwrap(), to.0.parse().unwrap(), 132, &octets)
        }
        Kind::Gre => ip(from.0.parse().unwrap(), to.0.parse().unwrap(), 47, b"payload"),
    }
}

/// Runs a story; a packet that gets through has right checksums, as the lab reads it.
fn happen(lab: &mut Lab, events: &[Event]) {
    let mut last: Option<Vec<u8>> = None;
    for event in events {
        match event {
            Event::Out { host, port, far, kind } => {
                let from = (format!("172.18.0.{host}"), format!("fd00:18::{host}"));
                let to = (format!("198.51.100.{far}"), format!("2001:db8:9::{far}"));
                let octets = packet((&from.0, &from.1), (&to.0, &to.1), (*port, 9000), *kind);
                if let Ok(sent) = lab.leave(&octets) {
                    read(&sent);
                    last = Some(sent);
                }
            }
            Event::Back { far, port, kind, answer } => {
                let from = (format!("198.51.100.{far}"), format!("2001:db8:9::{far}"));
                let octets = match last.as_deref().filter(|_| *answer).map(read) {
                    Some(seen) if seen.protocol == 17 => {
                        udp(&seen.dst.to_string(), &seen.src.to_string(), b"answer")
                    }
                    Some(seen) if seen.protocol == 6 => {
                        control(&seen.dst.to_string(), &seen.src.to_string(), SYN_ACK, 500, 101)
                    }
                    Some(seen) if [47, 132].contains(&seen.protocol) => {
                        let mut body = seen.body.clone();
                        body[..4].rotate_left(if seen.protocol == 132 { 2 } else { 0 });
                        ip(seen.dst.ip(), seen.src.ip(), seen.protocol, &body)
                    }
                    Some(seen) => {
                        let ip = |addr: SocketAddr| addr.ip().to_string();
                        echo(&ip(seen.dst), &ip(seen.src), seen.id(), true)
                    }
                    None => packet((&from.0, &from.1), (EXTERNAL, EXTERNAL6), (9000, *port), *kind),
                };
                if let Ok(seen) = lab.arrive(&octets) {
                    read(&seen);
                }
            }
            Event::Hairpin { host, port, to } => {
                let octets =
                    udp(&format!("172.18.0.{host}:{port}"), &format!("{EXTERNAL}:{to}"), b"");
                if let Ok(seen) = lab.leave(&octets) {
                    read(&seen);
                }
            }
            Event::Error => {
                if let Some(sent) = &last {
                    let seen = read(sent);
                    let (router, kind) = if seen.src.is_ipv6() {
                        ("2001:db8:9::fe", (1, 0))
                    } else {
                        ("198.51.100.9", (3, 1))
                    };
                    let about = error(router, &seen.src.ip().to_string(), kind, 0, sent);
                    if let Ok(seen) = lab.arrive(&about) {
                        read(&seen);
                    }
                }
            }
            Event::Wait(seconds) => lab.wait(u64::from(*seconds)),
            Event::Expire => lab.expire(),
            Event::Lost => {
                let addr = EXTERNAL.parse().unwrap();
                lab.nat.forget_address(nat::External { zone: UPLINK, addr });
                last = None;
            }
            Event::Rules(which) => {
                let to = ["172.18.0.3:53", "172.18.0.4:53"].get(usize::from(*which));
                let rules = to.map(|to| publish(Protocol::Udp, 80..=80, to));
                lab.nat.set_rules(nat::Rules::new(
                    rules.into_iter().collect(),
                    vec![crate::lab::masquerade()],
                ));
            }
            Event::Gone(host) => {
                for addr in [format!("172.18.0.{host}"), format!("fd00:18::{host}")] {
                    lab.nat.forget_inside(crate::lab::NET, addr.parse().unwrap());
                }
            }
            Event::Config(quota) => {
                let filtering = [
                    Filtering::EndpointIndependent,
                    Filtering::AddressDependent,
                    Filtering::AddressAndPortDependent,
                ][quota % 3];
                let config = (*lab.nat.config()).clone();
                lab.nat.set_config(Config { filtering, max_mappings_of_account: *quota, ..config });
            }
        }
        unique(lab);
    }
}

/// No name is two flows', and no external port two mappings'.
fn unique(lab: &Lab) {
    let flows = lab.nat.conntrack().list(None);
    let mut names = BTreeSet::new();
    let mut shown = BTreeSet::new();
    for flow in &flows {
        let original = format!("{:?} {}", flow.zone, flow.original);
        let reply = format!("{:?} {}", flow.reply_zone(), flow.reply);
        assert!(names.insert(original.clone()), "{original} twice");
        // Who speaks to itself has one name for both ways.
        assert!(original == reply || names.insert(reply.clone()), "{reply} twice");
        for mapping in flow.mapping().into_iter().chain(flow.leads_to()) {
            let external = (mapping.inside().protocol, mapping.external());
            shown.insert((external, format!("{:?}", mapping.inside())));
        }
    }
    let externals: BTreeSet<_> = shown.iter().map(|(external, _)| external).collect();
    assert_eq!(externals.len(), shown.len(), "a port is overloaded: {shown:?}");
    assert_eq!(lab.nat.mappings().len(), shown.len(), "a mapping without flows");
    assert_eq!(lab.flows(), flows.len());
}

/// Once all is silent, nothing is held by anybody.
fn all_is_given_back(lab: &mut Lab) {
    lab.wait(1_000_000);
    lab.expire();
    assert_eq!((lab.flows(), lab.nat.mappings().len()), (0, 0));
    for (addr, protocols) in [
        (EXTERNAL, [Protocol::Udp, Protocol::Tcp, Protocol::Icmp]),
        (EXTERNAL6, [Protocol::Udp, Protocol::Tcp, Protocol::Icmpv6]),
    ] {
        let external = nat::External { zone: UPLINK, addr: addr.parse().unwrap() };
        for protocol in protocols {
            assert_eq!(lab.nat.mappings().held(external, protocol), 0, "{addr} {protocol}");
        }
    }
    for host in 0..10 {
        assert_eq!(lab.nat.mappings().len_of(Account(1 << 16 | host)), 0);
        assert_eq!(lab.nat.conntrack().len_of(Account(1 << 16 | host)), 0);
    }
}

fn lab(filtering: Filtering, capacity: usize, quota: usize) -> Lab {
    let config = Config { filtering, max_mappings_of_account: 5, ..Config::new(UPLINK, [9; 16]) };
    let lab = Lab::new(Conntrack::new(capacity, Profile::Rfc).with_quota(quota), config);
    let rules = vec![publish(Protocol::Udp, 80..=80, "172.18.0.3:53")];
    lab.nat.set_rules(nat::Rules::new(rules, vec![crate::lab::masquerade()]));
    lab
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_names_are_unique_and_ports_come_back(
        events in prop::collection::vec(event(), 1..80),
        small in any::<bool>(),
        filtering in prop::sample::select(vec![
            Filtering::EndpointIndependent,
            Filtering::AddressDependent,
            Filtering::AddressAndPortDependent,
        ]),
    ) {
        let mut lab = if small { lab(filtering, 6, 3) } else { lab(filtering, 1000, 100) };
        happen(&mut lab, &events);
        all_is_given_back(&mut lab);
    }

    /// Out and back again is where it came from, and restoring a packet is the identity.
    #[test]
    fn translation_undone_is_the_identity(
        host in 2..250u8,
        far in 2..250u8,
        ports in (1u16.., 1u16..),
        v6 in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut lab = Lab::default();
        let (from, to) = if v6 {
            (format!("[fd00:18::{host:x}]:{}", ports.0), format!("[2001:db8:9::{far:x}]:{}", ports.1))
        } else {
            (format!("172.18.0.{host}:{}", ports.0), format!("198.51.100.{far}:{}", ports.1))
        };
        let packet = udp(&from, &to, &payload);
        let seen = lab.out(&packet);
        prop_assert_eq!(&seen.body[8..], &payload[..]);
        let answer = udp(&to, &seen.src.to_string(), &payload);
        lab.back(&answer).goes(&to, &from);
        // Both directions, undone half-way.
        let inside = Ingress {
            zone: crate::lab::NET, inside: true, account: Account(1), mtu: 1500,
        };
        let outside = Ingress { zone: UPLINK, inside: false, ..inside };
        for (octets, ingress) in [(&packet, inside), (&answer, outside)] {
            let mut copy = octets.clone();
            let undone = Undone::default();
            let mut passage = lab.nat
                .prerouting(&mut copy, undone, &ingress, lab.now, &mut NoNotes)
                .unwrap();
            prop_assert!(copy != *octets);
            passage.restore(&mut copy);
            prop_assert!(copy == *octets);
        }
    }

    /// Packets with anything wrong in them are refused or pass; nothing else.
    #[test]
    fn damaged_packets_do_no_harm(
        which in 0..8usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        from_inside in any::<bool>(),
    ) {
        let mut lab = Lab::default();
        let question = udp("172.18.0.2:4000", "198.51.100.2:9", b"hello");
        let sent = lab.leave(&question).unwrap();
        let six = lab.leave(&udp("[fd00:18::2]:4000", "[2001:db8:9::2]:9", b"hello")).unwrap();
        lab.out(&control("172.18.0.2:4000", "198.51.100.2:80", SYN, 100, 0));
        let mut packet = match which {
            0 => question,
            1 => udp("198.51.100.2:9", "203.0.113.1:4000", b"hello"),
            2 => error("198.51.100.9", EXTERNAL, (3, 1), 0, &sent),
            3 => error("2001:db8:9::9", EXTERNAL6, (1, 0), 0, &six),
            4 => control("198.51.100.2:80", "203.0.113.1:4000", SYN_ACK, 500, 101),
            5 => echo("fd00:18::2", "2001:db8:9::2", 7, false),
            6 => udp("[2001:db8:9::2]:9", "[2001:db8:1::1]:4000", b"hello"),
            _ => echo("198.51.100.2", EXTERNAL, 7, true),
        };
        for (at, octet) in damage {
            let at = at.index(packet.len());
            packet[at] = octet;
        }
        packet.truncate(cut.index(packet.len()) + 1);
        let ingress = Ingress {
            zone: if from_inside { crate::lab::NET } else { UPLINK },
            inside: from_inside,
            account: Account(1),
            mtu: 1500,
        };
        // The lab asserts that what is refused reads as it came.
        let _ = lab.pass_in_pieces(&packet, &ingress);
        if let Ok(headers) = nat::Headers::parse(&packet) {
            let _ = lab.nat.gather(&packet, &headers, &ingress, lab.now);
        }
    }
}
