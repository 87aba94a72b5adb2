//! What the host's kernel says of its ports, and the search for a free one.
//!
//! All of it is in `/proc/sys/net/ipv4` (`Documentation/networking/ip-sysctl.rst`) and read when it is
//! needed, since an administrator may change it at any time.

use std::fs;
use std::ops::RangeInclusive;

/// Where host ports are looked for when none was named.
#[derive(Debug)]
pub(crate) struct Range {
    /// `ip_local_port_range`.
    ports: RangeInclusive<u16>,
    /// `ip_local_reserved_ports`.
    reserved: Vec<RangeInclusive<u16>>,
}

impl Range {
    /// The kernel's own range for local ports.
    pub(crate) fn of_kernel() -> Self {
        Self {
            ports: parse_range(&sysctl("ip_local_port_range")),
            reserved: parse_reserved(&sysctl("ip_local_reserved_ports")),
        }
    }

    /// Its ends.
    pub(crate) const fn ends(&self) -> (u16, u16) {
        (*self.ports.start(), *self.ports.end())
    }

    /// Every port that may be handed out, once, beginning after `last`.
    pub(crate) fn after(&self, last: u16) -> impl Iterator<Item = u16> {
        let (first, end) = self.ends();
        let start = if (first..end).contains(&last) { last + 1 } else { first };
        let round = (start..=end).chain(first..start);
        round.filter(|port| !self.reserved.iter().any(|range| range.contains(port)))
    }
}

/// The first port that needs no privilege.
pub(crate) fn unprivileged_start() -> u16 {
    sysctl("ip_unprivileged_port_start").trim().parse().unwrap_or(1024)
}

/// Whether the kernel has IPv6: the file is there exactly then.
pub(crate) fn has_ipv6() -> bool {
    fs::exists("/proc/net/if_inet6").unwrap_or(false)
}

fn sysctl(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default()
}

fn parse_range(text: &str) -> RangeInclusive<u16> {
    let mut ports = text.split_ascii_whitespace().filter_map(|port| port.parse().ok());
    match (ports.next(), ports.next()) {
        (Some(first), Some(last)) if first <= last && first > 0 => first..=last,
        _ => 32_768..=60_999, // the kernel's default
    }
}

fn parse_reserved(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_goes_round_and_skips_what_is_reserved() {
        let range =
            Range { ports: 32_768..=32_772, reserved: parse_reserved("8080,32770-32771\n") };
        let after = |last| range.after(last).collect::<Vec<_>>();
        assert_eq!(after(0), [32_768, 32_769, 32_772]);
        assert_eq!(after(32_768), [32_769, 32_772, 32_768]);
        assert_eq!(after(32_772), [32_768, 32_769, 32_772]);
        assert_eq!(after(32_771), [32_772, 32_768, 32_769]);
    }

    #[test]
    fn the_kernels_words_are_read() {
        assert_eq!(parse_range("32768\t60999\n"), 32_768..=60_999);
        assert_eq!(parse_range("nonsense"), 32_768..=60_999);
        assert_eq!(parse_range("9 1"), 32_768..=60_999);
        assert_eq!(parse_reserved("\n"), []);
        assert_eq!(parse_reserved("8080,9000-9100"), [8080..=8080, 9000..=9100]);
        assert!(Range::of_kernel().after(0).next().is_some());
    }
}
