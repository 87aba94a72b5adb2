//! Why the control plane did not do as asked.
//!
//! Each message is for the person who typed the command: it names the thing, says what is wrong with
//! it, and the one flag or command that helps. The HTTP status follows from the kind.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nat::Protocol;

use crate::config::ConfigError;
use crate::ipam::IpamError;
use crate::mac::MacError;
use crate::names::NameError;
use crate::owner::Owner;
use crate::socket::SocketError;
use crate::spec::SpecError;
use crate::subnet::SubnetError;
use crate::timers::TimersError;
use crate::translation::TranslationError;
use crate::uplink::UplinkError;

/// Why something asked of the daemon was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A publish spec that cannot be read.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A MAC address that cannot be used.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// An address that cannot be had.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// A subnet or gateway that cannot be had.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// Words that name no uplink.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// Words that say nothing about translation, or what the uplink cannot do.
    #[error(transparent)]
    Translation(#[from] TranslationError),
    /// Words that are no idle times.
    #[error(transparent)]
    Timers(#[from] TimersError),
    /// The socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),

    /// A thread of the switch has ended by a fault in the program.
    #[error(
        "worker {worker} of the switch failed, and all traffic with it: {panic}; please report it"
    )]
    Worker {
        /// Which.
        worker: usize,
        /// What it said.
        panic: String,
    },

    /// A request's value that is none of the other kinds.
    #[error("{what} {value:?}: {why}")]
    Invalid {
        /// Which value.
        what: &'static str,
        /// As it was written.
        value: String,
        /// What would do.
        why: &'static str,
    },
    /// No network of this name.
    #[error(
        "no network {0}; `pontoon network ls` lists them, `pontoon network create {0}` makes one"
    )]
    NoNetwork(String),
    /// A network of this name is there.
    #[error(
        "network {0} exists already; choose another name, or remove it with `pontoon network rm {0}`"
    )]
    NetworkExists(String),
    /// A network that still has endpoints.
    #[error(
        "network {network} has endpoints ({endpoints}); detach them first: `pontoon detach NAME`"
    )]
    NetworkInUse {
        /// The network.
        network: String,
        /// Names of its endpoints.
        endpoints: String,
    },
    /// The default network stays.
    #[error("network {0} is the default network and stays; `pontoon daemon stop` ends them all")]
    DefaultNetwork(String),
    /// Networks with one interface share a station, and this one wants another.
    #[error(
        "{what} {wanted}: raw:{interface} is the uplink of network {network} already, with {what} {has}; leave it out to share that, or change it for both with `pontoon network set {network}`"
    )]
    SegmentDiffers {
        /// Which option.
        what: &'static str,
        /// What was asked for.
        wanted: String,
        /// What there is.
        has: String,
        /// The host's interface.
        interface: String,
        /// A network behind it.
        network: String,
    },
    /// The interface is a port of a network already.
    #[error(
        "interface {interface} is a port of network {network} already; attach containers there, or remove it with `pontoon network rm {network}`"
    )]
    InterfaceBridged {
        /// The interface.
        interface: String,
        /// The network.
        network: String,
    },
    /// The interface carries no packets as long as asked for.
    #[error(
        "mtu {mtu} is more than the {most} of {interface}; leave --mtu out, or `ip link set {interface} mtu {mtu}` if all of its segment can have that"
    )]
    MtuAbove {
        /// What was asked for, in octets.
        mtu: u16,
        /// What the interface has.
        most: u16,
        /// The interface.
        interface: String,
    },
    /// The interface is one we made.
    #[error("interface {0} is one of pontoon's own; name one of the host's: `ip link` lists them")]
    OwnInterface(String),
    /// The interface was there and is not any more.
    #[error("interface {interface} has gone away ({why}); try again when `ip link` has it")]
    InterfaceGone {
        /// The interface.
        interface: String,
        /// What the switch says of it.
        why: String,
    },
    /// A change is in force, and its station has not got all it was told to have.
    #[error("network {network} is changed, but {error}")]
    ChangedBut {
        /// The network.
        network: String,
        /// What its station met.
        error: Box<Error>,
    },
    /// Another station has the address our own was given, or was to show.
    #[error("address {addr} is in use on {interface} by {station}; choose another: {fix}")]
    AddressConflict {
        /// The address.
        addr: IpAddr,
        /// The interface.
        interface: String,
        /// Who has it.
        station: String,
        /// The option that gives one.
        fix: String,
    },
    /// Other stations have whatever address was to be given out.
    #[error(
        "network {network}: {tried} of its addresses are in use by other stations of the segment; give one with --ip, or make the network with another --ip-range"
    )]
    NoFreeAddress {
        /// The network.
        network: String,
        /// How many were tried.
        tried: usize,
    },
    /// A segment's subnet is one of a network's.
    #[error(
        "uplink raw:{interface}: its subnet {subnet} overlaps {theirs}; choose another address, or give that network another subnet"
    )]
    SegmentOverlaps {
        /// The interface.
        interface: String,
        /// The subnet of the address.
        subnet: IpNet,
        /// Who has it.
        theirs: String,
    },
    /// The network has no NAT of its own.
    #[error(
        "network {network} has the uplink {uplink}, where no rules are: with sockets the host's kernel gives addresses and ports (`pontoon conntrack {network}`); `pontoon network create --uplink raw:IF NAME` has a NAT"
    )]
    NotTranslated {
        /// The network.
        network: String,
        /// Its uplink.
        uplink: String,
    },
    /// The switch refused a segment.
    #[error("uplink {uplink}: {source}")]
    AddSegment {
        /// As it was asked for.
        uplink: String,
        /// The cause.
        source: io::Error,
    },
    /// There are as many networks as there can be.
    #[error("{0} networks are as many as there can be; remove one with `pontoon network rm`")]
    TooManyNetworks(usize),
    /// There are as many endpoints as there can be.
    #[error("{0} endpoints are as many as there can be; detach one with `pontoon detach`")]
    TooManyEndpoints(usize),
    /// No endpoint of this name or id.
    #[error("no endpoint {0}; `pontoon ps` lists them")]
    NoEndpoint(String),
    /// Several endpoints have ids that begin so.
    #[error("{0} is the beginning of several ids; write more of it (`pontoon ps` lists them)")]
    Ambiguous(String),
    /// An endpoint of this name is there.
    #[error(
        "the name {name} is taken by endpoint {id} on network {network}; choose another with --name, or `pontoon detach {name}`"
    )]
    EndpointExists {
        /// The name.
        name: String,
        /// Its owner's short id.
        id: String,
        /// Its owner's network.
        network: String,
    },
    /// The endpoint cannot be worked with now.
    #[error("endpoint {name} is {status}; `pontoon ps` shows when it is up")]
    NotUp {
        /// Its name.
        name: String,
        /// What it is instead.
        status: String,
    },
    /// Another station has the MAC address.
    #[error(
        "MAC address {mac} is in use by {by} on network {network}; choose another with --mac-address, or leave it out"
    )]
    MacInUse {
        /// The address.
        mac: String,
        /// Whose.
        by: String,
        /// The network.
        network: String,
    },
    /// The switch refused a port.
    #[error("connect {endpoint} to the switch: {source}")]
    AddPort {
        /// The endpoint.
        endpoint: String,
        /// The cause.
        source: io::Error,
    },
    /// The kernel's part of it failed.
    #[error("{0:#}")]
    Netns(#[from] netns::Error),

    /// The endpoint publishes no such port.
    #[error(
        "endpoint {endpoint} publishes nothing as {spec}; `pontoon port {endpoint}` lists what it does"
    )]
    NotPublished {
        /// The endpoint.
        endpoint: String,
        /// What was to be taken back.
        spec: String,
    },
    /// Another endpoint has published this.
    #[error("cannot listen on {listen}/{protocol}: endpoint {endpoint} publishes it; choose another host port, or `pontoon publish rm {endpoint} {listen}:{container}/{protocol}`", listen = Listen(*.listen))]
    PublishedAlready {
        /// Where.
        listen: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
        /// By whom.
        endpoint: String,
        /// For which of its ports.
        container: u16,
    },
    /// Another process listens there.
    #[error("cannot listen on {listen}/{protocol}: {}; choose another host port, or end that process", held_by(.owner, *.listen, *.protocol))]
    PortInUse {
        /// Where.
        listen: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
        /// Whose it is, where that could be seen.
        owner: Option<Owner>,
    },
    /// The port needs privilege.
    #[error(
        "cannot listen on {port}: need net.ipv4.ip_unprivileged_port_start<={port} (now {start}), or CAP_NET_BIND_SERVICE"
    )]
    PrivilegedPort {
        /// The port.
        port: u16,
        /// The first port without privilege.
        start: u16,
    },
    /// The address is not the host's.
    #[error(
        "cannot listen on {0}: {1} is no address of this host; use one of the host's, or leave it out for all"
    )]
    NotOurAddress(SocketAddr, IpAddr),
    /// Every port of the range is used.
    #[error(
        "no free host port from {first} to {last} for container port {container}/{protocol}; name one: HOST:{container}"
    )]
    NoFreePort {
        /// Lower end of `ip_local_port_range`.
        first: u16,
        /// Upper end.
        last: u16,
        /// The container's port.
        container: u16,
        /// TCP or UDP.
        protocol: Protocol,
    },
    /// More listeners than descriptors.
    #[error(
        "{wanted} more listeners need {wanted} descriptors, and {left} are left of {limit}; publish fewer ports, or raise `ulimit -Hn` before `pontoon daemon`"
    )]
    TooManyListeners {
        /// Listeners asked for.
        wanted: usize,
        /// Descriptors left for listeners.
        left: usize,
        /// Descriptors the process may have.
        limit: u64,
    },
    /// Any other failure of `bind`.
    #[error("cannot listen on {listen}/{protocol}: {source}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
        /// The cause.
        source: io::Error,
    },

    /// Something the daemon needs from the system.
    #[error("{what}: {source}")]
    System {
        /// What was tried, beginning with a verb.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
}

