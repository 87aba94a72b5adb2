//! A network as the data path knows it: its own addresses, and what all workers share of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU16, Ordering::Relaxed};

use dashmap::DashMap;
use nat::{Conntrack, Zone};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpAddress, IpCidr, Ipv6Address};

use crate::fdb::Fdb;
use crate::hop;
use crate::leg::Leg;
use crate::neighbour::{CAPACITY, Neighbours, Pending};
use crate::packet::is_link_local;
use crate::port::{IpMtu, MacAddr, PortId};

/// Where packets for addresses beyond the network go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// Nowhere.
    None,
    /// Through the host's own sockets.
    Sockets,
    /// Through our station on a segment of the world, translated on the way: the zone of that segment.
    Raw(Zone),
}

/// Our L3 presence on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its station.
    pub mac: MacAddr,
    /// Its addresses with their subnets' prefix lengths.
    pub addresses: Vec<IpCidr>,
}

impl Gateway {
    /// The link-local address of its station.
    #[must_use]
    pub fn link_local(&self) -> Ipv6Address {
        link_local(self.mac)
    }

    /// Whether `addr` is one of its addresses.
    #[must_use]
    pub fn has(&self, addr: IpAddr) -> bool {
        self.addresses.iter().any(|own| IpAddr::from(own.address()) == addr)
            || IpAddr::V6(self.link_local()) == addr
    }

    /// Whether `addr` is within one of its subnets.
    #[must_use]
    pub fn on_link(&self, addr: IpAddr) -> bool {
        let addr = IpAddress::from(addr);
        self.addresses.iter().any(|own| own.contains_addr(&addr))
    }

    /// Whether `addr` is the directed broadcast address of one of its IPv4 subnets.
    #[must_use]
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        self.addresses.iter().any(|own| match (own, addr) {
            (IpCidr::Ipv4(own), IpAddr::V4(addr)) => own.broadcast() == Some(addr),
            _ => false,
        })
    }

    /// The address to speak from to `addr`: one of its subnet, else the first of its family.
    #[must_use]
    pub fn source_for(&self, addr: IpAddr) -> Option<IpAddr> {
        if is_link_local(addr) {
            return Some(self.link_local().into());
        }
        let near = IpAddress::from(addr);
        let same = |own: &&IpCidr| IpAddr::from(own.address()).is_ipv4() == addr.is_ipv4();
        let of_its_subnet = self.addresses.iter().find(|own| own.contains_addr(&near));
        let own = of_its_subnet.or_else(|| self.addresses.iter().find(same))?;
        Some(own.address().into())
    }
}

/// The link-local address of a station: fe80::/64 and the modified EUI-64 (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: MacAddr) -> Ipv6Address {
    let [a, b, c, d, e, f] = mac.0;
    let words = [
        0xfe80,
        0,
        0,
        0,
        u16::from_be_bytes([a ^ 2, b]),
        u16::from_be_bytes([c, 0xff]),
        u16::from_be_bytes([0xfe, d]),
        u16::from_be_bytes([e, f]),
    ];
    Ipv6Address::from(words)
}

/// A network's configuration; changed by giving every worker a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// None: layer 2 only.
    pub gateway: Option<Gateway>,
    /// The way out.
    pub uplink: Uplink,
    /// Largest IP packet on it.
    pub mtu: IpMtu,
    /// The host's own addresses, reached by the host port where there is one.
    pub host_addresses: Vec<IpAddr>,
    /// Subnets of other networks, which containers of this one may not reach.
    pub isolated_from: Vec<IpCidr>,
    /// Which side of the gateway it is.
    pub leg: Leg,
}

impl NetworkConfig {
    /// Whether `addr` is our station's own. On a segment its link-local one is only once it is known to be
    /// nobody else's.
    #[must_use]
    pub fn has(&self, addr: IpAddr) -> bool {
        let tentative = matches!(&self.leg, Leg::Uplink(outside) if !outside.link_local);
        self.gateway.as_ref().is_some_and(|gateway| {
            gateway.has(addr) && !(tentative && IpAddr::V6(gateway.link_local()) == addr)
        })
    }

    /// The address to speak from to `addr`; none of its kind may be ours yet.
    #[must_use]
    pub fn source_for(&self, addr: IpAddr) -> Option<IpAddr> {
        self.gateway.as_ref()?.source_for(addr).filter(|own| self.has(*own))
    }

    /// Whether our station answers for that address.
    #[must_use]
    pub fn answers_for(&self, addr: IpAddr) -> bool {
        self.has(addr) || matches!(&self.leg, Leg::Uplink(outside) if outside.shows(addr))
    }

    /// The neighbour by which a packet of ours gets to `to`; none if no router is known.
    #[must_use]
    pub fn next_hop(&self, to: IpAddr, neighbours: &Neighbours) -> Option<IpAddr> {
        match &self.leg {
            Leg::Uplink(outside) if !is_link_local(to) => {
                hop::next_hop(&outside.routes, to, |addr| neighbours.reachability(addr))
            }
            _ => Some(to),
        }
    }

    /// Whether a packet of ours can go to `addr` without a router between: what it says of its station is
    /// of use.
    #[must_use]
    pub fn is_neighbour(&self, addr: IpAddr) -> bool {
        is_link_local(addr)
            || self.gateway.as_ref().is_some_and(|gateway| gateway.on_link(addr))
            || matches!(&self.leg, Leg::Uplink(outside) if outside.is_next_hop(addr))
    }
}

