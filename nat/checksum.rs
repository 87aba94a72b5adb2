//! Internet checksums: sums, updates, and the pseudo-header sums that offloads leave behind.
//!
//! Read RFC 1071 first, then RFC 1624 for the updates. One number wears three forms, and each has
//! its type, so that none is complemented twice:
//!
//! - [`Sum`]: words added in one's complement, carries not yet folded, nothing complemented.
//! - [`Checksum`]: a finished field, `!fold(sum of all it covers, itself taken as zero)`. Summing
//!   the same octets with the field in place therefore folds to 0xffff.
//! - [`PseudoSum`]: the field of a partial checksum, `fold(sum of the pseudo-header)`, **not**
//!   complemented. Summing the segment with the field in place counts the pseudo-header in, so the
//!   complement of that sum is the finished field (`complete` in the data path).
//!
//! Words are added as they lie in memory and turned to host order once, in [`Sum::fold`]: a one's
//! complement sum does not mind the octet order (RFC 1071 §2B). Every `u16` outside is in host
//! order.

use std::net::IpAddr;

/// A one's complement sum on its way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// The sum of `octets`, an odd one at the end padded with zero.
    ///
    /// Of several pieces of one message, all but the last must have an even length.
    #[must_use]
    pub fn of(octets: &[u8]) -> Self {
        // The halves of a word go to an accumulator that 2^31 words cannot overflow. The compiler
        // makes vector code of this, which takes a third of the time of an add-with-carry chain.
        let mut sum = 0;
        let (words, rest) = octets.as_chunks::<8>();
        for word in words {
            let word = u64::from_ne_bytes(*word);
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        let (words, rest) = rest.as_chunks::<2>();
        for word in words {
            sum += u64::from(u16::from_ne_bytes(*word));
        }
        if let [last] = rest {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// The sum of one word.
    #[must_use]
    pub const fn word(word: u16) -> Self {
        Self(word.to_be() as u64)
    }

    /// The sum of an address.
    #[must_use]
    pub fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of(&address.octets()),
            IpAddr::V6(address) => Self::of(&address.octets()),
        }
    }

    /// The pseudo-header of IPv4 (RFC 9293 §3.1) or IPv6 (RFC 8200 §8.1). `len` counts the octets of
    /// the transport header and its payload; `dst` is the final destination.
    #[must_use]
    pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Self {
        Self::address(src)
            .and(Self::address(dst))
            .and(Self::word(u16::from(protocol)))
            .and(Self::of(&(len as u64).to_be_bytes()))
    }

    /// Both sums.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum in 16 bits. Zero only if every word was zero.
    #[must_use]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(low_word(sum))
    }

    /// The finished field over what was summed.
    #[must_use]
    pub const fn checksum(self) -> Checksum {
        Checksum(!self.fold())
    }

    /// The field of a partial checksum, if what was summed is the pseudo-header.
    #[must_use]
    pub const fn partial(self) -> PseudoSum {
        PseudoSum(self.fold())
    }
}

/// The low 16 bits of a folded sum.
#[expect(clippy::cast_possible_truncation, reason = "the carries have been added in")]
const fn low_word(sum: u64) -> u16 {
    sum as u16
}

/// A finished checksum, as it stands in a header.
///
/// The updates equal a recomputation to the bit, 0x0000 and 0xffff included, as long as a word that
/// is not zero remains: every IP header has its version, and every pseudo-header its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(pub u16);

impl Checksum {
    /// The checksum once a word it covers goes from `old` to `new`: RFC 1624, equation 3.
    ///
    /// Not for a UDP checksum of zero, which means "none was made" (RFC 768): leave that alone.
    #[must_use]
    pub const fn replace(self, old: u16, new: u16) -> Self {
        self.replace_sum(Sum::word(old), Sum::word(new))
    }

