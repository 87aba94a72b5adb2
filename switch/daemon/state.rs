//! What the daemon knows: networks and endpoints, and the order in which they change.
//!
//! Three locks, taken in this order. `changes` lets one network be made, changed or removed at a time,
//! kernel and workers included. `publishing` does the same for host ports. `registry` is held for a
//! look or a note and never across a system call, so that listings wait for nobody. An attach holds
//! none of them while it works: it promises itself a place, works, and notes the outcome.
//!
//! Everything here blocks; the server calls it on threads made for that.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crossbeam_channel::Receiver;
use worker::{Event, NetworkId, Switch};

use crate::api;
use crate::config::Config;
use crate::endpoint::{Endpoint, Status};
use crate::error::Error;
use crate::host;
use crate::log::log;
use crate::network::{self, Network};
use crate::publisher::Publisher;
use crate::subnet::Taken;

/// Most networks: each is a conntrack zone of 16 bits, and a bridge in every worker.
const MAX_NETWORKS: usize = 1024;

/// The control plane.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) switch: Switch,
    started: SystemTime,
    changes: Mutex<()>,
    pub(crate) publishing: Mutex<Publisher>,
    registry: Mutex<Registry>,
    /// Told whenever an endpoint is gone from the registry, or up.
    pub(crate) settled: Condvar,
}

/// Networks by name, endpoints by the order they came in.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) networks: BTreeMap<String, Network>,
    pub(crate) endpoints: BTreeMap<u64, Endpoint>,
    pub(crate) next: u64,
    /// The host's addresses as the workers last heard them.
    host_addresses: Vec<IpAddr>,
}

impl Daemon {
    /// Starts the switch and makes the default network; the notes are for who started the daemon.
    ///
    /// # Errors
    ///
    /// The workers cannot be started, or the default network cannot be as configured.
    pub fn start(
        mut workers: worker::Config,
        config: &Config,
    ) -> Result<(Self, Receiver<Event>, Vec<String>), Error> {
        let limit = netns::sockopt::raise_nofile_limit()
            .map_err(|source| Error::System { what: "raise the limit of descriptors", source })?;
        // A flow holds a descriptor. What the daemon itself needs must be left, and one container must
        // not hold all that remain.
        let for_flows = usize::try_from(limit / 8 * 7).unwrap_or(usize::MAX);
        workers.max_flows = workers.max_flows.min(for_flows);
        workers.max_flows_per_port = workers.max_flows_per_port.min(workers.max_flows / 4 * 3);
        let (switch, events) = Switch::start(workers)
            .map_err(|source| Error::System { what: "start the switch", source })?;
        let daemon = Self {
            switch,
            started: SystemTime::now(),
            changes: Mutex::default(),
            publishing: Mutex::new(Publisher::new(limit)),
            registry: Mutex::default(),
            settled: Condvar::new(),
        };
        let notes = daemon.make_default_network(config)?;
        Ok((daemon, events, notes))
    }

