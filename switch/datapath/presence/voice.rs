//! How a presence's frames leave: by the segment's one port, counted as the gateway's.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use nat::{Protocol, Zone};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{ArpOperation, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr};

use crate::emit::IpHeader;
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

    /// Asks everybody for `addr` from nobody's address: an ARP probe (RFC 5227 §1.1).
    pub(crate) fn probe_v4(&self, addr: Ipv4Addr, out: &mut Outbox) {
        self.arp(Ipv4Addr::UNSPECIFIED, addr, out);
    }

    /// Says that `addr` is ours: an ARP announcement, which is a request (RFC 5227 §3).
    pub(crate) fn announce_v4(&self, addr: Ipv4Addr, out: &mut Outbox) {
        self.arp(addr, addr, out);
    }

    fn arp(&self, sender: Ipv4Addr, target: Ipv4Addr, out: &mut Outbox) {
        let nobody = (MacAddr([0; 6]), target);
        let request = ArpOperation::Request;
        let built = resolve::arp(out, request, (self.mac, sender), nobody, MacAddr::BROADCAST);
        self.say(built, out);
    }

    /// Asks the neighbours for `addr` from nobody's address (RFC 4862 §5.4.2).
    pub(crate) fn probe_v6(&self, addr: Ipv6Addr, out: &mut Outbox) {
        let to = resolve::solicited_node(addr);
        let question = NdiscRepr::NeighborSolicit { target_addr: addr, lladdr: None };
        self.ndp(Ipv6Addr::UNSPECIFIED, to, question, out);
    }

    /// Says that `addr` is ours: an unsolicited advertisement (RFC 4861 §7.2.6).
    pub(crate) fn announce_v6(&self, addr: Ipv6Addr, out: &mut Outbox) {
        let repr = NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::OVERRIDE,
            target_addr: addr,
            lladdr: Some(self.mac.into()),
        };
        self.ndp(addr, ALL_NODES, repr, out);
    }

    /// Asks the routers to advertise themselves (RFC 4861 §6.3.7).
    pub(crate) fn solicit(&self, own: Ipv6Addr, out: &mut Outbox) {
        let repr = NdiscRepr::RouterSolicit { lladdr: Some(self.mac.into()) };
        self.ndp(own, ALL_ROUTERS, repr, out);
    }

    fn ndp(&self, own: Ipv6Addr, to: Ipv6Addr, repr: NdiscRepr<'_>, out: &mut Outbox) {
        let repr = Icmpv6Repr::Ndisc(repr);
        let header = IpHeader {
            hop_limit: 255,
            ..IpHeader::new(own.into(), to.into(), Protocol::Icmpv6.number())
        };
        let built = out.build(header.transport() + repr.buffer_len());
        let frame = out.frame_mut(built);
        header.emit(frame, self.mac);
        frame[..6].copy_from_slice(resolve::multicast_mac(to).as_bytes());
        let mut message = Icmpv6Packet::new_unchecked(&mut frame[header.transport()..]);
        repr.emit(&own, &to, &mut message, &ChecksumCapabilities::default());
        self.say(built, out);
    }
}
