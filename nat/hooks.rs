//! The NAT: what its hooks share.
//!
//! A packet passes prerouting, is routed by whoever calls, and passes postrouting, which gets what
//! prerouting gave ([`Passage`](crate::Passage)). Any worker may call any of it; what is shared is behind small locks, and
//! a packet of a known flow takes none but its flow's.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};
use smoltcp::time::Instant;

use crate::conntrack::Conntrack;
use crate::entry::Entry;
use crate::fragments::{Fragments, Gathered, Overdue};
use crate::headers::Headers;
use crate::identification::Identifications;
use crate::mapping::{External, Mappings};
use crate::npt::Npt;
use crate::rules::Rules;
use crate::timeouts::Timeouts;
use crate::tuple::{Protocol, Tuple};
use crate::unsolicited::Unsolicited;
use crate::why::{Hook, Note};
use crate::zone::{Account, Owner, Zone};

/// Who from outside may answer an inside address and port (RFC 4787 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Anybody.
    EndpointIndependent,
    /// Whoever has an address it has spoken to.
    #[default]
    AddressDependent,
    /// The very address and port it has spoken to.
    AddressAndPortDependent,
}

/// How the NAT behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who may answer.
    pub filtering: Filtering,
    /// Whether TCP connections are picked up in the middle (`nf_conntrack_tcp_loose`).
    pub loose: bool,
    /// Whether segments out of their window pass all the same (`nf_conntrack_tcp_be_liberal`).
    pub liberal: bool,
    /// Whether an MSS is lowered to what the way carries.
    pub clamp_mss: bool,
    /// Whether packets from outside may be routed to inside addresses without a rule that says so.
    pub open: bool,
    /// Whether a SYN nobody asked for is answered with an error, six seconds later (RFC 5382 REQ-4).
    pub answer_unsolicited: bool,
    /// External ports one account may hold.
    pub max_mappings_of_account: usize,
    /// Its uplink: the zone whose external addresses containers of one network show each other (hairpin). Each
    /// uplink has a NAT of its own, and all of them may share one conntrack.
    pub uplink: Zone,
    /// How long a silent flow is remembered; the conntrack's own times, if `None`.
    pub timeouts: Option<Timeouts>,
    /// What IPv6 clients of an IPv4 container are shown with.
    pub nat46: Option<RangeInclusive<Ipv4Addr>>,
    /// Random and kept: external ports are chosen by it.
    pub secret: [u8; 16],
}

impl Config {
    /// The default, with that secret.
    #[must_use]
    pub const fn new(uplink: Zone, secret: [u8; 16]) -> Self {
        Self {
            filtering: Filtering::AddressDependent,
            loose: true,
            liberal: false,
            clamp_mss: true,
            open: false,
            answer_unsolicited: true,
            max_mappings_of_account: 32_768,
            uplink,
            timeouts: None,
            nat46: None,
            secret,
        }
    }
}

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// The network or uplink.
    pub zone: Zone,
    /// Whether that is a container's side.
    pub inside: bool,
    /// Whose packet it is.
    pub account: Account,
    /// The longest packet that leg carries.
    pub mtu: u16,
}

/// Where a packet goes out.
#[derive(Clone, Copy, Debug)]
pub struct Egress<'a> {
    /// The network or uplink.
    pub zone: Zone,
    /// Whether that is a container's side.
    pub inside: bool,
    /// The longest packet that leg carries.
    pub mtu: u16,
    /// Its addresses, for masquerade: the first of the packet's family.
    pub addresses: &'a [IpAddr],
}

