//! The control plane: networks, endpoints, published ports, and the socket they are asked for by.
//!
//! Read in this order: [`api`] (what is said), [`spec`], [`names`], [`mac`], [`subnet`], [`ipam`],
//! [`uplink`], [`translation`], [`timers`] and [`config`] (what is understood, all pure), `network`,
//! `segment` and `endpoint` (what there is), `state`, `networks`, `segments`, `attach`, `publish`, `hostports`,
//! [`owner`], `host`, `tables` and `translated` (what is done), [`socket`], [`server`] and `lifetime` (how it is
//! asked and ended), [`client`] and [`start`] (the asking side).

#![forbid(unsafe_code)]

pub mod api;
mod attach;
pub mod client;
pub mod config;
mod dnat;
mod endpoint;
pub mod error;
mod host;
mod hostports;
pub mod ipam;
mod keeper;
mod lifetime;
mod links;
mod log;
pub mod mac;
pub mod names;
mod network;
mod networks;
pub mod owner;
mod plan;
mod publish;
mod publisher;
mod rivals;
mod segment;
mod segments;
pub mod server;
pub mod socket;
pub mod spec;
pub mod start;
mod state;
pub mod subnet;
mod tables;
pub mod timers;
mod translated;
pub mod translation;
pub mod uplink;

pub use attach::{Attached, Watch};
pub use config::Config;
pub use error::Error;
pub use spec::PublishSpec;
pub use state::Daemon;
