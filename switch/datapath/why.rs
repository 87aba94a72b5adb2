//! The steps of a decision, for whoever asks why.
//!
//! The data path is generic over [`Why`]. With [`Silent`] every step compiles to nothing; with a
//! recording type the same code tells its story.

use std::net::IpAddr;

use nat::{Direction, Tuple, Zone};

use crate::drop::DropReason;
use crate::fdb::Learned;
use crate::port::{MacAddr, PortId};

/// One step on a frame's way, with the entry that decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The frame came in.
    Ingress {
        /// By this port.
        port: PortId,
        /// Its octets.
        len: usize,
    },
    /// The bridge looked at the source.
    Learn {
        /// The source station.
        station: MacAddr,
        /// What came of it.
        outcome: Learned,
    },
    /// The FDB knows the destination.
    Known {
        /// The destination station.
        station: MacAddr,
        /// The port it is behind.
        port: PortId,
    },
    /// The destination is a group, or unknown: every port but the ingress gets a copy.
    Flood {
        /// Copies made.
        copies: usize,
    },
    /// The frame is for the gateway.
    Gateway,
    /// The gateway answered by itself.
    Answered,
    /// Conntrack knows the packet's flow.
    Flow {
        /// The packet's tuple.
        tuple: Tuple,
        /// Which of the flow's two it is.
        direction: Direction,
    },
    /// No flow yet; the packet takes the uplink.
    Uplink {
        /// Where it wants to go.
        dst: IpAddr,
    },
    /// It is the NAT's between this network and that segment of the world.
    Cross {
        /// The segment.
        segment: Zone,
        /// Where it wants to go.
        dst: IpAddr,
    },
    /// It is for the host itself, behind the host port.
    Host {
        /// The host's address.
        dst: IpAddr,
    },
    /// It goes no further.
    Dropped(DropReason),
}

/// Takes note of steps, or not.
pub trait Why {
    /// Whether anyone listens; `false` removes the cost of making a step.
    const ASKED: bool;

    /// Takes note of `step`.
    fn step(&mut self, step: Step);
}

/// Nobody asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Why for Silent {
    const ASKED: bool = false;

    fn step(&mut self, _: Step) {}
}

impl Why for Vec<Step> {
    const ASKED: bool = true;

    fn step(&mut self, step: Step) {
        self.push(step);
    }
}
