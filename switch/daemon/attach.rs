//! Attaching and detaching: an endpoint's way through the kernel, the switch and the registry.
//!
//! Setting up goes: promise, interface, port, listeners. Taking down goes the other way and past any
//! failure. No lock is held over the slow steps; `settled` tells those who wait for an end.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use datapath::{IpMtu, MacAddr, PortId, PortRole};
use netns::{Netns, Target};
use worker::{NetworkId, PortConfig};

use crate::api;
use crate::endpoint::{Endpoint, Status, Watcher};
use crate::error::Error;
use crate::host;
use crate::keeper::Keeper;
use crate::log::log;
use crate::mac;
use crate::rivals;
use crate::spec::PublishSpec;
use crate::state::Daemon;

/// Addresses tried for one endpoint, each of which another station was found to have.
const MAX_RIVALS: usize = 16;

/// Most endpoints.
const MAX_ENDPOINTS: usize = 16_384;

/// A new endpoint, and how to tell when its namespace ends.
#[derive(Debug)]
pub struct Attached {
    /// The endpoint.
    pub endpoint: api::Endpoint,
    /// What to watch.
    pub watch: Watch,
}

/// What tells that an endpoint's namespace has ended.
pub enum Watch {
    /// The process's end, readable on this pidfd.
    Process(OwnedFd),
    /// The file no longer standing for the namespace of this number.
    File(PathBuf, u64),
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(_) => f.write_str("Process"),
            Self::File(path, inode) => write!(f, "File({}, {inode})", path.display()),
        }
    }
}

impl Daemon {
    /// Attaches a namespace to a network, ports included: all of it or nothing.
    ///
    /// # Errors
    ///
    /// The request cannot be met, or the kernel or the switch refuses. What had been made is undone.
    pub fn attach(&self, request: &api::EndpointCreate) -> Result<Attached, Error> {
        let specs: Vec<PublishSpec> =
            request.ports.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let target = target(&request.target)?;
        // Opened before the namespace is looked at: if the process ends and its number is given to
        // another, this one still says that ours has ended.
        let process = match &target {
            Target::Pid(pid) => Some(netns::sockopt::pidfd_open(*pid).map_err(|error| {
                match error.raw_os_error() {
                    // The latter for 0, which is nobody's, and for a thread's.
                    Some(nix::libc::ESRCH | nix::libc::EINVAL) => {
                        netns::Error::NoSuchProcess { pid: *pid }.into()
                    }
                    _ => Error::System { what: "watch the process", source: error },
                }
            })?),
            _ => None,
        };
        let netns = Arc::new(target.open()?);
        let inode = netns.inode();
        if inode == Netns::current()?.inode() {
            return Err(Error::Invalid { what: "target", value: target.to_string(), why: OURS });
        }
        let watch = match (process, &target) {
            (Some(pidfd), _) => Watch::Process(pidfd),
            (None, Target::Path(path)) => Watch::File(path.clone(), inode),
            (None, Target::Name(name)) => Watch::File(netns::named::path(name)?, inode),
            (None, Target::Pid(_) | Target::Current) => {
                return Err(Error::Invalid {
                    what: "target",
                    value: target.to_string(),
                    why: NO_CURRENT,
                });
            }
        };
        self.refresh_host_addresses();
        let at = self.promise_free(request, &target, &netns)?;
        let done = self.make_device(at).and_then(|()| self.publish_at(at, &specs));
        if let Err(error) = done {
            self.take_down(at);
            return Err(error);
        }
        let mut registry = self.registry();
        let Some(endpoint) = registry.endpoints.get_mut(&at) else {
            return Err(Error::NoEndpoint(request.target.clone()));
        };
        // It may have died meanwhile; then it stays so.
        if endpoint.status == Status::Attaching {
            endpoint.status = Status::Up;
        }
        let endpoint = endpoint.describe();
        self.settled.notify_all();
        Ok(Attached { endpoint, watch })
    }

