//! Pieces of packets: put together before translation, cut again behind it.
//!
//! Read RFC 4787 REQ-14, RFC 791 §3.2, RFC 8200 §4.5 and RFC 5722. Only the first piece has ports, so
//! nothing can be translated before it is there; `nf_defrag_ipv4` waits likewise for all of them. Pieces
//! may come in any order. Pieces that overlap condemn their packet. Bounded in octets: each account has a
//! share, whose oldest packet goes when the share is full, and nobody else's does. Whole packets never come
//! here.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use smoltcp::time::Instant;
use smoltcp::wire::Ipv4Packet;

use crate::headers::{Body, FRAGMENT, Headers, Piece};
use crate::timeouts::Timeouts;
use crate::zone::{Account, Zone};

/// Octets of pieces kept in all: Linux's `ipfrag_high_thresh`.
const MAX_OCTETS: usize = 4 << 20;

/// Octets kept of one account's.
const MAX_OCTETS_OF_ACCOUNT: usize = MAX_OCTETS / 8;

/// What keeping a piece costs besides its own octets.
const OVERHEAD: usize = 128;

/// What keeping a packet costs besides its pieces: its header, and its names in the tables.
const OVERHEAD_OF_PACKET: usize = 384;

/// Pieces of one packet. The longest packet has 45 at the smallest MTU a sender should use.
const MAX_PIECES: usize = 128;

/// Octets the length field of the longest IP packet can tell.
const MAX_PACKET: usize = 65_535;

/// What became of a piece.
#[derive(Debug)]
pub enum Gathered {
    /// Others are missing.
    Kept,
    /// It was the last one missing.
    Complete(Whole),
    /// It cannot be kept: malformed, overlapping, too much.
    Refused,
}

/// A packet whose missing pieces have not come in time, but the first has.
#[derive(Debug)]
pub struct Overdue {
    /// Where it came in.
    pub zone: Zone,
    /// Whose it was.
    pub account: Account,
    /// Who sent it.
    pub src: IpAddr,
    /// Its first piece, for the error that tells its sender (RFC 792, RFC 8200 §4.5: time exceeded, code 1).
    pub piece: Vec<u8>,
}

/// A packet put together.
#[derive(Debug)]
pub struct Whole {
    /// The packet, as if it had never been cut.
    pub packet: Vec<u8>,
    /// Octets of the largest piece it came in, which tells what its way could carry.
    pub largest: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    zone: Zone,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
}

impl Name {
    const fn v6(&self) -> bool {
        self.src.is_ipv6()
    }
}

#[derive(Debug)]
struct Partial {
    account: Account,
    deadline: Instant,
    /// Everything before the payload, of the piece that begins the packet.
    header: Option<Vec<u8>>,
    /// Where the header says what follows it.
    next_header_at: usize,
    dont_fragment: bool,
    pieces: Vec<(usize, Vec<u8>)>,
    /// Octets of payload, once the last piece is there.
    len: Option<usize>,
    largest: usize,
    octets: usize,
    /// Pieces overlapped: whatever else comes of it is refused, too.
    condemned: bool,
}

/// Packets that are not all there yet.
#[derive(Debug, Default)]
pub struct Fragments {
    partial: HashMap<Name, Partial>,
    /// By age, for each account and IP version: in one, all wait equally long.
    order: HashMap<(Account, bool), VecDeque<Name>>,
    octets: usize,
    of_account: HashMap<Account, usize>,
    /// Their senders are not told yet.
    overdue: Vec<Overdue>,
}

/// Senders that wait to be told; further ones are not.
const MAX_OVERDUE: usize = 64;

/// Packets of one account that [`Fragments::expire`] forgets at a time.
const MAX_GIVEN_UP: usize = 64;

