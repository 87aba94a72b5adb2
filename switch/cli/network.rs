//! `pontoon network`.

use std::process::ExitCode;
use std::str::FromStr;

use ::daemon::api::{
    self, Filtering, Nat46, NetworkChange, NetworkCreate, Prefix6, SnatTo, Timers, Uplink,
};
use ::daemon::names::short_id;
use clap::{ArgGroup, Args, Subcommand};

use crate::attach::each;
use crate::failure::{Outcome, note, note_asking};
use crate::output::{Listing, daemon, print, print_json, table};

/// Create, change, list and remove networks
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon network create net0
  pontoon network create --subnet 172.100.0.0/16 --subnet fd00:100::/64 net0
  pontoon network create --uplink raw:eth0 lan
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
  pontoon network create --internal db                         no way out
  pontoon network create --uplink raw:eth0 lan                 an own station on eth0's segment, by DHCP
  pontoon network create --uplink raw:eth0,address=203.0.113.5/24,gateway=203.0.113.1 lan
  pontoon network create --uplink raw:eth0,nat=off --subnet 10.9.0.0/24 routed     no translation
  pontoon network create --uplink bridge:eth0 segment          containers on eth0's segment itself

UPLINK is
  sockets     the host's own sockets: no privilege, and the outside sees the host's addresses
  none        nowhere
  raw:IF      a station of our own on the segment of the host's interface IF, with packet NAT; as root.
              Options, each behind a comma: address=ADDR/LEN (or dhcp, the default; or none),
              gateway=ADDR, address6=ADDR/LEN (or auto, the default: router advertisements; or none),
              gateway6=ADDR, mac=MAC, nat=off. Networks with the same IF share the station.
  bridge:IF   IF is a port of the network: containers are stations of its segment, with addresses of
              their own: by DHCP in the container, or of a --subnet of that segment's (give --ip-range,
              too, as nobody else may hand those out; each is asked for before a container has it), whose
              router --gateway names; as root.

Timers of --timeouts, in seconds or as 90s, 5m, 2h4m: tcp-syn-sent, tcp-syn-recv, tcp-established,
tcp-fin-wait, tcp-close-wait, tcp-last-ack, tcp-time-wait, tcp-close, tcp-max-retrans, tcp-unacknowledged,
udp-unreplied, udp-stream, udp-query, icmp, sctp-closed, sctp-cookie, sctp-established, sctp-shutdown,
sctp-heartbeat, dccp-opening, dccp-open, gre, gre-stream, generic, fragment-v4, fragment-v6; the kernel's names (nf_conntrack_tcp_timeout_established) mean the same.")]
struct Create {
    /// Its name
    name: String,
    /// A subnet, once for each family; a free IPv4 one by default
    #[arg(long = "subnet", value_name = "SUBNET")]
    subnets: Vec<String>,
    /// The part of a subnet that is handed out, once for each family; all of it by default
    #[arg(long = "ip-range", value_name = "SUBNET")]
    ip_ranges: Vec<String>,
    /// The gateway's address, once for each family, or none; the first of the subnet by default
    #[arg(long = "gateway", value_name = "ADDR|none")]
    gateways: Vec<String>,
    /// Largest IP packet, in octets; 1500 by default, or the interface's with bridge:IF
    #[arg(long)]
    mtu: Option<u16>,
    /// Where packets for elsewhere go: sockets, none, raw:IF[,OPTION…] or bridge:IF
    #[arg(long, value_name = "UPLINK", default_value_t)]
    uplink: Uplink,
    #[command(flatten)]
    translation: Translation,
    /// No way out, and no default route
    #[arg(long)]
    internal: bool,
    /// No interface in the host's namespace
    #[arg(long)]
    no_host_port: bool,
}

