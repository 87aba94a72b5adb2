//! What a user writes to publish ports: `[IP:]HOST:CTR[/tcp|udp][,splice]`, as `docker run -p` takes it
//! but for the word behind the comma.
//!
//! Pure. A spec is one or more ports side by side; host and container ranges have equal lengths, so
//! that the n-th host port always means the n-th container port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use nat::Protocol;

/// Ports `first..=last`, none of them 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// A range of one port.
    #[must_use]
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// How many ports it has: 1 to 65,535.
    #[must_use]
    pub const fn count(self) -> usize {
        (self.last - self.first) as usize + 1
    }

    /// Where `port` stands in it, from 0; `None` outside.
    #[must_use]
    pub const fn position(self, port: u16) -> Option<usize> {
        if self.first <= port && port <= self.last {
            Some((port - self.first) as usize)
        } else {
            None
        }
    }

    /// The ports, ascending.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// One spec: which host ports lead to which container ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishSpec {
    /// The host's address to listen on; `None` is every address of both families.
    pub host_ip: Option<IpAddr>,
    /// The host's ports; `None` asks for a free one for each container port.
    pub host: Option<PortRange>,
    /// The container's ports.
    pub container: PortRange,
    /// TCP or UDP, never another.
    pub protocol: Protocol,
    /// Relay every client socket to socket, which costs least and hides its address; TCP only.
    pub splice: bool,
}

impl PublishSpec {
    /// A free host port for one port of the container, on every address: what `-P` means.
    #[must_use]
    pub const fn any_host_port(container: u16, protocol: Protocol) -> Self {
        let container = PortRange::one(container);
        Self { host_ip: None, host: None, container, protocol, splice: false }
    }

    /// Each container port with the host port asked for it.
    pub fn pairs(self) -> impl Iterator<Item = (Option<u16>, u16)> {
        let first_host = self.host.map(|range| range.first);
        self.container.ports().enumerate().map(move |(at, container)| {
            // Host and container ranges have equal lengths, so `at` never leaves the host's range.
            let host = first_host.map(|first| first + u16::try_from(at).unwrap_or(0));
            (host, container)
        })
    }
}

impl fmt::Display for PublishSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V4(addr)) => write!(f, "{addr}:")?,
            Some(IpAddr::V6(addr)) => write!(f, "[{addr}]:")?,
            None => {}
        }
        match (self.host, self.host_ip) {
            (Some(host), _) => write!(f, "{host}:")?,
            (None, Some(_)) => f.write_str(":")?,
            (None, None) => {}
        }
        write!(f, "{}/{}", self.container, self.protocol)?;
        if self.splice { f.write_str(",splice") } else { Ok(()) }
    }
}

/// Why a spec cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "publish {spec:?}: {why}; write [IP:]HOST:CTR[/tcp|udp][,splice], as in 8080:80 or \
     127.0.0.1:53:53/udp"
)]
pub struct SpecError {
    spec: String,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Why {
    #[error("{0:?} is no port (1 to 65535)")]
    Port(String),
    #[error("the range {0:?} runs backwards")]
    Backwards(String),
    #[error("{host} host ports for {container} container ports")]
    Lengths { host: usize, container: usize },
    #[error("{0:?} is no IP address")]
    Address(String),
    #[error("an IPv6 address stands in brackets")]
    Brackets,
    #[error("{0:?} is neither tcp nor udp")]
    Protocol(String),
    #[error("{0:?} is no option; the one there is, is splice")]
    Option(String),
    #[error("datagrams cannot be spliced")]
    SplicedUdp,
}

impl FromStr for PublishSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse(text).map_err(|why| SpecError { spec: text.to_owned(), why })
    }
}

fn parse(text: &str) -> Result<PublishSpec, Why> {
    let (text, splice) = match text.split_once(',') {
        None => (text, false),
        Some((text, "splice")) => (text, true),
        Some((_, other)) => return Err(Why::Option(other.to_owned())),
    };
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => return Err(Why::Protocol(other.to_owned())),
    };
    if splice && protocol == Protocol::Udp {
        return Err(Why::SplicedUdp);
    }
    let (host_ip, ports) = match ports.strip_prefix('[') {
        Some(rest) => {
            let (addr, ports) = rest.split_once("]:").ok_or(Why::Brackets)?;
            (Some(addr), ports)
        }
        None => match ports.matches(':').count() {
            0 | 1 => (None, ports),
            2 => ports.split_once(':').map_or((None, ports), |(addr, ports)| (Some(addr), ports)),
            _ => return Err(Why::Brackets),
        },
    };
    let host_ip = host_ip
        .map(|addr| addr.parse::<IpAddr>().map_err(|_| Why::Address(addr.to_owned())))
        .transpose()?;
    let (host, container) = match ports.split_once(':') {
        Some(("" | "0", container)) => (None, range(container)?),
        Some((host, container)) => (Some(range(host)?), range(container)?),
        None => (None, range(ports)?),
    };
    if let Some(host) = host
        && host.count() != container.count()
    {
        return Err(Why::Lengths { host: host.count(), container: container.count() });
    }
    Ok(PublishSpec { host_ip, host, container, protocol, splice })
}

