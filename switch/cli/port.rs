//! `pontoon port`, and how published ports are written.

use ::daemon::api::PublishedPort;
use clap::Args;

use crate::failure::Outcome;
use crate::output::{Listing, daemon};

/// List the published ports of an endpoint
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon port web            80/tcp -> 0.0.0.0:8080 (80/tcp,splice where that was asked for)
  pontoon port web 80/tcp     0.0.0.0:8080")]
pub(crate) struct Port {
    /// Name or id of the endpoint
    #[arg(value_name = "ENDPOINT")]
    name: String,
    /// Of this port only: PORT[/tcp|udp]
    #[arg(value_name = "PORT")]
    only: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

impl Port {
    pub(crate) fn go(self) -> Outcome {
        let mut ports = daemon()?.endpoint(&self.name)?.ports;
        ports.sort();
        let Some(only) = &self.only else {
            return self.listing.print(&ports, lines);
        };
        let (number, protocol) = only.split_once('/').unwrap_or((only, "tcp"));
        ports.retain(|port| port.container_port.to_string() == number && port.protocol == protocol);
        if ports.is_empty() {
            let why = format!("endpoint {} does not publish port {number}/{protocol}", self.name);
            return Err(crate::failure::Failure::new(why));
        }
        self.listing.print(&ports, |ports| ports.iter().map(host).collect::<Vec<_>>().join("\n"))
    }
}

/// `80/tcp -> 0.0.0.0:8080`, a line for each listener.
pub(crate) fn lines(ports: &[PublishedPort]) -> String {
    let line = |port: &PublishedPort| format!("{} -> {}", inside(port), host(port));
    ports.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `80/tcp`, `80/tcp,splice`.
pub(crate) fn inside(port: &PublishedPort) -> String {
    format!("{}/{}", port.container_port, how(port))
}

fn how(port: &PublishedPort) -> String {
    format!("{}{}", port.protocol, if port.splice { ",splice" } else { "" })
}

/// `0.0.0.0:8080`, `[::]:8080`.
pub(crate) fn host(port: &PublishedPort) -> String {
    format!("{}:{}", bracketed(&port.host_ip), port.host_port)
}

fn bracketed(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

/// As `docker ps` writes them: `0.0.0.0:8080->80/tcp`, neighbours as one range.
pub(crate) fn summary(ports: &[PublishedPort]) -> String {
    let mut sorted: Vec<_> = ports.iter().collect();
    sorted.sort_by_key(|p| (&p.host_ip, &p.protocol, p.splice, p.host_port));
    let mut runs: Vec<(&PublishedPort, u16)> = Vec::new();
    for port in sorted {
        match runs.last_mut() {
            Some((first, more)) if follows(first, *more, port) => *more += 1,
            _ => runs.push((port, 0)),
        }
    }
    let span = |first: u16, more: u16| match more {
        0 => first.to_string(),
        more => format!("{first}-{}", first + more),
    };
    let text = |(first, more): &(&PublishedPort, u16)| {
        let (host, container) = (span(first.host_port, *more), span(first.container_port, *more));
        format!("{}:{host}->{container}/{}", bracketed(&first.host_ip), how(first))
    };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// Whether `port` comes right after a run of 1 + `more` ports that begins with `first`.
fn follows(first: &PublishedPort, more: u16, port: &PublishedPort) -> bool {
    let next = u32::from(more) + 1;
    first.host_ip == port.host_ip
        && first.protocol == port.protocol
        && first.splice == port.splice
        && u32::from(first.host_port) + next == u32::from(port.host_port)
        && u32::from(first.container_port) + next == u32::from(port.container_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, host: u16, container: u16) -> PublishedPort {
        PublishedPort {
            protocol: "tcp".to_owned(),
            container_port: container,
            host_ip: ip.to_owned(),
            host_port: host,
            splice: false,
        }
    }

    #[test]
    fn a_spliced_port_says_so() {
        let spliced = PublishedPort { splice: true, ..port("0.0.0.0", 8001, 81) };
        assert_eq!(lines(std::slice::from_ref(&spliced)), "81/tcp,splice -> 0.0.0.0:8001");
        let said = summary(&[spliced, port("0.0.0.0", 8000, 80)]);
        assert_eq!(said, "0.0.0.0:8000->80/tcp, 0.0.0.0:8001->81/tcp,splice");
    }

    #[test]
    fn neighbours_are_one_range() {
        let mut ports: Vec<_> = (0..6).map(|n| port("0.0.0.0", 8000 + n, 80 + n)).collect();
        ports.extend((0..6).map(|n| port("::", 8000 + n, 80 + n)));
        ports.push(port("0.0.0.0", 9000, 86));
        let said = summary(&ports);
        assert_eq!(
            said,
            "0.0.0.0:8000-8005->80-85/tcp, 0.0.0.0:9000->86/tcp, [::]:8000-8005->80-85/tcp"
        );
        assert_eq!(summary(&[]), "");
        assert_eq!(lines(&ports[..1]), "80/tcp -> 0.0.0.0:8000");
    }

    #[test]
    fn the_last_port_ends_a_range() {
        let ports = [port("0.0.0.0", 65534, 65534), port("0.0.0.0", 65535, 65535)];
        assert_eq!(summary(&ports), "0.0.0.0:65534-65535->65534-65535/tcp");
    }
}
