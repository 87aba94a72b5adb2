//! A container's attachment: one interface inside its namespace, its frames by descriptors here.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::target::Target;

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
    /// Descriptors wanted, one for each worker; 0 counts as 1.
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

/// Makes the interface in the namespace and opens its other side.
///
/// # Errors
/// Names the step. What had been made until then is undone.
pub fn attach(target: &Target, config: &EndpointConfig) -> Result<Endpoint, Error> {
    let _ = (target, config);
    Err(Error::step("attach", std::io::Error::from(std::io::ErrorKind::Unsupported)))
}

/// Takes the interface away. One that is gone already is no error.
///
/// # Errors
/// Where the namespace cannot be entered.
pub fn detach(target: &Target, ifname: &str) -> Result<(), Error> {
    let _ = (target, ifname);
    Err(Error::step("detach", std::io::Error::from(std::io::ErrorKind::Unsupported)))
}

/// Replaces the default routes through the interface by one for each of `gateways`.
///
/// # Errors
/// Where the namespace cannot be entered or the kernel refuses a route.
pub fn set_gateways(target: &Target, ifname: &str, gateways: &[IpAddr]) -> Result<(), Error> {
    let _ = (target, ifname, gateways);
    Err(Error::step("set gateways", std::io::Error::from(std::io::ErrorKind::Unsupported)))
}

/// Adds addresses to the interface; one that is there already is no error.
///
/// # Errors
/// Where the namespace cannot be entered or the kernel refuses an address.
pub fn add_addresses(target: &Target, ifname: &str, addresses: &[IpNet]) -> Result<(), Error> {
    let _ = (target, ifname, addresses);
    Err(Error::step("add addresses", std::io::Error::from(std::io::ErrorKind::Unsupported)))
}
