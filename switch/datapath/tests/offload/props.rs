//! What must hold for every frame, found out by random ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath::DropReason;
use datapath::checksum::{self, Checksum, PseudoSum, Sum};
use datapath::offload::{
    Gso, MAX_DATAGRAMS, MAX_SEGMENTS, MIN_TCP_SEGMENT, OFFLOAD_HEADER_LEN, Offload, PartialChecksum,
};
use datapath::segment::segment;
use pnet::packet::tcp::TcpFlags;
use pnet::util;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::craft::{Craft, Extension, pattern, read};

/// Failing inputs are printed whole; nothing is written beside the sources.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Words around the two zeros of one's complement more often than not.
fn word() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(0x7fff),
        Just(0x8000),
        Just(0xfffe),
        Just(0xffff),
        any::<u16>()
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| IpAddr::from(Ipv4Addr::from(octets))),
        vec(word(), 8).prop_map(|words| {
            let words: [u16; 8] = words.try_into().expect("eight words");
            IpAddr::from(Ipv6Addr::from(words))
        }),
    ]
}

fn extensions() -> impl Strategy<Value = Vec<Extension>> {
    let one = prop_oneof![
        Just(Extension::HopByHop),
        Just(Extension::Destination),
        Just(Extension::Routing),
        Just(Extension::AtomicFragment),
    ];
    prop_oneof![3 => Just(Vec::new()), 2 => vec(one, 1..4)]
}

prop_compose! {
    fn craft()(
        (vlan, v6, udp) in any::<(bool, bool, bool)>(),
        (ip_options, tcp_options) in (0u8..=10, 0u8..=10),
        extensions in extensions(),
        identification in word(),
        sequence in prop_oneof![any::<u32>(), 0xffff_ff00..=u32::MAX],
        flags in any::<u8>(),
        urgent in word(),
        len in prop_oneof![4 => 0usize..300, 3 => 0usize..5_000, 2 => 0usize..=65_507],
        seed in any::<u64>(),
    ) -> Craft {
        let flags = flags & !(TcpFlags::SYN | TcpFlags::RST);
        let payload = pattern(len, seed);
        let (ip_options, extensions) = if v6 { (0, extensions) } else { (ip_options, Vec::new()) };
        let mut craft = Craft {
            vlan, v6, udp, ip_options, extensions, tcp_options, identification, sequence, flags,
            urgent, payload,
        };
        craft.clamp();
        craft
    }
}

fn size() -> impl Strategy<Value = u16> {
    prop_oneof![1u16..=16, 1u16..=1_460, 1_461u16..=65_534]
}

fn gso() -> impl Strategy<Value = Gso> {
    prop_oneof![
        Just(Gso::None),
        any::<(u16, bool)>().prop_map(|(size, ecn)| Gso::Tcp4 { size, ecn }),
        any::<(u16, bool)>().prop_map(|(size, ecn)| Gso::Tcp6 { size, ecn }),
        any::<u16>().prop_map(|size| Gso::Udp { size }),
    ]
}

fn offload() -> impl Strategy<Value = Offload> {
    let near = prop_oneof![0u16..120, any::<u16>()];
    let partial = proptest::option::of(
        (near.clone(), prop_oneof![Just(6u16), Just(16u16), any::<u16>()])
            .prop_map(|(start, offset)| PartialChecksum { start, offset }),
    );
    (partial, gso(), any::<bool>(), near).prop_map(|(checksum, gso, valid, header_len)| Offload {
        checksum,
        gso,
        valid,
        header_len,
    })
}