/// What the workers share of one network.
#[derive(Debug)]
pub struct Network {
    /// Its conntrack zone.
    pub zone: Zone,
    /// Station to port.
    pub fdb: Fdb,
    /// Address to station.
    pub neighbours: Neighbours,
    /// Flows, of every network.
    pub conntrack: Arc<Conntrack>,
    /// Bounds our ICMP errors, for each port that causes them.
    errors: DashMap<PortId, ErrorLimit>,
    identification: AtomicU16,
}

impl Network {
    /// An empty network.
    #[must_use]
    pub fn new(zone: Zone, conntrack: Arc<Conntrack>) -> Self {
        Self {
            zone,
            fdb: Fdb::default(),
            neighbours: Neighbours::default(),
            conntrack,
            errors: DashMap::new(),
            identification: AtomicU16::new(1),
        }
    }

    /// An empty segment of the world, all of whose stations are behind one port.
    #[must_use]
    pub fn of_segment(zone: Zone, conntrack: Arc<Conntrack>) -> Self {
        // The rest is for those whom containers ask for and nobody has heard yet.
        let neighbours = Neighbours::new(CAPACITY / 4 * 3);
        Self { neighbours, ..Self::new(zone, conntrack) }
    }

    /// Whether one more ICMP error may be sent now that `port` has caused; if so it counts. One port's
    /// errors leave every other's alone.
    pub fn allow_error(&self, port: PortId, now: Instant) -> bool {
        self.errors.entry(port).or_default().allow(now)
    }

    /// Forgets what is kept for `port`, which is going away, and returns what waited for its neighbours.
    pub(crate) fn forget_port(&self, port: PortId) -> Vec<Pending> {
        self.fdb.flush_port(port);
        self.errors.remove(&port);
        self.neighbours.forget_port(port)
    }

    /// An IPv4 identification for a datagram that may be fragmented (RFC 6864 §4.1).
    pub fn next_identification(&self) -> u16 {
        self.identification.fetch_add(1, Relaxed)
    }
}

/// At most 1,000 ICMP errors a second and 50 at once, as one Linux host (`icmp_msgs_per_sec`,
/// `icmp_msgs_burst`); RFC 1812 §4.3.2.8 and RFC 4443 §2.4 (f) ask for a limit.
#[derive(Debug)]
pub struct ErrorLimit {
    /// When the bucket would have been full, in microseconds: a leaky bucket kept as one time.
    next: AtomicI64,
}

impl Default for ErrorLimit {
    /// With the whole burst to spend.
    fn default() -> Self {
        Self { next: AtomicI64::new(i64::MIN) }
    }
}

impl ErrorLimit {
    const INTERVAL: Duration = Duration::from_millis(1);
    const BURST: Duration = Duration::from_millis(50);

    /// Whether one more error may be sent now; if so it counts.
    pub fn allow(&self, now: Instant) -> bool {
        let earliest = (now - Self::BURST).total_micros();
        let next = self.next.load(Relaxed).max(earliest);
        let allowed = next <= now.total_micros();
        if allowed {
            // A race between workers lets a few more through, never fewer.
            let micros = i64::try_from(Self::INTERVAL.total_micros()).unwrap_or(i64::MAX);
            self.next.store(next + micros, Relaxed);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leg::Outside;

    #[test]
    fn errors_are_bounded_to_a_burst_and_a_rate() {
        let limit = ErrorLimit::default();
        let start = Instant::from_secs(10);
        for (limit, start) in [(&limit, start), (&ErrorLimit::default(), Instant::ZERO)] {
            let burst = (0..1000).filter(|_| limit.allow(start)).count();
            assert!((50..=51).contains(&burst), "{burst}");
        }
        let second = (1..=2000)
            .filter(|half| limit.allow(start + Duration::from_micros(500 * half)))
            .count();
        assert!((999..=1001).contains(&second), "{second}");
    }

    /// RFC 4862 §5.4: an address is not answered for, nor spoken from, while it is tentative.
    #[test]
    fn a_station_has_its_link_local_address_once_it_is_told_so() {
        let mac = MacAddr([0x02, 0x42, 0xac, 0x12, 0, 1]);
        let addresses = vec!["2001:db8::5/64".parse().unwrap()];
        let config = |leg| NetworkConfig {
            gateway: Some(Gateway { mac, addresses: addresses.clone() }),
            uplink: Uplink::None,
            mtu: IpMtu::ETHERNET,
            host_addresses: Vec::new(),
            isolated_from: Vec::new(),
            leg,
        };
        let own: IpAddr = link_local(mac).into();
        let router: IpAddr = "fe80::1".parse().unwrap();
        let outside = |link_local| Leg::Uplink(Outside { link_local, ..Outside::default() });
        for (leg, ours) in [(Leg::Inside, true), (outside(true), true), (outside(false), false)] {
            let config = config(leg);
            assert_eq!((config.has(own), config.answers_for(own)), (ours, ours));
            assert_eq!(config.source_for(router), ours.then_some(own));
            assert!(config.answers_for("2001:db8::5".parse().unwrap()));
        }
    }

    #[test]
    fn the_gateway_knows_its_own_addresses() {
        let gateway = Gateway {
            mac: MacAddr([0x02, 0x42, 0xac, 0x12, 0, 1]),
            addresses: vec!["172.18.0.1/16".parse().unwrap(), "fd00:18::1/64".parse().unwrap()],
        };
        assert_eq!(gateway.link_local().to_string(), "fe80::42:acff:fe12:1");
        assert!(gateway.has("fe80::42:acff:fe12:1".parse().unwrap()));
        assert!(gateway.on_link("172.18.255.1".parse().unwrap()));
        assert!(!gateway.on_link("172.19.0.1".parse().unwrap()));
        assert!(gateway.is_broadcast("172.18.255.255".parse().unwrap()));
    }
}
