//! The gateway: what is addressed to our own station.
//!
//! Read RFC 1812 §5.2 and RFC 8200 §3 first. It answers for itself (ARP, NDP, echo), hands packets of
//! known flows to their owner, and sends the rest on by [`route`](crate::route); what cannot go on is
//! told to its sender by ICMP, once and within a limit.

use std::net::IpAddr;

use nat::Protocol;
use smoltcp::time::Instant;
use smoltcp::wire::EthernetProtocol;

use crate::bridge::{Datapath, Decision, Received};
use crate::drop::DropReason;
use crate::frame::Frame;
use crate::icmp::{self, IcmpError};
use crate::neighbour::Pending;
use crate::network::Gateway;
use crate::offload::Offload;
use crate::outbox::{Built, Outbox};
use crate::packet::{Fragment, Packet, is_link_local_v6, is_martian_source};
use crate::port::MacAddr;
use crate::reset;
use crate::resolve::{self, Announcement};
use crate::route::Route;
use crate::why::{Step, Why};

impl Datapath {
    /// Decides a frame sent to the gateway's station.
    pub(crate) fn gateway<W: Why>(
        &mut self,
        received: &Received<'_>,
        frame: &Frame<'_>,
        now: Instant,
        out: &mut Outbox,
        why: &mut W,
    ) -> Result<Decision, DropReason> {
        match frame.ethertype {
            EthernetProtocol::Arp => {
                let message = resolve::read_arp(frame.payload)?;
                self.heard(received, message, now, out);
                self.also_to_host(received, message, out)
            }
            EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6 => {
                let packet = Packet::parse(received.frame, &received.offload)?;
                if let Some(message) = resolve::read_ndp(&packet, received.frame, frame.src) {
                    let message = message?;
                    self.heard(received, message, now, out);
                    return self.also_to_host(received, message, out);
                }
                self.packet(received, packet, now, out, why)
            }
            _ => Err(DropReason::UnknownEtherType),
        }
    }

    /// Looks at a frame for a group: answers if it asks for the gateway, and says whether it did.
    pub(crate) fn overhear(
        &mut self,
        received: &Received<'_>,
        frame: &Frame<'_>,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<bool, DropReason> {
        if self.config.gateway.is_none() {
            return Ok(false);
        }
        let message = match frame.ethertype {
            EthernetProtocol::Arp => resolve::read_arp(frame.payload)?,
            EthernetProtocol::Ipv6 if received.frame.len() < 200 => {
                let Ok(packet) = Packet::parse(received.frame, &received.offload) else {
                    // Not ours to judge: whoever it is for will.
                    return Ok(false);
                };
                match resolve::read_ndp(&packet, received.frame, frame.src) {
                    Some(Ok(message)) => message,
                    _ => return Ok(false),
                }
            }
            _ => return Ok(false),
        };
        Ok(self.heard(received, message, now, out))
    }

    /// Learns from an ARP or NDP message, answers it if it asks for the gateway, and says whether it
    /// did.
    fn heard(
        &mut self,
        received: &Received<'_>,
        message: Announcement,
        now: Instant,
        out: &mut Outbox,
    ) -> bool {
        let Some(gateway) = &self.config.gateway else { return false };
        let (own_mac, for_us) = (gateway.mac, gateway.has(message.target));
        let from_host = Some(received.port) == self.host;
        if let Some(sender) = message.sender
            && message.station != own_mac
            && (gateway.on_link(sender) || is_link_local(sender))
            && !gateway.has(sender)
        {
            let waited = self.network.neighbours.confirm(sender, message.station, for_us, now);
            for pending in waited {
                let built = out.build(pending.frame.len());
                out.frame_mut(built).copy_from_slice(&pending.frame);
                self.send(built, message.station, pending.offload, now, out);
            }
        }
        if !for_us || !message.asks || from_host {
            return false;
        }
        if let Some(built) = resolve::answer(out, own_mac, message.target, message) {
            let dst = MacAddr::from_bytes(&out.frame(built)[..6]);
            self.send(built, dst, Offload::NONE, now, out);
        }
        true
    }

    /// The host's kernel shares the gateway's station: an answer may be for it, too.
    fn also_to_host(
        &mut self,
        received: &Received<'_>,
        message: Announcement,
        out: &mut Outbox,
    ) -> Result<Decision, DropReason> {
        match self.host {
            Some(host) if !message.asks && host != received.port => {
                self.forward(received, host, out)
            }
            _ => Ok(Decision::Consumed),
        }
    }

