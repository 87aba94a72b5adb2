//! The `/etc/resolv.conf` and `/etc/hosts` a command of `pontoon run` sees.
//!
//! Written beside the host's and mounted over them in the command's own mount namespace. Once
//! mounted they have no name any more, so nothing is left behind however the command ends; what
//! stands in them is written when the endpoint's address is known.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ::daemon::api::Endpoint;
use ::daemon::names::short_id;
use tempfile::NamedTempFile;

/// Where the resolver looks.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where names are looked up first.
const HOSTS: &str = "/etc/hosts";

/// Where systemd-resolved keeps the name servers it asks itself, when `/etc/resolv.conf` names only
/// its own stub on 127.0.0.53 (`systemd-resolved.service(8)`).
const BEHIND_THE_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// What a host without names of its own has, as docker writes it.
const HOSTS_HEAD: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// A file that stands over another in the command's mounts.
#[derive(Debug)]
pub(crate) struct File {
    over: &'static str,
    file: NamedTempFile,
}

impl File {
    /// An empty file to stand over `/etc/resolv.conf`; `None` where the host has none to stand over.
    pub(crate) fn resolv_conf() -> io::Result<Option<Self>> {
        Self::over(RESOLV_CONF)
    }

    /// An empty file to stand over `/etc/hosts`; `None` where the host has none to stand over.
    pub(crate) fn hosts() -> io::Result<Option<Self>> {
        Self::over(HOSTS)
    }

    fn over(over: &'static str) -> io::Result<Option<Self>> {
        if !Path::new(over).exists() {
            return Ok(None);
        }
        let file = NamedTempFile::with_prefix("pontoon-")?;
        // The command may become another user; the host's file is everybody's to read, too.
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        Ok(Some(Self { over, file }))
    }

    /// What is mounted over what.
    pub(crate) fn bind_mount(&self) -> (PathBuf, PathBuf) {
        (self.file.path().to_owned(), self.over.into())
    }

    /// The file without its name; only once it is mounted.
    pub(crate) fn mounted(self) -> io::Result<fs::File> {
        let (file, path) = self.file.into_parts();
        path.close()?;
        Ok(file)
    }
}

/// Writes a file that is mounted.
pub(crate) fn write(file: &mut fs::File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())
}

/// A host's resolver configuration, without what no container can use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// Name servers that are neither loopback nor on one link only.
    servers: Vec<IpAddr>,
    /// Whether there were others.
    left_out: bool,
    /// The lines `search`, `domain` and `options`.
    others: Vec<String>,
}

impl Resolver {
    /// The host's.
    pub(crate) fn of_host() -> Self {
        let read = |path: &str| Self::parse(&fs::read_to_string(path).unwrap_or_default());
        let host = read(RESOLV_CONF);
        if !host.servers.is_empty() || !host.left_out {
            return host;
        }
        let behind = read(BEHIND_THE_STUB);
        if behind.servers.is_empty() { host } else { behind }
    }

    /// Reads `resolv.conf(5)`.
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("nameserver"), Some(server)) => {
                    // An address with a zone (fe80::1%eth0) does not parse, and means nothing inside.
                    match server.parse::<IpAddr>().ok().filter(|addr| !is_local(*addr)) {
                        Some(addr) => resolver.servers.push(addr),
                        None => resolver.left_out = true,
                    }
                }
                (Some("search" | "domain" | "options"), Some(_)) => {
                    resolver.others.push(line.trim().to_owned());
                }
                _ => {}
            }
        }
        resolver
    }

    /// Whether nothing is left to ask, though the host has name servers.
    pub(crate) const fn is_out_of_reach(&self) -> bool {
        self.servers.is_empty() && self.left_out
    }

    /// The file's text, with `servers` for the host's where there are any.
    pub(crate) fn text(&self, servers: &[IpAddr]) -> String {
        let servers = if servers.is_empty() { &self.servers } else { servers };
        let servers = servers.iter().map(|addr| format!("nameserver {addr}"));
        servers.chain(self.others.iter().cloned()).map(|line| line + "\n").collect()
    }
}

fn is_local(addr: IpAddr) -> bool {
    let link_local = matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
    addr.is_loopback() || addr.is_unspecified() || link_local
}

/// A line of `/etc/hosts` that a user asked for: `NAME:ADDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddHost {
    name: String,
    /// `None` is `host-gateway`: the network's gateway.
    addr: Option<IpAddr>,
}

impl std::str::FromStr for AddHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not NAME:ADDR, as in db:172.17.0.2 or db:host-gateway");
        let (name, addr) = text.split_once([':', '=']).ok_or_else(wrong)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || !name.chars().all(plain) {
            return Err(wrong());
        }
        let bare = addr.strip_prefix('[').and_then(|addr| addr.strip_suffix(']')).unwrap_or(addr);
        let addr = match bare {
            "host-gateway" => None,
            bare => Some(bare.parse().map_err(|_| wrong())?),
        };
        Ok(Self { name: name.to_owned(), addr })
    }
}

