//! The offload layer against pnet: headers, checksums, segmentation.

mod coalesce;
mod craft;
mod every;
mod kernel;
mod props;
mod verify;

use craft::{Craft, Extension, Read, read};
use datapath::DropReason;
use datapath::offload::{Gso, Offload, PartialChecksum};
use datapath::segment::segment;
use pnet::packet::tcp::TcpFlags;

const ACK: u8 = TcpFlags::ACK;
const PSH: u8 = TcpFlags::PSH;
const FIN: u8 = TcpFlags::FIN;
const CWR: u8 = TcpFlags::CWR;
const URG: u8 = TcpFlags::URG;

/// The plain frames `frame` becomes, each read and found right by pnet.
fn cut(frame: &[u8], offload: Offload) -> Result<Vec<Read>, DropReason> {
    let mut segments = Vec::new();
    let mut scratch = Vec::new();
    let count = segment(frame, offload, &mut scratch, &mut |piece| segments.push(read(piece)))?;
    assert_eq!(count, segments.len());
    Ok(segments)
}

fn cut_into(craft: &Craft, size: u16) -> Result<Vec<Read>, DropReason> {
    let (frame, offload) = craft.super_frame(size);
    cut(&frame, offload)
}

fn lengths(segments: &[Read]) -> Vec<usize> {
    segments.iter().map(|segment| segment.payload.len()).collect()
}

#[test]
fn a_plain_frame_is_handed_on_untouched() {
    let frame = Craft::udp6(100).frame();
    let mut seen = Vec::new();
    let count = segment(&frame, Offload::NONE, &mut Vec::new(), &mut |piece| {
        seen.push((piece.as_ptr(), piece.len()));
    });
    assert_eq!(count, Ok(1));
    assert_eq!(seen, [(frame.as_ptr(), frame.len())]);
}

#[test]
fn what_is_no_ip_is_handed_on_too() {
    let runt = [0xff; 9];
    assert_eq!(segment(&runt, Offload::NONE, &mut Vec::new(), &mut |_| ()), Ok(1));
    assert_eq!(Offload::NONE.check(&[]), Ok(()));
}

#[test]
fn the_last_segment_is_what_remains() {
    assert_eq!(lengths(&cut_into(&Craft::tcp4(3_000), 1_460).unwrap()), [1_460, 1_460, 80]);
    assert_eq!(lengths(&cut_into(&Craft::udp6(3_000), 1_000).unwrap()), [1_000, 1_000, 1_000]);
    assert_eq!(lengths(&cut_into(&Craft::tcp6(1_440), 1_440).unwrap()), [1_440]);
    assert_eq!(lengths(&cut_into(&Craft::tcp6(9), 1_440).unwrap()), [9]);
    assert_eq!(lengths(&cut_into(&Craft::tcp4(0), 1_460).unwrap()), [0]);
    assert_eq!(lengths(&cut_into(&Craft::udp4(0), 1_460).unwrap()), [0]);
}

#[test]
fn the_largest_packets_are_cut() {
    let mut craft = Craft::tcp4(65_535);
    craft.clamp();
    assert_eq!(craft.frame().len(), 14 + 65_535);
    assert_eq!(cut_into(&craft, 1_460).unwrap().len(), 65_495_usize.div_ceil(1_460));
    let mut craft = Craft { vlan: true, ..Craft::tcp6(65_535) };
    craft.clamp();
    assert_eq!(craft.frame().len(), 18 + 40 + 65_535);
    assert_eq!(cut_into(&craft, 65_534).unwrap().len(), 1);
}

#[test]
fn fin_and_psh_are_last_and_cwr_is_first() {
    let craft = Craft { flags: ACK | PSH | FIN | CWR, ..Craft::tcp4(30) };
    let flags: Vec<u8> =
        cut_into(&craft, 10).unwrap().iter().map(|segment| segment.flags).collect();
    assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
}

