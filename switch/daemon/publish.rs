//! Publishing: host listeners that lead to a container's ports.
//!
//! All listeners of a request are bound, or none: a range that meets a used port in the middle leaves
//! nothing behind. Publishing is done one request at a time, so that two of them do not take turns at
//! the same range.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};

use datapath::PortId;
use nat::Protocol;
use netns::{Netns, SocketMaker};
use nix::errno::Errno;
use worker::{NetworkId, Publication, Splice, Stock};

use crate::api;
use crate::endpoint::{Published, Status};
use crate::error::Error;
use crate::hostports::{Range, has_ipv6, unprivileged_start};
use crate::owner;
use crate::publisher::Publisher;
use crate::spec::{PublishSpec, listen_addresses};
use crate::state::Daemon;

/// Descriptors kept for everything but listeners: devices, flows, requests.
const KEPT_DESCRIPTORS: u64 = 1024;

/// The search for free host ports, for one spec.
struct Search {
    last: u16,
    range: Range,
    /// Ports that endpoints have; binding those would fail, and asking costs more.
    used: BTreeSet<u16>,
}

/// Whose ports are published.
struct Inside {
    name: String,
    network: NetworkId,
    port: PortId,
    addresses: Vec<IpAddr>,
    /// Sockets inside, where TCP ports are published and there can be any.
    stock: Option<Arc<Stock>>,
    /// Addresses of specs that are the station's of the network's raw uplink, and not the host's.
    station: BTreeSet<IpAddr>,
}

impl Daemon {
    /// Publishes ports of an endpoint, all of them or none, and says what was bound.
    ///
    /// # Errors
    ///
    /// The endpoint is not up, or one of the listeners cannot be had.
    pub fn publish(&self, name: &str, specs: &[String]) -> Result<Vec<api::PublishedPort>, Error> {
        let specs: Vec<PublishSpec> =
            specs.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let at = {
            let registry = self.registry();
            let at = registry.find(name)?;
            match registry.endpoints.get(&at) {
                Some(endpoint) if endpoint.status != Status::Up => {
                    let (name, status) = (endpoint.name.clone(), endpoint.status.to_string());
                    return Err(Error::NotUp { name, status });
                }
                _ => at,
            }
        };
        let before = self.published(at).len();
        self.publish_at(at, &specs)?;
        Ok(self.published(at).iter().skip(before).map(Published::describe).collect())
    }

    /// Takes published ports back, all of `specs` or none: `8080:80` as it was published, or `80` for
    /// every listener of that container port.
    ///
    /// # Errors
    ///
    /// There is no such endpoint, or one spec matches nothing of it.
    pub fn unpublish(&self, name: &str, specs: &[String]) -> Result<(), Error> {
        let specs: Vec<PublishSpec> =
            specs.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let _turn = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let (gone, network) = {
            let mut registry = self.registry();
            let at = registry.find(name)?;
            let Some(endpoint) = registry.endpoints.get_mut(&at) else {
                return Err(Error::NoEndpoint(name.to_owned()));
            };
            for spec in &specs {
                let of_spec = endpoint.published.iter().filter(|p| covers(spec, p));
                let inside: BTreeSet<u16> = of_spec.map(|p| p.container).collect();
                if inside.len() != spec.container.count() {
                    let endpoint = endpoint.name.clone();
                    return Err(Error::NotPublished { endpoint, spec: spec.to_string() });
                }
            }
            let asked = |p: &Published| specs.iter().any(|spec| covers(spec, p));
            let (gone, kept) = endpoint.published.iter().copied().partition(asked);
            endpoint.published = kept;
            let gone: Vec<Published> = gone;
            (gone, endpoint.network)
        };
        self.take_back(&gone);
        self.tell_segment_of(network);
        Ok(())
    }

    fn published(&self, at: u64) -> Vec<Published> {
        let registry = self.registry();
        registry.endpoints.get(&at).map(|endpoint| endpoint.published.clone()).unwrap_or_default()
    }

