//! Postrouting: what a packet's source is shown as, and whether the egress can carry it.
//!
//! Read `nf_nat_inet_fn` and `nf_conntrack_confirm` in the kernel beside this: a flow is entered here, when
//! both its tuples are known. Every refusal leaves the packet as its sender sent it and gives back what
//! was leased on the way.

use std::sync::Arc;

use smoltcp::time::Instant;

use crate::buffer::Buffer;
use crate::conntrack::InsertError;
use crate::entry::Entry;
use crate::fragments;
use crate::headers::{Body, Headers};
use crate::hooks::{Egress, Ingress, Nat};
use crate::mapping::{self, External, Inside, Mapping};
use crate::passage::{Passage, Standing, Via};
use crate::pool::NoMapping;
use crate::prerouting::{associate, move_dccp, track};
use crate::refused::{Reason, Refused};
use crate::rewrite;
use crate::shown::{Shown, nth_v4};
use crate::siit;
use crate::state::Direction;
use crate::tcp;
use crate::tuple::{DCCP, Protocol, SCTP, TransportAddr, Tuple};
use crate::why::{Note, Notes};
use crate::zone::{Account, Owner, Zone};

/// How a packet leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// Whole, as it stands.
    Whole,
    /// In these pieces, in this order.
    Pieces(Vec<Vec<u8>>),
    /// As it stands, but its segments are longer than the egress carries: once they are made, each is to be
    /// [cut](Nat::cut).
    LongSegments,
}

/// Source ports tried for whose own is taken.
const PORT_ATTEMPTS: u16 = 64;

/// Dynamic ports: the first, and how many there are (RFC 6335 §6).
const DYNAMIC_PORTS: (u16, u16) = (49_152, 16_384);

