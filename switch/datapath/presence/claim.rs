//! One address: asked for before it is used, told to all once it is, and defended.
//!
//! Read RFC 5227 §2 (IPv4) and RFC 4862 §5.4 (IPv6) first. Both are the same walk with other numbers:
//! wait a random while, probe, listen, announce. Whoever else claims the address meanwhile has it; once
//! it is ours a claim is answered by one announcement in [`DEFEND_INTERVAL`], lest two stations shout at each
//! other for ever. A leased IPv4 address is given up at the second claim within that (RFC 5227 §2.4 (b)): there are
//! others. One that somebody chose for us is kept, as a router's must be (§2.4 (c)): giving it up would let anybody
//! take all containers' way out by two frames. IPv6 knows no giving up after duplicate address detection.

use std::net::IpAddr;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::IpCidr;

use super::chance::Chance;
use super::report::{DEFEND_INTERVAL, Origin, Settled};
use super::voice::Voice;
use crate::outbox::Outbox;
use crate::resolve::Announcement;

/// Longest wait before the first probe (PROBE_WAIT, and MAX_RTR_SOLICITATION_DELAY of RFC 4861 §10).
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// IPv4 probes, and the least and longest time between them (RFC 5227 §1.1).
const PROBE_NUM: u8 = 3;
const PROBE_MIN: Duration = Duration::from_secs(1);
const PROBE_MAX: Duration = Duration::from_secs(2);
/// Time to listen after the last IPv4 probe (ANNOUNCE_WAIT).
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);
/// IPv6 probes (DupAddrDetectTransmits, RFC 4862 §5.1), and the time to listen (RetransTimer, 1 s).
const DAD_TRANSMITS: u8 = 1;
const RETRANS_TIMER: Duration = Duration::from_secs(1);
/// Announcements and the time between them (ANNOUNCE_NUM, ANNOUNCE_INTERVAL); IPv6 allows three, at
/// least a second apart (RFC 4861 §7.2.6).
const ANNOUNCE_NUM: u8 = 2;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
/// How long an address somebody else has is left alone (RATE_LIMIT_INTERVAL).
pub(crate) const RATE_LIMIT_INTERVAL: Duration = Duration::from_secs(60);

/// An address we have, or mean to have.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) address: IpCidr,
    pub(super) origin: Origin,
    pub(super) deprecated: bool,
    pub(super) expires: Option<Instant>,
    pub(super) claim: Claim,
}

/// How far a claim is; each with what was sent of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Probe(u8),
    Announce(u8),
    Settled,
    /// Somebody else has the address.
    Yielded,
}

/// A claim of one address.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    addr: IpAddr,
    step: Step,
    due: Option<Instant>,
    in_use: bool,
    /// Whether it is kept whoever else claims it.
    keeps: bool,
    /// When somebody else last claimed what is ours.
    conflict: Option<Instant>,
}

impl Claim {
    /// Begins to claim `addr`.
    pub(crate) fn begin(addr: IpAddr, now: Instant, chance: &mut Chance) -> Self {
        let mut claim = Self {
            addr,
            step: Step::Probe(0),
            due: None,
            in_use: false,
            keeps: addr.is_ipv6(),
            conflict: None,
        };
        claim.probe_again(now, chance);
        claim
    }

    /// The same of an address that is kept, once it is ours.
    pub(crate) fn begin_to_keep(addr: IpAddr, now: Instant, chance: &mut Chance) -> Self {
        Self { keeps: true, ..Self::begin(addr, now, chance) }
    }

    /// Begins anew. An address in use stays in use meanwhile, as RFC 4429 has it; who else claims it now
    /// has it.
    pub(crate) fn probe_again(&mut self, now: Instant, chance: &mut Chance) {
        self.step = Step::Probe(0);
        self.due = Some(now + chance.between(Duration::ZERO, PROBE_WAIT));
    }

    /// Sends nothing more until [`probe_again`](Self::probe_again).
    pub(crate) fn pause(&mut self) {
        self.due = None;
    }

    /// Whether the address is ours.
    pub(crate) const fn in_use(&self) -> bool {
        self.in_use
    }

    /// Whether somebody else has it.
    pub(crate) fn has_yielded(&self) -> bool {
        self.step == Step::Yielded
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Does what time asks for. True when the address becomes ours.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        voice: &Voice,
        chance: &mut Chance,
        out: &mut Outbox,
    ) -> bool {
        if self.due.is_none_or(|due| now < due) {
            return false;
        }
        let v4 = self.addr.is_ipv4();
        let probes = if v4 { PROBE_NUM } else { DAD_TRANSMITS };
        match self.step {
            Step::Probe(sent) if sent < probes => {
                voice.probe(self.addr, out);
                let pause = match v4 {
                    false => RETRANS_TIMER,
                    true if sent + 1 < probes => chance.between(PROBE_MIN, PROBE_MAX),
                    true => ANNOUNCE_WAIT,
                };
                self.step = Step::Probe(sent + 1);
                self.due = Some(now + pause);
                false
            }
            Step::Probe(_) => {
                voice.announce(self.addr, out);
                self.step = Step::Announce(1);
                self.due = Some(now + ANNOUNCE_INTERVAL);
                !std::mem::replace(&mut self.in_use, true)
            }
            Step::Announce(sent) => {
                voice.announce(self.addr, out);
                let last = sent + 1 >= ANNOUNCE_NUM;
                self.step = if last { Step::Settled } else { Step::Announce(sent + 1) };
                self.due = (!last).then(|| now + ANNOUNCE_INTERVAL);
                false
            }
            Step::Settled => {
                self.due = None;
                false
            }
            Step::Yielded => {
                self.probe_again(now, chance);
                false
            }
        }
    }

    /// Takes note of another station's ARP or NDP message, and says what was done if it claims our
    /// address.
    pub(crate) fn heard(
        &mut self,
        message: &Announcement,
        now: Instant,
        voice: &Voice,
        out: &mut Outbox,
    ) -> Option<Settled> {
        let claims = message.sender == Some(self.addr);
        // Somebody else's probe for it at the same time: neither gets it (RFC 5227 §2.1.1, RFC 4862
        // §5.4.3). One for what is ours the gateway answers.
        let probes = message.sender.is_none() && message.asks && message.target == self.addr;
        match self.step {
            Step::Probe(_) if claims || (probes && !self.in_use) => {
                let settled = if self.in_use { Settled::GivenUp } else { Settled::Avoided };
                self.give_up(now);
                Some(settled)
            }
            Step::Announce(_) | Step::Settled if claims => {
                let recent = self.conflict.is_some_and(|last| now < last + DEFEND_INTERVAL);
                match (recent, self.keeps) {
                    (false, _) => {
                        self.conflict = Some(now);
                        voice.announce(self.addr, out);
                        Some(Settled::Defended)
                    }
                    (true, false) => {
                        self.give_up(now);
                        Some(Settled::GivenUp)
                    }
                    (true, true) => None,
                }
            }
            _ => None,
        }
    }

    fn give_up(&mut self, now: Instant) {
        self.step = Step::Yielded;
        self.in_use = false;
        self.conflict = None;
        self.due = Some(now + RATE_LIMIT_INTERVAL);
    }
}
