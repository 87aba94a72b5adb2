//! What the control side asks of the raw uplink: our stations on segments, and what is published there.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use datapath::presence::{Origin, Standing};
use datapath::{Gateway, IpMtu, PortId, Presence, Uplink};
use nat::Nat;
use smoltcp::time::Instant;

use crate::command::Command;
use crate::control::{NetworkConfig, PortConfig, SegmentId};
use crate::rules;
use crate::segments::{
    AddressOrigin, AddressRow, AddressState, LeaseRow, NatPublication, SegmentConfig, SegmentRow,
};
use crate::station::Station;
use crate::switch::Switch;

impl Switch {
    /// Puts a station of ours on the segment that `device` is an interface of, an
    /// [`Interface`](datapath::PortRole::Interface) port. Networks reach it once their uplink is
    /// [`Uplink::Raw`] of its zone.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`; `InvalidInput` for a configuration that contradicts itself, in words; as
    /// [`add_port`](Self::add_port).
    pub fn add_segment(
        &self,
        id: SegmentId,
        config: SegmentConfig,
        device: PortConfig,
    ) -> io::Result<PortId> {
        rules::check(&config).map_err(invalid)?;
        if SegmentId::of(id.zone()) != Some(id) {
            return Err(invalid(format!("segment {}: beyond 32767", id.0)));
        }
        let mut state = self.state();
        if state.networks.contains_key(&id.network()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let as_network = as_network(id, &config);
        let station = Arc::new(Station::new(id, config, Arc::clone(&self.conntrack)));
        let network = Arc::clone(&station.network);
        let mut known = self.known(as_network, network, Some(Arc::clone(&station)));
        // Whichever worker the presence speaks by, its frames are counted apart.
        let counters = Arc::default();
        known.gateway.push(Arc::clone(&counters));
        self.tell_network(id.network(), &known, &station.current().config);
        for worker in &self.workers {
            worker.tell(Command::AddStation(Arc::clone(&station)));
        }
        state.networks.insert(id.network(), known);
        self.tell_networks(&state);
        drop(state);
        let port = self.add_port(id.network(), device).inspect_err(|_| self.remove_segment(id))?;
        station.move_in(port, counters, self.now());
        self.wake_all();
        Ok(port)
    }

    /// Changes our station, or what becomes of packets. Flows go on, but for those shown with an address
    /// that is gone. An address that is new is probed for before it is used; one that stays is in use
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// `NotFound`; as [`add_segment`](Self::add_segment).
    pub fn set_segment(&self, id: SegmentId, config: SegmentConfig) -> io::Result<()> {
        rules::check(&config).map_err(invalid)?;
        let mut state = self.state();
        let known = state.networks.get_mut(&id.network()).ok_or(io::ErrorKind::NotFound)?;
        let station = known.station.clone().ok_or(io::ErrorKind::NotFound)?;
        known.config = as_network(id, &config);
        station.configure(config, self.now());
        self.wake_all();
        Ok(())
    }

    /// Tells that a segment's interface has come up or gone down, and what it carries: addresses are probed
    /// for again behind a cable that was plugged in, a lease is asked for as it was.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn set_segment_link(&self, id: SegmentId, up: bool, mtu: IpMtu) -> io::Result<()> {
        let state = self.state();
        let known = state.networks.get(&id.network()).ok_or(io::ErrorKind::NotFound)?;
        let station = known.station.as_ref().ok_or(io::ErrorKind::NotFound)?;
        station.set_link(up, mtu, self.now());
        self.wake_all();
        Ok(())
    }

    /// Has a segment's station speak by another interface in place of the one it had, which is gone. Flows and
    /// addresses stay; its link counts as down until [`set_segment_link`](Self::set_segment_link).
    ///
    /// # Errors
    ///
    /// `NotFound`; as [`add_port`](Self::add_port), and the station has no interface then.
    pub fn set_segment_device(&self, id: SegmentId, device: PortConfig) -> io::Result<PortId> {
        let (station, old) = {
            let state = self.state();
            let known = state.networks.get(&id.network()).ok_or(io::ErrorKind::NotFound)?;
            let station = known.station.clone().ok_or(io::ErrorKind::NotFound)?;
            (station, known.ports.keys().copied().collect::<Vec<_>>())
        };
        station.hush();
        old.into_iter().for_each(|port| self.remove_port(id.network(), port));
        let port = self.add_port(id.network(), device)?;
        station.move_to(port);
        Ok(port)
    }

