//! The conntrack table: every tracked flow, found by either of its tuples.
//!
//! Shared by all workers. A look-up takes the read side of one shard and copies out; only opening and
//! closing a flow takes a write side. Bounded: a full table refuses the new flow and keeps every old
//! one, so whoever opens too many pays for it (RFC 6888 REQ-11). No clock: the caller says what time
//! it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use smoltcp::time::Instant;

use crate::entry::{Entry, Owner, Zone};
use crate::state::Direction;
use crate::timeouts::{Profile, Timeouts};
use crate::tuple::Tuple;

/// Why a flow could not be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The table holds as many flows as it may.
    Full,
    /// One of the tuples already names a flow: two flows must differ in both (`nf_nat_used_tuple`).
    Clash,
}

/// What a packet's tuple was found to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which of the flow's tuples matched.
    pub direction: Direction,
    /// Whether a packet with this tuple comes from the container.
    pub from_inside: bool,
    /// Who handles the flow.
    pub owner: Owner,
}

/// All tracked flows. See the module's text for who pays when it is full.
#[derive(Debug)]
pub struct Conntrack {
    flows: DashMap<(Zone, Tuple), (Direction, Arc<Entry>)>,
    len: AtomicUsize,
    capacity: usize,
    timeouts: &'static Timeouts,
}

impl Conntrack {
    /// An empty table for at most `capacity` flows.
    #[must_use]
    pub fn new(capacity: usize, profile: Profile) -> Self {
        Self {
            flows: DashMap::new(),
            len: AtomicUsize::new(0),
            capacity,
            timeouts: Timeouts::of(profile),
        }
    }

    /// Enters a flow, both tuples or none.
    ///
    /// # Errors
    ///
    /// The table is full, or a tuple is taken; nothing is changed then.
    pub fn insert(&self, entry: Entry) -> Result<Arc<Entry>, InsertError> {
        if self.len.fetch_add(1, Relaxed) >= self.capacity {
            self.len.fetch_sub(1, Relaxed);
            return Err(InsertError::Full);
        }
        let entry = Arc::new(entry);
        let original = (entry.zone, entry.original);
        let reply = (entry.zone, entry.reply);
        if !self.claim(original, Direction::Original, &entry) {
            self.len.fetch_sub(1, Relaxed);
            return Err(InsertError::Clash);
        }
        if original != reply && !self.claim(reply, Direction::Reply, &entry) {
            self.flows.remove(&original);
            self.len.fetch_sub(1, Relaxed);
            return Err(InsertError::Clash);
        }
        Ok(entry)
    }

    fn claim(&self, tuple: (Zone, Tuple), direction: Direction, entry: &Arc<Entry>) -> bool {
        match self.flows.entry(tuple) {
            Slot::Occupied(_) => false,
            Slot::Vacant(slot) => {
                slot.insert((direction, Arc::clone(entry)));
                true
            }
        }
    }

    /// What flow `tuple` names, copied out.
    pub fn lookup(&self, zone: Zone, tuple: Tuple) -> Option<Found> {
        self.flows.get(&(zone, tuple)).map(|flow| {
            let (direction, entry) = flow.value();
            Found {
                direction: *direction,
                from_inside: *direction == entry.from_inside,
                owner: entry.owner(),
            }
        })
    }

    /// The entry itself, for an owner that keeps it beside its own state.
    pub fn entry(&self, zone: Zone, tuple: Tuple) -> Option<Arc<Entry>> {
        self.flows.get(&(zone, tuple)).map(|flow| Arc::clone(&flow.value().1))
    }

    /// Forgets a flow, both directions. Forgetting one that is not there does nothing.
    pub fn remove(&self, entry: &Entry) {
        let original = (entry.zone, entry.original);
        let same = |_: &(Zone, Tuple), held: &(Direction, Arc<Entry>)| {
            std::ptr::eq(Arc::as_ptr(&held.1), entry)
        };
        if self.flows.remove_if(&original, same).is_some() {
            self.flows.remove_if(&(entry.zone, entry.reply), same);
            self.len.fetch_sub(1, Relaxed);
        }
    }

    /// Every flow of `zone` (of all, if `None`), for listings; what changes meanwhile may be missed.
    pub fn list(&self, zone: Option<Zone>) -> Vec<Arc<Entry>> {
        self.flows
            .iter()
            .filter(|flow| flow.value().0 == Direction::Original)
            .filter(|flow| zone.is_none_or(|zone| flow.key().0 == zone))
            .map(|flow| Arc::clone(&flow.value().1))
            .collect()
    }

