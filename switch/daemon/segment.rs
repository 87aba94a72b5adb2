//! A segment of the world: our station on an interface of the host's, for the networks behind it.
//!
//! Pure. Networks with the same interface share one station, so what they say of it must agree: who comes
//! later and says nothing takes it as it is. Read `worker::SegmentConfig` for what comes of it.

use std::net::IpAddr;

use datapath::{IpMtu, MacAddr, PortId};
use ipnet::IpNet;
use netns::Take;
use smoltcp::wire::{IpCidr, Ipv4Cidr, Ipv6Cidr};
use worker::{
    AddressOrigin, AddressRow, AddressState, NatPublication, SegmentConfig, SegmentId, SegmentRow,
};

use crate::api;
use crate::error::Error;
use crate::log::Limit;
use crate::mac;
use crate::network::Network;
use crate::subnet::{Taken, overlap};
use crate::translation::{Nat46, Prefix6, Translation};
use crate::uplink::{Addressing, Raw, Uplink};

/// Most stations that are remembered for having an address of ours.
const MAX_RIVALS: usize = 16;

/// An interface of the host's, as it was when it was last looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nic {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    /// Up, and with a carrier.
    pub(crate) up: bool,
    pub(crate) mtu: IpMtu,
}

impl Nic {
    pub(crate) fn of(facts: &netns::Facts) -> Self {
        let (name, ifindex) = (facts.name.clone(), facts.ifindex);
        Self { name, ifindex, up: facts.carrier, mtu: mtu(facts) }
    }
}

/// The longest IP packet of an interface.
pub(crate) fn mtu(facts: &netns::Facts) -> IpMtu {
    IpMtu(u16::try_from(facts.mtu).unwrap_or(u16::MAX))
}

/// Our station on a segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    pub(crate) raw: Raw,
    /// What its networks share; prefixes are each network's own.
    pub(crate) translation: Translation,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: IpMtu,
    /// Its interface's number on its bridge.
    pub(crate) port: PortId,
    /// Its interface, as the station knows it.
    pub(crate) nic: Nic,
    /// Why nothing crosses it any more.
    pub(crate) dead: Option<String>,
    /// What the switch was told of it last.
    pub(crate) told: Option<SegmentConfig>,
    /// The published ports it was told of last.
    pub(crate) published: Vec<NatPublication>,
    /// What was last said of its addresses.
    said: String,
    /// Who else was heard with an address of ours, the last one first.
    rivals: Vec<(IpAddr, MacAddr)>,
    /// Bounds what is logged of it.
    pub(crate) lines: Limit,
}

impl Segment {
    /// A station as the first network with it wants it, on this interface.
    pub(crate) fn plan(
        id: SegmentId,
        raw: &Raw,
        translation: &Translation,
        facts: &netns::Facts,
    ) -> Self {
        Self {
            id,
            raw: raw.clone(),
            translation: Translation { prefixes6: Vec::new(), ..translation.clone() },
            mac: raw.mac.unwrap_or_else(|| beside(MacAddr(facts.mac), &raw.interface)),
            mtu: mtu(facts),
            port: PortId::GATEWAY,
            nic: Nic::of(facts),
            dead: None,
            told: None,
            published: Vec::new(),
            said: String::new(),
            rivals: Vec::new(),
            lines: Limit::default(),
        }
    }

    /// Which frames of its interface it wants.
    pub(crate) fn take(&self) -> Take {
        Take::Stations(vec![self.mac.0])
    }

