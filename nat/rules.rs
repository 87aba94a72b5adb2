//! Who is rewritten: ordered rules, the first that matches decides.
//!
//! Read `iptables-extensions(8)` (SNAT, DNAT, MASQUERADE, NETMAP) beside this. Rules are asked once for a
//! flow, by its first packet; conntrack remembers the answer. A published range is one rule whatever its
//! width, and the rules for a port are found by the port, so that neither memory nor time grows with the
//! ports published.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smoltcp::wire::IpCidr;

use crate::tuple::{Protocol, TransportAddr, Tuple};
use crate::zone::{Account, Zone};

/// What a packet must be for a rule to decide about it. What is not said matches anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Match {
    /// Where it comes in.
    pub from: Option<Zone>,
    /// Where it goes out; not known before the route is.
    pub to: Option<Zone>,
    /// Its source.
    pub src: Option<IpCidr>,
    /// Its destination.
    pub dst: Option<IpCidr>,
    /// What it carries.
    pub protocol: Option<Protocol>,
    /// Its destination port.
    pub dst_ports: RangeInclusive<u16>,
}

impl Match {
    /// Everything.
    pub const ANY: Self = Self {
        from: None,
        to: None,
        src: None,
        dst: None,
        protocol: None,
        dst_ports: 0..=u16::MAX,
    };

    /// Whether a packet that came in by `from` and leaves by `to`, if that is known, matches.
    #[must_use]
    pub fn holds(&self, from: Zone, to: Option<Zone>, tuple: &Tuple) -> bool {
        let within = |cidr: &IpCidr, addr: IpAddr| cidr.contains_addr(&addr.into());
        self.from.is_none_or(|zone| zone == from)
            && self.to.is_none_or(|zone| Some(zone) == to)
            && self.protocol.is_none_or(|protocol| protocol == tuple.protocol)
            && self.dst_ports.contains(&tuple.dst.port)
            && self.src.as_ref().is_none_or(|cidr| within(cidr, tuple.src.addr))
            && self.dst.as_ref().is_none_or(|cidr| within(cidr, tuple.dst.addr))
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Some(protocol) => write!(f, "{protocol}")?,
            None => write!(f, "all")?,
        }
        if let Some(src) = &self.src {
            write!(f, " from {src}")?;
        }
        if let Some(dst) = &self.dst {
            write!(f, " to {dst}")?;
        }
        match (self.dst_ports.start(), self.dst_ports.end()) {
            (0, &u16::MAX) => Ok(()),
            (first, last) if first == last => write!(f, " port {first}"),
            (first, last) => write!(f, " ports {first}-{last}"),
        }
    }
}

/// What becomes of a destination, before the route is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// DNAT: a published port.
    To {
        /// The container's address. One of the other family makes the flow an IPv4 one inside
        /// (stateful NAT46) if the rules have addresses for that.
        addr: IpAddr,
        /// The container's port for the first of the rule's ports; the others follow in order. The port
        /// stays if none is given.
        first_port: Option<u16>,
        /// Whose container it is.
        account: Account,
        /// The network it is in.
        zone: Zone,
    },
    /// Static one-to-one: the same place in another prefix of the same length (NETMAP).
    Prefix {
        /// Where the destination is moved to.
        inside: IpCidr,
        /// Whose it is.
        account: Account,
    },
}

/// What becomes of a source, once the route is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// SNAT to whatever address the egress has.
    Masquerade,
    /// SNAT to one of these, the same one for all of a container's flows (RFC 4787 REQ-2).
    To(RangeInclusive<IpAddr>),
    /// Static one-to-one: the same place in another prefix of the same length; ports stay.
    Prefix(IpCidr),
}

/// A rule and how often it decided.
#[derive(Debug)]
pub struct Rule<A> {
    /// What it is about.
    pub matches: Match,
    /// What becomes of that.
    pub action: A,
    flows: AtomicU64,
    octets: AtomicU64,
}

