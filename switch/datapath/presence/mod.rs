//! Our own station on a segment somebody else runs: how it gets addresses, and how it keeps them.
//!
//! Read RFC 5227 (nobody else's address is taken), RFC 2131 (DHCP) and RFC 4861, 4862 (router
//! advertisements) first. A [`Presence`] is fed the frames of the segment's one port that
//! [`concern`](Presence::concerns) it, before the bridge is, and says by [`changes`](Presence::changes)
//! when the gateway's addresses are others. It answers no ARP or NDP question itself: the gateway does,
//! for the addresses it is given, which are those that are [`in use`](Presence::addresses) here.

use std::net::IpAddr;
use std::sync::Arc;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpCidr, Ipv4Cidr, Ipv6Cidr};

use crate::bridge::Received;
use crate::drop::DropReason;
use crate::hop::Hop;
use crate::outbox::Outbox;
use crate::port::{IpMtu, MacAddr, PortId};
use crate::stats::PortCounters;

/// How a station gets its addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing<A> {
    /// It has none, and takes no part in the family.
    None,
    /// They were given to it.
    Static {
        /// Each with its subnet's prefix length.
        addresses: Vec<A>,
        /// The default router.
        gateway: Option<IpAddr>,
    },
    /// By DHCP (RFC 2131), or by router advertisements (RFC 4862).
    Auto,
}

/// Who is to be present, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceConfig {
    /// The segment's port, by which everything leaves.
    pub port: PortId,
    /// Our station.
    pub mac: MacAddr,
    /// Largest IP packet the interface carries.
    pub mtu: IpMtu,
    /// IPv4.
    pub v4: Addressing<Ipv4Cidr>,
    /// IPv6; with any but `None` comes a link-local address.
    pub v6: Addressing<Ipv6Cidr>,
    /// The name told to a DHCP server.
    pub hostname: Option<String>,
    /// Where every random interval and transaction number comes from: a number nobody can guess.
    pub seed: u64,
}

/// What became of a frame shown to a [`Presence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Heard {
    /// The bridge is to decide it.
    Pass,
    /// It was for the presence alone, and counts as consumed.
    Consumed,
    /// It was for the presence alone, and is not to be believed.
    Drop(DropReason),
}

/// Where an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was given.
    Static,
    /// A DHCP server leased it.
    Dhcp,
    /// A router advertised its prefix (RFC 4862 §5.5).
    Advertised,
    /// Each station with IPv6 has it (RFC 4862 §5.3).
    LinkLocal,
}

/// Why an address is no longer ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Another station has it (RFC 5227 §2.4, RFC 4862 §5.4).
    Conflict,
    /// Its lease or lifetime has ended.
    Expired,
    /// The DHCP server takes it back (DHCPNAK), or leased another one instead.
    Refused,
}

/// What was done about another station's claim of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// We did not have it yet and leave it.
    Avoided,
    /// We announced once more that it is ours.
    Defended,
    /// It was claimed again within [`DEFEND_INTERVAL`]: we give it up.
    GivenUp,
}

/// Something that happened to a presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// An address is ours from now on.
    Gained {
        /// With its subnet's prefix length.
        address: IpCidr,
        /// Where it comes from.
        origin: Origin,
    },
    /// An address is not ours any more.
    Lost {
        /// With its subnet's prefix length.
        address: IpCidr,
        /// Where it came from.
        origin: Origin,
        /// Why.
        why: Lost,
    },
    /// Another station claims an address of ours.
    Conflict {
        /// The address.
        address: IpAddr,
        /// The other station.
        station: MacAddr,
        /// What was done about it.
        settled: Settled,
    },
    /// [`Presence::routes`] are others.
    Routes,
    /// [`Presence::dns`] are others.
    Dns,
    /// [`Presence::mtu`] is another.
    Mtu,
}

/// How far an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Being probed for; not ours yet.
    Tentative,
    /// Ours.
    InUse,
    /// Ours, and not to be used for what is new (RFC 4862 §5.5.4).
    Deprecated,
    /// Another station has it; it is probed for again after a while.
    Conflict,
}

