//! A presence on a segment in memory, with a clock that stands still until it is told.

use std::net::IpAddr;
use std::sync::Arc;

use datapath::neighbour::Reachability;
use datapath::presence::{Addressing, Change, Heard, Presence, PresenceConfig};
use datapath::stats::PortCounters;
use datapath::{Body, IpMtu, MacAddr, Offload, Outbox, PortId, PortTotals, Received};
use nat::Zone;
use smoltcp::time::{Duration, Instant};

use crate::craft::{self, Seen, US, What};

pub(crate) const PORT: PortId = PortId(3);
pub(crate) const ZONE: Zone = Zone(0x8001);
pub(crate) const T0: Instant = Instant::from_micros_const(1_000_000_000);

pub(crate) struct Lab {
    pub(crate) presence: Presence,
    pub(crate) now: Instant,
    counters: Arc<PortCounters>,
    out: Outbox,
    sent: u64,
}

/// No address of either family, until told otherwise.
pub(crate) fn config() -> PresenceConfig {
    PresenceConfig {
        zone: ZONE,
        port: PORT,
        mac: MacAddr(US),
        mtu: IpMtu::ETHERNET,
        v4: Addressing::None,
        v6: Addressing::None,
        shown: Vec::new(),
        hostname: Some("pontoon".to_owned()),
        seed: 42,
    }
}

/// 192.0.2.5/24 and its router, given.
pub(crate) fn given_v4() -> PresenceConfig {
    let addresses = vec!["192.0.2.5/24".parse().unwrap()];
    let gateway = Some(craft::ip("192.0.2.1"));
    PresenceConfig { v4: Addressing::Static { addresses, gateway }, ..config() }
}

impl Lab {
    pub(crate) fn new(config: PresenceConfig) -> Self {
        let counters = Arc::<PortCounters>::default();
        let presence = Presence::new(config, Arc::clone(&counters), T0);
        Self { presence, now: T0, counters, out: Outbox::default(), sent: 0 }
    }

    /// Brings in a frame; what is sent because of it.
    #[track_caller]
    pub(crate) fn bring(&mut self, frame: &[u8]) -> Vec<Seen> {
        self.bring_for(frame).1
    }

    /// The same, with what became of it.
    #[track_caller]
    pub(crate) fn bring_for(&mut self, frame: &[u8]) -> (Heard, Vec<Seen>) {
        let received = Received { port: PORT, place: 0, frame, offload: Offload::NONE };
        let heard = self.presence.handle(&received, self.now, &mut self.out);
        (heard, self.sent())
    }

    /// Lets time pass; everything sent meanwhile, with when.
    #[track_caller]
    pub(crate) fn pass(&mut self, time: Duration) -> Vec<(Instant, Seen)> {
        let end = self.now + time;
        let mut sent = Vec::new();
        for _ in 0..100_000 {
            let Some(at) = self.presence.poll_timeout().filter(|at| *at <= end) else {
                self.now = end;
                return sent;
            };
            self.now = self.now.max(at);
            self.presence.handle_timeout(self.now, &mut self.out);
            sent.extend(self.sent().into_iter().map(|seen| (self.now, seen)));
        }
        panic!("never at rest: {:?} at {}", self.presence, self.now);
    }

    /// The same, without when.
    #[track_caller]
    pub(crate) fn pass_seconds(&mut self, seconds: u64) -> Vec<What> {
        let sent = self.pass(Duration::from_secs(seconds));
        sent.into_iter().map(|(_, seen)| seen.what).collect()
    }

    /// What is in the outbox, read by pnet; it is empty then, and the counts are right.
    fn sent(&mut self) -> Vec<Seen> {
        let seen: Vec<_> = self
            .out
            .departures()
            .iter()
            .map(|departure| {
                assert_eq!((departure.zone, departure.to), (ZONE, PORT));
                assert_eq!(departure.offload, Offload::NONE);
                let Body::Built(built) = departure.body else { panic!("a frame of our own") };
                craft::read(self.out.frame(built))
            })
            .collect();
        self.out.clear();
        self.sent += seen.len() as u64;
        let mut totals = PortTotals::default();
        self.counters.add_to(&mut totals);
        assert!(totals.balances(), "{totals:?}");
        assert_eq!((totals.rx_frames, totals.forwarded), (self.sent, self.sent));
        seen
    }

    pub(crate) fn leave(&mut self) -> Vec<Seen> {
        self.presence.leave(self.now, &mut self.out);
        self.sent()
    }

    /// The addresses in use.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.presence.addresses().iter().map(ToString::to_string).collect()
    }

    /// The routes, as `ip route` would write them.
    pub(crate) fn routes(&self) -> Vec<String> {
        let hop = |hop: &datapath::Hop| match hop.via {
            Some(via) => format!("{} via {via}", hop.to),
            None => hop.to.to_string(),
        };
        self.presence.routes().iter().map(hop).collect()
    }

    pub(crate) fn changes(&mut self) -> Vec<Change> {
        self.presence.changes()
    }

    pub(crate) fn state(&self) -> &'static str {
        self.presence.lease().expect("DHCP").state
    }

    pub(crate) fn next_hop(&self, to: &str) -> Option<IpAddr> {
        self.next_hop_where(to, |_| Reachability::Unknown)
    }

    /// The same where these neighbours are known to be there or not.
    pub(crate) fn next_hop_where(
        &self,
        to: &str,
        reachability: impl Fn(IpAddr) -> Reachability,
    ) -> Option<IpAddr> {
        datapath::hop::next_hop(self.presence.routes(), craft::ip(to), reachability)
    }
}
