//! What may differ from network to network in how mappings behave.
//!
//! Read RFC 4787 REQ-5 and REQ-8 first. Asked for when somebody nobody has spoken to sends something, and
//! by whoever looks for silent flows: never for a packet of a flow that is known.

use dashmap::DashMap;
use nat::{Filtering, Profile, Timeouts, Zone};

/// How the mappings of one network behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who may send to a container's mapping (RFC 4787 REQ-8).
    pub filtering: Filtering,
    /// How long a silent flow lasts (REQ-5; RFC 5382 REQ-5; RFC 5508 REQ-2).
    pub timeouts: Timeouts,
}

impl Default for Policy {
    /// Address-dependent filtering, and the RFCs' idle times.
    fn default() -> Self {
        Self { filtering: Filtering::AddressDependent, timeouts: *Timeouts::of(Profile::default()) }
    }
}

/// The policies of all networks; a network without one has the default. As many as networks.
#[derive(Debug, Default)]
pub(crate) struct Policies(DashMap<Zone, Policy>);

impl Policies {
    pub(crate) fn set(&self, zone: Zone, policy: Policy) {
        if policy == Policy::default() {
            self.0.remove(&zone);
        } else {
            self.0.insert(zone, policy);
        }
    }

    pub(crate) fn of(&self, zone: Zone) -> Policy {
        self.0.get(&zone).map(|held| *held).unwrap_or_default()
    }
}
