//! Ctrl-C and its kin, while there is something to clean up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Exit status of what Ctrl-C ended, as shells show it.
pub(crate) const STATUS: u8 = 130;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// As it was to.
    ByUser,
    /// Somebody asks us to end.
    Interrupted,
}

/// Becomes readable, for good, when somebody asks us to end.
#[derive(Debug)]
pub(crate) struct Interrupt(UnixStream);

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP are noted instead of ending the process. Children have
    /// them as they were: a handler does not outlive exec.
    pub(crate) fn catch() -> io::Result<Self> {
        let (told, teller) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, teller.try_clone()?)?;
        }
        Ok(Self(told))
    }

    /// Whether somebody asked.
    pub(crate) fn asked(&self) -> bool {
        let mut told = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut told, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Waits for Enter, the end of the input, or somebody who asks us to end.
    pub(crate) fn wait_for_enter(&self) -> io::Result<Ended> {
        let stdin = io::stdin();
        loop {
            let mut waiting = [
                PollFd::new(self.as_fd(), PollFlags::POLLIN),
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut waiting, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) if self.asked() => return Ok(Ended::Interrupted),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let mut octets = [0; 256];
            match nix::unistd::read(&stdin, &mut octets) {
                Ok(0) => return Ok(Ended::ByUser),
                Ok(len) if octets.get(..len).is_some_and(|read| read.contains(&b'\n')) => {
                    return Ok(Ended::ByUser);
                }
                Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
