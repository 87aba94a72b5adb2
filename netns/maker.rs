//! Sockets of a container's namespace, made again and again for as long as somebody wants them.
//!
//! A [`Target`] is opened anew at every call, and by then may stand for another namespace: process
//! numbers are used again. A [`SocketMaker`] keeps the one it was made for, which therefore does not
//! end before it; whoever has one must learn of the container's end elsewhere.

use std::os::fd::OwnedFd;

use crate::attach::perform_in;
use crate::error::Error;
use crate::job::{Job, SocketKind};
use crate::namespace::Netns;
use crate::target::Target;

/// Makes sockets in one namespace.
#[derive(Debug)]
pub struct SocketMaker {
    /// What errors call it.
    target: Target,
    netns: Netns,
}

impl SocketMaker {
    /// For the namespace `target` stands for now.
    ///
    /// # Errors
    /// Those of [`Target::open`].
    pub fn open(target: &Target) -> Result<Self, Error> {
        Ok(Self { target: target.clone(), netns: target.open()? })
    }

    /// Number of the namespace, as [`Netns::inode`] has it.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.netns.inode()
    }

    /// Makes `count` sockets, at most 253: non-blocking, close-on-exec, neither bound nor connected.
    /// Costs a thread (some 0.1 ms) where our own user namespace owns the container's, else a child
    /// process (some 1 ms), whatever `count` is.
    ///
    /// # Errors
    /// [`Error::EnterNamespace`], [`Error::ForeignNamespace`], [`Error::Child`]; [`Error::Step`] where
    /// the kernel has no socket left for us.
    pub fn make(&self, kind: SocketKind, count: u16) -> Result<Vec<OwnedFd>, Error> {
        let job = Job::Sockets { kind, count };
        perform_in(&self.target, &self.netns, &job).map(|(_, sockets)| sockets)
    }
}
