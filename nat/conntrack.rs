//! The conntrack table: every tracked flow, found by either of its tuples.
//!
//! Shared by all workers. A look-up takes the read side of one shard and copies out; only opening and
//! closing a flow takes a write side. Bounded, in all and for each account. Whoever wants room where
//! there is none pays for it: its own oldest flow that is not assured goes, else the
//! new one is refused. An assured flow is never dropped early, another account's never at all (RFC 6888
//! REQ-11). No clock: the caller says what time it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use smoltcp::time::Instant;

use crate::entry::Entry;
use crate::index::Index;
use crate::roll::Rolls;
use crate::state::Direction;
use crate::timeouts::{Profile, Timeouts};
use crate::tuple::Tuple;
use crate::zone::{Account, Owner, Zone};

/// Flows dropped early for one newcomer before it is refused: one is enough, unless other workers take
/// the room at the same time.
const EARLY_DROPS: usize = 4;

/// Why a flow could not be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The table holds as many flows as it may, and none of the account's can make room.
    Full,
    /// The account holds as many flows as it may, and all of them are assured.
    Quota,
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
    index: Index,
    rolls: Rolls,
    len: AtomicUsize,
    early_drops: AtomicUsize,
    /// The shard the next [`expire`](Self::expire) begins with.
    next_swept: AtomicUsize,
    capacity: usize,
    quota: usize,
    timeouts: Timeouts,
}

impl Conntrack {
    /// An empty table for at most `capacity` flows, all of which one account may have.
    #[must_use]
    pub fn new(capacity: usize, profile: Profile) -> Self {
        Self {
            index: Index::new(capacity),
            rolls: Rolls::default(),
            len: AtomicUsize::new(0),
            early_drops: AtomicUsize::new(0),
            next_swept: AtomicUsize::new(0),
            capacity,
            quota: capacity,
            timeouts: *Timeouts::of(profile),
        }
    }

    /// The same table with at most `quota` flows for each account.
    #[must_use]
    pub fn with_quota(self, quota: usize) -> Self {
        Self { quota, ..self }
    }

    /// The same table with other idle times than its profile's.
    #[must_use]
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Enters a flow, both tuples or none, and counts it against `account`.
    ///
    /// At the account's quota, or when the table is full, the account's own oldest flow that is not
    /// assured makes room.
    ///
    /// # Errors
    ///
    /// There is no room, or a tuple is taken; the flow is not entered then.
    pub fn insert(&self, account: Account, entry: Entry) -> Result<Arc<Entry>, InsertError> {
        let entry = entry.charged_to(account);
        self.make_room(&entry)?;
        let entry = Arc::new(entry);
        entry.track();
        if !self.claim(&entry) {
            self.uncount(&entry);
            return Err(InsertError::Clash);
        }
        if entry.is_tracked() {
            self.rolls.note(&entry);
        } else {
            // Somebody found it by its first name and removed it before it had the second.
            self.index.release(&entry, Direction::Reply);
        }
        Ok(entry)
    }

    /// Counts one more flow in all and of its account.
    fn make_room(&self, entry: &Entry) -> Result<(), InsertError> {
        let mut refusal = InsertError::Quota;
        for _ in 0..EARLY_DROPS {
            if self.rolls.enter(entry, self.quota) {
                if self.len.fetch_add(1, Relaxed) < self.capacity {
                    return Ok(());
                }
                self.len.fetch_sub(1, Relaxed);
                self.rolls.leave(entry);
                refusal = InsertError::Full;
            }
            let oldest = self.rolls.oldest_unassured(entry.account()).ok_or(refusal)?;
            self.remove(&oldest);
            self.early_drops.fetch_add(1, Relaxed);
        }
        Err(refusal)
    }

    fn claim(&self, entry: &Arc<Entry>) -> bool {
        if !self.index.claim(entry, Direction::Original) {
            return false;
        }
        // A flow whose answers look like its questions (one that speaks to itself) has one name.
        if entry.named(Direction::Original) == entry.named(Direction::Reply) {
            return true;
        }
        let claimed = self.index.claim(entry, Direction::Reply);
        if !claimed {
            self.index.release(entry, Direction::Original);
        }
        claimed
    }

    /// What flow `tuple` names, copied out.
    pub fn lookup(&self, zone: Zone, tuple: Tuple) -> Option<Found> {
        self.index.find(zone, tuple, |direction, entry| Found {
            direction,
            from_inside: direction == entry.from_inside(),
            owner: entry.owner(),
        })
    }

    /// The entry itself, for an owner that keeps it beside its own state.
    pub fn entry(&self, zone: Zone, tuple: Tuple) -> Option<Arc<Entry>> {
        self.index.find(zone, tuple, |_, entry| Arc::clone(entry))
    }

    /// The entry a packet with that tuple belongs to, and which way the packet travels. A flow of no
    /// owner that has been silent for too long is forgotten instead.
    pub fn find(&self, zone: Zone, tuple: Tuple, now: Instant) -> Option<(Direction, Arc<Entry>)> {
        let found = self.index.find(zone, tuple, |direction, entry| (direction, Arc::clone(entry)));
        let (direction, entry) = found?;
        if entry.owner() == Owner::NONE && entry.is_over(&self.timeouts, now) {
            self.remove(&entry);
            return None;
        }
        Some((direction, entry))
    }

