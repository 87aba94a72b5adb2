//! What the RFCs require of a NAT, each test named after the requirement it holds.
//!
//! Packets are built and every packet that comes out is checked by pnet, a second codec. Time is a number.

mod family;
mod hairpin;
mod icmp;
mod identity;
mod lab;
mod limits;
mod listings;
mod offload;
mod pieces;
mod properties;
mod protocols;
mod rfc7857;
mod rules;
mod table;
mod tcp;
mod udp;
mod uplinks;
mod wire;
