//! Which outside port a UDP mapping takes.
//!
//! RFC 4787 §4.2 wants the inside port kept; the host's own services come first. So the inside port is
//! kept only where the host itself would give it away (`ip_local_port_range` and
//! `ip_local_reserved_ports` in `Documentation/networking/ip-sysctl.rst`), and never below 1024. Else the
//! port follows from the container and its port alone: both families of one inside port come to the same
//! one, of the same parity (REQ-2 to REQ-4), which nobody outside can guess (RFC 6888 REQ-15).

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;

use datapath::PortId;
use nat::Zone;

/// Ports tried before the kernel is asked for any.
const ATTEMPTS: u16 = 8;

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
        Self { range, reserved: reserved.collect(), secret: RandomState::new() }
    }

    /// Whether the host itself gives this port to whoever asks for any.
    pub(crate) fn may_take(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port))
    }

    /// The ports to try for an inside port of a container, best first; 0, for any, comes last.
    pub(crate) fn candidates(
        &self,
        zone: Zone,
        port: PortId,
        inside: u16,
    ) -> impl Iterator<Item = u16> {
        let (low, high) = (u64::from(*self.range.start()), u64::from(*self.range.end()));
        let others = (0..ATTEMPTS).filter_map(move |attempt| {
            let word = self.secret.hash_one((zone, port, inside, attempt));
            let any = low + word % (high - low + 1);
            // Its neighbour, where the parity differs.
            u16::try_from(any ^ (any ^ u64::from(inside)) & 1).ok()
        });
        std::iter::once(inside)
            .chain(others)
            .filter(|port| self.may_take(*port))
            .chain(std::iter::once(0))
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
            assert_eq!(tried.last(), Some(&0));
            assert!(tried[..tried.len() - 1].iter().all(|port| ports.may_take(*port)));
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
            assert!(tried[..tried.len() - 1].iter().all(|port| port % 2 == inside % 2));
        }
        let (one, other) = (candidates(&ports, 5004), candidates(&Ports::new("", ""), 5004));
        assert_ne!(one, other, "nobody can guess them");
    }
}
