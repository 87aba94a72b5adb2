//! How containers are shown outside, as it is written: `--snat-to`, `--filtering`, `--nat46`, `--prefix6`.
//!
//! Pure. Each is a string in the API, and is printed as it is read. What a network has of them, and what
//! of that its uplink can do, is [`Translation`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use datapath::presence::MAX_SHOWN;
use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::timers::Timers;
use crate::uplink::{Raw, Uplink};

/// Addresses that containers are shown with: one, or `FIRST-LAST`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SnatTo(RangeInclusive<IpAddr>);

/// Who from outside may answer an inside address and port (RFC 4787 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Filtering(pub nat::Filtering);

/// What IPv6 clients of a container without IPv6 are shown with (stateful NAT46).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Nat46 {
    /// Such clients are not served.
    #[default]
    Off,
    /// These addresses, which nobody else may have.
    To(RangeInclusive<Ipv4Addr>),
}

/// A prefix of IPv6 and the one it is shown as, without state (RFC 6296): `INSIDE=OUTSIDE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Prefix6 {
    /// The network's.
    pub inside: Ipv6Net,
    /// What the segment sees.
    pub outside: Ipv6Net,
}

/// Words that say nothing about translation, or what cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?}: {why}")]
pub struct TranslationError {
    what: &'static str,
    text: String,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Why {
    #[error("write an address, or two of one family and ascending, as in 203.0.113.8-203.0.113.15")]
    Range,
    #[error(
        "{0} is no address of a single station; choose addresses of the segment's that nobody has"
    )]
    NotUnicast(IpAddr),
    #[error(
        "it is eif (anybody may answer), adf (whoever was spoken to; the default) or apdf (the very address and port)"
    )]
    Filtering,
    #[error("it is off, on, or IPv4 addresses nobody else has, as in 192.0.0.2-192.0.0.6")]
    Nat46,
    #[error("write two IPv6 prefixes, INSIDE=OUTSIDE, as in fd00:7::/64=2001:db8:7::/64")]
    Prefix6,
    #[error(
        "/{inside} and /{outside}: both must be equally long, and 64 bits at most (RFC 6296 §3.1)"
    )]
    Lengths { inside: u8, outside: u8 },
    #[error("{0} is link-local or multicast, which is never translated")]
    Scope(Ipv6Net),
    #[error("the uplink is {0}, {1}; use --uplink raw:IF, or leave it out")]
    NotRaw(String, &'static str),
    #[error("nat=off: nothing is translated on {0}; leave one of both out")]
    NatOff(String),
    #[error(
        "the network has no {0} subnet whose sources it could stand for; give --subnet, or leave it out"
    )]
    NoSubnet(&'static str),
    #[error("one of each family is what a network is shown with; leave one out")]
    TwoOfAFamily,
    #[error("{0} is no part of the network's subnets; give the network an IPv6 --subnet within it")]
    NotInside(Ipv6Net),
    #[error(
        "more than {MAX_SHOWN} of these addresses are the segment's own, each of which must be asked for; give fewer, or addresses that are routed to the station"
    )]
    TooManyOnLink,
    #[error(
        "{0} has the station's own address, so any of it may be another station's; give a prefix that is routed to the station"
    )]
    OnLink(Ipv6Net),
    #[error(
        "{0} is in the network's own subnet {1}, where containers look for neighbours; choose others"
    )]
    InSubnet(IpAddr, IpNet),
}

/// Addresses of the host's side of translators (RFC 7335), which nobody routes.
const NAT46_DEFAULT: RangeInclusive<Ipv4Addr> =
    Ipv4Addr::new(192, 0, 0, 2)..=Ipv4Addr::new(192, 0, 0, 6);

/// All of it that a network has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// What sources are shown with, one range of a family at most; without, the station's own address.
    pub snat_to: Vec<SnatTo>,
    /// Who may answer.
    pub filtering: Filtering,
    /// How long silence is borne.
    pub timers: Timers,
    /// What IPv6 clients of IPv4 containers are shown with.
    pub nat46: Nat46,
    /// Prefixes translated without state.
    pub prefixes6: Vec<Prefix6>,
}

