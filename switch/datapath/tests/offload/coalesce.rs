//! Runs of one flow: what is joined, and what ends a run, by the rules of the kernel's GRO.

use datapath::coalesce::{MAX_HEADERS, MAX_RUN, Run};
use datapath::offload::{Gso, Offload};
use datapath::segment::segment;
use pnet::packet::ipv4::{self, MutableIpv4Packet};
use pnet::packet::tcp::TcpFlags;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::craft::{Craft, pattern, read};

type Frame = (Vec<u8>, Offload);

/// How many of `frames` one run takes, and the frame it leaves as.
fn join(frames: &[Frame]) -> (usize, Option<Frame>) {
    let Some((first, offload)) = frames.first() else { return (0, None) };
    let Some(mut run) = Run::start(first, offload) else { return (0, None) };
    for (frame, offload) in &frames[1..] {
        if !run.join(first, frame, offload) {
            break;
        }
    }
    assert!(run.payload_at() <= MAX_HEADERS);
    let mut joined = first.clone();
    for (frame, _) in &frames[1..run.count()] {
        joined.extend_from_slice(&frame[run.payload_at()..]);
    }
    let offload = run.finish(&mut joined, *offload);
    assert_eq!(offload.check(&joined), Ok(()), "a device takes it");
    (run.count(), Some((joined, offload)))
}

fn joined(frames: &[Frame]) -> usize {
    join(frames).0
}

/// A flow's next packets: `lens` octets of payload each.
fn train(head: &Craft, lens: &[usize]) -> Vec<Craft> {
    let mut sequence = head.sequence;
    let mut identification = head.identification;
    let packet = |(index, len): (usize, &usize)| {
        let flags = if index == 0 { head.flags } else { head.flags & !TcpFlags::CWR };
        let payload = pattern(*len, index as u64 + 7);
        let craft = Craft { sequence, identification, flags, payload, ..head.clone() };
        sequence = sequence.wrapping_add(u32::try_from(*len).unwrap());
        identification = identification.wrapping_add(1);
        craft
    };
    lens.iter().enumerate().map(packet).collect()
}

fn whole(craft: &Craft) -> Frame {
    (craft.frame(), Offload::NONE)
}

/// Changes octets of the IP header and makes its checksum anew.
fn bend(frame: &mut Frame, at: usize, octets: &[u8]) {
    frame.0[14 + at..][..octets.len()].copy_from_slice(octets);
    if frame.0[12] == 0x08 {
        let mut ip = MutableIpv4Packet::new(&mut frame.0[14..]).unwrap();
        let checksum = ipv4::checksum(&ip.to_immutable());
        ip.set_checksum(checksum);
    }
}

