//! Networks: made, changed and removed, one at a time.
//!
//! What is made goes kernel's interface, switch, registry, and is taken down the other way; a step that
//! fails leaves nothing of those before it. `segments` has what several networks share.

use std::net::IpAddr;
use std::sync::Arc;

use worker::{NetworkId, SegmentId};

use crate::api;
use crate::config::Config;
use crate::error::Error;
use crate::host;
use crate::log::log;
use crate::network::{self, Network};
use crate::plan::Changed;
use crate::segment;
use crate::state::{Daemon, Registry};
use crate::subnet::{self, Taken};
use crate::uplink::{Raw, Uplink};

/// Most networks: each is a conntrack zone of 15 bits, and a bridge in every worker.
const MAX_NETWORKS: usize = 1024;

/// A container that must be told of another gateway: name, namespace, interface.
type Told = (String, Arc<netns::Netns>, String);

impl Daemon {
    pub(crate) fn make_default_network(&self, config: &Config) -> Result<Vec<String>, Error> {
        let _turn = self.changes();
        let taken = self.taken_subnets(None);
        let mut network = Network::plan_default(NetworkId(1), config, &taken)?;
        let notes = gave_way(&network, &taken).into_iter().collect();
        self.put_to_work(&mut network);
        self.registry().networks.insert(network.name.clone(), network);
        Ok(notes)
    }

    /// Makes a network. With a raw uplink, waits a while for its station to have an address.
    ///
    /// # Errors
    ///
    /// A name, subnet, gateway or uplink that cannot be had.
    pub fn create_network(&self, request: api::NetworkCreate) -> Result<api::Network, Error> {
        let (name, segment, mut warnings) = {
            let _turn = self.changes();
            self.make_network(request)?
        };
        if let Some(segment) = segment {
            match self.await_station(segment) {
                Ok(said) => warnings.extend(said),
                Err(error) => {
                    // Not there any more: somebody was quicker.
                    let _ = self.remove_network(&name);
                    return Err(error);
                }
            }
            let _turn = self.changes();
            warnings.extend(self.step_aside(&name, &[]));
        }
        Ok(api::Network { warnings, ..self.network(&name)? })
    }

    /// Makes a network; says its name, its segment if that is new, and what its user should know.
    fn make_network(
        &self,
        mut request: api::NetworkCreate,
    ) -> Result<(String, Option<SegmentId>, Vec<String>), Error> {
        let number = self.registry().free_number(&request.name)?;
        self.complete(&mut request)?;
        let mut taken = self.taken_subnets(None);
        if let Uplink::Bridge(interface) = &request.uplink {
            // It may be that very subnet.
            let same = |of: &String| of == interface;
            taken.retain(|taken| !matches!(taken, Taken::Route { interface: of, .. } if same(of)));
            request.mtu = Some(self.mtu_of(interface, request.mtu)?);
        }
        let mut warnings = Vec::new();
        if let Some(raw) = request.uplink.raw() {
            warnings = self.make_room(raw)?;
            taken = self.taken_subnets(None);
            taken.extend(segment::subnets(raw));
        }
        let mut network = Network::plan(number, request, &taken)?;
        warnings.extend(network.translation.timers.warnings());
        warnings.extend(gave_way(&network, &taken));
        let (segment, new) = self.connect(&network.uplink, &network.translation)?;
        network.segment = segment;
        self.put_to_work(&mut network);
        if let Err(error) = self.bridge(&mut network) {
            self.switch.remove_network(network.number);
            return Err(error);
        }
        let name = network.name.clone();
        self.registry().networks.insert(name.clone(), network);
        if let Some(segment) = segment {
            self.tell_segment(segment);
        }
        Ok((name, segment.filter(|_| new), warnings))
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
        if let Some(segment) = network.segment {
            self.leave_segment(segment);
        }
        Ok(())
    }

