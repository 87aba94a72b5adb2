//! What the routers of the segment say: default routers, prefixes, routes, name servers, MTU.
//!
//! Read RFC 4861 §6.3 (what a host keeps), RFC 4862 §5.5.3 (addresses of prefixes, and the two hours a
//! forged advertisement cannot take from them), RFC 7559 (solicitations that get lost) and RFC 4191 §3.
//! Whoever is on the segment can advertise: every list is bounded, and when one is full what comes last
//! is not kept, so that a flood takes nothing from the routers that were there.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::Ipv6Cidr;

use super::advert::{Advert, Lifetime, Preference, Said};
use super::chance::Chance;
use super::voice::Voice;
use crate::hop::Hop;
use crate::outbox::Outbox;
use crate::packet::is_link_local_v6;

/// Default routers kept.
pub(crate) const MAX_ROUTERS: usize = 8;
/// Prefixes kept.
pub(crate) const MAX_PREFIXES: usize = 8;
/// More specific routes kept (RFC 4191).
pub(crate) const MAX_ROUTES: usize = 32;
/// Name servers kept; RFC 8106 §5.3.1 asks for three at least.
pub(crate) const MAX_NAME_SERVERS: usize = 8;

/// Longest wait before the first solicitation (MAX_RTR_SOLICITATION_DELAY, RFC 4861 §10).
const SOLICITATION_DELAY: Duration = Duration::from_secs(1);
/// Time between the first two (IRT), and the longest between any (MRT), give or take a tenth
/// (RFC 7559 §2): no end of them until a router has answered.
const FIRST_INTERVAL: Duration = Duration::from_secs(4);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// What an advertisement cannot shorten the life of an address below (RFC 4862 §5.5.3 (e)).
const TWO_HOURS: Duration = Duration::from_secs(7200);
/// Least MTU of a link that carries IPv6 (RFC 8200 §5).
pub(crate) const MIN_MTU: u32 = 1280;

/// When something ends; `None`: never.
type End = Option<Instant>;

/// A prefix on the segment.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    prefix: Ipv6Cidr,
    /// Until when it is on the segment (the L flag).
    on_link: Option<End>,
    /// What is formed of it (the A flag).
    address: Option<Life>,
}

/// How long an address lasts (RFC 4862 §5.5.4).
#[derive(Clone, Copy, Debug)]
struct Life {
    valid: End,
    preferred: End,
    deprecated: bool,
}

/// An address a router advertised the prefix of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Formed {
    /// With the prefix's length if that is on the segment, else 128.
    pub(crate) address: Ipv6Cidr,
    /// Whether its preferred lifetime is over.
    pub(crate) deprecated: bool,
    /// When it is not valid any more.
    pub(crate) expires: End,
}

#[derive(Clone, Copy, Debug)]
struct Router {
    addr: Ipv6Addr,
    preference: Preference,
    ends: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Route {
    to: Ipv6Cidr,
    via: Ipv6Addr,
    preference: Preference,
    ends: End,
}

#[derive(Clone, Copy, Debug)]
struct NameServer {
    addr: Ipv6Addr,
    ends: End,
}

/// What was heard of the routers, and the asking for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Solicit {
    due: Option<Instant>,
    interval: Option<Duration>,
    routers: Vec<Router>,
    prefixes: Vec<Prefix>,
    routes: Vec<Route>,
    name_servers: Vec<NameServer>,
    mtu: Option<u32>,
}

impl Solicit {
    /// Begins to ask for routers; what is known of them stays known.
    pub(crate) fn begin(&mut self, now: Instant, chance: &mut Chance) {
        self.interval = None;
        self.due = Some(now + chance.between(Duration::ZERO, SOLICITATION_DELAY));
    }

    /// Asks no more until [`begin`](Self::begin).
    pub(crate) fn pause(&mut self) {
        self.due = None;
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let lives = self.prefixes.iter().filter_map(|known| known.address);
        let preferred = lives.clone().filter(|life| !life.deprecated);
        let ends = self
            .routers
            .iter()
            .map(|known| known.ends)
            .chain(self.prefixes.iter().filter_map(|known| known.on_link.flatten()))
            .chain(lives.filter_map(|life| life.valid))
            .chain(preferred.filter_map(|life| life.preferred))
            .chain(self.routes.iter().filter_map(|known| known.ends))
            .chain(self.name_servers.iter().filter_map(|known| known.ends));
        ends.chain(self.due).min()
    }