    /// Completes the request of one more network; `first` is one that is here already.
    pub(crate) fn complete(
        &self,
        request: &mut api::NetworkCreate,
        first: &str,
    ) -> Result<(), Error> {
        let (has, wanted) = (Uplink::Raw(self.raw.clone()), &request.uplink);
        let plain = wanted.raw().is_some_and(Raw::is_plain);
        if !plain && *wanted != has {
            return Err(self.differs("uplink", wanted.to_string(), has.to_string(), first));
        }
        let own = &self.translation;
        request.uplink = has;
        if request.snat_to.is_empty() {
            request.snat_to.clone_from(&own.snat_to);
        } else if request.snat_to != own.snat_to {
            let text = |of: &[api::SnatTo]| match of {
                [] => "its station's address".to_owned(),
                some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            };
            return Err(self.differs("snat-to", text(&request.snat_to), text(&own.snat_to), first));
        }
        let filtering = *request.filtering.get_or_insert(own.filtering);
        let timers = request.timeouts.get_or_insert_with(|| own.timers.clone()).to_string();
        let nat46 = request.nat46.get_or_insert_with(|| own.nat46.clone()).to_string();
        for (what, wanted, has) in [
            ("filtering", filtering.to_string(), own.filtering.to_string()),
            ("timeouts", timers, own.timers.to_string()),
            ("nat46", nat46, own.nat46.to_string()),
        ] {
            if wanted != has {
                return Err(self.differs(what, wanted, has, first));
            }
        }
        Ok(())
    }

    fn differs(&self, what: &'static str, wanted: String, has: String, network: &str) -> Error {
        let (interface, network) = (self.raw.interface.clone(), network.to_owned());
        Error::SegmentDiffers { what, wanted, has, interface, network }
    }

    /// The same station as a network behind it wants it now.
    pub(crate) fn changed(&self, raw: &Raw, translation: &Translation) -> Self {
        Self {
            raw: raw.clone(),
            translation: Translation { prefixes6: Vec::new(), ..translation.clone() },
            mac: raw.mac.unwrap_or(self.mac),
            ..self.clone()
        }
    }

