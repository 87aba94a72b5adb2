//! What STANDARDS asks of a NAT, a router and a relay, asked of the true program from both ends of the
//! wire, requirement by requirement, in both families.
//!
//! Every probe is run against a [`Subject`] in a [`Lab`] of its own: pontoon by either uplink as tests, and,
//! by `cargo test --test conformance matrix -- --ignored --nocapture`, those and others side by side as a
//! table. A probe returns what was wrong; that it can see a wrong is shown by the subjects that fail it,
//! one of which (`nothing`) must fail them all.

#![forbid(unsafe_code)]

mod lab;
#[path = "../net/mod.rs"]
mod net;
mod packet;
mod subject;
mod wire;

mod conn;
mod crowd;
mod errors;
mod filtering;
mod icmp;
mod mapping;
mod matrix;
mod pieces;
mod pool;
mod published;
mod refusal;
mod roam;
mod router;
mod segment;
mod size;
mod stream;
mod stun;
mod tcp;
mod timers;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use lab::{Family, Lab};
use subject::Subject;

/// What was wrong, if anything.
type Verdict = Result<(), String>;

/// A requirement and how it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// The requirement's number.
    id: &'static str,
    name: &'static str,
    families: &'static [Family],
    /// Whom it is required of.
    of: Of,
    /// Options of `pontoon network create`.
    options: &'static [&'static str],
    run: fn(&Lab, Family) -> Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// Both uplinks.
    Both,
    Raw,
    Sockets,
}

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const ANY: &[Family] = &[Family::V4, Family::V6];

/// Seconds anything is waited for.
static PATIENCE: AtomicU64 = AtomicU64::new(10);

pub(crate) fn patience() -> Duration {
    Duration::from_secs(PATIENCE.load(Relaxed))
}

/// The probes of a file, and a test for each.
macro_rules! probes {
    ($($of:ident { $($id:literal $families:ident $name:ident $(($($option:literal),*))?;)* })*) => {
        pub(crate) const PROBES: &[$crate::Probe] = &[$($($crate::Probe {
            id: $id,
            name: stringify!($name),
            families: $crate::$families,
            of: $crate::Of::$of,
            options: &[$($($option),*)?],
            run: $name,
        }),*),*];

        mod sockets {
            $($($crate::test! { Sockets $of $name })*)*
        }

        mod raw {
            $($($crate::test! { Raw $of $name })*)*
        }
    };
}

/// A test, where the requirement is one of that uplink: subject, whom it is required of, name.
macro_rules! test {
    (Sockets Raw $name:ident) => {};
    (Raw Sockets $name:ident) => {};
    ($subject:ident $of:ident $name:ident) => {
        #[test]
        fn $name() {
            $crate::holds($crate::Subject::$subject, super::PROBES, stringify!($name));
        }
    };
}
use {probes, test};

macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds { return Err(format!($($what)+)); }
    };
}
use ensure;

/// Runs a probe against a subject in every family it is for.
fn holds(subject: Subject, probes: &[Probe], name: &str) {
    let probe = probes.iter().find(|probe| probe.name == name).unwrap();
    let Some(lab) = Lab::new(subject, probe.options) else { return };
    let run = |family: Family| {
        if let Err(error) = (probe.run)(&lab, family) {
            panic!("{} {family:?} by {}: {error}{}", probe.id, subject.name(), lab.dropped());
        }
    };
    // What mostly waits does so for all families at once.
    if probe.id == "T4" || probe.options.contains(&"--timeouts") {
        std::thread::scope(|scope| {
            probe.families.iter().for_each(|family| drop(scope.spawn(|| run(*family))));
        });
    } else {
        probe.families.iter().for_each(|family| run(*family));
    }
}
