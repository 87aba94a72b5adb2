//! The routes of a segment: which neighbour a packet of ours goes to.

use std::net::IpAddr;

use smoltcp::wire::IpCidr;

use crate::neighbour::Reachability;

/// A route of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Where to.
    pub to: IpCidr,
    /// The next hop; `None` on the segment itself.
    pub via: Option<IpAddr>,
}

/// The way to `to` by the longest prefix: the address to ask ARP or NDP for, which is `to` itself on the
/// segment. Of equals the likeliest to be reached counts, then the first (RFC 4861 §6.3.6, RFC 4191 §3.2), so
/// that a router that has gone silent is passed over. `None` if no route leads there.
#[must_use]
pub fn next_hop(
    routes: &[Hop],
    to: IpAddr,
    reachability: impl Fn(IpAddr) -> Reachability,
) -> Option<IpAddr> {
    let addr = to.into();
    let matching = routes.iter().filter(|hop| hop.to.contains_addr(&addr));
    let longest = matching.clone().map(|hop| hop.to.prefix_len()).max()?;
    let mut equals =
        matching.filter(|hop| hop.to.prefix_len() == longest).map(|hop| hop.via.unwrap_or(to));
    let mut best = equals.next()?;
    let mut likely = None;
    for other in equals {
        let before = *likely.get_or_insert_with(|| reachability(best));
        let reachability = reachability(other);
        if reachability > before {
            (best, likely) = (other, Some(reachability));
        }
    }
    Some(best)
}
