//! What the rest of the program tells the workers, and is told.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use datapath::{Gateway, IpMtu, MacAddr, Offloads, PortId, PortRole, Uplink};
use nat::{Protocol, Zone};
use relay::Splice;

/// A network of the switch, chosen by whoever creates it; also its conntrack zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u16);

/// A segment of the world, chosen by whoever adds it: 0 to 32,767.
///
/// Its tables are read by the calls for networks (`fdb`, `neighbours`, `stats`, `flows`) under
/// [`network`](Self::network).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u16);

impl SegmentId {
    /// Set in the zone of every segment and of no network.
    const MARK: u16 = 0x8000;

    /// Its conntrack zone, as [`Uplink::Raw`](crate::Uplink::Raw) wants it.
    #[must_use]
    pub const fn zone(self) -> Zone {
        Zone(self.0 | Self::MARK)
    }

    /// The same by the name of a network, for listings.
    #[must_use]
    pub const fn network(self) -> NetworkId {
        NetworkId(self.0 | Self::MARK)
    }

    /// The segment of a zone, if it is one's.
    #[must_use]
    pub const fn of(zone: Zone) -> Option<Self> {
        if zone.0 & Self::MARK == 0 { None } else { Some(Self(zone.0 & !Self::MARK)) }
    }
}

/// A published port, for taking it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublishId(pub u32);

/// How the switch is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads; at least 1.
    pub workers: usize,
    /// Most flows in the conntrack table.
    pub max_tracked: usize,
    /// Most of those of one container; at its bound, its flow that has waited longest for an answer goes.
    pub max_tracked_per_port: usize,
    /// Most flows with a host socket of their own, in all.
    pub max_flows: usize,
    /// Most of those of one container.
    pub max_flows_per_port: usize,
    /// How long a worker polls before it sleeps.
    pub busy_poll: Duration,
    /// The processors the workers are bound to, in turn; none leaves it to the scheduler.
    pub cpus: Vec<usize>,
    /// The workers' nice value, where they may have it: below 0, a frame's receiver does not displace the
    /// worker before it has written the rest of the burst.
    pub nice: i32,
}

/// A network, as the workers must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// None: layer 2 only.
    pub gateway: Option<Gateway>,
    /// The way out.
    pub uplink: Uplink,
    /// Largest IP packet on it.
    pub mtu: IpMtu,
    /// The host's own addresses, reached by the host port where there is one.
    pub host_addresses: Vec<IpAddr>,
}

/// A port to be added.
#[derive(Debug)]
pub struct PortConfig {
    /// Who is behind it.
    pub role: PortRole,
    /// Largest IP packet.
    pub mtu: IpMtu,
    /// Its station.
    pub mac: MacAddr,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What the device does with unfinished frames.
    pub offloads: Offloads,
    /// One descriptor per queue, non-blocking.
    pub queues: Vec<OwnedFd>,
}

/// A port to be published.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Whose container.
    pub network: NetworkId,
    /// The container's port on the bridge.
    pub port: PortId,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where to listen on the host; port 0 is not allowed here.
    pub listen: SocketAddr,
    /// The container's addresses, of which the one of the client's family is taken.
    pub to: Vec<IpAddr>,
    /// The container's port number.
    pub to_port: u16,
    /// How TCP clients may be relayed past the bridge: those of the host's loopback, or all; `None`
    /// leaves every client to the bridge.
    pub splice: Option<Splice>,
}

/// What happens without having been asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A port's device is gone or broken; it takes and gives no more frames.
    PortDied {
        /// Its network.
        network: NetworkId,
        /// The port.
        port: PortId,
        /// The device's error.
        error: String,
    },
    /// A segment's device is gone or broken: nothing crosses any more.
    SegmentDied {
        /// The segment.
        segment: SegmentId,
        /// The device's error.
        error: String,
    },
    /// Our station on a segment has gained or lost an address or a router; [`Switch::segment_rows`] tells
    /// what it has now.
    ///
    /// [`Switch::segment_rows`]: crate::Switch::segment_rows
    SegmentChanged {
        /// The segment.
        segment: SegmentId,
    },
    /// Another station of a segment uses an address of ours (RFC 5227 §2.4, RFC 4862 §5.4.4).
    AddressConflict {
        /// The segment.
        segment: SegmentId,
        /// The address.
        addr: IpAddr,
        /// The other station.
        station: MacAddr,
    },
    /// A worker has ended by a fault of ours; its ports take and give no more frames.
    WorkerDied {
        /// Its number.
        worker: usize,
        /// What it said.
        panic: String,
    },
}

/// A line of the FDB.
#[derive(Clone, Debug)]
pub struct FdbRow {
    /// The station.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: PortId,
    /// Whether it is an own address (`PortId::GATEWAY`'s) that never ages.
    pub permanent: bool,
    /// Time since it was last heard.
    pub age: Duration,
}

/// A line of the gateway's neighbour table.
#[derive(Clone, Debug)]
pub struct NeighbourRow {
    /// The IP address.
    pub addr: IpAddr,
    /// Its station, unless incomplete or failed.
    pub mac: Option<MacAddr>,
    /// The state as `ip neigh` prints it: `REACHABLE`, `STALE`, `INCOMPLETE`, `FAILED`, …
    pub state: &'static str,
}

/// A line of conntrack.
#[derive(Clone, Debug)]
pub struct FlowRow {
    /// Its network.
    pub network: NetworkId,
    /// The network, or the segment, its answers come in by.
    pub answered_in: NetworkId,
    /// First packet's tuple.
    pub original: nat::Tuple,
    /// The answers' tuple.
    pub reply: nat::Tuple,
    /// The state's name in `conntrack -L`, if the protocol has any: TCP and SCTP.
    pub state: Option<&'static str>,
    /// Whether an answer was seen.
    pub replied: bool,
    /// Whether it is safe from early drop.
    pub assured: bool,
    /// Time left until it is forgotten.
    pub expires_in: Duration,
    /// Packets and octets in the original direction.
    pub sent: (u64, u64),
    /// Packets and octets of the answers.
    pub received: (u64, u64),
    /// Why it is translated as it is, in words; empty if it is not, or that was not asked.
    pub why: Vec<String>,
}

/// Counts of one port, all workers together.
#[derive(Clone, Debug, Default)]
pub struct PortStats {
    /// Frames received from it.
    pub rx_frames: u64,
    /// Octets of those frames.
    pub rx_octets: u64,
    /// Frames sent to it.
    pub tx_frames: u64,
    /// Octets of those frames.
    pub tx_octets: u64,
    /// Received frames that were forwarded to one port or more.
    pub forwarded: u64,
    /// Received frames that the gateway took for itself.
    pub consumed: u64,
    /// Received frames that were dropped, by reason; reasons never met are left out.
    pub dropped: Vec<(&'static str, u64)>,
    /// Frames that should have gone out by it and were not sent, by reason.
    pub tx_dropped: Vec<(&'static str, u64)>,
}

/// What a worker did.
#[derive(Clone, Debug, Default)]
pub struct WorkerStats {
    /// Turns of its loop.
    pub turns: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Flows it carries.
    pub flows: u64,
    /// Connections relayed socket to socket, past the bridge, since it began.
    pub spliced: u64,
    /// Octets moved so.
    pub spliced_octets: u64,
}
