//! Where packets for elsewhere go, as it is written: `sockets`, `none`, `raw:IF[,KEY=VALUE…]`, `bridge:IF`.
//!
//! Pure. The same words are an option of the command line, a field of the API and what `network inspect`
//! prints, so each can be pasted where another is wanted. Printed, defaults are left out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use datapath::MacAddr;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::mac::{self, MacError};
use crate::names::{self, NameError};

/// Where packets for addresses beyond a network go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Uplink {
    /// Through the host's own sockets.
    #[default]
    Sockets,
    /// Nowhere.
    None,
    /// Through a station of our own on a segment of the host's, by packet NAT or routed.
    Raw(Raw),
    /// Nowhere by us: the host's interface is one more port, and containers are stations of its segment.
    Bridge(String),
}

/// Our station on a segment, and what it does for the networks behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The host's interface.
    pub interface: String,
    /// How it comes by IPv4 addresses.
    pub v4: Addressing<Ipv4Net>,
    /// How it comes by IPv6 addresses.
    pub v6: Addressing<Ipv6Net>,
    /// Its station; one made up and kept is used where there is none.
    pub mac: Option<MacAddr>,
    /// Whether containers are shown with its address. Else they are routed both ways, and the
    /// segment's routers must know the way back.
    pub nat: bool,
}

/// How a station comes by its addresses of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Addressing<A> {
    /// From the segment: by DHCP (RFC 2131), or router advertisements (RFC 4862).
    #[default]
    Auto,
    /// It has none.
    None,
    /// These.
    Static {
        /// With their subnets' prefix lengths; the first is the one masquerade shows.
        addresses: Vec<A>,
        /// The next hop for everything beyond those subnets.
        gateway: Option<IpAddr>,
    },
}

/// Words that name no uplink.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("uplink {text:?}: {why}")]
pub struct UplinkError {
    text: String,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Why {
    #[error(
        "it is sockets, none, raw:IF or bridge:IF, where IF is an interface as `ip link` lists them"
    )]
    Kind,
    #[error("{0} wants an interface behind it, as in {0}eth0; `ip link` lists them")]
    NoInterface(&'static str),
    #[error(transparent)]
    Interface(NameError),
    #[error("bridge:IF takes no options; containers there have addresses of their own")]
    BridgeOption,
    #[error(
        "{0:?} is no option of raw:IF; it has address=ADDR/LEN, gateway=ADDR, address6=ADDR/LEN, gateway6=ADDR, mac=MAC and nat=on|off"
    )]
    Key(String),
    #[error("{0} is given twice; leave one out")]
    Twice(&'static str),
    #[error(
        "{key}={value}: write an {family} address with its prefix length, as in {example}; or {auto}, or none"
    )]
    Address {
        key: &'static str,
        value: String,
        family: &'static str,
        example: &'static str,
        auto: &'static str,
    },
    #[error(
        "{key}={value}: no station can have this address ({what}); choose one of the segment's"
    )]
    NotAStation { key: &'static str, value: String, what: &'static str },
    #[error("{key}={value}: write an {family} address, as in {example}")]
    Gateway { key: &'static str, value: String, family: &'static str, example: &'static str },
    #[error(
        "{key}={gateway} needs {address}=ADDR/LEN beside it; without, the segment says who routes"
    )]
    GatewayAlone { key: &'static str, address: &'static str, gateway: IpAddr },
    #[error("{key}={gateway} is in no subnet of {address}; a next hop is on the segment itself")]
    GatewayOutside { key: &'static str, address: &'static str, gateway: IpAddr },
    #[error(
        "{key}={gateway} is the station's own address; name the segment's router, or leave it out"
    )]
    GatewayOwn { key: &'static str, gateway: IpAddr },
    #[error(transparent)]
    Mac(MacError),
    #[error("nat={0}: it is on or off")]
    Nat(String),
    #[error(
        "without an address of either family it reaches nobody; leave one of address=none and address6=none out"
    )]
    NoFamily,
}

impl Uplink {
    /// The host's interface it is about, if any.
    #[must_use]
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::Sockets | Self::None => None,
            Self::Raw(Raw { interface, .. }) | Self::Bridge(interface) => Some(interface),
        }
    }

    /// Our station there, if it is that kind of uplink.
    #[must_use]
    pub const fn raw(&self) -> Option<&Raw> {
        match self {
            Self::Raw(raw) => Some(raw),
            _ => None,
        }
    }
}

