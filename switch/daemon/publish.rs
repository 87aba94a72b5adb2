//! Publishing: host listeners that lead to a container's ports.
//!
//! All listeners of a request are bound, or none: a range that meets a used port in the middle leaves
//! nothing behind. Publishing is done one request at a time, so that two of them do not take turns at
//! the same range.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::PoisonError;

use datapath::PortId;
use nat::Protocol;
use nix::errno::Errno;
use worker::{NetworkId, Publication};

use crate::api;
use crate::endpoint::{Published, Status};
use crate::error::Error;
use crate::owner;
use crate::spec::{PublishSpec, listen_addresses};
use crate::state::Daemon;

/// Descriptors kept for everything but listeners: devices, flows, requests.
const KEPT_DESCRIPTORS: u64 = 1024;

/// What is remembered between requests.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Where the search for a free host port goes on: after the last one found, as docker does, so
    /// that a port just given back is not the next one given out.
    cursor: u16,
    /// Descriptors this process may have.
    limit: u64,
}

impl Publisher {
    pub(crate) const fn new(limit: u64) -> Self {
        Self { cursor: 0, limit }
    }

    /// Ports to try for `-P`, each once, beginning after the last one found.
    fn candidates(&self, range: (u16, u16), reserved: &[(u16, u16)]) -> impl Iterator<Item = u16> {
        let (first, last) = range;
        let start = if (first..last).contains(&self.cursor) { self.cursor + 1 } else { first };
        let is_reserved = move |port: &u16| reserved.iter().any(|(a, b)| (*a..=*b).contains(port));
        (start..=last).chain(first..start).filter(move |port| !is_reserved(port))
    }
}

/// Whose ports are published.
struct Inside {
    name: String,
    network: NetworkId,
    port: PortId,
    addresses: Vec<IpAddr>,
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
        let gone = {
            let mut registry = self.registry();
            let at = registry.find(name)?;
            let Some(endpoint) = registry.endpoints.get_mut(&at) else {
                return Err(Error::NoEndpoint(name.to_owned()));
            };
            for spec in &specs {
                let published = |pair| endpoint.published.iter().any(|p| matches(p, spec, pair));
                if !spec.pairs().all(published) {
                    let endpoint = endpoint.name.clone();
                    return Err(Error::NotPublished { endpoint, spec: spec.to_string() });
                }
            }
            let asked =
                |p: &Published| specs.iter().any(|s| s.pairs().any(|pair| matches(p, s, pair)));
            let (gone, kept) = endpoint.published.iter().copied().partition(asked);
            endpoint.published = kept;
            let gone: Vec<Published> = gone;
            gone
        };
        for published in gone.iter().rev() {
            self.switch.unpublish(published.id);
        }
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
        let inside = {
            let registry = self.registry();
            let endpoint = registry.endpoints.get(&at);
            match endpoint.and_then(|endpoint| Some((endpoint, endpoint.port?))) {
                Some((endpoint, port)) => Inside {
                    name: endpoint.name.clone(),
                    network: endpoint.network,
                    port,
                    addresses: endpoint.ips(),
                },
                None => return Err(Error::NoEndpoint(at.to_string())),
            }
        };
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

