//! What translation shows beside our own addresses: claimed where it is the segment's.
//!
//! Addresses within a subnet of ours are any station's to have: each is probed for, announced and defended as
//! our own are (RFC 5227, RFC 4862 §5.4), and withheld from translation while it is not ours. Those
//! beyond all our subnets are routed to us: nobody on the segment can have them, and nobody is asked. Until
//! we are in a subnet of a family it cannot be told which is which, and all of that family is withheld.
//!
//! Claims that are begun together go in step, so that all of a range are lent from the same moment on: a
//! container that begins to speak meanwhile keeps the address it gets (RFC 4787 REQ-2).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use smoltcp::time::Instant;
use smoltcp::wire::IpCidr;

use super::chance::Chance;
use super::claim::Claim;
use super::report::Settled;
use super::voice::Voice;
use crate::outbox::Outbox;
use crate::resolve::Announcement;

/// Most addresses of the segment's that are claimed to be shown; the rest of a range is withheld, and nobody
/// is shown with it. A subnet of 256 fits.
pub const MAX_SHOWN: usize = 256;

/// Addresses of one family as numbers, both ends included.
type Span = RangeInclusive<u128>;

/// The addresses to be shown, and how far those of the segment's are.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    ranges: Vec<RangeInclusive<IpAddr>>,
    /// Our own addresses with their subnets, and whether they are ours by now.
    near: Vec<(IpCidr, bool)>,
    claims: BTreeMap<IpAddr, Claim>,
    withheld: Vec<RangeInclusive<IpAddr>>,
}

impl Shown {
    /// Claims what of `ranges` is in the subnets of `near`, our own addresses and whether they are ours.
    /// Returns the addresses that were ours and are not wanted any more.
    pub(super) fn settle(
        &mut self,
        ranges: &[RangeInclusive<IpAddr>],
        near: Vec<(IpCidr, bool)>,
        now: Instant,
        chance: &mut Chance,
    ) -> Vec<IpCidr> {
        if self.ranges == ranges && self.near == near {
            return Vec::new();
        }
        self.ranges = ranges.to_vec();
        self.near = near;
        let wanted = self.wanted();
        let mut lost = Vec::new();
        self.claims.retain(|addr, claim| {
            let keep = wanted.binary_search(addr).is_ok();
            if !keep && claim.in_use() {
                lost.push(alone(*addr));
            }
            keep
        });
        let in_step = chance.clone();
        for addr in wanted {
            let begin = || Claim::begin_to_keep(addr, now, &mut in_step.clone());
            self.claims.entry(addr).or_insert_with(begin);
        }
        chance.number();
        self.withhold();
        lost
    }

    /// The addresses to be claimed, in order: those of stations, which are not our own.
    fn wanted(&self) -> Vec<IpAddr> {
        let mut wanted = Vec::new();
        for v4 in [true, false] {
            for span in self.on_link(v4) {
                let addrs = span.map(|number| address(number, v4));
                let stations = addrs.filter(|addr| {
                    let own = |(own, _): &(IpCidr, bool)| IpAddr::from(own.address()) == *addr;
                    let end = |(own, _): &(IpCidr, bool)| is_end(own, *addr);
                    !self.near.iter().any(|near| own(near) || end(near))
                });
                // What is no station's is little: an end or two of each subnet, and our own.
                wanted.extend(stations.take(MAX_SHOWN - wanted.len()));
            }
        }
        wanted
    }

    /// What of the ranges of a family is in subnets of ours: in order, and no two touch.
    fn on_link(&self, v4: bool) -> Vec<Span> {
        let of_family = |addr: IpAddr| addr.is_ipv4() == v4;
        let ranges = self.ranges.iter().filter(|range| of_family(*range.start()));
        let subnets = self.near.iter().map(|(own, _)| own);
        let subnets = subnets.filter(|own| of_family(own.address().into()));
        let mut spans = Vec::new();
        for subnet in subnets.map(span_of) {
            spans.extend(ranges.clone().filter_map(|range| {
                let first = number(*range.start()).max(*subnet.start());
                let last = number(*range.end()).min(*subnet.end());
                (first <= last).then_some(first..=last)
            }));
        }
        joined(spans)
    }

    /// Finds out anew what is not to be lent.
    fn withhold(&mut self) {
        self.withheld.clear();
        for v4 in [true, false] {
            let known =
                self.near.iter().any(|(own, _)| IpAddr::from(own.address()).is_ipv4() == v4);
            if !known {
                let ranges = self.ranges.iter().filter(|range| range.start().is_ipv4() == v4);
                self.withheld.extend(ranges.cloned());
                continue;
            }
            let claimed = self.claims.iter().filter(|(_, claim)| claim.in_use());
            let own = self.near.iter().filter(|(_, in_use)| *in_use);
            let own = own.map(|(own, _)| IpAddr::from(own.address()));
            let ours =
                claimed.map(|(addr, _)| *addr).chain(own).filter(|addr| addr.is_ipv4() == v4);
            let mut ours: Vec<_> = ours.map(number).collect();
            ours.sort_unstable();
            for span in self.on_link(v4) {
                let left = without(span, &ours);
                let left = left.map(|span| address(*span.start(), v4)..=address(*span.end(), v4));
                self.withheld.extend(left);
            }
        }
    }