/// Another endpoint to be known by name: `N[:ALIAS]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its name or id.
    pub(crate) name: String,
    alias: Option<String>,
}

impl std::str::FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, alias) = match text.split_once(':') {
            Some((name, alias)) => (name, Some(alias)),
            None => (text, None),
        };
        ::daemon::names::check(name).map_err(|error| error.to_string())?;
        if let Some(alias) = alias {
            ::daemon::names::check(alias).map_err(|error| error.to_string())?;
        }
        Ok(Self { name: name.to_owned(), alias: alias.map(str::to_owned) })
    }
}

/// The text of `/etc/hosts`: the usual head, what was asked for, the linked endpoints, ourselves.
pub(crate) fn hosts(
    ours: Option<&Endpoint>,
    added: &[AddHost],
    linked: &[(Link, Endpoint)],
) -> String {
    let mut text = HOSTS_HEAD.to_owned();
    let gateway = || ours.and_then(|endpoint| endpoint.gateways.first()?.parse().ok());
    for AddHost { name, addr } in added {
        if let Some(addr) = addr.or_else(gateway) {
            text += &format!("{addr}\t{name}\n");
        }
    }
    for (link, endpoint) in linked {
        let id = short_id(&endpoint.id);
        let names = match &link.alias {
            Some(alias) if *alias != endpoint.name => format!("{alias} {id} {}", endpoint.name),
            _ => format!("{} {id}", endpoint.name),
        };
        text += &lines(endpoint, &names);
    }
    text + &ours
        .map(|ours| lines(ours, &format!("{} {}", ours.name, short_id(&ours.id))))
        .unwrap_or_default()
}

fn lines(endpoint: &Endpoint, names: &str) -> String {
    let both = [&endpoint.ip_address, &endpoint.ipv6_address];
    let both = both.into_iter().filter(|addr| !addr.is_empty());
    both.map(|addr| format!("{addr}\t{names}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str, ip: &str) -> Endpoint {
        Endpoint {
            name: name.to_owned(),
            id: "18722c02cb87".repeat(6),
            ip_address: ip.to_owned(),
            gateways: vec!["172.17.0.1".to_owned()],
            ..Endpoint::default()
        }
    }

    #[test]
    fn loopback_and_scoped_servers_are_left_out() {
        let host = Resolver::parse(
            "# a comment\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n\
             nameserver 2001:db8::53\nsearch example.org\noptions edns0 ndots:2\n",
        );
        assert_eq!(
            host.text(&[]),
            "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org\noptions edns0 ndots:2\n"
        );
        assert!(!host.is_out_of_reach());
        assert!(
            host.text(&["192.0.2.1".parse().unwrap()]).starts_with("nameserver 192.0.2.1\nsearch")
        );
        assert!(Resolver::parse("nameserver ::1\n").is_out_of_reach());
        assert!(!Resolver::parse("").is_out_of_reach());
    }

    #[test]
    fn a_link_is_a_line_as_docker_writes_it() {
        let link: Link = "db_wordpress".parse().unwrap();
        let text = hosts(None, &[], &[(link, endpoint("db_wordpress", "172.17.0.2"))]);
        assert!(text.contains("\n172.17.0.2\tdb_wordpress 18722c02cb87\n"), "{text}");
        let link: Link = "c1:db".parse().unwrap();
        let text = hosts(None, &[], &[(link, endpoint("c1", "172.17.0.2"))]);
        assert!(text.contains("\n172.17.0.2\tdb 18722c02cb87 c1\n"), "{text}");
        assert!("c1:".parse::<Link>().is_err() && "a b".parse::<Link>().is_err());
    }

    #[test]
    fn hosts_begin_with_localhost_and_end_with_ourselves() {
        let added = ["a:192.0.2.1", "b:[2001:db8::1]", "c:2001:db8::2", "gw:host-gateway"];
        let added: Vec<AddHost> = added.iter().map(|text| text.parse().unwrap()).collect();
        let text = hosts(Some(&endpoint("web", "172.17.0.3")), &added, &[]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("172.17.0.3\tweb 18722c02cb87\n"));
        for line in ["192.0.2.1\ta\n", "2001:db8::1\tb\n", "2001:db8::2\tc\n", "172.17.0.1\tgw\n"] {
            assert!(text.contains(line), "{line}");
        }
        for wrong in ["a", ":192.0.2.1", "a:b", "a b:192.0.2.1", "a\n:192.0.2.1"] {
            assert!(wrong.parse::<AddHost>().is_err(), "{wrong:?}");
        }
    }
}
