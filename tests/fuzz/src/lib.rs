//! Hostile octets against the pure crates.
//!
//! A target is a function from octets to a *fingerprint* of what came of them; it asserts what must
//! hold for any input. Three things call it: the tests here, over the seeds in `corpus/TARGET` and a
//! fixed number of mutations; a plain program, for as long as it is told,
//! `cargo run --release --manifest-path tests/fuzz/Cargo.toml --bin TARGET -- --seconds 20`;
//! and libFuzzer, which follows coverage: `tests/fuzz/guided TARGET 60`.

#![forbid(unsafe_code)]

mod error;
mod frame;
mod nat;
mod offload;
mod packet;
mod presence;
pub mod runner;

pub use error::error;
pub use frame::frame;
pub use nat::nat;
pub use offload::offload;
pub use packet::packet;
pub use presence::presence;

use std::hash::{DefaultHasher, Hash, Hasher};

/// What became of an input, as a number: inputs with different ones took different ways.
fn fingerprint(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use crate::runner::{Plan, Target};

    /// The seeds, and then some; the same ones each time.
    fn holds(target: Target) {
        let plan = Plan { seed: 1, runs: Some(20_000), ..Plan::default() };
        plan.run(target).unwrap();
    }

    #[test]
    fn offload_holds() {
        holds(crate::runner::OFFLOAD);
    }

    #[test]
    fn frame_holds() {
        holds(crate::runner::FRAME);
    }

    #[test]
    fn nat_holds() {
        holds(crate::runner::NAT);
    }

    #[test]
    fn presence_holds() {
        holds(crate::runner::PRESENCE);
    }

    #[test]
    fn packet_holds() {
        holds(crate::runner::PACKET);
    }

    #[test]
    fn error_holds() {
        holds(crate::runner::ERROR);
    }
}
