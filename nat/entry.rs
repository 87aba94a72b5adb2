//! A conntrack entry: one flow, two tuples, its state and its counts.
//!
//! Read `include/net/netfilter/nf_conntrack.h` (`struct nf_conn`) and
//! `net/netfilter/nf_conntrack_proto_tcp.c` first. Both directions live and die together: there is one
//! entry, found by either tuple. Its state is made of atomics, so that whichever worker carries a
//! packet can note it without a lock.

use std::net::IpAddr;
use std::sync::atomic::{
    AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Relaxed,
};
use std::sync::{Arc, Mutex, PoisonError};

use smoltcp::time::{Duration, Instant};

use crate::mapping::Mapping;
use crate::sctp::{self, SctpState, Tags, WrongTag};
use crate::state::{Direction, TcpFlags, TcpState};
use crate::timeouts::{CLOSING, REPLIED, STALLED, Silent, Timeouts, UNACKNOWLEDGED};
use crate::tuple::{Protocol, SCTP, Tuple};
use crate::window::{Believed, OutOfWindow, Segment, Windows};
use crate::zone::{Account, Owner, Zone};

/// Where an entry stands to the table. It goes through these once, in order.
#[repr(u8)]
enum Phase {
    Outside,
    Tracked,
    Ended,
}

/// Who keeps a flow. Only conntrack itself looks into segments, and only a flow of an owner has another
/// state elsewhere: none pays for both.
#[derive(Debug)]
enum Keeper {
    Owner(AtomicU64),
    Conntrack(Box<Kept>),
}

/// What conntrack needs of a flow without an owner.
#[derive(Debug, Default)]
struct Kept {
    tracking: Mutex<Tracking>,
    /// The external port its inside end is shown with.
    mapping: Option<Arc<Mapping>>,
    /// That of its other end, if both are inside.
    behind: Option<Arc<Mapping>>,
}

/// What is followed of a flow's packets, besides its state.
#[derive(Debug, Default)]
enum Tracking {
    #[default]
    Nothing,
    Tcp(Windows),
    Sctp(Tags),
}

impl Keeper {
    fn of(owner: Owner, protocol: Protocol) -> Self {
        let tracking = match protocol {
            Protocol::Tcp => Tracking::Tcp(Windows::default()),
            Protocol::Other(SCTP) => Tracking::Sctp(Tags::default()),
            _ => Tracking::Nothing,
        };
        match owner {
            Owner::NONE => {
                let tracking = Mutex::new(tracking);
                let kept = Kept { tracking, mapping: None, behind: None };
                Self::Conntrack(Box::new(kept))
            }
            owner => Self::Owner(AtomicU64::new(owner.0)),
        }
    }
}

/// A rule has chosen the destination. Beside the marks that decide about idle times.
const BY_RULE: u8 = 1 << 4;
/// It was said, and whom it was said to does not let it in.
const KNOCKS: u8 = 1 << 5;

/// One tracked flow.
#[derive(Debug)]
pub struct Entry {
    /// The network it belongs to.
    pub zone: Zone,
    /// The tuple of its first packet, as that packet's sender wrote it.
    pub original: Tuple,
    /// The direction in which packets leave the container. Only these are found by what they carry
    /// on the container's side: the other tuple is one of the outside.
    pub from_inside: Direction,
    /// The tuple its answers carry where they come in; differs from the inverse of `original` just
    /// where something is translated.
    pub reply: Tuple,
    keeper: Keeper,
    /// Microseconds on the clock of the caller's [`Instant`].
    last_seen: AtomicI64,
    /// Milliseconds of silence after which it is forgotten, by the times of whoever noted the last packet; 0
    /// for the table's own.
    idle: AtomicU32,
    reply_zone: Zone,
    nat: Zone,
    account: Account,
    state: AtomicU8,
    marks: AtomicU8,
    phase: AtomicU8,
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
            from_inside,
            original,
            reply,
            reply_zone: zone,
            nat: Zone::default(),
            idle: AtomicU32::new(0),
            account: Account::default(),
            keeper: Keeper::of(owner, original.protocol),
            last_seen: AtomicI64::new(now.total_micros()),
            state: AtomicU8::new(TcpState::None as u8),
            marks: AtomicU8::new(0),
            phase: AtomicU8::new(Phase::Outside as u8),
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
    pub(crate) fn holding(mut self, held: Arc<Mapping>) -> Self {
        let remote = self.remote();
        if let Keeper::Conntrack(kept) = &mut self.keeper {
            held.join(remote);
            kept.mapping = Some(held);
        }
        self
    }

