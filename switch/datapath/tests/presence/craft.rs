//! Frames made and read by pnet, so that the code under test never grades itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet::packet::Packet as _;
use pnet::packet::arp::{ArpHardwareTypes, ArpOperation, ArpPacket, MutableArpPacket};
use pnet::packet::dhcp::{DhcpHardwareTypes, DhcpOperation, DhcpPacket, MutableDhcpPacket};
use pnet::packet::ethernet::{EtherType, EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet::packet::icmpv6::ndp::{NeighborAdvertPacket, NeighborSolicitPacket, RouterSolicitPacket};
use pnet::packet::icmpv6::{Icmpv6Packet, MutableIcmpv6Packet};
use pnet::packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols as Protocols};
use pnet::packet::ipv4::{Ipv4Packet, MutableIpv4Packet};
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use pnet::packet::udp::{MutableUdpPacket, UdpPacket};
use pnet::packet::{icmpv6, ipv4, udp};
use pnet::util::MacAddr;

pub(crate) type Mac = [u8; 6];

/// Our station.
pub(crate) const US: Mac = [0x02, 0x42, 0xcb, 0, 0x71, 5];
/// Somebody else on the segment.
pub(crate) const THEM: Mac = [0x02, 0, 0, 0, 0, 0x99];
/// The segment's router, and its DHCP server.
pub(crate) const ROUTER: Mac = [0x02, 0, 0, 0, 0, 1];
pub(crate) const BROADCAST: Mac = [0xff; 6];
pub(crate) const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// A frame as pnet reads it, every length and checksum found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
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
    Dhcp {
        src: Ipv4Addr,
        dst: Ipv4Addr,
        message: Message,
    },
    NeighbourSolicitation {
        src: Ipv6Addr,
        dst: Ipv6Addr,
        target: Ipv6Addr,
        lladdr: Option<Mac>,
    },
    NeighbourAdvertisement {
        src: Ipv6Addr,
        dst: Ipv6Addr,
        target: Ipv6Addr,
        flags: u8,
        lladdr: Option<Mac>,
    },
    RouterSolicitation {
        src: Ipv6Addr,
        dst: Ipv6Addr,
        lladdr: Option<Mac>,
    },
    /// Groups with their record types; 0 in version 1.
    Listening {
        src: Ipv6Addr,
        dst: Ipv6Addr,
        groups: Vec<(u8, Ipv6Addr)>,
    },
}

/// A client's DHCP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) xid: u32,
    pub(crate) secs: u16,
    pub(crate) ciaddr: Ipv4Addr,
    pub(crate) options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    pub(crate) fn option(&self, kind: u8) -> Option<&[u8]> {
        self.options.iter().find(|(known, _)| *known == kind).map(|(_, data)| &data[..])
    }

    pub(crate) fn kind(&self) -> u8 {
        self.option(53).expect("a message type")[0]
    }

    pub(crate) fn address(&self, kind: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.option(kind)?.try_into().expect("an address");
        Some(octets.into())
    }
}

/// Reads what we have sent.
pub(crate) fn read(octets: &[u8]) -> Seen {
    let frame = EthernetPacket::new(octets).expect("a header");
    assert_eq!(frame.get_source(), MacAddr::from(US), "from our own station");
    let dst = frame.get_destination().octets();
    let what = match frame.get_ethertype() {
        EtherTypes::Arp => arp_of(frame.payload()),
        EtherTypes::Ipv4 => dhcp_of(frame.payload()),
        EtherTypes::Ipv6 => icmpv6_of(frame.payload(), dst),
        other => panic!("{other}"),
    };
    Seen { dst, what }
}

fn arp_of(octets: &[u8]) -> What {
    let arp = ArpPacket::new(octets).expect("whole");
    assert_eq!(arp.get_hardware_type(), ArpHardwareTypes::Ethernet);
    assert_eq!(arp.get_protocol_type(), EtherTypes::Ipv4);
    assert_eq!((arp.get_hw_addr_len(), arp.get_proto_addr_len()), (6, 4));
    What::Arp {
        operation: arp.get_operation().0,
        sender: (arp.get_sender_hw_addr().octets(), arp.get_sender_proto_addr()),
        target: (arp.get_target_hw_addr().octets(), arp.get_target_proto_addr()),
    }
}

