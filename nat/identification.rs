//! IPv4 identifications: one of our own for each packet that may be cut on its way, and the one it had.
//!
//! Read RFC 6864 §4.1 and §5.3: containers behind one address must not use the same at a time, so who shows them with
//! it gives out new ones, in turn. RFC 5508 REQ-4: a packet quoted in an ICMP error is to read as its sender
//! wrote it. What a packet had is kept under what it was given, until that is given to another, which then is the one
//! an error must be about. Two octets for each of 65,536, from the first such packet on.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};

use crate::rewrite::renumber;

/// Identifications given, of one NAT.
#[derive(Debug)]
pub(crate) struct Identifications {
    next: AtomicU32,
    /// By what was given, what there was before.
    former: OnceLock<Box<[AtomicU16]>>,
}

impl Identifications {
    /// The first will be `first`.
    pub(crate) const fn new(first: u32) -> Self {
        Self { next: AtomicU32::new(first), former: OnceLock::new() }
    }

    /// Takes so many of them in a row, of 32 bits as IPv6 has them: the first.
    pub(crate) fn take(&self, packets: u16) -> u32 {
        self.next.fetch_add(packets.into(), Relaxed)
    }

    /// The same of 16 bits.
    #[expect(clippy::cast_possible_truncation, reason = "the low half of a counter counts, too")]
    pub(crate) fn take_short(&self, packets: u16) -> u16 {
        self.take(packets) as u16
    }

    /// Gives an IPv4 packet a new one, and returns what it had. If it is still to be cut into so many `packets`, those
    /// behind the first have what follows.
    pub(crate) fn give(&self, packet: &mut [u8], packets: u16) -> u16 {
        let given = self.take_short(packets);
        let had = renumber(packet, given);
        let former = self.former.get_or_init(|| (0..=u16::MAX).map(AtomicU16::new).collect());
        for nth in 0..packets {
            let at = usize::from(given.wrapping_add(nth));
            former[at].store(had.wrapping_add(nth), Relaxed);
        }
        had
    }

    /// What the packet had that was `given` this one; the same, if none was.
    pub(crate) fn before(&self, given: u16) -> u16 {
        self.former.get().map_or(given, |former| former[usize::from(given)].load(Relaxed))
    }
}
