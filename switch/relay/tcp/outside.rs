//! From the host socket to the container.
//!
//! The octets stay in the socket's queue until the container has acknowledged them; peeking behind
//! what is in flight (`SO_PEEK_OFF`, socket(7)) makes that queue the retransmission buffer, at any place
//! of which lost octets are found again.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{self as nix_socket, MsgFlags, setsockopt, sockopt};

use super::flow::{Flow, Stage};
use super::segment::{Outgoing, Segment};
use super::sending::Step;
use super::seq::Seq;
use super::table::{ACK, FIN_ACK, SHARE, Tcp, is_full};
use crate::context::Context;
use crate::context::Readiness;
use crate::key::Key;

impl Tcp {
    /// The host socket is ready for something.
    pub(crate) fn ready(&mut self, key: Key, readiness: Readiness, ctx: &mut Context<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.readable |= readiness.readable || readiness.hung_up;
        flow.hung_up |= readiness.hung_up;
        if readiness.urgent {
            flow.stops_short = true;
            flow.find_urgent();
        }
        match flow.stage {
            Stage::Connecting => self.connected(key, readiness, ctx),
            Stage::Established => {
                // Where the far side has finished nobody reads, and to a container that takes nothing nobody
                // writes: that it has reset since would go unnoticed.
                if readiness.hung_up
                    && let Ok(Some(error)) = flow.stream.take_error()
                {
                    self.upstream_lost(key, Errno::try_from(error).unwrap_or(Errno::EIO));
                }
                if readiness.writable {
                    self.continue_writing(key);
                }
                self.attend(key);
            }
            Stage::Accepting | Stage::Opening => {}
        }
    }

    /// Moves octets from the host socket to the container: as much as its window, this flow's share and
    /// the turn allow.
    pub(super) fn pump(&mut self, key: Key, ctx: &mut Context<'_>) {
        let mut moved = 0;
        loop {
            let Some(flow) = self.flows.get_mut(key) else { return };
            if flow.stage != Stage::Established {
                return;
            }
            let step = flow.snd.next(flow.readable);
            if step != Step::Wait && (moved >= SHARE || is_full(ctx.out)) {
                self.queue(key);
                return;
            }
            match step {
                Step::Octets(start, want) => {
                    match Self::send_peeked(flow, start, want, self.peek_offset, ctx) {
                        Peeked::Octets(octets) => moved += octets,
                        Peeked::Nothing => return,
                        Peeked::End => flow.snd.ends(flow.reset_at_end),
                        Peeked::Failed => {
                            flow.reset_at_end = true;
                            flow.snd.ends(true);
                        }
                    }
                }
                Step::Fin(seq) => Self::send_fin(flow, seq, ctx),
                Step::Reset => {
                    self.reset_by_host(key, ctx);
                    return;
                }
                Step::Done => {
                    // The far side is gone: as it would, it answers what else comes by a reset.
                    if flow.rcv.lost && flow.snd.fin_acknowledged() {
                        self.reset_by_host(key, ctx);
                    }
                    return;
                }
                Step::Wait => return,
            }
        }
    }

