//! Packets, built and read with pnet.

use std::net::{IpAddr, SocketAddr};

use pnet::packet::icmp::{self, IcmpPacket};
use pnet::packet::icmpv6::{self, Icmpv6Packet};
use pnet::packet::ip::IpNextHeaderProtocol;
use pnet::packet::ipv4::{self, Ipv4Flags, Ipv4Packet, MutableIpv4Packet};
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use pnet::packet::tcp::{self, MutableTcpPacket, TcpPacket};
use pnet::packet::udp::{self, MutableUdpPacket, UdpPacket};

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const SYN_ACK: u8 = SYN | ACK;
pub(crate) const FIN_ACK: u8 = 0x01 | ACK;
pub(crate) const RST: u8 = 0x04;

/// Where something is sent from or to.
pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// An IP packet with that payload; an IPv4 one may be cut on its way.
pub(crate) fn ip(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut packet = vec![0; 20 + payload.len()];
            packet[20..].copy_from_slice(payload);
            let mut header = MutableIpv4Packet::new(&mut packet).unwrap();
            header.set_version(4);
            header.set_header_length(5);
            header.set_total_length(u16::try_from(20 + payload.len()).unwrap());
            header.set_identification(7);
            header.set_ttl(63);
            header.set_next_level_protocol(IpNextHeaderProtocol(protocol));
            header.set_source(src);
            header.set_destination(dst);
            sign_v4(&mut packet);
            packet
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut packet = vec![0; 40 + payload.len()];
            packet[40..].copy_from_slice(payload);
            let mut header = MutableIpv6Packet::new(&mut packet).unwrap();
            header.set_version(6);
            header.set_payload_length(u16::try_from(payload.len()).unwrap());
            header.set_next_header(IpNextHeaderProtocol(protocol));
            header.set_hop_limit(63);
            header.set_source(src);
            header.set_destination(dst);
            packet
        }
        _ => panic!("one family"),
    }
}

/// Makes an IPv4 header's checksum.
pub(crate) fn sign_v4(packet: &mut [u8]) {
    let mut header = MutableIpv4Packet::new(packet).unwrap();
    let checksum = ipv4::checksum(&header.to_immutable());
    header.set_checksum(checksum);
}

/// Forbids an IPv4 packet to be cut.
pub(crate) fn dont_fragment(mut packet: Vec<u8>) -> Vec<u8> {
    MutableIpv4Packet::new(&mut packet).unwrap().set_flags(Ipv4Flags::DontFragment);
    sign_v4(&mut packet);
    packet
}

pub(crate) fn udp(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (at(src), at(dst));
    let mut datagram = vec![0; 8 + payload.len()];
    datagram[8..].copy_from_slice(payload);
    let mut header = MutableUdpPacket::new(&mut datagram).unwrap();
    header.set_source(src.port());
    header.set_destination(dst.port());
    header.set_length(u16::try_from(8 + payload.len()).unwrap());
    let checksum = udp_checksum(&header.to_immutable(), src.ip(), dst.ip());
    header.set_checksum(checksum);
    ip(src.ip(), dst.ip(), 17, &datagram)
}

/// A TCP segment with a window of 64,000 octets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tcp {
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) payload: Vec<u8>,
    /// Padded to a multiple of four.
    pub(crate) options: Vec<u8>,
}

pub(crate) fn tcp(src: &str, dst: &str, segment: &Tcp) -> Vec<u8> {
    let (src, dst) = (at(src), at(dst));
    let header_len = 20 + segment.options.len();
    let mut octets = vec![0; header_len];
    octets[20..].copy_from_slice(&segment.options);
    octets.extend_from_slice(&segment.payload);
    octets[12] = u8::try_from(header_len / 4).unwrap() << 4;
    let mut header = MutableTcpPacket::new(&mut octets).unwrap();
    header.set_source(src.port());
    header.set_destination(dst.port());
    header.set_flags(segment.flags);
    header.set_sequence(segment.seq);
    header.set_acknowledgement(segment.ack);
    header.set_window(64_000);
    let checksum = tcp_checksum(&header.to_immutable(), src.ip(), dst.ip());
    header.set_checksum(checksum);
    ip(src.ip(), dst.ip(), 6, &octets)
}

/// A segment without payload.
pub(crate) fn control(src: &str, dst: &str, flags: u8, seq: u32, ack: u32) -> Vec<u8> {
    tcp(src, dst, &Tcp { flags, seq, ack, ..Tcp::default() })
}

/// An echo request, or its answer.
pub(crate) fn echo(src: &str, dst: &str, id: u16, answer: bool) -> Vec<u8> {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let kind = match (src.is_ipv6(), answer) {
        (false, false) => 8,
        (false, true) => 0,
        (true, false) => 128,
        (true, true) => 129,
    };
    icmp_message(src, dst, kind, 0, u32::from(id) << 16 | 1, b"how are you")
}

/// Who talks in [`talks`], whom to, and what the former is shown as, in both families.
#[allow(dead_code, reason = "for those that include this file")]
pub(crate) const TALKS: [[&str; 3]; 2] = [
    ["172.18.0.2:4000", "198.51.100.2:80", "203.0.113.1:4000"],
    ["[fd00:18::2]:4000", "[2001:db8:9::2]:80", "[2001:db8:1::1]:4000"],
];