impl Nat {
    /// Takes a packet to its `egress`: enters its flow if it begins one, and rewrites what is left. If it was
    /// put together from pieces, `largest` is the longest of them.
    ///
    /// # Errors
    ///
    /// Why it goes no further; it reads as it came then.
    pub fn postrouting<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        passage: &mut Passage,
        egress: &Egress<'_>,
        largest: Option<u16>,
        now: Instant,
        notes: &mut N,
    ) -> Result<Sent, Refused> {
        let done = self.leave(packet, passage, egress, now, notes);
        let sent =
            done.and_then(|()| self.fit(packet.octets_mut(), passage, egress, largest, notes));
        if sent.is_err() {
            passage.restore(packet);
        }
        sent
    }

    /// A packet for the uplink's own address that belongs to no flow. One that opens a connection is kept
    /// quiet about for six seconds ([`due`](Self::due)).
    pub fn unsolicited(&self, packet: &[u8], passage: &Passage, now: Instant) -> Refused {
        let Some(tuple) = passage.came else { return Refused::silently(Reason::NoFlow) };
        let begins = matches!(passage.standing, Standing::New { .. });
        if passage.headers.protocol == Protocol::Tcp && begins {
            self.hold_unsolicited(passage.ingress.zone, tuple, packet, now);
        }
        Refused::silently(Reason::Filtered(tuple.dst))
    }

    fn leave<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        passage: &mut Passage,
        egress: &Egress<'_>,
        now: Instant,
        notes: &mut N,
    ) -> Result<(), Refused> {
        match std::mem::replace(&mut passage.standing, Standing::Untracked) {
            Standing::New { account, via } => {
                self.open(packet, passage, (account, via), egress, now, notes)
            }
            Standing::Untracked => {
                // What is no query and no error is between neighbours (RFC 5508 REQ-11).
                if passage.headers.body == Body::Message && passage.ingress.zone != egress.zone {
                    return Err(Refused::silently(Reason::NoFlow));
                }
                if passage.ingress.inside && passage.headers.v6() {
                    self.leave_prefix(packet.octets_mut(), passage, egress.zone)?;
                }
                Ok(())
            }
            Standing::Known(entry, direction) => {
                // Its answers come in elsewhere: the route has changed, and what it is shown as is not the
                // egress' (`nf_nat_oif_changed`). Its next packet begins it anew.
                let (answered_in, _) = entry.named(direction.other());
                let stranded = entry.translated() && answered_in != egress.zone;
                if stranded && entry.owner() == Owner::NONE {
                    self.conntrack.remove(&entry);
                }
                passage.standing = Standing::Known(entry, direction);
                if stranded { Err(Refused::silently(Reason::NoFlow)) } else { Ok(()) }
            }
            Standing::Related => {
                passage.standing = Standing::Related;
                Ok(())
            }
        }
    }

    /// Moves a source that has a prefix of its own outside.
    fn leave_prefix(
        &self,
        packet: &mut [u8],
        passage: &mut Passage,
        zone: Zone,
    ) -> Result<(), Refused> {
        let headers = &mut passage.headers;
        let prefixes = self.prefixes();
        let mut prefixes = prefixes.iter().flat_map(|prefixes| prefixes.iter());
        let Some(npt) = prefixes.find(|npt| npt.zone == zone && npt.hides(headers.src)) else {
            return Ok(());
        };
        let left = npt.leave(packet, headers);
        *headers = left.ok_or(Refused::telling(Reason::Untranslatable))?;
        Ok(())
    }

    /// Enters the flow a packet begins.
    fn open<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        passage: &mut Passage,
        (account, via): (Account, Via),
        egress: &Egress<'_>,
        now: Instant,
        notes: &mut N,
    ) -> Result<(), Refused> {
        let malformed = Refused::silently(Reason::Malformed);
        let came = passage.came.ok_or(malformed)?;
        let tuple = passage.headers.tuple().ok_or(malformed)?;
        let ingress = passage.ingress;
        let uninvited = !ingress.inside && egress.inside && matches!(via, Via::Straight);
        if uninvited && !self.settings().open {
            return Err(Refused::silently(Reason::Filtered(came.dst)));
        }
        let shown = self.source(passage, (&came, &tuple), egress, notes)?;
        let (src, lease) = match shown {
            Shown::AsIs => (tuple.src, None),
            Shown::Moved(addr) => (TransportAddr::new(addr, tuple.src.port), None),
            Shown::By(external) => {
                let inside = Inside { zone: ingress.zone, protocol: tuple.protocol, at: came.src };
                let lease = self.lease(inside, external, ingress.account, now)?;
                if N::ASKED {
                    let external = lease.external();
                    notes.note(Note::Mapped { inside: inside.at, external });
                }
                (lease.external(), Some(lease))
            }
        };
        let mut to = Tuple { src, ..tuple };
        if tuple.protocol.is_query() {
            to.dst.port = src.port;
        }
        let by_rule = matches!(via, Via::Rule);
        let behind = match via {
            Via::Mapping(mapping) => Some(mapping),
            Via::Straight | Via::Rule | Via::Prefix => None,
        };
        let (lease, behind) = if lease.is_some() { (lease, behind) } else { (behind, None) };
        let answered_in = egress.zone;
        let flow = Flow { came, to, account, lease, behind, by_rule, knocks: false, answered_in };
        // A client of two of ours that lead to one, or a container that has no port of its own outside.
        let sctp = tuple.protocol == Protocol::Other(SCTP);
        let movable = if ingress.inside { sctp && came.src != to.src } else { came.dst != to.dst };
        let entry = self.enter(packet.octets(), passage, &flow, now);
        let entry = entry.or_else(|refused| match refused.reason {
            Reason::Clash(_) if movable => self.enter_beside(packet.octets(), passage, flow, now),
            _ => Err(refused),
        })?;
        let (_, answer) = entry.named(Direction::Reply);
        self.retuple(packet, passage, &answer.inverse(), notes)?;
        passage.standing = Standing::Known(entry, Direction::Original);
        Ok(())
    }

    /// Enters the flow of a client outside that speaks from one port to two of ours which lead to one of a
    /// container's, or of a container that speaks SCTP from the port of another: it is shown with another port,
    /// as nothing else would tell their answers apart (`nf_nat_alloc_null_binding` in the kernel).
    fn enter_beside(
        &self,
        packet: &[u8],
        passage: &Passage,
        mut flow: Flow,
        now: Instant,
    ) -> Result<Arc<Entry>, Refused> {
        let Flow { came, to, .. } = flow;
        let clash = Refused::telling(Reason::Clash(to.inverse()));
        if !to.protocol.has_ports() {
            return Err(clash);
        }
        let (first, count) = DYNAMIC_PORTS;
        for attempt in 1..PORT_ATTEMPTS {
            flow.to.src.port = first + came.src.port.wrapping_add(attempt) % count;
            match self.enter(packet, passage, &flow, now) {
                Err(Refused { reason: Reason::Clash(_), .. }) => {}
                entered => return entered,
            }
        }
        Err(clash)
    }

    /// Enters a flow in conntrack and takes note of its first packet.
    fn enter(
        &self,
        packet: &[u8],
        passage: &Passage,
        flow: &Flow,
        now: Instant,
    ) -> Result<Arc<Entry>, Refused> {
        let &Flow { came, to, account, by_rule, knocks, answered_in, .. } = flow;
        let zone = passage.ingress.zone;
        let from_inside =
            if passage.ingress.inside { Direction::Original } else { Direction::Reply };
        let answer = to.inverse();
        let headers = &passage.headers;
        let transport = &packet[headers.transport..headers.end];
        let settings = self.settings();
        let attempt = || {
            let mut entry = Entry::new(zone, from_inside, came, answer, Owner::NONE, now)
                .answered_in(answered_in)
                .entered_by(self.uplink())
                .ruled(by_rule);
            if let Some(lease) = &flow.lease {
                entry = entry.holding(lease);
            }
            if let Some(behind) = &flow.behind {
                entry = entry.leading_to(behind);
            }
            if knocks {
                entry = entry.knocking();
            }
            match headers.protocol {
                Protocol::Tcp => {
                    let segment = tcp::segment(packet, headers);
                    let segment = segment.ok_or(Refused::silently(Reason::Malformed))?;
                    track(&entry, Direction::Original, &segment, &settings)?;
                }
                Protocol::Other(SCTP) => associate(&entry, Direction::Original, transport)?,
                Protocol::Other(DCCP) => move_dccp(&entry, transport),
                _ => {}
            }
            let octets = headers.end as u64;
            entry.keep(Direction::Original, octets, now, self.timeouts(&settings));
            self.conntrack.insert(account, entry).map_err(|error| {
                Refused::telling(match error {
                    InsertError::Full => Reason::TableFull,
                    InsertError::Quota => Reason::FlowQuota,
                    InsertError::Clash => Reason::Clash(answer),
                })
            })
        };
        attempt().or_else(|refused| {
            if refused.reason != Reason::Clash(answer) {
                return Err(refused);
            }
            // With the same flow, if another worker was quicker with its first packet.
            self.let_in(zone, came, now);
            self.let_in(answered_in, answer, now);
            if let Some((Direction::Original, entry)) = self.conntrack.find(zone, came, now)
                && entry.owner() == Owner::NONE
            {
                self.pass(packet, &passage.headers, &entry, Direction::Original, now)?;
                return Ok(entry);
            }
            // Perhaps with flows that are over and were not swept yet: finding them forgets them.
            self.conntrack.find(answered_in, answer, now);
            attempt()
        })
    }

    /// Forgets that somebody knocks with that tuple, now that a flow of that name leads somewhere.
    fn let_in(&self, zone: Zone, tuple: Tuple, now: Instant) {
        if let Some((_, entry)) = self.conntrack.find(zone, tuple, now)
            && entry.knocks()
        {
            self.conntrack.remove(&entry);
        }
    }

    /// Enters that a container has spoken to an external address and port of ours whose owner does not let it
    /// in: the owner may answer now, as it could if both were behind NATs of their own (RFC 4787 §5, §6). There
    /// may be no room for it; then nothing is entered.
    pub(crate) fn knock(
        &self,
        packet: &[u8],
        passage: &Passage,
        tuple: Tuple,
        external: External,
        now: Instant,
    ) {
        let Ingress { zone, account, .. } = passage.ingress;
        let inside = Inside { zone, protocol: tuple.protocol, at: tuple.src };
        let Ok(lease) = self.lease(inside, external, account, now) else { return };
        let to = Tuple { src: lease.external(), ..tuple };
        let (lease, behind, answered_in) = (Some(lease), None, self.uplink());
        let flow = Flow {
            came: tuple,
            to,
            account,
            lease,
            behind,
            by_rule: false,
            knocks: true,
            answered_in,
        };
        // Whatever is in the way, the packet is refused for another reason.
        let _ = self.enter(packet, passage, &flow, now);
    }

    fn lease(
        &self,
        inside: Inside,
        external: External,
        account: Account,
        now: Instant,
    ) -> Result<Arc<Mapping>, Refused> {
        self.mappings.lease(inside, external, account, now).map_err(|error| {
            Refused::telling(match error {
                NoMapping::Exhausted => {
                    Reason::Exhausted(TransportAddr::new(external.addr, inside.at.port))
                }
                NoMapping::Quota => Reason::PortQuota,
            })
        })
    }

    /// A published port of a container that has no IPv6: the client is shown with an IPv4 address of
    /// ours, and the flow is entered at once, as nothing about it depends on the route.
    pub(crate) fn change_family<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        passage: &mut Passage,
        (to, zone, account): (TransportAddr, Zone, Account),
        now: Instant,
        notes: &mut N,
    ) -> Result<(), Refused> {
        let cannot = Refused::telling(Reason::Untranslatable);
        let (came, Some(range), true) =
            (passage.came.ok_or(cannot)?, &self.settings().nat46, to.addr.is_ipv4())
        else {
            return Err(cannot);
        };
        let chosen = self.mappings.keyed(|hasher| mapping::write(hasher, came.src.addr));
        let addr = nth_v4(*range.start(), *range.end(), chosen).into();
        let protocol = siit::counterpart(came.protocol);
        let inside = Inside { zone: passage.ingress.zone, protocol, at: came.src };
        let lease = self.lease(inside, External { zone, addr }, account, now)?;
        let external = lease.external();
        if N::ASKED {
            notes.note(Note::Mapped { inside: came.src, external });
        }
        let mut to = Tuple::new(protocol, external, to);
        if protocol.is_query() {
            to.dst.port = external.port;
        }
        let lease = Some(lease);
        let (behind, by_rule, knocks, answered_in) = (None, true, false, zone);
        let flow = Flow { came, to, account, lease, behind, by_rule, knocks, answered_in };
        let entry = self.enter(packet.octets(), passage, &flow, now)?;
        let (_, answer) = entry.named(Direction::Reply);
        let changed = self.retuple(packet, passage, &answer.inverse(), notes);
        if changed.is_err() {
            self.conntrack.remove(&entry);
        }
        passage.standing = Standing::Known(entry, Direction::Original);
        changed
    }

    /// Makes a packet fit its egress: MSS, identification, length.
    fn fit<N: Notes>(
        &self,
        packet: &mut [u8],
        passage: &mut Passage,
        egress: &Egress<'_>,
        largest: Option<u16>,
        notes: &mut N,
    ) -> Result<Sent, Refused> {
        let headers = passage.headers;
        let (count, len) = match passage.undone.segment {
            Some(segment) => segments(packet, &headers, segment),
            None => (1, headers.end),
        };
        let whole = len <= usize::from(egress.mtu);
        // Pieces may become pieces again, no longer than they were; a whole packet only where its sender
        // allows it.
        let pieces_fit = largest.is_some_and(|largest| largest <= egress.mtu);
        let may_cut = passage.may_cut || pieces_fit;
        let mtu = largest.map_or(egress.mtu, |largest| largest.min(egress.mtu));
        let cut = may_cut && fragments::can_cut(packet, &headers, mtu);
        if !whole && !cut {
            return Err(passage.too_big(egress.mtu));
        }
        let begins = headers.piece.is_none_or(|piece| piece.offset == 0);
        if self.settings().clamp_mss && headers.protocol == Protocol::Tcp && begins {
            let most = most_payload(egress.mtu, headers.v6());
            let came_v6 = headers.v6() != passage.changed_version();
            let most = most.min(most_payload(passage.ingress.mtu, came_v6));
            passage.lowered = tcp::clamp_mss(packet, &headers, most, passage.undone);
            if let (true, Some(lowered)) = (N::ASKED, passage.lowered) {
                notes.note(Note::Mss { from: lowered.from, to: lowered.to });
            }
        }
        let shown = passage.came.is_some_and(|came| came.src.addr != headers.src);
        if shown && !headers.v6() && !headers.dont_fragment {
            passage.renumbered = Some(self.identifications.give(packet, count));
        }
        if whole {
            return Ok(Sent::Whole);
        }
        if passage.undone.segment.is_some() {
            return Ok(Sent::LongSegments);
        }
        if passage.undone.partial {
            rewrite::complete(packet, &headers);
            passage.undone.partial = false;
        }
        let pieces = fragments::cut(packet, &headers, mtu, self.identifications.take(1));
        pieces.map(Sent::Pieces).ok_or_else(|| passage.too_big(egress.mtu))
    }

    /// Cuts a packet that a frame with [long segments](Sent::LongSegments) has become into pieces of at most
    /// `mtu` octets, in order: itself, if it fits. None if it cannot be cut, which postrouting has seen to.
    #[must_use]
    pub fn cut(&self, packet: &[u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
        let headers = Headers::parse(packet).ok()?;
        if headers.end <= usize::from(mtu) {
            return Some(vec![packet[..headers.end].to_vec()]);
        }
        fragments::cut(packet, &headers, mtu, self.identifications.take(1))
    }
}

/// A flow about to be entered.
struct Flow {
    /// As its first packet came.
    came: Tuple,
    /// As that packet leaves.
    to: Tuple,
    account: Account,
    lease: Option<Arc<Mapping>>,
    /// The mapping of whom it leads to, if its sender has one, too.
    behind: Option<Arc<Mapping>>,
    by_rule: bool,
    knocks: bool,
    answered_in: Zone,
}

/// The longest TCP payload a leg of that MTU carries behind headers without options (RFC 6691).
const fn most_payload(mtu: u16, v6: bool) -> u16 {
    mtu.saturating_sub(if v6 { 60 } else { 40 })
}

/// How many packets a frame will be cut into, and octets of the longest.
fn segments(packet: &[u8], headers: &Headers, segment: u16) -> (u16, usize) {
    let header = match headers.protocol {
        Protocol::Tcp => {
            usize::from(packet.get(headers.transport + 12).map_or(0, |at| at >> 4)) * 4
        }
        _ => 8,
    };
    let (segment, payload) = (usize::from(segment), headers.transport + header);
    let count = headers.end.saturating_sub(payload).div_ceil(segment.max(1)).max(1);
    (u16::try_from(count).unwrap_or(u16::MAX), headers.end.min(payload + segment))
}
