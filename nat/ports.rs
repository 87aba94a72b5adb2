//! A set of port numbers, as small as what it holds.
//!
//! A short list in order while there are few, a bit for each of all 65,536 from then on. Read a word of 64 numbers at
//! a time by whoever looks for those that are not in it. How many there are is counted on the way: those below 1024
//! apart, as they are a range of their own (RFC 4787 REQ-3a).

use std::ops::RangeInclusive;

/// Numbers kept in a list; half as many turn bits into a list again, lest it go to and fro.
const FEW: usize = 64;

/// What is counted apart lies below.
const LOW: u16 = 1024;

/// Words of 64 bits for all numbers.
const WORDS: usize = 1 << 10;

/// A set of ports, or of ICMP identifiers.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    kept: Kept,
    low: usize,
    high: usize,
}

#[derive(Debug)]
enum Kept {
    List(Vec<u16>),
    Bits(Box<[u64; WORDS]>),
}

impl Default for Kept {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl Ports {
    /// Those of all these ranges.
    pub(crate) fn of(ranges: &[RangeInclusive<u16>]) -> Self {
        let mut ports = Self::default();
        ranges.iter().cloned().flatten().for_each(|port| ports.set(port));
        ports
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.low + self.high
    }

    /// How many of `range` there are, whose bounds are those of the counts.
    pub(crate) fn len_in(&self, range: &RangeInclusive<u16>) -> usize {
        let low = if *range.start() < LOW { self.low } else { 0 };
        let high = if *range.end() >= LOW { self.high } else { 0 };
        low + high
    }

    pub(crate) fn has(&self, port: u16) -> bool {
        match &self.kept {
            Kept::List(list) => list.binary_search(&port).is_ok(),
            Kept::Bits(bits) => bits[usize::from(port) / 64] >> (port % 64) & 1 == 1,
        }
    }

    /// Which of the 64 numbers from `64 * at` on are in it: a bit for each, the first the lowest.
    pub(crate) fn word(&self, at: u16) -> u64 {
        match &self.kept {
            Kept::List(list) => {
                let from = list.partition_point(|port| port / 64 < at);
                let of_word = list[from..].iter().take_while(|port| **port / 64 == at);
                of_word.fold(0, |word, port| word | 1 << (port % 64))
            }
            Kept::Bits(bits) => bits[usize::from(at)],
        }
    }

    pub(crate) fn set(&mut self, port: u16) {
        let fresh = match &mut self.kept {
            Kept::List(list) => match list.binary_search(&port) {
                Ok(_) => false,
                Err(place) => {
                    list.insert(place, port);
                    true
                }
            },
            Kept::Bits(bits) => {
                let word = &mut bits[usize::from(port) / 64];
                let fresh = *word >> (port % 64) & 1 == 0;
                *word |= 1 << (port % 64);
                fresh
            }
        };
        if fresh {
            *self.count(port) += 1;
        }
        if let Kept::List(list) = &self.kept
            && list.len() > FEW
        {
            let mut bits = Box::new([0; WORDS]);
            list.iter().for_each(|port| bits[usize::from(*port) / 64] |= 1 << (port % 64));
            self.kept = Kept::Bits(bits);
        }
    }

    pub(crate) fn clear(&mut self, port: u16) {
        if !self.has(port) {
            return;
        }
        *self.count(port) -= 1;
        match &mut self.kept {
            Kept::List(list) => list.retain(|held| *held != port),
            Kept::Bits(bits) => bits[usize::from(port) / 64] &= !(1 << (port % 64)),
        }
        if matches!(self.kept, Kept::Bits(_)) && self.len() <= FEW / 2 {
            let all = (0..=u16::MAX).filter(|port| self.has(*port));
            self.kept = Kept::List(all.collect());
        }
    }

    const fn count(&mut self, port: u16) -> &mut usize {
        if port < LOW { &mut self.low } else { &mut self.high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_and_bits_are_the_same_set() {
        let mut ports = Ports::default();
        let mut held = std::collections::BTreeSet::new();
        // Up and down over the bound between both, a third of the steps said twice.
        for step in 0..600_u32 {
            let port = u16::try_from(step * 7919 % 65_536).unwrap();
            ports.set(port);
            held.insert(port);
            if step % 3 == 0 {
                ports.set(port);
            }
            if step >= 100 {
                for gone in [step - 100, step - 100, (step - 100) / 2] {
                    let gone = u16::try_from(gone * 7919 % 65_536).unwrap();
                    ports.clear(gone);
                    held.remove(&gone);
                }
            }
            assert_eq!(ports.len(), held.len());
            for range in [0..=1023, 1024..=u16::MAX, 0..=u16::MAX] {
                assert_eq!(ports.len_in(&range), held.range(range).count());
            }
        }
        while let Some(gone) = held.pop_first() {
            for port in held.iter().chain([&gone]) {
                assert!(ports.has(*port) && ports.word(port / 64) >> (port % 64) & 1 == 1);
            }
            let words: u32 = (0..1024).map(|at| ports.word(at).count_ones()).sum();
            assert_eq!(words as usize, held.len() + 1);
            ports.clear(gone);
            assert!(!ports.has(gone));
        }
        assert!(matches!(ports.kept, Kept::List(_)));
        assert_eq!(Ports::of(&[0..=u16::MAX]).len(), 65_536);
    }
}
