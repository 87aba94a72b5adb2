//! The gateway's neighbours: IP address to station.
//!
//! Read RFC 826, "Packet Reception", RFC 4861 §7.3 and `net/core/neighbour.c` first. Any message from a
//! known sender refreshes its entry; only one that asks for us, or that answers us, creates one.
//! Shared by all workers. Bounded: each port pays for what was learned from it and for whom it wants,
//! from a share of its own; what the daemon has introduced costs nobody, and nobody displaces it.
//! Pure: what must be asked is returned.

use std::net::IpAddr;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use smoltcp::time::{Duration, Instant};

use crate::drop::DropReason;
use crate::offload::Offload;
use crate::port::{MacAddr, Payer, PortId};
use crate::share::Shares;

pub use crate::share::{
    CAPACITY, CAPACITY_PER_PORT, MAX_PENDING_OCTETS, MAX_PENDING_OCTETS_PER_PORT,
};

/// How long a confirmed neighbour is taken for granted (RFC 4861 §10 REACHABLE_TIME; Linux
/// `base_reachable_time_ms`).
pub const REACHABLE_TIME: Duration = Duration::from_secs(30);

/// How long a neighbour nobody talks to stays in the table (Linux `gc_stale_time`).
pub const STALE_TIME: Duration = Duration::from_secs(60);

/// Between two requests for the same neighbour (RFC 1122 §2.3.2.1; RFC 4861 §10 RETRANS_TIMER).
pub const RETRANS_TIME: Duration = Duration::from_secs(1);

/// Requests before giving up (RFC 4861 §10 MAX_MULTICAST_SOLICIT; Linux `mcast_solicit`).
pub const MAX_SOLICIT: u8 = 3;

/// Packets that wait for one unresolved neighbour; the oldest gives way. RFC 1122 §2.3.2.2 asks for one,
/// and Linux keeps 200 KB of them (`unres_qlen_bytes`): a first datagram may come in 45 pieces, and the first
/// questions of a resolver or of a browser at once.
pub const MAX_PENDING: usize = 64;

/// What is known of a neighbour, by the names of `uapi/linux/neighbour.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Asked for, not answered yet.
    Incomplete,
    /// Confirmed within [`REACHABLE_TIME`].
    Reachable,
    /// Was confirmed longer ago.
    Stale,
    /// Stale, and asked again because it is in use.
    Probe,
    /// Introduced by the daemon: valid as long as its port is attached.
    Permanent,
}

impl State {
    /// The name `ip neigh` prints.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Incomplete => "INCOMPLETE",
            Self::Reachable => "REACHABLE",
            Self::Stale => "STALE",
            Self::Probe => "PROBE",
            Self::Permanent => "PERMANENT",
        }
    }
}

/// How likely a neighbour is to be reached, least first (RFC 4861 §6.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reachability {
    /// It is being asked for and has not answered yet.
    Suspect,
    /// Nobody has asked for it, or heard it.
    Unknown,
    /// Its station is known.
    Probable,
}

/// A frame that waits for its destination address.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The frame; the first six octets are still to be written.
    pub frame: Vec<u8>,
    /// What is left undone on it.
    pub offload: Offload,
    /// Whom it is sent for, who pays for its octets.
    pub payer: Payer,
}

#[derive(Debug)]
struct Neighbour {
    mac: Option<MacAddr>,
    /// Where it was heard, or who wants it while it was not: whoever pays for the place.
    payer: Payer,
    introduced: bool,
    confirmed: Instant,
    asked: Instant,
    attempts: u8,
    pending: Vec<Pending>,
}

impl Neighbour {
    fn new(mac: Option<MacAddr>, payer: Payer, now: Instant) -> Self {
        Self {
            mac,
            payer,
            introduced: false,
            confirmed: now,
            asked: now,
            attempts: u8::from(mac.is_none()),
            pending: Vec::new(),
        }
    }
}

/// What a sender should do with a packet for a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Send it there; without an address it must wait ([`Neighbours::park`]).
    pub mac: Option<MacAddr>,
    /// Ask now: unicast if `mac` is known, else to everyone.
    pub ask: bool,
}

