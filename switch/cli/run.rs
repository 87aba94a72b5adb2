//! `pontoon run`: a command in namespaces of its own, on a network.
//!
//! The command is held before its first instruction until its interface, addresses, files and ports
//! are there, so it never sees a half-made network. If any step fails the held command ends without
//! having run, and takes all of it along.

use std::ffi::OsString;
use std::net::IpAddr;
use std::process::ExitCode;
use std::str::FromStr;

use ::daemon::api::{Endpoint, EndpointCreate, NetworkCreate, Raw, Uplink};
use ::daemon::client::{Client, ClientError};
use clap::Args;
use netns::{Held, NewUser, SpawnConfig};

use crate::attach::Address;
use crate::exec;
use crate::failure::{Failure, Outcome, note, note_asking, of_command};
use crate::files::{self, AddHost, Link, Resolver};
use crate::listening::Listening;
use crate::output::daemon;

/// Run a command in namespaces of its own, on a network
///
/// Needs no privilege. The command gets a network namespace with an interface on the network, and
/// without root a user namespace in which it is root; its files are the host's, but for
/// /etc/resolv.conf and /etc/hosts. Ends with the command's status; 125 if pontoon failed, 126 if the
/// command cannot be executed, 127 if it is not found, 128 and the number of the signal that ended it.
#[derive(Debug, Args)]
#[command(after_help = "\
SPEC is [IP:]HOST:CTR[/tcp|udp][,splice]; CTR alone takes a free host port; both may be ranges. The
server sees each client's own address; with splice it sees its own instead, which costs least.

Examples:
  pontoon run -p 8080:80 -- python3 -m http.server 80
  pontoon run --name web --network net0 --ip 172.100.0.5 -- nginx -g 'daemon off;'
  pontoon run -P -- ./server                       publish whatever it listens on
  pontoon run --link db:database -- ./app
  pontoon run --network none -- ip link
  pontoon run --uplink raw:eth0 -- curl http://example.org/     as a station of its own on eth0's segment
  pontoon run --network container:web -- curl -I localhost")]
pub(crate) struct Run {
    /// A name for the endpoint; one is made up by default
    #[arg(long)]
    name: Option<String>,
    /// A network, none (loopback only), host (no namespace), or container:NAME (another's namespace);
    /// bridge by default
    #[arg(long, visible_alias = "net", value_name = "NET")]
    network: Option<Place>,
    /// Ports to publish.
    #[arg(
        short,
        long,
        value_name = "SPEC",
        help = "Publish a port: [IP:]HOST:CTR[/tcp|udp][,splice], or CTR for a free one; ranges too"
    )]
    publish: Vec<String>,
    /// Publish each TCP port the command listens on, on a free host port
    #[arg(short = 'P', long)]
    publish_all: bool,
    #[command(flatten)]
    address: Address,
    /// A name server, instead of the network's or the host's
    #[arg(long, value_name = "ADDR")]
    dns: Vec<IpAddr>,
    /// A line for /etc/hosts; host-gateway stands for the gateway's address
    #[arg(long, value_name = "NAME:ADDR")]
    add_host: Vec<AddHost>,
    /// Another endpoint of the network, to be known by its name or an alias
    #[arg(long, value_name = "NAME[:ALIAS]")]
    link: Vec<Link>,
    /// Where packets for elsewhere go: sockets, none, raw:IF[,OPTION…] or bridge:IF, as `network create`
    /// explains; without --network, on a network made for it, which goes with its last endpoint
    #[arg(long, value_name = "UPLINK")]
    uplink: Option<Uplink>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Where a command is run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Network(String),
    None,
    Host,
    Container(String),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("container", "")) => {
                Err("container: wants a name, as in container:web".to_owned())
            }
            Some(("container", name)) => Ok(Self::Container(name.to_owned())),
            _ => Ok(match text {
                "none" => Self::None,
                "host" => Self::Host,
                "default" => Self::Network("bridge".to_owned()),
                network => Self::Network(network.to_owned()),
            }),
        }
    }
}

