//! Packets of one flow made one frame, for a device that cuts them again (USO, TSO).
//!
//! The price of a small frame is the system call that writes it, so a burst's run of equal packets of
//! one flow leaves as one frame: datagrams, which the receiving kernel cuts where a socket asks for
//! single ones (`udp_unexpected_gso`, `include/linux/udp.h`), and the segments of a port that knows no
//! segmentation offload. What is joined and cut again is what it was. The order within a flow is kept
//! because a run ends at the first frame that does not fit it, and nothing waits for more to come: a
//! run lies within one burst. The rules are those of `tcp_gro_receive` in `net/ipv4/tcp_offload.c`,
//! `udp_gro_receive_segment` in `udp_offload.c` and `inet_gro_receive` in `af_inet.c`; read them first.

use std::net::IpAddr;

use crate::checksum::{
    Checksum, PartialChecksum, PseudoSum, Sum, TCP_FIELD, UDP_FIELD, verify_ipv4_header,
    verify_transport,
};
use crate::offload::{Gso, MIN_TCP_SEGMENT, Offload};
use crate::port::ETHERNET_HEADER_LEN;

/// Packets of one run: half of what the newest kernels cut (`UDP_MAX_SEGMENTS` was 64 until 6.9), and
/// more segments of Ethernet's size than one frame holds.
pub const MAX_RUN: usize = 64;

/// Octets of the longest headers of a run: Ethernet, IPv6, and TCP with all of its options.
pub const MAX_HEADERS: usize = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN + 60;

/// Octets of IP in one run, below the 65,535 that a length field holds.
const MAX_OCTETS: usize = 65_000;

const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const UDP_HEADER_LEN: usize = 8;

/// TCP flags (RFC 9293 §3.1, RFC 3168 §6.1).
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// A run, as far as it has come.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    v4: bool,
    tcp: bool,
    /// Where the transport header begins in each frame.
    transport: usize,
    /// Where the payload begins in each frame.
    payload_at: usize,
    /// Payload octets of every packet but the last.
    size: usize,
    /// Payload octets of all.
    total: usize,
    count: usize,
    /// The last was shorter, or pushes: none may follow.
    closed: bool,
    /// The last one pushes.
    push: bool,
    /// Whether the first one's checksum is partial; a made one gives way to a partial one.
    partial: bool,
    /// Whether the first one's checksum need not be verified any more.
    trusted: bool,
}

impl Run {
    /// A run of the one packet in `frame`, if another can be joined to it: UDP, or TCP that only carries
    /// octets and acknowledges, without IP options, extension headers, fragmentation or a VLAN tag.
    ///
    /// Whether a checksum that was made is right is looked at when there is something to join.
    #[must_use]
    pub fn start(frame: &[u8], offload: &Offload) -> Option<Self> {
        Self::of(frame, offload).filter(|run| !run.closed)
    }

