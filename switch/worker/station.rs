//! Our station on a segment: what all workers know of it, and how they hear that it has changed.
//!
//! Whoever changes anything makes a new configuration and a new [`Crossing`] and counts one up; each worker
//! looks at that number once a turn, and takes what is new. So a worker that hears a router, and the control
//! side, change a station by the same way, and no frame waits for either.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Release,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datapath::{
    Change, Crossing, Gateway, Heard, Hop, IpMtu, Leg, Network, NetworkConfig, Outbox, Outside,
    PortCounters, PortId, Presence, PresenceConfig, Received, Uplink,
};
use nat::{Conntrack, Nat, Npt, Zone};
use smoltcp::time::Instant;
use smoltcp::wire::IpCidr;

use crate::control::SegmentId;
use crate::rules;
use crate::segments::{NatPublication, SegmentConfig};

/// What the workers need of a station.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    /// Of the segment, as a network.
    pub(crate) config: Arc<NetworkConfig>,
    pub(crate) crossing: Arc<Crossing>,
}

/// Conflicts told of before somebody looks: whoever is on the segment can make any number of them.
const MAX_CONFLICTS: usize = 16;

/// Subnets, and whose they are.
type Subnets = Vec<(IpCidr, Zone)>;

/// What the current state is made of.
#[derive(Debug)]
struct Parts {
    config: SegmentConfig,
    nat: Arc<Nat>,
    /// Its port, and what counts the presence's frames.
    home: Option<(PortId, Arc<PortCounters>)>,
    /// The addresses in use.
    addresses: Vec<IpCidr>,
    routes: Vec<Hop>,
    /// Whether its link-local address is ours.
    link_local: bool,
    /// What of the addresses to be shown is not ours.
    withheld: Vec<RangeInclusive<IpAddr>>,
    mtu: IpMtu,
    /// Subnets of the networks behind it, and beside it.
    networks: (Subnets, Subnets),
    published: Vec<NatPublication>,
    current: Current,
}

/// Our station on one segment.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) segment: SegmentId,
    /// What the workers share of the segment as a network.
    pub(crate) network: Arc<Network>,
    /// How it gets and keeps its addresses, once its port is there. Locked before the parts are.
    presence: Mutex<Option<Presence>>,
    parts: Mutex<Parts>,
    changes: AtomicU64,
    untold: Untold,
}

/// What was told of a station since somebody last looked at it.
#[derive(Debug, Default)]
struct Untold {
    changed: AtomicBool,
    conflicts: AtomicUsize,
}