impl Run {
    pub(crate) fn go(self) -> Outcome {
        let place = self.network.clone();
        let outcome = match &place {
            Some(Place::Host) => self.on_host(),
            Some(Place::None) => self.alone(),
            Some(Place::Container(name)) => self.beside(name),
            Some(Place::Network(network)) => self.on_network(Some(network)),
            None => self.on_network(None),
        };
        outcome.map_err(Failure::of_run)
    }

    /// In no namespace of its own.
    fn on_host(self) -> Outcome {
        self.refuse_own_address("host", "the command uses the host's interfaces")?;
        if !self.dns.is_empty() || !self.add_host.is_empty() {
            let why =
                "--network host: the command sees the host's files; leave --dns and --add-host out";
            return Err(Failure::new(why));
        }
        if !self.publish.is_empty() || self.publish_all {
            note(
                "published ports are discarded: with --network host the command's ports are the host's",
            );
        }
        let config = SpawnConfig {
            argv: self.command,
            user: NewUser::No,
            pdeathsig: Some(nix::libc::SIGKILL),
            ..SpawnConfig::default()
        };
        let held = netns::spawn_in_new_namespaces(config).map_err(of_command)?;
        let mut running = held.release().map_err(of_command)?;
        Ok(ExitCode::from(netns::exit_code(running.wait()?)))
    }

    /// In another endpoint's namespaces.
    fn beside(self, name: &str) -> Outcome {
        let network = format!("container:{name}");
        let why = "the namespace, its address and its ports are the other endpoint's";
        self.refuse_own_address(&network, why)?;
        if !self.publish.is_empty() || self.publish_all {
            return Err(Failure::new(format!(
                "--network {network}: {why}; publish there: pontoon publish add {name} SPEC"
            )));
        }
        if self.name.is_some() || !self.dns.is_empty() || !self.add_host.is_empty() {
            return Err(Failure::new(format!(
                "--network {network}: {why}, and so are its name and files; leave --name, --dns and \
                 --add-host out"
            )));
        }
        let endpoint = daemon()?.endpoint(name)?;
        exec::in_namespace_of(&endpoint, self.command)
    }

    /// With nothing but loopback.
    fn alone(self) -> Outcome {
        self.refuse_own_address("none", "there is no interface but loopback")?;
        if !self.publish.is_empty() || self.publish_all || self.name.is_some() {
            let why = "--network none: there is no endpoint to name and no port to reach; leave --name, \
                       -p and -P out, or attach it later: pontoon attach pid:N --network NET";
            return Err(Failure::new(why));
        }
        let resolv_conf = if self.dns.is_empty() { None } else { files::File::resolv_conf()? };
        let hosts = if self.add_host.is_empty() { None } else { files::File::hosts()? };
        let mut held = Prepared::start(self.command, resolv_conf, hosts)?;
        held.write(&Resolver::of_host().text(&self.dns), &files::hosts(None, &self.add_host, &[]))?;
        let mut running = held.held.release().map_err(of_command)?;
        Ok(ExitCode::from(netns::exit_code(running.wait()?)))
    }