/// The NAT of one uplink.
///
/// Several share a conntrack: a container's address and port is then shown by each uplink's own mapping, and
/// no NAT ends another's flows. A packet for an external address of another uplink's passes both: out by its own
/// network's NAT, then as one from outside, in that other uplink's zone, by that uplink's.
///
/// ```
/// use std::sync::Arc;
/// use nat::*;
/// use smoltcp::time::Instant;
///
/// let (net, uplink) = (Zone(1), Zone(100));
/// let conntrack = Arc::new(Conntrack::new(262_144, Profile::Rfc));
/// let nat = Nat::new(conntrack, Config::new(uplink, *b"some random bits"));
/// let masquerade = Rule::new(Match { to: Some(uplink), ..Match::ANY }, Source::Masquerade);
/// nat.set_rules(Rules::new(vec![], vec![masquerade]));
///
/// // A packet from a container, from its IP header on, and where it came in.
/// let now = Instant::from_secs(1);
/// let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0];
/// packet.extend([172, 18, 0, 2, 198, 51, 100, 2, 0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
/// let ingress = Ingress { zone: net, inside: true, account: Account(2), mtu: 1500 };
/// let mut notes: Vec<Note> = Vec::new(); // or &mut NoNotes, if nobody asks why
/// let mut passage = nat.prerouting(&mut packet, Undone::default(), &ingress, now, &mut notes)?;
///
/// // The caller looks up the route of `passage.destination()`, then:
/// let addresses = ["203.0.113.1".parse().expect("an address")];
/// let egress = Egress { zone: uplink, inside: false, mtu: 1500, addresses: &addresses };
/// let sent = nat.postrouting(&mut packet, &mut passage, &egress, None, now, &mut notes)?;
/// assert_eq!((sent, &packet[12..16]), (Sent::Whole, &[203, 0, 113, 1][..]));
/// assert_eq!(notes[2].to_string(), "postrouting rule 0 matches: all: MASQUERADE");
/// # Ok::<(), Refused>(())
/// ```
#[derive(Debug)]
pub struct Nat {
    pub(crate) conntrack: Arc<Conntrack>,
    pub(crate) mappings: Mappings,
    uplink: Zone,
    config: ArcSwap<Config>,
    rules: ArcSwap<Rules>,
    npt: ArcSwap<Vec<Npt>>,
    any_prefix: AtomicBool,
    /// Addresses of [`Source::To`](crate::Source::To) that nobody is to be shown with, in order; no two ranges touch.
    withheld: ArcSwap<Vec<RangeInclusive<IpAddr>>>,
    fragments: Mutex<Fragments>,
    unsolicited: Mutex<Unsolicited>,
    pub(crate) identifications: Identifications,
}

impl Nat {
    /// A NAT without rules, whose flows are in `conntrack`.
    #[must_use]
    pub fn new(conntrack: Arc<Conntrack>, config: Config) -> Self {
        Self {
            conntrack,
            mappings: Mappings::new(config.max_mappings_of_account, config.secret),
            identifications: Identifications::new(u32::from_ne_bytes([
                config.secret[0],
                config.secret[1],
                config.secret[2],
                config.secret[3],
            ])),
            uplink: config.uplink,
            config: ArcSwap::from_pointee(config),
            rules: ArcSwap::default(),
            npt: ArcSwap::default(),
            any_prefix: AtomicBool::new(false),
            withheld: ArcSwap::default(),
            fragments: Mutex::default(),
            unsolicited: Mutex::default(),
        }
    }

    /// Replaces the rules. Flows whose destination they would choose otherwise end, so that the next packet
    /// goes where it now belongs; all others keep what they were given, and so do TCP connections: nobody
    /// else could go on with them, and they end by themselves.
    pub fn set_rules(&self, rules: Rules) {
        self.mappings.reserve(rules.claimed().collect());
        rules.count_on_from(&self.rules.load());
        let rules = Arc::new(rules);
        self.rules.store(Arc::clone(&rules));
        self.end(None, |entry| {
            let Entry { zone, original, reply, .. } = entry;
            entry.by_rule()
                && original.protocol != Protocol::Tcp
                && rules.leads(*zone, original) != Some(reply.src)
        });
    }