fn dhcp_of(octets: &[u8]) -> What {
    let ip = Ipv4Packet::new(octets).expect("whole");
    assert_eq!((ip.get_version(), usize::from(ip.get_total_length())), (4, octets.len()));
    assert_eq!(ip.get_checksum(), ipv4::checksum(&ip));
    assert_eq!(ip.get_next_level_protocol(), Protocols::Udp);
    let datagram = UdpPacket::new(ip.payload()).expect("whole");
    assert_eq!((datagram.get_source(), datagram.get_destination()), (68, 67));
    assert_eq!(usize::from(datagram.get_length()), ip.payload().len());
    let checksum = udp::ipv4_checksum(&datagram, &ip.get_source(), &ip.get_destination());
    assert_eq!(datagram.get_checksum(), checksum);
    assert!(datagram.payload().len() >= 300, "a BOOTP message");
    let message = DhcpPacket::new(datagram.payload()).expect("whole");
    assert_eq!((message.get_op().0, message.get_hlen(), message.get_hops()), (1, 6, 0));
    assert_eq!(message.get_htype(), DhcpHardwareTypes::Ethernet);
    assert_eq!(message.get_chaddr(), MacAddr::from(US));
    assert_eq!(message.get_flags(), 0, "no need for a broadcast");
    let rest = message.payload().strip_prefix(&[0x63, 0x82, 0x53, 0x63]).expect("the cookie");
    let (mut rest, mut options) = (rest, Vec::new());
    while rest[0] != 255 {
        let (data, tail) = rest[2..].split_at(usize::from(rest[1]));
        options.push((rest[0], data.to_vec()));
        rest = tail;
    }
    let (xid, secs, ciaddr) = (message.get_xid(), message.get_secs(), message.get_ciaddr());
    let message = Message { xid, secs, ciaddr, options };
    What::Dhcp { src: ip.get_source(), dst: ip.get_destination(), message }
}

fn icmpv6_of(octets: &[u8], station: Mac) -> What {
    let ip = Ipv6Packet::new(octets).expect("whole");
    assert_eq!((ip.get_version(), usize::from(ip.get_payload_length()) + 40), (6, octets.len()));
    let (src, dst) = (ip.get_source(), ip.get_destination());
    assert_eq!(station, group_mac(dst), "RFC 2464 §7");
    let mld = ip.get_next_header() == Protocols::Hopopt;
    let octets = if mld { &ip.payload()[8..] } else { ip.payload() };
    let message = Icmpv6Packet::new(octets).expect("whole");
    assert_eq!(message.get_checksum(), icmpv6::checksum(&message, &src, &dst));
    if mld {
        // RFC 3810 §5: hop limit 1, and the router alert of RFC 2711.
        assert_eq!(ip.get_hop_limit(), 1);
        assert_eq!(ip.payload()[..6], [58, 0, 5, 2, 0, 0]);
    } else {
        assert_eq!((ip.get_next_header(), ip.get_hop_limit()), (Protocols::Icmpv6, 255));
    }
    match message.get_icmpv6_type().0 {
        135 => {
            let message = NeighborSolicitPacket::new(octets).expect("whole");
            let lladdr = lladdr(&octets[24..], 1);
            What::NeighbourSolicitation { src, dst, target: message.get_target_addr(), lladdr }
        }
        136 => {
            let message = NeighborAdvertPacket::new(octets).expect("whole");
            let (target, flags) = (message.get_target_addr(), message.get_flags());
            let lladdr = lladdr(&octets[24..], 2);
            What::NeighbourAdvertisement { src, dst, target, flags, lladdr }
        }
        133 => {
            RouterSolicitPacket::new(octets).expect("whole");
            What::RouterSolicitation { src, dst, lladdr: lladdr(&octets[8..], 1) }
        }
        131 => {
            let group = Ipv6Addr::from(*octets[8..].first_chunk::<16>().expect("a group"));
            What::Listening { src, dst, groups: vec![(0, group)] }
        }
        143 => {
            let count = usize::from(u16::from_be_bytes([octets[6], octets[7]]));
            let records = octets[8..].as_chunks::<20>().0;
            assert_eq!((records.len(), octets.len()), (count, 8 + 20 * count));
            let group = |record: &[u8; 20]| {
                assert_eq!(record[1..4], [0; 3], "no sources");
                (record[0], Ipv6Addr::from(*record[4..].first_chunk::<16>().expect("a group")))
            };
            What::Listening { src, dst, groups: records.iter().map(group).collect() }
        }
        other => panic!("ICMPv6 type {other}"),
    }
}

