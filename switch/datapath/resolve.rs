//! ARP and NDP on the wire: what the gateway asks, answers and learns from.
//!
//! Read RFC 826, RFC 5227 §2.4 and RFC 4861 §7.1 (what must be verified) first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nat::Protocol;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpHardware, ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv6Packet,
    Icmpv6Repr, NdiscNeighborFlags, NdiscRepr,
};

use crate::drop::DropReason;
use crate::emit::IpHeader;
use crate::outbox::{Built, Outbox};
use crate::packet::Packet;
use crate::port::{ETHERNET_HEADER_LEN, MacAddr};

/// ICMPv6 types of the two messages (RFC 4861 §4.3, §4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// The S flag of an advertisement, in its fifth octet.
const SOLICITED_FLAG: u8 = 0x40;

/// Option types (RFC 4861 §4.6.1).
const SOURCE_LLA: u8 = 1;
const TARGET_LLA: u8 = 2;

/// What an ARP or NDP message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The sender, if it has an address yet: a probe (RFC 5227 §1.1) or duplicate address detection
    /// (RFC 4862 §5.4.2) comes from nobody.
    pub sender: Option<IpAddr>,
    /// The sender's station, as the message says.
    pub station: MacAddr,
    /// Whose station is asked for, or (in an answer) whose is told.
    pub target: IpAddr,
    /// Whether it asks.
    pub asks: bool,
}

/// Reads an ARP message.
///
/// # Errors
///
/// [`DropReason::BadNeighbour`] for anything but Ethernet and IPv4 of the right lengths, or a station
/// that is a group.
pub fn read_arp(payload: &[u8]) -> Result<Announcement, DropReason> {
    let arp = ArpPacket::new_checked(payload).map_err(|_| DropReason::BadNeighbour)?;
    let bad = arp.hardware_type() != ArpHardware::Ethernet;
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpRepr::parse(&arp)
    else {
        return Err(DropReason::BadNeighbour);
    };
    let no_station = !source_hardware_addr.is_unicast() || source_hardware_addr.0 == [0; 6];
    if bad || no_station || source_protocol_addr.is_multicast() {
        return Err(DropReason::BadNeighbour);
    }
    let asks = match operation {
        ArpOperation::Request => true,
        ArpOperation::Reply => false,
        ArpOperation::Unknown(_) => return Err(DropReason::BadNeighbour),
    };
    Ok(Announcement {
        sender: (!source_protocol_addr.is_unspecified()).then_some(source_protocol_addr.into()),
        station: source_hardware_addr,
        target: if asks { target_protocol_addr.into() } else { source_protocol_addr.into() },
        asks,
    })
}

/// Whether the IPv6 packet of a frame may be a neighbour solicitation or advertisement: a look at one
/// octet or two, for every frame that passes, before [`read_ndp`] is worth its price.
#[must_use]
pub fn may_be_ndp(packet: &[u8]) -> bool {
    const ICMPV6: u8 = 58;
    match packet.get(6) {
        Some(&ICMPV6) => matches!(packet.get(40), Some(&(SOLICITATION | ADVERTISEMENT))),
        // Behind extension headers; fragmented it is none (RFC 6980 §5).
        Some(0 | 43 | 51 | 60) => true,
        _ => false,
    }
}

/// Reads a neighbour solicitation or advertisement; `None` for any other ICMPv6 message.
///
/// # Errors
///
/// [`DropReason::BadNeighbour`] if it fails a check of RFC 4861 §7.1.1 or §7.1.2. The checksum was
/// verified with the packet.
pub fn read_ndp(
    packet: &Packet,
    frame: &[u8],
    src: MacAddr,
) -> Option<Result<Announcement, DropReason>> {
    let (kind, code) = packet.icmp(frame)?;
    if packet.protocol != Protocol::Icmpv6 || !matches!(kind, SOLICITATION | ADVERTISEMENT) {
        return None;
    }
    if packet.hop_limit != 255 || code != 0 {
        return Some(Err(DropReason::BadNeighbour));
    }
    Some(read_checked_ndp(packet, frame, src).ok_or(DropReason::BadNeighbour))
}

fn read_checked_ndp(packet: &Packet, frame: &[u8], src: MacAddr) -> Option<Announcement> {
    let (head, options) = packet.transport(frame).split_first_chunk::<24>()?;
    let asks = head[0] == SOLICITATION;
    let target = Ipv6Addr::from(*head[8..].first_chunk::<16>()?);
    let lladdr = link_layer_address(options, if asks { SOURCE_LLA } else { TARGET_LLA })?;
    let IpAddr::V6(dst) = packet.dst else { return None };
    let from_nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED) == packet.src;
    let allowed = match asks {
        true => !from_nobody || (lladdr.is_none() && is_solicited_node(dst)),
        false => !(dst.is_multicast() && head[4] & SOLICITED_FLAG != 0),
    };
    let station = lladdr.unwrap_or(src);
    if !allowed || target.is_multicast() || !station.is_unicast() || station.0 == [0; 6] {
        return None;
    }
    let sender = if asks { packet.src } else { target.into() };
    Some(Announcement {
        sender: (!(asks && from_nobody)).then_some(sender),
        station,
        target: target.into(),
        asks,
    })
}

/// The link-layer address option `kind` of `options`, if there is one; `None` if an option is not whole
/// or has no length.
fn link_layer_address(options: &[u8], kind: u8) -> Option<Option<MacAddr>> {
    let mut found = None;
    let mut rest = options;
    while !rest.is_empty() {
        let len = 8 * usize::from(*rest.get(1)?);
        if len == 0 {
            return None;
        }
        let (option, tail) = rest.split_at_checked(len)?;
        if option[0] == kind {
            // RFC 2464 §6: one unit long over Ethernet.
            found = found.or(Some(MacAddr::from_bytes(option.get(2..)?.first_chunk::<6>()?)));
        }
        rest = tail;
    }
    Some(found)
}

