//! What crosses the socket: the bodies of requests and answers.
//!
//! Shared by server and client. Names are written as docker writes them in JSON (`MacAddress`,
//! `IPAddress`), and a network's fields are those of `docker network inspect`, so that what reads
//! docker's output reads ours.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

mod tables;

pub use tables::{
    FdbRow, Flow, FlowSide, Nat, NatMapping, NatRule, NeighbourRow, PortStats, Stats, WorkerStats,
};

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
    /// The host's interface on that segment, by the name it has now.
    pub interface: String,
    /// `up`; `asking` while it has no address it may use; `no carrier`, or `down` and why, while its
    /// interface carries nothing or is gone.
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
    /// The DHCP lease, where it is asked for.
    pub lease: Option<Lease>,
    /// Name servers that DHCP and routers tell of; containers of `pontoon run` ask them.
    pub dns: Vec<String>,
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
    /// `static`, `dhcp`, `slaac`: from a router's advertisement, or `snat-to`: of those containers are shown
    /// with, where they are the segment's.
    pub origin: String,
    /// `tentative` while it is asked whether anybody has it, `valid`, `deprecated` when it is not for what is
    /// new any more, or `conflict`: somebody has it.
    pub state: String,
    /// Seconds for which it may still be used, where that is not for ever.
    pub valid_for: Option<u64>,
}

/// A DHCP lease, or the asking for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Lease {
    /// How far it is, in the words of RFC 2131 §4.4: `SELECTING` while a server is looked for, `REQUESTING`,
    /// `BOUND`, `RENEWING`, `REBINDING`, `REBOOTING` when the interface was away, or `INIT`.
    pub state: String,
    /// Who gave it; empty while nobody has.
    pub server: String,
    /// Seconds until more of it is asked for, where it has an end.
    pub renews_in: Option<u64>,
    /// Seconds until it ends, unless it is renewed; where it has an end.
    pub expires_in: Option<u64>,
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
    /// Name servers its network was configured with (`dns` of the configuration file), or those that were told
    /// of on its segment.
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