    /// Changes a network while it runs: gateway, uplink, and what that does.
    ///
    /// Containers whose default routes lead through it are told of the new gateway; one that cannot
    /// be reached is noted in the log and keeps its route. What networks with one interface share is
    /// changed for all of them.
    ///
    /// # Errors
    ///
    /// There is none of this name, or the change cannot be: the network is as it was, though unused ones that
    /// made room for it keep their new subnets. [`Error::ChangedBut`] says the opposite: the change is in
    /// force, and a station has not got what it was told to have.
    pub fn change_network(
        &self,
        name: &str,
        change: &api::NetworkChange,
    ) -> Result<api::Network, Error> {
        let turn = self.changes();
        let change = self.completed(name, change)?;
        let (number, changed) = {
            let registry = self.registry();
            let network = registry.network(name)?;
            let number = network.number;
            let owner = |addr| {
                registry.on(number).find(|e| e.ips().contains(&addr)).map(|e| e.name.clone())
            };
            (number, network.changed(&change, owner)?)
        };
        let mut warnings = match change.timeouts.is_some() {
            true => changed.translation.timers.warnings(),
            false => Vec::new(),
        };
        if let Some(raw) = changed.uplink.raw().filter(|_| change.uplink.is_some()) {
            warnings.extend(self.make_room(raw)?);
        }
        let moved = self.change_uplink(number, &changed)?;
        let (gateway_changes, containers) =
            self.registry().take_over(number, changed, moved.segment);
        self.work_anew(number, gateway_changes);
        if let Some(left) = moved.left {
            self.leave_segment(left);
        }
        if let Some(segment) = moved.segment {
            self.tell_segment(segment);
        }
        let routers = self.registry().by_number(number).map(Network::routers).unwrap_or_default();
        for (name, netns, ifname) in containers {
            if let Err(error) = netns::set_gateways(&netns, &ifname, &routers) {
                log!("network set: endpoint {name} keeps its default route: {error:#}");
            }
        }
        drop(turn);
        let others = change.uplink.is_some() || change.snat_to.is_some();
        if let Some(segment) = moved.segment.filter(|_| others) {
            let but =
                |error| Error::ChangedBut { network: name.to_owned(), error: Box::new(error) };
            warnings.extend(self.await_station(segment).map_err(but)?);
        }
        Ok(api::Network { warnings, ..self.network(name)? })
    }

    /// Gives a network another subnet than one that was chosen for it and that a segment or `more` has by
    /// now (RFC 4787 REQ-7). One with endpoints keeps it. Says what was done. For whoever has `changes`.
    pub(crate) fn step_aside(&self, name: &str, more: &[Taken]) -> Option<String> {
        let number = self.registry().network(name).ok()?.number;
        let mut taken = self.taken_subnets(Some(number));
        taken.extend_from_slice(more);
        let said = {
            let mut registry = self.registry();
            let used = registry.on(number).next().is_some();
            registry.by_number_mut(number).filter(|_| !used)?.step_aside(&taken)?
        };
        self.work_anew(number, true);
        Some(said)
    }

    /// Has networks that were given their subnets unasked, and are not used, leave those of a station's
    /// addresses. Says what was done. For whoever has `changes`.
    ///
    /// # Errors
    ///
    /// Another network has one of them.
    fn make_room(&self, raw: &Raw) -> Result<Vec<String>, Error> {
        let wanted: Vec<_> = segment::subnets(raw).collect();
        let names: Vec<_> = self.registry().networks.keys().cloned().collect();
        let mut said = Vec::new();
        for name in names {
            let clash = self.registry().networks.get(&name).and_then(|network| {
                let own = network.subnets.iter().filter(|_| network.bridged.is_none());
                let mut pairs =
                    own.flat_map(|own| wanted.iter().map(|taken| (own.subnet, taken.subnet())));
                pairs.find(|(own, wanted)| subnet::overlap(*own, *wanted))
            });
            let Some((own, subnet)) = clash else { continue };
            match self.step_aside(&name, &wanted) {
                Some(done) => said.push(done),
                None => {
                    let theirs = Taken::Network { subnet: own, name }.to_string();
                    let interface = raw.interface.clone();
                    return Err(Error::SegmentOverlaps { interface, subnet, theirs });
                }
            }
        }
        Ok(said)
    }