    /// On a network.
    fn on_network(self, network: Option<&str>) -> Outcome {
        let daemon = daemon()?;
        let network = self.choose_network(&daemon, network)?;
        let linked = self.linked(&daemon, &network)?;
        let (resolv_conf, hosts) = (files::File::resolv_conf()?, files::File::hosts()?);
        let own_mounts = resolv_conf.is_some() || hosts.is_some();
        let mut prepared = Prepared::start(self.command, resolv_conf, hosts)?;
        let pid = prepared.held.pid();
        let endpoint = daemon.attach(&EndpointCreate {
            target: format!("pid:{pid}"),
            network,
            name: self.name,
            ifname: None,
            ip: self.address.ip,
            ip6: self.address.ip6,
            mac_address: self.address.mac_address,
            veth: false,
            ports: self.publish,
            own_mounts,
        })?;
        let resolver = Resolver::of_host();
        let servers = match self.dns.is_empty() {
            true => endpoint.dns.iter().filter_map(|addr| addr.parse().ok()).collect(),
            false => self.dns,
        };
        if servers.is_empty() && resolver.is_out_of_reach() {
            note(
                "the host's name servers are on its loopback, out of the command's reach; give --dns ADDR",
            );
        }
        let hosts = files::hosts(Some(&endpoint), &self.add_host, &linked);
        prepared.write(&resolver.text(&servers), &hosts)?;
        let status = follow(&daemon, &endpoint, prepared.held, self.publish_all);
        // The daemon sees the end of the process too; this is so that the endpoint is gone when we are.
        // Another's detach, or the daemon's own end, has done it already.
        match daemon.detach(&endpoint.id) {
            Err(error) if !error.is_not_found() && !error.is_absent() => {
                note(format_args!("detach {}: {error}", endpoint.name))
            }
            _ => {}
        }
        status
    }