    /// Promises addresses that no other station has, where the network is a segment of the host's. One that was
    /// chosen gives way to another.
    fn promise_free(
        &self,
        request: &api::EndpointCreate,
        target: &Target,
        netns: &Arc<Netns>,
    ) -> Result<u64, Error> {
        for _ in 0..MAX_RIVALS {
            let at = self.promise(request, target.clone(), Arc::clone(netns))?;
            let (interface, mac, addrs) = {
                let registry = self.registry();
                let Some(endpoint) = registry.endpoints.get(&at) else { return Ok(at) };
                let network = registry.by_number(endpoint.network);
                let bridged = network.filter(|network| network.bridged.is_some());
                let Some(interface) = bridged.and_then(|network| network.uplink.interface()) else {
                    return Ok(at);
                };
                (interface.to_owned(), endpoint.mac, endpoint.ips())
            };
            let (addr, station) = match self.rival(&interface, mac, &addrs) {
                Ok(None) => return Ok(at),
                Ok(Some(rival)) => rival,
                Err(error) => {
                    self.take_down(at);
                    return Err(error);
                }
            };
            let mut registry = self.registry();
            let number = registry.endpoints.get(&at).map(|endpoint| endpoint.network);
            if let Some(network) = number.and_then(|number| registry.by_number_mut(number)) {
                network.note_foreign(addr);
            }
            drop(registry);
            self.take_down(at);
            let option = if addr.is_ipv4() { "--ip" } else { "--ip6" };
            let asked = if addr.is_ipv4() { &request.ip } else { &request.ip6 };
            if asked.is_some() {
                let fix = format!("{option} ADDR");
                return Err(Error::AddressConflict { addr, interface, station, fix });
            }
        }
        Err(Error::NoFreeAddress { network: request.network.clone(), tried: MAX_RIVALS })
    }

    /// Who else has one of these addresses on the segment of `interface`.
    fn rival(
        &self,
        interface: &str,
        mac: MacAddr,
        addrs: &[IpAddr],
    ) -> Result<Option<(IpAddr, String)>, Error> {
        // The host's own station does not hear us: what we send leaves by the wire.
        let host = self.registry().host_addresses.clone();
        if let Some(addr) = addrs.iter().find(|addr| host.contains(addr)) {
            return Ok(Some((*addr, "the host".to_owned())));
        }
        let rival = rivals::rival(interface, mac, addrs)?;
        Ok(rival.map(|(addr, station)| (addr, mac::text(station))))
    }

    /// Puts the endpoint into the registry, so that its name and addresses are nobody else's.
    fn promise(
        &self,
        request: &api::EndpointCreate,
        target: Target,
        netns: Arc<Netns>,
    ) -> Result<u64, Error> {
        let rows = self.switch.segment_rows();
        let mut registry = self.registry();
        if registry.endpoints.len() >= MAX_ENDPOINTS {
            return Err(Error::TooManyEndpoints(MAX_ENDPOINTS));
        }
        let network = registry.network(&request.network)?;
        let others = registry.endpoints.values();
        let mut endpoint = Endpoint::plan(network, others, request, target, netns.inode())?;
        endpoint.netns = Some(netns);
        if endpoint.dns.is_empty() {
            endpoint.dns = network.learnt_dns(&rows);
        }
        let at = registry.next;
        registry.next += 1;
        registry.endpoints.insert(at, endpoint);
        Ok(at)
    }

    fn make_device(&self, at: u64) -> Result<(), Error> {
        let (name, network, netns, device, mut port) = {
            let registry = self.registry();
            let Some(endpoint) = registry.endpoints.get(&at) else { return Ok(()) };
            let port = PortConfig {
                role: PortRole::Container,
                mtu: IpMtu(endpoint.mtu),
                mac: endpoint.mac,
                addresses: endpoint.ips(),
                offloads: datapath::Offloads::None,
                queues: Vec::new(),
            };
            let device = endpoint.device(self.switch.workers());
            (endpoint.name.clone(), endpoint.network, endpoint.netns.clone(), device, port)
        };
        let Some(netns) = netns else { return Ok(()) };
        let made = netns::attach(&netns, &device)?;
        let keeper = Keeper::of(&made);
        (port.offloads, port.queues) = (host::offloads(made.opened), made.queues);
        let port = self
            .switch
            .add_port(network, port)
            .map_err(|source| Error::AddPort { endpoint: name, source })?;
        if let Some(endpoint) = self.registry().endpoints.get_mut(&at) {
            (endpoint.port, endpoint.keeper) = (Some(port), keeper);
        }
        Ok(())
    }