impl Raw {
    /// A station that asks the segment for its addresses.
    #[must_use]
    pub fn on(interface: &str) -> Self {
        Self {
            interface: interface.to_owned(),
            v4: Addressing::Auto,
            v6: Addressing::Auto,
            mac: None,
            nat: true,
        }
    }

    /// Whether nothing was said of it but its interface: it takes the segment as others have it.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::on(&self.interface)
    }

    /// The addresses it was given; those it learns are not among them.
    pub fn addresses(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.addresses().iter().copied().map(IpNet::V4);
        v4.chain(self.v6.addresses().iter().copied().map(IpNet::V6))
    }

    fn parse(text: &str) -> Result<Self, Why> {
        let mut parts = text.split(',');
        let interface = interface("raw:", parts.next().unwrap_or_default())?;
        let mut raw = Self::on(&interface);
        let (mut v4, mut v6) = (Words::default(), Words::default());
        let (mut mac, mut nat) = (None, None);
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(|| Why::Key(part.to_owned()))?;
            match key {
                "address" => v4.addresses.push(value),
                "address6" => v6.addresses.push(value),
                "gateway" => once("gateway", &mut v4.gateway, value)?,
                "gateway6" => once("gateway6", &mut v6.gateway, value)?,
                "mac" => once("mac", &mut mac, value)?,
                "nat" => once("nat", &mut nat, value)?,
                _ => return Err(Why::Key(key.to_owned())),
            }
        }
        raw.v4 = v4.addressing::<Ipv4Net>()?;
        raw.v6 = v6.addressing::<Ipv6Net>()?;
        raw.mac = mac.map(mac::parse).transpose().map_err(Why::Mac)?;
        raw.nat = match nat {
            None | Some("on") => true,
            Some("off") => false,
            Some(other) => return Err(Why::Nat(other.to_owned())),
        };
        if (&raw.v4, &raw.v6) == (&Addressing::None, &Addressing::None) {
            return Err(Why::NoFamily);
        }
        Ok(raw)
    }
}

impl<A> Addressing<A> {
    /// The addresses given; none where the segment gives them.
    #[must_use]
    pub fn addresses(&self) -> &[A] {
        match self {
            Self::Static { addresses, .. } => addresses,
            Self::Auto | Self::None => &[],
        }
    }
}

/// What was written about one family.
#[derive(Default)]
struct Words<'a> {
    addresses: Vec<&'a str>,
    gateway: Option<&'a str>,
}

/// What the two families call things, and what they forbid.
trait Family: Copy + FromStr {
    const NAME: &'static str;
    const ADDRESS: &'static str;
    const GATEWAY: &'static str;
    const AUTO: &'static str;
    const EXAMPLE: &'static str;
    const ROUTER: &'static str;
    fn net(self) -> IpNet;
    fn router(text: &str) -> Option<IpAddr>;
}

impl Family for Ipv4Net {
    const NAME: &'static str = "IPv4";
    const ADDRESS: &'static str = "address";
    const GATEWAY: &'static str = "gateway";
    const AUTO: &'static str = "dhcp";
    const EXAMPLE: &'static str = "203.0.113.5/24";
    const ROUTER: &'static str = "203.0.113.1";
    fn net(self) -> IpNet {
        self.into()
    }
    fn router(text: &str) -> Option<IpAddr> {
        text.parse::<Ipv4Addr>().ok().map(IpAddr::from)
    }
}

impl Family for Ipv6Net {
    const NAME: &'static str = "IPv6";
    const ADDRESS: &'static str = "address6";
    const GATEWAY: &'static str = "gateway6";
    const AUTO: &'static str = "auto";
    const EXAMPLE: &'static str = "2001:db8::5/64";
    const ROUTER: &'static str = "fe80::1";
    fn net(self) -> IpNet {
        self.into()
    }
    fn router(text: &str) -> Option<IpAddr> {
        text.parse::<Ipv6Addr>().ok().map(IpAddr::from)
    }
}