    /// Forgets a flow, both directions. Forgetting one that is not there does nothing.
    pub fn remove(&self, entry: &Entry) {
        if self.uncount(entry) {
            self.index.release(entry, Direction::Original);
            self.index.release(entry, Direction::Reply);
        }
    }

    /// Counts one flow less, in all and of its account, for the one caller that ends it.
    fn uncount(&self, entry: &Entry) -> bool {
        let ended = entry.end();
        if ended {
            self.len.fetch_sub(1, Relaxed);
            self.rolls.leave(entry);
        }
        ended
    }

    /// Every flow of `zone` (of all, if `None`), for listings; what changes meanwhile may be missed.
    /// No lock is held longer than [`list_from`](Self::list_from) holds it.
    pub fn list(&self, zone: Option<Zone>) -> Vec<Arc<Entry>> {
        (0..self.index.shards()).flat_map(|shard| self.of_shard(shard, zone)).collect()
    }

    /// Some flows of `zone` (of all, if `None`), some hundreds at most, and where to go on: begin at 0,
    /// end at `None`.
    pub fn list_from(&self, zone: Option<Zone>, place: usize) -> (Vec<Arc<Entry>>, Option<usize>) {
        let next = place + 1;
        match place < self.index.shards() {
            true => (self.of_shard(place, zone), Some(next).filter(|_| next < self.index.shards())),
            false => (Vec::new(), None),
        }
    }

    fn of_shard(&self, shard: usize, zone: Option<Zone>) -> Vec<Arc<Entry>> {
        self.index.of_shard(shard, |entry| {
            zone.is_none_or(|zone| entry.zone == zone || entry.reply_zone() == zone)
        })
    }

    /// Looks at the next part of the table and forgets flows of no owner that have been silent beyond
    /// their idle time; returns how many. Call it every tenth of a second: the whole table is then
    /// looked at every ten seconds.
    pub fn expire(&self, now: Instant) -> usize {
        let shards = self.index.shards();
        let part = shards.div_ceil(SWEEPS);
        let first = self.next_swept.fetch_add(part, Relaxed);
        let over = (first..first + part).flat_map(|shard| {
            self.index.of_shard(shard % shards, |entry| {
                entry.owner() == Owner::NONE && entry.is_over(&self.timeouts, now)
            })
        });
        over.inspect(|entry| self.remove(entry)).count()
    }

    /// The idle times in force.
    pub const fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Whoever wants more than to look, or anything of the account, waits until this is dropped.
    #[cfg(test)]
    pub(crate) fn hold(&self, account: Account) -> impl Sized + '_ {
        (self.index.hold(), self.rolls.hold(account))
    }

    /// Tracked flows.
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Tracked flows of one account.
    pub fn len_of(&self, account: Account) -> usize {
        self.rolls.held(account)
    }

    /// Whether any flow of the account is an owner's.
    pub fn any_owned_of(&self, account: Account) -> bool {
        self.rolls.any_owned(account)
    }

    /// Flows dropped early, ever.
    pub fn early_drops(&self) -> usize {
        self.early_drops.load(Relaxed)
    }

    /// Whether nothing is tracked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most flows it takes.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// The most flows one account may have.
    pub const fn quota(&self) -> usize {
        self.quota
    }
}

