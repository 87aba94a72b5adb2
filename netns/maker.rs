//! Sockets of a container's namespace, made again and again for as long as somebody wants them.
//!
//! A [`SocketMaker`] keeps the namespace it was made for, which therefore does not end before it;
//! whoever has one must learn of the container's end elsewhere.

use std::os::fd::OwnedFd;

use crate::attach::sockets_in;
use crate::error::Error;
use crate::job::SocketKind;
use crate::namespace::Netns;

/// Makes sockets in one namespace.
#[derive(Debug)]
pub struct SocketMaker(Netns);

impl SocketMaker {
    /// For this namespace.
    #[must_use]
    pub const fn new(netns: Netns) -> Self {
        Self(netns)
    }

    /// Makes `count` sockets, at most 253: non-blocking, close-on-exec, neither bound nor connected.
    /// Costs a thread (some 0.1 ms) where our own user namespace owns the container's, else a child
    /// process (some 1 ms), whatever `count` is.
    ///
    /// # Errors
    /// [`Error::EnterNamespace`], [`Error::ForeignNamespace`], [`Error::Child`]; [`Error::Step`] where
    /// the kernel has no socket left for us.
    pub fn make(&self, kind: SocketKind, count: u16) -> Result<Vec<OwnedFd>, Error> {
        sockets_in(&self.0, kind, count)
    }
}
