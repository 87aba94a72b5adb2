//! The routes of a segment: which neighbour a packet of ours goes to.

use std::net::IpAddr;

use smoltcp::wire::IpCidr;

/// A route of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Where to.
    pub to: IpCidr,
    /// The next hop; `None` on the segment itself.
    pub via: Option<IpAddr>,
}

/// The way to `to` by the longest prefix, the first of equals: the address to ask ARP or NDP for, which
/// is `to` itself on the segment. `None` if no route leads there.
#[must_use]
pub fn next_hop(routes: &[Hop], to: IpAddr) -> Option<IpAddr> {
    let addr = to.into();
    let matching = routes.iter().filter(|hop| hop.to.contains_addr(&addr));
    // Of equals `max_by_key` takes the last.
    let best = matching.rev().max_by_key(|hop| hop.to.prefix_len())?;
    Some(best.via.unwrap_or(to))
}