/// The table.
///
/// Locks are taken in one order: a neighbour's, then a share's.
#[derive(Debug)]
pub struct Neighbours {
    table: DashMap<IpAddr, Neighbour>,
    shares: Shares,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self::new(CAPACITY_PER_PORT)
    }
}

impl Neighbours {
    /// An empty table, of which one port may fill so many places, and nobody else more than
    /// [`CAPACITY_PER_PORT`].
    #[must_use]
    pub fn new(per_port: usize) -> Self {
        Self { table: DashMap::new(), shares: Shares::new(per_port) }
    }

    /// The station of `addr`, if there is no need to ask for it.
    pub fn known(&self, addr: IpAddr, now: Instant) -> Option<MacAddr> {
        let known = self.table.get(&addr)?;
        let fresh = known.introduced || now < known.confirmed + REACHABLE_TIME;
        known.mac.filter(|_| fresh)
    }

    /// Looks `addr` up to send to it for `payer`, and says whether to ask for it.
    pub fn resolve(&self, addr: IpAddr, payer: impl Into<Payer>, now: Instant) -> Resolved {
        if let Some(mac) = self.known(addr, now) {
            return Resolved { mac: Some(mac), ask: false };
        }
        let payer = payer.into();
        match self.table.entry(addr) {
            Slot::Occupied(mut slot) => {
                let known = slot.get_mut();
                let ask = !known.introduced
                    && now >= known.asked + RETRANS_TIME
                    && known.attempts < MAX_SOLICIT;
                if ask {
                    known.asked = now;
                    known.attempts += 1;
                }
                Resolved { mac: known.mac, ask }
            }
            Slot::Vacant(slot) => {
                let ask = self.shares.take_place(payer);
                if ask {
                    slot.insert(Neighbour::new(None, payer, now));
                }
                Resolved { mac: None, ask }
            }
        }
    }

    /// Lets a frame wait for `addr`. Returns the frame that had to give way, if one had to: the oldest
    /// of too many, or this one if nothing is known of `addr` or its payer has its share waiting.
    pub fn park(&self, addr: IpAddr, pending: Pending) -> Option<Pending> {
        let octets = pending.frame.len();
        let Some(mut known) = self.table.get_mut(&addr) else { return Some(pending) };
        if !self.shares.take_octets(pending.payer, octets) {
            return Some(pending);
        }
        known.pending.push(pending);
        let given_way = (known.pending.len() > MAX_PENDING).then(|| known.pending.remove(0));
        self.no_longer_pending(given_way.as_slice());
        given_way
    }

    fn no_longer_pending(&self, pending: &[Pending]) {
        for gone in pending {
            self.shares.give_octets(gone.payer, gone.frame.len());
        }
    }

    /// Whether `port` may speak for `addr`.
    ///
    /// # Errors
    ///
    /// [`DropReason::SpoofedNeighbour`] if the daemon gave the address to another port.
    pub fn check(&self, addr: IpAddr, port: PortId) -> Result<(), DropReason> {
        match self.table.get(&addr) {
            Some(known) if known.introduced && known.payer != Payer::Port(port) => {
                Err(DropReason::SpoofedNeighbour)
            }
            _ => Ok(()),
        }
    }

    /// Takes note that `addr` is at `mac`, as heard at `port`: `create` if the message was meant for us.
    /// Returns what waited for it. A port that has its share is not believed beyond it.
    ///
    /// # Errors
    ///
    /// [`DropReason::SpoofedNeighbour`] if the daemon gave the address to another port.
    pub fn confirm(
        &self,
        addr: IpAddr,
        mac: MacAddr,
        port: PortId,
        create: bool,
        now: Instant,
    ) -> Result<Vec<Pending>, DropReason> {
        let payer = Payer::Port(port);
        match self.table.entry(addr) {
            Slot::Occupied(mut slot) => {
                let known = slot.get_mut();
                if known.payer != payer {
                    if known.introduced {
                        return Err(DropReason::SpoofedNeighbour);
                    }
                    if !self.shares.take_place(payer) {
                        return Ok(Vec::new());
                    }
                    self.shares.give_place(std::mem::replace(&mut known.payer, payer));
                }
                known.mac = Some(mac);
                known.confirmed = now;
                known.attempts = 0;
                self.no_longer_pending(&known.pending);
                Ok(std::mem::take(&mut known.pending))
            }
            Slot::Vacant(slot) => {
                if create && self.shares.take_place(payer) {
                    slot.insert(Neighbour::new(Some(mac), payer, now));
                }
                Ok(Vec::new())
            }
        }
    }