    /// The same flow between two that are inside, which holds the mapping of whom it leads to as well.
    #[must_use]
    pub(crate) fn leading_to(mut self, held: Arc<Mapping>) -> Self {
        let shown = self.reply.dst.addr;
        if let Keeper::Conntrack(kept) = &mut self.keeper {
            held.join(shown);
            kept.behind = Some(held);
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
        match &self.keeper {
            Keeper::Conntrack(kept) => kept.mapping.as_ref(),
            Keeper::Owner(_) => None,
        }
    }

    /// The mapping of whom it leads to, if both are inside.
    pub fn leads_to(&self) -> Option<&Arc<Mapping>> {
        match &self.keeper {
            Keeper::Conntrack(kept) => kept.behind.as_ref(),
            Keeper::Owner(_) => None,
        }
    }

    /// The far side's address, as the far side writes it.
    const fn remote(&self) -> IpAddr {
        match self.from_inside {
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

    /// Whether conntrack finds it: false once it was removed, or dropped early to make room. An owner
    /// that keeps entries beside its own state forgets those.
    pub fn is_tracked(&self) -> bool {
        self.phase.load(Relaxed) == Phase::Tracked as u8
    }

    /// Takes note that it is about to be found.
    pub(crate) fn track(&self) {
        self.phase.store(Phase::Tracked as u8, Relaxed);
    }

    /// Takes note that it is not to be found any more; true for the one caller that ends it.
    pub(crate) fn end(&self) -> bool {
        let (tracked, ended) = (Phase::Tracked as u8, Phase::Ended as u8);
        self.phase.compare_exchange(tracked, ended, AcqRel, Relaxed).is_ok()
    }

    /// Who handles this flow's packets.
    pub fn owner(&self) -> Owner {
        match &self.keeper {
            Keeper::Owner(owner) => Owner(owner.load(Relaxed)),
            Keeper::Conntrack(_) => Owner::NONE,
        }
    }

    /// Hands the flow of an owner to another.
    pub fn set_owner(&self, new: Owner) {
        if let Keeper::Owner(owner) = &self.keeper {
            owner.store(new.0, Relaxed);
        }
    }

    /// Whether a segment can belong to this connection, and whether its control bits are to be believed.
    ///
    /// # Errors
    ///
    /// It cannot; nothing is changed then.
    pub fn judge(&self, travelling: Direction, segment: &Segment) -> Result<Believed, OutOfWindow> {
        let Keeper::Conntrack(kept) = &self.keeper else { return Ok(Believed::Yes) };
        // One connection's segments are one worker's, as a rule: nobody waits here.
        let mut tracking = kept.tracking.lock().unwrap_or_else(PoisonError::into_inner);
        let Tracking::Tcp(windows) = &mut *tracking else { return Ok(Believed::Yes) };
        let reopened = segment.flags.syn
            && !segment.flags.ack
            && matches!(self.state(), TcpState::TimeWait | TcpState::Close);
        if reopened {
            *windows = Windows::default();
        }
        let believed = windows.judge(travelling, segment)?;
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
        let Keeper::Conntrack(kept) = &self.keeper else { return Ok(()) };
        let mut tracking = kept.tracking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Tracking::Sctp(tags) = &mut *tracking {
            tags.judge(travelling, packet)?;
        }
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
        self.last_seen.store(now.total_micros(), Relaxed);
    }

    /// The same, to be kept alive for as long as `timeouts` say.
    pub(crate) fn keep(&self, travelling: Direction, octets: u64, now: Instant, of: &Timeouts) {
        self.note(travelling, 1, octets, now);
        let idle = of.idle(&self.silent()).total_millis();
        self.idle.store(u32::try_from(idle).unwrap_or(u32::MAX), Relaxed);
    }

    /// Counts without keeping the flow alive: what comes unasked from outside must not
    /// (RFC 4787 REQ-6). An answer marks the flow answered.
    pub fn count(&self, travelling: Direction, packets: u64, octets: u64) {
        let index = travelling as usize;
        self.packets[index].fetch_add(packets, Relaxed);
        self.octets[index].fetch_add(octets, Relaxed);
        if travelling == Direction::Reply && !self.replied() {
            self.marks.fetch_or(REPLIED, Relaxed);
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

    /// Whether the flow is not to be dropped early: a TCP connection once established, any other
    /// flow once it was answered. Printed as `[ASSURED]`.
    pub fn assured(&self) -> bool {
        match self.original.protocol {
            Protocol::Tcp => self.replied() && self.state() as u8 >= TcpState::Established as u8,
            _ => self.replied(),
        }
    }

    /// Packets and octets of IP seen in that direction.
    pub fn counts(&self, travelling: Direction) -> (u64, u64) {
        let index = travelling as usize;
        (self.packets[index].load(Relaxed), self.octets[index].load(Relaxed))
    }

    /// When the last packet was noted.
    pub fn last_seen(&self) -> Instant {
        Instant::from_micros(self.last_seen.load(Relaxed))
    }

    /// When the flow is forgotten unless another packet is noted before: by `timeouts`, unless its NAT has
    /// times of its own.
    pub fn expires_at(&self, timeouts: &Timeouts) -> Instant {
        let idle = match self.idle.load(Relaxed) {
            0 => timeouts.idle(&self.silent()),
            millis => Duration::from_millis(millis.into()),
        };
        self.last_seen() + idle
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
        let Keeper::Conntrack(kept) = &self.keeper else { return };
        if let Some(mapping) = &kept.mapping {
            mapping.part(self.remote());
        }
        if let Some(mapping) = &kept.behind {
            mapping.part(self.reply.dst.addr);
        }
    }
}
