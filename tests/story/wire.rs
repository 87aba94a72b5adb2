//! Frames made and read by pnet, the second codec, so that the code under test never grades itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet::packet::Packet as _;
use pnet::packet::arp::{ArpHardwareTypes, ArpOperation, ArpPacket, MutableArpPacket};
use pnet::packet::ethernet::{EtherType, EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet::packet::icmp::{IcmpPacket, IcmpType, MutableIcmpPacket};
use pnet::packet::icmpv6::{Icmpv6Packet, Icmpv6Type, MutableIcmpv6Packet};
use pnet::packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols as Protocols};
use pnet::packet::ipv4::{Ipv4Packet, MutableIpv4Packet};
use pnet::packet::ipv6::{Ipv6Packet, MutableFragmentPacket, MutableIpv6Packet};
use pnet::packet::tcp::{MutableTcpPacket, TcpPacket};
use pnet::packet::udp::{MutableUdpPacket, UdpPacket};
use pnet::packet::{icmp, icmpv6, ipv4, tcp, udp};
use pnet::util::MacAddr;

/// A station's address, as it stands in a frame.
pub(crate) type Mac = [u8; 6];

/// A machine on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Station {
    pub(crate) mac: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Station {
    const fn new(mac: u8, last: u8) -> Self {
        Self {
            mac: [2, 0x42, 192, 0, 2, mac],
            v4: Ipv4Addr::new(192, 0, 2, last),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last as u16),
        }
    }

    /// Its address of one family.
    pub(crate) fn addr(self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }

    /// Its link-local address, the last octets being those of its station (RFC 4291, appendix A).
    pub(crate) const fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac;
        let word = u16::from_be_bytes;
        let (a, c) = (word([a ^ 2, b]), word([c, 0xff]));
        Ipv6Addr::new(0xfe80, 0, 0, 0, a, c, word([0xfe, d]), word([e, f]))
    }
}

pub(crate) const GATEWAY: Station = Station::new(1, 1);
pub(crate) const ALICE: Station = Station::new(0xa, 10);
pub(crate) const BOB: Station = Station::new(0xb, 11);
pub(crate) const CAROL: Station = Station::new(0xc, 12);
/// An address of the network that nobody has.
pub(crate) const NOBODY: Station = Station::new(0xdd, 99);
/// A machine beyond the uplink.
pub(crate) const WORLD: Station = Station {
    mac: [0; 6],
    v4: Ipv4Addr::new(198, 51, 100, 9),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9),
};
pub(crate) const BROADCAST: Mac = [0xff; 6];

/// A frame of any kind.
pub(crate) fn frame(src: Mac, dst: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 14 + payload.len()];
    let mut ethernet = MutableEthernetPacket::new(&mut octets).unwrap();
    ethernet.set_source(src.into());
    ethernet.set_destination(dst.into());
    ethernet.set_ethertype(EtherType(ethertype));
    ethernet.set_payload(payload);
    octets
}

/// A frame with an IP packet, whose version says the EtherType.
pub(crate) fn framed(src: Mac, dst: Mac, packet: &[u8]) -> Vec<u8> {
    frame(src, dst, if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 }, packet)
}

/// A frame from one station to another with a UDP datagram in it.
pub(crate) fn hello(from: Station, to: Station) -> Vec<u8> {
    framed(from.mac, to.mac, &ip(from.v4, to.v4).udp(4000, 5000, b"hello"))
}

/// An ARP message: 1 asks, 2 answers. The target's station is unknown in a question.
pub(crate) fn arp(dst: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut octets = vec![0; 28];
    let mut arp = MutableArpPacket::new(&mut octets).unwrap();
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(ArpOperation(operation));
    arp.set_sender_hw_addr(sender.0.into());
    arp.set_sender_proto_addr(sender.1);
    arp.set_target_hw_addr(if operation == 2 { dst.into() } else { MacAddr::zero() });
    arp.set_target_proto_addr(target);
    frame(sender.0, dst, 0x0806, &octets)
}

/// Who has `target`? Tell `from`.
pub(crate) fn arp_request(from: Station, target: Ipv4Addr) -> Vec<u8> {
    arp(BROADCAST, 1, (from.mac, from.v4), target)
}

/// `from` is where it says, says `from` to `to`.
pub(crate) fn arp_reply(from: Station, to: Station) -> Vec<u8> {
    arp(to.mac, 2, (from.mac, from.v4), to.v4)
}

