//! Interfaces, addresses and routes of the calling thread's namespace.
//!
//! Plain functions to be used inside [`Netns::with`](crate::Netns::with) and
//! [`Netns::enter`](crate::Netns::enter): they know no target, and where they act is where the
//! thread is; any other namespace comes as a descriptor, such as a [`Netns`](crate::Netns) is. Each
//! opens its own netlink socket and returns when the kernel has done it.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::Error;
pub use crate::ifname::{check_name, index_of};
use crate::netlink::{Refused, Rtnl};
use crate::table;

/// Brings an interface up.
///
/// # Errors
/// [`Error::NoSuchInterface`]; [`Error::Step`] without `CAP_NET_ADMIN`.
pub fn set_up(ifname: &str) -> Result<(), Error> {
    set_flags(ifname, LinkFlags::Up, LinkFlags::Up, "up")
}

/// Takes an interface down.
///
/// # Errors
/// As [`set_up`].
pub fn set_down(ifname: &str) -> Result<(), Error> {
    set_flags(ifname, LinkFlags::empty(), LinkFlags::Up, "down")
}

fn set_flags(ifname: &str, flags: LinkFlags, mask: LinkFlags, word: &str) -> Result<(), Error> {
    let mut message = message_for(ifname)?;
    message.header.flags = flags;
    message.header.change_mask = mask;
    set(message, || format!("set {ifname} {word}"))
}

/// Sets the largest IP packet, in octets.
///
/// # Errors
/// As [`set_up`]; `EINVAL` outside what the interface can carry.
pub fn set_mtu(ifname: &str, mtu: u32) -> Result<(), Error> {
    let mut message = message_for(ifname)?;
    message.attributes.push(LinkAttribute::Mtu(mtu));
    set(message, || format!("set MTU of {ifname} to {mtu}"))
}

/// Sets how many frames wait for a device before the next is lost (`txqueuelen` in ip-link(8)); for a
/// TAP these are the frames nobody has read yet.
///
/// # Errors
/// As [`set_up`].
pub fn set_queue_len(ifname: &str, frames: u32) -> Result<(), Error> {
    let mut message = message_for(ifname)?;
    message.attributes.push(LinkAttribute::TxQueueLen(frames));
    set(message, || format!("set queue length of {ifname} to {frames}"))
}

/// Sets the hardware address.
///
/// # Errors
/// As [`set_up`]; `EADDRNOTAVAIL` for a group address.
pub fn set_mac(ifname: &str, mac: [u8; 6]) -> Result<(), Error> {
    let mut message = message_for(ifname)?;
    message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    set(message, || format!("set hardware address of {ifname}"))
}

/// Renames an interface, which must be down before Linux 6.3.
///
/// # Errors
/// As [`set_up`]; [`Error::InterfaceExists`], [`Error::BadInterfaceName`].
pub fn rename(ifname: &str, to: &str) -> Result<(), Error> {
    check_name(to)?;
    let mut message = message_for(ifname)?;
    message.attributes.push(LinkAttribute::IfName(to.to_owned()));
    change(RouteNetlinkMessage::SetLink(message), 0)
        .map_err(|refused| taken(refused, to, || format!("rename {ifname} to {to}")))
}

/// Takes an interface away; of a veth pair both ends go.
///
/// # Errors
/// [`Error::NoSuchInterface`]; `EOPNOTSUPP` for one that cannot be removed, as loopback.
pub fn delete(ifname: &str) -> Result<(), Error> {
    let message = message_for(ifname)?;
    change(RouteNetlinkMessage::DelLink(message), 0)
        .map_err(|refused| refused.while_trying(format!("remove {ifname}")))
}