    /// Replaces the configuration, but for `uplink` and `secret`, which stay. What is there goes on: a mapping
    /// beyond a smaller quota, a flow by stricter filtering; other idle times hold from its next packet on.
    pub fn set_config(&self, config: Config) {
        let secret = self.config.load().secret;
        self.mappings.set_quota(config.max_mappings_of_account);
        self.config.store(Arc::new(Config { uplink: self.uplink, secret, ..config }));
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// The same, for as long as a packet is in hand.
    pub(crate) fn settings(&self) -> Guard<Arc<Config>> {
        self.config.load()
    }

    /// Its uplink.
    #[must_use]
    pub const fn uplink(&self) -> Zone {
        self.uplink
    }

    /// Ends the flows of a container that is gone.
    pub fn forget_inside(&self, zone: Zone, addr: IpAddr) {
        self.end(Some(zone), |entry| {
            let (there, tuple) = entry.named(entry.from_inside());
            there == zone && tuple.src.addr == addr
        });
    }

    /// Ends flows of its own, a part of the table at a time.
    fn end(&self, zone: Option<Zone>, which: impl Fn(&Entry) -> bool) {
        let mut place = Some(0);
        while let Some(at) = place {
            let (some, next) = self.conntrack.list_from(zone, at);
            some.iter()
                .filter(|entry| entry.owner() == Owner::NONE && entry.nat() == self.uplink)
                .filter(|entry| which(entry))
                .for_each(|entry| self.conntrack.remove(entry));
            place = next;
        }
    }

    /// Replaces the prefixes translated without state.
    pub fn set_prefixes(&self, npt: Vec<Npt>) {
        self.any_prefix.store(!npt.is_empty(), Relaxed);
        self.npt.store(Arc::new(npt));
    }

    /// Has nobody shown with these addresses from now on, which a rule's range may have among others: they are
    /// somebody else's, or not ours yet. `withheld` is in order, and no two of it touch. What is there goes
    /// on, until [`forget_addresses`](Self::forget_addresses).
    pub fn withhold(&self, withheld: Vec<RangeInclusive<IpAddr>>) {
        self.withheld.store(Arc::new(withheld));
    }

    /// What is withheld now.
    pub(crate) fn withheld(&self) -> Guard<Arc<Vec<RangeInclusive<IpAddr>>>> {
        self.withheld.load()
    }

    /// Why a flow is translated as it is: what its first packet would be told of rules and mappings by now, and
    /// what becomes of it. Nothing, if it is not.
    pub fn explain(&self, entry: &Entry) -> Vec<Note> {
        let Entry { zone, original, reply, .. } = entry;
        let mut notes = Vec::new();
        if !entry.translated() || entry.nat() != self.uplink {
            return notes;
        }
        let rules = self.rules();
        if let Some((number, rule)) = rules.destination(*zone, original).filter(|_| entry.by_rule())
        {
            let text = rule.to_string();
            notes.push(Note::Rule { hook: Hook::Prerouting, number, text });
        }
        let led = Tuple { dst: reply.src, ..*original };
        let inside = entry.leads_to().or(entry.mapping());
        if let Some(mapping) = inside.filter(|mapping| mapping.external() == original.dst) {
            let (external, inside) = (mapping.external(), mapping.inside().at);
            notes.push(Note::Behind { external, inside });
        }
        let hairpin = reply.dst.addr != original.src.addr && original.dst.addr != reply.src.addr;
        if hairpin {
            notes.push(Note::Hairpin);
        }
        let to = if hairpin { self.uplink } else { entry.reply_zone() };
        if let Some((number, rule)) = rules.source(*zone, to, &led)
            && reply.dst.addr != original.src.addr
        {
            let text = rule.to_string();
            notes.push(Note::Rule { hook: Hook::Postrouting, number, text });
        }
        if let Some(mapping) = entry.mapping().filter(|mapping| mapping.external() == reply.dst) {
            let (inside, external) = (mapping.inside().at, mapping.external());
            notes.push(Note::Mapped { inside, external });
        }
        notes.push(Note::Translated { from: *original, to: reply.inverse() });
        notes
    }

    /// The rules in force, for listings.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// The prefixes in force; none, as a rule.
    pub(crate) fn prefixes(&self) -> Option<Guard<Arc<Vec<Npt>>>> {
        self.any_prefix.load(Relaxed).then(|| self.npt.load())
    }

    /// The flows.
    #[must_use]
    pub const fn conntrack(&self) -> &Arc<Conntrack> {
        &self.conntrack
    }

    /// The mappings.
    #[must_use]
    pub const fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// Whether pieces of that account's packets pass the hooks one by one, as by any router (RFC 1812 §5.2.6): where
    /// nothing is translated, and no packet may be an owner's.
    #[must_use]
    pub fn routes_pieces(&self, account: Account) -> bool {
        self.only_routes() && !self.conntrack.any_owned_of(account)
    }

    /// Whether nothing is translated, nor refused: it takes note of flows, and has no say in them.
    pub(crate) fn only_routes(&self) -> bool {
        let rules = self.rules();
        let none = rules.prerouting().is_empty() && rules.postrouting().is_empty();
        none && self.settings().open && self.prefixes().is_none()
    }

    /// Takes a piece of a packet; unless [they pass](Self::routes_pieces), only whole packets do.
    pub fn gather(
        &self,
        packet: &[u8],
        headers: &Headers,
        ingress: &Ingress,
        now: Instant,
    ) -> Gathered {
        let from = (ingress.zone, ingress.account);
        let settings = self.settings();
        self.fragments().gather(packet, headers, from, now, self.timeouts(&settings))
    }

    /// The idle times of its flows.
    pub(crate) fn timeouts<'a>(&'a self, settings: &'a Config) -> &'a Timeouts {
        settings.timeouts.as_ref().unwrap_or(self.conntrack.timeouts())
    }

    /// Forgets what has been silent for too long, a part at each call: call it every tenth of a second. Of NATs
    /// that share a conntrack, each forgets a part of all flows, whosever they are.
    pub fn expire(&self, now: Instant) {
        self.mappings.expire(now);
        self.conntrack.expire(now);
        self.fragments().expire(now);
    }

    /// A packet some pieces of which have not come in time, whose sender is to be told. Call until there is none.
    pub fn overdue(&self) -> Option<Overdue> {
        self.fragments().overdue()
    }

    /// Octets of pieces kept.
    #[must_use]
    pub fn fragment_octets(&self) -> usize {
        self.fragments().octets()
    }

    /// Notes a SYN nobody asked for.
    pub(crate) fn hold_unsolicited(&self, zone: Zone, tuple: Tuple, packet: &[u8], now: Instant) {
        if self.settings().answer_unsolicited {
            self.waiting().hold(zone, tuple, packet, now);
        }
    }

    /// A SYN nobody asked for, six seconds ago, whose sender may now be told that the port is
    /// unreachable: where it came in, and the beginning of it. Call until there is none.
    pub fn due(&self, now: Instant) -> Option<(Zone, Vec<u8>)> {
        loop {
            let waiting = self.waiting().due(now)?;
            let found = self.conntrack.find(waiting.zone, waiting.tuple, now);
            if found.is_none_or(|(_, entry)| entry.knocks()) {
                return Some((waiting.zone, waiting.quoted));
            }
        }
    }

    /// When [`due`](Self::due) has something next.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting().next_due()
    }

