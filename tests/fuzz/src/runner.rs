//! A bounded, repeatable mutation runner.
//!
//! Every seed first, then mutations of seeds and of inputs that came out with a fingerprint not
//! seen before. All random numbers come from one seed, which is printed: the same seed, corpus and
//! number of runs are the same inputs.

use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs, io};

/// Inputs kept to mutate, seeds included.
const MAX_POOL: usize = 4_096;
/// Octets of the longest input.
const MAX_LEN: usize = 70_000;

/// A function to throw octets at.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called; its seeds are in `corpus/NAME`.
    pub name: &'static str,
    /// Returns a fingerprint, or panics.
    pub run: fn(&[u8]) -> u64,
}

/// The offload layer.
pub const OFFLOAD: Target = Target { name: "offload", run: crate::offload };
/// The bridge and the gateway.
pub const FRAME: Target = Target { name: "frame", run: crate::frame };
/// Both hooks of the NAT.
pub const NAT: Target = Target { name: "nat", run: crate::nat };

/// The station on a segment.
pub const PRESENCE: Target = Target { name: "presence", run: crate::presence };

/// One packet through the NAT.
pub const PACKET: Target = Target { name: "packet", run: crate::packet };
/// ICMP errors about translated packets.
pub const ERROR: Target = Target { name: "error", run: crate::error };

/// How long to run, on what.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Where all random numbers come from.
    pub seed: u64,
    /// Mutations at most; seeds do not count.
    pub runs: Option<u64>,
    /// Time at most, for mutations. With neither, only the seeds are run.
    pub time: Option<Duration>,
    /// Seed files, and directories of them. None: the target's own.
    pub seeds: Vec<PathBuf>,
}

/// Why a run ended badly.
#[derive(Debug)]
pub enum Failure {
    /// The target panicked on the input in this file.
    Panicked(PathBuf),
    /// A seed cannot be read, or the failing input cannot be written.
    Io(PathBuf, io::Error),
    /// A flag nobody knows.
    Usage(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(path) => write!(f, "panicked; to see it again: {}", path.display()),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Usage(what) => write!(
                f,
                "{what}: usage: [--seconds N] [--runs N] [--seed N] [SEED-FILE-OR-DIRECTORY]..."
            ),
        }
    }
}

/// The program of a target.
#[must_use]
pub fn main(target: Target) -> ExitCode {
    match Plan::parse(env::args().skip(1)).and_then(|plan| plan.run(target)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}: {failure}", target.name);
            ExitCode::FAILURE
        }
    }
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut plan =
            Self { seed: now.map_or(1, |now| u64::from(now.subsec_nanos())), ..Self::default() };
        while let Some(arg) = args.next() {
            let mut number = || {
                let number = args.next().and_then(|number| number.parse().ok());
                number.ok_or_else(|| Failure::Usage(format!("{arg} needs a number")))
            };
            match &*arg {
                "--seconds" => plan.time = Some(Duration::from_secs(number()?)),
                "--runs" => plan.runs = Some(number()?),
                "--seed" => plan.seed = number()?,
                flag if flag.starts_with('-') => return Err(Failure::Usage(arg)),
                path => plan.seeds.push(beside_the_manifest(Path::new(path))),
            }
        }
        Ok(plan)
    }

    /// Runs the seeds and their mutations.
    ///
    /// # Errors
    ///
    /// [`Failure`]; a failing input is kept under the system's temporary directory.
    pub fn run(&self, target: Target) -> Result<(), Failure> {
        let own = [beside_the_manifest(&Path::new("corpus").join(target.name))];
        let mut pool = Vec::new();
        for path in if self.seeds.is_empty() { &own[..] } else { &self.seeds } {
            read_seeds(path, &mut pool)?;
        }
        println!("{}: seed {}, {} seed inputs", target.name, self.seed, pool.len());
        let mut seen = HashSet::new();
        for input in &pool {
            seen.insert(attempt(target, input)?);
        }
        let mut random = Random(self.seed);
        let start = Instant::now();
        let mut runs = 0;
        while self.goes_on(runs, start) {
            let mut input = pool[random.below(pool.len())].clone();
            for _ in 0..=random.below(6) {
                mutate(&mut input, &pool, &mut random);
            }
            input.truncate(MAX_LEN);
            if seen.insert(attempt(target, &input)?) && pool.len() < MAX_POOL {
                pool.push(input);
            }
            runs += 1;
        }
        println!("{}: {runs} mutations, {} fingerprints, no panic", target.name, seen.len());
        Ok(())
    }

    fn goes_on(&self, runs: u64, start: Instant) -> bool {
        (self.runs.is_some() || self.time.is_some())
            && self.runs.is_none_or(|most| runs < most)
            && self.time.is_none_or(|most| start.elapsed() < most)
    }
}