fn lladdr(options: &[u8], kind: u8) -> Option<Mac> {
    if options.is_empty() {
        return None;
    }
    assert_eq!((options.len(), options[0], options[1]), (8, kind, 1));
    options[2..].first_chunk().copied()
}

pub(crate) fn frame(src: Mac, dst: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 14 + payload.len()];
    let mut ethernet = MutableEthernetPacket::new(&mut octets).unwrap();
    ethernet.set_source(src.into());
    ethernet.set_destination(dst.into());
    ethernet.set_ethertype(EtherType(ethertype));
    ethernet.set_payload(payload);
    octets
}

/// An ARP message of another station's: 1 asks, 2 answers.
pub(crate) fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut octets = vec![0; 28];
    let mut arp = MutableArpPacket::new(&mut octets).unwrap();
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(ArpOperation(operation));
    arp.set_sender_hw_addr(sender.0.into());
    arp.set_sender_proto_addr(sender.1);
    arp.set_target_proto_addr(target);
    frame(sender.0, if operation == 2 { US } else { BROADCAST }, 0x0806, &octets)
}

/// A server's DHCP message, with its options as they are; sent to our station, or to everybody for a NAK.
pub(crate) fn dhcp(
    from: Mac,
    kind: u8,
    xid: u32,
    yiaddr: Ipv4Addr,
    options: &[(u8, &[u8])],
) -> Vec<u8> {
    let mut tail = vec![0x63, 0x82, 0x53, 0x63, 53, 1, kind];
    for (option, data) in options {
        tail.extend([*option, u8::try_from(data.len()).unwrap()]);
        tail.extend(*data);
    }
    tail.push(255);
    dhcp_with(from, xid, yiaddr, US, &tail)
}

/// The same with everything from the cookie on as it is, to a client of this hardware address.
pub(crate) fn dhcp_with(
    from: Mac,
    xid: u32,
    yiaddr: Ipv4Addr,
    chaddr: Mac,
    tail: &[u8],
) -> Vec<u8> {
    let mut octets = vec![0; 236 + tail.len()];
    let mut message = MutableDhcpPacket::new(&mut octets).unwrap();
    message.set_op(DhcpOperation(2));
    message.set_htype(DhcpHardwareTypes::Ethernet);
    message.set_hlen(6);
    message.set_xid(xid);
    message.set_yiaddr(yiaddr);
    message.set_chaddr(chaddr.into());
    octets[236..].copy_from_slice(tail);
    let server = Ipv4Addr::new(192, 0, 2, 1);
    frame(from, US, 0x0800, &ipv4_udp(server, yiaddr, 67, 68, &octets))
}

pub(crate) fn ipv4_udp(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    sport: u16,
    dport: u16,
    data: &[u8],
) -> Vec<u8> {
    let mut octets = vec![0; 28 + data.len()];
    let len = u16::try_from(octets.len()).unwrap();
    octets[28..].copy_from_slice(data);
    let mut datagram = MutableUdpPacket::new(&mut octets[20..]).unwrap();
    datagram.set_source(sport);
    datagram.set_destination(dport);
    datagram.set_length(len - 20);
    let checksum = udp::ipv4_checksum(&datagram.to_immutable(), &src, &dst);
    datagram.set_checksum(checksum);
    let mut ip = MutableIpv4Packet::new(&mut octets).unwrap();
    ip.set_version(4);
    ip.set_header_length(5);
    ip.set_total_length(len);
    ip.set_ttl(64);
    ip.set_next_level_protocol(Protocols::Udp);
    ip.set_source(src);
    ip.set_destination(dst);
    let checksum = ipv4::checksum(&ip.to_immutable());
    ip.set_checksum(checksum);
    octets
}