    fn of(frame: &[u8], offload: &Offload) -> Option<Self> {
        if offload.gso != Gso::None {
            return None;
        }
        let v4 = match (frame.get(12..14)?, frame.get(ETHERNET_HEADER_LEN)?) {
            ([0x08, 0x00], 0x45) => true,
            ([0x86, 0xdd], first) if first >> 4 == 6 => false,
            _ => return None,
        };
        let header_len = if v4 { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
        let transport = ETHERNET_HEADER_LEN + header_len;
        let (ip, segment) = frame[ETHERNET_HEADER_LEN..].split_at_checked(header_len)?;
        let protocol = match v4 {
            // Reserved bit, more fragments, offset: all zero; DF may be set.
            true if ip[6] & 0xbf != 0 || ip[7] != 0 => return None,
            true => ip[9],
            false => ip[6],
        };
        let len = if v4 { header_len + segment.len() } else { segment.len() };
        if usize::from(word(ip, if v4 { 2 } else { 4 })) != len {
            return None;
        }
        let tcp = protocol == TCP;
        let (field, behind, flags) = match protocol {
            TCP => {
                let flags = *segment.get(13)?;
                (TCP_FIELD, usize::from(segment[12] >> 4) * 4, flags)
            }
            UDP if usize::from(word(segment.get(..UDP_HEADER_LEN)?, 4)) == segment.len() => {
                (UDP_FIELD, UDP_HEADER_LEN, 0)
            }
            _ => return None,
        };
        let size = segment.len().checked_sub(behind)?;
        let plain = match tcp {
            true => behind >= 20 && flags & !(PSH | ECE | CWR) == ACK && size >= MIN_TCP_SEGMENT,
            // A checksum of zero was never made, and cutting would make one.
            false => size > 0 && (offload.checksum.is_some() || word(segment, 6) != 0),
        };
        let partial = PartialChecksum { start: u16::try_from(transport).ok()?, offset: field };
        let usual = offload.checksum.is_none_or(|checksum| checksum == partial);
        (plain && usual).then_some(Self {
            v4,
            tcp,
            transport,
            payload_at: transport + behind,
            size,
            total: size,
            count: 1,
            closed: flags & PSH != 0,
            push: flags & PSH != 0,
            partial: offload.checksum.is_some(),
            trusted: offload.checksum.is_some() || offload.valid,
        })
    }

    /// Takes in one more packet, if it is the next of this run, which `first` began: the same headers,
    /// and as long as the others or, as the last one, shorter.
    pub fn join(&mut self, first: &[u8], frame: &[u8], offload: &Offload) -> bool {
        let Some(next) = Self::of(frame, offload) else { return false };
        let fits = !self.closed
            && self.count < MAX_RUN
            && (next.v4, next.tcp, next.payload_at) == (self.v4, self.tcp, self.payload_at)
            && next.size <= self.size
            && self.payload_at + self.total + next.size <= MAX_OCTETS
            && self.continues(&first[..self.payload_at], &frame[..self.payload_at]);
        if !fits || !(self.trusted || verified(self, first)) {
            return false;
        }
        self.trusted = true;
        if !verified_header(self, frame) || !(next.trusted || verified(&next, frame)) {
            return false;
        }
        if self.count == 1 && !verified_header(self, first) {
            return false;
        }
        self.total += next.size;
        self.count += 1;
        self.push = next.push;
        self.closed = next.push || next.size < self.size;
        true
    }

    /// Whether headers are those of the packet that comes next in the run.
    fn continues(&self, first: &[u8], next: &[u8]) -> bool {
        let same = |from: usize, to: usize| first[from..to] == next[from..to];
        let ip = ETHERNET_HEADER_LEN;
        let network = match self.v4 {
            // Who cuts the run counts the identification up. Where no fragment can come of a packet it
            // means nothing (RFC 6864 §4.1).
            true => {
                let due = word(first, ip + 4).wrapping_add(low_word(self.count));
                let follows = first[ip + 6] & 0x40 != 0 || word(next, ip + 4) == due;
                follows && same(0, ip + 2) && same(ip + 6, ip + 10) && same(ip + 12, ip + 20)
            }
            false => same(0, ip + 4) && same(ip + 6, ip + 40),
        };
        let at = self.transport;
        if !network || !same(at, at + 4) {
            return false;
        }
        // Acknowledgement, window, urgent pointer and options are the same; CWR is the first one's.
        !self.tcp || {
            let due = long(first, at + 4).wrapping_add(low_long(self.total));
            let (was, is) = (first[at + 13], next[at + 13]);
            long(next, at + 4) == due
                && (was ^ is) & !(PSH | CWR) == 0
                && is & CWR == 0
                && same(at + 8, at + 13)
                && same(at + 14, at + 16)
                && same(at + 18, self.payload_at)
        }
    }

    /// Packets in it.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Whether it is of datagrams, which not every device can cut.
    #[must_use]
    pub const fn is_udp(&self) -> bool {
        !self.tcp
    }

    /// Where the payload of each frame begins: at most at [`MAX_HEADERS`].
    #[must_use]
    pub const fn payload_at(&self) -> usize {
        self.payload_at
    }

    /// Makes the headers of the first frame those of the whole run, and says how it is to be cut.
    pub fn finish(&self, first: &mut [u8], offload: Offload) -> Offload {
        let len = self.payload_at - self.transport + self.total;
        let lens = (u16::try_from(len), u16::try_from(self.size));
        let (Ok(len), Ok(size)) = lens else { return offload };
        let (ip, segment) = first[ETHERNET_HEADER_LEN..self.payload_at]
            .split_at_mut(self.transport - ETHERNET_HEADER_LEN);
        if self.v4 {
            let total_len = len + low_word(IPV4_HEADER_LEN);
            let checksum = Checksum(word(ip, 10)).replace(word(ip, 2), total_len);
            ip[2..4].copy_from_slice(&total_len.to_be_bytes());
            ip[10..12].copy_from_slice(&checksum.0.to_be_bytes());
        } else {
            ip[4..6].copy_from_slice(&len.to_be_bytes());
        }
        let (field, protocol) = if self.tcp { (TCP_FIELD, TCP) } else { (UDP_FIELD, UDP) };
        let field_at = usize::from(field);
        let alone = low_word(self.payload_at - self.transport + self.size);
        let sum = match self.partial {
            // A wrong one stays wrong.
            true => PseudoSum(word(segment, field_at)).replace(alone, len),
            false => {
                let (src, dst) = addresses(self.v4, ip);
                Sum::pseudo_header(src, dst, protocol, usize::from(len)).partial()
            }
        };
        segment[field_at..field_at + 2].copy_from_slice(&sum.0.to_be_bytes());
        let gso = if self.tcp {
            segment[13] |= if self.push { PSH } else { 0 };
            let ecn = segment[13] & CWR != 0;
            if self.v4 { Gso::Tcp4 { size, ecn } } else { Gso::Tcp6 { size, ecn } }
        } else {
            segment[4..6].copy_from_slice(&len.to_be_bytes());
            Gso::Udp { size }
        };
        let start = low_word(self.transport);
        Offload {
            checksum: Some(PartialChecksum { start, offset: field }),
            gso,
            valid: false,
            header_len: low_word(self.payload_at),
        }
    }
}

/// Whether the transport checksum of the frame `run` was made of is right.
fn verified(run: &Run, frame: &[u8]) -> bool {
    let (src, dst) = addresses(run.v4, &frame[ETHERNET_HEADER_LEN..run.transport]);
    let protocol = if run.tcp { TCP } else { UDP };
    verify_transport(src, dst, protocol, &frame[run.transport..]).is_ok()
}

/// Whether the IP header's checksum is right, where there is one.
fn verified_header(run: &Run, frame: &[u8]) -> bool {
    !run.v4 || verify_ipv4_header(&frame[ETHERNET_HEADER_LEN..run.transport]).is_ok()
}

/// Source and destination of an IP header.
fn addresses(v4: bool, ip: &[u8]) -> (IpAddr, IpAddr) {
    fn at<const N: usize>(ip: &[u8], from: usize) -> [u8; N] {
        *ip[from..].first_chunk().expect("the header is whole")
    }
    match v4 {
        true => (at::<4>(ip, 12).into(), at::<4>(ip, 16).into()),
        false => (at::<16>(ip, 8).into(), at::<16>(ip, 24).into()),
    }
}

fn word(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

fn long(octets: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}

/// A length or count within one run.
fn low_word(octets: usize) -> u16 {
    u16::try_from(octets).expect("a run is an IP packet")
}

/// The same as an offset in sequence numbers.
fn low_long(octets: usize) -> u32 {
    u32::try_from(octets).expect("a run is an IP packet")
}
