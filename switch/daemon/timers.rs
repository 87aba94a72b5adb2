//! Idle times as they are written: `rfc` or `linux`, and `NAME=TIME` for each timer that shall differ.
//!
//! Pure. A timer has the name that STANDARDS and `nat::Timeouts` give it, with hyphens; the kernel's
//! (`nf_conntrack_tcp_timeout_established`, with or without its prefix) mean the same.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use nat::{Profile, Timeouts};
use serde::{Deserialize, Serialize};
use smoltcp::time::Duration;

/// Most seconds of a timer: what the kernel's own take (`int` of jiffies at 1,000 a second).
const MOST: u64 = 2_147_483;

/// A timer by its place in [`TIMERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Timer(usize);

/// Name, the kernel's name if it is another, place, and least seconds an RFC asks for with where it does.
type Known = (&'static str, &'static str, fn(&mut Timeouts) -> &mut Duration, u64, &'static str);

const TIMERS: &[Known] = &[
    ("tcp-syn-sent", "", |t| &mut t.tcp_syn_sent, 240, "RFC 5382 REQ-5"),
    ("tcp-syn-recv", "", |t| &mut t.tcp_syn_recv, 240, "RFC 5382 REQ-5"),
    ("tcp-established", "", |t| &mut t.tcp_established, 7440, "RFC 5382 REQ-5"),
    ("tcp-fin-wait", "", |t| &mut t.tcp_fin_wait, 240, "RFC 5382 REQ-5"),
    ("tcp-close-wait", "", |t| &mut t.tcp_close_wait, 240, "RFC 5382 REQ-5"),
    ("tcp-last-ack", "", |t| &mut t.tcp_last_ack, 240, "RFC 5382 REQ-5"),
    ("tcp-time-wait", "", |t| &mut t.tcp_time_wait, 240, "RFC 5382 REQ-5"),
    ("tcp-close", "", |t| &mut t.tcp_close, 240, "RFC 7857 §2.2"),
    ("tcp-max-retrans", "", |t| &mut t.tcp_max_retrans, 0, ""),
    ("tcp-unacknowledged", "", |t| &mut t.tcp_unacknowledged, 0, ""),
    ("udp-unreplied", "udp", |t| &mut t.udp_unreplied, 120, "RFC 4787 REQ-5"),
    ("udp-stream", "", |t| &mut t.udp_stream, 120, "RFC 4787 REQ-5"),
    ("udp-query", "", |t| &mut t.udp_query, 0, ""),
    ("icmp", "icmpv6", |t| &mut t.icmp, 60, "RFC 5508 REQ-2"),
    ("sctp-closed", "", |t| &mut t.sctp_closed, 0, ""),
    ("sctp-cookie", "sctp-cookie-wait", |t| &mut t.sctp_cookie, 0, ""),
    ("sctp-established", "", |t| &mut t.sctp_established, 0, ""),
    ("sctp-shutdown", "sctp-shutdown-sent", |t| &mut t.sctp_shutdown, 0, ""),
    ("sctp-heartbeat", "sctp-heartbeat-sent", |t| &mut t.sctp_heartbeat, 0, ""),
    ("dccp-opening", "dccp-request", |t| &mut t.dccp_opening, 480, "RFC 5597 REQ-5"),
    ("dccp-open", "", |t| &mut t.dccp_open, 7440, "RFC 5597 REQ-5"),
    ("gre", "", |t| &mut t.gre, 0, ""),
    ("gre-stream", "", |t| &mut t.gre_stream, 0, ""),
    ("generic", "", |t| &mut t.generic, 0, ""),
    ("fragment-v4", "frag4", |t| &mut t.fragment_v4, 0, ""),
    ("fragment-v6", "frag6", |t| &mut t.fragment_v6, 0, ""),
];

/// A profile, and the timers that differ from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Timers {
    profile: Profile,
    /// Seconds.
    changed: BTreeMap<Timer, u64>,
}

/// Words that are no idle times.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timeouts {text:?}: {why}")]
pub struct TimersError {
    text: String,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Why {
    #[error(
        "{0:?} is no profile; begin with rfc or linux, then NAME=TIME, as in rfc,tcp-established=3h"
    )]
    Profile(String),
    #[error("{name:?} is no timer; the timers are {}", names())]
    Name { name: String },
    #[error("{0} is given twice; leave one out")]
    Twice(&'static str),
    #[error("{name}={value}: write seconds, or a time as in 90s, 5m or 2h4m, from 1s to {MOST}s")]
    Value { name: &'static str, value: String },
}

fn names() -> String {
    TIMERS.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ")
}

impl Timers {
    /// The idle times it stands for.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        let mut timeouts = *Timeouts::of(self.profile);
        for (Timer(at), seconds) in &self.changed {
            *TIMERS[*at].2(&mut timeouts) = Duration::from_secs(*seconds);
        }
        timeouts
    }

    /// What of it is shorter than an RFC allows, each in a sentence. The profile `linux` as a whole is
    /// somebody's decision, and said nothing about.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let short = self.changed.iter().filter_map(|(Timer(at), seconds)| {
            let (name, _, _, least, source) = TIMERS[*at];
            (*seconds < least)
                .then(|| format!("{name}={seconds}s is less than the {least}s of {source}"))
        });
        short.collect()
    }

    fn parse(text: &str) -> Result<Self, Why> {
        let mut timers = Self::default();
        for (at, part) in text.split(',').enumerate() {
            let Some((name, value)) = part.split_once('=') else {
                timers.profile = match part {
                    "rfc" if at == 0 => Profile::Rfc,
                    "linux" if at == 0 => Profile::Linux,
                    _ => return Err(Why::Profile(part.to_owned())),
                };
                continue;
            };
            let timer = Timer::named(name).ok_or_else(|| Why::Name { name: name.to_owned() })?;
            let name = TIMERS[timer.0].0;
            let seconds = seconds(value)
                .filter(|seconds| (1..=MOST).contains(seconds))
                .ok_or_else(|| Why::Value { name, value: value.to_owned() })?;
            if timers.changed.insert(timer, seconds).is_some() {
                return Err(Why::Twice(name));
            }
        }
        Ok(timers)
    }
}

