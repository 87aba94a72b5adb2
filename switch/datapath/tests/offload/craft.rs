//! Frames made and read by pnet, so that the code under test never grades itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath::offload::{Gso, Offload, PartialChecksum};
use pnet::packet::Packet;
use pnet::packet::ethernet::{EtherType, EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet::packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet::packet::ipv4::{Ipv4Packet, MutableIpv4Packet};
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet, RoutingPacket};
use pnet::packet::tcp::{MutableTcpPacket, TcpFlags, TcpPacket};
use pnet::packet::udp::{MutableUdpPacket, UdpPacket};
use pnet::packet::vlan::{MutableVlanPacket, VlanPacket};
use pnet::packet::{ipv4, tcp, udp};
use pnet::util::{self, MacAddr};

pub(crate) const SRC4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub(crate) const DST4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub(crate) const SRC6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
pub(crate) const DST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 9);
/// Where a packet with a routing header under way finally goes.
pub(crate) const FINAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 11);

/// An IPv6 extension header in front of the transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extension {
    HopByHop,
    Destination,
    /// A type 2 routing header (RFC 6275 §6.4) that still has [`FINAL6`] to visit.
    Routing,
    /// A fragment header of a packet that is whole (RFC 6946).
    AtomicFragment,
}

impl Extension {
    fn number(self) -> IpNextHeaderProtocol {
        match self {
            Self::HopByHop => IpNextHeaderProtocols::Hopopt,
            Self::Destination => IpNextHeaderProtocols::Ipv6Opts,
            Self::Routing => IpNextHeaderProtocols::Ipv6Route,
            Self::AtomicFragment => IpNextHeaderProtocols::Ipv6Frag,
        }
    }

    fn octets(self, next: IpNextHeaderProtocol) -> Vec<u8> {
        match self {
            // One PadN option fills the eight octets (RFC 8200 §4.2).
            Self::HopByHop | Self::Destination => vec![next.0, 0, 1, 4, 0, 0, 0, 0],
            Self::Routing => {
                let mut octets = vec![next.0, 2, 2, 1, 0, 0, 0, 0];
                octets.extend(FINAL6.octets());
                octets
            }
            // What is reserved is no length and no flag, and must not matter.
            Self::AtomicFragment => vec![next.0, 0xff, 0, 6, 0xde, 0xad, 0xbe, 0xef],
        }
    }
}

/// What a frame is to look like.
#[derive(Clone, Debug)]
pub(crate) struct Craft {
    pub(crate) vlan: bool,
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    /// IPv4 option words, all no-operation.
    pub(crate) ip_options: u8,
    pub(crate) extensions: Vec<Extension>,
    /// TCP option words, all no-operation.
    pub(crate) tcp_options: u8,
    pub(crate) identification: u16,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    pub(crate) urgent: u16,
    pub(crate) payload: Vec<u8>,
}

impl Craft {
    pub(crate) fn tcp4(payload: usize) -> Self {
        Self {
            vlan: false,
            v6: false,
            udp: false,
            ip_options: 0,
            extensions: Vec::new(),
            tcp_options: 0,
            identification: 0x1234,
            sequence: 0x0102_0304,
            flags: TcpFlags::ACK,
            urgent: 0,
            payload: pattern(payload, 1),
        }
    }

    pub(crate) fn tcp6(payload: usize) -> Self {
        Self { v6: true, ..Self::tcp4(payload) }
    }

    pub(crate) fn udp4(payload: usize) -> Self {
        Self { udp: true, ..Self::tcp4(payload) }
    }

    pub(crate) fn udp6(payload: usize) -> Self {
        Self { v6: true, ..Self::udp4(payload) }
    }

    /// Where the IP header begins.
    pub(crate) fn network(&self) -> usize {
        if self.vlan { 18 } else { 14 }
    }

    /// Where the transport header begins.
    pub(crate) fn transport(&self) -> usize {
        let extensions = self.extensions.iter().map(|e| e.octets(IpNextHeaderProtocols::Tcp).len());
        let ip = if self.v6 {
            40 + extensions.sum::<usize>()
        } else {
            20 + 4 * usize::from(self.ip_options)
        };
        self.network() + ip
    }