/// The group address of an IPv6 multicast address (RFC 2464 §7).
pub(crate) fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The solicited-node group of an address (RFC 4291 §2.7.1).
pub(crate) fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// A neighbour solicitation for `target`; `None` for duplicate address detection.
pub(crate) fn solicitation(mac: Mac, sender: Option<Ipv6Addr>, target: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(target);
    let mut rest = vec![0; 4];
    rest.extend(target.octets());
    if sender.is_some() {
        rest.extend([1, 1]);
        rest.extend(mac);
    }
    let packet = ip(sender.unwrap_or(Ipv6Addr::UNSPECIFIED), group).ttl(255).icmp(135, 0, &rest);
    framed(mac, group_mac(group), &packet)
}

/// A solicited neighbour advertisement.
pub(crate) fn advertisement(from: Station, to: Station) -> Vec<u8> {
    let mut rest = vec![0x60, 0, 0, 0];
    rest.extend(from.v6.octets());
    rest.extend([2, 1]);
    rest.extend(from.mac);
    framed(from.mac, to.mac, &ip(from.v6, to.v6).ttl(255).icmp(136, 0, &rest))
}

/// An IP header to put something behind.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    fragment: Option<(u16, bool)>,
    options: Vec<u8>,
}

pub(crate) fn ip(src: impl Into<IpAddr>, dst: impl Into<IpAddr>) -> Ip {
    Ip { src: src.into(), dst: dst.into(), ttl: 64, fragment: None, options: Vec::new() }
}

/// What a TCP header says besides ports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tcp {
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
}

impl Ip {
    pub(crate) fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// A piece that begins at this octet (a multiple of eight), and whether more follow.
    pub(crate) fn fragment(self, offset: u16, more: bool) -> Self {
        Self { fragment: Some((offset, more)), ..self }
    }

    /// IPv4 options, whole words.
    pub(crate) fn options(self, options: &[u8]) -> Self {
        Self { options: options.to_vec(), ..self }
    }

    /// The packet with these octets behind its header.
    pub(crate) fn carrying(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.ipv4(src, dst, protocol, payload),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.ipv6(src, dst, protocol, payload),
            _ => unreachable!("one family"),
        }
    }

    fn ipv4(&self, src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut octets = vec![0; header];
        octets[20..].copy_from_slice(&self.options);
        octets.extend(payload);
        let len = octets.len();
        let mut ip = MutableIpv4Packet::new(&mut octets).unwrap();
        ip.set_version(4);
        ip.set_header_length(u8::try_from(header / 4).unwrap());
        ip.set_total_length(u16::try_from(len).unwrap());
        ip.set_identification(0x4242);
        ip.set_ttl(self.ttl);
        if let Some((offset, more)) = self.fragment {
            ip.set_flags(u8::from(more));
            ip.set_fragment_offset(offset / 8);
        }
        ip.set_next_level_protocol(IpNextHeaderProtocol(protocol));
        ip.set_source(src);
        ip.set_destination(dst);
        let checksum = ipv4::checksum(&ip.to_immutable());
        ip.set_checksum(checksum);
        octets
    }

    fn ipv6(&self, src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; 40];
        let mut next = IpNextHeaderProtocol(protocol);
        if let Some((offset, more)) = self.fragment {
            let mut header = [0; 8];
            let mut fragment = MutableFragmentPacket::new(&mut header).unwrap();
            fragment.set_next_header(next);
            fragment.set_fragment_offset_with_flags(offset | u16::from(more));
            fragment.set_id(0x4242);
            next = Protocols::Ipv6Frag;
            octets.extend(header);
        }
        octets.extend(payload);
        let len = octets.len() - 40;
        let mut ip = MutableIpv6Packet::new(&mut octets).unwrap();
        ip.set_version(6);
        ip.set_payload_length(u16::try_from(len).unwrap());
        ip.set_next_header(next);
        ip.set_hop_limit(self.ttl);
        ip.set_source(src);
        ip.set_destination(dst);
        octets
    }

    pub(crate) fn udp(&self, src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; 8];
        octets.extend(payload);
        let len = u16::try_from(octets.len()).unwrap();
        let mut datagram = MutableUdpPacket::new(&mut octets).unwrap();
        datagram.set_source(src_port);
        datagram.set_destination(dst_port);
        datagram.set_length(len);
        let checksum = udp_checksum(&datagram.to_immutable(), self.src, self.dst);
        datagram.set_checksum(checksum);
        self.carrying(17, &octets)
    }

    pub(crate) fn tcp(&self, src_port: u16, dst_port: u16, tcp: Tcp, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; 20];
        octets.extend(payload);
        let mut segment = MutableTcpPacket::new(&mut octets).unwrap();
        segment.set_source(src_port);
        segment.set_destination(dst_port);
        segment.set_sequence(tcp.seq);
        segment.set_acknowledgement(tcp.ack);
        segment.set_data_offset(5);
        segment.set_flags(tcp.flags);
        segment.set_window(64_240);
        let checksum = tcp_checksum(&segment.to_immutable(), self.src, self.dst);
        segment.set_checksum(checksum);
        self.carrying(6, &octets)
    }

    /// An ICMP message of the packet's family; `rest` is what follows the checksum.
    pub(crate) fn icmp(&self, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
        let mut octets = vec![kind, code, 0, 0];
        octets.extend(rest);
        let (protocol, checksum) = match (self.src, self.dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let message = MutableIcmpv6Packet::new(&mut octets).unwrap();
                (58, icmpv6::checksum(&message.to_immutable(), &src, &dst))
            }
            _ => {
                let message = MutableIcmpPacket::new(&mut octets).unwrap();
                (1, icmp::checksum(&message.to_immutable()))
            }
        };
        octets[2..4].copy_from_slice(&checksum.to_be_bytes());
        self.carrying(protocol, &octets)
    }

    /// An echo request of the packet's family.
    pub(crate) fn echo(&self, identifier: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
        let mut rest = identifier.to_be_bytes().to_vec();
        rest.extend(sequence.to_be_bytes());
        rest.extend(payload);
        self.icmp(if self.src.is_ipv6() { 128 } else { 8 }, 0, &rest)
    }
}

