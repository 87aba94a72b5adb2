//! When flows want to be looked at again.
//!
//! A flow moves its deadline at every packet; the heap is told only when the deadline comes nearer, and
//! whoever is taken from it too early is put back. An idle flow costs one heap entry and nothing per
//! packet. The entry of a flow that is gone stays until its time, so nobody is put in for long.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smoltcp::time::Instant;

use crate::key::Key;

/// Entries whose memory is kept in any case.
const KEPT: usize = 1024;

/// Deadlines of one worker's flows.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Key)>>,
}

impl Timers {
    /// Wakes `key` at `when` or, if it moves its deadline meanwhile, then.
    pub(crate) fn arm(&mut self, key: Key, when: Instant) {
        self.heap.push(Reverse((when, key)));
    }

    /// Whoever is due and since when, one a call.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(Instant, Key)> {
        let Reverse((when, _)) = self.heap.peek()?;
        if *when > now {
            return None;
        }
        let Reverse(due) = self.heap.pop()?;
        if self.heap.capacity() > KEPT && self.heap.len() < self.heap.capacity() / 4 {
            self.heap.shrink_to((self.heap.len() * 2).max(KEPT));
        }
        Some(due)
    }

    /// When somebody is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((when, _))| *when)
    }

    /// Entries held.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }
}
