//! The switch's tables in JSON: stations, neighbours, flows, rules and mappings, counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::timers::Timers;
use crate::translation::Filtering;

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

/// `GET /v1/conntrack`, `?why=true`: a flow.
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
    /// Why it is translated as it is, if that was asked: rules and mappings as they are now, in words. Empty where
    /// no NAT of a raw uplink's has to do with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
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
    /// `DNAT`, `SNAT`, `MASQUERADE`, `NETMAP` or `NPT`.
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
