//! When a flow was last heard, in four octets.
//!
//! A clock that counts hundredths of a second in 32 bits comes round every 497 days, so what it says is read
//! against the present: half of its span is the past, the other half the future. Nothing conntrack forgets by
//! itself may be silent for longer than [`LONGEST`], which is well within the past.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use smoltcp::time::{Duration, Instant};

/// Microseconds of a tick.
const TICK: i64 = 10_000;

/// The longest silence that is told from a short one with days to spare; longer idle times are as long as this.
pub(crate) const LONGEST: Duration = Duration::from_secs(200 * 86_400);

/// A moment of the last 248 days, to a hundredth of a second.
#[derive(Debug)]
pub(crate) struct Moment(AtomicU32);

impl Moment {
    pub(crate) fn new(now: Instant) -> Self {
        Self(AtomicU32::new(upwards(now)))
    }

    pub(crate) fn set(&self, now: Instant) {
        self.0.store(upwards(now), Relaxed);
    }

    /// How long ago it is, never too long; nothing, if another worker's clock is ahead of `now`.
    pub(crate) fn before(&self, now: Instant) -> Duration {
        let ticks = low(now.total_micros().div_euclid(TICK)).wrapping_sub(self.0.load(Relaxed));
        let past = ticks <= i32::MAX.cast_unsigned();
        if past { of_ticks(ticks) } else { Duration::ZERO }
    }
}

/// A duration in ticks, for [`of_ticks`]: [`LONGEST`] at most, and none only if it is none.
pub(crate) fn ticks(duration: Duration) -> u32 {
    let micros = duration.min(LONGEST).total_micros();
    low(micros.cast_signed() / TICK + i64::from(!micros.is_multiple_of(TICK.cast_unsigned())))
}

pub(crate) const fn of_ticks(ticks: u32) -> Duration {
    Duration::from_micros(ticks as u64 * TICK.cast_unsigned())
}

/// Rounded up, lest a silence be taken for a longer one.
fn upwards(now: Instant) -> u32 {
    low(-(-now.total_micros()).div_euclid(TICK))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the clock comes round"
)]
const fn low(ticks: i64) -> u32 {
    ticks as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn silence_is_told_wherever_the_clock_comes_round() {
        let round = Duration::from_micros((1 << 32) * TICK.cast_unsigned());
        for begin in [Duration::ZERO, DAY * 49, round - DAY, round * 3 - Duration::from_secs(1)] {
            let begin = Instant::ZERO + begin;
            let moment = Moment::new(begin);
            for silence in [Duration::ZERO, Duration::from_secs(2), DAY, DAY * 50, LONGEST] {
                assert_eq!(moment.before(begin + silence), silence, "{begin}");
            }
            assert_eq!(moment.before(begin - Duration::from_secs(1)), Duration::ZERO, "{begin}");
        }
    }

    #[test]
    fn what_is_rounded_is_never_silent_for_too_long() {
        for micros in [0, 1, 9_999, 10_000, 10_001] {
            let moment = Moment::new(Instant::from_micros(micros));
            let before = moment.before(Instant::from_micros(1_000_000));
            let true_silence = 1_000_000 - u64::try_from(micros).unwrap();
            assert!(before.total_micros() <= true_silence, "{micros}: {before}");
            assert!(before.total_micros() + 10_000 > true_silence, "{micros}: {before}");
        }
        assert_eq!((ticks(Duration::from_micros(1)), ticks(Duration::ZERO)), (1, 0));
        assert_eq!(of_ticks(ticks(DAY)), DAY);
        assert_eq!(of_ticks(ticks(DAY * 5000)), LONGEST);
    }
}
