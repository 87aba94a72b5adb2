//! The bridge: one frame in, a decision out.
//!
//! Read 802.1Q §8.6 and `br_handle_frame_finish` in `net/bridge/br_input.c` first. A worker has a
//! [`Datapath`] for each network; what workers share is in [`Network`]. Nothing here allocates once
//! the tables know the stations.

use std::net::IpAddr;
use std::sync::Arc;

use nat::{Direction, Owner, Zone};
use smoltcp::time::Instant;

use crate::drop::DropReason;
use crate::fdb::FdbCache;
use crate::frame::Frame;
use crate::guard;
use crate::network::{Network, NetworkConfig};
use crate::offload::{Gso, Offload};
use crate::outbox::{Body, Built, Outbox};
use crate::packet::Packet;
use crate::port::{MacAddr, Port, PortId, PortRole};
use crate::stats::{Fate, PortCounters};
use crate::why::{Step, Why};

/// Octets of an 802.1Q tag, which a frame may have beyond the MTU.
const VLAN_TAG_LEN: usize = 4;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub enum Decision {
    /// It leaves by one port; the departure is in the outbox.
    Forward(PortId),
    /// Every port but the ingress gets a copy; the departures are in the outbox.
    Flood,
    /// The gateway took it; an answer, if any, is in the outbox.
    Consumed,
    /// It belongs to a flow, whose owner must take it and then call [`Datapath::decided`].
    Flow(Owner, Direction, Packet),
    /// It belongs to no flow and takes the socket uplink, which must call [`Datapath::decided`]; a datagram
    /// for the host that no mapping of its has the port of, [`Datapath::pass_to_host`] instead.
    Uplink(Packet),
    /// It is for the crossing of that segment, whose caller must call [`Datapath::decided`].
    Cross(Zone, Packet),
    /// It goes no further.
    Drop(DropReason),
}

/// A frame as a worker received it.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The port it came in by.
    pub port: PortId,
    /// Its place in the burst.
    pub place: u16,
    /// Its octets.
    pub frame: &'a [u8],
    /// What was left undone on it.
    pub offload: Offload,
}

#[derive(Debug)]
struct Attached {
    port: Port,
    counters: Arc<PortCounters>,
}

/// One worker's view of one network.
#[derive(Debug)]
pub struct Datapath {
    pub(crate) network: Arc<Network>,
    pub(crate) config: Arc<NetworkConfig>,
    ports: Vec<Option<Attached>>,
    members: Vec<PortId>,
    pub(crate) host: Option<PortId>,
    stations: Arc<[(Zone, Arc<NetworkConfig>)]>,
    gateway_counters: Arc<PortCounters>,
    cache: FdbCache,
}

impl Datapath {
    /// A view of `network` without ports; `gateway` counts for the gateway, as if it were a port.
    #[must_use]
    pub fn new(
        network: Arc<Network>,
        config: Arc<NetworkConfig>,
        gateway: Arc<PortCounters>,
    ) -> Self {
        Self {
            network,
            config,
            ports: Vec::new(),
            members: Vec::new(),
            host: None,
            stations: Arc::default(),
            gateway_counters: gateway,
            cache: FdbCache::default(),
        }
    }

    /// Takes in one frame and leaves zero or more departures in `out`.
    ///
    /// Touches memory only: the worker owns the descriptors and the caller owns the clock.
    pub fn ingress<W: Why>(
        &mut self,
        received: &Received<'_>,
        now: Instant,
        out: &mut Outbox,
        why: &mut W,
    ) -> Decision {
        let len = received.frame.len();
        if W::ASKED {
            why.step(Step::Ingress { port: received.port, len });
        }
        if let Some(counters) = self.counters(received.port) {
            counters.received(len);
        }
        // Each is made anew: only those that carry a packet are worth the copy of one.
        let (fate, decision) = match self.decide(received, now, out, why) {
            Ok(Decision::Forward(to)) => (Fate::Forwarded, Decision::Forward(to)),
            Ok(Decision::Flood) => (Fate::Forwarded, Decision::Flood),
            Ok(Decision::Consumed) => (Fate::Consumed, Decision::Consumed),
            Err(reason) | Ok(Decision::Drop(reason)) => {
                (Fate::Dropped(reason), Decision::Drop(reason))
            }
            Ok(left @ (Decision::Flow(..) | Decision::Uplink(_) | Decision::Cross(..))) => {
                return left;
            }
        };
        if W::ASKED
            && let Decision::Drop(reason) = decision
        {
            why.step(Step::Dropped(reason));
        }
        self.decided(received.port, fate);
        decision
    }

    /// Counts a frame of `len` octets that cannot even be looked at.
    pub fn refuse(&self, port: PortId, len: usize, reason: DropReason) {
        self.took(port, len, Fate::Dropped(reason));
    }

