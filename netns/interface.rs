//! An interface of the host's, for a station of our own on its segment or as a port of a bridge.
//!
//! Read packet(7) first, and [`Take`] for which frames come up. pnet says which interfaces there are; its
//! channels are not used, since they leave no room for the `virtio_net_hdr` that spares us segmentation
//! and checksums. What it cannot do is as with macvlan: frames sent by such a socket leave by the wire, so
//! the host itself is not reached over its own interface, nor are we by the host. An interface that
//! filters foreign stations in its firmware (most wireless ones, those of some clouds) drops what is for
//! ours, whatever is asked of it here.

use std::os::fd::OwnedFd;

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType};
use pnet::datalink::{self, NetworkInterface};

use crate::error::Error;
use crate::filter::{MAX_STATIONS, Take};
use crate::packet;
use crate::table;

/// An opened interface. Nothing of it has changed, and nothing remains when the descriptors are closed.
#[derive(Debug)]
pub struct Interface {
    /// One for each queue, non-blocking and close-on-exec, as [`packet_sockets`](crate::packet_sockets)
    /// gives them.
    pub queues: Vec<OwnedFd>,
    /// What it was when it was opened.
    pub facts: Facts,
}

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its number inside the namespace.
    pub ifindex: u32,
    /// The host's own station there.
    pub mac: [u8; 6],
    /// Largest IP packet, in octets.
    pub mtu: u32,
    /// Whether it has a carrier; without one nothing is sent or received, and it may come.
    pub carrier: bool,
    /// Octets of the longest frame it takes to segment itself, or has the kernel segment
    /// (`IFLA_GSO_MAX_SIZE`); longer ones are the sender's to cut.
    pub gso_max: u32,
}

/// Opens the interface `ifname` of the calling thread's namespace, with a socket for each of `queues` (0
/// counts as 1) that share the frames by flow.
///
/// A station of ours is entered in the interface's own filter (`PACKET_MR_UNICAST`), as a macvlan's is, which
/// only an interface without such a filter turns to promiscuous mode for; groups are all let in. A bridge's
/// port is promiscuous.
///
/// # Errors
/// [`Error::NoSuchUplink`], [`Error::UplinkLoopback`], [`Error::UplinkNotEthernet`], [`Error::UplinkDown`];
/// [`Error::PacketDenied`] without `CAP_NET_RAW` in the namespace; [`Error::Step`] for anything else, such as
/// a station that is a group, or more than [`MAX_STATIONS`] of them.
pub fn open_interface(ifname: &str, take: &Take, queues: u16) -> Result<Interface, Error> {
    let facts = look_at(ifname)?;
    if let Take::Stations(stations) = take
        && (stations.len() > MAX_STATIONS || stations.iter().any(|mac| mac[0] & 1 != 0))
    {
        let what = format!("choose frames of {ifname} by station");
        return Err(Error::step(what, std::io::Error::from(std::io::ErrorKind::InvalidInput)));
    }
    let queues = packet::choosing_sockets(facts.ifindex, take, queues);
    let queues = queues.map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            Error::PacketDenied { ifname: ifname.to_owned(), source }
        }
        _ => Error::step(format!("open a packet socket on {ifname}"), source),
    })?;
    Ok(Interface { queues, facts })
}

/// What the interface `ifname` is, if a station of ours could be on its segment; needs no privilege.
///
/// # Errors
/// As [`open_interface`], but for the last two.
pub fn look_at(ifname: &str) -> Result<Facts, Error> {
    let links = table::links()?;
    let named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if name == ifname);
    let Some(link) = links.iter().find(|link| link.attributes.iter().any(named)) else {
        let there = candidates();
        let near = nearest(ifname, &there);
        return Err(Error::NoSuchUplink { ifname: ifname.to_owned(), near, there });
    };
    let (header, name) = (&link.header, || ifname.to_owned());
    if header.flags.contains(LinkFlags::Loopback) {
        return Err(Error::UplinkLoopback { ifname: name(), there: candidates() });
    }
    let mut facts = Facts {
        name: name(),
        ifindex: header.index,
        mac: [0; 6],
        mtu: 0,
        carrier: header.flags.contains(LinkFlags::LowerUp),
        gso_max: 65_536, // Of kernels that do not say.
    };
    let mut station = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(mac) => station = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => facts.mtu = *mtu,
            LinkAttribute::GsoMaxSize(octets) => facts.gso_max = *octets,
            _ => {}
        }
    }
    match (header.link_layer_type, station) {
        (LinkLayerType::Ether, Some(mac)) => facts.mac = mac,
        (kind, _) => {
            let kind = format!("{kind:?}").to_lowercase();
            return Err(Error::UplinkNotEthernet { ifname: name(), kind, there: candidates() });
        }
    }
    if !header.flags.contains(LinkFlags::Up) {
        return Err(Error::UplinkDown { ifname: name() });
    }
    Ok(facts)
}

/// The interfaces of the calling thread's namespace that a station of ours could be on, those that are up
/// and have a carrier first.
#[must_use]
pub fn candidates() -> Vec<String> {
    let ethernet = |found: &NetworkInterface| {
        let has_station = found.mac.is_some_and(|mac| !mac.is_zero());
        !found.is_loopback() && has_station && found.is_broadcast()
    };
    let mut found: Vec<_> = datalink::interfaces().into_iter().filter(ethernet).collect();
    found.sort_by_key(|found| (!found.is_up(), !found.is_running(), found.index));
    found.into_iter().map(|found| found.name).collect()
}

/// The one of `names` that `wanted` is most likely meant to be.
fn nearest(wanted: &str, names: &[String]) -> Option<String> {
    let far = |name: &String| (distance(wanted, name), name.len().abs_diff(wanted.len()));
    let best = names.iter().min_by_key(|name| far(name))?;
    (distance(wanted, best) <= 2).then(|| best.clone())
}

/// How many letters must be changed, left out, put in, or swapped with their neighbour (optimal string
/// alignment) to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<_>, Vec<_>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, far) | (far, 0) => far,
                _ => {
                    let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let least = changed.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    if swapped { least.min(rows[i - 2][j - 2] + 1) } else { least }
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_seen() {
        let names = ["eth0", "enp3s0", "wlan0"].map(str::to_owned);
        for (wanted, meant) in
            [("eht0", "eth0"), ("eth1", "eth0"), ("enp3s", "enp3s0"), ("wlan", "wlan0")]
        {
            assert_eq!(nearest(wanted, &names).as_deref(), Some(meant), "{wanted}");
        }
        assert_eq!(nearest("tailscale0", &names), None);
        assert_eq!(nearest("eth0", &[]), None);
    }

    #[test]
    fn the_loopback_is_no_candidate() {
        assert!(!candidates().contains(&"lo".to_owned()));
        assert!(matches!(look_at("lo"), Err(Error::UplinkLoopback { .. })));
        let err = look_at("pontoon-none").expect_err("no such interface");
        assert!(matches!(err, Error::NoSuchUplink { ifname, .. } if ifname == "pontoon-none"));
    }
}
