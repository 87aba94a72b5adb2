//! Two networks and a segment of the world, in memory, and a clock that stands still until it is told.
//!
//! ```text
//!   Alice P1 ┐                                            ┌ Far 198.51.100.9
//!   Bob   P2 ┴ network 1 ─ gateway ─ NAT ─ our station ─ P1 ┴ Router 198.51.100.254 ─ Distant
//!   Carol P1 ─ network 2 ─ gateway ─┘ (its uplink is the host's sockets)
//! ```
//!
//! A frame goes the way a worker takes it: by `ingress`, then by the crossing in the buffer it lies in. What
//! comes out is read by pnet, which finds every length and checksum right.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use datapath::stats::PortCounters;
use datapath::{
    Arrival, Body, Crossed, Crossing, Datapath, Decision, Departure, DropReason, Fate, Gateway,
    Hop, IpMtu, Leg, Legs, MacAddr, Network, NetworkConfig, OFFLOAD_HEADER_LEN, Offload, Offloads,
    Outbox, Outside, Port, PortId, PortRole, PortTotals, Received, Silent, Slot, Uplink, Why, slot,
};
use nat::{
    Account, Config, Conntrack, Destination, Match, Nat, NoNotes, Notes, Owner, Profile, Protocol,
    Rule, Rules, Source, Zone,
};
use smoltcp::time::{Duration, Instant};

use crate::wire::{self, ALICE, BOB, GATEWAY, Seen, Station};

pub(crate) const NET: Zone = Zone(1);
pub(crate) const SEGMENT: Zone = Zone(0x8001);
/// A network with another uplink.
pub(crate) const BESIDE: Zone = Zone(2);
pub(crate) const P1: PortId = PortId(1);
pub(crate) const P2: PortId = PortId(2);

/// Our station on the segment.
pub(crate) const OURS: Station = station(1, 1);
/// Another station there.
pub(crate) const FAR: Station = station(9, 9);
/// On the network beside, and its gateway.
pub(crate) const CAROL: Station = beside(2);
const BESIDE_GATEWAY: Station = beside(1);
/// The way to everywhere else.
pub(crate) const ROUTER: Station = station(0xfe, 0xfe);

const fn station(mac: u8, last: u8) -> Station {
    Station {
        mac: [2, 0, 0, 0, 7, mac],
        v4: std::net::Ipv4Addr::new(198, 51, 100, last),
        v6: std::net::Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, last as u16),
    }
}

const fn beside(last: u8) -> Station {
    Station {
        mac: [2, 0, 0, 0, 8, last],
        v4: std::net::Ipv4Addr::new(10, 8, 0, last),
        v6: std::net::Ipv6Addr::new(0xfd00, 8, 0, 0, 0, 0, 0, last as u16),
    }
}

/// An address behind the router.
pub(crate) fn distant(v6: bool) -> IpAddr {
    if v6 { "2001:db8:9::7".parse().unwrap() } else { "203.0.113.7".parse().unwrap() }
}

/// What left, by which network and port.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) zone: Zone,
    pub(crate) port: PortId,
    pub(crate) octets: Vec<u8>,
    pub(crate) offload: Offload,
}

impl Sent {
    /// As pnet reads it; only for what has nothing left undone.
    #[track_caller]
    pub(crate) fn seen(&self) -> Seen {
        assert!(self.offload.checksum.is_none(), "{:?}", self.offload);
        wire::read(&self.octets)
    }
}

struct Nets(HashMap<Zone, Datapath>);

impl Legs for Nets {
    fn leg(&mut self, zone: Zone) -> Option<&mut Datapath> {
        self.0.get_mut(&zone)
    }
}

pub(crate) struct Town {
    nets: Nets,
    pub(crate) crossing: Crossing,
    pub(crate) nat: Arc<Nat>,
    pub(crate) now: Instant,
    counters: Vec<(Zone, PortId, Arc<PortCounters>)>,
    out: Outbox,
    /// The owner of the flow of the last frame, if it has one.
    pub(crate) owned: Option<Owner>,
}

