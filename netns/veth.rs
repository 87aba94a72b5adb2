//! A veth pair between a container and us.
//!
//! The outer end lives in a namespace made for it alone, because ours may not be ours to change and
//! nothing shall appear on the host. Nobody answers there: the end has no address and no IPv6. The
//! sockets that read it keep that namespace; with the last of them it goes, and the pair with it.

use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns, unshare};

use crate::endpoint::EndpointConfig;
use crate::error::Error;
use crate::link;
use crate::namespace::Netns;
use crate::packet::outer_sockets;

/// Name of the outer end, alone with the loopback in its namespace.
const OUTER: &str = "outer";

/// The outer end of a pair whose inner end is in a container.
#[derive(Debug)]
pub(crate) struct Veth {
    /// One for each queue.
    pub(crate) sockets: Vec<OwnedFd>,
}

impl Veth {
    /// Creates the pair, the inner end under its own name and down. The calling thread is in
    /// `container` before and after, and somewhere else on error.
    pub(crate) fn create(container: &Netns, config: &EndpointConfig) -> Result<Self, Error> {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::step("create a namespace for the outer end", errno))?;
        let outside = Netns::current()?;
        link::create_veth_pair(OUTER, &outside, &config.ifname, container)?;
        let sockets = Self::open(config);
        if sockets.is_err() {
            // Only so that it is gone when we return; the namespace would take it along.
            let _ = link::delete(OUTER);
        }
        let sockets = sockets?;
        setns(container, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::step("go back into the container", errno))?;
        Ok(Self { sockets })
    }

    fn open(config: &EndpointConfig) -> Result<Vec<OwnedFd>, Error> {
        link::no_own_link_local(OUTER)?;
        // Without this the end would still listen to router advertisements. Where /proc/sys is
        // read-only it may, having no way to be heard without an address.
        let _ = link::set_ipv6(OUTER, false);
        link::set_mtu(OUTER, config.mtu.into())?;
        link::set_up(OUTER)?;
        outer_sockets(OUTER, config.queues)
    }
}
