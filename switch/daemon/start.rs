//! Starting the daemon in the background, for a command that needs it.
//!
//! The program is executed once more with its standard output on a pipe, and says there when it
//! answers requests, or why it never will: nobody polls, and a failure is shown where the command
//! was typed. Those who would start it at the same time take turns.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{close, dup2_stdout, setsid};

use crate::client::Client;
use crate::socket::{self, SocketError};

/// The option by which [`background`] knows that it was started by [`start`].
pub const BACKGROUND: &str = "--background";

/// The option by which a daemon so started ends when nobody needs it.
pub const ON_DEMAND: &str = "--on-demand";

/// Why the daemon could not be started, or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A system call of the starter's failed.
    #[error("start the daemon: {what}: {source}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// It said why not.
    #[error("{0}")]
    Refused(String),
    /// It ended before it was ready and did not say why.
    #[error("the daemon ended before it was ready; its log is {0}")]
    Silent(PathBuf),
}

/// A client of the daemon on `socket`, which is started where none runs. The notes are the new
/// daemon's, for the user.
///
/// # Errors
///
/// It runs not and cannot be started.
pub fn ensure(socket: &Path) -> Result<(Client, Vec<String>), StartError> {
    let step = |what| move |source| StartError::Step { what, source };
    let mut notes = Vec::new();
    if !is_answered(socket) {
        let _turn = socket::starters_turn(socket)?;
        if !is_answered(socket) {
            notes = start(socket, &[ON_DEMAND.into()])?;
        }
    }
    let client = Client::new(socket).map_err(step("prepare a connection"))?;
    Ok((client, notes))
}

/// Starts a daemon on `socket` with further options of `pontoon daemon`, and waits until it is ready.
///
/// # Errors
///
/// It cannot be started; the daemon's own reason is in the error.
pub fn start(socket: &Path, options: &[OsString]) -> Result<Vec<String>, StartError> {
    let step = |what| move |source| StartError::Step { what, source };
    socket::prepare_directory(socket)?;
    if is_answered(socket) {
        // It would say so itself, into a log that may be another's.
        let path = socket.to_owned();
        return Err(match socket::running(socket) {
            Some(pid) => SocketError::Running { pid: Some(pid), path },
            None => SocketError::Foreign(path),
        }
        .into());
    }
    let log = socket::beside(socket, "log");
    let stderr = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&log)
        .map_err(step("open its log"))?;
    let mut child = Command::new(program())
        .arg0("pontoon")
        .args(["daemon", BACKGROUND])
        .args(options)
        .env("PONTOON_SOCKET", socket)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(step("execute this program"))?;
    let mut notes = Vec::new();
    // `stdout` was asked to be a pipe, so it is there.
    for line in child.stdout.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines()) {
        let line = line.map_err(step("hear from it"))?;
        match line.split_once(' ') {
            Some(("note", note)) => notes.push(note.to_owned()),
            Some(("error", why)) => {
                // It is about to end by itself.
                let _ = child.wait();
                return Err(StartError::Refused(why.to_owned()));
            }
            _ if line == "ready" => return Ok(notes),
            _ => {}
        }
    }
    let _ = child.wait();
    Err(StartError::Silent(log))
}

/// This program's file; by way of `/proc` where it was replaced since it was started.
fn program() -> PathBuf {
    let by_name = env::current_exe().ok().filter(|path| path.exists());
    by_name.unwrap_or_else(|| "/proc/self/exe".into())
}

fn is_answered(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// The daemon's end of [`start`]: makes this process one of its own session, without descriptors of
/// its starter's. First thing in the process, which has one thread and has opened nothing yet.
///
/// # Errors
///
/// `/proc` is not mounted.
pub fn background() -> io::Result<Starter> {
    // Refused to a process group's leader, which a child of `start` is not; started in another way,
    // it stays in the session it is in.
    let _ = setsid();
    let listing = std::fs::read_dir("/proc/self/fd")?;
    let open: Vec<i32> =
        listing.flatten().filter_map(|fd| fd.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The listing's own is closed by now, and that is no error.
        let _ = close(fd);
    }
    Ok(Starter(()))
}

/// Whoever waits on the pipe.
#[derive(Debug)]
pub struct Starter(());

impl Starter {
    /// Tells the starter that requests are answered, and lets it go.
    pub fn ready(self, notes: &[String]) {
        let notes = notes.iter().map(|note| format!("note {note}\n"));
        self.say(&(notes.collect::<String>() + "ready\n"));
    }

    /// Tells the starter why there will be no daemon.
    pub fn failed(self, why: &str) {
        self.say(&format!("error {}\n", why.replace('\n', " ")));
    }

    fn say(self, what: &str) {
        // A starter that is gone has nobody to tell.
        let _ = io::stdout().write_all(what.as_bytes()).and_then(|()| io::stdout().flush());
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = dup2_stdout(null);
        }
    }
}