#[test]
fn the_identification_goes_up_and_around() {
    let craft = Craft { identification: 0xffff, ..Craft::udp4(30) };
    let ids: Vec<u16> =
        cut_into(&craft, 10).unwrap().iter().map(|segment| segment.identification).collect();
    assert_eq!(ids, [0xffff, 0, 1]);
}

#[test]
fn the_sequence_number_goes_up_and_around() {
    let craft = Craft { sequence: 0xffff_fffb, ..Craft::tcp6(20) };
    let numbers: Vec<u32> =
        cut_into(&craft, 10).unwrap().iter().map(|segment| segment.sequence).collect();
    assert_eq!(numbers, [0xffff_fffb, 5]);
}

/// RFC 9293 §3.1: the urgent pointer counts from the sequence number of its own segment.
#[test]
fn urgent_data_ends_at_the_same_octet() {
    let craft = Craft { flags: ACK | URG, urgent: 12, ..Craft::tcp4(30) };
    let segments = cut_into(&craft, 10).unwrap();
    let urgent: Vec<(u8, u16)> =
        segments.iter().map(|segment| (segment.flags & URG, segment.urgent)).collect();
    assert_eq!(urgent, [(URG, 12), (URG, 2), (0, 0)]);
}

/// RFC 8200 §8.1: on its way, the pseudo-header has the final destination, not the next one.
#[test]
fn a_routing_header_does_not_spoil_the_checksum() {
    let extensions = vec![Extension::HopByHop, Extension::Routing, Extension::Destination];
    let craft = Craft { extensions, ..Craft::tcp6(2_000) };
    assert_eq!(lengths(&cut_into(&craft, 1_000).unwrap()), [1_000, 1_000]);

    // Without a partial sum to start from, nothing here knows the final destination.
    let (_, offload) = craft.super_frame(1_000);
    let unmarked = Offload { checksum: None, ..offload };
    assert_eq!(cut(&craft.frame(), unmarked), Err(DropReason::BadOffload));
}

/// A driver's own coalescing (LRO) leaves TCP with a whole checksum; the kernel cuts that too.
#[test]
fn tcp_without_a_partial_checksum_is_cut() {
    for craft in [Craft::tcp4(2_000), Craft::tcp6(2_000)] {
        let (_, offload) = craft.super_frame(999);
        let unmarked = Offload { checksum: None, valid: true, ..offload };
        let segments = cut(&craft.frame(), unmarked).unwrap();
        assert_eq!(segments, cut_into(&craft, 999).unwrap());
    }
    let craft = Craft::udp4(2_000);
    let (_, offload) = craft.super_frame(999);
    let unmarked = Offload { checksum: None, ..offload };
    assert_eq!(cut(&craft.frame(), unmarked), Err(DropReason::BadOffload));
}

#[test]
fn octets_behind_the_packet_are_no_payload() {
    let (mut frame, offload) = Craft::tcp4(30).super_frame(20);
    frame.extend([0xee; 11]);
    assert_eq!(lengths(&cut(&frame, offload).unwrap()), [20, 10]);
    // Nor do they slip by as one frame, however long, because the packet before them is short.
    for marked in [true, false] {
        let (mut frame, offload) = Craft::tcp4(5).super_frame(20);
        let checksum = offload.checksum.filter(|_| marked);
        frame.extend([0xee; 9000]);
        let mut lens = Vec::new();
        let offload = Offload { checksum, ..offload };
        let count = segment(&frame, offload, &mut Vec::new(), &mut |piece| lens.push(piece.len()));
        assert_eq!((count, &*lens), (Ok(1), &[14 + 40 + 5][..]));
    }
}

/// Whoever verifies it sums to the end the IP header names.
#[test]
fn padding_is_not_covered() {
    for craft in [Craft::udp4(31), Craft::tcp6(5)] {
        let (mut frame, offload) = craft.partial();
        frame.extend([0xee; 7]);
        assert_eq!(offload.complete(&mut frame), Ok(()));
        assert_eq!(Offload::NONE.verify(&frame), Ok(()));
        assert_eq!(frame[..frame.len() - 7], craft.frame());
    }
}