    fn wake_all(&self) {
        self.workers.iter().for_each(|worker| worker.wake());
    }

    /// Takes our station from a segment. Its flows end; networks behind it have no way out any more.
    /// Taking one that is not there does nothing.
    pub fn remove_segment(&self, id: SegmentId) {
        self.remove_network(id.network());
    }

    /// The segments, with what our stations have there now.
    pub fn segment_rows(&self) -> Vec<SegmentRow> {
        let state = self.state();
        let now = self.now();
        let known = state.networks.values();
        let rows = known.filter_map(|known| {
            let station = known.station.as_ref()?;
            station.looked_at();
            let config = station.config();
            let port = known.ports.keys().next().copied().unwrap_or(PortId::GATEWAY);
            let row = SegmentRow {
                segment: station.segment,
                mac: config.mac,
                mtu: config.mtu,
                addresses: Vec::new(),
                routers: Vec::new(),
                lease: None,
                dns: Vec::new(),
                port,
            };
            Some(station.look(|presence| with_presence(row.clone(), presence, now)).unwrap_or(row))
        });
        rows.collect()
    }

    /// Publishes these ports at a segment's addresses, in place of those before. Flows by a port that is
    /// published no more, or leads elsewhere, end; all others go on, and TCP connections do.
    ///
    /// # Errors
    ///
    /// `NotFound`; `InvalidInput` for one that cannot be, in words: none is published then.
    pub fn publish_nat(&self, id: SegmentId, published: Vec<NatPublication>) -> io::Result<()> {
        published.iter().try_for_each(rules::check_published).map_err(invalid)?;
        let state = self.state();
        let known = state.networks.get(&id.network()).ok_or(io::ErrorKind::NotFound)?;
        let station = known.station.as_ref().ok_or(io::ErrorKind::NotFound)?;
        station.publish(published);
        Ok(())
    }

    /// A segment's NAT, for listings: its rules with their counts, its mappings.
    pub fn nat(&self, id: SegmentId) -> Option<Arc<Nat>> {
        let state = self.state();
        let station = state.networks.get(&id.network())?.station.as_ref()?;
        Some(station.nat())
    }
}

/// What a presence has to say.
fn with_presence(row: SegmentRow, presence: &Presence, now: Instant) -> SegmentRow {
    let left = |end: Instant| {
        if end > now { Duration::from(end - now) } else { Duration::ZERO }
    };
    // The link-local address is the station's by itself.
    let own = presence.rows().into_iter().filter(|own| own.origin != Origin::LinkLocal);
    let addresses = own.map(|own| AddressRow {
        cidr: own.address,
        origin: match own.origin {
            Origin::Dhcp => AddressOrigin::Dhcp,
            Origin::Advertised => AddressOrigin::Slaac,
            Origin::Static | Origin::LinkLocal => AddressOrigin::Static,
            Origin::Shown => AddressOrigin::Shown,
        },
        state: match own.standing {
            Standing::Tentative => AddressState::Tentative,
            Standing::InUse => AddressState::Valid,
            Standing::Deprecated => AddressState::Deprecated,
            Standing::Conflict => AddressState::Conflict,
        },
        valid_for: own.expires.map(left),
    });
    let v4 = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(_) => None,
    };
    let lease = presence.lease().map(|lease| LeaseRow {
        state: lease.state,
        server: lease.server.and_then(v4),
        renews_in: lease.times.map(|[renewal, ..]| left(renewal)),
        expires_in: lease.times.map(|[.., over]| left(over)),
        // Routers tell of IPv6 ones alone.
        dns: presence.dns().iter().copied().filter_map(v4).collect(),
    });
    let mut routers = Vec::new();
    for router in presence.routes().iter().filter(|hop| hop.to.prefix_len() == 0) {
        let known = |known: &IpAddr| Some(known.is_ipv4()) == router.via.map(|via| via.is_ipv4());
        if !routers.iter().any(known) {
            routers.extend(router.via);
        }
    }
    let (addresses, dns) = (addresses.collect(), presence.dns().to_vec());
    SegmentRow { mtu: presence.mtu(), addresses, routers, lease, dns, ..row }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// A segment by the name of a network, for listings.
fn as_network(id: SegmentId, config: &SegmentConfig) -> NetworkConfig {
    NetworkConfig {
        gateway: Some(Gateway { mac: config.mac, addresses: Vec::new() }),
        uplink: Uplink::Raw(id.zone()),
        mtu: config.mtu,
        host_addresses: Vec::new(),
    }
}