fn range(text: &str) -> Result<PortRange, Why> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 && !text.starts_with('+') => Ok(port),
        _ => Err(Why::Port(text.to_owned())),
    };
    let Some((first, last)) = text.split_once('-') else {
        return port(text).map(PortRange::one);
    };
    let range = PortRange { first: port(first)?, last: port(last)? };
    if range.first > range.last { Err(Why::Backwards(text.to_owned())) } else { Ok(range) }
}

/// The addresses a spec without an IP, or with this one, is listened on; `port` may be 0.
///
/// Without an IP that is `0.0.0.0`, and `[::]` where the host has IPv6.
#[must_use]
pub fn listen_addresses(
    host_ip: Option<IpAddr>,
    port: u16,
    host_has_ipv6: bool,
) -> Vec<SocketAddr> {
    match host_ip {
        Some(addr) => vec![SocketAddr::new(addr, port)],
        None if host_has_ipv6 => {
            vec![
                ([0; 4], port).into(),
                SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port),
            ]
        }
        None => vec![([0; 4], port).into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> PublishSpec {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn refusal(text: &str) -> String {
        text.parse::<PublishSpec>().expect_err(text).to_string()
    }

    #[test]
    fn each_form_of_docker_is_read() {
        assert_eq!(spec("8080:80").pairs().collect::<Vec<_>>(), [(Some(8080), 80)]);
        assert_eq!(spec("80"), PublishSpec::any_host_port(80, Protocol::Tcp));
        assert_eq!(spec("0:80"), spec("80"));
        assert_eq!(spec("53:53/udp").protocol, Protocol::Udp);
        assert_eq!(spec("127.0.0.1:53:53/udp").host_ip, Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(spec("127.0.0.1::53").host, None);
        let v6 = spec("[::1]:8080:80/tcp");
        assert_eq!(
            (v6.host_ip, v6.host),
            (Some("::1".parse().unwrap()), Some(PortRange::one(8080)))
        );
        assert_eq!(spec("[fe80::1]::80").host, None);
    }

    #[test]
    fn a_tcp_port_may_be_spliced() {
        assert!(spec("8080:80,splice").splice && spec("[::1]:1-3:4-6/tcp,splice").splice);
        assert!(!spec("8080:80").splice);
        assert!(refusal("53:53/udp,splice").contains("datagrams"));
        for text in ["80,", "80,slice", "80,splice,splice", "80,splice/tcp", ",splice"] {
            assert!(refusal(text).starts_with("publish "), "{text}");
        }
    }

    #[test]
    fn ranges_pair_their_ports_in_order() {
        let pairs: Vec<_> = spec("8000-8002:80-82").pairs().collect();
        assert_eq!(pairs, [(Some(8000), 80), (Some(8001), 81), (Some(8002), 82)]);
        assert_eq!(spec("1-65535:1-65535").pairs().last(), Some((Some(65535), 65535)));
        assert_eq!(spec("80-81").pairs().collect::<Vec<_>>(), [(None, 80), (None, 81)]);
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        for text in ["8080:80", "80/udp", "1.2.3.4::80", "[::1]:1-3:4-6/udp", "9:9", "9:9,splice"] {
            assert_eq!(spec(&spec(text).to_string()), spec(text));
        }
    }

    #[test]
    fn a_refusal_names_the_spec_and_the_fault() {
        assert!(refusal("8000-8005:80-84").contains("6 host ports for 5 container ports"));
        assert!(refusal("80:0").contains("\"0\" is no port"));
        assert!(refusal("80:+9").contains("no port"));
        assert!(refusal("80:99999").contains("\"99999\" is no port"));
        assert!(refusal("9-1").contains("backwards"));
        assert!(refusal("::1:80:80").contains("brackets"));
        assert!(refusal("[::1]80").contains("brackets"));
        assert!(refusal("1.2.3:80:80").contains("no IP address"));
        assert!(refusal("80/sctp").contains("neither tcp nor udp"));
        for text in ["", ":", ":80:", "a:b", "80:", "-", "80-", "[]:1:1", "/tcp"] {
            assert!(refusal(text).starts_with("publish "), "{text}");
        }
    }

    #[test]
    fn without_an_address_both_families_listen() {
        let all = listen_addresses(None, 80, true);
        assert_eq!(all, ["0.0.0.0:80".parse().unwrap(), "[::]:80".parse().unwrap()]);
        assert_eq!(listen_addresses(None, 80, false).len(), 1);
        assert_eq!(listen_addresses(Some([127, 0, 0, 1].into()), 80, true).len(), 1);
    }
}