    /// Counts a frame of `len` octets that the caller has decided itself.
    pub fn took(&self, port: PortId, len: usize, fate: Fate) {
        if let Some(counters) = self.counters(port) {
            counters.received(len);
            counters.decided(fate);
        }
    }

    /// Counts the fate of a frame that [`ingress`](Self::ingress) left to its caller.
    pub fn decided(&self, port: PortId, fate: Fate) {
        if let Some(counters) = self.counters(port) {
            counters.decided(fate);
        }
    }

    fn decide<W: Why>(
        &mut self,
        received: &Received<'_>,
        now: Instant,
        out: &mut Outbox,
        why: &mut W,
    ) -> Result<Decision, DropReason> {
        received.offload.check(received.frame)?;
        let frame = Frame::parse(received.frame)?;
        let own_mac = self.config.gateway.as_ref().map(|gateway| gateway.mac);
        if Some(frame.src) != own_mac {
            let outcome = self.cache.learn(&self.network.fdb, frame.src, received.port, now);
            if W::ASKED {
                why.step(Step::Learn { station: frame.src, outcome });
            }
        } else if Some(received.port) != self.host {
            return Err(DropReason::SpoofedGateway);
        }
        if frame.is_link_local_group() {
            return Err(DropReason::ReservedGroup);
        }
        if guard::speaks_as_router(&frame) && self.is_guarded(received.port) {
            return Err(DropReason::RaGuard);
        }
        if Some(frame.dst) == own_mac {
            if W::ASKED {
                why.step(Step::Gateway);
            }
            return self.gateway(received, &frame, now, out, why);
        }
        let message = self.announcement(received, &frame);
        if let Some(message) = &message
            && frame.dst.is_unicast()
        {
            self.check_claim(received, message)?;
        }
        if frame.dst.is_unicast()
            && let Some(to) = self.cache.lookup(&self.network.fdb, frame.dst, now)
        {
            if W::ASKED {
                why.step(Step::Known { station: frame.dst, port: to });
            }
            return self.forward(received, to, out);
        }
        let answered = match message {
            Some(message) if !frame.dst.is_unicast() => self.heard(received, message, now, out)?,
            _ => false,
        };
        let body = Body::Received(received.place);
        let spare = if answered { self.host } else { None };
        let copies =
            self.flood(received.port, spare, body, received.frame.len(), received.offload, out);
        if W::ASKED {
            why.step(if answered { Step::Answered } else { Step::Flood { copies } });
        }
        match copies {
            0 if answered => Ok(Decision::Consumed),
            0 if own_mac.is_some() && !frame.dst.is_unicast() => Ok(Decision::Consumed),
            0 => Err(DropReason::NoPort),
            _ => Ok(Decision::Flood),
        }
    }

    /// Whether whoever is behind `port` is no router: a container, where the gateway is one.
    fn is_guarded(&self, port: PortId) -> bool {
        let role = self.attached(port).map(|attached| attached.port.role);
        self.config.gateway.is_some() && role == Some(PortRole::Container)
    }

    #[inline]
    pub(crate) fn forward(
        &mut self,
        received: &Received<'_>,
        to: PortId,
        out: &mut Outbox,
    ) -> Result<Decision, DropReason> {
        if to == received.port {
            return Err(DropReason::SamePort);
        }
        let egress = self.attached(to).ok_or(DropReason::NoPort)?;
        if !fits(&egress.port, received.frame.len(), received.offload) {
            return Err(DropReason::MtuExceeded);
        }
        out.push((self.network.zone, to), Body::Received(received.place), received.offload);
        Ok(Decision::Forward(to))
    }

    /// Gives each member but `ingress` and `spare` its copy, and returns how many got one. A port whose
    /// MTU is too small loses its own copy and delays nobody.
    fn flood(
        &self,
        ingress: PortId,
        spare: Option<PortId>,
        body: Body,
        len: usize,
        offload: Offload,
        out: &mut Outbox,
    ) -> usize {
        let mut copies = 0;
        for to in &self.members {
            if *to == ingress || Some(*to) == spare {
                continue;
            }
            let Some(egress) = self.attached(*to) else { continue };
            if fits(&egress.port, len, offload) {
                out.push((self.network.zone, *to), body, offload);
                copies += 1;
            } else {
                egress.counters.not_sent(DropReason::MtuExceeded);
            }
        }
        copies
    }

    /// Sends a frame of the gateway's own to the station `dst`. It counts as received from
    /// [`PortId::GATEWAY`], and has one fate as any other frame.
    pub fn send(
        &mut self,
        built: Built,
        dst: MacAddr,
        offload: Offload,
        now: Instant,
        out: &mut Outbox,
    ) {
        out.frame_mut(built)[..6].copy_from_slice(dst.as_bytes());
        self.depart(Body::Built(built), built.len(), dst, offload, now, out);
    }

