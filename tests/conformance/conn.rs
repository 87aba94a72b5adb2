//! One TCP connection, both of whose ends are made by hand.
//!
//! It holds for a NAT, which passes segments on, and for a relay, which speaks TCP to either end: each
//! end is served what it waits for.

use std::net::SocketAddr;

use crate::lab::Station;
use crate::packet::{ACK, FIN, PSH, Packet, RST, SYN, Segment};
use crate::{Verdict, ensure};

/// A maximum segment size of 1460: RFC 9293 3.7.1.
pub(crate) const MSS: [u8; 4] = [2, 4, 5, 0xb4];

/// One end's view.
#[derive(Debug)]
pub(crate) struct End<'s> {
    pub(crate) station: &'s Station,
    pub(crate) own: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// Next to be sent.
    pub(crate) seq: u32,
    /// Next expected.
    pub(crate) ack: u32,
}

#[derive(Debug)]
pub(crate) struct Conn<'s> {
    pub(crate) inside: End<'s>,
    /// Its peer is the subject's external address and port.
    pub(crate) outside: End<'s>,
}

impl End<'_> {
    pub(crate) fn send(&self, segment: &Segment) {
        self.station.wire.send(&Packet::tcp(self.own, self.peer, segment));
    }

    /// A segment in order.
    pub(crate) fn segment(&self, flags: u8) -> Segment {
        Segment::new(flags, self.seq, self.ack)
    }

    pub(crate) fn wait(
        &self,
        what: &str,
        wanted: impl Fn(&Segment) -> bool,
    ) -> Result<Segment, String> {
        let (own, peer) = (self.own, self.peer);
        let packet = self.station.wire.wait(what, |packet| {
            packet.from() == Some(peer)
                && packet.to() == Some(own)
                && packet.segment().is_some_and(|segment| wanted(&segment))
        })?;
        Ok(packet.segment().unwrap())
    }

    /// Waits for these octets in order, and acknowledges them.
    pub(crate) fn takes(&mut self, data: &[u8]) -> Verdict {
        let mut left = data;
        while !left.is_empty() {
            let next = self.ack;
            let segment = self.wait(&format!("octets at {next}"), |segment| {
                segment.seq == next && !segment.data.is_empty()
            })?;
            ensure!(left.starts_with(&segment.data), "other octets came: {segment:?}");
            left = &left[segment.data.len()..];
            self.ack = next.wrapping_add(u32::try_from(segment.data.len()).unwrap());
            self.send(&self.segment(ACK));
        }
        Ok(())
    }

    /// Waits for the other's end of its stream, and acknowledges it. Returns what that acknowledged.
    pub(crate) fn finishes(&mut self) -> Result<u32, String> {
        let next = self.ack;
        let fin = self.wait("FIN", |segment| segment.has(FIN) && segment.seq == next)?;
        self.ack = next.wrapping_add(1);
        self.send(&self.segment(ACK));
        Ok(fin.ack)
    }
}

/// Moves octets from one end to the other.
fn pass(from: &mut End<'_>, to: &mut End<'_>, data: &[u8]) -> Verdict {
    from.send(&from.segment(ACK | PSH).data(data));
    from.seq = from.seq.wrapping_add(u32::try_from(data.len()).unwrap());
    to.takes(data)?;
    let due = from.seq;
    from.wait("its acknowledgement", |segment| segment.has(ACK) && segment.ack == due)?;
    Ok(())
}

impl<'s> Conn<'s> {
    pub(crate) fn open(
        inside: &'s Station,
        from: SocketAddr,
        outside: &'s Station,
        to: SocketAddr,
    ) -> Result<Self, String> {
        Self::open_at(inside, from, outside, to, 1000)
    }

    /// With this for the inside's first sequence number, and as far from the usual one outside.
    pub(crate) fn open_at(
        inside: &'s Station,
        from: SocketAddr,
        outside: &'s Station,
        to: SocketAddr,
        seq: u32,
    ) -> Result<Self, String> {
        let mut near = End { station: inside, own: from, peer: to, seq, ack: 0 };
        let mut syn = near.segment(SYN);
        syn.options = MSS.to_vec();
        near.send(&syn);
        near.seq += 1;
        let first = outside.wait("a SYN", |packet| {
            packet.to() == Some(to)
                && packet.segment().is_some_and(|segment| segment.has(SYN) && !segment.has(ACK))
        })?;
        let ack = first.segment().unwrap().seq.wrapping_add(1);
        let peer = first.from().unwrap();
        let mut far = End { station: outside, own: to, peer, seq: 499_000 + seq, ack };
        let mut answer = far.segment(SYN | ACK);
        answer.options = MSS.to_vec();
        far.send(&answer);
        far.seq += 1;
        let answer = near.wait("SYN and ACK", |segment| segment.has(SYN | ACK))?;
        ensure!(answer.ack == near.seq, "it acknowledges {} for {}", answer.ack, near.seq);
        near.ack = answer.seq.wrapping_add(1);
        near.send(&near.segment(ACK));
        let due = far.seq;
        far.wait("the last of three", |segment| {
            segment.flags & (SYN | RST) == 0 && segment.ack == due
        })?;
        Ok(Self { inside: near, outside: far })
    }

    pub(crate) fn outwards(&mut self, data: &[u8]) -> Verdict {
        pass(&mut self.inside, &mut self.outside, data)
            .map_err(|error| format!("outwards: {error}"))
    }

    pub(crate) fn inwards(&mut self, data: &[u8]) -> Verdict {
        pass(&mut self.outside, &mut self.inside, data).map_err(|error| format!("inwards: {error}"))
    }

    /// Whether octets still go both ways.
    pub(crate) fn lives(&mut self) -> Verdict {
        self.outwards(b"still going out")?;
        self.inwards(b"still coming in")
    }
}