impl Station {
    pub(crate) fn new(
        segment: SegmentId,
        config: SegmentConfig,
        conntrack: Arc<Conntrack>,
    ) -> Self {
        let zone = segment.zone();
        let network = Arc::new(Network::of_segment(zone, Arc::clone(&conntrack)));
        let nat = new_nat(&config, zone, conntrack);
        let crossing = Crossing::new(Arc::clone(&nat), zone, Vec::new(), &[], &[]);
        // Whose those to be shown are is known once there is a presence.
        let mut withheld = config.snat_to.clone();
        withheld.sort_by_key(|range| *range.start());
        let mut parts = Parts {
            mtu: config.mtu,
            addresses: Vec::new(),
            routes: Vec::new(),
            link_local: false,
            withheld,
            home: None,
            networks: Default::default(),
            published: Vec::new(),
            current: Current {
                config: Arc::new(NetworkConfig {
                    gateway: None,
                    uplink: Uplink::Raw(zone),
                    mtu: config.mtu,
                    host_addresses: Vec::new(),
                    isolated_from: Vec::new(),
                    leg: Leg::Inside,
                }),
                crossing: Arc::new(crossing),
            },
            config,
            nat,
        };
        parts.renew(zone);
        parts.set_rules(zone);
        let presence = Mutex::default();
        Self {
            segment,
            network,
            presence,
            parts: Mutex::new(parts),
            changes: AtomicU64::new(1),
            untold: Untold::default(),
        }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often it has changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Acquire)
    }

    /// What the workers need of it now.
    pub(crate) fn current(&self) -> Current {
        self.parts().current.clone()
    }

    pub(crate) fn nat(&self) -> Arc<Nat> {
        Arc::clone(&self.parts().nat)
    }

    pub(crate) fn config(&self) -> SegmentConfig {
        self.parts().config.clone()
    }

    fn presence(&self) -> MutexGuard<'_, Option<Presence>> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether to tell that something has changed: not again before somebody [has
    /// looked](Self::looked_at), however often the segment's stations make it change.
    pub(crate) fn tells_of_change(&self) -> bool {
        !self.untold.changed.swap(true, AcqRel)
    }

    /// Whether to tell of a conflict: of [`MAX_CONFLICTS`] until somebody has looked.
    pub(crate) fn tells_of_conflict(&self) -> bool {
        self.untold.conflicts.fetch_add(1, AcqRel) < MAX_CONFLICTS
    }

    /// Somebody is about to look at what it has.
    pub(crate) fn looked_at(&self) {
        self.untold.conflicts.store(0, Release);
        self.untold.changed.store(false, Release);
    }

    /// Looks at the presence, for listings.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Presence) -> T) -> Option<T> {
        self.presence().as_ref().map(at)
    }

    /// Begins to claim its addresses, by its segment's port.
    pub(crate) fn move_in(&self, port: PortId, counters: Arc<PortCounters>, now: Instant) {
        let mut presence = self.presence();
        let mut parts = self.parts();
        let told = presence_config(&parts.config, self.segment.zone(), port);
        parts.home = Some((port, Arc::clone(&counters)));
        *presence = Some(Presence::new(told, counters, now));
    }

    /// Says nothing until its link is up again.
    pub(crate) fn hush(&self) {
        if let Some(present) = &mut *self.presence() {
            present.link_down();
        }
    }

    /// Its segment's port is another one from now on.
    pub(crate) fn move_to(&self, port: PortId) {
        let mut presence = self.presence();
        if let Some(present) = &mut *presence {
            present.set_port(port);
        }
        if let Some(home) = &mut self.parts().home {
            home.0 = port;
        }
    }

    /// Shows it a frame that concerns its presence, and tells what has changed by it.
    pub(crate) fn hear(
        &self,
        received: &Received<'_>,
        now: Instant,
        out: &mut Outbox,
    ) -> (Heard, Vec<Change>) {
        let mut presence = self.presence();
        let Some(present) = &mut *presence else { return (Heard::Pass, Vec::new()) };
        let heard = present.handle(received, now, out);
        (heard, self.take_changes(present))
    }

    /// Does what time asks of its presence, and tells what has changed.
    pub(crate) fn handle_timeout(&self, now: Instant, out: &mut Outbox) -> Vec<Change> {
        let mut presence = self.presence();
        let Some(present) = &mut *presence else { return Vec::new() };
        present.handle_timeout(now, out);
        self.take_changes(present)
    }

    /// When its presence has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.presence().as_ref().and_then(Presence::poll_timeout)
    }

    /// Gives back what it has leased.
    pub(crate) fn leave(&self, now: Instant, out: &mut Outbox) {
        if let Some(present) = &mut *self.presence() {
            present.leave(now, out);
        }
    }

    /// Its interface has come up or gone down, or carries packets of another length.
    pub(crate) fn set_link(&self, up: bool, mtu: IpMtu, now: Instant) {
        let mut presence = self.presence();
        let Some(present) = &mut *presence else { return };
        present.set_mtu(mtu, now);
        if up {
            present.link_up(now);
        } else {
            present.link_down();
        }
        // Whoever tells of the link knows what that changes at once; the rest comes by frames and time.
        let _ = self.take_changes(present);
    }

    fn take_changes(&self, presence: &mut Presence) -> Vec<Change> {
        let changes = presence.changes();
        if !changes.is_empty() {
            self.parts().take(presence, self.segment.zone());
            self.changes.fetch_add(1, AcqRel);
        }
        changes
    }

    /// Takes the subnets of the networks behind it and beside it; true if they are others.
    pub(crate) fn set_networks(&self, behind: Subnets, beside: Subnets) -> bool {
        let networks = (behind, beside);
        let mut parts = self.parts();
        let other = parts.networks != networks;
        if other {
            parts.networks = networks;
            parts.renew(self.segment.zone());
            self.changes.fetch_add(1, AcqRel);
        }
        other
    }

    /// Publishes these ports in place of those before.
    pub(crate) fn publish(&self, published: Vec<NatPublication>) {
        let mut parts = self.parts();
        parts.published = published;
        parts.set_rules(self.segment.zone());
    }

    /// Changes what it is and does. What is the same of its addresses stays as it is; another station moves in
    /// anew.
    pub(crate) fn configure(&self, config: SegmentConfig, now: Instant) {
        let zone = self.segment.zone();
        let mut presence = self.presence();
        let mut parts = self.parts();
        parts.nat.set_config(nat_config(&config, zone, parts.nat.config().secret));
        parts.nat.set_prefixes(prefixes(&config, zone));
        let before = std::mem::replace(&mut parts.config, config);
        if let (Some(present), Some((port, counters))) = (&mut *presence, parts.home.clone()) {
            let told = presence_config(&parts.config, zone, port);
            if before.mac == told.mac {
                present.configure(told, now);
            } else {
                *present = Presence::new(told, counters, now);
            }
            if before.mtu != parts.config.mtu {
                present.set_mtu(parts.config.mtu, now);
            }
            // Whoever changes it knows; what the workers need is made anew here.
            let _ = present.changes();
            parts.take(present, zone);
        } else {
            parts.mtu = parts.config.mtu;
            parts.renew(zone);
        }
        parts.set_rules(zone);
        self.changes.fetch_add(1, AcqRel);
    }
}