/// As the kernel: too small to be cut is nothing to be cut, and its IP header is none of our
/// business.
#[test]
fn what_fits_a_segment_is_only_completed() {
    let craft = Craft::tcp4(20);
    let (mut frame, offload) = craft.super_frame(20);
    frame[24] ^= 0xff;
    let mut pieces = Vec::new();
    segment(&frame, offload, &mut Vec::new(), &mut |piece| pieces.push(piece.to_vec())).unwrap();
    let mut expected = craft.frame();
    expected[24] ^= 0xff;
    assert_eq!(pieces, [expected]);
}

/// A wrong sum must not come out right: the receiver has to see that something is wrong.
#[test]
#[should_panic(expected = "TCP checksum")]
fn a_wrong_pseudo_header_stays_wrong() {
    let craft = Craft::tcp4(30);
    let (mut frame, offload) = craft.super_frame(20);
    frame[craft.transport() + 16] ^= 0x40;
    let _ = cut(&frame, offload);
}

#[test]
fn no_more_datagrams_than_the_kernel_takes() {
    assert_eq!(cut_into(&Craft::udp4(1_280), 10).unwrap().len(), 128);
    assert_eq!(cut_into(&Craft::udp4(1_281), 10), Err(DropReason::BadOffload));
}

/// The payload is chosen so that the sum comes out as zero, which UDP may not send.
#[test]
fn a_udp_checksum_of_zero_is_sent_as_ffff() {
    for craft in [Craft::udp4(4), Craft::udp6(4)] {
        let mut craft = Craft { payload: vec![0; 4], ..craft };
        let rest = read(&craft.frame()).checksum;
        craft.payload[..2].copy_from_slice(&rest.to_be_bytes());
        let (mut frame, offload) = craft.partial();
        offload.complete(&mut frame).unwrap();
        assert_eq!(frame[craft.transport() + 6..][..2], [0xff, 0xff]);
        assert_eq!(Offload::NONE.verify(&frame), Ok(()));
        assert_eq!(cut_into(&craft, 4).unwrap()[0].checksum, 0xffff);
    }
    // TCP has no such rule: there, zero is what stands in the field.
    let mut craft = Craft { payload: vec![0; 4], ..Craft::tcp4(4) };
    let rest = read(&craft.frame()).checksum;
    craft.payload[..2].copy_from_slice(&rest.to_be_bytes());
    let (mut frame, offload) = craft.partial();
    offload.complete(&mut frame).unwrap();
    assert_eq!(frame[craft.transport() + 16..][..2], [0, 0]);
}

#[test]
fn gso_must_name_what_the_frame_is() {
    let size = 10;
    let kinds = [Gso::Tcp4 { size, ecn: false }, Gso::Tcp6 { size, ecn: false }, Gso::Udp { size }];
    let crafts = [Craft::tcp4(30), Craft::tcp6(30), Craft::udp4(30), Craft::udp6(30)];
    for (craft, own) in crafts.iter().zip([0, 1, 2, 2]) {
        let (frame, offload) = craft.super_frame(size);
        for (index, gso) in kinds.into_iter().enumerate() {
            let offload = Offload { gso, ..offload };
            let expected = if index == own { Ok(()) } else { Err(DropReason::BadOffload) };
            assert_eq!(offload.check(&frame), expected, "{craft:?} as {gso:?}");
        }
    }
}

#[test]
fn impossible_segment_sizes_are_refused() {
    for size in [0, 0xffff] {
        let (frame, offload) = Craft::tcp4(30).super_frame(size);
        assert_eq!(offload.check(&frame), Err(DropReason::BadOffload));
    }
}