/// A veth pair with one end in each of two namespaces, both ends down.
///
/// # Errors
/// [`Error::InterfaceExists`] where either name is taken, [`Error::BadInterfaceName`]; `EINVAL` for a
/// descriptor of anything but a network namespace.
pub fn create_veth_pair(
    name_a: &str,
    netns_a: impl AsFd,
    name_b: &str,
    netns_b: impl AsFd,
) -> Result<(), Error> {
    check_name(name_a)?;
    check_name(name_b)?;
    let end = |name: &str, netns: BorrowedFd<'_>| {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        message
    };
    let mut message = end(name_a, netns_a.as_fd());
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(name_b, netns_b.as_fd())))),
    ]));
    change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map_err(|refused| {
        taken(refused, &format!("{name_a} or {name_b}"), || {
            format!("create veth pair {name_a}, {name_b}")
        })
    })
}

/// Moves an interface of the calling thread's namespace to another. It arrives down and without
/// addresses.
///
/// # Errors
/// [`Error::NoSuchInterface`]; [`Error::InterfaceExists`] where the name is taken there; `EINVAL` for
/// a descriptor of anything but a network namespace.
pub fn move_interface(ifname: &str, to: impl AsFd) -> Result<(), Error> {
    let mut message = message_for(ifname)?;
    message.attributes.push(LinkAttribute::NetNsFd(to.as_fd().as_raw_fd()));
    change(RouteNetlinkMessage::SetLink(message), 0)
        .map_err(|refused| taken(refused, ifname, || format!("move {ifname}")))
}

