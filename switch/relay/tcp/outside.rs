//! The host socket: what comes from it goes to the container, what waits for it is continued.
//!
//! The octets stay in the socket's queue until the container has acknowledged them; peeking behind
//! what is in flight (`SO_PEEK_OFF`, socket(7)) makes that queue the retransmission buffer.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{self as nix_socket, MsgFlags};
use smoltcp::time::Duration;

use super::flow::{Flow, MAX_ATTEMPTS, MAX_OPENING_ATTEMPTS, MAX_TIMEOUT, Stage};
use super::segment::{Outgoing, Segment};
use super::table::{ACK, FIN_ACK, SHARE, Tcp, is_full};
use crate::context::Context;
use crate::context::Readiness;
use crate::key::Key;
use crate::socket;

/// Octets of payload in one frame: 65,535 less the longest headers without options.
const MAX_PAYLOAD: u32 = 65_535 - 60;

/// Pieces of a deque handed to the socket at once.
const WRITE_ROUNDS: usize = 8;

impl Tcp {
    /// The host socket is ready for something.
    pub(crate) fn ready(&mut self, key: Key, readiness: Readiness, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.readable |= readiness.readable || readiness.hung_up;
        flow.hung_up |= readiness.hung_up;
        match flow.stage {
            Stage::Connecting => self.connected(key, ctx),
            Stage::Established => {
                if readiness.writable {
                    self.continue_writing(key, ctx);
                }
                self.pump(key, ctx);
            }
            Stage::Accepting | Stage::Opening => {}
        }
    }

    /// Moves octets from the host socket to the container: as much as its window, this flow's share and
    /// the turn allow.
    pub(crate) fn pump(&mut self, key: Key, ctx: &mut Context<'_>) {
        let mut moved = 0;
        loop {
            let Some(flow) = self.flows.get_mut(key) else { return };
            if flow.stage != Stage::Established || flow.fin_sent() || !flow.readable {
                break;
            }
            if flow.snd.fin == Some(flow.snd.nxt) {
                self.send_fin(key, ctx);
                break;
            }
            if moved >= SHARE || is_full(ctx.out) {
                self.queue(key);
                break;
            }
            let in_flight = flow.in_flight();
            let room = flow.snd.wnd.min(flow.snd.cwnd).saturating_sub(in_flight);
            let mss = u32::from(flow.snd.mss);
            // A silly window is not worth a segment while others are under way (RFC 9293 §3.8.6.2.1).
            if room == 0 || (room < mss && in_flight > 0) {
                break;
            }
            let whole_segments = (room / mss).max(1) * mss;
            let longest = (MAX_PAYLOAD / mss).max(1).saturating_mul(mss).min(MAX_PAYLOAD);
            let want = room.min(whole_segments).min(longest);
            match self.send_peeked(key, want as usize, ctx) {
                Peeked::Octets(octets) => moved += octets,
                Peeked::Nothing => break,
                Peeked::End => {
                    self.send_fin(key, ctx);
                    break;
                }
                Peeked::Failed => {
                    self.reset_by_host(key, ctx);
                    return;
                }
            }
        }
        self.watch(key, ctx);
    }

    /// Sends one frame of what the host socket holds behind what is in flight.
    fn send_peeked(&mut self, key: Key, want: usize, ctx: &mut Context<'_>) -> Peeked {
        let peek_offset = self.peek_offset;
        let Some(flow) = self.flows.get_mut(key) else { return Peeked::Nothing };
        let Some(own_mac) = ctx.own_mac() else { return Peeked::Nothing };
        let window = flow.rcv.offer();
        let mut outgoing = Outgoing {
            from: flow.outside,
            to: flow.inside,
            segment: Segment { seq: flow.snd.nxt, ack: flow.rcv.ack(), flags: ACK, window },
            options: None,
            blocks: Default::default(),
            push: false,
        };
        let offset = outgoing.payload_offset();
        let built = ctx.out.build(offset + want);
        let octets = &mut ctx.out.frame_mut(built)[offset..];
        let got = if peek_offset {
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            nix_socket::recv(flow.stream.as_raw_fd(), octets, flags)
        } else {
            flow.peek_behind(octets)
        };
        let got = match got {
            Ok(0) => Err(Peeked::End),
            Ok(got) => Ok(got),
            Err(Errno::EAGAIN) => {
                flow.readable = false;
                Err(Peeked::Nothing)
            }
            Err(Errno::EINTR) => Err(Peeked::Nothing),
            Err(_) => Err(Peeked::Failed),
        };
        let got = match got {
            Ok(got) => got,
            Err(outcome) => {
                ctx.out.shorten(built, 0);
                return outcome;
            }
        };
        let built = ctx.out.shorten(built, offset + got);
        outgoing.push = got < want;
        let frame = ctx.out.frame_mut(built);
        let Ok(offload) = outgoing.finish(frame, own_mac, flow.snd.mss) else {
            return Peeked::Failed;
        };
        flow.snd.nxt += u32::try_from(got).unwrap_or(0);
        flow.snd.max = flow.snd.max.max(flow.snd.nxt);
        // This segment acknowledges too.
        flow.ack_due = false;
        let ip_len = built.len() - datapath::Packet::IP;
        flow.note(flow.entry.from_inside.other(), ip_len, ACK, ctx.now);
        ctx.dp.send_to(built, flow.inside.addr, offload, ctx.now, ctx.out);
        Peeked::Octets(got)
    }