/// Each segment costs a system call where the device cannot cut.
#[test]
fn tcp_is_cut_into_no_more_and_no_smaller_segments_than_linux_would_ask_for() {
    let too_many = Err(DropReason::TooManySegments);
    for craft in [Craft::tcp4(8 * 1024), Craft::tcp6(8 * 1024)] {
        assert_eq!(cut_into(&craft, 8).unwrap().len(), 1024);
        for size in [7, 1] {
            assert_eq!(cut_into(&craft, size), too_many);
        }
        let mut longer = Craft { payload: vec![0; 8 * 1024 + 1], ..craft };
        assert_eq!(cut_into(&longer, 8), too_many);
        assert_eq!(cut_into(&longer, 9).unwrap().len(), 911);
        // At the least MSS there is the longest packet is still cut.
        longer.payload = vec![0; 65_535];
        longer.clamp();
        assert_eq!(cut_into(&longer, 88 - 12).unwrap().len(), longer.payload.len().div_ceil(76));
    }
}

#[test]
fn what_must_be_cut_small_costs_more_than_its_octets() {
    let gso = |size| Offload { gso: Gso::Tcp4 { size, ecn: false }, ..Offload::NONE };
    assert_eq!(Offload::NONE.cost(1514), 1514);
    assert_eq!(gso(1448).cost(65_226) - 65_226, 46 * 128);
    assert_eq!(gso(8).cost(65_226) - 65_226, 1024 * 128, "no frame has more segments");
    assert_eq!(gso(0).cost(100), 100);
}

#[test]
fn what_opens_or_resets_a_connection_is_never_cut() {
    for flag in [TcpFlags::SYN, TcpFlags::RST] {
        let (frame, offload) = Craft { flags: flag | ACK, ..Craft::tcp4(30) }.super_frame(10);
        assert_eq!(offload.check(&frame), Err(DropReason::BadOffload));
    }
}

#[test]
fn a_fragment_is_neither_cut_nor_completed() {
    for flags_and_offset in [[0x20, 0x00], [0x00, 0x01], [0x20, 0x01]] {
        let (mut frame, offload) = Craft::tcp4(30).super_frame(10);
        frame[20..22].copy_from_slice(&flags_and_offset);
        let partial = Offload { gso: Gso::None, ..offload };
        let unmarked = Offload { checksum: None, ..offload };
        for offload in [offload, partial, unmarked] {
            assert_eq!(offload.check(&frame), Err(DropReason::BadOffload), "{offload:?}");
        }
    }
}

#[test]
fn a_super_datagram_is_as_long_as_it_says() {
    let craft = Craft::udp4(30);
    let (mut frame, offload) = craft.super_frame(10);
    frame[craft.transport() + 5] -= 1;
    assert_eq!(offload.check(&frame), Err(DropReason::BadOffload));
}

#[test]
fn the_ip_version_must_be_the_ethertypes() {
    for craft in [Craft::tcp4(30), Craft::tcp6(30)] {
        let (mut frame, offload) = craft.super_frame(10);
        frame[14] ^= 0x20;
        assert_eq!(offload.check(&frame), Err(DropReason::BadOffload));
        assert_eq!(Offload::NONE.verify(&frame), Err(DropReason::Malformed));
    }
}

/// Each costs a step, so a chain as long as the packet must end somewhere.
#[test]
fn eight_extension_headers_are_looked_through() {
    let with = |count| Craft { extensions: vec![Extension::Destination; count], ..Craft::tcp6(30) };
    assert_eq!(lengths(&cut_into(&with(8), 20).unwrap()), [20, 10]);
    assert_eq!(cut_into(&with(9), 20), Err(DropReason::BadOffload));
}

