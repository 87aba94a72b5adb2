//! Segments: read from a container's frame, and written for one.

use datapath::emit::{self, IpHeader};
use datapath::{Built, DropReason, Offload, Outbox, Packet};
use nat::{Protocol, TcpFlags, TransportAddr};
use smoltcp::wire::{TcpOption, TcpPacket};

use super::ahead::{Block, MAX_BLOCKS};
use super::seq::Seq;

/// Octets of a TCP header without options.
pub(crate) const HEADER_LEN: usize = 20;

/// The window scale we offer (RFC 7323 §2.2): a window up to 8 MiB in units of 128 octets.
pub(crate) const WINDOW_SCALE: u8 = 7;

/// Octets of the longest options we write.
const MAX_OPTIONS_LEN: usize = 4 + 8 * MAX_BLOCKS;

/// The MSS a sender without the option may assume (RFC 9293 §3.7.1): 536 in IPv4; 1,220 in IPv6.
const DEFAULT_MSS: [u16; 2] = [536, 1220];

/// Blocks a SACK option can hold (RFC 2018 §3).
pub(crate) const MAX_SACKS: usize = 4;

/// What a segment's header says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Segment {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: TcpFlags,
    /// As it stands in the header, not scaled.
    pub(crate) window: u16,
    /// What its sender has beyond a gap.
    pub(crate) sacks: [Option<Block>; MAX_SACKS],
    /// Where urgent octets end, counted from `seq` (RFC 9293 §3.1).
    pub(crate) urgent: Option<u16>,
}

impl Segment {
    /// Sequence number behind a segment of so many octets of payload.
    pub(crate) fn end(&self, payload: usize) -> Seq {
        let payload = u32::try_from(payload).unwrap_or(0);
        self.seq + payload + u32::from(self.flags.syn) + u32::from(self.flags.fin)
    }
}

/// What a SYN's options say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SynOptions {
    pub(crate) mss: u16,
    /// `None` if the sender does not scale; then neither may we.
    pub(crate) window_scale: Option<u8>,
    /// Whether selective acknowledgments may be sent to it (RFC 2018 §2).
    pub(crate) sack: bool,
}

/// Takes a segment apart. The packet was parsed, so its header is whole.
pub(crate) fn read<'f>(
    packet: &Packet,
    frame: &'f [u8],
) -> Result<(Segment, &'f [u8]), DropReason> {
    let octets = packet.transport(frame);
    let tcp = TcpPacket::new_checked(octets).map_err(|_| DropReason::Malformed)?;
    let header_len = usize::from(tcp.header_len());
    let segment = Segment {
        seq: Seq(seq_bits(tcp.seq_number())),
        ack: Seq(seq_bits(tcp.ack_number())),
        flags: TcpFlags { syn: tcp.syn(), ack: tcp.ack(), fin: tcp.fin(), rst: tcp.rst() },
        window: tcp.window_len(),
        sacks: sacks(&octets[HEADER_LEN..header_len]),
        urgent: tcp.urg().then(|| tcp.urgent_at()),
    };
    Ok((segment, &octets[header_len..]))
}

/// The blocks of the SACK option, if there is one: only no-operations stand before it in practice, and
/// nothing is lost but speed where that is not so.
fn sacks(mut options: &[u8]) -> [Option<Block>; MAX_SACKS] {
    let mut blocks = [None; MAX_SACKS];
    loop {
        options = match options {
            [1, rest @ ..] => rest,
            [5, len, rest @ ..] => {
                let len = usize::from(*len).saturating_sub(2).min(rest.len());
                let edges = rest[..len].chunks_exact(8).map(|edges| {
                    let (start, end) = edges.split_at(4);
                    let edge =
                        |octets: &[u8]| octets.first_chunk().copied().map_or(0, u32::from_be_bytes);
                    (Seq(edge(start)), Seq(edge(end)))
                });
                for (block, found) in blocks.iter_mut().zip(edges) {
                    *block = Some(found);
                }
                return blocks;
            }
            // Any other but the end of the list says how long it is.
            [kind, len, ..] if *kind > 1 && *len > 1 => {
                options.get(usize::from(*len)..).unwrap_or_default()
            }
            _ => return blocks,
        };
    }
}

