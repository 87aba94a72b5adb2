//! One direction of a spliced connection: from one socket to the other.
//!
//! Octets wait in the source's own queue until the sink takes them: they are peeked, sent, and then
//! discarded as far as they went, so that none is ever kept here. Once a direction has shown that it
//! is a bulk transfer they go through a pipe instead, which pays from some 256 KB on.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::pipe::{Pipe, Pipes};
use crate::limits::Lease;
use crate::socket;

/// Octets after which a direction is worth a pipe.
const SPLICE_FROM: u32 = 256 << 10;

/// Octets copied at once; larger pieces leave the cache.
pub(super) const COPY: usize = 64 << 10;

/// Octets one direction may move before others get their turn.
const SHARE: usize = 1 << 20;

/// What directions move octets with, and at whose expense.
#[derive(Debug)]
pub(super) struct Tools<'a> {
    pub(super) buffer: &'a mut [u8],
    pub(super) pipes: &'a mut Pipes,
    pub(super) lease: &'a Lease,
}

/// How a turn went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// All is moved that can be now.
    Waits,
    /// The share is used up.
    More,
    /// The source has broken off, all it had sent before is moved.
    SourceFailed,
    /// The sink takes no more, for good.
    SinkFailed,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Way {
    /// The source may have something to read.
    pub(super) readable: bool,
    /// The sink may have room.
    pub(super) writable: bool,
    /// Urgent octets are on the way, at which splice(2) stops for ever.
    pub(super) urgent: bool,
    /// The source has finished.
    pub(super) ended: bool,
    /// And the sink was told.
    pub(super) closed: bool,
    /// Octets copied so far, up to [`SPLICE_FROM`].
    copied: u32,
    pipe: Option<Box<Pipe>>,
}

impl Way {
    /// Between sockets of which nothing is known.
    pub(super) const fn new() -> Self {
        Self {
            readable: true,
            writable: true,
            urgent: false,
            ended: false,
            closed: false,
            copied: 0,
            pipe: None,
        }
    }

    /// Moves octets until the source is empty, the sink is full or the share used up. Returns how
    /// many, too.
    pub(super) fn carry(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        tools: &mut Tools<'_>,
    ) -> (usize, Turn) {
        let mut moved = 0;
        let turn = loop {
            if let Some(turn) = self.step(from, to, tools, &mut moved) {
                break turn;
            }
        };
        if self.pipe.as_ref().is_some_and(|pipe| pipe.held == 0) {
            self.give_back(tools.pipes);
        }
        (moved, turn)
    }

    fn step(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        tools: &mut Tools<'_>,
        moved: &mut usize,
    ) -> Option<Turn> {
        if self.closed {
            return Some(Turn::Waits);
        }
        if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held > 0) {
            if !self.writable {
                return Some(Turn::Waits);
            }
            match pipe.drain(to) {
                Ok(0) => return Some(Turn::SinkFailed),
                Ok(given) => *moved += given,
                Err(Errno::EAGAIN) => self.writable = false,
                Err(Errno::EINTR) => {}
                Err(_) => return Some(Turn::SinkFailed),
            }
            return None;
        }
        if self.ended {
            // Fails only where the sink is gone, which it tells itself.
            let _ = to.shutdown(Shutdown::Write);
            self.closed = true;
            return Some(Turn::Waits);
        }
        if !self.readable || !self.writable {
            return Some(Turn::Waits);
        }
        if *moved >= SHARE {
            return Some(Turn::More);
        }
        match self.fill_pipe(from, tools) {
            // Copying finds out why nothing came: it alone tells an end from an urgent octet.
            Ok(0) => self.copy(from, to, tools, moved),
            Err(Errno::EAGAIN) if self.urgent => self.copy(from, to, tools, moved),
            Err(Errno::EAGAIN) => {
                self.readable = false;
                Some(Turn::Waits)
            }
            Ok(_) | Err(Errno::EINTR) => None,
            Err(_) => Some(Turn::SourceFailed),
        }
    }

    /// Fills the pipe, if the time for one has come.
    fn fill_pipe(&mut self, from: &TcpStream, tools: &mut Tools<'_>) -> nix::Result<usize> {
        if self.copied < SPLICE_FROM {
            return Ok(0);
        }
        if self.pipe.is_none() {
            self.pipe = tools.pipes.take(tools.lease).map(Box::new);
        }
        self.pipe.as_mut().map_or(Ok(0), |pipe| pipe.fill(from))
    }

    fn copy(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        tools: &mut Tools<'_>,
        moved: &mut usize,
    ) -> Option<Turn> {
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(from.as_raw_fd(), tools.buffer, peek) {
            Ok(0) => self.ended = true,
            Ok(there) => match socket::write_some(to, &tools.buffer[..there], MsgFlags::empty()) {
                Ok(0) => self.writable = false,
                Ok(given) => {
                    if !discard(from, given) {
                        // Going on would send octets twice.
                        return Some(Turn::SourceFailed);
                    }
                    *moved += given;
                    let given = u32::try_from(given).unwrap_or(u32::MAX);
                    self.copied = self.copied.saturating_add(given).min(SPLICE_FROM);
                }
                Err(Errno::EINTR) => {}
                Err(_) => return Some(Turn::SinkFailed),
            },
            Err(Errno::EAGAIN) => {
                self.readable = false;
                self.urgent = false;
            }
            Err(Errno::EINTR) => {}
            Err(_) => return Some(Turn::SourceFailed),
        }
        None
    }

    /// Gives up the pipe, with whatever is in it.
    pub(super) fn give_back(&mut self, pipes: &mut Pipes) {
        if let Some(pipe) = self.pipe.take() {
            pipes.give_back(*pipe);
        }
    }
}

/// Takes octets that were peeked from the queue.
fn discard(from: &TcpStream, peeked: usize) -> bool {
    let mut left = peeked;
    while left > 0 {
        match netns::sockopt::recv_discard(from, left) {
            Ok(0) => return false,
            // Short of what was asked where an urgent octet is next.
            Ok(gone) => left -= gone.min(left),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}
