//! Which outside port an inside one takes.
//!
//! RFC 4787 §4.2 wants the inside port kept; the host's own services come first. So the inside port is
//! kept only where the host itself would give it away (`ip_local_port_range` and
//! `ip_local_reserved_ports` in `Documentation/networking/ip-sysctl.rst`), and never below 1024. Else the
//! port follows from the container and its port alone: both families of one inside port come to the same
//! one, of the same parity (REQ-2 to REQ-4), which nobody outside can guess (RFC 6888 REQ-15). TCP is as
//! UDP here (RFC 5382 REQ-1, REQ-7).

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::{fs, io};

use datapath::PortId;
use nat::{Protocol, TransportAddr, Zone};
use smoltcp::time::Instant;

use crate::claims::{Claim, Claims, Holder};

/// Ports tried beside the inside one.
const ATTEMPTS: u64 = 64;

/// The lowest port that is ever taken: those below are services' (RFC 6335 §6).
const LOWEST: u16 = 1024;

/// Linux's own default range.
const DEFAULT: RangeInclusive<u16> = 32_768..=60_999;

/// The host ports mappings may take.
#[derive(Debug)]
pub(crate) struct Ports {
    range: RangeInclusive<u16>,
    reserved: Vec<RangeInclusive<u16>>,
    secret: RandomState,
    /// Of TCP and UDP, for each IPv4 and IPv6.
    claims: [[Arc<Claims>; 2]; 2],
}

/// Whose port is looked for: a container's, of a protocol and family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) zone: Zone,
    pub(crate) port: PortId,
    pub(crate) protocol: Protocol,
    pub(crate) inside: TransportAddr,
}

impl Ports {
    /// Those the calling thread's network namespace gives away, as its settings are now.
    pub(crate) fn of_host() -> Self {
        let read = |name| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
        Self::new(
            &read("ip_local_port_range").unwrap_or_default(),
            &read("ip_local_reserved_ports").unwrap_or_default(),
        )
    }

