//! `pontoon inspect`: an endpoint in the fields of `docker inspect`.

use std::collections::BTreeMap;

use ::daemon::api::{Endpoint, PublishedPort};
use ::daemon::client::Client;
use clap::Args;
use serde::Serialize;

use crate::failure::Outcome;
use crate::output::{daemon, print_json};

/// Show endpoints, or networks, in JSON
///
/// Endpoints have the fields of `docker inspect` under State and NetworkSettings, and their own under
/// Endpoint. A name that is no endpoint's is looked for among the networks.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon inspect web
  pontoon inspect web | jq -r '.[0].NetworkSettings.IPAddress'
  pontoon inspect web | grep -m1 -i pid")]
pub(crate) struct Inspect {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// The fields of docker's that say something here, in docker's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    id: String,
    created: String,
    state: State,
    name: String,
    network_settings: Settings,
    endpoint: Endpoint,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    pid: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    #[serde(rename = "SandboxID")]
    sandbox_id: String,
    ports: BTreeMap<String, Vec<HostPort>>,
    sandbox_key: String,
    #[serde(flatten)]
    address: Address,
    networks: BTreeMap<String, OnNetwork>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostPort {
    host_ip: String,
    host_port: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct OnNetwork {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(flatten)]
    address: Address,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Address {
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    global_ipv6_prefix_len: u8,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: String,
    mac_address: String,
}

/// What a name was found to be.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Found {
    Container(Box<Container>),
    Network(Box<::daemon::api::Network>),
}

impl Inspect {
    pub(crate) fn go(self) -> Outcome {
        let daemon = daemon()?;
        let mut found = Vec::new();
        for name in &self.names {
            match daemon.endpoint(name) {
                Ok(endpoint) => found.push(Found::Container(Box::new(describe(&daemon, endpoint)))),
                Err(error) if error.is_not_found() => match daemon.network(name) {
                    Ok(network) => found.push(Found::Network(Box::new(network))),
                    Err(_) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
        print_json(&found)
    }
}

fn describe(daemon: &Client, endpoint: Endpoint) -> Container {
    let network_id =
        daemon.network(&endpoint.network).map(|network| network.id).unwrap_or_default();
    let gateway = |v4: bool| {
        let of = endpoint.gateways.iter().find(|addr| addr.contains('.') == v4);
        of.cloned().unwrap_or_default()
    };
    let address = Address {
        endpoint_id: endpoint.id.clone(),
        gateway: gateway(true),
        global_ipv6_address: endpoint.ipv6_address.clone(),
        global_ipv6_prefix_len: endpoint.ipv6_prefix_len,
        ip_address: endpoint.ip_address.clone(),
        ip_prefix_len: endpoint.ip_prefix_len,
        ipv6_gateway: gateway(false),
        mac_address: endpoint.mac_address.clone(),
    };
    let on_network = OnNetwork { network_id, address: address.clone() };
    Container {
        id: endpoint.id.clone(),
        created: endpoint.created.clone(),
        state: State { status: endpoint.status.clone(), pid: endpoint.pid.unwrap_or(0) },
        name: endpoint.name.clone(),
        network_settings: Settings {
            sandbox_id: endpoint.netns.clone(),
            ports: ports(&endpoint.ports),
            sandbox_key: sandbox_key(&endpoint),
            address,
            networks: BTreeMap::from([(endpoint.network.clone(), on_network)]),
        },
        endpoint,
    }
}

/// The file that stands for the namespace.
fn sandbox_key(endpoint: &Endpoint) -> String {
    match endpoint.pid {
        Some(pid) => format!("/proc/{pid}/ns/net"),
        None if endpoint.target.contains('/') => endpoint.target.clone(),
        None => format!("{}/{}", netns::named::DIRECTORY, endpoint.target),
    }
}

/// `{"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}`.
fn ports(published: &[PublishedPort]) -> BTreeMap<String, Vec<HostPort>> {
    let mut ports: BTreeMap<String, Vec<HostPort>> = BTreeMap::new();
    for port in published {
        let inside = format!("{}/{}", port.container_port, port.protocol);
        let host =
            HostPort { host_ip: port.host_ip.clone(), host_port: port.host_port.to_string() };
        ports.entry(inside).or_default().push(host);
    }
    ports
}
