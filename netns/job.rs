//! What is done inside a container's namespace, as data.
//!
//! Data, because a closure cannot follow us into another process: where our own user namespace
//! owns the container's namespace, a spent thread runs the job; where another does, a re-executed
//! child has to enter that first, and gets the job as JSON.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};

use crate::endpoint::{Endpoint, EndpointConfig, Opened};
use crate::error::Error;
use crate::namespace::Netns;
use crate::table::View;
use crate::wire::MAX_DESCRIPTORS;
use crate::{inside, link, table};

/// A task for a thread that is inside the namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Make an interface and open its other side.
    Attach(EndpointConfig),
    /// Take an interface away.
    Detach { ifname: String },
    /// Replace the default routes through an interface.
    SetGateways { ifname: String, gateways: Vec<IpAddr> },
    /// Add addresses to an interface.
    AddAddresses { ifname: String, addresses: Vec<IpNet> },
    /// Add routes through an interface.
    AddRoutes { ifname: String, routes: Vec<(IpNet, Option<IpAddr>)> },
    /// Say what is there.
    Look,
    /// Open sockets.
    Sockets { kind: SocketKind, count: u16 },
}

/// A socket to be opened in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

/// What came of a job, besides descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It is done.
    Done,
    /// An interface was made.
    Attached { opened: Opened, ifindex: u32, netns_inode: u64 },
    /// What was seen.
    Seen(View),
}

/// What came of a job.
pub(crate) type Product = (Outcome, Vec<OwnedFd>);

impl Job {
    /// Does it in the calling thread, which is in `netns` and may be left elsewhere.
    pub(crate) fn run(&self, netns: &Netns) -> Result<Product, Error> {
        match self {
            Self::Attach(config) => {
                check_count("queues", config.queues)?;
                let Endpoint { queues, opened, ifindex, netns_inode } =
                    inside::attach(netns, config)?;
                Ok((Outcome::Attached { opened, ifindex, netns_inode }, queues))
            }
            Self::Detach { ifname } => match link::delete(ifname) {
                Err(Error::NoSuchInterface { .. }) => Ok(()),
                other => other,
            }
            .map(done),
            Self::SetGateways { ifname, gateways } => {
                inside::set_gateways(ifname, gateways).map(done)
            }
            Self::AddAddresses { ifname, addresses } => {
                inside::add_addresses(ifname, addresses).map(done)
            }
            Self::AddRoutes { ifname, routes } => routes
                .iter()
                .try_for_each(|(dst, via)| link::add_route_through(*dst, *via, ifname))
                .map(done),
            Self::Look => table::look().map(|view| (Outcome::Seen(view), Vec::new())),
            Self::Sockets { kind, count } => {
                check_count("sockets", *count)?;
                let open = (0..*count).map(|_| open_socket(*kind));
                Ok((Outcome::Done, open.collect::<Result<_, _>>()?))
            }
        }
    }
}

fn done((): ()) -> Product {
    (Outcome::Done, Vec::new())
}

/// An answer carries only so many.
fn check_count(what: &str, count: u16) -> Result<(), Error> {
    match usize::from(count) {
        0..=MAX_DESCRIPTORS => Ok(()),
        _ => Err(Error::step(
            format!("open {count} {what}: at most {MAX_DESCRIPTORS} at once"),
            std::io::Error::from_raw_os_error(libc::EINVAL),
        )),
    }
}

fn open_socket(kind: SocketKind) -> Result<OwnedFd, Error> {
    let (family, socket_type) = match kind {
        SocketKind::Tcp4 => (AddressFamily::Inet, SockType::Stream),
        SocketKind::Tcp6 => (AddressFamily::Inet6, SockType::Stream),
        SocketKind::Udp4 => (AddressFamily::Inet, SockType::Datagram),
        SocketKind::Udp6 => (AddressFamily::Inet6, SockType::Datagram),
    };
    socket(family, socket_type, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
        .map_err(|errno| Error::step(format!("open a {kind:?} socket in the namespace"), errno))
}