    fn packet<W: Why>(
        &mut self,
        received: &Received<'_>,
        packet: Packet,
        now: Instant,
        out: &mut Outbox,
        why: &mut W,
    ) -> Result<Decision, DropReason> {
        let gateway = self.config.gateway.as_ref().ok_or(DropReason::NoGateway)?;
        if is_martian_source(packet.src) || gateway.is_broadcast(packet.src) {
            return Err(DropReason::MartianSource);
        }
        if !gateway.on_link(packet.src) && !is_link_local(packet.src) {
            return Err(DropReason::ForeignSource);
        }
        if let Some(tuple) = packet.tuple()
            && packet.fragment == Fragment::Whole
            && let Some(found) = self.network.conntrack.lookup(self.network.zone, tuple)
            && found.from_inside
        {
            if W::ASKED {
                why.step(Step::Flow { tuple, direction: found.direction });
            }
            self.check_hop_limit(received, &packet, now, out)?;
            return Ok(Decision::Flow(found.owner, found.direction, packet));
        }
        match Route::lookup(&self.config, self.host, packet.dst) {
            Route::Own => self.local(received, &packet, now, out, why),
            Route::Host(host) => {
                if W::ASKED {
                    why.step(Step::Host { dst: packet.dst });
                }
                self.forward(received, host, out)
            }
            Route::OnLink => {
                self.check_hop_limit(received, &packet, now, out)?;
                self.turn_round(received, &packet, now, out)
            }
            Route::Martian => Err(DropReason::MartianDestination),
            Route::Isolated => {
                self.tell(received, &packet, IcmpError::AdminProhibited, now, out);
                Err(DropReason::AdminProhibited)
            }
            Route::None => {
                self.check_hop_limit(received, &packet, now, out)?;
                self.tell(received, &packet, IcmpError::NoRoute, now, out);
                Err(DropReason::NoRoute)
            }
            Route::Uplink => {
                self.check_hop_limit(received, &packet, now, out)?;
                self.uplink(received, packet, now, out, why)
            }
        }
    }

    /// A packet for the gateway itself.
    fn local<W: Why>(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        now: Instant,
        out: &mut Outbox,
        why: &mut W,
    ) -> Result<Decision, DropReason> {
        let own_mac = self.config.gateway.as_ref().ok_or(DropReason::NoGateway)?.mac;
        let echo = match packet.icmp(received.frame) {
            Some((8, 0)) => packet.protocol == Protocol::Icmp,
            Some((128, 0)) => packet.protocol == Protocol::Icmpv6,
            _ => false,
        };
        if echo {
            if W::ASKED {
                why.step(Step::Answered);
            }
            let built = icmp::echo_reply(out, own_mac, packet, received.frame);
            self.send_to(built, packet.src, Offload::NONE, now, out);
            return Ok(Decision::Consumed);
        }
        if let Some(host) = self.host
            && host != received.port
        {
            if W::ASKED {
                why.step(Step::Host { dst: packet.dst });
            }
            return self.forward(received, host, out);
        }
        match packet.protocol {
            _ if packet.fragment != Fragment::Whole => Err(DropReason::Fragment),
            Protocol::Tcp => {
                if let Some(built) = reset::reset(out, own_mac, packet, received.frame) {
                    self.send_to(built, packet.src, Offload::NONE, now, out);
                }
                Ok(Decision::Consumed)
            }
            Protocol::Udp => {
                self.tell(received, packet, IcmpError::PortUnreachable, now, out);
                Ok(Decision::Consumed)
            }
            // Router solicitations, errors and the like: heard, and nothing to say.
            Protocol::Icmp | Protocol::Icmpv6 => Ok(Decision::Consumed),
            Protocol::Other(_) => Err(DropReason::UnsupportedProtocol),
        }
    }

    /// A packet of no known flow for the world.
    fn uplink<W: Why>(
        &mut self,
        received: &Received<'_>,
        packet: Packet,
        now: Instant,
        out: &mut Outbox,
        why: &mut W,
    ) -> Result<Decision, DropReason> {
        if is_link_local(packet.src) {
            return Err(DropReason::ForeignSource);
        }
        if packet.fragment != Fragment::Whole {
            return Err(DropReason::Fragment);
        }
        if packet.is_icmp_error(received.frame) {
            return Err(DropReason::UnknownError);
        }
        let carried = match packet.protocol {
            Protocol::Tcp | Protocol::Udp => true,
            Protocol::Icmp => packet.icmp(received.frame) == Some((8, 0)),
            Protocol::Icmpv6 => packet.icmp(received.frame) == Some((128, 0)),
            Protocol::Other(_) => false,
        };
        if !carried {
            self.tell(received, &packet, IcmpError::AdminProhibited, now, out);
            return Err(DropReason::UnsupportedProtocol);
        }
        if W::ASKED {
            why.step(Step::Uplink { dst: packet.dst });
        }
        Ok(Decision::Uplink(packet))
    }