    /// Where the payload begins.
    pub(crate) fn body(&self) -> usize {
        self.transport() + if self.udp { 8 } else { 20 + 4 * usize::from(self.tcp_options) }
    }

    /// Shortens the payload to what the length field of the IP header can hold.
    pub(crate) fn clamp(&mut self) {
        let behind = if self.v6 { self.network() + 40 } else { self.network() };
        self.payload.truncate(65_535 - (self.body() - behind));
    }

    fn src(&self) -> IpAddr {
        if self.v6 { SRC6.into() } else { SRC4.into() }
    }

    /// The destination that counts for the pseudo-header.
    fn dst(&self) -> IpAddr {
        match (self.v6, self.extensions.contains(&Extension::Routing)) {
            (false, _) => DST4.into(),
            (true, false) => DST6.into(),
            (true, true) => FINAL6.into(),
        }
    }

    /// The frame with its checksums whole.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let len = self.body() + self.payload.len();
        let mut octets = vec![0; len];
        self.write_ethernet(&mut octets);
        let protocol =
            if self.udp { IpNextHeaderProtocols::Udp } else { IpNextHeaderProtocols::Tcp };
        if self.v6 {
            self.write_ipv6(&mut octets[self.network()..], protocol);
        } else {
            self.write_ipv4(&mut octets[self.network()..], protocol);
        }
        octets[self.body()..].copy_from_slice(&self.payload);
        if self.udp {
            self.write_udp(&mut octets[self.transport()..]);
        } else {
            self.write_tcp(&mut octets[self.transport()..]);
        }
        octets
    }

    /// The frame with its transport checksum left partial, and how to say so.
    pub(crate) fn partial(&self) -> (Vec<u8>, Offload) {
        let mut octets = self.frame();
        let (protocol, offset) = if self.udp {
            (IpNextHeaderProtocols::Udp, 6)
        } else {
            (IpNextHeaderProtocols::Tcp, 16)
        };
        // Over nothing but zeros, what pnet finishes is the pseudo-header.
        let zeros = vec![0; octets.len() - self.transport()];
        let sum = !checksum(&zeros, usize::MAX, self.src(), self.dst(), protocol);
        octets[self.transport() + offset..][..2].copy_from_slice(&sum.to_be_bytes());
        let offload = Offload {
            checksum: Some(PartialChecksum {
                start: u16_of(self.transport()),
                offset: u16_of(offset),
            }),
            gso: Gso::None,
            valid: false,
            header_len: u16_of(self.body()),
        };
        (octets, offload)
    }

    /// The frame as a container's kernel would hand it over, to be cut into `size` octets of
    /// payload.
    pub(crate) fn super_frame(&self, size: u16) -> (Vec<u8>, Offload) {
        let (octets, offload) = self.partial();
        let ecn = self.flags & TcpFlags::CWR != 0;
        let gso = match (self.udp, self.v6) {
            (true, _) => Gso::Udp { size },
            (false, false) => Gso::Tcp4 { size, ecn },
            (false, true) => Gso::Tcp6 { size, ecn },
        };
        (octets, Offload { gso, ..offload })
    }

    fn write_ethernet(&self, octets: &mut [u8]) {
        let inner = if self.v6 { EtherTypes::Ipv6 } else { EtherTypes::Ipv4 };
        let mut ethernet = MutableEthernetPacket::new(octets).unwrap();
        ethernet.set_destination(MacAddr::new(2, 0, 0, 0, 0, 2));
        ethernet.set_source(MacAddr::new(2, 0, 0, 0, 0, 1));
        ethernet.set_ethertype(if self.vlan { EtherTypes::Vlan } else { inner });
        if self.vlan {
            let mut vlan = MutableVlanPacket::new(&mut octets[14..]).unwrap();
            vlan.set_vlan_identifier(42);
            vlan.set_ethertype(inner);
        }
    }

    fn write_ipv4(&self, octets: &mut [u8], protocol: IpNextHeaderProtocol) {
        let len = u16_of(octets.len());
        octets[20..][..4 * usize::from(self.ip_options)].fill(1);
        let mut ip = MutableIpv4Packet::new(octets).unwrap();
        ip.set_version(4);
        ip.set_header_length(5 + self.ip_options);
        ip.set_total_length(len);
        ip.set_identification(self.identification);
        ip.set_flags(2);
        ip.set_ttl(64);
        ip.set_dscp(10);
        ip.set_ecn(2);
        ip.set_next_level_protocol(protocol);
        ip.set_source(SRC4);
        ip.set_destination(DST4);
        let sum = ipv4::checksum(&ip.to_immutable());
        ip.set_checksum(sum);
    }

    fn write_ipv6(&self, octets: &mut [u8], protocol: IpNextHeaderProtocol) {
        let len = u16_of(octets.len() - 40);
        let numbers = self.extensions.iter().map(|e| e.number()).chain([protocol]);
        let numbers: Vec<_> = numbers.collect();
        let mut at = 40;
        for (extension, next) in self.extensions.iter().zip(&numbers[1..]) {
            let header = extension.octets(*next);
            octets[at..at + header.len()].copy_from_slice(&header);
            at += header.len();
        }
        let mut ip = MutableIpv6Packet::new(octets).unwrap();
        ip.set_version(6);
        ip.set_traffic_class(0x2a);
        ip.set_flow_label(0x54321);
        ip.set_payload_length(len);
        ip.set_next_header(numbers[0]);
        ip.set_hop_limit(64);
        ip.set_source(SRC6);
        ip.set_destination(DST6);
    }

    fn write_tcp(&self, octets: &mut [u8]) {
        octets[20..][..4 * usize::from(self.tcp_options)].fill(1);
        let mut segment = MutableTcpPacket::new(octets).unwrap();
        segment.set_source(40_000);
        segment.set_destination(443);
        segment.set_sequence(self.sequence);
        segment.set_acknowledgement(0x0a0b_0c0d);
        segment.set_data_offset(5 + self.tcp_options);
        segment.set_flags(self.flags);
        segment.set_window(512);
        segment.set_urgent_ptr(self.urgent);
        let sum = checksum(segment.packet(), 8, self.src(), self.dst(), IpNextHeaderProtocols::Tcp);
        segment.set_checksum(sum);
    }

    fn write_udp(&self, octets: &mut [u8]) {
        let len = u16_of(octets.len());
        let mut datagram = MutableUdpPacket::new(octets).unwrap();
        datagram.set_source(40_000);
        datagram.set_destination(443);
        datagram.set_length(len);
        let sum =
            checksum(datagram.packet(), 3, self.src(), self.dst(), IpNextHeaderProtocols::Udp);
        datagram.set_checksum(if sum == 0 { 0xffff } else { sum });
    }
}

