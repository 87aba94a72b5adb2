//! From the container to the host socket: octets in order, what waits for room, the FIN.
//!
//! Octets are written where they lie in the frame, one call a frame; what the host socket does not take
//! is kept and written when it has room. A host socket that takes nothing any more is no end yet: what
//! the far side said before it went is still read (an early answer), so what the container sends on is
//! taken and forgotten until that has arrived.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use super::ahead::Ahead;
use super::flow::Flow;
use super::receiving::Held;
use super::segment::Segment;
use super::seq::Seq;
use super::table::Tcp;
use crate::key::Key;
use crate::limits::Reservation;
use crate::socket;

/// Pieces of what waits written at one event.
const WRITE_ROUNDS: usize = 8;

impl Tcp {
    /// Takes octets in order: the host socket gets them, or they wait. Says whether all were taken.
    pub(super) fn take_octets(&mut self, key: Key, octets: &[u8]) -> bool {
        let Some(flow) = self.flows.get_mut(key) else { return true };
        let mut written = 0;
        if !flow.rcv.lost && flow.rcv.pending() == 0 && !octets.is_empty() {
            match flow.write(flow.rcv.nxt, octets) {
                Ok(octets) => written = octets,
                Err(errno) => self.upstream_lost(key, errno),
            }
        }
        let Some(flow) = self.flows.get_mut(key) else { return true };
        if flow.rcv.lost {
            written = octets.len();
        }
        flow.rcv.nxt += u32::try_from(written).unwrap_or(0);
        let rest = &octets[written..];
        if rest.is_empty() {
            if !octets.is_empty() {
                flow.rcv.squeezed = false;
                flow.rcv.widen();
                flow.rcv.tidy();
            }
            return true;
        }
        flow.rcv.narrow();
        flow.rcv.squeezed = !flow.hold(|held| {
            let fits = held.room.grow(rest.len());
            if fits {
                held.pending.extend(rest);
            }
            fits
        });
        if flow.rcv.squeezed {
            flow.rcv.tidy();
            return false;
        }
        flow.rcv.nxt += u32::try_from(rest.len()).unwrap_or(0);
        true
    }

    /// The host socket has room again for what waits.
    pub(super) fn continue_writing(&mut self, key: Key) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let mut moved = std::mem::take(&mut flow.rcv.squeezed);
        for _ in 0..WRITE_ROUNDS {
            match flow.write_pending() {
                Ok(0) => break,
                Ok(_) => moved = true,
                Err(errno) => {
                    self.upstream_lost(key, errno);
                    return;
                }
            }
        }
        if !moved {
            return;
        }
        flow.rcv.tidy();
        flow.pass_on_fin();
        // The window opens again; nothing else would tell the container.
        self.owe_ack(key);
    }

    /// The host socket takes nothing any more.
    pub(super) fn upstream_lost(&mut self, key: Key, errno: Errno) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.rcv.lost = true;
        flow.rcv.squeezed = false;
        if let Some(held) = &mut flow.rcv.held {
            let pending = held.pending.len();
            held.pending = VecDeque::new();
            held.urgent = None;
            held.room.shrink(pending);
        }
        flow.rcv.tidy();
        flow.pass_on_fin();
        // `tcp_reset`: EPIPE says that the far side's FIN came first, so its octets end in order.
        flow.reset_at_end |= errno != Errno::EPIPE;
        flow.readable = true;
        self.attend(key);
        self.owe_ack(key);
    }
}

impl Flow {
    /// Works on what waits, which exists from then on.
    fn hold<T>(&mut self, work: impl FnOnce(&mut Held) -> T) -> T {
        let lease = &self.lease;
        work(self.rcv.held.get_or_insert_with(|| {
            Box::new(Held {
                pending: VecDeque::new(),
                ahead: Ahead::default(),
                urgent: None,
                room: Reservation::new(lease),
            })
        }))
    }