/// Whether `dst` is a solicited-node group, ff02::1:ff00:0/104 (RFC 4291 §2.7.1).
fn is_solicited_node(dst: Ipv6Addr) -> bool {
    dst.octets()[..13] == [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]
}

/// The solicited-node group of an address (RFC 4291 §2.7.1).
pub(crate) const fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    let words = (0xff00 | a as u16, u16::from_be_bytes([b, c]));
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, words.0, words.1)
}

/// Builds the answer to whoever asked for `own`, from a router or from a host.
pub fn answer(
    out: &mut Outbox,
    own_mac: MacAddr,
    own: IpAddr,
    asker: Announcement,
    router: bool,
) -> Option<Built> {
    match (own, asker.sender) {
        (IpAddr::V4(own), asker_addr) => {
            let Some(IpAddr::V4(to)) = asker_addr.or(Some(Ipv4Addr::UNSPECIFIED.into())) else {
                return None;
            };
            Some(arp(out, ArpOperation::Reply, (own_mac, own), (asker.station, to), asker.station))
        }
        (IpAddr::V6(own), sender) => {
            // RFC 4861 §7.2.4: an asker without an address is answered to all nodes, unsolicited.
            let solicited = sender.is_some();
            let to = match sender {
                Some(IpAddr::V6(addr)) => addr,
                _ => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            };
            let mut flags = NdiscNeighborFlags::OVERRIDE;
            flags.set(NdiscNeighborFlags::ROUTER, router);
            flags.set(NdiscNeighborFlags::SOLICITED, solicited);
            let dst = if solicited { asker.station } else { multicast_mac(to) };
            let repr =
                NdiscRepr::NeighborAdvert { flags, target_addr: own, lladdr: Some(own_mac.into()) };
            Some(ndp(out, own_mac, own, to, dst, repr))
        }
    }
}

/// Builds the question for `target`: to `known`, its last known station, or to everyone.
pub fn ask(
    out: &mut Outbox,
    own_mac: MacAddr,
    own: IpAddr,
    target: IpAddr,
    known: Option<MacAddr>,
) -> Option<(Built, MacAddr)> {
    match (own, target) {
        (IpAddr::V4(own), IpAddr::V4(target)) => {
            let dst = known.unwrap_or(MacAddr::BROADCAST);
            let whom = (MacAddr([0; 6]), target);
            Some((arp(out, ArpOperation::Request, (own_mac, own), whom, dst), dst))
        }
        (IpAddr::V6(own), IpAddr::V6(target)) => {
            let group = solicited_node(target);
            let (to, dst) = match known {
                Some(mac) => (target, mac),
                None => (group, multicast_mac(group)),
            };
            let repr =
                NdiscRepr::NeighborSolicit { target_addr: target, lladdr: Some(own_mac.into()) };
            Some((ndp(out, own_mac, own, to, dst, repr), dst))
        }
        _ => None,
    }
}

/// Builds the question whether anybody has `target`, from nobody's address: an ARP probe (RFC 5227 §1.1), or
/// duplicate address detection (RFC 4862 §5.4.2).
pub fn probe(out: &mut Outbox, own_mac: MacAddr, target: IpAddr) -> Built {
    match target {
        IpAddr::V4(target) => {
            let (own, whom) = ((own_mac, Ipv4Addr::UNSPECIFIED), (MacAddr([0; 6]), target));
            arp(out, ArpOperation::Request, own, whom, MacAddr::BROADCAST)
        }
        IpAddr::V6(target) => {
            let to = solicited_node(target);
            let repr = NdiscRepr::NeighborSolicit { target_addr: target, lladdr: None };
            ndp(out, own_mac, Ipv6Addr::UNSPECIFIED, to, multicast_mac(to), repr)
        }
    }
}

pub(crate) fn arp(
    out: &mut Outbox,
    operation: ArpOperation,
    sender: (MacAddr, Ipv4Addr),
    target: (MacAddr, Ipv4Addr),
    dst: MacAddr,
) -> Built {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: sender.0,
        source_protocol_addr: sender.1,
        target_hardware_addr: target.0,
        target_protocol_addr: target.1,
    };
    let built = out.build(ETHERNET_HEADER_LEN + repr.buffer_len());
    let mut frame = EthernetFrame::new_unchecked(out.frame_mut(built));
    frame.set_src_addr(sender.0);
    frame.set_dst_addr(dst);
    frame.set_ethertype(EthernetProtocol::Arp);
    repr.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    built
}

pub(crate) fn ndp(
    out: &mut Outbox,
    own_mac: MacAddr,
    own: Ipv6Addr,
    to: Ipv6Addr,
    dst: MacAddr,
    repr: NdiscRepr<'_>,
) -> Built {
    let repr = Icmpv6Repr::Ndisc(repr);
    let header = IpHeader {
        hop_limit: 255,
        ..IpHeader::new(own.into(), to.into(), Protocol::Icmpv6.number())
    };
    let built = out.build(header.transport() + repr.buffer_len());
    let frame = out.frame_mut(built);
    header.emit(frame, own_mac);
    frame[..6].copy_from_slice(dst.as_bytes());
    let mut message = Icmpv6Packet::new_unchecked(&mut frame[header.transport()..]);
    repr.emit(&own, &to, &mut message, &ChecksumCapabilities::default());
    built
}

/// The group address of an IPv6 multicast address (RFC 2464 §7).
pub(crate) fn multicast_mac(addr: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = addr.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}
