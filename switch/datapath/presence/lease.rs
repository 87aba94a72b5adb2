//! A DHCP client: one address asked for, kept as long as the server lets us, and given back.
//!
//! Read RFC 2131 §4.4 with its figure 5 first; the states here are its states. smoltcp's own client
//! (`socket::dhcpv4`) is not used: it cannot decline an address that is taken, asks again neither for the
//! one it had (INIT-REBOOT) nor with the backoff and jitter of §4.1, reads only one router and no classless
//! routes, and counts an address as usable before it was probed for. Its codec is.
//!
//! Whether the address is free is not known here: whoever owns the client probes for it once there is a
//! [`lease`](Client::lease), and says [`decline`](Client::decline) if it is not.

use std::net::Ipv4Addr;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{DhcpMessageType, Ipv4Cidr};

use super::chance::Chance;
use super::dhcp::{self, Ask, Kind, Reply};
use super::report::Lost;
use super::voice::Voice;
use crate::drop::DropReason;
use crate::hop::Hop;
use crate::outbox::Outbox;
use crate::port::MacAddr;

/// Longest wait before the first message. RFC 2131 §4.4.1 asks for one to ten seconds, for the sake of
/// many hosts that were switched on at once; one station is not that many.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Time to the first retransmission, and the longest to any; each twice the last, a second more or less
/// (RFC 2131 §4.1).
const FIRST_INTERVAL: Duration = Duration::from_secs(4);
const LONGEST_INTERVAL: Duration = Duration::from_secs(64);
const JITTER: Duration = Duration::from_secs(1);
/// Requests of one offer before another is looked for (RFC 2131 §3.1.5 has four, of a minute in all), and
/// of the address we had before the lease alone must do (§3.2.4).
const REQUESTS: u32 = 4;
const REBOOT_REQUESTS: u32 = 3;
/// Least time between two requests for more of a lease (RFC 2131 §4.4.5).
const LEAST_RENEWAL: Duration = Duration::from_secs(60);
/// Wait after an address was declined (RFC 2131 §3.1.5), and after many were (RFC 5227 §2.1.1).
const DECLINE_DELAY: Duration = Duration::from_secs(10);
const MANY_CONFLICTS: u32 = 10;
const MANY_CONFLICTS_DELAY: Duration = Duration::from_secs(60);

/// Where the client is in figure 5 of RFC 2131.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Init,
    Selecting,
    Requesting {
        wanted: Ipv4Addr,
        server: Ipv4Addr,
    },
    Bound,
    Renewing,
    Rebinding,
    /// With the address that is asked for again.
    Rebooting(Ipv4Addr),
}

/// What a server has given us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Cidr,
    pub(crate) server: Ipv4Addr,
    /// The station it was heard from: the server's, or a relay's that leads there.
    station: MacAddr,
    pub(crate) routes: Vec<Hop>,
    pub(crate) name_servers: Vec<Ipv4Addr>,
    pub(crate) mtu: Option<u16>,
    /// T1, T2 and the end; `None`: for ever.
    pub(crate) times: Option<[Instant; 3]>,
}

/// The client.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    mac: MacAddr,
    hostname: Option<String>,
    state: State,
    xid: u32,
    /// When we began to ask, for the `secs` field.
    began: Instant,
    /// When there is something to do, but for the lease's own times.
    due: Option<Instant>,
    /// Messages sent in this state.
    sent: u32,
    /// Refused and declined addresses since the last that held.
    failures: u32,
    lease: Option<Lease>,
    /// The address of a lease that has expired, which is asked for first (RFC 2131 §4.4.1).
    last: Option<Ipv4Addr>,
    /// Why the last lease is gone.
    pub(crate) lost: Lost,
}

