//! Segmentation in software, for an egress that takes plain frames only.
//!
//! Read `tcp_gso_segment` in `net/ipv4/tcp_offload.c`, `__udp_gso_segment` in `udp_offload.c`
//! beside it and `inet_gso_segment` in `af_inet.c`: what comes out here is what the kernel would
//! have put on the wire. The headers are copied once; per segment the payload follows them in the
//! scratch and the few fields that differ are written anew. A partial checksum's field is trusted
//! for the pseudo-header as the kernel does, so a wrong one stays wrong instead of being made to
//! look right.

use smoltcp::wire::{IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use crate::checksum::{PseudoSum, Sum};
use crate::drop::DropReason;
use crate::layout::Layout;
use crate::offload::{Gso, Offload};

/// Does what `offload` left undone on `frame` and hands each plain frame to `emit`, in order.
/// Returns how many there were: at least one.
///
/// A frame with nothing left undone is handed on as it is, and one whose payload fits a segment is
/// not cut but completed, without what lies behind its packet. `scratch` is overwritten; it grows to the longest frame it has met and
/// allocates no more.
///
/// # Errors
///
/// [`DropReason::BadOffload`] or [`DropReason::TooManySegments`] if the header does not fit the frame;
/// nothing was handed out then.
pub fn segment(
    frame: &[u8],
    offload: Offload,
    scratch: &mut Vec<u8>,
    emit: &mut dyn FnMut(&[u8]),
) -> Result<usize, DropReason> {
    let layout = offload.fit(frame)?;
    let mut frame = frame;
    if let (Some(size), Some(layout)) = (offload.gso.size(), layout) {
        let cutter = Cutter::new(frame, layout, offload).ok_or(DropReason::BadOffload)?;
        if cutter.payload().len() > usize::from(size) {
            return Ok(cutter.cut(usize::from(size), scratch, emit));
        }
        // Nobody has looked whether padding fits the next link: a frame to be cut is judged by its
        // segments.
        frame = &frame[..layout.end];
    }
    if offload.checksum.is_none() {
        emit(frame);
    } else {
        scratch.clear();
        scratch.extend_from_slice(frame);
        Offload { gso: Gso::None, header_len: 0, ..offload }.complete(scratch)?;
        emit(scratch);
    }
    Ok(1)
}

/// A frame that [`Offload::check`] found fit to be cut.
struct Cutter<'a> {
    frame: &'a [u8],
    layout: Layout,
    /// Where the payload begins.
    body: usize,
    /// The pseudo-header less its length, which differs per segment.
    pseudo_header: Sum,
}

impl<'a> Cutter<'a> {
    fn new(frame: &'a [u8], layout: Layout, offload: Offload) -> Option<Self> {
        let body = layout.transport + layout.transport_header_len(frame)?;
        let pseudo_header = match offload.checksum {
            Some(partial) => {
                let field = frame.get(partial.field()..)?.first_chunk::<2>()?;
                PseudoSum(u16::from_be_bytes(*field)).replace(word(layout.len()), 0).sum()
            }
            None => layout.pseudo_header(frame, 0),
        };
        Some(Self { frame, layout, body, pseudo_header })
    }

    /// What is to be cut, without the padding behind the packet.
    fn payload(&self) -> &'a [u8] {
        &self.frame[self.body..self.layout.end]
    }

    fn cut(&self, size: usize, scratch: &mut Vec<u8>, emit: &mut dyn FnMut(&[u8])) -> usize {
        let payload = self.payload();
        scratch.clear();
        scratch.extend_from_slice(&self.frame[..self.body]);
        let mut count = 0;
        for piece in payload.chunks(size) {
            let at = count * size;
            scratch.truncate(self.body);
            scratch.extend_from_slice(piece);
            self.write_network_header(scratch, count);
            match self.layout.protocol {
                IpProtocol::Udp => self.write_udp_header(scratch),
                _ => self.write_tcp_header(scratch, at, at + piece.len() == payload.len()),
            }
            emit(scratch);
            count += 1;
        }
        count
    }

    /// Lengths; in IPv4 also the identification, one more for each segment even under DF, and the
    /// checksum.
    fn write_network_header(&self, segment: &mut [u8], index: usize) {
        let packet = &mut segment[self.layout.network..];
        let len = packet.len();
        match self.layout.version {
            IpVersion::Ipv4 => {
                let first = Ipv4Packet::new_unchecked(&self.frame[self.layout.network..]).ident();
                let mut packet = Ipv4Packet::new_unchecked(packet);
                packet.set_total_len(word(len));
                packet.set_ident(first.wrapping_add(word(index)));
                packet.fill_checksum();
            }
            IpVersion::Ipv6 => {
                let mut packet = Ipv6Packet::new_unchecked(packet);
                let payload_len = len - packet.header_len();
                packet.set_payload_len(word(payload_len));
            }
        }
    }

    /// Sequence number; FIN and PSH on the last segment only, CWR on the first only, URG only as
    /// far as there is urgent data ahead.
    fn write_tcp_header(&self, segment: &mut [u8], at: usize, last: bool) {
        let whole = TcpPacket::new_unchecked(&self.frame[self.layout.transport..]);
        let mut tcp = TcpPacket::new_unchecked(&mut segment[self.layout.transport..]);
        tcp.set_seq_number(whole.seq_number() + at);
        tcp.set_fin(whole.fin() && last);
        tcp.set_psh(whole.psh() && last);
        tcp.set_cwr(whole.cwr() && at == 0);
        if whole.urg() {
            // Counted from each segment's own sequence number (RFC 9293 §3.1).
            let urgent = usize::from(whole.urgent_at()).saturating_sub(at);
            tcp.set_urg(urgent > 0 || at == 0);
            tcp.set_urgent_at(word(urgent));
        }
        tcp.set_checksum(0);
        let checksum = self.transport_sum(segment).checksum();
        let mut tcp = TcpPacket::new_unchecked(&mut segment[self.layout.transport..]);
        tcp.set_checksum(checksum.0);
    }

    /// Length of each datagram, and a checksum that is never zero.
    fn write_udp_header(&self, segment: &mut [u8]) {
        let octets = &mut segment[self.layout.transport..];
        let len = word(octets.len());
        let mut udp = UdpPacket::new_unchecked(octets);
        udp.set_len(len);
        udp.set_checksum(0);
        let checksum = self.transport_sum(segment).checksum().for_udp();
        UdpPacket::new_unchecked(&mut segment[self.layout.transport..]).set_checksum(checksum.0);
    }

    /// All that a segment's transport checksum covers.
    fn transport_sum(&self, segment: &[u8]) -> Sum {
        let octets = &segment[self.layout.transport..];
        self.pseudo_header.and(Sum::word(word(octets.len()))).and(Sum::of(octets))
    }
}

/// A length or count within the packet that is being cut.
fn word(octets: usize) -> u16 {
    u16::try_from(octets).expect("no part of an IP packet is longer than its 16-bit length")
}