fn held_by(owner: &Option<Owner>, listen: SocketAddr, protocol: Protocol) -> String {
    let tool = if protocol == Protocol::Udp { "ss -lunp" } else { "ss -ltnp" };
    match owner {
        Some(Owner { pid, command }) => format!("pid {pid} ({command}) has it"),
        None => format!(
            "in use by another user's process (`sudo {tool} sport = :{}` names it)",
            listen.port()
        ),
    }
}

/// An address as the host part of a spec: nothing where it is every address.
struct Listen(SocketAddr);

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.ip().is_unspecified() {
            write!(f, "{}", self.0.port())
        } else {
            write!(f, "{}", self.0)
        }
    }
}

impl Error {
    /// The HTTP status that goes with it.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::NoNetwork(_)
            | Self::NoEndpoint(_)
            | Self::NotPublished { .. }
            | Self::Netns(
                netns::Error::NoSuchProcess { .. } | netns::Error::NoSuchNamespace { .. },
            ) => 404,
            Self::NetworkExists(_)
            | Self::NetworkInUse { .. }
            | Self::DefaultNetwork(_)
            | Self::EndpointExists { .. }
            | Self::NotUp { .. }
            | Self::MacInUse { .. }
            | Self::PublishedAlready { .. }
            | Self::PortInUse { .. }
            | Self::SegmentDiffers { .. }
            | Self::SegmentOverlaps { .. }
            | Self::InterfaceBridged { .. }
            | Self::AddressConflict { .. }
            | Self::NoFreeAddress { .. }
            | Self::Netns(netns::Error::InterfaceExists { .. })
            | Self::ChangedBut { .. }
            | Self::Subnet(
                SubnetError::Network { .. }
                | SubnetError::Route { .. }
                | SubnetError::Segment { .. },
            )
            | Self::Ipam(IpamError::InUse { .. } | IpamError::Exhausted { .. }) => 409,
            Self::Name(_)
            | Self::Spec(_)
            | Self::Mac(_)
            | Self::Ipam(_)
            | Self::Subnet(_)
            | Self::Uplink(_)
            | Self::Translation(_)
            | Self::Timers(_)
            | Self::OwnInterface(_)
            | Self::MtuAbove { .. }
            | Self::Netns(
                netns::Error::NotANamespace { .. }
                | netns::Error::BadNamespaceName { .. }
                | netns::Error::BadInterfaceName { .. }
                | netns::Error::NoSuchUplink { .. }
                | netns::Error::UplinkLoopback { .. }
                | netns::Error::UplinkNotEthernet { .. }
                | netns::Error::UplinkDown { .. },
            )
            | Self::NotTranslated { .. }
            | Self::Ambiguous(_)
            | Self::NotOurAddress(..)
            | Self::Invalid { .. } => 400,
            Self::PrivilegedPort { .. } | Self::Netns(netns::Error::PacketDenied { .. }) => 403,
            _ => 500,
        }
    }
}
