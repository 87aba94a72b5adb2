//! What the gateway says of its own accord: packets to its neighbours, and ICMP errors.
//!
//! Read RFC 1122 §2.3.2.2 (a packet waits while its next hop is asked for) and RFC 1812 §4.3.2 first.
//! Whatever is said is said for a port, which pays for it: for the place of a neighbour nobody knows
//! yet, for the octets that wait, and out of its allowance of errors.

use std::net::IpAddr;

use smoltcp::time::Instant;

use crate::bridge::{Datapath, Received};
use crate::drop::DropReason;
use crate::icmp::{self, IcmpError};
use crate::neighbour::Pending;
use crate::network::Gateway;
use crate::offload::Offload;
use crate::outbox::{Built, Outbox};
use crate::packet::Packet;
use crate::port::{MacAddr, Payer, PortId};
use crate::resolve;

impl Datapath {
    /// Sends what waited for a neighbour to its station.
    pub(crate) fn send_waited(
        &mut self,
        waited: Vec<Pending>,
        station: MacAddr,
        now: Instant,
        out: &mut Outbox,
    ) {
        for pending in waited {
            let built = out.build(pending.frame.len());
            out.frame_mut(built).copy_from_slice(&pending.frame);
            self.send(built, station, pending.offload, now, out);
        }
    }

    /// Tells the sender of a received packet what is wrong, unless a rule or the limit of the port it
    /// came by forbids it.
    pub fn tell(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        what: IcmpError,
        now: Instant,
        out: &mut Outbox,
    ) {
        if icmp::may_answer(packet, received.frame) {
            let quoted = &received.frame[Packet::IP..packet.end];
            self.tell_for(received.port, (packet.src, None), what, quoted, now, out);
        }
    }

    /// Tells `to` what became of a packet of its own, `quoted` from its IP header on, in the words of
    /// `from` (the gateway, if `None`). It counts against the limit of the port `to` is behind.
    pub fn tell_about(
        &mut self,
        to: IpAddr,
        from: Option<IpAddr>,
        what: IcmpError,
        quoted: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) {
        let port = self.network.neighbours.port_of(to).unwrap_or(PortId::GATEWAY);
        self.tell_for(port, (to, from), what, quoted, now, out);
    }

    fn tell_for(
        &mut self,
        port: PortId,
        (to, from): (IpAddr, Option<IpAddr>),
        what: IcmpError,
        quoted: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(gateway) = &self.config.gateway else { return };
        let same_family = from.filter(|from| from.is_ipv4() == to.is_ipv4());
        let Some(from) = same_family.or_else(|| self.config.source_for(to)) else { return };
        let own_mac = gateway.mac;
        if !self.network.allow_error(port, now) {
            let counters = self.counters(port).unwrap_or(self.gateway_counters());
            counters.not_sent(DropReason::ErrorLimit);
            return;
        }
        let built = icmp::error(out, own_mac, from, to, what, quoted);
        self.send_for(port, built, to, Offload::NONE, now, out);
    }

    /// Sends a packet of the gateway's own to its neighbour `to`, asking for its station if it must.
    pub fn send_to(
        &mut self,
        built: Built,
        to: IpAddr,
        offload: Offload,
        now: Instant,
        out: &mut Outbox,
    ) {
        self.send_for(PortId::GATEWAY, built, to, offload, now, out);
    }

    /// The same, for `payer`: it pays for the place of a neighbour not known yet, and for what waits.
    pub(crate) fn send_for(
        &mut self,
        payer: impl Into<Payer>,
        built: Built,
        to: IpAddr,
        offload: Offload,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(gateway) = &self.config.gateway else {
            return self.gateway_counters().not_sent(DropReason::NoGateway);
        };
        let Some(to) = self.next_hop(to) else {
            return self.gateway_counters().not_sent(DropReason::NoRoute);
        };
        let payer = payer.into();
        let own_mac = gateway.mac;
        let own = self.config.source_for(to);
        let resolved = self.network.neighbours.resolve(to, payer, now);
        match resolved.mac {
            Some(mac) => self.send(built, mac, offload, now, out),
            None => {
                let frame = out.frame(built).to_vec();
                let given_way = self.network.neighbours.park(to, Pending { frame, offload, payer });
                if given_way.is_some() {
                    self.gateway_counters().not_sent(DropReason::NeighbourFailed);
                }
            }
        }
        if resolved.ask
            && let Some(own) = own
            && let Some((question, dst)) = resolve::ask(out, own_mac, own, to, resolved.mac)
        {
            self.send(question, dst, Offload::NONE, now, out);
        }
    }

    /// Does what time asks for: ages stations and neighbours. One worker of each network calls it.
    ///
    /// Returns what has waited in vain and came from another network: whoever routed it here can tell
    /// its sender ([`Crossing::unreachable`](crate::Crossing::unreachable)).
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Outbox) -> Vec<Pending> {
        self.network.fdb.handle_timeout(now);
        let Some(gateway) = &self.config.gateway else { return Vec::new() };
        let mut questions = Vec::new();
        let failed = self
            .network
            .neighbours
            .handle_timeout(now, |addr, known| questions.push((addr, known)));
        let own: Vec<_> = questions.iter().map(|(addr, _)| self.config.source_for(*addr)).collect();
        let own_mac = gateway.mac;
        for ((addr, known), own) in questions.into_iter().zip(own) {
            if let Some(own) = own
                && let Some((question, dst)) = resolve::ask(out, own_mac, own, addr, known)
            {
                self.send(question, dst, Offload::NONE, now, out);
            }
        }
        let mut foreign = Vec::new();
        for (_, pending) in failed {
            self.gateway_counters().not_sent(DropReason::NeighbourFailed);
            match pending.payer {
                Payer::Port(port) => self.tell_failed(port, &pending, now, out),
                Payer::Foreign(_) => foreign.push(pending),
            }
        }
        foreign
    }

    /// A packet of a container's waited for a neighbour that does not answer: its sender is told.
    fn tell_failed(&mut self, port: PortId, pending: &Pending, now: Instant, out: &mut Outbox) {
        let Ok(packet) = Packet::parse(&pending.frame, &pending.offload) else { return };
        let inside = self.config.gateway.as_ref().is_some_and(|gateway: &Gateway| {
            gateway.on_link(packet.src) && !self.config.has(packet.src)
        });
        if inside && icmp::may_answer(&packet, &pending.frame) {
            let quoted = &pending.frame[Packet::IP..packet.end];
            let what = IcmpError::HostUnreachable;
            self.tell_for(port, (packet.src, None), what, quoted, now, out);
        }
    }
}
