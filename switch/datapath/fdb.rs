//! The forwarding database: which station is behind which port.
//!
//! Read 802.1Q §8.8 and `net/bridge/br_fdb.c` first. One table is shared by all workers of a network;
//! each worker has a [`FdbCache`] in front of it, which answers for the stations it has just seen
//! without touching a lock. A cached answer counts only while the table's generation stands: any move,
//! removal or flush starts a new one.

use std::sync::atomic::{
    AtomicI64, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed,
};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use smoltcp::time::{Duration, Instant};

use crate::port::{MacAddr, PortId};

/// How long a silent station is remembered: 802.1D-2004 table 7-5 and Linux (`BR_DEFAULT_AGEING_TIME`)
/// agree on 300 s.
pub const AGEING_TIME: Duration = Duration::from_secs(300);

/// Stations of one network, and of one port. OVS has the same bound per bridge; Linux has none.
pub const CAPACITY: usize = 8192;

/// The share of [`CAPACITY`] one port may fill.
pub const CAPACITY_PER_PORT: usize = CAPACITY / 8;

/// How often a worker tells the shared table that a cached station is still heard.
const REFRESH: Duration = Duration::from_secs(1);

/// What came of looking at a frame's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// A station not known before.
    New,
    /// Known, and where it was.
    Refreshed,
    /// Known at another port; it is here now.
    Moved,
    /// No place for it. Frames to it are flooded, as to any unknown station.
    TableFull,
}

#[derive(Debug)]
struct Station {
    port: AtomicU16,
    last_seen: AtomicI64,
}

/// The shared table.
///
/// A full table keeps what it has, and no port may fill more than its share, so a container inventing
/// addresses crowds out nobody: its own surplus stations are simply unknown.
#[derive(Debug)]
pub struct Fdb {
    stations: DashMap<MacAddr, Station>,
    per_port: DashMap<PortId, usize>,
    len: AtomicUsize,
    generation: AtomicU32,
    moves: AtomicU64,
    capacity: usize,
    capacity_per_port: usize,
}

impl Default for Fdb {
    fn default() -> Self {
        Self::new(CAPACITY, CAPACITY_PER_PORT)
    }
}

impl Fdb {
    /// An empty table with bounds of its own.
    #[must_use]
    pub fn new(capacity: usize, capacity_per_port: usize) -> Self {
        Self {
            stations: DashMap::new(),
            per_port: DashMap::new(),
            len: AtomicUsize::new(0),
            generation: AtomicU32::new(0),
            moves: AtomicU64::new(0),
            capacity,
            capacity_per_port,
        }
    }

    /// Notes that `station` is behind `port`.
    pub fn learn(&self, station: MacAddr, port: PortId, now: Instant) -> Learned {
        if let Some(known) = self.stations.get(&station) {
            known.last_seen.store(now.total_micros(), Relaxed);
            let before = PortId(known.port.load(Relaxed));
            if before == port {
                return Learned::Refreshed;
            }
            drop(known);
            return self.move_to(station, port);
        }
        if !self.reserve(port) {
            return Learned::TableFull;
        }
        match self.stations.entry(station) {
            Slot::Vacant(slot) => {
                slot.insert(Station {
                    port: AtomicU16::new(port.0),
                    last_seen: AtomicI64::new(now.total_micros()),
                });
                Learned::New
            }
            Slot::Occupied(_) => {
                // Another worker learned it in between; the next frame settles a difference.
                self.len.fetch_sub(1, Relaxed);
                self.release(port);
                Learned::Refreshed
            }
        }
    }

    /// A station is heard at another port than before. If that port has its share already, the station
    /// is forgotten: nobody gathers the stations of others beyond that.
    fn move_to(&self, station: MacAddr, port: PortId) -> Learned {
        let mut held = self.per_port.entry(port).or_default();
        let fits = *held < self.capacity_per_port;
        if fits {
            *held += 1;
        }
        drop(held);
        self.generation.fetch_add(1, Relaxed);
        if !fits {
            if let Some((_, gone)) = self.stations.remove(&station) {
                self.len.fetch_sub(1, Relaxed);
                self.release(PortId(gone.port.load(Relaxed)));
            }
            return Learned::TableFull;
        }
        self.moves.fetch_add(1, Relaxed);
        match self.stations.get(&station) {
            Some(known) => self.release(PortId(known.port.swap(port.0, Relaxed))),
            // Another worker has forgotten it in between; the next frame learns it anew.
            None => self.release(port),
        }
        Learned::Moved
    }

