//! Whose an outside port is.
//!
//! No outside port serves two inside ones at a time (RFC 4787 REQ-3, RFC 5382 REQ-7). Connections of one
//! inside port share an outside one whomever they lead to, which the kernel grants to whoever asks
//! (`SO_REUSEADDR`, ip(7)): so it is noted here who has it. A UDP port is no other container's for two
//! minutes after its last use (RFC 6888 REQ-8, which exempts TCP: its connections are known to be over).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use datapath::PortId;
use nat::{Protocol, Zone};
use smoltcp::time::Instant;

/// Seconds for which a UDP port is no other container's after its last use (RFC 6888 REQ-8).
const HOLD: u32 = 120;

/// A port number of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder(u64);

impl Holder {
    pub(crate) const fn new(zone: Zone, port: PortId, inside: u16) -> Self {
        Self((zone.0 as u64) << 32 | (port.0 as u64) << 16 | inside as u64)
    }

    /// Whether both are of one container.
    const fn is_beside(self, other: u64) -> bool {
        self.0 >> 16 == other >> 16
    }
}

/// Who holds each port of one protocol and family. Memory is had for 256 ports at the first use of one.
#[derive(Debug)]
pub(crate) struct Claims {
    parts: [OnceLock<Box<Part>>; PARTS],
    clock: AtomicU32,
    /// Seconds for which a port is no other container's after its last use.
    hold: u32,
}

/// Parts of a table, and the ports of each.
const PARTS: usize = 256;

#[derive(Debug)]
struct Part([Slot; PARTS]);

#[derive(Debug, Default)]
struct Slot {
    /// Holder (48 bits), and how many hold on by it (16).
    holder: AtomicU64,
    /// When it was last let go of, in seconds.
    released: AtomicU32,
}

impl Claims {
    /// Nobody holds any port of that protocol yet.
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self {
            parts: std::array::from_fn(|_| OnceLock::new()),
            clock: AtomicU32::new(0),
            hold: if protocol == Protocol::Udp { HOLD } else { 0 },
        }
    }

    /// Takes note of the time.
    pub(crate) fn tick(&self, now: Instant) {
        let seconds = u32::try_from(now.secs()).unwrap_or(u32::MAX);
        if self.clock.load(Relaxed) != seconds {
            self.clock.store(seconds, Relaxed);
        }
    }

    fn slot(&self, port: u16) -> &Slot {
        let [part, place] = port.to_be_bytes().map(usize::from);
        let part = self.parts[part]
            .get_or_init(|| Box::new(Part(std::array::from_fn(|_| Slot::default()))));
        &part.0[place]
    }

    /// Whether that holder has the port, or had it last.
    pub(crate) fn is_of(&self, port: u16, holder: Holder) -> bool {
        let [part, place] = port.to_be_bytes().map(usize::from);
        let slot = self.parts[part].get().map(|part| &part.0[place]);
        slot.is_some_and(|slot| slot.holder.load(Relaxed) >> 16 == holder.0)
    }

    /// Whether anybody has the port now.
    pub(crate) fn is_held(&self, port: u16) -> bool {
        let [part, place] = port.to_be_bytes().map(usize::from);
        let slot = self.parts[part].get().map(|part| &part.0[place]);
        slot.is_some_and(|slot| slot.holder.load(Relaxed) & 0xffff > 0)
    }

    /// Takes hold of a port, if it is nobody else's.
    pub(crate) fn claim(self: &Arc<Self>, port: u16, holder: Holder) -> Option<Claim> {
        let slot = self.slot(port);
        let mut word = slot.holder.load(Relaxed);
        loop {
            let (of, count) = (word >> 16, word & 0xffff);
            let next = if of == holder.0 {
                (count < 0xffff).then_some(word + 1)?
            } else {
                let since = self.clock.load(Relaxed).saturating_sub(slot.released.load(Relaxed));
                let free = of == 0 || holder.is_beside(of) || since >= self.hold;
                (count == 0 && free).then_some(holder.0 << 16 | 1)?
            };
            match slot.holder.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return Some(Claim { claims: Arc::clone(self), port }),
                Err(now) => word = now,
            }
        }
    }
}

/// Hold of a port. Dropping it lets go.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Arc<Claims>,
    port: u16,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let slot = self.claims.slot(self.port);
        slot.released.store(self.claims.clock.load(Relaxed), Relaxed);
        slot.holder.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Holder = Holder::new(Zone(1), PortId(1), 40_000);
    const BOB: Holder = Holder::new(Zone(1), PortId(2), 40_000);

    #[test]
    fn a_port_is_one_inside_ports_as_long_as_it_is_held() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let claims = Arc::new(Claims::new(protocol));
            let first = claims.claim(40_000, ALICE);
            let second = claims.claim(40_000, ALICE);
            assert!(first.is_some() && second.is_some());
            drop(first);
            claims.tick(Instant::from_secs(2000));
            assert!(claims.claim(40_000, BOB).is_none(), "one is left");
            assert!(claims.claim(40_000, Holder::new(Zone(1), PortId(1), 40_001)).is_none());
            assert!(claims.claim(40_001, BOB).is_some());
            drop(second);
            claims.tick(Instant::from_secs(4000));
            let taken = claims.claim(40_000, BOB);
            assert!(taken.is_some() && claims.is_of(40_000, BOB));
            assert!(claims.claim(40_000, ALICE).is_none());
        }
    }

    /// RFC 6888 REQ-8.
    #[test]
    fn a_udp_port_is_no_other_containers_for_two_minutes() {
        let claims = Arc::new(Claims::new(Protocol::Udp));
        claims.tick(Instant::from_secs(2000));
        drop(claims.claim(40_000, ALICE).unwrap());
        claims.tick(Instant::from_secs(2119));
        assert!(claims.claim(40_000, BOB).is_none());
        drop(claims.claim(40_000, Holder::new(Zone(1), PortId(1), 50_000)).unwrap());
        claims.tick(Instant::from_secs(2238));
        assert!(claims.claim(40_000, BOB).is_none());
        claims.tick(Instant::from_secs(2239));
        assert!(claims.claim(40_000, BOB).is_some());

        let claims = Arc::new(Claims::new(Protocol::Tcp));
        drop(claims.claim(40_000, ALICE).unwrap());
        assert!(claims.claim(40_000, BOB).is_some(), "a connection that is over is known to be");
    }
}
