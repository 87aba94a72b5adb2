//! How a command ends that could not do as asked.

use std::error::Error;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use ::daemon::api::Uplink;

/// How every command ends.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Exit status of a command that failed.
const FAILED: u8 = 1;

/// Exit status of `run` and `exec` that failed themselves, as docker's.
const RUN_FAILED: u8 = 125;

/// What is told the user, and the status to end with.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// A failure in words of the command's own.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: FAILED }
    }

    /// The same, of a command that runs another one.
    pub(crate) fn of_run(self) -> Self {
        Self { code: if self.code == FAILED { RUN_FAILED } else { self.code }, ..self }
    }

    /// What is told the user.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Tells the user.
    pub(crate) fn report(&self) -> ExitCode {
        let mut stderr = std::io::stderr();
        let plain = !stderr.is_terminal()
            || std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        let name = if plain { "pontoon:" } else { "\x1b[1;31mpontoon:\x1b[0m" };
        // With nobody to tell, the status has to do.
        let _ = writeln!(stderr, "{name} {}", self.message);
        ExitCode::from(self.code)
    }
}

/// Tells the user something that is no failure.
pub(crate) fn note(message: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "pontoon: {message}");
}

/// Says to whoever sits before it why a command takes seconds: a station asks its segment.
pub(crate) fn note_asking(uplink: Option<&Uplink>) {
    if let Some(Uplink::Raw(raw)) = uplink
        && std::io::stderr().is_terminal()
    {
        let interface = &raw.interface;
        note(format_args!(
            "asking on {interface} for the station's addresses; that takes up to ten seconds"
        ));
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        // A cause that the message does not already tell.
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            let next_text = next.to_string();
            if !message.contains(&next_text) {
                message = format!("{message}: {next_text}");
            }
            cause = next.source();
        }
        Self::new(message)
    }
}

/// The failure of a step that names its own exit status.
pub(crate) fn of_command(error: netns::Error) -> Failure {
    let code = error.exit_code();
    Failure { code, ..Failure::from(error) }
}
