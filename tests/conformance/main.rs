//! What STANDARDS asks of a NAT, a router and a relay, asked of the true program from both ends of the
//! wire, requirement by requirement, in both families.
//!
//! Every probe is run against a [`Subject`] in a [`Lab`] of its own: pontoon by either uplink as tests, and,
//! by `cargo test --test conformance matrix -- --ignored --nocapture`, those and others side by side as a
//! table. A probe returns what was wrong; that it can see a wrong is shown by the subjects that fail it,
//! one of which (`nothing`) must fail them all.
//!
//! Without cargo's own harness, which runs as many tests at once as there are processors: most of a
//! probe's time is waited, by protocol (three questions before an address is had) or for a timer.

#![forbid(unsafe_code)]

mod lab;
#[path = "../net/mod.rs"]
mod net;
mod packet;
mod subject;
mod wire;

mod again;
mod conn;
mod crowd;
mod errors;
mod exhaustion;
mod filtering;
mod given;
mod icmp;
mod inward;
mod mapping;
mod matrix;
mod pieces;
mod pool;
mod protocol;
mod published;
mod reassembly;
mod refusal;
mod requirements;
mod roam;
mod roamed_tcp;
mod routed;
mod router;
mod scope;
mod segment;
mod shared;
mod size;
mod stream;
mod stun;
mod tcp;
mod timers;
mod translate;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

use lab::{Family, Lab};
use subject::Subject;

/// What was wrong, if anything.
type Verdict = Result<(), String>;

/// A requirement and how it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// The requirement's number.
    id: &'static str,
    /// The module it is in.
    module: &'static str,
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
    /// Raw; the others are not set up for it.
    RawAlone,
}

impl Of {
    /// Whether that is one of them.
    fn concerns(self, subject: Subject) -> bool {
        match self {
            Self::Both => true,
            Self::Raw => subject != Subject::Sockets,
            Self::Sockets => subject != Subject::Raw,
            Self::RawAlone => subject == Subject::Raw,
        }
    }
}

/// What is required and not so yet.
const NOT_YET: &[(Subject, &str)] =
    &[(Subject::Raw, "a_change_to_an_address_that_somebody_has_changes_nothing")];

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const ANY: &[Family] = &[Family::V4, Family::V6];

/// Seconds anything is waited for.
static PATIENCE: AtomicU64 = AtomicU64::new(10);

/// How many probes run at once, where `--test-threads` does not say.
const AT_ONCE: usize = 14;

pub(crate) fn patience() -> Duration {
    Duration::from_secs(PATIENCE.load(Relaxed))
}

/// The probes of a file.
macro_rules! probes {
    ($($of:ident { $($id:literal $families:ident $name:ident $(($($option:literal),*))?;)* })*) => {
        pub(crate) const PROBES: &[$crate::Probe] = &[$($($crate::Probe {
            id: $id,
            module: module_path!(),
            name: stringify!($name),
            families: $crate::$families,
            of: $crate::Of::$of,
            options: &[$($($option),*)?],
            run: $name,
        }),*),*];
    };
}
use probes;

macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds { return Err(format!($($what)+)); }
    };
}
use ensure;

/// Every probe there is.
fn all() -> Vec<Probe> {
    [
        mapping::PROBES,
        pool::PROBES,
        exhaustion::PROBES,
        filtering::PROBES,
        tcp::PROBES,
        again::PROBES,
        stream::PROBES,
        icmp::PROBES,
        router::PROBES,
        scope::PROBES,
        size::PROBES,
        pieces::PROBES,
        reassembly::PROBES,
        published::PROBES,
        refusal::PROBES,
        inward::PROBES,
        protocol::PROBES,
        crowd::PROBES,
        timers::PROBES,
        segment::PROBES,
        roam::PROBES,
        roamed_tcp::PROBES,
        stun::PROBES,
        translate::PROBES,
        routed::PROBES,
        shared::PROBES,
        given::PROBES,
    ]
    .concat()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let mut trials = Vec::new();
    for probe in all() {
        let module = probe.module.rsplit("::").next().unwrap();
        for subject in [Subject::Sockets, Subject::Raw] {
            if probe.of.concerns(subject) {
                let name = format!("{module}::{}::{}", subject.name(), probe.name);
                let trial = Trial::test(name, move || holds(subject, &probe));
                trials.push(trial.with_ignored_flag(NOT_YET.contains(&(subject, probe.name))));
            }
        }
    }
    let name = "every_requirement_has_its_probes";
    trials.push(Trial::test(name, requirements::each_has_its_probes));
    trials.push(Trial::test("matrix", matrix::matrix).with_ignored_flag(true));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a probe against a subject in every family it is for.
fn holds(subject: Subject, probe: &Probe) -> Result<(), Failed> {
    let Some(lab) = Lab::new(subject, probe.options) else { return Ok(()) };
    let run = |family: Family| {
        let ran = (probe.run)(&lab, family);
        ran.map_err(|error| {
            let dropped = lab.dropped();
            Failed::from(format!("{} {family:?} by {}: {error}{dropped}", probe.id, subject.name()))
        })
    };
    // What mostly waits does so for all families at once.
    if probe.id == "T4" || probe.options.contains(&"--timeouts") {
        std::thread::scope(|scope| {
            let families: Vec<_> =
                probe.families.iter().map(|family| scope.spawn(|| run(*family))).collect();
            families.into_iter().try_for_each(|family| {
                family.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    } else {
        probe.families.iter().try_for_each(|family| run(*family))
    }
}