/// A frame as pnet reads it, once it has found every length and checksum right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) src: Mac,
    pub(crate) dst: Mac,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Arp {
        operation: u16,
        sender: (Mac, Ipv4Addr),
        target: (Mac, Ipv4Addr),
    },
    Icmp {
        ip: IpSeen,
        kind: u8,
        code: u8,
        word: u32,
        body: Vec<u8>,
    },
    Tcp {
        ip: IpSeen,
        ports: (u16, u16),
        flags: u8,
        seq: u32,
        ack: u32,
        payload: Vec<u8>,
    },
    Udp {
        ip: IpSeen,
        ports: (u16, u16),
        payload: Vec<u8>,
    },
    /// A piece of an IPv4 packet: where it begins, and whether more follow.
    Piece {
        ip: IpSeen,
        identification: u16,
        at: usize,
        more: bool,
        octets: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IpSeen {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) ttl: u8,
    /// TOS or traffic class.
    pub(crate) class: u8,
}

/// Reads a frame and panics if a length or a checksum in it is wrong.
pub(crate) fn read(octets: &[u8]) -> Seen {
    let ethernet = EthernetPacket::new(octets).expect("an Ethernet header");
    let payload = ethernet.payload();
    let what = match ethernet.get_ethertype() {
        EtherTypes::Arp => read_arp(payload),
        EtherTypes::Ipv4 => {
            let packet = Ipv4Packet::new(payload).expect("an IPv4 header");
            assert_eq!(packet.get_version(), 4);
            assert_eq!(usize::from(packet.get_total_length()), payload.len(), "total length");
            assert_eq!(packet.get_checksum(), ipv4::checksum(&packet), "header checksum");
            let (src, dst) = (packet.get_source().into(), packet.get_destination().into());
            let class = packet.get_dscp() << 2 | packet.get_ecn();
            let ip = IpSeen { src, dst, ttl: packet.get_ttl(), class };
            let (at, more) = (packet.get_fragment_offset() * 8, packet.get_flags() & 1 == 1);
            if at > 0 || more {
                let identification = packet.get_identification();
                let octets = packet.payload().to_vec();
                let (src, dst) = (ethernet.get_source(), ethernet.get_destination());
                let what = What::Piece { ip, identification, at: at.into(), more, octets };
                return Seen { src: src.octets(), dst: dst.octets(), what };
            }
            read_transport(ip, packet.get_next_level_protocol(), packet.payload())
        }
        EtherTypes::Ipv6 => {
            let packet = Ipv6Packet::new(payload).expect("an IPv6 header");
            assert_eq!(packet.get_version(), 6);
            assert_eq!(usize::from(packet.get_payload_length()) + 40, payload.len(), "length");
            let (src, dst) = (packet.get_source().into(), packet.get_destination().into());
            let class = packet.get_traffic_class();
            let ip = IpSeen { src, dst, ttl: packet.get_hop_limit(), class };
            read_transport(ip, packet.get_next_header(), packet.payload())
        }
        other => panic!("nobody here makes frames of EtherType {other}"),
    };
    let (src, dst) = (ethernet.get_source().octets(), ethernet.get_destination().octets());
    Seen { src, dst, what }
}

