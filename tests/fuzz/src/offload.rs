//! The offload header and everything that is done by its word.
//!
//! Input: ten octets of header, and the frame.

use datapath::offload::{OFFLOAD_HEADER_LEN, Offload, PartialChecksum};
use datapath::segment::segment;
use datapath::{DropReason, MAX_FRAME_LEN};

use crate::fingerprint;

/// Reads, checks, cuts and completes; whatever `check` accepts must succeed and stay inside the
/// frame, and whatever it refuses must change nothing.
pub fn offload(input: &[u8]) -> u64 {
    let Some((header, frame)) = input.split_first_chunk::<OFFLOAD_HEADER_LEN>() else { return 0 };
    let frame = &frame[..frame.len().min(MAX_FRAME_LEN)];
    let offload = match Offload::parse(header) {
        Ok(offload) => offload,
        Err(reason) => return fingerprint(reason),
    };
    let mut again = [0xaa; OFFLOAD_HEADER_LEN];
    offload.emit(&mut again);
    assert_eq!(Offload::parse(&again), Ok(offload), "a header reads as it was written");

    let checked = offload.check(frame);
    let longest = offload.longest_packet(frame);
    assert!(longest <= frame.len());

    let mut seen = Vec::new();
    let mut first = None;
    let mut scratch = Vec::new();
    let count = segment(frame, offload, &mut scratch, &mut |piece| {
        assert!(piece.len() <= frame.len());
        assert_eq!(Offload::NONE.check(piece), Ok(()));
        seen.push(piece.len());
        first.get_or_insert_with(|| piece.to_vec());
    });
    assert_eq!(count.is_ok(), checked.is_ok());
    assert_eq!(count.unwrap_or(0), seen.len());
    if let Err(reason) = count {
        assert!(matches!(reason, DropReason::BadOffload | DropReason::TooManySegments));
    } else {
        assert!(!seen.is_empty());
    }

    let mut whole = frame.to_vec();
    let completed = offload.complete(&mut whole);
    if completed.is_ok() {
        assert_eq!(first.as_deref(), Some(&whole[..]), "uncut, both are the same work");
        let field = offload.checksum.map_or(frame.len(), PartialChecksum::field);
        assert_eq!(whole[..field], frame[..field]);
        assert_eq!(whole.get(field + 2..), frame.get(field + 2..));
    } else {
        assert_eq!(whole, frame);
    }

    let verified = offload.verify(frame);
    let size = offload.header_len;
    let made = [Offload::for_tcp, Offload::for_udp].map(|make| {
        let mut ours = frame.to_vec();
        let made = make(&mut ours, size);
        if let Ok(made) = made {
            assert_eq!(made.check(&ours), Ok(()));
            let mut pieces = 0;
            let result = segment(&ours, made, &mut scratch, &mut |piece| {
                assert_eq!(Offload::NONE.verify(piece), Ok(()), "what we make is right");
                pieces += 1;
            });
            assert_eq!(result, Ok(pieces));
        } else {
            assert_eq!(ours, frame);
        }
        made.map(|made| made.gso.size().is_some())
    });
    let kind = std::mem::discriminant(&offload.gso);
    fingerprint((
        checked.is_ok(),
        (kind, offload.checksum.is_some(), seen.len().min(4)),
        completed.is_ok(),
        verified,
        made,
    ))
}
