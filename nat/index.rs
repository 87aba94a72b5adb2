//! Finding an entry by either of its tuples.
//!
//! The keys are not copied out of the entries: a slot is one pointer, and the tuple is read where the
//! entry has it. Many small shards, so that a shard's lock is held briefly even while its table
//! grows, and so that a walk over all flows can stop after any shard and go on later. A look-up takes
//! the read side of one shard's lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hashbrown::HashTable;

use crate::entry::Entry;
use crate::state::Direction;
use crate::tuple::Tuple;
use crate::zone::Zone;

/// Entries of a shard when the table holds its capacity. Tables of 512 slots are filled to seven
/// eighths at most, which is 448: few shards outgrow that.
const PER_SHARD: usize = 400;

/// Every tuple's entry.
#[derive(Debug)]
pub(crate) struct Index {
    shards: Box<[RwLock<Shard>]>,
    /// Keyed with randomness of the process, so that nobody can choose tuples that collide.
    hasher: RandomState,
}

/// The entries whose original tuple falls here, and those whose reply tuple does.
#[derive(Debug, Default)]
struct Shard {
    originals: HashTable<Arc<Entry>>,
    replies: HashTable<Arc<Entry>>,
}

impl Shard {
    fn find(&self, hash: u64, zone: Zone, tuple: Tuple) -> Option<(Direction, &Arc<Entry>)> {
        let original = |entry: &Arc<Entry>| entry.original == tuple && entry.zone == zone;
        let reply = |entry: &Arc<Entry>| entry.reply == tuple && entry.reply_zone() == zone;
        let found = self.originals.find(hash, original);
        found
            .map(|entry| (Direction::Original, entry))
            .or_else(|| self.replies.find(hash, reply).map(|entry| (Direction::Reply, entry)))
    }

    fn side(&mut self, direction: Direction) -> &mut HashTable<Arc<Entry>> {
        match direction {
            Direction::Original => &mut self.originals,
            Direction::Reply => &mut self.replies,
        }
    }
}

impl Index {
    /// An empty index for some `capacity` entries.
    pub(crate) fn new(capacity: usize) -> Self {
        let shards = (capacity / PER_SHARD).clamp(1, 1 << 16);
        Self {
            shards: (0..shards).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Calls `then` with the entry `tuple` names and which of its tuples that is. `then` runs under the
    /// read side of a shard's lock, so it must not come back here.
    pub(crate) fn find<T>(
        &self,
        zone: Zone,
        tuple: Tuple,
        then: impl FnOnce(Direction, &Arc<Entry>) -> T,
    ) -> Option<T> {
        let hash = self.hash(zone, tuple);
        let shard = self.read(self.shard_of(hash));
        shard.find(hash, zone, tuple).map(|(direction, entry)| then(direction, entry))
    }

    /// Makes one of the entry's tuples name it; `false` if the tuple names a flow already.
    pub(crate) fn claim(&self, entry: &Arc<Entry>, direction: Direction) -> bool {
        let (zone, tuple) = entry.named(direction);
        let hash = self.hash(zone, tuple);
        let mut shard = self.write(self.shard_of(hash));
        if shard.find(hash, zone, tuple).is_some() {
            return false;
        }
        shard.side(direction).insert_unique(hash, Arc::clone(entry), |held| {
            let (zone, tuple) = held.named(direction);
            self.hash(zone, tuple)
        });
        true
    }

    /// Makes that tuple of the entry name nothing, if it named this very entry.
    pub(crate) fn release(&self, entry: &Entry, direction: Direction) {
        // What goes with the last pointer goes after the lock.
        drop(self.take(entry, direction));
    }

    fn take(&self, entry: &Entry, direction: Direction) -> Option<Arc<Entry>> {
        let (zone, tuple) = entry.named(direction);
        let hash = self.hash(zone, tuple);
        let mut shard = self.write(self.shard_of(hash));
        let side = shard.side(direction);
        let own = |held: &Arc<Entry>| std::ptr::eq(Arc::as_ptr(held), entry);
        let taken = side.find_entry(hash, own).ok().map(|slot| slot.remove().0);
        // Memory goes back once flows have gone; half empty is kept, lest it go to and fro.
        if side.capacity() > 64 && side.len() < side.capacity() / 8 {
            let keep = side.len() * 2;
            side.shrink_to(keep, |held| {
                let (zone, tuple) = held.named(direction);
                self.hash(zone, tuple)
            });
        }
        taken
    }

    /// Whoever wants more than to look waits until this is dropped.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        (0..self.shards.len()).map(|shard| self.read(shard)).collect::<Vec<_>>()
    }

    /// Shards there are.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The entries of one shard that `which` holds for, each entry in one shard only.
    pub(crate) fn of_shard(&self, shard: usize, which: impl Fn(&Entry) -> bool) -> Vec<Arc<Entry>> {
        let shard = self.read(shard);
        shard.originals.iter().filter(|entry| which(entry)).map(Arc::clone).collect()
    }

    fn hash(&self, zone: Zone, tuple: Tuple) -> u64 {
        self.hasher.hash_one(tuple.octets(zone.0))
    }

    /// The shard by bits in the middle: those at either end choose the place within it.
    fn shard_of(&self, hash: u64) -> usize {
        let middle = (hash >> 16) & 0xffff_ffff;
        usize::try_from((middle * self.shards.len() as u64) >> 32).unwrap_or(0)
    }

    fn read(&self, shard: usize) -> RwLockReadGuard<'_, Shard> {
        // Nothing that can panic runs under these locks but the allocator.
        self.shards[shard].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, shard: usize) -> RwLockWriteGuard<'_, Shard> {
        self.shards[shard].write().unwrap_or_else(PoisonError::into_inner)
    }
}
