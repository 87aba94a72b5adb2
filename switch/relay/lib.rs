//! Flows that end in host sockets.
//!
//! The socket uplink turns a container's packets into the host's own TCP, UDP and ping sockets; a
//! published port turns a client of the host into a flow to the container. A worker has one [`Relay`]
//! for all networks; it is called with a packet or a ready socket, and leaves frames in the outbox.
//!
//! Read `key.rs` for how flows are named, `tcp/` for TCP, `datagram/` for UDP and echo, `publish.rs`
//! for published ports, `splice/` for those relayed socket to socket, `limits.rs` for the bounds.

#![forbid(unsafe_code)]

mod claims;
mod context;
mod datagram;
mod deliver;
mod errors;
mod key;
mod last;
mod limits;
mod mapping;
mod outlet;
mod pieces;
mod policy;
mod ports;
mod publish;
mod published;
mod quote;
mod relay;
mod shared;
mod socket;
mod splice;
mod tcp;
mod timers;
mod train;

pub use context::{Context, Readiness};
pub use key::{Key, Kind};
pub use limits::Limits;
pub use policy::Policy;
pub use published::{Publication, Published};
pub use relay::Relay;
pub use shared::Shared;
pub use splice::{Orders, Splice, Stock, Supplies, keep_filled};