    /// The same for two words in network order.
    #[must_use]
    pub fn replace_u32(self, old: u32, new: u32) -> Self {
        self.replace_sum(Sum::of(&old.to_be_bytes()), Sum::of(&new.to_be_bytes()))
    }

    /// The same for an address, be it in the header or in the pseudo-header.
    #[must_use]
    pub fn replace_address(self, old: IpAddr, new: IpAddr) -> Self {
        self.replace_sum(Sum::address(old), Sum::address(new))
    }

    /// The same for any run of words.
    #[must_use]
    pub const fn replace_sum(self, old: Sum, new: Sum) -> Self {
        Self(!replaced(!self.0, old, new))
    }

    /// The field as UDP sends it: zero is taken, so the other zero of one's complement stands for
    /// it (RFC 768).
    #[must_use]
    pub const fn for_udp(self) -> Self {
        if self.0 == 0 { Self(0xffff) } else { self }
    }
}

/// The field of a partial checksum: it covers the pseudo-header alone.
///
/// A rewritten address or length changes it; a rewritten port does not, for the sum over the
/// segment is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PseudoSum(pub u16);

impl PseudoSum {
    /// The same as a sum to add to.
    #[must_use]
    pub const fn sum(self) -> Sum {
        Sum::word(self.0)
    }

    /// The field once a word of the pseudo-header, such as the length, goes from `old` to `new`.
    #[must_use]
    pub const fn replace(self, old: u16, new: u16) -> Self {
        Self(replaced(self.0, Sum::word(old), Sum::word(new)))
    }

    /// The same for any run of words of the pseudo-header.
    #[must_use]
    pub const fn replace_sum(self, old: Sum, new: Sum) -> Self {
        Self(replaced(self.0, old, new))
    }

    /// The field once an address of the pseudo-header goes from `old` to `new`.
    #[must_use]
    pub fn replace_address(self, old: IpAddr, new: IpAddr) -> Self {
        Self(replaced(self.0, Sum::address(old), Sum::address(new)))
    }
}

/// `sum - old + new` in one's complement, where minus is plus the complement.
const fn replaced(sum: u16, old: Sum, new: Sum) -> u16 {
    Sum::word(sum).and(Sum::word(!old.fold())).and(new).fold()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 §3: the example's octets, their sum, and the same in two pieces.
    #[test]
    fn sums_as_rfc_1071_does() {
        let octets = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&octets).fold(), 0xddf2);
        assert_eq!(Sum::of(&octets).checksum(), Checksum(0x220d));
        assert_eq!(Sum::of(&octets[..4]).fold(), 0xf204);
        assert_eq!(Sum::of(&octets[4..]).fold(), 0xebed);
        assert_eq!(Sum::of(&octets[..4]).and(Sum::of(&octets[4..])).fold(), 0xddf2);
    }

    /// RFC 1624 §4: the example that RFC 1141 gets wrong.
    #[test]
    fn updates_as_rfc_1624_does() {
        assert_eq!(Checksum(0xdd2f).replace(0x5555, 0x3285), Checksum(0x0000));
    }

    #[test]
    fn an_odd_octet_is_the_high_half_of_its_word() {
        assert_eq!(Sum::of(&[0x12]).fold(), 0x1200);
        assert_eq!(Sum::of(&[1, 2, 3, 4, 5, 6, 7, 8, 0x12]).fold(), 0x1000 + 0x0014 + 0x1200);
    }

    #[test]
    fn an_empty_sum_is_zero_and_a_full_one_is_not() {
        assert_eq!(Sum::of(&[]).fold(), 0);
        assert_eq!(Sum::of(&[0; 65_535]).fold(), 0);
        assert_eq!(Sum::of(&[0xff; 65_534]).fold(), 0xffff);
    }

    #[test]
    fn udp_never_sends_zero() {
        assert_eq!(Checksum(0).for_udp(), Checksum(0xffff));
        assert_eq!(Checksum(1).for_udp(), Checksum(1));
    }
}
