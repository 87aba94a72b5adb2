//! Segments of the world: where the switch has a station of its own, behind which networks are hidden.
//!
//! A segment is one more network of the switch, whose one port is an interface of the host's and whose
//! gateway is our station there. A container network whose uplink is [`Uplink::Raw`](crate::Uplink) of
//! the segment's zone reaches the world through it; several may share one. Read `nat::Config` and
//! `nat::Rules` for what becomes of packets on the way.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use datapath::{IpMtu, MacAddr, PortId};
use nat::{Filtering, Nat, Protocol, Timeouts, Zone};
use smoltcp::wire::{IpCidr, Ipv4Cidr, Ipv6Cidr};

use crate::control::{NetworkId, PortConfig};
use crate::switch::Switch;

/// A segment of the world, chosen by whoever adds it: 0 to 32,767.
///
/// Its tables are read by the calls for networks (`fdb`, `neighbours`, `stats`, `flows`) under
/// [`network`](Self::network).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u16);

impl SegmentId {
    /// Set in the zone of every segment and of no network.
    const MARK: u16 = 0x8000;

    /// Its conntrack zone, as [`Uplink::Raw`](crate::Uplink::Raw) wants it.
    #[must_use]
    pub const fn zone(self) -> Zone {
        Zone(self.0 | Self::MARK)
    }

    /// The same by the name of a network, for listings.
    #[must_use]
    pub const fn network(self) -> NetworkId {
        NetworkId(self.0 | Self::MARK)
    }

    /// The segment of a zone, if it is one's.
    #[must_use]
    pub const fn of(zone: Zone) -> Option<Self> {
        if zone.0 & Self::MARK == 0 { None } else { Some(Self(zone.0 & !Self::MARK)) }
    }
}

/// Where our station's addresses of one family come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing<C> {
    /// It has none of that family.
    None,
    /// They are given, each probed for before it is used (RFC 5227, RFC 4862 §5.4).
    Static {
        /// The addresses with their subnets' prefix lengths; the first is shown by masquerade.
        addresses: Vec<C>,
        /// The router to everywhere else, on one of those subnets (or link-local); of the same family.
        gateway: Option<IpAddr>,
    },
    /// DHCP for IPv4; router advertisements and SLAAC for IPv6.
    Auto,
}

/// Our station on a segment, and what becomes of packets that cross it.
///
/// Begin with [`SegmentConfig::new`] and change what must differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentConfig {
    /// Our station.
    pub mac: MacAddr,
    /// The longest IP packet of the segment.
    pub mtu: IpMtu,
    /// Its IPv4 addresses.
    pub v4: Addressing<Ipv4Cidr>,
    /// Its IPv6 addresses, besides the link-local one.
    pub v6: Addressing<Ipv6Cidr>,
    /// Whether sources are translated. Without, containers' subnets are routed both ways, and whoever
    /// routes on the segment must know that they are behind our station.
    pub nat: bool,
    /// The addresses containers are shown with, in place of the station's first one of a family: at most
    /// one range of each. The station answers for them.
    pub snat_to: Vec<RangeInclusive<IpAddr>>,
    /// The IPv4 addresses that IPv6 clients of an IPv4 container's published ports are shown with there.
    pub nat46: Option<RangeInclusive<Ipv4Addr>>,
    /// Prefixes of containers and what they are shown as, without state (RFC 6296): inside, outside, of
    /// the same length, at most 64.
    pub npt: Vec<(Ipv6Cidr, Ipv6Cidr)>,
    /// Who from outside may answer an inside address and port.
    pub filtering: Filtering,
    /// How long a silent flow is remembered.
    pub timeouts: Timeouts,
    /// Whether TCP connections are picked up in the middle.
    pub loose: bool,
    /// Whether an MSS is lowered to what the way carries.
    pub clamp_mss: bool,
    /// External ports one container may hold.
    pub max_mappings_per_port: usize,
}

impl SegmentConfig {
    /// A station with no address, and the RFCs' NAT: address-dependent filtering, masquerade.
    #[must_use]
    pub const fn new(mac: MacAddr, mtu: IpMtu) -> Self {
        Self {
            mac,
            mtu,
            v4: Addressing::None,
            v6: Addressing::None,
            nat: true,
            snat_to: Vec::new(),
            nat46: None,
            npt: Vec::new(),
            filtering: Filtering::AddressDependent,
            timeouts: Timeouts::RFC,
            loose: true,
            clamp_mss: true,
            max_mappings_per_port: 32_768,
        }
    }
}

