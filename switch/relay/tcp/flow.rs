//! One TCP flow between a container and a host socket.
//!
//! There is no TCP stack here: the host socket's receive queue is the retransmission buffer towards the
//! container, and its send queue is where the container's octets go at once. What is kept is just where
//! both sequence spaces stand. An idle flow is this struct, its conntrack entry and one timer: whatever
//! only a loss or a slow reader needs is boxed.

use std::net::TcpStream;
use std::sync::Arc;

use datapath::PortId;
use nat::{Direction, Entry, TcpFlags, TransportAddr, Zone};
use smoltcp::time::Instant;

use super::receiving::Receiving;
use super::segment::{Outgoing, Segment, SynOptions, WINDOW_SCALE};
use super::sending::{MAX_PAYLOAD, Sending};
use super::seq::Seq;
use crate::claims::Claim;
use crate::limits::Lease;

/// Segments that open a connection before giving up; Linux `tcp_syn_retries` is 6.
pub(crate) const MAX_OPENING_ATTEMPTS: u8 = 6;

/// Retransmissions or unanswered probes before a silent container is given up; Linux `tcp_retries2`.
pub(crate) const MAX_ATTEMPTS: u8 = 15;

/// A time that never comes.
pub(crate) const NEVER: Instant = Instant::from_micros_const(i64::MAX);

/// Where the flow stands, as far as the handshakes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The container sent a SYN; the host socket is connecting.
    Connecting,
    /// The far side answered; our SYN-ACK to the container is out.
    Accepting,
    /// A client came by a published port; our SYN to the container is out.
    Opening,
    /// Both sides are connected.
    Established,
}

/// What the deadline of an established flow is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// An acknowledgment of what is in flight.
    Ack,
    /// A window for what the host socket has.
    Window,
    /// Any sign of life.
    Life,
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) entry: Arc<Entry>,
    pub(crate) lease: Lease,
    pub(crate) stream: TcpStream,
    /// Its outside port is nobody else's; none for a client's, whose port is the published one.
    _claim: Option<Claim>,
    pub(crate) stage: Stage,
    /// The container's SYN from its IP header on, as long as it may be refused; no octets then.
    pub(crate) syn: Box<[u8]>,
    /// The DSCP of what the host socket sends.
    pub(crate) class: u8,
    pub(crate) snd: Sending,
    pub(crate) rcv: Receiving,
    /// The host socket may have something to read.
    pub(crate) readable: bool,
    /// The far side has finished, or the host socket is in error.
    pub(crate) hung_up: bool,
    /// A read stops where urgent octets are, with more behind them.
    pub(crate) stops_short: bool,
    /// A reset follows the far side's last octet, not a FIN.
    pub(crate) reset_at_end: bool,
    /// The host has the address no more that it is from, and never will.
    pub(crate) homeless: bool,
    /// The container is owed an acknowledgment.
    pub(crate) ack_due: bool,
    /// That waits a moment for something to go with.
    pub(crate) ack_late: bool,
    /// It is looked at at the end of the burst.
    pub(crate) due: bool,
    /// It waits for its next share of a turn.
    pub(crate) queued: bool,
    /// What the deadline is for; nothing if it is to be set anew.
    pub(crate) waits: Option<Waits>,
    /// How often in a row what was awaited did not happen.
    pub(crate) attempts: u8,
    pub(crate) deadline: Instant,
    /// When the timers will look at it; [`NEVER`] if they will not.
    pub(crate) armed: Instant,
}

/// What is known of a flow before its first segment.
#[derive(Debug)]
pub(crate) struct Birth {
    pub(crate) entry: Arc<Entry>,
    pub(crate) stream: TcpStream,
    pub(crate) lease: Lease,
    pub(crate) claim: Option<Claim>,
    pub(crate) stage: Stage,
    /// Our initial sequence number (ISS).
    pub(crate) iss: Seq,
    pub(crate) now: Instant,
}

impl Flow {
    pub(crate) fn new(birth: Birth) -> Self {
        Self {
            entry: birth.entry,
            lease: birth.lease,
            stream: birth.stream,
            _claim: birth.claim,
            stage: birth.stage,
            syn: Box::default(),
            class: 0,
            snd: Sending::new(birth.iss),
            rcv: Receiving::new(),
            readable: false,
            hung_up: false,
            stops_short: false,
            reset_at_end: false,
            homeless: false,
            ack_due: false,
            ack_late: false,
            due: false,
            queued: false,
            waits: None,
            attempts: 0,
            deadline: birth.now,
            armed: NEVER,
        }
    }

    pub(crate) const fn zone(&self) -> Zone {
        self.lease.zone()
    }

