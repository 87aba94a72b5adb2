//! Segments from the container (RFC 9293 §3.10.7).

use datapath::{DropReason, Packet, Received};
use nat::TcpState;
use smoltcp::time::Duration;

use super::flow::{Flow, RETRANSMIT_TIMEOUT, Stage};
use super::segment::{self, Segment};
use super::seq::Seq;
use super::table::{ACK, Tcp};
use crate::context::Context;
use crate::key::Key;
use crate::socket;

/// Duplicate acknowledgments that mean a loss (RFC 5681 §3.2).
const DUP_ACKS: u8 = 3;

/// Segments sent at once after a loss (RFC 6928 §2, the initial window).
const RESTART_SEGMENTS: u32 = 10;

/// Acknowledged octets left in the host socket before they are worth a system call.
const DISCARD_AT: u32 = 256 * 1024;

impl Tcp {
    /// Takes one segment of a known flow.
    pub(crate) fn segment(
        &mut self,
        key: Key,
        received: &Received<'_>,
        packet: &Packet,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let (segment, payload) = segment::read(packet, received.frame)?;
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        flow.note(flow.entry.from_inside, packet.ip_len(), segment.flags, ctx.now);
        match flow.stage {
            Stage::Connecting => self.while_connecting(key, &segment, ctx),
            Stage::Opening => self.while_opening(key, received, packet, &segment, ctx),
            Stage::Accepting => self.while_accepting(key, &segment, payload, ctx),
            Stage::Established => self.while_established(key, &segment, payload, ctx),
        }
    }

    /// The far side has not answered: a SYN again is patience, a reset is the end of it.
    fn while_connecting(
        &mut self,
        key: Key,
        segment: &Segment,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        if segment.flags.rst {
            self.abandon(key, ctx);
            return Ok(());
        }
        if segment.flags.syn { Ok(()) } else { Err(DropReason::OutOfWindow) }
    }

    /// Our SYN is out: a SYN-ACK for it connects, a reset for it refuses.
    fn while_opening(
        &mut self,
        key: Key,
        received: &Received<'_>,
        packet: &Packet,
        segment: &Segment,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        if !segment.flags.ack || segment.ack != flow.snd.nxt {
            return Err(DropReason::OutOfWindow);
        }
        if segment.flags.rst {
            self.abandon(key, ctx);
            return Ok(());
        }
        if !segment.flags.syn {
            return Err(DropReason::OutOfWindow);
        }
        let own_mss = flow.snd.mss;
        flow.synchronise(segment, segment::syn_options(packet, received.frame), own_mss);
        self.establish(key, segment.ack, ctx);
        self.owe_ack(key);
        self.pump(key, ctx);
        Ok(())
    }

    /// Our SYN-ACK is out: its acknowledgment connects, and may carry payload already.
    fn while_accepting(
        &mut self,
        key: Key,
        segment: &Segment,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        if segment.flags.rst {
            if segment.seq != flow.rcv.taken {
                return Err(DropReason::OutOfWindow);
            }
            self.abandon(key, ctx);
            return Ok(());
        }
        if segment.flags.syn {
            self.send_syn_ack(key, ctx);
            return Ok(());
        }
        if !segment.flags.ack || segment.ack != flow.snd.nxt {
            return Err(DropReason::OutOfWindow);
        }
        self.establish(key, segment.ack, ctx);
        self.while_established(key, segment, payload, ctx)
    }

    fn establish(&mut self, key: Key, ack: Seq, ctx: &Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.stage = Stage::Established;
        flow.entry.set_state(TcpState::Established);
        flow.snd.una = ack;
        flow.attempts = 0;
        flow.timeout = RETRANSMIT_TIMEOUT;
        // Whatever came while nobody looked is not announced again.
        flow.readable = true;
        let idle = ctx.dp.network().conntrack.timeouts().tcp_established;
        self.schedule(key, ctx.now + idle);
    }

    fn while_established(
        &mut self,
        key: Key,
        segment: &Segment,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        if segment.flags.rst {
            return self.reset_by_container(key, segment, ctx);
        }
        if segment.flags.syn {
            // RFC 5961 §4: whoever sends it learns where we are; a lost peer then resets.
            self.owe_ack(key);
            return Err(DropReason::OutOfWindow);
        }
        if !segment.flags.ack {
            return Err(DropReason::OutOfWindow);
        }
        if segment.ack.since(flow.snd.max) > 0 {
            self.owe_ack(key);
            return Err(DropReason::OutOfWindow);
        }
        let acknowledged = flow.acknowledge(segment, payload.is_empty());
        if flow.finished() {
            self.finish(key, ctx);
            return Ok(());
        }
        match acknowledged {
            Acknowledged::InOrder => {}
            Acknowledged::BeyondNext => self.seek(key),
            Acknowledged::Lost => self.go_back(key),
        }
        let outcome = if payload.is_empty() && !segment.flags.fin {
            self.note_keepalive(key, segment);
            Ok(())
        } else {
            self.take_payload(key, segment, payload, ctx)
        };
        self.ack_due_for_discard(key);
        self.pump(key, ctx);
        outcome
    }