/// A path as given if there is such a thing, else relative to this crate.
fn beside_the_manifest(path: &Path) -> PathBuf {
    if path.exists() { path.into() } else { Path::new(env!("CARGO_MANIFEST_DIR")).join(path) }
}

/// Files in the order of their names, then one empty input.
fn read_seeds(path: &Path, pool: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
    let failed = |error| Failure::Io(path.into(), error);
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let entries: io::Result<Vec<_>> = fs::read_dir(path).map_err(failed)?.collect();
        files = entries.map_err(failed)?.into_iter().map(|entry| entry.path()).collect();
        files.sort();
    }
    for file in files {
        pool.push(fs::read(&file).map_err(|error| Failure::Io(file, error))?);
    }
    pool.push(Vec::new());
    Ok(())
}

fn attempt(target: Target, input: &[u8]) -> Result<u64, Failure> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|_| {
        let name = format!("fuzz-{}-{:016x}.bin", target.name, crate::fingerprint(input));
        let path = env::temp_dir().join(name);
        match fs::write(&path, input) {
            Ok(()) => Failure::Panicked(path),
            Err(error) => Failure::Io(path, error),
        }
    })
}

/// One change: of a bit, an octet, a word; of the length; or a piece of another input.
fn mutate(input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
    const OCTETS: [u8; 8] = [0, 1, 2, 0x3f, 0x40, 0x7f, 0x80, 0xff];
    const WORDS: [u16; 10] = [0, 1, 2, 8, 20, 40, 0x7fff, 0x8000, 0xfffe, 0xffff];
    if input.is_empty() {
        input.extend_from_slice(&pool[random.below(pool.len())]);
        return;
    }
    // Headers come first, and there is where an octet matters.
    let reach = if random.below(4) == 0 { input.len() } else { input.len().min(160) };
    let at = random.below(reach);
    match random.below(9) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = OCTETS[random.below(OCTETS.len())],
        2 => input[at] = random.octet(),
        3 => input[at] = input[at].wrapping_add([1, 2, 4, 0xff, 0xfe, 0xfc][random.below(6)]),
        4 => {
            let near = u16::try_from(input.len() + random.below(64)).unwrap_or(u16::MAX);
            let word = match random.below(3) {
                0 => near.wrapping_sub(32),
                _ => WORDS[random.below(WORDS.len())],
            };
            let octets = if random.below(2) == 0 { word.to_be_bytes() } else { word.to_le_bytes() };
            for (place, octet) in input[at..].iter_mut().zip(octets) {
                *place = octet;
            }
        }
        5 => input.truncate(at),
        6 => {
            let end = at + random.below(input.len() - at + 1);
            input.drain(at..end);
        }
        7 => {
            let octets: Vec<u8> = (0..1 + random.below(16)).map(|_| random.octet()).collect();
            input.splice(at..at, octets);
        }
        _ => {
            let other = &pool[random.below(pool.len())];
            let from = random.below(other.len() + 1);
            let piece = &other[from..from + random.below(other.len() - from + 1)];
            let end = input.len().min(at + piece.len() * random.below(2));
            input.splice(at..end, piece.iter().copied());
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which must not be 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    fn octet(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }
}
