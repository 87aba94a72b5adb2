//! How long to wait for an acknowledgment (RFC 6298).
//!
//! One segment is timed at once, and none that was sent again (Karn's algorithm). A container is a
//! memory copy away, so the estimate hardly leaves its floor; it does where a container is frozen,
//! starved, or behind an impairment of its own.

use smoltcp::time::{Duration, Instant};

use super::seq::Seq;

/// What is waited at least beyond the round trip: Linux's `TCP_RTO_MIN`, not RFC 6298's second.
const FLOOR: u32 = 200_000;

/// What is waited at least before the end of a flight is sent once more: a container that is not waiting for
/// a processor has answered long before.
const PROBE_FLOOR: u32 = 20_000;

/// Timeout before anything was timed (RFC 6298 §2.1).
const FIRST: u32 = 1_000_000;

/// Longest timeout (RFC 6298 §2.5).
const LONGEST: u64 = 60_000_000;

/// The estimate of one flow's round trip. Microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    /// Smoothed; 0 before the first measurement.
    smoothed: u32,
    variation: u32,
    /// The acknowledgment that will end the measurement under way.
    timed: Seq,
    /// When it began; wraps after an hour, which no segment waits without being sent again.
    since: u32,
    timing: bool,
    /// How often the timeout was doubled.
    doubled: u8,
}

impl Rtt {
    pub(crate) const fn new() -> Self {
        Self { smoothed: 0, variation: 0, timed: Seq(0), since: 0, timing: false, doubled: 0 }
    }

    /// What ends before `end` is sent at `now`, for the first time.
    pub(crate) fn start(&mut self, end: Seq, now: Instant) {
        if !self.timing {
            self.timing = true;
            self.timed = end;
            self.since = micros(now);
        }
    }

    /// Something was sent again: which copy an acknowledgment answers cannot be known.
    pub(crate) const fn cancel(&mut self) {
        self.timing = false;
    }

    /// All before `una` was acknowledged at `now`, for the first time.
    pub(crate) fn acknowledged(&mut self, una: Seq, now: Instant) {
        self.doubled = 0;
        if !self.timing || una.since(self.timed) < 0 {
            return;
        }
        self.timing = false;
        let took = micros(now).wrapping_sub(self.since).max(1);
        if self.smoothed == 0 {
            self.smoothed = took;
            self.variation = took / 2;
        } else {
            let off = self.smoothed.abs_diff(took);
            self.variation = self.variation - self.variation / 4 + off / 4;
            self.smoothed = (self.smoothed - self.smoothed / 8).saturating_add(took / 8).max(1);
        }
    }

    /// RFC 6298 §5.5: what was awaited did not come, so be more patient.
    pub(crate) const fn back_off(&mut self) {
        self.doubled = self.doubled.saturating_add(1);
    }

    /// How often patience was doubled in a row.
    pub(crate) const fn doubled(&self) -> u8 {
        self.doubled
    }

    /// The retransmission timeout.
    pub(crate) fn timeout(&self) -> Duration {
        let base = match self.smoothed {
            0 => u64::from(FIRST),
            smoothed => {
                u64::from(smoothed) + u64::from(self.variation.saturating_mul(4).max(FLOOR))
            }
        };
        Duration::from_micros((base << self.doubled.min(16)).min(LONGEST))
    }

    /// How long to wait before the end of a flight of several segments is sent once more: two round trips
    /// (RFC 8985 §7.2), and as much as they vary. Nothing before one was timed, or if even that was in vain.
    pub(crate) fn probe_timeout(&self) -> Option<Duration> {
        let known = self.smoothed > 0 && self.doubled == 0;
        let micros = 2 * u64::from(self.smoothed) + 4 * u64::from(self.variation);
        known.then(|| Duration::from_micros(micros + u64::from(PROBE_FLOOR)))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it may wrap")]
#[expect(clippy::cast_sign_loss, reason = "it may wrap")]
const fn micros(now: Instant) -> u32 {
    now.total_micros() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_round_trip_and_doubles_up_to_a_minute() {
        let mut rtt = Rtt::new();
        let at = |ms| Instant::from_millis(ms);
        assert_eq!(rtt.timeout(), Duration::from_secs(1));
        rtt.start(Seq(10), at(0));
        rtt.start(Seq(20), at(5));
        rtt.acknowledged(Seq(9), at(6));
        rtt.acknowledged(Seq(30), at(8));
        assert_eq!(rtt.timeout(), Duration::from_millis(208), "8 ms and the floor");
        for round in 0..50 {
            rtt.start(Seq(100 + round), at(1000));
            rtt.acknowledged(Seq(100 + round), at(1800));
        }
        let settled = rtt.timeout();
        assert!(Duration::from_millis(990) < settled && settled < Duration::from_millis(1010));
        rtt.start(Seq(200), at(2000));
        rtt.cancel();
        rtt.acknowledged(Seq(200), at(99_000));
        assert_eq!(rtt.timeout(), settled, "what was sent again is not measured");
        rtt.back_off();
        assert_eq!(rtt.timeout(), settled * 2);
        (0..250).for_each(|_| rtt.back_off());
        assert_eq!(rtt.timeout(), Duration::from_secs(60));
        rtt.acknowledged(Seq(201), at(99_001));
        assert_eq!(rtt.timeout(), settled);
    }
}
