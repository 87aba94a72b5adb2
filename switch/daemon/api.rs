//! What crosses the socket: the bodies of requests and answers.
//!
//! Shared by server and client. Names are written as docker writes them in JSON (`MacAddress`,
//! `IPAddress`), and a network's fields are those of `docker network inspect`, so that what reads
//! docker's output reads ours.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::timers::Timers;
pub use crate::translation::{Filtering, Nat46, Prefix6, SnatTo};
pub use crate::uplink::{Addressing, Raw, Uplink};

/// Any failure, beside its HTTP status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was tried, on what, and what would help.
    pub message: String,
}

/// `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    /// The program's version.
    pub version: String,
    /// The API's version: the `1` of `/v1`.
    pub api_version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// When it was started, as RFC 3339 has it.
    pub started: String,
    /// Threads of the switch.
    pub workers: usize,
}

/// `POST /v1/networks`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// Its subnets, at most one of each family; without an IPv4 one, a free one is chosen.
    pub subnets: Vec<String>,
    /// The gateway's addresses, by default the first of each subnet; `none` for no gateway.
    pub gateways: Vec<String>,
    /// The part of each subnet that is handed out unasked; all of it by default.
    pub ip_ranges: Vec<String>,
    /// Largest IP packet, in octets; by default 1500, or the interface's where the uplink is `bridge:IF`.
    pub mtu: Option<u16>,
    /// The way out.
    pub uplink: Uplink,
    /// What sources are shown with in a raw uplink, one range of a family; without, its station's address.
    pub snat_to: Vec<SnatTo>,
    /// Who from outside may answer; `adf` by default.
    pub filtering: Option<Filtering>,
    /// How long a silent flow is remembered; `rfc` by default.
    pub timeouts: Option<Timers>,
    /// What IPv6 clients of its containers are shown with where those have no IPv6; `off` by default.
    pub nat46: Option<Nat46>,
    /// IPv6 prefixes shown as others in a raw uplink.
    pub prefixes6: Vec<Prefix6>,
    /// No way out and no default route, whatever `uplink` says.
    pub internal: bool,
    /// No interface in the host's namespace, even where there could be one.
    pub no_host_port: bool,
    /// Goes with its last endpoint.
    pub transient: bool,
}

/// `PATCH /v1/networks/{name}`: a live change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct NetworkChange {
    /// New addresses of the gateway, one for each family that changes; `none` takes it away.
    pub gateways: Vec<String>,
    /// New way out.
    pub uplink: Option<Uplink>,
    /// As in [`NetworkCreate`], in place of what was; an empty list takes it away.
    pub snat_to: Option<Vec<SnatTo>>,
    /// As in [`NetworkCreate`].
    pub filtering: Option<Filtering>,
    /// As in [`NetworkCreate`].
    pub timeouts: Option<Timers>,
    /// As in [`NetworkCreate`].
    pub nat46: Option<Nat46>,
    /// As in [`NetworkCreate`], in place of what was; an empty list takes it away.
    pub prefixes6: Option<Vec<Prefix6>>,
}

/// A network, with the fields of `docker network inspect`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// When it was made, as RFC 3339 has it.
    pub created: String,
    /// Always `local`.
    pub scope: String,
    /// Always `pontoon`.
    pub driver: String,
    /// Whether it has an IPv6 subnet.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// Its subnets.
    #[serde(rename = "IPAM")]
    pub ipam: Ipam,
    /// Whether it has no way out.
    pub internal: bool,
    /// Always false; docker's swarm.
    pub attachable: bool,
    /// Always false; docker's swarm.
    pub ingress: bool,
    /// Always empty; docker's swarm.
    pub config_from: ConfigFrom,
    /// Always false; docker's swarm.
    pub config_only: bool,
    /// Its endpoints by id.
    pub containers: BTreeMap<String, NetworkContainer>,
    /// MTU, uplink and host port.
    pub options: BTreeMap<String, String>,
    /// Always empty.
    pub labels: BTreeMap<String, String>,
    /// Our station on the segment of a raw uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Station>,
    /// What whoever made or changed it should know; in the answer to that alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Our station on a segment, and what it has there now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Station {
    /// The host's interface on that segment.
    pub interface: String,
    /// `up`; `asking` while it has no address it may use; `no carrier`, or `down` and why, while its
    /// interface carries nothing; `dead` and why when that is gone.
    pub status: String,
    /// Its MAC address.
    pub mac_address: String,
    /// Largest IP packet, in octets.
    #[serde(rename = "MTU")]
    pub mtu: u16,
    /// Its addresses.
    pub addresses: Vec<StationAddress>,
    /// Next hops for everything beyond the segment.
    pub routers: Vec<String>,
    /// The DHCP lease, where there is one.
    pub lease: Option<Lease>,
    /// What stands against it, each in a sentence: addresses others have, subnets that overlap.
    pub conflicts: Vec<String>,
    /// The networks behind it.
    pub networks: Vec<String>,
}

