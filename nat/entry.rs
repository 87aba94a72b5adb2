//! A conntrack entry: one flow, two tuples, its state and its counts.
//!
//! Read `include/net/netfilter/nf_conntrack.h` (`struct nf_conn`) and
//! `net/netfilter/nf_conntrack_proto_tcp.c` first. Both directions live and die together: there is one
//! entry, found by either tuple. Its state is made of atomics, so that whichever worker carries a
//! packet can note it without a lock.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Relaxed};

use smoltcp::time::{Duration, Instant};

use crate::keeper::{Keeper, Tracking};
use crate::mapping::Mapping;
use crate::moment::{self, Moment};
use crate::sctp::{self, SctpState, WrongTag};
use crate::state::{Direction, TcpFlags, TcpState};
use crate::timeouts::{CLOSING, REPLIED, STALLED, Silent, Timeouts, UNACKNOWLEDGED};
use crate::tuple::{Protocol, SCTP, Tuple};
use crate::window::{Believed, OutOfWindow, Segment, Windows};
use crate::zone::{Account, Owner, Zone};

/// Who began it has answered the answer, and so is where it says it is. Beside the marks that decide about idle
/// times, as those below.
const CONFIRMED: u8 = 1 << 3;
/// A rule has chosen the destination.
const BY_RULE: u8 = 1 << 4;
/// It was said, and whom it was said to does not let it in.
const KNOCKS: u8 = 1 << 5;
/// Conntrack finds it.
const TRACKED: u8 = 1 << 6;
/// Its first packet has left a container.
const FROM_INSIDE: u8 = 1 << 7;

/// One tracked flow.
#[derive(Debug)]
pub struct Entry {
    /// The network it belongs to.
    pub zone: Zone,
    /// The tuple of its first packet, as that packet's sender wrote it.
    pub original: Tuple,
    /// The tuple its answers carry where they come in; differs from the inverse of `original` just
    /// where something is translated.
    pub reply: Tuple,
    keeper: Keeper,
    last_seen: Moment,
    /// The silence after which it is forgotten, by the times of whoever noted the last packet, as
    /// [`moment::ticks`]; 0 for the table's own.
    idle: AtomicU32,
    reply_zone: Zone,
    nat: Zone,
    account: Account,
    state: AtomicU8,
    marks: AtomicU8,
    packets: [AtomicU64; 2],
    octets: [AtomicU64; 2],
}

impl Entry {
    /// A flow whose first packet is being handled at `now`. Nothing is counted yet.
    #[must_use]
    pub fn new(
        zone: Zone,
        from_inside: Direction,
        original: Tuple,
        reply: Tuple,
        owner: Owner,
        now: Instant,
    ) -> Self {
        Self {
            zone,
            original,
            reply,
            reply_zone: zone,
            nat: Zone::default(),
            idle: AtomicU32::new(0),
            account: Account::default(),
            keeper: Keeper::of(owner, original.protocol),
            last_seen: Moment::new(now),
            state: AtomicU8::new(TcpState::None as u8),
            marks: AtomicU8::new(match from_inside {
                Direction::Original => FROM_INSIDE,
                Direction::Reply => 0,
            }),
            packets: Default::default(),
            octets: Default::default(),
        }
    }

    /// The same flow with its answers coming in by another network.
    #[must_use]
    pub const fn answered_in(mut self, zone: Zone) -> Self {
        self.reply_zone = zone;
        self
    }

    /// The same flow, entered by the NAT of that uplink.
    #[must_use]
    pub(crate) const fn entered_by(mut self, nat: Zone) -> Self {
        self.nat = nat;
        self
    }

    /// The uplink whose NAT has entered it; zone 0 if none has.
    pub const fn nat(&self) -> Zone {
        self.nat
    }

    /// The same flow, whose destination a rule has chosen.
    #[must_use]
    pub(crate) fn ruled(self, by_rule: bool) -> Self {
        self.marks.fetch_or(if by_rule { BY_RULE } else { 0 }, Relaxed);
        self
    }

    /// Whether a rule has chosen its destination, as for a published port.
    pub fn by_rule(&self) -> bool {
        self.marks.load(Relaxed) & BY_RULE != 0
    }

