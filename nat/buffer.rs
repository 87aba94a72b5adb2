//! Where a packet lies while it is rewritten: in place, wherever the caller has it.
//!
//! The hooks write into the caller's own octets, so that a packet is copied nowhere. Only another IP version
//! makes it longer or shorter (RFC 7915): 20 octets more at most, and it begins where it began.

/// A packet's octets, from its IP header's first on. What the caller keeps in front, such as a frame's header,
/// is not seen; octets behind the packet's own end, such as a short frame's padding, stay behind it.
pub trait Buffer {
    /// The packet.
    fn octets(&self) -> &[u8];

    /// The packet, to be rewritten.
    fn octets_mut(&mut self) -> &mut [u8];

    /// Makes the packet `len` octets long: those it has keep their places, those added may be anything.
    /// False, and nothing changed, if there is no such room: the packet is then refused.
    fn resize(&mut self, len: usize) -> bool;
}

impl Buffer for Vec<u8> {
    fn octets(&self) -> &[u8] {
        self
    }

    fn octets_mut(&mut self) -> &mut [u8] {
        self
    }

    fn resize(&mut self, len: usize) -> bool {
        self.resize(len, 0);
        true
    }
}

/// Moves what begins at `from` to `to`, with everything behind it; the packet ends that much later, or earlier.
pub(crate) fn shift<B: Buffer + ?Sized>(packet: &mut B, from: usize, to: usize) -> bool {
    let len = packet.octets().len();
    if to > from && !packet.resize(len + to - from) {
        return false;
    }
    packet.octets_mut().copy_within(from..len, to);
    to >= from || packet.resize(len - (from - to))
}