/// How the town is made.
pub(crate) struct Plan {
    pub(crate) mtu: u16,
    pub(crate) nat: bool,
    /// Whether our station's addresses have the segment's subnets, or none.
    pub(crate) subnets: bool,
    pub(crate) routes: Vec<Hop>,
    pub(crate) flows_of_port: usize,
    pub(crate) published: Vec<(Protocol, u16, IpAddr, u16)>,
}

/// The ways by the router.
pub(crate) fn everywhere() -> Vec<Hop> {
    let by_router = [("0.0.0.0/0", false), ("::/0", true)]
        .map(|(to, v6)| Hop { to: to.parse().unwrap(), via: Some(ROUTER.addr(v6)) });
    by_router.to_vec()
}

/// The segment's subnets.
pub(crate) fn on_link() -> Vec<Hop> {
    let subnets = ["198.51.100.0/24", "2001:db8:7::/64"];
    subnets.map(|to| Hop { to: to.parse().unwrap(), via: None }).to_vec()
}

fn routes() -> Vec<Hop> {
    [on_link(), everywhere()].concat()
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            mtu: 1500,
            nat: true,
            subnets: true,
            routes: routes(),
            flows_of_port: 1000,
            published: Vec::new(),
        }
    }
}

impl Town {
    /// A town where everybody knows our stations, and they know everybody.
    pub(crate) fn new(plan: Plan) -> Self {
        let conntrack =
            Arc::new(Conntrack::new(10_000, Profile::Rfc).with_quota(plan.flows_of_port));
        let config = Config { open: !plan.nat, ..Config::new(SEGMENT, [7; 16]) };
        let nat = Arc::new(Nat::new(Arc::clone(&conntrack), config));
        nat.set_rules(rules(&plan));
        let addresses = vec![OURS.addr(false), OURS.addr(true)];
        let subnets = ["192.0.2.0/24", "2001:db8::/64"].map(|subnet| subnet.parse().unwrap());
        let behind = subnets.map(|subnet| (subnet, NET));
        let beside = ["10.8.0.0/24", "fd00:8::/64"].map(|subnet| (subnet.parse().unwrap(), BESIDE));
        let crossing = Crossing::new(Arc::clone(&nat), SEGMENT, addresses, &behind, &beside);
        let gateway = |station: Station, lens: (u8, u8)| Gateway {
            mac: MacAddr(station.mac),
            addresses: vec![
                format!("{}/{}", station.v4, lens.0).parse().unwrap(),
                format!("{}/{}", station.v6, lens.1).parse().unwrap(),
            ],
        };
        let outside = Outside {
            routes: plan.routes,
            behind: subnets.to_vec(),
            link_local: true,
            ..Outside::default()
        };
        let network = |gateway, mtu, leg| NetworkConfig {
            gateway: Some(gateway),
            uplink: Uplink::Raw(SEGMENT),
            mtu: IpMtu(mtu),
            host_addresses: Vec::new(),
            isolated_from: Vec::new(),
            leg,
        };
        let by_sockets = NetworkConfig {
            uplink: Uplink::Sockets,
            isolated_from: subnets.to_vec(),
            ..network(gateway(BESIDE_GATEWAY, (24, 64)), 1500, Leg::Inside)
        };
        let lens = if plan.subnets { (24, 64) } else { (32, 128) };
        let configs = [
            (BESIDE, by_sockets),
            (NET, network(gateway(GATEWAY, (24, 64)), 1500, Leg::Inside)),
            (SEGMENT, network(gateway(OURS, lens), plan.mtu, Leg::Uplink(outside))),
        ];
        let mut counters = Vec::new();
        let nets = configs.map(|(zone, config)| {
            let shared = Arc::new(Network::new(zone, Arc::clone(&conntrack)));
            let own = Arc::<PortCounters>::default();
            counters.push((zone, PortId::GATEWAY, Arc::clone(&own)));
            (zone, Datapath::new(shared, Arc::new(config), own))
        });
        let mut nets = Nets(nets.into());
        let station = nets.0[&SEGMENT].config().clone();
        let beside = nets.0.get_mut(&BESIDE).unwrap();
        beside.set_stations([(SEGMENT, Arc::new(station))].into());
        let mut town = Self {
            nets,
            crossing,
            nat,
            now: Instant::from_secs(1000),
            counters,
            out: Outbox::default(),
            owned: None,
        };
        town.attach(NET, P1, Some(ALICE), 1500);
        town.attach(NET, P2, Some(BOB), 1500);
        town.attach(SEGMENT, P1, None, plan.mtu);
        town.attach(BESIDE, P1, Some(CAROL), 1500);
        for (port, known) in [(P1, ALICE), (P2, BOB)] {
            town.bring(NET, port, &wire::arp_request(known, GATEWAY.v4)).unwrap();
        }
        town.hear_of_the_segment();
        town
    }

