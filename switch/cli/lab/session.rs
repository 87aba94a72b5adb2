//! A lab in progress: types pontoon's own commands, and looks at what came of them.
//!
//! Every command is a child process with the very words that are shown, and asks a daemon of the
//! lab's own. What a container or the world sees is told by stations (`station/`) that are run there.

use std::ffi::OsString;
use std::fmt;

use serde::de::DeserializeOwned;

use super::child::{self, Background, Environment, Output};
use super::interrupt::{Ended, Interrupt};
use super::machine::PROGRAM;
use super::report::{Report, Step};
use crate::failure::Failure;

/// Where the lab's daemon listens: below the lab's own `/run`.
const SOCKET: &str = "/run/pontoon/pontoon.sock";

/// Why a lab ends before its last step. A check that failed is no such reason.
pub(crate) enum Stop {
    /// Somebody asked us to.
    Interrupted,
    /// There is nothing to go on with.
    Broken(Failure),
}

impl<F: Into<Failure>> From<F> for Stop {
    fn from(error: F) -> Self {
        Self::Broken(error.into())
    }
}

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The host.
    Host,
    /// An attached container.
    Endpoint(&'static str),
    /// A named namespace, whatever is attached to it.
    Namespace(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host"),
            Self::Namespace("world") => f.write_str("the world"),
            Self::Endpoint(name) | Self::Namespace(name) => f.write_str(name),
        }
    }
}

impl Place {
    /// The command line that has a station do `what` here.
    fn station(self, what: &str) -> String {
        match self {
            Self::Host => format!("pontoon lab station {what}"),
            Self::Endpoint(name) => format!("pontoon exec {name} -- pontoon lab station {what}"),
            Self::Namespace(name) => {
                format!("pontoon ns exec {name} -- pontoon lab station {what}")
            }
        }
    }
}

/// A lab in progress.
pub(crate) struct Session {
    pub(crate) report: Report,
    interrupt: Interrupt,
    env: Environment,
    daemon: Option<Background>,
    servers: Vec<Background>,
    without: Option<String>,
    left_out: bool,
}

impl Session {
    /// `without` is a command that is left out, to see which checks miss it.
    pub(crate) fn new(report: Report, interrupt: Interrupt, without: Option<String>) -> Self {
        // What the user set for pontoon is meant for another daemon.
        let of_pontoon = |name: &OsString| name.as_encoded_bytes().starts_with(b"PONTOON_");
        let mut env: Environment =
            std::env::vars_os().filter(|(name, _)| !of_pontoon(name)).collect();
        env.push(("PONTOON_SOCKET".into(), SOCKET.into()));
        let (daemon, servers, left_out) = (None, Vec::new(), false);
        Self { report, interrupt, env, daemon, servers, without, left_out }
    }

