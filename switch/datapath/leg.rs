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
    /// Ways to everywhere else; the station's own subnets need none.
    pub routes: Vec<Hop>,
    /// What containers are shown with besides the station's own addresses: it answers for these, too.
    pub shown: Vec<RangeInclusive<IpAddr>>,
    /// Subnets of the containers behind it, in which nobody on the segment can be.
    pub behind: Vec<IpCidr>,
}

impl Outside {
    /// Whether a container is shown with that address.
    #[must_use]
    pub fn shows(&self, addr: IpAddr) -> bool {
        self.shown.iter().any(|range| range.contains(&addr))
    }
}