    /// Does what time asks for: asks again, from `own`, and forgets what has ended.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        own: Ipv6Addr,
        voice: &Voice,
        chance: &mut Chance,
        out: &mut Outbox,
    ) {
        if self.due.is_some_and(|due| due <= now) {
            voice.solicit(own, out);
            let interval = match self.interval {
                None => FIRST_INTERVAL,
                Some(last) => (last * 2).min(LONGEST_INTERVAL),
            };
            let interval = chance.around(interval, interval / 10);
            self.interval = Some(interval);
            self.due = Some(now + interval);
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        let lasts = |end: End| end.is_none_or(|end| now < end);
        self.routers.retain(|known| now < known.ends);
        self.routes.retain(|known| lasts(known.ends));
        self.name_servers.retain(|known| lasts(known.ends));
        for known in &mut self.prefixes {
            known.on_link = known.on_link.filter(|end| lasts(*end));
            known.address = known.address.filter(|life| lasts(life.valid));
            if let Some(life) = &mut known.address {
                life.deprecated = !lasts(life.preferred);
            }
        }
        self.prefixes.retain(|known| known.on_link.is_some() || known.address.is_some());
    }

    /// Takes in an advertisement.
    pub(crate) fn heard(&mut self, advert: &Advert<'_>, now: Instant) {
        self.forget(now);
        let via = advert.router;
        let router =
            Router { addr: via, preference: advert.preference, ends: now + advert.lifetime };
        let lasts = advert.lifetime > Duration::ZERO;
        if lasts {
            // It has answered: nobody need be asked any more (RFC 7559 §2.1).
            self.due = None;
        }
        keep(&mut self.routers, lasts.then_some(router), MAX_ROUTERS, |known| known.addr == via);
        for said in advert.said() {
            match said {
                Said::Mtu(mtu) if mtu >= MIN_MTU => self.mtu = Some(mtu),
                Said::Mtu(_) => {}
                Said::Prefix { prefix, on_link, autonomous, valid, preferred } => {
                    if is_usable(prefix.address()) {
                        let lifetimes = (valid, preferred);
                        self.hear_prefix(prefix, (on_link, autonomous), lifetimes, now);
                    }
                }
                Said::Route { to, preference, lifetime } => {
                    let lasts = lifetime != Some(Duration::ZERO);
                    let route = Route { to, via, preference, ends: end(lifetime, now) };
                    keep(&mut self.routes, lasts.then_some(route), MAX_ROUTES, |known| {
                        (known.to, known.via) == (to, via)
                    });
                }
                Said::NameServers { addrs, lifetime } => {
                    for addr in addrs.iter().copied().map(Ipv6Addr::from) {
                        self.hear_name_server(addr, lifetime, now);
                    }
                }
            }
        }
    }

    fn hear_prefix(
        &mut self,
        prefix: Ipv6Cidr,
        (on_link, autonomous): (bool, bool),
        (valid, preferred): (Lifetime, Lifetime),
        now: Instant,
    ) {
        let ended = valid == Some(Duration::ZERO);
        let at = match self.prefixes.iter().position(|known| known.prefix == prefix) {
            Some(at) => at,
            None if ended || self.prefixes.len() >= MAX_PREFIXES => return,
            None => {
                self.prefixes.push(Prefix { prefix, on_link: None, address: None });
                self.prefixes.len() - 1
            }
        };
        let known = &mut self.prefixes[at];
        if on_link {
            known.on_link = (!ended).then(|| end(valid, now));
        }
        // RFC 4862 §5.5.3 (c) and (d): not preferred for longer than valid, and 64 bits, so that
        // prefix and interface identifier make an address.
        let sane = match (preferred, valid) {
            (Some(preferred), Some(valid)) => preferred <= valid,
            (None, Some(_)) => false,
            (_, None) => true,
        };
        if autonomous && sane && prefix.prefix_len() == 64 {
            let preferred = end(preferred, now);
            let valid = match known.address {
                None => (!ended).then(|| end(valid, now)),
                Some(life) => Some(renewed(life.valid, valid, now)),
            };
            known.address = valid.map(|valid| Life { valid, preferred, deprecated: false });
        }
        self.forget(now);
    }

    fn hear_name_server(&mut self, addr: Ipv6Addr, lifetime: Lifetime, now: Instant) {
        if addr.is_multicast() || addr.is_unspecified() || addr.is_loopback() {
            return;
        }
        let lasts = lifetime != Some(Duration::ZERO);
        let said = lasts.then_some(NameServer { addr, ends: end(lifetime, now) });
        keep(&mut self.name_servers, said, MAX_NAME_SERVERS, |known| known.addr == addr);
    }

    /// The addresses that prefixes and `interface`, the lower half of an address, make.
    pub(crate) fn formed(&self, interface: u64) -> impl Iterator<Item = Formed> {
        self.prefixes.iter().filter_map(move |known| {
            let life = known.address?;
            let upper = u128::from(known.prefix.address()) & !u128::from(u64::MAX);
            let len = if known.on_link.is_some() { known.prefix.prefix_len() } else { 128 };
            Some(Formed {
                address: Ipv6Cidr::new((upper | u128::from(interface)).into(), len),
                deprecated: life.deprecated,
                expires: life.valid,
            })
        })
    }

    /// The routes, the best first of those to one prefix.
    pub(crate) fn routes(&self) -> Vec<Hop> {
        let on_link = self.prefixes.iter().filter(|known| known.on_link.is_some());
        let on_link = on_link.map(|known| Hop { to: known.prefix.into(), via: None });
        let mut routes = self.routes.clone();
        routes.sort_by_key(|known| std::cmp::Reverse(known.preference));
        let mut routers = self.routers.clone();
        routers.sort_by_key(|known| std::cmp::Reverse(known.preference));
        let default = Ipv6Cidr::new(Ipv6Addr::UNSPECIFIED, 0);
        on_link
            .chain(routes.iter().map(|known| hop(known.to, known.via)))
            .chain(routers.iter().map(|known| hop(default, known.addr)))
            .collect()
    }

    /// The name servers.
    pub(crate) fn name_servers(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.name_servers.iter().map(|known| known.addr.into())
    }

    /// The MTU the routers say the segment has.
    pub(crate) const fn mtu(&self) -> Option<u32> {
        self.mtu
    }
}

