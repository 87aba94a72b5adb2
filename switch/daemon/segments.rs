//! Segments: our stations on the host's interfaces, opened for the first network behind one and closed
//! with the last.
//!
//! Whoever makes, changes or leaves one has `changes`. Rules for published ports follow what endpoints
//! have published: [`Daemon::tell_segment`] is called after each change of that.

use std::io;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use datapath::{MacAddr, Offloads, PortRole};
use netns::Take;
use worker::{NatPublication, NetworkId, PortConfig, SegmentConfig, SegmentId, SegmentRow};

use crate::api;
use crate::dnat;
use crate::error::Error;
use crate::log::log;
use crate::mac;
use crate::network::{Bridged, Network};
use crate::plan::{self, Changed};
use crate::segment::{self, Segment};
use crate::state::{Daemon, Registry};
use crate::translation::Translation;
use crate::uplink::{Addressing, Uplink};

/// How long whoever puts a station on a segment waits for its addresses. Three probes for one that was
/// given take up to nine seconds (RFC 5227 §2.1.1); a DHCP server is asked before.
const SETTLE: Duration = Duration::from_secs(14);

/// How often the switch is asked meanwhile, should it not say anything.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What became of a network's segment.
#[derive(Debug)]
pub(crate) struct Moved {
    /// The one it is behind now.
    pub(crate) segment: Option<SegmentId>,
    /// The one it is not behind any more.
    pub(crate) left: Option<SegmentId>,
}

impl Daemon {
    /// Completes a request for a network by what networks with the same interface share.
    pub(crate) fn complete(&self, request: &mut api::NetworkCreate) -> Result<(), Error> {
        let registry = self.registry();
        match &request.uplink {
            Uplink::Bridge(interface) => {
                let other = registry.networks.values().find(|n| n.uplink == request.uplink);
                other.map_or(Ok(()), |other| {
                    let (interface, network) = (interface.clone(), other.name.clone());
                    Err(Error::InterfaceBridged { interface, network })
                })
            }
            Uplink::Raw(raw) => match registry.segment_on(&raw.interface) {
                Some(segment) => {
                    let first = registry.behind(segment.id).next().map(|n| n.name.clone());
                    segment.complete(request, &first.unwrap_or_default())
                }
                None => Ok(()),
            },
            Uplink::Sockets | Uplink::None => Ok(()),
        }
    }

    /// Completes a change likewise, where it takes the network behind a segment that others are behind.
    pub(crate) fn completed(
        &self,
        name: &str,
        change: &api::NetworkChange,
    ) -> Result<api::NetworkChange, Error> {
        let Some(Uplink::Raw(raw)) = &change.uplink else { return Ok(change.clone()) };
        {
            let registry = self.registry();
            let there = registry.segment_on(&raw.interface).map(|segment| segment.id);
            if there.is_none() || registry.network(name)?.segment == there {
                return Ok(change.clone());
            }
        }
        let mut request = api::NetworkCreate {
            uplink: Uplink::Raw(raw.clone()),
            snat_to: change.snat_to.clone().unwrap_or_default(),
            filtering: change.filtering,
            timeouts: change.timeouts.clone(),
            nat46: change.nat46.clone(),
            ..api::NetworkCreate::default()
        };
        self.complete(&mut request)?;
        Ok(api::NetworkChange {
            uplink: Some(request.uplink),
            snat_to: Some(request.snat_to),
            filtering: request.filtering,
            timeouts: request.timeouts,
            nat46: request.nat46,
            ..change.clone()
        })
    }

    /// The segment of a raw uplink, which is opened if it is not; true if it was not. A network with these
    /// prefixes is to be behind it.
    pub(crate) fn connect(
        &self,
        uplink: &Uplink,
        translation: &Translation,
    ) -> Result<(Option<SegmentId>, bool), Error> {
        let Uplink::Raw(raw) = uplink else { return Ok((None, false)) };
        let known = self.registry().segment_on(&raw.interface).map(|segment| segment.id);
        if known.is_some() {
            return Ok((known, false));
        }
        let id = self.registry().free_segment();
        let facts = self.look_at(&raw.interface)?;
        let mut segment = Segment::plan(id, raw, translation, &facts);
        let device = self.open_interface(&facts, &segment.take())?;
        let config = segment.config_with(translation.prefixes6.iter());
        segment.port = self
            .switch
            .add_segment(id, config.clone(), device)
            .map_err(|source| Error::AddSegment { uplink: uplink.to_string(), source })?;
        segment.told = Some(config);
        let (up, mtu) = (segment.nic.up, segment.nic.mtu);
        self.registry().segments.insert(id, segment);
        // A probe that nobody can hear would find each address free.
        if !up && let Err(error) = self.switch.set_segment_link(id, up, mtu) {
            log!("raw:{}: {error}", raw.interface);
        }
        Ok((Some(id), true))
    }