    /// RFC 5961 §3: a reset counts only exactly where the next octet is expected; one elsewhere in the
    /// window is asked back about.
    fn reset_by_container(
        &mut self,
        key: Key,
        segment: &Segment,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        if segment.seq == flow.rcv.nxt() || segment.seq == flow.rcv.ack() {
            self.abandon(key, ctx);
            return Ok(());
        }
        if segment.seq.since(flow.rcv.ack()) > 0 && flow.rcv.edge.since(segment.seq) > 0 {
            self.owe_ack(key);
        }
        Err(DropReason::OutOfWindow)
    }

    /// A keepalive or window probe lies before the next octet; it wants an answer (RFC 9293 §3.8.4).
    fn note_keepalive(&mut self, key: Key, segment: &Segment) {
        if let Some(flow) = self.flows.get_mut(key)
            && segment.seq.since(flow.rcv.nxt()) < 0
        {
            self.owe_ack(key);
        }
    }

    /// Payload and FIN, in order or not at all.
    fn take_payload(
        &mut self,
        key: Key,
        segment: &Segment,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        self.owe_ack(key);
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        let expected = flow.rcv.nxt();
        if segment.seq.since(expected) > 0 {
            // A gap. Our acknowledgment, at once and again, is what the container needs to fill it.
            let kept = self.keep_ahead(key, segment, payload);
            self.acknowledge_now(key, ctx);
            return if kept { Ok(()) } else { Err(DropReason::OutOfWindow) };
        }
        let known = usize::try_from(expected.after(segment.seq)).unwrap_or(usize::MAX);
        if flow.rcv.fin || known > payload.len() {
            return Ok(()); // All of it seen before.
        }
        let room = usize::try_from(flow.rcv.edge.after(expected)).unwrap_or(usize::MAX);
        let fresh = &payload[known..];
        let inside_window = &fresh[..fresh.len().min(room)];
        let whole = inside_window.len() == fresh.len();
        let taken = self.write(key, inside_window, ctx)?;
        self.fill_from_ahead(key, ctx)?;
        if segment.flags.fin && whole && taken == inside_window.len() {
            self.container_finished(key, ctx);
        }
        if taken == inside_window.len() { Ok(()) } else { Err(DropReason::RelayBufferFull) }
    }

    /// Keeps a segment that lies beyond a gap, as far as the window goes. Its FIN will come again.
    fn keep_ahead(&mut self, key: Key, segment: &Segment, payload: &[u8]) -> bool {
        let Some(flow) = self.flows.get_mut(key) else { return false };
        let room = flow.rcv.edge.after(segment.seq) as usize;
        let inside_window = &payload[..payload.len().min(room)];
        if flow.rcv.fin
            || inside_window.is_empty()
            || !self.limits.reserve(flow.zone, flow.port, inside_window.len())
        {
            return false;
        }
        let ahead = flow.rcv.ahead.get_or_insert_default();
        let kept = ahead.keep(segment.seq, inside_window);
        self.limits.release(flow.zone, flow.port, inside_window.len() - kept);
        kept > 0
    }

    /// A gap may be filled: what was kept beyond it is next.
    fn fill_from_ahead(&mut self, key: Key, ctx: &mut Context<'_>) -> Result<(), DropReason> {
        loop {
            let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
            let nxt = flow.rcv.nxt();
            let Some(ahead) = &mut flow.rcv.ahead else { return Ok(()) };
            let taken = ahead.take(nxt);
            if ahead.is_empty() {
                flow.rcv.ahead = None;
            }
            let Some((octets, kept)) = taken else { return Ok(()) };
            self.limits.release(flow.zone, flow.port, kept);
            if self.write(key, &octets, ctx)? < octets.len() {
                return Err(DropReason::RelayBufferFull);
            }
        }
    }

