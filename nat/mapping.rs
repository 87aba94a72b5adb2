//! Mappings: which external address and port an inside address and port is shown with.
//!
//! Read RFC 4787 §4 and RFC 5382 §4. A mapping is made once for an inside address and port and serves
//! whatever it speaks to (endpoint-independent, REQ-1). Flows hold it; the last one to go gives
//! its port back, so no path can leak one, and none is ever shared (REQ-3) nor taken away.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry::{Occupied, Vacant};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::IpCidr;

use crate::pool::{Kind, NoMapping, Pool, Wish};
use crate::ports::Ports;
use crate::tuple::{Protocol, TransportAddr};
use crate::zone::{Account, Zone};

/// Which external address somebody is shown with, and on which side of the NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct External {
    /// The zone that sees it: as a rule an uplink's.
    pub zone: Zone,
    /// The address.
    pub addr: IpAddr,
}

/// One inside address and port, as it is named on its own side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inside {
    /// The network it is in.
    pub zone: Zone,
    /// TCP, UDP, or another with ports or identifiers.
    pub protocol: Protocol,
    /// Address and port, or identifier.
    pub at: TransportAddr,
}

/// What an inside address and port is shown with, while anybody holds it.
#[derive(Debug)]
pub struct Mapping {
    inside: Inside,
    external: External,
    port: u16,
    account: Account,
    remotes: Mutex<Remotes>,
    tables: Arc<Tables>,
}

impl Mapping {
    /// The inside address and port.
    #[must_use]
    pub const fn inside(&self) -> Inside {
        self.inside
    }

    /// The zone that sees the external address.
    #[must_use]
    pub const fn zone(&self) -> Zone {
        self.external.zone
    }

    /// The external address and port.
    #[must_use]
    pub const fn external(&self) -> TransportAddr {
        TransportAddr::new(self.external.addr, self.port)
    }

    /// Whose quota it counts against.
    #[must_use]
    pub const fn account(&self) -> Account {
        self.account
    }

    /// Flows that hold it, and the far sides they have between them.
    #[must_use]
    pub fn flows(&self) -> (usize, usize) {
        let flows = |count: &u32| usize::try_from(*count).unwrap_or(usize::MAX);
        match &*self.remotes() {
            Remotes::None => (0, 0),
            Remotes::One(_, count) => (flows(count), 1),
            Remotes::Many(held) => (held.values().map(flows).sum(), held.len()),
        }
    }

    /// Whether a flow with that far side is under way: what address-dependent filtering asks.
    pub(crate) fn speaks_to(&self, remote: IpAddr) -> bool {
        match &*self.remotes() {
            Remotes::None => false,
            Remotes::One(held, _) => *held == remote,
            Remotes::Many(held) => held.contains_key(&remote),
        }
    }

    /// A flow with that far side begins.
    pub(crate) fn join(&self, remote: IpAddr) {
        let mut remotes = self.remotes();
        *remotes = match std::mem::take(&mut *remotes) {
            Remotes::None => Remotes::One(remote, 1),
            Remotes::One(held, count) if held == remote => Remotes::One(held, count + 1),
            Remotes::One(held, count) => {
                Remotes::Many(Box::new(HashMap::from([(held, count), (remote, 1)])))
            }
            Remotes::Many(mut held) => {
                *held.entry(remote).or_default() += 1;
                Remotes::Many(held)
            }
        };
    }

    /// A flow with that far side is over.
    pub(crate) fn part(&self, remote: IpAddr) {
        let mut remotes = self.remotes();
        match &mut *remotes {
            Remotes::One(held, count) if *held == remote => {
                *count -= 1;
                if *count == 0 {
                    *remotes = Remotes::None;
                }
            }
            Remotes::Many(held) => {
                if let Some(count) = held.get_mut(&remote) {
                    *count -= 1;
                    if *count == 0 {
                        held.remove(&remote);
                    }
                }
            }
            Remotes::None | Remotes::One(..) => {}
        }
    }