/// Everything the module does to a frame, which must neither panic nor leave the frame's bounds.
fn exercise(frame: &[u8], offload: Offload) -> Result<(), TestCaseError> {
    let checked = offload.check(frame);
    let refused = [DropReason::BadOffload, DropReason::TooManySegments];
    prop_assert!(checked.is_ok() || checked.is_err_and(|why| refused.contains(&why)));
    prop_assert!(offload.longest_packet(frame) <= frame.len());

    let mut frames = Vec::new();
    let mut scratch = Vec::new();
    let cut = segment(frame, offload, &mut scratch, &mut |piece| frames.push(piece.to_vec()));
    prop_assert_eq!(cut.is_ok(), checked.is_ok());
    prop_assert_eq!(cut.unwrap_or(0), frames.len());
    prop_assert!(checked.is_err() || !frames.is_empty());
    prop_assert!(frames.iter().all(|piece| piece.len() <= frame.len()));
    if let (Ok(_), Some(size)) = (cut, offload.gso.size()) {
        let longest = frames.iter().map(Vec::len).max().unwrap_or(0);
        prop_assert!(longest <= frame.len().min(offload.longest_packet(frame) + 18));
        prop_assert!(size > 0);
    }

    let mut whole = frame.to_vec();
    match offload.complete(&mut whole) {
        Ok(()) => {
            prop_assert_eq!(&frames, &[whole.clone()]);
            let field = offload.checksum.map_or(0, PartialChecksum::field);
            prop_assert_eq!(&whole[..field], &frame[..field]);
            if offload.checksum.is_some() {
                prop_assert_eq!(&whole[field + 2..], &frame[field + 2..]);
            }
        }
        Err(reason) => {
            prop_assert!(refused.contains(&reason));
            prop_assert_eq!(&whole[..], frame);
        }
    }

    let verified = offload.verify(frame);
    let reasons = [DropReason::BadL4Checksum, DropReason::Malformed];
    prop_assert!(verified.is_ok() || reasons.contains(&verified.unwrap_err()));
    for result in [
        Offload::for_tcp(&mut frame.to_vec(), offload.header_len),
        Offload::for_udp(&mut frame.to_vec(), offload.header_len),
    ] {
        let reasons = [DropReason::BadOffload, DropReason::TooManySegments, DropReason::Malformed];
        prop_assert!(result.is_ok() || reasons.contains(&result.unwrap_err()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(384))]

    /// The segments are the frame: all of its payload in order, each header as its place demands.
    #[test]
    fn segments_are_the_frame(craft in craft(), size in size()) {
        let (frame, offload) = craft.super_frame(size);
        let mut segments = Vec::new();
        let mut scratch = Vec::new();
        let result =
            segment(&frame, offload, &mut scratch, &mut |piece| segments.push(read(piece)));
        let step = usize::from(size);
        let count = craft.payload.len().div_ceil(step).max(1);
        if craft.udp && count > MAX_DATAGRAMS {
            prop_assert_eq!(result, Err(DropReason::BadOffload));
            prop_assert!(segments.is_empty());
            return Ok(());
        }
        if !craft.udp && (count > MAX_SEGMENTS || step < MIN_TCP_SEGMENT) {
            prop_assert_eq!(result, Err(DropReason::TooManySegments));
            prop_assert!(segments.is_empty());
            return Ok(());
        }
        prop_assert_eq!(result, Ok(count));
        prop_assert_eq!(segments.len(), count);

        let original = read(&craft.frame());
        let mut payload = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let (at, last) = (payload.len(), index + 1 == count);
            prop_assert!(last || segment.payload.len() == step);
            prop_assert_eq!(&segment.headers, &original.headers);
            if !craft.v6 {
                let index = u16::try_from(index).expect("at most one per octet");
                prop_assert_eq!(segment.identification, craft.identification.wrapping_add(index));
            }
            if !craft.udp {
                let at = u32::try_from(at).expect("at most 65,535");
                prop_assert_eq!(segment.sequence, craft.sequence.wrapping_add(at));
                let last_only = if last { 0 } else { TcpFlags::FIN | TcpFlags::PSH };
                let first_only = if index == 0 { 0 } else { TcpFlags::CWR };
                let urgent = craft.flags & TcpFlags::URG != 0;
                let passed = urgent && index > 0 && u32::from(craft.urgent) <= at;
                let passed = if passed { TcpFlags::URG } else { 0 };
                prop_assert_eq!(segment.flags, craft.flags & !(last_only | first_only | passed));
                let ahead = u32::from(craft.urgent).saturating_sub(at);
                let ahead = if urgent { ahead } else { craft.urgent.into() };
                prop_assert_eq!(u32::from(segment.urgent), ahead);
            }
            payload.extend_from_slice(&segment.payload);
        }
        prop_assert_eq!(payload, craft.payload);
    }

    /// A frame left partial becomes the frame it would have been.
    #[test]
    fn a_partial_checksum_completes_to_the_whole_one(craft in craft()) {
        let (mut frame, offload) = craft.partial();
        prop_assert_eq!(offload.check(&frame), Ok(()));
        prop_assert_eq!(offload.verify(&frame), Ok(()));
        let mut pieces = Vec::new();
        let mut keep = |piece: &[u8]| pieces.push(piece.to_vec());
        let count = segment(&frame, offload, &mut Vec::new(), &mut keep);
        prop_assert_eq!(count, Ok(1));
        prop_assert_eq!(offload.complete(&mut frame), Ok(()));
        prop_assert_eq!(&frame, &pieces[0]);
        prop_assert_eq!(read(&frame), read(&craft.frame()));
        prop_assert_eq!(&frame, &craft.frame());
    }

    /// Our own frames are what a container's kernel would have made.
    #[test]
    fn our_own_offload_header_is_the_kernels(craft in craft(), size in size()) {
        prop_assume!(!craft.extensions.contains(&Extension::Routing));
        let mut frame = craft.frame();
        let made = match craft.udp {
            true => Offload::for_udp(&mut frame, size),
            false => Offload::for_tcp(&mut frame, size),
        };
        let (expected_frame, mut expected) = craft.super_frame(size);
        if craft.payload.len() <= usize::from(size) {
            expected.gso = Gso::None;
        }
        if let Err(reason) = expected.check(&expected_frame) {
            prop_assert_eq!(made, Err(reason));
            prop_assert_eq!(frame, craft.frame());
        } else {
            prop_assert_eq!(made, Ok(expected));
            prop_assert_eq!(frame, expected_frame);
        }
    }

    /// A checksum is right as sent, and wrong once any bit it covers has turned.
    #[test]
    fn a_turned_bit_is_found(craft in craft(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut frame = craft.frame();
        prop_assert_eq!(Offload::NONE.verify(&frame), Ok(()));
        prop_assume!(!craft.extensions.contains(&Extension::Routing));
        // Behind the ports no bit makes another packet of it, but for lengths.
        let from = craft.transport();
        let at = from + at.index(frame.len() - from);
        let lengths = if craft.udp { 4..6 } else { 12..13 };
        prop_assume!(!lengths.contains(&(at - from)));
        let field_was_one_bit = craft.udp && !craft.v6;
        frame[at] ^= 1 << bit;
        // A UDP checksum of zero says that none was made.
        prop_assume!(!(field_was_one_bit && frame[from + 6..][..2] == [0, 0]));
        prop_assert_eq!(Offload::NONE.verify(&frame), Err(DropReason::BadL4Checksum));
        let valid = Offload { valid: true, ..Offload::NONE };
        prop_assert_eq!(valid.verify(&frame), Ok(()));
        if !craft.v6 {
            let network = craft.network();
            prop_assert_eq!(checksum::verify_ipv4_header(&frame[network..]), Ok(()));
            frame[network + 8] ^= 1 << bit;
            let reason = checksum::verify_ipv4_header(&frame[network..]);
            prop_assert_eq!(reason, Err(DropReason::BadIpChecksum));
        }
    }
}

proptest! {
    #![proptest_config(config(4_096))]

    #[test]
    fn no_octets_panic(
        frame in vec(any::<u8>(), 0..200),
        header in any::<[u8; 10]>(),
        offload in offload(),
    ) {
        exercise(&frame, offload)?;
        if let Ok(offload) = Offload::parse(&header) {
            exercise(&frame, offload)?;
        }
    }

    /// Nearer the truth: a sound frame in which a few octets were overwritten.
    #[test]
    fn no_near_frame_panics(
        craft in craft(),
        size in size(),
        edits in vec((0usize..120, any::<u8>()), 0..4),
        cut in proptest::option::of(0usize..120),
        strange in offload(),
        keep in any::<bool>(),
    ) {
        let mut craft = craft;
        craft.payload.truncate(400);
        let (mut frame, offload) = craft.super_frame(size);
        for (at, octet) in edits {
            if let Some(place) = frame.get_mut(at) {
                *place = octet;
            }
        }
        frame.truncate(cut.unwrap_or(usize::MAX));
        exercise(&frame, if keep { offload } else { strange })?;
    }

    #[test]
    fn a_header_reads_as_it_was_written(offload in offload()) {
        let mut header = [0xaa; OFFLOAD_HEADER_LEN];
        offload.emit(&mut header);
        prop_assert_eq!(Offload::parse(&header), Ok(offload));
    }

    /// Sums agree with pnet's, of any length, in one piece or in two.
    #[test]
    fn sums_are_pnets(
        octets in vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 1..300),
        at in any::<prop::sample::Index>(),
    ) {
        let expected = util::checksum(&octets, usize::MAX);
        prop_assert_eq!(Sum::of(&octets).checksum(), Checksum(expected));
        let even = at.index(octets.len()) & !1;
        let (head, tail) = octets.split_at(even);
        prop_assert_eq!(Sum::of(head).and(Sum::of(tail)).checksum(), Checksum(expected));
    }

    /// An update equals a recomputation, to the bit, as long as one word remains that is not zero.
    #[test]
    fn updates_are_recomputations(
        words in vec(word(), 1..40),
        at in any::<prop::sample::Index>(),
        new in word(),
    ) {
        let mut header = vec![0x4500];
        header.extend(&words);
        let at = 1 + at.index(words.len());
        let before = Checksum(of_words(&header));
        let old = std::mem::replace(&mut header[at], new);
        prop_assert_eq!(before.replace(old, new), Checksum(of_words(&header)));
    }

    #[test]
    fn wide_updates_are_recomputations(
        (before, old, new) in (vec(word(), 1..8), any::<u32>(), any::<u32>()),
        (old_address, new_address) in (address(), address()),
    ) {
        let sum = |octets: &[u8]| {
            let mut all = vec![0x45, 0x00];
            all.extend(before.iter().flat_map(|word| word.to_be_bytes()));
            all.extend(octets);
            Checksum(util::checksum(&all, usize::MAX))
        };
        let was = sum(&old.to_be_bytes());
        prop_assert_eq!(was.replace_u32(old, new), sum(&new.to_be_bytes()));
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let (was, is) = (sum(&octets(old_address)), sum(&octets(new_address)));
        prop_assert_eq!(was.replace_address(old_address, new_address), is);
        // The partial form is the complement of the same.
        let partial = PseudoSum(!was.0).replace_address(old_address, new_address);
        prop_assert_eq!(partial, PseudoSum(!is.0));
    }

    /// Rewriting a partial frame's address, then completing it, is rewriting it whole.
    #[test]
    fn a_partial_sum_follows_its_addresses(
        (src, dst) in (any::<[u8; 4]>(), any::<[u8; 4]>()),
        (new, len, protocol) in (any::<[u8; 4]>(), any::<u16>(), any::<u8>()),
    ) {
        let sum = |src: [u8; 4], len: u16| {
            Sum::pseudo_header(src.into(), dst.into(), protocol, usize::from(len)).partial()
        };
        prop_assume!(protocol != 0);
        prop_assert_eq!(sum(src, len).replace_address(src.into(), new.into()), sum(new, len));
        prop_assert_eq!(sum(src, len).replace(len, 40), sum(src, 40));
    }
}

fn of_words(words: &[u16]) -> u16 {
    let octets: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    util::checksum(&octets, usize::MAX)
}
