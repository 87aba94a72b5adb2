//! Packets in pieces: gathered before they are translated, cut again behind it (RFC 4787 REQ-13, REQ-14).

use datapath::{DropReason, Offload};
use pnet::packet::Packet as _;
use pnet::packet::ipv4::{Ipv4Packet, checksum};
use pnet::packet::tcp::TcpFlags;

use crate::errors::dont_fragment;
use crate::town::{NET, OURS, P1, Plan, SEGMENT, Town, distant};
use crate::ways::{one, up};
use crate::wire::{ALICE, Tcp, What, ip};

#[test]
fn what_may_be_cut_is_cut_in_order() {
    let mut town = Town::new(Plan { mtu: 1000, ..Plan::default() });
    let payload: Vec<u8> = (0..1400_u32).map(|n| n.to_le_bytes()[0]).collect();
    let packet = ip(ALICE.v4, distant(false)).ttl(9).udp(4000, 53, &payload);
    let sent = town.bring(NET, P1, &up(&packet)).unwrap();
    let mut whole = Vec::new();
    for sent in &sent {
        assert!(sent.octets.len() <= 1014, "{} octets", sent.octets.len());
        let What::Piece { ip, at, octets, .. } = sent.seen().what else { panic!() };
        assert_eq!((ip.src, ip.dst, ip.ttl), (OURS.addr(false), distant(false), 8));
        assert_eq!(at, whole.len());
        whole.extend(octets);
    }
    assert_eq!((sent.len(), &whole[8..]), (2, &payload[..]));
    assert_eq!(whole[..4], packet[20..24], "the port is kept");
}

