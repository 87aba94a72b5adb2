//! One worker's view of our stations on segments.
//!
//! What a station is made of is shared and locked; a worker has a copy, and looks once a turn whether there
//! is another one.

use std::sync::Arc;

use datapath::{Crossing, NetworkConfig};
use nat::Zone;
use smoltcp::time::{Duration, Instant};

use crate::station::{Current, Station};

/// How often conntrack's next part is looked at for flows that are over (`Nat::expire`).
const EXPIRE: Duration = Duration::from_millis(100);

/// One worker's view of the stations.
#[derive(Debug)]
pub(crate) struct Stations {
    held: Vec<Held>,
    next_expire: Instant,
}

/// A station, and what this worker knows of it.
#[derive(Debug)]
struct Held {
    station: Arc<Station>,
    current: Current,
    seen: u64,
}

impl Default for Stations {
    fn default() -> Self {
        Self { held: Vec::new(), next_expire: Instant::ZERO }
    }
}

impl Stations {
    /// The station on that segment.
    pub(crate) fn of(&self, segment: Zone) -> Option<&Arc<Station>> {
        self.held.iter().map(|held| &held.station).find(|station| station.segment.zone() == segment)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Station>> {
        self.held.iter().map(|held| Arc::clone(&held.station)).collect()
    }

    pub(crate) fn add(&mut self, station: Arc<Station>) {
        let (seen, current) = (station.changes(), station.current());
        self.held.push(Held { station, current, seen });
    }

    pub(crate) fn remove(&mut self, segment: Zone) {
        self.held.retain(|held| held.station.segment.zone() != segment);
    }

    /// Takes what is new, and calls `changed` with each segment that is another.
    pub(crate) fn look(&mut self, mut changed: impl FnMut(Zone, &Arc<NetworkConfig>)) {
        for held in &mut self.held {
            let changes = held.station.changes();
            if changes != held.seen {
                held.seen = changes;
                held.current = held.station.current();
                changed(held.station.segment.zone(), &held.current.config);
            }
        }
    }

    /// Whether the next part of conntrack is to be looked at now.
    pub(crate) fn expires(&mut self, now: Instant) -> bool {
        let due = now >= self.next_expire;
        if due {
            self.next_expire = now + EXPIRE;
        }
        due
    }

    pub(crate) fn crossings(&self) -> impl Iterator<Item = &Crossing> {
        self.held.iter().map(|held| &*held.current.crossing)
    }

    /// Where we have a station, and what is known of it.
    pub(crate) fn configs(&self) -> Arc<[(Zone, Arc<NetworkConfig>)]> {
        let of = |held: &Held| (held.station.segment.zone(), Arc::clone(&held.current.config));
        self.held.iter().map(of).collect()
    }

    pub(crate) fn current(&self, segment: Zone) -> Option<&Current> {
        let held = self.held.iter().find(|held| held.station.segment.zone() == segment)?;
        Some(&held.current)
    }

    /// When there is something to do: conntrack to be looked at while anything is tracked, a SYN to be
    /// answered late, a presence to speak.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let busy = self.held.iter().any(|held| {
            let nat = held.current.crossing.nat();
            !nat.conntrack().is_empty() || nat.fragment_octets() > 0
        });
        let due = self.held.iter().filter_map(|held| held.current.crossing.nat().next_due());
        let presences = self.held.iter().filter_map(|held| held.station.poll_timeout());
        due.chain(presences).chain(busy.then_some(self.next_expire)).min()
    }
}