    /// Forgets flows silent beyond their idle time, except those whose owner is the judge of that
    /// (`owned` says so), and returns how many.
    pub fn expire(&self, now: Instant, owned: impl Fn(Owner) -> bool) -> usize {
        let over: Vec<_> = self
            .list(None)
            .into_iter()
            .filter(|entry| !owned(entry.owner()) && entry.expires_at(self.timeouts) <= now)
            .collect();
        over.iter().for_each(|entry| self.remove(entry));
        over.len()
    }

    /// The idle times in force.
    pub const fn timeouts(&self) -> &'static Timeouts {
        self.timeouts
    }

    /// Tracked flows.
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Whether nothing is tracked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most flows it takes.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::{Protocol, TransportAddr};
    use smoltcp::time::Duration;
    use std::net::Ipv4Addr;

    const ZONE: Zone = Zone(1);
    const NOW: Instant = Instant::ZERO;

    fn addr(last: u8, port: u16) -> TransportAddr {
        TransportAddr::new(Ipv4Addr::new(192, 0, 2, last).into(), port)
    }

    fn flow(protocol: Protocol, port: u16) -> Entry {
        let original = Tuple::new(protocol, addr(1, port), addr(2, 80));
        let reply = Tuple::new(protocol, addr(2, 80), addr(9, port));
        Entry::new(ZONE, Direction::Original, original, reply, Owner(7), NOW)
    }

    #[test]
    fn a_flow_is_found_both_ways_and_gone_both_ways() {
        let table = Conntrack::new(8, Profile::Rfc);
        let entry = table.insert(flow(Protocol::Udp, 1000)).unwrap();
        let there = table.lookup(ZONE, entry.original).unwrap();
        let back = table.lookup(ZONE, entry.reply).unwrap();
        assert_eq!((there.direction, back.direction), (Direction::Original, Direction::Reply));
        assert!(there.from_inside && !back.from_inside);
        assert_eq!(table.lookup(Zone(2), entry.original), None, "zones are apart");
        table.remove(&entry);
        table.remove(&entry);
        assert_eq!(table.lookup(ZONE, entry.reply), None);
        assert!(table.is_empty());
    }

    #[test]
    fn a_taken_tuple_refuses_the_newcomer_whole() {
        let table = Conntrack::new(8, Profile::Rfc);
        table.insert(flow(Protocol::Udp, 1000)).unwrap();
        let mut second = flow(Protocol::Udp, 1000);
        second.original.src = addr(3, 1000);
        assert_eq!(table.insert(second).unwrap_err(), InsertError::Clash);
        assert_eq!(table.len(), 1);
        let untouched = Tuple::new(Protocol::Udp, addr(3, 1000), addr(2, 80));
        assert_eq!(table.lookup(ZONE, untouched), None);
    }

    #[test]
    fn a_full_table_keeps_what_it_has() {
        let table = Conntrack::new(2, Profile::Rfc);
        let first = table.insert(flow(Protocol::Udp, 1)).unwrap();
        table.insert(flow(Protocol::Udp, 2)).unwrap();
        assert_eq!(table.insert(flow(Protocol::Udp, 3)).unwrap_err(), InsertError::Full);
        assert!(table.lookup(ZONE, first.original).is_some());
        table.remove(&first);
        table.insert(flow(Protocol::Udp, 3)).unwrap();
    }

    #[test]
    fn udp_lives_two_minutes_unanswered_and_five_answered() {
        let table = Conntrack::new(8, Profile::Rfc);
        let entry = table.insert(flow(Protocol::Udp, 1)).unwrap();
        assert_eq!(table.expire(NOW + Duration::from_secs(119), |_| false), 0);
        entry.note(Direction::Reply, 1, 100, NOW + Duration::from_secs(119));
        assert_eq!(table.expire(NOW + Duration::from_secs(119 + 299), |_| false), 0);
        assert_eq!(table.expire(NOW + Duration::from_secs(119 + 300), |_| true), 0);
        assert_eq!(table.expire(NOW + Duration::from_secs(119 + 300), |_| false), 1);
        assert!(table.is_empty());
    }
}
