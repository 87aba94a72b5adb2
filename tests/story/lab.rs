//! A network in memory with three ports, a clock that stands still until it is told, and a story.
//!
//! Alice is behind [`P1`], Bob behind [`P2`], Carol behind [`P3`]; none of them is known until heard.
//! Every frame brought in is checked for what must hold of any: one fate, counted once; never out by
//! its ingress; what we build ourselves is sound by pnet's reading. A failed expectation prints the
//! story so far and the tables.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use datapath::stats::PortCounters;
use datapath::{
    Body, Datapath, Decision, DropReason, Fate, Gateway, Gso, IpMtu, Leg, MacAddr, Network,
    NetworkConfig, Offload, Offloads, Outbox, Packet, Port, PortId, PortRole, PortTotals, Received,
    Silent, Step, Uplink,
};
use nat::{Conntrack, Profile, Zone};
use smoltcp::time::{Duration, Instant};

use crate::wire::{self, GATEWAY, Seen, Station, What};

pub(crate) const P1: PortId = PortId(1);
pub(crate) const P2: PortId = PortId(2);
pub(crate) const P3: PortId = PortId(3);

pub(crate) struct Lab {
    pub(crate) datapath: Datapath,
    pub(crate) network: Arc<Network>,
    pub(crate) now: Instant,
    counters: Vec<(PortId, Arc<PortCounters>)>,
    out: Outbox,
    story: Vec<String>,
}

/// What became of a frame.
pub(crate) struct Outcome {
    decision: Decision,
    /// Ports that got the frame as it came.
    copies: Vec<PortId>,
    /// Frames of the gateway's own.
    built: Vec<(PortId, Seen)>,
    /// What is left undone on those.
    offloads: Vec<Offload>,
    report: String,
}