    /// The same from the two settings' texts; what cannot be read is as the kernel's default.
    fn new(range: &str, reserved: &str) -> Self {
        let mut ends = range.split_whitespace().map(str::parse::<u16>);
        let range = match (ends.next(), ends.next()) {
            (Some(Ok(low)), Some(Ok(high))) if low <= high && high >= LOWEST => {
                low.max(LOWEST)..=high
            }
            _ => DEFAULT,
        };
        let reserved = reserved.trim().split(',').filter_map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            Some(low.parse().ok()?..=high.parse().ok()?)
        });
        Self {
            range,
            reserved: reserved.collect(),
            secret: RandomState::new(),
            claims: [Protocol::Tcp, Protocol::Udp]
                .map(|protocol| [(); 2].map(|()| Arc::new(Claims::new(protocol)))),
        }
    }

    /// Whether the host itself gives this port to whoever asks for any.
    pub(crate) fn may_take(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port))
    }

    /// Takes note of the time.
    pub(crate) fn tick(&self, now: Instant) {
        self.claims.iter().flatten().for_each(|claims| claims.tick(now));
    }

    /// Looks for an outside port, best first, and has `take` take it: nothing, if somebody else on the host
    /// has it. `None` if there is none to be had.
    ///
    /// # Errors
    ///
    /// As `take` says; then no other is tried.
    pub(crate) fn find<T>(
        &self,
        wanted: Wanted,
        mut take: impl FnMut(u16) -> io::Result<Option<T>>,
    ) -> io::Result<Option<(T, Claim)>> {
        let Wanted { zone, port, inside, .. } = wanted;
        let claims = self.claims_of(wanted);
        let holder = Holder::new(zone, port, inside.port);
        let candidates = || self.candidates(zone, port, inside.port);
        // What it has already, whichever that was at the time; only then another.
        let held = candidates().find(|candidate| claims.is_of(*candidate, holder));
        for candidate in held.into_iter().chain(candidates()) {
            let Some(claim) = claims.claim(candidate, holder) else { continue };
            if let Some(taken) = take(candidate)? {
                return Ok(Some((taken, claim)));
            }
        }
        Ok(None)
    }

    /// Whether a mapping has that outside port now.
    pub(crate) fn is_held(&self, protocol: Protocol, outside: TransportAddr) -> bool {
        self.claims(protocol, outside.addr).is_held(outside.port)
    }

    fn claims_of(&self, wanted: Wanted) -> &Arc<Claims> {
        self.claims(wanted.protocol, wanted.inside.addr)
    }

    fn claims(&self, protocol: Protocol, of: IpAddr) -> &Arc<Claims> {
        &self.claims[usize::from(protocol == Protocol::Udp)][usize::from(of.is_ipv6())]
    }

    /// Takes note of a port the kernel chose, unless it is held for somebody.
    pub(crate) fn note(&self, wanted: Wanted, port: u16) -> Option<Claim> {
        let holder = Holder::new(wanted.zone, wanted.port, wanted.inside.port);
        self.claims_of(wanted).claim(port, holder)
    }

    /// The ports to try for an inside port of a container, best first.
    fn candidates(&self, zone: Zone, port: PortId, inside: u16) -> impl Iterator<Item = u16> {
        let (low, high) = (u64::from(*self.range.start()), u64::from(*self.range.end()));
        let mut word = self.secret.hash_one((zone, port, inside)) | 1;
        let others = (0..ATTEMPTS).filter_map(move |_| {
            // xorshift64 (Marsaglia 2003): from one number that cannot be guessed, as many as are wanted.
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            let any = low + (word >> 16) % (high - low + 1);
            // Its neighbour, where the parity differs.
            u16::try_from(any ^ (any ^ u64::from(inside)) & 1).ok()
        });
        std::iter::once(inside).chain(others).filter(|port| self.may_take(*port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: (Zone, PortId) = (Zone(1), PortId(2));

    fn candidates(ports: &Ports, inside: u16) -> Vec<u16> {
        ports.candidates(OF.0, OF.1, inside).collect()
    }

    #[test]
    fn the_inside_port_is_kept_only_where_the_host_gives_it_away() {
        let ports = Ports::new("32768\t60999\n", "40000,50000-50010\n");
        for (inside, kept) in [
            (53, false),
            (5353, false),
            (32_767, false),
            (32_768, true),
            (40_000, false),
            (40_001, true),
            (50_005, false),
            (60_999, true),
            (61_000, false),
        ] {
            let tried = candidates(&ports, inside);
            assert_eq!(tried[0] == inside, kept, "{inside}");
            assert!(tried.iter().all(|port| ports.may_take(*port)));
        }
    }

    #[test]
    fn no_port_below_1024_is_taken_whatever_the_host_says() {
        let ports = Ports::new("1 65535", "");
        assert!(!candidates(&ports, 53).contains(&53));
        assert!(candidates(&ports, 1024).contains(&1024));
    }

    #[test]
    fn parity_is_kept_and_one_inside_port_leads_to_the_same_ports_again() {
        let ports = Ports::new("", "");
        for inside in [53, 5004, 5005] {
            let tried = candidates(&ports, inside);
            assert_eq!(tried, candidates(&ports, inside));
            assert!(tried.len() > 2, "{tried:?}");
            assert!(tried.iter().all(|port| port % 2 == inside % 2));
        }
        let (one, other) = (candidates(&ports, 5004), candidates(&Ports::new("", ""), 5004));
        assert_ne!(one, other, "nobody can guess them");
    }

    /// RFC 4787 REQ-3, RFC 5382 REQ-7: whoever comes later goes elsewhere, and stays there.
    #[test]
    fn one_outside_port_is_one_inside_ports_and_stays_so() {
        let ports = Ports::new("", "");
        let wanted = |port| Wanted {
            zone: Zone(1),
            port: PortId(port),
            protocol: Protocol::Tcp,
            inside: TransportAddr::new([192, 0, 2, 1].into(), 40_000),
        };
        let find = |port| ports.find(wanted(port), |port| Ok(Some(port))).unwrap().unwrap();
        let (first, held) = find(1);
        let (second, other) = find(2);
        assert_eq!(first, 40_000);
        assert_ne!(second, first);
        let again = find(2);
        assert_eq!(again.0, second);
        drop((held, other, again));
        ports.tick(Instant::from_secs(1000));
        assert_eq!(find(2).0, second, "though the first could be had again");
        let refused = ports.find(wanted(3), |_| Ok(None::<u16>)).unwrap();
        assert!(refused.is_none());
        let error = ports.find(wanted(3), |_| Err::<Option<u16>, _>(io::ErrorKind::Other.into()));
        assert!(error.is_err());
    }
}
