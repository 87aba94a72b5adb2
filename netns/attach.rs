//! A container's namespace from outside: attaching to it, and what else is asked of it.
//!
//! Each call is a [`Job`], done by whoever gets there: a thread of ours, spent on it, or where another
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
use crate::target::Target;

/// Makes the interface in the namespace and opens its other side.
///
/// # Errors
/// Those of [`Target::open`]; [`Error::InterfaceExists`], [`Error::BadInterfaceName`],
/// [`Error::TunMissing`], [`Error::TunDenied`], [`Error::ForeignNamespace`]; [`Error::Step`] names
/// any other step. What had been made until then is undone.
pub fn attach(target: &Target, config: &EndpointConfig) -> Result<Endpoint, Error> {
    match perform(target, &Job::Attach(config.clone()))? {
        (Outcome::Attached { opened, ifindex, netns_inode }, queues) => {
            Ok(Endpoint { queues, opened, ifindex, netns_inode })
        }
        other => Err(unexpected(&other)),
    }
}

/// Takes the interface away. One that is gone already, even with its namespace, is no error.
///
/// # Errors
/// Where the namespace cannot be entered or the interface not be removed.
pub fn detach(target: &Target, ifname: &str) -> Result<(), Error> {
    match perform(target, &Job::Detach { ifname: ifname.to_owned() }) {
        Err(Error::NoSuchProcess { .. } | Error::NoSuchNamespace { .. }) => Ok(()),
        other => other.map(drop),
    }
}

/// Replaces the default routes through the interface by one for each of `gateways`.
///
/// # Errors
/// Those of [`Target::open`]; [`Error::NoSuchInterface`]; [`Error::Step`] where the kernel refuses a
/// route, as it does a second default route beside that of another interface.
pub fn set_gateways(target: &Target, ifname: &str, gateways: &[IpAddr]) -> Result<(), Error> {
    let job = Job::SetGateways { ifname: ifname.to_owned(), gateways: gateways.to_vec() };
    perform(target, &job).map(drop)
}

/// Adds addresses to the interface; one that is there already is no error.
///
/// # Errors
/// Those of [`Target::open`]; [`Error::NoSuchInterface`]; [`Error::Step`].
pub fn add_addresses(target: &Target, ifname: &str, addresses: &[IpNet]) -> Result<(), Error> {
    let job = Job::AddAddresses { ifname: ifname.to_owned(), addresses: addresses.to_vec() };
    perform(target, &job).map(drop)
}

/// Adds routes through the interface, each by a next hop or straight on.
///
/// # Errors
/// Those of [`Target::open`]; [`Error::NoSuchInterface`]; [`Error::Step`].
pub fn add_routes(
    target: &Target,
    ifname: &str,
    routes: &[(IpNet, Option<IpAddr>)],
) -> Result<(), Error> {
    let job = Job::AddRoutes { ifname: ifname.to_owned(), routes: routes.to_vec() };
    perform(target, &job).map(drop)
}

/// Looks into a namespace.
///
/// # Errors
/// Those of [`Target::open`]; where the kernel does not answer.
pub fn look(target: &Target) -> Result<View, Error> {
    match perform(target, &Job::Look)? {
        (Outcome::Seen(view), _) => Ok(view),
        other => Err(unexpected(&other)),
    }
}

/// Opens sockets that live in the namespace, whoever then binds or connects them. Non-blocking and
/// close-on-exec; at most 253.
///
/// # Errors
/// Those of [`Target::open`]; [`Error::Step`].
pub fn sockets_in(target: &Target, kind: SocketKind, count: u16) -> Result<Vec<OwnedFd>, Error> {
    perform(target, &Job::Sockets { kind, count }).map(|(_, sockets)| sockets)
}

fn unexpected(product: &Product) -> Error {
    let what = format!("answered {:?} to another question", product.0);
    Error::step("do a job in the namespace", std::io::Error::other(what))
}

/// Does `job` in the namespace of `target`, in whichever way gets there.
fn perform(target: &Target, job: &Job) -> Result<Product, Error> {
    perform_in(target, &target.open()?, job)
}

/// As [`perform`], in a namespace already opened, whatever `target` stands for by now.
pub(crate) fn perform_in(target: &Target, netns: &Netns, job: &Job) -> Result<Product, Error> {
    let entered = spend(|| {
        // Entering the namespace one is in takes a privilege that being there does not.
        let arrived =
            if netns.is_current() { Ok(()) } else { setns(netns, CloneFlags::CLONE_NEWNET) };
        arrived.map(|()| job.run(netns))
    });
    match entered {
        Ok(product) => product,
        Err(Errno::EPERM) if !ours(netns) => child::perform(target, netns, job),
        Err(errno) => {
            Err(Error::EnterNamespace { target: target.to_string(), source: errno.into() })
        }
    }
}

/// Whether a child could get no further than we did.
fn ours(netns: &Netns) -> bool {
    netns.in_our_user_namespace().unwrap_or(false)
}
