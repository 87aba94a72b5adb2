//! What can go wrong between pontoon and the kernel, in the operator's words.
//!
//! `Display` names the thing, what was tried and the one command that helps; the cause stays in
//! `source()`, and `{:#}` prints it behind the sentence. A value crosses from the re-executed child
//! to its parent as JSON, so each variant holds only what survives that: an `io::Error` keeps its
//! errno, or its text where it has none.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Why something asked of the kernel's network configuration was not done.
#[derive(Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    /// No process has this id.
    NoSuchProcess {
        /// The process id asked for.
        pid: u32,
    },
    /// The name or path leads to nothing.
    NoSuchNamespace {
        /// What was asked for, as the user wrote it.
        target: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The path exists and is something else than a network namespace.
    NotANamespace {
        /// The path that was opened.
        path: PathBuf,
    },
    /// The namespace is there and could not be opened.
    OpenNamespace {
        /// What was asked for, as the user wrote it.
        target: String,
        /// The kernel's answer.
        #[serde(with = "cause")]
        source: io::Error,
    },
    /// The namespace was opened and could not be entered.
    EnterNamespace {
        /// What was asked for, as the user wrote it.
        target: String,
        /// The kernel's answer.
        #[serde(with = "cause")]
        source: io::Error,
    },
    /// The target stands for another namespace than it did.
    NamespaceReplaced {
        /// What was asked for, as the user wrote it.
        target: String,
    },
    /// The namespace belongs to a user namespace of somebody else.
    ForeignNamespace {
        /// What was asked for, as the user wrote it.
        target: String,
        /// Who owns the user namespace, as this process sees it.
        owner: Option<u32>,
        /// Our effective user id.
        euid: u32,
    },
    /// An interface of this name is in the namespace already.
    InterfaceExists {
        /// The name.
        ifname: String,
    },
    /// The namespace has no interface of this name.
    NoSuchInterface {
        /// The name.
        ifname: String,
    },
    /// The host has no interface of this name for the raw uplink.
    NoSuchUplink {
        /// The name.
        ifname: String,
        /// What it may have been meant to be.
        near: Option<String>,
        /// Those that would do.
        there: Vec<String>,
    },
    /// The loopback has no segment behind it.
    UplinkLoopback {
        /// The name.
        ifname: String,
        /// Those that would do.
        there: Vec<String>,
    },
    /// The interface carries something else than Ethernet frames.
    UplinkNotEthernet {
        /// The name.
        ifname: String,
        /// What it is, as `<linux/if_arp.h>` has it.
        kind: String,
        /// Those that would do.
        there: Vec<String>,
    },
    /// The interface is down.
    UplinkDown {
        /// The name.
        ifname: String,
    },
    /// The interface is there and not for us.
    PacketDenied {
        /// The name.
        ifname: String,
        /// The kernel's answer.
        #[serde(with = "cause")]
        source: io::Error,
    },
    /// The kernel would refuse the name: `dev_valid_name`, `net/core/dev.c`.
    BadInterfaceName {
        /// The name.
        ifname: String,
    },
    /// No namespace can have this name below `/run/netns`.
    BadNamespaceName {
        /// The name.
        name: String,
    },
    /// A namespace of this name exists already.
    NamespaceExists {
        /// The name.
        name: String,
    },
    /// A named namespace was asked for without the privilege to mount.
    NamedNeedsRoot {
        /// The name.
        name: String,
        /// `create` or `remove`.
        verb: String,
        /// The kernel's answer.
        #[serde(with = "cause")]
        source: io::Error,
    },
    /// `/dev/net/tun` is not there.
    TunMissing,
    /// `/dev/net/tun` is there and something else.
    NotTun,
    /// `/dev/net/tun` is there and not for us.
    TunDenied {
        /// The kernel's answer.
        #[serde(with = "cause")]
        source: io::Error,
    },
    /// The kernel makes us no user namespace.
    NoUserNamespace {
        /// The command that allows it.
        fix: String,
        /// The kernel's answer.
        #[serde(with = "cause")]
        source: io::Error,
    },
    /// The command is nowhere on `PATH`.
    CommandNotFound {
        /// Its first word.
        command: String,
    },
    /// The command is there and cannot be run.
    CommandNotExecutable {
        /// Its first word.
        command: String,
        /// The kernel's answer.
        #[serde(with = "cause")]
        source: io::Error,
    },
    /// The re-executed child did not do its work.
    Child {
        /// What it was to do.
        what: String,
        /// What came instead of an answer.
        #[serde(with = "cause")]
        source: io::Error,
    },
    /// Any other step the kernel refused.
    Step {
        /// What was attempted, beginning with a verb: `add 10.0.0.2/24 to eth0`.
        what: String,
        /// The kernel's answer.
        #[serde(with = "cause")]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn step(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Step { what: what.into(), source: source.into() }
    }

    /// The status a command line should end with: 127 for a command not found, 126 for one that
    /// cannot be run (POSIX, Shell Command Language 2.8.2), 125 for everything of our own, as
    /// `docker run` and `env(1)` have it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::CommandNotFound { .. } => 127,
            Self::CommandNotExecutable { .. } => 126,
            _ => 125,
        }
    }

    const fn cause(&self) -> Option<&io::Error> {
        match self {
            Self::OpenNamespace { source, .. }
            | Self::EnterNamespace { source, .. }
            | Self::NamedNeedsRoot { source, .. }
            | Self::TunDenied { source }
            | Self::PacketDenied { source, .. }
            | Self::NoUserNamespace { source, .. }
            | Self::CommandNotExecutable { source, .. }
            | Self::Child { source, .. }
            | Self::Step { source, .. } => Some(source),
            Self::NoSuchProcess { .. }
            | Self::NoSuchNamespace { .. }
            | Self::NotANamespace { .. }
            | Self::NamespaceReplaced { .. }
            | Self::ForeignNamespace { .. }
            | Self::InterfaceExists { .. }
            | Self::NoSuchInterface { .. }
            | Self::NoSuchUplink { .. }
            | Self::UplinkLoopback { .. }
            | Self::UplinkNotEthernet { .. }
            | Self::UplinkDown { .. }
            | Self::BadInterfaceName { .. }
            | Self::BadNamespaceName { .. }
            | Self::NamespaceExists { .. }
            | Self::TunMissing
            | Self::NotTun
            | Self::CommandNotFound { .. } => None,
        }
    }

    /// The kernel's number for it, where the kernel said it.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.cause().and_then(io::Error::raw_os_error)
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::NoSuchProcess { .. }
            | Self::NoSuchNamespace { .. }
            | Self::NamespaceReplaced { .. }
            | Self::NoSuchInterface { .. }
            | Self::NoSuchUplink { .. }
            | Self::TunMissing
            | Self::NotTun
            | Self::CommandNotFound { .. } => io::ErrorKind::NotFound,
            Self::InterfaceExists { .. } | Self::NamespaceExists { .. } => {
                io::ErrorKind::AlreadyExists
            }
            Self::NotANamespace { .. }
            | Self::UplinkLoopback { .. }
            | Self::UplinkNotEthernet { .. }
            | Self::BadInterfaceName { .. }
            | Self::BadNamespaceName { .. } => io::ErrorKind::InvalidInput,
            Self::ForeignNamespace { .. } => io::ErrorKind::PermissionDenied,
            _ => self.cause().map_or(io::ErrorKind::Other, io::Error::kind),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchProcess { pid } => {
                write!(f, "no process {pid}; `ps -p {pid}` shows whether it has ended")
            }
            Self::NoSuchNamespace { target, path } => write!(
                f,
                "no network namespace {target}: {} does not exist; `pontoon ns ls` lists the named \
                 ones, and pid:N means that of a process",
                path.display()
            ),
            Self::NotANamespace { path } => write!(
                f,
                "{} is no network namespace; use /proc/PID/ns/net, a file that `ip netns add` made, \
                 or pid:PID",
                path.display()
            ),
            Self::OpenNamespace { target, .. } => write!(f, "open network namespace {target}"),
            Self::EnterNamespace { target, .. } => write!(
                f,
                "enter network namespace {target}: needs root, or one that `pontoon run` made for \
                 this user"
            ),
            Self::NamespaceReplaced { target } => write!(
                f,
                "{target} is another network namespace by now than the one that was attached; \
                 `pontoon attach {target}` attaches this one"
            ),
            Self::ForeignNamespace { target, owner, euid } => {
                write!(f, "enter network namespace {target}: its user namespace belongs to ")?;
                match owner {
                    Some(uid) => write!(f, "uid {uid}, we are uid {euid}; run as that user or as root"),
                    None => write!(f, "another user, we are uid {euid}; run as that user or as root"),
                }
            }
            Self::InterfaceExists { ifname } => write!(
                f,
                "the namespace already has an interface {ifname}; choose another name with --ifname"
            ),
            Self::NoSuchInterface { ifname } => write!(
                f,
                "the namespace has no interface {ifname}; `pontoon inspect` shows what it has"
            ),
            Self::NoSuchUplink { ifname, near, there } => {
                write!(f, "there is no interface {ifname}")?;
                match (near, there.is_empty()) {
                    (_, true) => f.write_str(", nor another with Ethernet frames"),
                    (None, _) => write!(f, "; those there are: {}", there.join(", ")),
                    (Some(near), _) => {
                        write!(f, "; did you mean {near}? Those there are: {}", there.join(", "))
                    }
                }
            }
            Self::UplinkLoopback { ifname, there } => {
                write!(f, "{ifname} is the loopback, behind which there is no segment")?;
                choose(f, there)
            }
            Self::UplinkNotEthernet { ifname, kind, there } => {
                write!(f, "{ifname} carries no Ethernet frames (its type is {kind})")?;
                choose(f, there)
            }
            Self::UplinkDown { ifname } => write!(
                f,
                "the interface {ifname} is down; `ip link set {ifname} up` brings it up"
            ),
            Self::PacketDenied { ifname, .. } => write!(
                f,
                "open a packet socket on {ifname}: not permitted without CAP_NET_RAW; run as root, or \
                 `sudo setcap cap_net_raw+ep {}`",
                std::env::current_exe().unwrap_or_else(|_| "pontoon".into()).display()
            ),
            Self::BadInterfaceName { ifname } => write!(
                f,
                "{ifname:?} is no interface name: 1 to 15 octets without '/', ':', '%' or blanks, \
                 and neither . nor ..; choose another with --ifname"
            ),
            Self::BadNamespaceName { name } => write!(
                f,
                "{name:?} is no namespace name: 1 to 255 octets without '/', and neither . nor .."
            ),
            Self::NamespaceExists { name } => write!(
                f,
                "network namespace {name} exists already; `pontoon ns rm {name}` removes it"
            ),
            Self::NamedNeedsRoot { name, verb, .. } => write!(
                f,
                "{verb} network namespace {name} in /run/netns: needs root; without privilege use \
                 `pontoon run`"
            ),
            Self::TunMissing => f.write_str(
                "open /dev/net/tun: it does not exist; `modprobe tun` brings it (in a container: \
                 --device /dev/net/tun)",
            ),
            Self::NotTun => f.write_str(
                "open /dev/net/tun: it is no TUN device; \
                 `rm /dev/net/tun; mknod -m 666 /dev/net/tun c 10 200` makes one",
            ),
            Self::TunDenied { .. } => f.write_str(
                "open /dev/net/tun: not permitted; `chmod 666 /dev/net/tun`, or for good a udev rule \
                 KERNEL==\"tun\", MODE=\"0666\"",
            ),
            Self::NoUserNamespace { fix, .. } => {
                write!(f, "create a user namespace: the kernel refuses; {fix}")
            }
            Self::CommandNotFound { command } => write!(f, "{command}: command not found"),
            Self::CommandNotExecutable { command, .. } => write!(f, "{command}: cannot be executed"),
            Self::Child { what, .. } => write!(f, "{what} in a child process"),
            Self::Step { what, .. } => f.write_str(what),
        }?;
        match self.cause() {
            Some(cause) if f.alternate() => write!(f, ": {cause}"),
            _ => Ok(()),
        }
    }
}