    /// The network to attach to: the one asked for, if it has the uplink asked for, or one made for that.
    fn choose_network(&self, daemon: &Client, network: Option<&str>) -> Result<String, Failure> {
        let name = network.unwrap_or("bridge");
        let Some(wanted) = &self.uplink else { return Ok(name.to_owned()) };
        let has = uplink_of(daemon, name)?;
        if serves(&has, wanted) {
            return Ok(name.to_owned());
        }
        let other = |name: &str, has: &str| {
            Failure::new(format!(
                "--uplink {wanted}: network {name} has the uplink {has}, and it is the network's; make \
                 another with `pontoon network create --uplink {wanted} NAME`"
            ))
        };
        let own = match (network, wanted) {
            (Some(_), _) | (None, Uplink::Sockets) => return Err(other(name, &has)),
            (None, Uplink::None) => "no-uplink".to_owned(),
            (None, Uplink::Raw(Raw { interface, .. })) => format!("raw-{}", plain(interface)),
            (None, Uplink::Bridge(interface)) => format!("bridge-{}", plain(interface)),
        };
        let request = NetworkCreate {
            name: own.clone(),
            uplink: wanted.clone(),
            transient: true,
            ..NetworkCreate::default()
        };
        note_asking(Some(wanted));
        match daemon.create_network(&request) {
            Ok(made) => made.warnings.iter().for_each(note),
            Err(error) if matches!(error, ClientError::Refused { status: 409, .. }) => {
                // Another command may have made it before; anything else in the way stands.
                let Ok(has) = uplink_of(daemon, &own) else { return Err(error.into()) };
                if !serves(&has, wanted) {
                    return Err(other(&own, &has));
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(own)
    }

    fn linked(&self, daemon: &Client, network: &str) -> Result<Vec<(Link, Endpoint)>, Failure> {
        let find = |link: &Link| {
            let endpoint = daemon.endpoint(&link.name)?;
            if endpoint.network != network {
                return Err(Failure::new(format!(
                    "--link {}: it is on network {}, and this command on {network}; run it with \
                     --network {}",
                    link.name, endpoint.network, endpoint.network
                )));
            }
            Ok((link.clone(), endpoint))
        };
        self.link.iter().map(find).collect()
    }

    /// Refuses what only an interface of one's own can have.
    fn refuse_own_address(&self, network: &str, why: &str) -> Result<(), Failure> {
        let address = &self.address;
        for (flag, given) in [
            ("--ip", address.ip.is_some()),
            ("--ip6", address.ip6.is_some()),
            ("--mac-address", address.mac_address.is_some()),
            ("--link", !self.link.is_empty()),
            ("--uplink", self.uplink.is_some()),
        ] {
            if given {
                return Err(Failure::new(format!(
                    "{flag} with --network {network}: {why}; leave it out"
                )));
            }
        }
        Ok(())
    }
}

fn uplink_of(daemon: &Client, network: &str) -> Result<String, ClientError> {
    let mut network = daemon.network(network)?;
    Ok(network.options.remove("pontoon.uplink").unwrap_or_default())
}

/// Whether a network with the uplink `has` will do: the same, or a station on the same interface of which
/// nothing more was asked.
fn serves(has: &str, wanted: &Uplink) -> bool {
    let Ok(has) = has.parse::<Uplink>() else { return false };
    let plain = wanted.raw().is_some_and(Raw::is_plain);
    has == *wanted || plain && has.raw().is_some() && has.interface() == wanted.interface()
}

/// An interface's name in what a network's name may have.
fn plain(interface: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    interface.chars().map(|c| if allowed(c) { c } else { '-' }).collect()
}

/// A held command and the files it will see.
struct Prepared {
    held: Held,
    resolv_conf: Option<std::fs::File>,
    hosts: Option<std::fs::File>,
}

impl Prepared {
    fn start(
        argv: Vec<OsString>,
        resolv_conf: Option<files::File>,
        hosts: Option<files::File>,
    ) -> Result<Self, Failure> {
        let bind_mounts: Vec<_> =
            resolv_conf.iter().chain(&hosts).map(files::File::bind_mount).collect();
        let config = SpawnConfig {
            argv,
            new_net: true,
            new_mount: !bind_mounts.is_empty(),
            bind_mounts,
            // Whoever kills us means the command, and nothing must be left of it.
            pdeathsig: Some(nix::libc::SIGKILL),
            ..SpawnConfig::default()
        };
        let held = netns::spawn_in_new_namespaces(config).map_err(of_command)?;
        Ok(Self {
            held,
            resolv_conf: resolv_conf.map(files::File::mounted).transpose()?,
            hosts: hosts.map(files::File::mounted).transpose()?,
        })
    }

    fn write(&mut self, resolv_conf: &str, hosts: &str) -> Result<(), Failure> {
        if let Some(file) = &mut self.resolv_conf {
            files::write(file, resolv_conf)?;
        }
        if let Some(file) = &mut self.hosts {
            files::write(file, hosts)?;
        }
        Ok(())
    }
}

/// Lets the command go, and ends with it.
fn follow(daemon: &Client, endpoint: &Endpoint, held: Held, publish_all: bool) -> Outcome {
    let mut running = held.release().map_err(of_command)?;
    let listening = publish_all
        .then(|| Listening::publish(daemon.socket(), &endpoint.id, running.pid()))
        .transpose()?;
    let status = running.wait()?;
    drop(listening);
    Ok(ExitCode::from(netns::exit_code(status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_dockers() {
        assert_eq!("none".parse(), Ok(Place::None));
        assert_eq!("host".parse(), Ok(Place::Host));
        assert_eq!("container:c1".parse(), Ok(Place::Container("c1".into())));
        assert_eq!("net0".parse(), Ok(Place::Network("net0".into())));
        assert!("container:".parse::<Place>().is_err());
    }

    #[test]
    fn a_network_serves_whoever_asks_for_no_more_than_it_has() {
        let serves = |has: &str, wanted: &str| serves(has, &wanted.parse().unwrap());
        let given = "raw:eth0,address=203.0.113.5/24";
        assert!(serves("none", "none") && serves(given, given) && serves(given, "raw:eth0"));
        for (has, wanted) in [
            ("raw:eth0", given),
            ("raw:eth1", "raw:eth0"),
            ("bridge:eth0", "raw:eth0"),
            ("", "none"),
        ] {
            assert!(!serves(has, wanted), "{has} {wanted}");
        }
        assert_eq!(plain("eth0.7@x"), "eth0.7-x");
    }
}
