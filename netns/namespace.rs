//! A network namespace, held by a descriptor.
//!
//! A namespace belongs to a thread, not to a process (`setns(2)`), so a thread that goes into one
//! is spent: it never comes back, and no early return or panic can leave the caller elsewhere.
//! What is made inside comes out as a descriptor, which keeps the namespace it was made in.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;

use crate::error::Error;
use crate::{ioctl, link};

/// A network namespace. It lives at least as long as this value, and as long as it does its number is
/// nobody else's: the kernel gives those of ended ones again, as it does with process ids.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    /// What errors call it.
    name: String,
}

impl Netns {
    /// That of the calling thread.
    ///
    /// # Errors
    /// Where `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Ok(Self::open(Path::new("/proc/thread-self/ns/net"))?.called("."))
    }

    /// That of process `pid`, as our own pid namespace numbers it.
    ///
    /// # Errors
    /// [`Error::NoSuchProcess`]; [`Error::OpenNamespace`] where we may not look (`ptrace(2)`,
    /// `PTRACE_MODE_READ`).
    pub fn of_pid(pid: u32) -> Result<Self, Error> {
        let path = format!("/proc/{pid}/ns/net");
        let name = format!("pid:{pid}");
        match Self::open(Path::new(&path)) {
            Ok(netns) => Ok(netns.called(name)),
            Err(Error::NoSuchNamespace { .. }) => Err(Error::NoSuchProcess { pid }),
            Err(Error::OpenNamespace { source, .. })
                if source.raw_os_error() == Some(libc::ESRCH) =>
            {
                Err(Error::NoSuchProcess { pid })
            }
            Err(Error::OpenNamespace { source, .. }) => {
                Err(Error::OpenNamespace { target: name, source })
            }
            Err(other) => Err(other),
        }
    }

    /// That which the file `path` stands for: below `/run/netns`, or in `/proc/PID/ns`.
    ///
    /// # Errors
    /// [`Error::NoSuchNamespace`], [`Error::NotANamespace`], [`Error::OpenNamespace`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let target = || path.display().to_string();
        // A FIFO put there by somebody else must not hold us up: hence O_NONBLOCK.
        let file = {
            use std::os::unix::fs::OpenOptionsExt;
            File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)
        };
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::NoSuchNamespace { target: target(), path: path.to_owned() }
            }
            _ => Error::OpenNamespace { target: target(), source },
        })?;
        let opened = Self::from_fd(file.into());
        opened
            .map(|netns| netns.called(target()))
            .map_err(|_| Error::NotANamespace { path: path.to_owned() })
    }

    /// Takes over a descriptor of a network namespace, such as one received by `SCM_RIGHTS`.
    ///
    /// # Errors
    /// `EINVAL` where it is something else (`ioctl_nsfs(2)`, `NS_GET_NSTYPE`).
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        match ioctl::namespace_type(fd.as_fd()) {
            Ok(libc::CLONE_NEWNET) => {
                let name = format!("net:[{}]", inode(fd.as_fd())?);
                Ok(Self { fd, name })
            }
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// A new namespace, owned by our user namespace, with its loopback up and nothing else. It goes
    /// when this value and everything made inside are gone.
    ///
    /// # Errors
    /// [`Error::Step`] without `CAP_SYS_ADMIN` in our user namespace.
    pub fn create() -> Result<Self, Error> {
        spend(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| {
                Error::step(
                    "create a network namespace (needs root; `pontoon run` does not)",
                    errno,
                )
            })?;
            link::set_up("lo")?;
            let netns = Self::current()?;
            let name = format!("net:[{}]", netns.inode());
            Ok(netns.called(name))
        })
    }

    /// The same, by another name.
    pub(crate) fn called(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// What errors call it: the target as its user wrote it, else `net:[NUMBER]`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Number of the namespace: what `readlink /proc/PID/ns/net` shows between the brackets.
    ///
    /// # Panics
    /// Never: `fstat(2)` on a descriptor we own has no way to fail.
    #[must_use]
    pub fn inode(&self) -> u64 {
        inode(self.fd.as_fd()).expect("fstat of an open nsfs file cannot fail")
    }

    /// Whether the calling thread is in it.
    #[must_use]
    pub fn is_current(&self) -> bool {
        Self::current().is_ok_and(|here| here.inode() == self.inode())
    }

    /// A second handle of the same namespace.
    ///
    /// # Errors
    /// Without a free descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, name: self.name.clone() })
    }

    /// Number of the user namespace that owns it: whoever has a capability there has it here.
    ///
    /// # Errors
    /// `EPERM` where the owner is not ours nor one of its descendants.
    pub fn owner_inode(&self) -> io::Result<u64> {
        inode(ioctl::owning_user_namespace(self.fd.as_fd())?.as_fd())
    }

    /// Whether our own user namespace owns it.
    ///
    /// # Errors
    /// Where `/proc` is not mounted.
    pub fn in_our_user_namespace(&self) -> io::Result<bool> {
        let ours = inode(File::open("/proc/self/ns/user")?.as_fd())?;
        match self.owner_inode() {
            Ok(owner) => Ok(owner == ours),
            Err(err) if err.raw_os_error() == Some(libc::EPERM) => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Runs `work` inside this namespace and hands back what it made.
    ///
    /// On a thread of its own, spent on it. Sees the process's own mount namespace, so `/sys` shows
    /// the interfaces of another one; `/proc/net` is right.
    ///
    /// # Errors
    /// `EPERM` where we lack `CAP_SYS_ADMIN` in its user namespace or in ours; else what `work` says.
    pub fn with<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        spend(|| {
            setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// As [`with`](Self::with), for work that speaks [`Error`].
    ///
    /// # Errors
    /// [`Error::EnterNamespace`]; else what `work` says.
    pub fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        spend(|| {
            setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::EnterNamespace {
                target: self.name.clone(),
                source: errno.into(),
            })?;
            work()
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Netns> for OwnedFd {
    fn from(netns: Netns) -> Self {
        netns.fd
    }
}

/// Runs `work` on a thread that then ends, whatever namespaces it is in by that time. A panic in
/// `work` goes on in the caller.
pub(crate) fn spend<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(work);
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub(crate) fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(fstat(fd)?.st_ino)
}
