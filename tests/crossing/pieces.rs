//! Packets in pieces: gathered before they are translated, cut again behind it (RFC 4787 REQ-13, REQ-14).

use crate::town::{NET, OURS, P1, Plan, SEGMENT, Town, distant};
use crate::ways::{one, up};
use crate::wire::{ALICE, What, ip};

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
