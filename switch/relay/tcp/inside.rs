//! Segments from the container of an established connection (RFC 9293 §3.10.7.4, RFC 5961).
//!
//! The order of the checks is the RFC's: sequence number, reset, SYN, acknowledgment, payload, FIN.
//! Nothing is sent from here but acknowledgments a gap wants at once; the rest waits for the end of the
//! burst.

use datapath::{DropReason, Packet, Received};

use super::dial::DSCP;
use super::flow::Stage;
use super::segment::{self, Segment};
use super::table::{ACK, Tcp};
use crate::context::Context;
use crate::key::Key;
use crate::socket;

/// Acknowledged octets left in the host socket before they are worth a system call while others are in
/// flight.
const DISCARD_AT: u32 = 256 * 1024;

/// The same with nothing in flight: little enough to stay there in an idle connection.
const DISCARD_IDLE_AT: u32 = 4 * 1024;

/// Octets discarded of what may be one buffer of the kernel's, from which on its rest is not kept. A
/// buffer counts whole against the socket's receive space until its last octet is gone: a few octets of
/// a large one can hold the far side's window shut, and nothing would open it (`__tcp_select_window`).
const CUT: u32 = 16 * 1024;

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
        if segment.flags.syn && flow.finished() {
            // Its end came in this very burst, and the same port begins anew.
            self.finish_if_over(key, ctx);
            let tuple = packet.tuple().ok_or(DropReason::NoFlow)?;
            return self.open(received, packet, tuple, ctx);
        }
        let stage = flow.stage;
        if stage == Stage::Established {
            flow.entry.note(flow.entry.from_inside(), 1, packet.ip_len() as u64, ctx.now);
            if packet.traffic_class & DSCP != flow.class {
                flow.class = packet.traffic_class & DSCP;
                socket::set_traffic_class(&flow.stream, packet.dst.is_ipv4(), flow.class);
            }
            let outcome = self.while_established(key, &segment, payload, ctx);
            if let Some(flow) = self.flows.get(key).filter(|_| outcome.is_ok()) {
                flow.moves(flow.entry.from_inside(), segment.flags);
            }
            return outcome;
        }
        // What a handshake does not take moves no state.
        let outcome = match stage {
            Stage::Connecting => self.while_connecting(key, received, packet, &segment, ctx),
            Stage::Opening => self.while_opening(key, received, packet, &segment, ctx),
            _ => self.while_accepting(key, &segment, payload, ctx),
        };
        if let Some(flow) = self.flows.get_mut(key).filter(|_| outcome.is_ok()) {
            flow.note(flow.entry.from_inside(), packet.ip_len(), segment.flags, ctx.now);
        }
        outcome
    }

    pub(super) fn while_established(
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
        let end = segment.end(payload.len());
        if !flow.rcv.accepts(segment.seq, end) {
            // Seen before, or a keepalive or window probe, which lies before the next octet: all it
            // wants is an answer (RFC 9293 §3.8.4). Beyond the window it is not taken.
            let seen = end.since(flow.rcv.edge) <= 0;
            self.owe_ack(key);
            return if seen { Ok(()) } else { Err(DropReason::OutOfWindow) };
        }
        if segment.flags.syn {
            // RFC 5961 §4: whoever sends it learns where we are; a lost peer then resets.
            self.owe_ack(key);
            return Err(DropReason::OutOfWindow);
        }
        if !segment.flags.ack {
            return Err(DropReason::OutOfWindow);
        }
        if !flow.snd.accepts(segment.ack) {
            self.owe_ack(key); // RFC 5961 §5.
            return Err(DropReason::OutOfWindow);
        }
        let bare = payload.is_empty() && !segment.flags.fin;
        if flow.snd.acknowledge(segment, bare, ctx.now) {
            flow.waits = None;
            flow.attempts = 0;
        } else if flow.snd.is_closed() {
            flow.attempts = 0; // A probe was answered.
        }
        self.attend(key);
        if bare { Ok(()) } else { self.take_payload(key, segment, payload, ctx) }
    }

    /// RFC 5961 §3: a reset counts only exactly where the next octet is expected; one elsewhere in the
    /// window is asked back about.
    pub(super) fn reset_by_container(
        &mut self,
        key: Key,
        segment: &Segment,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        if segment.seq == flow.rcv.expected() || segment.seq == flow.rcv.ack() {
            self.abandon(key, ctx);
            return Ok(());
        }
        if segment.seq.since(flow.rcv.ack()) > 0 && flow.rcv.edge.since(segment.seq) > 0 {
            self.owe_ack(key);
        }
        Err(DropReason::OutOfWindow)
    }

    /// Payload and FIN, in order or kept until they are.
    fn take_payload(
        &mut self,
        key: Key,
        segment: &Segment,
        payload: &[u8],
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        self.owe_ack(key);
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        flow.note_urgent(segment);
        let nxt = flow.rcv.nxt;
        if segment.seq.since(flow.rcv.expected()) > 0 {
            // A gap. Our acknowledgment, at once and again, is what the container needs to fill it.
            let kept = flow.keep_ahead(segment.seq, payload);
            self.acknowledge_if_due(key, ctx);
            return if kept { Ok(()) } else { Err(DropReason::OutOfWindow) };
        }
        let known = usize::try_from(nxt.after(segment.seq)).unwrap_or(usize::MAX);
        if flow.rcv.fin || known > payload.len() {
            return Ok(()); // All of it seen before.
        }
        let room = usize::try_from(flow.rcv.edge.after(nxt)).unwrap_or(usize::MAX);
        let fresh = &payload[known..];
        let inside_window = &fresh[..fresh.len().min(room)];
        let whole = inside_window.len() == fresh.len();
        let mut taken_whole = self.take_octets(key, inside_window);
        if taken_whole {
            taken_whole = self.fill_from_ahead(key);
        }
        if segment.flags.fin
            && whole
            && taken_whole
            && let Some(flow) = self.flows.get_mut(key)
        {
            flow.rcv.fin = true;
            flow.pass_on_fin();
        }
        if taken_whole { Ok(()) } else { Err(DropReason::RelayBufferFull) }
    }

    /// A gap may be filled: what was kept beyond it is next. Says whether all of that was taken.
    fn fill_from_ahead(&mut self, key: Key) -> bool {
        loop {
            let Some(flow) = self.flows.get_mut(key) else { return true };
            let Some(octets) = flow.next_from_ahead() else { return true };
            if !self.take_octets(key, &octets) {
                return false;
            }
        }
    }

    /// Acknowledges what the container sent, if that is owed.
    pub(crate) fn acknowledge_if_due(&mut self, key: Key, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if std::mem::take(&mut flow.ack_due) {
            let ack = flow.control(ACK, flow.snd.nxt);
            Self::send(flow, &ack, ctx);
        }
    }

    /// Throws away what the container has acknowledged, if there is enough of it.
    pub(super) fn discard_acknowledged(&mut self, key: Key) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let in_flight = flow.snd.in_flight() > 0;
        let cut = flow.snd.cut >= CUT;
        let gone = self.discard(
            key,
            match (in_flight, cut) {
                (true, _) => DISCARD_AT,
                (false, true) => 1,
                (false, false) => DISCARD_IDLE_AT,
            },
        );
        if !in_flight
            && cut
            && (1..DISCARD_IDLE_AT).contains(&gone)
            && let Some(flow) = self.flows.get_mut(key)
        {
            // Found empty, it may keep a few octets again.
            flow.readable = true;
        }
    }

    /// Throws away what the container has acknowledged, if that is `at_least` so many octets. Returns how
    /// many are gone.
    pub(super) fn discard(&mut self, key: Key, at_least: u32) -> u32 {
        let Some(flow) = self.flows.get_mut(key) else { return 0 };
        let acknowledged = flow.snd.needed().after(flow.snd.head);
        if acknowledged < at_least {
            return 0;
        }
        let gone = netns::sockopt::recv_discard(&flow.stream, acknowledged as usize).unwrap_or(0);
        let gone = u32::try_from(gone).unwrap_or(0);
        flow.snd.head += gone;
        flow.snd.peek = flow.snd.peek.max(flow.snd.head);
        flow.snd.cut = flow.snd.cut.saturating_add(gone);
        gone
    }
}