    /// The same flow, which holds `mapping` while it lasts. Not for a flow of an owner's, which holds
    /// what it needs itself.
    #[must_use]
    pub(crate) fn holding(mut self, held: &Arc<Mapping>) -> Self {
        if self.keeper.hold(held) {
            held.join(self.remote());
        }
        self
    }

    /// The same flow between two that are inside, which holds the mapping of whom it leads to as well.
    #[must_use]
    pub(crate) fn leading_to(mut self, held: &Arc<Mapping>) -> Self {
        if self.keeper.lead(held) {
            held.join(self.reply.dst.addr);
        }
        self
    }

    /// The same flow, which leads nowhere yet: its sender has spoken to an external address and port whose owner
    /// has not spoken to its. It lets the answer in (RFC 4787 §5).
    #[must_use]
    pub(crate) fn knocking(self) -> Self {
        self.marks.fetch_or(KNOCKS, Relaxed);
        self
    }

    /// Whether it leads nowhere yet: between containers, before the other one has spoken, too.
    pub fn knocks(&self) -> bool {
        self.marks.load(Relaxed) & KNOCKS != 0
    }

    /// The same flow, counted against `account`.
    pub(crate) const fn charged_to(mut self, account: Account) -> Self {
        self.account = account;
        self
    }

    /// The mapping it holds.
    pub fn mapping(&self) -> Option<&Arc<Mapping>> {
        self.keeper.mapping()
    }

    /// The mapping of whom it leads to, if both are inside.
    pub fn leads_to(&self) -> Option<&Arc<Mapping>> {
        self.keeper.behind()
    }

    /// The far side's address, as the far side writes it.
    fn remote(&self) -> IpAddr {
        match self.from_inside() {
            Direction::Original => self.original.dst.addr,
            Direction::Reply => self.original.src.addr,
        }
    }

    /// The network its answers come in by.
    pub const fn reply_zone(&self) -> Zone {
        self.reply_zone
    }

    /// Whose quota it counts against.
    pub const fn account(&self) -> Account {
        self.account
    }

    /// The network and tuple by which a packet travelling that way is known.
    pub const fn named(&self, travelling: Direction) -> (Zone, Tuple) {
        match travelling {
            Direction::Original => (self.zone, self.original),
            Direction::Reply => (self.reply_zone, self.reply),
        }
    }

    /// The direction in which packets leave the container. Only these are found by what they carry
    /// on the container's side: the other tuple is one of the outside.
    pub fn from_inside(&self) -> Direction {
        match self.marks.load(Relaxed) & FROM_INSIDE {
            0 => Direction::Reply,
            _ => Direction::Original,
        }
    }

    /// Whether conntrack finds it: false once it was removed, or dropped early to make room. An owner
    /// that keeps entries beside its own state forgets those.
    pub fn is_tracked(&self) -> bool {
        self.marks.load(Relaxed) & TRACKED != 0
    }

    /// Takes note that it is about to be found.
    pub(crate) fn track(&self) {
        self.marks.fetch_or(TRACKED, Relaxed);
    }

    /// Takes note that it is not to be found any more; true for the one caller that ends it.
    pub(crate) fn end(&self) -> bool {
        self.marks.fetch_and(!TRACKED, AcqRel) & TRACKED != 0
    }

    /// Who handles this flow's packets.
    pub fn owner(&self) -> Owner {
        match &self.keeper {
            Keeper::Owner(owner) => Owner(owner.load(Relaxed)),
            _ => Owner::NONE,
        }
    }

    /// Whether it is an owner's, which it stays.
    pub(crate) const fn is_owned(&self) -> bool {
        matches!(self.keeper, Keeper::Owner(_))
    }

    /// Hands the flow of an owner to another.
    pub fn set_owner(&self, new: Owner) {
        if let Keeper::Owner(owner) = &self.keeper {
            owner.store(new.0, Relaxed);
        }
    }