impl Fragments {
    /// Takes a piece that came in by `zone` and counts against `account`.
    pub fn gather(
        &mut self,
        octets: &[u8],
        headers: &Headers,
        (zone, account): (Zone, Account),
        now: Instant,
        timeouts: &Timeouts,
    ) -> Gathered {
        let Some(piece) = headers.piece else { return Gathered::Refused };
        let begin = headers.fragment_header.map_or(headers.transport, |at| at + 8);
        let payload = &octets[begin.min(headers.end)..headers.end];
        let end = piece.offset + payload.len();
        let uneven = piece.more && !payload.len().is_multiple_of(8);
        // IPv4's length counts its header, IPv6's does not, and no fragment header is in the whole.
        let header_len = headers.fragment_header.unwrap_or(headers.transport);
        let longest = if headers.v6() { 40 + MAX_PACKET } else { MAX_PACKET };
        if payload.is_empty() || uneven || header_len + end > longest {
            return Gathered::Refused;
        }
        let protocol = if headers.v6() { 0 } else { headers.protocol.number() };
        let name = Name { zone, src: headers.src, dst: headers.dst, protocol, id: piece.id };
        if self.partial.get(&name).is_some_and(|partial| partial.deadline <= now) {
            self.give_up(&name);
        }
        let known = self.partial.contains_key(&name);
        let cost = payload.len() + OVERHEAD + if known { 0 } else { OVERHEAD_OF_PACKET };
        if !self.make_room(account, cost, now) {
            return Gathered::Refused;
        }
        let partial = match self.partial.entry(name) {
            Slot::Occupied(known) => known.into_mut(),
            Slot::Vacant(place) => {
                self.order.entry((account, name.v6())).or_default().push_back(name);
                let wait = if headers.v6() { timeouts.fragment_v6 } else { timeouts.fragment_v4 };
                place.insert(Partial::new(account, now + wait))
            }
        };
        let kept = partial.take(octets, headers, &piece, payload);
        if kept {
            let owner = partial.account;
            partial.octets += cost;
            self.octets += cost;
            *self.of_account.entry(owner).or_default() += cost;
        }
        if partial.condemned {
            return Gathered::Refused;
        }
        if !partial.is_complete() {
            return Gathered::Kept;
        }
        match self.forget(&name).and_then(|partial| partial.join(headers.v6())) {
            Some(whole) => Gathered::Complete(whole),
            None => Gathered::Refused,
        }
    }

    /// Forgets packets whose missing pieces have not come in time: [`overdue`](Self::overdue) has those
    /// whose senders are to be told. It forgets some of each account's only; call it often.
    pub fn expire(&mut self, now: Instant) {
        let over = |order: &VecDeque<Name>| -> Vec<Name> {
            let old = |name: &&Name| self.partial.get(name).is_none_or(|p| p.deadline <= now);
            order.iter().take(MAX_GIVEN_UP).take_while(old).copied().collect()
        };
        let over: Vec<_> = self.order.values().flat_map(over).collect();
        for name in over {
            self.give_up(&name);
        }
    }

    /// A packet that was given up, one a call.
    pub fn overdue(&mut self) -> Option<Overdue> {
        self.overdue.pop()
    }

    /// Where the one that [`overdue`](Self::overdue) gives next came in.
    #[must_use]
    pub fn overdue_zone(&self) -> Option<Zone> {
        self.overdue.last().map(|overdue| overdue.zone)
    }

    /// Nobody of `zone` is to be told any more.
    pub fn forget_overdue(&mut self, zone: Zone) {
        self.overdue.retain(|overdue| overdue.zone != zone);
    }

    /// Forgets a packet whose time is over.
    fn give_up(&mut self, name: &Name) {
        let Some(partial) = self.forget(name) else { return };
        let account = partial.account;
        // Nobody is told about an error (RFC 1122 §3.2.2, RFC 4443 §2.4).
        let may_tell = |piece: &Vec<u8>| {
            Headers::parse(piece)
                .is_ok_and(|headers| !matches!(headers.body, Body::Error | Body::Message))
        };
        if self.overdue.len() < MAX_OVERDUE
            && let Some(piece) = partial.first_piece(name).filter(may_tell)
        {
            self.overdue.push(Overdue { zone: name.zone, account, src: name.src, piece });
        }
    }

    /// Octets kept.
    #[must_use]
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// Makes room for one more piece, at the cost of the account's own oldest packets.
    fn make_room(&mut self, account: Account, cost: usize, now: Instant) -> bool {
        loop {
            let held = self.of_account.get(&account).copied().unwrap_or(0);
            let deadline = |name: &Name| self.partial.get(name).map(|partial| partial.deadline);
            let oldest = [false, true].into_iter().filter_map(|v6| {
                let name = self.order.get(&(account, v6))?.front()?;
                Some((deadline(name), *name))
            });
            let oldest = oldest.min_by_key(|(deadline, _)| *deadline);
            let fits = held + cost <= MAX_OCTETS_OF_ACCOUNT && self.octets + cost <= MAX_OCTETS;
            match oldest {
                Some((Some(deadline), name)) if deadline <= now => self.give_up(&name),
                Some((_, name)) if !fits => drop(self.forget(&name)),
                _ => return fits,
            }
        }
    }

