//! A container's namespace from outside: attaching to it, and what else is asked of it.
//!
//! The namespace comes opened, so that what is done to it one after the other is done to one. Each call
//! is a [`Job`], done by whoever gets there: a thread of ours, spent on it, or where another
//! user namespace owns the container's, a child that enters that first.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::child;
use crate::endpoint::{Endpoint, EndpointConfig};
use crate::error::Error;
use crate::job::{Job, Outcome, Product, SocketKind};
use crate::namespace::{Netns, spend};
use crate::table::View;

/// Makes the interface in the namespace and opens its other side.
///
/// # Errors
/// [`Error::EnterNamespace`], [`Error::ForeignNamespace`], [`Error::Child`]; [`Error::InterfaceExists`],
/// [`Error::BadInterfaceName`], [`Error::TunMissing`], [`Error::TunDenied`]; [`Error::Step`] names any
/// other step. What had been made until then is undone.
pub fn attach(netns: &Netns, config: &EndpointConfig) -> Result<Endpoint, Error> {
    match perform(netns, &Job::Attach(config.clone()))? {
        (Outcome::Attached { opened, ifindex, netns_inode }, queues) => {
            Ok(Endpoint { queues, opened, ifindex, netns_inode })
        }
        other => Err(unexpected(&other)),
    }
}

/// Takes the interface away. One that is gone already is no error.
///
/// # Errors
/// Where the namespace cannot be entered or the interface not be removed.
pub fn detach(netns: &Netns, ifname: &str) -> Result<(), Error> {
    perform(netns, &Job::Detach { ifname: ifname.to_owned() }).map(drop)
}

/// Replaces the default routes through the interface by one for each of `gateways`.
///
/// # Errors
/// As [`attach`] to get there; [`Error::NoSuchInterface`]; [`Error::Step`] where the kernel refuses a
/// route, as it does a second default route beside that of another interface.
pub fn set_gateways(netns: &Netns, ifname: &str, gateways: &[IpAddr]) -> Result<(), Error> {
    let job = Job::SetGateways { ifname: ifname.to_owned(), gateways: gateways.to_vec() };
    perform(netns, &job).map(drop)
}

/// Adds addresses to the interface; one that is there already is no error.
///
/// # Errors
/// As [`attach`] to get there; [`Error::NoSuchInterface`]; [`Error::Step`].
pub fn add_addresses(netns: &Netns, ifname: &str, addresses: &[IpNet]) -> Result<(), Error> {
    let job = Job::AddAddresses { ifname: ifname.to_owned(), addresses: addresses.to_vec() };
    perform(netns, &job).map(drop)
}

/// Adds routes through the interface, each by a next hop or straight on.
///
/// # Errors
/// As [`attach`] to get there; [`Error::NoSuchInterface`]; [`Error::Step`].
pub fn add_routes(
    netns: &Netns,
    ifname: &str,
    routes: &[(IpNet, Option<IpAddr>)],
) -> Result<(), Error> {
    let job = Job::AddRoutes { ifname: ifname.to_owned(), routes: routes.to_vec() };
    perform(netns, &job).map(drop)
}

/// Looks into a namespace.
///
/// # Errors
/// As [`attach`] to get there; where the kernel does not answer.
pub fn look(netns: &Netns) -> Result<View, Error> {
    match perform(netns, &Job::Look)? {
        (Outcome::Seen(view), _) => Ok(view),
        other => Err(unexpected(&other)),
    }
}

/// Opens sockets that live in the namespace, whoever then binds or connects them. Non-blocking and
/// close-on-exec; at most 253.
///
/// # Errors
/// As [`attach`] to get there; [`Error::Step`].
pub fn sockets_in(netns: &Netns, kind: SocketKind, count: u16) -> Result<Vec<OwnedFd>, Error> {
    perform(netns, &Job::Sockets { kind, count }).map(|(_, sockets)| sockets)
}

fn unexpected(product: &Product) -> Error {
    let what = format!("answered {:?} to another question", product.0);
    Error::step("do a job in the namespace", std::io::Error::other(what))
}

/// Does `job` in the namespace, in whichever way gets there.
pub(crate) fn perform(netns: &Netns, job: &Job) -> Result<Product, Error> {
    let entered = spend(|| {
        // Entering the namespace one is in takes a privilege that being there does not.
        let arrived =
            if netns.is_current() { Ok(()) } else { setns(netns, CloneFlags::CLONE_NEWNET) };
        arrived.map(|()| job.run(netns))
    });
    match entered {
        Ok(product) => product,
        Err(Errno::EPERM) if !ours(netns) => child::perform(netns, job),
        Err(errno) => {
            Err(Error::EnterNamespace { target: netns.name().to_owned(), source: errno.into() })
        }
    }
}

/// Whether a child could get no further than we did.
fn ours(netns: &Netns) -> bool {
    netns.in_our_user_namespace().unwrap_or(false)
}
