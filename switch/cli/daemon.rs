//! `pontoon daemon`: start it by hand, run it in the foreground, stop it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ::daemon::client::Client;
use ::daemon::{Config, server, socket, start};
use clap::{Args, Subcommand};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::{Failure, Outcome, note};

/// Seconds without anybody who needs it after which a daemon started on demand ends.
const IDLE_EXIT: u64 = 30;

/// Most threads of a switch.
const MAX_WORKERS: usize = 64;

/// Processors the kernel's sets have room for (`CPU_SETSIZE`, CPU_SET(3)).
const MAX_PROCESSORS: usize = 1024;

/// How long `daemon stop` waits for the daemon's end, in milliseconds.
const STOP_WITHIN: u16 = 15_000;

/// Start the daemon, which commands otherwise do when they need it
///
/// Started by hand it stays until it is stopped. Started on demand it ends after 30 seconds
/// (PONTOON_IDLE_EXIT; 0 for never) without endpoints, networks of yours, or connections.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
The configuration file has docker's keys for the default network, in JSON (daemon.json) or TOML:
bip, fixed-cidr, mtu, default-gateway, dns.

Examples:
  pontoon daemon
  pontoon daemon --workers 2 --cpus 2,3 --busy-poll 50
  pontoon daemon --foreground --config /etc/docker/daemon.json
  pontoon daemon stop"
)]
pub(crate) struct Daemon {
    #[command(subcommand)]
    command: Option<Command>,
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    settings: Settings,
    /// (for pontoon itself) run in the background and report on standard output
    #[arg(long, hide = true)]
    background: bool,
    /// (for pontoon itself) end when nobody needs it
    #[arg(long, hide = true)]
    on_demand: bool,
}

/// What the daemon is told besides.
#[derive(Debug, Args)]
struct Settings {
    /// Read the default network's settings from this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Threads of the switch; as many as there are processors, at most 8, by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// Poll for this long before sleeping, in microseconds: lower latency, a busier processor
    #[arg(long, value_name = "µs", default_value_t = 0)]
    busy_poll: u32,
    /// Bind the threads of the switch to these processors, in turn: 0,2-3
    #[arg(long, value_name = "LIST", value_parser = processors)]
    cpus: Option<Processors>,
    /// Nice value of the threads of the switch, where they may have it (as root)
    #[arg(long, value_name = "N", default_value_t = -2, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-20..=19))]
    nice: i32,
    /// Most flows in the conntrack table
    #[arg(long, value_name = "N", default_value_t = 262_144)]
    max_tracked: usize,
    /// Most of those of one container
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    max_tracked_per_container: usize,
    /// Most flows with a host socket of their own, in all
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    max_flows: usize,
    /// Most of those of one container
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    max_flows_per_container: usize,
}

/// Processors by number.
#[derive(Clone, Debug, Default)]
struct Processors(Vec<usize>);

/// Reads a list as taskset(1) and cpuset(7) write it: `0,2-3`.
fn processors(text: &str) -> Result<Processors, String> {
    let wrong = |part: &str| format!("{part:?} is no processor; a list is 0 or 0,2-3");
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().ok().filter(|cpu| *cpu < MAX_PROCESSORS);
        let (first, last) = number(first).zip(number(last)).ok_or_else(|| wrong(part))?;
        if first > last {
            return Err(wrong(part));
        }
        all.extend(first..=last);
    }
    if all.len() > MAX_WORKERS {
        return Err(format!(
            "{} processors; a switch has at most {MAX_WORKERS} threads",
            all.len()
        ));
    }
    Ok(Processors(all))
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Detach everything and end the daemon
    #[command(after_help = "Example:\n  pontoon daemon stop")]
    Stop,
}

impl Daemon {
    pub(crate) fn go(self) -> Outcome {
        if matches!(self.command, Some(Command::Stop)) {
            return stop();
        }
        if self.background {
            return self.in_background();
        }
        let path = socket::path()?;
        if self.foreground {
            // Announced, so that whoever waits for a line has one to wait for.
            let ready = |notes: &[String]| {
                notes.iter().for_each(note);
                note(format_args!("listening on {}", path.display()));
            };
            return self.serve(ready);
        }
        let _turn = socket::starters_turn(&path)?;
        let notes = start::start(&path, &self.settings.arguments()?)?;
        notes.iter().for_each(note);
        note(match socket::running(&path) {
            Some(pid) => format!("daemon started (pid {pid}) on {}", path.display()),
            None => format!("daemon started on {}", path.display()),
        });
        Ok(ExitCode::SUCCESS)
    }