    /// The same for a frame of `len` octets that says where it goes.
    pub(crate) fn depart(
        &mut self,
        body: Body,
        len: usize,
        dst: MacAddr,
        offload: Offload,
        now: Instant,
        out: &mut Outbox,
    ) {
        self.gateway_counters.received(len);
        let known = dst.is_unicast().then(|| self.cache.lookup(&self.network.fdb, dst, now));
        let fate = if let Some(Some(to)) = known {
            match self.attached(to) {
                None => Fate::Dropped(DropReason::NoPort),
                Some(egress) if !fits(&egress.port, len, offload) => {
                    Fate::Dropped(DropReason::MtuExceeded)
                }
                Some(_) => {
                    out.push((self.network.zone, to), body, offload);
                    Fate::Forwarded
                }
            }
        } else {
            match self.flood(PortId::GATEWAY, None, body, len, offload, out) {
                0 => Fate::Dropped(DropReason::NoPort),
                _ => Fate::Forwarded,
            }
        };
        self.gateway_counters.decided(fate);
    }

    /// Attaches a port; its counters are the caller's to read. A port already there is replaced.
    pub fn attach(&mut self, id: PortId, port: Port, counters: Arc<PortCounters>) {
        self.detach(id);
        if self.ports.len() <= id.index() {
            self.ports.resize_with(id.index() + 1, || None);
        }
        if port.role == PortRole::Host {
            self.host = Some(id);
        }
        self.ports[id.index()] = Some(Attached { port, counters });
        self.members.push(id);
    }

    /// Enters the addresses a container's port was given among the gateway's neighbours, so that the
    /// first packet for it need not wait for ARP.
    ///
    /// What waited for one of them already is left in `out`.
    pub fn introduce(&mut self, id: PortId, now: Instant, out: &mut Outbox) {
        let Some(port) = self.port(id).filter(|port| port.role == PortRole::Container) else {
            return;
        };
        let mac = port.mac;
        for addr in port.addresses.clone() {
            let waited = self.network.neighbours.introduce(addr, mac, id, now);
            self.send_waited(waited, mac, now, out);
        }
    }

    /// Detaches a port. What others still send to its stations is flooded, as to any unknown one.
    pub fn detach(&mut self, id: PortId) {
        if self.ports.get_mut(id.index()).and_then(Option::take).is_some() {
            self.members.retain(|member| *member != id);
            if self.host == Some(id) {
                self.host = None;
            }
            for _ in self.network.forget_port(id) {
                self.gateway_counters.not_sent(DropReason::NeighbourFailed);
            }
        }
    }

    /// Changes what the network is.
    pub fn configure(&mut self, config: Arc<NetworkConfig>) {
        self.config = config;
    }

    /// Tells it of the segments where we have a station.
    pub fn set_stations(&mut self, stations: Arc<[(Zone, Arc<NetworkConfig>)]>) {
        self.stations = stations;
    }

    /// The segment where our station has that address.
    pub(crate) fn station_at(&self, addr: IpAddr) -> Option<Zone> {
        let (segment, _) = self.stations.iter().find(|(_, config)| config.answers_for(addr))?;
        Some(*segment)
    }

    /// What the network is.
    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// What workers share of it.
    #[must_use]
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// An attached port.
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.attached(id).map(|attached| &attached.port)
    }

    /// The port a station was last heard at.
    pub(crate) fn port_behind(&mut self, station: MacAddr, now: Instant) -> Option<&Port> {
        let id = self.cache.lookup(&self.network.fdb, station, now)?;
        self.port(id)
    }

    /// The counts of the gateway, as if it were a port.
    #[must_use]
    pub fn gateway_counters(&self) -> &Arc<PortCounters> {
        &self.gateway_counters
    }

    /// The counts of a port.
    #[must_use]
    pub fn counters(&self, id: PortId) -> Option<&PortCounters> {
        match id {
            PortId::GATEWAY => Some(&self.gateway_counters),
            _ => self.attached(id).map(|attached| &*attached.counters),
        }
    }

    fn attached(&self, id: PortId) -> Option<&Attached> {
        self.ports.get(id.index())?.as_ref()
    }
}

/// Whether a frame may leave by `egress`. A frame still to be segmented is as long as its segments will
/// be, which its sender has seen to (`is_skb_forwardable` in the kernel).
fn fits(egress: &Port, len: usize, offload: Offload) -> bool {
    offload.gso != Gso::None || len <= egress.mtu.frame_len() + VLAN_TAG_LEN
}