    /// The segment's stations ask for ours, and are known again.
    pub(crate) fn hear_of_the_segment(&mut self) {
        for known in [FAR, ROUTER] {
            self.bring(SEGMENT, P1, &wire::arp_request(known, OURS.v4)).unwrap();
            let asked = wire::solicitation(known.mac, Some(known.v6), OURS.v6);
            self.bring(SEGMENT, P1, &asked).unwrap();
        }
    }

    fn attach(&mut self, zone: Zone, id: PortId, station: Option<Station>, mtu: u16) {
        let counters = Arc::<PortCounters>::default();
        self.counters.push((zone, id, Arc::clone(&counters)));
        let port = Port {
            role: if station.is_some() { PortRole::Container } else { PortRole::Interface },
            mtu: IpMtu(mtu),
            offloads: Offloads::Header,
            mac: MacAddr(station.map_or([2; 6], |station| station.mac)),
            addresses: station
                .map(|station| vec![station.addr(false), station.addr(true)])
                .unwrap_or_default(),
        };
        let dp = self.nets.0.get_mut(&zone).unwrap();
        dp.attach(id, port, counters);
        dp.introduce(id, self.now, &mut self.out);
    }

    /// Brings in a plain frame: what left, or why it went no further with what was said about it.
    pub(crate) fn bring(
        &mut self,
        zone: Zone,
        port: PortId,
        frame: &[u8],
    ) -> Result<Vec<Sent>, (DropReason, Vec<Sent>)> {
        self.bring_with(zone, port, frame, Offload::NONE)
    }

    /// Brings in a frame on which something is left undone.
    pub(crate) fn bring_with(
        &mut self,
        zone: Zone,
        port: PortId,
        frame: &[u8],
        offload: Offload,
    ) -> Result<Vec<Sent>, (DropReason, Vec<Sent>)> {
        self.ask(zone, port, (frame, offload), &mut Silent, &mut NoNotes)
    }

    /// The same, asking why.
    pub(crate) fn ask<W: Why, N: Notes>(
        &mut self,
        zone: Zone,
        port: PortId,
        (frame, offload): (&[u8], Offload),
        why: &mut W,
        notes: &mut N,
    ) -> Result<Vec<Sent>, (DropReason, Vec<Sent>)> {
        self.out.clear();
        self.owned = None;
        let mut len = OFFLOAD_HEADER_LEN + frame.len();
        let mut octets = vec![0; OFFLOAD_HEADER_LEN];
        offload.emit(octets.first_chunk_mut().unwrap());
        octets.extend_from_slice(frame);
        octets.resize(len + slot::SPARE, 0xee);
        let received = Received { port, place: 0, frame, offload };
        let dp = self.nets.0.get_mut(&zone).unwrap();
        let mut outcome = Ok(());
        match dp.ingress(&received, self.now, &mut self.out, why) {
            Decision::Cross(segment, packet) => {
                assert_eq!(segment, SEGMENT);
                let arrival = Arrival { zone, port, offload, packet };
                let mut slot = Slot::new(&mut octets, &mut len, Some(0));
                let (now, out) = (self.now, &mut self.out);
                let nets = &mut self.nets;
                let crossed = self.crossing.carry(nets, &arrival, &mut slot, now, out, notes);
                let fate = match crossed {
                    Ok(Crossed::Done) => Fate::Consumed,
                    Ok(Crossed::Owned(owner, ..)) => {
                        self.owned = Some(owner);
                        Fate::Consumed
                    }
                    Err(reason) => {
                        outcome = Err(reason);
                        // Whatever refuses a frame leaves it as it came.
                        assert_eq!(&octets[OFFLOAD_HEADER_LEN..len], frame, "{reason}");
                        Fate::Dropped(reason)
                    }
                };
                self.nets.0.get_mut(&zone).unwrap().decided(port, fate);
            }
            Decision::Drop(reason) => outcome = Err(reason),
            _ => {}
        }
        let sent = self.sent(&octets[..len]);
        self.balanced();
        match outcome {
            Ok(()) => Ok(sent),
            Err(reason) => Err((reason, sent)),
        }
    }