/// Takes what is `said` in the place of what `is_it`, so that who speaks often does not change the order, or
/// at the end of a list that is not full; `None` takes it off.
fn keep<T>(list: &mut Vec<T>, said: Option<T>, most: usize, is_it: impl Fn(&T) -> bool) {
    match (list.iter().position(is_it), said) {
        (Some(at), Some(said)) => list[at] = said,
        (Some(at), None) => {
            list.remove(at);
        }
        (None, Some(said)) if list.len() < most => list.push(said),
        (None, _) => {}
    }
}

fn hop(to: Ipv6Cidr, via: Ipv6Addr) -> Hop {
    Hop { to: to.into(), via: Some(via.into()) }
}

fn end(lifetime: Lifetime, now: Instant) -> End {
    lifetime.map(|lifetime| now + lifetime)
}

/// When an address valid until `until` ends once an advertisement has said `valid` (RFC 4862 §5.5.3 (e)):
/// it can be prolonged at will, and not be shortened below two hours.
fn renewed(until: End, valid: Lifetime, now: Instant) -> End {
    let said = end(valid, now);
    let longer = match (said, until) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(said), Some(until)) => said > until,
    };
    let floor = now + TWO_HOURS;
    if longer || said.is_some_and(|said| said > floor) {
        said
    } else if until.is_some_and(|until| until <= floor) {
        until
    } else {
        Some(floor)
    }
}

/// Whether a prefix can be that of stations; the link-local one needs no router (RFC 4862 §5.5.3 (b)).
fn is_usable(prefix: Ipv6Addr) -> bool {
    !prefix.is_multicast() && !is_link_local_v6(prefix) && !prefix.is_unspecified()
}