    fn take_back(&self, made: &[Published]) {
        for published in made.iter().rev() {
            self.switch.unpublish(published.id);
        }
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
            for (host, container) in spec.pairs() {
                match host {
                    Some(host) => self.bind(inside, spec, host, container, made)?,
                    None => self.bind_free(publisher, inside, spec, container, made)?,
                }
            }
        }
        Ok(())
    }

    /// Binds one host port on each address of the spec, or on none.
    fn bind(
        &self,
        inside: &Inside,
        spec: &PublishSpec,
        host: u16,
        container: u16,
        made: &mut Vec<Published>,
    ) -> Result<(), Error> {
        let before = made.len();
        for listen in listen_addresses(spec.host_ip, host, has_ipv6()) {
            let publication = Publication {
                network: inside.network,
                port: inside.port,
                protocol: spec.protocol,
                listen,
                to: inside.addresses.clone(),
                to_port: container,
            };
            match self.switch.publish(publication) {
                Ok(id) => made.push(Published { id, protocol: spec.protocol, listen, container }),
                // The kernel has IPv6, and it is switched off for this namespace.
                Err(error)
                    if spec.host_ip.is_none() && listen.is_ipv6() && lacks_family(&error) => {}
                Err(error) => {
                    self.take_back(made.split_off(before).as_slice());
                    return Err(self.explain(listen, spec.protocol, error));
                }
            }
        }
        Ok(())
    }

    /// Binds the next free host port of the kernel's own range.
    fn bind_free(
        &self,
        publisher: &mut Publisher,
        inside: &Inside,
        spec: &PublishSpec,
        container: u16,
        made: &mut Vec<Published>,
    ) -> Result<(), Error> {
        let range = local_port_range();
        let reserved = reserved_ports();
        let used = self.used_ports(spec.protocol);
        let free = |port: &u16| !used.contains(port);
        let candidates: Vec<u16> = publisher.candidates(range, &reserved).filter(free).collect();
        for host in candidates {
            match self.bind(inside, spec, host, container, made) {
                Err(Error::PortInUse { .. } | Error::PublishedAlready { .. }) => {}
                Ok(()) => {
                    publisher.cursor = host;
                    return Ok(());
                }
                Err(other) => return Err(other),
            }
        }
        let (first, last) = range;
        Err(Error::NoFreePort { first, last, container, protocol: spec.protocol })
    }

    fn used_ports(&self, protocol: Protocol) -> std::collections::BTreeSet<u16> {
        let registry = self.registry();
        let published = registry.endpoints.values().flat_map(|endpoint| &endpoint.published);
        published.filter(|p| p.protocol == protocol).map(|p| p.listen.port()).collect()
    }

    /// Why a listener could not be bound, in the user's terms.
    fn explain(&self, listen: SocketAddr, protocol: Protocol, source: io::Error) -> Error {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRINUSE) => {
                let registry = self.registry();
                for endpoint in registry.endpoints.values() {
                    for other in &endpoint.published {
                        let meets = other.listen.ip() == listen.ip()
                            || other.listen.ip().is_unspecified()
                            || listen.ip().is_unspecified();
                        if other.protocol == protocol
                            && other.listen.port() == listen.port()
                            && meets
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

fn matches(
    published: &Published,
    spec: &PublishSpec,
    (host, container): (Option<u16>, u16),
) -> bool {
    published.protocol == spec.protocol
        && published.container == container
        && host.is_none_or(|host| published.listen.port() == host)
        && match spec.host_ip {
            Some(addr) => published.listen.ip() == addr,
            // `8080:80` was published on every address; `80` means each listener there is.
            None => host.is_none() || published.listen.ip().is_unspecified(),
        }
}

fn lacks_family(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

/// Whether the kernel has IPv6: the file is there exactly then.
fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

fn sysctl(name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()
}

/// `net.ipv4.ip_local_port_range` (ip-sysctl): where `-P` looks for host ports.
fn local_port_range() -> (u16, u16) {
    let text = sysctl("ip_local_port_range").unwrap_or_default();
    let mut ports = text.split_ascii_whitespace().filter_map(|port| port.parse().ok());
    match (ports.next(), ports.next()) {
        (Some(first), Some(last)) if first <= last && first > 0 => (first, last),
        _ => (32_768, 60_999), // the kernel's default
    }
}

/// `net.ipv4.ip_local_reserved_ports` (ip-sysctl): never handed out.
fn reserved_ports() -> Vec<(u16, u16)> {
    let text = sysctl("ip_local_reserved_ports").unwrap_or_default();
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.trim().split(',').filter_map(range).collect()
}

/// `net.ipv4.ip_unprivileged_port_start` (ip-sysctl).
fn unprivileged_start() -> u16 {
    sysctl("ip_unprivileged_port_start").and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker::PublishId;

    fn published(listen: &str, container: u16) -> Published {
        let (id, listen) = (PublishId(1), listen.parse().unwrap());
        Published { id, protocol: Protocol::Tcp, listen, container }
    }

    fn first_match(text: &str, published: &Published) -> bool {
        let spec: PublishSpec = text.parse().unwrap();
        spec.pairs().any(|pair| matches(published, &spec, pair))
    }

    #[test]
    fn the_cursor_goes_round_and_skips_what_is_reserved() {
        let mut publisher = Publisher::new(100);
        let range = (32_768, 32_772);
        let ports = |publisher: &Publisher| -> Vec<u16> {
            publisher.candidates(range, &[(32_770, 32_771)]).collect()
        };
        assert_eq!(ports(&publisher), [32_768, 32_769, 32_772]);
        publisher.cursor = 32_768;
        assert_eq!(ports(&publisher), [32_769, 32_772, 32_768]);
        publisher.cursor = 32_772;
        assert_eq!(ports(&publisher), [32_768, 32_769, 32_772]);
        publisher.cursor = 9;
        assert_eq!(ports(&publisher).len(), 3);
    }

    #[test]
    fn a_port_is_taken_back_as_it_was_given_or_by_its_number_inside() {
        let everywhere = published("0.0.0.0:8080", 80);
        let local = published("127.0.0.1:8080", 80);
        for text in ["8080:80", "80", "0.0.0.0:8080:80"] {
            assert!(first_match(text, &everywhere), "{text}");
        }
        assert!(first_match("127.0.0.1:8080:80", &local) && first_match("80", &local));
        assert!(!first_match("8080:80", &local));
        for text in ["8081:80", "8080:81", "8080:80/udp", "127.0.0.1:8080:80"] {
            assert!(!first_match(text, &everywhere), "{text}");
        }
    }

    #[test]
    fn the_kernels_settings_are_read() {
        let (first, last) = local_port_range();
        assert!(first < last);
        assert!(reserved_ports().iter().all(|(a, b)| a <= b));
    }
}
