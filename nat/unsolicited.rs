//! SYNs nobody asked for, kept quiet about for six seconds.
//!
//! Read RFC 5382 REQ-4: an error at once would break a simultaneous open whose other half is still on
//! its way. If the inside opens the same connection meanwhile, nothing is ever said. Bounded: when the
//! list is full, a further SYN is never answered, which costs its sender a time-out.

use std::collections::VecDeque;

use smoltcp::time::{Duration, Instant};

use crate::tuple::Tuple;
use crate::zone::Zone;

/// RFC 5382 REQ-4.
const QUIET: Duration = Duration::from_secs(6);

const MAX_WAITING: usize = 1024;

/// Octets of a packet that are kept to be quoted: any IP header with a TCP header behind it.
const QUOTED: usize = 128;

/// A SYN that was dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) zone: Zone,
    pub(crate) tuple: Tuple,
    due: Instant,
    pub(crate) quoted: Vec<u8>,
}

/// SYNs that were dropped, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Unsolicited(VecDeque<Waiting>);

impl Unsolicited {
    pub(crate) fn hold(&mut self, zone: Zone, tuple: Tuple, packet: &[u8], now: Instant) {
        if self.0.len() >= MAX_WAITING {
            return;
        }
        // A repeated SYN is the same question.
        let known = self.0.iter().any(|held| held.zone == zone && held.tuple == tuple);
        if !known {
            let quoted = packet[..packet.len().min(QUOTED)].to_vec();
            self.0.push_back(Waiting { zone, tuple, due: now + QUIET, quoted });
        }
    }

    /// The oldest, if its time has come.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Waiting> {
        let due = self.0.front().is_some_and(|oldest| oldest.due <= now);
        due.then(|| self.0.pop_front()).flatten()
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.0.front().map(|oldest| oldest.due)
    }
}
