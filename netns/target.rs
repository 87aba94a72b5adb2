//! How users point at a network namespace: a process, a file, or a name.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::named;
use crate::namespace::Netns;

/// A network namespace as a user names it. Written `pid:42`, `/proc/42/ns/net` (anything with a
/// slash), `NAME`, or, where the calling thread's own is meant, `.`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// That of a process.
    Pid(u32),
    /// A file that stands for one.
    Path(PathBuf),
    /// One below `/run/netns`.
    Name(String),
    /// That of the calling thread.
    Current,
}

impl Target {
    /// Opens the namespace it stands for now. The next time it may stand for another: process ids,
    /// paths and names are used again.
    ///
    /// # Errors
    /// [`Error::NoSuchProcess`], [`Error::NoSuchNamespace`], [`Error::NotANamespace`],
    /// [`Error::BadNamespaceName`], [`Error::OpenNamespace`]: each says what to do.
    pub fn open(&self) -> Result<Netns, Error> {
        match self {
            Self::Pid(pid) => Netns::of_pid(*pid),
            Self::Path(path) => Netns::open(path),
            Self::Current => Netns::current(),
            Self::Name(name) => match Netns::open(&named::path(name)?) {
                Ok(netns) => Ok(netns.called(name)),
                Err(Error::NoSuchNamespace { path, .. }) => {
                    Err(Error::NoSuchNamespace { target: name.clone(), path })
                }
                Err(Error::OpenNamespace { source, .. }) => {
                    Err(Error::OpenNamespace { target: name.clone(), source })
                }
                Err(other) => Err(other),
            },
        }
    }
}

impl FromStr for Target {
    type Err = Infallible;

    /// Never fails: what is neither a process nor a path is a name, and whether such a name can
    /// exist is [`open`](Target::open)'s to say.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        if text == "." {
            return Ok(Self::Current);
        }
        if let Some(Ok(pid)) = text.strip_prefix("pid:").map(str::parse) {
            return Ok(Self::Pid(pid));
        }
        Ok(match text.contains('/') {
            true => Self::Path(text.into()),
            false => Self::Name(text.to_owned()),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Path(path) => path.display().fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Current => f.write_str("."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_writing_reads_back() {
        for (text, target) in [
            ("pid:42", Target::Pid(42)),
            ("/proc/42/ns/net", Target::Path("/proc/42/ns/net".into())),
            ("./here", Target::Path("./here".into())),
            ("blue", Target::Name("blue".into())),
            ("pid:blue", Target::Name("pid:blue".into())),
            (".", Target::Current),
        ] {
            let Ok(read) = text.parse::<Target>();
            assert_eq!(read, target);
            assert_eq!(read.to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        let open = |text: &str| {
            let Ok(target) = text.parse::<Target>();
            target.open().expect_err("nothing to open")
        };
        // Above pid_max (2^22), so there can be no such process.
        assert!(matches!(open("pid:4194305"), Error::NoSuchProcess { pid: 4_194_305 }));
        assert!(matches!(open("/nowhere/net"), Error::NoSuchNamespace { .. }));
        assert!(matches!(open("/proc/version"), Error::NotANamespace { .. }));
        assert!(matches!(open("/proc/self/ns/uts"), Error::NotANamespace { .. }));
        assert!(matches!(open("/"), Error::NotANamespace { .. }));
        assert!(matches!(open(".."), Error::BadNamespaceName { .. }));
        assert!(open("pontoon-has-no-such-name").to_string().contains("`pontoon ns ls`"));
    }

    #[test]
    fn our_own_is_the_current_one() {
        let here = Target::Current.open().expect("/proc is mounted");
        assert!(here.is_current());
        assert_eq!(here.inode(), Target::Pid(std::process::id()).open().expect("us").inode());
        assert!(here.in_our_user_namespace().expect("/proc is mounted"));
    }
}