    fn forget(&mut self, name: &Name) -> Option<Partial> {
        let partial = self.partial.remove(name)?;
        self.octets -= partial.octets;
        if let Some(held) = self.of_account.get_mut(&partial.account) {
            *held -= partial.octets;
            if *held == 0 {
                self.of_account.remove(&partial.account);
            }
        }
        let order = (partial.account, name.v6());
        if let Slot::Occupied(mut held) = self.order.entry(order) {
            let order = held.get_mut();
            if order.front() == Some(name) {
                order.pop_front();
            } else {
                order.retain(|held| held != name);
            }
            if order.is_empty() {
                held.remove();
            }
        }
        Some(partial)
    }
}

impl Partial {
    fn new(account: Account, deadline: Instant) -> Self {
        Self {
            account,
            deadline,
            header: None,
            next_header_at: 0,
            dont_fragment: false,
            pieces: Vec::new(),
            len: None,
            largest: 0,
            octets: 0,
            condemned: false,
        }
    }

    /// Keeps a piece; false if it is not kept.
    fn take(&mut self, octets: &[u8], headers: &Headers, piece: &Piece, payload: &[u8]) -> bool {
        if self.condemned {
            return false;
        }
        let (begin, end) = (piece.offset, piece.offset + payload.len());
        let place = self.pieces.partition_point(|(at, _)| *at < begin);
        // The same piece twice is no overlap: the network may double a packet.
        if self.pieces.get(place).is_some_and(|(at, held)| *at == begin && held == payload) {
            return false;
        }
        let before = place.checked_sub(1).map(|place| &self.pieces[place]);
        let overlaps = before.is_some_and(|(at, held)| at + held.len() > begin)
            || self.pieces.get(place).is_some_and(|(at, _)| *at < end)
            || self.len.is_some_and(|len| end > len || (!piece.more && end != len))
            || (!piece.more && self.pieces.last().is_some_and(|(at, held)| at + held.len() > end));
        if overlaps || self.pieces.len() >= MAX_PIECES {
            self.condemned = true;
            self.pieces = Vec::new();
            return false;
        }
        if begin == 0 {
            let until = headers.fragment_header.unwrap_or(headers.transport);
            let mut header = octets[..until].to_vec();
            if let Some(at) = headers.fragment_header {
                header[headers.next_header_at] = octets[at];
            }
            self.next_header_at = headers.next_header_at;
            self.header = Some(header);
        }
        if !piece.more {
            self.len = Some(end);
        }
        self.dont_fragment |= headers.dont_fragment;
        self.largest = self.largest.max(headers.end);
        self.pieces.insert(place, (begin, payload.to_vec()));
        true
    }

    fn is_complete(&self) -> bool {
        // None overlap, so they are all there if they are as long as the packet.
        let have: usize = self.pieces.iter().map(|(_, payload)| payload.len()).sum();
        self.header.is_some() && self.len == Some(have)
    }

    /// The first piece as it came, if it did.
    fn first_piece(self, name: &Name) -> Option<Vec<u8>> {
        let mut piece = self.header?;
        let (_, payload) = self.pieces.into_iter().next().filter(|(at, _)| *at == 0)?;
        if name.v6() {
            let next = std::mem::replace(&mut piece[self.next_header_at], FRAGMENT);
            piece.extend([next, 0, 0, 1]);
            piece.extend(name.id.to_be_bytes());
        }
        piece.extend(payload);
        Some(piece)
    }

    fn join(self, v6: bool) -> Option<Whole> {
        let mut packet = self.header?;
        let header_len = packet.len();
        for (_, payload) in &self.pieces {
            packet.extend_from_slice(payload);
        }
        let len = if v6 { packet.len() - 40 } else { packet.len() };
        let len = u16::try_from(len).ok()?;
        if v6 {
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        } else {
            let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
            header.set_total_len(len);
            header.set_more_frags(false);
            header.set_frag_offset(0);
            header.set_dont_frag(self.dont_fragment);
            header.fill_checksum();
        }
        debug_assert!(header_len <= packet.len());
        Some(Whole { packet, largest: u16::try_from(self.largest).ok()? })
    }
}