impl Client {
    /// A client that begins to ask.
    pub(crate) fn new(
        mac: MacAddr,
        hostname: Option<String>,
        now: Instant,
        chance: &mut Chance,
    ) -> Self {
        let mut client = Self {
            mac,
            hostname,
            state: State::Init,
            xid: 0,
            began: now,
            due: None,
            sent: 0,
            failures: 0,
            lease: None,
            last: None,
            lost: Lost::Expired,
        };
        client.begin_after(Duration::ZERO, now, chance);
        client
    }

    /// What we have.
    pub(crate) const fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// The state in the words of RFC 2131.
    pub(crate) const fn state(&self) -> &'static str {
        match self.state {
            State::Init => "INIT",
            State::Selecting => "SELECTING",
            State::Requesting { .. } => "REQUESTING",
            State::Bound => "BOUND",
            State::Renewing => "RENEWING",
            State::Rebinding => "REBINDING",
            State::Rebooting(_) => "REBOOTING",
        }
    }

    /// Looks for a server after `delay` and a little more.
    fn begin_after(&mut self, delay: Duration, now: Instant, chance: &mut Chance) {
        self.state = State::Init;
        self.sent = 0;
        self.due = Some(now + delay + chance.between(Duration::ZERO, FIRST_DELAY));
    }

    /// Says nothing more until [`reboot`](Self::reboot); the lease still ends in its time.
    pub(crate) fn pause(&mut self) {
        self.due = None;
    }

    /// The link is back: asks for the address we had, if we had one (RFC 2131 §3.2).
    pub(crate) fn reboot(&mut self, now: Instant, chance: &mut Chance) {
        self.begin_after(Duration::ZERO, now, chance);
        if let Some(lease) = &self.lease {
            self.state = State::Rebooting(lease.address.address());
            self.begin_transaction(now, chance);
        }
    }

    fn begin_transaction(&mut self, now: Instant, chance: &mut Chance) {
        self.xid = chance.number();
        self.began = now;
        self.sent = 0;
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let end = self.lease.as_ref().and_then(|lease| lease.times).map(|[.., end]| end);
        self.due.into_iter().chain(end).min()
    }

    /// Does what time asks for.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        voice: &Voice,
        chance: &mut Chance,
        out: &mut Outbox,
    ) {
        let times = self.lease.as_ref().and_then(|lease| lease.times);
        if times.is_some_and(|[.., end]| end <= now) {
            self.lose(Lost::Expired);
            // A paused client stays so.
            if self.due.is_some() {
                self.begin_after(Duration::ZERO, now, chance);
            }
        }
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        match self.state {
            State::Init => {
                self.state = State::Selecting;
                self.begin_transaction(now, chance);
            }
            State::Requesting { .. } if self.sent >= REQUESTS => {
                self.begin_after(Duration::ZERO, now, chance);
                return;
            }
            State::Rebooting(_) if self.sent >= REBOOT_REQUESTS => {
                // Nobody answers; the lease holds all the same (RFC 2131 §3.2.4).
                self.state = State::Bound;
                self.due = times.map(|[renewal, ..]| renewal.max(now + LEAST_RENEWAL));
                return;
            }
            State::Bound => {
                self.state = State::Renewing;
                self.begin_transaction(now, chance);
            }
            State::Renewing if times.is_some_and(|[_, rebinding, _]| rebinding <= now) => {
                self.state = State::Rebinding;
                self.begin_transaction(now, chance);
            }
            _ => {}
        }
        self.ask(now, voice, out);
        self.sent += 1;
        let next = match (self.state, times) {
            // Half of what is left until T2 or the end (RFC 2131 §4.4.5).
            (State::Renewing, Some([_, rebinding, _])) => half_of(now, rebinding),
            (State::Rebinding, Some([.., end])) => half_of(now, end),
            _ => {
                let doubled = FIRST_INTERVAL * (1 << (self.sent - 1).min(8));
                now + chance.around(doubled.min(LONGEST_INTERVAL), JITTER)
            }
        };
        self.due = Some(next);
    }

    /// Sends what the state asks for.
    fn ask(&self, now: Instant, voice: &Voice, out: &mut Outbox) {
        let base = self.message(DhcpMessageType::Request, now);
        let lease = self.lease.as_ref();
        let own = lease.map_or(Ipv4Addr::UNSPECIFIED, |lease| lease.address.address());
        let ask = match self.state {
            State::Init | State::Bound | State::Selecting => {
                Ask { kind: DhcpMessageType::Discover, wanted: self.last, ..base }
            }
            State::Requesting { wanted, server } => {
                Ask { wanted: Some(wanted), server: Some(server), ..base }
            }
            State::Rebooting(wanted) => Ask { wanted: Some(wanted), ..base },
            State::Renewing => {
                Ask { own, to: lease.map(|lease| (lease.server, lease.station)), ..base }
            }
            State::Rebinding => Ask { own, ..base },
        };
        voice.say(ask.build(out), out);
    }

    fn message(&self, kind: DhcpMessageType, now: Instant) -> Ask<'_> {
        let secs = now.total_millis().saturating_sub(self.began.total_millis()) / 1000;
        Ask {
            kind,
            mac: self.mac,
            xid: self.xid,
            secs: u16::try_from(secs).unwrap_or(u16::MAX),
            own: Ipv4Addr::UNSPECIFIED,
            wanted: None,
            server: None,
            to: None,
            hostname: self.hostname.as_deref(),
        }
    }

    /// Takes in a datagram from a server's port to ours, heard from `station`. False: it is not for us.
    ///
    /// # Errors
    ///
    /// [`DropReason::Malformed`] if it is no DHCP message a server sends.
    pub(crate) fn heard(
        &mut self,
        octets: &[u8],
        station: MacAddr,
        now: Instant,
        chance: &mut Chance,
    ) -> Result<bool, DropReason> {
        let Some(reply) = dhcp::read(octets, self.mac)? else { return Ok(false) };
        // Of a paused client's question, or of nobody's: too late.
        if reply.xid != self.xid || self.due.is_none() {
            return Ok(true);
        }
        match (self.state, reply.kind) {
            (State::Selecting, Kind::Offer) => {
                self.state = State::Requesting { wanted: reply.address, server: reply.server };
                self.sent = 0;
                self.due = Some(now);
            }
            (State::Requesting { wanted, server }, Kind::Ack)
                if (reply.server, reply.address) == (server, wanted) =>
            {
                self.bind(&reply, station, now, chance);
            }
            (State::Renewing | State::Rebinding | State::Rebooting(_), Kind::Ack) => {
                self.bind(&reply, station, now, chance);
            }
            (State::Requesting { server, .. }, Kind::Nak) if reply.server == server => {
                self.refused(now, chance);
            }
            (State::Renewing | State::Rebinding | State::Rebooting(_), Kind::Nak) => {
                self.refused(now, chance);
            }
            _ => {}
        }
        Ok(true)
    }

    /// Has the lease `reply` grants, if it can be one.
    fn bind(&mut self, reply: &Reply, station: MacAddr, now: Instant, chance: &mut Chance) {
        let times = match reply.lease {
            Some(lease) if lease > Duration::ZERO => Some(times_of(reply, lease, now, chance)),
            None if reply.for_ever => None,
            // RFC 2131 table 3: an ACK must say how long.
            _ => return,
        };
        let address = Ipv4Cidr::new(reply.address, reply.prefix_len);
        if self.lease.as_ref().is_some_and(|lease| lease.address.address() != reply.address) {
            self.lost = Lost::Refused;
        }
        self.lease = Some(Lease {
            address,
            server: reply.server,
            station,
            routes: routes_of(reply),
            name_servers: reply.name_servers.clone(),
            mtu: reply.mtu,
            times,
        });
        self.state = State::Bound;
        self.due = times.map(|[renewal, ..]| renewal);
    }

    fn refused(&mut self, now: Instant, chance: &mut Chance) {
        self.lose(Lost::Refused);
        self.fail(Duration::ZERO, now, chance);
    }

    fn lose(&mut self, why: Lost) {
        let lease = self.lease.take();
        self.last = lease.filter(|_| why == Lost::Expired).map(|lease| lease.address.address());
        self.lost = why;
    }

    /// Begins anew after `delay`, or longer if that has happened often.
    fn fail(&mut self, delay: Duration, now: Instant, chance: &mut Chance) {
        self.failures = self.failures.saturating_add(1);
        let backoff = match self.failures {
            0 | 1 => delay,
            MANY_CONFLICTS.. => MANY_CONFLICTS_DELAY,
            often => delay.max(Duration::from_secs(1 << (often - 2).min(5))),
        };
        self.begin_after(backoff, now, chance);
    }

    /// The address was probed for and is ours: whatever went wrong before is forgotten.
    pub(crate) fn holds(&mut self) {
        self.failures = 0;
    }

    /// Somebody else has the address: the server is told (RFC 2131 §4.4.4), and another is asked for.
    pub(crate) fn decline(
        &mut self,
        now: Instant,
        voice: &Voice,
        chance: &mut Chance,
        out: &mut Outbox,
    ) {
        let Some(lease) = self.lease.take() else { return };
        self.last = None;
        self.lost = Lost::Conflict;
        self.begin_transaction(now, chance);
        let decline = Ask {
            wanted: Some(lease.address.address()),
            server: Some(lease.server),
            ..self.message(DhcpMessageType::Decline, now)
        };
        voice.say(decline.build(out), out);
        self.fail(DECLINE_DELAY, now, chance);
    }

    /// Gives the lease back (RFC 2131 §4.4.6). Nothing more is asked for.
    pub(crate) fn release(
        &mut self,
        now: Instant,
        voice: &Voice,
        chance: &mut Chance,
        out: &mut Outbox,
    ) {
        self.due = None;
        self.state = State::Init;
        let Some(lease) = self.lease.take() else { return };
        self.begin_transaction(now, chance);
        let release = Ask {
            own: lease.address.address(),
            server: Some(lease.server),
            to: Some((lease.server, lease.station)),
            ..self.message(DhcpMessageType::Release, now)
        };
        voice.say(release.build(out), out);
    }
}

