//! Runs the packet target over its corpus and mutations of it.

use std::process::ExitCode;

use fuzz::runner;

fn main() -> ExitCode {
    runner::main(runner::PACKET)
}