    /// The MTU of a network that is a segment of the host's: its interface's, or a smaller one that was asked
    /// for. Nobody would be told of a longer packet, which the kernel takes none of.
    pub(crate) fn mtu_of(&self, interface: &str, asked: Option<u16>) -> Result<u16, Error> {
        let most = segment::mtu(&self.look_at(interface)?).0;
        match asked {
            Some(mtu) if mtu > most => {
                Err(Error::MtuAbove { mtu, most, interface: interface.to_owned() })
            }
            Some(mtu) => Ok(mtu),
            None => Ok(most.min(*plan::MTU.end())),
        }
    }

    /// Makes the interface of a network that is a segment of the host's one of its ports.
    pub(crate) fn bridge(&self, network: &mut Network) -> Result<(), Error> {
        let Uplink::Bridge(interface) = &network.uplink else { return Ok(()) };
        let facts = self.look_at(interface)?;
        let device = self.open_interface(&facts, &Take::AllBut(facts.mac))?;
        let added = self.switch.add_port(network.number, device);
        let uplink = network.uplink.to_string();
        let port = added.map_err(|source| Error::AddSegment { uplink, source })?;
        network.bridged = Some(Bridged { port, ifindex: facts.ifindex });
        Ok(())
    }

    /// Looks at the interface of an uplink, whether a station could be on its segment.
    pub(crate) fn look_at(&self, name: &str) -> Result<netns::Facts, Error> {
        if self.registry().is_own_interface(name) {
            return Err(Error::OwnInterface(name.to_owned()));
        }
        Ok(netns::look_at(name)?)
    }

    /// Opens an interface, for the frames of `take`.
    pub(crate) fn open_interface(
        &self,
        facts: &netns::Facts,
        take: &Take,
    ) -> Result<PortConfig, Error> {
        let queues = u16::try_from(self.switch.workers()).unwrap_or(u16::MAX);
        let opened = netns::open_interface(&facts.name, take, queues)?;
        Ok(PortConfig {
            role: PortRole::Interface,
            mtu: segment::mtu(&opened.facts),
            mac: MacAddr(opened.facts.mac),
            addresses: Vec::new(),
            offloads: Offloads::Header,
            queues: opened.queues,
        })
    }

    /// Takes a network to the uplink a change gives it. What it shares with others is changed for all.
    pub(crate) fn change_uplink(
        &self,
        number: NetworkId,
        changed: &Changed,
    ) -> Result<Moved, Error> {
        let uplink = &changed.uplink;
        let (old, there) = {
            let registry = self.registry();
            let old = registry.by_number(number).and_then(|network| network.segment);
            let there = uplink.raw().and_then(|raw| registry.segment_on(&raw.interface));
            (old, there.map(|segment| segment.id))
        };
        let left = old.filter(|_| there != old);
        if !matches!(uplink, Uplink::Raw(_)) {
            return Ok(Moved { segment: None, left });
        }
        let segment = match there {
            // Others agree to what it has: `completed` has seen to that.
            Some(there) if old != Some(there) => there,
            Some(there) => {
                self.change_segment(there, number, changed)?;
                there
            }
            None => {
                return Ok(Moved { segment: self.connect(uplink, &changed.translation)?.0, left });
            }
        };
        Ok(Moved { segment: Some(segment), left })
    }