    fn sent(&self, with_header: &[u8]) -> Vec<Sent> {
        let departures = self.out.departures().iter();
        let sent = departures.map(|departure| {
            let octets = match departure.body {
                Body::Received(_) => {
                    let header = with_header.first_chunk().unwrap();
                    assert_eq!(
                        Offload::parse(header),
                        Ok(departure.offload),
                        "header of the frame"
                    );
                    with_header[OFFLOAD_HEADER_LEN..].to_vec()
                }
                Body::Built(built) => self.out.frame(built).to_vec(),
            };
            let Departure { zone, to: port, offload, .. } = *departure;
            Sent { zone, port, octets, offload }
        });
        sent.collect()
    }

    /// Lets time go by as a worker does, a second at a time, and returns what was sent.
    pub(crate) fn advance(&mut self, seconds: u64) -> Vec<Sent> {
        let mut all = Vec::new();
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            for zone in [NET, SEGMENT, BESIDE] {
                self.out.clear();
                let dp = self.nets.0.get_mut(&zone).unwrap();
                let waited = dp.handle_timeout(self.now, &mut self.out);
                for pending in waited {
                    let (now, out) = (self.now, &mut self.out);
                    self.crossing.unreachable(&mut self.nets, zone, &pending, now, out);
                }
                all.extend(self.sent(&[0; OFFLOAD_HEADER_LEN]));
            }
            self.out.clear();
            self.crossing.tell_unsolicited(&mut self.nets, self.now, &mut self.out);
            self.nat.expire(self.now);
            self.crossing.tell_overdue(&mut self.nets, self.now, &mut self.out);
            all.extend(self.sent(&[0; OFFLOAD_HEADER_LEN]));
            self.balanced();
        }
        all
    }

    /// sum(received) = forwarded + consumed + dropped, at every port.
    #[track_caller]
    fn balanced(&self) {
        for (zone, port, counters) in &self.counters {
            let mut totals = PortTotals::default();
            counters.add_to(&mut totals);
            assert!(totals.balances(), "{zone:?} {port}: {totals:?}");
        }
    }
}

fn rules(plan: &Plan) -> Rules {
    let mut prerouting = Vec::new();
    for (protocol, port, to, to_port) in &plan.published {
        let own = OURS.addr(to.is_ipv6());
        let len = if to.is_ipv6() { 128 } else { 32 };
        let matches = Match {
            dst: Some(format!("{own}/{len}").parse().unwrap()),
            protocol: Some(*protocol),
            dst_ports: *port..=*port,
            ..Match::ANY
        };
        let action = Destination::To {
            addr: *to,
            first_port: Some(*to_port),
            account: Account(2),
            zone: NET,
        };
        prerouting.push(Rule::new(matches, action));
    }
    let masquerade = Match { to: Some(SEGMENT), ..Match::ANY };
    let masquerade = plan.nat.then(|| Rule::new(masquerade, Source::Masquerade));
    Rules::new(prerouting, masquerade.into_iter().collect())
}