/// Calls of [`Conntrack::expire`] that see the whole table.
const SWEEPS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::{Protocol, TransportAddr};
    use smoltcp::time::Duration;
    use std::net::Ipv4Addr;

    const ZONE: Zone = Zone(1);
    const ALICE: Account = Account(1);
    const BOB: Account = Account(2);
    const NOW: Instant = Instant::ZERO;

    fn addr(last: u8, port: u16) -> TransportAddr {
        TransportAddr::new(Ipv4Addr::new(192, 0, 2, last).into(), port)
    }

    fn flow(protocol: Protocol, port: u16) -> Entry {
        let original = Tuple::new(protocol, addr(1, port), addr(2, 80));
        let reply = Tuple::new(protocol, addr(2, 80), addr(9, port));
        Entry::new(ZONE, Direction::Original, original, reply, Owner::NONE, NOW)
    }

    #[test]
    fn a_flow_is_found_both_ways_and_gone_both_ways() {
        let table = Conntrack::new(8, Profile::Rfc);
        let entry = table.insert(ALICE, flow(Protocol::Udp, 1000)).unwrap();
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
        table.insert(ALICE, flow(Protocol::Udp, 1000)).unwrap();
        let mut second = flow(Protocol::Udp, 1000);
        second.original.src = addr(3, 1000);
        assert_eq!(table.insert(ALICE, second).unwrap_err(), InsertError::Clash);
        assert_eq!(table.len(), 1);
        let untouched = Tuple::new(Protocol::Udp, addr(3, 1000), addr(2, 80));
        assert_eq!(table.lookup(ZONE, untouched), None);
    }

    /// Every shard once.
    fn expire(table: &Conntrack, now: Instant) -> usize {
        (0..SWEEPS).map(|_| table.expire(now)).sum()
    }

    fn answered(table: &Conntrack, account: Account, port: u16) -> Arc<Entry> {
        let entry = table.insert(account, flow(Protocol::Udp, port)).unwrap();
        entry.note(Direction::Reply, 1, 100, NOW);
        entry
    }

    #[test]
    fn at_its_quota_an_account_loses_its_own_oldest_flow_that_is_not_assured() {
        let table = Conntrack::new(100, Profile::Rfc).with_quota(3);
        let kept = answered(&table, ALICE, 1);
        let bobs = table.insert(BOB, flow(Protocol::Udp, 2)).unwrap();
        let oldest = table.insert(ALICE, flow(Protocol::Udp, 3)).unwrap();
        let younger = table.insert(ALICE, flow(Protocol::Udp, 4)).unwrap();
        table.insert(ALICE, flow(Protocol::Udp, 5)).unwrap();
        assert!(kept.is_tracked() && bobs.is_tracked() && younger.is_tracked());
        assert!(!oldest.is_tracked());
        assert_eq!(table.lookup(ZONE, oldest.reply), None);
        assert_eq!((table.len(), table.len_of(ALICE), table.early_drops()), (4, 3, 1));
    }

    #[test]
    fn assured_flows_are_never_dropped_early() {
        let table = Conntrack::new(100, Profile::Rfc).with_quota(2);
        let (first, second) = (answered(&table, ALICE, 1), answered(&table, ALICE, 2));
        let refused = table.insert(ALICE, flow(Protocol::Udp, 3)).unwrap_err();
        assert_eq!(refused, InsertError::Quota);
        assert!(first.is_tracked() && second.is_tracked());
        table.remove(&first);
        table.insert(ALICE, flow(Protocol::Udp, 3)).unwrap();
    }

    #[test]
    fn a_full_table_takes_nothing_from_another_account() {
        let table = Conntrack::new(2, Profile::Rfc);
        let bobs = table.insert(BOB, flow(Protocol::Udp, 1)).unwrap();
        let own = table.insert(ALICE, flow(Protocol::Udp, 2)).unwrap();
        let next = table.insert(ALICE, flow(Protocol::Udp, 3)).unwrap();
        assert!(bobs.is_tracked() && !own.is_tracked());
        next.note(Direction::Reply, 1, 100, NOW);
        let refused = table.insert(ALICE, flow(Protocol::Udp, 4)).unwrap_err();
        assert_eq!(refused, InsertError::Full);
        assert!(bobs.is_tracked() && next.is_tracked());
        table.remove(&next);
        table.remove(&bobs);
        assert_eq!((table.len(), table.len_of(ALICE), table.len_of(BOB)), (0, 0, 0));
    }

    #[test]
    fn a_clash_costs_nobody_a_place() {
        let table = Conntrack::new(8, Profile::Rfc).with_quota(2);
        table.insert(ALICE, flow(Protocol::Udp, 1)).unwrap();
        for _ in 0..3 {
            let refused = table.insert(BOB, flow(Protocol::Udp, 1)).unwrap_err();
            assert_eq!(refused, InsertError::Clash);
        }
        assert_eq!((table.len(), table.len_of(BOB)), (1, 0));
    }

    #[test]
    fn a_listing_in_steps_sees_each_flow_once() {
        let table = Conntrack::new(4000, Profile::Rfc);
        for port in 0..1000 {
            table.insert(ALICE, flow(Protocol::Udp, port)).unwrap();
        }
        let mut seen = Vec::new();
        let mut place = Some(0);
        while let Some(at) = place {
            let (some, next) = table.list_from(Some(ZONE), at);
            seen.extend(some.iter().map(|entry| entry.original.src.port));
            place = next;
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
        assert_eq!(table.list_from(Some(Zone(9)), 0).0.len(), 0);
    }

    #[test]
    fn udp_lives_two_minutes_unanswered_and_five_answered() {
        let table = Conntrack::new(8, Profile::Rfc);
        let entry = table.insert(ALICE, flow(Protocol::Udp, 1)).unwrap();
        assert_eq!(expire(&table, NOW + Duration::from_secs(119)), 0);
        entry.note(Direction::Reply, 1, 100, NOW + Duration::from_secs(119));
        assert_eq!(expire(&table, NOW + Duration::from_secs(119 + 299)), 0);
        assert_eq!(expire(&table, NOW + Duration::from_secs(119 + 300)), 1);
        assert!(table.is_empty());
    }

    #[test]
    fn an_owner_judges_the_silence_of_its_own_flows() {
        let table = Conntrack::new(8, Profile::Rfc);
        let original = flow(Protocol::Udp, 1).original;
        let owner = Owner(7);
        let owned = Entry::new(ZONE, Direction::Original, original, original.inverse(), owner, NOW);
        table.insert(ALICE, owned).unwrap();
        assert_eq!(expire(&table, NOW + Duration::from_secs(1_000_000)), 0);
    }
}