fn heads() -> [Craft; 4] {
    [Craft::tcp4(100), Craft::tcp6(100), Craft::udp4(100), Craft::udp6(100)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// What is joined and cut again is what it was, by pnet's reading and to the octet.
    #[test]
    fn cutting_undoes_joining(
        (v6, udp) in any::<(bool, bool)>(),
        tcp_options in 0u8..=10,
        (size, last) in (8usize..1460, 8usize..1460),
        made in vec(any::<bool>(), 2..50),
        (identification, sequence) in any::<(u16, u32)>(),
        (push, cwr, ece) in any::<(bool, bool, bool)>(),
    ) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = TcpFlags::ACK | flag(cwr, TcpFlags::CWR) | flag(ece, TcpFlags::ECE);
        let head =
            Craft { v6, udp, tcp_options, identification, sequence, flags, ..Craft::tcp4(0) };
        let mut lens = vec![size; made.len()];
        *lens.last_mut().unwrap() = last.min(size);
        let mut crafts = train(&head, &lens);
        crafts.last_mut().unwrap().flags |= flag(push, TcpFlags::PSH);
        let frames: Vec<_> = crafts
            .iter()
            .zip(&made)
            .map(|(craft, made)| if *made { whole(craft) } else { craft.partial() })
            .collect();
        let (count, run) = join(&frames);
        let (run, offload) = run.unwrap();
        let full = run.len() + size > 65_000;
        prop_assert!(count == frames.len() || full, "{count} of {}", frames.len());
        let mut cut = Vec::new();
        let pieces = segment(&run, offload, &mut Vec::new(), &mut |frame| {
            read(frame);
            cut.push(frame.to_vec());
        });
        prop_assert_eq!(pieces, Ok(count));
        for (got, craft) in cut.iter().zip(&crafts) {
            prop_assert_eq!(got, &craft.frame());
        }
    }

    /// Neighbours in a burst that differ anywhere in their headers never become one.
    #[test]
    fn a_difference_anywhere_in_the_headers_ends_a_run(
        which in 0usize..4,
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let head = Craft { tcp_options: 3, ..heads()[which].clone() };
        let crafts = train(&head, &[100, 100]);
        let frames: Vec<_> = crafts.iter().map(Craft::partial).collect();
        prop_assert_eq!(joined(&frames), 2);
        let mut bent = frames.clone();
        let at = at.index(crafts[0].body());
        bent[1].0[at] ^= 1 << bit;
        // Nothing is said by these, as long as the header's own checksum is right: the identification
        // of a packet that will not be cut, the field of a checksum still to be made, and PSH.
        let network = head.network();
        let (field, push) = match head.udp {
            true => (6..8, usize::MAX),
            false => (16..18, head.transport() + 13),
        };
        let says_nothing = (!head.v6 && (network + 4..network + 6).contains(&at))
            || (head.transport() + field.start..head.transport() + field.end).contains(&at)
            || (at == push && 1 << bit == TcpFlags::PSH);
        if says_nothing {
            bend(&mut bent[1], 0, &[]);
        }
        prop_assert_eq!(joined(&bent), if says_nothing { 2 } else { 1 }, "octet {}", at);
    }
}

#[test]
fn a_run_ends_with_a_push_and_with_a_shorter_packet() {
    for head in heads() {
        let frames: Vec<_> = train(&head, &[100, 100, 60, 60]).iter().map(whole).collect();
        assert_eq!(joined(&frames), 3);
        let frames: Vec<_> = train(&head, &[100, 101]).iter().map(whole).collect();
        assert_eq!(joined(&frames), 1);
        if !head.udp {
            let mut crafts = train(&head, &[100; 4]);
            crafts[1].flags |= TcpFlags::PSH;
            let frames: Vec<_> = crafts.iter().map(whole).collect();
            assert_eq!(joined(&frames), 2);
            assert_eq!(joined(&frames[1..]), 0, "one that pushes begins none");
        }
    }
}

#[test]
fn only_octets_in_order_are_joined() {
    for head in [Craft::tcp4(100), Craft::tcp6(100)] {
        for lost in [-100i32, -1, 1, 100, i32::MAX] {
            let mut crafts = train(&head, &[100; 2]);
            crafts[1].sequence = crafts[1].sequence.wrapping_add_signed(lost);
            assert_eq!(joined(&crafts.iter().map(whole).collect::<Vec<_>>()), 1);
        }
        // Nor an acknowledgement without octets.
        let crafts = train(&head, &[100, 0]);
        assert_eq!(joined(&crafts.iter().map(whole).collect::<Vec<_>>()), 1);
        assert_eq!(joined(&[whole(&train(&head, &[0])[0])]), 0);
        for flag in [TcpFlags::FIN, TcpFlags::SYN, TcpFlags::RST, TcpFlags::URG] {
            let mut crafts = train(&head, &[100; 2]);
            crafts[1].flags |= flag;
            assert_eq!(joined(&crafts.iter().map(whole).collect::<Vec<_>>()), 1);
            crafts[0].flags |= flag;
            assert_eq!(joined(&crafts.iter().map(whole).collect::<Vec<_>>()), 0);
        }
    }
}

/// RFC 3168 §6.1.2: CWR is said once, in front; who cuts the run keeps it there.
#[test]
fn a_window_reduction_begins_a_run_and_is_never_swallowed_by_one() {
    let head = Craft { flags: TcpFlags::ACK | TcpFlags::CWR, ..Craft::tcp4(0) };
    let crafts = train(&head, &[100; 2]);
    let (count, run) = join(&crafts.iter().map(whole).collect::<Vec<_>>());
    assert_eq!((count, run.unwrap().1.gso), (2, Gso::Tcp4 { size: 100, ecn: true }));
    let mut crafts = train(&Craft::tcp4(0), &[100; 2]);
    crafts[1].flags |= TcpFlags::CWR;
    assert_eq!(joined(&crafts.iter().map(whole).collect::<Vec<_>>()), 1);
}

