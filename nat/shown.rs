//! What a source is shown as: by the rules of postrouting, or by the address it speaks to where both ends are inside.
//!
//! Read RFC 4787 REQ-2 (one address for a container) and REQ-9a (a hairpin shows the external source). Nothing is
//! leased here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::hooks::{Egress, Nat};
use crate::mapping::{self, External};
use crate::passage::Passage;
use crate::refused::{Reason, Refused};
use crate::rules::{Source, moved};
use crate::tuple::Tuple;
use crate::why::{Hook, Note, Notes};
use crate::zone::Zone;

/// What a source is shown as.
pub(crate) enum Shown {
    AsIs,
    Moved(IpAddr),
    By(External),
}

impl Nat {
    /// What the source is shown as.
    pub(crate) fn source<N: Notes>(
        &self,
        passage: &Passage,
        (came, tuple): (&Tuple, &Tuple),
        egress: &Egress<'_>,
        notes: &mut N,
    ) -> Result<Shown, Refused> {
        let ingress = passage.ingress;
        // Inside to inside by an external address: the answer must come back the same way, so the
        // source shows the address it has outside (RFC 4787 REQ-9a), by default the one it speaks to.
        let hairpin = ingress.inside && egress.inside && came.dst.addr != tuple.dst.addr;
        if hairpin && N::ASKED {
            notes.note(Note::Hairpin);
        }
        let zone = if hairpin { self.uplink() } else { egress.zone };
        let itself = External { zone, addr: came.dst.addr };
        let rules = self.rules();
        let Some((number, rule)) = rules.source(ingress.zone, zone, tuple) else {
            if N::ASKED {
                notes.note(Note::NoRule(Hook::Postrouting));
            }
            return Ok(if hairpin { Self::by(itself, tuple) } else { Shown::AsIs });
        };
        rule.count(passage.headers.end);
        if N::ASKED {
            let text = rule.to_string();
            notes.note(Note::Rule { hook: Hook::Postrouting, number, text });
        }
        match &rule.action {
            Source::Masquerade if hairpin => Ok(Self::by(itself, tuple)),
            Source::Masquerade => {
                let v6 = tuple.src.addr.is_ipv6();
                let addr = egress.addresses.iter().find(|addr| addr.is_ipv6() == v6);
                let addr = *addr.ok_or(Refused::telling(Reason::NoAddress))?;
                Ok(Self::by(External { zone, addr }, tuple))
            }
            Source::To(range) => {
                let addr = self.paired(range, tuple.src.addr);
                let addr = addr.ok_or(Refused::telling(Reason::NoAddress))?;
                Ok(Self::by(External { zone, addr }, tuple))
            }
            Source::Prefix(outside) => {
                let addr = moved(tuple.src.addr, outside);
                Ok(Shown::Moved(addr.ok_or(Refused::telling(Reason::NoAddress))?))
            }
        }
    }

    /// By a mapping, if the protocol has anything to map; else by the address alone.
    fn by(external: External, tuple: &Tuple) -> Shown {
        if tuple.protocol.has_mappings() {
            Shown::By(external)
        } else {
            Shown::Moved(external.addr)
        }
    }

    /// One of a range of addresses, always the same for the same container (RFC 4787 REQ-2); the next one
    /// behind it that is not withheld, if that is. `None` if all are.
    fn paired(&self, range: &RangeInclusive<IpAddr>, inside: IpAddr) -> Option<IpAddr> {
        let withheld = self.withheld();
        let mut addr = self.nth(range, inside)?;
        // Behind a gap is an address that is lent, as no two gaps touch, or the end of the range; and before
        // that of its beginning there may be one more.
        for _ in 0..3 {
            let behind = withheld.partition_point(|gap| *gap.start() <= addr);
            let gap = behind.checked_sub(1).map(|at| &withheld[at]);
            let Some(gap) = gap.filter(|gap| addr <= *gap.end()) else { return Some(addr) };
            addr = if gap.end() < range.end() { after(*gap.end()) } else { *range.start() };
        }
        None
    }

    fn nth(&self, range: &RangeInclusive<IpAddr>, inside: IpAddr) -> Option<IpAddr> {
        let chosen = self.mappings.keyed(|hasher| mapping::write(hasher, inside));
        match (range.start(), range.end(), inside) {
            (IpAddr::V4(first), IpAddr::V4(last), IpAddr::V4(_)) => {
                Some(nth_v4(*first, *last, chosen).into())
            }
            (IpAddr::V6(first), IpAddr::V6(last), IpAddr::V6(_)) => {
                let span = (last.to_bits().saturating_sub(first.to_bits())).saturating_add(1);
                Some(IpAddr::V6((first.to_bits() + u128::from(chosen) % span).into()))
            }
            _ => None,
        }
    }

    /// What a container is shown with to another one, which it speaks to by `spoken_to`.
    pub(crate) fn shown_inside(&self, from: Zone, tuple: &Tuple, spoken_to: IpAddr) -> External {
        let rules = self.rules();
        let addr =
            rules.source(from, self.uplink(), tuple).and_then(|(_, rule)| match &rule.action {
                Source::Masquerade => None,
                Source::To(range) => self.paired(range, tuple.src.addr),
                Source::Prefix(outside) => moved(tuple.src.addr, outside),
            });
        External { zone: self.uplink(), addr: addr.unwrap_or(spoken_to) }
    }
}

/// The next address, which is of the same family unless that was the last one.
fn after(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => Ipv4Addr::from_bits(addr.to_bits().saturating_add(1)).into(),
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits().saturating_add(1)).into(),
    }
}

/// One of a range of addresses.
pub(crate) fn nth_v4(first: Ipv4Addr, last: Ipv4Addr, chosen: u64) -> Ipv4Addr {
    let span = u64::from(last.to_bits().saturating_sub(first.to_bits())) + 1;
    let nth = u32::try_from(chosen % span).unwrap_or(0);
    Ipv4Addr::from_bits(first.to_bits() + nth)
}
