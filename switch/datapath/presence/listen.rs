//! Which groups we listen to, told to those who ask: solicited-node groups, by MLD.
//!
//! Read RFC 4862 §5.4.2 (a group is joined before its address is probed for), RFC 3810 §5 and RFC 2710 §3
//! first. A switch that snoops carries a group's frames only to ports whose stations have reported it,
//! and forgets a report that no query renews: without this, neighbours would lose us after minutes.

use std::net::{IpAddr, Ipv6Addr};

use nat::Protocol;
use smoltcp::time::{Duration, Instant};

use super::chance::Chance;
use super::voice::Voice;
use crate::checksum::Sum;
use crate::emit::IpHeader;
use crate::outbox::Outbox;
use crate::packet::{Packet, is_link_local_v6};
use crate::resolve;

/// ICMPv6 types (RFC 2710 §3, RFC 3810 §5).
pub(crate) const QUERY: u8 = 130;
const REPORT_V1: u8 = 131;
const REPORT_V2: u8 = 143;

/// All routers that understand MLDv2, to which its reports go.
const ALL_MLD2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
/// Record type of a group joined without sources: MODE_IS_EXCLUDE in an answer, CHANGE_TO_EXCLUDE_MODE
/// in a report of our own accord (RFC 3810 §5.2.12).
const IS_EXCLUDE: u8 = 2;
const TO_EXCLUDE: u8 = 4;
/// Longest wait before a report is repeated (Unsolicited Report Interval, RFC 3810 §9.11).
const REPEAT_WITHIN: Duration = Duration::from_secs(1);
/// Least time between two answers: a question asks for one within no time at all, and each may be as many frames
/// as there are groups.
const REST: Duration = Duration::from_secs(1);
/// Reports of our own accord for a change (Robustness Variable, RFC 3810 §9.1).
const REPORTS: u8 = 2;
/// Records of one report, so that it fits any link (RFC 3810 §5.2.15, RFC 8200 §5): 1,280 octets less those of
/// the headers are enough for 61.
const RECORDS: u8 = 60;
/// A hop-by-hop header with the router alert of RFC 2711 and two octets of padding, which every MLD
/// message has (RFC 3810 §5).
const ROUTER_ALERT: [u8; 8] = [Protocol::Icmpv6.number(), 0, 5, 2, 0, 0, 1, 0];

/// The groups, and what is to be said of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listener {
    groups: Vec<Ipv6Addr>,
    due: Option<Instant>,
    /// When the last report was sent.
    reported: Option<Instant>,
    /// Reports of our own accord still to be sent; 0: the next one is an answer.
    unasked: u8,
    /// Whether whoever asked last speaks only version 1.
    v1: bool,
}

impl Listener {
    /// Listens to the solicited-node groups of `addrs` from now on, and reports those if they are new.
    pub(crate) fn listen(&mut self, addrs: impl Iterator<Item = Ipv6Addr>, now: Instant) {
        let mut groups: Vec<_> = addrs.map(resolve::solicited_node).collect();
        groups.sort_unstable();
        groups.dedup();
        if groups != self.groups {
            self.groups = groups;
            self.report_again(now);
        }
    }

    /// Reports all groups, to whoever is there now.
    pub(crate) fn report_again(&mut self, now: Instant) {
        self.unasked = REPORTS;
        self.due = (!self.groups.is_empty()).then_some(now);
    }

    /// Says nothing more until [`report_again`](Self::report_again).
    pub(crate) fn pause(&mut self) {
        self.due = None;
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// A router asks, in `packet` (verified; an ICMPv6 message of type [`QUERY`]) of `frame`. Answers
    /// after a while of chance, as RFC 3810 §6.2 asks; it is no secret which groups we are in, so every
    /// question is answered with all.
    pub(crate) fn heard(
        &mut self,
        packet: &Packet,
        frame: &[u8],
        now: Instant,
        chance: &mut Chance,
    ) {
        let message = packet.transport(frame);
        let from_router = matches!(packet.src, IpAddr::V6(src) if is_link_local_v6(src));
        if !from_router || packet.hop_limit != 1 || message.len() < 24 || self.groups.is_empty() {
            return;
        }
        self.v1 = message.len() == 24;
        let code = u16::from_be_bytes([message[4], message[5]]);
        let most = if self.v1 { u64::from(code) } else { max_response(code) };
        let at = now + chance.between(Duration::ZERO, Duration::from_millis(most));
        let at = self.reported.map_or(at, |last| at.max(last + REST));
        // One that is due sooner will do (RFC 3810 §6.2, rule 1).
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Does what time asks for. `own` is our link-local address once it is ours (RFC 3590 §4).
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        own: Option<Ipv6Addr>,
        voice: &Voice,
        chance: &mut Chance,
        out: &mut Outbox,
    ) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        let own = own.unwrap_or(Ipv6Addr::UNSPECIFIED);
        self.reported = Some(now);
        if self.v1 {
            for group in &self.groups {
                let message = [&[REPORT_V1, 0, 0, 0, 0, 0, 0, 0][..], &group.octets()].concat();
                say(own, *group, message, voice, out);
            }
        } else {
            let kind = if self.unasked > 0 { TO_EXCLUDE } else { IS_EXCLUDE };
            for groups in self.groups.chunks(RECORDS.into()) {
                let count = u8::try_from(groups.len()).unwrap_or(RECORDS);
                let mut message = vec![REPORT_V2, 0, 0, 0, 0, 0, 0, count];
                for group in groups {
                    message.extend([kind, 0, 0, 0]);
                    message.extend(group.octets());
                }
                say(own, ALL_MLD2_ROUTERS, message, voice, out);
            }
        }
        self.unasked = self.unasked.saturating_sub(1);
        let again = self.unasked > 0;
        self.due = again.then(|| now + chance.between(Duration::ZERO, REPEAT_WITHIN));
    }
}

/// Milliseconds of the Maximum Response Code (RFC 3810 §5.1.3): beyond 32,767 a floating number.
fn max_response(code: u16) -> u64 {
    match u64::from(code) {
        code if code < 0x8000 => code,
        code => (code & 0xfff | 0x1000) << ((code >> 12 & 7) + 3),
    }
}

fn say(own: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>, voice: &Voice, out: &mut Outbox) {
    const HOP_BY_HOP: u8 = 0;
    let number = Protocol::Icmpv6.number();
    let sum = Sum::pseudo_header(own.into(), to.into(), number, message.len());
    let checksum = sum.and(Sum::of(&message)).checksum();
    message[2..4].copy_from_slice(&checksum.0.to_be_bytes());
    let header = IpHeader { hop_limit: 1, ..IpHeader::new(own.into(), to.into(), HOP_BY_HOP) };
    let built = out.build(header.transport() + ROUTER_ALERT.len() + message.len());
    let frame = out.frame_mut(built);
    header.emit(frame, voice.mac);
    frame[..6].copy_from_slice(resolve::multicast_mac(to).as_bytes());
    let (alert, rest) = frame[header.transport()..].split_at_mut(ROUTER_ALERT.len());
    alert.copy_from_slice(&ROUTER_ALERT);
    rest.copy_from_slice(&message);
    voice.say(built, out);
}
