//! IP packets built and read by hand; every checksum is pnet's, a codec of its own.
//!
//! [`Packet`] is the header's meaning and the transport's octets. What a probe wants wrong (a length, a
//! checksum, an overlap) it bends in [`Packet::octets`] or in `payload`, after it was built right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use pnet::packet::ip::IpNextHeaderProtocol;
use pnet::util;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMP6: u8 = 58;
/// IPv6's fragment header.
const FRAGMENT: u8 = 44;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// One IP packet or fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// Protocol of the payload; behind a fragment header, if there is one.
    pub(crate) protocol: u8,
    /// Time to live, or hop limit.
    pub(crate) ttl: u8,
    /// Type of service, or traffic class.
    pub(crate) tos: u8,
    /// Identification; of IPv6 only where there is a fragment header.
    pub(crate) id: u32,
    pub(crate) df: bool,
    pub(crate) more: bool,
    /// Where in the datagram the payload belongs, in octets.
    pub(crate) offset: usize,
    /// IPv4's options, padded to four octets.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// A TCP segment's header and data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

fn word(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

fn long(octets: &[u8], at: usize) -> u32 {
    u32::from(word(octets, at)) << 16 | u32::from(word(octets, at + 2))
}

/// The checksum over the octets and, where the protocol has one, the pseudo-header, as it must stand at
/// `skip` (in words).
pub(crate) fn checksum(src: IpAddr, dst: IpAddr, protocol: u8, octets: &[u8], skip: usize) -> u16 {
    let next = IpNextHeaderProtocol(protocol);
    match (src, dst) {
        _ if protocol == ICMP => util::checksum(octets, skip),
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            util::ipv4_checksum(octets, skip, &[], &src, &dst, next)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            util::ipv6_checksum(octets, skip, &[], &src, &dst, next)
        }
        _ => panic!("two families: {src} and {dst}"),
    }
}

/// Where a protocol's checksum stands, in words.
fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(8),
        UDP => Some(3),
        ICMP | ICMP6 => Some(1),
        _ => None,
    }
}

