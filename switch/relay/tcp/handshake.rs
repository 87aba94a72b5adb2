//! Segments from the container while a connection opens (RFC 9293 §3.10.7.2 to §3.10.7.4).
//!
//! Three stages: the host socket connects and nothing was said to the container yet, our SYN-ACK is out,
//! or our SYN is out. An acknowledgment of something never sent is answered by a reset with just that
//! number, so that the half-open connection it comes from ends.

use datapath::{DropReason, Packet, Received};
use nat::TcpState;

use super::flow::Stage;
use super::segment::{self, Segment};
use super::table::{RST, Tcp, own_mss};
use crate::context::Context;
use crate::key::Key;

impl Tcp {
    /// The far side has not answered: to the container we are nobody yet (LISTEN). Its SYN again is
    /// patience, one with another number a new attempt, a reset the end.
    pub(super) fn while_connecting(
        &mut self,
        key: Key,
        received: &Received<'_>,
        packet: &Packet,
        segment: &Segment,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        if segment.flags.rst {
            if segment.seq != flow.rcv.nxt {
                return Err(DropReason::OutOfWindow);
            }
            self.abandon(key, ctx);
            return Ok(());
        }
        if segment.flags.ack {
            self.refuse_ack(key, segment, ctx);
            return Err(DropReason::OutOfWindow);
        }
        if !segment.flags.syn {
            return Err(DropReason::OutOfWindow);
        }
        if segment.seq + 1 != flow.rcv.nxt {
            let options = segment::syn_options(packet, received.frame);
            flow.synchronise(segment, options, own_mss(ctx, packet.src.is_ipv6()));
        }
        Ok(())
    }

    /// Our SYN is out (SYN-SENT): a SYN-ACK for it connects, a reset for it refuses, a SYN alone crosses
    /// it on the way.
    pub(super) fn while_opening(
        &mut self,
        key: Key,
        received: &Received<'_>,
        packet: &Packet,
        segment: &Segment,
        ctx: &mut Context<'_>,
    ) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(key).ok_or(DropReason::NoFlow)?;
        let for_ours = segment.flags.ack && segment.ack == flow.snd.nxt;
        if segment.flags.ack && !for_ours {
            if !segment.flags.rst {
                self.refuse_ack(key, segment, ctx);
            }
            return Err(DropReason::OutOfWindow);
        }
        if segment.flags.rst {
            if !for_ours {
                return Err(DropReason::OutOfWindow);
            }
            self.abandon(key, ctx);
            return Ok(());
        }
        if !segment.flags.syn {
            return Err(DropReason::OutOfWindow);
        }
        let options = segment::syn_options(packet, received.frame);
        flow.synchronise(segment, options, own_mss(ctx, packet.src.is_ipv6()));
        if for_ours {
            self.establish(key, segment, ctx);
            self.owe_ack(key);
        } else {
            flow.stage = Stage::Accepting;
            self.send_syn_ack(key, ctx);
        }
        Ok(())
    }

    /// Our SYN-ACK is out (SYN-RECEIVED): its acknowledgment connects, and may carry payload already.
    pub(super) fn while_accepting(
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
            // The same SYN again wants our answer again; another is told where we are (RFC 5961 §4).
            if segment.seq + 1 == flow.rcv.nxt {
                flow.snd.rtt.cancel();
                self.send_syn_ack(key, ctx);
                return Ok(());
            }
            self.owe_ack(key);
            return Err(DropReason::OutOfWindow);
        }
        if !flow.rcv.accepts(segment.seq, segment.end(payload.len())) {
            self.owe_ack(key);
            return Err(DropReason::OutOfWindow);
        }
        if !segment.flags.ack {
            return Err(DropReason::OutOfWindow);
        }
        if segment.ack != flow.snd.nxt {
            self.refuse_ack(key, segment, ctx);
            return Err(DropReason::OutOfWindow);
        }
        self.establish(key, segment, ctx);
        self.while_established(key, segment, payload, ctx)
    }

    fn establish(&mut self, key: Key, segment: &Segment, ctx: &Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.stage = Stage::Established;
        flow.entry.set_state(TcpState::Established);
        flow.snd.opened(segment.ack, ctx.now);
        flow.attempts = 0;
        // Whatever came while nobody looked is not announced again.
        flow.readable = true;
        self.attend(key);
    }

    /// Answers what acknowledges something never sent: `<SEQ=SEG.ACK><CTL=RST>`.
    fn refuse_ack(&mut self, key: Key, segment: &Segment, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let mut reset = flow.control(RST, segment.ack);
        reset.segment.window = 0;
        Self::send_apart(&reset, ctx);
    }
}
