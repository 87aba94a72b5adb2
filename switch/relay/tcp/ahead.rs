//! What the container sent beyond a gap, kept until the gap is filled.
//!
//! Read RFC 9293 §3.10.7.4 (octets beyond the next expected should be kept) and RFC 2018 (telling the
//! sender which, so that it sends only the others again). Bounded by the window offered, and by the
//! container's share of waiting octets.

use super::seq::Seq;

/// Gaps between what is kept; one more is not worth the walk.
const MAX_PIECES: usize = 64;

/// Blocks of a SACK option that fit beside nothing else (RFC 2018 §3 allows four).
pub(crate) const MAX_BLOCKS: usize = 3;

/// Edges of received octets: the first, and one past the last.
pub(crate) type Block = (Seq, Seq);

#[derive(Debug)]
struct Piece {
    start: Seq,
    octets: Vec<u8>,
}

impl Piece {
    fn end(&self) -> Seq {
        self.start + u32::try_from(self.octets.len()).unwrap_or(u32::MAX)
    }
}

/// Pieces in order, none touching the next.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    pieces: Vec<Piece>,
    latest: Option<Seq>,
}

impl Ahead {
    /// Keeps what is new of `octets` from `start` on, and returns how many octets that were. What does
    /// not fit the bounds will be sent again.
    pub(crate) fn keep(&mut self, start: Seq, octets: &[u8]) -> usize {
        let at = self.pieces.partition_point(|piece| piece.start.since(start) <= 0);
        let before_end = at.checked_sub(1).map(|before| self.pieces[before].end());
        let known = before_end.map_or(0, |end| end.after(start)) as usize;
        let Some(mut fresh) = octets.get(known..) else { return 0 };
        let start = start + u32::try_from(known).unwrap_or(u32::MAX);
        if let Some(next) = self.pieces.get(at) {
            let room = next.start.after(start) as usize;
            fresh = &fresh[..fresh.len().min(room)];
        }
        if fresh.is_empty() {
            return 0;
        }
        let touches = at.checked_sub(1).filter(|before| self.pieces[*before].end() == start);
        let place = match touches {
            Some(before) => {
                self.pieces[before].octets.extend_from_slice(fresh);
                before
            }
            None if self.pieces.len() >= MAX_PIECES => return 0,
            None => {
                self.pieces.insert(at, Piece { start, octets: fresh.to_vec() });
                at
            }
        };
        self.join(place);
        self.latest = Some(start);
        fresh.len()
    }

    /// Makes one of a piece and the next, if they touch.
    fn join(&mut self, place: usize) {
        if self.pieces.get(place + 1).is_some_and(|next| next.start == self.pieces[place].end()) {
            let next = self.pieces.remove(place + 1);
            self.pieces[place].octets.extend_from_slice(&next.octets);
        }
    }

    /// Takes out the first piece if it reaches `nxt`, the next octet expected; its octets from there on,
    /// and how many were kept in all.
    pub(crate) fn take(&mut self, nxt: Seq) -> Option<(Vec<u8>, usize)> {
        let first = self.pieces.first()?;
        if first.start.since(nxt) > 0 {
            return None;
        }
        let Piece { start, mut octets } = self.pieces.remove(0);
        let kept = octets.len();
        let known = (nxt.after(start) as usize).min(kept);
        octets.drain(..known);
        Some((octets, kept))
    }

    /// What is kept, the piece that grew last first (RFC 2018 §4).
    pub(crate) fn blocks(&self) -> [Option<Block>; MAX_BLOCKS] {
        let recent = |piece: &&Piece| {
            self.latest.is_some_and(|latest| {
                latest.since(piece.start) >= 0 && piece.end().since(latest) > 0
            })
        };
        let first = self.pieces.iter().filter(recent);
        let others = self.pieces.iter().filter(|piece| !recent(piece));
        let mut blocks = [None; MAX_BLOCKS];
        for (block, piece) in blocks.iter_mut().zip(first.chain(others)) {
            *block = Some((piece.start, piece.end()));
        }
        blocks
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Octets kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.octets.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_filled_gap_gives_all_that_was_kept() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.keep(Seq(110), b"klmno"), 5);
        assert_eq!(ahead.keep(Seq(105), b"fghijkl"), 5, "only what is new");
        assert_eq!(ahead.keep(Seq(120), b"uv"), 2);
        assert_eq!(ahead.blocks()[0], Some((Seq(120), Seq(122))));
        assert_eq!(ahead.blocks()[1], Some((Seq(105), Seq(115))));
        assert_eq!(ahead.take(Seq(104)), None);
        assert_eq!(ahead.take(Seq(107)), Some((b"hijklmno".to_vec(), 10)));
        assert_eq!(ahead.len(), 2);
    }

    proptest! {
        /// Segments of a stream in any order, some twice, some overlapping, across the wrap: what is
        /// taken is the stream.
        #[test]
        fn any_order_gives_the_stream(
            base in any::<u32>(),
            cuts in prop::collection::vec((0usize..900, 1usize..120), 1..80),
        ) {
            let stream: Vec<u8> = (0..1000).map(|n| (n % 251) as u8).collect();
            let base = Seq(base);
            let mut ahead = Ahead::default();
            let mut kept = 0;
            let mut seen = vec![false; stream.len()];
            for (at, len) in cuts {
                let end = (at + len).min(stream.len());
                let before = ahead.len();
                kept += ahead.keep(base + u32::try_from(at).unwrap(), &stream[at..end]);
                prop_assert_eq!(ahead.len(), kept);
                if ahead.len() > before {
                    seen[at..end].fill(true);
                }
            }
            let mut nxt = base;
            let mut got = 0;
            while let Some((octets, _)) = ahead.take(nxt) {
                prop_assert_eq!(&octets[..], &stream[got..got + octets.len()]);
                got += octets.len();
                nxt += u32::try_from(octets.len()).unwrap();
            }
            prop_assert!(seen[..got].iter().all(|seen| *seen));
        }
    }
}
