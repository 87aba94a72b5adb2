//! What comes from the container: what was received, what the host socket took, what may still come.
//!
//! Octets the host socket does not take wait here, acknowledged: the container would give the connection
//! up if it had to send them again and again. What bounds them is the window, which closes as they grow.

use std::collections::VecDeque;

use super::ahead::{Ahead, Block, MAX_BLOCKS};
use super::seq::Seq;
use crate::limits::Reservation;

/// The window first offered: what a header holds without scaling (RFC 7323 §2.2).
pub(crate) const FIRST_WINDOW: u32 = 65_535;

/// The widest window offered, which is also the most that may wait for a host socket: 40 Gbit/s over
/// 100 µs, which is as far as a container is away. The way beyond is the host socket's affair, whose
/// buffer grows with it. More would only wait in the queue between, and be out of the cache when read.
const MAX_WINDOW: u32 = 512 << 10;

/// From the container.
#[derive(Debug)]
pub(crate) struct Receiving {
    /// Next octet expected; a FIN does not count here.
    pub(crate) nxt: Seq,
    /// The farthest octet the container was ever allowed to send.
    pub(crate) edge: Seq,
    /// What may be received beyond what the host socket took.
    window: u32,
    /// What was acknowledged last.
    acked: Seq,
    pub(crate) scale: u8,
    /// The container understands selective acknowledgments.
    pub(crate) sack: bool,
    /// The container has finished; its FIN comes behind what waits.
    pub(crate) fin: bool,
    /// The host socket was told so.
    pub(crate) shut: bool,
    /// The host socket takes nothing any more: the far side is gone, though what it said is still read.
    pub(crate) lost: bool,
    /// There was no room to keep what the host socket did not take: the window is closed until it takes
    /// again, as Linux does when memory runs out (`__tcp_select_window`).
    pub(crate) squeezed: bool,
    /// What waits; nothing, nearly always.
    pub(crate) held: Option<Box<Held>>,
}

/// Octets that wait, and the room they take of what their container may have waiting.
#[derive(Debug)]
pub(crate) struct Held {
    /// Received in order, not taken by the host socket yet.
    pub(crate) pending: VecDeque<u8>,
    /// Received beyond a gap.
    pub(crate) ahead: Ahead,
    /// The urgent octet that was not passed on yet.
    pub(crate) urgent: Option<Seq>,
    pub(crate) room: Reservation,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.ahead.is_empty() && self.urgent.is_none()
    }
}

impl Receiving {
    pub(crate) const fn new() -> Self {
        Self {
            nxt: Seq(0),
            edge: Seq(0),
            window: FIRST_WINDOW,
            acked: Seq(0),
            scale: 0,
            sack: false,
            fin: false,
            shut: false,
            lost: false,
            squeezed: false,
            held: None,
        }
    }

    /// The container's SYN has `irs`.
    pub(crate) const fn synchronise(&mut self, irs: Seq) {
        self.nxt = Seq(irs.0.wrapping_add(1));
        self.edge = self.nxt;
        self.acked = self.nxt;
    }

    /// Octets received and not acknowledged yet.
    pub(crate) fn unacknowledged(&self) -> u32 {
        self.ack().after(self.acked)
    }

    /// Next sequence number expected (RCV.NXT), the FIN counted.
    pub(crate) fn expected(&self) -> Seq {
        self.nxt + u32::from(self.fin)
    }

    /// What we acknowledge: all that was received in order, but a FIN only once it was passed on.
    pub(crate) fn ack(&self) -> Seq {
        self.nxt + u32::from(self.shut)
    }

    /// Whether anything of a segment lies where something is expected (RFC 9293 §3.10.7.4, first check).
    /// One that ends there is let through: it may acknowledge.
    pub(crate) fn accepts(&self, start: Seq, end: Seq) -> bool {
        end.since(self.expected()) >= 0 && start.since(self.edge) <= 0
    }

    /// Octets that wait for the host socket.
    pub(crate) fn pending(&self) -> u32 {
        let pending = self.held.as_ref().map_or(0, |held| held.pending.len());
        u32::try_from(pending).unwrap_or(u32::MAX)
    }

    /// What to acknowledge selectively.
    pub(crate) fn blocks(&self) -> [Option<Block>; MAX_BLOCKS] {
        match &self.held {
            Some(held) if self.sack => held.ahead.blocks(),
            _ => [None; MAX_BLOCKS],
        }
    }

    /// The header's window field of a segment that acknowledges: from what we acknowledge to the edge, which may be nothing. The edge
    /// never moves back (RFC 9293 §3.8.6), and forward only in steps worth a segment of `mss`
    /// (§3.8.6.2.2). What scaling cuts off is not offered (RFC 7323 §2.4).
    pub(crate) fn offer(&mut self, mss: u16) -> u16 {
        self.acked = self.ack();
        if self.squeezed {
            return 0;
        }
        let edge = self.nxt - self.pending() + self.window;
        if edge.after(self.edge) >= u32::from(mss).min(self.window / 2) {
            self.edge = edge;
        }
        let window = self.edge.after(self.ack()) >> self.scale;
        u16::try_from(window).unwrap_or(u16::MAX)
    }

    /// The window of a SYN, which is never scaled (RFC 7323 §2.2).
    pub(crate) fn offer_first(&mut self) -> u16 {
        self.edge = self.edge.max(self.nxt + FIRST_WINDOW);
        u16::MAX
    }

    /// The host socket took all it was given: it has room for more at once.
    pub(crate) fn widen(&mut self) {
        if self.scale > 0 {
            self.window = (self.window * 2).min(MAX_WINDOW);
        }
    }

    /// The host socket is slower than the container: less shall wait here.
    pub(crate) fn narrow(&mut self) {
        self.window = (self.window / 2).max(FIRST_WINDOW);
    }

    /// Gives back memory nothing waits in.
    pub(crate) fn tidy(&mut self) {
        if self.held.as_ref().is_some_and(|held| held.is_empty()) {
            self.held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datapath::PortId;
    use nat::Zone;

    use super::*;
    use crate::limits::Limits;

    #[test]
    fn the_offered_edge_never_moves_back_and_closes_as_octets_wait() {
        let limits = Arc::new(Limits::new(1, 1));
        let lease = limits.lease(Zone(1), PortId(1)).unwrap();
        let mut rcv = Receiving { scale: 7, window: 1 << 20, ..Receiving::new() };
        rcv.synchronise(Seq(999));
        assert_eq!(u32::from(rcv.offer(1460)) << 7, 1 << 20);
        rcv.narrow();
        assert_eq!(u32::from(rcv.offer(1460)) << 7, 1 << 20, "once offered, never taken back");
        let mut held = Held {
            pending: VecDeque::new(),
            ahead: Ahead::default(),
            urgent: None,
            room: Reservation::new(&lease),
        };
        assert!(held.room.grow(1 << 20));
        held.pending.resize(1 << 20, 0);
        rcv.held = Some(Box::new(held));
        rcv.nxt += 1 << 20;
        rcv.fin = true;
        assert_eq!(
            rcv.ack(),
            Seq(1000 + (1 << 20)),
            "what waits is acknowledged; the FIN is not yet"
        );
        assert_eq!(rcv.expected(), rcv.ack() + 1);
        assert_eq!(rcv.offer(1460), 0);
        rcv.held.as_mut().unwrap().pending.drain(..600_000);
        assert_ne!(rcv.offer(1460), 0, "room returned");
    }
}
