//! Commands in namespaces: new ones for `pontoon run`, existing ones for `pontoon exec`.
//!
//! A command started in new namespaces is held before `exec`: its network namespace exists and can
//! be attached to while not one instruction of the command has run.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::child::{Order, ask, line, ourselves};
use crate::command::{self, CommandOrder, Go, MapTo, Place};
use crate::error::Error;
use crate::namespace::{Netns, inode};
use crate::signals::HandedOn;
use crate::sockopt::pidfd_open;
use crate::target::Target;
use crate::wire;

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
    running: Running,
    socket: UnixStream,
    netns: Netns,
}

/// A started command. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
}

/// What to join for a command in an existing namespace.
#[derive(Debug, Default)]
pub struct ExecConfig {
    /// Number of the network namespace it must be; `None` where any will do.
    pub netns: Option<u64>,
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
    let user = match config.user {
        NewUser::No => None,
        NewUser::UnlessRoot if geteuid().is_root() => None,
        NewUser::UnlessRoot | NewUser::MapRoot => Some(MapTo::Root),
        NewUser::MapCurrent => Some(MapTo::Ourselves),
    };
    if !config.bind_mounts.is_empty() && !config.new_mount {
        let what = "mount files over others without a mount namespace of the command's own";
        return Err(Error::step(what, Errno::EINVAL));
    }
    let order = CommandOrder {
        argv: config.argv,
        cwd: config.cwd.map(Into::into),
        place: Place::New { user, mount: config.new_mount, net: config.new_net },
        bind_mounts: paths(config.bind_mounts),
        sysfs: false,
        pdeathsig: config.pdeathsig,
        parent: Pid::this().as_raw(),
        hold: true,
    };
    start(order, &[], config.env, config.stdio)
}

/// Runs a command in an existing network namespace, with our terminal, and waits for it.
///
/// Enters the user namespace owning it too, where that is not ours, and is root there if it has one.
/// Ctrl-C reaches the command and does not end us; SIGINT, SIGQUIT, SIGTERM and SIGHUP sent to us
/// alone are handed on to it. If we are killed, so is it.
///
/// # Errors
/// [`Error::CommandNotFound`], [`Error::CommandNotExecutable`], [`Error::ForeignNamespace`],
/// [`Error::NamespaceReplaced`] and those of [`Target::open`].
pub fn exec_in(target: &Target, config: ExecConfig) -> Result<ExitStatus, Error> {
    let netns = target.open()?;
    if config.netns.is_some_and(|number| number != netns.inode()) {
        return Err(Error::NamespaceReplaced { target: target.to_string() });
    }
    let mut fds = vec![netns.as_fd()];
    let joined = match config.mounts {
        Mounts::Joined => mounts_to_join(target, &netns)?,
        _ => None,
    };
    fds.extend(joined.as_ref().map(AsFd::as_fd));
    let (mount, bind_mounts, sysfs) = match config.mounts {
        Mounts::Private { bind_mounts, sysfs } => (true, paths(bind_mounts), sysfs),
        Mounts::Ours | Mounts::Joined => (false, Vec::new(), false),
    };
    let order = CommandOrder {
        argv: config.argv,
        cwd: config.cwd.map(Into::into),
        place: Place::Existing { target: target.to_string(), mount },
        bind_mounts,
        sysfs,
        pdeathsig: Some(libc::SIGKILL),
        parent: Pid::this().as_raw(),
        // Held for the moment it takes to be ready for its signals.
        hold: true,
    };
    start(order, &fds, config.env, Default::default())?.run()
}

/// The mount namespace of the process whose network namespace was opened, unless it is our own: joining
/// that takes a privilege.
fn mounts_to_join(target: &Target, netns: &Netns) -> Result<Option<OwnedFd>, Error> {
    let Target::Pid(pid) = target else {
        let what = format!("join the mounts of {target}: only a process (pid:N) has mounts");
        return Err(Error::step(what, Errno::EINVAL));
    };
    let number = |path: &str| {
        let file = File::open(path)?;
        inode(file.as_fd()).map(|number| (number, file))
    };
    let failed = |source| Error::step(format!("join the mounts of {target}"), source);
    // Of one process, whoever has its number by now: the descriptor is that process's.
    let process = File::open(format!("/proc/{pid}")).map_err(failed)?;
    let of = |kind: &str| number(&format!("/proc/self/fd/{}/ns/{kind}", process.as_raw_fd()));
    let (theirs, file) = of("mnt").map_err(failed)?;
    if of("net").map_err(failed)?.0 != netns.inode() {
        return Err(Error::NamespaceReplaced { target: target.to_string() });
    }
    let (ours, _) = number("/proc/self/ns/mnt")
        .map_err(|source| Error::step("open /proc/self/ns/mnt", source))?;
    Ok((theirs != ours).then(|| file.into()))
}

fn paths(pairs: Vec<(PathBuf, PathBuf)>) -> Vec<(OsString, OsString)> {
    pairs.into_iter().map(|(source, target)| (source.into(), target.into())).collect()
}

