//! Who is rewritten, and how long that is remembered.
//!
//! Pure: this crate sees neither a descriptor nor a clock. Octets and a time go in; the octets come out
//! rewritten, or with a reason. Read the files in the packet's order:
//!
//! - what it is: [`mod@tuple`] (a flow's name), [`zone`] (where, and whose), [`headers`] (reading a packet),
//!   [`fragments`] (packets in pieces);
//! - what is remembered: [`state`], [`window`] (a TCP connection) and [`sctp`], [`timeouts`], `moment`, `keeper`
//!   and [`entry`] (a flow), `index`, `roll` and [`conntrack`] (all flows; who pays when there are too many),
//!   `ports`, `pool` and [`mapping`] (external ports);
//! - what becomes of it: [`rules`], [`npt`], [`hooks`], [`passage`], `prerouting`, `postrouting`, `shown`,
//!   `unsolicited`, [`refused`] and [`why`] (in words);
//! - how it is rewritten, where it lies ([`buffer`]): [`checksum`], `crc`, `rewrite`, `identification`, `icmp`, `tcp`, `siit`.
//!
//! ```text
//!  packet ▶ gather (pieces) ▶ prerouting ── known flow: both ways at once ──▶ route ▶ postrouting ▶ fits?
//!                                │ new: rules, then mappings: destination         │ new: source, entry
//!                                └ ICMP error: by the packet it quotes            └ MSS, MTU, pieces
//! ```

#![forbid(unsafe_code)]

pub mod buffer;
pub mod checksum;
pub mod conntrack;
mod crc;
pub mod entry;
#[cfg(test)]
#[path = "tests/unit/established.rs"]
mod established;
pub mod fragments;
pub mod headers;
pub mod hooks;
mod icmp;
mod identification;
mod index;
mod keeper;
pub mod mapping;
mod moment;
pub mod npt;
pub mod passage;
mod pool;
mod ports;
mod postrouting;
mod prerouting;
pub mod refused;
mod rewrite;
mod roll;
pub mod rules;
pub mod sctp;
mod shown;
mod siit;
pub mod state;
mod tcp;
pub mod timeouts;
pub mod tuple;
mod unsolicited;
pub mod why;
pub mod window;
pub mod zone;

pub use buffer::Buffer;
pub use conntrack::{Conntrack, Found, InsertError};
pub use entry::Entry;
pub use fragments::{Gathered, Overdue, Whole};
pub use headers::Headers;
pub use hooks::{Config, Egress, Filtering, Ingress, Nat};
pub use mapping::{External, Inside, Mapping, Mappings};
pub use npt::Npt;
pub use passage::Passage;
pub use pool::NoMapping;
pub use postrouting::Sent;
pub use refused::{Reason, Refused, Tell};
pub use rewrite::Undone;
pub use rules::{Destination, Match, Rule, Rules, Source};
pub use sctp::SctpState;
pub use state::{Direction, TcpFlags, TcpState};
pub use timeouts::{Profile, Timeouts};
pub use tuple::{Protocol, TransportAddr, Tuple};
pub use why::{NoNotes, Note, Notes};
pub use zone::{Account, Owner, Zone};
