//! Interfaces, addresses and routes of the calling thread's namespace.
//!
//! Plain functions to be used inside [`Netns::with`](crate::Netns::with): they know no target, and
//! where they act is where the thread is.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::namespace::Netns;

fn not_yet<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Brings an interface up.
///
/// # Errors
/// `ENODEV` where there is none of this name.
pub fn set_up(ifname: &str) -> io::Result<()> {
    let _ = ifname;
    not_yet()
}

/// Adds an address; one that is there already is no error. IPv6 skips duplicate detection.
///
/// # Errors
/// `ENODEV` where there is no such interface.
pub fn add_address(ifname: &str, address: IpNet) -> io::Result<()> {
    let _ = (ifname, address);
    not_yet()
}

/// Adds a route to `dst` by the next hop `via`.
///
/// # Errors
/// `ENETUNREACH` where no interface reaches `via`; `EEXIST`.
pub fn add_route(dst: IpNet, via: IpAddr) -> io::Result<()> {
    let _ = (dst, via);
    not_yet()
}

/// A veth pair with one end in each of two namespaces, both down.
///
/// # Errors
/// `EEXIST` where a name is taken.
pub fn create_veth_pair(
    name_a: &str,
    netns_a: &Netns,
    name_b: &str,
    netns_b: &Netns,
) -> io::Result<()> {
    let _ = (name_a, netns_a, name_b, netns_b);
    not_yet()
}

/// Moves an interface of the calling thread's namespace to another. It arrives down and without
/// addresses.
///
/// # Errors
/// `ENODEV`; `EEXIST` where the name is taken there.
pub fn move_interface(ifname: &str, to: &Netns) -> io::Result<()> {
    let _ = (ifname, to);
    not_yet()
}