fn read_arp(payload: &[u8]) -> What {
    let arp = ArpPacket::new(payload).expect("an ARP message");
    assert_eq!(arp.get_hardware_type(), ArpHardwareTypes::Ethernet);
    assert_eq!(arp.get_protocol_type(), EtherTypes::Ipv4);
    assert_eq!((arp.get_hw_addr_len(), arp.get_proto_addr_len()), (6, 4));
    What::Arp {
        operation: arp.get_operation().0,
        sender: (arp.get_sender_hw_addr().octets(), arp.get_sender_proto_addr()),
        target: (arp.get_target_hw_addr().octets(), arp.get_target_proto_addr()),
    }
}

fn read_transport(ip: IpSeen, protocol: IpNextHeaderProtocol, octets: &[u8]) -> What {
    match protocol {
        Protocols::Tcp => {
            let segment = TcpPacket::new(octets).expect("a TCP header");
            assert_eq!(segment.get_checksum(), tcp_checksum(&segment, ip.src, ip.dst));
            What::Tcp {
                ip,
                ports: (segment.get_source(), segment.get_destination()),
                flags: segment.get_flags(),
                seq: segment.get_sequence(),
                ack: segment.get_acknowledgement(),
                payload: segment.payload().to_vec(),
            }
        }
        Protocols::Udp => {
            let datagram = UdpPacket::new(octets).expect("a UDP header");
            assert_eq!(usize::from(datagram.get_length()), octets.len(), "UDP length");
            assert_eq!(datagram.get_checksum(), udp_checksum(&datagram, ip.src, ip.dst));
            let ports = (datagram.get_source(), datagram.get_destination());
            What::Udp { ip, ports, payload: datagram.payload().to_vec() }
        }
        Protocols::Icmp => {
            let message = IcmpPacket::new(octets).expect("an ICMP message");
            assert_eq!(message.get_checksum(), icmp::checksum(&message), "ICMP checksum");
            let (IcmpType(kind), code) = (message.get_icmp_type(), message.get_icmp_code().0);
            read_icmp(ip, kind, code, &octets[4..])
        }
        Protocols::Icmpv6 => {
            let (IpAddr::V6(src), IpAddr::V6(dst)) = (ip.src, ip.dst) else { unreachable!() };
            let message = Icmpv6Packet::new(octets).expect("an ICMPv6 message");
            assert_eq!(message.get_checksum(), icmpv6::checksum(&message, &src, &dst));
            let (Icmpv6Type(kind), code) = (message.get_icmpv6_type(), message.get_icmpv6_code().0);
            read_icmp(ip, kind, code, &octets[4..])
        }
        other => panic!("nobody here makes packets of protocol {other}"),
    }
}

fn read_icmp(ip: IpSeen, kind: u8, code: u8, rest: &[u8]) -> What {
    let word = u32::from_be_bytes(*rest.first_chunk().expect("a second word"));
    What::Icmp { ip, kind, code, word, body: rest[4..].to_vec() }
}

fn udp_checksum(datagram: &UdpPacket<'_>, src: IpAddr, dst: IpAddr) -> u16 {
    let checksum = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => udp::ipv4_checksum(datagram, &src, &dst),
        (IpAddr::V6(src), IpAddr::V6(dst)) => udp::ipv6_checksum(datagram, &src, &dst),
        _ => unreachable!("one family"),
    };
    if checksum == 0 { 0xffff } else { checksum }
}

fn tcp_checksum(segment: &TcpPacket<'_>, src: IpAddr, dst: IpAddr) -> u16 {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => tcp::ipv4_checksum(segment, &src, &dst),
        (IpAddr::V6(src), IpAddr::V6(dst)) => tcp::ipv6_checksum(segment, &src, &dst),
        _ => unreachable!("one family"),
    }
}