    /// Changes a segment as one network behind it wants it.
    fn change_segment(
        &self,
        id: SegmentId,
        number: NetworkId,
        changed: &Changed,
    ) -> Result<(), Error> {
        let uplink = &changed.uplink;
        let Uplink::Raw(raw) = uplink else { return Err(not_raw(uplink)) };
        let (mut planned, config) = {
            let registry = self.registry();
            let Some(segment) = registry.segments.get(&id) else { return Ok(()) };
            let planned = segment.changed(raw, &changed.translation);
            if planned.mac != segment.mac {
                return Err(Error::Invalid {
                    what: "uplink",
                    value: uplink.to_string(),
                    why: "a station keeps its MAC address; remove the networks behind it and make them anew",
                });
            }
            let prefixes = registry.behind(id).filter(|network| network.number != number);
            let prefixes = prefixes.flat_map(|network| &network.translation.prefixes6);
            let config = planned.config_with(prefixes.chain(&changed.translation.prefixes6));
            (planned, config)
        };
        self.switch
            .set_segment(id, config.clone())
            .map_err(|source| Error::AddSegment { uplink: uplink.to_string(), source })?;
        planned.told = Some(config);
        let mut registry = self.registry();
        for network in registry.networks.values_mut().filter(|n| n.segment == Some(id)) {
            network.uplink = uplink.clone();
            network.translation = planned.shared_with(&network.translation);
            self.switch.set_policy(network.number, network.policy());
        }
        registry.segments.insert(id, planned);
        Ok(())
    }

    /// A network is behind a segment no more, which goes if that was the last.
    pub(crate) fn leave_segment(&self, id: SegmentId) {
        let alone = self.registry().behind(id).next().is_none();
        if alone && self.registry().segments.remove(&id).is_some() {
            self.switch.remove_segment(id);
        } else {
            self.tell_segment(id);
        }
    }

    /// Takes down every station there is, as nothing is behind them any more.
    pub(crate) fn leave_all_segments(&self) {
        let ids: Vec<_> = std::mem::take(&mut self.registry().segments).into_keys().collect();
        for id in ids {
            self.switch.remove_segment(id);
        }
    }

    /// Tells the switch what a segment's networks show of themselves by now: prefixes and published ports.
    pub(crate) fn tell_segment(&self, id: SegmentId) {
        let _turn = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.switch.segment_rows();
        let (config, published, interface) = {
            let registry = self.registry();
            let Some(segment) = registry.segments.get(&id) else { return };
            let station = registry.is_station(id, &rows);
            let endpoints = registry.behind(id).flat_map(|network| registry.on(network.number));
            let published: Vec<_> =
                endpoints.flat_map(|endpoint| dnat::publications(endpoint, &station)).collect();
            let config = segment.config(registry.behind(id));
            let config = Some(config).filter(|config| segment.told.as_ref() != Some(config));
            // Told again, the rules would begin to count anew.
            let published = Some(published).filter(|published| segment.published != *published);
            (config, published, segment.raw.interface.clone())
        };
        let told = self.tell(id, config, published);
        if let Err(error) = told {
            log!("raw:{interface}: its rules are not what they should be: {error}");
        }
    }

    fn tell(
        &self,
        id: SegmentId,
        config: Option<SegmentConfig>,
        published: Option<Vec<NatPublication>>,
    ) -> io::Result<()> {
        if let Some(config) = config {
            self.switch.set_segment(id, config.clone())?;
            if let Some(segment) = self.registry().segments.get_mut(&id) {
                segment.told = Some(config);
            }
        }
        if let Some(published) = published {
            self.switch.publish_nat(id, published.clone())?;
            if let Some(segment) = self.registry().segments.get_mut(&id) {
                segment.published = published;
            }
        }
        Ok(())
    }

    /// The same for the segment of an endpoint's network, if that has one.
    pub(crate) fn tell_segment_of(&self, network: NetworkId) {
        let segment = self.registry().by_number(network).and_then(|network| network.segment);
        if let Some(segment) = segment {
            self.tell_segment(segment);
        }
    }