/// RFC 791 §3.2, RFC 1191 §4: a sender that lets its packets be cut is told nothing, and those of a frame still
/// to be segmented are packets like others. RFC 6864 §4.1: no two of them are of one identification.
#[test]
fn segments_that_may_be_cut_are_cut_each_by_itself() {
    let payload: Vec<u8> = (0..10_001_u32).map(|n| n.to_le_bytes()[0]).collect();
    let header = ip(ALICE.v4, distant(false)).ttl(9);
    let data = Tcp { flags: TcpFlags::ACK, seq: 0xffff_f000, ack: 8 };
    for (udp, packet) in
        [(true, header.udp(4000, 53, &payload)), (false, header.tcp(4000, 53, data, &payload))]
    {
        let mut town = Town::new(Plan { mtu: 600, ..Plan::default() });
        let mut frame = up(&packet);
        let make = if udp { Offload::for_udp } else { Offload::for_tcp };
        let offload = make(&mut frame, 1400).unwrap();
        let sent = town.bring_with(NET, P1, &frame, offload).unwrap();
        let mut segments = vec![];
        for sent in &sent {
            assert!(sent.octets.len() <= 614, "{} octets", sent.octets.len());
            assert_eq!((sent.zone, sent.offload), (SEGMENT, Offload::NONE));
            let ip = Ipv4Packet::new(&sent.octets[14..]).unwrap();
            assert_eq!(ip.get_checksum(), checksum(&ip));
            let ends = (ip.get_source().into(), ip.get_destination().into());
            assert_eq!((ends, ip.get_ttl()), ((OURS.addr(false), distant(false)), 8));
            let identification = ip.get_identification();
            if ip.get_fragment_offset() == 0 {
                segments.push((identification, Vec::new()));
            }
            let (of, begun) = segments.last_mut().unwrap();
            let at = usize::from(ip.get_fragment_offset()) * 8;
            assert_eq!((identification, at), (*of, begun.len()), "in order");
            begun.extend_from_slice(ip.payload());
        }
        // The last one fits as it is.
        assert_eq!((segments.len(), sent.len()), (8, 7 * 3 + 1));
        let mut got = Vec::new();
        for (number, (identification, octets)) in segments.iter().enumerate() {
            assert!(segments[..number].iter().all(|(other, _)| other != identification));
            let whole = ip(OURS.v4, distant(false)).carrying(if udp { 17 } else { 6 }, octets);
            match crate::wire::read(&up(&whole)).what {
                What::Udp { ports, payload, .. } if udp => {
                    assert_eq!(ports, (4000, 53));
                    got.extend(payload);
                }
                What::Tcp { ports, seq, payload, .. } if !udp => {
                    let at = u32::try_from(got.len()).unwrap();
                    assert_eq!((ports, seq), ((4000, 53), data.seq.wrapping_add(at)));
                    got.extend(payload);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(got == payload, "{udp}");
        // Whoever forbids it is told (RFC 1191).
        let mut town = Town::new(Plan { mtu: 600, ..Plan::default() });
        let mut forbidden = packet;
        dont_fragment(&mut forbidden);
        let mut frame = up(&forbidden);
        let offload = make(&mut frame, 1400).unwrap();
        let Err((why, said)) = town.bring_with(NET, P1, &frame, offload) else { panic!() };
        assert_eq!((why, said.len()), (DropReason::TooBig, 1));
        let What::Icmp { kind, code, word, .. } = said[0].seen().what else { panic!() };
        assert_eq!((kind, code, word), (3, 4, 600));
    }
}

/// In any order, and no longer than they came.
#[test]
fn pieces_are_gathered_translated_and_cut_again() {
    for v6 in [false, true] {
        for backwards in [false, true] {
            let mut town = Town::new(Plan::default());
            let (src, dst) = (ALICE.addr(v6), distant(v6));
            let payload: Vec<u8> = (0..3000_u32).map(|n| n.to_le_bytes()[0]).collect();
            let whole = ip(src, dst).udp(4000, 53, &payload);
            let behind = &whole[if v6 { 40 } else { 20 }..];
            let mut pieces: Vec<_> = [0..1400, 1400..2800, 2800..3008]
                .into_iter()
                .map(|range| {
                    let at = u16::try_from(range.start).unwrap();
                    let more = range.end < behind.len();
                    ip(src, dst).fragment(at, more).carrying(17, &behind[range])
                })
                .collect();
            if backwards {
                pieces.reverse();
            }
            let last = pieces.pop().unwrap();
            for piece in pieces {
                let kept = town.bring(NET, P1, &up(&piece)).unwrap();
                assert_eq!(kept.len(), 0);
            }
            let sent = town.bring(NET, P1, &up(&last)).unwrap();
            assert!(sent.len() > 1, "{v6}");
            let longest = sent.iter().map(|sent| sent.octets.len() - 14).max().unwrap();
            let came = 1400 + if v6 { 48 } else { 20 };
            assert!(longest <= came, "{longest}");
            // What is cut is put together again where it arrives.
            assert!(sent.iter().all(|sent| sent.zone == SEGMENT));
        }
    }
}

/// A datagram of the world's in pieces finds its flow when all are there.
#[test]
fn an_answer_in_pieces_comes_back_whole() {
    let mut town = Town::new(Plan::default());
    let question = ip(ALICE.v4, distant(false)).udp(4000, 53, b"q");
    let _ = town.bring(NET, P1, &up(&question)).unwrap();
    let payload = [9; 1000];
    let whole = ip(distant(false), OURS.v4).udp(53, 4000, &payload);
    let piece = |range: std::ops::Range<usize>, more| {
        let at = u16::try_from(range.start).unwrap();
        let packet = ip(distant(false), OURS.v4).fragment(at, more);
        crate::ways::down(&packet.carrying(17, &whole[20..][range]))
    };
    let kept = town.bring(SEGMENT, P1, &piece(504..1008, false)).unwrap();
    assert_eq!(kept.len(), 0);
    let sent = town.bring(SEGMENT, P1, &piece(0..504, true)).unwrap();
    // It may leave in one piece or in pieces no longer than it came.
    let octets: usize = sent.iter().map(|sent| sent.octets.len()).sum();
    assert!(octets >= 1014 + 28 && sent.iter().all(|sent| sent.zone == NET));
    if let [_] = &sent[..] {
        let seen = one(sent, NET, P1);
        let What::Udp { ip, payload: got, .. } = seen.what else { panic!("{seen:?}") };
        assert_eq!((ip.dst, &got[..]), (ALICE.addr(false), &payload[..]));
    }
}
