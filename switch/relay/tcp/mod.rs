//! TCP through the socket uplink and published ports.
//!
//! Read `flow.rs` for what is kept and `table.rs` for where, then `sending.rs` and `receiving.rs` (the two
//! sequence spaces, pure), `open.rs` and `dial.rs` (how flows begin), `handshake.rs` and `inside.rs` (segments from the
//! container), `upstream.rs` (to the host socket), `outside.rs` (from it), `wait.rs` and `homes.rs` (deadlines, and addresses of the host's that are gone), `close.rs`
//! (how flows end), `refusal.rs` (what a container says by ICMP).
//!
//! ```text
//!   container's SYN ─▶ Connecting ─far side answered, SYN-ACK out─▶ Accepting ─ACK─▶ Established
//!   client accepted, SYN out ───────────────▶ Opening ────────────SYN-ACK─▶ Established
//!   Established ─both FINs sent and acknowledged─▶ gone
//! ```

mod ahead;
mod attempts;
mod board;
mod close;
mod dial;
mod flow;
mod handshake;
mod homes;
mod inside;
mod open;
mod outside;
mod receiving;
mod refusal;
mod rtt;
mod segment;
mod sending;
mod seq;
mod table;
#[cfg(test)]
mod tests;
mod upstream;
mod wait;

pub(crate) use open::Client;
pub(crate) use table::Tcp;