    /// Publishes ports of an endpoint that has a device, all of them or none.
    pub(crate) fn publish_at(&self, at: u64, specs: &[PublishSpec]) -> Result<(), Error> {
        if specs.is_empty() {
            return Ok(());
        }
        let mut publisher = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.switch.segment_rows();
        let (mut inside, netns) = {
            let registry = self.registry();
            let endpoint = registry.endpoints.get(&at);
            match endpoint.and_then(|endpoint| Some((endpoint, endpoint.port?))) {
                Some((endpoint, port)) => {
                    let segment =
                        registry.by_number(endpoint.network).and_then(|network| network.segment);
                    let given = specs.iter().filter_map(|spec| spec.host_ip);
                    let station = match segment {
                        Some(id) => {
                            given.filter(|addr| registry.is_station(id, &rows)(*addr)).collect()
                        }
                        None => BTreeSet::new(),
                    };
                    let inside = Inside {
                        station,
                        name: endpoint.name.clone(),
                        network: endpoint.network,
                        port,
                        addresses: endpoint.ips(),
                        stock: endpoint.stock.clone(),
                    };
                    (inside, endpoint.netns.clone())
                }
                None => return Err(Error::NoEndpoint(at.to_string())),
            }
        };
        if inside.stock.is_none() && specs.iter().any(|spec| spec.protocol == Protocol::Tcp) {
            inside.stock = netns.and_then(|netns| self.stock(&inside, &netns));
        }
        self.check_budget(&publisher, specs)?;
        let mut made = Vec::new();
        if let Err(error) = self.bind_all(&mut publisher, &inside, specs, &mut made) {
            self.take_back(&made);
            return Err(error);
        }
        let mut registry = self.registry();
        match registry.endpoints.get_mut(&at) {
            Some(endpoint) if endpoint.port == Some(inside.port) => {
                endpoint.published.extend(made);
                endpoint.stock = inside.stock;
                drop(registry);
                self.tell_segment_of(inside.network);
                Ok(())
            }
            // It was detached meanwhile.
            _ => {
                drop(registry);
                self.take_back(&made);
                Err(Error::NoEndpoint(inside.name))
            }
        }
    }

    /// Sockets inside the namespace. Without them every client comes over the bridge.
    fn stock(&self, inside: &Inside, netns: &Netns) -> Option<Arc<Stock>> {
        let maker = SocketMaker::new(netns.try_clone().ok()?);
        let has = |v4: bool| inside.addresses.iter().any(|addr| addr.is_ipv4() == v4);
        self.switch.stock(maker, has(true), has(false)).ok()
    }

    fn take_back(&self, made: &[Published]) {
        let ids: Vec<_> = made.iter().filter_map(|published| published.id).collect();
        self.switch.unpublish_all(&ids);
    }

    /// Refuses before the first bind what would use up the descriptors in the middle.
    fn check_budget(&self, publisher: &Publisher, specs: &[PublishSpec]) -> Result<(), Error> {
        let each = |spec: &PublishSpec| {
            spec.container.count() * listen_addresses(spec.host_ip, 0, has_ipv6()).len()
        };
        let wanted: usize = specs.iter().map(each).sum();
        let used: usize = self.registry().endpoints.values().map(|e| e.published.len()).sum();
        let most =
            usize::try_from(publisher.limit.saturating_sub(KEPT_DESCRIPTORS)).unwrap_or(usize::MAX);
        let left = most.saturating_sub(used);
        if wanted > left {
            return Err(Error::TooManyListeners { wanted, left, limit: publisher.limit });
        }
        Ok(())
    }

