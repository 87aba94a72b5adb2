//! One mapping: a host socket, and whom it speaks to.

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
    /// In the order of their far sides; none once the socket is about to close, when no more may join.
    entries: Option<Vec<Arc<Entry>>>,
}

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
            flows: Mutex::new(Flows { entries: Some(Vec::new()) }),
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
        self.entries().len()
    }

    pub(crate) const fn closed(&self) -> bool {
        self.entries.is_none()
    }

    fn entries(&self) -> &[Arc<Entry>] {
        self.entries.as_deref().unwrap_or_default()
    }

    /// Takes in one more flow, unless closed.
    pub(crate) fn add(&mut self, entry: Arc<Entry>) {
        let Some(entries) = &mut self.entries else { return };
        let far = entry.original.dst;
        let at = entries.partition_point(|held| held.original.dst < far);
        if entries.is_empty() {
            entries.reserve_exact(1); // Most mappings speak to one.
        }
        entries.insert(at, entry);
    }

    /// Any flow that leads to that address, to whichever port: a look-up, not a search.
    pub(crate) fn towards(&self, far: IpAddr) -> Option<&Entry> {
        let entries = self.entries();
        let at = entries.partition_point(|held| held.original.dst.addr < far);
        entries.get(at).map(|entry| &**entry).filter(|entry| entry.original.dst.addr == far)
    }

    /// Keeps those flows `which` holds for. Where there are none, it is closed.
    pub(crate) fn keep(&mut self, which: impl FnMut(&Arc<Entry>) -> bool) {
        let Some(entries) = &mut self.entries else { return };
        entries.retain(which);
        if entries.is_empty() {
            self.entries = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a map of such slots takes for each: a hash table is between 7/16 and 7/8 full, and has an
    /// octet of its own for each slot.
    const fn slot<T>() -> usize {
        (size_of::<T>() + 1) * 16 / 7
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
