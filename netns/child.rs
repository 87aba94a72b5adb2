//! The child that enters a user namespace for us.
//!
//! `setns(2)` and `unshare(2)` into a user namespace want a process of one thread, and pontoon has
//! many. So the program starts itself once more under another name; the child's `main` comes here
//! before it makes a thread, does what the order on its socket says, answers and ends. The socket
//! is standard input for a [`Job`], and another descriptor, given as the first argument, for a
//! command that needs its own standard input.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::command::{self, CommandOrder};
use crate::error::Error;
use crate::job::{Job, Outcome, Product};
use crate::namespace::Netns;
use crate::{ioctl, wire};

/// Name the child goes by in `argv[0]`.
pub(crate) const ARGV0: &str = "pontoon-netns-child";

/// Longest wait for a child's answer. A kernel busy dismantling a thousand namespaces holds its
/// routing lock for some seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a child is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Enter the namespace whose descriptor comes along, and its owner before it.
    Job { target: String, job: Job },
    /// Become a command, in namespaces whose descriptors come along or in new ones.
    Command(CommandOrder),
}

/// What a child says, and the descriptors that come along; `None` where it ends without a word.
pub(crate) type Answer<T> = Option<(Result<T, Error>, Vec<OwnedFd>)>;

/// The program started once more as a child, its standard streams not yet chosen.
///
/// # Errors
/// Where we are such a child and nobody served us: each would start the next one.
pub(crate) fn ourselves() -> io::Result<Command> {
    if std::env::args_os().next().is_some_and(|argv0| argv0 == ARGV0) {
        return Err(io::Error::other("main() must begin with netns::enter_child_if_asked()"));
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0(ARGV0);
    Ok(command)
}

/// Two ends of a line to a child, ours first. No call on ours waits longer than [`PATIENCE`].
pub(crate) fn line() -> io::Result<(UnixStream, OwnedFd)> {
    line_with(PATIENCE)
}

fn line_with(patience: Duration) -> io::Result<(UnixStream, OwnedFd)> {
    let (near, far) = UnixStream::pair()?;
    near.set_read_timeout(Some(patience))?;
    near.set_write_timeout(Some(patience))?;
    Ok((near, far.into()))
}

/// Serves the order and ends the process, if this process is such a child; else returns at once.
///
/// The first call of `main`, before any thread is made. A test program whose tests attach to
/// namespaces of other user namespaces must call it too.
pub fn enter_child_if_asked() {
    let mut args = std::env::args_os();
    if args.next().is_none_or(|argv0| argv0 != ARGV0) {
        return;
    }
    let socket = args.next().and_then(|fd| fd.to_str()?.parse().ok());
    std::process::exit(socket.filter(is_socket).map_or(125, serve));
}

/// Whether a socket of ours has that number: whoever it is that has called us so must have left us one.
fn is_socket(fd: &RawFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{fd}"))
        .is_ok_and(|what| what.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
}

fn serve(socket: RawFd) -> i32 {
    // SAFETY: the number is an open descriptor's, a socket's, as `is_socket` has seen: our parent put it there for
    // us, and nothing in this process, which has just begun, has claimed it (standard input is only ever
    // borrowed by number).
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(socket) });
    // It came through our exec and is not to go through the next.
    if fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_err() {
        return 125;
    }
    match wire::receive::<Order>(&socket) {
        Ok(Some((Order::Job { target, job }, mut fds))) => {
            let result = fds
                .pop()
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
                .and_then(Netns::from_fd)
                .map_err(|source| Error::OpenNamespace { target: target.clone(), source })
                .map(|netns| netns.called(target))
                .and_then(|netns| {
                    enter(&netns)?;
                    job.run(&netns)
                });
            answer(&socket, result)
        }
        Ok(Some((Order::Command(order), fds))) => command::become_command(&order, fds, &socket),
        // Nobody wants anything any more.
        Ok(None) | Err(_) => 125,
    }
}

fn answer(socket: &UnixStream, result: Result<Product, Error>) -> i32 {
    let (answer, fds): (Result<Outcome, Error>, _) = match result {
        Ok((outcome, fds)) => (Ok(outcome), fds),
        Err(err) => (Err(err), Vec::new()),
    };
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    match wire::send(socket, &answer, &fds) {
        Ok(()) => 0,
        Err(_) => 125,
    }
}