/// Cut again, identifications count up: what may still become fragments must have done so before.
#[test]
fn identifications_count_up_where_they_mean_something() {
    for head in [Craft::tcp4(100), Craft::udp4(100)] {
        for (second, expected) in [(0x1235u16, 2), (0x1234, 1), (0x1236, 1)] {
            let mut frames: Vec<_> = train(&head, &[100; 2]).iter().map(Craft::partial).collect();
            bend(&mut frames[1], 4, &second.to_be_bytes());
            assert_eq!(joined(&frames), 2, "not to be fragmented");
            for frame in &mut frames {
                bend(frame, 6, &[0]);
            }
            assert_eq!(joined(&frames), expected);
        }
    }
}

/// A checksum that was made is worth nothing until it is verified; joined unseen, a wrong one would come
/// out right.
#[test]
fn a_packet_whose_checksum_is_wrong_is_left_alone() {
    for head in heads() {
        for wrong in 0..3 {
            let mut frames: Vec<_> = train(&head, &[100; 3]).iter().map(whole).collect();
            let last = frames[wrong].0.len() - 1;
            frames[wrong].0[last] ^= 1;
            assert_eq!(joined(&frames), wrong.max(1));
            if !head.v6 {
                let mut frames: Vec<_> = train(&head, &[100; 3]).iter().map(whole).collect();
                frames[wrong].0[24] ^= 1;
                assert_eq!(joined(&frames), wrong.max(1));
            }
        }
        // Verified by somebody trusted it is not verified again.
        let mut frames: Vec<_> = train(&head, &[100; 2]).iter().map(whole).collect();
        for (frame, offload) in &mut frames {
            *frame.last_mut().unwrap() ^= 1;
            offload.valid = true;
        }
        assert_eq!(joined(&frames), 2);
    }
    // In IPv4 a datagram may have none; cutting would make one.
    let mut frames: Vec<_> = train(&Craft::udp4(100), &[100; 2]).iter().map(whole).collect();
    for (frame, _) in &mut frames {
        frame[40..42].fill(0);
    }
    assert_eq!(joined(&frames), 0);
}

#[test]
fn what_is_no_plain_packet_begins_no_run() {
    for head in heads() {
        let craft = train(&head, &[100])[0].clone();
        let (frame, offload) = whole(&craft);
        assert!(Run::start(&frame, &offload).is_some());
        for len in 0..frame.len() {
            assert!(Run::start(&frame[..len], &offload).is_none(), "cut short at {len}");
        }
        let mut padded = frame.clone();
        padded.extend([0; 6]);
        assert!(Run::start(&padded, &offload).is_none(), "padding would become payload");
        let (tagged, offload) = whole(&Craft { vlan: true, ..craft.clone() });
        assert!(Run::start(&tagged, &offload).is_none());
        let (cut, offload) = craft.super_frame(50);
        assert!(Run::start(&cut, &offload).is_none(), "it is a run already");
        if !head.v6 {
            let (optioned, offload) = whole(&Craft { ip_options: 1, ..craft.clone() });
            assert!(Run::start(&optioned, &offload).is_none());
            for octets in [[0x20, 0], [0x80, 0], [0, 1], [0x40, 1]] {
                let mut piece = (frame.clone(), Offload::NONE);
                bend(&mut piece, 6, &octets);
                assert!(Run::start(&piece.0, &piece.1).is_none(), "{octets:?}");
            }
        }
    }
}

#[test]
fn a_run_is_bounded_in_packets_and_octets() {
    for head in heads() {
        let frames: Vec<_> = train(&head, &[100; 100]).iter().map(Craft::partial).collect();
        assert_eq!(joined(&frames), MAX_RUN);
        let frames: Vec<_> = train(&head, &[1448; 64]).iter().map(Craft::partial).collect();
        assert_eq!(joined(&frames), 44);
    }
}
