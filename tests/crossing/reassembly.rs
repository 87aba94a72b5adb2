//! Pieces that never become whole, and pieces for our own station (RFC 792, RFC 1122 §3.3.2, RFC 8200 §4.5).

use std::net::IpAddr;

use datapath::{DropReason, PortId};
use nat::Zone;
use pnet::packet::Packet as _;
use pnet::packet::icmp::{IcmpPacket, checksum as checksum_v4};
use pnet::packet::icmpv6::{Icmpv6Packet, checksum as checksum_v6};
use pnet::packet::ipv4::Ipv4Packet;
use pnet::packet::ipv6::{FragmentPacket, Ipv6Packet};

use crate::errors::told_alice;
use crate::town::{FAR, NET, OURS, P1, Plan, ROUTER, SEGMENT, Sent, Town, distant};
use crate::ways::{down, one, up};
use crate::wire::{ALICE, GATEWAY, What, framed, ip};

const FAMILIES: [bool; 2] = [false, true];

/// How long pieces wait for each other: Linux's `ipfrag_time`, RFC 8200 §4.5.
const fn patience(v6: bool) -> u64 {
    if v6 { 60 } else { 30 }
}

const fn icmp(v6: bool) -> u8 {
    if v6 { 58 } else { 1 }
}

/// A packet in pieces with `room` octets of what its header carries, which is of `protocol`.
fn pieces(whole: &[u8], (src, dst): (IpAddr, IpAddr), protocol: u8, room: usize) -> Vec<Vec<u8>> {
    let behind = &whole[if src.is_ipv6() { 40 } else { 20 }..];
    let count = behind.len().div_ceil(room);
    let pieces = behind.chunks(room).enumerate().map(|(number, octets)| {
        let at = u16::try_from(number * room).unwrap();
        ip(src, dst).fragment(at, number + 1 < count).carrying(protocol, octets)
    });
    pieces.collect()
}

/// What pieces carry together, by pnet; none is longer than 1500 octets, and they come in order.
#[track_caller]
fn joined(sent: &[Sent], (zone, port): (Zone, PortId), (src, dst): (IpAddr, IpAddr)) -> Vec<u8> {
    let mut whole = Vec::new();
    for (number, piece) in sent.iter().enumerate() {
        assert_eq!((piece.zone, piece.port), (zone, port));
        let packet = &piece.octets[14..];
        assert!(packet.len() <= 1500, "{} octets", packet.len());
        let (from, to, at, more, payload): (IpAddr, IpAddr, _, _, _) = if src.is_ipv6() {
            let header = Ipv6Packet::new(packet).unwrap();
            let piece = FragmentPacket::new(header.payload()).unwrap();
            let word = piece.get_fragment_offset_with_flags();
            let (from, to) = (header.get_source().into(), header.get_destination().into());
            (from, to, word & !7, word & 1 == 1, header.payload()[8..].to_vec())
        } else {
            let header = Ipv4Packet::new(packet).unwrap();
            assert_eq!(header.get_checksum(), pnet::packet::ipv4::checksum(&header));
            let (from, to) = (header.get_source().into(), header.get_destination().into());
            let at = header.get_fragment_offset() * 8;
            (from, to, at, header.get_flags() & 1 == 1, header.payload().to_vec())
        };
        assert_eq!((from, to, usize::from(at)), (src, dst, whole.len()));
        whole.extend(payload);
        assert_eq!(more, number + 1 < sent.len());
    }
    whole
}

/// Brings in what is kept for now, and says nothing.
#[track_caller]
fn keep(town: &mut Town, (zone, port): (Zone, PortId), frame: &[u8]) {
    assert_eq!(town.bring(zone, port, frame).unwrap().len(), 0);
}

/// Lets time go by, and returns the errors that were sent: neighbours are asked for again meanwhile, too.
fn told_within(town: &mut Town, seconds: u64) -> Vec<Sent> {
    let mut sent = town.advance(seconds);
    sent.retain(|sent| matches!(sent.seen().what, What::Icmp { code, .. } if code != 0));
    sent
}

