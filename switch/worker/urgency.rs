//! How much of a busy processor the workers ask for, by what they do.
//!
//! Frames want a worker that their receiver does not displace: a nice value below 0. A stream that goes
//! from socket to socket wants the opposite: a worker that lets its sender fill the queue first moves
//! larger pieces. So the workers are as nice as anybody while such streams are all there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

use smoltcp::time::{Duration, Instant};

/// Frames one worker reads until they are traffic, and not somebody's ARP.
const TRAFFIC: usize = 4;

/// Octets from socket to socket after which a worker looks whether they are all there is.
const STREAM: u64 = 16 << 20;

/// So long after the last frames there are none.
const PAUSE: Duration = Duration::from_millis(20);

/// What all workers share of it.
#[derive(Debug)]
pub(crate) struct Shared {
    wanted: i32,
    streams_only: AtomicBool,
    /// When there was traffic last, in microseconds.
    traffic_at: AtomicI64,
}

impl Shared {
    /// Workers that are to have the nice value `wanted`.
    pub(crate) const fn new(wanted: i32) -> Self {
        Self { wanted, streams_only: AtomicBool::new(false), traffic_at: AtomicI64::new(0) }
    }
}

/// One worker's part.
#[derive(Debug)]
pub(crate) struct Urgency {
    shared: Arc<Shared>,
    nice: i32,
    seen: Seen,
}

/// What one worker has seen since it looked last.
#[derive(Debug, Default)]
struct Seen {
    frames: usize,
    /// Octets spliced by then.
    spliced: u64,
}

impl Urgency {
    /// Of the calling thread, which gets the nice value if it may.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let nice = shared.wanted;
        // A wish: without privilege it runs as everybody does.
        let _ = netns::priority::set_thread_nice(nice);
        Self { shared, nice, seen: Seen::default() }
    }

    /// A turn is over, in which `frames` frames were read; `spliced` is the worker's count of octets.
    pub(crate) fn turn(&mut self, frames: usize, spliced: u64, now: Instant) {
        if self.shared.wanted >= 0 {
            return;
        }
        if let Some(session) = self.shared.change(&mut self.seen, frames, spliced, now) {
            // As above; and where there are no sessions' groups, the threads' values are enough.
            let _ = netns::priority::set_session_nice(session);
        }
        let nice = self.shared.nice();
        if nice != self.nice {
            self.nice = nice;
            let _ = netns::priority::set_thread_nice(nice);
        }
    }
}

impl Shared {
    fn nice(&self) -> i32 {
        if self.streams_only.load(Relaxed) { 0 } else { self.wanted }
    }

    /// Takes a turn into account and returns the new nice value, if that changes it.
    fn change(&self, seen: &mut Seen, frames: usize, spliced: u64, now: Instant) -> Option<i32> {
        seen.frames += frames;
        if seen.frames >= TRAFFIC {
            seen.frames = 0;
            self.traffic_at.store(now.total_micros(), Relaxed);
            let changes = self.streams_only.load(Relaxed) && self.streams_only.swap(false, Relaxed);
            return changes.then_some(self.wanted);
        }
        if spliced < seen.spliced + STREAM {
            return None;
        }
        seen.spliced = spliced;
        let quiet = now > Instant::from_micros(self.traffic_at.load(Relaxed)) + PAUSE;
        (quiet && !self.streams_only.swap(true, Relaxed)).then_some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_nice_while_streams_are_all_there_is() {
        let (shared, at) = (Shared::new(-2), Instant::from_millis);
        let (mut busy, mut streaming) = (Seen::default(), Seen::default());
        assert_eq!(shared.change(&mut busy, 32, 0, at(1000)), None);
        // A stream beside frames changes nothing.
        assert_eq!(shared.change(&mut streaming, 0, STREAM, at(1010)), None);
        assert_eq!(shared.nice(), -2);
        assert_eq!(shared.change(&mut streaming, 0, 2 * STREAM - 1, at(1100)), None);
        assert_eq!(shared.change(&mut streaming, 0, 2 * STREAM, at(1100)), Some(0));
        assert_eq!(shared.change(&mut streaming, 0, 3 * STREAM, at(1200)), None);
        // Nor does somebody's ARP in between.
        assert_eq!(shared.change(&mut busy, 1, 0, at(1200)), None);
        assert_eq!(shared.nice(), 0);
        assert_eq!(shared.change(&mut busy, TRAFFIC, 0, at(1201)), Some(-2));
        assert_eq!(shared.change(&mut busy, TRAFFIC, 0, at(1202)), None);
        assert_eq!(shared.nice(), -2);
    }
}