    /// Tells the workers of a new network and makes its host port where that can be.
    fn put_to_work(&self, network: &mut Network) {
        let addresses = host::addresses(&self.own_addresses_with(network));
        self.switch.set_policy(network.number, network.policy());
        self.switch.set_network(network.number, network.config(addresses));
        network.host_port = host::add_port(&self.switch, network);
    }

    /// Tells the workers of a changed network; with `renew`, its host port is made anew.
    fn work_anew(&self, number: NetworkId, renew: bool) {
        let (policy, config, old) = {
            let addresses = host::addresses(&self.registry().own_addresses());
            let mut registry = self.registry();
            let Some(network) = registry.by_number_mut(number) else { return };
            let old = if renew { network.host_port.take() } else { None };
            (network.policy(), network.config(addresses), old)
        };
        self.switch.set_policy(number, policy);
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

    /// Every gateway's address, `network`'s among them.
    fn own_addresses_with(&self, network: &Network) -> Vec<IpAddr> {
        let mut own = self.registry().own_addresses();
        own.extend(network.own_addresses().iter().map(ipnet::IpNet::addr));
        own
    }

    /// What a new subnet must not overlap: other networks', segments', and the host's connected routes
    /// that are not ours. What `but` has does not count.
    fn taken_subnets(&self, but: Option<NetworkId>) -> Vec<Taken> {
        let rows = self.switch.segment_rows();
        let registry = self.registry();
        let mut taken = Vec::new();
        let mut own_interfaces = Vec::new();
        for network in registry.networks.values() {
            let taken_by = |subnet: &network::Subnet| Taken::Network {
                subnet: subnet.subnet,
                name: network.name.clone(),
            };
            let others = network.subnets.iter().filter(|_| Some(network.number) != but);
            taken.extend(others.map(taken_by));
            own_interfaces.extend(network.host_port.as_ref().map(|port| port.ifname.clone()));
        }
        for segment in registry.segments.values() {
            taken.extend(segment::subnets(&segment.raw));
            taken.extend(segment.learnt(&rows));
        }
        drop(registry);
        taken.extend(host::connected_routes(&own_interfaces));
        taken
    }
}

impl Registry {
    /// A number for a new network of this name.
    fn free_number(&self, name: &str) -> Result<NetworkId, Error> {
        if self.networks.contains_key(name) {
            return Err(Error::NetworkExists(name.to_owned()));
        }
        let free = |number| self.networks.values().all(|network| network.number.0 != number);
        // The upper half of the numbers is for segments.
        let number = (1..=u16::MAX / 2).find(|number| free(*number));
        match number {
            Some(number) if self.networks.len() < MAX_NETWORKS => Ok(NetworkId(number)),
            _ => Err(Error::TooManyNetworks(MAX_NETWORKS)),
        }
    }

    /// Makes a network what a change wants; says whether its gateway is another, and which containers
    /// are to be told.
    fn take_over(
        &mut self,
        number: NetworkId,
        changed: Changed,
        segment: Option<SegmentId>,
    ) -> (bool, Vec<Told>) {
        let Some(network) = self.by_number_mut(number) else { return (false, Vec::new()) };
        let gateway_changes = changed.subnets != network.subnets;
        network.subnets = changed.subnets;
        network.uplink = changed.uplink;
        network.translation = changed.translation;
        network.segment = segment;
        let routers = network.routers();
        let mut containers = Vec::new();
        for endpoint in self.endpoints.values_mut().filter(|e| e.network == number) {
            if gateway_changes && endpoint.routed {
                endpoint.routers.clone_from(&routers);
                let (name, ifname) = (endpoint.name.clone(), endpoint.ifname.clone());
                containers.extend(endpoint.netns.clone().map(|netns| (name, netns, ifname)));
            }
        }
        (gateway_changes, containers)
    }
}

/// Why a network has not the subnet it would have had, for whoever did not choose.
fn gave_way(network: &Network, taken: &[Taken]) -> Option<String> {
    let subnet = network.subnets.first().filter(|_| network.chosen)?.subnet;
    let (pool, taken) = subnet::gave_way_to(subnet, taken)?;
    Some(format!("{pool} overlaps {taken}, so network {} is {subnet}", network.name))
}
