//! Our own station on a segment somebody else runs: how it gets addresses, and how it keeps them.
//!
//! Read RFC 5227 (nobody else's address is taken), RFC 2131 (DHCP) and RFC 4861, 4862 (router
//! advertisements) first. A [`Presence`] is fed the frames of the segment's one port that
//! [`concern`](Presence::concerns) it, before the bridge is, and says by [`changes`](Presence::changes)
//! when the gateway's addresses are others. It answers no ARP or NDP question itself: the gateway does,
//! for the addresses it is given, which are those that are [`in use`](Presence::addresses) here.
//!
//! ```text
//!   advert ─▶ solicit ┐
//!   dhcp ──▶ lease ───┼─▶ own: which addresses there should be ─▶ claim: each probed for, announced, defended
//!   given by hand ────┘        └▶ shown: those of translation ──▶┘  └▶ listen: the groups they need
//! ```

mod advert;
mod chance;
mod claim;
mod dhcp;
mod known;
mod lease;
mod listen;
mod own;
mod report;
mod shown;
mod solicit;
mod voice;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use nat::Protocol;
use smoltcp::time::Instant;

use crate::bridge::Received;
use crate::frame::Frame;
use crate::hop::Hop;
use crate::outbox::Outbox;
use crate::packet::{Fragment, Packet};
use crate::port::{ETHERNET_HEADER_LEN, IpMtu, PortId};
use crate::resolve::{self, Announcement};
use crate::stats::PortCounters;
use advert::Advert;
use chance::Chance;
use claim::Own;
use lease::Client;
use listen::Listener;
use shown::Shown;
use solicit::Solicit;
use voice::Voice;

pub use report::{
    AddressRow, Addressing, Change, DEFEND_INTERVAL, Heard, LeaseRow, Lost, Origin, PresenceConfig,
    Settled, Standing,
};

pub use shown::MAX_SHOWN;

/// Most addresses given to one presence; what is beyond is not claimed. Leased and advertised ones come
/// on top, of which there are nine at most, and [`MAX_SHOWN`].
pub const MAX_ADDRESSES: usize = 256;

/// Our station's addresses on one segment.
#[derive(Debug)]
pub struct Presence {
    config: PresenceConfig,
    voice: Voice,
    chance: Chance,
    up: bool,
    own: Vec<Own>,
    shown: Shown,
    lease: Option<Client>,
    /// Of DHCP that is asked no more, with what is still to be given back.
    leaving: Option<Client>,
    solicit: Option<Solicit>,
    listener: Option<Listener>,
    routes: Vec<Hop>,
    dns: Vec<IpAddr>,
    mtu: IpMtu,
    changes: Vec<Change>,
}

impl Presence {
    /// A presence that has no address yet; `gateway` counts what it sends, as if the gateway did. The
    /// link counts as up.
    #[must_use]
    pub fn new(config: PresenceConfig, gateway: Arc<PortCounters>, now: Instant) -> Self {
        let mut chance = Chance::new(config.seed);
        let lease = matches!(config.v4, Addressing::Auto)
            .then(|| Client::new(config.mac, config.hostname.clone(), now, &mut chance));
        let v6 = config.v6 != Addressing::None;
        let mut presence = Self {
            voice: Voice { to: (config.zone, config.port), mac: config.mac, gateway },
            chance,
            up: true,
            own: Vec::new(),
            shown: Shown::default(),
            lease,
            leaving: None,
            solicit: matches!(config.v6, Addressing::Auto).then(Solicit::default),
            listener: v6.then(Listener::default),
            routes: Vec::new(),
            dns: Vec::new(),
            mtu: config.mtu,
            changes: Vec::new(),
            config,
        };
        presence.settle(now);
        presence
    }

    /// Whether [`handle`](Self::handle) wants to see this frame: ARP, NDP, MLD and DHCP. A look at a
    /// few octets; everything else goes to the bridge alone.
    #[must_use]
    pub fn concerns(frame: &[u8]) -> bool {
        const UDP: u8 = Protocol::Udp.number();
        const ICMPV6: u8 = Protocol::Icmpv6.number();
        const NDP: [u8; 3] = [advert::ADVERTISEMENT, 135, 136];
        let Some((kind, ip)) = frame.get(12..14).zip(frame.get(ETHERNET_HEADER_LEN..)) else {
            return false;
        };
        match kind {
            [0x08, 0x06] => true,
            [0x08, 0x00] if ip.get(9) == Some(&UDP) => {
                let header = usize::from(ip[0] & 0x0f) * 4;
                ip.get(header + 2..header + 4) == Some(&dhcp::CLIENT_PORT.to_be_bytes())
            }
            // An MLD query is behind a hop-by-hop header (RFC 3810 §5).
            [0x86, 0xdd] => match ip.get(6) {
                Some(&ICMPV6) => ip.get(40).is_some_and(|kind| NDP.contains(kind)),
                Some(0) => ip.get(40) == Some(&ICMPV6) && ip.get(48) == Some(&listen::QUERY),
                _ => false,
            },
            _ => false,
        }
    }

