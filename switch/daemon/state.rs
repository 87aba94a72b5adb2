//! What the daemon knows: networks and endpoints, and the order in which they change.
//!
//! Four locks, taken in this order. `changes` lets one network be made, changed or removed at a time,
//! kernel and workers included. `publishing` does the same for host ports, and `telling` for the rules of
//! segments. `registry` is held for a
//! look or a note and never across a system call, so that listings wait for nobody. An attach holds
//! none of them while it works: it promises itself a place, works, and notes the outcome.
//!
//! Everything here blocks; the server calls it on threads made for that.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crossbeam_channel::Receiver;
use worker::{Event, NetworkId, SegmentId, SegmentRow, Switch};

use crate::api;
use crate::config::Config;
use crate::endpoint::{Endpoint, Status};
use crate::error::Error;
use crate::host;
use crate::log::log;
use crate::network::{self, Network};
use crate::publisher::Publisher;
use crate::segment::Segment;

/// The control plane.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) switch: Switch,
    started: SystemTime,
    changes: Mutex<()>,
    pub(crate) publishing: Mutex<Publisher>,
    /// Held while a segment is told of its published ports, so that what it was told last is newest.
    pub(crate) telling: Mutex<()>,
    registry: Mutex<Registry>,
    /// Told whenever an endpoint is gone from the registry, or up, and when a station's addresses change.
    pub(crate) settled: Condvar,
}

/// Networks by name, endpoints by the order they came in.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) networks: BTreeMap<String, Network>,
    pub(crate) endpoints: BTreeMap<u64, Endpoint>,
    pub(crate) segments: BTreeMap<SegmentId, Segment>,
    pub(crate) next: u64,
    /// The host's addresses as the workers last heard them.
    pub(crate) host_addresses: Vec<IpAddr>,
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
            telling: Mutex::default(),
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

    /// All networks.
    pub fn networks(&self) -> Vec<api::Network> {
        let rows = self.switch.segment_rows();
        let mut networks: Vec<_> = {
            let registry = self.registry();
            registry.networks.values().map(|network| registry.describe(network, &rows)).collect()
        };
        networks.iter_mut().filter_map(|network| network.uplink.as_mut()).for_each(look_at_wire);
        networks
    }

    /// One network, by name, id or an unambiguous beginning of that.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn network(&self, name: &str) -> Result<api::Network, Error> {
        let rows = self.switch.segment_rows();
        let mut network = {
            let registry = self.registry();
            registry.describe(registry.network(name)?, &rows)
        };
        network.uplink.as_mut().into_iter().for_each(look_at_wire);
        Ok(network)
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

    /// Does what follows from something the workers report by themselves.
    ///
    /// # Errors
    ///
    /// The switch cannot go on.
    pub(crate) fn serve_event(&self, event: Event) -> Result<(), Error> {
        match event {
            Event::PortDied { network, port, error } => self.port_died(network, port, &error),
            Event::SegmentChanged { segment } => self.segment_changed(segment),
            Event::SegmentDied { segment, error } => self.segment_died(segment, &error),
            Event::AddressConflict { segment, addr, station } => {
                self.address_conflict(segment, addr, station);
            }
            Event::WorkerDied { worker, panic } => return Err(Error::Worker { worker, panic }),
            other => log!("{other:?}"),
        }
        Ok(())
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        // Nothing in the registry is half-changed when a holder panics: each change is one step.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changes(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says so where a station that has all it needs is on an interface that is down or has no carrier.
fn look_at_wire(station: &mut api::Station) {
    if station.status.starts_with("down") {
        return;
    }
    match netns::look_at(&station.interface) {
        Ok(facts) if facts.carrier => {}
        Ok(_) => "no carrier".clone_into(&mut station.status),
        Err(error) => station.status = format!("down ({error})"),
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

    pub(crate) fn by_number_mut(&mut self, number: NetworkId) -> Option<&mut Network> {
        self.networks.values_mut().find(|network| network.number == number)
    }

    /// The endpoints of a network.
    pub(crate) fn on(&self, number: NetworkId) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values().filter(move |endpoint| endpoint.network == number)
    }

    /// A network as `docker network inspect` shows it; `rows` are what the switch says of segments.
    pub(crate) fn describe(&self, network: &Network, rows: &[SegmentRow]) -> api::Network {
        let of = self.on(network.number);
        let containers = of.map(|endpoint| (endpoint.id.clone(), endpoint.on_network())).collect();
        let segment = network.segment.and_then(|id| self.segments.get(&id));
        let station = segment.map(|segment| {
            let row = rows.iter().find(|row| row.segment == segment.id);
            segment.describe(row, self.behind(segment.id))
        });
        api::Network { uplink: station, ..network.describe(containers) }
    }

    /// The networks behind a segment.
    pub(crate) fn behind(&self, segment: SegmentId) -> impl Iterator<Item = &Network> + Clone {
        self.networks.values().filter(move |network| network.segment == Some(segment))
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

    /// Every gateway's address.
    pub(crate) fn own_addresses(&self) -> Vec<IpAddr> {
        let own = self.networks.values().flat_map(Network::own_addresses);
        own.map(|own| own.addr()).collect()
    }
}