impl<A> Rule<A> {
    /// A rule that has decided nothing yet.
    pub const fn new(matches: Match, action: A) -> Self {
        Self { matches, action, flows: AtomicU64::new(0), octets: AtomicU64::new(0) }
    }

    /// It decided about a flow whose first packet has `octets` octets.
    pub(crate) fn count(&self, octets: usize) {
        self.flows.fetch_add(1, Relaxed);
        self.octets.fetch_add(octets as u64, Relaxed);
    }

    /// Counts on from where an equal rule has come to.
    fn count_on_from(&self, (flows, octets): (u64, u64)) {
        self.flows.fetch_add(flows, Relaxed);
        self.octets.fetch_add(octets, Relaxed);
    }

    /// Flows it decided about and the octets of their first packets, as `iptables -t nat -vL` counts.
    pub fn counts(&self) -> (u64, u64) {
        (self.flows.load(Relaxed), self.octets.load(Relaxed))
    }
}

impl Rule<Destination> {
    /// Where a packet that matches goes. None if the rule has no place for its family.
    #[must_use]
    pub fn leads(&self, tuple: &Tuple) -> Option<TransportAddr> {
        match &self.action {
            Destination::To { addr, first_port, .. } => {
                let nth = tuple.dst.port.wrapping_sub(*self.matches.dst_ports.start());
                let port = match first_port {
                    Some(first) if !tuple.protocol.is_query() => first.wrapping_add(nth),
                    _ => tuple.dst.port,
                };
                Some(TransportAddr::new(*addr, port))
            }
            Destination::Prefix { inside, .. } => {
                moved(tuple.dst.addr, inside).map(|addr| TransportAddr::new(addr, tuple.dst.port))
            }
        }
    }
}

impl fmt::Display for Rule<Destination> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Destination::To { addr, first_port: Some(port), .. } => {
                write!(f, "{}: DNAT to {}", self.matches, TransportAddr::new(*addr, *port))
            }
            Destination::To { addr, .. } => write!(f, "{}: DNAT to {addr}", self.matches),
            Destination::Prefix { inside, .. } => write!(f, "{}: NETMAP to {inside}", self.matches),
        }
    }
}

impl fmt::Display for Rule<Source> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Source::Masquerade => write!(f, "{}: MASQUERADE", self.matches),
            Source::To(addrs) if addrs.start() == addrs.end() => {
                write!(f, "{}: SNAT to {}", self.matches, addrs.start())
            }
            Source::To(addrs) => {
                write!(f, "{}: SNAT to {}-{}", self.matches, addrs.start(), addrs.end())
            }
            Source::Prefix(outside) => write!(f, "{}: NETMAP to {outside}", self.matches),
        }
    }
}

/// All rules, in order, of both hooks. Made once; changed by making others.
#[derive(Debug, Default)]
pub struct Rules {
    prerouting: Vec<Rule<Destination>>,
    postrouting: Vec<Rule<Source>>,
    by_port: BTreeMap<Option<Protocol>, ByPort>,
}

impl Rules {
    /// Rules of prerouting, which know no egress, and of postrouting.
    #[must_use]
    pub fn new(prerouting: Vec<Rule<Destination>>, postrouting: Vec<Rule<Source>>) -> Self {
        let named: BTreeSet<_> =
            prerouting.iter().map(|rule| rule.matches.protocol).chain([None]).collect();
        let of = |protocol: Option<Protocol>| {
            ByPort::of(prerouting.iter().enumerate().filter_map(|(number, rule)| {
                let matches = &rule.matches;
                let applies = matches.protocol.is_none() || matches.protocol == protocol;
                applies.then(|| (number, matches.dst_ports.clone()))
            }))
        };
        let by_port = named.into_iter().map(|protocol| (protocol, of(protocol))).collect();
        Self { prerouting, postrouting, by_port }
    }