    /// Looks at a frame that came in by the segment's port, before the bridge does.
    pub fn handle(&mut self, received: &Received<'_>, now: Instant, out: &mut Outbox) -> Heard {
        let frame = received.frame;
        let ours = frame.get(6..12) == Some(self.config.mac.as_bytes());
        if !self.up || ours || !Self::concerns(frame) || received.offload.check(frame).is_err() {
            return Heard::Pass;
        }
        let payload = &frame[ETHERNET_HEADER_LEN..];
        if frame[12..14] == [0x08, 0x06] {
            if let Ok(message) = resolve::read_arp(payload) {
                self.message(&message, now, out);
            }
            return Heard::Pass;
        }
        // What is malformed the bridge or the gateway refuses, with a reason.
        let Ok(packet) = Packet::parse(frame, &received.offload) else { return Heard::Pass };
        match packet.protocol {
            Protocol::Udp => self.datagram(&packet, frame, now),
            _ => self.icmp(&packet, frame, now, out),
        }
    }

    fn datagram(&mut self, packet: &Packet, frame: &[u8], now: Instant) -> Heard {
        let (Some(client), Some((dhcp::SERVER_PORT, dhcp::CLIENT_PORT))) =
            (&mut self.lease, packet.ports)
        else {
            return Heard::Pass;
        };
        let datagram = packet.transport(frame);
        let len = usize::from(u16::from_be_bytes([datagram[4], datagram[5]]));
        // Pieces are none: no server sends any (RFC 2131 §2).
        let whole = packet.fragment == Fragment::Whole;
        let Some(message) = datagram.get(8..len).filter(|_| whole) else { return Heard::Pass };
        let Ok(Frame { src: station, .. }) = Frame::parse(frame) else { return Heard::Pass };
        let heard = client.heard(message, station, now, &mut self.chance);
        let to_us = frame[..6] == *self.config.mac.as_bytes();
        if heard == Ok(true) {
            self.settle(now);
        }
        match heard {
            Ok(true) => Heard::Consumed,
            Err(reason) if to_us => Heard::Drop(reason),
            Ok(false) if to_us => Heard::Consumed,
            Ok(false) | Err(_) => Heard::Pass,
        }
    }

    fn icmp(&mut self, packet: &Packet, frame: &[u8], now: Instant, out: &mut Outbox) -> Heard {
        let kind = packet.icmp(frame).map(|(kind, _)| kind);
        match (kind, &mut self.solicit, &mut self.listener) {
            (Some(advert::ADVERTISEMENT), Some(solicit), _) => match Advert::read(packet, frame) {
                Ok(advert) => {
                    solicit.heard(&advert, now);
                    self.settle(now);
                    Heard::Consumed
                }
                Err(reason) => Heard::Drop(reason),
            },
            (Some(listen::QUERY), _, Some(listener)) => {
                listener.heard(packet, frame, now, &mut self.chance);
                Heard::Pass
            }
            _ => {
                let src = Frame::parse(frame).map(|frame| frame.src);
                if let Ok(src) = src
                    && let Some(Ok(message)) = resolve::read_ndp(packet, frame, src)
                {
                    self.message(&message, now, out);
                }
                Heard::Pass
            }
        }
    }

    /// Takes note of an ARP or NDP message of another station.
    fn message(&mut self, message: &Announcement, now: Instant, out: &mut Outbox) {
        if message.station == self.config.mac {
            return;
        }
        let mut told = None;
        for own in &mut self.own {
            let before = own.claim.in_use();
            if let Some(settled) = own.claim.heard(message, now, &self.voice, out) {
                told = Some((own.address, own.origin, before && !own.claim.in_use(), settled));
                break; // No two claims are of one address.
            }
        }
        let shown = || {
            let (address, lost, settled) = self.shown.heard(message, now, &self.voice, out)?;
            Some((address, Origin::Shown, lost, settled))
        };
        let Some((address, origin, lost, settled)) = told.or_else(shown) else { return };
        let (station, addr) = (message.station, address.address().into());
        self.tell(Change::Conflict { address: addr, station, settled });
        if lost {
            self.tell(Change::Lost { address, origin, why: Lost::Conflict });
        }
        if let (Some(client), Origin::Dhcp, Settled::Avoided | Settled::GivenUp) =
            (&mut self.lease, origin, settled)
        {
            client.decline(now, &self.voice, &mut self.chance, out);
        }
        self.settle(now);
    }

