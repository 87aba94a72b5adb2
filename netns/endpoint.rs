//! A container's attachment, in words: what is wanted of it, and what it then is.
//!
//! Nothing holds an endpoint but its descriptors: closing the last one removes the interface with
//! its addresses and routes, even when the process is killed.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

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
