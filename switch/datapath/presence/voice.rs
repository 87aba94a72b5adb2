//! How a presence's frames leave: by the segment's one port, counted as the gateway's.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use nat::Zone;
use smoltcp::wire::{ArpOperation, NdiscNeighborFlags, NdiscRepr};

use crate::offload::Offload;
use crate::outbox::{Body, Built, Outbox};
use crate::port::{MacAddr, PortId};
use crate::resolve;
use crate::stats::{Fate, PortCounters};

/// All nodes of the segment, ff02::1.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers of the segment, ff02::2.
pub(crate) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// A station's own mouth.
#[derive(Clone, Debug)]
pub(crate) struct Voice {
    pub(crate) to: (Zone, PortId),
    pub(crate) mac: MacAddr,
    /// The gateway's counters: what we say is received from it.
    pub(crate) gateway: Arc<PortCounters>,
}

impl Voice {
    /// Sends a frame whose addresses are written.
    pub(crate) fn say(&self, built: Built, out: &mut Outbox) {
        self.gateway.received(built.len());
        self.gateway.decided(Fate::Forwarded);
        out.push(self.to, Body::Built(built), Offload::NONE);
    }

    /// Asks everybody for `addr` from nobody's address.
    pub(crate) fn probe(&self, addr: IpAddr, out: &mut Outbox) {
        let built = resolve::probe(out, self.mac, addr);
        self.say(built, out);
    }

    /// Says that `addr` is ours: by an ARP announcement, which is a request (RFC 5227 §3), or an unsolicited
    /// advertisement (RFC 4861 §7.2.6).
    pub(crate) fn announce(&self, addr: IpAddr, out: &mut Outbox) {
        match addr {
            IpAddr::V4(addr) => {
                let (own, whom) = ((self.mac, addr), (MacAddr([0; 6]), addr));
                let request = ArpOperation::Request;
                let built = resolve::arp(out, request, own, whom, MacAddr::BROADCAST);
                self.say(built, out);
            }
            IpAddr::V6(addr) => {
                let repr = NdiscRepr::NeighborAdvert {
                    flags: NdiscNeighborFlags::OVERRIDE,
                    target_addr: addr,
                    lladdr: Some(self.mac.into()),
                };
                self.ndp(addr, ALL_NODES, repr, out);
            }
        }
    }

    /// Asks the routers to advertise themselves (RFC 4861 §6.3.7).
    pub(crate) fn solicit(&self, own: Ipv6Addr, out: &mut Outbox) {
        let repr = NdiscRepr::RouterSolicit { lladdr: Some(self.mac.into()) };
        self.ndp(own, ALL_ROUTERS, repr, out);
    }

    fn ndp(&self, own: Ipv6Addr, to: Ipv6Addr, repr: NdiscRepr<'_>, out: &mut Outbox) {
        let built = resolve::ndp(out, self.mac, own, to, resolve::multicast_mac(to), repr);
        self.say(built, out);
    }
}