    fn reserve(&self, port: PortId) -> bool {
        let mut held = self.per_port.entry(port).or_default();
        if *held >= self.capacity_per_port {
            return false;
        }
        if self.len.fetch_add(1, Relaxed) >= self.capacity {
            self.len.fetch_sub(1, Relaxed);
            return false;
        }
        *held += 1;
        true
    }

    fn release(&self, port: PortId) {
        if let Some(mut held) = self.per_port.get_mut(&port) {
            *held = held.saturating_sub(1);
        }
    }

    /// The port behind `station` and when that ages out, copied out so that nothing stays locked.
    pub fn lookup(&self, station: MacAddr, now: Instant) -> Option<(PortId, Instant)> {
        let known = self.stations.get(&station)?;
        let expires = Instant::from_micros(known.last_seen.load(Relaxed)) + AGEING_TIME;
        (now < expires).then(|| (PortId(known.port.load(Relaxed)), expires))
    }

    /// Forgets every station silent for [`AGEING_TIME`]. Early and repeated calls do nothing.
    pub fn handle_timeout(&self, now: Instant) {
        let before = (now - AGEING_TIME).total_micros();
        self.forget(|_, station| station.last_seen.load(Relaxed) <= before);
    }

    /// Forgets what is behind `port`, which is going away.
    pub fn flush_port(&self, port: PortId) {
        self.forget(|_, station| station.port.load(Relaxed) == port.0);
        self.per_port.remove(&port);
    }

    fn forget(&self, over: impl Fn(&MacAddr, &Station) -> bool) {
        let mut released = Vec::new();
        self.stations.retain(|mac, station| {
            let keep = !over(mac, station);
            if !keep {
                released.push(PortId(station.port.load(Relaxed)));
            }
            keep
        });
        if !released.is_empty() {
            self.len.fetch_sub(released.len(), Relaxed);
            released.into_iter().for_each(|port| self.release(port));
            self.generation.fetch_add(1, Relaxed);
        }
    }

    /// Every station with its port and when it was last heard.
    pub fn list(&self) -> Vec<(MacAddr, PortId, Instant)> {
        self.stations
            .iter()
            .map(|station| {
                let port = PortId(station.port.load(Relaxed));
                (*station.key(), port, Instant::from_micros(station.last_seen.load(Relaxed)))
            })
            .collect()
    }

    /// Known stations.
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Whether no station is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a station was found at another port than before.
    pub fn moves(&self) -> u64 {
        self.moves.load(Relaxed)
    }
}

#[derive(Clone, Copy, Debug)]
struct Cached {
    station: MacAddr,
    port: PortId,
    generation: u32,
    /// When this worker last told the shared table; `Instant::ZERO - REFRESH` if it never did.
    told: Instant,
    expires: Instant,
}

const SLOTS: usize = 256;

/// One worker's memory of the stations it has just seen: direct-mapped, private, lock-free.
#[derive(Debug)]
pub struct FdbCache {
    slots: Box<[Option<Cached>; SLOTS]>,
}

impl Default for FdbCache {
    fn default() -> Self {
        Self { slots: Box::new([None; SLOTS]) }
    }
}

impl FdbCache {
    /// [`Fdb::learn`], told to the shared table once a second for a station that stays where it is.
    pub fn learn(&mut self, fdb: &Fdb, station: MacAddr, port: PortId, now: Instant) -> Learned {
        let generation = fdb.generation.load(Relaxed);
        let slot = &mut self.slots[Self::slot(station)];
        if let Some(cached) = slot
            && cached.station == station
            && cached.port == port
            && cached.generation == generation
            && now < cached.told + REFRESH
        {
            return Learned::Refreshed;
        }
        let outcome = fdb.learn(station, port, now);
        if outcome != Learned::TableFull {
            let generation = fdb.generation.load(Relaxed);
            let expires = now + AGEING_TIME;
            *slot = Some(Cached { station, port, generation, told: now, expires });
        }
        outcome
    }

