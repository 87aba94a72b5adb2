//! Reading TCP segments: what tracking needs of one, and the MSS option.
//!
//! Read RFC 9293 §3.1 and §3.2, RFC 2018 and RFC 7323 for the options. The MSS of a SYN is lowered to what
//! the egress can carry (`TCPMSS --clamp-mss-to-pmtu`), never raised.

use crate::checksum::Sum;
use crate::headers::Headers;
use crate::rewrite::{self, Undone};
use crate::state::TcpFlags;
use crate::window::Segment;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK: u8 = 5;

/// Reads the segment of a TCP packet. None if its header is not whole.
pub(crate) fn segment(octets: &[u8], headers: &Headers) -> Option<Segment> {
    let (header, payload) = split(octets, headers)?;
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let bits = header[13];
    let mut segment = Segment {
        flags: TcpFlags {
            syn: bits & SYN != 0,
            ack: bits & ACK != 0,
            fin: bits & FIN != 0,
            rst: bits & RST != 0,
        },
        seq: word(4),
        ack: word(8),
        sack: None,
        window: u16::from_be_bytes([header[14], header[15]]),
        len: u32::try_from(payload).ok()?,
        scale: None,
    };
    for (kind, at, len) in options(header) {
        let value = &header[at..at + len];
        match (kind, value) {
            (WINDOW_SCALE, [scale]) => segment.scale = Some(*scale),
            (SACK, blocks) => {
                let edges = blocks.as_chunks::<8>().0.iter();
                let right = edges.map(|[.., a, b, c, d]| u32::from_be_bytes([*a, *b, *c, *d]));
                let ahead = |edge: &u32| edge.wrapping_sub(segment.ack);
                segment.sack = right.filter(|edge| ahead(edge) < 1 << 31).max_by_key(ahead);
            }
            _ => {}
        }
    }
    Some(segment)
}

/// An MSS that was lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lowered {
    /// Where its value stands in the TCP header.
    at: usize,
    /// What it said.
    pub(crate) from: u16,
    /// What it says.
    pub(crate) to: u16,
}

impl Lowered {
    /// Makes it what it was.
    pub(crate) fn restore(self, octets: &mut [u8], headers: &Headers, undone: Undone) {
        write_mss(octets, headers, (self.at, self.to, self.from), undone);
    }
}

/// Lowers a SYN's MSS to `most`, if it is more.
pub(crate) fn clamp_mss(
    octets: &mut [u8],
    headers: &Headers,
    most: u16,
    undone: Undone,
) -> Option<Lowered> {
    let (header, _) = split(octets, headers)?;
    if header[13] & SYN == 0 {
        return None;
    }
    let (_, at, _) = options(header).find(|(kind, _, len)| *kind == MSS && *len == 2)?;
    let from = u16::from_be_bytes([header[at], header[at + 1]]);
    if from <= most {
        return None;
    }
    write_mss(octets, headers, (at, from, most), undone);
    Some(Lowered { at, from, to: most })
}

/// Writes the option's value. A partial checksum covers no option yet, so that it stays.
fn write_mss(
    octets: &mut [u8],
    headers: &Headers,
    (at, from, to): (usize, u16, u16),
    undone: Undone,
) {
    let transport = &mut octets[headers.transport..headers.end];
    transport[at..at + 2].copy_from_slice(&to.to_be_bytes());
    if !undone.partial {
        // An option may begin at an odd place; its octets are then the other halves of their words.
        let placed =
            |word: u16| Sum::word(if at.is_multiple_of(2) { word } else { word.swap_bytes() });
        rewrite::replace(transport, 16, placed(from), placed(to));
    }
}

/// The header of a segment, and how long its payload is.
fn split<'a>(octets: &'a [u8], headers: &Headers) -> Option<(&'a [u8], usize)> {
    let segment = octets.get(headers.transport..headers.end)?;
    let len = usize::from(segment.get(12)? >> 4) * 4;
    let header = segment.get(..len).filter(|header| header.len() >= 20)?;
    Some((header, segment.len() - len))
}

/// The options of a header: kind, where the value begins, and its length.
fn options(header: &[u8]) -> impl Iterator<Item = (u8, usize, usize)> + '_ {
    let mut at = 20;
    std::iter::from_fn(move || {
        while header.get(at) == Some(&NO_OPERATION) {
            at += 1;
        }
        let kind = *header.get(at).filter(|kind| **kind != END_OF_OPTIONS)?;
        let len = usize::from(*header.get(at + 1)?);
        if len < 2 || at + len > header.len() {
            return None;
        }
        let value = at + 2;
        at += len;
        Some((kind, value, len - 2))
    })
}
