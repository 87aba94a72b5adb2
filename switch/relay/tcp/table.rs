//! All TCP flows of one worker, and what every step on them needs: sequence numbers, turns, deadlines.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use datapath::{Offload, Outbox, Packet, PortId};
use mio::Registry;
use nat::{TcpFlags, TransportAddr, Zone};
use smoltcp::time::Instant;

use super::flow::Flow;
use super::segment::Outgoing;
use super::seq::Seq;
use crate::context::Context;
use crate::key::{Arena, Key, Kind};
use crate::limits::Limits;
use crate::timers::Timers;

/// Octets one flow may move towards its container before others get their turn.
pub(super) const SHARE: usize = 256 * 1024;

/// All TCP flows of one worker.
#[derive(Debug)]
pub(crate) struct Tcp {
    pub(super) flows: Arena<Flow>,
    timers: Timers,
    pub(super) limits: Arc<Limits>,
    pub(super) registry: Registry,
    /// Flows that owe the container an acknowledgment.
    pub(super) ack_due: Vec<Key>,
    /// Flows with more to move than their share.
    backlog: VecDeque<(Zone, Key)>,
    /// Keys the initial sequence numbers (RFC 6528).
    secret: RandomState,
    pub(super) peek_offset: bool,
}

impl Tcp {
    pub(crate) fn new(worker: u8, limits: Arc<Limits>, registry: Registry) -> Self {
        Self {
            flows: Arena::new(worker, Kind::Tcp),
            timers: Timers::default(),
            limits,
            registry,
            ack_due: Vec::new(),
            backlog: VecDeque::new(),
            secret: RandomState::new(),
            peek_offset: netns::sockopt::peek_off_supported(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn zone_of(&self, key: Key) -> Option<Zone> {
        self.flows.get(key).map(|flow| flow.zone)
    }

    /// RFC 6528: a clock that ticks every 4 µs, and a keyed hash of who speaks to whom.
    #[expect(clippy::cast_possible_truncation, reason = "32 of the bits are wanted")]
    pub(super) fn initial_seq(
        &self,
        inside: TransportAddr,
        outside: TransportAddr,
        now: Instant,
    ) -> Seq {
        let clock = (now.total_micros() / 4) as u32;
        Seq(clock.wrapping_add(self.secret.hash_one((inside, outside)) as u32))
    }

    /// Sends a segment of `flow` to its container.
    pub(super) fn send(flow: &Flow, segment: &Outgoing, ctx: &mut Context<'_>) {
        let Some(own_mac) = ctx.own_mac() else { return };
        let built = segment.build(ctx.out, own_mac);
        let ip_len = built.len() - Packet::IP;
        flow.note(flow.entry.from_inside.other(), ip_len, segment.segment.flags, ctx.now);
        ctx.dp.send_to(built, flow.inside.addr, Offload::NONE, ctx.now, ctx.out);
    }

    /// Puts a flow in line for its next share.
    pub(super) fn queue(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.queued
        {
            flow.queued = true;
            self.backlog.push_back((flow.zone, key));
        }
    }

    /// Whose turn it is next; its zone tells which network to serve it with.
    pub(crate) fn next_queued(&mut self) -> Option<(Zone, Key)> {
        self.backlog.pop_front()
    }

    pub(crate) fn queued(&self) -> usize {
        self.backlog.len()
    }

    /// Gives a queued flow its share.
    pub(crate) fn serve_queued(&mut self, key: Key, ctx: &mut Context<'_>) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.queued = false;
            self.pump(key, ctx);
        }
    }

    pub(super) fn owe_ack(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.ack_due
        {
            flow.ack_due = true;
            self.ack_due.push(key);
        }
    }

    /// Acknowledges, once per flow, what a burst brought; and frees what the burst acknowledged.
    pub(crate) fn end_burst(&mut self, ctx: &mut Context<'_>) {
        let mut due = std::mem::take(&mut self.ack_due);
        for key in due.drain(..) {
            self.discard_acknowledged(key);
            let Some(flow) = self.flows.get_mut(key) else { continue };
            if std::mem::take(&mut flow.ack_due) {
                let ack = flow.control(ACK, flow.snd.nxt);
                Self::send(flow, &ack, ctx);
            }
        }
        self.ack_due = due;
    }

    /// Moves a flow's deadline.
    pub(super) fn schedule(&mut self, key: Key, when: Instant) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.deadline = when;
        if flow.armed.is_none_or(|armed| when < armed) {
            flow.armed = Some(when);
            self.timers.arm(key, when);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.poll_timeout()
    }

    /// A flow whose deadline has come, with its zone.
    pub(crate) fn next_due(&mut self, now: Instant) -> Option<(Zone, Key)> {
        while let Some(key) = self.timers.pop(now) {
            let Some(flow) = self.flows.get_mut(key) else { continue };
            if flow.armed.is_some_and(|armed| armed > now) {
                continue;
            }
            flow.armed = None;
            let (zone, deadline) = (flow.zone, flow.deadline);
            if deadline > now {
                self.schedule(key, deadline);
            } else {
                return Some((zone, key));
            }
        }
        None
    }

    /// The flows of a port, or of a whole network.
    pub(crate) fn of_port(&self, zone: Zone, port: Option<PortId>) -> Vec<Key> {
        self.flows.keys(|flow| flow.zone == zone && port.is_none_or(|port| flow.port == port))
    }
}

pub(super) const ACK: TcpFlags = TcpFlags { syn: false, ack: true, fin: false, rst: false };
pub(super) const SYN: TcpFlags = TcpFlags { syn: true, ack: false, fin: false, rst: false };
pub(super) const SYN_ACK: TcpFlags = TcpFlags { syn: true, ack: true, fin: false, rst: false };
pub(super) const FIN_ACK: TcpFlags = TcpFlags { syn: false, ack: true, fin: true, rst: false };
pub(super) const RST_ACK: TcpFlags = TcpFlags { syn: false, ack: true, fin: false, rst: true };

/// Our own MSS: what fits a packet of the network's MTU.
pub(super) fn own_mss(ctx: &Context<'_>, v6: bool) -> u16 {
    ctx.dp.config().mtu.0.saturating_sub(if v6 { 60 } else { 40 }).max(64)
}

/// Frames built in one turn are flushed before they leave the cache.
pub(super) fn is_full(out: &Outbox) -> bool {
    out.built_octets() >= datapath::outbox::ARENA_TARGET
}
