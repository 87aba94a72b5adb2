//! `pontoon network`.

use std::process::ExitCode;

use ::daemon::api::{self, NetworkChange, NetworkCreate};
use ::daemon::names::short_id;
use clap::{Args, Subcommand, ValueEnum};

use crate::attach::each;
use crate::failure::Outcome;
use crate::output::{Listing, daemon, print, print_json, table};

/// Create, change, list and remove networks
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon network create net0
  pontoon network create --subnet 172.100.0.0/16 --subnet fd00:100::/64 net0
  pontoon network inspect net0
  pontoon network rm net0")]
pub(crate) struct Network {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(Create),
    /// List networks
    #[command(visible_alias = "list", after_help = "Example:\n  pontoon network ls --format json")]
    Ls(Ls),
    /// Show networks as docker network inspect does, in JSON
    #[command(after_help = "Example:\n  pontoon network inspect bridge")]
    Inspect(Names),
    /// Remove networks that have no endpoints
    #[command(visible_alias = "remove", after_help = "Example:\n  pontoon network rm net0 net1")]
    Rm(Names),
    Set(Set),
}

/// Create a network
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon network create net0                                  the next free subnet
  pontoon network create --subnet 10.5.0.0/24 --gateway 10.5.0.254 net0
  pontoon network create --subnet fd00:5::/64 dual             IPv4 is added
  pontoon network create --subnet 172.18.0.0/16 --gateway none br0     a switch, no router
  pontoon network create --internal db                         no way out")]
struct Create {
    /// Its name
    name: String,
    /// A subnet, once for each family; a free IPv4 one by default
    #[arg(long = "subnet", value_name = "SUBNET")]
    subnets: Vec<String>,
    /// The gateway's address, once for each family, or none; the first of the subnet by default
    #[arg(long = "gateway", value_name = "ADDR|none")]
    gateways: Vec<String>,
    /// Largest IP packet, in octets
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// Where packets for elsewhere go
    #[arg(long, value_enum, default_value_t)]
    uplink: Uplink,
    /// No way out, and no default route
    #[arg(long)]
    internal: bool,
    /// No interface in the host's namespace
    #[arg(long)]
    no_host_port: bool,
}

/// Where packets for elsewhere go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Uplink {
    /// Through the host's own sockets
    #[default]
    Sockets,
    /// Nowhere
    None,
}

impl From<Uplink> for api::Uplink {
    fn from(uplink: Uplink) -> Self {
        match uplink {
            Uplink::Sockets => Self::Sockets,
            Uplink::None => Self::None,
        }
    }
}

/// Change a network while it runs
///
/// Endpoints stay attached; those whose default route leads through it are told of a new gateway.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon network set br0 --gateway 172.18.0.1
  pontoon network set br0 --gateway none --uplink none")]
struct Set {
    /// Its name
    name: String,
    /// The gateway's new address, once for each family that changes, or none
    #[arg(long = "gateway", value_name = "ADDR|none", required_unless_present = "uplink")]
    gateways: Vec<String>,
    /// Where packets for elsewhere go from now on
    #[arg(long, value_enum)]
    uplink: Option<Uplink>,
}

#[derive(Debug, Args)]
struct Ls {
    /// Print short ids only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
struct Names {
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

impl Network {
    pub(crate) fn go(self) -> Outcome {
        let daemon = daemon()?;
        match self.command {
            Command::Create(create) => {
                let network = daemon.create_network(&NetworkCreate {
                    name: create.name,
                    subnets: create.subnets,
                    gateways: create.gateways,
                    mtu: Some(create.mtu),
                    uplink: create.uplink.into(),
                    internal: create.internal,
                    no_host_port: create.no_host_port,
                    transient: false,
                })?;
                print(&network.id)
            }
            Command::Ls(ls) => {
                let networks = daemon.networks()?;
                ls.listing.print(&networks, |networks| match ls.quiet {
                    true => networks.iter().map(|n| short_id(&n.id)).collect::<Vec<_>>().join("\n"),
                    false => text(networks),
                })
            }
            Command::Inspect(inspect) => {
                let networks: Result<Vec<_>, _> =
                    inspect.names.iter().map(|name| daemon.network(name)).collect();
                print_json(&networks?)
            }
            Command::Rm(rm) => each(&rm.names, |name| daemon.remove_network(name)),
            Command::Set(set) => {
                let change =
                    NetworkChange { gateways: set.gateways, uplink: set.uplink.map(Into::into) };
                daemon.change_network(&set.name, &change)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn text(networks: &[api::Network]) -> String {
    let header = ["NETWORK ID", "NAME", "DRIVER", "SCOPE", "SUBNET", "GATEWAY", "UPLINK"];
    let list = |network: &api::Network, of: fn(&api::IpamConfig) -> &String| {
        let texts = network.ipam.config.iter().map(of).filter(|text| !text.is_empty());
        texts.cloned().collect::<Vec<_>>().join(", ")
    };
    table(
        &header,
        networks.iter().map(|network| {
            vec![
                short_id(&network.id).to_owned(),
                network.name.clone(),
                network.driver.clone(),
                network.scope.clone(),
                list(network, |config| &config.subnet),
                list(network, |config| &config.gateway),
                network.options.get("pontoon.uplink").cloned().unwrap_or_default(),
            ]
        }),
    )
}
