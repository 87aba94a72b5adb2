//! The threads of the switch, and the handle that steers them.
//!
//! A worker runs to completion: it receives a burst, decides, and sends, all on one thread. The
//! [`Switch`] is what the rest of the program holds; each call is carried to every worker by a
//! channel and answered when all have taken it.

#![forbid(unsafe_code)]

mod burst;
mod command;
mod control;
mod crossing;
mod egress;
mod nets;
mod networks;
mod obey;
mod publishing;
mod queue;
mod raw;
mod rules;
mod segments;
mod state;
mod station;
mod stations;
mod switch;
mod tables;
mod urgency;
mod worker;

pub use control::{
    Config, Event, FdbRow, FlowRow, NeighbourRow, NetworkConfig, NetworkId, PortConfig, PortStats,
    Publication, PublishId, SegmentId, WorkerStats,
};
pub use datapath::{Addressing, Gateway, Uplink};
pub use nat::{Filtering, Timeouts};
pub use relay::{Policy, Splice, Stock};
pub use segments::{
    AddressOrigin, AddressRow, AddressState, LeaseRow, NatPublication, SegmentConfig, SegmentRow,
};
pub use smoltcp::wire::{IpCidr, Ipv4Cidr, Ipv6Cidr};
pub use switch::Switch;