    /// Does what time asks for. Early and repeated calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Outbox) {
        let mut gained = Vec::new();
        for own in &mut self.own {
            if own.claim.handle_timeout(now, &self.voice, &mut self.chance, out) {
                gained.push((own.address, own.origin));
            }
        }
        let shown = self.shown.handle_timeout(now, &self.voice, &mut self.chance, out);
        gained.extend(shown.into_iter().map(|address| (address, Origin::Shown)));
        for (address, origin) in gained {
            self.tell(Change::Gained { address, origin });
            match (origin, &mut self.lease, &mut self.solicit) {
                (Origin::Dhcp, Some(client), _) => client.holds(),
                (Origin::LinkLocal, _, Some(solicit)) => solicit.begin(now, &mut self.chance),
                _ => {}
            }
        }
        if let Some(mut client) = self.leaving.take() {
            client.release(now, &self.voice, &mut self.chance, out);
        }
        let own = self.link_local();
        if let Some(client) = &mut self.lease {
            client.handle_timeout(now, &self.voice, &mut self.chance, out);
        }
        if let Some(solicit) = &mut self.solicit {
            let own = own.unwrap_or(Ipv6Addr::UNSPECIFIED);
            solicit.handle_timeout(now, own, &self.voice, &mut self.chance, out);
        }
        if let Some(listener) = &mut self.listener {
            listener.handle_timeout(now, own, &self.voice, &mut self.chance, out);
        }
        self.settle(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let claims = self.own.iter().filter_map(|own| own.claim.poll_timeout());
        claims
            .chain(self.shown.poll_timeout())
            .chain(self.leaving.is_some().then_some(Instant::ZERO))
            .chain(self.lease.as_ref().and_then(Client::poll_timeout))
            .chain(self.solicit.as_ref().and_then(Solicit::poll_timeout))
            .chain(self.listener.as_ref().and_then(Listener::poll_timeout))
            .min()
    }

    /// What has happened since this was last asked. At most [`MAX_CHANGES`](Self::MAX_CHANGES) are kept,
    /// the oldest giving way; [`addresses`](Self::addresses) and its like are always true.
    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Most changes kept for [`changes`](Self::changes).
    pub const MAX_CHANGES: usize = 64;

    fn tell(&mut self, change: Change) {
        if self.changes.len() >= Self::MAX_CHANGES {
            self.changes.remove(0);
        }
        self.changes.push(change);
    }

    /// The interface has lost its carrier or was taken down: nothing is sent or asked for until it is
    /// back. What is held stays held as long as it lasts.
    pub fn link_down(&mut self) {
        self.up = false;
        self.hush();
    }

    /// Says nothing more until the link is up.
    fn hush(&mut self) {
        self.own.iter_mut().for_each(|own| own.claim.pause());
        self.shown.pause();
        if let Some(client) = &mut self.lease {
            client.pause();
        }
        if let Some(solicit) = &mut self.solicit {
            solicit.pause();
        }
        if let Some(listener) = &mut self.listener {
            listener.pause();
        }
    }

    /// The interface is back, perhaps on another segment: every address is probed for again while it
    /// stays in use, the lease is asked for as it was (INIT-REBOOT, RFC 2131 §3.2), routers are asked. One that
    /// was not away is left alone.
    pub fn link_up(&mut self, now: Instant) {
        if std::mem::replace(&mut self.up, true) {
            return;
        }
        for own in &mut self.own {
            own.claim.probe_again(now, &mut self.chance);
        }
        self.shown.probe_again(now, &mut self.chance);
        if let Some(client) = &mut self.lease {
            client.reboot(now, &mut self.chance);
        }
        let own = self.link_local();
        if let (Some(solicit), Some(_)) = (&mut self.solicit, own) {
            solicit.begin(now, &mut self.chance);
        }
        if let Some(listener) = &mut self.listener {
            listener.report_again(now);
        }
    }

    /// The segment is behind another port of ours.
    pub const fn set_port(&mut self, port: PortId) {
        self.config.port = port;
        self.voice.to.1 = port;
    }

    /// The interface's MTU has changed.
    pub fn set_mtu(&mut self, mtu: IpMtu, now: Instant) {
        self.config.mtu = mtu;
        self.settle(now);
    }

    /// Is told otherwise. What is the same in both is left alone: an address that is wanted before and after
    /// stays as it is, and only one that is new is probed for. Zone, port, station, MTU and seed stay
    /// those it was made with.
    pub fn configure(&mut self, config: PresenceConfig, now: Instant) {
        let PresenceConfig { v4, v6, shown, hostname, .. } = config;
        let (dhcp, ra) = (v4 == Addressing::Auto, v6 == Addressing::Auto);
        if dhcp != self.lease.is_some() {
            self.leaving = self.lease.take().or(self.leaving.take());
            self.lease =
                dhcp.then(|| Client::new(self.config.mac, hostname.clone(), now, &mut self.chance));
        }
        if ra != self.solicit.is_some() {
            let ours = self.link_local().is_some();
            self.solicit = ra.then(Solicit::default);
            if let Some(solicit) = self.solicit.as_mut().filter(|_| ours) {
                solicit.begin(now, &mut self.chance);
            }
        }
        if (v6 != Addressing::None) != self.listener.is_some() {
            self.listener = (v6 != Addressing::None).then(Listener::default);
        }
        self.config = PresenceConfig { v4, v6, shown, hostname, ..self.config.clone() };
        self.settle(now);
        if !self.up {
            self.hush();
        }
    }

    /// Gives back what was leased (DHCPRELEASE), before going away for good.
    pub fn leave(&mut self, now: Instant, out: &mut Outbox) {
        for client in self.lease.iter_mut().chain(&mut self.leaving) {
            client.release(now, &self.voice, &mut self.chance, out);
        }
    }
}