impl Words<'_> {
    fn addressing<A: Family>(&self) -> Result<Addressing<A>, Why> {
        let key = A::GATEWAY;
        let gateway = match self.gateway {
            None => None,
            Some(text) => Some(A::router(text).ok_or_else(|| Why::Gateway {
                key,
                value: text.to_owned(),
                family: A::NAME,
                example: A::ROUTER,
            })?),
        };
        let said = match self.addresses[..] {
            [] => Some(Addressing::Auto),
            [word] if word == A::AUTO => Some(Addressing::Auto),
            ["none"] => Some(Addressing::None),
            _ => None,
        };
        if let Some(said) = said {
            return match gateway {
                None => Ok(said),
                Some(gateway) => Err(Why::GatewayAlone { key, address: A::ADDRESS, gateway }),
            };
        }
        let addresses: Vec<A> =
            self.addresses.iter().map(|text| station(text)).collect::<Result<_, _>>()?;
        if let Some(gateway) = gateway {
            let has = |within: fn(&IpNet, &IpAddr) -> bool| {
                addresses.iter().any(|address| within(&address.net(), &gateway))
            };
            let link_local = matches!(gateway, IpAddr::V6(addr) if addr.is_unicast_link_local());
            // An address without a subnet has its router elsewhere, as clouds lease them.
            let alone = has(|net, _| net.prefix_len() == net.max_prefix_len());
            if !link_local && !alone && !has(|net, gateway| net.contains(gateway)) {
                return Err(Why::GatewayOutside { key, address: A::ADDRESS, gateway });
            }
            if has(|net, gateway| net.addr() == *gateway) {
                return Err(Why::GatewayOwn { key, gateway });
            }
        }
        Ok(Addressing::Static { addresses, gateway })
    }
}

/// An address with its prefix length that a station can have.
fn station<A: Family>(text: &str) -> Result<A, Why> {
    let (key, value) = (A::ADDRESS, text.to_owned());
    let Some(address) = text.contains('/').then(|| text.parse::<A>().ok()).flatten() else {
        let (family, example, auto) = (A::NAME, A::EXAMPLE, A::AUTO);
        return Err(Why::Address { key, value, family, example, auto });
    };
    let net = address.net();
    let what = match net.addr() {
        IpAddr::V4(addr) => {
            let ends = net.prefix_len() < 31
                && (net.addr() == net.network() || net.addr() == net.broadcast());
            match addr.octets()[0] {
                _ if ends => Some("the first or last of its subnet"),
                0 => Some("this network's"),
                127 => Some("loopback"),
                224..=255 => Some("multicast or reserved"),
                _ => None,
            }
        }
        IpAddr::V6(addr) if addr.is_unspecified() => Some("unspecified"),
        IpAddr::V6(addr) if addr.is_loopback() => Some("loopback"),
        IpAddr::V6(addr) if addr.is_multicast() => Some("multicast"),
        IpAddr::V6(addr) if addr.is_unicast_link_local() => Some("link-local, which it has anyway"),
        IpAddr::V6(_) => None,
    };
    match what {
        Some(what) => Err(Why::NotAStation { key, value, what }),
        None => Ok(address),
    }
}

fn once<'a>(key: &'static str, place: &mut Option<&'a str>, value: &'a str) -> Result<(), Why> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Why::Twice(key)),
    }
}

fn interface(kind: &'static str, name: &str) -> Result<String, Why> {
    if name.is_empty() {
        return Err(Why::NoInterface(kind));
    }
    names::check_interface(name).map_err(Why::Interface)?;
    Ok(name.to_owned())
}

impl FromStr for Uplink {
    type Err = UplinkError;

    fn from_str(text: &str) -> Result<Self, UplinkError> {
        let parsed = match text.split_once(':') {
            None if text == "sockets" => Ok(Self::Sockets),
            None if text == "none" => Ok(Self::None),
            Some(("raw", rest)) => Raw::parse(rest).map(Self::Raw),
            Some(("bridge", rest)) if rest.contains(',') => Err(Why::BridgeOption),
            Some(("bridge", rest)) => interface("bridge:", rest).map(Self::Bridge),
            _ => Err(Why::Kind),
        };
        parsed.map_err(|why| UplinkError { text: text.to_owned(), why })
    }
}

impl TryFrom<String> for Uplink {
    type Error = UplinkError;

    fn try_from(text: String) -> Result<Self, UplinkError> {
        text.parse()
    }
}

