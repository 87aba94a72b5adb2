//! How long a station waits, and what it says when it waited in vain or was refused.

use std::io;
use std::time::Duration;

use nix::errno::Errno;

use crate::failure::Failure;

/// How long a connection may take to be made or refused, and a peer to say something.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// What `error` says in the words of `perror(3)`, as the tools of the tutorials print it.
pub(super) fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_owned(),
        None if is_timeout(error) => "Connection timed out".to_owned(),
        None => error.to_string(),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// The failure of `what` by `error`.
pub(super) fn failure(what: impl std::fmt::Display, error: &io::Error) -> Failure {
    Failure::new(format!("{what}: {}", in_words(error)))
}
