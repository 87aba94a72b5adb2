//! The networks of one worker, segments of the world among them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::{Deref, DerefMut};

use datapath::{Datapath, Legs, Offloads, PortId};
use mio::Token;
use nat::Zone;

use crate::queue::Queue;

/// Marks the token of a port, where a relay key has its kind.
const PORT_KIND: u64 = 0x40;

/// One port's device, as one worker has it.
#[derive(Debug)]
pub(crate) struct PortQueue {
    pub(crate) queue: Queue,
    /// Read by this worker, not only written.
    pub(crate) polled: bool,
    /// In line for its next burst.
    pub(crate) queued: bool,
    pub(crate) dead: bool,
    /// It takes datagrams in runs, as far as is known.
    pub(crate) datagram_runs: bool,
}

impl PortQueue {
    pub(crate) fn new(queue: Queue, polled: bool) -> Self {
        let datagram_runs = queue.offloads() == Offloads::Header;
        Self { queue, polled, queued: false, dead: false, datagram_runs }
    }
}

/// One worker's view of a network, and its queues of the ports' devices.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) dp: Datapath,
    pub(crate) queues: Vec<Option<PortQueue>>,
}

impl Net {
    pub(crate) fn queue(&mut self, port: PortId) -> Option<&mut PortQueue> {
        self.queues.get_mut(port.index())?.as_mut()
    }
}

/// Networks by zone. One is looked up for every frame that is routed, so the hash is a cheap one: zones are
/// numbers of our own making.
#[derive(Debug, Default)]
pub(crate) struct Nets(HashMap<Zone, Net, BuildHasherDefault<ZoneHasher>>);

impl Deref for Nets {
    type Target = HashMap<Zone, Net, BuildHasherDefault<ZoneHasher>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Nets {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Legs for Nets {
    fn leg(&mut self, zone: Zone) -> Option<&mut Datapath> {
        self.get_mut(&zone).map(|net| &mut net.dp)
    }
}

/// Spreads 16 bits over 64 by one multiplication.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ZoneHasher(u64);

impl Hasher for ZoneHasher {
    fn finish(&self) -> u64 {
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn write(&mut self, octets: &[u8]) {
        octets.iter().for_each(|octet| self.0 = self.0 << 8 | u64::from(*octet));
    }

    fn write_u16(&mut self, number: u16) {
        self.0 = number.into();
    }
}

/// What poll calls a port by.
#[expect(clippy::cast_possible_truncation, reason = "64-bit targets only, as relay::Key asserts")]
pub(crate) const fn port_token(zone: Zone, port: PortId) -> Token {
    Token((PORT_KIND << 48 | (zone.0 as u64) << 16 | port.0 as u64) as usize)
}

/// The port of a token, if it is one's.
#[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
pub(crate) const fn port_of(token: Token) -> Option<(Zone, PortId)> {
    let word = token.0 as u64;
    if (word >> 48) & 0xff == PORT_KIND {
        Some((Zone((word >> 16) as u16), PortId(word as u16)))
    } else {
        None
    }
}