    /// Counts on from where equal rules have come to, before these are in force: a change of one rule is no
    /// reason for the others to begin again.
    pub(crate) fn count_on_from(&self, former: &Self) {
        count_on(&self.prerouting, &former.prerouting);
        count_on(&self.postrouting, &former.postrouting);
    }

    /// The rule of prerouting that decides, and its number.
    #[must_use]
    pub fn destination(&self, from: Zone, tuple: &Tuple) -> Option<(usize, &Rule<Destination>)> {
        let index = self.by_port.get(&Some(tuple.protocol)).or_else(|| self.by_port.get(&None))?;
        let candidates = index.at(tuple.dst.port).iter();
        candidates
            .filter_map(|number| Some((*number as usize, self.prerouting.get(*number as usize)?)))
            .find(|(_, rule)| rule.matches.holds(from, None, tuple))
    }

    /// Where the rules of prerouting lead a packet.
    #[must_use]
    pub fn leads(&self, from: Zone, tuple: &Tuple) -> Option<TransportAddr> {
        self.destination(from, tuple).and_then(|(_, rule)| rule.leads(tuple))
    }

    /// The rule of postrouting that decides, and its number. `tuple` has the destination the packet has
    /// by now.
    #[must_use]
    pub fn source(&self, from: Zone, to: Zone, tuple: &Tuple) -> Option<(usize, &Rule<Source>)> {
        let mut rules = self.postrouting.iter().enumerate();
        rules.find(|(_, rule)| rule.matches.holds(from, Some(to), tuple))
    }

    /// The ports the rules claim, which must not be handed out. A rule for all ports of any address
    /// takes what is left over.
    pub(crate) fn claimed(
        &self,
    ) -> impl Iterator<Item = (Option<IpCidr>, Option<Protocol>, RangeInclusive<u16>)> {
        let claims = self.prerouting.iter().map(|rule| &rule.matches);
        let some =
            claims.filter(|matches| matches.dst.is_some() || matches.dst_ports != (0..=u16::MAX));
        some.map(|matches| (matches.dst, matches.protocol, matches.dst_ports.clone()))
    }

    /// The rules of prerouting, in order.
    #[must_use]
    pub fn prerouting(&self) -> &[Rule<Destination>] {
        &self.prerouting
    }

    /// The rules of postrouting, in order.
    #[must_use]
    pub fn postrouting(&self) -> &[Rule<Source>] {
        &self.postrouting
    }
}

fn count_on<A: Hash + Eq>(rules: &[Rule<A>], former: &[Rule<A>]) {
    let counts: HashMap<_, _> =
        former.iter().map(|rule| ((&rule.matches, &rule.action), rule.counts())).collect();
    for rule in rules {
        if let Some(counts) = counts.get(&(&rule.matches, &rule.action)) {
            rule.count_on_from(*counts);
        }
    }
}

/// Which rules may hold for a port: for each run of ports that differ in nothing, the rules in order.
#[derive(Debug, Default)]
struct ByPort {
    first: Vec<u16>,
    rules: Vec<Box<[u32]>>,
}

impl ByPort {
    fn of(rules: impl Iterator<Item = (usize, RangeInclusive<u16>)>) -> Self {
        let mut events = Vec::new();
        for (number, ports) in rules.filter(|(_, ports)| !ports.is_empty()) {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            events.push((u32::from(*ports.start()), true, number));
            events.push((u32::from(*ports.end()) + 1, false, number));
        }
        events.sort_unstable();
        let mut index = Self::default();
        let mut holding = BTreeSet::new();
        for run in events.chunk_by(|a, b| a.0 == b.0) {
            for (_, begins, number) in run {
                match begins {
                    true => holding.insert(*number),
                    false => holding.remove(number),
                };
            }
            if let Ok(first) = u16::try_from(run[0].0) {
                index.first.push(first);
                index.rules.push(holding.iter().copied().collect());
            }
        }
        index
    }