/// T1, T2 and the end of a lease (RFC 2131 §4.4.5): half and seven eighths where the server says nothing
/// that is in order, and a little sooner, so that not all come at once.
fn times_of(reply: &Reply, lease: Duration, now: Instant, chance: &mut Chance) -> [Instant; 3] {
    let (renewal, rebinding) = match (reply.renewal, reply.rebinding) {
        (Some(renewal), Some(rebinding)) if renewal < rebinding && rebinding < lease => {
            (renewal, rebinding)
        }
        _ => (lease / 2, lease * 7 / 8),
    };
    let sooner = chance.between(Duration::ZERO, renewal / 32);
    [now + (renewal - sooner), now + rebinding, now + lease]
}

/// Half of the time from `now` to `end`, at least a minute, and not beyond `end`.
fn half_of(now: Instant, end: Instant) -> Instant {
    let left = if end > now { end - now } else { Duration::ZERO };
    end.min(now + (left / 2).max(LEAST_RENEWAL)).max(now + Duration::from_secs(1))
}

/// The routes a server gives: the classless ones alone, if there are any (RFC 3442).
fn routes_of(reply: &Reply) -> Vec<Hop> {
    if reply.routes.is_empty() {
        let default = Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0);
        let routers = reply.routers.iter();
        return routers.map(|via| Hop { to: default.into(), via: Some((*via).into()) }).collect();
    }
    let hop = |(to, via): &(Ipv4Cidr, Option<Ipv4Addr>)| Hop {
        to: (*to).into(),
        via: via.map(Into::into),
    };
    reply.routes.iter().map(hop).collect()
}
