//! How many flows there may be, in all and of one container.
//!
//! Every flow that holds a host socket holds a [`Lease`]; dropping it gives the place back, so no error
//! path can leak one. A container at its own bound is refused while others still get through.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dashmap::DashMap;
use datapath::PortId;
use nat::Zone;

/// The counts of all workers.
#[derive(Debug)]
pub struct Limits {
    total: AtomicUsize,
    per_port: DashMap<(Zone, PortId), usize>,
    pending: DashMap<(Zone, PortId), usize>,
    max_total: usize,
    max_per_port: usize,
}

/// Octets a container's flows may have waiting for host sockets that do not take them.
pub(crate) const MAX_PENDING_PER_PORT: usize = 64 << 20;

impl Limits {
    /// No flow yet, and at most so many.
    #[must_use]
    pub fn new(max_total: usize, max_per_port: usize) -> Self {
        Self {
            total: AtomicUsize::new(0),
            per_port: DashMap::new(),
            pending: DashMap::new(),
            max_total,
            max_per_port,
        }
    }

    /// A place for one more flow of that port, if there is one.
    pub(crate) fn lease(self: &Arc<Self>, zone: Zone, port: PortId) -> Option<Lease> {
        let mut held = self.per_port.entry((zone, port)).or_default();
        if *held >= self.max_per_port {
            return None;
        }
        if self.total.fetch_add(1, Relaxed) >= self.max_total {
            self.total.fetch_sub(1, Relaxed);
            return None;
        }
        *held += 1;
        drop(held);
        Some(Lease { limits: Arc::clone(self), zone, port })
    }

    /// Room for `octets` more waiting octets of that port's flows.
    pub(crate) fn reserve(&self, zone: Zone, port: PortId, octets: usize) -> bool {
        let mut held = self.pending.entry((zone, port)).or_default();
        let fits = *held + octets <= MAX_PENDING_PER_PORT;
        if fits {
            *held += octets;
        }
        fits
    }

    /// Gives back what [`reserve`](Self::reserve) granted.
    pub(crate) fn release(&self, zone: Zone, port: PortId, octets: usize) {
        if octets > 0
            && let Some(mut held) = self.pending.get_mut(&(zone, port))
        {
            *held = held.saturating_sub(octets);
        }
    }

    /// Flows that hold a place now.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.total.load(Relaxed)
    }
}

/// One flow's place.
#[derive(Debug)]
pub(crate) struct Lease {
    limits: Arc<Limits>,
    zone: Zone,
    port: PortId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.limits.total.fetch_sub(1, Relaxed);
        if let Some(mut held) = self.limits.per_port.get_mut(&(self.zone, self.port)) {
            *held = held.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ports_flows_leave_room_for_anothers() {
        let limits = Arc::new(Limits::new(3, 2));
        let (zone, one, two) = (Zone(1), PortId(1), PortId(2));
        let first = limits.lease(zone, one);
        let second = limits.lease(zone, one);
        assert!(first.is_some() && second.is_some());
        assert!(limits.lease(zone, one).is_none(), "its own bound");
        let third = limits.lease(zone, two);
        assert!(third.is_some());
        assert!(limits.lease(zone, two).is_none(), "everybody's bound");
        drop(first);
        assert!(limits.lease(zone, two).is_some());
    }
}
