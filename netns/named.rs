//! Named namespaces, interchangeable with those of `ip netns`.
//!
//! A name is a file below `/run/netns` with the namespace bind-mounted over it, and the directory
//! is a shared mount so that other mount namespaces see it come and go: `ip/ipnetns.c` and
//! `lib/namespace.c` of iproute2, step for step, its lock included.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::Error;
use crate::namespace::Netns;

/// Where the names live: `NETNS_RUN_DIR` of iproute2 (`/var/run` is a link to `/run`).
pub const DIRECTORY: &str = "/run/netns";

/// A namespace with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedNetns {
    /// Its name.
    pub name: String,
    /// The file that stands for it.
    pub path: PathBuf,
    /// Its number; `None` where the file is a left-over with nothing mounted on it.
    pub inode: Option<u64>,
}

/// The file that stands for `name`, whether it exists or not.
///
/// # Errors
/// [`Error::BadNamespaceName`]
pub fn path(name: &str) -> Result<PathBuf, Error> {
    // NAME_MAX is 255; iproute2's invalid_name() refuses the same.
    if name.is_empty()
        || name.len() > 255
        || name == "."
        || name == ".."
        || name.contains(['/', '\0'])
    {
        return Err(Error::BadNamespaceName { name: name.to_owned() });
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// Creates a namespace with its loopback up and gives it a name.
///
/// # Errors
/// [`Error::NamespaceExists`], [`Error::NamedNeedsRoot`], [`Error::BadNamespaceName`]
pub fn create(name: &str) -> Result<(), Error> {
    let path = path(name)?;
    let failed = |what: String, source| unprivileged(name, "create", what, source);
    make_directory_shared().map_err(|source| failed(format!("prepare {DIRECTORY}"), source))?;
    let netns = Netns::create().map_err(|err| match err {
        Error::Step { what, source } => failed(what, source),
        other => other,
    })?;
    let file = File::options().write(true).create_new(true).mode(0o0).open(&path);
    file.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::NamespaceExists { name: name.to_owned() },
        _ => failed(format!("create {}", path.display()), source),
    })?;
    let from = format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
    mount(Some(from.as_str()), &path, NONE, MsFlags::MS_BIND, NONE).map_err(|errno| {
        let what = format!("mount the namespace on {}", path.display());
        // The file was ours and means nothing without the mount.
        let _ = fs::remove_file(&path);
        failed(what, errno.into())
    })
}

/// Takes the name away, a left-over with nothing mounted on it too. The namespace itself goes once
/// nobody uses it.
///
/// # Errors
/// [`Error::NoSuchNamespace`], [`Error::NamedNeedsRoot`], [`Error::BadNamespaceName`]
pub fn remove(name: &str) -> Result<(), Error> {
    let path = path(name)?;
    if fs::symlink_metadata(&path).is_err_and(|err| err.kind() == io::ErrorKind::NotFound) {
        return Err(Error::NoSuchNamespace { target: name.to_owned(), path });
    }
    let failed =
        |source| unprivileged(name, "remove", format!("remove {}", path.display()), source);
    match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Not a mount: a left-over, or a link to /proc/PID/ns/net.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    fs::remove_file(&path).map_err(failed)
}

/// All names, sorted.
///
/// # Errors
/// Where the directory cannot be read; that it does not exist is no error.
pub fn list() -> Result<Vec<NamedNetns>, Error> {
    let failed = |source| Error::step(format!("read {DIRECTORY}"), source);
    let entries = match fs::read_dir(DIRECTORY) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        // A name that is no text could not be given to any command of ours.
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            let inode = Netns::open(&path).ok().map(|netns| netns.inode());
            all.push(NamedNetns { name: name.to_owned(), path: path.clone(), inode });
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

const NONE: Option<&str> = None;

/// Makes the directory a shared mount, so that names made in one mount namespace are seen, and above
/// all can be removed, in the others. Under iproute2's own lock, since two at once would mount it
/// twice.
fn make_directory_shared() -> io::Result<()> {
    DirBuilder::new().mode(0o755).recursive(true).create(DIRECTORY)?;
    let _locked = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| io::Error::from(errno))?;
    let share = || mount(NONE, DIRECTORY, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE);
    match share() {
        // EINVAL: it is no mount point yet.
        Err(Errno::EINVAL) => {
            mount(Some(DIRECTORY), DIRECTORY, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
            Ok(share()?)
        }
        other => Ok(other?),
    }
}

fn unprivileged(name: &str, verb: &str, what: String, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            Error::NamedNeedsRoot { name: name.to_owned(), verb: verb.to_owned(), source }
        }
        _ => Error::Step { what, source },
    }
}