    /// Ends every flow shown with an address the uplink has lost, or entered by it, as masquerade must.
    pub fn forget_address(&self, external: External) {
        self.forget_addresses(external.zone, |addr| addr == external.addr);
    }

    /// The same of every address of `zone` that is `gone`.
    pub fn forget_addresses(&self, zone: Zone, gone: impl Fn(IpAddr) -> bool) {
        self.end(None, |entry| {
            let Entry { original, reply, .. } = entry;
            let source = (reply.dst.addr != original.src.addr).then_some(reply.dst.addr);
            let destination = (reply.src.addr != original.dst.addr).then_some(original.dst.addr);
            source.into_iter().chain(destination).any(&gone)
        });
        self.mappings.forget(|external| external.zone == zone && gone(external.addr));
    }

    /// Whoever wants more than to look waits until this is dropped, whatever it is but the flow's own tracking.
    #[cfg(test)]
    pub(crate) fn hold<'a>(&'a self, flow: &'a Entry) -> impl Sized + 'a {
        let mapping = flow.mapping().map(|mapping| self.mappings.hold(mapping));
        (self.conntrack.hold(flow.account()), mapping, self.fragments(), self.waiting())
    }

    fn fragments(&self) -> MutexGuard<'_, Fragments> {
        self.fragments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Unsolicited> {
        self.unsolicited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