/// What goes there and back within a connection (from sequence numbers 101 and 501 on), a datagram's exchange and
/// an echo's.
#[allow(dead_code, reason = "for those that include this file")]
pub(crate) fn talks([inside, far, shown]: [&str; 3]) -> [[Vec<u8>; 2]; 3] {
    let [own, peer, external] = [inside, far, shown].map(|end| at(end).ip().to_string());
    [
        [control(inside, far, ACK, 101, 501), control(far, shown, ACK, 501, 101)],
        [udp(inside, far, b"question"), udp(far, shown, b"answer")],
        [echo(&own, &peer, 7, false), echo(&peer, &external, 7, true)],
    ]
}

/// An ICMP error about `quoted`, of which at most 100 octets are quoted.
pub(crate) fn error(
    src: &str,
    dst: &str,
    (kind, code): (u8, u8),
    word: u32,
    quoted: &[u8],
) -> Vec<u8> {
    let quoted = &quoted[..quoted.len().min(100)];
    icmp_message(src.parse().unwrap(), dst.parse().unwrap(), kind, code, word, quoted)
}

pub(crate) fn icmp_message(
    src: IpAddr,
    dst: IpAddr,
    kind: u8,
    code: u8,
    word: u32,
    body: &[u8],
) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(&word.to_be_bytes());
    message.extend_from_slice(body);
    let checksum = icmp_checksum(&message, src, dst);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    ip(src, dst, if src.is_ipv6() { 58 } else { 1 }, &message)
}

/// What a packet says, its checksums verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// Behind the IP header.
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// Whether it goes from there to there.
    pub(crate) fn goes(&self, src: &str, dst: &str) {
        assert_eq!((self.src, self.dst), (at(src), at(dst)));
    }

    /// ICMP type and code.
    pub(crate) fn icmp(&self) -> (u8, u8) {
        (self.body[0], self.body[1])
    }

    /// ICMP identifier.
    pub(crate) fn id(&self) -> u16 {
        u16::from_be_bytes([self.body[4], self.body[5]])
    }

    /// The packet quoted in an ICMP error.
    pub(crate) fn quoted(&self) -> &[u8] {
        &self.body[8..]
    }
}

/// Reads a packet and verifies every checksum that is whole.
pub(crate) fn read(packet: &[u8]) -> Seen {
    read_quoted(packet, true)
}

/// Reads a packet that may end early.
pub(crate) fn read_quoted(packet: &[u8], whole: bool) -> Seen {
    let (src, dst, protocol, ttl, body): (IpAddr, IpAddr, u8, u8, &[u8]) = match packet[0] >> 4 {
        4 => {
            let header = Ipv4Packet::new(packet).unwrap();
            assert_eq!(header.get_checksum(), ipv4::checksum(&header), "IPv4 checksum");
            let begin = usize::from(header.get_header_length()) * 4;
            let end = usize::from(header.get_total_length());
            assert!(!whole || end == packet.len(), "{end} of {}", packet.len());
            (
                header.get_source().into(),
                header.get_destination().into(),
                header.get_next_level_protocol().0,
                header.get_ttl(),
                &packet[begin..],
            )
        }
        _ => {
            let header = Ipv6Packet::new(packet).unwrap();
            assert_eq!(header.get_version(), 6);
            assert!(!whole || usize::from(header.get_payload_length()) + 40 == packet.len());
            (
                header.get_source().into(),
                header.get_destination().into(),
                header.get_next_header().0,
                header.get_hop_limit(),
                &packet[40..],
            )
        }
    };
    let ports = match protocol {
        6 => {
            let segment = TcpPacket::new(body);
            if let (true, Some(segment)) = (whole, segment) {
                assert_eq!(segment.get_checksum(), tcp_checksum(&segment, src, dst), "TCP");
            }
            ports(body)
        }
        17 => {
            let datagram = UdpPacket::new(body).unwrap();
            if whole && !(src.is_ipv4() && datagram.get_checksum() == 0) {
                assert_eq!(datagram.get_checksum(), udp_checksum(&datagram, src, dst), "UDP");
            }
            ports(body)
        }
        132 => ports(body),
        1 | 58 => {
            if whole {
                let held = u16::from_be_bytes([body[2], body[3]]);
                assert_eq!(held, icmp_checksum(body, src, dst), "ICMP");
            }
            (0, 0)
        }
        _ => (0, 0),
    };
    Seen {
        src: SocketAddr::new(src, ports.0),
        dst: SocketAddr::new(dst, ports.1),
        protocol,
        ttl,
        body: body.to_vec(),
    }
}

fn ports(body: &[u8]) -> (u16, u16) {
    (u16::from_be_bytes([body[0], body[1]]), u16::from_be_bytes([body[2], body[3]]))
}

fn tcp_checksum(segment: &TcpPacket<'_>, src: IpAddr, dst: IpAddr) -> u16 {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => tcp::ipv4_checksum(segment, &src, &dst),
        (IpAddr::V6(src), IpAddr::V6(dst)) => tcp::ipv6_checksum(segment, &src, &dst),
        _ => panic!("one family"),
    }
}

fn udp_checksum(datagram: &UdpPacket<'_>, src: IpAddr, dst: IpAddr) -> u16 {
    let made = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => udp::ipv4_checksum(datagram, &src, &dst),
        (IpAddr::V6(src), IpAddr::V6(dst)) => udp::ipv6_checksum(datagram, &src, &dst),
        _ => panic!("one family"),
    };
    if made == 0 { 0xffff } else { made }
}

fn icmp_checksum(message: &[u8], src: IpAddr, dst: IpAddr) -> u16 {
    match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            icmpv6::checksum(&Icmpv6Packet::new(message).unwrap(), &src, &dst)
        }
        _ => icmp::checksum(&IcmpPacket::new(message).unwrap()),
    }
}
