//! The frames of one burst, in buffers that are used again and again.
//!
//! A burst is bounded in frames and in octets: what it holds shall still be in the L2 cache when it is
//! written, and no port shall keep a turn for itself.

use datapath::slot::SPARE;
use datapath::{DropReason, OFFLOAD_HEADER_LEN, Offload, Slot};

use crate::queue::{BUFFER_LEN, Queue, QueueError};

/// Most frames of a burst.
pub(crate) const MAX_FRAMES: usize = 32;

/// Octets after which a burst is over; each segment to be cut counts for some ([`Offload::cost`]).
const MAX_OCTETS: usize = 256 * 1024;

/// Octets from one buffer to the next: behind each is room for a longer IP header.
const STRIDE: usize = BUFFER_LEN + SPARE;

/// How reading a burst ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Nothing waits any more.
    Empty,
    /// More waits; readiness is edge-triggered, so nothing will announce it.
    More,
    /// The device failed.
    Failed(QueueError),
}

/// A burst.
#[derive(Debug)]
pub(crate) struct Burst {
    /// [`MAX_FRAMES`] buffers of [`STRIDE`] octets in one allocation, so large that the kernel gives
    /// its pages only when frames of that many and that length come.
    buffers: Box<[u8]>,
    lens: Vec<usize>,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            buffers: vec![0; MAX_FRAMES * STRIDE].into_boxed_slice(),
            lens: Vec::with_capacity(MAX_FRAMES),
        }
    }
}

impl Burst {
    /// Reads what waits at `queue`, in place of the burst before.
    pub(crate) fn fill(&mut self, queue: &Queue) -> Drained {
        self.lens.clear();
        let mut octets = 0;
        for buffer in self.buffers.chunks_exact_mut(STRIDE) {
            match recv(queue, &mut buffer[..BUFFER_LEN]) {
                Ok(len) => {
                    octets += cost(&buffer[..len]);
                    self.lens.push(len);
                    if octets >= MAX_OCTETS {
                        return Drained::More;
                    }
                }
                Err(QueueError::WouldBlock) => return Drained::Empty,
                Err(error) => return Drained::Failed(error),
            }
        }
        Drained::More
    }

    pub(crate) fn len(&self) -> usize {
        self.lens.len()
    }

    /// The frame at `place` behind its offload header, as it was read.
    pub(crate) fn with_header(&self, place: usize) -> &[u8] {
        &self.buffers[place * STRIDE..][..self.lens[place]]
    }

    /// The frame at `place`, and what was left undone on it.
    pub(crate) fn frame(&self, place: usize) -> (&[u8], Result<Offload, DropReason>) {
        let octets = self.with_header(place);
        match octets.split_first_chunk::<OFFLOAD_HEADER_LEN>() {
            Some((header, frame)) => (frame, Offload::parse(header)),
            None => (&[], Err(DropReason::Runt)),
        }
    }

    /// The frame at `place`, to be rewritten where it lies. It has been looked at, and has its header.
    pub(crate) fn slot(&mut self, place: u16) -> Slot<'_> {
        let index = usize::from(place);
        let octets = &mut self.buffers[index * STRIDE..][..STRIDE];
        Slot::new(octets, &mut self.lens[index], Some(place))
    }

    /// Puts one frame in place of the burst, for a frame that another worker handed over.
    pub(crate) fn hold(&mut self, with_header: &[u8]) {
        self.lens.clear();
        let len = with_header.len().min(BUFFER_LEN);
        self.buffers[..len].copy_from_slice(&with_header[..len]);
        self.lens.push(len);
    }
}

/// What carrying a frame costs, in octets.
fn cost(with_header: &[u8]) -> usize {
    let offload = with_header.first_chunk().map(Offload::parse);
    match offload {
        Some(Ok(offload)) => offload.cost(with_header.len()),
        _ => with_header.len(),
    }
}

/// Reads one frame. A packet socket whose interface went down says so once, with frames behind that
/// word for which no further readiness is announced: it is asked again.
fn recv(queue: &Queue, buffer: &mut [u8]) -> Result<usize, QueueError> {
    match queue.recv(buffer) {
        Err(QueueError::Refused(_)) => queue.recv(buffer),
        read => read,
    }
}
