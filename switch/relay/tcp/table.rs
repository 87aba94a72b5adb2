//! All TCP flows of one worker, and what every step on them needs: sequence numbers, turns, deadlines.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use datapath::{Offload, Outbox, Packet, PortId};
use mio::Registry;
use nat::{TcpFlags, TransportAddr, Zone};
use smoltcp::time::{Duration, Instant};

use super::attempts::Attempts;
use super::flow::{Flow, NEVER, Stage};
use super::homes::{self, Homes, Stay};
use super::segment::Outgoing;
use super::seq::Seq;
use crate::context::Context;
use crate::key::{Arena, Key, Kind};
use crate::shared::Shared;
use crate::timers::Timers;

/// Octets one flow may move towards its container before others get their turn.
pub(super) const SHARE: usize = 256 * 1024;

/// Flows in a burst from which on acknowledgments of little wait for an answer to go with. One whose
/// container is alone waits for nothing: it may hold its next octets back until then (RFC 896).
const BUSY: usize = 4;

/// How long they wait; Linux 40 ms or more (`TCP_DELACK_MIN`).
const LATE: Duration = Duration::from_millis(2);

/// Longest time a timer lies in the heap: that of a flow which is gone is in nobody's way for longer.
const IDLE_SLEEP: Duration = Duration::from_secs(30);

/// The same for a flow that is in use, whose deadline may come nearer soon: each time it does costs
/// another place in the heap until then.
const BUSY_SLEEP: Duration = Duration::from_secs(1);

/// All TCP flows of one worker.
#[derive(Debug)]
pub(crate) struct Tcp {
    /// Boxed: a table that grows moves pointers, and a storm of flows leaves no large table behind.
    pub(super) flows: Arena<Box<Flow>>,
    timers: Timers,
    /// Those whose far side has not answered.
    pub(super) attempts: Attempts,
    pub(super) shared: Arc<Shared>,
    pub(super) registry: Registry,
    /// Flows to be looked at at the end of the burst.
    due: Vec<Key>,
    /// Flows with more to move than their share.
    backlog: VecDeque<(Zone, Key)>,
    /// Flows whose acknowledgment waits for something to go with, and until when.
    late_acks: VecDeque<(Instant, Key)>,
    homes: Homes,
    /// Keys the initial sequence numbers (RFC 6528).
    secret: RandomState,
    pub(super) peek_offset: bool,
}

impl Tcp {
    pub(crate) fn new(worker: u8, shared: Arc<Shared>, registry: Registry) -> Self {
        Self {
            flows: Arena::new(worker, Kind::Tcp),
            timers: Timers::default(),
            attempts: Attempts::default(),
            shared,
            registry,
            due: Vec::new(),
            backlog: VecDeque::new(),
            late_acks: VecDeque::new(),
            homes: Homes::default(),
            secret: RandomState::new(),
            peek_offset: netns::sockopt::peek_off_supported(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn zone_of(&self, key: Key) -> Option<Zone> {
        self.flows.get(key).map(|flow| flow.zone())
    }

    /// RFC 6528: a clock, and a keyed hash of who speaks to whom. The clock is as fast as Linux's
    /// (`seq_scale`, 64 ns), not RFC 9293's 4 µs: a new connection of the same name, which may begin at once,
    /// begins beyond where a fast one ended, so that whoever remembers that one (TIME-WAIT) takes it.
    #[expect(clippy::cast_possible_truncation, reason = "32 of the bits are wanted")]
    pub(super) fn initial_seq(
        &self,
        inside: TransportAddr,
        outside: TransportAddr,
        now: Instant,
    ) -> Seq {
        let clock = (now.total_micros() << 4) as u32;
        Seq(clock.wrapping_add(self.secret.hash_one((inside, outside)) as u32))
    }

    /// Sends a segment of `flow` to its container.
    pub(super) fn send(flow: &Flow, segment: &Outgoing, ctx: &mut Context<'_>) {
        let ip_len = Self::send_apart(segment, ctx);
        flow.note(flow.entry.from_inside().other(), ip_len, segment.segment.flags, ctx.now);
    }

    /// Sends a segment that moves no state. Returns its octets of IP.
    pub(super) fn send_apart(segment: &Outgoing, ctx: &mut Context<'_>) -> usize {
        let Some(own_mac) = ctx.own_mac() else { return 0 };
        let built = segment.build(ctx.out, own_mac);
        let ip_len = built.len() - Packet::IP;
        ctx.dp.send_to(built, segment.to.addr, Offload::NONE, ctx.now, ctx.out);
        ip_len
    }

    /// Puts a flow in line for its next share.
    pub(super) fn queue(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.queued
        {
            flow.queued = true;
            self.backlog.push_back((flow.zone(), key));
        }
    }

    /// Whose turn it is next; its zone tells which network to serve it with.
    pub(crate) fn next_queued(&mut self) -> Option<(Zone, Key)> {
        self.backlog.pop_front()
    }

    pub(crate) fn queued(&self) -> usize {
        self.backlog.len()
    }

    /// Gives a queued flow its share, at the end of the burst.
    pub(crate) fn serve_queued(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.queued = false;
            self.attend(key);
        }
    }

    /// Looks at a flow at the end of the burst, once, however often something happens to it.
    pub(super) fn attend(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && !std::mem::replace(&mut flow.due, true)
        {
            self.due.push(key);
        }
    }

    pub(super) fn owe_ack(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.ack_due = true;
            self.attend(key);
        }
    }

    /// For each flow something happened to in a burst: frees what the container acknowledged, sends what
    /// it may have, acknowledges what it sent.
    pub(crate) fn end_burst(&mut self, ctx: &mut Context<'_>) {
        let mut due = std::mem::take(&mut self.due);
        let busy = due.len() >= BUSY;
        for key in due.drain(..) {
            let Some(flow) = self.flows.get_mut(key) else { continue };
            flow.due = false;
            let queued = flow.queued;
            self.finish_if_over(key, ctx);
            self.discard_acknowledged(key);
            // Whoever is in line for its share waits for that.
            if !queued {
                self.pump(key, ctx);
            }
            if !busy || !self.acknowledge_late(key, ctx.now) {
                self.acknowledge_if_due(key, ctx);
            }
            self.watch(key, ctx);
        }
        self.due = due;
    }

    /// Lets an acknowledgment wait for something to go with, if it may.
    fn acknowledge_late(&mut self, key: Key, now: Instant) -> bool {
        let Some(flow) = self.flows.get_mut(key) else { return false };
        let late = flow.ack_due && flow.may_acknowledge_late();
        if late && !std::mem::replace(&mut flow.ack_late, true) {
            self.late_acks.push_back((now + LATE, key));
        }
        late
    }

    /// A flow whose acknowledgment has waited long enough, with its zone.
    pub(crate) fn next_late_ack(&mut self, now: Instant) -> Option<(Zone, Key)> {
        while let Some((until, key)) = self.late_acks.front().copied() {
            if until > now {
                return None;
            }
            self.late_acks.pop_front();
            let Some(flow) = self.flows.get_mut(key) else { continue };
            flow.ack_late = false;
            if flow.ack_due {
                return Some((flow.zone(), key));
            }
        }
        None
    }

    /// Moves a flow's deadline.
    pub(super) fn schedule(&mut self, key: Key, when: Instant, now: Instant) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.deadline = when;
        Self::arm(&mut self.timers, key, flow, now + IDLE_SLEEP);
    }