impl Translation {
    /// What of it `uplink` can do.
    #[must_use]
    pub fn kept_by(&self, uplink: &Uplink) -> Self {
        match uplink {
            Uplink::Raw(raw) if raw.nat => self.clone(),
            Uplink::Sockets => {
                Self { filtering: self.filtering, timers: self.timers.clone(), ..Self::default() }
            }
            _ => Self::default(),
        }
    }

    /// Checks that `uplink` can do it for a network with these subnets.
    ///
    /// # Errors
    ///
    /// It cannot; the first such value is named, and what would do.
    pub fn check(
        &self,
        uplink: &Uplink,
        subnets: impl Iterator<Item = IpNet> + Clone,
    ) -> Result<(), TranslationError> {
        let of_raw = [
            self.snat_to.first().map(|range| ("snat-to", range.to_string())),
            Some(("nat46", self.nat46.to_string())).filter(|_| self.nat46 != Nat46::Off),
            self.prefixes6.first().map(|pair| ("prefix6", pair.to_string())),
        ];
        let of_both = [
            Some(("filtering", self.filtering.to_string()))
                .filter(|_| self.filtering != Filtering::default()),
            Some(("timeouts", self.timers.to_string()))
                .filter(|_| self.timers != Timers::default()),
        ];
        let wrong =
            |(what, text): (&'static str, String), why| TranslationError { what, text, why };
        let not_raw = match uplink {
            Uplink::Sockets => Some("where the outside sees the host's own addresses"),
            Uplink::None => Some("which leads nowhere"),
            Uplink::Bridge(_) => Some("where nothing is translated"),
            Uplink::Raw(_) => None,
        };
        let first_of_raw = of_raw.into_iter().flatten().next();
        let first_of_both = of_both.into_iter().flatten().next();
        match (not_raw, uplink.raw()) {
            (Some(why), _) => {
                let both = first_of_both.filter(|_| *uplink != Uplink::Sockets);
                if let Some(given) = first_of_raw.or(both) {
                    return Err(wrong(given, Why::NotRaw(uplink.to_string(), why)));
                }
            }
            (None, Some(raw)) if !raw.nat => {
                if let Some(given) = first_of_raw.or(first_of_both) {
                    return Err(wrong(given, Why::NatOff(uplink.to_string())));
                }
            }
            _ => {}
        }
        for v4 in [true, false] {
            let mut of_family = self.snat_to.iter().filter(|range| range.is_ipv4() == v4);
            let (first, second) = (of_family.next(), of_family.next());
            let given = |range: &SnatTo| ("snat-to", range.to_string());
            if let Some(second) = second {
                return Err(wrong(given(second), Why::TwoOfAFamily));
            }
            let has = subnets.clone().any(|subnet| subnet.addr().is_ipv4() == v4);
            if let Some(first) = first.filter(|_| !has) {
                let family = if v4 { "IPv4" } else { "IPv6" };
                return Err(wrong(given(first), Why::NoSubnet(family)));
            }
        }
        let near: Vec<_> = uplink.raw().into_iter().flat_map(Raw::addresses).collect();
        for range in &self.snat_to {
            let claimed = near.iter().map(|own| range.within(own)).max().unwrap_or(0);
            if claimed > MAX_SHOWN as u128 {
                return Err(wrong(("snat-to", range.to_string()), Why::TooManyOnLink));
            }
        }
        if let Nat46::To(range) = &self.nat46 {
            let inside = |addr: &Ipv4Addr| {
                subnets.clone().find(|net| net.contains(&IpAddr::V4(*addr))).map(|net| (*addr, net))
            };
            if let Some((addr, net)) = [range.start(), range.end()].into_iter().find_map(inside) {
                let why = Why::InSubnet(addr.into(), net);
                return Err(wrong(("nat46", self.nat46.to_string()), why));
            }
        }
        for pair in &self.prefixes6 {
            let own = uplink.raw().map_or(&[][..], |raw| raw.v6.addresses());
            if own.iter().any(|own| pair.outside.contains(&own.addr())) {
                let why = Why::OnLink(pair.outside);
                return Err(wrong(("prefix6", pair.to_string()), why));
            }
            let inside = IpNet::V6(pair.inside);
            if !subnets.clone().any(|subnet| subnet.contains(&inside) || inside.contains(&subnet)) {
                return Err(wrong(("prefix6", pair.to_string()), Why::NotInside(pair.inside)));
            }
        }
        Ok(())
    }
}

impl SnatTo {
    /// The addresses.
    #[must_use]
    pub const fn range(&self) -> &RangeInclusive<IpAddr> {
        &self.0
    }

