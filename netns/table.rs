//! What the calling thread's namespace has: interfaces, addresses, routes, neighbours.
//!
//! Read by dumps of rtnetlink(7), a snapshot each. An answer the decoder does not understand (a
//! newer kernel's) is left out rather than spoiling the rest.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its number inside the namespace.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; `None` where it has none of six octets.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in octets.
    pub mtu: u32,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Its addresses with their prefixes.
    pub addresses: Vec<IpNet>,
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; a prefix of length 0 is the default route.
    pub dst: IpNet,
    /// Next hop; `None` on a connected network.
    pub via: Option<IpAddr>,
    /// Out of which interface; empty for a multipath route.
    pub ifname: String,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Metric; the lowest wins.
    pub priority: u32,
}

/// A neighbour: what `ip neigh` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its IP address.
    pub address: IpAddr,
    /// Its hardware address, once known.
    pub lladdr: Option<[u8; 6]>,
    /// State in the words of `ip-neighbour(8)`: `REACHABLE`, `STALE`, `INCOMPLETE`, `FAILED` …
    pub state: String,
}

fn not_yet<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

/// All interfaces, loopback included.
///
/// # Errors
/// Where the kernel does not answer.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    not_yet()
}

/// All addresses of all interfaces, loopback's included.
///
/// # Errors
/// Where the kernel does not answer.
pub fn host_addresses() -> io::Result<Vec<IpAddr>> {
    not_yet()
}

/// Unicast routes of the main table, both families.
///
/// # Errors
/// Where the kernel does not answer.
pub fn routes() -> io::Result<Vec<Route>> {
    not_yet()
}

/// Neighbours on an interface.
///
/// # Errors
/// `ENODEV` where there is no such interface.
pub fn neighbours(ifname: &str) -> io::Result<Vec<Neighbour>> {
    let _ = ifname;
    not_yet()
}