/// A sum written over an address or a port would undo what was judged by it.
#[test]
fn a_checksum_may_be_written_nowhere_but_in_its_field() {
    for craft in [Craft::tcp4(30), Craft::tcp6(30), Craft::udp4(30), Craft::udp6(30)] {
        let (frame, offload) = craft.partial();
        let right = offload.checksum.unwrap();
        let end = u16::try_from(frame.len()).unwrap();
        let body = u16::try_from(craft.body()).unwrap();
        for start in 0..end {
            for offset in 0..end {
                let partial = PartialChecksum { start, offset };
                let inside = u32::from(start) + u32::from(offset) + 2 <= u32::from(end);
                // UDP may carry a tunnel, whose inner packet has a checksum of its own.
                let tunnelled = craft.udp && start >= body && inside;
                let expected = if partial == right || tunnelled {
                    Ok(())
                } else {
                    Err(DropReason::BadOffload)
                };
                let offload = Offload { checksum: Some(partial), ..offload };
                assert_eq!(offload.check(&frame), expected, "{partial:?} {craft:?}");
            }
        }
    }
}

#[test]
fn only_the_outermost_packet_is_cut() {
    let craft = Craft::udp4(200);
    let (frame, offload) = craft.super_frame(100);
    let inner = PartialChecksum { start: u16::try_from(craft.body()).unwrap() + 50, offset: 6 };
    let tunnelled = Offload { checksum: Some(inner), ..offload };
    assert_eq!(tunnelled.check(&frame), Err(DropReason::BadOffload));
    let uncut = Offload { gso: Gso::None, ..tunnelled };
    assert_eq!(uncut.check(&frame), Ok(()));
}

/// The kernel neither cuts nor leaves checksums under two tags; other EtherTypes have no rule but
/// to stay behind the Ethernet header.
#[test]
fn what_is_no_ip_may_be_completed_but_not_cut() {
    let (mut frame, offload) = Craft { vlan: true, ..Craft::tcp4(30) }.super_frame(10);
    assert_eq!(offload.check(&frame), Ok(()));
    frame[12..14].copy_from_slice(&[0x88, 0xa8]);
    assert_eq!(offload.check(&frame), Ok(()), "a service tag is one tag");
    frame[16..18].copy_from_slice(&[0x81, 0x00]);
    assert_eq!(offload.check(&frame), Err(DropReason::BadOffload));
    let partial = |start| Offload {
        checksum: Some(PartialChecksum { start, offset: 0 }),
        gso: Gso::None,
        ..offload
    };
    // The kernel wants room for an IPv4 header behind the Ethernet header.
    assert_eq!(partial(33).check(&frame), Err(DropReason::BadOffload));
    assert_eq!(partial(34).check(&frame), Ok(()));
}

#[test]
fn the_hint_must_be_one_the_kernel_takes() {
    let frame = Craft::tcp4(3).frame();
    let hint = |header_len| Offload { header_len, ..Offload::NONE };
    let len = u16::try_from(frame.len()).unwrap();
    assert_eq!(hint(len).check(&frame), Ok(()));
    for (header_len, expected) in [(0, true), (1, false), (13, false), (14, true)] {
        assert_eq!(hint(header_len).check(&frame).is_ok(), expected);
    }
    assert_eq!(hint(len + 1).check(&frame), Err(DropReason::BadOffload));
}

