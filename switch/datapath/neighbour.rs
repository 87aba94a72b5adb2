//! The gateway's neighbours: IP address to station.
//!
//! Read RFC 826, "Packet Reception", RFC 4861 §7.3 and `net/core/neighbour.c` first. Any message from a
//! known sender refreshes its entry; only one that asks for us, or that answers us, creates one.
//! Shared by all workers. Bounded: a full table takes no new neighbour, and what waits for an
//! unresolved one is at most [`MAX_PENDING`] packets. Pure: what must be asked is returned.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use smoltcp::time::{Duration, Instant};

use crate::offload::Offload;
use crate::port::MacAddr;

/// How long a confirmed neighbour is taken for granted (RFC 4861 §10 REACHABLE_TIME; Linux
/// `base_reachable_time_ms`).
pub const REACHABLE_TIME: Duration = Duration::from_secs(30);

/// How long a neighbour nobody talks to stays in the table (Linux `gc_stale_time`).
pub const STALE_TIME: Duration = Duration::from_secs(60);

/// Between two requests for the same neighbour (RFC 1122 §2.3.2.1; RFC 4861 §10 RETRANS_TIMER).
pub const RETRANS_TIME: Duration = Duration::from_secs(1);

/// Requests before giving up (RFC 4861 §10 MAX_MULTICAST_SOLICIT; Linux `mcast_solicit`).
pub const MAX_SOLICIT: u8 = 3;

/// Packets that wait for one unresolved neighbour; the oldest gives way (RFC 1122 §2.3.2.2 asks for
/// one, Linux keeps some; three is what a TCP opening needs).
pub const MAX_PENDING: usize = 3;

/// Octets of all packets that wait on one network; further ones give way at once.
pub const MAX_PENDING_OCTETS: usize = 4 << 20;

/// Neighbours of one network.
pub const CAPACITY: usize = 4096;

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
        }
    }
}

/// A frame that waits for its destination address.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The frame; the first six octets are still to be written.
    pub frame: Vec<u8>,
    /// What is left undone on it.
    pub offload: Offload,
}

#[derive(Debug)]
struct Neighbour {
    mac: Option<MacAddr>,
    confirmed: Instant,
    asked: Instant,
    attempts: u8,
    pending: Vec<Pending>,
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
#[derive(Debug, Default)]
pub struct Neighbours {
    table: DashMap<IpAddr, Neighbour>,
    len: AtomicUsize,
    pending_octets: AtomicUsize,
}

impl Neighbours {
    /// Looks `addr` up to send to it, and says whether to ask for it.
    pub fn resolve(&self, addr: IpAddr, now: Instant) -> Resolved {
        if let Some(known) = self.table.get(&addr)
            && known.mac.is_some()
            && now < known.confirmed + REACHABLE_TIME
        {
            return Resolved { mac: known.mac, ask: false };
        }
        match self.table.entry(addr) {
            Slot::Occupied(mut slot) => {
                let known = slot.get_mut();
                let ask = now >= known.asked + RETRANS_TIME && known.attempts < MAX_SOLICIT;
                if ask {
                    known.asked = now;
                    known.attempts += 1;
                }
                Resolved { mac: known.mac, ask }
            }
            Slot::Vacant(_) if self.len.load(Relaxed) >= CAPACITY => {
                Resolved { mac: None, ask: false }
            }
            Slot::Vacant(slot) => {
                self.len.fetch_add(1, Relaxed);
                slot.insert(Neighbour {
                    mac: None,
                    confirmed: now,
                    asked: now,
                    attempts: 1,
                    pending: Vec::new(),
                });
                Resolved { mac: None, ask: true }
            }
        }
    }

    /// Lets a frame wait for `addr`. Returns the frame that had to give way, if one had to: the oldest
    /// of too many, or this one if nothing is known of `addr`.
    pub fn park(&self, addr: IpAddr, pending: Pending) -> Option<Pending> {
        let octets = pending.frame.len();
        if self.pending_octets.load(Relaxed) + octets > MAX_PENDING_OCTETS {
            return Some(pending);
        }
        let Some(mut known) = self.table.get_mut(&addr) else { return Some(pending) };
        known.pending.push(pending);
        self.pending_octets.fetch_add(octets, Relaxed);
        let given_way = (known.pending.len() > MAX_PENDING).then(|| known.pending.remove(0));
        self.no_longer_pending(given_way.as_slice());
        given_way
    }

    fn no_longer_pending(&self, pending: &[Pending]) {
        let octets: usize = pending.iter().map(|pending| pending.frame.len()).sum();
        self.pending_octets.fetch_sub(octets, Relaxed);
    }

    /// Takes note that `addr` is at `mac`: `create` if the message was meant for us. Returns what
    /// waited for it.
    pub fn confirm(&self, addr: IpAddr, mac: MacAddr, create: bool, now: Instant) -> Vec<Pending> {
        match self.table.entry(addr) {
            Slot::Occupied(mut slot) => {
                let known = slot.get_mut();
                known.mac = Some(mac);
                known.confirmed = now;
                known.attempts = 0;
                self.no_longer_pending(&known.pending);
                std::mem::take(&mut known.pending)
            }
            Slot::Vacant(slot) => {
                if create && self.len.load(Relaxed) < CAPACITY {
                    self.len.fetch_add(1, Relaxed);
                    slot.insert(Neighbour {
                        mac: Some(mac),
                        confirmed: now,
                        asked: now,
                        attempts: 0,
                        pending: Vec::new(),
                    });
                }
                Vec::new()
            }
        }
    }