/// What pnet reads in one plain frame, once it has found every length and checksum right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) identification: u16,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    pub(crate) urgent: u16,
    /// The transport checksum.
    pub(crate) checksum: u16,
    pub(crate) payload: Vec<u8>,
    /// All headers, the fields that may differ between segments set to zero.
    pub(crate) headers: Vec<u8>,
}

/// Reads a plain frame and panics if a length or a checksum in it is wrong.
pub(crate) fn read(frame: &[u8]) -> Read {
    let ethernet = EthernetPacket::new(frame).expect("an Ethernet header");
    match ethernet.get_ethertype() {
        EtherTypes::Vlan => {
            let vlan = VlanPacket::new(ethernet.payload()).expect("a VLAN tag");
            read_packet(frame, 18, vlan.get_ethertype())
        }
        ethertype => read_packet(frame, 14, ethertype),
    }
}

fn read_packet(frame: &[u8], network: usize, ethertype: EtherType) -> Read {
    let octets = &frame[network..];
    let mut headers = frame.to_vec();
    if ethertype == EtherTypes::Ipv6 {
        let ip = Ipv6Packet::new(octets).expect("an IPv6 header");
        assert_eq!(usize::from(ip.get_payload_length()) + 40, octets.len(), "IPv6 payload length");
        let mut next = ip.get_next_header();
        let mut dst = ip.get_destination();
        let mut at = 40;
        loop {
            let header = &octets[at..];
            match next {
                IpNextHeaderProtocols::Hopopt | IpNextHeaderProtocols::Ipv6Opts => at += 8,
                IpNextHeaderProtocols::Ipv6Frag => at += 8,
                IpNextHeaderProtocols::Ipv6Route => {
                    let routing = RoutingPacket::new(header).expect("a routing header");
                    if routing.get_segments_left() > 0 {
                        dst = Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).unwrap());
                    }
                    at += 24;
                }
                _ => break,
            }
            next = IpNextHeaderProtocol(header[0]);
        }
        headers[network + 4..][..2].fill(0);
        read_transport(headers, network + at, next, ip.get_source().into(), dst.into())
    } else {
        assert_eq!(ethertype, EtherTypes::Ipv4);
        let ip = Ipv4Packet::new(octets).expect("an IPv4 header");
        assert_eq!(usize::from(ip.get_total_length()), octets.len(), "IPv4 total length");
        assert_eq!(ipv4::checksum(&ip), ip.get_checksum(), "IPv4 header checksum");
        let transport = network + 4 * usize::from(ip.get_header_length());
        let (src, dst) = (ip.get_source().into(), ip.get_destination().into());
        headers[network + 2..][..4].fill(0);
        headers[network + 10..][..2].fill(0);
        let read = read_transport(headers, transport, ip.get_next_level_protocol(), src, dst);
        Read { identification: ip.get_identification(), ..read }
    }
}

