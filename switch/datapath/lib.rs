//! The route of a frame through the switch.
//!
//! Pure: frames and a time come in, decisions and frames go out; no descriptor, no thread, no clock.

#![forbid(unsafe_code)]

pub mod drop;
pub mod port;

pub use drop::{DropReason, REASONS};
pub use port::{
    ETHERNET_HEADER_LEN, IpMtu, MAX_FRAME_LEN, MacAddr, Offloads, Port, PortId, PortRole,
};