    fn remotes(&self) -> MutexGuard<'_, Remotes> {
        self.remotes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let tables = &self.tables;
        let own = |held: &Weak<Self>| std::ptr::eq(held.as_ptr(), self);
        tables.by_inside.remove_if(&(self.inside, self.external), |_, held| own(held));
        let name = (self.external.zone, self.inside.protocol, self.external());
        tables.by_external.remove_if(&name, |_, held| own(held));
        if let Some(pool) = tables.pools.get(&(self.external, self.inside.protocol)) {
            pool.give(self.port, who(self.inside), self.account, tables.now());
        }
        tables.refund(self.account, |holding| &mut holding.mappings);
    }
}

/// The far sides of a mapping's flows, and how many flows each has. Most have one.
#[derive(Debug, Default)]
enum Remotes {
    #[default]
    None,
    One(IpAddr, u32),
    #[expect(clippy::box_collection, reason = "keeps the common case small")]
    Many(Box<HashMap<IpAddr, u32>>),
}

/// Ports that are not to be handed out, of these addresses (of all, if `None`) and that protocol (of any).
pub(crate) type Published = (Option<IpCidr>, Option<Protocol>, RangeInclusive<u16>);

/// What mappings unregister from when they go.
#[derive(Debug)]
struct Tables {
    by_inside: DashMap<(Inside, External), Weak<Mapping>>,
    by_external: DashMap<(Zone, Protocol, TransportAddr), Weak<Mapping>>,
    pools: DashMap<(External, Protocol), Box<Pool>>,
    of_account: DashMap<Account, Holding>,
    published: Mutex<Vec<Published>>,
    /// Pools' published ports, by their ranges: pools that have the same share one set.
    reserved: Mutex<HashMap<Vec<RangeInclusive<u16>>, Arc<Ports>>>,
    /// What time it was last said to be, in microseconds: who gives a port back does not know.
    now: AtomicI64,
    /// When idle pools are looked for again, in microseconds.
    next_swept: AtomicI64,
}

/// What an account has.
#[derive(Debug, Default)]
struct Holding {
    mappings: usize,
    /// Pools made for it, which last while anybody has a port of theirs, or one rests.
    pools: usize,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            by_inside: DashMap::with_shard_amount(SHARDS),
            by_external: DashMap::with_shard_amount(SHARDS),
            pools: DashMap::with_shard_amount(SHARDS),
            of_account: DashMap::new(),
            published: Mutex::default(),
            reserved: Mutex::default(),
            now: AtomicI64::new(0),
            next_swept: AtomicI64::new(0),
        }
    }
}

impl Tables {
    fn now(&self) -> Instant {
        Instant::from_micros(self.now.load(Relaxed))
    }

    /// Counts less of what an account has.
    fn refund(&self, account: Account, which: impl Fn(&mut Holding) -> &mut usize) {
        if let Some(mut holding) = self.of_account.get_mut(&account) {
            let held = which(&mut holding);
            *held = held.saturating_sub(1);
        }
        self.of_account.remove_if(&account, |_, held| held.mappings == 0 && held.pools == 0);
    }

    /// Forgets the pools `which` names.
    fn drop_pools(&self, which: impl Fn(&(External, Protocol), &Pool) -> bool) {
        self.pools.retain(|of, pool| {
            let over = which(of, pool);
            if over {
                self.refund(pool.account, |holding| &mut holding.pools);
            }
            !over
        });
    }
}

/// Gives memory back once most of what it was for has gone.
fn shrink<K: Eq + Hash, V>(map: &DashMap<K, V>) {
    if map.capacity() > 64 * SHARDS && map.len() < map.capacity() / 8 {
        map.shrink_to_fit();
    }
}

/// How often idle pools are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// Shards of the large maps: enough that one is locked briefly even while it grows.
const SHARDS: usize = 256;

/// All mappings. No account has more than its quota, nor were more pools made for it; of one address' ports it has
/// at most half, and less where others have many. Who asks for one more is refused.
#[derive(Debug)]
pub struct Mappings {
    tables: Arc<Tables>,
    quota: AtomicUsize,
    secret: [u8; 16],
    /// How many were made: each begins its search elsewhere.
    made: AtomicU64,
}

impl Mappings {
    /// None yet, and at most `quota` for an account. `secret` is random and kept: ports are chosen by it.
    #[must_use]
    pub fn new(quota: usize, secret: [u8; 16]) -> Self {
        Self {
            tables: Arc::new(Tables::default()),
            quota: AtomicUsize::new(quota),
            secret,
            made: AtomicU64::new(0),
        }
    }

