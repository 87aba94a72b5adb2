//! Commands in namespaces: new ones for `pontoon run`, existing ones for `pontoon exec`.
//!
//! A command started in new namespaces is held before `exec`: its network namespace exists and can
//! be attached to while not one instruction of the command has run.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::error::Error;
use crate::namespace::Netns;
use crate::target::Target;

/// A command and the namespaces to start it in.
#[derive(Debug, Default)]
pub struct SpawnConfig {
    /// The command and its arguments; the first is looked up in the `PATH` of `env`.
    pub argv: Vec<OsString>,
    /// Its whole environment; `None` hands on ours.
    pub env: Option<Vec<(OsString, OsString)>>,
    /// Its working directory; `None` hands on ours.
    pub cwd: Option<PathBuf>,
    /// Which user namespace.
    pub user: NewUser,
    /// A mount namespace of its own, to which nothing mounted later propagates back.
    pub new_mount: bool,
    /// A network namespace of its own, loopback up.
    pub new_net: bool,
    /// Files to mount over others (source, target), in order; needs `new_mount`.
    pub bind_mounts: Vec<(PathBuf, PathBuf)>,
    /// Signal the command gets when the calling *thread* ends: `PR_SET_PDEATHSIG`, `prctl(2)`.
    pub pdeathsig: Option<i32>,
    /// Standard input, output and error; `None` hands on ours.
    pub stdio: [Option<OwnedFd>; 3],
}

/// The user namespace of a new command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewUser {
    /// A new one unless we are root; mapped as `MapRoot`.
    #[default]
    UnlessRoot,
    /// Ours: needs `CAP_SYS_ADMIN`.
    No,
    /// A new one in which we are root: `unshare --map-root-user`.
    MapRoot,
    /// A new one in which we are who we are: `unshare --map-current-user`.
    MapCurrent,
}

/// A command not yet started, in its namespaces. Dropped, it ends without having run.
#[derive(Debug)]
pub struct Held {
    netns: Netns,
}

/// A started command. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Running {
    pidfd: OwnedFd,
}

/// What to join for a command in an existing namespace.
#[derive(Debug, Default)]
pub struct ExecConfig {
    /// The command and its arguments.
    pub argv: Vec<OsString>,
    /// Its whole environment; `None` hands on ours.
    pub env: Option<Vec<(OsString, OsString)>>,
    /// Its working directory; `None`: ours where it exists there, else `/`.
    pub cwd: Option<PathBuf>,
    /// Which mounts it sees.
    pub mounts: Mounts,
}

/// Which mounts a command sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mounts {
    /// Ours.
    #[default]
    Ours,
    /// Those of the target, which must be a process.
    Joined,
    /// Ours, with these files mounted over others (source, target), and `/sys` of the namespace
    /// where `sysfs` is set, as `ip netns exec` does.
    Private {
        /// Files to mount over others.
        bind_mounts: Vec<(PathBuf, PathBuf)>,
        /// Whether to mount a fresh `/sys`.
        sysfs: bool,
    },
}

/// Starts a command in new namespaces and holds it before its first instruction.
///
/// # Errors
/// [`Error::NoUserNamespace`] with the sysctl that helps; [`Error::Step`].
pub fn spawn_in_new_namespaces(config: SpawnConfig) -> Result<Held, Error> {
    let _ = config;
    Err(Error::step("spawn", io::Error::from(io::ErrorKind::Unsupported)))
}

/// Runs a command in an existing network namespace, with our terminal, and waits for it. Ctrl-C
/// reaches the command and does not end us; SIGTERM and SIGHUP are handed on to it.
///
/// # Errors
/// [`Error::CommandNotFound`], [`Error::CommandNotExecutable`], and what [`Target::open`] says.
pub fn exec_in(target: &Target, config: ExecConfig) -> Result<ExitStatus, Error> {
    let _ = (target, config);
    Err(Error::step("exec", io::Error::from(io::ErrorKind::Unsupported)))
}

/// What a shell would show for this status: the exit code, or 128 and the signal's number.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}

impl Held {
    /// Its process id, which the command keeps.
    #[must_use]
    pub fn pid(&self) -> u32 {
        0
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Lets it run.
    ///
    /// # Errors
    /// [`Error::CommandNotFound`], [`Error::CommandNotExecutable`]: the command line's status is
    /// [`Error::exit_code`].
    pub fn release(self) -> Result<Running, Error> {
        Err(Error::step("release", io::Error::from(io::ErrorKind::Unsupported)))
    }
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        0
    }

    /// Readable once the command has ended: for poll(2).
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.pidfd.as_fd()
    }

    /// Sends it a signal; one that has ended already is no error.
    ///
    /// # Errors
    /// `EINVAL` for a signal that does not exist.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        let _ = signal;
        Ok(())
    }

    /// Whether it has ended, without waiting.
    ///
    /// # Errors
    /// Where somebody else has reaped it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        Ok(None)
    }

    /// Waits for its end. Ctrl-C meanwhile is the command's, not ours.
    ///
    /// # Errors
    /// Where somebody else has reaped it.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
