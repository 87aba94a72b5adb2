//! Connections relayed socket to socket, past the bridge.
//!
//! A published port's client that is the host itself, by its loopback, has no address the container
//! could answer. So nothing is lost by connecting to the container from inside its own namespace and
//! moving octets between two sockets, for which splice(2) has the kernel move pages. The container
//! sees a connection from its own address. A port may ask for this for every client.
//!
//! Read `stock.rs` (sockets made ahead in a namespace), `pipe.rs` and `way.rs` (one direction), then
//! `pair.rs` (a connection). What cannot be had this way goes over the bridge: no failure is shown.

mod pair;
mod pipe;
mod stock;
mod way;

pub(crate) use pair::Splices;
pub use stock::{Orders, Splice, Stock, Supplies, keep_filled};
