//! Pipes, through which splice(2) moves pages from one socket to another.
//!
//! A connection has one only while octets of its are in it; the next connection uses it again. What
//! waits in pipes is kernel memory, so each counts against its container's waiting octets, full. A
//! container at that bound, or a user at `fs.pipe-user-pages-soft` (proc(5)), is served by copying.

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use crate::limits::{Lease, Reservation};

/// Octets a pipe is asked to hold; without privilege `fs.pipe-max-size` (1 MiB) is the most.
const WANTED: i32 = 1 << 20;

/// A pipe that holds less is slower than copying.
const LEAST: usize = 128 << 10;

/// Unused pipes one worker keeps.
const MAX_KEPT: usize = 16;

/// A pipe, empty unless octets are known to be in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    pub(super) held: usize,
    /// While it is in use.
    room: Option<Reservation>,
}

impl Pipe {
    fn new() -> Option<Self> {
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
        let size = fcntl(&write, FcntlArg::F_SETPIPE_SZ(WANTED))
            .or_else(|_| fcntl(&write, FcntlArg::F_GETPIPE_SZ))
            .ok()?;
        let capacity = usize::try_from(size).ok().filter(|capacity| *capacity >= LEAST)?;
        Some(Self { read, write, capacity, held: 0, room: None })
    }

    /// Takes octets from a socket.
    ///
    /// # Errors
    /// `EAGAIN` where there are none, or where the next is urgent.
    pub(super) fn fill(&mut self, from: &impl std::os::fd::AsFd) -> nix::Result<usize> {
        let taken = splice(from, None, &self.write, None, self.capacity, FLAGS)?;
        self.held += taken;
        Ok(taken)
    }

    /// Gives octets to a socket.
    ///
    /// # Errors
    /// `EAGAIN` where it has no room.
    pub(super) fn drain(&mut self, to: &impl std::os::fd::AsFd) -> nix::Result<usize> {
        let given = splice(&self.read, None, to, None, self.held, FLAGS)?;
        self.held -= given.min(self.held);
        Ok(given)
    }
}

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

/// A worker's unused pipes.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    kept: Vec<Pipe>,
}

impl Pipes {
    /// An empty pipe, at the expense of the container that flow is of; none at its bound or the
    /// kernel's.
    pub(super) fn take(&mut self, lease: &Lease) -> Option<Pipe> {
        let mut pipe = self.kept.pop().or_else(Pipe::new)?;
        let mut room = Reservation::new(lease);
        if room.grow(pipe.capacity) {
            pipe.room = Some(room);
            Some(pipe)
        } else {
            self.kept.push(pipe);
            None
        }
    }

    /// Takes a pipe back; one with octets in it is closed.
    pub(super) fn give_back(&mut self, mut pipe: Pipe) {
        pipe.room = None;
        if pipe.held == 0 && self.kept.len() < MAX_KEPT {
            self.kept.push(pipe);
        }
    }

    /// Closes all, as nobody is there to use them.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }
}