    fn at(&self, port: u16) -> &[u32] {
        let run = self.first.partition_point(|first| *first <= port);
        run.checked_sub(1).map_or(&[], |run| &self.rules[run])
    }
}

/// The same place in another prefix: the host's bits of `addr`, the rest of `prefix`. None if the families
/// differ.
#[must_use]
pub fn moved(addr: IpAddr, prefix: &IpCidr) -> Option<IpAddr> {
    let len = u32::from(prefix.prefix_len());
    match (addr, IpAddr::from(prefix.address())) {
        (IpAddr::V4(addr), IpAddr::V4(to)) => {
            let host = u32::MAX.checked_shr(len).unwrap_or(0);
            Some(IpAddr::V4((to.to_bits() & !host | addr.to_bits() & host).into()))
        }
        (IpAddr::V6(addr), IpAddr::V6(to)) => {
            let host = u128::MAX.checked_shr(len).unwrap_or(0);
            Some(IpAddr::V6((to.to_bits() & !host | addr.to_bits() & host).into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(ports: RangeInclusive<u16>, protocol: Option<Protocol>) -> Rule<Destination> {
        let to = Destination::To {
            addr: "172.18.0.2".parse().unwrap(),
            first_port: Some(80),
            account: Account(1),
            zone: Zone(1),
        };
        Rule::new(Match { protocol, dst_ports: ports, ..Match::ANY }, to)
    }

    fn towards(protocol: Protocol, port: u16) -> Tuple {
        let at = |addr: &str, port| TransportAddr::new(addr.parse().unwrap(), port);
        Tuple::new(protocol, at("198.51.100.2", 4000), at("203.0.113.1", port))
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let tcp = Some(Protocol::Tcp);
        let rules = Rules::new(
            vec![
                publish(8080..=8080, tcp),
                publish(8000..=8999, tcp),
                publish(0..=65_535, Some(Protocol::Udp)),
                publish(1..=65_535, None),
            ],
            vec![],
        );
        let decides = |protocol, port| {
            rules.destination(Zone(1), &towards(protocol, port)).map(|(number, _)| number)
        };
        assert_eq!(decides(Protocol::Tcp, 8080), Some(0));
        assert_eq!(decides(Protocol::Tcp, 8000), Some(1));
        assert_eq!(decides(Protocol::Tcp, 8999), Some(1));
        assert_eq!(decides(Protocol::Tcp, 9000), Some(3));
        assert_eq!(decides(Protocol::Udp, 65_535), Some(2));
        assert_eq!(decides(Protocol::Other(132), 65_535), Some(3));
        assert_eq!(decides(Protocol::Other(132), 0), None);
    }

    #[test]
    fn every_port_may_have_its_own_rule() {
        let each = (1..=u16::MAX).map(|port| publish(port..=port, Some(Protocol::Tcp)));
        let rules = Rules::new(each.collect(), vec![]);
        for port in [1, 2, 4711, u16::MAX] {
            let (number, _) = rules.destination(Zone(1), &towards(Protocol::Tcp, port)).unwrap();
            assert_eq!(number, usize::from(port) - 1);
        }
        assert!(rules.destination(Zone(1), &towards(Protocol::Tcp, 0)).is_none());
        assert_eq!(rules.prerouting()[0].to_string(), "tcp port 1: DNAT to 172.18.0.2:80");
    }

    #[test]
    fn an_address_keeps_its_place_in_another_prefix() {
        let moved = |addr: &str, to: &str| moved(addr.parse().unwrap(), &to.parse().unwrap());
        assert_eq!(moved("10.1.2.3", "192.0.2.0/24"), "192.0.2.3".parse().ok());
        assert_eq!(moved("10.1.2.3", "192.0.2.9/32"), "192.0.2.9".parse().ok());
        assert_eq!(moved("fd00::5", "2001:db8:1::/48"), "2001:db8:1::5".parse().ok());
        assert_eq!(moved("fd00::5", "192.0.2.0/24"), None);
    }
}