    /// Says what time it is: ports given back from now on rest from now on.
    fn tick(&self, now: Instant) {
        self.tables.now.fetch_max(now.total_micros(), Relaxed);
    }

    /// Gives an account another quota; who holds more keeps it.
    pub fn set_quota(&self, quota: usize) {
        self.quota.store(quota, Relaxed);
    }

    /// The mapping of an inside address and port, made now if there is none. Its port is the inside one if
    /// that is free, else one nobody can guess (RFC 6056 §3.3.3, with a counter in the hash).
    ///
    /// # Errors
    ///
    /// No port is left, or the account has too many.
    pub fn lease(
        &self,
        inside: Inside,
        external: External,
        account: Account,
        now: Instant,
    ) -> Result<Arc<Mapping>, NoMapping> {
        // A mapping must not be dropped while one of these maps is locked: dropping locks them.
        if let Some(known) = self.of(inside, external) {
            return Ok(known);
        }
        self.tick(now);
        self.charge(account, |holding| &mut holding.mappings)?;
        let random = self.random(inside, external);
        let wish = Wish { port: inside.at.port, who: who(inside), account, random };
        let port = self.take(external, inside.protocol, wish, now).inspect_err(|_| {
            self.tables.refund(account, |holding| &mut holding.mappings);
        })?;
        let mapping = Arc::new(Mapping {
            inside,
            external,
            port,
            account,
            remotes: Mutex::default(),
            tables: Arc::clone(&self.tables),
        });
        let name = (external.zone, inside.protocol, mapping.external());
        self.tables.by_external.insert(name, Arc::downgrade(&mapping));
        let quicker = {
            let mut held = self.tables.by_inside.entry((inside, external)).or_default();
            let quicker = held.upgrade();
            if quicker.is_none() {
                *held = Arc::downgrade(&mapping);
            }
            quicker
        };
        // If another worker was quicker, its mapping is the one, and ours goes.
        Ok(quicker.unwrap_or(mapping))
    }

    /// Takes a port of a pool, which is made if there is none.
    fn take(
        &self,
        external: External,
        protocol: Protocol,
        wish: Wish,
        now: Instant,
    ) -> Result<u16, NoMapping> {
        let name = (external, protocol);
        if let Some(pool) = self.tables.pools.get(&name) {
            return pool.take(wish, now);
        }
        let pool = match self.tables.pools.entry(name) {
            Occupied(quicker) => quicker.into_ref(),
            Vacant(place) => {
                let account = wish.account;
                self.charge(account, |holding| &mut holding.pools)?;
                let kind = if protocol.is_query() { Kind::Identifiers } else { Kind::Ports };
                place.insert(Box::new(Pool::new(kind, account, self.reserved(external, protocol))))
            }
        };
        pool.take(wish, now)
    }

    /// The mapping of an inside address and port, if there is one.
    pub(crate) fn of(&self, inside: Inside, external: External) -> Option<Arc<Mapping>> {
        self.tables.by_inside.get(&(inside, external)).and_then(|held| held.upgrade())
    }

    /// Who is behind an external address and port.
    #[must_use]
    pub fn behind(
        &self,
        zone: Zone,
        protocol: Protocol,
        external: TransportAddr,
    ) -> Option<Arc<Mapping>> {
        self.tables.by_external.get(&(zone, protocol, external)).and_then(|held| held.upgrade())
    }