    /// [`Fdb::lookup`], answered from here if it can be.
    pub fn lookup(&mut self, fdb: &Fdb, station: MacAddr, now: Instant) -> Option<PortId> {
        let generation = fdb.generation.load(Relaxed);
        let slot = &mut self.slots[Self::slot(station)];
        if let Some(cached) = slot
            && cached.station == station
            && cached.generation == generation
            && now < cached.expires
        {
            return Some(cached.port);
        }
        let (port, expires) = fdb.lookup(station, now)?;
        let told = Instant::from_micros(i64::MIN / 2);
        *slot = Some(Cached { station, port, generation, told, expires });
        Some(port)
    }

    fn slot(station: MacAddr) -> usize {
        // Fibonacci hashing of the address; a chosen collision costs its sender's peers a shared
        // look-up, no more.
        // The two parts are read as they were written, or the processor waits for them to meet.
        let [a, b, c, d, e, f] = station.0;
        let (front, back) = (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]));
        let word = u64::from(front) | u64::from(back) << 32;
        (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize % SLOTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const P1: PortId = PortId(1);
    const P2: PortId = PortId(2);
    const T0: Instant = Instant::ZERO;

    fn mac(n: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, n])
    }

    #[test]
    fn a_station_ages_out_after_five_silent_minutes() {
        let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
        assert_eq!(cache.learn(&fdb, mac(1), P1, T0), Learned::New);
        let almost = T0 + AGEING_TIME - Duration::from_micros(1);
        assert_eq!(cache.lookup(&fdb, mac(1), almost), Some(P1));
        assert_eq!(cache.lookup(&fdb, mac(1), T0 + AGEING_TIME), None);
        fdb.handle_timeout(T0 + AGEING_TIME);
        assert!(fdb.is_empty());
    }

    #[test]
    fn a_move_is_seen_at_once_through_another_workers_cache() {
        let fdb = Fdb::default();
        let (mut one, mut two) = (FdbCache::default(), FdbCache::default());
        one.learn(&fdb, mac(1), P1, T0);
        assert_eq!(two.lookup(&fdb, mac(1), T0), Some(P1));
        assert_eq!(one.learn(&fdb, mac(1), P2, T0), Learned::Moved);
        assert_eq!(two.lookup(&fdb, mac(1), T0), Some(P2));
        assert_eq!(fdb.moves(), 1);
    }

    #[test]
    fn a_port_inventing_stations_fills_only_its_share() {
        let fdb = Fdb::new(8, 4);
        for n in 0..8 {
            let expected = if n < 4 { Learned::New } else { Learned::TableFull };
            assert_eq!(fdb.learn(mac(n), P1, T0), expected);
        }
        assert_eq!(fdb.learn(mac(100), P2, T0), Learned::New);
        assert_eq!(fdb.learn(mac(100), P1, T0), Learned::TableFull, "nor by a move");
        assert_eq!(fdb.lookup(mac(100), T0), None);
        assert_eq!(fdb.learn(mac(100), P2, T0), Learned::New);
        fdb.flush_port(P1);
        assert_eq!(fdb.len(), 1);
        assert_eq!(fdb.learn(mac(0), P1, T0), Learned::New);
    }

    proptest! {
        /// Whatever happens in whatever order, a cache never answers otherwise than a plain map would,
        /// and the bound holds.
        #[test]
        fn the_cached_table_behaves_as_a_map(
            events in prop::collection::vec((0u8..12, 1u16..4, 0u64..200, 0u8..8), 1..300)
        ) {
            let fdb = Fdb::new(8, 8);
            let mut cache = FdbCache::default();
            let mut model: HashMap<MacAddr, (PortId, Instant)> = HashMap::new();
            let mut now = T0;
            for (station, port, seconds, kind) in events {
                now += Duration::from_secs(seconds);
                let (station, port) = (mac(station), PortId(port));
                fdb.handle_timeout(now);
                model.retain(|_, (_, seen)| now < *seen + AGEING_TIME);
                match kind {
                    0 => {
                        fdb.flush_port(port);
                        model.retain(|_, (at, _)| *at != port);
                    }
                    1..=4 => {
                        let outcome = cache.learn(&fdb, station, port, now);
                        if outcome != Learned::TableFull {
                            model.insert(station, (port, now));
                        }
                    }
                    _ => {
                        // The table may have been told up to a second ago, never later than the model.
                        let expected = model.get(&station).map(|(port, _)| *port);
                        prop_assert_eq!(cache.lookup(&fdb, station, now), expected);
                    }
                }
                prop_assert!(fdb.len() <= 8);
                prop_assert_eq!(fdb.len(), model.len());
            }
        }
    }
}
