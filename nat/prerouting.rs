//! Prerouting: whose flow a packet is of, and where it goes.
//!
//! Read `nf_conntrack_in` and `nf_nat_inet_fn` in the kernel beside this. A packet of a known flow leaves here
//! translated, both ways at once; one that begins a flow has its destination rewritten, if a rule or a
//! mapping says so, and gets its source behind the route.

use std::net::IpAddr;

use smoltcp::time::Instant;

use crate::buffer::Buffer;
use crate::entry::Entry;
use crate::headers::{Body, Headers};
use crate::hooks::{Config, Filtering, Ingress, Nat};
use crate::icmp;
use crate::mapping::{External, Inside};
use crate::passage::{Passage, Standing, Via};
use crate::refused::{Reason, Refused};
use crate::rewrite::{self, Undone};
use crate::rules::Destination;
use crate::sctp;
use crate::siit;
use crate::state::{Direction, TcpState};
use crate::tcp;
use crate::tuple::{DCCP, Protocol, SCTP, TransportAddr, Tuple};
use crate::why::{Hook, Note, Notes};
use crate::window::{Believed, Segment};
use crate::zone::{Owner, Zone};

impl Nat {
    /// Takes a whole packet that came in by `ingress`, from its IP header on, and rewrites it as far as
    /// can be done before its route is known. Pieces go to [`gather`](Self::gather) first, unless
    /// [they pass](Self::routes_pieces). A flow of an
    /// owner's ([`Passage::owner`]) is left to its owner, its packet untouched.
    ///
    /// # Errors
    ///
    /// Why it goes no further; it reads as it came then.
    pub fn prerouting<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        undone: Undone,
        ingress: &Ingress,
        now: Instant,
        notes: &mut N,
    ) -> Result<Passage, Refused> {
        let headers =
            Headers::parse(packet.octets()).map_err(|_| Refused::silently(Reason::Malformed))?;
        if headers.piece.is_some() && !self.routes_pieces(ingress.account) {
            return Err(Refused::silently(Reason::Fragment));
        }
        let mut passage = Passage {
            headers,
            ingress: *ingress,
            undone,
            may_cut: !headers.dont_fragment,
            came: if headers.piece.is_some() { None } else { headers.tuple() },
            former: None,
            renumbered: None,
            lowered: None,
            standing: Standing::Untracked,
        };
        if headers.piece.is_some() {
            return Ok(passage);
        }
        if headers.protocol.is_query()
            && !undone.partial
            && !icmp::is_sound(packet.octets(), &headers)
        {
            return Err(Refused::silently(Reason::BadChecksum));
        }
        if headers.v6() && headers.protocol == Protocol::Udp && !undone.partial {
            // RFC 8200 §8.1: a datagram must have a checksum.
            let field = headers.transport + 6;
            if packet.octets().get(field..field + 2) == Some(&[0, 0]) {
                return Err(Refused::silently(Reason::BadChecksum));
            }
        }
        let Some(tuple) = passage.came else {
            if headers.body == Body::Error {
                let related = self.related(packet, &mut passage, now, notes);
                // What is translated without state is related to nothing that is known.
                if related.is_err()
                    && !self.only_routes()
                    && !self.enter_prefix(packet.octets_mut(), &mut passage)
                {
                    related?;
                }
            } else {
                self.enter_prefix(packet.octets_mut(), &mut passage);
            }
            return Ok(passage);
        };
        match self.follow(packet, &mut passage, tuple, now, notes) {
            // Of what it has not seen all of, a router cannot judge.
            Err(_) if self.only_routes() => Ok(passage),
            followed => followed.map(|()| passage),
        }
    }

    /// A packet that has a tuple: of a known flow, or of one it begins.
    fn follow<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        passage: &mut Passage,
        tuple: Tuple,
        now: Instant,
        notes: &mut N,
    ) -> Result<(), Refused> {
        match self.conntrack.find(passage.ingress.zone, tuple, now) {
            // Perhaps it is let in by now. If not, it goes on knocking.
            Some((_, entry)) if entry.knocks() => {
                self.destination(packet, passage, tuple, now, notes)?;
            }
            Some((direction, entry)) => {
                if N::ASKED {
                    notes.note(Note::Flow { tuple, direction, state: entry.state() });
                }
                if entry.owner() == Owner::NONE {
                    self.pass(packet.octets(), &passage.headers, &entry, direction, now)?;
                    self.translate(packet, passage, &entry, direction, notes)?;
                }
                passage.standing = Standing::Known(entry, direction);
            }
            None => self.destination(packet, passage, tuple, now, notes)?,
        }
        Ok(())
    }

    /// Prefixes translated without state: who has one needs no flow, unless a rule or another's flow says so.
    /// Between two that are inside, both must have one.
    fn enter_prefix(&self, packet: &mut [u8], passage: &mut Passage) -> bool {
        let Passage { headers, ingress, .. } = passage;
        let prefixes = if headers.v6() { self.prefixes() } else { None };
        for npt in prefixes.iter().flat_map(|prefixes| prefixes.iter()) {
            let here = ingress.inside || npt.zone == ingress.zone;
            if here && npt.shows(headers.dst) {
                let mut all = prefixes.iter().flat_map(|prefixes| prefixes.iter());
                if ingress.inside && !all.any(|npt| npt.hides(headers.src)) {
                    return false;
                }
                let Some(entered) = npt.enter(packet, headers) else { continue };
                *headers = entered;
                // Both ends are inside: the source shows its outside address, too.
                if ingress.inside
                    && let Some(left) = npt.leave(packet, headers)
                {
                    *headers = left;
                }
                return true;
            }
            if ingress.inside && npt.hides(headers.src) {
                return true;
            }
        }
        false
    }

    /// Judges a packet of a known flow and takes note of it.
    pub(crate) fn pass(
        &self,
        packet: &[u8],
        headers: &Headers,
        entry: &Entry,
        direction: Direction,
        now: Instant,
    ) -> Result<(), Refused> {
        if let Body::Query { answer, .. } = headers.body
            && answer != (direction == Direction::Reply)
        {
            return Err(Refused::silently(Reason::NoFlow));
        }
        let octets = headers.end as u64;
        let settings = self.settings();
        let keeps = match headers.protocol {
            Protocol::Tcp => {
                let segment = tcp::segment(packet, headers);
                let segment = segment.ok_or(Refused::silently(Reason::Malformed))?;
                track(entry, direction, &segment, &settings)? == Believed::Yes
            }
            Protocol::Other(SCTP) => {
                associate(entry, direction, &packet[headers.transport..headers.end])?;
                true
            }
            Protocol::Other(DCCP) => {
                move_dccp(entry, &packet[headers.transport..headers.end]);
                true
            }
            // What comes from outside does not keep a mapping (RFC 4787 REQ-6), but for the first answer,
            // from which on another idle time counts.
            _ => direction == entry.from_inside() || !entry.replied(),
        };
        if direction == Direction::Reply && !entry.replied() {
            entry.count(direction, 0, 0);
        }
        match keeps {
            true => entry.keep(direction, octets, now, self.timeouts(&settings)),
            false => entry.count(direction, 1, octets),
        }
        Ok(())
    }

    /// Makes a packet of a known flow read as the other side knows it.
    fn translate<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        passage: &mut Passage,
        entry: &Entry,
        direction: Direction,
        notes: &mut N,
    ) -> Result<(), Refused> {
        let (_, answer) = entry.named(direction.other());
        self.retuple(packet, passage, &answer.inverse(), notes)
    }

    /// Rewrites a packet to `to`, in the IP version that has.
    pub(crate) fn retuple<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        passage: &mut Passage,
        to: &Tuple,
        notes: &mut N,
    ) -> Result<(), Refused> {
        let Some(from) = passage.headers.tuple() else { return Ok(()) };
        if from == *to {
            return Ok(());
        }
        if to.src.addr.is_ipv6() == passage.headers.v6() {
            let octets = packet.octets_mut();
            passage.headers = rewrite::rewrite(octets, &passage.headers, to, passage.undone);
        } else {
            let id = self.identifications.take_short(1);
            let made = siit::translate(packet, &passage.headers, to, id, passage.undone);
            let (headers, former) = made.map_err(Refused::silently)?;
            (passage.headers, passage.former) = (headers, Some(former));
        }
        if N::ASKED {
            notes.note(Note::Translated { from, to: *to });
        }
        Ok(())
    }

    /// An ICMP error: finds the flow of the packet it quotes.
    fn related<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        passage: &mut Passage,
        now: Instant,
        notes: &mut N,
    ) -> Result<(), Refused> {
        let unrelated = Refused::silently(Reason::Unrelated);
        let headers = passage.headers;
        let quoted = icmp::quoted(packet.octets(), &headers).map_err(|_| unrelated)?;
        let tuple = quoted.tuple().ok_or(unrelated)?;
        // It travels as an answer to the quoted packet would.
        let found = self.conntrack.find(passage.ingress.zone, tuple.inverse(), now);
        let (direction, entry) = found.filter(|(_, entry)| !entry.knocks()).ok_or(unrelated)?;
        if entry.owner() != Owner::NONE {
            passage.standing = Standing::Known(entry, direction);
            return Ok(());
        }
        let (_, sent) = entry.named(direction.other());
        if N::ASKED {
            notes.note(Note::Related { about: sent });
        }
        if sent.src.addr.is_ipv6() == headers.v6() {
            let octets = packet.octets_mut();
            // What postrouting has given the quoted packet (`fit`).
            if !headers.v6() && quoted.src != sent.src.addr && !quoted.dont_fragment {
                let quoted = &mut octets[headers.transport + icmp::HEADER..];
                let given = u16::from_be_bytes([quoted[4], quoted[5]]);
                rewrite::renumber(quoted, self.identifications.before(given));
            }
            passage.headers = icmp::rewrite(octets, &headers, &quoted, &sent);
        } else {
            let id = self.identifications.take_short(1);
            let made = siit::translate_error(packet, &headers, &quoted, &sent, id);
            let (headers, former) = made.map_err(Refused::silently)?;
            (passage.headers, passage.former) = (headers, Some(former));
        }
        passage.standing = Standing::Related;
        Ok(())
    }

    /// A packet of no flow: where it goes, by rules, then by mappings.
    fn destination<B: Buffer + ?Sized, N: Notes>(
        &self,
        packet: &mut B,
        passage: &mut Passage,
        tuple: Tuple,
        now: Instant,
        notes: &mut N,
    ) -> Result<(), Refused> {
        if N::ASKED {
            notes.note(Note::New { tuple });
        }
        let rules = self.rules();
        let zone = passage.ingress.zone;
        let account = passage.ingress.account;
        let ruled = rules.destination(zone, &tuple);
        if ruled.is_none() && self.enter_prefix(packet.octets_mut(), passage) {
            return Ok(());
        }
        let syn = self.opens(packet.octets(), &passage.headers)?;
        if let Some((number, rule)) = ruled {
            rule.count(passage.headers.end);
            if N::ASKED {
                let text = rule.to_string();
                notes.note(Note::Rule { hook: Hook::Prerouting, number, text });
            }
            let to = rule.leads(&tuple).ok_or(Refused::silently(Reason::Untranslatable))?;
            let account = match rule.action {
                Destination::To { account, .. } | Destination::Prefix { account, .. } => account,
            };
            if to.addr.is_ipv4() != tuple.dst.addr.is_ipv4() {
                let Destination::To { zone, .. } = rule.action else {
                    return Err(Refused::silently(Reason::Untranslatable));
                };
                return self.change_family(packet, passage, (to, zone, account), now, notes);
            }
            self.retuple(packet, passage, &Tuple { dst: to, ..tuple }, notes)?;
            passage.standing = Standing::New { account, via: Via::Rule };
            return Ok(());
        }
        if N::ASKED {
            notes.note(Note::NoRule(Hook::Prerouting));
        }
        if let Some(inward) = self.behind_prefix(passage) {
            let to = Tuple { dst: TransportAddr::new(inward, tuple.dst.port), ..tuple };
            self.retuple(packet, passage, &to, notes)?;
            passage.standing = Standing::New { account, via: Via::Prefix };
            return Ok(());
        }
        let outside = if passage.ingress.inside { self.uplink() } else { passage.ingress.zone };
        let Some(mapping) = self.mappings.behind(outside, tuple.protocol, tuple.dst) else {
            passage.standing = Standing::New { account, via: Via::Straight };
            return Ok(());
        };
        let query = matches!(passage.headers.body, Body::Query { .. });
        let inside = mapping.inside();
        let led = Tuple { dst: inside.at, ..tuple };
        // Between containers: what the sender is shown with.
        let shown = self.shown_inside(zone, &led, tuple.dst.addr);
        let may = match self.settings().filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent if passage.ingress.inside => mapping.speaks_to(shown.addr),
            Filtering::AddressDependent => mapping.speaks_to(tuple.src.addr),
            // From outside it would be a known flow's.
            Filtering::AddressAndPortDependent => {
                passage.ingress.inside && self.is_knocked_by(&tuple, zone, shown, now)
            }
        };
        // A question that shall reach nobody inside is for the address itself.
        if query && !(may && passage.ingress.inside && inside.at.addr != tuple.src.addr) {
            passage.standing = Standing::New { account, via: Via::Straight };
            return Ok(());
        }
        if !may || (passage.headers.protocol == Protocol::Tcp && !syn) {
            if syn {
                self.hold_unsolicited(zone, tuple, packet.octets(), now);
            }
            if passage.ingress.inside && (syn || tuple.protocol != Protocol::Tcp) {
                self.knock(packet.octets(), passage, tuple, shown, now);
            }
            return Err(Refused::silently(Reason::Filtered(tuple.dst)));
        }
        if N::ASKED {
            notes.note(Note::Behind { external: tuple.dst, inside: inside.at });
        }
        self.retuple(packet, passage, &led, notes)?;
        let account = mapping.account();
        passage.standing = Standing::New { account, via: Via::Mapping(mapping) };
        Ok(())
    }

    /// Whether whom a packet is for has spoken to the very address and port its sender has outside.
    fn is_knocked_by(&self, tuple: &Tuple, zone: Zone, shown: External, now: Instant) -> bool {
        let inside = Inside { zone, protocol: tuple.protocol, at: tuple.src };
        let Some(own) = self.mappings.of(inside, shown) else { return false };
        let knock = Tuple { src: own.external(), ..*tuple };
        let found = self.conntrack.find(self.uplink(), knock, now);
        found.is_some_and(|(_, entry)| entry.knocks())
    }

    /// The inside address behind an outside one of a prefix, for a sender that is inside itself.
    fn behind_prefix(&self, passage: &Passage) -> Option<IpAddr> {
        let prefixes = self.prefixes().filter(|_| passage.ingress.inside)?;
        let dst = passage.headers.dst;
        prefixes.iter().find_map(|npt| npt.inward(dst)).map(IpAddr::from)
    }

    /// Whether a TCP packet is a SYN; false for other protocols.
    ///
    /// A connection may begin with a SYN; with an ACK, if it is picked up in the middle.
    fn opens(&self, packet: &[u8], headers: &Headers) -> Result<bool, Refused> {
        if let Body::Query { answer: true, .. } = headers.body {
            return Err(Refused::silently(Reason::NoFlow));
        }
        if headers.protocol != Protocol::Tcp {
            return Ok(false);
        }
        let segment = tcp::segment(packet, headers);
        let flags = segment.ok_or(Refused::silently(Reason::Malformed))?.flags;
        let syn = flags.syn && !flags.ack && !flags.rst && !flags.fin;
        let midway = self.settings().loose && flags.ack && !flags.syn && !flags.rst && !flags.fin;
        if syn || midway { Ok(syn) } else { Err(Refused::silently(Reason::NoFlow)) }
    }
}

