//! A container's attachment: one interface inside its namespace, its frames by descriptors here.
//!
//! Nothing holds an endpoint but its descriptors: closing the last one removes the interface with
//! its addresses and routes, even when the process is killed. What fails half-way is undone step by
//! step, last first, and the loopback goes back down if it was we who brought it up.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::job::{Job, Outcome, Product, perform};
use crate::namespace::Netns;
use crate::table::{Interface, Neighbour, Route};
use crate::tap::Tap;
use crate::target::Target;
use crate::veth::Veth;
use crate::wire::MAX_DESCRIPTORS;
use crate::{link, table};

/// What the container's interface shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointConfig {
    /// Its name inside the namespace, 1 to 15 octets.
    pub ifname: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Largest IP packet, in octets: 68 to 65535 (with IPv6, from 1280).
    pub mtu: u16,
    /// Its addresses, each with the prefix of its network.
    pub addresses: Vec<IpNet>,
    /// Next hops of the default routes, at most one for each family.
    pub gateways: Vec<IpAddr>,
    /// Descriptors wanted, one for each worker: up to 253; 0 counts as 1.
    pub queues: u16,
    /// How the frames get here.
    pub kind: Kind,
}

/// How a container's frames get here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A TAP with offloads; a plain one where the kernel refuses those.
    #[default]
    Tap,
    /// A TAP without offloads and with one queue, asked for as such: each frame as on the wire.
    TapPlain,
    /// A TAP that somebody made persistent beforehand and configures himself; only opened here.
    /// Of the configuration `ifname` and `queues` count.
    TapExisting,
    /// A veth pair whose other end is read by AF_PACKET.
    Veth,
}

/// How the descriptors of an endpoint are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opened {
    /// `read(2)`/`write(2)`, one frame each, a `virtio_net_hdr` of 10 octets before it in both
    /// directions; segmentation and checksums may be left to the reader.
    TapOffload,
    /// `read(2)`/`write(2)`, one frame each and nothing before it.
    TapPlain,
    /// As `TapOffload`, but a socket: `recv(2)`/`send(2)`.
    Packet,
}

/// An attached endpoint. Its interface goes when the last descriptor is closed.
#[derive(Debug)]
pub struct Endpoint {
    /// One for each queue, non-blocking and close-on-exec.
    pub queues: Vec<OwnedFd>,
    /// How to read and write them.
    pub opened: Opened,
    /// Index of the interface inside the namespace.
    pub ifindex: u32,
    /// Number of the namespace, as [`Netns::inode`](crate::Netns::inode) gives it.
    pub netns_inode: u64,
}

/// What a namespace has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its interfaces with their addresses.
    pub interfaces: Vec<Interface>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// Its neighbours.
    pub neighbours: Vec<Neighbour>,
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

/// Makes the interface in the namespace and opens its other side.
///
/// # Errors
/// Those of [`Target::open`]; [`Error::InterfaceExists`], [`Error::BadInterfaceName`],
/// [`Error::TunMissing`], [`Error::TunDenied`], [`Error::ForeignNamespace`]; [`Error::Step`] names
/// any other step. What had been made until then is undone.
pub fn attach(target: &Target, config: &EndpointConfig) -> Result<Endpoint, Error> {
    let netns_inode = target.open()?.inode();
    match perform(target, &Job::Attach(config.clone()))? {
        (Outcome::Attached { opened, ifindex }, queues) => {
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
    check_count("sockets", count)?;
    perform(target, &Job::Sockets { kind, count }).map(|(_, sockets)| sockets)
}

fn unexpected(product: &Product) -> Error {
    let what = format!("answered {:?} to another question", product.0);
    Error::step("do a job in the namespace", std::io::Error::other(what))
}

/// The work of [`attach`], on a thread that is inside `netns` and is not used for anything after.
pub(crate) fn attach_here(netns: &Netns, config: &EndpointConfig) -> Result<Product, Error> {
    let ifname = &config.ifname;
    link::check_name(ifname)?;
    check_count("queues", config.queues)?;
    if config.kind == Kind::TapExisting {
        let tap = Tap::existing(ifname, config.queues)?;
        let ifindex = link::index_of(ifname)?;
        return Ok((Outcome::Attached { opened: tap.opened, ifindex }, tap.queues));
    }
    if link::index_of(ifname).is_ok() {
        return Err(Error::InterfaceExists { ifname: ifname.clone() });
    }
    let mut undo = Undo::default();
    let made = make(netns, config, &mut undo);
    if made.is_err() {
        undo.all();
    }
    made
}

fn make(netns: &Netns, config: &EndpointConfig, undo: &mut Undo) -> Result<Product, Error> {
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
    let ifindex = link::index_of(ifname)?;
    Ok((Outcome::Attached { opened, ifindex }, queues))
}

/// Gives the interface its MAC, MTU, addresses and routes and brings it up.
fn configure(config: &EndpointConfig) -> Result<(), Error> {
    let ifname = &config.ifname;
    link::no_own_link_local(ifname)?;
    link::set_mac(ifname, config.mac)?;
    link::set_mtu(ifname, config.mtu.into())?;
    link::set_up(ifname)?;
    let own = Ipv6Net::new_assert(link::link_local(config.mac), 64);
    if config.addresses.iter().any(|address| matches!(address, IpNet::V6(_))) {
        add_addresses_here(ifname, &[own.into()])?;
    } else if let Err(err) = link::add_address(ifname, own.into()) {
        // A container without IPv6 (`disable_ipv6`, or a kernel without it) needs none.
        const WITHOUT: [i32; 3] = [libc::EACCES, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
        if !err.errno().is_some_and(|errno| WITHOUT.contains(&errno)) {
            return Err(err);
        }
    }
    add_addresses_here(ifname, &config.addresses)?;
    config.gateways.iter().try_for_each(|gateway| add_default_route(ifname, *gateway))
}

/// The work of [`add_addresses`].
pub(crate) fn add_addresses_here(ifname: &str, addresses: &[IpNet]) -> Result<(), Error> {
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

/// The work of [`set_gateways`].
pub(crate) fn set_gateways_here(ifname: &str, gateways: &[IpAddr]) -> Result<(), Error> {
    link::index_of(ifname)?;
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

fn check_count(what: &str, count: u16) -> Result<(), Error> {
    match usize::from(count) {
        0..=MAX_DESCRIPTORS => Ok(()),
        _ => Err(Error::step(
            format!("open {count} {what}: at most {MAX_DESCRIPTORS} at once"),
            std::io::Error::from_raw_os_error(libc::EINVAL),
        )),
    }
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
