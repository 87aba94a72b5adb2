//! What becomes of a packet between a network and a segment of the world, told in memory.
//!
//! Read STANDARDS of each: RFC 1812 (a router), RFC 3022, RFC 4787, RFC 5382 and RFC 5508 (a NAT). Frames are
//! made and read by pnet, so that the code under test does not grade itself.

mod errors;
mod pieces;
mod reassembly;
mod town;
mod ways;
mod why;
#[path = "../story/wire.rs"]
#[allow(dead_code)]
mod wire;
