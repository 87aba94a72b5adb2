//! Segments: read from a container's frame, and written for one.

use datapath::emit::{self, IpHeader};
use datapath::{Built, DropReason, Offload, Outbox, Packet};
use nat::{Protocol, TcpFlags, TransportAddr};
use smoltcp::wire::{TcpOption, TcpPacket};

use super::seq::Seq;

/// Octets of a TCP header without options.
pub(crate) const HEADER_LEN: usize = 20;

/// The window scale we offer (RFC 7323 §2.2): a window up to 8 MiB in units of 128 octets.
pub(crate) const WINDOW_SCALE: u8 = 7;

/// The MSS a sender without the option may assume (RFC 9293 §3.7.1): 536 in IPv4; 1,220 in IPv6.
const DEFAULT_MSS: [u16; 2] = [536, 1220];

/// What a segment's header says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: TcpFlags,
    /// As it stands in the header, not scaled.
    pub(crate) window: u16,
}

/// What a SYN's options say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SynOptions {
    pub(crate) mss: u16,
    /// `None` if the sender does not scale; then neither may we.
    pub(crate) window_scale: Option<u8>,
}

/// Takes a segment apart. The packet was parsed, so its header is whole.
pub(crate) fn read<'f>(
    packet: &Packet,
    frame: &'f [u8],
) -> Result<(Segment, &'f [u8]), DropReason> {
    let octets = packet.transport(frame);
    let tcp = TcpPacket::new_checked(octets).map_err(|_| DropReason::Malformed)?;
    let segment = Segment {
        seq: Seq(seq_bits(tcp.seq_number())),
        ack: Seq(seq_bits(tcp.ack_number())),
        flags: TcpFlags { syn: tcp.syn(), ack: tcp.ack(), fin: tcp.fin(), rst: tcp.rst() },
        window: tcp.window_len(),
    };
    let header_len = usize::from(tcp.header_len());
    Ok((segment, &octets[header_len..]))
}

#[expect(clippy::cast_sign_loss, reason = "smoltcp keeps the 32 bits in a signed integer")]
fn seq_bits(seq: smoltcp::wire::TcpSeqNumber) -> u32 {
    seq.0 as u32
}

/// Reads the options of a SYN; what is absent or malformed has its default.
pub(crate) fn syn_options(packet: &Packet, frame: &[u8]) -> SynOptions {
    let default = DEFAULT_MSS[usize::from(packet.dst.is_ipv6())];
    let mut found = SynOptions { mss: default, window_scale: None };
    let Ok(tcp) = TcpPacket::new_checked(packet.transport(frame)) else { return found };
    let mut options = tcp.options();
    while let Ok((rest, option)) = TcpOption::parse(options) {
        match option {
            TcpOption::EndOfList => break,
            TcpOption::MaxSegmentSize(mss) => found.mss = mss.max(64),
            // RFC 7323 §2.3: more than 14 counts as 14.
            TcpOption::WindowScale(scale) => found.window_scale = Some(scale.min(14)),
            _ => {}
        }
        if rest.len() == options.len() {
            break;
        }
        options = rest;
    }
    found
}

/// A segment to be written: who to whom, and the header's content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    pub(crate) from: TransportAddr,
    pub(crate) to: TransportAddr,
    pub(crate) segment: Segment,
    /// For a SYN: MSS and window scale to offer.
    pub(crate) options: Option<SynOptions>,
    pub(crate) push: bool,
}

impl Outgoing {
    fn ip_header(&self) -> IpHeader {
        IpHeader::new(self.from.addr, self.to.addr, Protocol::Tcp.number())
    }

    /// Where the payload of a segment without options begins in its frame.
    pub(crate) fn payload_offset(&self) -> usize {
        self.ip_header().transport() + HEADER_LEN
    }

    /// A segment without payload, checksum made.
    pub(crate) fn build(&self, out: &mut Outbox, own_mac: datapath::MacAddr) -> Built {
        let mut options = [0; 8];
        let options_len = self.options.map_or(0, |syn| write_options(&mut options, syn));
        let header = self.ip_header();
        let built = out.build(header.transport() + HEADER_LEN + options_len);
        let frame = out.frame_mut(built);
        header.emit(frame, own_mac);
        let octets = &mut frame[header.transport()..];
        self.write_header(octets, HEADER_LEN + options_len);
        octets[HEADER_LEN..].copy_from_slice(&options[..options_len]);
        emit::fill_checksum(&header, octets, 16);
        built
    }

    /// Writes the headers of a frame whose payload is there already, to be cut at `mss`.
    ///
    /// # Errors
    ///
    /// None that a frame of at most 65,535 octets of IP could meet.
    pub(crate) fn finish(
        &self,
        frame: &mut [u8],
        own_mac: datapath::MacAddr,
        mss: u16,
    ) -> Result<Offload, DropReason> {
        let header = self.ip_header();
        header.emit(frame, own_mac);
        self.write_header(&mut frame[header.transport()..], HEADER_LEN);
        Offload::for_tcp(frame, mss)
    }

    fn write_header(&self, octets: &mut [u8], header_len: usize) {
        octets[..HEADER_LEN].fill(0);
        let mut tcp = TcpPacket::new_unchecked(octets);
        tcp.set_src_port(self.from.port);
        tcp.set_dst_port(self.to.port);
        tcp.set_seq_number(wire(self.segment.seq));
        if self.segment.flags.ack {
            tcp.set_ack(true);
            tcp.set_ack_number(wire(self.segment.ack));
        }
        tcp.set_header_len(u8::try_from(header_len).expect("at most 28 octets"));
        tcp.set_syn(self.segment.flags.syn);
        tcp.set_fin(self.segment.flags.fin);
        tcp.set_rst(self.segment.flags.rst);
        tcp.set_psh(self.push);
        tcp.set_window_len(self.segment.window);
    }
}

#[expect(clippy::cast_possible_wrap, reason = "smoltcp keeps the 32 bits in a signed integer")]
const fn wire(seq: Seq) -> smoltcp::wire::TcpSeqNumber {
    smoltcp::wire::TcpSeqNumber(seq.0 as i32)
}

/// MSS, then (behind a no-operation, to stay aligned) the window scale.
fn write_options(octets: &mut [u8; 8], syn: SynOptions) -> usize {
    let mss = syn.mss.to_be_bytes();
    octets[..4].copy_from_slice(&[2, 4, mss[0], mss[1]]);
    match syn.window_scale {
        Some(scale) => {
            octets[4..].copy_from_slice(&[1, 3, 3, scale]);
            8
        }
        None => 4,
    }
}