/// An ICMPv6 message; `rest` follows the checksum, `extension` the IPv6 header.
#[derive(Clone, Debug)]
pub(crate) struct Icmp<'a> {
    pub(crate) from: Mac,
    pub(crate) src: Ipv6Addr,
    pub(crate) dst: Ipv6Addr,
    pub(crate) hop_limit: u8,
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) rest: &'a [u8],
    pub(crate) extension: &'a [u8],
}

impl Icmp<'_> {
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0];
        message.extend(self.rest);
        let mut icmp = MutableIcmpv6Packet::new(&mut message).unwrap();
        let checksum = icmpv6::checksum(&icmp.to_immutable(), &self.src, &self.dst);
        icmp.set_checksum(checksum);
        let mut octets = vec![0; 40];
        octets.extend(self.extension);
        octets.extend(&message);
        let len = u16::try_from(octets.len() - 40).unwrap();
        let mut ip = MutableIpv6Packet::new(&mut octets).unwrap();
        ip.set_version(6);
        ip.set_payload_length(len);
        // The only extension header used here is the hop-by-hop one.
        ip.set_next_header(IpNextHeaderProtocol(if self.extension.is_empty() { 58 } else { 0 }));
        ip.set_hop_limit(self.hop_limit);
        ip.set_source(self.src);
        ip.set_destination(self.dst);
        frame(self.from, group_mac(self.dst), 0x86dd, &octets)
    }
}

/// A neighbour solicitation for `target`; from nobody: duplicate address detection.
pub(crate) fn solicitation(from: Mac, src: Option<Ipv6Addr>, target: Ipv6Addr) -> Vec<u8> {
    let mut rest = vec![0; 4];
    rest.extend(target.octets());
    if src.is_some() {
        rest.extend([1, 1]);
        rest.extend(from);
    }
    let (src, dst) = (src.unwrap_or(Ipv6Addr::UNSPECIFIED), solicited_node(target));
    Icmp { from, src, dst, hop_limit: 255, kind: 135, code: 0, rest: &rest, extension: &[] }.frame()
}

/// An unsolicited neighbour advertisement: `target` is `from`'s.
pub(crate) fn advertisement(from: Mac, target: Ipv6Addr) -> Vec<u8> {
    let mut rest = vec![0x20, 0, 0, 0];
    rest.extend(target.octets());
    rest.extend([2, 1]);
    rest.extend(from);
    let dst = all_nodes();
    Icmp { from, src: target, dst, hop_limit: 255, kind: 136, code: 0, rest: &rest, extension: &[] }
        .frame()
}

/// An MLD query of a router's, of version 1 or 2, with its maximum response in milliseconds.
pub(crate) fn query(v2: bool, milliseconds: u16) -> Vec<u8> {
    let mut rest = milliseconds.to_be_bytes().to_vec();
    rest.extend([0; 18]);
    rest.extend(if v2 { &[0; 4][..] } else { &[] });
    let alert = [58, 0, 5, 2, 0, 0, 1, 0];
    let (src, dst) = (link_local(ROUTER), all_nodes());
    Icmp {
        from: ROUTER,
        src,
        dst,
        hop_limit: 1,
        kind: 130,
        code: 0,
        rest: &rest,
        extension: &alert,
    }
    .frame()
}

pub(crate) fn all_nodes() -> Ipv6Addr {
    "ff02::1".parse().unwrap()
}

/// The group address of an IPv6 multicast address (RFC 2464 §7).
pub(crate) fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    if group.is_multicast() { [0x33, 0x33, a, b, c, d] } else { US }
}

/// The solicited-node group of an address (RFC 4291 §2.7.1).
pub(crate) fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The address of a station in a /64 (RFC 4291, appendix A).
pub(crate) fn formed(prefix: &str, mac: Mac) -> Ipv6Addr {
    let prefix: Ipv6Addr = prefix.parse().unwrap();
    let [a, b, c, d, e, f] = mac;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(u128::from(prefix) | u128::from(id))
}

pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    formed("fe80::", mac)
}

/// Whose address a claim or question is about, for either family.
pub(crate) fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

pub(crate) fn ip(addr: &str) -> IpAddr {
    addr.parse().unwrap()
}
