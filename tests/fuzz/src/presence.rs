//! Frames and times to a presence that leases and learns its addresses.
//!
//! Input: up to 64 steps. The first octet says what happens before a frame: bit 0 that the link goes away
//! and comes back, bits 4-7 how much time passes (none, or a power of two of quarter seconds). Then two
//! octets of length, little-endian, and the frame. Transaction numbers come from a fixed seed, so that a
//! seed file can hold answers to what is asked.

use std::sync::Arc;

use datapath::presence::{Addressing, Heard, MAX_ADDRESSES, Presence, PresenceConfig};
use datapath::stats::PortCounters;
use datapath::{
    Body, IpMtu, MAX_FRAME_LEN, MacAddr, Offload, Outbox, PortId, PortTotals, Received,
};
use nat::Zone;
use smoltcp::time::{Duration, Instant};

use crate::fingerprint;

const MAX_STEPS: usize = 64;
/// Deadlines within one step: a flood of them would be a fault.
const MAX_TIMEOUTS: usize = 2_000;

/// Shows the frames to the presence: it says little, keeps little, and its time goes on.
pub fn presence(input: &[u8]) -> u64 {
    let mut lab = Lab::new();
    let mut rest = input;
    let mut prints = Vec::new();
    for _ in 0..MAX_STEPS {
        let Some((step, tail)) = rest.split_first_chunk::<3>() else { break };
        if step[0] & 1 != 0 {
            lab.presence.link_down();
            lab.presence.link_up(lab.now);
        }
        let quarters = (1 << (step[0] >> 4)) >> 1;
        lab.pass(Duration::from_millis(250 * quarters));
        let len = usize::from(u16::from_le_bytes([step[1], step[2]])).min(tail.len());
        let (frame, tail) = tail.split_at(len.min(MAX_FRAME_LEN));
        rest = tail;
        prints.push((lab.bring(frame), lab.state()));
    }
    lab.pass(Duration::from_secs(100));
    prints.push((0, lab.state()));
    fingerprint(prints)
}

struct Lab {
    presence: Presence,
    counters: Arc<PortCounters>,
    out: Outbox,
    now: Instant,
}

impl Lab {
    fn new() -> Self {
        let config = PresenceConfig {
            zone: Zone(0x8001),
            port: PortId(1),
            mac: MacAddr([0x02, 0x42, 0xcb, 0x00, 0x71, 0x05]),
            mtu: IpMtu::ETHERNET,
            v4: Addressing::Auto,
            v6: Addressing::Auto,
            shown: vec![[192, 0, 2, 9].into()..=[192, 0, 2, 12].into()],
            hostname: None,
            seed: 42,
        };
        let now = Instant::from_secs(1000);
        let counters = Arc::<PortCounters>::default();
        let presence = Presence::new(config, Arc::clone(&counters), now);
        Self { presence, counters, out: Outbox::default(), now }
    }

    fn bring(&mut self, frame: &[u8]) -> u8 {
        let received = Received { port: PortId(1), place: 0, frame, offload: Offload::NONE };
        let heard = self.presence.handle(&received, self.now, &mut self.out);
        assert!(heard == Heard::Pass || Presence::concerns(frame));
        assert!(self.out.departures().len() <= 1, "an echo chamber");
        self.check();
        match heard {
            Heard::Pass => 0,
            Heard::Consumed => 1,
            Heard::Drop(reason) => 2 + reason as u8,
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..MAX_TIMEOUTS {
            let Some(at) = self.presence.poll_timeout().filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            self.presence.handle_timeout(self.now, &mut self.out);
            assert!(self.out.departures().len() <= 20, "a flood of our own");
            self.check();
        }
        panic!("never at rest before {end}: {:?}", self.presence);
    }

    /// What is sent is sound and counted, what is kept is bounded.
    fn check(&mut self) {
        for departure in self.out.departures() {
            assert_eq!((departure.zone, departure.to), (Zone(0x8001), PortId(1)));
            let Body::Built(built) = departure.body else { panic!("a frame of our own") };
            let frame = self.out.frame(built);
            assert!(frame.len() <= IpMtu::ETHERNET.frame_len());
            assert_eq!(departure.offload.verify(frame), Ok(()), "{frame:02x?}");
        }
        self.out.clear();
        let mut totals = PortTotals::default();
        self.counters.add_to(&mut totals);
        assert!(totals.balances(), "{totals:?}");
        assert!(self.presence.rows().len() <= MAX_ADDRESSES + 10);
        assert!(self.presence.routes().len() <= 100);
        assert!(self.presence.dns().len() <= 16);
        assert!((576..=1500).contains(&self.presence.mtu().0));
        assert!(self.presence.changes().len() <= Presence::MAX_CHANGES);
    }

    /// How far it is, as numbers.
    fn state(&self) -> (usize, usize, usize, &'static str) {
        let presence = &self.presence;
        let lease = presence.lease().map_or("", |lease| lease.state);
        (presence.addresses().len(), presence.routes().len(), presence.rows().len(), lease)
    }
}