    /// A packet for a neighbour, sent to us by a station whose netmask is too narrow: on it goes, one
    /// hop older.
    fn turn_round(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<Decision, DropReason> {
        let own_mac = self.config.gateway.as_ref().ok_or(DropReason::NoGateway)?.mac;
        let built = out.build(packet.end);
        let copy = out.frame_mut(built);
        copy.copy_from_slice(&received.frame[..packet.end]);
        copy[6..12].copy_from_slice(own_mac.as_bytes());
        match packet.dst {
            IpAddr::V4(_) => {
                copy[Packet::IP + 8] -= 1;
                let mut ip = smoltcp::wire::Ipv4Packet::new_unchecked(&mut copy[Packet::IP..]);
                ip.fill_checksum();
            }
            IpAddr::V6(_) => copy[Packet::IP + 7] -= 1,
        }
        self.send_to(built, packet.dst, received.offload, now, out);
        Ok(Decision::Consumed)
    }

    fn check_hop_limit(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        if packet.hop_limit > 1 {
            return Ok(());
        }
        self.tell(received, packet, IcmpError::TimeExceeded, now, out);
        Err(DropReason::TtlExceeded)
    }

    /// Tells the sender of a received packet what is wrong, unless a rule or the limit forbids it.
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
            self.tell_about(packet.src, None, what, quoted, now, out);
        }
    }

    /// Tells `to` what became of a packet of its own, `quoted` from its IP header on, in the words of
    /// `from` (the gateway, if `None`).
    pub fn tell_about(
        &mut self,
        to: IpAddr,
        from: Option<IpAddr>,
        what: IcmpError,
        quoted: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(gateway) = &self.config.gateway else { return };
        let same_family = from.filter(|from| from.is_ipv4() == to.is_ipv4());
        let Some(from) = same_family.or_else(|| gateway.source_for(to)) else { return };
        let own_mac = gateway.mac;
        if self.network.errors.allow(now) {
            let built = icmp::error(out, own_mac, from, to, what, quoted);
            self.send_to(built, to, Offload::NONE, now, out);
        }
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
        let Some(gateway) = &self.config.gateway else { return };
        let own_mac = gateway.mac;
        let own = gateway.source_for(to);
        let resolved = self.network.neighbours.resolve(to, now);
        match resolved.mac {
            Some(mac) => self.send(built, mac, offload, now, out),
            None => {
                let frame = out.frame(built).to_vec();
                let given_way = self.network.neighbours.park(to, Pending { frame, offload });
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
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Outbox) {
        self.network.fdb.handle_timeout(now);
        let Some(gateway) = &self.config.gateway else { return };
        let mut questions = Vec::new();
        let failed = self
            .network
            .neighbours
            .handle_timeout(now, |addr, known| questions.push((addr, known)));
        let own: Vec<_> = questions.iter().map(|(addr, _)| gateway.source_for(*addr)).collect();
        let own_mac = gateway.mac;
        for ((addr, known), own) in questions.into_iter().zip(own) {
            if let Some(own) = own
                && let Some((question, dst)) = resolve::ask(out, own_mac, own, addr, known)
            {
                self.send(question, dst, Offload::NONE, now, out);
            }
        }
        for (_, pending) in failed {
            self.gateway_counters().not_sent(DropReason::NeighbourFailed);
            self.tell_failed(&pending, now, out);
        }
    }

    /// A packet of a container's waited for a neighbour that does not answer: its sender is told.
    fn tell_failed(&mut self, pending: &Pending, now: Instant, out: &mut Outbox) {
        let Ok(packet) = Packet::parse(&pending.frame, &pending.offload) else { return };
        let inside = self.config.gateway.as_ref().is_some_and(|gateway: &Gateway| {
            gateway.on_link(packet.src) && !gateway.has(packet.src)
        });
        if inside && icmp::may_answer(&packet, &pending.frame) {
            let quoted = &pending.frame[Packet::IP..packet.end];
            self.tell_about(packet.src, None, IcmpError::HostUnreachable, quoted, now, out);
        }
    }
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if is_link_local_v6(addr))
}