    /// Sends one frame of what the host socket holds from `start` on.
    fn send_peeked(
        flow: &mut Flow,
        start: Seq,
        want: u32,
        peek_offset: bool,
        ctx: &mut Context<'_>,
    ) -> Peeked {
        let Some(own_mac) = ctx.own_mac() else { return Peeked::Nothing };
        let fresh = start == flow.snd.nxt;
        let window = flow.rcv.offer(flow.snd.mss);
        let (want, urgent) = flow.snd.up_to_urgent(start, want);
        let mut outgoing = Outgoing {
            from: flow.outside(),
            to: flow.inside(),
            segment: Segment {
                seq: start,
                ack: flow.rcv.ack(),
                flags: ACK,
                window,
                urgent,
                ..Segment::default()
            },
            options: None,
            blocks: Default::default(),
            push: false,
        };
        let want = want as usize;
        let offset = outgoing.payload_offset();
        let built = ctx.out.build(offset + want);
        let octets = &mut ctx.out.frame_mut(built)[offset..];
        let got =
            if peek_offset { flow.peek(start, octets) } else { flow.peek_behind(start, octets) };
        let got = match got {
            Ok(got) if got > 0 => got,
            other => {
                ctx.out.shorten(built, 0);
                return match other {
                    // What was in the queue once is there still; a timeout asks again.
                    _ if !fresh => Peeked::Nothing,
                    Ok(_) => Peeked::End,
                    Err(Errno::EAGAIN) => {
                        flow.readable = false;
                        flow.stops_short = false;
                        if start == flow.snd.head {
                            flow.snd.cut = 0;
                        }
                        Peeked::Nothing
                    }
                    Err(Errno::EINTR) => Peeked::Nothing,
                    Err(_) => Peeked::Failed,
                };
            }
        };
        if fresh && got < want && !flow.hung_up && !flow.stops_short {
            // That was all; whatever comes now is announced (epoll(7), edge-triggered).
            flow.readable = false;
        }
        let built = ctx.out.shorten(built, offset + got);
        outgoing.push = got < want;
        let frame = ctx.out.frame_mut(built);
        let Ok(offload) = outgoing.finish(frame, own_mac, flow.snd.mss) else {
            return Peeked::Failed;
        };
        let end = start + u32::try_from(got).unwrap_or(0);
        flow.snd.sent(start, end, ctx.now);
        flow.acknowledged();
        let ip_len = built.len() - datapath::Packet::IP;
        flow.note(flow.entry.from_inside().other(), ip_len, ACK, ctx.now);
        ctx.dp.send_to(built, outgoing.to.addr, offload, ctx.now, ctx.out);
        Peeked::Octets(got)
    }

    /// The far side has finished: so do we, towards the container.
    fn send_fin(flow: &mut Flow, seq: Seq, ctx: &mut Context<'_>) {
        let fin = flow.control(FIN_ACK, seq);
        flow.snd.sent(seq, seq + 1, ctx.now);
        flow.acknowledged();
        Self::send(flow, &fin, ctx);
    }
}

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
    /// A segment went out that acknowledges, too, unless there are gaps to tell of.
    fn acknowledged(&mut self) {
        if self.rcv.held.is_none() {
            self.ack_due = false;
        }
    }

    /// Finds the urgent octet: how far it is can be asked only of a socket that keeps such octets apart.
    ///
    /// One that arrives between poll's word and the peek after it goes out as the plain octet that RFC 6093
    /// §3.4 has every application prepared for; asking before each peek would cost all others a call.
    fn find_urgent(&mut self) {
        let inline = |inline| setsockopt(&self.stream, sockopt::OobInline, &inline);
        let before = inline(false).ok().and_then(|()| netns::sockopt::unread(&self.stream).ok());
        // Refused only for what is no socket.
        let _ = inline(true);
        if let Some(before) = before.and_then(|before| u32::try_from(before).ok()) {
            let urgent = self.snd.head + before;
            self.snd.urgent = Some(urgent).filter(|urgent| urgent.since(self.snd.una) >= 0);
        }
    }

    /// Peeks from `start` on. The kernel moves the place along with each peek, so it is set only for
    /// what is not next.
    fn peek(&mut self, start: Seq, octets: &mut [u8]) -> Result<usize, Errno> {
        if self.snd.peek != start {
            let offset = i32::try_from(start.after(self.snd.head)).unwrap_or(i32::MAX);
            netns::sockopt::set_peek_off(&self.stream, Some(offset))
                .map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO))?;
            self.snd.peek = start;
        }
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let got = nix_socket::recv(self.stream.as_raw_fd(), octets, flags)?;
        self.snd.peek += u32::try_from(got).unwrap_or(0);
        Ok(got)
    }

    /// Peeks where the kernel has no `SO_PEEK_OFF` for TCP: the octets before `start` are skipped.
    fn peek_behind(&self, start: Seq, octets: &mut [u8]) -> Result<usize, Errno> {
        let skip = start.after(self.snd.head) as usize;
        match netns::sockopt::peek_after(&self.stream, skip, octets) {
            // Nothing behind what is in flight: the end, if the far side has hung up.
            Ok(0) if !self.hung_up => Err(Errno::EAGAIN),
            Ok(got) => Ok(got),
            Err(error) => Err(Errno::try_from(error).unwrap_or(Errno::EIO)),
        }
    }
}
