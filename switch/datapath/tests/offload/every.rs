//! Every length a datagram or a segment can have, through each kind of work left undone, by pnet's
//! reading of what comes out.
//!
//! A release build goes through all lengths, which takes some minutes:
//! `cargo test --release -p datapath --test offload every`. Otherwise they are the short ones, those
//! about each multiple of a segment, the longest, and a stride between.

use std::collections::BTreeSet;
use std::thread;

use datapath::offload::{Gso, MAX_DATAGRAMS, MAX_SEGMENTS, Offload};
use datapath::segment::segment;

use crate::craft::{Craft, pattern, read};

/// Octets of payload per segment: the smallest that cuts the longest packet, an old internet's and
/// Ethernet's with and without timestamps, an odd one, jumbo.
const TCP_SIZES: [u16; 5] = [64, 536, 1448, 1461, 8948];
const UDP_SIZES: [u16; 4] = [100, 512, 1472, 8973];

fn lengths(most: usize, sizes: &[u16]) -> Vec<usize> {
    if !cfg!(debug_assertions) {
        return (1..=most).collect();
    }
    let mut lengths: BTreeSet<usize> = (1..=3000).chain((3001..=most).step_by(311)).collect();
    for size in sizes.iter().map(|size| usize::from(*size)) {
        let multiples = (size..=most).step_by(size);
        lengths.extend(multiples.step_by((most / size / 8).max(1)).flat_map(|at| at - 1..=at + 1));
    }
    lengths.extend(most - 4..=most);
    lengths.retain(|len| (1..=most).contains(len));
    lengths.into_iter().collect()
}

/// All that can be left undone on one packet: nothing, its checksum, its segmentation.
fn exercise(craft: &Craft, sizes: &[u16], scratch: &mut Vec<u8>) {
    let frame = craft.frame();
    let original = read(&frame);
    assert!(original.payload == craft.payload, "what pnet makes pnet reads");
    let len = craft.payload.len();

    assert_eq!(Offload::NONE.verify(&frame), Ok(()), "{len} octets as pnet made them");
    let mut out = Vec::new();
    segment(&frame, Offload::NONE, scratch, &mut |piece| out.extend_from_slice(piece)).unwrap();
    assert!(out == frame, "{len} octets with nothing left undone");

    let (partial, offload) = craft.partial();
    out.clear();
    segment(&partial, offload, scratch, &mut |piece| out.extend_from_slice(piece)).unwrap();
    assert!(out == frame, "the checksum of {len} octets, as pnet makes it");

    for size in sizes.iter().copied() {
        let gso = match (craft.udp, craft.v6) {
            (true, _) => Gso::Udp { size },
            (false, false) => Gso::Tcp4 { size, ecn: false },
            (false, true) => Gso::Tcp6 { size, ecn: false },
        };
        let step = usize::from(size);
        let count = len.div_ceil(step);
        let most = if craft.udp { MAX_DATAGRAMS } else { MAX_SEGMENTS };
        if count > most {
            continue;
        }
        let mut payload = Vec::with_capacity(len);
        let cut = segment(&partial, Offload { gso, ..offload }, scratch, &mut |piece| {
            // Panics if pnet finds a length or a checksum wrong.
            let piece = read(piece);
            assert!(piece.payload.len() == step || payload.len() + piece.payload.len() == len);
            assert_eq!(piece.headers, original.headers, "{len} octets by {size}");
            if !craft.udp {
                let at = u32::try_from(payload.len()).unwrap();
                assert_eq!(piece.sequence, craft.sequence.wrapping_add(at));
            }
            payload.extend_from_slice(&piece.payload);
        });
        assert_eq!(cut, Ok(count), "{len} octets by {size}");
        assert!(payload == craft.payload, "{len} octets by {size} come together again");
    }
}

/// Goes through the lengths of one kind of packet, on both processors of a small machine.
fn every_length(craft: &Craft, most: usize, sizes: &[u16]) {
    let lengths = lengths(most, sizes);
    let octets = pattern(most, 99);
    thread::scope(|scope| {
        for half in 0..2 {
            let (lengths, octets) = (&lengths, &octets);
            scope.spawn(move || {
                let mut scratch = Vec::new();
                for len in lengths.iter().skip(half).step_by(2) {
                    let craft = Craft { payload: octets[..*len].to_vec(), ..craft.clone() };
                    exercise(&craft, sizes, &mut scratch);
                }
            });
        }
    });
}

fn tagged(craft: Craft) -> Craft {
    Craft { vlan: true, ..craft }
}

#[test]
fn every_length_of_a_datagram_over_ipv4() {
    every_length(&Craft::udp4(0), 65_507, &UDP_SIZES);
}

#[test]
fn every_length_of_a_datagram_over_ipv6() {
    every_length(&Craft::udp6(0), 65_527, &UDP_SIZES);
}

#[test]
fn every_length_of_a_tagged_datagram() {
    every_length(&tagged(Craft::udp4(0)), 65_507, &UDP_SIZES);
    every_length(&tagged(Craft::udp6(0)), 65_527, &UDP_SIZES);
}

#[test]
fn every_length_of_a_segment_over_ipv4() {
    every_length(&Craft::tcp4(0), 65_495, &TCP_SIZES);
}

#[test]
fn every_length_of_a_segment_over_ipv6() {
    every_length(&Craft::tcp6(0), 65_515, &TCP_SIZES);
}

#[test]
fn every_length_of_a_tagged_segment() {
    every_length(&tagged(Craft::tcp4(0)), 65_495, &TCP_SIZES);
    every_length(&tagged(Craft::tcp6(0)), 65_515, &TCP_SIZES);
}
