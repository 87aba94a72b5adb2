//! Bridge ports: what they are called, and what they can carry.

use std::fmt;
use std::net::IpAddr;

use nat::{Account, Zone};
pub use smoltcp::wire::EthernetAddress as MacAddr;

/// Octets of an Ethernet header: two addresses and the EtherType (RFC 894).
pub const ETHERNET_HEADER_LEN: usize = 14;

/// Octets of the largest frame a port can deliver: a 65,535-octet IP packet behind an Ethernet header
/// with one VLAN tag.
pub const MAX_FRAME_LEN: usize = ETHERNET_HEADER_LEN + 4 + 65_535;

/// A port of one bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    /// The gateway: our own L3 presence on the bridge, as `br0` is the kernel's.
    pub const GATEWAY: Self = Self(0);

    /// The place in a table of ports.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PortId {
    /// Whose quota of conntrack its flows count against, as a port of `zone`.
    #[must_use]
    pub const fn account(self, zone: Zone) -> Account {
        Account((zone.0 as u32) << 16 | self.0 as u32)
    }
}

/// Who pays for what is kept for it on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Payer {
    /// A port of the network.
    Port(PortId),
    /// Somebody on another network, whose packets are routed here.
    Foreign(Account),
}

impl From<PortId> for Payer {
    fn from(port: PortId) -> Self {
        Self::Port(port)
    }
}

/// Largest IP packet a link carries, in octets: what Linux calls the MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpMtu(pub u16);

impl IpMtu {
    /// Ethernet's own (RFC 894).
    pub const ETHERNET: Self = Self(1500);

    /// Octets of the largest untagged frame: Ethernet header included, FCS not.
    #[must_use]
    pub const fn frame_len(self) -> usize {
        self.0 as usize + ETHERNET_HEADER_LEN
    }
}

/// Who is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// A container's endpoint.
    Container,
    /// The host itself: a TAP in the host's namespace that carries the gateway's addresses.
    Host,
    /// A segment of the world, by an interface of the host's.
    Interface,
}

/// What a port's device does with frames whose checksum or segmentation was left undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Takes and delivers them behind an offload header (`virtio_net_hdr`, 10 octets).
    Header,
    /// Knows only plain frames: segments and checksums must be made before it.
    None,
}

/// A port, as the datapath knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Who is behind it.
    pub role: PortRole,
    /// Largest IP packet it carries.
    pub mtu: IpMtu,
    /// What its device can do.
    pub offloads: Offloads,
    /// The station attached, where it is known; told apart from what is learned.
    pub mac: MacAddr,
    /// The addresses it was given.
    pub addresses: Vec<IpAddr>,
}