/// Adds an address; one that is there already is no error. IPv4 gets the broadcast address of its
/// prefix; IPv6 is usable at once, without duplicate address detection (`IFA_F_NODAD`).
///
/// # Errors
/// [`Error::NoSuchInterface`]; `EACCES` where the interface has IPv6 disabled.
pub fn add_address(ifname: &str, address: IpNet) -> Result<(), Error> {
    let mut message = address_message(ifname, address)?;
    match address {
        // RFC 3021: a prefix of 31 has no broadcast address, and one of 32 has nobody to reach.
        IpNet::V4(v4) if v4.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
        .map_err(|refused| refused.while_trying(format!("add {address} to {ifname}")))
}

/// Takes an address away.
///
/// # Errors
/// [`Error::NoSuchInterface`]; `EADDRNOTAVAIL` where it has no such address.
pub fn remove_address(ifname: &str, address: IpNet) -> Result<(), Error> {
    let message = address_message(ifname, address)?;
    change(RouteNetlinkMessage::DelAddress(message), 0)
        .map_err(|refused| refused.while_trying(format!("remove {address} from {ifname}")))
}

fn address_message(ifname: &str, address: IpNet) -> Result<AddressMessage, Error> {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index_of(ifname)?;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    Ok(message)
}

/// The link-local address of a hardware address: RFC 4291, appendix A.
#[must_use]
pub const fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Keeps the kernel from making link-local addresses of its own (`addr_gen_mode none`), which would
/// wait a second for duplicate detection. A kernel without IPv6 makes none anyway.
///
/// # Errors
/// As [`set_up`].
pub fn no_own_link_local(ifname: &str) -> Result<(), Error> {
    let mut message = message_for(ifname)?;
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let spec = vec![AfSpecUnspec::Inet6(vec![mode])];
    message.attributes.push(LinkAttribute::AfSpecUnspec(spec));
    match change(RouteNetlinkMessage::SetLink(message), 0) {
        Err(refused) if refused.errno != libc::EAFNOSUPPORT => {
            Err(refused.while_trying(format!("switch off own IPv6 addresses of {ifname}")))
        }
        _ => Ok(()),
    }
}

/// Switches IPv6 of an interface on or off by `/proc/sys`, which follows the thread's namespace.
///
/// # Errors
/// Where `/proc/sys` is read-only, as in most containers.
pub fn set_ipv6(ifname: &str, on: bool) -> Result<(), Error> {
    check_name(ifname)?;
    let path = format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6");
    fs::write(&path, if on { "0" } else { "1" })
        .map_err(|source| Error::step(format!("write {path}"), source))
}

/// Adds a route to `dst` by the next hop `via`, which must be on a connected network.
///
/// # Errors
/// `ENETUNREACH` (IPv6: `EHOSTUNREACH`) where no interface reaches `via`; `EINVAL` for a link-local
/// one, which is reached by each; `EEXIST`.
pub fn add_route(dst: IpNet, via: IpAddr) -> Result<(), Error> {
    let message = route_message(dst, Some(via), None);
    new_route(message, || format!("add route to {dst} via {via}"))
}

/// Adds a route out of `ifname`: by the next hop `via`, or straight on.
///
/// A next hop that no prefix of the interface holds is believed to be there all the same (`onlink`).
///
/// # Errors
/// [`Error::NoSuchInterface`]; `EEXIST`; `ENETDOWN`.
pub fn add_route_through(dst: IpNet, via: Option<IpAddr>, ifname: &str) -> Result<(), Error> {
    let mut message = route_message(dst, via, Some(index_of(ifname)?));
    if let Some(via) = via {
        let found = table::interfaces()?.into_iter().find(|found| found.name == ifname);
        let prefixes = found.map(|found| found.addresses).unwrap_or_default();
        if !prefixes.iter().any(|prefix| prefix.contains(&via)) {
            message.header.flags = RouteFlags::Onlink;
        }
    }
    new_route(message, || format!("add route to {dst} through {ifname}"))
}

fn new_route(message: RouteMessage, what: impl FnOnce() -> String) -> Result<(), Error> {
    change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
        .map_err(|refused| refused.while_trying(what()))
}

/// Takes away the route to `dst` out of `ifname`.
///
/// # Errors
/// [`Error::NoSuchInterface`]; `ESRCH` where there is none.
pub fn remove_route(dst: IpNet, ifname: &str) -> Result<(), Error> {
    let mut message = route_message(dst, None, Some(index_of(ifname)?));
    // Not said means any: RT_SCOPE_NOWHERE is what ip-route(8) sends too.
    message.header.scope = RouteScope::NoWhere;
    message.header.protocol = RouteProtocol::Unspec;
    message.header.kind = RouteType::Unspec;
    change(RouteNetlinkMessage::DelRoute(message), 0)
        .map_err(|refused| refused.while_trying(format!("remove route to {dst} through {ifname}")))
}

fn route_message(dst: IpNet, via: Option<IpAddr>, oif: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let dst = dst.trunc();
    message.header = RouteHeader {
        address_family: family(dst.addr()),
        destination_prefix_length: dst.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: match (via, dst) {
            (None, IpNet::V4(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if dst.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(dst.addr())));
    }
    attributes.extend(via.map(|via| RouteAttribute::Gateway(RouteAddress::from(via))));
    attributes.extend(oif.map(RouteAttribute::Oif));
    message
}

/// The prefix every address of this one's family is in.
#[must_use]
pub fn default_route(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn message_for(ifname: &str) -> Result<LinkMessage, Error> {
    let mut message = LinkMessage::default();
    message.header.index = index_of(ifname)?;
    Ok(message)
}

fn set(message: LinkMessage, what: impl FnOnce() -> String) -> Result<(), Error> {
    change(RouteNetlinkMessage::SetLink(message), 0).map_err(|refused| refused.while_trying(what()))
}

fn change(ask: RouteNetlinkMessage, flags: u16) -> Result<(), Refused> {
    Rtnl::open()?.request(ask, flags)
}

fn taken(refused: Refused, ifname: &str, what: impl FnOnce() -> String) -> Error {
    match refused.errno {
        libc::EEXIST => Error::InterfaceExists { ifname: ifname.to_owned() },
        _ => refused.while_trying(what()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_flips_the_universal_bit() {
        let mac = [0x02, 0x42, 0xac, 0x11, 0x00, 0x02];
        assert_eq!(link_local(mac).to_string(), "fe80::42:acff:fe11:2");
    }
}
