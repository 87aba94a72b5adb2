//! Which addresses there should be, and what becomes of those there are when that changes.
//!
//! What was given, leased and advertised is put together here, those to speak from first. An address
//! that is wanted before and after keeps its claim, wherever it came from before and comes from now: only
//! one that is new is probed for.

use std::collections::BTreeSet;

use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpCidr, Ipv6Cidr};

use super::claim::{Claim, Own};
use super::lease::Client;
use super::report::{Addressing, Change, Lost, Origin};
use super::{MAX_ADDRESSES, Presence};
use crate::network::link_local;

/// An address before it is claimed.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    address: IpCidr,
    origin: Origin,
    deprecated: bool,
    expires: Option<Instant>,
}

impl Presence {
    /// Brings what we claim, and what is told of it, in line with what was given, leased and advertised.
    pub(super) fn settle(&mut self, now: Instant) {
        let wanted = self.wanted();
        let is_wanted = |own: &Own| {
            wanted.iter().any(|wanted| wanted.address.address() == own.address.address())
        };
        let gone: Vec<_> = self.own.extract_if(.., |own| !is_wanted(own)).collect();
        for Own { address, origin, claim, .. } in gone {
            if claim.in_use() {
                let why = match (origin, &self.lease) {
                    (Origin::Dhcp, Some(client)) => client.lost,
                    (Origin::Advertised, _) if self.solicit.is_some() => Lost::Expired,
                    _ => Lost::Withdrawn,
                };
                self.tell(Change::Lost { address, origin, why });
            }
        }
        for wanted in wanted {
            self.want(wanted, now);
        }
        self.settle_shown(now);
        if let Some(listener) = &mut self.listener {
            let claims = self.own.iter().filter(|own| !own.claim.has_yielded());
            let own = claims.map(|own| own.address.address());
            let addrs = own.chain(self.shown.claimed().map(Into::into));
            let addrs = addrs.filter_map(|addr| match addr {
                IpAddress::Ipv6(addr) => Some(addr),
                IpAddress::Ipv4(_) => None,
            });
            listener.listen(addrs, now);
        }
        self.compare();
    }

    /// Every address there should be, each once, those to speak from first.
    fn wanted(&self) -> Vec<Wanted> {
        let given =
            |address| Wanted { address, origin: Origin::Static, deprecated: false, expires: None };
        let mut wanted = Vec::new();
        if let Some(lease) = self.lease.as_ref().and_then(Client::lease) {
            let expires = lease.times.map(|[.., end]| end);
            wanted.push(Wanted { origin: Origin::Dhcp, expires, ..given(lease.address.into()) });
        }
        let mut were_given: Vec<IpCidr> = Vec::new();
        if let Addressing::Static { addresses, .. } = &self.config.v4 {
            were_given.extend(addresses.iter().copied().map(IpCidr::from));
        }
        if let Addressing::Static { addresses, .. } = &self.config.v6 {
            were_given.extend(addresses.iter().copied().map(IpCidr::from));
        }
        wanted.extend(were_given.into_iter().take(MAX_ADDRESSES).map(given));
        let link_local = link_local(self.config.mac);
        if let Some(solicit) = &self.solicit {
            let [.., a, b, c, d] = link_local.segments();
            let interface = [a, b, c, d].into_iter().fold(0, |id, word| id << 16 | u64::from(word));
            wanted.extend(solicit.formed(interface).map(|formed| Wanted {
                address: formed.address.into(),
                origin: Origin::Advertised,
                deprecated: formed.deprecated,
                expires: formed.expires,
            }));
        }
        if self.listener.is_some() {
            let address = Ipv6Cidr::new(link_local, 64).into();
            wanted.push(Wanted { origin: Origin::LinkLocal, ..given(address) });
        }
        let mut seen = BTreeSet::new();
        wanted.retain(|wanted| seen.insert(wanted.address.address()));
        wanted
    }

    fn want(&mut self, wanted: Wanted, now: Instant) {
        let Wanted { address, origin, deprecated, expires } = wanted;
        let addr = address.address();
        if let Some(own) = self.own.iter_mut().find(|own| own.address.address() == addr) {
            let before = std::mem::replace(&mut own.address, address);
            (own.origin, own.deprecated, own.expires) = (origin, deprecated, expires);
            if before != address && own.claim.in_use() {
                self.tell(Change::Lost { address: before, origin, why: Lost::Withdrawn });
                self.tell(Change::Gained { address, origin });
            }
            return;
        }
        let begin = match origin {
            Origin::Dhcp => Claim::begin,
            _ => Claim::begin_to_keep,
        };
        let mut claim = begin(addr.into(), now, &mut self.chance);
        if !self.up {
            claim.pause();
        }
        self.own.push(Own { address, origin, deprecated, expires, claim });
    }

    /// Has the addresses to be shown follow the subnets there are.
    fn settle_shown(&mut self, now: Instant) {
        let near = self.own.iter().filter(|own| own.origin != Origin::LinkLocal);
        let near = near.map(|own| (own.address, own.claim.in_use())).collect();
        let lost = self.shown.settle(&self.config.shown, near, now, &mut self.chance);
        if !self.up {
            self.shown.pause();
        }
        for address in lost {
            self.tell(Change::Lost { address, origin: Origin::Shown, why: Lost::Withdrawn });
        }
    }
}