    /// What the switch must know of it; `networks` are those behind it.
    pub(crate) fn config<'a>(&self, networks: impl Iterator<Item = &'a Network>) -> SegmentConfig {
        self.config_with(networks.flat_map(|network| &network.translation.prefixes6))
    }

    /// The same with these prefixes.
    pub(crate) fn config_with<'a>(
        &self,
        prefixes: impl Iterator<Item = &'a Prefix6>,
    ) -> SegmentConfig {
        let v4 = |net: &ipnet::Ipv4Net| Ipv4Cidr::new(net.addr(), net.prefix_len());
        let v6 = |net: &ipnet::Ipv6Net| Ipv6Cidr::new(net.addr(), net.prefix_len());
        let Translation { snat_to, filtering, timers, nat46, .. } = &self.translation;
        SegmentConfig {
            v4: addressing(&self.raw.v4, v4),
            v6: addressing(&self.raw.v6, v6),
            nat: self.raw.nat,
            snat_to: snat_to.iter().map(|range| range.range().clone()).collect(),
            nat46: match nat46 {
                Nat46::Off => None,
                Nat46::To(range) => Some(range.clone()),
            },
            npt: prefixes.map(|pair| (v6(&pair.inside), v6(&pair.outside))).collect(),
            filtering: filtering.0,
            timeouts: timers.timeouts(),
            ..SegmentConfig::new(self.mac, self.mtu)
        }
    }

    /// Notes that another station has an address of ours; false if that is known. The one noted longest ago
    /// gives way to one too many.
    pub(crate) fn rival(&mut self, addr: IpAddr, station: MacAddr) -> bool {
        let known = self.rivals.contains(&(addr, station));
        if !known {
            self.rivals.truncate(MAX_RIVALS - 1);
            self.rivals.insert(0, (addr, station));
        }
        !known
    }

    /// Who else was heard with that address, in words.
    fn rival_of(&self, addr: IpAddr) -> String {
        let rival = self.rivals.iter().find(|(of, _)| *of == addr);
        rival.map_or("another station".to_owned(), |(_, station)| mac::text(*station))
    }

    /// An address it was given, or is to show, that it must not use.
    pub(crate) fn conflict(&self, row: &SegmentRow) -> Option<Error> {
        let was_given = |origin| matches!(origin, AddressOrigin::Static | AddressOrigin::Shown);
        let lost = row
            .addresses
            .iter()
            .find(|address| address.state == AddressState::Conflict && was_given(address.origin))?;
        let addr = IpAddr::from(lost.cidr.address());
        Some(Error::AddressConflict {
            addr,
            interface: self.raw.interface.clone(),
            station: self.rival_of(addr),
            fix: self.other_than(addr),
        })
    }

    /// The option by which it would have another address than `addr`.
    pub(crate) fn other_than(&self, addr: IpAddr) -> String {
        let given = |own: IpNet| own.addr() == addr;
        let shown = self.translation.snat_to.iter().any(|range| range.range().contains(&addr));
        if shown && !self.raw.addresses().any(given) {
            return "--snat-to ADDR[-ADDR]".to_owned();
        }
        let key = if addr.is_ipv4() { "address" } else { "address6" };
        format!("--uplink raw:{},{key}=ADDR/LEN", self.raw.interface)
    }

    /// As `network inspect` shows it; `row` is what the switch says, and `networks` are those behind it.
    pub(crate) fn describe<'a>(
        &self,
        row: Option<&SegmentRow>,
        networks: impl Iterator<Item = &'a Network> + Clone,
    ) -> api::Station {
        let mut addresses = row.map(|row| row.addresses.clone()).unwrap_or_default();
        // As they come is as they were learnt.
        addresses.sort_by_key(|address| IpAddr::from(address.cidr.address()).is_ipv6());
        let valid = addresses.iter().any(is_own_and_valid);
        let mut conflicts: Vec<_> = addresses
            .iter()
            .filter(|address| address.state == AddressState::Conflict)
            .map(|address| {
                let addr = IpAddr::from(address.cidr.address());
                format!("{addr} is in use by {}", self.rival_of(addr))
            })
            .collect();
        conflicts.extend(row.into_iter().flat_map(|row| clashes(row, networks.clone())));
        api::Station {
            interface: self.nic.name.clone(),
            status: match &self.dead {
                Some(why) => format!("down ({why})"),
                None if valid => "up".to_owned(),
                None => "asking".to_owned(),
            },
            mac_address: mac::text(self.mac),
            mtu: row.map_or(self.mtu, |row| row.mtu).0,
            addresses: addresses
                .iter()
                .map(|address| api::StationAddress {
                    address: address.cidr.to_string(),
                    origin: origin(address.origin).to_owned(),
                    state: match address.state {
                        AddressState::Tentative => "tentative",
                        AddressState::Valid => "valid",
                        AddressState::Deprecated => "deprecated",
                        AddressState::Conflict => "conflict",
                    }
                    .to_owned(),
                    valid_for: address.valid_for.map(|time| time.as_secs()),
                })
                .collect(),
            routers: row.iter().flat_map(|row| &row.routers).map(ToString::to_string).collect(),
            lease: row.and_then(|row| row.lease.as_ref()).map(|lease| api::Lease {
                state: lease.state.to_owned(),
                server: lease.server.map(|server| server.to_string()).unwrap_or_default(),
                renews_in: lease.renews_in.map(|time| time.as_secs()),
                expires_in: lease.expires_in.map(|time| time.as_secs()),
                dns: lease.dns.iter().map(ToString::to_string).collect(),
            }),
            dns: row.iter().flat_map(|row| &row.dns).map(ToString::to_string).collect(),
            conflicts,
            networks: networks.map(|network| network.name.clone()).collect(),
        }
    }

    /// Its addresses as the switch has them, each with where it comes from, in words. Those to be shown are
    /// told of where another station has them. `None`: nothing else than before.
    pub(crate) fn news(&mut self, row: &SegmentRow) -> Option<String> {
        let told = row.addresses.iter().filter(|address| {
            address.origin != AddressOrigin::Shown || address.state == AddressState::Conflict
        });
        let addresses = told.map(|address| {
            let state = match address.state {
                AddressState::Tentative => ", asked for",
                AddressState::Valid => "",
                AddressState::Deprecated => ", deprecated",
                AddressState::Conflict => ", in use by another station",
            };
            format!("{} ({}{state})", address.cidr, origin(address.origin))
        });
        let routers = row.routers.iter().map(|router| format!("router {router}"));
        let all: Vec<_> = addresses.chain(routers).collect();
        let said = if all.is_empty() { "no address".to_owned() } else { all.join(", ") };
        (self.said != said).then(|| {
            self.said.clone_from(&said);
            said
        })
    }

    /// Whether nothing more is to be expected of what it was told or asks for. IPv6 is not waited for
    /// beside IPv4: many segments have no router of it.
    pub(crate) fn is_settled(&self, row: &SegmentRow) -> bool {
        let tentative =
            row.addresses.iter().any(|address| address.state == AddressState::Tentative);
        let waits = |auto: bool, v4: bool| {
            auto && !row.addresses.iter().any(|address| {
                is_own_and_valid(address) && IpAddr::from(address.cidr.address()).is_ipv4() == v4
            })
        };
        let v6_alone = self.raw.v4 == Addressing::None;
        !tentative
            && !waits(self.raw.v4 == Addressing::Auto, true)
            && !waits(v6_alone && self.raw.v6 == Addressing::Auto, false)
    }

    /// The subnets its addresses are in by now; `rows` are what the switch says.
    pub(crate) fn learnt(&self, rows: &[SegmentRow]) -> impl Iterator<Item = Taken> {
        let row = rows.iter().find(|row| row.segment == self.id);
        let interface = self.raw.interface.clone();
        row.into_iter()
            .flat_map(subnets_of)
            .map(move |subnet| Taken::Segment { subnet, interface: interface.clone() })
    }

    /// The networks' part of what they share, with what one of them has for itself.
    pub(crate) fn shared_with(&self, own: &Translation) -> Translation {
        Translation { prefixes6: own.prefixes6.clone(), ..self.translation.clone() }
    }
}