    /// Waits until a station has its addresses, or has asked for them long enough; says what is to be
    /// known of that.
    ///
    /// # Errors
    ///
    /// Another station has one of those it was given, or the interface has gone away.
    pub(crate) fn await_station(&self, id: SegmentId) -> Result<Option<String>, Error> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let rows = self.switch.segment_rows();
            let row = rows.iter().find(|row| row.segment == id);
            let registry = self.registry();
            let (Some(segment), Some(row)) = (registry.segments.get(&id), row) else {
                return Ok(None);
            };
            let interface = &segment.raw.interface;
            if let Some(why) = &segment.dead {
                let (interface, why) = (interface.clone(), why.clone());
                return Err(Error::InterfaceGone { interface, why });
            }
            if let Some(conflict) = segment.conflict(row) {
                return Err(conflict);
            }
            if segment.is_settled(row) {
                return Ok(None);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Some(unanswered(segment)));
            }
            let woken = self.settled.wait_timeout(registry, left.min(LOOK_EVERY));
            drop(woken.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// A station has gained or lost an address or a router.
    pub(crate) fn segment_changed(&self, id: SegmentId) {
        let rows = self.switch.segment_rows();
        let Some(row) = rows.iter().find(|row| row.segment == id) else { return };
        let (interface, said, clashes) = {
            let mut registry = self.registry();
            let Registry { segments, networks, .. } = &mut *registry;
            let Some(segment) = segments.get_mut(&id) else { return };
            let networks = networks.values().filter(|network| network.bridged.is_none());
            let clashes = segment::clashes(row, networks);
            let said = segment.news(row).and_then(|said| segment.lines.line(said, Instant::now()));
            (segment.raw.interface.clone(), said, clashes)
        };
        if let Some(said) = said {
            log!("raw:{interface}: {said}");
            for clash in clashes {
                log!(
                    "raw:{interface}: {clash}; make that network another with `pontoon network create --subnet`"
                );
            }
        }
        self.settled.notify_all();
        // Ports published at one address of the station's follow it.
        self.tell_segment(id);
    }

    /// Another station has an address of ours.
    pub(crate) fn address_conflict(&self, id: SegmentId, addr: IpAddr, station: MacAddr) {
        if let Some(segment) = self.registry().segments.get_mut(&id)
            && segment.rival(addr, station)
        {
            let station = mac::text(station);
            let fix = segment.other_than(addr);
            let said = format!(
                "{addr} is in use by {station}; choose another with `pontoon network set NET {fix}`"
            );
            if let Some(line) = segment.lines.line(said, Instant::now()) {
                log!("raw:{}: {line}", segment.raw.interface);
            }
        }
        self.settled.notify_all();
    }
}

impl Registry {
    pub(crate) fn segment_on(&self, interface: &str) -> Option<&Segment> {
        self.segments.values().find(|segment| segment.raw.interface == interface)
    }

    /// A number no segment has. There are fewer segments than networks, and fewer networks than numbers.
    fn free_segment(&self) -> SegmentId {
        let numbers = (0..).map(SegmentId);
        numbers.take(1 << 15).find(|id| !self.segments.contains_key(id)).unwrap_or(SegmentId(0))
    }

    /// Whether an interface of the host's is one we made.
    fn is_own_interface(&self, name: &str) -> bool {
        let mut ports = self.networks.values().filter_map(|network| network.host_port.as_ref());
        ports.any(|port| port.ifname == name)
    }

    /// Tells which addresses a segment's station has, or answers for.
    pub(crate) fn is_station(
        &self,
        id: SegmentId,
        rows: &[SegmentRow],
    ) -> impl Fn(IpAddr) -> bool + use<> {
        let segment = self.segments.get(&id);
        let given = segment.into_iter().flat_map(|segment| segment.raw.addresses());
        let row = rows.iter().find(|row| row.segment == id);
        let learnt = row.into_iter().flat_map(|row| &row.addresses);
        let own: Vec<IpAddr> = given
            .map(|address| address.addr())
            .chain(learnt.map(|address| IpAddr::from(address.cidr.address())))
            .collect();
        let shown = segment.map(|segment| segment.translation.snat_to.clone()).unwrap_or_default();
        move |addr| own.contains(&addr) || shown.iter().any(|range| range.range().contains(&addr))
    }
}

/// What is to be said where a station has asked in vain.
fn unanswered(segment: &Segment) -> String {
    let interface = &segment.raw.interface;
    if !segment.nic.up {
        return format!(
            "raw:{interface}: it is down or has no carrier, without which nobody is asked; `ip link show {interface}` says which"
        );
    }
    let who = match (&segment.raw.v4, &segment.raw.v6) {
        (Addressing::Auto, _) => "no DHCP server has answered",
        (_, Addressing::Auto) => "no router has answered",
        _ => "it is still asked whether anybody has its address",
    };
    format!(
        "raw:{interface}: {who} in {} s, and it goes on asking; or give an address: --uplink raw:{interface},address=ADDR/LEN,gateway=ADDR",
        SETTLE.as_secs()
    )
}

fn not_raw(uplink: &Uplink) -> Error {
    Error::Invalid { what: "uplink", value: uplink.to_string(), why: "it is no raw:IF" }
}