    pub(crate) const fn port(&self) -> PortId {
        self.lease.port()
    }

    /// The container's address and port.
    pub(crate) fn inside(&self) -> TransportAddr {
        match self.entry.from_inside() {
            Direction::Original => self.entry.original.src,
            Direction::Reply => self.entry.reply.src,
        }
    }

    /// Whom the container speaks to.
    pub(crate) fn outside(&self) -> TransportAddr {
        match self.entry.from_inside() {
            Direction::Original => self.entry.original.dst,
            Direction::Reply => self.entry.reply.dst,
        }
    }

    /// The host's address and port, and whom it speaks to by those.
    pub(crate) fn outer(&self) -> (TransportAddr, TransportAddr) {
        match self.entry.from_inside() {
            Direction::Original => (self.entry.reply.dst, self.entry.reply.src),
            Direction::Reply => (self.entry.original.dst, self.entry.original.src),
        }
    }

    /// Takes over what the container's SYN says.
    pub(crate) fn synchronise(&mut self, syn: &Segment, options: SynOptions, own_mss: u16) {
        self.rcv.synchronise(syn.seq);
        self.rcv.sack = options.sack;
        self.snd.synchronise(syn);
        let longest = u16::try_from(MAX_PAYLOAD).unwrap_or(u16::MAX);
        self.snd.mss = options.mss.min(own_mss).min(longest);
        let scale = options.window_scale;
        self.snd.scale = scale.unwrap_or(0);
        self.rcv.scale = scale.map_or(0, |_| WINDOW_SCALE);
    }

    /// A segment to the container that carries no payload.
    pub(crate) fn control(&mut self, flags: TcpFlags, seq: Seq) -> Outgoing {
        let window = if flags.syn { self.rcv.offer_first() } else { self.rcv.offer(self.snd.mss) };
        Outgoing {
            from: self.outside(),
            to: self.inside(),
            segment: Segment { seq, ack: self.rcv.ack(), flags, window, ..Segment::default() },
            options: None,
            blocks: self.rcv.blocks(),
            push: false,
        }
    }

    /// Whether an acknowledgment may wait for something to go with: what came is less than two full
    /// segments (RFC 9293 §3.8.6.3), in order and not the end.
    pub(crate) fn may_acknowledge_late(&self) -> bool {
        self.stage == Stage::Established
            && self.rcv.held.is_none()
            && !self.rcv.fin
            && self.rcv.unacknowledged() < u32::from(self.snd.mss)
    }

    /// Nothing is left to say in either direction.
    pub(crate) fn finished(&self) -> bool {
        self.rcv.shut && self.snd.fin_acknowledged()
    }

    /// What the deadline must be for.
    pub(crate) fn awaited(&self) -> Waits {
        if self.snd.in_flight() > 0 {
            Waits::Ack
        } else if (self.readable || self.snd.end.is_some()) && !self.snd.fin_sent() {
            Waits::Window
        } else {
            Waits::Life
        }
    }

    /// Notes a segment in conntrack that was taken or sent.
    pub(crate) fn note(&self, travelling: Direction, octets: usize, flags: TcpFlags, now: Instant) {
        self.entry.note(travelling, 1, octets as u64, now);
        self.moves(travelling, flags);
    }

    /// Moves the state conntrack shows by a segment that was taken.
    pub(crate) fn moves(&self, travelling: Direction, flags: TcpFlags) {
        let settled = self.entry.state() == nat::TcpState::Established;
        if !settled || flags.syn || flags.fin || flags.rst {
            self.entry.segment(travelling, flags);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;

    /// The product's bound is 512 octets of ours for an idle flow: what is kept of it here, its
    /// conntrack entry, and their places wherever they are looked up.
    #[test]
    fn an_idle_flow_takes_at_most_512_octets() {
        const COUNTS: usize = 2 * size_of::<usize>();
        // The allocator's own word.
        let flow = size_of::<usize>() + size_of::<Flow>();
        // A slab and a heap double when full: half as much again on the average.
        let place = size_of::<(usize, u16, Box<Flow>)>() * 3 / 2;
        let timer = size_of::<(Instant, Key)>() * 3 / 2;
        let entry = size_of::<usize>() + COUNTS + size_of::<Entry>();
        // Two pointers in hash tables that are between 7/16 and 7/8 full.
        let names = 2 * size_of::<usize>() * 32 / 21;
        let all = flow + place + timer + entry + names;
        assert!(
            all <= 512,
            "{all}: flow {flow}, place {place}, timer {timer}, entry {entry}, names {names}"
        );
    }
}