/// Starts the child that becomes the command and waits until it is where it should be.
fn start(
    order: CommandOrder,
    fds: &[BorrowedFd<'_>],
    env: Option<Vec<(OsString, OsString)>>,
    stdio: [Option<OwnedFd>; 3],
) -> Result<Held, Error> {
    let failed = |source| Error::Child { what: "start a command".to_owned(), source };
    let (socket, far) = line().map_err(failed)?;
    let mut command = ourselves().map_err(failed)?;
    command.arg(far.as_raw_fd().to_string());
    if let Some(env) = env {
        command.env_clear().envs(env);
    }
    let [stdin, stdout, stderr] = stdio.map(|fd| fd.map_or_else(Stdio::inherit, Stdio::from));
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    // SAFETY: between fork and exec the closure makes one fcntl(2), which is async-signal-safe, on
    // a descriptor it owns, and neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            fcntl(&far, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(failed)?;
    // With the command goes our copy of the child's end, so that its death reads as an end here.
    drop(command);
    let mut running = Running::adopt(child).map_err(failed)?;
    match ask::<()>(&socket, &Order::Command(order), fds).map_err(failed)? {
        Some((Ok(()), mut fds)) => {
            let netns = fds.pop().ok_or_else(|| io::ErrorKind::InvalidData.into());
            let netns = netns.and_then(Netns::from_fd).map_err(failed)?;
            Ok(Held { running, socket, netns })
        }
        Some((Err(err), _)) => Err(err),
        None => Err(failed(match running.wait() {
            Ok(status) => io::Error::other(format!(
                "it ended ({status}) without an answer; does main() begin with \
                 netns::enter_child_if_asked()?"
            )),
            Err(err) => err,
        })),
    }
}

/// The setting of this host that keeps us from making user namespaces, with the command that
/// changes it; `None` where none is known to.
#[must_use]
pub fn user_namespaces_blocked() -> Option<String> {
    command::obstacle()
}

/// What a shell would show for this status: the exit code, or 128 and the signal's number.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}

impl Held {
    /// Its process id, which the command keeps.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Lets it run; returns once it does.
    ///
    /// # Errors
    /// [`Error::CommandNotFound`], [`Error::CommandNotExecutable`]: the status to end with is
    /// [`Error::exit_code`].
    pub fn release(self) -> Result<Running, Error> {
        self.let_go()?;
        Ok(self.running)
    }

    /// Lets it run and waits for its end, its signals handed on as by [`Running::wait`] from before
    /// its first instruction. One that comes between a `release` and a `wait` ends us instead.
    ///
    /// # Errors
    /// As [`release`](Self::release); [`Error::Step`] where somebody else has reaped it.
    pub fn run(mut self) -> Result<ExitStatus, Error> {
        // Gone before `self` is, by which the command is reaped if it cannot be let go.
        let handed_on = HandedOn::to(self.running.raw_pid().as_raw());
        self.let_go()?;
        let status = self.running.wait_handing_on(handed_on);
        status.map_err(|source| Error::step("wait for the command", source))
    }

    fn let_go(&self) -> Result<(), Error> {
        let failed = |source| Error::Child { what: "let the command go".to_owned(), source };
        wire::send(&self.socket, &Go, &[]).map_err(failed)?;
        // A command on a slow disk may take its time to be read.
        self.socket.set_read_timeout(None).map_err(failed)?;
        match wire::receive::<Result<(), Error>>(&self.socket).map_err(failed)? {
            Some((Err(err), _)) => Err(err),
            // exec has closed the other end; a death has too, and wait() will tell of it.
            Some((Ok(()), _)) | None => Ok(()),
        }
    }
}

impl Running {
    fn adopt(child: Child) -> io::Result<Self> {
        let mut child = child;
        match pidfd_open(child.id()) {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(err) => {
                // It waits for an order and would end by itself; this way it is reaped.
                let _ = child.kill();
                let _ = child.wait();
                Err(err)
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable once the command has ended: for poll(2).
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends it a signal; one that has ended already is no error.
    ///
    /// # Errors
    /// `EINVAL` for a signal that does not exist.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        let signal = Signal::try_from(signal)?;
        if self.try_wait()?.is_none() {
            // Not reaped, so the number is still its own.
            match kill(self.raw_pid(), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Whether it has ended, without waiting.
    ///
    /// # Errors
    /// `ECHILD` where somebody else has reaped it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end. Meanwhile Ctrl-C is the command's, not ours, and SIGINT, SIGQUIT, SIGTERM
    /// and SIGHUP sent to us alone are handed on to it.
    ///
    /// # Errors
    /// `ECHILD` where somebody else has reaped it.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.wait_handing_on(HandedOn::to(self.raw_pid().as_raw()))
    }

    fn wait_handing_on(&mut self, handed_on: HandedOn) -> io::Result<ExitStatus> {
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        while poll(&mut ended, PollTimeout::NONE) == Err(Errno::EINTR) {}
        // Before it is reaped: afterwards its number may be another's, to whom nothing is handed.
        drop(handed_on);
        self.child.wait()
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
