//! What becomes of a frame, told as stories in memory.
//!
//! Frames go in by `Datapath::ingress` as a worker would bring them, at a time the story sets; what
//! comes out is read by pnet. No descriptor, no thread, no clock.

mod account;
mod bridge;
mod gateway;
mod guard;
mod lab;
mod neighbour;
mod refused;
mod why;
mod wire;
