//! The route of a frame through the switch.
//!
//! Pure: frames and a time come in, decisions and frames go out; no descriptor, no thread, no clock.
//! Read the files in the order of a frame's way: [`port`], [`offload`], [`frame`], [`bridge`] (with
//! [`fdb`] and [`guard`]), [`gateway`](bridge::Datapath) (with [`resolve`], [`neighbour`], [`packet`],
//! [`route`], [`icmp`], [`reset`], [`originate`](Datapath::send_to); a segment of the world is told apart in
//! [`leg`] and [`hop`]), and out again by [`emit`], [`fragment`], [`outbox`], [`segment`]. What became of it is in
//! [`mod@drop`], [`stats`] and [`why`]. How the gateway comes by its addresses on a segment somebody else
//! runs is in [`presence`].

#![forbid(unsafe_code)]

pub mod bridge;
pub mod checksum;
pub mod coalesce;
pub mod crossing;
pub mod drop;
pub mod emit;
pub mod fdb;
pub mod fragment;
pub mod frame;
mod gateway;
pub mod guard;
pub mod hop;
pub mod icmp;
mod layout;
pub mod leg;
pub mod neighbour;
pub mod network;
pub mod offload;
mod onward;
mod originate;
pub mod outbox;
mod outside;
pub mod packet;
pub mod port;
pub mod presence;
pub mod reset;
pub mod resolve;
pub mod route;
pub mod segment;
mod share;
pub mod slot;
pub mod stats;
pub mod why;

pub use bridge::{Datapath, Decision, Received};
pub use crossing::{Arrival, Crossed, Crossing, Legs};
pub use drop::{DropReason, REASONS};
pub use hop::Hop;
pub use icmp::IcmpError;
pub use leg::{Leg, Outside};
pub use network::{Gateway, Network, NetworkConfig, Uplink};
pub use offload::{Gso, OFFLOAD_HEADER_LEN, Offload};
pub use outbox::{Body, Built, Departure, Outbox};
pub use packet::{Fragment, Packet};
pub use port::{
    ETHERNET_HEADER_LEN, IpMtu, MAX_FRAME_LEN, MacAddr, Offloads, Payer, Port, PortId, PortRole,
};
pub use presence::{Addressing, Change, Heard, Presence, PresenceConfig};
pub use slot::Slot;
pub use stats::{Fate, PortCounters, PortTotals};
pub use why::{Silent, Step, Why};