    fn bind_all(
        &self,
        publisher: &mut Publisher,
        inside: &Inside,
        specs: &[PublishSpec],
        made: &mut Vec<Published>,
    ) -> Result<(), Error> {
        for spec in specs {
            let given: Vec<_> =
                spec.pairs().filter_map(|(host, container)| Some((host?, container))).collect();
            if !given.is_empty() {
                self.bind(inside, spec, &given, made)
                    .map_err(|(listen, error)| self.explain(listen, spec.protocol, error))?;
                continue;
            }
            let mut search = Search {
                last: publisher.last_found,
                range: Range::of_kernel(),
                used: self.used_ports(spec.protocol),
            };
            for (_, container) in spec.pairs() {
                self.bind_free(&mut search, inside, spec, container, made)?;
                publisher.last_found = search.last;
            }
        }
        Ok(())
    }

    /// Binds host ports, each on every address of the spec, all of them or none; says which could not be.
    fn bind(
        &self,
        inside: &Inside,
        spec: &PublishSpec,
        pairs: &[(u16, u16)],
        made: &mut Vec<Published>,
    ) -> Result<(), (SocketAddr, io::Error)> {
        let v6 = has_ipv6();
        if let Some(addr) = spec.host_ip.filter(|addr| inside.station.contains(addr)) {
            return self.bind_none(addr, spec, pairs, made);
        }
        let mut wanted: Vec<_> = pairs
            .iter()
            .flat_map(|(host, container)| {
                listen_addresses(spec.host_ip, *host, v6)
                    .into_iter()
                    .map(|listen| (listen, *container))
            })
            .collect();
        loop {
            let publication = |(listen, container): &(SocketAddr, u16)| Publication {
                network: inside.network,
                port: inside.port,
                protocol: spec.protocol,
                listen: *listen,
                to: inside.addresses.clone(),
                to_port: *container,
                splice: inside.stock.clone().map(|stock| Splice { stock, everybody: spec.splice }),
            };
            match self.switch.publish_all(wanted.iter().map(publication).collect()) {
                Ok(ids) => {
                    made.extend(ids.into_iter().zip(wanted).map(|(id, (listen, container))| {
                        let (protocol, splice) = (spec.protocol, spec.splice);
                        Published { id: Some(id), protocol, listen, container, splice }
                    }));
                    return Ok(());
                }
                // The kernel has IPv6, and it is switched off for this namespace.
                Err((place, error))
                    if spec.host_ip.is_none()
                        && wanted[place].0.is_ipv6()
                        && lacks_family(&error) =>
                {
                    wanted.retain(|(listen, _)| listen.is_ipv4());
                }
                Err((place, error)) => return Err((wanted[place].0, error)),
            }
        }
    }

    /// Notes ports of a station's own address, where the host cannot listen and the rules of its segment
    /// lead: they must be nobody else's there.
    fn bind_none(
        &self,
        addr: IpAddr,
        spec: &PublishSpec,
        pairs: &[(u16, u16)],
        made: &mut Vec<Published>,
    ) -> Result<(), (SocketAddr, io::Error)> {
        let (protocol, splice) = (spec.protocol, spec.splice);
        let registry = self.registry();
        let others = registry.endpoints.values().flat_map(|endpoint| &endpoint.published);
        let used: BTreeSet<u16> = others
            .chain(&*made)
            .filter(|p| p.protocol == protocol && meets(p.listen.ip(), addr))
            .map(|p| p.listen.port())
            .collect();
        if let Some((taken, _)) = pairs.iter().find(|(host, _)| used.contains(host)) {
            return Err((SocketAddr::new(addr, *taken), io::ErrorKind::AddrInUse.into()));
        }
        made.extend(pairs.iter().map(|(host, container)| {
            let (listen, container) = (SocketAddr::new(addr, *host), *container);
            Published { id: None, protocol, listen, container, splice }
        }));
        Ok(())
    }

    /// Binds the next host port that nobody has.
    fn bind_free(
        &self,
        search: &mut Search,
        inside: &Inside,
        spec: &PublishSpec,
        container: u16,
        made: &mut Vec<Published>,
    ) -> Result<(), Error> {
        for host in search.range.after(search.last).filter(|port| !search.used.contains(port)) {
            match self.bind(inside, spec, &[(host, container)], made) {
                Ok(()) => {
                    search.last = host;
                    return Ok(());
                }
                Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err((listen, error)) => return Err(self.explain(listen, spec.protocol, error)),
            }
        }
        let (first, last) = search.range.ends();
        Err(Error::NoFreePort { first, last, container, protocol: spec.protocol })
    }

