//! What the relays of all workers share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use nat::fragments::Fragments;
use nat::{Protocol, TransportAddr, Zone};

use crate::key::Key;
use crate::limits::Limits;
use crate::mapping::Mapping;
use crate::policy::{Policies, Policy};
use crate::ports::Ports;
use crate::published::UdpPublished;

/// What the relays of all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The bounds on flows.
    pub limits: Arc<Limits>,
    /// The one host socket of an inside address and port (or echo identifier), whichever worker made
    /// it: this is what makes the mapping endpoint-independent (RFC 4787 REQ-1).
    pub(crate) mappings: DashMap<(Zone, Protocol, TransportAddr), Arc<Mapping>>,
    /// How each network's mappings behave.
    pub(crate) policies: Policies,
    /// The host ports mappings may take.
    pub(crate) ports: Ports,
    /// Packets of containers that are not all there yet.
    pieces: Mutex<Fragments>,
    /// Published UDP sockets, on which any worker may answer.
    pub(crate) udp_published: DashMap<Key, Arc<UdpPublished>>,
}

impl Shared {
    /// Nothing yet, within `limits`, in the calling thread's network namespace.
    #[must_use]
    pub fn new(limits: Arc<Limits>) -> Self {
        Self {
            limits,
            mappings: DashMap::new(),
            policies: Policies::default(),
            ports: Ports::of_host(),
            pieces: Mutex::default(),
            udp_published: DashMap::new(),
        }
    }

    /// Has the mappings of a network behave otherwise, those there are too; none is lost by it.
    pub fn set_policy(&self, zone: Zone, policy: Policy) {
        self.policies.set(zone, policy);
    }

    /// How the mappings of a network behave.
    #[must_use]
    pub fn policy(&self, zone: Zone) -> Policy {
        self.policies.of(zone)
    }

    pub(crate) fn pieces(&self) -> MutexGuard<'_, Fragments> {
        // Whatever a panic left undone is bounded, and expires.
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
