//! The reset that answers a segment of no connection (RFC 9293 §3.5.2).

use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use crate::emit::{self, IpHeader};
use crate::outbox::{Built, Outbox};
use crate::packet::Packet;
use crate::port::MacAddr;

/// Builds the reset for `packet`, a whole TCP segment; none for a reset, which is never answered.
pub fn reset(out: &mut Outbox, src_mac: MacAddr, packet: &Packet, frame: &[u8]) -> Option<Built> {
    let segment = TcpPacket::new_checked(packet.transport(frame)).ok()?;
    if segment.rst() {
        return None;
    }
    let header = IpHeader::new(packet.dst, packet.src, packet.protocol.number());
    let built = out.build(header.transport() + 20);
    let answer = out.frame_mut(built);
    header.emit(answer, src_mac);
    let octets = &mut answer[header.transport()..];
    octets.fill(0);
    let mut tcp = TcpPacket::new_unchecked(&mut *octets);
    tcp.set_header_len(20);
    tcp.set_src_port(segment.dst_port());
    tcp.set_dst_port(segment.src_port());
    tcp.set_rst(true);
    if segment.ack() {
        tcp.set_seq_number(segment.ack_number());
    } else {
        // "SEQ=0, ACK=SEG.SEQ+SEG.LEN": acknowledging is what makes a SYN's sender believe it.
        let len = segment.payload().len() + usize::from(segment.syn()) + usize::from(segment.fin());
        tcp.set_seq_number(TcpSeqNumber(0));
        tcp.set_ack(true);
        tcp.set_ack_number(segment.seq_number() + len);
    }
    emit::fill_checksum(&header, octets, 16);
    Some(built)
}