    /// Writes octets, the first of which is `start`, as far as the host socket takes them now.
    fn write(&mut self, start: Seq, octets: &[u8]) -> Result<usize, Errno> {
        let mut none = None;
        let urgent = self.rcv.held.as_mut().map_or(&mut none, |held| &mut held.urgent);
        write_from(&self.stream, urgent, start, octets)
    }

    /// Writes one piece of what waits. Returns how much was taken.
    fn write_pending(&mut self) -> Result<usize, Errno> {
        let start = self.rcv.nxt - self.rcv.pending();
        let Some(held) = &mut self.rcv.held else { return Ok(0) };
        let (front, _) = held.pending.as_slices();
        if front.is_empty() {
            return Ok(0);
        }
        let written = write_from(&self.stream, &mut held.urgent, start, front)?;
        held.pending.drain(..written);
        held.room.shrink(written);
        Ok(written)
    }

    /// Notes which octet is urgent: the one before where the pointer points, as every stack has it
    /// (RFC 6093 §3.1).
    pub(super) fn note_urgent(&mut self, segment: &Segment) {
        let Some(pointer) = segment.urgent.filter(|pointer| *pointer > 0) else { return };
        let urgent = segment.seq + (u32::from(pointer) - 1);
        if urgent.since(self.rcv.nxt) >= 0 && self.rcv.edge.since(urgent) > 0 {
            self.hold(|held| {
                held.urgent = Some(held.urgent.map_or(urgent, |known| known.max(urgent)))
            });
        }
    }

    /// Tells the host socket that the container has finished, once it took all before that.
    pub(super) fn pass_on_fin(&mut self) {
        if self.rcv.fin && !self.rcv.shut && self.rcv.pending() == 0 {
            // It fails only if the far side is gone already, which reading will tell.
            let _ = self.stream.shutdown(Shutdown::Write);
            self.rcv.shut = true;
        }
    }

    /// Keeps a segment that lies beyond a gap, as far as the window goes. Its FIN will come again.
    pub(super) fn keep_ahead(&mut self, start: Seq, payload: &[u8]) -> bool {
        let room = self.rcv.edge.after(start) as usize;
        let inside_window = &payload[..payload.len().min(room)];
        if self.rcv.fin || inside_window.is_empty() {
            return false;
        }
        let kept = self.hold(|held| {
            if !held.room.grow(inside_window.len()) {
                return 0;
            }
            let kept = held.ahead.keep(start, inside_window);
            held.room.shrink(inside_window.len() - kept);
            kept
        });
        self.rcv.tidy();
        kept > 0
    }

    /// Takes out what was kept beyond a gap that is filled now.
    pub(super) fn next_from_ahead(&mut self) -> Option<Vec<u8>> {
        let nxt = self.rcv.nxt;
        let held = self.rcv.held.as_mut()?;
        let (octets, kept) = held.ahead.take(nxt)?;
        held.room.shrink(kept);
        self.rcv.tidy();
        Some(octets)
    }
}

/// Writes octets, the first of which is `start`, as far as `stream` takes them now; the one at `urgent`
/// as an urgent one.
fn write_from(
    stream: &TcpStream,
    urgent: &mut Option<Seq>,
    start: Seq,
    octets: &[u8],
) -> Result<usize, Errno> {
    let mut written = 0;
    while written < octets.len() {
        let rest = &octets[written..];
        let before = urgent.map(|urgent| {
            usize::try_from(urgent.since(start)).ok().and_then(|before| before.checked_sub(written))
        });
        // What a socket sends as urgent is the last octet of the call: so that goes alone.
        let (piece, flags) = match before {
            Some(Some(0)) => (&rest[..1], MsgFlags::MSG_OOB),
            Some(Some(before)) => (&rest[..rest.len().min(before)], MsgFlags::empty()),
            Some(None) | None => (rest, MsgFlags::empty()),
        };
        let taken = match socket::write_some(stream, piece, flags) {
            Err(_) if written > 0 => break, // It will say so again.
            taken => taken?,
        };
        written += taken;
        if taken < piece.len() {
            break;
        }
        if before.is_some_and(|before| before.is_none_or(|before| before == 0)) {
            *urgent = None;
        }
    }
    Ok(written)
}