/// The subnets a station is told to be in.
pub(crate) fn subnets(raw: &Raw) -> impl Iterator<Item = Taken> {
    raw.addresses()
        .map(|address| Taken::Segment { subnet: address.trunc(), interface: raw.interface.clone() })
}

/// Subnets of a segment that a network has, too, each in a sentence: who is meant by an address of both
/// cannot be told (RFC 4787 REQ-7).
pub(crate) fn clashes<'a>(
    row: &SegmentRow,
    networks: impl Iterator<Item = &'a Network> + Clone,
) -> Vec<String> {
    let mut clashes = Vec::new();
    for subnet in subnets_of(row) {
        for network in networks.clone() {
            let theirs = network.subnets.iter().map(|theirs| theirs.subnet);
            clashes.extend(theirs.filter(|theirs| overlap(*theirs, subnet)).map(|theirs| {
                let name = &network.name;
                format!("{subnet}, which the segment has, overlaps {theirs} of network {name}")
            }));
        }
    }
    clashes
}

/// The subnets of a station's own addresses.
fn subnets_of(row: &SegmentRow) -> impl Iterator<Item = IpNet> {
    let own = row.addresses.iter().filter(|address| address.origin != AddressOrigin::Shown);
    own.filter_map(|address| subnet(&address.cidr))
}

/// The subnet of an address.
fn subnet(cidr: &IpCidr) -> Option<IpNet> {
    IpNet::new(cidr.address().into(), cidr.prefix_len()).ok().map(|net| net.trunc())
}

/// Whether it is an address the station may speak from; those it shows containers with are not.
fn is_own_and_valid(address: &AddressRow) -> bool {
    let valid = matches!(address.state, AddressState::Valid | AddressState::Deprecated);
    valid && address.origin != AddressOrigin::Shown
}

/// Where an address comes from, in a word.
pub(crate) const fn origin(origin: AddressOrigin) -> &'static str {
    match origin {
        AddressOrigin::Static => "static",
        AddressOrigin::Dhcp => "dhcp",
        AddressOrigin::Slaac => "slaac",
        AddressOrigin::Shown => "snat-to",
    }
}

fn addressing<A, C>(said: &Addressing<A>, cidr: impl Fn(&A) -> C) -> worker::Addressing<C> {
    match said {
        Addressing::Auto => worker::Addressing::Auto,
        Addressing::None => worker::Addressing::None,
        Addressing::Static { addresses, gateway } => worker::Addressing::Static {
            addresses: addresses.iter().map(cidr).collect(),
            gateway: *gateway,
        },
    }
}

