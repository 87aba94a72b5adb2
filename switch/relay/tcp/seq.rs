//! Sequence numbers, which wrap (RFC 9293 §3.4).

use std::ops::{Add, AddAssign, Sub};

/// A point in the sequence space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    /// Octets from `earlier` to here; negative if this is the earlier one. Right for points less than
    /// 2 GiB apart, as any two within a window are.
    #[expect(clippy::cast_possible_wrap, reason = "the wrap is what makes it a distance")]
    pub(crate) const fn since(self, earlier: Self) -> i32 {
        self.0.wrapping_sub(earlier.0) as i32
    }

    /// Octets from `earlier` to here; 0 if this is the earlier one.
    pub(crate) fn after(self, earlier: Self) -> u32 {
        u32::try_from(self.since(earlier)).unwrap_or(0)
    }

    /// The later of two.
    pub(crate) const fn max(self, other: Self) -> Self {
        if self.since(other) >= 0 { self } else { other }
    }

    /// The earlier of two.
    pub(crate) const fn min(self, other: Self) -> Self {
        if self.since(other) <= 0 { self } else { other }
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    fn add(self, octets: u32) -> Self {
        Self(self.0.wrapping_add(octets))
    }
}

impl Sub<u32> for Seq {
    type Output = Self;

    fn sub(self, octets: u32) -> Self {
        Self(self.0.wrapping_sub(octets))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, octets: u32) {
        *self = *self + octets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_hold_across_the_wrap() {
        let before = Seq(u32::MAX - 9);
        let after = before + 20;
        assert_eq!(after, Seq(10));
        assert_eq!(after.since(before), 20);
        assert_eq!(before.since(after), -20);
        assert_eq!(before.after(after), 0);
        assert_eq!(before.max(after), after);
        assert_eq!(before.min(after), before);
    }
}