impl From<Uplink> for String {
    fn from(uplink: Uplink) -> Self {
        uplink.to_string()
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sockets => f.pad("sockets"),
            Self::None => f.pad("none"),
            Self::Raw(raw) => write!(f, "raw:{raw}"),
            Self::Bridge(interface) => write!(f, "bridge:{interface}"),
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.interface)?;
        write(f, &self.v4)?;
        write(f, &self.v6)?;
        if let Some(mac) = self.mac {
            write!(f, ",mac={}", mac::text(mac))?;
        }
        f.write_str(if self.nat { "" } else { ",nat=off" })
    }
}

fn write<A: Family>(f: &mut fmt::Formatter<'_>, said: &Addressing<A>) -> fmt::Result {
    match said {
        Addressing::Auto => Ok(()),
        Addressing::None => write!(f, ",{}=none", A::ADDRESS),
        Addressing::Static { addresses, gateway } => {
            for address in addresses {
                write!(f, ",{}={}", A::ADDRESS, address.net())?;
            }
            gateway.map_or(Ok(()), |gateway| write!(f, ",{}={gateway}", A::GATEWAY))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<Uplink>().expect_err(text).to_string()
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        for text in [
            "sockets",
            "none",
            "bridge:eth0",
            "raw:eth0",
            "raw:eth0,address=203.0.113.5/24",
            "raw:eth0,address=203.0.113.5/24,address=203.0.113.6/24,gateway=203.0.113.1",
            "raw:wlp3s0.7,address6=2001:db8::5/64,gateway6=fe80::1,mac=02:00:00:00:00:05,nat=off",
            "raw:eth0,address=none",
            "raw:eth0,address6=none",
            "raw:eth0,address=192.0.2.1/31,gateway=192.0.2.0",
        ] {
            assert_eq!(text.parse::<Uplink>().unwrap().to_string(), text);
            let json = serde_json::to_string(&text.parse::<Uplink>().unwrap()).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<Uplink>(&json).unwrap().to_string(), text);
        }
        let spelled: Uplink = "raw:eth0,address=dhcp,address6=auto,nat=on".parse().unwrap();
        assert_eq!(spelled, Uplink::Raw(Raw::on("eth0")));
        assert!(spelled.raw().is_some_and(Raw::is_plain));
    }

    #[test]
    fn a_refusal_names_the_word_what_is_allowed_and_the_fix() {
        for (text, says) in [
            ("", "sockets, none, raw:IF or bridge:IF"),
            ("Sockets", "sockets, none, raw:IF or bridge:IF"),
            ("raw", "sockets, none, raw:IF or bridge:IF"),
            ("tap:eth0", "sockets, none, raw:IF or bridge:IF"),
            ("raw:", "as in raw:eth0"),
            ("bridge:", "as in bridge:eth0"),
            ("raw:a b", "interface name \"a b\" is not allowed"),
            ("bridge:eth0,nat=off", "takes no options"),
            ("raw:eth0,adress=1.2.3.4/24", "\"adress\" is no option of raw:IF; it has address="),
            ("raw:eth0,nat", "\"nat\" is no option"),
            ("raw:eth0,", "\"\" is no option"),
            ("raw:eth0,nat=maybe", "on or off"),
            ("raw:eth0,nat=on,nat=off", "nat is given twice"),
            ("raw:eth0,address=203.0.113.5", "prefix length, as in 203.0.113.5/24"),
            ("raw:eth0,address=2001:db8::5/64", "write an IPv4 address"),
            ("raw:eth0,address6=203.0.113.5/24", "write an IPv6 address"),
            ("raw:eth0,address=203.0.113.0/24", "first or last of its subnet"),
            ("raw:eth0,address=127.0.0.5/8", "loopback"),
            ("raw:eth0,address=239.0.0.5/8", "multicast"),
            ("raw:eth0,address6=fe80::5/64", "link-local"),
            ("raw:eth0,gateway=203.0.113.1", "needs address=ADDR/LEN"),
            ("raw:eth0,address=203.0.113.5/24,gateway=203.0.112.1", "in no subnet of address"),
            ("raw:eth0,address=203.0.113.5/24,gateway=203.0.113.5", "the station's own"),
            ("raw:eth0,address=203.0.113.5/24,gateway=fe80::1", "write an IPv4 address"),
            ("raw:eth0,mac=01:00:5e:00:00:01", "names no single station"),
            ("raw:eth0,address=none,address6=none", "reaches nobody"),
        ] {
            let said = refusal(text);
            assert!(said.starts_with(&format!("uplink {text:?}: ")), "{said}");
            assert!(said.contains(says), "{said}");
        }
    }
}