    /// Whether a segment can belong to this connection, and whether its control bits are to be believed. What one
    /// side says that has lost the connection, or the other side of which has, passes unbelieved: its addressee
    /// knows what to answer (RFC 9293 §3.5.1, RFC 5961 §4).
    ///
    /// # Errors
    ///
    /// It cannot; nothing is changed then.
    pub fn judge(&self, travelling: Direction, segment: &Segment) -> Result<Believed, OutOfWindow> {
        let mut tracking = self.keeper.tracking();
        let Some(Tracking::Tcp(windows)) = tracking.as_deref_mut() else {
            return Ok(Believed::Yes);
        };
        let (state, flags) = (self.state(), segment.flags);
        let opens = flags.syn && !flags.ack && !flags.rst && travelling == Direction::Original;
        match state {
            TcpState::TimeWait | TcpState::Close if opens => *windows = Windows::default(),
            TcpState::None | TcpState::SynSent | TcpState::SynSent2 => {}
            _ if opens => {
                windows.begins_anew(travelling, segment.seq);
                return Ok(Believed::No);
            }
            _ => {}
        }
        let mut believed = windows.judge(travelling, segment).or_else(|why| match state {
            // From the same port once more, before the first was answered.
            TcpState::SynSent if opens => {
                windows.begins_anew(travelling, segment.seq);
                Ok(Believed::No)
            }
            // The far side has another connection in mind; the opener resets that, and asks again.
            TcpState::SynSent if is_question(travelling, flags) => Ok(Believed::No),
            _ => Err(why),
        })?;
        if believed == Believed::Anew {
            self.set_state(TcpState::SynRecv);
            believed = Believed::Yes;
        }
        self.mark(STALLED, windows.is_stalled());
        self.mark(UNACKNOWLEDGED, windows.is_unacknowledged());
        Ok(believed)
    }

    /// Whether an SCTP packet's tag is its addressee's; the association moves by what it carries, then.
    pub(crate) fn associate(
        &self,
        travelling: Direction,
        packet: &sctp::Packet,
    ) -> Result<(), WrongTag> {
        let mut tracking = self.keeper.tracking();
        let Some(Tracking::Sctp(tags)) = tracking.as_deref_mut() else { return Ok(()) };
        tags.judge(travelling, packet)?;
        let state = packet
            .chunks()
            .iter()
            .fold(self.sctp_state(), |state, chunk| state.next(travelling, *chunk));
        self.state.store(state as u8, Relaxed);
        Ok(())
    }

    /// Notes that a DCCP connection is being closed, or opened again.
    pub(crate) fn close(&self, closing: bool) {
        self.mark(CLOSING, closing);
    }

    /// Sets or clears a mark, which most packets leave as it is.
    fn mark(&self, mark: u8, set: bool) {
        if (self.marks.load(Relaxed) & mark != 0) != set {
            match set {
                true => self.marks.fetch_or(mark, Relaxed),
                false => self.marks.fetch_and(!mark, Relaxed),
            };
        }
    }

    /// Counts `packets` packets of `octets` octets of IP in all, and keeps the flow alive.
    pub fn note(&self, travelling: Direction, packets: u64, octets: u64, now: Instant) {
        self.count(travelling, packets, octets);
        self.last_seen.set(now);
    }

    /// The same, to be kept alive for as long as `timeouts` say.
    pub(crate) fn keep(&self, travelling: Direction, octets: u64, now: Instant, of: &Timeouts) {
        self.note(travelling, 1, octets, now);
        self.idle.store(moment::ticks(of.idle(&self.silent())), Relaxed);
    }

    /// Counts without keeping the flow alive: what comes unasked from outside must not
    /// (RFC 4787 REQ-6). An answer marks the flow answered, what follows it from the other side confirmed.
    pub fn count(&self, travelling: Direction, packets: u64, octets: u64) {
        let index = travelling as usize;
        self.packets[index].fetch_add(packets, Relaxed);
        self.octets[index].fetch_add(octets, Relaxed);
        match travelling {
            Direction::Reply => self.mark(REPLIED, true),
            // Of TCP its state tells.
            Direction::Original if self.original.protocol == Protocol::Tcp || !self.replied() => {}
            Direction::Original => self.mark(CONFIRMED, true),
        }
    }

    /// Moves the TCP state by one segment and returns the new state.
    pub fn segment(&self, travelling: Direction, flags: TcpFlags) -> TcpState {
        let next = self.state().next(travelling, flags);
        self.set_state(next);
        next
    }