    /// Host ports that endpoints have.
    fn used_ports(&self, protocol: Protocol) -> BTreeSet<u16> {
        let registry = self.registry();
        let published = registry.endpoints.values().flat_map(|endpoint| &endpoint.published);
        published.filter(|p| p.protocol == protocol).map(|p| p.listen.port()).collect()
    }

    /// Why a listener could not be bound, in the user's terms.
    fn explain(&self, listen: SocketAddr, protocol: Protocol, source: io::Error) -> Error {
        let errno = source.raw_os_error().map(Errno::from_raw);
        let in_use = source.kind() == io::ErrorKind::AddrInUse;
        match if in_use { Some(Errno::EADDRINUSE) } else { errno } {
            Some(Errno::EADDRINUSE) => {
                let registry = self.registry();
                for endpoint in registry.endpoints.values() {
                    for other in &endpoint.published {
                        if other.protocol == protocol
                            && other.listen.port() == listen.port()
                            && meets(other.listen.ip(), listen.ip())
                        {
                            return Error::PublishedAlready {
                                listen: other.listen,
                                protocol,
                                endpoint: endpoint.name.clone(),
                                container: other.container,
                            };
                        }
                    }
                }
                drop(registry);
                Error::PortInUse { listen, protocol, owner: owner::find(protocol, listen) }
            }
            Some(Errno::EACCES) if listen.port() < unprivileged_start() => {
                Error::PrivilegedPort { port: listen.port(), start: unprivileged_start() }
            }
            Some(Errno::EADDRNOTAVAIL) => Error::NotOurAddress(listen, listen.ip()),
            _ => Error::Listen { listen, protocol, source },
        }
    }
}

/// Whether `published` is one of the listeners `spec` names.
fn covers(spec: &PublishSpec, published: &Published) -> bool {
    let Some(at) = spec.container.position(published.container) else { return false };
    let host = published.listen.port();
    published.protocol == spec.protocol
        && (published.splice || !spec.splice)
        && spec.host.is_none_or(|range| range.position(host) == Some(at))
        && match spec.host_ip {
            Some(addr) => published.listen.ip() == addr,
            // `8080:80` was published on every address; `80` means each listener there is.
            None => spec.host.is_none() || published.listen.ip().is_unspecified(),
        }
}

/// Whether two listeners at one port would be in each other's way.
fn meets(a: IpAddr, b: IpAddr) -> bool {
    a == b || a.is_unspecified() || b.is_unspecified()
}

fn lacks_family(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker::PublishId;

    fn published(listen: &str, container: u16) -> Published {
        let (id, listen) = (Some(PublishId(1)), listen.parse().unwrap());
        Published { id, protocol: Protocol::Tcp, listen, container, splice: false }
    }

    fn names(text: &str, published: &Published) -> bool {
        covers(&text.parse().unwrap(), published)
    }

    #[test]
    fn a_port_is_taken_back_as_it_was_given_or_by_its_number_inside() {
        let everywhere = published("0.0.0.0:8080", 80);
        let local = published("127.0.0.1:8080", 80);
        for text in ["8080:80", "80", "0.0.0.0:8080:80", "8079-8081:79-81", "79-80"] {
            assert!(names(text, &everywhere), "{text}");
        }
        assert!(names("127.0.0.1:8080:80", &local) && names("80", &local));
        assert!(!names("8080:80", &local));
        assert!(!names("8080:80,splice", &everywhere));
        let spliced = Published { splice: true, ..everywhere };
        assert!(names("8080:80,splice", &spliced) && names("8080:80", &spliced));
        for text in ["8081:80", "8080:81", "8080:80/udp", "127.0.0.1:8080:80", "8080-8081:79-80"] {
            assert!(!names(text, &everywhere), "{text}");
        }
    }
}
