//! What a presence is told, and what it tells.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use nat::Zone;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpCidr, Ipv4Cidr, Ipv6Cidr};

use crate::drop::DropReason;
use crate::port::{IpMtu, MacAddr, PortId};

/// How a station gets its addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing<A> {
    /// It has none, and takes no part in the family.
    None,
    /// They were given to it.
    Static {
        /// Each with its subnet's prefix length.
        addresses: Vec<A>,
        /// The default router.
        gateway: Option<IpAddr>,
    },
    /// By DHCP (RFC 2131), or by router advertisements (RFC 4862).
    Auto,
}

/// Who is to be present, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceConfig {
    /// The segment.
    pub zone: Zone,
    /// Its port, by which everything leaves.
    pub port: PortId,
    /// Our station.
    pub mac: MacAddr,
    /// Largest IP packet the interface carries.
    pub mtu: IpMtu,
    /// IPv4.
    pub v4: Addressing<Ipv4Cidr>,
    /// IPv6; with any but `None` comes a link-local address.
    pub v6: Addressing<Ipv6Cidr>,
    /// What translation shows beside its own: claimed where it is in a subnet of its own.
    pub shown: Vec<RangeInclusive<IpAddr>>,
    /// The name told to a DHCP server, of which 63 octets are.
    pub hostname: Option<String>,
    /// Where every random interval and transaction number comes from: a number nobody can guess.
    pub seed: u64,
}

/// What became of a frame shown to a [`Presence`](super::Presence).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Heard {
    /// The bridge is to decide it.
    Pass,
    /// It was for the presence alone, and counts as consumed.
    Consumed,
    /// It was for the presence alone, and is not to be believed.
    Drop(DropReason),
}

/// Where an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was given.
    Static,
    /// A DHCP server leased it.
    Dhcp,
    /// A router advertised its prefix (RFC 4862 §5.5).
    Advertised,
    /// Each station with IPv6 has it (RFC 4862 §5.3).
    LinkLocal,
    /// It is to be shown by translation.
    Shown,
}

/// Why an address is no longer ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Another station has it (RFC 5227 §2.4, RFC 4862 §5.4).
    Conflict,
    /// Its lease or lifetime has ended.
    Expired,
    /// The DHCP server takes it back (DHCPNAK), or leased another one instead.
    Refused,
    /// It is not wanted any more, or with another prefix length.
    Withdrawn,
}

/// What was done about another station's claim of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// We did not have it yet and leave it.
    Avoided,
    /// We announced once more that it is ours.
    Defended,
    /// It was claimed again within [`DEFEND_INTERVAL`]: we give it up.
    GivenUp,
}

/// Something that happened to a presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// An address is ours from now on.
    Gained {
        /// With its subnet's prefix length.
        address: IpCidr,
        /// Where it comes from.
        origin: Origin,
    },
    /// An address is not ours any more.
    Lost {
        /// With its subnet's prefix length.
        address: IpCidr,
        /// Where it came from.
        origin: Origin,
        /// Why.
        why: Lost,
    },
    /// Another station claims an address of ours.
    Conflict {
        /// The address.
        address: IpAddr,
        /// The other station.
        station: MacAddr,
        /// What was done about it.
        settled: Settled,
    },
    /// [`Presence::routes`](super::Presence::routes) are others.
    Routes,
    /// [`Presence::dns`](super::Presence::dns) are others.
    Dns,
    /// [`Presence::mtu`](super::Presence::mtu) is another.
    Mtu,
}

/// How far an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Being probed for; not ours yet.
    Tentative,
    /// Ours.
    InUse,
    /// Ours, and not to be used for what is new (RFC 4862 §5.5.4).
    Deprecated,
    /// Another station has it; it is probed for again after a while.
    Conflict,
}

/// An address, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRow {
    /// With its subnet's prefix length.
    pub address: IpCidr,
    /// Where it comes from.
    pub origin: Origin,
    /// How far it is.
    pub standing: Standing,
    /// When it ends; `None` where it does not.
    pub expires: Option<Instant>,
}

/// The lease held or asked for, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// The client's state in the words of RFC 2131 §4.4: `INIT`, `SELECTING`, `REQUESTING`, `BOUND`,
    /// `RENEWING`, `REBINDING`, `REBOOTING`.
    pub state: &'static str,
    /// The address.
    pub address: Option<Ipv4Cidr>,
    /// The server's identifier.
    pub server: Option<IpAddr>,
    /// When it is renewed (T1), rebound (T2), and over.
    pub times: Option<[Instant; 3]>,
}

/// How long after one conflict another one of the same address is not defended against any more
/// (RFC 5227 §1.1, DEFEND_INTERVAL).
pub const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