fn read_transport(
    mut octets: Vec<u8>,
    transport: usize,
    protocol: IpNextHeaderProtocol,
    src: IpAddr,
    dst: IpAddr,
) -> Read {
    let segment = &octets[transport..];
    if protocol == IpNextHeaderProtocols::Udp {
        let udp = UdpPacket::new(segment).expect("a UDP header");
        assert_eq!(usize::from(udp.get_length()), segment.len(), "UDP length");
        let sum = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => udp::ipv4_checksum(&udp, &src, &dst),
            (IpAddr::V6(src), IpAddr::V6(dst)) => udp::ipv6_checksum(&udp, &src, &dst),
            _ => unreachable!("one family"),
        };
        let sum = if sum == 0 { 0xffff } else { sum };
        assert_eq!(udp.get_checksum(), sum, "UDP checksum");
        let (payload, body) = (udp.payload().to_vec(), transport + 8);
        octets[transport + 4..][..4].fill(0);
        octets.truncate(body);
        let (identification, sequence, flags, urgent) = Default::default();
        Read { identification, sequence, flags, urgent, checksum: sum, payload, headers: octets }
    } else {
        assert_eq!(protocol, IpNextHeaderProtocols::Tcp);
        let tcp = TcpPacket::new(segment).expect("a TCP header");
        let sum = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => tcp::ipv4_checksum(&tcp, &src, &dst),
            (IpAddr::V6(src), IpAddr::V6(dst)) => tcp::ipv6_checksum(&tcp, &src, &dst),
            _ => unreachable!("one family"),
        };
        assert_eq!(tcp.get_checksum(), sum, "TCP checksum");
        let (sequence, flags, urgent) = (tcp.get_sequence(), tcp.get_flags(), tcp.get_urgent_ptr());
        let (payload, len) = (tcp.payload().to_vec(), 4 * usize::from(tcp.get_data_offset()));
        for field in [4..8, 13..14, 16..20] {
            octets[transport..][field].fill(0);
        }
        octets.truncate(transport + len);
        Read { identification: 0, sequence, flags, urgent, checksum: sum, payload, headers: octets }
    }
}

/// pnet's transport checksum, the word at `skip` taken as zero.
pub(crate) fn checksum(
    octets: &[u8],
    skip: usize,
    src: IpAddr,
    dst: IpAddr,
    protocol: IpNextHeaderProtocol,
) -> u16 {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            util::ipv4_checksum(octets, skip, &[], &src, &dst, protocol)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            util::ipv6_checksum(octets, skip, &[], &src, &dst, protocol)
        }
        _ => unreachable!("one family"),
    }
}

/// `len` octets that differ from their neighbours and between seeds.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

fn u16_of(len: usize) -> u16 {
    u16::try_from(len).expect("a length in a frame")
}