    /// Sets the TCP state, for an owner that ends the connection itself and so knows better than the
    /// segments tell.
    pub fn set_state(&self, state: TcpState) {
        self.state.store(state as u8, Relaxed);
        match state {
            TcpState::SynSent => self.mark(CONFIRMED, false),
            TcpState::Established => self.mark(CONFIRMED, true),
            _ => {}
        }
    }

    /// Where the TCP connection stands; [`TcpState::None`] for other protocols.
    pub fn state(&self) -> TcpState {
        match self.original.protocol {
            Protocol::Tcp => TcpState::from_u8(self.state.load(Relaxed)),
            _ => TcpState::None,
        }
    }

    /// Where the SCTP association stands; [`SctpState::None`] for other protocols.
    pub fn sctp_state(&self) -> SctpState {
        match self.original.protocol {
            Protocol::Other(SCTP) => SctpState::from_u8(self.state.load(Relaxed)),
            _ => SctpState::None,
        }
    }

    /// Its state's name as `conntrack -L` prints it, if its protocol has any.
    pub fn state_name(&self) -> Option<&'static str> {
        match self.original.protocol {
            Protocol::Tcp => Some(self.state().name()),
            Protocol::Other(SCTP) => Some(self.sctp_state().name()),
            _ => None,
        }
    }

    /// Whether an answer was ever seen; its absence is `[UNREPLIED]`.
    pub fn replied(&self) -> bool {
        self.marks.load(Relaxed) & REPLIED != 0
    }

    /// Whether the flow is not to be dropped early. Printed as `[ASSURED]`.
    ///
    /// A TCP connection is once it was established, whatever became of it. Any other flow is once it was
    /// answered; one that was begun outside once its beginner has gone on from there, as anybody can ask in
    /// another's name.
    pub fn assured(&self) -> bool {
        let marks = self.marks.load(Relaxed);
        let begun_inside = self.original.protocol != Protocol::Tcp && marks & FROM_INSIDE != 0;
        marks & REPLIED != 0 && (begun_inside || marks & CONFIRMED != 0)
    }

    /// Packets and octets of IP seen in that direction.
    pub fn counts(&self, travelling: Direction) -> (u64, u64) {
        let index = travelling as usize;
        (self.packets[index].load(Relaxed), self.octets[index].load(Relaxed))
    }

    /// How long it has been silent at `now`, to a hundredth of a second. Not to be asked of what an owner has
    /// left alone for 248 days.
    pub fn silence(&self, now: Instant) -> Duration {
        self.last_seen.before(now)
    }

    /// How long it is still remembered at `now` unless another packet is noted: by `timeouts`, unless its NAT
    /// has times of its own. 200 days is the longest.
    pub fn left(&self, timeouts: &Timeouts, now: Instant) -> Duration {
        let idle = match self.idle.load(Relaxed) {
            0 => timeouts.idle(&self.silent()).min(moment::LONGEST),
            ticks => moment::of_ticks(ticks),
        };
        let silence = self.silence(now);
        if silence < idle { idle - silence } else { Duration::ZERO }
    }

    /// Whether it has been silent for too long.
    pub fn is_over(&self, timeouts: &Timeouts, now: Instant) -> bool {
        self.left(timeouts, now) == Duration::ZERO
    }

    fn silent(&self) -> Silent {
        Silent {
            protocol: self.original.protocol,
            state: self.state.load(Relaxed),
            dst_port: self.original.dst.port,
            marks: self.marks.load(Relaxed),
        }
    }

    /// Whether source or destination is rewritten on the way.
    pub fn translated(&self) -> bool {
        self.reply != self.original.inverse()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(mapping) = self.mapping() {
            mapping.part(self.remote());
        }
        if let Some(mapping) = self.leads_to() {
            mapping.part(self.reply.dst.addr);
        }
    }
}
/// Whether a segment is what somebody answers to a SYN who knows of another connection, or a reset of that.
const fn is_question(travelling: Direction, flags: TcpFlags) -> bool {
    match travelling {
        Direction::Reply => flags.ack && !flags.syn && !flags.rst,
        Direction::Original => flags.rst,
    }
}