impl Timer {
    fn named(text: &str) -> Option<Self> {
        let plain = text.replace('_', "-");
        let plain = plain.strip_prefix("nf-conntrack-").unwrap_or(&plain);
        // The kernel puts `timeout` between the protocol and the state, or behind both.
        let plain = plain.replace("-timeout", "");
        let is = |known: &Known| known.0 == plain || (!known.1.is_empty() && known.1 == plain);
        TIMERS.iter().position(is).map(Self)
    }
}

fn seconds(text: &str) -> Option<u64> {
    if text.bytes().all(|octet| octet.is_ascii_digit()) {
        return text.parse().ok();
    }
    let time = humantime::parse_duration(text).ok()?;
    (time.subsec_nanos() == 0).then_some(time.as_secs())
}

impl FromStr for Timers {
    type Err = TimersError;

    fn from_str(text: &str) -> Result<Self, TimersError> {
        Self::parse(text).map_err(|why| TimersError { text: text.to_owned(), why })
    }
}

impl TryFrom<String> for Timers {
    type Error = TimersError;

    fn try_from(text: String) -> Result<Self, TimersError> {
        text.parse()
    }
}

impl From<Timers> for String {
    fn from(timers: Timers) -> Self {
        timers.to_string()
    }
}

impl fmt::Display for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.profile {
            Profile::Rfc => "rfc",
            Profile::Linux => "linux",
        })?;
        let mut changed = self.changed.iter();
        changed.try_for_each(|(Timer(at), seconds)| write!(f, ",{}={seconds}s", TIMERS[*at].0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timers(text: &str) -> Timers {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn each_timer_has_a_name_of_ours_and_the_kernels() {
        for (text, canonical) in [
            ("rfc", "rfc"),
            ("linux", "linux"),
            ("tcp-established=3h", "rfc,tcp-established=10800s"),
            ("linux,tcp_timeout_established=7440", "linux,tcp-established=7440s"),
            ("rfc,nf_conntrack_udp_timeout=150", "rfc,udp-unreplied=150s"),
            ("rfc,nf_conntrack_udp_timeout_stream=5m", "rfc,udp-stream=300s"),
            ("rfc,icmp_timeout=90,gre_timeout_stream=2m", "rfc,icmp=90s,gre-stream=120s"),
            ("rfc,frag6_timeout=1m30s", "rfc,fragment-v6=90s"),
            ("rfc,tcp_timeout_max_retrans=99", "rfc,tcp-max-retrans=99s"),
            ("rfc,nf_conntrack_sctp_timeout_cookie_wait=5", "rfc,sctp-cookie=5s"),
            ("rfc,tcp_timeout_none=1", ""),
        ] {
            match text.parse::<Timers>() {
                Ok(read) => {
                    assert_eq!(read.to_string(), canonical);
                    assert_eq!(timers(canonical), read);
                }
                Err(_) => assert_eq!(canonical, "", "{text}"),
            }
        }
    }

    #[test]
    fn every_timer_can_be_set_and_is_told_apart() {
        for (at, (name, ..)) in TIMERS.iter().enumerate() {
            let mut changed = timers(&format!("rfc,{name}=4711")).timeouts();
            for (other, (.., place, _, _)) in TIMERS.iter().enumerate() {
                let is = *place(&mut changed) == Duration::from_secs(4711);
                assert_eq!(is, at == other, "{name}");
            }
        }
        assert_eq!(timers("linux").timeouts(), Timeouts::LINUX);
        assert_eq!(Timers::default().timeouts(), Timeouts::RFC);
    }

    #[test]
    fn a_refusal_names_the_word_and_what_is_allowed() {
        for (text, says) in [
            ("", "\"\" is no profile; begin with rfc or linux"),
            ("bsd", "\"bsd\" is no profile"),
            ("rfc,linux", "\"linux\" is no profile"),
            ("rfc,tcp-open=3s", "\"tcp-open\" is no timer; the timers are tcp-syn-sent, "),
            ("rfc,icmp=0", "icmp=0: write seconds"),
            ("rfc,icmp=0.5s", "icmp=0.5s: write seconds"),
            ("rfc,icmp=500ms", "from 1s to 2147483s"),
            ("rfc,icmp=99999999", "from 1s to 2147483s"),
            ("rfc,icmp=", "icmp=: write seconds"),
            ("rfc,icmp=-1", "icmp=-1: write seconds"),
            ("rfc,icmp=9,icmpv6=9", "icmp is given twice"),
        ] {
            let said = text.parse::<Timers>().expect_err(text).to_string();
            assert!(said.starts_with(&format!("timeouts {text:?}: ")), "{said}");
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn what_an_rfc_forbids_is_done_and_said() {
        assert_eq!(timers("rfc,udp-stream=300,icmp=60").warnings(), [""; 0]);
        assert_eq!(
            timers("rfc,udp-unreplied=30").warnings(),
            ["udp-unreplied=30s is less than the 120s of RFC 4787 REQ-5"]
        );
        assert_eq!(timers("linux").warnings(), [""; 0]);
    }
}