/// Whether a packet can be cut into pieces of at most `mtu` octets: unless its headers alone are too long.
pub(crate) fn can_cut(packet: &[u8], headers: &Headers, mtu: u16) -> bool {
    room(packet, headers, mtu).is_some()
}

/// Octets of payload of every piece but the last.
fn room(packet: &[u8], headers: &Headers, mtu: u16) -> Option<usize> {
    let own = if headers.v6() { unfragmentable(packet, headers) + 8 } else { headers.transport };
    let room = usize::from(mtu).checked_sub(own)? / 8 * 8;
    (room > 0).then_some(room)
}

/// Cuts a packet, or a piece of an IPv4 one, into pieces of at most `mtu` octets, in order (RFC 4787 REQ-13). `id` is theirs in IPv6; an
/// IPv4 packet has its own. None if it cannot be cut: the headers alone are too long.
#[must_use]
pub fn cut(packet: &[u8], headers: &Headers, mtu: u16, id: u32) -> Option<Vec<Vec<u8>>> {
    let v6 = headers.v6();
    let (header, rest) = if v6 {
        packet[..headers.end].split_at(unfragmentable(packet, headers))
    } else {
        packet[..headers.end].split_at(headers.transport)
    };
    let room = room(packet, headers, mtu)?;
    let pieces = rest.chunks(room).enumerate().map(|(number, payload)| {
        let at = number * room;
        let more = at + payload.len() < rest.len() || headers.piece.is_some_and(|piece| piece.more);
        let at = at + headers.piece.map_or(0, |piece| piece.offset);
        if v6 {
            piece_v6(header, headers, payload, (at, more), id)
        } else {
            piece_v4(header, payload, (at, more))
        }
    });
    Some(pieces.collect())
}

/// Where the part of an IPv6 packet ends that every piece repeats.
fn unfragmentable(packet: &[u8], headers: &Headers) -> usize {
    match headers.next_header_at {
        6 => 40,
        at => at + 8 + 8 * usize::from(packet[at + 1]),
    }
}

fn piece_v6(
    header: &[u8],
    headers: &Headers,
    payload: &[u8],
    (at, more): (usize, bool),
    id: u32,
) -> Vec<u8> {
    let mut piece = header.to_vec();
    let next = std::mem::replace(&mut piece[headers.next_header_at], FRAGMENT);
    let place = u16::try_from(at).unwrap_or(0) | u16::from(more);
    piece.extend_from_slice(&[next, 0]);
    piece.extend_from_slice(&place.to_be_bytes());
    piece.extend_from_slice(&id.to_be_bytes());
    piece.extend_from_slice(payload);
    let len = u16::try_from(piece.len() - 40).unwrap_or(u16::MAX);
    piece[4..6].copy_from_slice(&len.to_be_bytes());
    piece
}

fn piece_v4(header: &[u8], payload: &[u8], (at, more): (usize, bool)) -> Vec<u8> {
    let mut piece = header.to_vec();
    if at > 0 {
        keep_copied_options(&mut piece);
    }
    let header_len = u8::try_from(piece.len()).unwrap_or(60);
    piece.extend_from_slice(payload);
    let len = u16::try_from(piece.len()).unwrap_or(u16::MAX);
    let mut header = Ipv4Packet::new_unchecked(&mut piece[..]);
    header.set_header_len(header_len);
    header.set_total_len(len);
    header.set_dont_frag(false);
    header.set_more_frags(more);
    header.set_frag_offset(u16::try_from(at).unwrap_or(0));
    header.fill_checksum();
    piece
}

/// Options whose copied bit is clear stand in the first piece only (RFC 791 §3.1).
fn keep_copied_options(header: &mut Vec<u8>) {
    let mut options = Vec::new();
    let mut rest = header.get(20..).unwrap_or(&[]);
    while let [kind, tail @ ..] = rest {
        match kind {
            0 => break,
            1 => rest = tail,
            _ => {
                let len = usize::from(tail.first().copied().unwrap_or(0));
                let Some(option) = rest.get(..len).filter(|_| len >= 2) else { break };
                if kind & 0x80 != 0 {
                    options.extend_from_slice(option);
                }
                rest = &rest[len..];
            }
        }
    }
    options.resize(options.len().next_multiple_of(4), 0);
    header.truncate(20);
    header.extend_from_slice(&options);
}