/// An address, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRow {
    /// With its subnet's prefix length.
    pub address: IpCidr,
    /// Where it comes from.
    pub origin: Origin,
    /// How far it is.
    pub standing: Standing,
    /// When it ends; `None` where it does not.
    pub expires: Option<Instant>,
}

/// The lease held or asked for, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// The client's state in the words of RFC 2131 §4.4: `INIT`, `SELECTING`, `REQUESTING`, `BOUND`,
    /// `RENEWING`, `REBINDING`, `REBOOTING`.
    pub state: &'static str,
    /// The address.
    pub address: Option<Ipv4Cidr>,
    /// The server's identifier.
    pub server: Option<IpAddr>,
    /// When it is renewed (T1), rebound (T2), and over.
    pub times: Option<[Instant; 3]>,
}

/// Our station's addresses on one segment.
#[derive(Debug)]
pub struct Presence {
    config: PresenceConfig,
    changes: Vec<Change>,
    _counters: Arc<PortCounters>,
}

impl Presence {
    /// A presence that has no address yet; `gateway` counts what it sends, as if the gateway did. The
    /// link counts as up.
    #[must_use]
    pub fn new(config: PresenceConfig, gateway: Arc<PortCounters>, now: Instant) -> Self {
        let _ = now;
        Self { config, changes: Vec::new(), _counters: gateway }
    }

    /// Whether [`handle`](Self::handle) wants to see this frame: ARP, NDP, MLD and DHCP. A look at a
    /// few octets; everything else goes to the bridge alone.
    #[must_use]
    pub fn concerns(frame: &[u8]) -> bool {
        matches!(frame.get(12..14), Some([0x08, 0x06]))
    }

    /// Looks at a frame that came in by the segment's port, before the bridge does.
    pub fn handle(&mut self, received: &Received<'_>, now: Instant, out: &mut Outbox) -> Heard {
        let _ = (received, now, out);
        Heard::Pass
    }

    /// Does what time asks for. Early and repeated calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Outbox) {
        let _ = (now, out);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// What has happened since this was last asked. At most [`MAX_CHANGES`](Self::MAX_CHANGES) are kept,
    /// the oldest giving way; [`addresses`](Self::addresses) and its like are always true.
    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Most changes kept for [`changes`](Self::changes).
    pub const MAX_CHANGES: usize = 64;

    /// The interface has lost its carrier or was taken down: nothing is sent or asked for until it is
    /// back. What is held stays held as long as it lasts.
    pub fn link_down(&mut self, now: Instant) {
        let _ = now;
    }

    /// The interface is back, perhaps on another segment: every address is probed for again while it
    /// stays in use, the lease is asked for as it was (INIT-REBOOT, RFC 2131 §3.2), routers are asked.
    pub fn link_up(&mut self, now: Instant) {
        let _ = now;
    }

    /// The interface's MTU has changed.
    pub fn set_mtu(&mut self, mtu: IpMtu) {
        self.config.mtu = mtu;
    }

    /// Gives back what was leased (DHCPRELEASE), before going away for good.
    pub fn leave(&mut self, now: Instant, out: &mut Outbox) {
        let _ = (now, out);
    }

    /// The addresses in use with their subnets' prefix lengths, those to speak from first; the
    /// link-local one, which the gateway has of itself, is not among them.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpCidr> {
        Vec::new()
    }

    /// Every address, those not in use and the link-local one too.
    #[must_use]
    pub fn rows(&self) -> Vec<AddressRow> {
        Vec::new()
    }

    /// The routes, the best first of those to one prefix: on-link subnets, what DHCP and routers have
    /// said, and default routes.
    #[must_use]
    pub fn routes(&self) -> Vec<Hop> {
        Vec::new()
    }

    /// The name servers learnt, the best first.
    #[must_use]
    pub fn dns(&self) -> Vec<IpAddr> {
        Vec::new()
    }

    /// Largest IP packet on the segment: the interface's, or less if DHCP or a router says so.
    #[must_use]
    pub fn mtu(&self) -> IpMtu {
        self.config.mtu
    }

    /// The lease; `None` without DHCP.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseRow> {
        None
    }
}

/// How long after one conflict another one of the same address is not defended against any more
/// (RFC 5227 §1.1, DEFEND_INTERVAL).
pub const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