    /// Enters the station of an endpoint that was just attached: its address was given to it, so nobody
    /// need ask. It finds a place even in a full table; ports are bounded, too.
    pub fn introduce(&self, addr: IpAddr, mac: MacAddr, now: Instant) {
        let known = Neighbour {
            mac: Some(mac),
            confirmed: now,
            asked: now,
            attempts: 0,
            pending: Vec::new(),
        };
        match self.table.insert(addr, known) {
            Some(before) => self.no_longer_pending(&before.pending),
            None => {
                self.len.fetch_add(1, Relaxed);
            }
        }
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
            if known.attempts > 0 && now >= known.asked + RETRANS_TIME {
                if known.attempts >= MAX_SOLICIT {
                    self.no_longer_pending(&known.pending);
                    failed.extend(known.pending.drain(..).map(|pending| (*addr, pending)));
                    self.len.fetch_sub(1, Relaxed);
                    return false;
                }
                known.attempts += 1;
                known.asked = now;
                ask(*addr, known.mac);
            } else if known.attempts == 0 && now >= known.confirmed + REACHABLE_TIME + STALE_TIME {
                self.len.fetch_sub(1, Relaxed);
                return false;
            }
            true
        });
        failed
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do: soon while somebody is being
    /// asked for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table
            .iter()
            .map(|known| match known.attempts {
                0 => known.confirmed + REACHABLE_TIME + STALE_TIME,
                _ => known.asked + RETRANS_TIME,
            })
            .min()
    }

    /// Forgets every neighbour at `mac`, whose port is going away.
    pub fn forget_station(&self, mac: MacAddr) {
        self.table.retain(|_, known| {
            let keep = known.mac != Some(mac);
            if !keep {
                self.no_longer_pending(&known.pending);
                self.len.fetch_sub(1, Relaxed);
            }
            keep
        });
    }

    /// Every neighbour, for listings.
    pub fn list(&self, now: Instant) -> Vec<(IpAddr, Option<MacAddr>, State)> {
        self.table
            .iter()
            .map(|known| {
                let state = match known.mac {
                    None => State::Incomplete,
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
    const T0: Instant = Instant::ZERO;

    fn pending(n: u8) -> Pending {
        Pending { frame: vec![n], offload: Offload::NONE }
    }

    #[test]
    fn three_unanswered_requests_fail_what_waits() {
        let table = Neighbours::default();
        assert_eq!(table.resolve(ADDR, T0), Resolved { mac: None, ask: true });
        assert!(table.park(ADDR, pending(1)).is_none());
        assert!(!table.resolve(ADDR, T0).ask, "one request a second");
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
    fn the_oldest_of_four_waiting_frames_gives_way() {
        let table = Neighbours::default();
        table.resolve(ADDR, T0);
        for n in 1..=3 {
            assert!(table.park(ADDR, pending(n)).is_none());
        }
        assert_eq!(table.park(ADDR, pending(4)).unwrap().frame, [1]);
        let waited = table.confirm(ADDR, MAC, false, T0);
        assert_eq!(waited.iter().map(|p| p.frame[0]).collect::<Vec<_>>(), [2, 3, 4]);
    }

    #[test]
    fn what_waits_is_bounded_whoever_it_waits_for() {
        let table = Neighbours::default();
        let large = || Pending { frame: vec![0; 65_000], offload: Offload::NONE };
        let mut parked = 0;
        for n in 0..1000u32 {
            let addr = IpAddr::V4(Ipv4Addr::from(0xc000_0200 + n));
            table.resolve(addr, T0);
            parked += usize::from(table.park(addr, large()).is_none());
        }
        assert_eq!(parked, MAX_PENDING_OCTETS / 65_000);
        for second in 1..=3 {
            table.handle_timeout(T0 + RETRANS_TIME * second, |_, _| ());
        }
        assert_eq!(table.pending_octets.load(Relaxed), 0);
        table.resolve(ADDR, T0);
        assert!(table.park(ADDR, large()).is_none(), "room again");
    }

    #[test]
    fn a_stale_neighbour_is_used_and_asked_until_it_answers() {
        let table = Neighbours::default();
        table.confirm(ADDR, MAC, true, T0);
        assert_eq!(table.resolve(ADDR, T0).mac, Some(MAC));
        let later = T0 + REACHABLE_TIME;
        assert_eq!(table.list(later)[0].2, State::Stale);
        assert_eq!(table.resolve(ADDR, later), Resolved { mac: Some(MAC), ask: true });
        assert_eq!(table.list(later)[0].2, State::Probe);
        table.confirm(ADDR, MAC, false, later);
        assert_eq!(table.list(later)[0].2, State::Reachable);
    }

    #[test]
    fn an_overheard_stranger_is_not_remembered() {
        let table = Neighbours::default();
        table.confirm(ADDR, MAC, false, T0);
        assert!(table.list(T0).is_empty());
    }
}