impl Parts {
    /// Takes what the presence has now, and ends the flows shown with an address that is gone.
    fn take(&mut self, presence: &Presence, zone: Zone) {
        let before = Arc::clone(&self.current.config);
        let addresses = std::mem::replace(&mut self.addresses, presence.addresses());
        self.routes = presence.routes().to_vec();
        self.mtu = presence.mtu();
        self.link_local = presence.link_local().is_some();
        self.withheld = presence.withheld().to_vec();
        self.nat.withhold(self.withheld.clone());
        self.renew(zone);
        let after = &self.current.config;
        let shown = |config: &NetworkConfig| match &config.leg {
            Leg::Uplink(Outside { shown, withheld, .. }) => (shown.clone(), withheld.clone()),
            Leg::Inside => Default::default(),
        };
        let moved = addresses != self.addresses;
        if moved || shown(&before) != shown(after) {
            let gone = |addr| before.answers_for(addr) && !after.answers_for(addr);
            self.nat.forget_addresses(zone, gone);
        }
        if moved {
            self.set_rules(zone);
        }
    }

    /// Makes anew what the workers need.
    fn renew(&mut self, zone: Zone) {
        let addresses = self.addresses.iter().map(|own| own.address().into()).collect();
        let (nat, (behind, beside)) = (Arc::clone(&self.nat), &self.networks);
        self.current = Current {
            config: Arc::new(self.network_config(zone)),
            crossing: Arc::new(Crossing::new(nat, zone, addresses, behind, beside)),
        };
    }

    /// The segment, as the data path knows a network.
    fn network_config(&self, zone: Zone) -> NetworkConfig {
        let near = |addr: IpAddr| self.addresses.iter().any(|own| own.contains_addr(&addr.into()));
        let outside = self.config.npt.iter().map(|(_, outside)| {
            let rest = u128::MAX.checked_shr(outside.prefix_len().into()).unwrap_or(0);
            let first = outside.address().to_bits() & !rest;
            IpAddr::V6(first.into())..=IpAddr::V6((first | rest).into())
        });
        // In a prefix that is the segment's own any address may be another station's.
        let outside = outside.filter(|range| {
            let own = self.addresses.iter().map(|own| IpAddr::from(own.address()));
            !near(*range.start()) && !own.into_iter().any(|own| range.contains(&own))
        });
        NetworkConfig {
            gateway: Some(Gateway { mac: self.config.mac, addresses: self.addresses.clone() }),
            uplink: Uplink::Raw(zone),
            mtu: self.mtu,
            host_addresses: Vec::new(),
            isolated_from: Vec::new(),
            leg: Leg::Uplink(Outside {
                link_local: self.link_local,
                routes: self.routes.clone(),
                shown: self.config.snat_to.iter().cloned().chain(outside).collect(),
                withheld: self.withheld.clone(),
                behind: self.networks.0.iter().map(|(subnet, _)| *subnet).collect(),
            }),
        }
    }

    fn set_rules(&self, zone: Zone) {
        self.nat.set_rules(rules::rules(&self.config, &self.published, &self.addresses, zone));
    }
}

/// Ends every flow of `zone` that no owner keeps.
pub(crate) fn forget_flows(conntrack: &Conntrack, zone: Zone) {
    let flows = conntrack.list(Some(zone));
    let ours = flows.iter().filter(|entry| entry.owner() == nat::Owner::NONE);
    ours.for_each(|entry| conntrack.remove(entry));
}

fn new_nat(config: &SegmentConfig, zone: Zone, conntrack: Arc<Conntrack>) -> Arc<Nat> {
    let nat = Nat::new(conntrack, nat_config(config, zone, secret()));
    nat.set_prefixes(prefixes(config, zone));
    Arc::new(nat)
}

fn nat_config(config: &SegmentConfig, zone: Zone, secret: [u8; 16]) -> nat::Config {
    nat::Config {
        filtering: config.filtering,
        loose: config.loose,
        clamp_mss: config.clamp_mss,
        open: !config.nat,
        max_mappings_of_account: config.max_mappings_per_port,
        nat46: config.nat46.clone(),
        timeouts: Some(config.timeouts),
        ..nat::Config::new(zone, secret)
    }
}

/// Octets nobody can guess: the standard library's keys against collisions come from the kernel.
fn secret() -> [u8; 16] {
    use std::hash::{BuildHasher, RandomState};
    let word = |n: u8| RandomState::new().hash_one(n).to_ne_bytes();
    let mut secret = [0; 16];
    let (first, second) = secret.split_at_mut(8);
    first.copy_from_slice(&word(0));
    second.copy_from_slice(&word(1));
    secret
}

fn prefixes(config: &SegmentConfig, zone: Zone) -> Vec<Npt> {
    let pairs = config.npt.iter();
    pairs.filter_map(|(inside, outside)| Npt::new(zone, *inside, *outside)).collect()
}

/// What the station's presence is told.
fn presence_config(config: &SegmentConfig, zone: Zone, port: PortId) -> PresenceConfig {
    let [a, b, c, d, e, f, g, h, ..] = secret();
    PresenceConfig {
        zone,
        port,
        mac: config.mac,
        mtu: config.mtu,
        v4: config.v4.clone(),
        v6: config.v6.clone(),
        shown: config.snat_to.clone(),
        hostname: None,
        seed: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
    }
}
