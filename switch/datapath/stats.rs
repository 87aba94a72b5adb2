//! Counts per port, and the account they must balance:
//! received = forwarded + consumed + dropped.
//!
//! Each worker has counters of its own, written by it alone and read by anyone, so that counting
//! never bounces a cache line between workers; whoever reports adds them up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::drop::{DropReason, REASONS};
use crate::port::PortId;

/// What became of a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes out by one port or more.
    Forwarded,
    /// The gateway took it.
    Consumed,
    /// It goes no further.
    Dropped(DropReason),
}

/// A number only one thread changes.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts of one port by one worker.
#[derive(Debug)]
pub struct PortCounters {
    rx_frames: Count,
    rx_octets: Count,
    tx_frames: Count,
    tx_octets: Count,
    forwarded: Count,
    consumed: Count,
    dropped: [Count; REASONS],
    tx_dropped: [Count; REASONS],
}

impl Default for PortCounters {
    fn default() -> Self {
        Self {
            rx_frames: Count::default(),
            rx_octets: Count::default(),
            tx_frames: Count::default(),
            tx_octets: Count::default(),
            forwarded: Count::default(),
            consumed: Count::default(),
            dropped: std::array::from_fn(|_| Count::default()),
            tx_dropped: std::array::from_fn(|_| Count::default()),
        }
    }
}

impl PortCounters {
    /// A frame of `octets` came in by this port.
    pub fn received(&self, octets: usize) {
        self.rx_frames.add(1);
        self.rx_octets.add(octets as u64);
    }

    /// What became of it. Exactly one call per [`received`](Self::received).
    pub fn decided(&self, fate: Fate) {
        match fate {
            Fate::Forwarded => self.forwarded.add(1),
            Fate::Consumed => self.consumed.add(1),
            Fate::Dropped(reason) => self.dropped[reason as usize].add(1),
        }
    }

    /// A frame of `octets` went out by this port.
    pub fn sent(&self, octets: usize) {
        self.tx_frames.add(1);
        self.tx_octets.add(octets as u64);
    }

    /// A frame that should have gone out by this port did not.
    pub fn not_sent(&self, reason: DropReason) {
        self.tx_dropped[reason as usize].add(1);
    }

    /// Adds these counts to `sum`.
    pub fn add_to(&self, sum: &mut PortTotals) {
        sum.rx_frames += self.rx_frames.read();
        sum.rx_octets += self.rx_octets.read();
        sum.tx_frames += self.tx_frames.read();
        sum.tx_octets += self.tx_octets.read();
        sum.forwarded += self.forwarded.read();
        sum.consumed += self.consumed.read();
        for index in 0..REASONS {
            sum.dropped[index] += self.dropped[index].read();
            sum.tx_dropped[index] += self.tx_dropped[index].read();
        }
    }
}

/// Counts of one port, added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTotals {
    /// Frames received.
    pub rx_frames: u64,
    /// Octets of those, Ethernet header included.
    pub rx_octets: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Octets of those.
    pub tx_octets: u64,
    /// Received frames that went on.
    pub forwarded: u64,
    /// Received frames the gateway took.
    pub consumed: u64,
    /// Received frames that went no further, by [`DropReason`].
    pub dropped: [u64; REASONS],
    /// Frames that should have gone out here and did not, by [`DropReason`].
    pub tx_dropped: [u64; REASONS],
}

impl Default for PortTotals {
    fn default() -> Self {
        Self {
            rx_frames: 0,
            rx_octets: 0,
            tx_frames: 0,
            tx_octets: 0,
            forwarded: 0,
            consumed: 0,
            dropped: [0; REASONS],
            tx_dropped: [0; REASONS],
        }
    }
}

impl PortTotals {
    /// Whether every received frame has exactly one fate.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.rx_frames == self.forwarded + self.consumed + self.dropped.iter().sum::<u64>()
    }

    /// Received frames dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }
}

/// Counts of all ports of one network by one worker; grown when a port is added, and only then.
#[derive(Debug, Default)]
pub struct Counters {
    ports: Vec<PortCounters>,
}

impl Counters {
    /// Counters for ports numbered below `ports`.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Self { ports: std::iter::repeat_with(PortCounters::default).take(ports).collect() }
    }

    /// The counts of one port.
    pub fn port(&self, port: PortId) -> Option<&PortCounters> {
        self.ports.get(port.index())
    }
}
