//! What is done inside a container's namespace, as data.
//!
//! Data, because a closure cannot follow us into another process: where our own user namespace
//! owns the container's namespace, a spent thread runs the job; where another does, a re-executed
//! child has to enter that first, and gets the job as JSON.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};

use crate::child;
use crate::endpoint::{self, EndpointConfig, Opened, SocketKind, View};
use crate::error::Error;
use crate::namespace::{Netns, spend};
use crate::target::Target;
use crate::{link, table};

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

/// What came of a job, besides descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It is done.
    Done,
    /// An interface was made.
    Attached { opened: Opened, ifindex: u32 },
    /// What was seen.
    Seen(View),
}

/// What came of a job.
pub(crate) type Product = (Outcome, Vec<OwnedFd>);

impl Job {
    /// Does it in the calling thread, which is in `netns` and may be left elsewhere.
    pub(crate) fn run(&self, netns: &Netns) -> Result<Product, Error> {
        match self {
            Self::Attach(config) => endpoint::attach_here(netns, config),
            Self::Detach { ifname } => match link::delete(ifname) {
                Err(Error::NoSuchInterface { .. }) => Ok(()),
                other => other,
            }
            .map(done),
            Self::SetGateways { ifname, gateways } => {
                endpoint::set_gateways_here(ifname, gateways).map(done)
            }
            Self::AddAddresses { ifname, addresses } => {
                endpoint::add_addresses_here(ifname, addresses).map(done)
            }
            Self::AddRoutes { ifname, routes } => routes
                .iter()
                .try_for_each(|(dst, via)| link::add_route_through(*dst, *via, ifname))
                .map(done),
            Self::Look => look().map(|view| (Outcome::Seen(view), Vec::new())),
            Self::Sockets { kind, count } => {
                let open = (0..*count).map(|_| open_socket(*kind));
                Ok((Outcome::Done, open.collect::<Result<_, _>>()?))
            }
        }
    }
}

fn done((): ()) -> Product {
    (Outcome::Done, Vec::new())
}

/// Does `job` in the namespace of `target`, in whichever way gets there.
pub(crate) fn perform(target: &Target, job: &Job) -> Result<Product, Error> {
    let netns = target.open()?;
    let entered = spend(|| {
        // Entering the namespace one is in takes a privilege that being there does not.
        let arrived =
            if netns.is_current() { Ok(()) } else { setns(&netns, CloneFlags::CLONE_NEWNET) };
        arrived.map(|()| job.run(&netns))
    });
    match entered {
        Ok(product) => product,
        Err(Errno::EPERM) if !ours(&netns) => child::perform(target, &netns, job),
        Err(errno) => {
            Err(Error::EnterNamespace { target: target.to_string(), source: errno.into() })
        }
    }
}

/// Whether a child could get no further than we did.
fn ours(netns: &Netns) -> bool {
    netns.in_our_user_namespace().unwrap_or(false)
}

fn look() -> Result<View, Error> {
    Ok(View {
        interfaces: table::interfaces()?,
        routes: table::routes()?,
        neighbours: table::all_neighbours()?,
    })
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