    /// Enters the station of an endpoint that was just attached at `port`: its address was given to it,
    /// so nobody need ask, and nobody else may claim it. Returns what waited for it.
    pub fn introduce(
        &self,
        addr: IpAddr,
        mac: MacAddr,
        port: PortId,
        now: Instant,
    ) -> Vec<Pending> {
        let known = Neighbour { introduced: true, ..Neighbour::new(Some(mac), port.into(), now) };
        self.table.insert(addr, known).map_or_else(Vec::new, |before| self.gone(before))
    }

    /// Gives back what an entry that left the table has cost, and returns what waited for it.
    fn gone(&self, known: Neighbour) -> Vec<Pending> {
        if !known.introduced {
            self.shares.give_place(known.payer);
        }
        self.no_longer_pending(&known.pending);
        known.pending
    }

    /// Asks again for those that must be asked again (`ask` is called with the last known station) and
    /// forgets those that did not answer or were long not used; what waited for them is returned.
    pub fn handle_timeout(
        &self,
        now: Instant,
        mut ask: impl FnMut(IpAddr, Option<MacAddr>),
    ) -> Vec<(IpAddr, Pending)> {
        let mut failed = Vec::new();
        self.table.retain(|addr, known| {
            if known.introduced {
                return true;
            }
            let asking = known.attempts > 0;
            if asking && now >= known.asked + RETRANS_TIME && known.attempts < MAX_SOLICIT {
                known.attempts += 1;
                known.asked = now;
                ask(*addr, known.mac);
                return true;
            }
            let keep = match asking {
                true => now < known.asked + RETRANS_TIME,
                false => now < known.confirmed + REACHABLE_TIME + STALE_TIME,
            };
            if !keep {
                self.shares.give_place(known.payer);
                self.no_longer_pending(&known.pending);
                failed.extend(known.pending.drain(..).map(|pending| (*addr, pending)));
            }
            keep
        });
        failed
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do: soon while somebody is being
    /// asked for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table
            .iter()
            .filter(|known| !known.introduced)
            .map(|known| match known.attempts {
                0 => known.confirmed + REACHABLE_TIME + STALE_TIME,
                _ => known.asked + RETRANS_TIME,
            })
            .min()
    }

    /// Forgets every neighbour at `port`, which is going away, and returns what waited for them.
    pub fn forget_port(&self, port: PortId) -> Vec<Pending> {
        let mut waited = Vec::new();
        self.table.retain(|_, known| {
            let keep = known.payer != Payer::Port(port);
            if !keep {
                let gone = Neighbour::new(None, port.into(), Instant::ZERO);
                let known = std::mem::replace(known, gone);
                waited.extend(self.gone(known));
            }
            keep
        });
        self.shares.forget_port(port);
        waited
    }

    /// The port `addr` was heard at, or that wants it.
    pub fn port_of(&self, addr: IpAddr) -> Option<PortId> {
        match self.table.get(&addr)?.payer {
            Payer::Port(port) => Some(port),
            Payer::Foreign(_) => None,
        }
    }

    /// How likely `addr` is to be reached.
    pub fn reachability(&self, addr: IpAddr) -> Reachability {
        match self.table.get(&addr) {
            None => Reachability::Unknown,
            Some(known) if known.mac.is_none() => Reachability::Suspect,
            Some(_) => Reachability::Probable,
        }
    }

    /// The station last known for `addr`.
    pub fn station_of(&self, addr: IpAddr) -> Option<MacAddr> {
        self.table.get(&addr)?.mac
    }