/// Enters the user namespace that owns `netns`, then `netns`. Our uid stays what it was outside:
/// the capabilities that come with entering are all that is needed, and `/dev/net/tun` may have
/// been opened to just this user.
fn enter(netns: &Netns) -> Result<(), Error> {
    let target = || netns.name().to_owned();
    let foreign = |owner| Error::ForeignNamespace {
        target: target(),
        owner,
        euid: nix::unistd::geteuid().as_raw(),
    };
    let user = ioctl::owning_user_namespace(netns.as_fd()).map_err(|_| foreign(None))?;
    setns(&user, CloneFlags::CLONE_NEWUSER)
        .map_err(|_| foreign(ioctl::owner_uid(user.as_fd()).ok()))?;
    setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| Error::EnterNamespace { target: target(), source: errno.into() })
}

/// Does `job` in a child that enters the user namespace owning `netns`.
pub(crate) fn perform(netns: &Netns, job: &Job) -> Result<Product, Error> {
    let target = netns.name();
    let failed =
        |source| Error::Child { what: format!("enter network namespace {target}"), source };
    let (near, far) = line().map_err(failed)?;
    let mut child = ourselves()
        .map_err(failed)?
        .arg("0")
        .stdin(Stdio::from(far))
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let order = Order::Job { target: target.to_owned(), job: job.clone() };
    match last_word(&mut child, &near, &order, netns).map_err(failed)? {
        Some((outcome, fds)) => outcome.map(|outcome| (outcome, fds)),
        None => Err(failed(io::Error::other(
            "it ended without an answer; does main() begin with netns::enter_child_if_asked()?",
        ))),
    }
}

/// As [`ask`], of a child that is gone afterwards, whatever it did.
fn last_word(
    child: &mut Child,
    line: &UnixStream,
    order: &Order,
    netns: &Netns,
) -> io::Result<Answer<Outcome>> {
    let answer = ask(line, order, &[netns.as_fd()]);
    if !matches!(answer, Ok(Some(_))) {
        // It hangs or is gone; in the latter case there is nothing to kill, and nobody to tell.
        let _ = child.kill();
    }
    // Where the program ignores SIGCHLD the kernel has reaped it already.
    let _ = child.wait();
    answer
}

/// Gives a child its order and hears its answer.
///
/// # Errors
/// `TimedOut` past the patience of [`line`].
pub(crate) fn ask<T: DeserializeOwned>(
    line: &UnixStream,
    order: &Order,
    fds: &[BorrowedFd<'_>],
) -> io::Result<Answer<T>> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, WouldBlock};
    match wire::send(line, order, fds).and_then(|()| wire::receive(line)) {
        // It did not even read the order.
        Err(err) if matches!(err.kind(), BrokenPipe | ConnectionReset) => Ok(None),
        Err(err) if err.kind() == WouldBlock => Err(io::Error::new(TimedOut, "it says nothing")),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockopt::pidfd_open;

    /// Asks a child that is this script, of which nothing must be left.
    fn ask_script(script: &str, patience: Duration) -> io::Result<bool> {
        let (near, far) = line_with(patience).expect("socketpair");
        let mut child =
            Command::new("sh").args(["-c", script]).stdin(far).spawn().expect("a shell");
        let order = Order::Job { target: ".".to_owned(), job: Job::Look };
        let netns = Netns::current().expect("/proc");
        let answer = last_word(&mut child, &near, &order, &netns);
        let gone = pidfd_open(child.id()).expect_err("reaped");
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
        answer.map(|answer| answer.is_some())
    }

    #[test]
    fn a_child_that_hangs_is_killed() {
        // Should nobody lose patience, it ends by itself, and that is another answer.
        let err = ask_script("exec sleep 20", Duration::from_millis(50)).expect_err("silence");
        assert_eq!(err.kind(), io::ErrorKind::TimedOut, "{err}");
    }

    #[test]
    fn a_child_that_ends_has_no_answer() {
        for script in ["exit 3", "head -c 5 > /dev/null", "kill -9 $$"] {
            assert!(!ask_script(script, PATIENCE).expect("an end"), "{script}");
        }
    }
}