/// Which would do, if there is any.
fn choose(f: &mut fmt::Formatter<'_>, there: &[String]) -> fmt::Result {
    if there.is_empty() { Ok(()) } else { write!(f, "; choose one of {}", there.join(", ")) }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause().map(|cause| cause as _)
    }
}

/// For closures run by [`Netns::with`](crate::Netns::with), which speak `io::Result`. Turning it
/// back gives the very same value.
impl From<Error> for io::Error {
    fn from(err: Error) -> Self {
        Self::new(err.kind(), err)
    }
}

/// How a cause crosses a process border: an errno stays one.
mod cause {
    use std::io;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    enum Wire {
        Errno(i32),
        Text(String),
    }

    pub(super) fn serialize<S: Serializer>(err: &io::Error, to: S) -> Result<S::Ok, S::Error> {
        match err.raw_os_error() {
            Some(errno) => Wire::Errno(errno),
            None => Wire::Text(err.to_string()),
        }
        .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<io::Error, D::Error> {
        Ok(match Wire::deserialize(from)? {
            Wire::Errno(errno) => io::Error::from_raw_os_error(errno),
            Wire::Text(text) => io::Error::other(text),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn the_alternate_form_prints_the_cause_once() {
        let err = Error::step("open door", io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(err.to_string(), "open door");
        assert_eq!(format!("{err:#}"), "open door: Operation not permitted (os error 1)");
        assert!(err.source().is_some());
    }

    #[test]
    fn an_errno_survives_the_wire() {
        let err = Error::TunDenied { source: io::Error::from_raw_os_error(libc::EACCES) };
        let wire = serde_json::to_string(&err).expect("plain data");
        let back: Error = serde_json::from_str(&wire).expect("what was just written");
        assert_eq!(format!("{back:#}"), format!("{err:#}"));
        assert_eq!(io::Error::from(back).kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_shell_learns_why_a_command_did_not_start() {
        assert_eq!(Error::CommandNotFound { command: "x".into() }.exit_code(), 127);
        assert_eq!(Error::TunMissing.exit_code(), 125);
    }
}
