//! The account: whatever comes in, every frame has one fate, and no table outgrows its bound.

use std::sync::Arc;

use datapath::fdb::CAPACITY;
use datapath::neighbour;
use datapath::offload::{OFFLOAD_HEADER_LEN, PartialChecksum};
use datapath::stats::PortCounters;
use datapath::{
    Body, Datapath, Decision, Fate, Gso, IpMtu, MAX_FRAME_LEN, Network, Offload, Offloads, Outbox,
    Port, PortId, PortRole, PortTotals, Received, Silent,
};
use nat::{Conntrack, Profile, Zone};
use pnet::packet::tcp::TcpFlags;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use smoltcp::time::{Duration, Instant};

use crate::lab::{config, port};
use crate::wire::{
    self, ALICE, BOB, BROADCAST, CAROL, GATEWAY, Mac, NOBODY, Station, Tcp, WORLD, advertisement,
    arp, framed, ip, read, solicitation,
};

const PORTS: u16 = 4;

/// Something that happens.
#[derive(Clone, Debug)]
enum Event {
    Frame {
        port: u16,
        frame: Vec<u8>,
        offload: Header,
    },
    /// What left by a port a moment ago comes in by another, as over a cable that should not be.
    Loop {
        port: u16,
        which: Index,
    },
    Time {
        seconds: u8,
    },
    Detach {
        port: u16,
    },
    Attach {
        port: u16,
        mtu: u16,
    },
}

/// An offload header, sound or not.
#[derive(Clone, Debug)]
enum Header {
    Offload(Offload),
    Octets([u8; OFFLOAD_HEADER_LEN]),
}

fn stations() -> impl Strategy<Value = Station> {
    select(vec![ALICE, BOB, CAROL, GATEWAY, NOBODY, WORLD])
}

fn macs() -> impl Strategy<Value = Mac> {
    prop_oneof![
        8 => stations().prop_map(|station| station.mac),
        1 => Just(BROADCAST),
        1 => any::<[u8; 2]>().prop_map(|[a, b]| [0x33, 0x33, 0, 0, a, b]),
        1 => (0u8..=0x20).prop_map(|last| [0x01, 0x80, 0xc2, 0, 0, last]),
        1 => any::<Mac>(),
    ]
}

/// A frame somebody could honestly send.
fn honest() -> impl Strategy<Value = Vec<u8>> {
    let pair = (stations(), stations(), macs(), any::<bool>());
    let rest = (any::<u8>(), 0u8..11, vec(any::<u8>(), 0..64), any::<u16>(), any::<u32>());
    (pair, rest).prop_map(|((from, to, dst, v6), (ttl, kind, payload, number, word))| {
        let header = ip(from.addr(v6), to.addr(v6)).ttl(ttl);
        let tcp = Tcp { flags: u8::try_from(number & 0x3f).unwrap(), seq: word, ack: word };
        let packet = match kind {
            0 => return arp(dst, 1 + number % 2, (from.mac, from.v4), to.v4),
            1 => return solicitation(from.mac, (number > 9000).then_some(from.v6), to.v6),
            2 => return advertisement(from, to),
            3 => return wire::frame(from.mac, dst, number, &payload),
            4 => header.tcp(4000, number, tcp, &payload),
            5 => header.tcp(4000, 80, Tcp { flags: TcpFlags::SYN, ..tcp }, b""),
            6 => header.echo(number, 1, &payload),
            7 => header.icmp(ttl, 0, &[&[0; 4][..], &payload].concat()),
            8 => header.fragment(number & 0xfff8, number & 1 == 1).carrying(17, &payload),
            9 => header.carrying(ttl, &payload),
            _ => header.udp(number, 53, &payload),
        };
        framed(from.mac, dst, &packet)
    })
}

/// A frame as only malice or a fault makes it.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let bent =
        (honest(), vec((any::<Index>(), any::<u8>()), 1..4)).prop_map(|(mut frame, bends)| {
            for (at, octet) in bends {
                let at = at.index(frame.len());
                frame[at] = octet;
            }
            frame
        });
    let cut = (honest(), any::<Index>()).prop_map(|(mut frame, at)| {
        frame.truncate(at.index(frame.len() + 1));
        frame
    });
    let long = (honest(), 1400usize..MAX_FRAME_LEN + 20).prop_map(|(mut frame, len)| {
        frame.resize(len, 0xa5);
        frame
    });
    let noise = (macs(), macs(), vec(any::<u8>(), 0..80))
        .prop_map(|(dst, src, rest)| [&dst[..], &src, &rest].concat());
    prop_oneof![4 => bent, 2 => cut, 1 => long, 1 => noise, 1 => vec(any::<u8>(), 0..40)]
}