    /// How many of them are in the subnet of `own`; as many as can be counted, if more.
    fn within(&self, own: &IpNet) -> u128 {
        let bits = |addr: IpAddr| match addr {
            IpAddr::V4(addr) => u128::from(addr.to_bits()),
            IpAddr::V6(addr) => addr.to_bits(),
        };
        let (first, last) = (bits(*self.0.start()), bits(*self.0.end()));
        let (lowest, highest) = (bits(own.network()), bits(own.broadcast()));
        let same = own.addr().is_ipv4() == self.is_ipv4();
        let count = last.min(highest).checked_sub(first.max(lowest)).filter(|_| same);
        count.map_or(0, |count| count.saturating_add(1))
    }

    /// Their family.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.0.start().is_ipv4()
    }
}

/// `FIRST` or `FIRST-LAST`, of one family and ascending, all of them single stations'.
fn range(text: &str) -> Result<RangeInclusive<IpAddr>, Why> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let parse = |text: &str| text.parse::<IpAddr>().map_err(|_| Why::Range);
    let (first, last) = (parse(first)?, parse(last)?);
    if first.is_ipv4() != last.is_ipv4() || first > last {
        return Err(Why::Range);
    }
    for addr in [first, last] {
        let several = match addr {
            IpAddr::V4(addr) => matches!(addr.octets()[0], 0 | 127 | 224..=255),
            IpAddr::V6(addr) => {
                addr.is_unspecified()
                    || addr.is_loopback()
                    || addr.is_multicast()
                    || addr.is_unicast_link_local()
            }
        };
        if several {
            return Err(Why::NotUnicast(addr));
        }
    }
    Ok(first..=last)
}

fn write_range<A: PartialEq + fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    range: &RangeInclusive<A>,
) -> fmt::Result {
    match range.start() == range.end() {
        true => write!(f, "{}", range.start()),
        false => write!(f, "{}-{}", range.start(), range.end()),
    }
}

impl FromStr for SnatTo {
    type Err = TranslationError;

    fn from_str(text: &str) -> Result<Self, TranslationError> {
        range(text).map(Self).map_err(|why| TranslationError {
            what: "snat-to",
            text: text.to_owned(),
            why,
        })
    }
}

impl fmt::Display for SnatTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_range(f, &self.0)
    }
}

impl FromStr for Filtering {
    type Err = TranslationError;

    fn from_str(text: &str) -> Result<Self, TranslationError> {
        use nat::Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        match text {
            "eif" | "endpoint-independent" => Ok(Self(EndpointIndependent)),
            "adf" | "address-dependent" => Ok(Self(AddressDependent)),
            "apdf" | "address-and-port-dependent" => Ok(Self(AddressAndPortDependent)),
            _ => Err(TranslationError {
                what: "filtering",
                text: text.to_owned(),
                why: Why::Filtering,
            }),
        }
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self.0 {
            nat::Filtering::EndpointIndependent => "eif",
            nat::Filtering::AddressDependent => "adf",
            nat::Filtering::AddressAndPortDependent => "apdf",
        })
    }
}

impl FromStr for Nat46 {
    type Err = TranslationError;

    fn from_str(text: &str) -> Result<Self, TranslationError> {
        let wrong = |why| TranslationError { what: "nat46", text: text.to_owned(), why };
        match text {
            "off" => return Ok(Self::Off),
            "on" => return Ok(Self::To(NAT46_DEFAULT)),
            _ => {}
        }
        let range = range(text).map_err(|why| match why {
            Why::Range => wrong(Why::Nat46),
            other => wrong(other),
        })?;
        match (range.start(), range.end()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Ok(Self::To(*first..=*last)),
            _ => Err(wrong(Why::Nat46)),
        }
    }
}

