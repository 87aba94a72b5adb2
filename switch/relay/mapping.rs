//! One mapping: a host socket, and whom it speaks to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datapath::PortId;
use nat::{Entry, Protocol, TransportAddr, Zone};

use crate::claims::Claim;
use crate::key::Key;
use crate::limits::Lease;
use crate::outlet::Outlet;

/// One host socket for one inside address and port, or echo identifier.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) key: Key,
    pub(crate) protocol: Protocol,
    pub(crate) inside: TransportAddr,
    /// The host's port number, or the ping socket's identifier.
    pub(crate) outside_port: u16,
    pub(crate) outlet: Outlet,
    flows: Mutex<Flows>,
    /// Its place; knows whose it is.
    lease: Lease,
    /// Its outside port is nobody else's.
    _claim: Option<Claim>,
}

/// The far sides a mapping speaks to.
#[derive(Debug)]
pub(crate) struct Flows {
    /// None once the socket is about to close, when no more may join.
    entries: Option<Entries>,
}

/// By far side: nearly always one, and sixty thousand where somebody looks for others.
#[derive(Debug)]
enum Entries {
    /// In order.
    Few(Vec<Arc<Entry>>),
    Many(BTreeMap<TransportAddr, Arc<Entry>>),
}

/// The most that are a few: so many pointers are moved in no time.
const FEW: usize = 64;

impl Mapping {
    /// A mapping that speaks to nobody yet, of the port that has the lease.
    pub(crate) fn new(
        key: Key,
        (protocol, inside): (Protocol, TransportAddr),
        (outlet, outside_port, claim): (Outlet, u16, Option<Claim>),
        lease: Lease,
    ) -> Self {
        Self {
            key,
            protocol,
            inside,
            outside_port,
            outlet,
            flows: Mutex::new(Flows { entries: Some(Entries::Few(Vec::new())) }),
            lease,
            _claim: claim,
        }
    }

    pub(crate) const fn zone(&self) -> Zone {
        self.lease.zone()
    }

    pub(crate) const fn port(&self) -> PortId {
        self.lease.port()
    }

    pub(crate) fn flows(&self) -> MutexGuard<'_, Flows> {
        // Nothing that can panic runs under this lock.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flows {
    pub(crate) fn len(&self) -> usize {
        match &self.entries {
            None => 0,
            Some(Entries::Few(few)) => few.len(),
            Some(Entries::Many(many)) => many.len(),
        }
    }

    pub(crate) const fn closed(&self) -> bool {
        self.entries.is_none()
    }

    /// Takes in one more flow, unless closed.
    pub(crate) fn add(&mut self, entry: Arc<Entry>) {
        let far = entry.original.dst;
        match &mut self.entries {
            None => {}
            Some(Entries::Few(few)) if few.len() < FEW => {
                let at = few.partition_point(|held| held.original.dst < far);
                if few.is_empty() {
                    few.reserve_exact(1); // Most mappings speak to one.
                }
                few.insert(at, entry);
            }
            Some(Entries::Few(few)) => {
                let named = few.drain(..).map(|held| (held.original.dst, held));
                let mut many: BTreeMap<_, _> = named.collect();
                many.insert(far, entry);
                self.entries = Some(Entries::Many(many));
            }
            Some(Entries::Many(many)) => {
                // What it replaces is tracked no more, or there would be two flows of one name.
                many.insert(far, entry);
            }
        }
    }

    /// Any flow that leads to that address, to whichever port: a look-up, not a search.
    pub(crate) fn towards(&self, far: IpAddr) -> Option<&Entry> {
        let first = match self.entries.as_ref()? {
            Entries::Few(few) => {
                few.get(few.partition_point(|held| held.original.dst.addr < far))?
            }
            Entries::Many(many) => many.range(TransportAddr::new(far, 0)..).next()?.1,
        };
        Some(&**first).filter(|entry| entry.original.dst.addr == far)
    }

    /// Keeps those flows `which` holds for. Where there are none, it is closed.
    pub(crate) fn keep(&mut self, mut which: impl FnMut(&Arc<Entry>) -> bool) {
        match &mut self.entries {
            None => return,
            Some(Entries::Few(few)) => few.retain(which),
            Some(Entries::Many(many)) => many.retain(|_, entry| which(entry)),
        }
        if self.len() == 0 {
            self.entries = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use nat::{Direction, Owner, Tuple};
    use smoltcp::time::Instant;

    use super::*;

    /// What a map of such slots takes for each: a hash table is between 7/16 and 7/8 full, and has an
    /// octet of its own for each slot.
    const fn slot<T>() -> usize {
        (size_of::<T>() + 1) * 16 / 7
    }

    /// However many far sides there are, each is found by its address, and goes when it is silent.
    #[test]
    fn far_sides_are_found_by_their_address_few_or_many() {
        let inside = TransportAddr::new([192, 0, 2, 10].into(), 40_000);
        let far = |n: u16| {
            let [high, low] = (n / 2).to_be_bytes();
            TransportAddr::new([198, 51, high, low].into(), 100 + n % 2)
        };
        for count in [1, 10, 64, 65, 5000] {
            let mut flows = Flows { entries: Some(Entries::Few(Vec::new())) };
            for n in (0..count).rev() {
                let tuple = Tuple::new(Protocol::Udp, inside, far(n));
                let entry = Entry::new(
                    Zone(1),
                    Direction::Original,
                    tuple,
                    tuple.inverse(),
                    Owner(1),
                    Instant::ZERO,
                );
                flows.add(Arc::new(entry));
            }
            assert_eq!(flows.len(), usize::from(count));
            for n in 0..count {
                let found = flows.towards(far(n).addr).unwrap();
                assert_eq!(found.original.dst.addr, far(n).addr);
            }
            assert!(flows.towards([198, 50, 255, 255].into()).is_none());
            assert!(flows.towards([198, 51, 255, 255].into()).is_none());
            flows.keep(|entry| entry.original.dst == far(0));
            assert_eq!((flows.len(), flows.closed()), (1, false));
            flows.keep(|_| false);
            assert!(flows.closed() && flows.len() == 0);
        }
    }

    /// The product's bound is 512 octets of ours for an idle flow: the mapping, its one flow, and their
    /// places wherever they are looked up, each table at its emptiest.
    #[test]
    fn an_idle_udp_flow_takes_at_most_512_octets() {
        const COUNTS: usize = 2 * size_of::<usize>();
        let mapping = COUNTS + size_of::<Mapping>();
        let flows = size_of::<Arc<Entry>>();
        // A slab has a tag for each place, and doubles.
        let arena = 2 * size_of::<(usize, u16, Arc<Mapping>)>();
        let name = slot::<((Zone, Protocol, TransportAddr), Arc<Mapping>)>();
        let entry = COUNTS + size_of::<Entry>();
        // Conntrack's two tables of pointers, and the line of those that wait for an answer.
        let tracked = 2 * slot::<Arc<Entry>>() + 2 * size_of::<Arc<Entry>>();
        let all = mapping + flows + arena + name + entry + tracked;
        assert!(
            all <= 512,
            "{all}: mapping {mapping}, flows {flows}, arena {arena}, name {name}, entry {entry}, \
             tracked {tracked}"
        );
    }
}