impl Lab {
    /// Three ports, a gateway and the socket uplink.
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: NetworkConfig) -> Self {
        let conntrack = Arc::new(Conntrack::new(1000, Profile::Rfc));
        let network = Arc::new(Network::new(Zone(1), conntrack));
        let gateway = Arc::<PortCounters>::default();
        let datapath = Datapath::new(Arc::clone(&network), Arc::new(config), Arc::clone(&gateway));
        let mut lab = Self {
            datapath,
            network,
            now: Instant::from_secs(1000),
            counters: vec![(PortId::GATEWAY, gateway)],
            out: Outbox::default(),
            story: Vec::new(),
        };
        for id in [P1, P2, P3] {
            lab.attach(id, port());
        }
        lab
    }

    pub(crate) fn attach(&mut self, id: PortId, port: Port) {
        let counters = Arc::<PortCounters>::default();
        self.counters.retain(|(known, _)| *known != id);
        self.counters.push((id, Arc::clone(&counters)));
        self.datapath.attach(id, port, counters);
    }

    /// Attaches a port whose address is `station`'s, by the daemon's own word.
    pub(crate) fn attach_known(&mut self, id: PortId, station: Station) {
        let addresses = vec![station.addr(false), station.addr(true)];
        self.attach(id, Port { mac: MacAddr(station.mac), addresses, ..port() });
        self.out.clear();
        self.datapath.introduce(id, self.now, &mut self.out);
    }

    /// What the last thing that happened has sent.
    pub(crate) fn sent(&self) -> Vec<(PortId, Seen)> {
        self.departures(None).1
    }

    pub(crate) fn detach(&mut self, id: PortId) {
        self.datapath.detach(id);
        self.counters.retain(|(known, _)| *known != id);
    }

    /// Brings in a plain frame.
    #[track_caller]
    pub(crate) fn inject(&mut self, port: PortId, frame: &[u8]) -> Outcome {
        self.inject_with(port, frame, Offload::NONE)
    }

    /// Brings in a frame on which something was left undone.
    #[track_caller]
    pub(crate) fn inject_with(&mut self, port: PortId, frame: &[u8], offload: Offload) -> Outcome {
        let received = Received { port, place: 7, frame, offload };
        let before = self.totals();
        self.out.clear();
        let decision = self.datapath.ingress(&received, self.now, &mut self.out, &mut Silent);
        if matches!(decision, Decision::Flow(..) | Decision::Uplink(_)) {
            self.datapath.decided(port, Fate::Consumed);
        }
        let (copies, built) = self.departures(Some(&received));
        let told = format!("{port} ▶ {} octets: {decision:?}", frame.len());
        self.tell(told, &copies, &built);
        self.account(&before, port, decision, built.len());
        let ours = self.out.departures().iter().filter(|sent| matches!(sent.body, Body::Built(_)));
        let offloads = ours.map(|sent| sent.offload).collect();
        Outcome { decision, copies, built, offloads, report: self.report() }
    }

    /// The steps by which a frame is decided.
    pub(crate) fn explain(&mut self, port: PortId, frame: &[u8]) -> Vec<Step> {
        let received = Received { port, place: 0, frame, offload: Offload::NONE };
        let mut steps = Vec::new();
        self.out.clear();
        let _ = self.datapath.ingress(&received, self.now, &mut self.out, &mut steps);
        steps
    }

    /// Lets time go by, doing what it asks for every second; what was sent meanwhile is returned.
    pub(crate) fn advance(&mut self, time: Duration) -> Vec<(PortId, Seen)> {
        let end = self.now + time;
        let mut sent = Vec::new();
        while self.now < end {
            self.now = (self.now + Duration::from_secs(1)).min(end);
            self.out.clear();
            self.datapath.handle_timeout(self.now, &mut self.out);
            let (copies, built) = self.departures(None);
            if !built.is_empty() {
                self.tell("the clock".to_owned(), &copies, &built);
            }
            sent.extend(built);
        }
        sent
    }

    /// Lets `station` ask for the gateway at `port`, so that each knows the other, in both families.
    #[track_caller]
    pub(crate) fn introduce(&mut self, port: PortId, station: Station) {
        self.inject(port, &wire::arp_request(station, GATEWAY.v4)).answer_beside_flood();
        let asked = wire::solicitation(station.mac, Some(station.v6), GATEWAY.v6);
        self.inject(port, &asked).answer_beside_flood();
    }

    /// Frames that should have gone out by `port` and did not, for this reason.
    pub(crate) fn not_sent(&self, port: PortId, reason: DropReason) -> u64 {
        self.count(port).tx_dropped[reason as usize]
    }

    /// Counts of one port.
    pub(crate) fn count(&self, port: PortId) -> PortTotals {
        let found = self.totals().into_iter().find(|(known, _)| *known == port);
        found.expect("an attached port").1
    }

    fn totals(&self) -> Vec<(PortId, PortTotals)> {
        let total = |counters: &PortCounters| {
            let mut totals = PortTotals::default();
            counters.add_to(&mut totals);
            totals
        };
        self.counters.iter().map(|(port, counters)| (*port, total(counters))).collect()
    }

    /// What is in the outbox: ports that get the received frame, and frames of our own.
    #[track_caller]
    fn departures(&self, received: Option<&Received<'_>>) -> (Vec<PortId>, Vec<(PortId, Seen)>) {
        let (mut copies, mut built) = (Vec::new(), Vec::new());
        for departure in self.out.departures() {
            match (departure.body, received) {
                (Body::Received(place), Some(received)) => {
                    assert_eq!(place, received.place, "{}", self.report());
                    assert_eq!(departure.offload, received.offload, "{}", self.report());
                    assert_ne!(departure.to, received.port, "split horizon: {}", self.report());
                    copies.push(departure.to);
                }
                (Body::Received(_), None) => panic!("nothing was received: {}", self.report()),
                (Body::Built(frame), _) => {
                    let seen = match departure.offload {
                        Offload { checksum: None, gso: Gso::None, .. } => {
                            wire::read(self.out.frame(frame))
                        }
                        left_undone => panic!("{left_undone:?} on a small frame of ours"),
                    };
                    built.push((departure.to, seen));
                }
            }
        }
        (copies, built)
    }

    /// A received frame is counted once, by its ingress alone, with the fate it had; so is each frame
    /// of the gateway's own.
    #[track_caller]
    fn account(
        &self,
        before: &[(PortId, PortTotals)],
        ingress: PortId,
        decision: Decision,
        built: usize,
    ) {
        for ((port, before), (_, now)) in before.iter().zip(self.totals()) {
            let report = || format!("port {port} before: {before:?}\n{}", self.report());
            assert!(now.balances(), "the account of {}", report());
            let received = now.rx_frames - before.rx_frames;
            if *port == ingress {
                assert_eq!(received, 1, "{}", report());
                let fate = match decision {
                    Decision::Forward(_) | Decision::Flood => now.forwarded - before.forwarded,
                    Decision::Drop(reason) => now.dropped(reason) - before.dropped(reason),
                    _ => now.consumed - before.consumed,
                };
                assert_eq!(fate, 1, "{}", report());
            } else if *port == PortId::GATEWAY {
                assert!(received >= u64::from(built > 0), "{}", report());
            } else {
                assert_eq!(received, 0, "{}", report());
            }
        }
    }

    fn tell(&mut self, what: String, copies: &[PortId], built: &[(PortId, Seen)]) {
        let seconds = (self.now - Instant::ZERO).total_micros() / 1_000_000;
        let mut line = format!("{seconds} s: {what}");
        for port in copies {
            let _ = write!(line, "\n       ▶ {port}: as it came");
        }
        for (port, seen) in built {
            let _ = write!(line, "\n       ▶ {port}: {seen:x?}");
        }
        self.story.push(line);
    }

    /// The story and the tables.
    pub(crate) fn report(&self) -> String {
        let mut text = format!("\n\nstory:\n  {}\n\nFDB:\n", self.story.join("\n  "));
        for (station, port, seen) in self.network.fdb.list() {
            let _ = writeln!(text, "  {station} at port {port}, heard {} ago", self.now - seen);
        }
        text.push_str("neighbours:\n");
        for (addr, mac, state) in self.network.neighbours.list(self.now) {
            let _ = writeln!(text, "  {addr} {mac:?} {}", state.name());
        }
        text.push_str("ports:\n");
        for (port, totals) in self.totals() {
            let dropped: Vec<_> = DropReason::ALL
                .iter()
                .filter(|reason| totals.dropped(**reason) > 0)
                .map(|reason| format!("{reason} {}", totals.dropped(*reason)))
                .collect();
            let (rx, on, taken) = (totals.rx_frames, totals.forwarded, totals.consumed);
            let _ = writeln!(
                text,
                "  {port}: received {rx}, forwarded {on}, consumed {taken}, dropped {dropped:?}"
            );
        }
        text
    }
}

