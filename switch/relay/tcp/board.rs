//! What of the octets in flight has arrived beyond a gap, and what must be sent again.
//!
//! Read RFC 2018 (what the container's blocks say), RFC 6675 (which octets are lost by them) and RFC 6582
//! (without blocks) first. A board exists from the first sign of a loss until all that was in flight then
//! is acknowledged: a flow without losses has none.

use super::ahead::Block;
use super::seq::Seq;

/// Runs remembered; what a further one would tell is sent again needlessly.
const MAX_RUNS: usize = 64;

/// The state of one recovery from losses, or of what may become one.
#[derive(Debug)]
pub(crate) struct Board {
    /// What the container has, in order; no run touches the next.
    sacked: Vec<Block>,
    /// Where sending stood when the loss was found: recovery ends once all before is acknowledged, and
    /// no acknowledgment before that finds another loss (RFC 6582 §3.2).
    recover: Option<Seq>,
    /// Next octet to be looked at for sending again.
    again: Seq,
    /// Every octet before that is not in `sacked` is lost.
    lost: Seq,
    /// Where sending stood when octets were last sent again.
    mark: Seq,
    /// The first lost octets go out whatever is in flight (RFC 6675 §5, step 4.3).
    first: bool,
}

impl Board {
    pub(crate) const fn new(una: Seq) -> Self {
        Self { sacked: Vec::new(), recover: None, again: una, lost: una, mark: una, first: false }
    }

    pub(crate) const fn recovering(&self) -> bool {
        self.recover.is_some()
    }

    /// Whether nothing is known here that the plain variables do not say.
    pub(crate) const fn is_blank(&self) -> bool {
        self.recover.is_none() && self.sacked.is_empty()
    }

    /// Takes note of a block of the container's. What was never sent, or is acknowledged already
    /// (RFC 2883), says nothing.
    pub(crate) fn note(&mut self, (start, end): Block, una: Seq, nxt: Seq) {
        if end.since(start) <= 0 || start.since(una) <= 0 || end.since(nxt) > 0 {
            return;
        }
        let first = self.sacked.partition_point(|run| run.1.since(start) < 0);
        let behind = self.sacked.partition_point(|run| run.0.since(end) <= 0);
        if first == behind {
            if self.sacked.len() < MAX_RUNS {
                self.sacked.insert(first, (start, end));
            }
            return;
        }
        let joined = (self.sacked[first].0.min(start), self.sacked[behind - 1].1.max(end));
        self.sacked[first] = joined;
        self.sacked.drain(first + 1..behind);
    }

    /// All before `una` is acknowledged.
    pub(crate) fn advance(&mut self, una: Seq) {
        let over = self.sacked.partition_point(|run| run.1.since(una) <= 0);
        self.sacked.drain(..over);
        self.again = self.again.max(una);
        self.lost = self.lost.max(una);
        if self.recover.is_some_and(|recover| una.since(recover) >= 0) {
            self.recover = None;
            self.first = false;
        }
    }

    /// Octets the container has beyond the first gap.
    pub(crate) fn octets(&self) -> u32 {
        self.sacked.iter().map(|(start, end)| end.after(*start)).sum()
    }

    /// Begins a recovery: what lies before `lost` and did not arrive is sent again, from `una` on.
    pub(crate) fn begin(&mut self, una: Seq, lost: Seq, nxt: Seq) {
        self.recover = Some(nxt);
        self.again = una;
        self.lost = lost.max(self.highest().unwrap_or(lost));
        self.mark = nxt;
        self.first = true;
    }

    /// The container said nothing for a timeout: it may have thrown away what it had beyond the gap
    /// (RFC 2018 §8), so nothing is relied on if that happens twice.
    pub(crate) fn distrust(&mut self) {
        self.sacked.clear();
    }

    /// Learns from the blocks of an acknowledgment during a recovery what else is lost.
    pub(crate) fn update(&mut self, una: Seq, nxt: Seq) {
        let Some(highest) = self.highest().filter(|_| self.recovering()) else { return };
        self.lost = self.lost.max(highest);
        // What was sent after the first gap's octets were sent again has arrived: they are lost again.
        if highest.since(self.mark) > 0 {
            self.again = una;
            self.mark = nxt;
        }
    }

    /// Without blocks, an acknowledgment of a part says that what follows it is lost, too
    /// (RFC 6582 §3.2, step 3).
    pub(crate) fn partial(&mut self, una: Seq, octets: u32) {
        if self.sacked.is_empty() && self.again.since(una + octets) < 0 && self.lost == una {
            self.again = una;
            self.lost = una + octets;
            self.first = true;
        }
    }