#[expect(clippy::cast_sign_loss, reason = "smoltcp keeps the 32 bits in a signed integer")]
fn seq_bits(seq: smoltcp::wire::TcpSeqNumber) -> u32 {
    seq.0 as u32
}

/// Reads the options of a SYN; what is absent or malformed has its default.
pub(crate) fn syn_options(packet: &Packet, frame: &[u8]) -> SynOptions {
    let default = DEFAULT_MSS[usize::from(packet.dst.is_ipv6())];
    let mut found = SynOptions { mss: default, window_scale: None, sack: false };
    let Ok(tcp) = TcpPacket::new_checked(packet.transport(frame)) else { return found };
    let mut options = tcp.options();
    while let Ok((rest, option)) = TcpOption::parse(options) {
        match option {
            TcpOption::EndOfList => break,
            TcpOption::MaxSegmentSize(mss) => found.mss = mss.max(64),
            TcpOption::SackPermitted => found.sack = true,
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
    /// For a SYN: what to offer.
    pub(crate) options: Option<SynOptions>,
    /// What was received beyond a gap.
    pub(crate) blocks: [Option<Block>; MAX_BLOCKS],
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
        let mut options = [0; MAX_OPTIONS_LEN];
        let options_len = match self.options {
            Some(syn) => write_syn_options(&mut options, syn),
            None => write_blocks(&mut options, &self.blocks),
        };
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
        tcp.set_header_len(u8::try_from(header_len).expect("at most 48 octets"));
        tcp.set_syn(self.segment.flags.syn);
        tcp.set_fin(self.segment.flags.fin);
        tcp.set_rst(self.segment.flags.rst);
        tcp.set_psh(self.push);
        tcp.set_window_len(self.segment.window);
        if let Some(pointer) = self.segment.urgent {
            tcp.set_urg(true);
            tcp.set_urgent_at(pointer);
        }
    }
}

#[expect(clippy::cast_possible_wrap, reason = "smoltcp keeps the 32 bits in a signed integer")]
const fn wire(seq: Seq) -> smoltcp::wire::TcpSeqNumber {
    smoltcp::wire::TcpSeqNumber(seq.0 as i32)
}

/// MSS, then whether SACK is understood and the window scale, behind no-operations to stay aligned.
fn write_syn_options(octets: &mut [u8; MAX_OPTIONS_LEN], syn: SynOptions) -> usize {
    let mss = syn.mss.to_be_bytes();
    let mut len = 4;
    octets[..len].copy_from_slice(&[2, 4, mss[0], mss[1]]);
    if syn.sack {
        octets[len..len + 4].copy_from_slice(&[1, 1, 4, 2]);
        len += 4;
    }
    if let Some(scale) = syn.window_scale {
        octets[len..len + 4].copy_from_slice(&[1, 3, 3, scale]);
        len += 4;
    }
    len
}

/// A SACK option behind two no-operations (RFC 2018 §3).
fn write_blocks(octets: &mut [u8; MAX_OPTIONS_LEN], blocks: &[Option<Block>; MAX_BLOCKS]) -> usize {
    let mut len = 4;
    for (start, end) in blocks.iter().flatten() {
        octets[len..len + 4].copy_from_slice(&start.0.to_be_bytes());
        octets[len + 4..len + 8].copy_from_slice(&end.0.to_be_bytes());
        len += 8;
    }
    if len == 4 {
        return 0;
    }
    octets[..4].copy_from_slice(&[1, 1, 5, u8::try_from(len - 2).expect("at most 26")]);
    len
}
