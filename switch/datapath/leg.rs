//! The sides of a gateway: container networks, and segments of the world.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use smoltcp::wire::IpCidr;

use crate::hop::Hop;

/// Which side of the gateway a network is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leg {
    /// Containers are on it.
    #[default]
    Inside,
    /// It is a segment of the world, and the gateway our station there.
    Uplink(Outside),
}

/// What our station on a segment must know of both its sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Whether the link-local address of our station is ours: not before duplicate address detection has
    /// ended, nor without IPv6 (RFC 4862 §5.4).
    pub link_local: bool,
    /// Ways to everywhere, the station's own subnets among them.
    pub routes: Vec<Hop>,
    /// What containers are shown with besides the station's own addresses: it answers for these, too.
    pub shown: Vec<RangeInclusive<IpAddr>>,
    /// What of that is not ours, in order; no two ranges touch.
    pub withheld: Vec<RangeInclusive<IpAddr>>,
    /// Subnets of the containers behind it, in which nobody on the segment can be.
    pub behind: Vec<IpCidr>,
}

impl Outside {
    /// Whether packets go to `addr` itself: it is a router of ours, or on the segment.
    #[must_use]
    pub fn is_next_hop(&self, addr: IpAddr) -> bool {
        self.routes.iter().any(|hop| match hop.via {
            Some(via) => via == addr,
            None => hop.to.contains_addr(&addr.into()),
        })
    }

    /// Whether a container may be shown with that address.
    #[must_use]
    pub fn shows(&self, addr: IpAddr) -> bool {
        self.shown.iter().any(|range| range.contains(&addr)) && !self.withholds(addr)
    }

    fn withholds(&self, addr: IpAddr) -> bool {
        let behind = self.withheld.partition_point(|range| *range.start() <= addr);
        let range = behind.checked_sub(1).map(|at| &self.withheld[at]);
        range.is_some_and(|range| addr <= *range.end())
    }
}
