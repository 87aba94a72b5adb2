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

    /// The most flows one port may have.
    pub(crate) const fn most_of_one(&self) -> usize {
        self.max_per_port
    }

    /// Room for `octets` more waiting octets of that port's flows.
    fn reserve(&self, zone: Zone, port: PortId, octets: usize) -> bool {
        let mut held = self.pending.entry((zone, port)).or_default();
        let fits = *held + octets <= MAX_PENDING_PER_PORT;
        if fits {
            *held += octets;
        }
        fits
    }

    /// Gives back what [`reserve`](Self::reserve) granted.
    fn release(&self, zone: Zone, port: PortId, octets: usize) {
        self.pending.remove_if_mut(&(zone, port), |_, held| {
            *held = held.saturating_sub(octets);
            *held == 0
        });
    }

    /// Octets of that port's flows that wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self, zone: Zone, port: PortId) -> usize {
        self.pending.get(&(zone, port)).map_or(0, |held| *held)
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

impl Lease {
    pub(crate) const fn zone(&self) -> Zone {
        self.zone
    }

    pub(crate) const fn port(&self) -> PortId {
        self.port
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.limits.total.fetch_sub(1, Relaxed);
        self.limits.per_port.remove_if_mut(&(self.zone, self.port), |_, held| {
            *held = held.saturating_sub(1);
            *held == 0
        });
    }
}

/// Room for waiting octets of one flow, of what its container may have waiting in all. Dropping it gives
/// the room back.
#[derive(Debug)]
pub(crate) struct Reservation {
    limits: Arc<Limits>,
    zone: Zone,
    port: PortId,
    octets: usize,
}

impl Reservation {
    /// No room yet, for the flow that holds `lease`.
    pub(crate) fn new(lease: &Lease) -> Self {
        let Lease { limits, zone, port } = lease;
        Self { limits: Arc::clone(limits), zone: *zone, port: *port, octets: 0 }
    }

    /// Takes room for `octets` more, if there is that much.
    #[must_use]
    pub(crate) fn grow(&mut self, octets: usize) -> bool {
        let fits = self.limits.reserve(self.zone, self.port, octets);
        if fits {
            self.octets += octets;
        }
        fits
    }

    /// Gives back room for `octets`.
    pub(crate) fn shrink(&mut self, octets: usize) {
        let octets = octets.min(self.octets);
        if octets > 0 {
            self.octets -= octets;
            self.limits.release(self.zone, self.port, octets);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(self.octets);
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

    #[test]
    fn room_for_waiting_octets_is_bounded_and_comes_back() {
        let limits = Arc::new(Limits::new(4, 4));
        let (zone, one, two) = (Zone(1), PortId(1), PortId(2));
        let (lease, other) = (limits.lease(zone, one).unwrap(), limits.lease(zone, two).unwrap());
        let mut first = Reservation::new(&lease);
        assert!(first.grow(MAX_PENDING_PER_PORT - 10));
        let mut second = Reservation::new(&lease);
        assert!(!second.grow(11), "the container's own bound");
        assert!(Reservation::new(&other).grow(11), "another's is its own");
        first.shrink(1);
        assert!(second.grow(11));
        drop(first);
        assert_eq!(limits.waiting(zone, one), 11);
        drop(second);
        assert_eq!(limits.waiting(zone, one), 0);
    }
}
