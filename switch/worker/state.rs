//! What the control side keeps of networks, their ports and published ports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use datapath::{Network, PortCounters, PortId};
use relay::Key;

use crate::control::{NetworkConfig, NetworkId, PublishId};
use crate::station::Station;

/// Ports of one network.
const MAX_PORTS: u16 = 4095;

/// A network, or a segment of the world.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) config: NetworkConfig,
    pub(crate) network: Arc<Network>,
    /// The gateway's counters per worker.
    pub(crate) gateway: Vec<Arc<PortCounters>>,
    /// Counters per worker, and the addresses given.
    pub(crate) ports: BTreeMap<PortId, (Vec<Arc<PortCounters>>, Vec<IpAddr>)>,
    next_port: u16,
    /// Our station there, if it is a segment.
    pub(crate) station: Option<Arc<Station>>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) networks: BTreeMap<NetworkId, Known>,
    /// By which worker, and as what.
    pub(crate) published: BTreeMap<PublishId, (usize, Key)>,
    pub(crate) next_publish: u32,
}

impl Known {
    /// A network that has no port yet.
    pub(crate) const fn new(
        config: NetworkConfig,
        network: Arc<Network>,
        gateway: Vec<Arc<PortCounters>>,
        station: Option<Arc<Station>>,
    ) -> Self {
        Self { config, network, gateway, ports: BTreeMap::new(), next_port: 1, station }
    }

    /// A port number that was not used for long.
    pub(crate) fn free_port(&mut self) -> Option<PortId> {
        for _ in 0..MAX_PORTS {
            let id = PortId(self.next_port);
            self.next_port = self.next_port % MAX_PORTS + 1;
            if !self.ports.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }
}