impl fmt::Display for Nat46 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.pad("off"),
            Self::To(range) => write_range(f, range),
        }
    }
}

impl FromStr for Prefix6 {
    type Err = TranslationError;

    fn from_str(text: &str) -> Result<Self, TranslationError> {
        let wrong = |why| TranslationError { what: "prefix6", text: text.to_owned(), why };
        let (inside, outside) = text.split_once('=').ok_or_else(|| wrong(Why::Prefix6))?;
        let parse = |text: &str| text.parse::<Ipv6Net>().map_err(|_| wrong(Why::Prefix6));
        let (inside, outside) = (parse(inside)?.trunc(), parse(outside)?.trunc());
        if inside.prefix_len() != outside.prefix_len() || inside.prefix_len() > 64 {
            let (inside, outside) = (inside.prefix_len(), outside.prefix_len());
            return Err(wrong(Why::Lengths { inside, outside }));
        }
        for prefix in [inside, outside] {
            let addr: Ipv6Addr = prefix.addr();
            if addr.is_multicast() || addr.is_unicast_link_local() || prefix.prefix_len() == 0 {
                return Err(wrong(Why::Scope(prefix)));
            }
        }
        Ok(Self { inside, outside })
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.inside, self.outside)
    }
}

macro_rules! as_string {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = TranslationError;

            fn try_from(text: String) -> Result<Self, TranslationError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_string!(SnatTo, Filtering, Nat46, Prefix6);

#[cfg(test)]
mod tests {
    use super::*;

    fn same<T: FromStr<Err = TranslationError> + fmt::Display>(text: &str) {
        match text.parse::<T>() {
            Ok(read) => assert_eq!(read.to_string(), text),
            Err(error) => panic!("{error}"),
        }
    }

    fn refused<T: FromStr<Err = TranslationError>>(text: &str) -> String {
        match text.parse::<T>() {
            Ok(_) => panic!("{text} is read"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        same::<SnatTo>("203.0.113.8");
        same::<SnatTo>("203.0.113.8-203.0.113.15");
        same::<SnatTo>("2001:db8::8-2001:db8::f");
        for text in ["eif", "adf", "apdf"] {
            same::<Filtering>(text);
        }
        same::<Nat46>("off");
        same::<Nat46>("192.0.0.2-192.0.0.6");
        same::<Prefix6>("fd00:7::/64=2001:db8:7::/64");
        let on: Nat46 = "on".parse().unwrap();
        assert_eq!(on.to_string(), "192.0.0.2-192.0.0.6");
    }

    #[test]
    fn a_refusal_names_the_word_what_is_allowed_and_the_fix() {
        for (said, says) in [
            (refused::<SnatTo>(""), "snat-to \"\": write an address"),
            (refused::<SnatTo>("203.0.113.9-203.0.113.8"), "ascending"),
            (refused::<SnatTo>("203.0.113.9-2001:db8::1"), "of one family"),
            (refused::<SnatTo>("224.0.0.1"), "224.0.0.1 is no address of a single station"),
            (refused::<SnatTo>("203.0.113.0/24"), "write an address"),
            (refused::<Filtering>("none"), "filtering \"none\": it is eif"),
            (refused::<Nat46>("yes"), "nat46 \"yes\": it is off, on, or"),
            (refused::<Nat46>("2001:db8::1"), "it is off, on, or"),
            (refused::<Nat46>("127.0.0.1"), "no address of a single station"),
            (refused::<Prefix6>("fd00::/64"), "INSIDE=OUTSIDE, as in"),
            (refused::<Prefix6>("fd00::/64=10.0.0.0/8"), "INSIDE=OUTSIDE, as in"),
            (
                refused::<Prefix6>("fd00::/64=2001:db8::/48"),
                "/64 and /48: both must be equally long",
            ),
            (refused::<Prefix6>("fd00::/96=2001:db8::/96"), "64 bits at most"),
            (refused::<Prefix6>("fe80::/64=2001:db8::/64"), "never translated"),
        ] {
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn an_uplink_refuses_what_it_cannot_do() {
        let subnets: [IpNet; 1] = ["172.18.0.0/16".parse().unwrap()];
        let check = |translation: &Translation, uplink: &str| {
            let checked = translation.check(&uplink.parse().unwrap(), subnets.iter().copied());
            checked.map_err(|error| error.to_string())
        };
        let snat_to = |texts: &[&str]| Translation {
            snat_to: texts.iter().map(|text| text.parse().unwrap()).collect(),
            ..Translation::default()
        };
        let eif = Translation { filtering: "eif".parse().unwrap(), ..Translation::default() };
        let linux = Translation { timers: "linux".parse().unwrap(), ..Translation::default() };
        let npt = Translation {
            prefixes6: vec!["fd00::/64=2001:db8::/64".parse().unwrap()],
            ..Translation::default()
        };
        let nat46 = Translation { nat46: "on".parse().unwrap(), ..Translation::default() };
        for (translation, uplink, says) in [
            (snat_to(&["203.0.113.8"]), "sockets", "the outside sees the host's own addresses"),
            (snat_to(&["203.0.113.8"]), "raw:eth0,nat=off", "nat=off: nothing is translated"),
            (snat_to(&["2001:db8::8"]), "raw:eth0", "no IPv6 subnet"),
            (snat_to(&["203.0.113.8", "203.0.113.9"]), "raw:eth0", "one of each family"),
            (nat46, "none", "nat46 \"192.0.0.2-192.0.0.6\": the uplink is none"),
            (npt.clone(), "sockets", "use --uplink raw:IF"),
            (npt, "raw:eth0", "fd00::/64 is no part of the network's subnets"),
            (eif.clone(), "none", "filtering \"eif\": the uplink is none, which leads nowhere"),
            (linux.clone(), "bridge:eth0", "nothing is translated"),
        ] {
            let said = check(&translation, uplink).expect_err(says);
            assert!(said.contains(says), "{said}");
        }
        for translation in [eif, linux, Translation::default()] {
            for uplink in ["sockets", "raw:eth0"] {
                assert_eq!(check(&translation, uplink), Ok(()));
            }
        }
        assert_eq!(check(&snat_to(&["203.0.113.8"]), "raw:eth0"), Ok(()));
        // Each of the segment's own has to be claimed; those that are routed are as many as one likes.
        let near = "raw:eth0,address=203.0.112.5/22";
        assert_eq!(check(&snat_to(&["203.0.113.0-203.0.113.255"]), near), Ok(()));
        let said = check(&snat_to(&["203.0.113.0-203.0.114.0"]), near).expect_err("too many");
        assert!(said.contains("more than 256 of these addresses are the segment's own"), "{said}");
        assert_eq!(check(&snat_to(&["198.18.0.0-198.19.255.255"]), near), Ok(()));
    }

    #[test]
    fn what_is_shown_can_be_nobody_elses() {
        let subnets: [IpNet; 2] = ["172.18.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let refusal = |translation: &Translation, uplink: &str| {
            let checked = translation.check(&uplink.parse().unwrap(), subnets.iter().copied());
            checked.map_err(|error| error.to_string())
        };
        let npt = Translation {
            prefixes6: vec!["fd00::/64=2001:db8:7::/64".parse().unwrap()],
            ..Translation::default()
        };
        let said = refusal(&npt, "raw:eth0,address6=2001:db8:7::5/64").expect_err("the segment's");
        assert!(said.contains("2001:db8:7::/64 has the station's own address"), "{said}");
        assert_eq!(refusal(&npt, "raw:eth0,address6=2001:db8:8::5/64"), Ok(()));
        let nat46 = Translation {
            nat46: "172.18.0.9-172.18.0.12".parse().unwrap(),
            ..Translation::default()
        };
        let said = refusal(&nat46, "raw:eth0").expect_err("a container's");
        assert!(said.contains("172.18.0.9 is in the network's own subnet 172.18.0.0/16"), "{said}");
    }
}