fn headers() -> impl Strategy<Value = Header> {
    let partial = (select(vec![0u16, 14, 34, 54, 1500]), select(vec![0u16, 6, 16, 0xffff]))
        .prop_map(|(start, offset)| PartialChecksum { start, offset });
    let gso = prop_oneof![
        Just(Gso::None),
        (any::<u16>(), any::<bool>()).prop_map(|(size, ecn)| Gso::Tcp4 { size, ecn }),
        (any::<u16>(), any::<bool>()).prop_map(|(size, ecn)| Gso::Tcp6 { size, ecn }),
        any::<u16>().prop_map(|size| Gso::Udp { size }),
    ];
    let made =
        (proptest::option::of(partial), gso, any::<bool>(), select(vec![0u16, 14, 54, 0xffff]))
            .prop_map(|(checksum, gso, valid, header_len)| {
                Header::Offload(Offload { checksum, gso, valid, header_len })
            });
    prop_oneof![
        4 => Just(Header::Offload(Offload::NONE)),
        2 => made,
        1 => any::<[u8; OFFLOAD_HEADER_LEN]>().prop_map(Header::Octets),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    let port = || 1..=PORTS;
    let frames = prop_oneof![honest(), hostile()];
    prop_oneof![
        40 => (port(), frames, headers())
            .prop_map(|(port, frame, offload)| Event::Frame { port, frame, offload }),
        5 => (port(), any::<Index>()).prop_map(|(port, which)| Event::Loop { port, which }),
        3 => (0u8..200).prop_map(|seconds| Event::Time { seconds }),
        1 => port().prop_map(|port| Event::Detach { port }),
        1 => (port(), select(vec![68u16, 1280, 1500, 9000, 65_535]))
            .prop_map(|(port, mtu)| Event::Attach { port, mtu }),
    ]
}

/// A worker without descriptors: it counts as one, and checks what it would send.
struct Worker {
    datapath: Datapath,
    network: Arc<Network>,
    counters: Vec<Arc<PortCounters>>,
    attached: Vec<bool>,
    brought: Vec<u64>,
    out: Outbox,
    now: Instant,
    /// What left a moment ago.
    wires: Vec<Vec<u8>>,
}

impl Worker {
    fn new() -> Self {
        let conntrack = Arc::new(Conntrack::new(100, Profile::Rfc));
        let network = Arc::new(Network::new(Zone(1), conntrack));
        let gateway = Arc::<PortCounters>::default();
        let datapath =
            Datapath::new(Arc::clone(&network), Arc::new(config()), Arc::clone(&gateway));
        let ports = usize::from(PORTS) + 1;
        let mut worker = Self {
            datapath,
            network,
            counters: (0..ports).map(|_| Arc::default()).collect(),
            attached: vec![false; ports],
            brought: vec![0; ports],
            out: Outbox::default(),
            now: Instant::from_secs(1000),
            wires: Vec::new(),
        };
        worker.counters[0] = gateway;
        (1..=PORTS).for_each(|port| worker.attach(port, 1500));
        worker
    }

    fn attach(&mut self, id: u16, mtu: u16) {
        let role = if id == PORTS { PortRole::Host } else { PortRole::Container };
        let offloads = if id == 2 { Offloads::None } else { Offloads::Header };
        let port = Port { role, offloads, mtu: IpMtu(mtu), ..port() };
        self.datapath.attach(PortId(id), port, Arc::clone(&self.counters[usize::from(id)]));
        self.attached[usize::from(id)] = true;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Frame { port, frame, offload } => {
                let parsed = match offload {
                    Header::Offload(offload) => Ok(offload),
                    Header::Octets(octets) => Offload::parse(&octets),
                };
                match parsed {
                    Ok(offload) => self.bring(port, &frame, offload),
                    Err(reason) => {
                        self.datapath.refuse(PortId(port), frame.len(), reason);
                        self.brought[usize::from(port)] +=
                            u64::from(self.attached[usize::from(port)]);
                    }
                }
            }
            Event::Loop { port, which } => {
                if !self.wires.is_empty() {
                    let frame = which.get(&self.wires).clone();
                    self.bring(port, &frame, Offload::NONE);
                }
            }
            Event::Time { seconds } => {
                self.now += Duration::from_secs(seconds.into());
                self.out.clear();
                self.datapath.handle_timeout(self.now, &mut self.out);
                self.flush(None);
            }
            Event::Detach { port } => {
                self.datapath.detach(PortId(port));
                self.attached[usize::from(port)] = false;
            }
            Event::Attach { port, mtu } => self.attach(port, mtu),
        }
    }

    fn bring(&mut self, port: u16, frame: &[u8], offload: Offload) {
        let received = Received { port: PortId(port), place: 3, frame, offload };
        self.out.clear();
        let decision = self.datapath.ingress(&received, self.now, &mut self.out, &mut Silent);
        match decision {
            Decision::Flow(..) | Decision::Uplink(_) | Decision::Cross(..) => {
                self.datapath.decided(received.port, Fate::Consumed);
            }
            Decision::Drop(_) => {
                let copies = self.out.departures().iter();
                assert_eq!(copies.filter(|d| matches!(d.body, Body::Received(_))).count(), 0);
            }
            Decision::Forward(_) | Decision::Flood | Decision::Consumed => {}
        }
        self.brought[usize::from(port)] += u64::from(self.attached[usize::from(port)]);
        self.flush(Some(&received));
    }

    /// Checks what a worker would send, and keeps some of it for a loop.
    fn flush(&mut self, received: Option<&Received<'_>>) {
        let mut sent = Vec::new();
        for departure in self.out.departures() {
            let to = departure.to;
            assert!(self.attached[to.index()], "a departure by port {to}, which is not there");
            match (departure.body, received) {
                (Body::Received(place), Some(received)) => {
                    assert_eq!(place, received.place);
                    assert_ne!(to, received.port, "split horizon");
                    assert_eq!(departure.offload, received.offload);
                    assert_eq!(departure.offload.check(received.frame), Ok(()));
                    sent.push(received.frame.to_vec());
                }
                (Body::Received(_), None) => panic!("nothing was received"),
                (Body::Built(built), _) => {
                    let frame = self.out.frame(built);
                    assert_eq!(frame[6..12], GATEWAY.mac, "we speak for nobody else");
                    assert_eq!(departure.offload.check(frame), Ok(()));
                    // What we made from nothing is right in every field pnet can check; what we only
                    // turned round is as right as it came.
                    if frame[12..14] == [0x08, 0x06] {
                        read(frame);
                    }
                    sent.push(frame.to_vec());
                }
            }
        }
        if !sent.is_empty() {
            sent.truncate(8);
            self.wires = sent;
        }
    }

    fn balances(&self) {
        for (port, counters) in self.counters.iter().enumerate() {
            let mut totals = PortTotals::default();
            counters.add_to(&mut totals);
            assert!(totals.balances(), "port {port}: {totals:?}");
            if port > 0 {
                assert_eq!(totals.rx_frames, self.brought[port], "port {port}: {totals:?}");
            }
        }
        let stations = self.network.fdb.list().len();
        assert!(stations <= CAPACITY && stations == self.network.fdb.len(), "{stations} stations");
        let neighbours = self.network.neighbours.list(self.now).len();
        assert!(neighbours <= neighbour::CAPACITY, "{neighbours} neighbours");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_frame_has_one_fate_whatever_comes(events in vec(events(), 1..60)) {
        let mut worker = Worker::new();
        for event in events {
            worker.happen(event);
        }
        worker.balances();
    }
}

/// The worst a container can do to the tables: new stations and new neighbours without end.
#[test]
fn a_flood_of_inventions_stops_at_the_bounds() {
    let mut worker = Worker::new();
    for n in 0..20_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let mac = [2, 0xee, 0xee, a, b, c];
        let port = 1 + u16::try_from(n % 3).unwrap();
        let mut addr = ALICE.v6.segments();
        [addr[5], addr[6], addr[7]] = [7, u16::from(a), u16::from_be_bytes([b, c])];
        let asked = solicitation(mac, Some(addr.into()), GATEWAY.v6);
        worker.bring(port, &asked, Offload::NONE);
        // And for each a question the gateway would have to ask.
        let nobody = Station { v6: addr.into(), ..NOBODY };
        let lost = ip(ALICE.v6, nobody.v6).udp(1, 2, b"");
        worker.bring(port, &framed(mac, GATEWAY.mac, &lost), Offload::NONE);
    }
    worker.balances();
    // Each of the three has its share, and no more.
    let most = 3 * neighbour::CAPACITY_PER_PORT;
    assert_eq!(worker.network.neighbours.list(worker.now).len(), most);
}