/// The octets of `struct virtio_net_hdr`, as the kernel numbers flags and types.
#[test]
fn the_header_is_the_kernels() {
    let [size, start, offset, hint] = [1_448_u16, 34, 16, 66].map(u16::to_ne_bytes);
    let header = |flags, kind| {
        let words = [hint, size, start, offset].concat();
        let octets = [&[flags, kind], &words[..]].concat();
        <[u8; 10]>::try_from(octets).unwrap()
    };
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let size = 1_448;
    for (kind, gso) in [
        (0x01, Gso::Tcp4 { size, ecn: false }),
        (0x81, Gso::Tcp4 { size, ecn: true }),
        (0x04, Gso::Tcp6 { size, ecn: false }),
        (0x84, Gso::Tcp6 { size, ecn: true }),
        (0x05, Gso::Udp { size }),
    ] {
        let offload = Offload { checksum, gso, valid: false, header_len: 66 };
        assert_eq!(Offload::parse(&header(1, kind)), Ok(offload));
        let mut octets = [0; 10];
        offload.emit(&mut octets);
        assert_eq!(octets, header(1, kind));
    }
    let vouched = Offload { valid: true, header_len: 66, ..Offload::NONE };
    assert_eq!(Offload::parse(&header(2, 0)), Ok(vouched));

    // UFO, ECN without TCP, tunnels, and types nobody has defined.
    for kind in [2, 3, 6, 0x20, 0x40, 0x80, 0x83, 0x85, 0xff] {
        assert_eq!(Offload::parse(&header(1, kind)), Err(DropReason::BadOffload), "{kind:#x}");
    }
    // RSC_INFO and what may come after it.
    for flags in [4, 8, 0x80] {
        assert_eq!(Offload::parse(&header(flags, 0)), Err(DropReason::BadOffload), "{flags:#x}");
    }
    let mut octets = [0xaa; 10];
    Offload::NONE.emit(&mut octets);
    assert_eq!(octets, [0; 10]);
}

/// What an MTU bounds is each packet on the wire, not the frame that holds them all.
#[test]
fn the_longest_packet_is_a_whole_segment() {
    let longest = |craft: &Craft, size| {
        let (frame, offload) = craft.super_frame(size);
        offload.longest_packet(&frame)
    };
    assert_eq!(longest(&Craft::tcp4(60_000), 1_460), 1_500);
    assert_eq!(longest(&Craft { tcp_options: 3, ..Craft::tcp4(60_000) }, 1_448), 1_500);
    assert_eq!(longest(&Craft { vlan: true, ..Craft::tcp6(60_000) }, 1_440), 1_500);
    assert_eq!(longest(&Craft::udp6(60_000), 1_452), 1_500);
    assert_eq!(longest(&Craft::tcp4(100), 1_460), 140);
    let (frame, offload) = Craft { vlan: true, ..Craft::udp4(2_000) }.partial();
    assert_eq!(offload.longest_packet(&frame), 2_028);
    assert_eq!(Offload::NONE.longest_packet(&[0; 9]), 0);
}

#[test]
fn the_constructors_want_their_own_protocol() {
    let malformed = Err(DropReason::Malformed);
    assert_eq!(Offload::for_tcp(&mut Craft::udp4(10).frame(), 5), malformed);
    assert_eq!(Offload::for_udp(&mut Craft::tcp6(10).frame(), 5), malformed);
    assert_eq!(Offload::for_tcp(&mut [], 5), malformed);
    let mut frame = Craft::tcp4(10).frame();
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(Offload::for_tcp(&mut frame, 5), malformed);
    assert_eq!(Offload::for_tcp(&mut Craft::tcp4(10).frame(), 0), Err(DropReason::BadOffload));

    // What makes a sum of ours wrong: padding, a length of its own, another final destination.
    let mut padded = Craft::tcp6(10).frame();
    padded.push(0xee);
    assert_eq!(Offload::for_tcp(&mut padded, 5), malformed);
    let mut short = Craft::udp4(10).frame();
    short[39] -= 1;
    assert_eq!(Offload::for_udp(&mut short, 5), malformed);
    let routed = Craft { extensions: vec![Extension::Routing], ..Craft::udp6(10) };
    assert_eq!(Offload::for_udp(&mut routed.frame(), 5), malformed);
}

#[test]
fn a_scratch_is_grown_once() {
    let (frame, offload) = Craft::tcp4(60_000).super_frame(1_460);
    let mut scratch = Vec::new();
    segment(&frame, offload, &mut scratch, &mut |_| ()).unwrap();
    let (place, capacity) = (scratch.as_ptr(), scratch.capacity());
    segment(&frame, offload, &mut scratch, &mut |_| ()).unwrap();
    assert_eq!((scratch.as_ptr(), scratch.capacity()), (place, capacity));
}