#[test]
fn who_sent_pieces_that_never_became_whole_is_told_so() {
    for (v6, error) in FAMILIES.into_iter().zip([(11, 1), (3, 1)]) {
        let mut town = Town::new(Plan::default());
        let ends = (ALICE.addr(v6), distant(v6));
        let whole = ip(ends.0, ends.1).udp(4000, 53, &[7; 2000]);
        let first = &pieces(&whole, ends, 17, 1400)[0];
        keep(&mut town, (NET, P1), &up(first));
        assert_eq!(told_within(&mut town, patience(v6) - 1).len(), 0);
        told_alice(told_within(&mut town, 1), v6, error, first);
        // Who is outside, by the address it spoke to.
        let ends = (distant(v6), OURS.addr(v6));
        let whole = ip(ends.0, ends.1).udp(53, 4000, &[7; 2000]);
        let first = &pieces(&whole, ends, 17, 400)[0];
        keep(&mut town, (SEGMENT, P1), &down(first));
        assert_eq!(told_within(&mut town, patience(v6) - 1).len(), 0);
        town.hear_of_the_segment();
        let seen = one(told_within(&mut town, 1), SEGMENT, P1);
        assert_eq!((seen.src, seen.dst), (OURS.mac, ROUTER.mac));
        let What::Icmp { ip: header, kind, code, word, body } = seen.what else { panic!() };
        assert_eq!(((kind, code), word, header.src, header.dst), (error, 0, ends.1, ends.0));
        assert_eq!(body, *first);
        assert_eq!(told_within(&mut town, 2 * patience(v6)).len(), 0, "once");
    }
}

/// "If fragment zero is not available then no time exceeded need be sent at all"; about an error, never
/// (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).
#[test]
fn nobody_is_told_without_the_first_piece_or_about_an_error() {
    for (v6, unreachable) in FAMILIES.into_iter().zip([3, 1]) {
        let mut town = Town::new(Plan::default());
        let ends = (ALICE.addr(v6), distant(v6));
        let whole = ip(ends.0, ends.1).udp(4000, 53, &[7; 2000]);
        keep(&mut town, (NET, P1), &up(&pieces(&whole, ends, 17, 1400)[1]));
        assert_eq!(told_within(&mut town, patience(v6) + 1).len(), 0);
        assert_eq!(town.nat.fragment_octets(), 0);
        let about = ip(ends.1, ends.0).udp(53, 4000, &[7; 1000]);
        let error = ip(ends.0, ends.1).icmp(unreachable, 3, &[&[0; 4], &about[..]].concat());
        keep(&mut town, (NET, P1), &up(&pieces(&error, ends, icmp(v6), 600)[0]));
        assert_eq!(told_within(&mut town, patience(v6) + 1).len(), 0);
        assert_eq!(town.nat.fragment_octets(), 0);
    }
}

/// RFC 1812 §4.3.2.8, RFC 4443 §2.4 (f).
#[test]
fn a_flood_of_first_pieces_is_told_within_the_limit() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan::default());
        for n in 1..=200 {
            let to: IpAddr = match v6 {
                false => [203, 0, 113, n].into(),
                true => [0x2001, 0xdb8, 9, 0, 0, 0, 0, n.into()].into(),
            };
            let ends = (ALICE.addr(v6), to);
            let whole = ip(ends.0, ends.1).udp(4000, 53, &[7; 2000]);
            keep(&mut town, (NET, P1), &up(&pieces(&whole, ends, 17, 1400)[0]));
        }
        let told = told_within(&mut town, patience(v6)).len();
        assert!((50..=51).contains(&told), "{told} errors at once");
        town.advance(10);
        assert_eq!(town.nat.fragment_octets(), 0);
    }
}

