//! Where a packet for the gateway's station goes next.
//!
//! Longest prefix first, as any router: own addresses, the host's, the subnets, then the default.

use std::net::IpAddr;

use smoltcp::wire::IpAddress;

use crate::network::{NetworkConfig, Uplink};
use crate::packet::is_martian_destination;
use crate::port::PortId;

/// A next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The gateway itself.
    Own,
    /// The host, behind this port.
    Host(PortId),
    /// A neighbour.
    OnLink,
    /// The uplink.
    Uplink,
    /// Another network, which policy keeps apart.
    Isolated,
    /// No router carries packets there.
    Martian,
    /// Nobody knows a way.
    None,
}

impl Route {
    /// The route to `dst`; `host` is the host port, where there is one.
    #[must_use]
    pub fn lookup(config: &NetworkConfig, host: Option<PortId>, dst: IpAddr) -> Self {
        let Some(gateway) = &config.gateway else { return Self::None };
        if gateway.has(dst) {
            return Self::Own;
        }
        if is_martian_destination(dst) || gateway.is_broadcast(dst) {
            return Self::Martian;
        }
        if let Some(host) = host
            && config.host_addresses.contains(&dst)
        {
            return Self::Host(host);
        }
        if gateway.on_link(dst) {
            return Self::OnLink;
        }
        let addr = IpAddress::from(dst);
        if config.isolated_from.iter().any(|subnet| subnet.contains_addr(&addr)) {
            return Self::Isolated;
        }
        match config.uplink {
            Uplink::Sockets | Uplink::Raw(_) => Self::Uplink,
            Uplink::None => Self::None,
        }
    }
}
