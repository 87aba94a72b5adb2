//! Networks and their ports, as the rest of the program has them made, changed and removed.

use std::io;
use std::sync::Arc;

use datapath::{Leg, Network, Port, PortCounters, PortId, Uplink, network};
use nat::Zone;
use relay::Policy;

use crate::command::Command;
use crate::control::{NetworkConfig, NetworkId, PortConfig};
use crate::queue::Queue;
use crate::state::{Known, State};
use crate::station::{self, Station};
use crate::switch::{Switch, WorkerHandle};

impl Switch {
    /// Adds a network, or changes one: gateway, uplink and host addresses may change live. Networks
    /// are kept apart from each other.
    pub fn set_network(&self, id: NetworkId, config: NetworkConfig) {
        let mut state = self.state();
        let zone = Zone(id.0);
        if let Some(known) = state.networks.get_mut(&id) {
            let before = std::mem::replace(&mut known.config, config);
            if before.uplink != known.config.uplink {
                station::forget_flows(&self.conntrack, zone);
            }
        } else {
            let network = Network::new(zone, Arc::clone(&self.conntrack));
            state.networks.insert(id, self.known(config, Arc::new(network), None));
        }
        self.tell_networks(&state);
    }

    /// A network that has no port yet.
    pub(crate) fn known(
        &self,
        config: NetworkConfig,
        network: Arc<Network>,
        station: Option<Arc<Station>>,
    ) -> Known {
        Known::new(config, network, self.counters(), station)
    }

    /// Sets how the socket uplink's mappings and the flows of published ports behave in a network: who may
    /// send to a mapping, and how long a silent flow lasts. Holds for those there are at once (for
    /// an idle connection, from its next segment on) and for those to come; the network need not be there yet.
    pub fn set_policy(&self, id: NetworkId, policy: Policy) {
        self.shared.set_policy(Zone(id.0), policy);
    }

    pub(crate) fn counters(&self) -> Vec<Arc<PortCounters>> {
        self.workers.iter().map(|_| Arc::default()).collect()
    }

    /// Tells the workers what the networks are by now, and the stations who is behind them.
    pub(crate) fn tell_networks(&self, state: &State) {
        for (id, known) in &state.networks {
            let subnets = |other: &NetworkId| {
                let gateway =
                    state.networks.get(other).and_then(|other| other.config.gateway.as_ref());
                gateway.map(|gateway| gateway.addresses.clone()).unwrap_or_default()
            };
            if let Some(station) = &known.station {
                let zone = Zone(id.0);
                let by = |uplink| {
                    let those = state.networks.iter().filter(move |(_, other)| {
                        other.station.is_none() && other.config.uplink == uplink
                    });
                    let named = those.flat_map(|(other, _)| {
                        subnets(other).into_iter().map(|subnet| (subnet, Zone(other.0)))
                    });
                    named.collect()
                };
                if station.set_networks(by(Uplink::Raw(zone)), by(Uplink::Sockets)) {
                    self.workers.iter().for_each(WorkerHandle::wake);
                }
                continue;
            }
            let others = state
                .networks
                .iter()
                .filter(|(other, known)| *other != id && known.station.is_none());
            let config = Arc::new(network::NetworkConfig {
                gateway: known.config.gateway.clone(),
                uplink: known.config.uplink,
                mtu: known.config.mtu,
                host_addresses: known.config.host_addresses.clone(),
                isolated_from: others.flat_map(|(other, _)| subnets(other)).collect(),
                leg: Leg::Inside,
            });
            self.tell_network(*id, known, &config);
        }
    }

    pub(crate) fn tell_network(
        &self,
        id: NetworkId,
        known: &Known,
        config: &Arc<network::NetworkConfig>,
    ) {
        for (worker, counters) in self.workers.iter().zip(&known.gateway) {
            worker.tell(Command::SetNetwork {
                zone: Zone(id.0),
                network: Arc::clone(&known.network),
                config: Arc::clone(config),
                counters: Arc::clone(counters),
            });
        }
    }

    /// Removes a network with its ports, flows and published ports.
    pub fn remove_network(&self, id: NetworkId) {
        let mut state = self.state();
        if state.networks.remove(&id).is_some() {
            station::forget_flows(&self.conntrack, Zone(id.0));
            // A worker that does not answer is stuck in a system call; there is nothing to undo.
            let _ = self.ask_all(|_, done| Some(Command::RemoveNetwork { zone: Zone(id.0), done }));
            self.shared.set_policy(Zone(id.0), Policy::default());
            self.tell_networks(&state);
        }
    }

    /// Adds a port. With fewer queues than workers, the first workers read them and all write them.
    ///
    /// # Errors
    ///
    /// No such network, no queue, no port number left, or a descriptor cannot be polled; the port is
    /// not there then.
    pub fn add_port(&self, network: NetworkId, config: PortConfig) -> io::Result<PortId> {
        let mut state = self.state();
        let known = state.networks.get_mut(&network).ok_or(io::ErrorKind::NotFound)?;
        let id = known.free_port().ok_or(io::ErrorKind::QuotaExceeded)?;
        let counters = self.counters();
        let mut queues: Vec<_> =
            config.queues.into_iter().map(|fd| Queue::new(fd, config.offloads)).collect();
        let polled = queues.len();
        if polled == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for worker in polled..self.workers.len() {
            queues.push(queues[worker % polled].try_clone()?);
        }
        let port = Port {
            role: config.role,
            mtu: config.mtu,
            offloads: config.offloads,
            mac: config.mac,
            addresses: config.addresses,
        };
        known.ports.insert(id, (counters.clone(), port.addresses.clone()));
        let zone = Zone(network.0);
        let mut queues = queues.into_iter().enumerate();
        let added = self.ask_all(|worker, done| {
            let (index, queue) = queues.next()?;
            Some(Command::AddPort {
                zone,
                id,
                port: port.clone(),
                counters: Arc::clone(&counters[worker]),
                queue,
                polled: index < polled,
                done,
            })
        });
        if let Err(error) = added {
            drop(state);
            self.remove_port(network, id);
            return Err(error);
        }
        Ok(id)
    }

    /// Removes a port, closing its descriptors and ending its flows.
    pub fn remove_port(&self, network: NetworkId, port: PortId) {
        let mut state = self.state();
        let Some(known) = state.networks.get_mut(&network) else { return };
        if let Some((_, addresses)) = known.ports.remove(&port) {
            let (zone, uplink) = (Zone(network.0), known.config.uplink);
            // As for a network.
            let _ = self.ask_all(|_, done| Some(Command::RemovePort { zone, id: port, done }));
            for (segment, known) in &state.networks {
                let crosses = uplink == Uplink::Raw(Zone(segment.0)) || uplink == Uplink::Sockets;
                if let Some(station) = known.station.as_ref().filter(|_| crosses) {
                    addresses.iter().for_each(|addr| station.nat().forget_inside(zone, *addr));
                }
            }
        }
    }
}
