//! Who pays for what a network's neighbour table keeps: places, and the octets of frames that wait.
//!
//! Each payer fills a share of its own and no other's; what all of them have is bounded, too. A port's share
//! goes with the port, that of a payer elsewhere once it has nothing of it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dashmap::DashMap;

use crate::port::{Payer, PortId};

/// Octets of all packets that wait on one network; further ones give way at once.
pub const MAX_PENDING_OCTETS: usize = 4 << 20;

/// The share of [`MAX_PENDING_OCTETS`] that one port's packets may take.
pub const MAX_PENDING_OCTETS_PER_PORT: usize = MAX_PENDING_OCTETS / 8;

/// Neighbours of one network that were learned or are asked for. Those the daemon has introduced come
/// on top: they are as many as the addresses of the attached ports.
pub const CAPACITY: usize = 4096;

/// The share of [`CAPACITY`] one port may fill.
pub const CAPACITY_PER_PORT: usize = CAPACITY / 8;

/// What one payer has.
#[derive(Debug, Default)]
struct Share {
    neighbours: usize,
    pending_octets: usize,
}

/// What all of them have.
#[derive(Debug)]
pub(crate) struct Shares {
    of: DashMap<Payer, Share>,
    /// Places one port may fill.
    per_port: usize,
    neighbours: AtomicUsize,
    pending_octets: AtomicUsize,
}

impl Shares {
    /// Nobody has anything; one port may fill so many places, and nobody else more than
    /// [`CAPACITY_PER_PORT`].
    pub(crate) fn new(per_port: usize) -> Self {
        Self {
            of: DashMap::new(),
            per_port,
            neighbours: AtomicUsize::new(0),
            pending_octets: AtomicUsize::new(0),
        }
    }

    /// Takes a place, if `payer` may have one more.
    pub(crate) fn take_place(&self, payer: Payer) -> bool {
        let most = match payer {
            Payer::Port(_) => self.per_port,
            Payer::Foreign(_) => CAPACITY_PER_PORT,
        };
        let mut share = self.of.entry(payer).or_default();
        let mut taken = share.neighbours < most;
        if taken && self.neighbours.fetch_add(1, Relaxed) >= CAPACITY {
            self.neighbours.fetch_sub(1, Relaxed);
            taken = false;
        }
        share.neighbours += usize::from(taken);
        drop(share);
        self.forget_spent(payer);
        taken
    }

    /// Gives a place back.
    pub(crate) fn give_place(&self, payer: Payer) {
        self.neighbours.fetch_sub(1, Relaxed);
        if let Some(mut share) = self.of.get_mut(&payer) {
            share.neighbours = share.neighbours.saturating_sub(1);
        }
        self.forget_spent(payer);
    }

    /// Takes room for a frame that waits, if `payer` may have so much more.
    pub(crate) fn take_octets(&self, payer: Payer, octets: usize) -> bool {
        let mut share = self.of.entry(payer).or_default();
        let taken = share.pending_octets + octets <= MAX_PENDING_OCTETS_PER_PORT
            && self.pending_octets.load(Relaxed) + octets <= MAX_PENDING_OCTETS;
        if taken {
            share.pending_octets += octets;
            self.pending_octets.fetch_add(octets, Relaxed);
        }
        drop(share);
        self.forget_spent(payer);
        taken
    }

    /// Gives that room back.
    pub(crate) fn give_octets(&self, payer: Payer, octets: usize) {
        self.pending_octets.fetch_sub(octets, Relaxed);
        if let Some(mut share) = self.of.get_mut(&payer) {
            share.pending_octets = share.pending_octets.saturating_sub(octets);
        }
        self.forget_spent(payer);
    }

    /// A port's share goes with the port; of others nobody says when they are gone.
    fn forget_spent(&self, payer: Payer) {
        if let Payer::Foreign(_) = payer {
            let spent = |share: &Share| share.neighbours == 0 && share.pending_octets == 0;
            self.of.remove_if(&payer, |_, share| spent(share));
        }
    }

    /// Forgets the share of a port that is gone, but for frames of its that still wait for others' neighbours.
    pub(crate) fn forget_port(&self, port: PortId) {
        self.of.remove_if(&Payer::Port(port), |_, share| share.pending_octets == 0);
    }

    /// Places and octets that are taken, and how many have a share.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> (usize, usize, usize) {
        (self.neighbours.load(Relaxed), self.pending_octets.load(Relaxed), self.of.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nat::Account;

    #[test]
    fn who_is_refused_leaves_nothing_behind() {
        let shares = Shares::new(CAPACITY);
        assert!((0..CAPACITY).all(|_| shares.take_place(Payer::Port(PortId(1)))));
        for account in 0..100 {
            let payer = Payer::Foreign(Account(account));
            assert!(!shares.take_place(payer));
            assert!(!shares.take_octets(payer, MAX_PENDING_OCTETS));
        }
        assert_eq!(shares.taken(), (CAPACITY, 0, 1));
    }
}
