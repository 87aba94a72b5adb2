//! The daemon over its socket, with a real switch behind it and real namespaces to attach.
//!
//! Without a test harness, because `main` must begin with `enter_child_if_asked`. It starts itself
//! again in a network namespace of its own (and without root in a user namespace, as root of it), which
//! is the daemon's host: the machine's interfaces, routes and ports stay as they are. There each case
//! runs a daemon as another process on a socket of its own. What cannot run says SKIP, and fails where
//! `PONTOON_REQUIRE_NETNS` is set.

mod endpoints;
mod lab;
mod life;
mod networks;
mod ports;

use std::panic::catch_unwind;
use std::process::ExitCode;

/// A name and what it stands for.
type Case = (&'static str, fn());

fn main() -> ExitCode {
    netns::enter_child_if_asked();
    if std::env::args().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    match std::env::var(lab::ROLE).as_deref() {
        Err(_) => lab::inside_a_host(),
        Ok("host") => run(),
        Ok("daemon") => lab::be_the_daemon(),
        Ok("stranger") => lab::be_a_stranger(),
        Ok("impostor") => lab::be_an_impostor(),
        Ok(other) => panic!("no role {other}"),
    }
}

fn run() -> ExitCode {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let cases = [networks::CASES, endpoints::CASES, ports::CASES, life::CASES].concat();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, case) in cases.into_iter().filter(|(name, _): &Case| is_wanted(name)) {
        eprintln!("api: {name}");
        match catch_unwind(case) {
            Ok(()) => passed += 1,
            Err(_) => failed.push(name),
        }
    }
    for name in &failed {
        eprintln!("FAILED: {name}");
    }
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
