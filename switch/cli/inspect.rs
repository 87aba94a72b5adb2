//! `pontoon inspect`: an endpoint in the fields of `docker inspect`.

use ::daemon::api::{Endpoint, PublishedPort};
use ::daemon::client::Client;
use clap::Args;
use serde_json::{Map, Value, json};

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

impl Inspect {
    pub(crate) fn go(self) -> Outcome {
        let daemon = daemon()?;
        let mut found = Vec::new();
        for name in &self.names {
            match daemon.endpoint(name) {
                Ok(endpoint) => found.push(describe(&daemon, &endpoint)),
                Err(error) if error.is_not_found() => match daemon.network(name) {
                    Ok(network) => found.push(serde_json::to_value(network)?),
                    Err(_) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
        print_json(&found)
    }
}

fn describe(daemon: &Client, endpoint: &Endpoint) -> Value {
    let network = daemon.network(&endpoint.network).ok();
    let network_id = network.map(|network| network.id).unwrap_or_default();
    let gateway = |v4: bool| {
        let of = endpoint.gateways.iter().find(|addr| addr.contains('.') == v4);
        of.cloned().unwrap_or_default()
    };
    let sandbox = match endpoint.pid {
        Some(pid) => format!("/proc/{pid}/ns/net"),
        None if endpoint.target.contains('/') => endpoint.target.clone(),
        None => format!("{}/{}", netns::named::DIRECTORY, endpoint.target),
    };
    let on_network = json!({
        "NetworkID": network_id,
        "EndpointID": endpoint.id,
        "Gateway": gateway(true),
        "IPAddress": endpoint.ip_address,
        "IPPrefixLen": endpoint.ip_prefix_len,
        "IPv6Gateway": gateway(false),
        "GlobalIPv6Address": endpoint.ipv6_address,
        "GlobalIPv6PrefixLen": endpoint.ipv6_prefix_len,
        "MacAddress": endpoint.mac_address,
    });
    let networks = Map::from_iter([(endpoint.network.clone(), on_network)]);
    json!({
        "Id": endpoint.id,
        "Name": endpoint.name,
        "Created": endpoint.created,
        "State": { "Status": endpoint.status, "Pid": endpoint.pid.unwrap_or(0) },
        "NetworkSettings": {
            "SandboxKey": sandbox,
            "Ports": ports(&endpoint.ports),
            "Gateway": gateway(true),
            "IPAddress": endpoint.ip_address,
            "IPPrefixLen": endpoint.ip_prefix_len,
            "IPv6Gateway": gateway(false),
            "GlobalIPv6Address": endpoint.ipv6_address,
            "GlobalIPv6PrefixLen": endpoint.ipv6_prefix_len,
            "MacAddress": endpoint.mac_address,
            "Networks": networks,
        },
        "Endpoint": endpoint,
    })
}

/// `{"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}`.
fn ports(published: &[PublishedPort]) -> Value {
    let mut ports: Map<String, Value> = Map::new();
    for port in published {
        let inside = format!("{}/{}", port.container_port, port.protocol);
        let host = json!({ "HostIp": port.host_ip, "HostPort": port.host_port.to_string() });
        let of = ports.entry(inside).or_insert_with(|| json!([]));
        of.as_array_mut().into_iter().for_each(|hosts| hosts.push(host.clone()));
    }
    ports.into()
}