    /// Has the timers look at a flow at its deadline, but no later than `latest`.
    fn arm(timers: &mut Timers, key: Key, flow: &mut Flow, latest: Instant) {
        let when = flow.deadline.min(latest);
        if when < flow.armed {
            flow.armed = when;
            timers.arm(key, when);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let late_ack = self.late_acks.front().map(|(until, _)| *until);
        [self.timers.poll_timeout(), late_ack].into_iter().flatten().min()
    }

    /// A flow whose deadline has come, with its zone.
    pub(crate) fn next_due(&mut self, now: Instant) -> Option<(Zone, Key)> {
        while let Some((when, key)) = self.timers.pop(now) {
            let Some(flow) = self.flows.get_mut(key) else { continue };
            if flow.armed != when {
                continue; // An earlier look was arranged since.
            }
            flow.armed = NEVER;
            if flow.deadline <= now {
                return Some((flow.zone(), key));
            }
            let idle = flow.entry.silence(now) >= IDLE_SLEEP;
            let mut sleep = if idle { IDLE_SLEEP } else { BUSY_SLEEP };
            if flow.stage == Stage::Established {
                let (local, far) = flow.outer();
                match self.homes.stay(local.addr, far.into(), now) {
                    Stay::There => {}
                    Stay::Away => sleep = sleep.min(homes::PATIENCE),
                    Stay::Left => {
                        flow.homeless = true;
                        return Some((flow.zone(), key));
                    }
                }
            }
            Self::arm(&mut self.timers, key, flow, now + sleep);
        }
        None
    }

    /// Looks arranged with the timers, those for flows that are gone among them.
    #[cfg(test)]
    pub(super) fn armed(&self) -> usize {
        self.timers.len()
    }

    /// The flows of a port, or of a whole network.
    pub(crate) fn of_port(&self, zone: Zone, port: Option<PortId>) -> Vec<Key> {
        self.flows.keys(|flow| flow.zone() == zone && port.is_none_or(|port| flow.port() == port))
    }
}

pub(super) const ACK: TcpFlags = TcpFlags { syn: false, ack: true, fin: false, rst: false };
pub(super) const SYN: TcpFlags = TcpFlags { syn: true, ack: false, fin: false, rst: false };
pub(super) const SYN_ACK: TcpFlags = TcpFlags { syn: true, ack: true, fin: false, rst: false };
pub(super) const FIN_ACK: TcpFlags = TcpFlags { syn: false, ack: true, fin: true, rst: false };
pub(super) const RST: TcpFlags = TcpFlags { syn: false, ack: false, fin: false, rst: true };
pub(super) const RST_ACK: TcpFlags = TcpFlags { syn: false, ack: true, fin: false, rst: true };

/// Our own MSS: what fits a packet of the network's MTU.
pub(super) fn own_mss(ctx: &Context<'_>, v6: bool) -> u16 {
    ctx.dp.config().mtu.0.saturating_sub(if v6 { 60 } else { 40 }).max(64)
}

/// Frames built in one turn are flushed before they leave the cache.
pub(super) fn is_full(out: &Outbox) -> bool {
    out.built_octets() >= datapath::outbox::ARENA_TARGET
}