    /// Runs a step: its beginning, `work`, its moral.
    pub(crate) fn step(
        &mut self,
        step: &Step,
        work: impl FnOnce(&mut Self) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        self.report.begin(step);
        work(self)?;
        self.report.end();
        Ok(())
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn start_daemon(&mut self) -> Result<(), Stop> {
        let line = "pontoon daemon --foreground";
        self.report.command(&format!("{line} &"));
        let daemon = Background::start(&argv(line), &self.env)?;
        let ready = daemon.wait_for("listening on", &self.interrupt);
        self.daemon = Some(daemon);
        self.ready(line, ready)
    }

    /// Starts a server at `place` and waits until it listens; its pages tell whom it saw.
    pub(crate) fn serve(&mut self, place: Place, at: &str) -> Result<(), Stop> {
        let line = place.station(&format!("serve {at}"));
        self.report.command(&format!("{line} &"));
        let server = Background::start(&argv(&line), &self.env)?;
        let ready = server.wait_for("Serving HTTP", &self.interrupt);
        self.servers.push(server);
        match ready {
            // What is asked of it will fail, and show it.
            Err(said) if !self.interrupt.asked() => {
                self.report.show(&said);
                Ok(())
            }
            ready => self.ready(&line, ready),
        }
    }

    fn ready(&self, line: &str, ready: Result<(), String>) -> Result<(), Stop> {
        match ready {
            Ok(()) => Ok(()),
            Err(_) if self.interrupt.asked() => Err(Stop::Interrupted),
            Err(said) => {
                Err(Failure::new(format!("`{line}` did not become ready:\n{said}")).into())
            }
        }
    }

    /// Types a command that changes something. That it fails is a failed check.
    pub(crate) fn type_in(&mut self, line: &str) -> Result<(), Stop> {
        if self
            .without
            .as_deref()
            .is_some_and(|left_out| line.strip_prefix("pontoon ") == Some(left_out))
        {
            self.left_out = true;
            self.report.command(line);
            self.report.show("(left out)");
            return Ok(());
        }
        let output = self.run(line)?;
        self.report.show(&output.text());
        if !output.success() {
            self.report.check(line, "exit status 0", &ending(&output), false);
        }
        Ok(())
    }

    /// Types a command that shows something.
    pub(crate) fn look(&mut self, line: &str) -> Result<Output, Stop> {
        let output = self.run(line)?;
        self.report.show(&output.text());
        Ok(output)
    }

    /// Has a station do `what` at `place`.
    pub(crate) fn station(&mut self, place: Place, what: &str) -> Result<Output, Stop> {
        self.run(&place.station(what))
    }

    fn run(&mut self, line: &str) -> Result<Output, Stop> {
        self.report.command(line);
        let output = self.quietly(line)?;
        self.report.ended(&output.text(), output.status);
        Ok(output)
    }

    /// As a station, without a word about it.
    pub(crate) fn station_quietly(&mut self, place: Place, what: &str) -> Result<Output, Stop> {
        self.quietly(&place.station(what))
    }

    /// What a listing has in JSON; nothing where it fails, which the check on it will show.
    pub(crate) fn json<T: DeserializeOwned + Default>(&mut self, line: &str) -> Result<T, Stop> {
        let output = self.quietly(&format!("{line} --format json"))?;
        Ok(serde_json::from_str(&output.stdout).unwrap_or_default())
    }

    fn quietly(&mut self, line: &str) -> Result<Output, Stop> {
        // A command would start another daemon, in the background and without the lab's networks.
        if let Some(daemon) = &mut self.daemon
            && daemon.has_ended()
        {
            let why = format!("the daemon ended before `{line}`:\n{}", daemon.tail());
            return Err(Failure::new(why).into());
        }
        let output = child::run(&argv(line), &self.env, child::WITHIN, Some(&self.interrupt))?;
        if self.interrupt.asked() { Err(Stop::Interrupted) } else { Ok(output) }
    }

    /// Tells the daemon to stop and waits for its end.
    pub(crate) fn stop_daemon(&mut self) -> Result<(), Stop> {
        let output = self.run("pontoon daemon stop")?;
        self.report.show(&output.text());
        if !output.success() {
            self.report.check("the daemon stops", "exit status 0", &ending(&output), false);
        }
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
        Ok(())
    }

    /// Waits for Enter, the end of the input, or an interrupt.
    pub(crate) fn wait_for_enter(&self) -> Result<(), Stop> {
        match self.interrupt.wait_for_enter()? {
            Ended::ByUser => Ok(()),
            Ended::Interrupted => Err(Stop::Interrupted),
        }
    }

    /// Ends everything that was started, whatever became of the lab.
    pub(crate) fn clean_up(&mut self) {
        if self.daemon.as_mut().is_some_and(|daemon| !daemon.has_ended()) {
            // Interrupted or not: what cannot be stopped is killed next.
            let _ = child::run(&argv("pontoon daemon stop"), &self.env, child::WITHIN, None);
        }
        self.servers.drain(..).for_each(Background::stop);
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
    }

    /// Whether somebody asked us to end.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupt.asked()
    }

    /// Whether there was such a command to leave out.
    pub(crate) fn left_out_as_asked(&self) -> Result<(), Failure> {
        match &self.without {
            Some(line) if !self.left_out => Err(Failure::new(format!(
                "--without: the lab types no command `{line}`; give one as it is shown, without \
                 `pontoon`, as in --without 'network set br0 --uplink sockets'"
            ))),
            _ => Ok(()),
        }
    }
}

/// How a command ended, and what it said, for a check that wanted another end.
pub(crate) fn ending(output: &Output) -> String {
    match output.status {
        Some(status) => format!("exit status {status}\n{}", output.text()),
        None => format!("no end within {} s; killed\n{}", child::WITHIN.as_secs(), output.text()),
    }
}

/// The words of a line; `pontoon` is this very program, wherever its file is.
fn argv(line: &str) -> Vec<OsString> {
    let word = |word| if word == "pontoon" { PROGRAM.into() } else { OsString::from(word) };
    line.split_whitespace().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stations_are_run_where_they_should_be() {
        let line = Place::Endpoint("netns0").station("ping 192.0.2.1");
        assert_eq!(line, "pontoon exec netns0 -- pontoon lab station ping 192.0.2.1");
        assert_eq!(argv(&line)[3..5], [OsString::from("--"), PROGRAM.into()]);
        assert!(
            Place::Namespace("world").station("links").starts_with("pontoon ns exec world -- ")
        );
        assert_eq!(Place::Host.station("routes"), "pontoon lab station routes");
    }
}