    /// Detaches an endpoint, by name, id or an unambiguous beginning of that. One that is just being
    /// attached or detached is waited for.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn detach(&self, name: &str) -> Result<(), Error> {
        let at = self.registry().find(name)?;
        self.detach_at(at);
        Ok(())
    }

    fn detach_at(&self, at: u64) {
        let mut registry = self.registry();
        loop {
            match registry.endpoints.get_mut(&at).map(|endpoint| &mut endpoint.status) {
                None => return,
                Some(Status::Attaching | Status::Detaching) => {
                    let woken = self.settled.wait(registry);
                    registry = woken.unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                Some(status @ (Status::Up | Status::Dead(_))) => {
                    *status = Status::Detaching;
                    break;
                }
            }
        }
        drop(registry);
        self.take_down(at);
    }

    /// Undoes all there is of an endpoint, last first, and forgets it.
    fn take_down(&self, at: u64) {
        self.release(at, |_| Status::Detaching);
        let transient = {
            let mut registry = self.registry();
            let gone = registry.endpoints.remove(&at);
            self.settled.notify_all();
            let network = gone.and_then(|endpoint| registry.by_number(endpoint.network));
            network.filter(|network| network.transient).map(|network| network.name.clone())
        };
        if let Some(network) = transient {
            // Refused while it has another endpoint, whose end will come here too.
            let _ = self.remove_network(&network);
        }
    }

    /// Takes back listeners, port and interface, and notes the new status.
    fn release(&self, at: u64, status: impl FnOnce(&Status) -> Status) {
        let (network, published, port, kept, veth) = {
            let mut registry = self.registry();
            let Some(endpoint) = registry.endpoints.get_mut(&at) else { return };
            endpoint.status = status(&endpoint.status);
            let veth = (endpoint.kind == netns::Kind::Veth)
                .then(|| (endpoint.name.clone(), endpoint.netns.clone(), endpoint.ifname.clone()));
            let published = std::mem::take(&mut endpoint.published);
            let kept = (endpoint.keeper.take(), endpoint.stock.take());
            (endpoint.network, published, endpoint.port.take(), kept, veth)
        };
        for id in published.iter().rev().filter_map(|published| published.id) {
            self.switch.unpublish(id);
        }
        let Some(port) = port else { return };
        if !published.is_empty() {
            self.tell_segment_of(network);
        }
        self.switch.remove_port(network, port);
        // With the last descriptor a TAP goes, and with the last socket the namespace.
        drop(kept);
        if let Some((name, Some(netns), ifname)) = veth
            && let Err(error) = netns::detach(&netns, &ifname)
        {
            // With its other end closed the kernel takes it away, some time later.
            log!("detach {name}: {error:#}");
        }
    }

    /// The switch says that a port's device is gone: the endpoint is shown as dead until it is
    /// detached, or its namespace ends.
    pub(crate) fn port_died(&self, network: NetworkId, port: PortId, error: &str) {
        let found = {
            let registry = self.registry();
            let mut endpoints = registry.endpoints.iter();
            endpoints
                .find(|(_, endpoint)| endpoint.network == network && endpoint.port == Some(port))
                .map(|(at, endpoint)| (*at, endpoint.name.clone()))
        };
        match found {
            Some((at, name)) => {
                log!("endpoint {name}: its device is gone: {error}");
                self.release(at, |status| match status {
                    Status::Up | Status::Attaching => Status::Dead(error.to_owned()),
                    other => other.clone(),
                });
                self.settled.notify_all();
            }
            // The host port, one that is being detached, or an interface whose end `links` sees.
            None => log!("port {port} of network {}: its device is gone: {error}", network.0),
        }
    }

    /// Detaches everything, last first, and leaves the segments; what is being attached is waited for.
    pub fn detach_all(&self) {
        loop {
            let last = self.registry().endpoints.keys().next_back().copied();
            match last {
                Some(at) => self.detach_at(at),
                None => break,
            }
        }
        self.leave_all_segments();
    }

    /// Has an endpoint's watcher end with it; at once where it is gone already.
    pub(crate) fn keep_watcher(&self, id: &str, watcher: Watcher) {
        let mut registry = self.registry();
        if let Some(endpoint) = registry.endpoints.values_mut().find(|endpoint| endpoint.id == id) {
            endpoint.watcher = Some(watcher);
        }
    }

    /// All endpoints, in the order they were attached.
    pub fn endpoints(&self) -> Vec<api::Endpoint> {
        self.registry().endpoints.values().map(Endpoint::describe).collect()
    }

    /// One endpoint, by name, id or an unambiguous beginning of that.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn endpoint(&self, name: &str) -> Result<api::Endpoint, Error> {
        let registry = self.registry();
        let at = registry.find(name)?;
        registry
            .endpoints
            .get(&at)
            .map(Endpoint::describe)
            .ok_or(Error::NoEndpoint(name.to_owned()))
    }
}

const NO_CURRENT: &str = "write pid:N, the path of a namespace, or its name below /run/netns";
/// The interface would take the default route of the host, and with it the way of our own uplink.
const OURS: &str = "this is the daemon's own namespace, with the host's interfaces; attach another, as \
    `pontoon ns add NAME` or `unshare --net` make";

fn target(text: &str) -> Result<Target, Error> {
    let Ok(target) = text.parse::<Target>();
    let usable = match &target {
        Target::Current => false,
        Target::Path(path) => path.is_absolute(),
        Target::Name(name) => !name.is_empty(),
        Target::Pid(_) => true,
    };
    if usable {
        Ok(target)
    } else {
        Err(Error::Invalid { what: "target", value: text.to_owned(), why: NO_CURRENT })
    }
}
