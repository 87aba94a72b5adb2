//! Segments of the world: where the switch has a station of its own, behind which networks are hidden.
//!
//! A segment is one more network of the switch, whose one port is an interface of the host's and whose
//! gateway is our station there. A container network whose uplink is [`Uplink::Raw`](crate::Uplink) of
//! the segment's zone reaches the world through it; several may share one. Read `nat::Config` and
//! `nat::Rules` for what becomes of packets on the way.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use datapath::{Addressing, IpMtu, MacAddr, PortId};
use nat::{Filtering, Protocol, Timeouts};
use smoltcp::wire::{IpCidr, Ipv4Cidr, Ipv6Cidr};

use crate::control::{NetworkId, SegmentId};

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
    /// one range of each. The station answers for them. Those in a subnet of its own are probed for first, the
    /// first [`MAX_SHOWN`](datapath::presence::MAX_SHOWN) of them; nobody is shown with one that is another
    /// station's.
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
    /// It is of [`SegmentConfig::snat_to`], and in a subnet of the station's.
    Shown,
}

/// Whether an address of our station may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressState {
    /// Asked for on the segment, whether anybody has it.
    Tentative,
    /// In use.
    Valid,
    /// In use as long as it is, and not for what is new: its preferred lifetime is over (RFC 4862 §5.5.4).
    Deprecated,
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

/// A DHCP lease, or the asking for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// The client's state in the words of RFC 2131 §4.4, such as `BOUND`.
    pub state: &'static str,
    /// Who gave it, if anybody has.
    pub server: Option<Ipv4Addr>,
    /// Time until more of it is asked for; `None` where it has no end.
    pub renews_in: Option<Duration>,
    /// Time until it ends, unless it is renewed; `None` where it has no end.
    pub expires_in: Option<Duration>,
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
    /// The DHCP lease, or how far the asking for one is; `None` without DHCP.
    pub lease: Option<LeaseRow>,
    /// Name servers that DHCP and routers tell of, the best first.
    pub dns: Vec<IpAddr>,
    /// The port of its interface.
    pub port: PortId,
}
