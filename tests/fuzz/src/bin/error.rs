//! Runs the ICMP error target over its corpus and mutations of it.

use std::process::ExitCode;

use fuzz::runner;

fn main() -> ExitCode {
    runner::main(runner::ERROR)
}
