//! Who is rewritten, and how long that is remembered.
//!
//! Pure: this crate sees neither a descriptor nor a clock. Read the files in this order:
//! [`mod@tuple`] (a flow's name), [`state`] (where it stands), [`entry`] (a flow), [`timeouts`] (how long), [`conntrack`] (all flows).

#![forbid(unsafe_code)]

pub mod checksum;
pub mod conntrack;
pub mod entry;
mod index;
mod roll;
pub mod state;
pub mod timeouts;
pub mod tuple;

pub use conntrack::{Conntrack, Found, InsertError};
pub use entry::{Account, Entry, Owner, Zone};
pub use state::{Direction, TcpFlags, TcpState};
pub use timeouts::{Profile, Timeouts};
pub use tuple::{Protocol, TransportAddr, Tuple};