/// A station beside the host's own on an interface: locally administered, and the same each time, so that
/// a DHCP server gives it the address it had (FNV-1a of both names).
fn beside(interface: MacAddr, name: &str) -> MacAddr {
    let octets = interface.0.iter().copied().chain(name.bytes());
    let hash = octets.fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use nat::{Filtering, Timeouts};
    use worker::NetworkId;

    use super::*;

    fn nic() -> netns::Facts {
        netns::Facts {
            name: "eth0".into(),
            ifindex: 7,
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            mtu: 1400,
            carrier: true,
            gso_max: 65_536,
        }
    }

    fn request(uplink: &str) -> api::NetworkCreate {
        api::NetworkCreate {
            name: "lan".into(),
            uplink: uplink.parse().unwrap(),
            ..api::NetworkCreate::default()
        }
    }

    fn network(request: api::NetworkCreate) -> Network {
        Network::plan(NetworkId(2), request, &[]).unwrap()
    }

    fn segment(network: &Network) -> Segment {
        let raw = network.uplink.raw().unwrap();
        Segment::plan(SegmentId(0), raw, &network.translation, &nic())
    }

    #[test]
    fn the_switch_is_told_what_was_written() {
        let text = "raw:eth0,address=203.0.113.5/24,gateway=203.0.113.1,address6=none";
        let first = network(api::NetworkCreate {
            snat_to: vec!["203.0.113.8-203.0.113.9".parse().unwrap()],
            filtering: "eif".parse().ok(),
            timeouts: "linux".parse().ok(),
            nat46: "on".parse().ok(),
            ..request(text)
        });
        let config = segment(&first).config(std::iter::once(&first));
        let gateway = Some("203.0.113.1".parse().unwrap());
        let addresses = vec!["203.0.113.5/24".parse().unwrap()];
        assert_eq!(config.v4, worker::Addressing::Static { addresses, gateway });
        assert_eq!(config.v6, worker::Addressing::None);
        assert_eq!((config.nat, config.mtu), (true, IpMtu(1400)));
        assert_eq!(config.snat_to.len(), 1);
        assert_eq!(config.filtering, Filtering::EndpointIndependent);
        assert_eq!(config.timeouts, Timeouts::LINUX);
        assert!(config.nat46.is_some() && config.npt.is_empty());
    }

    #[test]
    fn a_station_without_a_mac_of_its_own_has_the_same_each_time() {
        let mac = |uplink: &str| segment(&network(request(uplink))).mac;
        assert_eq!(mac("raw:eth0"), mac("raw:eth0"));
        assert_ne!(mac("raw:eth0"), mac("raw:eth1"));
        assert!(mac("raw:eth0").is_unicast() && mac("raw:eth0").0[0] == 2);
        assert_eq!(mac("raw:eth0,mac=02:00:00:00:00:05").0[5], 5);
    }

    #[test]
    fn who_comes_later_takes_a_segment_as_it_is() {
        let text = "raw:eth0,address=203.0.113.5/24";
        let eif = api::NetworkCreate { filtering: "eif".parse().ok(), ..request(text) };
        let first = segment(&network(eif.clone()));
        for plain in [request("raw:eth0"), eif] {
            let mut later = plain;
            first.complete(&mut later, "lan").unwrap();
            assert_eq!(later.uplink.to_string(), text);
            assert_eq!(later.filtering, "eif".parse().ok());
        }
        for (other, says) in [
            (
                request("raw:eth0,nat=off"),
                "uplink raw:eth0,nat=off: raw:eth0 is the uplink of network lan",
            ),
            (
                api::NetworkCreate { filtering: "apdf".parse().ok(), ..request("raw:eth0") },
                "filtering apdf: raw:eth0 is the uplink of network lan already, with filtering eif",
            ),
            (
                api::NetworkCreate { timeouts: "linux".parse().ok(), ..request("raw:eth0") },
                "timeouts linux",
            ),
            (
                api::NetworkCreate {
                    snat_to: vec!["203.0.113.9".parse().unwrap()],
                    ..request("raw:eth0")
                },
                "with snat-to its station's address; leave it out to share that, or change it for both \
                 with `pontoon network set lan`",
            ),
        ] {
            let said = first.complete(&mut other.clone(), "lan").unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
        }
    }
}