impl Outcome {
    /// It left by one port and nothing else did.
    #[track_caller]
    pub(crate) fn forwarded(self, to: PortId) {
        assert!(matches!(self.decision, Decision::Forward(port) if port == to), "{}", self.report);
        assert_eq!(self.copies, [to], "{}", self.report);
        assert_eq!(self.built, [], "{}", self.report);
    }

    /// It left by these ports and nothing else did.
    #[track_caller]
    pub(crate) fn flooded(self, to: &[PortId]) {
        assert!(matches!(self.decision, Decision::Flood), "{}", self.report);
        assert_eq!(self.copies, to, "{}", self.report);
        assert_eq!(self.built, [], "{}", self.report);
    }

    /// It left by every other port, and the gateway had one thing to say, to the ingress.
    #[track_caller]
    pub(crate) fn answer_beside_flood(self) -> Seen {
        assert!(matches!(self.decision, Decision::Flood), "{}", self.report);
        assert_eq!(self.copies.len(), 2, "{}", self.report);
        self.one_answer()
    }

    /// It left by these ports, and the gateway sent what is returned.
    #[track_caller]
    pub(crate) fn flooded_sending(self, to: &[PortId]) -> Vec<(PortId, Seen)> {
        assert!(matches!(self.decision, Decision::Flood), "{}", self.report);
        assert_eq!(self.copies, to, "{}", self.report);
        self.built
    }

    /// The gateway took it and said nothing.
    #[track_caller]
    pub(crate) fn taken(self) {
        assert!(matches!(self.decision, Decision::Consumed), "{}", self.report);
        assert_eq!((self.copies.len(), &*self.built), (0, &[][..]), "{}", self.report);
    }

