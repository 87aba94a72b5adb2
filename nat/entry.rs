//! A conntrack entry: one flow, two tuples, its state and its counts.
//!
//! Read `include/net/netfilter/nf_conntrack.h` (`struct nf_conn`) and
//! `net/netfilter/nf_conntrack_proto_tcp.c` first. Both directions live and die together: there is one
//! entry, found by either tuple. Its state is made of atomics, so that whichever worker carries a
//! packet can note it without a lock.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::AcqRel, Ordering::Relaxed};

use smoltcp::time::{Duration, Instant};

use crate::state::{Direction, TcpFlags, TcpState};
use crate::timeouts::Timeouts;
use crate::tuple::{Protocol, Tuple};

/// A network whose flows are told apart from every other's, as `nf_conntrack_zone` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Zone(pub u16);

/// Who handles the packets of a flow, in terms of the caller; this crate only keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

impl Owner {
    /// Nobody: conntrack itself forgets the flow when it has been silent for its idle time.
    pub const NONE: Self = Self(0);
}

/// Whose quota a flow counts against, in terms of the caller: a container's port, as a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account(pub u32);

/// Where an entry stands to the table. It goes through these once, in order.
#[repr(u8)]
enum Phase {
    Outside,
    Tracked,
    Ended,
}

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
    owner: AtomicU64,
    /// Microseconds on the clock of the caller's [`Instant`].
    last_seen: AtomicI64,
    reply_zone: Zone,
    account: Account,
    state: AtomicU8,
    replied: AtomicU8,
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
            account: Account::default(),
            owner: AtomicU64::new(owner.0),
            last_seen: AtomicI64::new(now.total_micros()),
            state: AtomicU8::new(TcpState::None as u8),
            replied: AtomicU8::new(0),
            phase: AtomicU8::new(Phase::Outside as u8),
            packets: Default::default(),
            octets: Default::default(),
        }
    }

    /// The same flow with its answers coming in by another network.
    #[must_use]
    pub const fn answered_in(self, zone: Zone) -> Self {
        Self { reply_zone: zone, ..self }
    }

    /// The same flow, counted against `account`.
    pub(crate) const fn charged_to(self, account: Account) -> Self {
        Self { account, ..self }
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
        Owner(self.owner.load(Relaxed))
    }

    /// Hands the flow to another owner.
    pub fn set_owner(&self, owner: Owner) {
        self.owner.store(owner.0, Relaxed);
    }

    /// Counts `packets` packets of `octets` octets of IP in all, and keeps the flow alive.
    pub fn note(&self, travelling: Direction, packets: u64, octets: u64, now: Instant) {
        self.count(travelling, packets, octets);
        self.last_seen.store(now.total_micros(), Relaxed);
    }

    /// Counts without keeping the flow alive: what comes unasked from outside must not
    /// (RFC 4787 REQ-6). An answer marks the flow answered.
    pub fn count(&self, travelling: Direction, packets: u64, octets: u64) {
        let index = travelling as usize;
        self.packets[index].fetch_add(packets, Relaxed);
        self.octets[index].fetch_add(octets, Relaxed);
        if travelling == Direction::Reply {
            self.replied.store(1, Relaxed);
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
        TcpState::from_u8(self.state.load(Relaxed))
    }

    /// Whether an answer was ever seen; its absence is `[UNREPLIED]`.
    pub fn replied(&self) -> bool {
        self.replied.load(Relaxed) != 0
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

    /// When the flow is forgotten unless another packet is noted before.
    pub fn expires_at(&self, timeouts: &Timeouts) -> Instant {
        self.last_seen() + self.idle(timeouts)
    }

    fn idle(&self, timeouts: &Timeouts) -> Duration {
        let Tuple { protocol, dst, .. } = self.original;
        timeouts.idle(protocol, self.state(), self.replied(), dst.port)
    }

    /// Whether source or destination is rewritten on the way.
    pub fn translated(&self) -> bool {
        self.reply != self.original.inverse()
    }
}