/// An address of our station.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StationAddress {
    /// With its subnet's prefix length.
    pub address: String,
    /// `static`, `dhcp`, or `slaac`: from a router's advertisement.
    pub origin: String,
    /// `tentative` while it is asked whether anybody has it, `valid`, or `conflict`: somebody has.
    pub state: String,
    /// Seconds for which it may still be used, where that is not for ever.
    pub valid_for: Option<u64>,
}

/// A DHCP lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Lease {
    /// Who gave it.
    pub server: String,
    /// Seconds until it ends, unless it is renewed.
    pub expires_in: u64,
    /// Name servers it tells of.
    pub dns: Vec<String>,
}

/// A network's subnets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ipam {
    /// Always `default`.
    pub driver: String,
    /// Always empty.
    pub options: BTreeMap<String, String>,
    /// One for each family.
    pub config: Vec<IpamConfig>,
}

/// One subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamConfig {
    /// The subnet.
    pub subnet: String,
    /// The part of it that is handed out, where that is not all.
    #[serde(rename = "IPRange", default, skip_serializing_if = "String::is_empty")]
    pub ip_range: String,
    /// The gateway in it, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
}

/// What docker's swarm would say here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConfigFrom {
    /// Always empty.
    pub network: String,
}

/// An endpoint, as its network shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkContainer {
    /// Its name.
    pub name: String,
    /// Its id.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// Its station.
    pub mac_address: String,
    /// Its IPv4 address with the subnet's prefix length, or nothing.
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    /// Its IPv6 address with the subnet's prefix length, or nothing.
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
}

/// `POST /v1/endpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct EndpointCreate {
    /// The namespace: `pid:42`, an absolute path, or a name below `/run/netns`.
    pub target: String,
    /// The network; `bridge` where it is empty.
    pub network: String,
    /// Its name; one is made up where there is none.
    pub name: Option<String>,
    /// The interface's name inside; `eth0`, or the next free number, by default.
    pub ifname: Option<String>,
    /// Its IPv4 address; the lowest free one by default.
    pub ip: Option<String>,
    /// Its IPv6 address; the lowest free one by default.
    pub ip6: Option<String>,
    /// Its station; made from its address by default.
    pub mac_address: Option<String>,
    /// A veth pair instead of a TAP.
    pub veth: bool,
    /// Ports to publish with it: all of them, or it is not attached.
    pub ports: Vec<String>,
    /// The target has files of its own over `/etc/resolv.conf` and `/etc/hosts`, made by
    /// `pontoon run`; a command executed in it shall see them.
    pub own_mounts: bool,
}

/// An endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Endpoint {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its network's name.
    pub network: String,
    /// When it was attached, as RFC 3339 has it.
    pub created: String,
    /// `attaching`, `up`, `detaching`, or `dead` and why.
    pub status: String,
    /// The namespace as it was asked for.
    pub target: String,
    /// The process it was attached to, where it was one.
    pub pid: Option<u32>,
    /// The namespace as `readlink /proc/PID/ns/net` shows it.
    pub netns: String,
    /// Whether commands executed in it join its mounts.
    pub own_mounts: bool,
    /// The interface's name inside.
    pub interface: String,
    /// `tap` or `veth`.
    pub device: String,
    /// Its number on the bridge.
    pub port: Option<u16>,
    /// Its station.
    pub mac_address: String,
    /// Its IPv4 address, or nothing.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// The prefix length of that.
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: u8,
    /// Its IPv6 address, or nothing.
    #[serde(rename = "GlobalIPv6Address")]
    pub ipv6_address: String,
    /// The prefix length of that.
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub ipv6_prefix_len: u8,
    /// Next hops of its default routes.
    pub gateways: Vec<String>,
    /// Largest IP packet, in octets.
    #[serde(rename = "MTU")]
    pub mtu: u16,
    /// Name servers its network was configured with (`dns` of the configuration file).
    pub dns: Vec<String>,
    /// Its published ports, one for each listener.
    pub ports: Vec<PublishedPort>,
}

/// A listener on the host and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PublishedPort {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The container's port.
    pub container_port: u16,
    /// The address listened on.
    pub host_ip: String,
    /// The port listened on.
    pub host_port: u16,
    /// Whether every client is relayed socket to socket, its address hidden from the container.
    #[serde(default)]
    pub splice: bool,
}

/// `POST` and `DELETE /v1/endpoints/{name}/ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Ports {
    /// Specs as `-p` takes them.
    pub specs: Vec<String>,
}

/// `GET /v1/fdb`: where a network's stations are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FdbRow {
    /// The network.
    pub network: String,
    /// The station.
    pub mac_address: String,
    /// The port it is behind.
    pub port: u16,
    /// Whose port that is: an endpoint's name, `gateway` or `host`.
    pub endpoint: String,
    /// Whether it is the switch's own and never ages.
    pub permanent: bool,
    /// Seconds since it was last heard.
    pub age: f64,
}

/// `GET /v1/neighbours`: whom the gateway knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NeighbourRow {
    /// The network.
    pub network: String,
    /// The IP address.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// Its station, where it is known.
    pub mac_address: Option<String>,
    /// As `ip neigh` prints it.
    pub state: String,
}