    /// The gateway took it and had one thing to say.
    #[track_caller]
    pub(crate) fn answered(self) -> Seen {
        assert!(matches!(self.decision, Decision::Consumed), "{}", self.report);
        self.one_answer()
    }

    /// The gateway took it and sent these.
    #[track_caller]
    pub(crate) fn taken_sending(self) -> Vec<(PortId, Seen)> {
        assert!(matches!(self.decision, Decision::Consumed), "{}", self.report);
        self.built
    }

    /// It went no further, and nobody was told.
    #[track_caller]
    pub(crate) fn dropped(self, reason: DropReason) {
        assert!(matches!(self.decision, Decision::Drop(why) if why == reason), "{}", self.report);
        assert_eq!((self.copies.len(), &*self.built), (0, &[][..]), "{}", self.report);
    }

    /// It went no further, and its sender was told.
    #[track_caller]
    pub(crate) fn dropped_telling(self, reason: DropReason) -> Seen {
        assert!(matches!(self.decision, Decision::Drop(why) if why == reason), "{}", self.report);
        self.one_answer()
    }

    /// It is for the socket uplink.
    #[track_caller]
    pub(crate) fn for_uplink(self) -> Packet {
        assert_eq!((self.copies.len(), &*self.built), (0, &[][..]), "{}", self.report);
        match self.decision {
            Decision::Uplink(packet) => packet,
            _ => panic!("not for the uplink: {}", self.report),
        }
    }

    /// What is left undone on the frames the gateway sent.
    pub(crate) fn offloads(self) -> Vec<Offload> {
        self.offloads
    }

    /// What was decided.
    pub(crate) fn decision(&self) -> Decision {
        self.decision
    }

    #[track_caller]
    fn one_answer(self) -> Seen {
        match <[_; 1]>::try_from(self.built) {
            Ok([(_, seen)]) => seen,
            Err(_) => panic!("not one answer: {}", self.report),
        }
    }
}

impl Seen {
    /// Checks that it is the gateway's ICMP error of this type and code to `to`, quoting `about` from
    /// its IP header on, as much as the RFCs allow.
    #[track_caller]
    pub(crate) fn is_error(&self, to: Station, (kind, code): (u8, u8), about: &[u8]) {
        let What::Icmp { ip, kind: seen_kind, code: seen_code, body, .. } = &self.what else {
            panic!("no ICMP: {self:x?}")
        };
        assert_eq!((*seen_kind, *seen_code), (kind, code));
        assert_eq!((self.src, self.dst), (GATEWAY.mac, to.mac));
        let v6 = ip.src.is_ipv6();
        assert_eq!((ip.src, ip.dst, ip.ttl), (GATEWAY.addr(v6), to.addr(v6), 64));
        // RFC 1812 §4.3.2.3 and §4.3.2.5; RFC 4443 §2.4 (c).
        let most = if v6 { 1280 - 48 } else { 576 - 28 };
        assert_eq!(ip.class, if v6 { 0 } else { 0xc0 });
        assert_eq!(body, &about[..about.len().min(most)]);
    }
}

/// A port for one container.
pub(crate) fn port() -> Port {
    Port {
        role: PortRole::Container,
        mtu: IpMtu::ETHERNET,
        offloads: Offloads::Header,
        mac: MacAddr([0; 6]),
        addresses: Vec::new(),
    }
}

/// 192.0.2.0/24 and 2001:db8::/64 with the socket uplink; 203.0.113.0/24 and 2001:db8:2::/64 are other
/// networks.
pub(crate) fn config() -> NetworkConfig {
    let subnet = |text: &str| text.parse().expect("a subnet");
    NetworkConfig {
        gateway: Some(Gateway {
            mac: MacAddr(GATEWAY.mac),
            addresses: vec![subnet("192.0.2.1/24"), subnet("2001:db8::1/64")],
        }),
        uplink: Uplink::Sockets,
        mtu: IpMtu::ETHERNET,
        host_addresses: vec![IpAddr::from([198, 51, 100, 1])],
        isolated_from: vec![subnet("203.0.113.0/24"), subnet("2001:db8:2::/64")],
        leg: Leg::Inside,
    }
}
