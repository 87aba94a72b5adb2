//! What is to be sent when a burst has been decided.
//!
//! A received frame that goes on is named by its place in the burst and never copied. Frames of our
//! own are built in one arena that keeps its memory, each behind room for an offload header, so that
//! a device takes header and frame in one write. Nothing is allocated once the arena has grown to
//! the size of a turn.

use nat::Zone;

use crate::offload::{OFFLOAD_HEADER_LEN, Offload};
use crate::port::PortId;

/// Octets of built frames after which the worker flushes, so that they stay in the L2 cache.
pub const ARENA_TARGET: usize = 256 * 1024;

/// Which octets go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// The frame at this place of the burst, as it came.
    Received(u16),
    /// A frame of the arena.
    Built(Built),
}

/// A frame in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    start: u32,
    len: u32,
}

impl Built {
    /// Octets of the frame.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len as usize
    }

    /// Whether it has no octets.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// One frame for one port.
#[derive(Clone, Copy, Debug)]
pub struct Departure {
    /// The network it leaves on: a routed frame's is not the one it came in by.
    pub zone: Zone,
    /// Where it leaves.
    pub to: PortId,
    /// Its octets.
    pub body: Body,
    /// What is left undone on it.
    pub offload: Offload,
}

/// Frames to be sent, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    departures: Vec<Departure>,
    arena: Vec<u8>,
    used: usize,
}

impl Outbox {
    /// Room for a frame of `len` octets, whose content is whatever was there before: the caller
    /// writes all of it.
    ///
    /// # Panics
    ///
    /// Only beyond 4 GiB of frames, which flushing at [`ARENA_TARGET`] never reaches.
    pub fn build(&mut self, len: usize) -> Built {
        let start = self.used + OFFLOAD_HEADER_LEN;
        let end = start + len;
        if self.arena.len() < end {
            self.arena.resize(end, 0);
        }
        self.used = end;
        Built {
            start: u32::try_from(start).expect("the arena is flushed long before 4 GiB"),
            len: u32::try_from(len).expect("a frame is at most 64 KB"),
        }
    }

    /// Gives back what the frame built last does not need.
    pub fn shorten(&mut self, built: Built, len: usize) -> Built {
        debug_assert_eq!(self.used, built.start as usize + built.len(), "only the last frame");
        let len = built.len.min(u32::try_from(len).unwrap_or(u32::MAX));
        self.used = (built.start + len) as usize;
        Built { start: built.start, len }
    }

    /// The octets of a built frame.
    pub fn frame(&self, built: Built) -> &[u8] {
        &self.arena[built.start as usize..][..built.len()]
    }

    /// The octets of a built frame, to be written.
    pub fn frame_mut(&mut self, built: Built) -> &mut [u8] {
        &mut self.arena[built.start as usize..][..built.len()]
    }

    /// The octets of a built frame, and those of a later one to be written.
    ///
    /// # Panics
    ///
    /// If `later` was not built after `earlier`.
    pub fn two_mut(&mut self, earlier: Built, later: Built) -> (&[u8], &mut [u8]) {
        let (front, back) = self.arena.split_at_mut(later.start as usize);
        (&front[earlier.start as usize..][..earlier.len()], &mut back[..later.len()])
    }

    /// The same with its offload header in front, for a device that takes one.
    pub fn with_header(&mut self, built: Built, offload: Offload) -> &[u8] {
        let start = built.start as usize - OFFLOAD_HEADER_LEN;
        let octets = &mut self.arena[start..][..OFFLOAD_HEADER_LEN + built.len()];
        if let Some(header) = octets.first_chunk_mut() {
            offload.emit(header);
        }
        octets
    }

    /// Sends `body` to the port `to` of `zone` at the next flush.
    pub fn push(&mut self, (zone, to): (Zone, PortId), body: Body, offload: Offload) {
        self.departures.push(Departure { zone, to, body, offload });
    }

    /// What is to be sent, in order.
    pub fn departures(&self) -> &[Departure] {
        &self.departures
    }

    /// Whether nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.departures.is_empty()
    }

    /// Octets of built frames waiting.
    pub const fn built_octets(&self) -> usize {
        self.used
    }

    /// Forgets everything sent, keeping the memory.
    pub fn clear(&mut self) {
        self.departures.clear();
        self.used = 0;
    }
}