/// A port, or a range of ports, of a segment's addresses that leads to a container: a rule of DNAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatPublication {
    /// TCP or UDP, or another protocol with ports.
    pub protocol: Protocol,
    /// The one address it is published at; every address of the station, if `None`.
    pub listen: Option<IpAddr>,
    /// The ports outside.
    pub ports: RangeInclusive<u16>,
    /// Whose container.
    pub network: NetworkId,
    /// The container's port on the bridge.
    pub port: PortId,
    /// The container's addresses, of which the one of the client's family is taken, else (with
    /// [`SegmentConfig::nat46`]) the IPv4 one.
    pub to: Vec<IpAddr>,
    /// The container's port number for the first of `ports`; the others follow in order.
    pub to_port: u16,
}

/// Where an address of our station comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressOrigin {
    /// It was given.
    Static,
    /// DHCP.
    Dhcp,
    /// A router's advertisement (RFC 4862).
    Slaac,
}

/// Whether an address of our station may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressState {
    /// Asked for on the segment, whether anybody has it.
    Tentative,
    /// In use.
    Valid,
    /// Another station has it: it is not used.
    Conflict,
}

/// An address of our station.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRow {
    /// The address and its subnet's prefix length.
    pub cidr: IpCidr,
    /// Where it comes from.
    pub origin: AddressOrigin,
    /// Whether it is used.
    pub state: AddressState,
    /// How long it may still be used; `None` is for ever.
    pub valid_for: Option<Duration>,
}

/// A DHCP lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// Who gave it.
    pub server: Ipv4Addr,
    /// Time until it ends, unless it is renewed.
    pub expires_in: Duration,
    /// Name servers it tells of.
    pub dns: Vec<Ipv4Addr>,
}

/// A segment, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    /// Which.
    pub segment: SegmentId,
    /// Our station.
    pub mac: MacAddr,
    /// The longest IP packet.
    pub mtu: IpMtu,
    /// The station's addresses.
    pub addresses: Vec<AddressRow>,
    /// The routers in use, at most one of each family.
    pub routers: Vec<IpAddr>,
    /// The DHCP lease, if there is one.
    pub lease: Option<LeaseRow>,
    /// The port of its interface.
    pub port: PortId,
}

impl Switch {
    /// Puts a station of ours on the segment that `device` is an interface of, an
    /// [`Interface`](datapath::PortRole::Interface) port. Networks reach it once their uplink is
    /// [`Uplink::Raw`](crate::Uplink::Raw) of its zone.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`; `InvalidInput` for a configuration that contradicts itself, in words; as
    /// [`add_port`](Self::add_port).
    pub fn add_segment(
        &self,
        id: SegmentId,
        config: SegmentConfig,
        device: PortConfig,
    ) -> io::Result<PortId> {
        let _ = (id, config, device);
        Err(unsupported())
    }

    /// Changes our station, or what becomes of packets. Flows go on where they can: those shown with an
    /// address that is gone end, and all end if the way of translating changes.
    ///
    /// # Errors
    ///
    /// `NotFound`; as [`add_segment`](Self::add_segment).
    pub fn set_segment(&self, id: SegmentId, config: SegmentConfig) -> io::Result<()> {
        let _ = (id, config);
        Err(unsupported())
    }

    /// Takes our station from a segment. Its flows end; networks behind it have no way out any more.
    /// Taking one that is not there does nothing.
    pub fn remove_segment(&self, id: SegmentId) {
        let _ = id;
    }

    /// The segments, with what our stations have there now.
    pub fn segment_rows(&self) -> Vec<SegmentRow> {
        Vec::new()
    }

    /// Publishes these ports at a segment's addresses, in place of those before. Flows by a port that is
    /// published no more, or leads elsewhere, end; all others go on.
    ///
    /// # Errors
    ///
    /// `NotFound`; `InvalidInput` for one that cannot be, in words: none is published then.
    pub fn publish_nat(&self, id: SegmentId, published: Vec<NatPublication>) -> io::Result<()> {
        let _ = (id, published);
        Err(unsupported())
    }

    /// A segment's NAT, for listings: its rules with their counts, its mappings.
    pub fn nat(&self, id: SegmentId) -> Option<Arc<Nat>> {
        let _ = id;
        None
    }
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "the raw uplink is not there yet")
}
