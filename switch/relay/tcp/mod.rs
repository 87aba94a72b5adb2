//! TCP through the socket uplink and published ports.
//!
//! Read `flow.rs` for what is kept and `table.rs` for where, then `open.rs` (how flows begin), `inside.rs` (segments from the
//! container), `outside.rs` (the host socket), `close.rs` (how flows end).
//!
//! ```text
//!   container's SYN ─▶ Connecting ─far side answered, SYN-ACK out─▶ Accepting ─ACK─▶ Established
//!   client accepted, SYN out ───────────────▶ Opening ────────────SYN-ACK─▶ Established
//!   Established ─both FINs sent and acknowledged─▶ gone
//! ```

mod ahead;
mod close;
mod flow;
mod inside;
mod open;
mod outside;
mod segment;
mod seq;
mod table;

pub(crate) use open::Client;
pub(crate) use table::Tcp;