    /// Gives octets to the host socket, and keeps what it does not take now. Returns how many were
    /// taken or kept.
    fn write(
        &mut self,
        key: Key,
        octets: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<usize, DropReason> {
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        let mut written = 0;
        if flow.rcv.pending.is_empty() && !octets.is_empty() {
            match socket::write_some(&flow.stream, octets) {
                Ok(octets) => written = octets,
                Err(_) => {
                    self.reset_by_host(key, ctx);
                    return Err(DropReason::HostSendFailed);
                }
            }
            flow.rcv.taken += u32::try_from(written).unwrap_or(0);
            if written == octets.len() {
                flow.rcv.widen();
                return Ok(written);
            }
        }
        let rest = &octets[written..];
        if rest.is_empty() {
            return Ok(written);
        }
        flow.rcv.narrow();
        if !self.limits.reserve(flow.zone, flow.port, rest.len()) {
            return Ok(written);
        }
        flow.rcv.pending.extend(rest);
        Ok(octets.len())
    }

    /// The container's FIN: passed on once everything before it was taken.
    fn container_finished(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.rcv.fin = true;
        self.pass_on_fin(key);
        if self.flows.get(key).is_some_and(Flow::finished) {
            self.acknowledge_now(key, ctx);
            self.finish(key, ctx);
        }
    }

    pub(crate) fn pass_on_fin(&mut self, key: Key) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if flow.rcv.fin && !flow.rcv.shut && flow.rcv.pending.is_empty() {
            // It fails only if the far side is gone already, which reading will tell.
            let _ = flow.stream.shutdown(std::net::Shutdown::Write);
            flow.rcv.shut = true;
        }
    }

    pub(crate) fn acknowledge_now(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.ack_due = false;
        let ack = flow.control(ACK, flow.snd.nxt);
        Self::send(flow, &ack, ctx);
    }

    /// Makes sure acknowledged octets leave the host socket by the end of the burst.
    fn ack_due_for_discard(&mut self, key: Key) {
        if let Some(flow) = self.flows.get(key) {
            let acknowledged = flow.snd.una.after(flow.snd.head);
            if acknowledged > 0 && !flow.ack_due {
                self.ack_due.push(key);
            }
        }
    }

    /// Throws away what the container has acknowledged: at the end of a burst, if there is much of it
    /// or nothing else is in flight.
    pub(crate) fn discard_acknowledged(&mut self, key: Key) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        // The FIN is no octet of the queue.
        let end = match flow.snd.fin {
            Some(fin) if flow.snd.una.since(fin) > 0 => fin,
            _ => flow.snd.una,
        };
        let acknowledged = end.after(flow.snd.head);
        if acknowledged == 0 || (acknowledged < DISCARD_AT && flow.in_flight() > 0) {
            return;
        }
        if let Ok(gone) = netns::sockopt::recv_discard(&flow.stream, acknowledged as usize) {
            flow.snd.head += u32::try_from(gone).unwrap_or(0);
        }
    }

    /// Sends again from the first octet not acknowledged, and less at once.
    pub(crate) fn go_back(&mut self, key: Key) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let floor = u32::from(flow.snd.mss) * RESTART_SEGMENTS;
        flow.snd.cwnd = (flow.in_flight() / 2).max(floor);
        flow.snd.nxt = flow.snd.una;
        flow.readable = true;
        self.seek(key);
    }

    /// Makes the next peek begin at the next octet to send.
    fn seek(&self, key: Key) {
        let Some(flow) = self.flows.get(key).filter(|_| self.peek_offset) else { return };
        let offset = i32::try_from(flow.snd.nxt.after(flow.snd.head)).unwrap_or(i32::MAX);
        // Refused only for a socket that is no stream.
        let _ = netns::sockopt::set_peek_off(&flow.stream, Some(offset));
    }
}

/// What an acknowledgment means for what is sent next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acknowledged {
    /// Go on.
    InOrder,
    /// The container has more than was sent since going back: go on behind that.
    BeyondNext,
    /// One duplicate too many: go back.
    Lost,
}

impl Flow {
    /// Takes note of an acknowledgment and the window with it.
    fn acknowledge(&mut self, segment: &Segment, bare: bool) -> Acknowledged {
        let window = u32::from(segment.window) << self.snd.scale;
        let fresh = segment.ack.after(self.snd.una);
        if fresh > 0 {
            self.snd.una = segment.ack;
            self.snd.wnd = window;
            self.snd.cwnd = self.snd.cwnd.saturating_add(fresh);
            self.snd.dup_acks = 0;
            self.attempts = 0;
            self.timeout = RETRANSMIT_TIMEOUT;
            if self.snd.una.since(self.snd.nxt) > 0 {
                self.snd.nxt = self.snd.una;
                return Acknowledged::BeyondNext;
            }
            return Acknowledged::InOrder;
        }
        if segment.ack != self.snd.una {
            return Acknowledged::InOrder; // An old one, overtaken.
        }
        let duplicate =
            bare && window == self.snd.wnd && self.in_flight() > 0 && !segment.flags.fin;
        self.snd.wnd = window;
        if !duplicate {
            return Acknowledged::InOrder;
        }
        self.snd.dup_acks = self.snd.dup_acks.saturating_add(1);
        if self.snd.dup_acks == DUP_ACKS { Acknowledged::Lost } else { Acknowledged::InOrder }
    }

    /// When the next retransmission is due.
    pub(crate) fn retransmit_after(&self) -> Duration {
        self.timeout
    }
}