    /// What of the ranges is not to be shown now, in order of the addresses.
    pub(super) fn withheld(&self) -> &[RangeInclusive<IpAddr>] {
        &self.withheld
    }

    /// The claims and whose they are, in order.
    pub(super) fn claims(&self) -> impl Iterator<Item = (IpAddr, &Claim)> {
        self.claims.iter().map(|(addr, claim)| (*addr, claim))
    }

    /// The addresses that are claimed, or were and are not somebody else's.
    pub(super) fn claimed(&self) -> impl Iterator<Item = IpAddr> {
        self.claims().filter(|(_, claim)| !claim.has_yielded()).map(|(addr, _)| addr)
    }

    /// Sends nothing more until [`probe_again`](Self::probe_again).
    pub(super) fn pause(&mut self) {
        self.claims.values_mut().for_each(Claim::pause);
    }

    /// Begins anew, in step; see [`Claim::probe_again`].
    pub(super) fn probe_again(&mut self, now: Instant, chance: &mut Chance) {
        let in_step = chance.clone();
        self.claims.values_mut().for_each(|claim| claim.probe_again(now, &mut in_step.clone()));
        chance.number();
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.claims.values().filter_map(Claim::poll_timeout).min()
    }

    /// Does what time asks for. Returns the addresses that become ours.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        voice: &Voice,
        chance: &mut Chance,
        out: &mut Outbox,
    ) -> Vec<IpCidr> {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return Vec::new();
        }
        let in_step = chance.clone();
        let mut gained = Vec::new();
        for (addr, claim) in &mut self.claims {
            if claim.handle_timeout(now, voice, &mut in_step.clone(), out) {
                gained.push(alone(*addr));
            }
        }
        chance.number();
        if !gained.is_empty() {
            self.withhold();
        }
        gained
    }

    /// Takes note of another station's message: which address it claims, whether that was ours and is not any
    /// more, and what was done about it.
    pub(super) fn heard(
        &mut self,
        message: &Announcement,
        now: Instant,
        voice: &Voice,
        out: &mut Outbox,
    ) -> Option<(IpCidr, bool, Settled)> {
        let addr = message.sender.unwrap_or(message.target);
        let claim = self.claims.get_mut(&addr)?;
        let before = claim.in_use();
        let settled = claim.heard(message, now, voice, out)?;
        let lost = before && !claim.in_use();
        if lost {
            self.withhold();
        }
        Some((alone(addr), lost, settled))
    }
}

/// An address without its subnet.
fn alone(addr: IpAddr) -> IpCidr {
    IpCidr::new(addr.into(), if addr.is_ipv4() { 32 } else { 128 })
}

/// Whether no station has `addr`, as it is the first of that subnet, or the last in IPv4 (RFC 1122 §3.2.1.3,
/// RFC 4291 §2.6.1). Of two addresses both are stations' (RFC 3021, RFC 6164).
fn is_end(subnet: &IpCidr, addr: IpAddr) -> bool {
    let span = span_of(subnet);
    let (same, number) = (IpAddr::from(subnet.address()).is_ipv4() == addr.is_ipv4(), number(addr));
    let small = span.end() - span.start() < 2;
    same && !small && (number == *span.start() || addr.is_ipv4() && number == *span.end())
}

/// The addresses of a subnet.
fn span_of(subnet: &IpCidr) -> Span {
    let addr = IpAddr::from(subnet.address());
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    let host = u128::MAX.checked_shr(128 - (bits - u32::from(subnet.prefix_len()))).unwrap_or(0);
    let first = number(addr) & !host;
    first..=first | host
}

const fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits() as u128,
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// The address of a number that was made of one of that family.
fn address(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => Ipv4Addr::from_bits(number).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    }
}

/// The same in order, with those that overlap or touch made one.
fn joined(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable_by_key(|span| *span.start());
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if *span.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(span.end());
            }
            _ => joined.push(span),
        }
    }
    joined
}

/// What is left of `span` without `taken`, which is in order.
fn without(span: Span, taken: &[u128]) -> impl Iterator<Item = Span> {
    let (first, last) = span.into_inner();
    let mut next = Some(first);
    let within = taken.iter().copied().filter(move |number| (first..=last).contains(number));
    let mut gaps = Vec::new();
    for number in within {
        if let Some(from) = next
            && from < number
        {
            gaps.push(from..=number - 1);
        }
        next = number.checked_add(1).filter(|next| *next <= last);
    }
    gaps.extend(next.map(|from| from..=last));
    gaps.into_iter()
}