/// How containers are shown outside.
#[derive(Debug, Args)]
struct Translation {
    /// With raw:IF: show containers with these addresses, which the station then answers for, in place of
    /// its own; once for each family. Those in its own subnets, 256 at most, are claimed first; others are
    /// to be routed to it
    #[arg(long, value_name = "ADDR[-ADDR]")]
    snat_to: Vec<OrNone<SnatTo>>,
    /// Who from outside may answer: eif (anybody), adf (whoever was spoken to; the default) or apdf (the
    /// very address and port)
    #[arg(long, value_name = "eif|adf|apdf")]
    filtering: Option<Filtering>,
    /// How long silence is borne: rfc (the default) or linux, and each timer that shall differ
    #[arg(long, value_name = "PROFILE[,TIMER=TIME…]")]
    timeouts: Option<Timers>,
    /// With raw:IF: serve IPv6 clients of containers without IPv6, showing them with these addresses; on
    /// is 192.0.0.2-192.0.0.6
    #[arg(long, value_name = "on|off|ADDR[-ADDR]")]
    nat46: Option<Nat46>,
    /// With raw:IF: show a prefix of IPv6 as another, without state (RFC 6296)
    #[arg(long, value_name = "INSIDE=OUTSIDE")]
    prefix6: Vec<OrNone<Prefix6>>,
}

/// A value, or `none` for taking away what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OrNone<T>(Option<T>);

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(Some).map(Self) }
    }
}

/// What was given, of which `none` is nothing; `None` where nothing was said.
fn given<T>(values: Vec<OrNone<T>>) -> Option<Vec<T>> {
    let said = !values.is_empty();
    said.then(|| values.into_iter().filter_map(|OrNone(value)| value).collect())
}

/// Change a network while it runs
///
/// Endpoints stay attached; those whose default route leads through it are told of a new gateway. What
/// networks with the same raw:IF share, their station and its options, is changed for all of them.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("change").required(true).multiple(true).args([
        "gateways", "uplink", "snat_to", "filtering", "timeouts", "nat46", "prefix6",
    ])),
    after_help = "\
Examples:
  pontoon network set br0 --gateway 172.18.0.1
  pontoon network set br0 --gateway none --uplink none
  pontoon network set lan --uplink raw:eth0,address=203.0.113.6/24,gateway=203.0.113.1
  pontoon network set lan --filtering eif --timeouts linux
  pontoon network set lan --snat-to none"
)]
struct Set {
    /// Its name
    name: String,
    /// The gateway's new address, once for each family that changes, or none
    #[arg(long = "gateway", value_name = "ADDR|none")]
    gateways: Vec<String>,
    /// Where packets for elsewhere go from now on: sockets, none or raw:IF[,OPTION…]
    #[arg(long, value_name = "UPLINK")]
    uplink: Option<Uplink>,
    #[command(flatten)]
    translation: Translation,
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
                let translation = create.translation;
                note_asking(Some(&create.uplink));
                let network = daemon.create_network(&NetworkCreate {
                    name: create.name,
                    subnets: create.subnets,
                    ip_ranges: create.ip_ranges,
                    gateways: create.gateways,
                    mtu: create.mtu,
                    uplink: create.uplink,
                    snat_to: given(translation.snat_to).unwrap_or_default(),
                    filtering: translation.filtering,
                    timeouts: translation.timeouts,
                    nat46: translation.nat46,
                    prefixes6: given(translation.prefix6).unwrap_or_default(),
                    internal: create.internal,
                    no_host_port: create.no_host_port,
                    transient: false,
                })?;
                network.warnings.iter().for_each(note);
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
                let translation = set.translation;
                let change = NetworkChange {
                    gateways: set.gateways,
                    uplink: set.uplink,
                    snat_to: given(translation.snat_to),
                    filtering: translation.filtering,
                    timeouts: translation.timeouts,
                    nat46: translation.nat46,
                    prefixes6: given(translation.prefix6),
                };
                note_asking(change.uplink.as_ref());
                let network = daemon.change_network(&set.name, &change)?;
                network.warnings.iter().for_each(note);
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