impl Packet {
    pub(crate) fn new(src: IpAddr, dst: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            src,
            dst,
            protocol,
            ttl: 64,
            tos: 0,
            id: 0,
            df: false,
            more: false,
            offset: 0,
            options: Vec::new(),
            payload,
        }
    }

    pub(crate) fn udp(src: SocketAddr, dst: SocketAddr, data: &[u8]) -> Self {
        let mut octets = Vec::with_capacity(8 + data.len());
        octets.extend(src.port().to_be_bytes());
        octets.extend(dst.port().to_be_bytes());
        octets.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
        octets.extend([0, 0]);
        octets.extend(data);
        let mut packet = Self::new(src.ip(), dst.ip(), UDP, octets);
        packet.seal();
        packet
    }

    pub(crate) fn tcp(src: SocketAddr, dst: SocketAddr, segment: &Segment) -> Self {
        assert_eq!(segment.options.len() % 4, 0);
        let mut octets = Vec::with_capacity(20 + segment.data.len());
        octets.extend(src.port().to_be_bytes());
        octets.extend(dst.port().to_be_bytes());
        octets.extend(segment.seq.to_be_bytes());
        octets.extend(segment.ack.to_be_bytes());
        octets.push(u8::try_from((20 + segment.options.len()) / 4 * 16).unwrap());
        octets.push(segment.flags);
        octets.extend(segment.window.to_be_bytes());
        octets.extend([0, 0]);
        octets.extend(segment.urgent.to_be_bytes());
        octets.extend(&segment.options);
        octets.extend(&segment.data);
        let mut packet = Self::new(src.ip(), dst.ip(), TCP, octets);
        packet.seal();
        packet
    }

    /// An ICMP message of the addresses' family: type, code, the four octets behind the checksum, rest.
    pub(crate) fn icmp(
        src: IpAddr,
        dst: IpAddr,
        kind: u8,
        code: u8,
        rest: [u8; 4],
        data: &[u8],
    ) -> Self {
        let octets = [&[kind, code, 0, 0][..], &rest, data].concat();
        let protocol = if src.is_ipv4() { ICMP } else { ICMP6 };
        let mut packet = Self::new(src, dst, protocol, octets);
        packet.seal();
        packet
    }

    /// An echo request, or the answer to one.
    pub(crate) fn echo(
        src: IpAddr,
        dst: IpAddr,
        request: bool,
        id: u16,
        seq: u16,
        data: &[u8],
    ) -> Self {
        let kind = match (src.is_ipv4(), request) {
            (true, true) => 8,
            (true, false) => 0,
            (false, true) => 128,
            (false, false) => 129,
        };
        let [a, b] = id.to_be_bytes();
        let [c, d] = seq.to_be_bytes();
        Self::icmp(src, dst, kind, 0, [a, b, c, d], data)
    }

    /// Writes the checksum that the payload must have.
    pub(crate) fn seal(&mut self) {
        let Some(at) = checksum_at(self.protocol) else { return };
        let mut sum = checksum(self.src, self.dst, self.protocol, &self.payload, at);
        if self.protocol == UDP && sum == 0 {
            sum = 0xffff;
        }
        self.payload[2 * at..2 * at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// Whether the transport's checksum is right; a fragment's cannot be told.
    fn is_sealed(&self) -> bool {
        if self.more || self.offset > 0 {
            return true;
        }
        let Some(at) = checksum_at(self.protocol) else { return true };
        if self.payload.len() < 2 * at + 2 {
            return false;
        }
        let found = word(&self.payload, 2 * at);
        if self.protocol == UDP && found == 0 {
            return self.src.is_ipv4();
        }
        let due = checksum(self.src, self.dst, self.protocol, &self.payload, at);
        // Both are zero (RFC 1071 §2), and a kernel writes the latter for any protocol.
        found == due || due == 0 && found == 0xffff
    }

    pub(crate) fn octets(&self) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.octets4(src, dst),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.octets6(src, dst),
            _ => panic!("two families: {self:?}"),
        }
    }

    fn octets4(&self, src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut octets = vec![u8::try_from(0x40 + header_len / 4).unwrap(), self.tos];
        octets.extend(u16::try_from(header_len + self.payload.len()).unwrap().to_be_bytes());
        octets.extend(u16::try_from(self.id).unwrap().to_be_bytes());
        let flags = u16::from(self.df) << 14 | u16::from(self.more) << 13;
        octets.extend((flags | u16::try_from(self.offset / 8).unwrap()).to_be_bytes());
        octets.extend([self.ttl, self.protocol, 0, 0]);
        octets.extend(src.octets());
        octets.extend(dst.octets());
        octets.extend(&self.options);
        let sum = util::checksum(&octets, 5).to_be_bytes();
        octets[10..12].copy_from_slice(&sum);
        octets.extend(&self.payload);
        octets
    }

    fn octets6(&self, src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
        let piece = self.more || self.offset > 0 || self.id > 0;
        let mut octets = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        let len = self.payload.len() + if piece { 8 } else { 0 };
        octets.extend(u16::try_from(len).unwrap().to_be_bytes());
        octets.extend([if piece { FRAGMENT } else { self.protocol }, self.ttl]);
        octets.extend(src.octets());
        octets.extend(dst.octets());
        if piece {
            octets.extend([self.protocol, 0]);
            octets
                .extend((u16::try_from(self.offset).unwrap() | u16::from(self.more)).to_be_bytes());
            octets.extend(self.id.to_be_bytes());
        }
        octets.extend(&self.payload);
        octets
    }

    /// Reads a packet whose lengths and checksums are as they must be.
    pub(crate) fn read(octets: &[u8]) -> Result<Self, String> {
        let packet = Self::read_header(octets)?;
        if packet.is_sealed() {
            return Ok(packet);
        }
        Err(format!("wrong transport checksum: {packet:?}"))
    }

    /// Reads what an ICMP error quotes, of which the end may be missing.
    pub(crate) fn read_quoted(octets: &[u8]) -> Result<Self, String> {
        let mut whole = octets.to_vec();
        let said = match octets.first().map(|first| first >> 4) {
            Some(4) if octets.len() >= 20 => usize::from(word(octets, 2)),
            Some(6) if octets.len() >= 40 => 40 + usize::from(word(octets, 4)),
            _ => return Err(format!("quotes no header: {octets:02x?}")),
        };
        let header_len = if octets[0] >> 4 == 4 { usize::from(octets[0] & 15) * 4 } else { 40 };
        if octets.len() < header_len + 8 {
            return Err(format!("quotes {} octets only", octets.len()));
        }
        whole.resize(said.max(whole.len()), 0);
        let mut packet = Self::read_header(&whole)?;
        let lost = said.saturating_sub(octets.len());
        packet.payload.truncate(packet.payload.len().saturating_sub(lost));
        Ok(packet)
    }

    fn read_header(octets: &[u8]) -> Result<Self, String> {
        match octets.first().map(|first| first >> 4) {
            Some(4) if octets.len() >= 20 => {
                let header_len = usize::from(octets[0] & 15) * 4;
                let total = usize::from(word(octets, 2));
                if header_len < 20 || total < header_len || total > octets.len() {
                    return Err(format!("wrong length: {octets:02x?}"));
                }
                if util::checksum(&octets[..header_len], 5) != word(octets, 10) {
                    return Err(format!("wrong header checksum: {:02x?}", &octets[..header_len]));
                }
                let four = |at: usize| <[u8; 4]>::try_from(&octets[at..at + 4]).unwrap();
                let fragment = word(octets, 6);
                let mut packet = Self::new(
                    Ipv4Addr::from(four(12)).into(),
                    Ipv4Addr::from(four(16)).into(),
                    octets[9],
                    octets[header_len..total].to_vec(),
                );
                packet.ttl = octets[8];
                packet.tos = octets[1];
                packet.id = u32::from(word(octets, 4));
                packet.df = fragment & 0x4000 != 0;
                packet.more = fragment & 0x2000 != 0;
                packet.offset = usize::from(fragment & 0x1fff) * 8;
                packet.options = octets[20..header_len].to_vec();
                Ok(packet)
            }
            Some(6) if octets.len() >= 40 => {
                let end = 40 + usize::from(word(octets, 4));
                let body = octets.get(40..end).ok_or_else(|| format!("cut: {octets:02x?}"))?;
                let sixteen = |at: usize| <[u8; 16]>::try_from(&octets[at..at + 16]).unwrap();
                let mut packet = Self::new(
                    Ipv6Addr::from(sixteen(8)).into(),
                    Ipv6Addr::from(sixteen(24)).into(),
                    octets[6],
                    body.to_vec(),
                );
                packet.ttl = octets[7];
                packet.tos = octets[0] << 4 | octets[1] >> 4;
                // No router cuts IPv6: RFC 8200 5.
                packet.df = true;
                if packet.protocol == FRAGMENT && body.len() >= 8 {
                    packet.protocol = body[0];
                    packet.offset = usize::from(word(body, 2) & 0xfff8);
                    packet.more = body[3] & 1 != 0;
                    packet.id = long(body, 4);
                    packet.payload = body[8..].to_vec();
                }
                Ok(packet)
            }
            _ => Err(format!("no IP: {octets:02x?}")),
        }
    }

    /// The port it comes from, if it is TCP or UDP and a first piece.
    pub(crate) fn from(&self) -> Option<SocketAddr> {
        self.port(0).map(|port| SocketAddr::new(self.src, port))
    }

    /// The port it goes to.
    pub(crate) fn to(&self) -> Option<SocketAddr> {
        self.port(2).map(|port| SocketAddr::new(self.dst, port))
    }

    fn port(&self, at: usize) -> Option<u16> {
        let has = matches!(self.protocol, TCP | UDP) && self.offset == 0 && self.payload.len() >= 4;
        has.then(|| word(&self.payload, at))
    }

    /// A datagram's data.
    pub(crate) fn datagram(&self) -> Option<&[u8]> {
        (self.protocol == UDP && self.offset == 0).then(|| self.payload.get(8..)).flatten()
    }

    pub(crate) fn segment(&self) -> Option<Segment> {
        if self.protocol != TCP || self.offset > 0 || self.payload.len() < 20 {
            return None;
        }
        let octets = &self.payload[..];
        let header_len = usize::from(octets[12] >> 4) * 4;
        Some(Segment {
            seq: long(octets, 4),
            ack: long(octets, 8),
            flags: octets[13],
            window: word(octets, 14),
            urgent: word(octets, 18),
            options: octets.get(20..header_len)?.to_vec(),
            data: octets[header_len..].to_vec(),
        })
    }

    /// Type and code, if it is ICMP.
    pub(crate) fn icmp_kind(&self) -> Option<(u8, u8)> {
        let has = matches!(self.protocol, ICMP | ICMP6) && self.offset == 0;
        has.then(|| (self.payload[0], self.payload[1]))
    }

    /// Identifier, sequence number and data of an echo message.
    pub(crate) fn echo_parts(&self) -> Option<(u16, u16, &[u8])> {
        let echo = matches!(self.icmp_kind()?, (0 | 8 | 128 | 129, 0));
        echo.then(|| (word(&self.payload, 4), word(&self.payload, 6), &self.payload[8..]))
    }

    /// Whether it is an ICMP error rather than a question or an answer.
    pub(crate) fn is_error(&self) -> bool {
        matches!(
            (self.protocol, self.icmp_kind()),
            (ICMP, Some((3 | 4 | 5 | 11 | 12, _))) | (ICMP6, Some((0..128, _)))
        )
    }

    /// What an ICMP error quotes.
    pub(crate) fn quoted(&self) -> Result<Self, String> {
        if !self.is_error() || self.payload.len() < 8 {
            return Err(format!("no ICMP error: {self:?}"));
        }
        Self::read_quoted(&self.payload[8..])
    }

    /// Cuts it so that each piece has at most `room` octets of payload, a multiple of eight.
    pub(crate) fn pieces(&self, room: usize, id: u32) -> Vec<Self> {
        assert!(room.is_multiple_of(8) && self.offset == 0 && !self.more);
        let last = self.payload.len().saturating_sub(1) / room;
        let piece = |(n, data): (usize, &[u8])| Self {
            id,
            df: false,
            more: n < last,
            offset: n * room,
            payload: data.to_vec(),
            ..self.clone()
        };
        self.payload.chunks(room).enumerate().map(piece).collect()
    }
}

impl Segment {
    pub(crate) fn new(flags: u8, seq: u32, ack: u32) -> Self {
        Self { seq, ack, flags, window: 65_000, ..Self::default() }
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    pub(crate) fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}
