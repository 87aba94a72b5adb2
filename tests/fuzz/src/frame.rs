//! Frames from three ports into one network, as a worker would bring them.
//!
//! Input: up to sixteen frames, each behind one octet for port (low two bits) and seconds since the
//! last one (the others), ten of offload header, and two of length, little-endian.

use std::net::IpAddr;
use std::sync::Arc;

use datapath::offload::{OFFLOAD_HEADER_LEN, Offload};
use datapath::port::{MacAddr, Offloads};
use datapath::stats::PortCounters;
use datapath::{
    Body, Datapath, Decision, DropReason, Fate, Gateway, IpMtu, Leg, MAX_FRAME_LEN, Network,
    NetworkConfig, Outbox, Port, PortId, PortRole, PortTotals, Received, Silent, Uplink,
};
use nat::{Conntrack, Profile, Zone};
use smoltcp::time::{Duration, Instant};

use crate::fingerprint;

const MAX_FRAMES: usize = 16;
const PORTS: u16 = 3;

/// Brings the frames to the bridge: each has one fate, none goes back where it came from, and what
/// we build ourselves is sound.
pub fn frame(input: &[u8]) -> u64 {
    let mut lab = Lab::new();
    let mut rest = input;
    let mut prints = Vec::new();
    for place in 0..MAX_FRAMES {
        let Some((octets, header, frame, tail)) = next_frame(rest) else { break };
        rest = tail;
        lab.now += Duration::from_secs(u64::from(octets >> 2));
        let port = PortId(1 + u16::from(octets & 3) % PORTS);
        if let Ok(offload) = Offload::parse(header) {
            let place = u16::try_from(place).expect("sixteen at most");
            prints.push(lab.bring(&Received { port, place, frame, offload }));
        }
    }
    lab.balances();
    fingerprint(prints)
}

type Next<'a> = (u8, &'a [u8; OFFLOAD_HEADER_LEN], &'a [u8], &'a [u8]);

fn next_frame(input: &[u8]) -> Option<Next<'_>> {
    let (octets, rest) = input.split_first()?;
    let (header, rest) = rest.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let len = usize::from(u16::from_le_bytes(*len)).min(rest.len()).min(MAX_FRAME_LEN);
    let (frame, rest) = rest.split_at(len);
    Some((*octets, header, frame, rest))
}

struct Lab {
    datapath: Datapath,
    counters: Vec<Arc<PortCounters>>,
    out: Outbox,
    now: Instant,
}

impl Lab {
    fn new() -> Self {
        let conntrack = Arc::new(Conntrack::new(64, Profile::Rfc));
        let config = NetworkConfig {
            gateway: Some(Gateway {
                mac: MacAddr([0x02, 0x42, 0xc0, 0x00, 0x02, 0x01]),
                addresses: vec![
                    "192.0.2.1/24".parse().expect("a subnet"),
                    "2001:db8::1/64".parse().expect("a subnet"),
                ],
            }),
            uplink: Uplink::Sockets,
            mtu: IpMtu::ETHERNET,
            host_addresses: vec![IpAddr::from([198, 51, 100, 1])],
            isolated_from: vec!["203.0.113.0/24".parse().expect("a subnet")],
            leg: Leg::Inside,
        };
        let network = Arc::new(Network::new(Zone(1), conntrack));
        let mut datapath = Datapath::new(network, Arc::new(config), Arc::default());
        let mut counters = Vec::new();
        for id in 1..=PORTS {
            let port = Port {
                role: if id == PORTS { PortRole::Host } else { PortRole::Container },
                mtu: IpMtu::ETHERNET,
                offloads: if id == 2 { Offloads::None } else { Offloads::Header },
                mac: MacAddr([2, 0, 0, 0, 0, 0x10]),
                addresses: Vec::new(),
            };
            let counts = Arc::<PortCounters>::default();
            datapath.attach(PortId(id), port, Arc::clone(&counts));
            counters.push(counts);
        }
        Self { datapath, counters, out: Outbox::default(), now: Instant::from_secs(1) }
    }

    fn bring(&mut self, received: &Received<'_>) -> (u8, Option<DropReason>, usize) {
        self.out.clear();
        let decision = self.datapath.ingress(received, self.now, &mut self.out, &mut Silent);
        let (kind, reason) = match decision {
            Decision::Forward(to) => {
                assert_ne!(to, received.port);
                (0, None)
            }
            Decision::Flood => (1, None),
            Decision::Consumed => (2, None),
            Decision::Flow(..) => (3, None),
            Decision::Uplink(_) | Decision::Cross(..) => (4, None),
            Decision::Drop(reason) => (5, Some(reason)),
        };
        if kind == 3 || kind == 4 {
            self.datapath.decided(received.port, Fate::Consumed);
        }
        for departure in self.out.departures() {
            assert!((1..=PORTS).contains(&departure.to.0));
            match departure.body {
                Body::Received(place) => {
                    assert_eq!(place, received.place);
                    assert_ne!(departure.to, received.port, "split horizon");
                    assert_eq!(departure.offload.check(received.frame), Ok(()));
                }
                Body::Built(built) => {
                    let frame = self.out.frame(built);
                    assert!(frame.len() <= MAX_FRAME_LEN);
                    assert_eq!(departure.offload.check(frame), Ok(()));
                    assert_eq!(departure.offload.verify(frame), Ok(()), "{frame:02x?}");
                }
            }
        }
        (kind, reason, self.out.departures().len())
    }

    fn balances(&self) {
        for counters in &self.counters {
            assert_balances(counters);
        }
        assert_balances(self.datapath.gateway_counters());
    }
}

fn assert_balances(counters: &PortCounters) {
    let mut totals = PortTotals::default();
    counters.add_to(&mut totals);
    assert!(totals.balances(), "{totals:?}");
}
