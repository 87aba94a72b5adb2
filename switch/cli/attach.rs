//! `pontoon attach` and `pontoon detach`.

use std::path::Path;

use ::daemon::api::EndpointCreate;
use clap::Args;

use crate::failure::{Failure, Outcome};
use crate::output::{Listing, daemon, print};

/// Attach a running process or a named namespace to a network
///
/// The interface is made inside the namespace, with an address, a default route by the network's
/// gateway, and no change to anything outside. It goes when the process or the name does.
#[derive(Debug, Args)]
#[command(after_help = "\
TARGET is pid:42 (a process), a path (/proc/42/ns/net, /run/netns/blue), or a name below
/run/netns, as `pontoon ns add` and `ip netns add` make them.

Examples:
  pontoon attach pid:4242 --network bridge --name web -p 8080:80
  pontoon attach blue --network net0 --ip 172.100.0.2
  pontoon attach /proc/4242/ns/net --network net1 --ifname eth1 --veth")]
pub(crate) struct Attach {
    /// The namespace
    target: String,
    /// The network
    #[arg(long, default_value = "bridge", value_name = "NET")]
    network: String,
    /// A name for the endpoint; one is made up by default
    #[arg(long)]
    name: Option<String>,
    /// The interface's name inside; eth0, or the next free number, by default
    #[arg(long)]
    ifname: Option<String>,
    #[command(flatten)]
    address: Address,
    /// Make a veth pair instead of a TAP
    #[arg(long)]
    veth: bool,
    /// Ports to publish.
    #[arg(
        short,
        long,
        value_name = "SPEC",
        help = "Publish a port: [IP:]HOST:CTR[/tcp|udp][,splice], or CTR for a free one; ranges too"
    )]
    publish: Vec<String>,
    #[command(flatten)]
    listing: Listing,
}

/// What address an endpoint is to have.
#[derive(Clone, Debug, Args)]
pub(crate) struct Address {
    /// Its IPv4 address; the lowest free one by default
    #[arg(long, value_name = "ADDR")]
    pub(crate) ip: Option<String>,
    /// Its IPv6 address; the lowest free one by default
    #[arg(long, value_name = "ADDR")]
    pub(crate) ip6: Option<String>,
    /// Its MAC address; made from its IPv4 address by default
    #[arg(long, value_name = "MAC")]
    pub(crate) mac_address: Option<String>,
}

impl Attach {
    pub(crate) fn go(self) -> Outcome {
        let request = EndpointCreate {
            target: absolute(&self.target)?,
            network: self.network,
            name: self.name,
            ifname: self.ifname,
            ip: self.address.ip,
            ip6: self.address.ip6,
            mac_address: self.address.mac_address,
            veth: self.veth,
            ports: self.publish,
            own_mounts: false,
        };
        let endpoint = daemon()?.attach(&request)?;
        self.listing.print_one(&endpoint, |endpoint| endpoint.name.clone())
    }
}

/// The target as the daemon understands it, whose directory is another.
fn absolute(target: &str) -> Result<String, Failure> {
    if target.contains('/') {
        let path = std::path::absolute(target)?;
        let path = path.into_os_string().into_string();
        return path.map_err(|path| Failure::new(format!("path {path:?} is not UTF-8")));
    }
    // A bare number is a process, unless a namespace has that name (`ln -s` to /run/netns/PID).
    let is_number = !target.is_empty() && target.bytes().all(|c| c.is_ascii_digit());
    if is_number && !Path::new(netns::named::DIRECTORY).join(target).exists() {
        return Ok(format!("pid:{target}"));
    }
    Ok(target.to_owned())
}

/// Take endpoints off their networks
///
/// Interfaces, published ports and flows go; the processes stay.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon detach web
  pontoon detach c1 c2 18722c02cb87")]
pub(crate) struct Detach {
    /// Names or ids of endpoints
    #[arg(required = true, value_name = "ENDPOINT")]
    names: Vec<String>,
}

impl Detach {
    pub(crate) fn go(self) -> Outcome {
        let daemon = daemon()?;
        each(&self.names, |name| daemon.detach(name))
    }
}

/// Does something for each name, past failures, and prints the names it was done for.
pub(crate) fn each<E: std::error::Error>(
    names: &[String],
    mut work: impl FnMut(&str) -> Result<(), E>,
) -> Outcome {
    let mut outcome = Ok(std::process::ExitCode::SUCCESS);
    for name in names {
        match work(name) {
            Ok(()) => {
                print(name)?;
            }
            Err(error) => {
                if let Err(earlier) = std::mem::replace(&mut outcome, Err(Failure::from(error))) {
                    earlier.report();
                }
            }
        }
    }
    outcome
}
