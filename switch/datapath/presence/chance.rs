//! Random intervals and transaction numbers, all from one seed.
//!
//! The protocols ask for randomness so that stations do not speak at once, and so that a stranger who
//! hears nothing of us cannot guess a transaction number. Whoever gives the seed decides how well that
//! holds; a test gives the same one twice and sees the same twice.

use smoltcp::time::Duration;

/// A row of random numbers (SplitMix64: Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A transaction number.
    pub(crate) fn number(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.next().to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// An interval of `least` to `most`, both included, to the microsecond.
    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = most.total_micros().saturating_sub(least.total_micros());
        least + Duration::from_micros(self.next() % span.saturating_add(1))
    }

    /// `interval`, give or take up to `spread` of it.
    pub(crate) fn around(&mut self, interval: Duration, spread: Duration) -> Duration {
        let spread = spread.min(interval);
        self.between(interval - spread, interval + spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_stays_within_its_bounds_and_is_not_always_the_same() {
        let mut chance = Chance::new(7);
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(2));
        let drawn: Vec<_> = (0..1000).map(|_| chance.between(least, most)).collect();
        assert!(drawn.iter().all(|interval| (least..=most).contains(interval)));
        let (low, high) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
        assert!(*high - *low > Duration::from_millis(900), "{low} to {high}");
        assert_eq!(chance.between(least, least), least);
        assert!(chance.around(least, most) <= most, "never below nothing");
    }
}
