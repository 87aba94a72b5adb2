//! The `pontoon` program: what is typed, and what comes back.
//!
//! A file for each command. Nearly all of them are a request to the daemon, which is started when one
//! needs it, and a table or JSON made of the answer; `run`, `exec` and `ns` also work with namespaces
//! themselves, since the command they start must be their own child.

#![forbid(unsafe_code)]

mod attach;
mod completions;
mod conntrack;
mod daemon;
mod exec;
mod failure;
mod fdb;
mod files;
mod inspect;
mod lab;
mod listening;
mod nat;
mod neigh;
mod network;
mod ns;
mod output;
mod port;
mod ps;
mod publish;
mod run;
mod stats;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use failure::Outcome;

/// A packet-forwarding switch in userspace for container network namespaces.
#[derive(Debug, Parser)]
#[command(name = "pontoon", version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  pontoon run -p 8080:80 -- python3 -m http.server 80
  pontoon attach pid:4242 --network bridge --name web
  pontoon ps
  curl --unix-socket \"$XDG_RUNTIME_DIR/pontoon/pontoon.sock\" http://pontoon/v1/endpoints

The daemon is started when a command needs it, and ends when nobody does. It listens on
$PONTOON_SOCKET, else on $XDG_RUNTIME_DIR/pontoon/pontoon.sock (root: /run/pontoon/pontoon.sock).";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Exec(exec::Exec),
    Attach(attach::Attach),
    Detach(attach::Detach),
    Ps(ps::Ps),
    Inspect(inspect::Inspect),
    Port(port::Port),
    Publish(publish::Publish),
    Network(network::Network),
    Ns(ns::Ns),
    Fdb(fdb::Fdb),
    Neigh(neigh::Neigh),
    Conntrack(conntrack::Conntrack),
    Nat(nat::Nat),
    Stats(stats::Stats),
    Lab(lab::Lab),
    Daemon(daemon::Daemon),
    Completions(completions::Completions),
    Man(completions::Man),
}

fn main() -> ExitCode {
    netns::enter_child_if_asked();
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Run(run) => run.go(),
        Command::Exec(exec) => exec.go(),
        Command::Attach(attach) => attach.go(),
        Command::Detach(detach) => detach.go(),
        Command::Ps(ps) => ps.go(),
        Command::Inspect(inspect) => inspect.go(),
        Command::Port(port) => port.go(),
        Command::Publish(publish) => publish.go(),
        Command::Network(network) => network.go(),
        Command::Ns(ns) => ns.go(),
        Command::Fdb(fdb) => fdb.go(),
        Command::Neigh(neigh) => neigh.go(),
        Command::Conntrack(conntrack) => conntrack.go(),
        Command::Nat(nat) => nat.go(),
        Command::Stats(stats) => stats.go(),
        Command::Lab(lab) => lab.go(),
        Command::Daemon(daemon) => daemon.go(),
        Command::Completions(completions) => completions.go(Cli::command()),
        Command::Man(man) => man.go(Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself_with_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} says nothing about itself");
                assert!(sub.get_after_help().is_some(), "{path} shows no example");
                check(sub, &path);
            }
        }
        check(&Cli::command(), "pontoon");
    }
}
