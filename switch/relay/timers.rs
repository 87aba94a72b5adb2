//! When flows want to be looked at again.
//!
//! A flow moves its deadline at every packet; the heap is told only when the deadline comes nearer, and
//! whoever is taken from it too early is put back. An idle flow costs one heap entry and nothing per
//! packet.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smoltcp::time::Instant;

use crate::key::Key;

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

    /// Whoever is due, one a call.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Key> {
        let Reverse((when, _)) = self.heap.peek()?;
        if *when > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, key))| key)
    }

    /// When somebody is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((when, _))| *when)
    }
}
