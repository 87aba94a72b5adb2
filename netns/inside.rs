//! An interface made inside the container's namespace, by a thread that is there.
//!
//! What fails half-way is undone step by step, last first, and the loopback goes back down if it was
//! we who brought it up.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::{IpNet, Ipv6Net};

use crate::endpoint::{Endpoint, EndpointConfig, Kind, Opened};
use crate::error::Error;
use crate::ifname::{check_name, index_of};
use crate::namespace::Netns;
use crate::tap::Tap;
use crate::veth::Veth;
use crate::{link, table};

/// The least MTU of an interface on which the kernel has IPv6 (RFC 8200 §5).
const MTU_IPV6: u16 = 1280;

/// Makes the interface and opens its other side, on a thread that is inside `netns` and is not used
/// for anything after.
pub(crate) fn attach(netns: &Netns, config: &EndpointConfig) -> Result<Endpoint, Error> {
    let ifname = &config.ifname;
    check_name(ifname)?;
    if config.kind == Kind::TapExisting {
        let Tap { queues, opened } = Tap::existing(ifname, config.queues)?;
        return endpoint(netns, ifname, opened, queues);
    }
    if index_of(ifname).is_ok() {
        return Err(Error::InterfaceExists { ifname: ifname.clone() });
    }
    let mut undo = Undo::default();
    let made = make(netns, config, &mut undo);
    if made.is_err() {
        undo.all();
    }
    made
}

fn make(netns: &Netns, config: &EndpointConfig, undo: &mut Undo) -> Result<Endpoint, Error> {
    let ifname = &config.ifname;
    if !table::interfaces()?.iter().any(|found| found.loopback && found.up) {
        link::set_up("lo")?;
        undo.push(|| link::set_down("lo"));
    }
    // Should a later step fail, the descriptors go first: `queues` is dropped before `undo` runs.
    let (opened, queues) = match config.kind {
        Kind::Tap => Tap::create(ifname, config.queues).map(|tap| (tap.opened, tap.queues))?,
        Kind::TapPlain | Kind::TapExisting => {
            Tap::create_plain(ifname).map(|tap| (tap.opened, tap.queues))?
        }
        Kind::Veth => {
            let outer = Veth::create(netns, config)?;
            let name = ifname.clone();
            // Closing the sockets would remove it too, but only some time later.
            undo.push(move || link::delete(&name));
            (Opened::Packet, outer.sockets)
        }
    };
    configure(config)?;
    endpoint(netns, ifname, opened, queues)
}

/// The interface `ifname`, as its reader knows it.
fn endpoint(
    netns: &Netns,
    ifname: &str,
    opened: Opened,
    queues: Vec<OwnedFd>,
) -> Result<Endpoint, Error> {
    let ifindex = index_of(ifname)?;
    Ok(Endpoint { queues, opened, ifindex, netns_inode: netns.inode() })
}

/// Gives the interface its MAC, MTU, addresses and routes and brings it up.
fn configure(config: &EndpointConfig) -> Result<(), Error> {
    let ifname = &config.ifname;
    link::no_own_link_local(ifname)?;
    link::set_mac(ifname, config.mac)?;
    link::set_mtu(ifname, config.mtu.into())?;
    link::set_up(ifname)?;
    let own = Ipv6Net::new_assert(link::link_local(config.mac), 64);
    let may_have = config.mtu >= MTU_IPV6;
    if config.addresses.iter().any(|address| matches!(address, IpNet::V6(_))) {
        add_addresses(ifname, &[own.into()])?;
    } else if may_have && let Err(err) = link::add_address(ifname, own.into()) {
        // A container without IPv6 (`disable_ipv6`, or a kernel without it) needs none.
        const WITHOUT: [i32; 3] = [libc::EACCES, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
        if !err.errno().is_some_and(|errno| WITHOUT.contains(&errno)) {
            return Err(err);
        }
    }
    add_addresses(ifname, &config.addresses)?;
    config.gateways.iter().try_for_each(|gateway| add_default_route(ifname, *gateway))
}

/// Adds addresses; one that is there already is no error.
pub(crate) fn add_addresses(ifname: &str, addresses: &[IpNet]) -> Result<(), Error> {
    for address in addresses {
        match link::add_address(ifname, *address) {
            // Docker starts containers with IPv6 disabled, and enables it the same way on an
            // interface that is to have an address.
            Err(err) if address.addr().is_ipv6() && err.errno() == Some(libc::EACCES) => {
                link::set_ipv6(ifname, true)?;
                link::add_address(ifname, *address)?;
            }
            other => other?,
        }
    }
    Ok(())
}

/// Replaces the default routes through the interface by one for each of `gateways`.
pub(crate) fn set_gateways(ifname: &str, gateways: &[IpAddr]) -> Result<(), Error> {
    index_of(ifname)?;
    for route in table::routes()? {
        if route.ifname == ifname && route.dst.prefix_len() == 0 {
            link::remove_route(route.dst, ifname)?;
        }
    }
    gateways.iter().try_for_each(|gateway| add_default_route(ifname, *gateway))
}

fn add_default_route(ifname: &str, gateway: IpAddr) -> Result<(), Error> {
    link::add_route_through(link::default_route(gateway), Some(gateway), ifname)
}

/// Steps that can be taken back.
#[derive(Default)]
struct Undo(Vec<Box<dyn FnOnce() -> Result<(), Error>>>);

impl Undo {
    fn push(&mut self, step: impl FnOnce() -> Result<(), Error> + 'static) {
        self.0.push(Box::new(step));
    }

    /// Takes every step back, last first. One that fails stops no other, and what the caller learns
    /// is why there was anything to undo.
    fn all(self) {
        for step in self.0.into_iter().rev() {
            let _ = step();
        }
    }
}