    /// Who is asked.
    pub fn version(&self) -> api::Version {
        api::Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api_version: "1".to_owned(),
            pid: std::process::id(),
            started: humantime::format_rfc3339_seconds(self.started).to_string(),
            workers: self.switch.workers(),
        }
    }

    /// Whether anybody would miss the daemon: a live endpoint or a network of a user's.
    pub fn is_used(&self) -> bool {
        let registry = self.registry();
        // A transient network is its endpoints'.
        registry.networks.values().filter(|network| !network.transient).count() > 1
            || registry
                .endpoints
                .values()
                .any(|endpoint| !matches!(endpoint.status, Status::Dead(_)))
    }

    fn make_default_network(&self, config: &Config) -> Result<Vec<String>, Error> {
        let _turn = self.changes();
        let mut network = Network::plan_default(NetworkId(1), config, &self.taken_subnets())?;
        let mut notes = Vec::new();
        let subnet = network.subnets.first().map(|subnet| subnet.subnet);
        if config.bip.is_none()
            && let Some(subnet) = subnet.filter(|subnet| subnet.to_string() != "172.17.0.0/16")
        {
            notes.push(format!(
                "the host has a route into 172.17.0.0/16, so network {} is {subnet}",
                network.name
            ));
        }
        self.put_to_work(&mut network);
        self.registry().networks.insert(network.name.clone(), network);
        Ok(notes)
    }

    /// Makes a network.
    ///
    /// # Errors
    ///
    /// A name, subnet or gateway that cannot be had.
    pub fn create_network(&self, request: api::NetworkCreate) -> Result<api::Network, Error> {
        let _turn = self.changes();
        let number = {
            let registry = self.registry();
            if registry.networks.contains_key(&request.name) {
                return Err(Error::NetworkExists(request.name));
            }
            let free =
                |number| registry.networks.values().all(|network| network.number.0 != number);
            let number = (1..=u16::MAX).find(|number| free(*number));
            match number {
                Some(number) if registry.networks.len() < MAX_NETWORKS => NetworkId(number),
                _ => return Err(Error::TooManyNetworks(MAX_NETWORKS)),
            }
        };
        let mut network = Network::plan(number, request, &self.taken_subnets())?;
        self.put_to_work(&mut network);
        let described = network.describe(BTreeMap::new());
        self.registry().networks.insert(network.name.clone(), network);
        Ok(described)
    }

    /// Removes a network without endpoints.
    ///
    /// # Errors
    ///
    /// There is none of this name, it is the default one, or it has endpoints.
    pub fn remove_network(&self, name: &str) -> Result<(), Error> {
        let _turn = self.changes();
        let network = {
            let mut registry = self.registry();
            let name = registry.network(name)?.name.clone();
            if name == network::DEFAULT {
                return Err(Error::DefaultNetwork(name));
            }
            let number = registry.network(&name)?.number;
            let endpoints: Vec<_> =
                registry.on(number).map(|endpoint| endpoint.name.as_str()).collect();
            if !endpoints.is_empty() {
                return Err(Error::NetworkInUse { network: name, endpoints: endpoints.join(", ") });
            }
            registry.networks.remove(&name).ok_or(Error::NoNetwork(name))?
        };
        self.switch.remove_network(network.number);
        Ok(())
    }

    /// Changes a network while it runs: gateway and uplink.
    ///
    /// Containers whose default routes lead through it are told of the new gateway; one that cannot
    /// be reached is noted in the log and keeps its route.
    ///
    /// # Errors
    ///
    /// There is none of this name, or the change cannot be.
    pub fn change_network(
        &self,
        name: &str,
        change: &api::NetworkChange,
    ) -> Result<api::Network, Error> {
        let _turn = self.changes();
        let (number, gateway_changes, containers) = {
            let mut registry = self.registry();
            let network = registry.network(name)?;
            let number = network.number;
            let owner = |addr| {
                registry.on(number).find(|e| e.ips().contains(&addr)).map(|e| e.name.clone())
            };
            let (subnets, uplink) = network.changed(change, owner)?;
            let gateway_changes = subnets != network.subnets;
            let name = network.name.clone();
            let Some(network) = registry.networks.get_mut(&name) else {
                return Err(Error::NoNetwork(name));
            };
            (network.subnets, network.uplink) = (subnets, uplink);
            let routers = network.routers();
            let mut containers = Vec::new();
            for endpoint in registry.endpoints.values_mut().filter(|e| e.network == number) {
                if gateway_changes && endpoint.routed {
                    endpoint.routers.clone_from(&routers);
                    containers.push((
                        endpoint.name.clone(),
                        endpoint.target.clone(),
                        endpoint.ifname.clone(),
                    ));
                }
            }
            (number, gateway_changes, containers)
        };
        self.work_anew(number, gateway_changes);
        let routers = self.registry().by_number(number).map(Network::routers).unwrap_or_default();
        for (name, target, ifname) in containers {
            if let Err(error) = netns::set_gateways(&target, &ifname, &routers) {
                log!("network set: endpoint {name} keeps its default route: {error:#}");
            }
        }
        self.network(name)
    }

    /// All networks.
    pub fn networks(&self) -> Vec<api::Network> {
        let registry = self.registry();
        registry
            .networks
            .values()
            .map(|network| network.describe(registry.described_on(network.number)))
            .collect()
    }

    /// One network, by name, id or an unambiguous beginning of that.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn network(&self, name: &str) -> Result<api::Network, Error> {
        let registry = self.registry();
        let network = registry.network(name)?;
        Ok(network.describe(registry.described_on(network.number)))
    }

    /// Tells the workers of a new network and makes its host port where that can be.
    fn put_to_work(&self, network: &mut Network) {
        let addresses = host::addresses(&self.own_addresses_with(network));
        self.switch.set_network(network.number, network.config(addresses));
        network.host_port = host::add_port(&self.switch, network);
    }

    /// Tells the workers of a changed network; with `renew`, its host port is made anew.
    fn work_anew(&self, number: NetworkId, renew: bool) {
        let (config, old) = {
            let addresses = host::addresses(&self.registry().own_addresses());
            let mut registry = self.registry();
            let Some(network) = registry.by_number_mut(number) else { return };
            let old = if renew { network.host_port.take() } else { None };
            (network.config(addresses), old)
        };
        self.switch.set_network(number, config);
        if let Some(old) = old {
            self.switch.remove_port(number, old.port);
        }
        if renew {
            // The host port is made without the lock, from what the network is now: `changes` is
            // held, so it stays that.
            let wanted = self.registry().by_number(number).map(host::wanted);
            let made =
                wanted.flatten().and_then(|wanted| host::make(&self.switch, number, &wanted));
            if let Some(network) = self.registry().by_number_mut(number) {
                network.host_port = made;
            }
        }
    }

    /// Tells the workers of the host's addresses where those have changed.
    pub(crate) fn refresh_host_addresses(&self) {
        let own: Vec<IpAddr> = self.registry().own_addresses();
        let addresses = host::addresses(&own);
        let changed: Vec<_> = {
            let mut registry = self.registry();
            if registry.host_addresses == addresses {
                return;
            }
            registry.host_addresses.clone_from(&addresses);
            let config = |network: &Network| (network.number, network.config(addresses.clone()));
            registry.networks.values().map(config).collect()
        };
        for (number, config) in changed {
            self.switch.set_network(number, config);
        }
    }

    /// Every gateway's address, `network`'s among them.
    fn own_addresses_with(&self, network: &Network) -> Vec<IpAddr> {
        let mut own = self.registry().own_addresses();
        own.extend(network.own_addresses().iter().map(ipnet::IpNet::addr));
        own
    }

    /// What a new subnet must not overlap: other networks', and the host's connected routes that are
    /// not ours.
    fn taken_subnets(&self) -> Vec<Taken> {
        let registry = self.registry();
        let mut taken = Vec::new();
        let mut own_interfaces = Vec::new();
        for network in registry.networks.values() {
            let taken_by = |subnet: &network::Subnet| Taken::Network {
                subnet: subnet.subnet,
                name: network.name.clone(),
            };
            taken.extend(network.subnets.iter().map(taken_by));
            own_interfaces.extend(network.host_port.as_ref().map(|port| port.ifname.clone()));
        }
        drop(registry);
        taken.extend(host::connected_routes(&own_interfaces));
        taken
    }

    /// Does what follows from something the workers report by themselves.
    ///
    /// # Errors
    ///
    /// The switch cannot go on.
    pub(crate) fn serve_event(&self, event: Event) -> Result<(), Error> {
        match event {
            Event::PortDied { network, port, error } => self.port_died(network, port, &error),
            Event::WorkerDied { worker, panic } => return Err(Error::Worker { worker, panic }),
            other => log!("{other:?}"),
        }
        Ok(())
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        // Nothing in the registry is half-changed when a holder panics: each change is one step.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// A network by name, id or an unambiguous beginning of that.
    pub(crate) fn network(&self, name: &str) -> Result<&Network, Error> {
        let name = if name.is_empty() { network::DEFAULT } else { name };
        if let Some(network) = self.networks.get(name) {
            return Ok(network);
        }
        let mut begin = self.networks.values().filter(|network| network.id.starts_with(name));
        match (begin.next(), begin.next()) {
            (Some(network), None) => Ok(network),
            (Some(_), Some(_)) => Err(Error::Ambiguous(name.to_owned())),
            (None, _) => Err(Error::NoNetwork(name.to_owned())),
        }
    }

    pub(crate) fn by_number(&self, number: NetworkId) -> Option<&Network> {
        self.networks.values().find(|network| network.number == number)
    }

    fn by_number_mut(&mut self, number: NetworkId) -> Option<&mut Network> {
        self.networks.values_mut().find(|network| network.number == number)
    }

    /// The endpoints of a network.
    pub(crate) fn on(&self, number: NetworkId) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values().filter(move |endpoint| endpoint.network == number)
    }

    /// The same as `docker network inspect` lists them, by id.
    pub(crate) fn described_on(
        &self,
        number: NetworkId,
    ) -> BTreeMap<String, api::NetworkContainer> {
        self.on(number).map(|endpoint| (endpoint.id.clone(), endpoint.on_network())).collect()
    }

    /// An endpoint's place by name, id or an unambiguous beginning of that.
    pub(crate) fn find(&self, name: &str) -> Result<u64, Error> {
        let by_name = self.endpoints.iter().find(|(_, e)| e.name == name || e.id == name);
        if let Some((at, _)) = by_name {
            return Ok(*at);
        }
        let mut begin =
            self.endpoints.iter().filter(|(_, e)| !name.is_empty() && e.id.starts_with(name));
        match (begin.next(), begin.next()) {
            (Some((at, _)), None) => Ok(*at),
            (Some(_), Some(_)) => Err(Error::Ambiguous(name.to_owned())),
            (None, _) => Err(Error::NoEndpoint(name.to_owned())),
        }
    }

    fn own_addresses(&self) -> Vec<IpAddr> {
        let own = self.networks.values().flat_map(Network::own_addresses);
        own.map(|own| own.addr()).collect()
    }
}