/// Judges a segment and moves its connection, if its control bits are to be believed.
pub(crate) fn track(
    entry: &Entry,
    direction: Direction,
    segment: &Segment,
    settings: &Config,
) -> Result<Believed, Refused> {
    let believed = match entry.judge(direction, segment) {
        Ok(believed) => believed,
        // A reset out of its window is believed by nobody.
        Err(_) if settings.liberal && segment.flags.rst => Believed::No,
        Err(_) if settings.liberal => Believed::Yes,
        Err(why) => return Err(Refused::silently(Reason::Invalid(why))),
    };
    if believed == Believed::Yes && entry.segment(direction, segment.flags) == TcpState::None {
        return Err(Refused::silently(Reason::NoFlow));
    }
    Ok(believed)
}

/// Judges an SCTP packet by its tag and moves its association.
pub(crate) fn associate(
    entry: &Entry,
    direction: Direction,
    transport: &[u8],
) -> Result<(), Refused> {
    let packet = sctp::Packet::read(transport).ok_or(Refused::silently(Reason::Malformed))?;
    let tagged = entry.associate(direction, &packet);
    tagged.map_err(|why| Refused::silently(Reason::WrongTag(why)))
}

/// Notes what a DCCP packet says of its connection: types 5 to 7 end it, 0 opens it (RFC 4340 §5.1).
pub(crate) fn move_dccp(entry: &Entry, transport: &[u8]) {
    match transport.get(8).map(|octet| octet >> 1 & 0x0f) {
        Some(5..=7) => entry.close(true),
        Some(0) => entry.close(false),
        _ => {}
    }
}
