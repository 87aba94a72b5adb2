//! The gateway: what is addressed to our own station.
//!
//! Read RFC 1812 §5.2 and RFC 8200 §3 first. It answers for itself (ARP, NDP, echo), hands packets of
//! known flows to their owner, and sends the rest on by [`route`](crate::route); what cannot go on is
//! told to its sender by ICMP, once and within a limit.

use std::net::IpAddr;

use nat::{Headers, Owner, Protocol, Zone};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetProtocol;

use crate::bridge::{Datapath, Decision, Received};
use crate::drop::DropReason;
use crate::fragment::fragment;
use crate::frame::Frame;
use crate::icmp::{self, IcmpError};
use crate::leg::Leg;
use crate::network::Uplink;
use crate::offload::{Gso, Offload};
use crate::outbox::Outbox;
use crate::outside::is_near;
use crate::packet::{Fragment, Packet, is_link_local, is_martian_source};
use crate::port::{IpMtu, MacAddr, PortId};
use crate::reset;
use crate::resolve::{self, Announcement};
use crate::route::Route;
use crate::slot;
use crate::stats::Fate;
use crate::why::{Silent, Step, Why};

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
                self.heard(received, message, now, out)?;
                self.also_to_host(received, message, out)
            }
            EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6 => {
                let packet = Packet::parse(received.frame, &received.offload)?;
                if let Some(message) = resolve::read_ndp(&packet, received.frame, frame.src) {
                    let message = message?;
                    self.heard(received, message, now, out)?;
                    return self.also_to_host(received, message, out);
                }
                self.packet(received, packet, now, out, why)
            }
            _ => Err(DropReason::UnknownEtherType),
        }
    }

    /// The ARP or NDP message in a frame the bridge carries; `None` if it is none, or one we would not
    /// believe: whoever it is for will judge it.
    pub(crate) fn announcement(
        &self,
        received: &Received<'_>,
        frame: &Frame<'_>,
    ) -> Option<Announcement> {
        self.config.gateway.as_ref()?;
        match frame.ethertype {
            EthernetProtocol::Arp => resolve::read_arp(frame.payload).ok(),
            EthernetProtocol::Ipv6 if resolve::may_be_ndp(frame.payload) => {
                let packet = Packet::parse(received.frame, &received.offload).ok()?;
                resolve::read_ndp(&packet, received.frame, frame.src)?.ok()
            }
            _ => None,
        }
    }

    /// Refuses a message that claims somebody else's address: the gateway's, or one the daemon gave to
    /// another port. Let through, it would turn the other containers' traffic to its sender.
    pub(crate) fn check_claim(
        &self,
        received: &Received<'_>,
        message: &Announcement,
    ) -> Result<(), DropReason> {
        let (Some(sender), Some(gateway)) = (message.sender, &self.config.gateway) else {
            return Ok(());
        };
        if self.config.answers_for(sender) {
            return match message.station == gateway.mac {
                true => Ok(()),
                false => Err(DropReason::SpoofedGateway),
            };
        }
        self.network.neighbours.check(sender, received.port)
    }

    /// Learns from an ARP or NDP message, answers it if it asks for the gateway, and says whether it
    /// did.
    pub(crate) fn heard(
        &mut self,
        received: &Received<'_>,
        message: Announcement,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<bool, DropReason> {
        let Some(gateway) = &self.config.gateway else { return Ok(false) };
        let (own_mac, for_us) = (gateway.mac, self.config.answers_for(message.target));
        let from_host = Some(received.port) == self.host;
        self.check_claim(received, &message)?;
        if let Some(sender) = message.sender
            && message.station != own_mac
            && self.config.is_neighbour(sender)
        {
            let neighbours = &self.network.neighbours;
            let waited = neighbours.confirm(sender, message.station, received.port, for_us, now)?;
            self.send_waited(waited, message.station, now, out);
        }
        if !for_us || !message.asks || from_host {
            return Ok(false);
        }
        let router = self.config.leg == Leg::Inside;
        if let Some(built) = resolve::answer(out, own_mac, message.target, message, router) {
            let dst = MacAddr::from_bytes(&out.frame(built)[..6]);
            self.send(built, dst, Offload::NONE, now, out);
        }
        Ok(true)
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
        if self.config.leg != Leg::Inside {
            return self.outside_packet(received, packet, now, out, why);
        }
        let gateway = self.config.gateway.as_ref().ok_or(DropReason::NoGateway)?;
        // The host's kernel has the gateway's addresses, too (RFC 1812 §5.3.7, last paragraph).
        let own = self.config.has(packet.src) && Some(received.port) != self.host;
        if own || is_martian_source(packet.src) || gateway.is_broadcast(packet.src) {
            return Err(DropReason::MartianSource);
        }
        if !gateway.on_link(packet.src) && !is_link_local(packet.src) {
            return Err(DropReason::ForeignSource);
        }
        // Who sends from another endpoint's address would use up, and could end, its flows. Most send from
        // the addresses they were given, which asks nobody.
        let port = self.port(received.port);
        if !port.is_some_and(|port| port.addresses.contains(&packet.src)) {
            self.network.neighbours.check(packet.src, received.port)?;
        }
        let route = Route::lookup(&self.config, self.host, packet.dst);
        // On the way to a segment the NAT looks for the flow, relayed or its own. The host, by whose sockets
        // others leave, cannot reach our station on an interface of its own: that way leads there inside.
        let crosses = match (route, self.config.uplink) {
            (Route::Uplink, Uplink::Raw(segment)) => Some(segment),
            (Route::Uplink, Uplink::Sockets) if !is_link_local(packet.dst) => {
                self.station_at(packet.dst)
            }
            _ => None,
        };
        if packet.fragment == Fragment::Whole
            && crosses.is_none()
            && let Some(tuple) = packet.tuple().or_else(|| packet.concerns(received.frame))
            && let Some(found) = self.network.conntrack.lookup(self.network.zone, tuple)
            && found.from_inside
            && found.owner != Owner::NONE
        {
            if W::ASKED {
                why.step(Step::Flow { tuple, direction: found.direction });
            }
            self.check_hop_limit(received, &packet, now, out)?;
            return Ok(Decision::Flow(found.owner, found.direction, packet));
        }
        if let Some(segment) = crosses {
            return Self::cross(segment, packet, why);
        }
        match route {
            Route::Own => self.local(received, &packet, now, out, why),
            Route::Host(host) => {
                if W::ASKED {
                    why.step(Step::Host { dst: packet.dst });
                }
                // A port there may be another container's, by its mapping: then it is reached as from
                // elsewhere (RFC 4787 REQ-9). Whoever relays knows, and calls `pass_to_host` if not.
                let relayed = packet.protocol == Protocol::Udp
                    && packet.fragment == Fragment::Whole
                    && packet.hop_limit > 1
                    && self.config.uplink == Uplink::Sockets
                    && !is_link_local(packet.src);
                if relayed {
                    return Ok(Decision::Uplink(packet));
                }
                self.carry_to_host(received, &packet, host, now, out)
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
        if self.answer_echo(received, packet, now, out, why) {
            return Ok(Decision::Consumed);
        }
        if let Some(host) = self.host
            && host != received.port
        {
            if W::ASKED {
                why.step(Step::Host { dst: packet.dst });
            }
            return self.carry_to_host(received, packet, host, now, out);
        }
        // Whoever puts packets for the world together does so for ours, too: `answer_gathered`.
        match (packet.fragment, self.config.uplink) {
            (Fragment::Whole, _) | (_, Uplink::None) => {
                self.refuse_local(received, packet, now, out)
            }
            (_, Uplink::Sockets) => Ok(Decision::Uplink(*packet)),
            (_, Uplink::Raw(segment)) => Ok(Decision::Cross(segment, *packet)),
        }
    }

    /// Answers a packet for one of our addresses that came in pieces, and is whole now; `None` if it is for
    /// somebody else, or the NAT's to judge. `received` has the whole as its frame.
    pub fn answer_gathered(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        now: Instant,
        out: &mut Outbox,
    ) -> Option<Result<(), DropReason>> {
        if !self.config.has(packet.dst) {
            return None;
        }
        if self.config.leg != Leg::Inside {
            return is_near(packet)
                .then(|| self.answer_near(received, packet, now, out, &mut Silent));
        }
        if self.answer_echo(received, packet, now, out, &mut Silent) {
            return Some(Ok(()));
        }
        Some(self.refuse_local(received, packet, now, out).map(drop))
    }

    /// Answers an echo request for one of our addresses; false if it is none.
    pub(crate) fn answer_echo<W: Why>(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        now: Instant,
        out: &mut Outbox,
        why: &mut W,
    ) -> bool {
        let Some(gateway) = &self.config.gateway else { return false };
        let echo = match packet.icmp(received.frame) {
            Some((8, 0)) => packet.protocol == Protocol::Icmp,
            Some((128, 0)) => packet.protocol == Protocol::Icmpv6,
            _ => false,
        };
        if echo {
            if W::ASKED {
                why.step(Step::Answered);
            }
            let built = icmp::echo_reply(out, gateway.mac, packet, received.frame);
            let mtu = self.mtu_towards(packet.src, now);
            if built.len() - Packet::IP <= usize::from(mtu.0) {
                self.send_for(received.port, built, packet.src, Offload::NONE, now, out);
            } else {
                let identification = self.network.next_identification();
                for piece in fragment(out, built, mtu, identification) {
                    self.send_for(received.port, piece, packet.src, Offload::NONE, now, out);
                }
            }
        }
        echo
    }

    /// Refuses what is for one of our addresses, as a host does where nobody listens.
    pub(crate) fn refuse_local(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<Decision, DropReason> {
        let own_mac = self.config.gateway.as_ref().ok_or(DropReason::NoGateway)?.mac;
        match packet.protocol {
            _ if packet.fragment != Fragment::Whole => Err(DropReason::Fragment),
            Protocol::Tcp => {
                if let Some(built) = reset::reset(out, own_mac, packet, received.frame) {
                    self.send_for(received.port, built, packet.src, Offload::NONE, now, out);
                }
                Ok(Decision::Consumed)
            }
            Protocol::Udp => {
                self.tell(received, packet, IcmpError::PortUnreachable, now, out);
                Ok(Decision::Consumed)
            }
            // Router solicitations, errors and the like: heard, and nothing to say.
            Protocol::Icmp | Protocol::Icmpv6 => Ok(Decision::Consumed),
            Protocol::Other(_) => {
                let what = IcmpError::ProtocolUnreachable(packet.protocol_at(received.frame));
                self.tell(received, packet, what, now, out);
                Err(DropReason::UnsupportedProtocol)
            }
        }
    }

    /// A packet for the world by way of a segment: any protocol, and pieces as they come.
    fn cross<W: Why>(segment: Zone, packet: Packet, why: &mut W) -> Result<Decision, DropReason> {
        if is_link_local(packet.src) {
            return Err(DropReason::ForeignSource);
        }
        if W::ASKED {
            why.step(Step::Cross { segment, dst: packet.dst });
        }
        Ok(Decision::Cross(segment, packet))
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
            // What it is a piece of is known once all are there: the uplink's to put together.
            if W::ASKED {
                why.step(Step::Uplink { dst: packet.dst });
            }
            return Ok(Decision::Uplink(packet));
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

    /// Takes a packet that was left to the uplink to the host, behind the host port, and counts it; false if
    /// it is not for the host.
    pub fn pass_to_host(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        now: Instant,
        out: &mut Outbox,
    ) -> bool {
        let Route::Host(host) = Route::lookup(&self.config, self.host, packet.dst) else {
            return false;
        };
        let fate = match self.carry_to_host(received, packet, host, now, out) {
            Ok(_) => Fate::Forwarded,
            Err(reason) => Fate::Dropped(reason),
        };
        self.decided(received.port, fate);
        true
    }

    /// A packet for the host itself, behind the host port.
    fn carry_to_host(
        &mut self,
        received: &Received<'_>,
        packet: &Packet,
        host: PortId,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<Decision, DropReason> {
        let mtu = self.port(host).ok_or(DropReason::NoPort)?.mtu;
        if received.offload.gso == Gso::None && packet.ip_len() > usize::from(mtu.0) {
            self.tell(received, packet, IcmpError::TooBig(mtu.0.into()), now, out);
            return Err(DropReason::TooBig);
        }
        self.forward(received, host, out)
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
        let mtu = self.mtu_towards(packet.dst, now);
        let octets = &received.frame[..packet.end];
        let fits = received.offload.longest_packet(octets) <= usize::from(mtu.0);
        let may_cut = !packet.dont_fragment && packet.fragment == Fragment::Whole;
        if !fits && !may_cut {
            self.tell(received, packet, IcmpError::TooBig(mtu.0.into()), now, out);
            return Err(DropReason::TooBig);
        }
        // The padding is gone, so a hint that counted it would reach beyond the frame.
        let most = u16::try_from(packet.end).unwrap_or(u16::MAX);
        let header_len = received.offload.header_len.min(most);
        let offload = Offload { header_len, ..received.offload };
        if fits {
            let built = out.build(packet.end);
            let copy = out.frame_mut(built);
            copy.copy_from_slice(octets);
            copy[6..12].copy_from_slice(own_mac.as_bytes());
            slot::age(&mut copy[Packet::IP..]);
            self.send_for(received.port, built, packet.dst, offload, now, out);
        } else {
            let mut copy = octets.to_vec();
            slot::age(&mut copy[Packet::IP..]);
            let cut = |packet: &[u8]| {
                let headers = Headers::parse(packet).ok()?;
                nat::fragments::cut(packet, &headers, mtu.0, 0)
            };
            let payer = received.port.into();
            self.send_in_pieces(&copy, offload, cut, packet.dst, payer, now, out)?;
        }
        Ok(Decision::Consumed)
    }

    /// What the link of the neighbour `to` carries, or the network if that is not known yet.
    pub(crate) fn mtu_towards(&mut self, to: IpAddr, now: Instant) -> IpMtu {
        let whole = self.config.mtu;
        let station = self.network.neighbours.station_of(to);
        let port = station.and_then(|station| self.port_behind(station, now));
        port.map_or(whole, |port| port.mtu)
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
}
