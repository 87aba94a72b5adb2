//! When things end by themselves: endpoints with their namespaces, the daemon when nobody needs it.
//!
//! A process is watched by its pidfd, so its end is known at once and cannot be confused with that of
//! another process of the same number. A file that stands for a namespace is looked at every second:
//! taking a mount away tells nobody.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::attach::{Attached, Watch};
use crate::endpoint::Watcher;
use crate::log::log;
use crate::state::Daemon;

/// How often a file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Has `attached` detached when its namespace ends.
pub(crate) fn watch(
    daemon: &Arc<Daemon>,
    activity: &Arc<Activity>,
    attached: Attached,
    on: &Handle,
) {
    let id = attached.endpoint.id;
    let (of, daemon_later, activity) = (id.clone(), Arc::clone(daemon), Arc::clone(activity));
    let task = on.spawn(async move {
        end_of(attached.watch).await;
        let detached = tokio::task::spawn_blocking(move || {
            // Not there any more: somebody was quicker.
            let _ = daemon_later.detach(&of);
            activity.touch();
        });
        let _ = detached.await;
    });
    daemon.keep_watcher(&id, Watcher(task.abort_handle()));
}

async fn end_of(watch: Watch) {
    match watch {
        Watch::Process(pidfd) => {
            let ended = match watched(pidfd) {
                Ok(pidfd) => pidfd.readable().await.map(|_| ()),
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                // Nothing to wait on: the endpoint stays until it is detached.
                log!("watch a process: {error}");
                std::future::pending::<()>().await;
            }
        }
        Watch::File(path, inode) => {
            while std::fs::metadata(&path).is_ok_and(|found| found.ino() == inode) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

#[allow(
    deprecated,
    reason = "its unsafe successor wants proof that `as_raw_fd` always gives the same open \
              descriptor, which an `OwnedFd` is"
)]
fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

/// Whether somebody talks to the daemon, and when somebody last did.
#[derive(Debug)]
pub(crate) struct Activity {
    connections: AtomicUsize,
    last: Mutex<Instant>,
}

/// An open connection; dropped, it is over.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { connections: AtomicUsize::new(0), last: Mutex::new(Instant::now()) })
    }

    /// Something happened just now.
    pub(crate) fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(crate) fn connection(self: &Arc<Self>) -> Busy {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Returns when for `limit` there was no connection, and nothing `is_used` knows of.
    pub(crate) async fn idle_for(&self, limit: Duration, is_used: impl Fn() -> bool) {
        loop {
            if self.connections.load(Ordering::Relaxed) > 0 || is_used() {
                self.touch();
            }
            let until = *self.last.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn run<T>(work: impl Future<Output = T>) -> T {
        let paused = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        paused.block_on(work)
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pidfd = netns::sockopt::pidfd_open(child.id()).unwrap();
        drop(child.stdin.take());
        run(async {
            let ended = end_of(Watch::Process(pidfd));
            tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
        });
        child.wait().unwrap();
    }

    #[test]
    fn a_file_that_is_another_by_now_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ns");
        std::fs::write(&path, "").unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        run(async {
            let other = end_of(Watch::File(path.clone(), inode + 1));
            tokio::time::timeout(Duration::from_secs(10), other).await.unwrap();
            let still = end_of(Watch::File(path.clone(), inode));
            assert!(tokio::time::timeout(Duration::from_millis(1), still).await.is_err());
        });
    }

    #[test]
    fn idleness_begins_when_the_last_connection_is_over() {
        run(async {
            let activity = Activity::new();
            let limit = Duration::from_millis(20);
            let busy = activity.connection();
            let idle = tokio::time::timeout(limit * 5, activity.idle_for(limit, || false));
            assert!(idle.await.is_err());
            drop(busy);
            let used = tokio::time::timeout(limit * 5, activity.idle_for(limit, || true));
            assert!(used.await.is_err());
            let idle =
                tokio::time::timeout(Duration::from_secs(10), activity.idle_for(limit, || false));
            idle.await.unwrap();
        });
    }
}