    /// The process that `start::start` has started.
    fn in_background(self) -> Outcome {
        let mut starter = Some(start::background()?);
        let outcome = self.serve(|notes| {
            if let Some(starter) = starter.take() {
                starter.ready(notes);
            }
        });
        if let (Err(failure), Some(starter)) = (&outcome, starter) {
            starter.failed(failure.message());
        }
        outcome
    }

    fn serve(&self, ready: impl FnOnce(&[String])) -> Outcome {
        let idle_exit = if self.on_demand { idle_exit()? } else { None };
        server::run(self.settings.options(socket::path()?, idle_exit)?, ready)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Settings {
    fn options(
        &self,
        socket: PathBuf,
        idle_exit: Option<Duration>,
    ) -> Result<server::Options, ::daemon::Error> {
        let config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        let Processors(cpus) = self.cpus.clone().unwrap_or_default();
        let processors = match cpus.len() {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(8),
            bound => bound,
        };
        let workers = worker::Config {
            workers: self.workers.map_or(processors, usize::from),
            max_tracked: self.max_tracked,
            max_tracked_per_port: self.max_tracked_per_container,
            max_flows: self.max_flows,
            max_flows_per_port: self.max_flows_per_container,
            busy_poll: Duration::from_micros(self.busy_poll.into()),
            cpus,
            nice: self.nice,
        };
        Ok(server::Options { socket, workers, config, idle_exit })
    }

    /// The same settings as options for another process in another directory.
    fn arguments(&self) -> Result<Vec<OsString>, Failure> {
        let mut arguments: Vec<OsString> = vec![
            format!("--busy-poll={}", self.busy_poll).into(),
            format!("--nice={}", self.nice).into(),
            format!("--max-tracked={}", self.max_tracked).into(),
            format!("--max-tracked-per-container={}", self.max_tracked_per_container).into(),
            format!("--max-flows={}", self.max_flows).into(),
            format!("--max-flows-per-container={}", self.max_flows_per_container).into(),
        ];
        if let Some(Processors(cpus)) = &self.cpus {
            let cpus: Vec<_> = cpus.iter().map(ToString::to_string).collect();
            arguments.push(format!("--cpus={}", cpus.join(",")).into());
        }
        if let Some(workers) = self.workers {
            arguments.push(format!("--workers={workers}").into());
        }
        if let Some(config) = &self.config {
            let path = std::path::absolute(config)?;
            arguments.extend(["--config".into(), path.into_os_string()]);
        }
        Ok(arguments)
    }
}

fn idle_exit() -> Result<Option<Duration>, Failure> {
    let Some(text) = std::env::var_os("PONTOON_IDLE_EXIT").filter(|text| !text.is_empty()) else {
        return Ok(Some(Duration::from_secs(IDLE_EXIT)));
    };
    match text.to_str().and_then(|text| text.parse().ok()) {
        Some(0) => Ok(None),
        Some(seconds) => Ok(Some(Duration::from_secs(seconds))),
        None => Err(Failure::new(format!(
            "PONTOON_IDLE_EXIT={} is no number of seconds",
            text.display()
        ))),
    }
}

fn stop() -> Outcome {
    let path = socket::path()?;
    let client = Client::new(&path)?;
    match client.stop() {
        Ok(daemon) => wait_for_end(daemon.pid, &path),
        Err(error) if error.is_absent() => {
            note(format_args!("no daemon is running on {}", path.display()));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error.into()),
    }
}

fn wait_for_end(pid: u32, path: &Path) -> Outcome {
    // No such process any more: it was quick.
    let Ok(pidfd) = netns::sockopt::pidfd_open(pid) else { return Ok(ExitCode::SUCCESS) };
    let mut ended = [PollFd::new(std::os::fd::AsFd::as_fd(&pidfd), PollFlags::POLLIN)];
    match poll(&mut ended, PollTimeout::from(STOP_WITHIN)) {
        Ok(1..) => Ok(ExitCode::SUCCESS),
        _ => Err(Failure::new(format!(
            "the daemon (pid {pid}) on {} was told to stop and still runs; `kill {pid}` twice ends it",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_listed_as_taskset_lists_them() {
        let list = |text| processors(text).map(|Processors(all)| all);
        assert_eq!(list("0"), Ok(vec![0]));
        assert_eq!(list("0,2-4"), Ok(vec![0, 2, 3, 4]));
        for wrong in ["", "a", "3-1", "1,,2", "1024", "-1", "0-1000"] {
            assert!(list(wrong).is_err(), "{wrong}");
        }
    }
}