/// Whose station it is, and who pings it, with 4000 octets.
#[test]
fn an_echo_in_pieces_is_answered_by_our_station() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan::default());
        let (alice, far) = ((NET, P1, ALICE.mac, GATEWAY.mac), (SEGMENT, P1, FAR.mac, OURS.mac));
        let mut cases = vec![
            (far, FAR.addr(v6), OURS.addr(v6)),
            (far, distant(v6), OURS.addr(v6)),
            (alice, ALICE.addr(v6), OURS.addr(v6)),
            (alice, ALICE.addr(v6), GATEWAY.addr(v6)),
        ];
        if v6 {
            cases.push((far, FAR.link_local().into(), OURS.link_local().into()));
            cases.push((alice, ALICE.link_local().into(), GATEWAY.link_local().into()));
        }
        for ((zone, port, from, to), src, dst) in cases {
            if matches!(src, IpAddr::V6(src) if src.is_unicast_link_local()) {
                let IpAddr::V6(target) = dst else { unreachable!() };
                let IpAddr::V6(own) = src else { unreachable!() };
                let asked = crate::wire::solicitation(from, Some(own), target);
                town.bring(zone, port, &asked).unwrap();
            }
            let payload: Vec<u8> = (0..4000_u32).map(|n| n.to_le_bytes()[0]).collect();
            let whole = ip(src, dst).echo(0xbeef, 7, &payload);
            let mut pieces = pieces(&whole, (src, dst), icmp(v6), 1400);
            pieces.rotate_left(1);
            let last = pieces.pop().unwrap();
            for piece in &pieces {
                keep(&mut town, (zone, port), &framed(from, to, piece));
            }
            let sent = town.bring(zone, port, &framed(from, to, &last)).unwrap();
            assert_eq!(sent.len(), 3, "{src} to {dst}");
            let message = joined(&sent, (zone, port), (dst, src));
            assert_eq!(message[..2], [if v6 { 129 } else { 0 }, 0]);
            assert_eq!(message[4..8], [0xbe, 0xef, 0, 7]);
            assert_eq!(message[8..], payload);
            let checksum = u16::from_be_bytes([message[2], message[3]]);
            let right = match (dst, src) {
                (IpAddr::V6(dst), IpAddr::V6(src)) => {
                    checksum_v6(&Icmpv6Packet::new(&message).unwrap(), &dst, &src)
                }
                _ => checksum_v4(&IcmpPacket::new(&message).unwrap()),
            };
            assert_eq!(checksum, right, "{src} to {dst}");
        }
        assert_eq!(town.nat.fragment_octets(), 0);
        assert!(town.nat.conntrack().is_empty(), "no flow of what is for the station itself");
    }
}

/// What is no echo is judged when it is whole, as if it had come so.
#[test]
fn other_pieces_for_our_station_are_refused_as_if_they_had_come_whole() {
    for v6 in FAMILIES {
        let mut town = Town::new(Plan::default());
        let ends = (distant(v6), OURS.addr(v6));
        let whole = ip(ends.0, ends.1).udp(53, 4000, &[7; 2000]);
        let came = pieces(&whole, ends, 17, 1400);
        keep(&mut town, (SEGMENT, P1), &down(&came[0]));
        let Err((why, said)) = town.bring(SEGMENT, P1, &down(&came[1])) else { panic!() };
        assert_eq!((why, said.len()), (DropReason::Filtered, 0));
        // A container hears that nobody listens, as from any host.
        for to in [OURS, GATEWAY] {
            let ends = (ALICE.addr(v6), to.addr(v6));
            let whole = ip(ends.0, ends.1).udp(4000, 9, &[7; 2000]);
            let came = pieces(&whole, ends, 17, 1400);
            keep(&mut town, (NET, P1), &up(&came[0]));
            let seen = one(town.bring(NET, P1, &up(&came[1])).unwrap(), NET, P1);
            let What::Icmp { ip, kind, code, .. } = seen.what else { panic!("{seen:?}") };
            assert_eq!((kind, code), if v6 { (1, 4) } else { (3, 3) });
            assert_eq!(ip.dst, ALICE.addr(v6));
        }
        if v6 {
            // Link-local, it goes nowhere else: not even by a published port.
            let ends = (FAR.link_local().into(), OURS.addr(v6));
            let whole = ip(ends.0, ends.1).udp(53, 4000, &[7; 2000]);
            let came = pieces(&whole, ends, 17, 1400);
            keep(&mut town, (SEGMENT, P1), &framed(FAR.mac, OURS.mac, &came[0]));
            let last = framed(FAR.mac, OURS.mac, &came[1]);
            let Err((why, said)) = town.bring(SEGMENT, P1, &last) else { panic!() };
            assert_eq!((why, said.len()), (DropReason::NoFlow, 0));
        }
    }
}