    /// Every neighbour, for listings.
    pub fn list(&self, now: Instant) -> Vec<(IpAddr, Option<MacAddr>, State)> {
        self.table
            .iter()
            .map(|known| {
                let state = match known.mac {
                    None => State::Incomplete,
                    Some(_) if known.introduced => State::Permanent,
                    Some(_) if now < known.confirmed + REACHABLE_TIME => State::Reachable,
                    Some(_) if known.attempts > 0 => State::Probe,
                    Some(_) => State::Stale,
                };
                (*known.key(), known.mac, state)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const ADDR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 8]);
    const P1: PortId = PortId(1);
    const P2: PortId = PortId(2);
    const T0: Instant = Instant::ZERO;

    fn pending(n: u8) -> Pending {
        Pending { frame: vec![n], offload: Offload::NONE, payer: P1.into() }
    }

    fn invented(n: usize) -> IpAddr {
        Ipv4Addr::from(0xc612_0000 + u32::try_from(n).unwrap()).into()
    }

    #[test]
    fn three_unanswered_requests_fail_what_waits() {
        let table = Neighbours::default();
        assert_eq!(table.resolve(ADDR, P1, T0), Resolved { mac: None, ask: true });
        assert!(table.park(ADDR, pending(1)).is_none());
        assert!(!table.resolve(ADDR, P1, T0).ask, "one request a second");
        let mut asked = 0;
        for second in 1..=2 {
            assert!(table.handle_timeout(T0 + RETRANS_TIME * second, |_, _| asked += 1).is_empty());
        }
        assert_eq!(asked, 2);
        let failed = table.handle_timeout(T0 + RETRANS_TIME * 3, |_, _| asked += 1);
        assert_eq!((failed.len(), asked), (1, 2));
        assert!(table.list(T0).is_empty());
    }

    #[test]
    fn the_oldest_of_too_many_waiting_frames_gives_way() {
        let table = Neighbours::default();
        table.resolve(ADDR, P1, T0);
        let most = u8::try_from(MAX_PENDING).unwrap();
        for n in 1..=most {
            assert!(table.park(ADDR, pending(n)).is_none());
        }
        assert_eq!(table.park(ADDR, pending(most + 1)).unwrap().frame, [1]);
        let waited = table.confirm(ADDR, MAC, P2, false, T0).unwrap();
        assert!(waited.iter().map(|p| p.frame[0]).eq(2..=most + 1), "in order");
    }

    #[test]
    fn what_waits_is_bounded_whoever_it_waits_for_and_leaves_room_for_other_ports() {
        let table = Neighbours::default();
        let large = |port: PortId| Pending {
            frame: vec![0; 65_000],
            offload: Offload::NONE,
            payer: port.into(),
        };
        let mut parked = 0;
        for n in 0..500 {
            table.resolve(invented(n), P1, T0);
            parked += usize::from(table.park(invented(n), large(P1)).is_none());
        }
        assert_eq!(parked, MAX_PENDING_OCTETS_PER_PORT / 65_000);
        table.resolve(ADDR, P2, T0);
        assert!(table.park(ADDR, large(P2)).is_none(), "another port has its own share");
        for second in 1..=3 {
            table.handle_timeout(T0 + RETRANS_TIME * second, |_, _| ());
        }
        assert_eq!(table.shares.taken().1, 0);
        table.resolve(ADDR, P1, T0);
        assert!(table.park(ADDR, large(P1)).is_none(), "room again");
    }

    #[test]
    fn a_stale_neighbour_is_used_and_asked_until_it_answers() {
        let table = Neighbours::default();
        table.confirm(ADDR, MAC, P1, true, T0).unwrap();
        assert_eq!(table.resolve(ADDR, P1, T0).mac, Some(MAC));
        let later = T0 + REACHABLE_TIME;
        assert_eq!(table.list(later)[0].2, State::Stale);
        assert_eq!(table.resolve(ADDR, P1, later), Resolved { mac: Some(MAC), ask: true });
        assert_eq!(table.list(later)[0].2, State::Probe);
        table.confirm(ADDR, MAC, P1, false, later).unwrap();
        assert_eq!(table.list(later)[0].2, State::Reachable);
    }

    #[test]
    fn an_overheard_stranger_is_not_remembered() {
        let table = Neighbours::default();
        table.confirm(ADDR, MAC, P1, false, T0).unwrap();
        assert!(table.list(T0).is_empty());
    }

    #[test]
    fn a_port_inventing_neighbours_fills_only_its_share() {
        let table = Neighbours::default();
        for n in 0..CAPACITY {
            table.confirm(invented(n), MAC, P1, true, T0).unwrap();
            table.resolve(invented(CAPACITY + n), P1, T0);
        }
        assert_eq!(table.list(T0).len(), CAPACITY_PER_PORT);
        table.confirm(ADDR, OTHER, P2, true, T0).unwrap();
        assert_eq!(table.resolve(ADDR, P1, T0).mac, Some(OTHER), "another port finds a place");
        table.confirm(ADDR, MAC, P1, true, T0).unwrap();
        assert_eq!(table.resolve(ADDR, P1, T0).mac, Some(OTHER), "nor does it gather others'");
        // Its share comes back by age, and with the port.
        table.handle_timeout(T0 + REACHABLE_TIME + STALE_TIME, |_, _| ());
        table.handle_timeout(T0 + (REACHABLE_TIME + STALE_TIME) * 2, |_, _| ());
        table.handle_timeout(T0 + (REACHABLE_TIME + STALE_TIME) * 3, |_, _| ());
        assert_eq!((table.list(T0).len(), table.shares.taken().0), (0, 0));
        table.confirm(ADDR, MAC, P1, true, T0).unwrap();
        assert_eq!(table.list(T0).len(), 1);
        table.forget_port(P1);
        assert_eq!((table.list(T0).len(), table.shares.taken().0), (0, 0));
        assert_eq!(table.shares.taken().2, 1, "of the other port");
    }

    #[test]
    fn whom_the_daemon_introduced_stays_as_long_as_the_port() {
        let table = Neighbours::default();
        for n in 0..CAPACITY {
            let port = PortId(1 + u16::try_from(n / CAPACITY_PER_PORT).unwrap());
            table.confirm(invented(n), MAC, port, true, T0).unwrap();
        }
        table.introduce(ADDR, MAC, P1, T0);
        let much_later = T0 + Duration::from_secs(1_000_000);
        for _ in 0..4 {
            table.handle_timeout(much_later, |_, _| panic!("nobody need ask"));
        }
        assert_eq!(table.list(much_later), [(ADDR, Some(MAC), State::Permanent)]);
        assert_eq!(table.resolve(ADDR, P2, much_later), Resolved { mac: Some(MAC), ask: false });
        let refused = table.confirm(ADDR, OTHER, P2, true, much_later);
        assert_eq!(refused.unwrap_err(), DropReason::SpoofedNeighbour);
        assert_eq!(table.check(ADDR, P2), Err(DropReason::SpoofedNeighbour));
        assert_eq!(table.check(ADDR, P1), Ok(()));
        assert_eq!(table.resolve(ADDR, P2, much_later).mac, Some(MAC));
        // Whose address it is may change its station.
        table.confirm(ADDR, OTHER, P1, false, much_later).unwrap();
        assert_eq!(table.resolve(ADDR, P2, much_later).mac, Some(OTHER));
        table.forget_port(P1);
        assert!(table.list(much_later).is_empty());
    }

    #[test]
    fn what_waited_for_somebody_introduced_is_handed_out() {
        let table = Neighbours::default();
        table.resolve(ADDR, P1, T0);
        table.park(ADDR, pending(1));
        let waited = table.introduce(ADDR, MAC, P2, T0);
        assert_eq!(waited.iter().map(|p| p.frame[0]).collect::<Vec<_>>(), [1]);
        assert_eq!(
            {
                let (places, octets, _) = table.shares.taken();
                (octets, places)
            },
            (0, 0)
        );
        // A port that goes away leaves nothing that waits for it uncounted.
        table.resolve(invented(1), P1, T0);
        table.park(invented(1), pending(2));
        assert_eq!(table.forget_port(P1).len(), 1);
        assert_eq!(
            {
                let (places, octets, _) = table.shares.taken();
                (octets, places)
            },
            (0, 0)
        );
    }
}