/// One direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FlowSide {
    /// Source address.
    pub src: String,
    /// Destination address.
    pub dst: String,
    /// Source port, or the identifier of an ICMP query.
    pub src_port: u16,
    /// Destination port, or the identifier of an ICMP query.
    pub dst_port: u16,
    /// Packets seen.
    pub packets: u64,
    /// Their octets.
    pub octets: u64,
}

/// `GET /v1/conntrack`: a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Flow {
    /// The network, or the interface of a segment, that its first packet came from.
    pub network: String,
    /// The conntrack zone of that.
    pub zone: u16,
    /// The network or interface its answers come in by.
    pub answered_in: String,
    /// The conntrack zone of that.
    pub reply_zone: u16,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or `unknown`.
    pub protocol: String,
    /// The IP protocol number.
    pub protocol_number: u8,
    /// The state in netfilter's word, where the protocol has any: TCP and SCTP.
    pub state: Option<String>,
    /// Seconds until it is forgotten.
    pub expires_in: u64,
    /// The first packet's direction.
    pub original: FlowSide,
    /// The answers' direction.
    pub reply: FlowSide,
    /// Whether an answer was seen.
    pub replied: bool,
    /// Whether it is safe from early drop.
    pub assured: bool,
    /// Whether its source is shown as another.
    pub source_nat: bool,
    /// Whether its destination is another than its sender wrote.
    pub destination_nat: bool,
}

/// `GET /v1/nat`: what is translated on a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Nat {
    /// The host's interface on that segment.
    pub interface: String,
    /// The networks behind it.
    pub networks: Vec<String>,
    /// Who from outside may answer.
    pub filtering: Filtering,
    /// How long a silent flow is remembered.
    pub timeouts: Timers,
    /// The rules in the order in which they are asked, prerouting before postrouting.
    pub rules: Vec<NatRule>,
    /// What inside addresses and ports are shown with.
    pub mappings: Vec<NatMapping>,
}

/// A rule: what it is about, what becomes of that, and how often it decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NatRule {
    /// `prerouting` or `postrouting`; `prefix` for prefixes translated without state.
    pub hook: String,
    /// Its place among the hook's rules, from 0.
    pub number: usize,
    /// The network or interface a packet comes in by, where that matters.
    pub from: Option<String>,
    /// The network or interface it leaves by, where that matters.
    pub to: Option<String>,
    /// Its source, where that matters: a prefix.
    pub source: Option<String>,
    /// Its destination, where that matters: a prefix.
    pub destination: Option<String>,
    /// What it carries, where that matters.
    pub protocol: Option<String>,
    /// First and last of its destination ports, where they matter.
    pub ports: Option<(u16, u16)>,
    /// `DNAT`, `SNAT`, `MASQUERADE`, `NETMAP`, `NPT`, or `ACCEPT` where it stays as it is.
    pub target: String,
    /// The address, addresses or prefix it is changed to: `172.17.0.2:80`, `203.0.113.8-203.0.113.9`.
    pub changed_to: Option<String>,
    /// The endpoint whose published port it is.
    pub endpoint: Option<String>,
    /// Flows it decided about; none are counted for a prefix.
    pub flows: u64,
    /// Octets of their first packets.
    pub octets: u64,
}

/// What an inside address and port is shown with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NatMapping {
    /// `tcp`, `udp`, `icmp`, or another.
    pub protocol: String,
    /// The network it is in.
    pub network: String,
    /// The endpoint that has the address, where one does.
    pub endpoint: String,
    /// Inside address.
    pub inside_ip: String,
    /// Inside port, or the identifier of an ICMP query.
    pub inside_port: u16,
    /// External address.
    pub external_ip: String,
    /// External port, or identifier.
    pub external_port: u16,
}

/// Counts of one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortStats {
    /// The network.
    pub network: String,
    /// The port's number.
    pub port: u16,
    /// Whose it is: an endpoint's name, `gateway` or `host`.
    pub endpoint: String,
    /// Frames received from it.
    pub rx_frames: u64,
    /// Octets of those.
    pub rx_octets: u64,
    /// Frames sent to it.
    pub tx_frames: u64,
    /// Octets of those.
    pub tx_octets: u64,
    /// Received frames that went on to another port.
    pub forwarded: u64,
    /// Received frames that the gateway took.
    pub consumed: u64,
    /// Received frames that went no further, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Frames that were to leave by it and did not, by reason.
    pub tx_dropped: BTreeMap<String, u64>,
}

/// What one worker did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct WorkerStats {
    /// Turns of its loop.
    pub turns: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Flows it carries.
    pub flows: u64,
    /// Connections relayed socket to socket, past the bridge, since it began.
    #[serde(default)]
    pub spliced: u64,
    /// Octets moved so.
    #[serde(default)]
    pub spliced_octets: u64,
}

/// `GET /v1/stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Stats {
    /// Every port of the networks asked for.
    pub ports: Vec<PortStats>,
    /// Every worker.
    pub workers: Vec<WorkerStats>,
}