    /// The far side has finished: so do we, towards the container.
    fn send_fin(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let seq = flow.snd.nxt;
        flow.snd.fin = Some(seq);
        flow.snd.nxt = seq + 1;
        flow.snd.max = flow.snd.max.max(flow.snd.nxt);
        flow.ack_due = false;
        let fin = flow.control(FIN_ACK, seq);
        Self::send(flow, &fin, ctx);
    }

    /// Sets the deadline by what is awaited: an acknowledgment, a window, or just life.
    fn watch(&mut self, key: Key, ctx: &Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if flow.stage != Stage::Established {
            return;
        }
        let waits = flow.in_flight() > 0 || (flow.readable && !flow.fin_sent());
        let after = if waits {
            flow.retransmit_after()
        } else {
            let timeouts = ctx.dp.network().conntrack.timeouts();
            if flow.snd.fin.is_some() || flow.rcv.shut {
                timeouts.tcp_established.min(HALF_CLOSED_TIMEOUT)
            } else {
                timeouts.tcp_established
            }
        };
        self.schedule(key, ctx.now + after);
    }

    /// The host socket has room again for what waits.
    fn continue_writing(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if flow.rcv.pending.is_empty() {
            return;
        }
        let mut taken = 0;
        for _ in 0..WRITE_ROUNDS {
            let (front, _) = flow.rcv.pending.as_slices();
            if front.is_empty() {
                break;
            }
            let asked = front.len();
            match socket::write_some(&flow.stream, front) {
                Ok(written) => {
                    flow.rcv.pending.drain(..written);
                    taken += written;
                    if written < asked {
                        break;
                    }
                }
                Err(_) => {
                    self.reset_by_host(key, ctx);
                    return;
                }
            }
        }
        flow.rcv.taken += u32::try_from(taken).unwrap_or(0);
        if flow.rcv.pending.is_empty() {
            flow.rcv.pending.shrink_to(0);
        }
        self.limits.release(flow.zone, flow.port, taken);
        self.pass_on_fin(key);
        if self.flows.get(key).is_some_and(Flow::finished) {
            self.acknowledge_now(key, ctx);
            self.finish(key, ctx);
        } else if taken > 0 {
            self.owe_ack(key);
        }
    }

    /// The deadline has come: what was awaited did not happen.
    pub(crate) fn timeout(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.attempts = flow.attempts.saturating_add(1);
        flow.timeout = (flow.timeout * 2).min(MAX_TIMEOUT);
        let attempts = flow.attempts;
        match flow.stage {
            Stage::Connecting => {
                // The host's own SYNs have their own patience, which ends in ETIMEDOUT.
                let after = ctx.now + MAX_TIMEOUT;
                self.schedule(key, after);
            }
            Stage::Opening | Stage::Accepting if attempts > MAX_OPENING_ATTEMPTS => {
                self.abandon(key, ctx);
            }
            Stage::Opening => self.send_syn(key, ctx),
            Stage::Accepting => self.send_syn_ack(key, ctx),
            Stage::Established => self.established_timeout(key, attempts, ctx),
        }
    }

    fn established_timeout(&mut self, key: Key, attempts: u8, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if flow.in_flight() > 0 {
            if attempts > MAX_ATTEMPTS {
                self.reset_by_host(key, ctx);
                return;
            }
            if flow.snd.wnd == 0 {
                self.probe(key, ctx);
            } else {
                self.go_back(key);
                self.pump(key, ctx);
            }
        } else if flow.readable && !flow.fin_sent() {
            self.probe(key, ctx);
        } else {
            // Nothing in flight and nothing to send: the connection was idle for its whole time.
            let idle_since = ctx.now - flow.entry.last_seen();
            let limit = ctx.dp.network().conntrack.timeouts().tcp_established;
            let half_closed = flow.snd.fin.is_some() || flow.rcv.shut;
            let limit = if half_closed { limit.min(HALF_CLOSED_TIMEOUT) } else { limit };
            if idle_since >= limit {
                self.reset_by_host(key, ctx);
            } else {
                flow.attempts = 0;
                let when = ctx.now + (limit - idle_since);
                self.schedule(key, when);
            }
        }
    }

    /// Asks for the container's window: a segment before the next octet must be answered
    /// (RFC 9293 §3.8.6.1).
    fn probe(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let probe = flow.control(ACK, flow.snd.una - 1);
        Self::send(flow, &probe, ctx);
        let when = ctx.now + flow.retransmit_after();
        self.schedule(key, when);
    }
}

/// Idle life of a flow one side of which has finished: RFC 5382 REQ-5 gives it the established time;
/// the far side's keepalive ends it earlier if it died.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(7_440);

/// What peeking gave.
enum Peeked {
    Octets(usize),
    Nothing,
    /// The far side has finished.
    End,
    /// The far side has reset, or the host gave up.
    Failed,
}

impl Flow {
    /// Peeks where the kernel has no `SO_PEEK_OFF` for TCP: the octets in flight are skipped.
    fn peek_behind(&self, octets: &mut [u8]) -> Result<usize, Errno> {
        let skip = self.snd.nxt.after(self.snd.head) as usize;
        match netns::sockopt::peek_after(&self.stream, skip, octets) {
            // Nothing behind what is in flight: the end, if the far side has hung up.
            Ok(0) if !self.hung_up => Err(Errno::EAGAIN),
            Ok(got) => Ok(got),
            Err(error) => Err(Errno::try_from(error).unwrap_or(Errno::EIO)),
        }
    }
}
