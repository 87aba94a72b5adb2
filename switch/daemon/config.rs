//! The configuration file: docker's five keys for the default network.
//!
//! `bip`, `fixed-cidr`, `mtu`, `default-gateway` and `dns`, as daemon.json has them, or the same in
//! TOML. Other keys of a daemon.json are docker's business and passed over.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

use crate::subnet;

/// What the default network shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The gateway's address with the network's prefix length.
    pub bip: Option<IpNet>,
    /// The part of the subnet that is handed out.
    pub fixed_cidr: Option<IpNet>,
    /// Largest IP packet, in octets.
    pub mtu: Option<u16>,
    /// Next hop of the containers' default route, where that is not the gateway.
    pub default_gateway: Option<IpAddr>,
    /// Name servers for containers.
    pub dns: Vec<IpAddr>,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read.
    #[error("read configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is neither JSON nor TOML of the right shape.
    #[error("configuration {path}: {why}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        why: String,
    },
    /// A value that cannot be used.
    #[error("configuration {path}: {key} = {value:?}: {why}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        why: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    bip: Option<String>,
    fixed_cidr: Option<String>,
    mtu: Option<i64>,
    default_gateway: Option<String>,
    dns: Vec<String>,
}

impl Config {
    /// Reads a file: JSON where it begins with a brace, else TOML.
    ///
    /// # Errors
    ///
    /// It cannot be read or has a value that cannot be used; key and value are named.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let syntax = |why: String| ConfigError::Syntax { path: path.to_owned(), why };
        let file: File = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| syntax(error.to_string()))?
        } else {
            toml::from_str(text).map_err(|error| syntax(error.to_string().trim_end().to_owned()))?
        };
        file.check().map_err(|(key, value, why)| ConfigError::Value {
            path: path.to_owned(),
            key,
            value,
            why,
        })
    }
}

type Wrong = (&'static str, String, String);

impl File {
    fn check(self) -> Result<Config, Wrong> {
        let bip = self.bip.map(|text| gateway_address("bip", text)).transpose()?;
        let subnet = bip.map(|bip| bip.trunc());
        let fixed_cidr = self.fixed_cidr.map(|text| range(text, subnet)).transpose()?;
        let mtu = self.mtu.map(mtu).transpose()?;
        let default_gateway = match self.default_gateway {
            None => None,
            Some(text) => {
                let addr = address("default-gateway", text.clone())?;
                if subnet
                    .or_else(|| fixed_cidr.map(|range| range.trunc()))
                    .is_some_and(|subnet| !subnet.contains(&addr))
                {
                    let why = "it lies outside bip's subnet, where no container could reach it"
                        .to_owned();
                    return Err(("default-gateway", text, why));
                }
                Some(addr)
            }
        };
        let dns =
            self.dns.into_iter().map(|text| address("dns", text)).collect::<Result<_, _>>()?;
        Ok(Config { bip, fixed_cidr, mtu, default_gateway, dns })
    }
}

fn gateway_address(key: &'static str, text: String) -> Result<IpNet, Wrong> {
    let wrong = |text: String, why: &str| (key, text, why.to_owned());
    let Ok(bip @ IpNet::V4(_)) = text.parse::<IpNet>() else {
        return Err(wrong(
            text,
            "write the gateway's IPv4 address and a prefix length, as in 192.168.1.1/24",
        ));
    };
    if let Err(error) = subnet::parse(&text) {
        return Err((key, text, error.to_string()));
    }
    if bip.addr() == bip.network() || bip.addr() == bip.broadcast() {
        return Err(wrong(
            text,
            "that is the first or last address of its subnet, which no station may have",
        ));
    }
    Ok(bip)
}

fn range(text: String, bip: Option<IpNet>) -> Result<IpNet, Wrong> {
    let wrong = |text: String, why: String| ("fixed-cidr", text, why);
    let Ok(range) = text.parse::<IpNet>() else {
        return Err(wrong(
            text,
            "write an address and a prefix length, as in 192.168.1.0/25".into(),
        ));
    };
    let range = range.trunc();
    match bip {
        Some(bip) if !bip.contains(&range) => {
            Err(wrong(text, format!("it must lie within {bip}, the subnet of bip")))
        }
        None => Err(wrong(
            text,
            "it needs bip beside it, the gateway's address and prefix length".into(),
        )),
        Some(_) => Ok(range),
    }
}

fn mtu(mtu: i64) -> Result<u16, Wrong> {
    match u16::try_from(mtu) {
        Ok(0) => Ok(1500), // docker's word for "the default"
        Ok(fits) if (68..=65_521).contains(&fits) => Ok(fits),
        _ => Err(("mtu", mtu.to_string(), "it must be from 68 (RFC 791) to 65521".to_owned())),
    }
}

fn address(key: &'static str, text: String) -> Result<IpAddr, Wrong> {
    text.parse().map_err(|_| (key, text, "write one IP address, as in 192.168.1.254".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("daemon.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn dockers_five_keys_are_read_from_json_and_toml() {
        let json = r#"{ "bip": "192.168.1.1/24", "fixed-cidr": "192.168.1.0/25", "mtu": 1500,
            "default-gateway": "192.168.1.254", "dns": ["10.20.1.2", "10.20.1.3"], "log-level": "info" }"#;
        let toml = "bip = '192.168.1.1/24'\nfixed-cidr = '192.168.1.0/25'\nmtu = 1500\n\
            default-gateway = '192.168.1.254'\ndns = ['10.20.1.2', '10.20.1.3']\n";
        let read = parse(json).unwrap();
        assert_eq!(read, parse(toml).unwrap());
        assert_eq!(read.bip, "192.168.1.1/24".parse().ok());
        assert_eq!(read.fixed_cidr, "192.168.1.0/25".parse().ok());
        assert_eq!(read.default_gateway, "192.168.1.254".parse().ok());
        assert_eq!((read.mtu, read.dns.len()), (Some(1500), 2));
        assert_eq!(parse("{}"), Ok(Config::default()));
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn a_refusal_names_key_and_value() {
        for (text, key, value) in [
            (r#"{"bip": "192.168.1.1"}"#, "bip", "192.168.1.1"),
            (r#"{"bip": "192.168.1.0/24"}"#, "bip", "first or last"),
            (r#"{"bip": "fd00::1/64"}"#, "bip", "IPv4"),
            (r#"{"fixed-cidr": "192.168.1.0/25"}"#, "fixed-cidr", "needs bip"),
            (
                r#"{"bip": "192.168.1.1/24", "fixed-cidr": "192.168.2.0/25"}"#,
                "fixed-cidr",
                "within 192.168.1.0/24",
            ),
            (
                r#"{"bip": "192.168.1.1/24", "default-gateway": "192.168.2.1"}"#,
                "default-gateway",
                "192.168.2.1",
            ),
            (r#"{"mtu": 70000}"#, "mtu", "70000"),
            (r#"{"mtu": -1}"#, "mtu", "-1"),
            (r#"{"dns": ["one.one"]}"#, "dns", "one.one"),
        ] {
            let said = parse(text).expect_err(text);
            assert!(said.contains(&format!("{key} = ")) && said.contains(value), "{said}");
        }
        assert!(parse("{").unwrap_err().starts_with("configuration daemon.json: "));
        assert!(parse("mtu = 'x'").unwrap_err().contains("mtu"));
    }
}