    /// The next octets to send again.
    pub(crate) fn hole(&self) -> Option<Block> {
        self.recover?;
        let mut start = self.again;
        for run in &self.sacked {
            if run.0.since(start) > 0 {
                break;
            }
            start = start.max(run.1);
        }
        let next = self.sacked.iter().find(|run| run.0.since(start) > 0);
        let end = next.map_or(self.lost, |run| run.0.min(self.lost));
        (end.since(start) > 0).then_some((start, end))
    }

    /// Whether the next hole may be sent whatever is in flight.
    pub(crate) const fn is_first(&self) -> bool {
        self.first
    }

    /// Octets up to `end` were sent again, while new ones are sent from `nxt` on.
    pub(crate) const fn resent(&mut self, end: Seq, nxt: Seq) {
        self.again = end;
        self.mark = nxt;
        self.first = false;
    }

    /// Octets that are lost and not sent again yet.
    pub(crate) fn missing(&self) -> u32 {
        if !self.recovering() {
            return 0;
        }
        let within = |run: &Block| run.1.min(self.lost).after(run.0.max(self.again));
        let arrived: u32 = self.sacked.iter().map(within).sum();
        self.lost.after(self.again).saturating_sub(arrived)
    }

    fn highest(&self) -> Option<Seq> {
        self.sacked.last().map(|run| run.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_did_not_arrive_is_sent_again() {
        let (una, nxt) = (Seq(u32::MAX - 999), Seq(9_000));
        let mut board = Board::new(una);
        board.note((una + 2_000, una + 4_000), una, nxt);
        board.note((una + 6_000, una + 7_000), una, nxt);
        assert_eq!(board.hole(), None, "no loss was found yet");
        board.begin(una, una, nxt);
        assert_eq!(board.missing(), 4_000);
        assert_eq!(board.hole(), Some((una, una + 2_000)));
        board.resent(una + 2_000, nxt);
        assert_eq!(board.hole(), Some((una + 4_000, una + 6_000)));
        board.resent(una + 5_000, nxt);
        assert_eq!(board.hole(), Some((una + 5_000, una + 6_000)));
        board.resent(una + 6_000, nxt);
        assert_eq!(board.hole(), None, "what lies behind the last block may be under way");
        board.advance(una + 7_000);
        assert_eq!(board.octets(), 0);
        assert!(board.recovering());
        board.advance(nxt);
        assert!(board.is_blank());
    }

    #[test]
    fn octets_lost_twice_are_found_by_what_arrives_of_later_ones() {
        let una = Seq(0);
        let mut board = Board::new(una);
        board.note((una + 1_000, una + 4_000), una, una + 4_000);
        board.begin(una, una, una + 4_000);
        board.resent(una + 1_000, una + 4_000);
        board.update(una, una + 4_000);
        assert_eq!(board.hole(), None);
        board.note((una + 4_000, una + 5_000), una, una + 5_000);
        board.update(una, una + 5_000);
        assert_eq!(board.hole(), Some((una, una + 1_000)));
    }

    proptest! {
        /// Whatever blocks come: what is held and what is sent again are all of the lost octets, each once.
        #[test]
        fn blocks_and_holes_cover_the_lost_octets(
            una in any::<u32>(),
            blocks in prop::collection::vec((1u32..900, 1u32..200), 0..40),
            step in 1u32..300,
        ) {
            let una = Seq(una);
            let nxt = una + 1_000;
            let mut board = Board::new(una);
            let mut arrived = vec![false; 1_000];
            for (start, len) in blocks {
                let end = (start + len).min(1_000);
                board.note((una + start, una + end), una, nxt);
                arrived[start as usize..end as usize].fill(true);
            }
            prop_assert_eq!(board.octets() as usize, arrived.iter().filter(|here| **here).count());
            board.begin(una, nxt, nxt);
            prop_assert_eq!(board.missing(), 1_000 - board.octets());
            while let Some((start, end)) = board.hole() {
                let end = end.min(start + step);
                for at in start.after(una)..end.after(una) {
                    prop_assert!(!std::mem::replace(&mut arrived[at as usize], true));
                }
                board.resent(end, nxt);
            }
            prop_assert!(arrived.iter().all(|here| *here));
            prop_assert_eq!(board.missing(), 0);
        }
    }
}