    /// All of them, for listings. Those that go meanwhile may be among them or not.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Mapping>> {
        // Kept until no map is locked any more: dropping one locks them.
        self.tables.by_external.iter().filter_map(|held| held.upgrade()).collect()
    }

    /// Keeps the ports of published ranges from being handed out. What was said before is forgotten.
    pub(crate) fn reserve(&self, published: Vec<Published>) {
        *self.published() = published;
        self.shared().clear();
        for pool in &self.tables.pools {
            let (external, protocol) = *pool.key();
            pool.reserve(self.reserved(external, protocol));
        }
    }

    /// Forgets the ports of addresses nobody has any more.
    pub fn forget(&self, gone: impl Fn(External) -> bool) {
        self.tables.drop_pools(|(of, _), pool| gone(*of) && pool.held() == 0);
    }

    /// Forgets pools nobody has a port of, and none of which rests. Call it now and then; it looks every ten seconds.
    pub fn expire(&self, now: Instant) {
        self.tick(now);
        let Tables { pools, by_inside, by_external, next_swept, .. } = &*self.tables;
        let (due, next) = (next_swept.load(Relaxed), (now + SWEEP).total_micros());
        let is_due = now.total_micros() >= due;
        if !is_due || next_swept.compare_exchange(due, next, Relaxed, Relaxed).is_err() {
            return;
        }
        self.tables.drop_pools(|_, pool| pool.is_idle(now));
        shrink(pools);
        shrink(by_inside);
        shrink(by_external);
    }

    /// Whoever wants anything of this mapping, or another of its account's, waits until this is dropped.
    #[cfg(test)]
    pub(crate) fn hold<'a>(&'a self, mapping: &'a Mapping) -> impl Sized + 'a {
        let Tables { by_inside, by_external, pools, of_account, published, .. } = &*self.tables;
        let name = (mapping.external.zone, mapping.inside.protocol, mapping.external());
        (
            by_inside.get_mut(&(mapping.inside, mapping.external)),
            by_external.get_mut(&name),
            pools.get_mut(&(mapping.external, mapping.inside.protocol)),
            of_account.get_mut(&mapping.account),
            published.lock(),
            mapping.remotes(),
        )
    }

    /// Mappings there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tables.by_external.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Mappings of one account.
    #[must_use]
    pub fn len_of(&self, account: Account) -> usize {
        self.tables.of_account.get(&account).map_or(0, |held| held.mappings)
    }

    /// Ports held of one address and protocol.
    #[must_use]
    pub fn held(&self, external: External, protocol: Protocol) -> usize {
        self.tables.pools.get(&(external, protocol)).map_or(0, |pool| pool.held())
    }

    fn charge(
        &self,
        account: Account,
        which: impl Fn(&mut Holding) -> &mut usize,
    ) -> Result<(), NoMapping> {
        let mut holding = self.tables.of_account.entry(account).or_default();
        let held = which(&mut holding);
        if *held >= self.quota.load(Relaxed) {
            return Err(NoMapping::Quota);
        }
        *held += 1;
        Ok(())
    }

    /// The published ports of an address and protocol.
    fn reserved(&self, external: External, protocol: Protocol) -> Arc<Ports> {
        let published = self.published();
        let of = published.iter().filter(|(at, of, _)| {
            at.as_ref().is_none_or(|at| at.contains_addr(&external.addr.into()))
                && of.is_none_or(|of| of == protocol)
        });
        let ranges: Vec<_> = of.map(|(_, _, ports)| ports.clone()).collect();
        let mut shared = self.shared();
        Arc::clone(shared.entry(ranges).or_insert_with_key(|ranges| Arc::new(Ports::of(ranges))))
    }

    fn shared(&self) -> MutexGuard<'_, HashMap<Vec<RangeInclusive<u16>>, Arc<Ports>>> {
        self.tables.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn published(&self) -> MutexGuard<'_, Vec<Published>> {
        self.tables.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn random(&self, inside: Inside, external: External) -> u64 {
        let made = self.made.fetch_add(1, Relaxed);
        self.keyed(|hasher| {
            hasher.write_u64(made);
            hasher.write_u16(inside.zone.0);
            write(hasher, inside.at.addr);
            hasher.write_u16(inside.at.port);
            write(hasher, external.addr);
        })
    }

    /// A number that depends on the secret and what `with` writes, and tells neither.
    pub(crate) fn keyed(&self, with: impl FnOnce(&mut DefaultHasher)) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.secret);
        with(&mut hasher);
        hasher.finish()
    }
}

/// Tells containers apart.
fn who(inside: Inside) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u16(inside.zone.0);
    write(&mut hasher, inside.at.addr);
    hasher.finish()
}

pub(crate) fn write(hasher: &mut DefaultHasher, addr: IpAddr) {
    match addr {
        IpAddr::V4(addr) => hasher.write(&addr.octets()),
        IpAddr::V6(addr) => hasher.write(&addr.octets()),
    }
}
